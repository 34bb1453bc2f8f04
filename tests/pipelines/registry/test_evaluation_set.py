"""The halves of the evaluation set: one for the gate, one for what is promised and estimated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.data.training_labels import Labels
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion import promote
from pipelines.registry.promotion.gate import GateReport
from pipelines.training import held_out_logits
from spin.labels.label_space import LabelSpace
from spin.settings import parse_settings

IDS = [f"document {number}" for number in range(2000)]
TREE = {"backbone": {"model": "m"}, "data": {"train": "t"}}


def build_evaluation_set(ids: list[str]) -> EvaluationSet:
    return EvaluationSet(ids, [f"text of {id}" for id in ids], ["good"] * len(ids))


def test_each_document_is_of_one_half_by_its_id_alone() -> None:
    """Whatever other documents there are, and in which order."""
    frozen = build_evaluation_set(IDS)
    gate, certificate = frozen.gate_half, frozen.certificate_half
    assert sorted([*gate.ids, *certificate.ids]) == sorted(IDS)
    assert 900 < len(gate) < 1100
    assert list(gate.texts) == [f"text of {id}" for id in gate.ids]
    fewer = build_evaluation_set(IDS[::-3])
    assert set(fewer.gate_half.ids) == {id for id in gate.ids if id in set(fewer.ids)}
    assert EvaluationSet().gate_half == EvaluationSet([], [], [])


def test_the_gate_reads_no_document_that_proves_a_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a version carry the logits of one that the gate reads, of which the others prove and estimate."""
    read: list[EvaluationSet] = []

    def run_gate(registry: Any, number: str, champion: str | None, evaluation_set: EvaluationSet, _: Any) -> GateReport:
        read.append(evaluation_set)
        return GateReport(())

    monkeypatch.setattr(promote, "run_gate", run_gate)
    monkeypatch.setattr(promote, "_log", lambda *_, **__: "run")
    monkeypatch.setattr(promote, "_move_champion", lambda *_: None)
    registry: Any = SimpleNamespace(
        settings=parse_settings({**TREE, "store": str(tmp_path)}),
        tags=dict,
        champion=lambda: None,
        evaluation_set=lambda: replace(build_evaluation_set(IDS), groups=[f"{number:016x}" for number in range(2000)]),
    )
    promote.promote(registry, "1", "the first")
    [gate] = read

    carried: list[int] = []

    def logits(fitted: Any, features: Any, rows: Any, words: Any, classes: int) -> np.ndarray:
        carried.extend(rows.tolist())
        assert words[:, 0].tolist() == rows.tolist()
        return np.zeros((1, len(rows), classes), np.float32)

    monkeypatch.setattr(held_out_logits, "_logits_at_stops", logits)
    groups = np.arange(2000, dtype=np.uint64)
    labels = Labels(IDS, LabelSpace(("a", "b")), np.zeros(2000, np.int64), ["test"] * 2000, groups)
    training_result = SimpleNamespace(choices={"accuracy": SimpleNamespace(exits=())})
    spin: Any = SimpleNamespace(training_result=training_result, classes=["a", "b"])
    features: Any = None
    held_out_logits.collect_test_logits(spin, features, labels, np.arange(2000.0)[:, None])
    assert {*gate.ids}.isdisjoint(IDS[row] for row in carried)
    assert len(gate) + len(carried) == 2000


def test_a_set_keeps_the_groups_of_its_documents() -> None:
    """One that was frozen without groups is read and written as it was: each document stands for itself."""
    groups = [f"{number // 2 + 2**63:016x}" for number in range(6)]
    frozen = EvaluationSet(IDS[:6], ["text"] * 6, ["good"] * 6, groups)
    restored = EvaluationSet.from_json(frozen.to_json())
    assert restored == frozen
    assert restored.take([1, 4]).groups == [groups[1], groups[4]]
    hashes = restored.group_hashes
    assert hashes is not None
    assert hashes.tolist() == [2**63, 2**63, 2**63 + 1, 2**63 + 1, 2**63 + 2, 2**63 + 2]
    old = json.dumps([{"id": "a", "text": "b", "label": ["c"]}]).encode()
    assert EvaluationSet.from_json(old).group_hashes is None
    assert EvaluationSet.from_json(old).take([0]).to_json() == old
    assert EvaluationSet.from_json(b"[]").to_json() == b"[]"


def test_a_group_lies_in_one_half_and_any_of_its_documents_proves() -> None:
    """Its documents are alike: by one of them the gate would choose, and by another prove."""
    groups = np.arange(2000, dtype=np.uint64) // 10
    frozen = replace(build_evaluation_set(IDS), groups=[f"{group:016x}" for group in groups])
    of_gate, of_certificate = (set(half.groups) for half in (frozen.gate_half, frozen.certificate_half))
    assert of_gate.isdisjoint(of_certificate)
    assert 80 < len(of_gate) < 120
    labels = Labels(IDS, LabelSpace(("a", "b")), np.zeros(2000, np.int64), ["test"] * 2000, groups)
    proving = held_out_logits.choose_proving(labels, np.arange(2000))
    assert {f"{group:016x}" for group in groups[proving]} == of_certificate
    assert len(proving) == len(of_certificate)
    assert 3.5 < np.mean(proving % 10) < 5.5  # of the first documents alone it would be 0
