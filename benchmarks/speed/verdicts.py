"""Verdicts: whether the promised speeds are reached, by the unfavourable end of an interval over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.speed.choice import Validation, fastest_reaching
from benchmarks.speed.contender import OurSetting, TransformerPeer, WordPeer
from benchmarks.speed.interval import Interval, score_difference, speed_ratio
from benchmarks.speed.row import Row, fastest, full_depth, transformer_peers, word_peers
from spin.labels.label_space import Targets

SAME_SCORE = 0.003
"""loss of macro-F1 against our float32 up to which full depth in 16 bits counts as equally accurate"""
SHIPPED_LOSS = 0.005
"""loss of macro-F1 against our own full depth that the default settings may have"""


@dataclass(frozen=True)
class Limits:
    """What is promised of a ratio, and what is hoped for."""

    floor: float | None
    """the exit status of the benchmark depends on it; None where nothing is promised"""
    goal: float
    at_most: bool = False
    """whether the ratio should be small, as one of seconds, not large, as one of speeds"""

    def met(self, interval: Interval, limit: float) -> bool:
        """Whether the unfavourable end of the interval of a ratio meets a limit."""
        return interval.high <= limit if self.at_most else interval.low >= limit


SHIPPED_LIMITS = Limits(1.7, 2.0)
EQUAL_LIMITS = Limits(1.6, 2.5)
WORD_LIMITS = Limits(None, 0.5)
FULL_LIMITS = Limits(0.95, 1.0)
RAY_LIMITS = Limits(1.15, 1.1, at_most=True)
REASON_LIMITS = Limits(1.15, 1.1, at_most=True)


@dataclass(frozen=True)
class Verdict:
    """Whether a promised ratio is reached."""

    claim: str
    figures: str
    """the ratio with its interval, and what was compared; why nothing was, if so"""
    limits: Limits
    interval: Interval | None
    """of the ratio; None if there was nothing to compare"""
    condition: bool = True
    """whether the accuracy that the claim names is given"""

    @property
    def holds(self) -> bool:
        """Whether the floor is met; always without a floor."""
        return self.limits.floor is None or self._met(self.limits.floor)

    @property
    def reaches_goal(self) -> bool:
        return self._met(self.limits.goal)

    def _met(self, limit: float) -> bool:
        return self.condition and self.interval is not None and self.limits.met(self.interval, limit)


@dataclass(frozen=True)
class Equal:
    """A peer, and the fastest of our settings whose validation score reaches the peer's."""

    peer: Row
    ours: Row | None
    """None if no setting reaches it"""
    ratio: Interval | None
    """of speeds"""
    difference: Interval | None
    """of macro-F1 on the test documents, ours less the peer's"""


def at_equal_scores(rows: Sequence[Row], tried: Mapping[OurSetting, Validation], y: Targets) -> list[Equal]:
    """For every peer the fastest of our settings that reaches it on the validation documents.

    `tried` are our settings on these documents, and `y` the targets (n,) of the test documents.
    """
    by_role = {row.role: row for row in rows}
    pairs = []
    for peer in [*transformer_peers(rows), *word_peers(rows)]:
        setting = fastest_reaching(tried, peer.valid_score)
        ours = None if setting is None else by_role.get(setting)
        pairs.append(compare(peer, ours, y))
    return pairs


def compare(peer: Row, ours: Row | None, y: Targets) -> Equal:
    """Speed and score of one of our rows against a peer's."""
    if ours is None:
        return Equal(peer, None, None, None)
    difference = score_difference(y, ours.score, ours.classes, peer.score, peer.classes)
    return Equal(peer, ours, speed_ratio(peer.seconds, ours.seconds), difference)


def verdicts(rows: Sequence[Row], pairs: Sequence[Equal]) -> list[Verdict]:
    """The verdicts on one model's rows; `pairs` are those at equal scores."""
    return [
        shipped(rows),
        equal_score(pairs),
        *(_against_words(pair) for pair in pairs if isinstance(pair.peer.role, WordPeer)),
        full_depth_in_16_bits(rows),
        *reasons(rows),
    ]


def shipped(rows: Sequence[Row]) -> Verdict:
    """The default settings against the fastest transformer peer, if they lose little of our own full depth.

    That is in 16 bits where the settings are in int8, with heads fitted in 16 bits.
    """
    claim = f"as shipped, at most {100 * SHIPPED_LOSS:.1f} points of macro-F1 below our own full depth"
    ours = next((row for row in rows if isinstance(row.role, OurSetting) and row.role.default), None)
    wanted = "" if ours is None else "bfloat16" if ours.role.precision == "int8" else ours.role.precision
    full = next((row for row in full_depth(rows, wanted) if ours and row.role.engine == ours.role.engine), None)
    if ours is None or full is None:
        return _nothing(claim, SHIPPED_LIMITS, "of SPIN as shipped and at full depth")
    loss = full.score - ours.score
    verdict = _against_fastest(claim, ours, transformer_peers(rows), SHIPPED_LIMITS, loss <= SHIPPED_LOSS + 1e-9)
    return _with(verdict, f"{100 * loss:.1f} points below full depth in {wanted}")


def equal_score(pairs: Sequence[Equal]) -> Verdict:
    """The fastest setting that reaches all transformer peers on validation against the fastest of them.

    The condition is that the test documents do not show it to be less accurate than the best of them.
    """
    claim = "at a macro-F1 equal to or above every transformer peer's on validation"
    of_transformers = [pair for pair in pairs if isinstance(pair.peer.role, TransformerPeer)]
    best = max(of_transformers, key=lambda pair: pair.peer.valid_score, default=None)
    if best is None or best.ours is None or best.difference is None:
        return _nothing(claim, EQUAL_LIMITS, f"of {'a transformer peer' if best is None else 'SPIN that reaches them'}")
    peers = [pair.peer for pair in of_transformers]
    verdict = _against_fastest(claim, best.ours, peers, EQUAL_LIMITS, best.difference.high >= 0)
    note = f"{points(best.difference)} points of test macro-F1 against {best.peer.key}, the best on validation"
    return _with(verdict, note)


def full_depth_in_16_bits(rows: Sequence[Row]) -> Verdict:
    """Our fastest full depth in bfloat16 against the fastest peer in bfloat16, if it is as accurate as in float32."""
    claim = f"full depth in 16 bits, at most {100 * SAME_SCORE:.1f} points of macro-F1 below float32"
    ours = fastest(full_depth(rows, "bfloat16"))
    exact = next(iter(full_depth(rows, "float32")), None)
    if ours is None or exact is None:
        return _nothing(claim, FULL_LIMITS, "of SPIN at full depth in bfloat16 and float32")
    condition = ours.score >= exact.score - SAME_SCORE - 1e-9
    return _against_fastest(claim, ours, transformer_peers(rows, sixteen_bits=True), FULL_LIMITS, condition)


def ray(plain: Sequence[float], with_ray: Sequence[float]) -> Verdict:
    """The seconds of `spin extract` against those of a plain loop, with two threads each, round by round."""
    interval = speed_ratio(with_ray, plain)  # of speeds of the plain loop over Ray's, so of seconds over the loop's
    return Verdict("Ray with two threads", f"{times(interval)} the seconds of a plain loop", RAY_LIMITS, interval)


def reasons(rows: Sequence[Row]) -> list[Verdict]:
    """The seconds of each of our settings that gives reasons against those of the same setting without."""
    by_role = {replace(row.role, default=False): row for row in rows if isinstance(row.role, OurSetting)}
    found = []
    for role, row in by_role.items():
        plain = by_role.get(replace(role, reasons=0))
        if role.reasons and plain is not None:
            interval = speed_ratio(row.seconds, plain.seconds)  # of speeds without over with, so of seconds
            figures = f"{times(interval)} the seconds without ({row.key})"
            found.append(Verdict(f"{role.reasons} reasons per prediction", figures, REASON_LIMITS, interval))
    return found


def _against_words(pair: Equal) -> Verdict:
    claim = f"at the macro-F1 of {pair.peer.key} on validation"
    if pair.ours is None or pair.ratio is None or pair.difference is None:
        return _nothing(claim, WORD_LIMITS, "of SPIN that reaches it")
    figures = f"{times(pair.ratio)} its speed ({pair.ours.key}; {points(pair.difference)} points of test macro-F1)"
    return Verdict(claim, figures, WORD_LIMITS, pair.ratio)


def _against_fastest(claim: str, ours: Row, peers: Sequence[Row], limits: Limits, condition: bool) -> Verdict:
    peer = fastest(peers)
    if peer is None:
        return _nothing(claim, limits, "of a peer")
    interval = speed_ratio(peer.seconds, ours.seconds)
    kind = "fastest 16-bit peer" if limits is FULL_LIMITS else "fastest transformer peer"
    figures = f"{times(interval)} the {kind} ({ours.key} against {peer.key})"
    return Verdict(claim, figures, limits, interval, condition)


def _with(verdict: Verdict, note: str) -> Verdict:
    return verdict if verdict.interval is None else replace(verdict, figures=f"{verdict.figures}; {note}")


def _nothing(claim: str, limits: Limits, of: str) -> Verdict:
    return Verdict(claim, f"no row {of} to compare", limits, None, False)


def times(interval: Interval) -> str:
    """A ratio with its interval, such as `1.52 × [1.48–1.57]`."""
    if interval.low == 0:
        return f"{interval.estimate:.2f} × [one round]"
    return f"{interval.estimate:.2f} × [{interval.low:.2f}–{interval.high:.2f}]"


def points(interval: Interval) -> str:
    """A difference of scores in points with its interval, such as `+0.3 [-0.4, +1.1]`."""
    return f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
