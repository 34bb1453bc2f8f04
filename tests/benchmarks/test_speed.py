"""The benchmark's own arithmetic, on timings that are made up, and that every peer answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.method.corpora import Plan
from benchmarks.speed import rounds
from benchmarks.speed.peers import by_length, loop, torch_peers
from benchmarks.speed.rounds import Contender, race
from benchmarks.speed.spin_rows import spin_contenders
from benchmarks.speed.standings import table, verdict_list
from benchmarks.speed.trial import Trial, flops
from benchmarks.speed.verdicts import Row, best_peer, ratio, verdicts
from spin.backbone.loading import load_backbone
from spin.labels.label_space import LabelSpace
from spin.settings import BackboneSettings
from tests.support import tiny

PEERS = [
    Row("loop", "float32", (10.0, 12.0, 11.0), 0.70, 1.0, 32),
    Row("graph", "bfloat16", (5.0, 4.0, 6.0), 0.70, 0.99, 16),
    Row("graph", "int8", (3.0, 2.0, 4.0), 0.68, 0.95, 16),
    Row("graph, scaled", "int8", (2.2, 1.1, 2.2), 0.69, 0.97, 16, calibrated=True),
]
OURS = [
    Row("SPIN", "float32", (9.0, 9.0, 9.0), 0.750, 1.0, spin=True),
    Row("SPIN", "bfloat16", (4.0, 4.0, 4.0), 0.748, 0.99, spin=True),
    Row("SPIN", "int8", (2.0, 2.0, 2.0), 0.749, 0.98, spin=True),
    Row("SPIN", "bfloat16", (2.0, 1.0, 2.0), 0.746, 0.97, spin=True, max_loss=0.002, compute=0.5),
    Row("SPIN", "bfloat16", (1.0, 1.0, 1.0), 0.744, 0.95, spin=True, max_loss=0.01, compute=0.3),
]


@pytest.fixture
def trial(backbone_folder: Path) -> Trial:
    """A tiny encoder with its documents and the peers' head."""
    rows = tiny.documents(64)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    plan = Plan("tiny", "tiny", str(backbone_folder), None, 60, 0, 4, max_tokens=64)
    label_space = LabelSpace(("bad", "good"))
    found = Trial(
        plan, backbone_folder, (texts[:60], labels[:60]), texts[60:], label_space.index(labels[60:]), label_space,
        np.array([4, 5, 6, 7]), 4e9, causal=False, threads=1, batches=(2,),
    )  # fmt: skip
    found.fit(loop(found, torch.float32)(found.train[0], 8))
    return found


def test_a_ratio_is_within_rounds() -> None:
    """Noise that a round's rows share is divided away; medians of each alone would keep it."""
    assert ratio(PEERS[1], OURS[3]) == 3.0  # of 2.5, 4 and 3
    assert best_peer(PEERS + OURS) is PEERS[3]
    assert best_peer(PEERS + OURS, plain=True) is PEERS[2]
    assert best_peer(PEERS + OURS, exact=True) is PEERS[1]


def test_verdicts_hold_by_speed_at_a_bounded_loss() -> None:
    """Int8 does not stand for 16 bits, nor a cascade that is granted more than by default for a night."""
    full, floor, goal, scaled = verdicts(PEERS + OURS)
    assert (scaled.holds, scaled.asserted) == (False, False)
    assert "1.10 × the fastest peer" in scaled.text
    assert (full.holds, floor.holds, goal.holds) == (True, True, True)
    assert "1.25 × the fastest peer" in full.text
    assert "2.00 × the fastest peer" in floor.text
    assert "cascade at 0.2 points" in floor.text
    assert (full.asserted, floor.asserted, goal.asserted) == (True, True, False)


def test_a_slower_or_a_worse_row_does_not_hold() -> None:
    """A row just too inaccurate hands over to a slower one, and speed below the promise is told."""
    worse = [OURS[0], replace(OURS[1], accuracy=0.7469), replace(OURS[3], seconds=(1.4, 1.4, 1.4)), OURS[4]]
    full, floor, goal, _ = verdicts(PEERS + worse)
    assert not full.holds
    assert "SPIN float32 against graph bfloat16" in full.text
    assert (floor.holds, goal.holds) == (True, True)
    _, floor, goal, _ = verdicts([*PEERS, OURS[0], replace(OURS[3], seconds=(2.0, 2.0, 2.0))])
    assert (floor.holds, goal.holds) == (True, False)
    _, floor, *_ = verdicts([*PEERS, OURS[0], replace(OURS[3], seconds=(2.8, 2.8, 2.8))])
    assert not floor.holds


def test_nothing_to_tell_by_does_not_hold() -> None:
    found = verdicts(PEERS + OURS[:2])
    assert [verdict.holds for verdict in found] == [True, False, False, False]
    assert "no row of SPIN" in found[1].text
    assert not any(verdict.holds for verdict in verdicts(OURS))
    assert verdict_list(found).count("**does not hold**") == 1


def test_the_table_says_what_was_measured(trial: Trial) -> None:
    """docs/s of the median round, tokens/s without padding, FLOPs over the peak of the row's precision."""
    lines = table(PEERS + OURS, trial, {"bfloat16": 10.0}).splitlines()
    graph = next(line for line in lines if line.startswith("| graph | bfloat16"))
    assert graph == "| graph | bfloat16 | 16 | 1 | 1–1 | 4 | 8 | 0.37 | 70.0 | 99.0 | 100 % |"
    night = next(line for line in lines if "max_loss 0.002" in line)
    assert night == "| SPIN, max_loss 0.002 | bfloat16 | tokens | 2 | 2–4 | 11 | 10 | 1.10 | 74.6 | 97.0 | 50 % |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| loop", "| graph", "| graph"]
    assert "| – |" in next(line for line in lines if line.startswith("| loop"))


def test_all_take_turns_at_their_quickest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded once, warmed up by whole passes, timed in an order that turns; the batch by the least seconds."""
    clock, calls = [0.0], []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(rounds, "peaks", lambda: {"float32": 1.0 + clock[0]})

    def contender(name: str, batches: tuple[int, ...]) -> Contender:
        def answer(texts: Sequence[str], batch: int) -> np.ndarray:
            clock[0] += len(texts) * abs(batch - 9)
            calls.append((name, len(texts), batch))
            return np.zeros(len(texts), int)

        return Contender(name, "float32", lambda: answer, batches)

    found = race([contender("a", (4, 8, 16)), contender("b", ())], ["x"] * 10, 2)
    assert found.batch == {"a float32": 8, "b float32": 0}
    assert found.seconds == {"a float32": [10.0, 10.0], "b float32": [90.0, 90.0]}
    timed = [("a", 10, 8), ("b", 10, 0), ("b", 10, 0), ("a", 10, 8)]
    assert calls[-7:] == [("b", 2, 0), ("b", 10, 0), ("b", 10, 0), *timed]
    assert found.peaks["float32"] > 100


def test_batches_hold_every_text_once() -> None:
    """Texts of like length lie together, padded and masked."""
    texts = [row["text"] for row in tiny.documents(10)]
    seen: list[int] = []
    for rows, ids, mask in by_length(tiny.tokenizer(), texts, 4, 64):
        assert ids.shape == mask.shape
        assert (ids[mask == 0] == 0).all()
        assert (mask.sum(1) == [len(tiny.tokenizer()(texts[row])["input_ids"]) for row in rows]).all()
        seen += rows
    assert sorted(seen) == list(range(10))


def test_flops_are_those_of_the_formula(backbone_folder: Path) -> None:
    """A block's FFN is 24 wide here, not 4 d: d is 16."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32"))
    a_token = 2 * 3 * (4 * 16 * 16 + 2 * 16 * 24)
    assert flops(backbone, [3, 5]) == 8 * a_token + 4 * 16 * 3 * (9 + 25)


def test_what_throttles_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command starts again without it, and only where there is something to leave out."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(machine.os, "execve", lambda _path, _arguments, kept: started.append(kept))
    for name in machine.THROTTLES:
        monkeypatch.delenv(name, raising=False)
    machine.unthrottle()
    assert started == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    machine.unthrottle()
    assert "OPENBLAS_CORETYPE" not in started[0]
    assert "PATH" in started[0]


def test_ours_answers_as_the_classifier_does(trial: Trial, tmp_path: Path) -> None:
    """One artifact is trained for all rows, and the words of a class are learnt."""
    for contender in spin_contenders(trial, tmp_path / "spin"):
        answers = contender.load()(trial.texts, 0)
        assert contender.spin
        assert (answers == trial.y).all()
        assert 0 < contender.compute() <= 1


def test_torch_peers_answer_alike(trial: Trial) -> None:
    """The pipeline's padding is not pooled: in float32 all say what the plain loop says."""
    pytest.importorskip("sentence_transformers")
    _agree(trial, torch_peers(trial))


def test_graphs_answer_alike(trial: Trial, tmp_path: Path) -> None:
    """Each graph, its file written on first use."""
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    from benchmarks.speed.graphs import graph_peers

    _agree(trial, graph_peers(trial, tmp_path))


def _agree(trial: Trial, peers: list[Contender]) -> None:
    expected = loop(trial, torch.float32)(trial.texts, 4)
    assert len({peer.key for peer in peers}) == len(peers) > 2
    seen: list[np.ndarray] = []
    trial.classes = lambda embeddings: seen.append(embeddings) or np.zeros(len(embeddings), int)  # type: ignore
    for peer in peers:
        answers = peer.load()(trial.texts, 2)
        assert len(answers) == 4
        if peer.precision == "float32":
            np.testing.assert_allclose(seen[-1], expected, atol=1e-4, err_msg=peer.key)
        alike = [np.corrcoef(one, other)[0, 1] for one, other in zip(seen[-1], expected, strict=True)]
        assert min(alike) > (0.8 if peer.precision == "int8" else 0.99), peer.key
