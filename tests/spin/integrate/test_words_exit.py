"""The exit by words in training: when it is offered, what it costs, what it may lose, and what is kept for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import spin.integrate.integrate
from spin.fitted.fitted_classifier import TrainingResult
from spin.heads.stack import fit_stack
from spin.integrate.exit_thresholds import READING_COST, WORDS_COST
from spin.integrate.search import Search
from spin.labels.metrics import score
from spin.settings import CascadeSettings, SearchSettings
from spin.sites import BY_WORDS
from tests.spin.integrate.test_search import SEARCH, Project, build_project, make_words

pytestmark = pytest.mark.usefixtures("all_folds", "few_labels")
ONE = SEARCH.model_copy(update={"etas": (0.6,), "strengths": (1,)})
CASCADE = CascadeSettings(max_loss=0.02, depths=(0.5,))


@pytest.fixture
def few_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are few below 270."""
    monkeypatch.setattr("spin.labels.training_data.FEW_LABELS", 270)


@pytest.fixture
def neurons_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No candidate reads words, so that only an exit can."""
    monkeypatch.setattr(
        Search, "_stacks", lambda search, held_out: [search.fit_stack(search.sources(held_out, words=False))]
    )
    monkeypatch.setattr(Search, "_try_words_alone", lambda *_: None)


def train(project: Project, signal: float, cascade: CascadeSettings = CASCADE, **changes: Any) -> TrainingResult:
    settings: SearchSettings = ONE.model_copy(update=changes)
    return project.integrate(settings, words=make_words(project, signal), cascade=cascade)


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_exit_has_the_calibrated_logits_of_the_words(neurons_alone: None, kind: str, class_weights: str) -> None:
    """Of its held-out logits, whatever the head reads; it keeps the regression, whose logits are no features."""
    project = build_project(kind=kind, n=900)
    data = replace(project.data, class_weights=class_weights)
    words, cascade = make_words(project, 4.0), CASCADE.model_copy(update={"max_loss": 0.5})
    options: Any = {"settings": ONE, "compute": project.search().compute, "cascade": cascade, "words": words}
    result = spin.integrate.integrate.integrate(project.probes, project.ridge, project.read_blocks, data, **options)
    fitted = result.choices["accuracy"]
    assert fitted.selection.word_logits == 0
    assert result.words is words.regression
    exit = fitted.words_exit
    assert exit is not None
    held_out, y = np.concatenate(words.held_out), project.y[np.concatenate([fold.valid for fold in project.folds])]
    calibrated = fit_stack({"words": held_out}, y, project.label_space).logits({"words": held_out})
    np.testing.assert_allclose(fitted.at(0).logits(held_out), calibrated, rtol=1e-4, atol=1e-4)
    [summary, *_] = fitted.summary.exits
    confident = confidences(project, calibrated) >= exit.threshold
    assert (summary.depth, summary.valid_share) == (
        BY_WORDS,
        pytest.approx(confident.mean(), abs=0.006),
    )  # one at the threshold


def confidences(project: Project, logits: Any) -> Any:
    """One document after another."""
    return np.array(
        [
            min(abs(2 * p - 1) for p in row) if project.label_space.multilabel else sorted(row)[-1] - sorted(row)[-2]
            for row in project.label_space.probabilities(logits).tolist()
        ]
    )


@pytest.mark.parametrize("reads_words", [False, True])
def test_words_cost_where_the_head_does_not_read_them_anyway(
    reads_words: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reads_words:
        request.getfixturevalue("neurons_alone")
    seen: list[Any] = []
    choose = spin.integrate.integrate.choose_exit_thresholds
    monkeypatch.setattr(
        spin.integrate.integrate, "choose_exit_thresholds", lambda *a, **k: seen.append((a[0], k)) or choose(*a, **k)
    )
    project = build_project(n=600)
    fitted = train(project, 1.0, words="on").choices["accuracy"]
    assert bool(fitted.selection.word_logits) == reads_words
    cost, full = 0.0 if reads_words else WORDS_COST, fitted.summary.compute
    offers, options = seen[0]
    assert [offer.cost for offer in offers] == pytest.approx([cost, READING_COST + 2 / 4 + 1 / 8], abs=1e-3)
    assert [offer.passing for offer in offers] == pytest.approx([cost, 0.03 * full], abs=1e-3)
    assert options["cost"] == pytest.approx(READING_COST + full, abs=1e-3)


@pytest.mark.parametrize("max_loss", [0.02, 0.05])
def test_what_leaves_by_words_loses_no_more_than_allowed(max_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the held-out documents that chose the thresholds, one after another."""
    seen: list[Any] = []
    choose = spin.integrate.integrate.choose_exit_thresholds
    monkeypatch.setattr(
        spin.integrate.integrate, "choose_exit_thresholds", lambda *a, **k: seen.append(a) or choose(*a, **k)
    )
    project = build_project(n=1200, signal=0.5)
    fitted = train(project, 3.0, CascadeSettings(max_loss=max_loss, depths=(0.5,))).choices["accuracy"]
    assert fitted.words_exit is not None
    offered, final, y, _ = seen[0]
    thresholds = {exit.depth: exit.threshold for exit in fitted.exits}
    given = []
    for row in range(len(y)):
        logits = final[row]
        for depth, of_exit in reversed([*zip((BY_WORDS, 2), offered, strict=True)]):
            second, first = np.sort(project.label_space.probabilities(of_exit.logits[row : row + 1])[0])[-2:]
            if first - second >= thresholds.get(depth, 2.0):
                logits = of_exit.logits[row]
        given.append(int(logits.argmax()))
    lost = score("accuracy", y, final.argmax(1)) - score("accuracy", y, np.array(given))
    assert lost <= max_loss + 1e-9


@pytest.mark.parametrize(
    ("signal", "cascade"),
    [
        (0.0, CASCADE),
        (4.0, CASCADE.model_copy(update={"words": False})),
        (4.0, CASCADE.model_copy(update={"max_loss": 0.0})),
    ],
    ids=["words that show nothing", "cascade.words off", "no loss allowed"],
)
def test_an_exit_that_none_takes_leaves_nothing_behind(
    neurons_alone: None, signal: float, cascade: CascadeSettings
) -> None:
    """Neither an exit nor the regression, which nothing else reads."""
    result = train(build_project(n=600), signal, cascade)
    assert all(fitted.words_exit is None for fitted in result.choices.values())
    assert BY_WORDS not in {exit.depth for fitted in result.choices.values() for exit in fitted.summary.exits}
    assert result.words is None


def test_words_alone_have_no_exit_of_their_own() -> None:
    result = train(build_project(n=600, signal=0.0), 4.0)
    alone = [fitted for fitted in result.choices.values() if not fitted.selection.neurons]
    assert alone
    assert all(fitted.exits == () for fitted in alone)
