"""Sites, the places in a backbone where activations are read, and feature columns, sites under a pooling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spin.errors import UserError

Kind = Literal["resid", "ffn", "final"]
BY_WORDS = -1
"""depth of documents that their words alone decide, which the backbone does not even tokenize"""
_PATTERN = re.compile(r"(resid|ffn|final)\.([0-9]{2}|[1-9][0-9]{2,3})")


@dataclass(frozen=True, order=True)
class Site:
    """One place in a backbone where activations are read; its text form is `resid.05`, `ffn.05` or `final.06`.

    `resid.NN` is the residual stream after block NN (`resid.00`: the embedding output). `ffn.NN` are the inner neurons
    of block NN's feed-forward network. So both number blocks from 1. `final.NN` is the last layer after the final norm,
    which sentence embeddings pool; it serves the last-layer baseline and is never offered to a probe. Sites sort by
    layer.
    """

    layer: int
    """0 is the embedding output, 1 the first block"""
    kind: Kind
    """resid, ffn or final"""

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer:02d}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site of a text form. Raises UserError if the text is none."""
        match = _PATTERN.fullmatch(text)
        if not match or (match[1] == "ffn" and int(match[2]) == 0):
            raise UserError(
                f"'{text}' is not a site; expected resid.NN (00 is the embedding output) or ffn.NN (from 01)"
            )
        return cls(int(match[2]), match[1])  # type: ignore[arg-type]


@dataclass(frozen=True, order=True)
class FeatureColumn:
    """A site under a pooling: one feature vector per document. Its text form is `ffn.05.mean`."""

    site: Site
    pooling: str
    """the name of a `Pooling`, such as mean or max"""

    def __str__(self) -> str:
        return f"{self.site}.{self.pooling}"

    @classmethod
    def parse(cls, text: str) -> FeatureColumn:
        """The column of a text form. Raises UserError if its site is none; the pooling is not checked."""
        site, _, pooling = text.rpartition(".")
        return cls(Site.parse(site), pooling)


def choose_sites(wanted: Iterable[str], available: Sequence[Site]) -> list[Site]:
    """The sites that `wanted` names, sorted; a kind (`resid`, `ffn`) stands for all of its layers.

    `available` are the sites of the backbone. Raises UserError for a site that it does not have, and if none is named.
    """
    chosen: set[Site] = set()
    for text in wanted:
        named = [s for s in available if s.kind == text] or [s for s in available if str(s) == text]
        if not named:
            if text not in ("resid", "ffn"):
                Site.parse(text)  # raises a better message if the text is not a site at all
            ranges = ", ".join(_ranges(available))
            raise UserError(f"sites: the backbone has no '{text}'; it has {ranges}")
        chosen.update(named)
    if not chosen:
        raise UserError("sites: the list is empty; expected resid, ffn or single ones such as ffn.03")
    return sorted(chosen)


def _ranges(sites: Sequence[Site]) -> list[str]:
    """`resid.00 to resid.06` for each kind."""
    kinds = sorted({s.kind for s in sites}, reverse=True)
    layers = {kind: [s for s in sites if s.kind == kind] for kind in kinds}
    return [f"{min(of_kind)} to {max(of_kind)}" for of_kind in layers.values()]


def exit_name(depth: int) -> str:
    """The name of the exit of documents of this depth, for people: `by words` or `after block 3`."""
    return "by words" if depth == BY_WORDS else f"after block {depth}"
