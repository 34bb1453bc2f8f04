"""A classification head: the logits of a text from its standardised features, and what each feature adds to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from spin.arrays import Floats
from spin.heads.design import Design


@dataclass(frozen=True)
class FitTask:
    """The data for fitting a head, and when to stop."""

    linear: Head
    """the linear head on the same rows, with coefficients `directions` (K, p) and intercepts `bias` (K,)"""
    design: Design
    strength: float
    """of the penalty of the linear head"""
    seed: int
    steps: int | None = None
    """of a fit in steps the largest number; None for that of the head"""
    judge: Callable[[Any], float] | None = None
    """returns the loss of a head on other rows: a fit in steps stops where it is least"""


class Head(ABC):
    """Turns standardised features (n, p) into logits (n, K): a frozen dataclass whose fields are arrays in float32.

    `HEADS` names each class; its fields are what is stored of it. Logits are explained as a sum: those of features x
    (p,) are `bias` plus the sum over p of x times the slopes at x, and slopes are a mixture of few `directions`. A head
    with linear logits is a subclass of `LinearHead` with a `name` and `fit`.
    """

    name: ClassVar[str]
    """as in the setting `search.head` and in files"""

    @classmethod
    @abstractmethod
    def fit(cls, task: FitTask) -> tuple[Self, int]:
        """The head on the rows of a task, and the number of steps that it took; 0 for a fit without steps.

        The members of `task.design.group` hold different rows, and all return the same head.
        """

    @abstractmethod
    def logits(self, X: Floats) -> Floats:
        """Logits (n, K) of standardised features (n, p)."""

    @property
    @abstractmethod
    def bias(self) -> Floats:
        """(K,) the logits of a text whose features are all at their training mean."""

    @property
    @abstractmethod
    def directions(self) -> Floats:
        """(R, p) such that the slopes of any class at any features are a mixture of these rows."""

    @abstractmethod
    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) how the slopes of one class each, at standardised features (n, p), are a mixture of `directions`."""

    @abstractmethod
    def with_temperature(self, temperature: float) -> Self:
        """The head whose logits are these divided by a temperature."""

    @abstractmethod
    def with_bias(self, bias: Floats) -> Self:
        """The head whose logits are these plus a bias (K,)."""

    @abstractmethod
    def join_words(self, neurons: np.float32, words: Floats) -> Self:
        """The head whose logits are these times `neurons`, plus K features that come first, times `words` (K,)."""

    @abstractmethod
    def keep(self, features: NDArray[np.bool_]) -> Self:
        """The head on some of its features, given as a mask (p,)."""

    @abstractmethod
    def graph(self) -> nn.Module:
        """A module from standardised features (n, p) to logits (n, K), which can be traced, for export."""

    def slopes_of(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, p) the slopes of one class each, at standardised features (n, p)."""
        return self.mix(X, classes) @ self.directions

    def slopes(self, x: Floats) -> Floats:
        """(K, p) the slopes of all classes at standardised features (p,)."""
        classes = np.arange(len(self.bias))
        return self.slopes_of(np.tile(x, (len(classes), 1)), classes)

    @property
    def used(self) -> NDArray[np.bool_]:
        """(p,) the features that it reads; all of them if there is none, as a head must read something."""
        used: NDArray[np.bool_] = np.any(self.directions != 0, axis=0)
        return used | (not used.any())

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays that are stored, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """The head of the arrays that `to_tensors` returned. Raises KeyError if one is missing."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})  # type: ignore[arg-type]


AnyHead = TypeVar("AnyHead", bound=Head)
