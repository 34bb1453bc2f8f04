"""Nights with a real model in this process, without Ray: their results, what they refuse and how they resume."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from pipelines.nightly import classify_pass
from pipelines.nightly.report.precision_check import check_precision
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.pass_features import PassFeatures
from pipelines.nightly.tables.night_records import list_runs
from pipelines.service_errors import BadRowsError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog, ShardOutcome
from pipelines.workers.map_shards import map_shards
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT
from spin.activations.extract import count_tokens
from spin.activations.word_reader import WordReader
from spin.backbone.model import Backbone
from spin.classifier import TrainedClassifier
from spin.errors import NotFiniteError, SpinError, UserError
from spin.estimator import SpinClassifier
from spin.fitted import persistence
from spin.fitted.early_exit import EarlyExit
from spin.heads.linear_head import LinearHead
from spin.passes.pass_member import PassMember
from spin.settings import DecisionSettings, SearchSettings, load_settings
from spin.sites import BY_WORDS
from tests.support import chaos, tiny
from tests.support.browser import open_page
from tests.support.chaos import FolderRegistry
from tests.support.night_project import (
    DATE,
    NightProject,
    call_before_stage,
    replace_map_shards,
    stopped_at_third_shard,
)
from tests.support.registry_fixture import build_quick_classifier
from tests.support.word_regression import build_word_regression

Row = dict[str, Any]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with two versions whose classes differ."""
    folder = tmp_path_factory.mktemp("registry")
    for number, classes in (("1", ("good", "bad")), ("2", ("plain", "bad"))):
        rows = tiny.make_documents(120, classes)
        classifier = build_quick_classifier(backbone_folder, sites=["ffn"], poolings=["mean"])
        classifier.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / number)
    return FolderRegistry(folder)


@pytest.mark.slow
def test_the_outcome_of_a_shard_does_not_grow_with_its_rows(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten times the rows, dead letters among them, each pass returns the same fields to the driver.

    They are few enough for one shard.
    """
    recorded: list[dict[str, Any]] = []

    def record_outcomes(*args: Any, **keywords: Any) -> list[ShardOutcome[Any]]:
        outcomes = map_shards(*args, **{**keywords, "here": True})
        recorded.extend(outcome.to_json() for outcome in outcomes)
        return outcomes

    replace_map_shards(monkeypatch, record_outcomes)
    shapes = {}
    for rows in (20, 200):
        dead: list[Row] = [{"id": f"e{n}", "text": ""} for n in range(rows // 10)]
        documents = tiny.make_documents(rows, seed=3)
        project.write("a.jsonl", [*documents, *dead, *documents[: rows // 10]])
        assert project.run_night(f"out-{rows}", 10 * rows, set=("data.ids=checked",), max_dead_fraction=0.5).counts.dead
        shapes[rows] = [replace_values_by_types(outcome) for outcome in recorded]
        recorded.clear()
    assert len(shapes[20]) == 3
    assert shapes[20] == shapes[200]


def replace_values_by_types(value: Any) -> Any:
    """Return JSON with every number and string replaced by its type."""
    if isinstance(value, dict):
        return {name: replace_values_by_types(item) for name, item in value.items()}
    return [replace_values_by_types(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.slow
def test_a_night_does_not_resume_with_another_model_version(project: NightProject) -> None:
    """The error names both versions; another output takes the new champion."""
    project.write("a.jsonl", tiny.make_documents(90, seed=3))
    project.run_night()
    project.promote("2")
    with pytest.raises(UserError, match=r'model\.version is "2", was "1"'):
        project.run_night()
    assert {row["model_version"] for row in project.read_predictions()} == {"1"}
    project.run_night("other")
    assert {row["model_version"] for row in project.read_predictions("other")} == {"2"}


def test_a_version_of_another_registry_with_the_same_name_and_number_is_refused(
    project: NightProject, tmp_path: Path
) -> None:
    """Half of a night by other weights, or the night of another project as one's own, would be wrong in silence."""
    project.write("a.jsonl", tiny.make_documents(10, seed=3))
    project.run_night()
    digest = persistence.digest_artifact(project.registry_fixture.folder / "1")
    [run] = list_runs(Store(str(project.folder / "out")))
    history = DeltaTable(project.folder / "out" / "predictions").history()
    assert run.artifact == digest
    assert [commit["artifact"] for commit in history if "artifact" in commit] == [digest]
    own, versions = project.registry_fixture.folder, tmp_path / "versions"
    shutil.copytree(own / "2", versions / "1")
    (versions / "champion").write_text("1")
    project.registry_fixture = FolderRegistry(versions)
    with pytest.raises(UserError, match=r"artifact is .*--restart"):
        project.run_night()


@pytest.mark.slow
def test_labels_do_not_depend_on_the_shard_size(project: NightProject) -> None:
    """A second run and shards of other sizes give the same labels, and scores within 0.01.

    No words decide, and the texts have many lengths, so that the backbone pads each by another length in each run.
    """
    known, search = tiny.make_documents(120), SearchSettings(words="off")
    classifier = SpinClassifier(
        str(project.backbone), metric="accuracy", sites=["ffn"], poolings=["mean"], search=search
    ).fit([row["text"] for row in known], [row["label"] for row in known])
    classifier.save(project.registry_fixture.folder / "4")
    project.promote("4")
    rows = tiny.make_documents(150, seed=3)
    project.write("a.jsonl", [{**row, "text": " ".join([row["text"]] * (1 + n % 6))} for n, row in enumerate(rows)])
    runs = []
    for number, documents in enumerate((40, 40, 7, 1000)):
        project.run_night(str(number), documents)
        runs.append(project.read_predictions(str(number)))
    expected, *others = runs
    for rows in others:
        assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in expected]
        scores = [[list(row["scores"].values()) for row in run] for run in (rows, expected)]
        np.testing.assert_allclose(*scores, atol=0.01)
    assert {row["label"] for row in expected} == {"good", "bad"}


def test_unreadable_files_above_the_limit_fail_the_night(project: NightProject) -> None:
    """The status is 4 and nothing is published; with a higher limit a rerun publishes the rows and names the files."""
    project.write("a.jsonl", tiny.make_documents(30))
    (project.folder / "data" / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadRowsError, match=r"1 of 2 files cannot be classified.*b\.parquet cannot be read") as error:
        project.run_night()
    assert error.value.status == 4
    assert project.list_published_runs() == []
    report = project.run_night(max_bad_files=0.5)
    assert [file.uri.rpartition("/")[2] for file in report.quarantined] == ["b.parquet"]
    assert len(project.read_predictions()) == report.counts.rows == 30


def test_the_first_document_with_a_duplicate_id_is_predicted(project: NightProject) -> None:
    """The order is that of the plan, across shards and files."""
    first, second = tiny.make_documents(60), tiny.make_documents(80)[20:]
    project.write("b.jsonl", second)
    project.write("a.jsonl", first)
    report = project.run_night(documents=16, max_dead_fraction=0.5)
    assert report.counts.reasons == {"repeated_id": 40}
    assert [row["id"] for row in project.read_predictions()] == [row["id"] for row in first + second[40:]]


@pytest.mark.slow
def test_a_document_that_raises_is_the_only_dead_letter_of_its_shard(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other documents have the labels that they have in a night without it."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", chaos.ChaosStep)
    rows = tiny.make_documents(60)
    project.write("a.jsonl", rows)
    project.run_night("without")
    project.write("a.jsonl", [*rows[:17], {"id": "poison", "text": chaos.RAISE}, *rows[17:]])
    report = project.run_night()
    assert report.counts.reasons == {"poison": 1}
    labels = [[(row["id"], row["label"]) for row in project.read_predictions(out)] for out in ("without", "out")]
    assert labels[0] == labels[1]


@pytest.mark.slow
def test_documents_that_words_decide_are_marked_and_not_tokenized(project: NightProject) -> None:
    """Their depth is -1 and their label that of the words; tokens are those of the other documents."""
    rows = tiny.make_documents(90, seed=3)
    texts = [row["text"] for row in rows]
    regression = build_word_regression(texts, classes=2)
    logits = regression.logits(texts)
    margin = np.abs(logits[:, 0] - logits[:, 1])
    by_words = margin > np.median(margin)
    threshold = math.tanh(np.median(margin) / 2)  # of two classes, the lead of the best at these log odds
    documents = tiny.make_documents(120)
    classifier = SpinClassifier(
        str(project.backbone), sites=["ffn"], poolings=["mean"], search=SearchSettings(words="off")
    )
    spin = classifier.fit([row["text"] for row in documents], [row["label"] for row in documents]).trained_
    exit = EarlyExit(BY_WORDS, LinearHead(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)), threshold)
    choices = {name: replace(of, exits=(exit, *of.exits)) for name, of in spin.training_result.choices.items()}
    result = replace(spin.training_result, choices=choices, words=regression)
    digest = spin.backbone_digest
    TrainedClassifier(spin.settings, digest, spin.label_space, result, "macro_f1").save(
        project.registry_fixture.folder / "3"
    )
    project.promote("3")
    project.write("a.jsonl", rows)
    report = project.run_night()
    predictions = project.read_predictions()
    assert [row["depth"] == BY_WORDS for row in predictions] == by_words.tolist()
    labels = [spin.classes[k] for k in logits.argmax(1)]
    for row, label in zip(predictions, labels, strict=True):
        assert row["depth"] != BY_WORDS or row["label"] == label
    assert report.counts.depths["-1"] == by_words.sum()
    rest = [text for text, decided in zip(texts, by_words, strict=True) if not decided]
    assert report.counts.tokens == count_tokens(spin.backbone, rest).n_tokens.sum()
    late = project.run_night("late", cascade=False)
    assert "-1" not in late.counts.depths


def test_a_worker_checks_its_backbone_whatever_words_decide(
    registry_fixture: FolderRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a document is blamed for an error, a sound text must reach the backbone, which may be broken."""
    step = object.__new__(ClassifyStep)
    spin = TrainedClassifier.load(registry_fixture.folder / "1", early=True)
    step.features = PassFeatures([spin], None)
    words = build_word_regression([KNOWN_GOOD_TEXT], classes=2)
    monkeypatch.setattr(TrainedClassifier, "member", replace(spin.member, words=words))
    monkeypatch.setattr(PassMember, "decided_by_words", lambda self, words: np.ones(len(words), bool))
    spin.share_backbone(spin)  # so that its pass is opened anew
    step.check()

    def fail(*_: Any) -> None:
        raise RuntimeError("the tokenizer is broken")

    monkeypatch.setattr(Backbone, "tokenize", fail)
    with pytest.raises(RuntimeError, match="the tokenizer is broken"):
        step.check()


def test_a_worker_checks_that_it_finds_reasons(
    registry_fixture: FolderRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = object.__new__(ClassifyStep)
    spin = TrainedClassifier.load(registry_fixture.folder / "1", early=True, reasons=2)
    step.features = PassFeatures([spin], None)
    step.check()

    def fail(*_: Any) -> None:
        raise RuntimeError("words cannot be read")

    monkeypatch.setattr(WordReader, "read", fail)
    with pytest.raises(RuntimeError, match="words cannot be read"):
        step.check()


class NotFiniteStep(ClassifyStep):
    """A step for which activations of texts that begin with "inf" are not finite."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        compute = self.features.compute

        def raise_on_inf(members: Any, documents: Any, attempt: Any, rows: list[int], **options: Any) -> Any:
            if any(text.startswith("inf") for text in documents.texts_of(rows)):
                raise NotFiniteError("ffn.01: the backbone gave values that are not finite")
            return compute(members, documents, attempt, rows, **options)

        self.features.compute = raise_on_inf  # type: ignore[method-assign]


def test_a_document_with_non_finite_activations_is_a_dead_letter(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is `poison`; the other documents are predicted."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", NotFiniteStep)
    rows = tiny.make_documents(60)
    project.write("a.jsonl", [*rows[:17], {"id": "poison", "text": "infinite"}, *rows[17:]])
    assert project.run_night().counts.reasons == {"poison": 1}
    assert [row["id"] for row in project.read_predictions()] == [row["id"] for row in rows]


@pytest.mark.slow
def test_a_file_is_not_quarantined_because_processes_died(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes died before they reached a document: the run names the shard; the next driver classifies all."""
    project.write("a.jsonl", tiny.make_documents(20))
    project.write("b.jsonl", tiny.make_documents(40)[20:])

    def record_crashes(shard_log: ShardLog) -> None:
        shard_log.store.write_json(shard_log.attempt_key("000000"), {"id": "x", "begun": 3, "open": ["", "", ""]})

    for stage in ("intake", "classify"):
        with monkeypatch.context() as patch:
            call_before_stage(stage, record_crashes, patch)
            killed = r"shard 000000 \(.*\): 3 worker processes in a row were killed"
            with pytest.raises(SpinError, match=killed) as error:
                project.run_night(stage, max_bad_files=0.5)
        assert error.value.status == 1
        assert project.run_night(stage, max_bad_files=0.5).quarantined == ()
        assert len(project.read_predictions(stage)) == 40


@pytest.mark.slow
def test_the_precision_check_counts_labels_that_equal_those_of_float32(project: NightProject) -> None:
    """It compares rows of several shards, skips dead letters and duplicate ids, and stops at the given number."""
    rows: list[Any] = tiny.make_documents(90, seed=4)
    invalid = [{"id": "x", "text": None}, dict(rows[2]), {"id": "y", "text": " "}]
    project.write("a.jsonl", [invalid[0], *rows[:30], *invalid[1:], *rows[30:]])
    report = project.run_night()
    settings = load_settings(project.folder / "settings.yaml")

    class LoadingRegistry(FolderRegistry):
        def load(self, number: str, *, backbone: Any = None, decision: Any = None) -> TrainedClassifier:
            decided = DecisionSettings(abstain=0.2) if decision is None else decision
            return TrainedClassifier.load(self.folder / number, backbone=backbone, decision=decided, early=True)

    registry: Any = LoadingRegistry(project.registry_fixture.folder)
    assert check_precision(settings, registry, report, 1000) == (90, 90)
    assert check_precision(settings, registry, report, 47) == (47, 47)
    backbone, decision, texts = settings.backbone, settings.decision, [row["text"] for row in rows]
    first, second = (registry.load(number, backbone=backbone, decision=decision) for number in ("1", "2"))
    promising = settings.model_copy(update={"decision": DecisionSettings(max_error=0.2)})
    labelled = sum(label is not None for label in registry.load("1", backbone=backbone).predict(texts))
    assert 0 < labelled < 90
    assert check_precision(promising, registry, report, 1000) == (90, labelled)  # in the band that the night has
    same = sum(a == b for a, b in zip(first.predict(texts), second.predict(texts), strict=True))
    assert 0 < same < 90
    assert check_precision(settings, registry, replace(report, model_version="2"), 90) == (90, same)


@pytest.mark.slow
def test_dead_letters_contain_texts_only_if_the_settings_ask_for_them(project: NightProject) -> None:
    """Lone surrogates in the texts are replaced."""
    rows: list[Row] = [{"id": "a", "text": "a fine day"}, {"id": "a", "text": "again"}, {"id": "b", "text": None}]
    project.write("a.jsonl", [*rows, {"id": "c", "text": "half \ud800"}, {"id": "d", "text": 7}])
    project.run_night(max_dead_fraction=1)
    assert [letter["text"] for letter in project.read_dead_letters()] == [None] * 4
    project.run_night("asked", max_dead_fraction=1, dead_letter_text=True)
    assert [letter["text"] for letter in project.read_dead_letters("asked")] == ["again", None, "half ?", None]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("choose=cheapest", 'choose is "cheapest", was "accuracy"'),
        ("decision.abstain=0.1", "decision.abstain is 0.1, was 0"),
        ("decision.thresholds={good: 0.9}", "decision.thresholds"),
        ("backbone.dtype=bfloat16", "backbone.dtype"),
        ("backbone.max_tokens=16", "backbone.max_tokens is 16, was 256"),
        ("backbone.batch_tokens=64", "backbone.batch_tokens is 64"),
        ("backbone.pool_special_tokens=true", "backbone.pool_special_tokens is true"),
        ("data.id=label", 'data.id is "label", was "id"'),
        ("data.text=label", 'data.text is "label", was "text"'),
        ("data.ids=trusted", 'data.ids is "trusted"'),
        ("ray.shard_documents=7", "shard_documents is 7, was 40"),
        ("classify.dead_letter_text=true", "dead_letter_text is true"),
        ("classify.reasons=3", "reasons is 3"),
    ],
)
def test_a_changed_setting_that_affects_results_is_refused(project: NightProject, change: str, difference: str) -> None:
    """The error names the setting and `--restart`, although the night has finished."""
    project.write("a.jsonl", tiny.make_documents(12))
    project.run_night()
    with pytest.raises(UserError, match=rf"made with other settings or data: .*{re.escape(difference)}.*--restart"):
        project.run_night(set=(change,))


@pytest.mark.parametrize(
    "change",
    ["ray.workers=2", "ray.stall_seconds=9", "classify.max_psi=0.9", "classify.fail_on_drift=true", "metric=accuracy"],
)
def test_a_run_resumes_after_a_change_that_does_not_affect_results(
    project: NightProject, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that stopped after two shards computes the third alone."""
    project.write("a.jsonl", tiny.make_documents(120))

    with stopped_at_third_shard():
        project.run_night()
    computed, commit = list[str](), ShardLog.commit

    def record_commit(shard_log: ShardLog, name: str, *args: Any, **keywords: Any) -> Any:
        computed.append(f"{shard_log.layout.folder} {name}")
        return commit(shard_log, name, *args, **keywords)

    monkeypatch.setattr(ShardLog, "commit", record_commit)
    project.run_night(set=(change,))
    assert computed == [f"_runs/{DATE}-tiny-000001 000002"]
    assert len(project.read_predictions()) == 120


def test_the_report_of_a_real_night_shows_its_report(browser: Any, tmp_path: Path, project: NightProject) -> None:
    """The night has a dead letter and an unreadable file. The report is in the output and in the folder of the run."""
    project.write("a.jsonl", [*tiny.make_documents(90), {"id": "x", "text": None}])
    (project.folder / "data" / "b.parquet").write_bytes(b"PAR1")
    report = project.run_night(max_bad_files=0.5)
    html = (project.folder / "out" / "report.html").read_text()
    assert html == (project.folder / "out" / "_runs" / report.run / "report.html").read_text()
    with open_page(browser, tmp_path, html) as window:
        page_text = window.locator("body").inner_text()
        summary = " ".join(window.locator(".sum").inner_text().split())
        assert summary == "91 documents = 90 predicted + 1 dead letters"
        assert "null_text" in page_text
        assert report.quarantined[0].reason in page_text
        assert all(f"{label}" in page_text for label in report.counts.labels)
        assert window.locator(".pace svg").bounding_box()["height"] > 60
