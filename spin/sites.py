"""What can be read from a backbone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spin.errors import UserError

Kind = Literal["resid", "ffn", "final"]
_FORM = re.compile(r"(resid|ffn|final)\.([0-9]{2}|[1-9][0-9]{2,3})")


@dataclass(frozen=True, order=True)
class Site:
    """One place in a backbone where activations are read; its text form is `resid.05`, `ffn.05` or `final.06`.

    `resid.NN` is the residual stream after block NN (`resid.00`: the embedding output) and `ffn.NN` the inner
    neurons of block NN's feed-forward network, so both number blocks from 1. `final.NN` is the last layer after
    the final norm, what a sentence embedding pools: kept for the last-layer baseline, never offered to a probe.
    """

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer:02d}"

    @classmethod
    def parse(cls, text: str) -> Site:
        match = _FORM.fullmatch(text)
        if not match or (match[1] == "ffn" and int(match[2]) == 0):
            raise UserError(
                f"'{text}' is not a site; expected resid.NN (00 is the embedding output) or ffn.NN (from 01)"
            )
        return cls(int(match[2]), match[1])  # type: ignore[arg-type]


@dataclass(frozen=True, order=True)
class FeatureColumn:
    """A site under a pooling: one feature vector per document. Text form `ffn.05.mean`."""

    site: Site
    pooling: str

    def __str__(self) -> str:
        return f"{self.site}.{self.pooling}"

    @classmethod
    def parse(cls, text: str) -> FeatureColumn:
        site, _, pooling = text.rpartition(".")
        return cls(Site.parse(site), pooling)


def choose_sites(wanted: Iterable[str], available: Sequence[Site]) -> list[Site]:
    """The sites that `wanted` names: a kind (`resid`, `ffn`) stands for all of its layers.

    Raises UserError for a site that the backbone does not have, and for none at all.
    """
    chosen: set[Site] = set()
    for text in wanted:
        named = [s for s in available if s.kind == text] or [s for s in available if str(s) == text]
        if not named:
            if text not in ("resid", "ffn"):
                Site.parse(text)  # a better message for what is not a site at all
            have = ", ".join(_ranges(available))
            raise UserError(f"sites: the backbone has no '{text}'; it has {have}")
        chosen.update(named)
    if not chosen:
        raise UserError("sites: found none; expected resid, ffn or single ones such as ffn.03")
    return sorted(chosen)


def _ranges(sites: Sequence[Site]) -> list[str]:
    """`resid.00 to resid.06` for each kind."""
    kinds = sorted({s.kind for s in sites}, reverse=True)
    layers = {kind: [s for s in sites if s.kind == kind] for kind in kinds}
    return [f"{min(of_kind)} to {max(of_kind)}" for of_kind in layers.values()]
