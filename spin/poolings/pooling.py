"""A pooling: how the values of a neuron on all tokens of a text become one value.

The settings name the poolings, and `spin init` imports neither torch nor NumPy: methods that need them import them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from spin.arrays import Floats

Array = TypeVar("Array", "Floats", "Tensor")
Shares = Literal["none", "every token", "one by value", "one by place"]


class PooledWindows(Protocol[Array]):
    """The pooled values of the w windows of n texts: arrays of NumPy in a pass, tensors in an exported graph."""

    @property
    def values(self) -> Array:
        """(w, m) the values of m neurons."""
        ...

    @property
    def shares(self) -> Array:
        """(w, 1) the share of each window in the tokens that its text pools; 0 for a window that pools none."""
        ...

    def sum(self, values: Array) -> Array:
        """The sums (n, m) of values (w, m) over the windows of each text."""
        ...

    def largest(self, values: Array) -> Array:
        """The largest (n, m) of values (w, m) over the windows of each text that pool a token."""
        ...

    def first(self) -> Array:
        """The values (n, m) of the first window of each text."""
        ...

    def last(self) -> Array:
        """The values (n, m) of the last window of each text that is read."""
        ...


class Pooling(ABC):
    """How the values of a neuron on all tokens of a text become one value; `POOLINGS` holds one of each class.

    A mask (B, T) is true for the tokens that count, of which every text has one. Values (B, T, m) outside it are
    finite, and padding may lie on either side.
    """

    name: ClassVar[str]
    """as in the settings, in feature columns such as `ffn.05.mean` and in files"""
    description: ClassVar[str]
    """for the page of an explanation"""
    content_only: ClassVar[bool] = True
    """whether only content counts: no special tokens, not a decoder's first position, no token that an earlier window
    has read. Otherwise all tokens of a text or window count, as they do for sentence embeddings, which are `final`"""
    shares: ClassVar[Shares] = "none"
    """which tokens share what a neuron contributes, for reasons and explanations

    none: no token has a share, so the neuron is named without a word, and a warning says so. every token: the value is
    the mean of the values of the tokens that count. one by value: it is the value of the token that `locate` finds. one
    by place: it is that of the token that `find_place` finds, whatever the values are.
    """

    @property
    def takes_one_value(self) -> bool:
        """Whether the value is that of one token, so that it is the same whatever neurons are pooled together."""
        return self.shares in ("one by value", "one by place")

    @abstractmethod
    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """The pooled values (B, m) in float32."""

    @abstractmethod
    def merge(self, windows: PooledWindows[Array]) -> Array:
        """The values (n, m) of texts, from those of their windows."""

    def locate(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled values (B, m), and the positions (B, m) of the tokens that have them: for `one by value`."""
        raise NotImplementedError(f"the pooling {self.name} has shares '{self.shares}', so it must define locate")

    def find_place(self, mask: Tensor) -> Tensor:
        """The position (B,) of the token whose value is taken in each text: for `one by place`."""
        raise NotImplementedError(f"the pooling {self.name} has shares '{self.shares}', so it must define find_place")

    def pool_in_openvino(self, values: Tensor, mask: Tensor, unit: Tensor | None) -> Tensor:
        """As `pool`, in operations that OpenVINO runs well; `unit` (m, m) is given where few of a site's neurons are.

        OpenVINO computes a whole site in float32 unless a product follows, such as one with `unit`.
        """
        return self.pool(values, mask)

    def locate_in_openvino(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `locate`, in operations that OpenVINO runs well."""
        return self.locate(values, mask)
