"""Verdicts: SPIN's rows against the fastest peer, and whether the promised speeds are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.speed.rounds import key_of
from spin.settings import CascadeSettings

SAME_ACCURACY = 0.003
"""loss of accuracy against SPIN's float32 up to which a row counts as equally accurate"""
NIGHT_LOSS = 0.005
"""loss of accuracy against SPIN's full depth that a night's cascade may have"""
SHIPPED = CascadeSettings().max_loss
"""loss of the metric that a night's cascade may cost by default"""
FULL_RATIO, NIGHT_FLOOR, NIGHT_GOAL = 1.0, 1.2, 2.0


@dataclass(frozen=True)
class Row:
    """The figures of a contender."""

    name: str
    precision: str
    seconds: tuple[float, ...]
    """per round, for all documents"""
    accuracy: float
    agreement: float
    """share of labels equal to those in float32: of SPIN at full depth, or, for a peer, of the first peer"""
    batch: int = 0
    """batch size in documents; 0 for batches by tokens"""
    compute: float = 1.0
    """share of the whole model's FLOPs that it spent"""
    spin: bool = False
    """whether it is one of SPIN's rows, not a peer"""
    calibrated: bool = False
    """whether its int8 is calibrated on documents that the user must supply"""
    max_loss: float | None = None

    @property
    def key(self) -> str:
        """The name that identifies it, as that of its contender."""
        return key_of(self.name, self.precision, self.max_loss)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Verdict:
    """Whether a promised speed is reached."""

    text: str
    holds: bool
    asserted: bool
    """whether the exit status of the benchmark depends on it"""


def ratio(peer: Row, row: Row) -> float:
    """How many times as fast as a peer a row is: the median of the ratios within each round, which share the noise."""
    return float(np.median(np.array(peer.seconds) / np.array(row.seconds)))


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row with the shortest median time, None if there are no rows."""
    return min(rows, key=lambda row: row.median, default=None)


def best_peer(rows: Sequence[Row], *, exact: bool = False, plain: bool = False) -> Row | None:
    """The fastest peer; `exact` leaves out int8, `plain` leaves out calibrated peers."""
    peers = [row for row in rows if not row.spin and not (plain and row.calibrated)]
    return fastest([row for row in peers if not (exact and row.precision == "int8")])


def reference(rows: Sequence[Row]) -> Row | None:
    """SPIN at full depth in float32."""
    return next((row for row in rows if row.spin and row.max_loss is None and row.precision == "float32"), None)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Full depth against peers in 16 and 32 bits; a night against uncalibrated peers, and against all."""
    full_float32 = reference(rows)
    floor = -np.inf if full_float32 is None else full_float32.accuracy
    spin_rows = [row for row in rows if row.spin]
    full_depth = [row for row in spin_rows if row.max_loss is None and row.precision != "int8"]
    full = fastest([row for row in full_depth if row.accuracy >= floor - SAME_ACCURACY - 1e-9])
    night = fastest([row for row in spin_rows if row.max_loss == SHIPPED and row.accuracy >= floor - NIGHT_LOSS - 1e-9])
    exact, plain, any_peer = best_peer(rows, exact=True), best_peer(rows, plain=True), best_peer(rows)
    full_text = f"full depth in 16 or 32 bits, at most {100 * SAME_ACCURACY:.1f} points less accurate than in float32"
    night_text = (
        f"a night with the default cascade, at most {100 * NIGHT_LOSS:.1f} points less accurate than at full depth"
    )
    return [
        _verdict(full_text, full, exact, FULL_RATIO, asserted=True),
        _verdict(night_text, night, plain, NIGHT_FLOOR, asserted=True),
        _verdict(f"{night_text} (the goal)", night, plain, NIGHT_GOAL, asserted=False),
        _verdict(
            f"{night_text}, calibrated int8 included among the peers", night, any_peer, NIGHT_FLOOR, asserted=False
        ),
    ]


def _verdict(text: str, row: Row | None, peer: Row | None, required: float, *, asserted: bool) -> Verdict:
    if row is None or peer is None:
        return Verdict(f"{text}: no row of {'SPIN' if row is None else 'a peer'} to compare", False, asserted)
    speedup = ratio(peer, row)
    comparison = f"{speedup:.2f} × the fastest peer, expected at least {required:.1f} ({row.key} against {peer.key})"
    return Verdict(f"{text}: {comparison}", speedup >= required, asserted)
