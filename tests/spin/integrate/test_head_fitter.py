"""Heads that are fitted again on all labelled rows, after a sample of them has made the choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import spin.heads.feature_rows
from spin.arrays import Floats, Rows
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.calibration import calibration_error, log_loss
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.integrate.head_fitter import HeldBack, refit
from spin.integrate.search import Search
from spin.labels.cross_validation import Fold
from spin.labels.metrics import score
from spin.labels.training_data import TrainingData
from spin.settings import CascadeSettings, ProbeSettings
from spin.sparsify.probe import fit_probes
from spin.sparsify.ridge import fit_ridge
from tests.spin.integrate.test_search import (
    SEARCH,
    Project,
    build_interaction_project,
    build_project,
    make_words,
)

CASCADE = CascadeSettings(max_loss=0.9, depths=(0.25, 0.5), words=False)


def sampled(project: Project) -> TrainingData:
    """Data whose folds are those of the project, and whose further rows are its test rows."""
    return replace(project.data, not_sampled=np.sort(project.test))


def train(project: Project, **changes: object) -> TrainingResult:
    return project.integrate(SEARCH.model_copy(update=changes), cascade=CASCADE)


def heads(fitted: FittedClassifier) -> list[LinearHead]:
    assert isinstance(fitted.head, LinearHead)
    return [*(exit.head for exit in fitted.exits), fitted.head]


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_all_heads_are_fitted_on_all_rows_and_nothing_else_changes(kind: str) -> None:
    project = build_project(kind=kind, n=1200, signal=0.6)
    before = train(project)
    after = refit(before, project.probes, project.read_blocks, sampled(project))
    for choice, fitted in before.choices.items():
        again = after.choices[choice]
        assert again.selection.rows() == fitted.selection.rows()
        assert again.summary == fitted.summary
        assert [(exit.depth, exit.threshold) for exit in again.exits] == [(e.depth, e.threshold) for e in fitted.exits]
        for one, other in zip(heads(fitted), heads(again), strict=True):
            assert 0.005 < np.abs(one.coef - other.coef).max() < 0.5, "close to the heads of the sample, but others"
    fitted = after.choices["accuracy"]
    assert fitted.exits
    assert fitted.recipe is not None
    rows = np.arange(len(project.y))
    strength, stack = fitted.recipe.head.strength, fitted.recipe.head.stack
    scaled_on = project.folds[0].train
    neurons = project.refit(fitted.selection, scaled_on, rows, rows, strength)
    expected = stack.logits({"neurons": neurons})
    actual = fitted.logits(project.read(fitted.selection, rows))
    probabilities = [project.label_space.probabilities(logits) for logits in (actual, expected)]
    np.testing.assert_allclose(*probabilities, atol=0.05)


def test_without_further_rows_the_heads_are_those_that_were_there() -> None:
    """Reading the rows in other blocks, or from a file, changes nothing either."""
    project = build_project(n=800)
    before = train(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spin.heads.feature_rows, "MOST_IN_MEMORY", 0)
        after = refit(before, project.probes, project.read_blocks, project.data)
    for one, other in zip(before.choices.values(), after.choices.values(), strict=True):
        for own, again in zip(heads(one), heads(other), strict=True):
            np.testing.assert_allclose(own.coef, again.coef, atol=1e-3)


@pytest.fixture(autouse=True)
def few_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred rows are enough."""
    monkeypatch.setattr("spin.labels.training_data._LEAST_HELD_BACK", 500)


def build_sampled_project() -> tuple[Project, Project]:
    """A project of 9,000 documents whose folds hold 330 of them, and the same with its test documents apart."""
    whole = build_project(n=9000, signal=0.3)
    rows = np.concatenate([whole.folds[0].train, whole.folds[0].valid])
    folds = [Fold(np.sort(rows[:250]), np.sort(rows[250:330]))]
    data = TrainingData(whole.y, tuple(folds), whole.label_space, "accuracy")
    ridge, _ = fit_ridge(lambda column, rows: whole.activations[column][rows], list(whole.activations), data)
    probes = fit_probes(whole.activations, data, ProbeSettings(penalties=5))
    return replace(whole, folds=folds, probes=probes, ridge=ridge), whole


@pytest.mark.slow
@pytest.mark.parametrize("network", ["off", "auto"])
def test_rows_that_are_held_back_calibrate_heads_of_more_rows_than_chose_them(network: str) -> None:
    """The stack of the sample is made for heads that overfit; on twenty times the rows it is underconfident."""
    sample, whole = build_sampled_project()
    settings = SEARCH.model_copy(update={"network": network, "max_share": 1, "etas": (1.0,), "strengths": (10.0,)})
    chosen = sample.integrate(settings, words=make_words(sample, 0.3), cascade=CASCADE)
    outside = np.setdiff1d(np.concatenate([whole.folds[0].train, whole.folds[0].valid]), sample.data.rows)
    data, rows = replace(sample.data, not_sampled=outside).hold_back()
    assert len(rows) == 642
    draw = np.random.default_rng(3)
    of_words = (0.3 * whole.label_space.indicator(whole.y) + draw.normal(size=(len(whole.y), 3))).astype(np.float32)
    held_back = HeldBack(rows, of_words[rows])
    losses, errors, exit_losses = [], [], []
    for evidence in (None, held_back):
        result = refit(chosen, sample.probes, sample.read_blocks, data, make_words(sample, 0.3), held_back=evidence)
        fitted, y = result.choices["accuracy"], whole.y[whole.test]
        features = whole.read(replace(fitted.selection, word_logits=0), whole.test)
        if fitted.selection.word_logits:
            features = np.concatenate([of_words[whole.test], features], axis=1)
        logits = fitted.logits(features)
        losses.append(log_loss(logits, y, whole.label_space))
        errors.append(calibration_error(whole.label_space.probabilities(logits), y, whole.label_space))
        assert (fitted.summary.shares == chosen.choices["accuracy"].summary.shares) == (evidence is None)
        of_exit = fitted.at(0).logits(fitted.read_at(0, features, of_words[whole.test]))
        exit_losses.append(log_loss(of_exit, y, whole.label_space))
    assert exit_losses[1] < exit_losses[0] - 0.005
    assert losses[1] < losses[0] - 0.005
    assert errors[1] < 0.03 < errors[0]


def test_words_keep_their_weight() -> None:
    """The neurons' coefficients are new; those of the words are the same, because validation chose their weight."""
    project = build_project(n=1200, signal=0.5)
    words = make_words(project, 1.0)
    before = project.integrate(SEARCH.model_copy(update={"words": "on"}), words=words, cascade=CASCADE)
    after = refit(before, project.probes, project.read_blocks, sampled(project), words)
    fitted, again = before.choices["accuracy"], after.choices["accuracy"]
    assert fitted.selection.word_logits == again.selection.word_logits == 3
    for one, other in zip(heads(fitted), heads(again), strict=True):
        np.testing.assert_allclose(one.coef[:, :3], other.coef[:, :3], rtol=1e-5)
        assert np.abs(one.coef[:, 3:] - other.coef[:, 3:]).max() > 0.001


def test_the_exit_by_words_stays_as_it_is() -> None:
    """The word regression is not fitted again, so neither is the calibration of its logits."""
    project = build_project(n=1200, signal=0.5)
    words = make_words(project, 1.0)
    cascade = CascadeSettings(max_loss=0.9, depths=(0.5,))
    before = project.integrate(SEARCH.model_copy(update={"words": "on"}), words=words, cascade=cascade)
    after = refit(before, project.probes, project.read_blocks, sampled(project), words)
    one, other = (result.choices["accuracy"].words_exit for result in (before, after))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.head.coef, other.head.coef)
    assert (one.threshold, before.words) == (other.threshold, after.words)


def test_words_alone_need_no_rows() -> None:
    project = build_project(n=600, signal=0.0)
    words = make_words(project, 3.0)
    before = project.integrate(SEARCH.model_copy(update={"cheapest_loss": 0.1}), words=words, cascade=CASCADE)
    alone = {choice: fitted for choice, fitted in before.choices.items() if not fitted.selection.neurons}
    assert alone

    def read(selection: Selection, rows: Rows) -> Iterator[Floats]:
        assert selection.neurons
        return project.read_blocks(selection, rows)

    after = refit(replace(before, choices=alone), project.probes, read, sampled(project), words)
    for choice, fitted in alone.items():
        np.testing.assert_array_equal(heads(fitted)[-1].coef, heads(after.choices[choice])[-1].coef)


@pytest.mark.slow
def test_a_network_is_fitted_for_the_epochs_that_validation_chose() -> None:
    project = build_interaction_project(n=1200)
    before = train(project, network="auto", max_share=1.0, etas=(1.0,))
    after = refit(before, project.probes, project.read_blocks, sampled(project))
    fitted, again = before.choices["accuracy"], after.choices["accuracy"]
    assert fitted.recipe is not None
    assert fitted.recipe.head.epochs
    raw = project.read(fitted.selection, project.test)
    predicted = [project.label_space.predict(each.logits(raw)) for each in (fitted, again)]
    assert score("accuracy", predicted[0], predicted[1]) > 0.9
    assert np.abs(fitted.logits(raw) - again.logits(raw)).max() > 0.01


@pytest.mark.slow
def test_more_labels_make_better_heads() -> None:
    """Choices by 300 documents, heads by 3,000: further documents are predicted better than by the heads of the 300."""
    gains = []
    for seed in range(3):
        project = build_project(seed=seed, n=4300, signal=0.35)
        few = project.folds[0]
        folds = (replace(few, train=few.train[:200], valid=few.valid[:100]),)
        rest = np.setdiff1d(np.arange(3000), np.concatenate([folds[0].train, folds[0].valid]))
        small = replace(project, folds=folds)
        before = train(small)
        unseen = np.setdiff1d(np.arange(3000, 4300), np.concatenate([folds[0].train, folds[0].valid]))
        after = refit(before, small.probes, small.read_blocks, replace(small.data, not_sampled=rest))
        correct = [
            score("accuracy", project.y[unseen], project.label_space.predict(fitted.logits(raw)))
            for fitted in (before.choices["accuracy"], after.choices["accuracy"])
            for raw in [project.read(fitted.selection, unseen)]
        ]
        gains.append(correct[1] - correct[0])
    assert min(gains) > 0.0


def test_the_features_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search reads the rows of all folds, rules and candidates at once; so does the refit those of all choices."""
    project, reads, read_blocks = build_project(folds=3), [], Project.read_blocks

    def read(selection: Selection, rows: Rows) -> Iterator[Floats]:
        reads.append((len(selection), len(rows)))
        return read_blocks(project, selection, rows)

    monkeypatch.setattr(Project, "read_blocks", lambda project, *args: read(*args), raising=True)
    search: Search = project.search()
    search.run()
    assert reads == [(len(search.cut.selection), len(project.data.rows))]
