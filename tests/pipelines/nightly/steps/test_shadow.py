"""Nights with a shadow: the night is the same as without one, and the shadow predicts as it does alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from jobs.commands import classify_command
from pipelines.nightly import classify_pass
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.steps import classify_step, pass_features
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.counts import ClassifyCounts, PassCounts
from pipelines.nightly.steps.shadow import Shadow
from pipelines.nightly.tables import resume
from pipelines.nightly.tables.night_tables import DISAGREEMENTS, NightTables, read_rows
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from pipelines.storage.shard_log import ShardLog, ShardOutcome
from pipelines.workers.fault_isolation import MAX_CRASHES
from pipelines.workers.map_shards import map_shards
from spin import shared_pass
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.estimator import SpinClassifier
from spin.monitor.agreement import ShadowAgreement, count_agreement, total_agreement
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.shared_pass import SharedPass
from tests.support import tiny
from tests.support.browser import open_page
from tests.support.chaos import FolderRegistry
from tests.support.command_line import CallSpin
from tests.support.night_project import (
    DATE,
    NightProject,
    call_before_stage,
    replace_map_shards,
    run_shards_here,
    stopped_at_third_shard,
)
from tests.support.shard_logs import open_shard_log

Row = dict[str, Any]
CLASSES = ("good", "bad", "plain")
SHALLOW, DEEP, OTHER_BACKBONE, MULTILABEL, OTHER_MULTILABEL = "12345"
PAIRS = [(SHALLOW, DEEP), (DEEP, SHALLOW), (SHALLOW, OTHER_BACKBONE), (MULTILABEL, OTHER_MULTILABEL)]

pytestmark = [pytest.mark.usefixtures("all_folds"), pytest.mark.slow]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with versions of several depths, one of them on another backbone, and two multilabel versions."""
    folder = tmp_path_factory.mktemp("registry")
    other_backbone = tiny.save_bert(tmp_path_factory.mktemp("elsewhere"), seed=1)
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off", words="off")
    probe = ProbeSettings(penalties=3, max_extra=0)
    versions: dict[str, tuple[Path, list[str], list[str], Callable[[Row], Any], int]] = {
        SHALLOW: (backbone_folder, ["ffn.01"], ["mean"], lambda row: row["label"], 2),
        DEEP: (backbone_folder, ["ffn.01", "resid.03"], ["mean", "max"], lambda row: row["label"], 3),
        OTHER_BACKBONE: (other_backbone, ["resid.02"], ["mean"], lambda row: row["label"], 3),
        MULTILABEL: (backbone_folder, ["ffn.01"], ["mean"], list_labels, 3),
        OTHER_MULTILABEL: (backbone_folder, ["resid.03"], ["max"], list_labels, 3),
    }
    for number, (backbone, sites, poolings, label, classes) in versions.items():
        rows = tiny.make_documents(300, CLASSES[:classes])  # so many that the deep one is deep, and has an exit
        float32 = BackboneSettings(model=str(backbone), dtype="float32", device="cpu")
        classifier = SpinClassifier(float32, sites=sites, poolings=poolings, probe=probe, search=quick)
        classifier.fit([row["text"] for row in rows], [label(row) for row in rows]).save(folder / number)
    return FolderRegistry(folder)


def list_labels(row: Row) -> list[str]:
    """Return the labels of a document: its class unless that is `plain`, and `crew` if the text has that word."""
    return [row["label"]] * (row["label"] != "plain") + ["crew"] * ("crew" in row["text"])


@pytest.fixture
def project(
    tmp_path: Path, registry_fixture: FolderRegistry, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> NightProject:
    run_shards_here(monkeypatch)
    return FullDepthProject(tmp_path, registry_fixture, backbone_folder)


class FullDepthProject(NightProject):
    """Nights without early exit, unless `set` turns it on."""

    def run_night(self, *args: Any, set: tuple[str, ...] = (), **options: Any) -> NightReport:
        return super().run_night(*args, set=("classify.cascade=false", *set), **options)


ROWS = tiny.make_documents(150, CLASSES, seed=3)
INVALID: list[Row] = [{"id": "x", "text": None}, {"id": "y", "text": " "}, dict(ROWS[3])]


def read_outcomes(report: NightReport) -> list[ShardOutcome[ClassifyCounts]]:
    """Return the outcomes of the shards of a night, in order."""
    outcomes = open_shard_log(Store(report.output), report.run).outcomes(PassCounts).values()
    return [replace(outcome, counts=outcome.counts.models[report.run]) for outcome in outcomes]


def collect_shard_digests(report: NightReport) -> dict[str, str]:
    """Return the SHA-256 of every file of every shard, except those that only a night with a shadow has."""
    files = {key: file for outcome in read_outcomes(report) for key, file in outcome.files.items()}
    return {key: file.sha256 for key, file in files.items() if "disagreements" not in key}


def get_agreement(report: NightReport) -> ShadowAgreement:
    """Return the agreement with the shadow, which the night must have had."""
    assert report.shadow is not None
    return report.shadow


def read_disagreements(project: NightProject, out: str = "out") -> list[Row]:
    """Return the disagreements of the night; the labels of a multi-label task are in columns of their own."""
    rows = read_rows(NightTables(Store(str(project.folder / out))).open(DISAGREEMENTS), {"date": DATE}).to_pylist()
    for row in rows:
        for name in ("label", "shadow_label"):
            lists = row.pop(f"{name}s")
            row[name] = row[name] if lists is None else lists
    return rows


@pytest.mark.parametrize(("model", "shadow"), PAIRS)
@pytest.mark.parametrize("documents", [16, 1000])
def test_a_shadow_does_not_change_the_night(project: NightProject, model: str, shadow: str, documents: int) -> None:
    """Predictions, dead letters and drift profiles are the same byte for byte."""
    project.write("a.jsonl", [*ROWS[:77], *INVALID, *ROWS[77:]])
    project.promote(model)
    alone = project.run_night("alone", documents)
    with_shadow = project.run_night("shadow", documents, shadow=f"models:/tiny/{shadow}")
    assert alone.shards == with_shadow.shards
    assert collect_shard_digests(with_shadow) == collect_shard_digests(alone)
    assert with_shadow.counts == alone.counts
    for kind in ("predictions", "dead_letters"):
        files = [sorted((project.folder / out / kind).glob("*/*.parquet")) for out in ("alone", "shadow")]
        assert files[0]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert get_agreement(with_shadow).compared == 150


def test_a_shadow_does_not_change_a_night_on_openvino(project: NightProject) -> None:
    """OpenVINO would round differently if the shadow's sites were outputs of the same compiled model."""
    project.write("a.jsonl", ROWS)
    project.promote(SHALLOW)
    openvino = ("backbone.engine=openvino", "backbone.dtype=bfloat16")
    alone = project.run_night("alone", set=openvino)
    with_shadow = project.run_night("shadow", set=openvino, shadow=f"models:/tiny/{DEEP}")
    assert collect_shard_digests(with_shadow) == collect_shard_digests(alone)


@pytest.mark.parametrize(("model", "shadow"), [(SHALLOW, DEEP), (DEEP, SHALLOW)])
def test_documents_that_exit_early_are_compared_with_the_shadow(project: NightProject, model: str, shadow: str) -> None:
    """Model and shadow each use their own exits, and both predict as they do alone."""
    project.write("a.jsonl", ROWS)
    project.promote(model)
    early_exit = ("classify.cascade=true",)
    alone = project.run_night("alone", set=early_exit)
    with_shadow = project.run_night("shadow", set=early_exit, shadow=f"models:/tiny/{shadow}")
    assert collect_shard_digests(with_shadow) == collect_shard_digests(alone)
    texts = [row["text"] for row in ROWS]
    classifier, shadow_classifier = (
        TrainedClassifier.load(project.registry_fixture.folder / number, early=True) for number in (model, shadow)
    )
    assert classifier.exits_early or shadow_classifier.exits_early
    labels = zip(classifier.predict(texts), shadow_classifier.predict(texts), strict=True)
    expected = [(row["id"], a, b) for row, (a, b) in zip(ROWS, labels, strict=True) if a != b]
    actual = [(row["id"], row["label"], row["shadow_label"]) for row in read_disagreements(project, "shadow")]
    assert actual == expected


@pytest.mark.parametrize("abstain", [0, 0.1])
@pytest.mark.parametrize(("model", "shadow"), PAIRS)
def test_the_shadow_predicts_as_it_does_alone(project: NightProject, model: str, shadow: str, abstain: float) -> None:
    """Disagreements and counts equal those of the two classifiers alone and a plain loop."""
    project.write("a.jsonl", [*ROWS, *INVALID])
    project.promote(model)
    report = project.run_night(shadow=f"models:/tiny/{shadow}", set=(f"decision.abstain={abstain}",))
    texts = [row["text"] for row in ROWS]
    model_classifier, shadow_classifier = (
        TrainedClassifier.load(project.registry_fixture.folder / number) for number in (model, shadow)
    )
    decision = model_classifier.decision.model_copy(update={"abstain": abstain})
    model_classifier.decision = shadow_classifier.decision = decision
    labels = list(zip(model_classifier.predict(texts), shadow_classifier.predict(texts), strict=True))
    expected = [(row["id"], a, b) for row, (a, b) in zip(ROWS, labels, strict=True) if a != b]
    assert 0 < len(expected) < 150
    disagreements = read_disagreements(project)
    assert [(row["id"], row["label"], row["shadow_label"]) for row in disagreements] == expected
    assert {(row["model_version"], row["shadow_version"]) for row in disagreements} == {(model, shadow)}
    indices = [n for n, (a, b) in enumerate(labels) if a != b]
    for column, classifier, side in (("score", model_classifier, 0), ("shadow_score", shadow_classifier, 1)):
        probabilities = classifier.predict_proba(texts)
        scores = []
        for n in indices:
            label, row = labels[n][side], probabilities[n]
            scores.append(row[classifier.classes.index(label)] if isinstance(label, str) else row.max())
        np.testing.assert_allclose([row[column] for row in disagreements], scores, atol=1e-4)
    agreement = get_agreement(report)
    assert (agreement.version, agreement.compared, agreement.failed) == (shadow, 150, 0)
    assert (agreement.agreed, agreement.agreement) == (150 - len(expected), round(1 - len(expected) / 150, 4))
    cells: Counter[tuple[Any, Any]] = Counter()
    for a, b in labels:
        if model != MULTILABEL:
            cells[a or "", b or ""] += 1
            continue
        for name in ("good", "bad", "crew"):
            predicted = name in (a or []), name in (b or [])
            if any(predicted):
                cells[name * predicted[0], name * predicted[1]] += 1
    assert {(a, b): n for a, row in agreement.confusion.items() for b, n in row.items()} == cells
    if abstain:
        assert None in [label for pair in labels for label in pair]


def test_classes_with_the_most_disagreements_come_first() -> None:
    """This holds for the classes and for the label pairs, with one label per document and with lists."""
    model, shadow = ["a", "a", "a", "b", None, "b"], ["a", "b", "b", "b", "a", None]
    shards = [count_agreement(model[rows], shadow[rows], False, failed=1) for rows in (slice(2), slice(2, None))]
    total = total_agreement("2", False, shards)
    assert (total.compared, total.agreed, total.failed, total.agreement) == (6, 2, 2, 0.3333)
    assert [astuple(row) for row in total.by_class()] == [("a", 3, 2, 1), ("b", 2, 3, 1), ("", 1, 1, 0)]
    assert [astuple(pair) for pair in total.disagreements()] == [("a", "b", 2), ("", "a", 1), ("b", "", 1)]
    multilabel = count_agreement([["a", "b"], ["a"], [], None], [["a"], ["b"], [], []], True)
    assert (multilabel.compared, multilabel.agreed) == (4, 1)
    assert multilabel.confusion == {"": {"b": 1}, "a": {"": 1, "a": 1}, "b": {"": 1}}
    by_class = total_agreement("2", True, [multilabel]).by_class()
    assert [astuple(row) for row in by_class] == [("b", 1, 1, 0), ("a", 2, 1, 1)]


def test_a_forward_pass_serves_the_model_and_its_shadow(project: NightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared backbone is loaded once and cut at the deeper depth; with different backbones each has its own pass."""
    calls: Counter[str] = Counter()
    forward, load = BertModel.forward, BertModel.from_pretrained.__func__
    models = []

    def count_forward(model: Any, *args: Any, **keywords: Any) -> Any:
        calls["forward"] += 1
        return forward(model, *args, **keywords)

    def count_load(kind: Any, *args: Any, **keywords: Any) -> Any:
        calls["load"] += 1
        loaded = load(kind, *args, **keywords)
        models.append(loaded[0])
        return loaded

    monkeypatch.setattr(BertModel, "forward", count_forward)
    monkeypatch.setattr(BertModel, "from_pretrained", classmethod(count_load))
    project.write("a.jsonl", ROWS)

    def count_calls(out: str, **options: Any) -> tuple[int, int]:
        calls.clear()
        models.clear()
        project.run_night(out, **options)
        return calls["load"], calls["forward"]

    alone = count_calls("alone")
    assert alone[0] == 1
    assert alone[1] > 4
    assert count_calls("shadow", shadow=f"models:/tiny/{DEEP}") == alone
    assert [isinstance(block, torch.nn.Identity) for block in models[0].encoder.layer] == [False] * 3
    documents = alone[1] - 1  # one pass checks the model itself
    assert count_calls("elsewhere", shadow=f"models:/tiny/{OTHER_BACKBONE}") == (2, 2 * documents + 1)
    assert [sum(isinstance(block, torch.nn.Identity) for block in model.encoder.layer) for model in models] == [2, 1]


def test_a_resumed_night_compares_every_document_once(project: NightProject) -> None:
    """A night that is killed after two shards keeps their counts; the alias of the shadow is resolved again."""
    project.write("a.jsonl", ROWS)
    (project.registry_fixture.folder / "challenger").write_text(DEEP)
    uninterrupted = project.run_night("uninterrupted", shadow="challenger")
    with stopped_at_third_shard():
        project.run_night(shadow="challenger")
    assert project.list_published_runs() == []
    resumed = project.run_night(shadow="challenger")
    assert resumed.shadow == uninterrupted.shadow
    assert read_disagreements(project) == read_disagreements(project, "uninterrupted")
    assert [key for key in Store(str(project.folder / "out")).list() if "/shadow/" in key] == []


def test_another_shadow_is_refused_without_restart(project: NightProject) -> None:
    """A shadow that is removed or added is refused too; a restart without one publishes no disagreements."""
    project.write("a.jsonl", ROWS)
    project.run_night(shadow=f"models:/tiny/{DEEP}")
    assert read_disagreements(project)
    for shadow, difference in ((f"models:/tiny/{OTHER_BACKBONE}", '"3", was "2"'), (None, 'absent, was "2"')):
        with pytest.raises(UserError, match=rf"shadow\.version is {difference}.*--restart"):
            project.run_night(shadow=shadow)
    project.run_night(restart=True)
    assert read_disagreements(project) == []
    with pytest.raises(UserError, match=r'shadow\.version is "2", was absent.*--restart'):
        project.run_night(shadow=f"models:/tiny/{DEEP}")


def test_a_model_is_not_its_own_shadow(project: NightProject) -> None:
    """A job that names the challenger every night runs without a shadow once that version is promoted."""
    project.write("a.jsonl", ROWS)
    for shadow in ("champion", f"models:/tiny/{SHALLOW}"):
        assert project.run_night(shadow=shadow).shadow is None


@pytest.mark.parametrize(
    ("shadow", "set", "message"),
    [
        ("models:/tiny/9", (), "models:/tiny/9 does not exist"),
        (
            f"models:/tiny/{MULTILABEL}",
            (),
            "version 4 cannot .* it gives a document a list of classes, the model one class",
        ),
        ("models:/tiny/gone", (), "version gone cannot .* no directory .*nowhere"),
        ("models:/tiny/moved", (), "version moved cannot .* has digest [0-9a-f]{12}, expected [0-9a-f]{12}"),
        ("models:/tiny/half", (), "version half of tiny is not a classifier that can be read"),
        (f"models:/tiny/{OTHER_BACKBONE}", ("decision.thresholds={good: 0.9, bad: 0.5}",), "they sum to 1.4"),
    ],
)
def test_an_unusable_shadow_is_refused_before_any_work(
    project: NightProject, backbone_folder: Path, shadow: str, set: tuple[str, ...], message: str
) -> None:
    """It is missing, of another kind, on a missing or changed backbone, unreadable, or unfit for the settings."""
    project.write("a.jsonl", ROWS)
    for name, backbone in (("gone", "/nowhere"), ("moved", str(backbone_folder)), ("half", None)):
        folder = project.registry_fixture.folder / name
        shutil.copytree(project.registry_fixture.folder / OTHER_BACKBONE, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["metadata"]["backbone"]["model"] = backbone
        (folder / "config.json").write_text(json.dumps(config) if backbone else "half")
    with pytest.raises(UserError, match=message):
        project.run_night(shadow=shadow, set=set)
    assert [key for key in Store(str(project.folder / "out")).list() if not key.startswith("_leases/")] == []


class FailingBlockStep(ClassifyStep):
    """A step whose third block raises on words that the tokenizer does not know, or `always`.

    Only a classifier that reads as deep as the third block fails.
    """

    always = False
    raised = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        inputs: dict[str, Any] = {}
        backbone = self.classifiers[0].backbone

        def record_ids(_module: Any, _args: Any, keywords: dict[str, Any]) -> None:
            inputs["ids"] = keywords["input_ids"]

        def fail(*_: Any) -> None:
            if self.always or (inputs["ids"] == backbone.tokenizer.unk_token_id).any():
                type(self).raised += 1
                raise RuntimeError("cannot be computed")

        backbone.model.register_forward_pre_hook(record_ids, with_kwargs=True)
        backbone.blocks[2].register_forward_pre_hook(fail)


def test_a_document_on_which_only_the_shadow_raises_is_predicted(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night is the same as without a shadow; the other documents of the shard are compared."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", FailingBlockStep)
    monkeypatch.setattr(pass_features, "KNOWN_GOOD_TEXT", ROWS[0]["text"])  # of words that the tokenizer knows
    rows = [*ROWS[:17], {"id": "unknown word", "text": "the zebra was late"}, *ROWS[17:]]
    project.write("a.jsonl", rows)
    alone = project.run_night("alone")
    report = project.run_night(shadow=f"models:/tiny/{DEEP}")
    assert collect_shard_digests(report) == collect_shard_digests(alone)
    assert (report.counts.dead, report.counts.predicted) == (0, 151)
    assert (get_agreement(report).compared, get_agreement(report).failed) == (150, 1)
    ids = [row["id"] for row in read_disagreements(project)]
    assert ids == sorted(ids)
    project.write("a.jsonl", ROWS)
    without_failure = project.run_night("without_failure", shadow=f"models:/tiny/{DEEP}")
    assert get_agreement(without_failure).confusion == get_agreement(report).confusion
    project.promote(DEEP)
    project.write("a.jsonl", rows)
    report = project.run_night("deep", shadow=f"models:/tiny/{SHALLOW}")
    assert report.counts.reasons == {"poison": 1}
    assert (get_agreement(report).compared, get_agreement(report).failed) == (150, 0)


def test_a_shadow_that_always_raises_is_tried_a_limited_number_of_times(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is per shard; the night is the same as without a shadow."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", FailingBlockStep)
    monkeypatch.setattr(FailingBlockStep, "always", True)
    monkeypatch.setattr(FailingBlockStep, "raised", 0)
    project.write("a.jsonl", ROWS)
    alone = project.run_night("alone", 1000)
    report = project.run_night(documents=1000, shadow=f"models:/tiny/{DEEP}")
    assert collect_shard_digests(report) == collect_shard_digests(alone)
    assert (get_agreement(report).compared, get_agreement(report).failed) == (0, 150)
    assert FailingBlockStep.raised == 1 + 100


@pytest.mark.parametrize(
    ("target", "name", "failing"),
    [(classify_step, "_load", 2), (SharedPass, "prepare", 1), (Shadow, "compare", 1)],
    ids=["loading", "preparing", "comparing"],
)
def test_a_shadow_that_fails_as_a_whole_costs_the_night_nothing(
    target: Any, name: str, failing: int, project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its documents count as failed; the night is the same as without a shadow. The model is loaded first."""
    project.write("a.jsonl", ROWS)
    alone = project.run_night("alone")
    calls = fail_at(failing, target, name, monkeypatch)
    report = project.run_night(shadow=f"models:/tiny/{DEEP}")
    assert calls["all"] >= failing
    assert collect_shard_digests(report) == collect_shard_digests(alone)
    assert report.counts == alone.counts
    failed = read_outcomes(report)[0].counts.rows if name == "compare" else 150
    assert (get_agreement(report).compared, get_agreement(report).failed) == (150 - failed, failed)


def test_no_engine_is_opened_for_a_model_with_a_shadow_that_computes_apart(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On OpenVINO each is compiled by itself, and a shadow that cannot be compiled costs the night nothing."""
    project.write("a.jsonl", ROWS)
    openvino = ("backbone.engine=openvino",)
    together = fail_at(1, shared_pass, "ForwardPass", monkeypatch)
    report = project.run_night("out", shadow=f"models:/tiny/{DEEP}", set=openvino)
    assert together["all"] == 0
    assert (get_agreement(report).compared, get_agreement(report).failed) == (150, 0)
    fail_at(2, TrainedClassifier, "prepare", monkeypatch)
    broken = project.run_night("broken", shadow=f"models:/tiny/{DEEP}", set=openvino)
    assert broken.counts == report.counts
    assert (get_agreement(broken).compared, get_agreement(broken).failed) == (0, 150)


def fail_at(number: int, target: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let one call of a function fail; returns a count of its calls."""
    original, calls = getattr(target, name), Counter[str]()

    def fail(*args: Any, **options: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == number:
            raise UserError("the shadow is broken")
        return original(*args, **options)

    monkeypatch.setattr(target, name, fail)
    return calls


@pytest.mark.parametrize("crashes", [MAX_CRASHES - 1, MAX_CRASHES])
def test_the_shadow_is_skipped_in_a_shard_that_crashes_its_processes(
    project: NightProject, monkeypatch: pytest.MonkeyPatch, crashes: int
) -> None:
    """It is skipped after as many crashes as may be the machine's fault; the documents of the shard are predicted."""
    project.write("a.jsonl", ROWS)

    def record_crashes(shard_log: ShardLog) -> None:
        crashed = {"id": "x", "begun": crashes, "open": [""] * crashes}
        shard_log.store.write_json(shard_log.attempt_key("000000"), crashed)

    call_before_stage("classify", record_crashes, monkeypatch)
    report = project.run_night(shadow=f"models:/tiny/{DEEP}")
    failed = read_outcomes(report)[0].counts.rows if crashes == MAX_CRASHES else 0
    assert report.counts.predicted == 150
    assert (get_agreement(report).compared, get_agreement(report).failed) == (150 - failed, failed)


def test_a_night_without_predictions_has_no_agreement(project: NightProject) -> None:
    """There is none in `report.json`, and the page says so."""
    project.write("a.jsonl", [{"id": "x", "text": None}])
    agreement = get_agreement(project.run_night(shadow=f"models:/tiny/{DEEP}", max_dead_fraction=1))
    assert (
        to_json(agreement)
        == json.loads((project.folder / "out" / "report.json").read_text())["shadow"]
        == {
            "version": DEEP,
            "multilabel": False,
            "compared": 0,
            "failed": 0,
            "agreed": 0,
            "confusion": {},
        }
    )
    assert "It agrees on none of 0 documents." in " ".join((project.folder / "out" / "report.html").read_text().split())


def test_a_night_without_a_shadow_writes_nothing_about_shadows(project: NightProject) -> None:
    """No key and no object mentions one, nor do the facts that decide whether a run can resume."""
    project.write("a.jsonl", ROWS)
    project.run_night()
    out = Store(str(project.folder / "out"))
    keys = [key for key in out.list() if not key.startswith(("disagreements/_delta_log/", "_leases/"))]
    assert [key for key in keys if "shadow" in key or "disagreements" in key] == []
    for key in keys:
        data = (out.read(key) or b"").replace(str(project.folder).encode(), b"")  # the folder is named after this test
        assert b"shadow" not in data.lower(), key
    facts = out.read_json(f"_runs/{DATE}-tiny-000001/plan.json")["metadata"]
    assert set(facts) == {
        *("format", "model", "artifact", "choose", "decision", "backbone", "data", "shard_documents", "cascade"),
        *("dead_letter_text", "reasons", "reasons_for", "incremental"),
    }
    assert facts["format"] == resume.FORMAT


@pytest.mark.usefixtures("ray_session")
def test_ray_workers_compare_as_a_single_process_does(project: NightProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agreement, the disagreements and all files of the shards are equal."""
    project.write("a.jsonl", ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: with more threads sums differ in their last bits
    try:
        local = project.run_night("local", shadow=f"models:/tiny/{DEEP}")
    finally:
        torch.set_num_threads(threads)
    replace_map_shards(monkeypatch, map_shards)
    on_ray = project.run_night("ray", shadow=f"models:/tiny/{DEEP}", set=("ray.workers=2",))
    assert (on_ray.shadow, collect_shard_digests(on_ray)) == (local.shadow, collect_shard_digests(local))
    assert read_disagreements(project, "ray") == read_disagreements(project, "local")


def test_the_command_and_the_report_show_the_agreement(
    browser: Any,
    tmp_path: Path,
    project: NightProject,
    monkeypatch: pytest.MonkeyPatch,
    call_spin: CallSpin,
) -> None:
    """`spin classify --shadow` prints the share and the most frequent label pair; the report has tables."""
    project.write("a.jsonl", ROWS)
    (project.registry_fixture.folder / "challenger").write_text(DEEP)
    project.run_night("before")
    monkeypatch.setattr(classify_command, "open_registry", lambda *_: project.registry_fixture)
    options = ("--input", project.folder / "data", "--output", project.folder / "out", "--date", DATE)
    status, printed, error = call_spin("classify", project.folder / "settings.yaml", *options, "--shadow", "challenger")
    assert status == 0, error
    record = json.loads((project.folder / "out" / "report.json").read_text())["shadow"]
    agreement, share = from_json(ShadowAgreement, record), f"{100 * record['agreement']:.1f}"
    assert to_json(agreement) == record
    [first, *_] = pairs = [astuple(pair) for pair in agreement.disagreements()]
    expected = f"shadow version 2 agrees on {share} % of 150 documents: {first[0]} → {first[1]} {first[2]}"
    assert expected in printed
    with open_page(browser, tmp_path, (project.folder / "out" / "report.html").read_text()) as window:
        section = window.locator("main section section", has_text="Version 2 scored the same documents")
        assert f"It agrees on {share}\u202f% of 150 documents" in section.inner_text()
        tables = [
            [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
            for table in section.locator("table").all()
        ]
        assert tables[0] == [[*map(str, astuple(row))] for row in agreement.by_class()]
        assert tables[1] == [[*map(str, pair)] for pair in pairs]
