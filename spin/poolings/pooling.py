"""A pooling: how the values of a neuron on all tokens of a text become one value.

The settings name the poolings, and `spin init` imports neither torch nor NumPy: methods that need them import them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from spin.arrays import Floats, Rows

Shares = Literal["none", "every token", "one by value", "one by place"]


class Pooling(ABC):
    """A way to turn a neuron's values on all tokens of a text into one value; `POOLINGS` holds one of each class.

    A mask (B, T) is true for the tokens that count, of which every text has one. Values (B, T, m) are of any sign, in
    float32 or bfloat16. Outside the mask they are finite and arbitrary, and padding may lie on either side.
    """

    name: ClassVar[str]
    """as in the settings, in feature columns such as `ffn.05.mean` and in files"""
    description: ClassVar[str]
    """for the page of an explanation"""
    content_only: ClassVar[bool] = True
    """whether only content counts: no token that an earlier window has read and, unless the setting
    `backbone.pool_special_tokens` is true, no special tokens and not a decoder's first position. Otherwise all tokens
    of a text or window count, as they do for sentence embeddings, which are `final`"""
    shares: ClassVar[Shares] = "none"
    """which tokens share what a neuron contributes, for reasons and explanations

    none: no token has a share, so the neuron is named without a word, and a warning says so. every token: the value is
    the plain mean of the values of the content. one by value: it is the value of the token that `locate` finds. one by
    place: it is that of the token that `find_place` finds, whatever the values are.
    """

    def __init_subclass__(cls) -> None:
        """Raise TypeError for shares that the pooling does not allow; a class that others derive from has no name."""
        if not hasattr(cls, "name"):
            return
        if cls.shares == "every token" and not cls.content_only:
            raise TypeError(f"the pooling {cls.name} has shares 'every token', so it must pool content only")
        method = {"one by value": "locate", "one by place": "find_place"}.get(cls.shares)
        if method and getattr(cls, method) is getattr(Pooling, method):
            raise TypeError(f"the pooling {cls.name} has shares '{cls.shares}', so it must define {method}")

    @property
    def takes_one_value(self) -> bool:
        """Whether the value is that of one token, so that it is the same whatever neurons are pooled together."""
        return self.shares in ("one by value", "one by place")

    @abstractmethod
    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """The pooled values (B, m) in float32.

        They must be about as insensitive to rounding as a mean: batches, engines and bfloat16 change values a little. A
        logarithm or a quotient makes that large near 0, so give it a floor.
        """

    @abstractmethod
    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        """The values (1, m) of a text, from those of its windows (w, m) that are read, in order.

        The values are in float32. `shares` (w, 1), in float32 or float64, are those of the windows in the tokens that
        the text pools, and sum to 1; 0 for a window that pools none, whose values are finite and arbitrary.
        """

    def merge_texts(self, values: Floats, shares: Floats, starts: Rows) -> Floats:
        """The values (n, m) of texts whose windows are consecutive, given the first window (n,) of each, by `merge`."""
        import numpy as np
        import torch

        of_texts = zip(*(np.split(each, starts[1:]) for each in (values, shares)), strict=True)
        return torch.cat([self.merge(*map(torch.from_numpy, windows)) for windows in of_texts]).numpy()

    def locate(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled values (B, m), and the positions (B, m) of the tokens that have them: for `one by value`."""
        raise NotImplementedError

    def find_place(self, mask: Tensor) -> Tensor:
        """The position (B,) of the token whose value is taken in each text: for `one by place`."""
        raise NotImplementedError

    def locate_in_openvino(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `locate`, in operations that OpenVINO runs well."""
        return self.locate(values, mask)
