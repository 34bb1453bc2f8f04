"""The baselines run on a bounded sample, and neither a failing baseline nor their absence costs the training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from jobs.commands.train_commands import print_training
from pipelines.data.training_labels import Labels
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.training import baselines, train
from pipelines.training.evaluate import run_evaluate
from pipelines.training.workflow import run_stages, run_workflow
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.labels.cross_validation import Fold
from spin.labels.label_space import LabelSpace
from spin.labels.training_data import TrainingData
from spin.settings import DecisionSettings, ProbeSettings, Settings, parse_settings
from spin.sites import FeatureColumn
from spin.sparsify.probe import fit_probes
from tests.pipelines.data.files.test_readers import DATA, to_jsonl, write_file
from tests.support import tiny
from tests.support.corpora import spool_corpus

SPIN_ROWS = {"spin", "balanced", "cheapest"}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, sqlite_uri: str) -> dict[str, Any]:
    """The settings of a tiny project whose probes are fitted."""
    folder = tmp_path_factory.mktemp("probed")
    pq.write_table(pa.Table.from_pylist(tiny.make_documents(300)), folder / "train.parquet")
    tree = {
        "backbone": {"model": str(tiny.save_bert(folder / "bert")), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(folder / "train.parquet")},
        "store": str(folder / "store"),
        "mlflow": {"model": "baselines", "tracking_uri": sqlite_uri},
        "registry": {"include_backbone": False},
        "ray": {"workers": 0, "shard_documents": 100},
        "sites": ["ffn.01", "resid.02"],
        "probe": {"penalties": 3, "max_extra": 0},
        "search": {"etas": [0.9], "strengths": [1], "network": "off"},
    }
    run_stages(parse_settings(tree), ["extract", "probe"])
    return tree


@pytest.fixture
def make_project(probed: dict[str, Any], tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a project with a store of its own, in which nothing but the train stage is left to do."""

    def make(**changes: Any) -> Settings:
        shutil.copytree(probed["store"], tmp_path / "store")
        return parse_settings({**probed, "store": str(tmp_path / "store"), **changes})

    return make


def read_report(project: Settings) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(project.store.uri) / "report.json").read_text())
    return report


def fail(*_: Any, **__: Any) -> Any:
    raise MemoryError("no room for 3 GiB")


@pytest.mark.slow
def test_a_baseline_that_runs_out_of_memory_is_left_out_of_the_table(
    make_project: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The version is registered; log, report.json, model card and terminal say what is missing."""
    monkeypatch.setattr(baselines, "words", fail)
    project = make_project()
    report = run_workflow(project, first="train")
    assert Registry(project).resolve(f"models:/baselines/{report.registered.version}") == report.registered.version
    written = read_report(project)
    names = [row["name"] for row in written["table"]]
    assert names[:3] == ["last_layer", "best_site", "spin"]
    [note] = [note for note in written["notes"] if "tfidf" in note]
    assert note == "tfidf is left out of the table: MemoryError: no room for 3 GiB"
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING and "tfidf" in record.message]
    assert record.exc_info is not None
    assert record.exc_info[0] is MemoryError
    print_training(report)
    assert note in capsys.readouterr().out
    assert "tfidf is left out of the table" in (Path(project.store.uri) / "model" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_baseline_that_fails_while_it_is_timed_is_left_out_of_the_table(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_contender = baselines.last_layer

    def make_broken(*args: Any, **options: Any) -> baselines.Contender:
        return replace(make_contender(*args, **options), classify=fail)

    monkeypatch.setattr(baselines, "last_layer", make_broken)
    report = run_workflow(make_project(), first="train")
    assert [row.name for row in report.results.table][:3] == ["tfidf", "best_site", "spin"]
    assert report.results.notes == ("last_layer is left out of the table: MemoryError: no room for 3 GiB",)


@pytest.mark.slow
def test_chosen_thresholds_decide_the_figures_of_a_training_and_all_that_follow(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, figures per class, model card, `spin evaluate` and the gate: with thresholds that leave one class only."""
    integrate_on_ray, thresholds = train.run_integrate, {"bad": 1e-6, "good": 1 - 1e-6}

    def integrate(*args: Any) -> TrainingResult:
        result = integrate_on_ray(*args)
        choices = {
            name: replace(fitted, summary=fitted.summary.model_copy(update={"thresholds": thresholds}))
            for name, fitted in result.choices.items()
        }
        return replace(result, choices=choices)

    monkeypatch.setattr(train, "run_integrate", integrate)
    exit_depths, decisions = FittedClassifier.exit_depths, []
    monkeypatch.setattr(FittedClassifier, "exit_depths", lambda *args: decisions.append(args[2]) or exit_depths(*args))
    project = make_project(train={"baselines": False})
    report = run_workflow(project, first="train")
    assert report.results.choice.choices["accuracy"].thresholds == thresholds
    assert report.results.per_class["bad"].recall == 1
    assert report.results.per_class["good"].recall == 0
    share = report.results.per_class["bad"].support / report.results.counts["test"]
    assert [row.accuracy for row in report.results.table] == pytest.approx(
        [share] * len(report.results.table), abs=1e-4
    )
    card = (Path(project.store.uri) / "model" / "MODEL_CARD.md").read_text()
    assert "Thresholds: bad from 1e-06, good from 0.999999. Validation documents chose them by macro" in card
    assert decisions, "no drift reference was made"
    assert all(decision.thresholds == pytest.approx([*thresholds.values()], rel=1e-5) for decision in decisions)
    registry = Registry(project)
    version = f"models:/baselines/{report.registered.version}"
    evaluated = run_evaluate(project, registry, project.data.train, model=version)
    assert evaluated.decision.thresholds == thresholds
    assert evaluated.per_class["bad"].recall == 1
    equal = project.model_copy(update={"decision": DecisionSettings(thresholds={"good": 0.5})})
    assert run_evaluate(equal, Registry(equal), project.data.train, model=version).per_class["good"].recall > 0.5


@pytest.mark.slow
def test_a_classifier_of_the_training_that_fails_ends_the_stage(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only baselines may be missing from the table."""
    monkeypatch.setattr(baselines, "spin_row", fail)
    with pytest.raises(MemoryError):
        run_workflow(make_project(), first="train")


@pytest.mark.slow
def test_a_training_without_baselines_fits_none(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of the classifiers are the same as with baselines."""
    for name in ("words", "last_layer", "best_site"):
        monkeypatch.setattr(baselines, name, fail)
    report = run_workflow(make_project(train={"baselines": False}), first="train")
    names = {row.name for row in report.results.table}
    assert "spin" in names <= SPIN_ROWS
    assert report.results.notes == ()
    assert report.results.test_ece is not None
    assert report.results.test_ece_limit is not None
    assert report.results.per_class.keys() == {"bad", "good"}


@pytest.mark.slow
def test_a_training_that_ended_during_the_baselines_goes_on_without_them(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is no part of the plan, so the heads that were fitted are kept."""

    class Killed(BaseException):
        """The end of a process whose memory the system took."""

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    project = make_project()
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "words", die)
        with pytest.raises(Killed):
            run_workflow(project, first="train")
    monkeypatch.setattr("pipelines.training.fit_heads.run_group", fail)
    resumed = run_workflow(parse_settings({**project.model_dump(), "train": {"baselines": False}}), first="train")
    assert {row.name for row in resumed.results.table} <= SPIN_ROWS


@pytest.mark.slow
def test_a_large_corpus_is_sampled_for_the_baselines(
    make_project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the usual rows, and a note says on how many documents a baseline was fitted."""
    monkeypatch.setattr(baselines, "SAMPLE_ROWS", 60)
    fitted: list[int] = []
    fit = baselines.fit_best_strength

    def count_rows(X: Any, *args: Any, **options: Any) -> Any:
        fitted.append(X.shape[0])
        return fit(X, *args, **options)

    monkeypatch.setattr(baselines, "fit_best_strength", count_rows)
    report = run_workflow(make_project(), first="train")
    counts = report.results.counts
    assert set(fitted) == {60}
    assert [row.name for row in report.results.table][:4] == ["tfidf", "last_layer", "best_site", "spin"]
    labelled = counts["train"] + counts["valid"]
    assert report.results.notes == tuple(
        f"{name}: fitted on a stratified sample, 60 of {labelled} documents that train or validate"
        for name in ("tfidf", "last_layer", "best_site")
    )


def make_labels(rows: list[dict[str, Any]], y: Any, splits: list[str], classes: tuple[str, ...]) -> Labels:
    groups = np.arange(len(rows), dtype=np.uint64)
    return Labels([row["id"] for row in rows], LabelSpace(classes, multilabel=y.ndim == 2), y, splits, groups)


def make_data(labels: Labels, folds: int = 1) -> TrainingData:
    """Training data with the division of the splits as the only fold, or with several that leave out every nth row."""
    train, valid = (labels.part(split)[0] for split in ("train", "valid"))
    rows = np.sort(np.concatenate([train, valid]))
    parts = (
        [(train, valid)] if folds == 1 else [(np.delete(rows, np.s_[n::folds]), rows[n::folds]) for n in range(folds)]
    )
    return TrainingData(labels.y, tuple(Fold(*part) for part in parts), labels.label_space, "accuracy")


def test_words_of_validation_documents_are_learned(tmp_path: Path) -> None:
    """Once they have chosen the strength: SPIN's heads are fitted on them, too."""
    rows = [{"id": str(n), "text": f"text {n % 5} {'odd' if n % 2 else 'even'}", "label": "x"} for n in range(80)]
    for n in range(60, 80):
        rows[n]["text"] = "unheard" if n % 2 else "unseen"
    splits = ["train"] * 60 + ["valid"] * 12 + ["test"] * 8
    labels = make_labels(rows, np.arange(80) % 2, splits, ("good", "bad"))
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(rows))
    contender = baselines.words(spool_corpus(uri, Store(str(tmp_path)), 15, DATA), labels, make_data(labels))
    assert contender.predicted.tolist() == [0, 1] * 4
    assert contender.note is None


def test_the_best_site_is_fitted_on_validation_documents_too() -> None:
    """At the share of the penalty that they chose; an independent solver finds the same weights."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(300, 8)).astype(np.float32)
    y = (values[:, 0] + values[:, 1] + draw.normal(size=300) > 0).astype(np.int64)
    labels = make_labels([{"id": str(n)} for n in range(300)], y, ["train"] * 240 + ["valid"] * 60, ("bad", "good"))
    data, column = make_data(labels), FeatureColumn.parse("ffn.01.mean")
    [probe] = fit_probes({column: values}, data, ProbeSettings(penalties=5, max_extra=0))
    refitted = baselines._refit_probe(probe, values, y, data)
    X = (values - values.mean(0)) / values.std(0)
    share, slope = probe.lam / probe.lam_max, np.abs(X.T @ (y - y.mean())).max() / 300
    lasso = LogisticRegression(penalty="l1", solver="saga", C=1 / (300 * share * slope), tol=1e-8, max_iter=20_000)
    np.testing.assert_allclose(refitted.coef, lasso.fit(X, y).coef_, atol=5e-3)
    assert np.abs(refitted.coef - probe.coef).max() > 0.01


@pytest.mark.parametrize("folds", [1, 4])
def test_the_strength_is_the_one_that_validates_best(folds: int) -> None:
    """As a plain loop finds it, which fits every strength from nothing."""
    draw = np.random.default_rng(1)
    X = draw.normal(size=(200, 40))
    y = (X[:, :3].sum(1) + 2 * draw.normal(size=200) > 0).astype(np.int64)
    labels = make_labels([{"id": str(n)} for n in range(200)], y, ["train"] * 150 + ["valid"] * 50, ("bad", "good"))
    data, strengths = make_data(labels, folds), (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    loop = [
        np.mean(
            [
                (LogisticRegression(C=C, tol=1e-6).fit(X[f.train], y[f.train]).predict(X[f.valid]) == y[f.valid]).mean()
                for f in data.folds
            ]
        )
        for C in strengths
    ]
    model, valid_score = baselines.fit_best_strength(X, np.arange(200), data, strengths)
    assert valid_score == pytest.approx(max(loop))
    final = LogisticRegression(C=strengths[int(np.argmax(loop))], tol=1e-6).fit(X, y)
    np.testing.assert_allclose(model[-1].coef_, final.coef_, atol=0.02)


@pytest.mark.parametrize("multilabel", [False, True])
def test_long_texts_lower_the_number_of_rows_for_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multilabel: bool
) -> None:
    """TF-IDF counts words in a bounded number of characters in all, and keeps a bounded number of words."""
    rows = tiny.make_documents(400, seed=4)
    texts, y = [row["text"] for row in rows], np.arange(400) % 2
    splits = ["train"] * 300 + ["valid"] * 60 + ["test"] * 40
    label_space = LabelSpace(("good", "bad"), multilabel)
    targets = label_space.indicator(y) if multilabel else y
    labels = make_labels(rows, targets, splits, ("good", "bad"))
    mean = sum(map(len, texts[:360])) / 360
    monkeypatch.setattr(baselines, "SAMPLE_CHARACTERS", int(120.5 * mean))
    monkeypatch.setattr(baselines, "MAX_WORDS", 7)
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(rows))
    corpus, data = spool_corpus(uri, Store(str(tmp_path)), 15, DATA), make_data(labels)
    contender = baselines.words(corpus, labels, data)
    assert contender.note == "fitted on a stratified sample, 120 of 360 documents that train or validate"
    sample, sampled_texts = baselines._texts_to_fit(corpus, data)
    assert sampled_texts == [texts[row] for row in sample]
    assert contender.predicted.shape == targets[360:].shape
    assert contender.predicted.dtype == targets.dtype
    assert contender.words == 7


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=200), st.integers(8, 250), st.integers(0, 5), st.booleans())
def test_a_sample_is_stratified_and_never_larger_than_its_limit(
    drawn: list[int], most: int, seed: int, multilabel: bool
) -> None:
    """Every class of each split is in the sample in its share; all rows are taken where they fit.

    Its share is rounded up, at the expense of all eight in proportion to their shares.
    """
    label_space = LabelSpace(("a", "b", "c", "d"), multilabel)
    y = np.array(drawn)
    train = np.arange(len(y)) % 5 < 3
    folds = (Fold(np.flatnonzero(train), np.flatnonzero(~train)),)
    data = TrainingData(label_space.indicator(y) if multilabel else y, folds, label_space, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "SAMPLE_ROWS", most)
        sample, again = baselines.rows_to_fit(data), baselines.rows_to_fit(data)
    assert len(sample) == min(most, len(y))
    assert (np.diff(sample) > 0).all()
    for part in (train, ~train):
        counts, sampled = np.bincount(y[part], minlength=4), np.bincount(y[sample[part[sample]]], minlength=4)
        shares = counts / len(y)
        more = sampled - shares * len(sample)
        assert (more < 1).all()
        assert (more >= -8 * shares - 1e-9).all()
    np.testing.assert_array_equal(sample, again)
