"""Nights that drifted name the documents, and with a setting the words, that drive the neurons that moved most."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.nightly import classify
from pipelines.nightly.night_models import RequestedModel
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.report.run_report import report_page
from pipelines.nightly.steps.classify_job import PROFILE, SAMPLE
from pipelines.registry.packaging import REFERENCE
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from spin.backbone.loading import load_backbone
from spin.classifier import TrainedClassifier
from spin.labels.standardizer import Standardizer
from spin.monitor import drift_statistics
from spin.monitor.document_sample import is_sampled
from spin.monitor.drift import Drift
from spin.monitor.drift_statistics import STATISTICS, Distribution, ReadDocuments, Sums, feature_names, histogram
from spin.monitor.profile import Profile
from spin.settings import BackboneSettings, load_settings
from spin.sites import BY_WORDS, FeatureColumn
from tests.pipelines.nightly.test_several_classifiers import NamedRegistry
from tests.spin.monitor.test_drift_words import plain_p_value
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import DATE, NightProject, Row
from tests.support.random_classifiers import build_classifier
from tests.support.summaries import build_choice_summary
from tests.support.word_regression import build_word_regression

pytestmark = pytest.mark.slow

EXIT_BY_WORDS = "3"
VERSIONS: dict[str, dict[str, bool]] = {
    "1": {},
    "2": {"multilabel": True},
    EXIT_BY_WORDS: {"words": True},
    "4": {"words": True, "neurons": False},
}
POOLINGS = ("mean", "max")
CHOICES = ("accuracy", "balanced", "cheapest")
NEW = "walks"
"""a word of all documents of a new source, and of no other document"""


def make_night(seed: int = 5) -> list[Row]:
    """Return documents like those of the training and, from a new source, documents that have a word more."""
    known = tiny.make_documents(200, seed=seed)
    new = [
        {"id": f"new-{number:02d}", "text": f"{NEW} {NEW} seven {NEW} {row['text'].split()[0]} {NEW}"}
        for number, row in enumerate(tiny.make_documents(100, ("plain",), seed=seed + 1))
    ]
    rows: list[Row] = [{name: row[name] for name in ("id", "text")} for row in (*known, *new)]
    random.Random(0).shuffle(rows)
    return rows


def save_version(
    folder: Path, settings: BackboneSettings, *, multilabel: bool = False, words: bool = False, neurons: bool = True
) -> None:
    """Save a classifier with random heads on many neurons, with the profile of known documents as its reference.

    With `words`, these decide first; without neurons they decide alone.
    """
    texts, backbone = [row["text"] for row in tiny.make_documents(200)], load_backbone(settings)
    columns = [FeatureColumn.parse(f"{site}.{pooling}") for site in ("ffn.01", "resid.03") for pooling in POOLINGS]
    spin = build_classifier(
        settings,
        backbone.digest,
        {column: np.arange(1, backbone.width(column.site), 2) for column in columns if neurons},
        exits=[(BY_WORDS, 0.8)] if words and neurons else [],
        classes=2,
        multilabel=multilabel,
        words=build_word_regression(texts, classes=2) if words else None,
        head_reads_words=not neurons,
    )
    fitted = replace(spin.fitted, summary=build_choice_summary())
    for early in (False, words):
        result = replace(spin.training_result, choices=dict.fromkeys(CHOICES, fitted))
        spin = TrainedClassifier(settings, backbone.digest, spin.label_space, result, "accuracy", early=early)
        if not early:
            values = spin.features(texts).values.astype(np.float32)
            fitted = replace(fitted, standardizer=Standardizer.fit(values))
    spin.save(folder)
    features = spin.features(texts)
    logits = spin.predict_features(features).logits
    profile = Profile.from_outputs(spin.label_space, spin.fitted, logits, features.values, features)
    names = [prefix for choice in CHOICES for prefix in (choice, f"{choice}.early")]
    tensors = {f"{prefix}.{name}": tensor for prefix in names for name, tensor in profile.sums.items()}
    save_file(tensors, folder / REFERENCE)


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version per task and way to decide, each with its reference."""
    folder = tmp_path_factory.mktemp("registry")
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    for version, options in VERSIONS.items():
        save_version(folder / version, settings, **options)
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    rows = make_night()
    project.write("a.jsonl", [*rows[:150], {"id": "dead", "text": " "}, rows[0]])
    project.write("b.jsonl", rows[150:])
    return project


def run_drifting(project: NightProject, out: str = "out", documents: int = 40, **limits: Any) -> NightReport:
    """Run a night in which nearly every shift is too large."""
    return project.run_night(out, documents, max_psi=1e-6, max_dead_fraction=0.5, **limits)


def neurons_of(report: NightReport) -> Drift:
    [drift] = [drift for drift in report.drift if drift.name == "neurons"]
    return drift


def plain_rankings(spin: TrainedClassifier, rows: list[Row], drift: Drift, share: float = 1) -> list[list[str]]:
    """Return for each neuron the documents of the sample, the farthest first, by a plain loop."""
    sampled = [row for row in rows if is_sampled(row["id"], share)]
    values = spin.fitted.standardizer.transform(spin.features([row["text"] for row in sampled]).values)
    values = values.astype(np.float16)
    names, rankings = feature_names(spin.fitted.selection), []
    for shift in drift.moved[: min(5, drift.now[0])]:
        sign = 1 if shift.shift > 0 else -1
        of_neuron = values[:, names.index((shift.column, shift.neuron))].tolist()
        ranked = sorted((-sign * v, row["id"]) for v, row in zip(of_neuron, sampled, strict=True) if v == v)
        rankings.append([id for _, id in ranked])
    return rankings


def plain_words(ranking: list[str], rows: list[Row]) -> tuple[str, ...]:
    """Return the words that the farthest tenth of a ranking has more often than the others, by counting."""
    texts, size = {row["id"]: row["text"].lower().split() for row in rows}, round(len(ranking) / 10)

    def count(word: str, ids: list[str]) -> int:
        return sum(word in texts[id] for id in ids)

    here = {word for id in ranking[:size] for word in texts[id] if count(word, ranking[:size]) >= 3}
    p_values = {
        word: plain_p_value(count(word, ranking[:size]), size, count(word, ranking[size:]), len(ranking) - size)
        for word in here
    }
    ranked = sorted(here, key=lambda word: (p_values[word], word))[:8]
    return tuple(word for word in ranked if p_values[word] < 0.01 / len(here))


@pytest.mark.parametrize("size", [1000, 100])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_documents_are_those_of_a_plain_loop(
    project: NightProject, version: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one and of several labels per document, where words decide first, and where there are no neurons."""
    monkeypatch.setattr("spin.monitor.document_sample._SIZE", size)
    project.promote(version)
    drift = neurons_of(run_drifting(project))
    rows, spin = make_night(), TrainedClassifier.load(project.registry_fixture.folder / version, early=True)
    rankings = plain_rankings(spin, rows, drift, min(1, size / (len(rows) + 2)))
    expected = [tuple(ranking[:3]) for ranking in rankings]
    assert [shift.documents for shift in drift.moved] == expected + [()] * (len(drift.moved) - len(expected))
    assert drift.drifted
    assert expected
    assert {len(documents) for documents in expected} == {3}
    assert all(not shift.words for shift in drift.moved)
    decided = spin.predict_all([row["text"] for row in rows]).exit_depth == BY_WORDS
    assert decided.any() == (version == EXIT_BY_WORDS)


def causes_of(drift: Drift) -> list[tuple[str, int, tuple[str, ...], tuple[str, ...]]]:
    return [(shift.column, shift.neuron, shift.documents, shift.words) for shift in drift.moved]


def test_the_causes_do_not_depend_on_shards_and_their_order(project: NightProject) -> None:
    few, many = (
        neurons_of(run_drifting(project, str(documents), documents, drift_words=True)) for documents in (17, 500)
    )
    assert causes_of(few) == causes_of(many)
    for name, later in (("a", "z"), ("b", "y")):  # the files change places
        (project.folder / f"data/{name}.jsonl").rename(project.folder / f"data/{later}.jsonl")
    assert causes_of(neurons_of(run_drifting(project, "turned", 17, drift_words=True))) == causes_of(few)


def test_words_are_named_where_a_setting_allows_it(project: NightProject) -> None:
    """The word of the new source is among them; no id need be named."""
    named = neurons_of(run_drifting(project, drift_words=True, drift_documents=1))
    assert {len(shift.documents) for shift in named.moved[:5]} == {1}
    rows, spin = make_night(), TrainedClassifier.load(project.registry_fixture.folder / "1")
    expected = [plain_words(ranking, rows) for ranking in plain_rankings(spin, rows, named)]
    assert [shift.words for shift in named.moved[:5]] == expected
    assert any(NEW in words for words in expected)
    words = neurons_of(run_drifting(project, "words", drift_words=True, drift_documents=0))
    assert [shift.words for shift in words.moved] == [shift.words for shift in named.moved]
    assert all(not shift.documents for shift in words.moved)


def list_endings(project: NightProject, out: str, ending: str) -> list[str]:
    return [key for key in Store(str(project.folder / out)).list() if key.endswith(ending)]


def fail_before(step: str, monkeypatch: pytest.MonkeyPatch, project: NightProject, **limits: Any) -> None:
    """Run a night that fails before a step of its driver."""
    with monkeypatch.context() as patch:
        patch.setattr(f"pipelines.nightly.night_driver.{step}", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_drifting(project, **limits)


@pytest.mark.parametrize("words", [False, True])
def test_the_sample_is_deleted_when_the_night_is_published(
    project: NightProject, words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it holds words only if these may be named; the driver that continues a run names the same causes."""
    expected = neurons_of(run_drifting(project, "whole", drift_words=words))
    fail_before("finish_night", monkeypatch, project, drift_words=words)
    samples = list_endings(project, "out", SAMPLE)
    assert len(samples) == len(list_endings(project, "out", PROFILE)) > 5
    contents = Store(str(project.folder / "out")).read_many(samples).values()
    assert any(NEW.encode() in data for data in contents) == words
    assert neurons_of(run_drifting(project, drift_words=words)) == expected
    for out in ("out", "whole"):
        assert not list_endings(project, out, SAMPLE)
        assert list_endings(project, out, PROFILE)


def test_nothing_is_kept_or_named_where_nothing_is_asked_for(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_before("publish_night", monkeypatch, project, drift_documents=0)
    assert list_endings(project, "out", PROFILE)
    assert not list_endings(project, "out", SAMPLE)
    drift = neurons_of(run_drifting(project, drift_documents=0))
    assert drift.drifted
    assert all(not shift.documents and not shift.words for shift in drift.moved)


def test_words_are_not_named_where_only_a_part_of_the_night_kept_them(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the setting was withdrawn before the report was made."""
    fail_before("finish_night", monkeypatch, project, drift_words=True)
    drift = neurons_of(run_drifting(project))
    assert any(shift.documents for shift in drift.moved)
    assert all(not shift.words for shift in drift.moved)


def test_each_model_of_a_pass_has_the_causes_that_it_has_alone(project: NightProject) -> None:
    """Their samples are deleted with the other work of the pass."""
    versions, alone = ("1", EXIT_BY_WORDS), {}
    for version in versions:
        project.promote(version)
        alone[version] = causes_of(neurons_of(run_drifting(project, version, drift_words=True)))
    assert alone["1"] != alone[EXIT_BY_WORDS]
    models = [RequestedModel(NamedRegistry(project.registry_fixture.folder, version)) for version in versions]  # type: ignore[arg-type]
    settings, source = load_settings(project.folder / "settings.yaml"), str(project.folder / "data")
    result = classify.classify_nights(settings, models, source, str(project.folder / "out"), night=DATE)
    result.raise_failures()
    assert {report.model: causes_of(neurons_of(report)) for report in result.reports} == alone
    assert list_endings(project, "out", PROFILE)
    assert not list_endings(project, "out", SAMPLE)


def test_a_night_without_drift_names_nothing_and_reads_no_sample(
    project: NightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.nightly.report.drift_causes.DocumentSample.from_bytes", lambda _: 1 / 0)
    report = project.run_night(max_psi=50, max_dead_fraction=0.5, drift_words=True)
    assert not any(drift.drifted for drift in report.drift)
    assert neurons_of(report).moved
    assert all(not shift.documents and not shift.words for shift in neurons_of(report).moved)


class LongTexts(Distribution):
    """(2,) documents with at most twelve tokens, and longer ones."""

    name, description = "long", "documents <longer> than most"

    def sum_documents(self, documents: ReadDocuments) -> Sums:
        return {self.name: histogram(documents.n_tokens, np.array([12]))}


def test_a_statistic_that_is_added_is_compared_and_shown(
    project: NightProject, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In nights of a model that was trained with it; others are compared without."""
    monkeypatch.setattr(drift_statistics, "STATISTICS", (*STATISTICS, LongTexts()))
    assert "long" not in {drift.name for drift in run_drifting(project, "older").drift}
    folder = project.registry_fixture.folder / "5"
    save_version(folder, BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    project.promote("5")
    report = run_drifting(project)
    [drift] = [drift for drift in report.drift if drift.name == "long"]
    counts = TrainedClassifier.load(folder).features([row["text"] for row in make_night()]).n_tokens
    assert drift.now == ((counts <= 12).sum(), (counts > 12).sum())
    assert 0 < drift.now[0] < len(counts)
    assert "documents &lt;longer&gt; than most" in report_page(report)
    assert from_json(NightReport, to_json(report)).drift == report.drift
