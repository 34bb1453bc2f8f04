"""The speed benchmark: its arithmetic on constructed timings, and the labels of all contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.method.corpora import Plan
from benchmarks.speed import rounds, spin_rows
from benchmarks.speed.peers import by_length, loop, torch_peers
from benchmarks.speed.rounds import Contender, race
from benchmarks.speed.spin_rows import spin_contenders
from benchmarks.speed.standings import table, verdict_list
from benchmarks.speed.trial import Trial, flops
from benchmarks.speed.verdicts import SHIPPED, Row, best_peer, ratio, verdicts
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
SPIN_ROWS = [
    Row("SPIN", "float32", (9.0, 9.0, 9.0), 0.750, 1.0, spin=True),
    Row("SPIN", "bfloat16", (4.0, 4.0, 4.0), 0.748, 0.99, spin=True),
    Row("SPIN", "int8", (2.0, 2.0, 2.0), 0.749, 0.98, spin=True),
    Row("SPIN", "bfloat16", (2.0, 1.0, 2.0), 0.746, 0.97, spin=True, max_loss=0.002, compute=0.5),
    Row("SPIN", "bfloat16", (1.0, 1.0, 1.0), 0.744, 0.95, spin=True, max_loss=0.01, compute=0.3),
]


@pytest.fixture(scope="module")
def trial(backbone_folder: Path) -> Trial:
    """A tiny encoder, its documents and the fitted head of the peers."""
    rows = tiny.make_documents(64)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    plan = Plan("tiny", "tiny", str(backbone_folder), None, 60, 0, 4, max_tokens=64)
    label_space = LabelSpace(("bad", "good"))
    trial = Trial(
        plan, backbone_folder, (texts[:60], labels[:60]), texts[60:], label_space.index(labels[60:]), label_space,
        np.array([4, 5, 6, 7]), 4e9, causal=False, threads=1, batches=(2,),
    )  # fmt: skip
    trial.fit(loop(trial, torch.float32)(trial.train[0], 8))
    return trial


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    """Noise that all rows of a round share cancels; in a ratio of medians it would not."""
    assert ratio(PEERS[1], SPIN_ROWS[3]) == 3.0  # the median of 2.5, 4 and 3
    assert best_peer(PEERS + SPIN_ROWS) is PEERS[3]
    assert best_peer(PEERS + SPIN_ROWS, plain=True) is PEERS[2]
    assert best_peer(PEERS + SPIN_ROWS, exact=True) is PEERS[1]


def test_verdicts_compare_the_fastest_rows_within_a_bounded_loss() -> None:
    """int8 does not count as full depth in 16 bits. A cascade with more than the default loss does not count either."""
    full, floor, goal, scaled = verdicts(PEERS + SPIN_ROWS)
    assert (scaled.holds, scaled.asserted) == (False, False)
    assert "1.10 × the fastest peer" in scaled.text
    assert (full.holds, floor.holds, goal.holds) == (True, True, True)
    assert "1.25 × the fastest peer" in full.text
    assert "2.00 × the fastest peer" in floor.text
    assert "cascade at 0.2 points" in floor.text
    assert (full.asserted, floor.asserted, goal.asserted) == (True, True, False)


def test_a_row_that_is_too_slow_or_too_inaccurate_does_not_hold() -> None:
    """If the fastest row is just too inaccurate, the next fastest is compared. Speeds below a limit do not hold."""
    worse = [
        SPIN_ROWS[0],
        replace(SPIN_ROWS[1], accuracy=0.7469),
        replace(SPIN_ROWS[3], seconds=(1.4, 1.4, 1.4)),
        SPIN_ROWS[4],
    ]
    full, floor, goal, _ = verdicts(PEERS + worse)
    assert not full.holds
    assert "SPIN float32 against graph bfloat16" in full.text
    assert (floor.holds, goal.holds) == (True, True)
    _, floor, goal, _ = verdicts([*PEERS, SPIN_ROWS[0], replace(SPIN_ROWS[3], seconds=(2.0, 2.0, 2.0))])
    assert (floor.holds, goal.holds) == (True, False)
    _, floor, *_ = verdicts([*PEERS, SPIN_ROWS[0], replace(SPIN_ROWS[3], seconds=(2.8, 2.8, 2.8))])
    assert not floor.holds


def test_a_verdict_without_rows_to_compare_does_not_hold() -> None:
    results = verdicts(PEERS + SPIN_ROWS[:2])
    assert [verdict.holds for verdict in results] == [True, False, False, False]
    assert "no row of SPIN" in results[1].text
    assert not any(verdict.holds for verdict in verdicts(SPIN_ROWS))
    assert verdict_list(results).count("**does not hold**") == 1


def test_the_table_holds_speed_accuracy_and_share_of_the_peak(trial: Trial) -> None:
    """Documents per second are of the median round. Tokens and FLOPs do not count padding."""
    lines = table(PEERS + SPIN_ROWS, trial, {"bfloat16": 10.0}).splitlines()
    graph = next(line for line in lines if line.startswith("| graph | bfloat16"))
    assert graph == "| graph | bfloat16 | 16 | 1 | 1–1 | 4 | 8 | 0.37 | 70.0 | 99.0 | 100 % |"
    night = next(line for line in lines if "max_loss 0.002" in line)
    assert night == "| SPIN, max_loss 0.002 | bfloat16 | tokens | 2 | 2–4 | 11 | 10 | 1.10 | 74.6 | 97.0 | 50 % |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| loop", "| graph", "| graph"]
    assert "| – |" in next(line for line in lines if line.startswith("| loop"))


def test_contenders_are_timed_in_alternating_order_at_their_fastest_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each contender is loaded once and makes untimed passes over all texts before the rounds."""
    clock, calls = [0.0], []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(rounds, "peaks", lambda: {"float32": 1.0 + clock[0]})

    def contender(name: str, batches: tuple[int, ...]) -> Contender:
        def classify(texts: Sequence[str], batch: int) -> np.ndarray:
            clock[0] += len(texts) * abs(batch - 9)
            calls.append((name, len(texts), batch))
            return np.zeros(len(texts), int)

        return Contender(name, "float32", lambda: classify, batches)

    results = race([contender("a", (4, 8, 16)), contender("b", ())], ["x"] * 10, 2)
    assert results.batch == {"a float32": 8, "b float32": 0}
    assert results.seconds == {"a float32": [10.0, 10.0], "b float32": [90.0, 90.0]}
    timed = [("a", 10, 8), ("b", 10, 0), ("b", 10, 0), ("a", 10, 8)]
    assert calls[-7:] == [("b", 2, 0), ("b", 10, 0), ("b", 10, 0), *timed]
    assert results.peaks["float32"] > 100


def test_batches_by_length_hold_every_text_once() -> None:
    """The ids of a batch are padded and masked."""
    texts = [row["text"] for row in tiny.make_documents(10)]
    batched: list[int] = []
    for rows, ids, mask in by_length(tiny.build_tokenizer(), texts, 4, 64):
        assert ids.shape == mask.shape
        assert (ids[mask == 0] == 0).all()
        assert (mask.sum(1) == [len(tiny.build_tokenizer()(texts[row])["input_ids"]) for row in rows]).all()
        batched += rows
    assert sorted(batched) == list(range(10))


def test_flops_follow_the_formula(backbone_folder: Path) -> None:
    """The hidden size is 16, and the feed-forward layer is 24 wide instead of the usual 4 × 16."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32"))
    per_token = 2 * 3 * (4 * 16 * 16 + 2 * 16 * 24)
    assert flops(backbone, [3, 5]) == 8 * per_token + 4 * 16 * 3 * (9 + 25)


def test_the_benchmark_restarts_without_variables_that_slow_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not restart if none of them is set."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(machine.os, "execve", lambda _path, _arguments, environment: started.append(environment))
    for name in machine.THROTTLES:
        monkeypatch.delenv(name, raising=False)
    machine.unthrottle()
    assert started == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    machine.unthrottle()
    assert "OPENBLAS_CORETYPE" not in started[0]
    assert "PATH" in started[0]


@pytest.mark.usefixtures("all_folds")
def test_every_row_of_spin_predicts_the_right_classes(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows use one classifier, in several engines and precisions; two of the cascade's losses are enough here."""
    monkeypatch.setattr(spin_rows, "_LOSSES", (SHIPPED, 0.02))
    for contender in spin_contenders(trial, tmp_path / "spin"):
        predicted = contender.load()(trial.texts, 0)
        assert contender.spin
        assert (predicted == trial.y).all()
        assert 0 < contender.compute() <= 1


def test_torch_peers_give_the_embeddings_of_the_plain_loop(trial: Trial) -> None:
    """Padding is left out of their mean: in float32 the embeddings are equal."""
    pytest.importorskip("sentence_transformers")
    assert_embeddings_agree(trial, torch_peers(trial))


def test_exported_graphs_give_the_embeddings_of_the_plain_loop(trial: Trial, tmp_path: Path) -> None:
    """The file of a graph is written when it is first loaded."""
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    from benchmarks.speed.graphs import graph_peers

    assert_embeddings_agree(trial, graph_peers(trial, tmp_path))


def assert_embeddings_agree(trial: Trial, peers: list[Contender]) -> None:
    """The embeddings that peers give to the head agree with those of the plain loop, up to their precision."""
    expected = loop(trial, torch.float32)(trial.texts, 4)
    assert len({peer.key for peer in peers}) == len(peers) > 2
    embeddings: list[np.ndarray] = []

    def record(actual: np.ndarray) -> np.ndarray:
        embeddings.append(actual)
        return np.zeros(len(actual), int)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "classes", record)
        for peer in peers:
            assert len(peer.load()(trial.texts, 2)) == 4
            if peer.precision == "float32":
                np.testing.assert_allclose(embeddings[-1], expected, atol=1e-4, err_msg=peer.key)
            correlations = [np.corrcoef(*pair)[0, 1] for pair in zip(embeddings[-1], expected, strict=True)]
            assert min(correlations) > (0.8 if peer.precision == "int8" else 0.99), peer.key
