"""A cap on leakage: what is chosen, measured and reported, against plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from spin.arrays import Floats
from spin.audit.selection_attack import prepare_attack
from spin.audit.word_recovery import choose_words, content_words
from spin.errors import UserError
from spin.fitted import persistence
from spin.fitted.candidate import Candidate, Subset
from spin.fitted.fitted_classifier import TrainingResult
from spin.heads.selection import Selection
from spin.integrate.frontier import best_per_depth, choose_candidates
from spin.integrate.leakage import (
    Leakage,
    LeakageAttack,
    choose_under_cap,
    decisive_candidates,
    leave_out,
    percent_above,
)
from spin.settings import SearchSettings
from tests.spin.integrate.test_frontier import FIVE_FOLDS, ONE_FOLD, candidate_lists
from tests.spin.integrate.test_search import SEARCH, Project, build_project, make_words

QUICK = SEARCH.model_copy(update={"etas": (0.3, 0.9), "strengths": (1.0,)})
pytestmark = pytest.mark.usefixtures("all_folds", "few_labels")


@pytest.fixture(scope="module")
def few_labels() -> Iterator[None]:
    """Labels are few below 270, as in the tests of the search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.labels.training_data.FEW_LABELS", 270)
        yield


def write_texts(project: Project) -> list[str]:
    """Texts with one word per neuron of every column, where the neuron's value is large for the class of the text."""
    values = np.concatenate([v for _, v in sorted(project.activations.items())], axis=1)
    for label in range(3):
        values[project.y == label] -= values[project.y == label].mean(0)
    large = values / values.std(0) > 1
    words = np.array([f"{'abcdefgh'[k // 12]}{'klmnopqrstuv'[k % 12]}word" for k in range(96)])
    return [" ".join(["the", *words[row]]) for row in large]


def make_attack(project: Project, max_leakage: float = 0.999) -> LeakageAttack:
    texts = write_texts(project)
    capped = SearchSettings(max_leakage=max_leakage)
    attack = prepare_attack(capped, lambda rows: [texts[row] for row in rows.tolist()], project.data)
    assert attack is not None
    return attack


def capped(max_leakage: float | None, **changes: Any) -> SearchSettings:
    return QUICK.model_copy(update={"max_leakage": max_leakage, **changes})


@pytest.fixture(scope="module")
def project(few_labels: None) -> Project:
    return build_project()


@pytest.fixture(scope="module")
def attack(project: Project) -> LeakageAttack:
    return make_attack(project)


@pytest.fixture(scope="module")
def uncapped(project: Project) -> TrainingResult:
    return project.integrate(QUICK)


def same_heads(one: TrainingResult, other: TrainingResult) -> bool:
    """Whether the choices of two trainings read the same neurons with the same weights, bit for bit."""
    return all(
        one.choices[name].selection.rows() == fitted.selection.rows()
        and np.array_equal(one.choices[name].logits(probe), fitted.logits(probe))
        for name, fitted in other.choices.items()
        for probe in [np.random.default_rng(0).normal(size=(9, len(fitted.selection))).astype(np.float32)]
    )


def attack_plainly(project: Project, selection: Selection) -> float:
    """The share of words that a ridge regression recovers, with its penalty by the leave-one-out error of all words."""
    texts, fold = write_texts(project), project.folds[0]
    words = choose_words([texts[row] for row in fold.train], project.y[fold.train], project.label_space)
    presence = np.array([[word in content_words(text) for word in words] for text in texts], float)
    raw = project.read(selection, np.arange(len(texts))).astype(float)
    X = (raw - raw[fold.train].mean(0)) / raw[fold.train].std(0)
    known, targets = X[fold.train], presence[fold.train]
    errors = {}
    for penalty in np.geomspace(1e-5, 1, 11) * known.size:
        ridge = Ridge(penalty)
        fitted = ridge.fit(known, targets).predict(known)
        leverage = np.diag(ridge.fit(known, np.eye(len(known))).predict(known))
        errors[penalty] = np.square((targets - fitted) / (1 - leverage[:, None])).mean()
    best = min(errors, key=lambda penalty: errors[penalty])
    predicted = Ridge(best).fit(known, targets).predict(X[fold.valid])
    hits = 0
    for scores, truth in zip(predicted, presence[fold.valid], strict=True):
        named = np.argsort(-scores)[: int(truth.sum())]
        hits += int(truth[named].sum())
    return float(hits / presence[fold.valid].sum())


@pytest.mark.slow
@hypothesis_settings(max_examples=200, deadline=None)
@given(candidate_lists(), st.data(), st.sampled_from([ONE_FOLD, FIVE_FOLDS]))
def test_measuring_what_could_be_chosen_gives_the_choice_among_all_within_the_cap(
    candidates: list[Candidate], data: st.DataObject, folds: Any
) -> None:
    """Candidates of the same neurons are measured together, so that none that is left out is asked about again."""
    above = {subset: data.draw(st.booleans()) for subset in dict.fromkeys(c.subset for c in candidates)}
    within = [c for c in candidates if not above[c.subset]]
    asked: list[Any] = []

    def is_above(candidate: Candidate) -> bool:
        asked.append(candidate.subset)
        return above[candidate.subset]

    settings = SearchSettings()
    left = leave_out(candidates, lambda some: decisive_candidates(some, folds), is_above)
    refused = [subset for subset in asked if above[subset]]
    assert len(refused) == len(set(refused))
    assert bool(left) == bool(within)
    if within:
        assert choose_candidates(left, settings, folds) == choose_candidates(within, settings, folds)
    assert best_per_depth(leave_out(candidates, best_per_depth, is_above)) == best_per_depth(within)


@pytest.mark.parametrize("eta", [0.01, 0.6, 0.9])
def test_leakage_is_what_a_plain_ridge_regression_recovers(project: Project, attack: LeakageAttack, eta: float) -> None:
    search = project.search(QUICK)
    selection = search.select(Subset(eta, 4))
    expected = attack_plainly(project, selection)
    assert Leakage(search, attack, 0.5).of_selection(selection) == pytest.approx(expected, abs=1e-3)
    if eta > 0.5:
        assert expected > attack.by_frequency + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("most", [0.25, 0.2])
def test_choices_reveal_at_most_the_cap_and_its_price_is_recorded(
    project: Project, attack: LeakageAttack, uncapped: TrainingResult, most: float
) -> None:
    result = project.integrate(capped(most), attack=attack)
    assert result.cap is not None
    assert (result.cap.max_leakage, result.cap.known, result.cap.judged) == (most, 180, 90)
    for name, fitted in result.choices.items():
        assert fitted.summary.leakage == pytest.approx(attack_plainly(project, fitted.selection), abs=1e-3)
        assert fitted.summary.leakage <= most
        free, before = uncapped.choices[name], result.cap.uncapped[name]
        assert before.leakage == pytest.approx(attack_plainly(project, free.selection), abs=1e-3)
        assert before.leakage > most, "otherwise the cap would have nothing to do"
        assert before.valid_score == free.summary.valid_score
        assert before.price == pytest.approx(before.valid_score - fitted.summary.valid_score, abs=2e-4)
        assert before.price > 0.02
    assert len(result.frontier) > 1
    assert all(point.leakage is not None and point.leakage <= most for point in result.frontier)


def count_neurons(known: Floats, judged: Floats) -> float:
    """In place of an attack: the number of values per document, in percent."""
    assert len(known) == 180
    assert len(judged) == 90
    return known.shape[1] / 100


def test_the_choice_is_that_among_all_candidates_of_both_runs(project: Project, attack: LeakageAttack) -> None:
    """With every one of them measured."""
    search = project.search(capped(0.15, etas=(0.1, 0.5, 0.9)))
    search.run()
    found = choose_under_cap(search, replace(attack, recover=count_neurons), 0.15)
    again = project.search(capped(0.15, etas=(0.1, 0.5, 0.9)))
    tried = [*again.run(), *again.below(again.eta_for(15)).run()]
    measured = [replace(c, leakage=len(again.select(c.subset)) / 100) for c in tried]
    within = [c for c in measured if c.leakage is not None and c.leakage <= 0.15]
    assert len(search.tried) < len(within) < len(tried) == found.tried
    assert found.choices == choose_candidates(within, again.settings, project.data.folds)
    assert found.frontier == best_per_depth(within)


@pytest.mark.slow
def test_etas_are_lowered_to_the_most_neurons_within_the_cap(project: Project, attack: LeakageAttack) -> None:
    """And to no fewer."""
    for most, count in ((0.15, 15), (0.05, 5)):
        search = project.search(capped(most))
        first = list(search.run())
        found = choose_under_cap(search, replace(attack, recover=count_neurons), most)
        assert search.tried == first, "the first run is what it was"
        assert all(len(search.select(c.subset)) <= 100 * most for c in found.choices.values())
        seconds = search.below(search.eta_for(count)).run()
        assert found.tried == len(first) + len(seconds)
        assert max(len(search.select(c.subset)) for c in seconds) in (count, count - 1)


def test_each_selection_is_attacked_once_and_few_are(project: Project, attack: LeakageAttack) -> None:
    attacked, steps = [], []

    def recover(known: Floats, judged: Floats) -> float:
        attacked.append(known.tobytes())
        return known.shape[1] / 100

    search = project.search(capped(0.9, etas=(0.3, 0.6, 0.9), strengths=(0.1, 1.0)))
    search.run()
    search.progress = steps.append
    found = choose_under_cap(search, replace(attack, recover=recover), 0.9)
    assert len(set(attacked)) == len(attacked) == sum(steps)
    subsets = {candidate.subset for candidate in search.tried}
    assert found.tried == len(search.tried) > len(subsets) > len(attacked)


def test_a_cap_that_no_choice_exceeds_changes_no_choice(
    project: Project, attack: LeakageAttack, uncapped: TrainingResult
) -> None:
    result = project.integrate(capped(0.4), attack=attack)
    assert same_heads(result, uncapped)
    assert result.tried == uncapped.tried
    assert result.cap is not None
    assert [choice.price for choice in result.cap.uncapped.values()] == [0, 0, 0]


def test_without_a_cap_nothing_is_measured_or_written(
    project: Project, attack: LeakageAttack, uncapped: TrainingResult
) -> None:
    def fail(known: Floats, judged: Floats) -> float:
        raise AssertionError("an attack without a cap")

    result = project.integrate(QUICK, attack=replace(attack, recover=fail))
    assert same_heads(result, uncapped)
    assert result.cap is None
    assert persistence.save(result) == persistence.save(uncapped)
    written = result.summary().model_dump_json() + persistence.save(result)["config.json"].decode()
    assert "leakage" not in written
    assert '"cap"' not in written


def test_words_alone_are_chosen_where_all_neurons_reveal_more(project: Project, attack: LeakageAttack) -> None:
    """They are read openly, and nothing of a document is stored for them: they reveal what their frequency does."""
    always = replace(attack, recover=lambda known, judged: 0.5)
    result = project.integrate(capped(0.2, words="auto"), attack=always, words=make_words(project, 0.5))
    for fitted in result.choices.values():
        assert fitted.summary.neurons == 0
        assert fitted.selection.neurons == {}
        assert fitted.summary.leakage == round(attack.by_frequency, 4)
    assert [point.depth for point in result.frontier] == [0]


def test_a_cap_that_nothing_complies_with_is_an_error_that_names_the_least(
    project: Project, attack: LeakageAttack
) -> None:
    always = replace(attack, recover=lambda known, judged: 0.5 + known.shape[1] / 1000)
    remedy = r"reveal 50\.1 % of the words of a text; set it to 0\.51 or more, or search\.words to auto"
    with pytest.raises(UserError, match=f"search.max_leakage is 0.2, and the neurons that leak least {remedy}"):
        project.integrate(capped(0.2), attack=always)
    assert [percent_above(share) for share in (0.501, 0.5, 0.281, 0.07)] == [0.51, 0.51, 0.29, 0.08]


def test_a_cap_without_an_attack_is_refused(project: Project) -> None:
    with pytest.raises(ValueError, match="search.max_leakage: expected an attack"):
        project.integrate(capped(0.2))
