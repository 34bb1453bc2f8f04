"""What the rows come to: each against the best peer, and whether the promises hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.speed.rounds import key_of
from spin.settings import CascadeSettings

SAME_ACCURACY = 0.003
"""of accuracy, that a row may lose to our own float32 and still count as equal to it"""
NIGHT_LOSS = 0.005
"""of accuracy, that a night's cascade may lose to our own full depth"""
SHIPPED = CascadeSettings().max_loss
"""of the metric, that a night's cascade is granted by default"""
FULL_RATIO, NIGHT_FLOOR, NIGHT_GOAL = 1.0, 1.2, 2.0


@dataclass(frozen=True)
class Row:
    """A contender as measured."""

    name: str
    precision: str
    seconds: tuple[float, ...]
    """of each round, for all documents"""
    accuracy: float
    agreement: float
    """share of labels that float32 gives too: for ours our own full depth, for a peer the first peer"""
    batch: int = 0
    """documents a batch; 0 where it batches by tokens"""
    compute: float = 1.0
    """FLOPs that it spent as a share of the whole model's"""
    ours: bool = False
    calibrated: bool = False
    """a peer whose int8 is scaled by documents that its user has to bring"""
    max_loss: float | None = None

    @property
    def key(self) -> str:
        """How it is spoken of, as its contender is."""
        return key_of(self.name, self.precision, self.max_loss)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Verdict:
    """Whether a promise holds."""

    text: str
    holds: bool
    asserted: bool
    """the exit status of the benchmark depends on it"""


def ratio(peer: Row, row: Row) -> float:
    """How often a row is as fast as a peer: the median of the ratios within each round, where the noise is shared."""
    return float(np.median(np.array(peer.seconds) / np.array(row.seconds)))


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row of the least median time, None of none."""
    return min(rows, key=lambda row: row.median, default=None)


def best_peer(rows: Sequence[Row], *, whole: bool = False, plain: bool = False) -> Row | None:
    """The fastest peer; `whole` leaves out int8, `plain` what is calibrated."""
    peers = [row for row in rows if not row.ours and not (plain and row.calibrated)]
    return fastest([row for row in peers if not (whole and row.precision == "int8")])


def reference(rows: Sequence[Row]) -> Row | None:
    """Our own full depth in float32."""
    return next((row for row in rows if row.ours and row.max_loss is None and row.precision == "float32"), None)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Full depth against the peers of 16 and 32 bits; a night against those that run as they come, and against all."""
    own = reference(rows)
    floor = -np.inf if own is None else own.accuracy
    mine = [row for row in rows if row.ours]
    equal = [row for row in mine if row.max_loss is None and row.precision != "int8"]
    full = fastest([row for row in equal if row.accuracy >= floor - SAME_ACCURACY - 1e-9])
    night = fastest([row for row in mine if row.max_loss == SHIPPED and row.accuracy >= floor - NIGHT_LOSS - 1e-9])
    whole, plain, of_all = best_peer(rows, whole=True), best_peer(rows, plain=True), best_peer(rows)
    full_text = f"full depth in 16 or 32 bits, at most {100 * SAME_ACCURACY:.1f} points below its float32"
    night_text = f"a night with the cascade as shipped, at most {100 * NIGHT_LOSS:.1f} points below its full depth"
    return [
        _verdict(full_text, full, whole, FULL_RATIO, asserted=True),
        _verdict(night_text, night, plain, NIGHT_FLOOR, asserted=True),
        _verdict(f"{night_text} (the goal)", night, plain, NIGHT_GOAL, asserted=False),
        _verdict(f"{night_text}, against int8 that was calibrated too", night, of_all, NIGHT_FLOOR, asserted=False),
    ]


def _verdict(text: str, row: Row | None, peer: Row | None, wanted: float, *, asserted: bool) -> Verdict:
    if row is None or peer is None:
        return Verdict(f"{text}: no row of {'ours' if row is None else 'a peer'} to tell by", False, asserted)
    found = ratio(peer, row)
    said = f"{text}: {found:.2f} × the fastest peer, expected at least {wanted:.1f} ({row.key} against {peer.key})"
    return Verdict(said, found >= wanted, asserted)
