"""Timing in rounds, with a clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.speed import rounds
from benchmarks.speed.contender import Answers, Contender, OurSetting, Role, TransformerPeer, WordPeer
from benchmarks.speed.rounds import make_ready, race, validate

TEXTS = ["x"] * 10


class Clock:
    """Contenders whose passes take seconds of a clock that nothing else moves, and the calls they got."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[tuple[str, int, int]]()

    def contender(self, role: Role, batches: tuple[int, ...] = (), *, pace: float = 1.0) -> Contender:
        """One that takes `pace` seconds per text and step of the batch size from 9."""

        def classify(texts: Sequence[str], batch: int) -> Answers:
            self.now += pace * len(texts) * abs(batch - 9)
            self.calls.append((role.key, len(texts), batch))
            return Answers(np.zeros(len(texts), int))

        return Contender(role, lambda: classify, batches)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(rounds.gc, "collect", lambda: 0)  # slow in a process that has imported so much
    monkeypatch.setattr(rounds, "peaks", lambda: {"float32": 1.0 + clock.now})
    return clock


def test_the_fastest_batch_size_is_found_on_a_part_of_the_validation_texts(clock: Clock) -> None:
    """Each size twice on every tenth text; one that forms its batches itself tries none."""
    sized, own = TransformerPeer("a", "float32"), WordPeer("b")
    assert make_ready(clock.contender(sized, (4, 8, 16)), TEXTS).batch == 8
    assert clock.calls == [("a float32", 1, size) for size in (4, 4, 8, 8, 16, 16)]
    assert make_ready(clock.contender(own), TEXTS).batch == 0
    assert make_ready(clock.contender(sized, (4,)), TEXTS).batch == 4
    assert len(clock.calls) == 6


def test_the_seconds_of_our_settings_on_validation_are_those_of_a_second_pass(clock: Clock) -> None:
    """The first pass compiles; of a peer only the score counts."""
    y = np.array([0, 1] * 5)
    ours, peer = (make_ready(clock.contender(role), TEXTS) for role in (OurSetting("torch", "float32"), WordPeer("b")))
    assert validate(ours, TEXTS, y).seconds == 90
    assert validate(ours, TEXTS, y).score == pytest.approx(1 / 3)
    assert clock.now == 4 * 90
    validate(peer, TEXTS, y)
    assert clock.now == 5 * 90


def test_contenders_are_timed_in_alternating_order(clock: Clock) -> None:
    """Each makes untimed passes over all texts before the rounds."""
    a, b = (make_ready(clock.contender(TransformerPeer(name, "float32")), TEXTS) for name in "ab")
    results = race([a, b], TEXTS, 2)
    assert [name for name, _, _ in clock.calls] == [f"{name} float32" for name in "abababba"]
    assert results.seconds == {"a float32": [90.0, 90.0], "b float32": [90.0, 90.0]}
    assert len(results.answers["a float32"].classes) == 10
    assert results.peaks["float32"] > 100


def test_slow_contenders_are_timed_in_two_rounds(clock: Clock) -> None:
    """Slow is measured against their kind, so that the fastest of every kind that is compared stays in all rounds."""
    paces: dict[Role, float] = {
        TransformerPeer("slow", "float32"): 9,
        TransformerPeer("16 bits", "bfloat16"): 5,
        TransformerPeer("fast", "int8"): 1,
        TransformerPeer("twice", "int8"): 2,
        WordPeer("words"): 0.01,
        OurSetting("torch", "float32"): 9,
        OurSetting("openvino", "bfloat16"): 3,
        OurSetting("openvino", "bfloat16", max_loss=0.002, default=True): 2,
        OurSetting("openvino", "int8", max_loss=0.02): 0.5,
    }
    results = race([make_ready(clock.contender(r, pace=p), TEXTS) for r, p in paces.items()], TEXTS, 4)
    counts = [len(results.seconds[role.key]) for role in paces]
    assert counts == [2, 4, 4, 4, 4, 2, 4, 4, 4]
    passes = Counter(key for key, _, _ in clock.calls)
    untimed = [passes[role.key] - count for role, count in zip(paces, counts, strict=True)]
    assert untimed == [1, 2, 2, 2, 2, 2, 2, 2, 2]  # three times as slow as the fastest is slow in the first pass
