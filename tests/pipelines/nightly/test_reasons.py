"""Nights that name the reasons of predictions: the words and neurons of `explain`, in columns of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin.classifier import TrainedClassifier
from spin.estimator import SpinClassifier
from spin.fitted.early_exit import EarlyExit
from spin.heads.linear_head import LinearHead
from spin.pages.explanation import stretches
from spin.settings import BackboneSettings, DecisionSettings, SearchSettings
from spin.sites import BY_WORDS
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import NightProject
from tests.support.word_regression import build_word_regression

pytestmark = pytest.mark.slow

SINGLE, MULTI, WORDS = "1", "2", "3"
COLUMNS = ["reason_label", "reason_words", "reason_neurons"]
ROWS = [*tiny.make_documents(38, seed=3), {"id": "odd", "text": "unheard of"}, {"id": "mark", "text": "?"}]


@pytest.fixture(scope="module")
def registry_fixture(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> FolderRegistry:
    """A registry with a version of one class per document, a multi-label one, and one that also exits by words."""
    folder = tmp_path_factory.mktemp("registry")
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    quick = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off", words="off")
    rows = tiny.make_documents(200)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    for number, given in ((SINGLE, labels), (MULTI, [["all", label] for label in labels[:-20]] + [[]] * 20)):
        spin = SpinClassifier(settings, sites=["ffn.01", "resid.03"], search=quick)
        spin.fit(texts, given).save(folder / number)
    single = TrainedClassifier.load(folder / SINGLE)
    exit = EarlyExit(BY_WORDS, LinearHead(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)), 0.8)
    result = single.training_result
    choices = {name: replace(fitted, exits=(exit,)) for name, fitted in result.choices.items()}
    result = replace(result, choices=choices, words=build_word_regression(texts, classes=2))
    TrainedClassifier(single.settings, single.backbone_digest, single.label_space, result, single.metric).save(
        folder / WORDS
    )
    return FolderRegistry(folder)


@pytest.fixture
def project(project: NightProject) -> NightProject:
    project.write("a.jsonl", [*ROWS, {"id": "dead", "text": " "}])
    return project


def check_reasons(rows: Sequence[dict[str, Any]], spin: TrainedClassifier, count: int) -> None:
    """The rows of `ROWS` have the largest contributions of `explain`, each with its own value."""
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    for row, text in zip(rows, (row["text"] for row in ROWS), strict=True):
        explanation = spin.explain(text)
        assert row["reason_label"] == explanation.label
        k = explanation.classes.index(explanation.label)
        by_word = {
            (text[start:end], start, end): explanation.word_contributions[indices, k].sum()
            for start, end, indices in stretches(explanation.words)
        }
        of_neurons = zip(explanation.neurons, explanation.contributions[:, k], strict=True)
        by_neuron = {(str(column), neuron): value for (column, neuron), value in of_neurons}
        for name, keys, expected in (
            ("reason_words", ("word", "start", "end"), by_word),
            ("reason_neurons", ("column", "neuron"), by_neuron),
        ):
            found = [reason["contribution"] for reason in row[name]]
            largest = sorted((abs(value) for value in expected.values() if value != 0), reverse=True)[:count]
            np.testing.assert_allclose(np.abs(found), largest, atol=1e-4, err_msg=text)
            named = [expected[tuple(reason[key] for key in keys)] for reason in row[name]]
            np.testing.assert_allclose(found, named, atol=1e-4, err_msg=text)


def load(project: NightProject, number: str, **options: Any) -> TrainedClassifier:
    return TrainedClassifier.load(project.registry_fixture.folder / number, early=True, **options)


@pytest.mark.parametrize("shadow", [None, f"models:/tiny/{WORDS}"])
def test_predictions_have_the_reasons_of_an_explanation(project: NightProject, shadow: str | None) -> None:
    """Also with a shadow on the same backbone."""
    report = project.run_night(shadow=shadow, max_dead_fraction=0.5, reasons=2)
    rows = project.read_rows()
    check_reasons(rows, load(project, SINGLE), 2)
    assert (report.shadow is None) == (shadow is None)
    assert all(row["label"] == row["reason_label"] for row in rows)


def test_nights_with_and_without_reasons_are_in_one_table(project: NightProject) -> None:
    project.run_night(date="2026-02-28", max_dead_fraction=0.5)
    project.run_night(max_dead_fraction=0.5, reasons=1)
    check_reasons(project.read_rows(), load(project, SINGLE), 1)
    rows = project.read_rows(date="2026-02-28")
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert all(row[column] is None for row in rows for column in COLUMNS)


def test_a_row_without_a_label_has_the_reasons_of_the_one_that_it_would_have(project: NightProject) -> None:
    certainty = load(project, SINGLE).predict_proba([row["text"] for row in ROWS]).max(axis=1)
    abstain = float(np.quantile(certainty, 0.5, method="midpoint"))
    project.run_night(max_dead_fraction=0.5, reasons=2, set=(f"decision.abstain={abstain}",))
    rows = project.read_rows()
    assert 0 < sum(row["label"] is None for row in rows) < len(rows)
    check_reasons(rows, load(project, SINGLE, decision=DecisionSettings(abstain=abstain)), 2)


def test_the_reasons_of_a_multi_label_row_are_those_of_its_likeliest_label(project: NightProject) -> None:
    """Or of the likeliest class where no label is predicted."""
    project.promote(MULTI)
    project.run_night(max_dead_fraction=0.5, reasons=2)
    rows = project.read_rows()
    check_reasons(rows, load(project, MULTI), 2)
    for row in rows:
        scores = dict(row["scores"])
        assert row["reason_label"] == max(row["labels"] or scores, key=scores.__getitem__)
    assert any(len(row["labels"]) > 1 for row in rows)


def test_documents_that_words_decide_have_words_alone(project: NightProject) -> None:
    project.promote(WORDS)
    project.run_night(max_dead_fraction=0.5, reasons=2)
    rows = project.read_rows()
    check_reasons(rows, load(project, WORDS), 2)
    decided = [row["depth"] == BY_WORDS for row in rows]
    assert {*decided} == {True, False}
    assert [row["reason_neurons"] == [] for row in rows] == decided


def test_documents_that_no_exit_is_sure_of_can_have_reasons_alone(project: NightProject) -> None:
    """They have those that they have in a night of which all documents have reasons; the others have none."""
    project.promote(WORDS)
    project.run_night(date="2026-02-28", max_dead_fraction=0.5, reasons=2)
    project.run_night(max_dead_fraction=0.5, reasons=2, set=("classify.reasons_for=unsure",))
    of_all, rows = project.read_rows(date="2026-02-28"), project.read_rows()
    assert {row["depth"] == BY_WORDS for row in rows} == {True, False}
    for row, explained in zip(rows, of_all, strict=True):
        expected = dict.fromkeys(COLUMNS) if row["depth"] == BY_WORDS else {name: explained[name] for name in COLUMNS}
        assert {name: row[name] for name in COLUMNS} == expected
