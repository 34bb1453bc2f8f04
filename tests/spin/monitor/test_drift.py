"""Profiles of documents, and drift: more change than is allowed and more than chance explains."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from scipy.optimize import brentq
from scipy.stats import entropy

from spin.activations.features import Features
from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier
from spin.fitted.held_out import HeldOutLogits
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.monitor import drift_statistics
from spin.monitor.drift import SIGNIFICANCE, Drift, stability, stability_limit
from spin.monitor.drift_statistics import SCORES, STATISTICS, Distribution, NeuronMeans, Outcomes, Sums
from spin.monitor.profile import Profile
from spin.settings import DecisionSettings
from spin.sites import BY_WORDS, FeatureColumn
from tests.support.summaries import build_choice_summary

COLUMN = FeatureColumn.parse("ffn.01.mean")
NEURONS = 40
MEANS = NeuronMeans()
BINARY = LabelSpace(("bad", "good"), False)
SELECTION = Selection({COLUMN: np.arange(NEURONS)}, {COLUMN: np.ones(NEURONS)}, 0.9)


def make_fitted() -> FittedClassifier:
    draw = np.random.default_rng(0)
    head = LinearHead(draw.normal(size=(1, NEURONS)), np.zeros(1))
    standardizer = Standardizer(draw.normal(size=NEURONS), draw.uniform(0.5, 2, NEURONS))
    return FittedClassifier(SELECTION, standardizer, head, build_choice_summary())


def make_outputs(
    count: int, seed: int = 0, *, shift: float = 0.0, good: float = 0.4, length: int = 40, unknown: float = 0.2
) -> dict[str, Any]:
    """Return a classifier's outputs for random documents; `shift` moves one neuron by that many standard deviations.

    `unknown` is the share of the documents with unknown tokens.
    """
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, NEURONS)).astype(np.float32)
    values[:, 3] += shift
    margin = draw.gamma(2, size=count) * np.where(draw.random(count) < good, 1, -1)
    n_tokens = draw.poisson(length, count).astype(np.int32) + 2
    n_unknown = ((draw.random(count) < unknown) * (n_tokens // 10)).astype(np.int32)
    return {
        "logits": np.stack([-margin / 2, margin / 2], 1),
        "activations": values,
        "features": Features({}, n_tokens, n_unknown, np.zeros(count, np.bool_)),
    }


def make_profile(outputs: dict[str, Any]) -> Profile:
    return Profile.from_outputs(BINARY, make_fitted(), **outputs)


def measure(now: Profile, then: Profile, selection: Selection, allowed: float) -> list[Drift]:
    return now.drift_from(then, selection, allowed)


def take_rows(outputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    features = outputs["features"]
    selected = Features({}, features.n_tokens[rows], features.n_unknown[rows], features.cut[rows])
    return {name: value[rows] for name, value in outputs.items() if name != "features"} | {"features": selected}


def drifted_properties(**changes: Any) -> set[str]:
    """Return the properties that have drifted in 3,000 documents, compared with 2,000."""
    drifts = measure(make_profile(make_outputs(3000, 1, **changes)), make_profile(make_outputs(2000)), SELECTION, 0.1)
    return {drift.name for drift in drifts if drift.drifted}


@given(st.lists(st.integers(0, 300), max_size=4))
def test_profiles_of_parts_add_up(cuts: list[int]) -> None:
    """However documents are divided over shards, empty ones included, the sum is the profile of all documents."""
    outputs, borders = make_outputs(300), [0, *sorted(cuts), 300]
    parts = [make_profile(take_rows(outputs, slice(a, b))) for a, b in pairwise(borders)]
    total = parts[0]
    for next_part in parts[1:]:
        total = total + next_part
    for name, value in make_profile(outputs).sums.items():
        np.testing.assert_allclose(total.sums[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_profile_equals_a_plain_loop() -> None:
    outputs = make_outputs(300)
    counted, features, scale = make_profile(outputs), outputs["features"], make_fitted().standardizer
    assert counted.documents == 300
    good = sum(bad < good for bad, good in outputs["logits"].tolist())
    assert counted.sums["labels"].tolist() == [300 - good, good, 0]
    aligned = (outputs["activations"] - scale.mean) / scale.scale
    np.testing.assert_allclose(MEANS.means(counted.sums), aligned.mean(0), atol=1e-5)
    np.testing.assert_allclose(MEANS.deviations(counted.sums), aligned.std(0), rtol=1e-5)
    shares = [u / n for u, n in zip(features.n_unknown.tolist(), features.n_tokens.tolist(), strict=True)]
    assert counted.sums["unknown"].tolist() == [
        sum(low < share <= high for share in shares)
        for low, high in ((-1, 0), (0, 0.01), (0.01, 0.05), (0.05, 0.2), (0.2, 1))
    ]
    largest = [math.exp(max(row)) / sum(map(math.exp, row)) for row in outputs["logits"].tolist()]
    assert counted.sums["scores"].sum() == counted.sums["lengths"].sum() == 300
    assert counted.sums["scores"][:10].sum() == 0
    assert counted.sums["scores"][10:12].sum() == sum(share <= 0.6 for share in largest)


def test_documents_that_the_heads_learned_are_no_reference_for_predictions() -> None:
    """The heads are surer of them than of others, which is no drift; what was read of them is compared."""
    outputs = make_outputs(2000, 1)
    surer = Profile.from_outputs(BINARY, make_fitted(), **outputs | {"logits": 5 * outputs["logits"]}, learned=True)
    found = measure(make_profile(make_outputs(2000, 2)), surer, make_fitted().selection, 0.1)
    assert {drift.name for drift in found} == {"lengths", "unknown", "neurons"}
    assert not any(drift.drifted for drift in found)


def test_a_multilabel_profile_counts_every_label() -> None:
    """One document has both classes and two have none."""
    label_space = LabelSpace(("a", "b"), True)
    counted = Profile.from_outputs(
        label_space,
        make_fitted(),
        np.array([[1.0, 2.0], [-1.0, -2.0], [-3.0, -1.0]]),
        np.zeros((3, NEURONS), np.float32),
        Features({}, np.ones(3, np.int32), np.zeros(3, np.int32), np.zeros(3, np.bool_)),
    )
    assert counted.sums["labels"].tolist() == [1, 1, 2]


def test_a_reference_follows_the_decision_of_a_night() -> None:
    """Documents within the abstention band go on to later exits; a plain loop finds where each stops."""
    draw, no_head = np.random.default_rng(0), LinearHead(np.zeros((1, 0)), np.zeros(1))
    exits = (EarlyExit(BY_WORDS, no_head, 0.6), EarlyExit(1, no_head, 0.8))
    held_out = HeldOutLogits(draw.normal(size=(3, 300, 2)).astype(np.float32), np.zeros(300, np.int64))
    reference, seen = make_profile(make_outputs(20)), []
    for abstain in (0.0, 0.7):
        profile = reference.under(held_out, exits, Decision.of(BINARY, DecisionSettings(abstain=abstain)))
        stops, labels, scores = np.zeros(3, int), np.zeros(3, int), np.zeros(len(SCORES) + 1, int)
        for document in range(300):
            for at, threshold in enumerate((0.6, 0.8, 0.0)):
                first, second = BINARY.probabilities(held_out.logits[at][document : document + 1])[0]
                if at == 2 or abs(first - second) >= max(threshold, abstain):
                    stops[at] += 1
                    labels[int(second > first)] += 1
                    scores[np.searchsorted(SCORES, max(first, second))] += 1
                    break
        np.testing.assert_array_equal(profile.sums["exits"], stops)
        np.testing.assert_array_equal(profile.sums["labels"], labels)
        np.testing.assert_array_equal(profile.sums["scores"], scores)
        np.testing.assert_array_equal(profile.sums["lengths"], reference.sums["lengths"])
        seen.append(stops[0])
    assert seen[1] < seen[0]


def test_a_profile_is_restored_from_bytes() -> None:
    counted = make_profile(make_outputs(20))
    restored = Profile.from_bytes(save_tensors(dict(counted.sums)))
    assert restored.sums.keys() == counted.sums.keys()
    for name, value in counted.sums.items():
        np.testing.assert_array_equal(restored.sums[name], value)
    with pytest.raises(UserError, match="not a profile of documents"):
        Profile.from_bytes(b"something else")


@pytest.mark.parametrize("words", [0, 2])
def test_documents_that_words_decide_count_for_labels_scores_and_exits_alone(words: int) -> None:
    """Tokens and neurons are those of the other documents; the words' logits are those of all."""
    outputs, depth = make_outputs(300), np.random.default_rng(0).choice([BY_WORDS, 1], 300)
    selection = Selection(
        {COLUMN: np.arange(NEURONS - words)}, {COLUMN: np.ones(NEURONS - words)}, 0.9, word_logits=words
    )
    head = LinearHead(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    fitted = replace(make_fitted(), selection=selection, exits=(EarlyExit(BY_WORDS, head, 0.9),))
    values = outputs["activations"].copy()
    values[depth == BY_WORDS, words:] = np.nan
    features = replace(outputs["features"], depth=depth.astype(np.int32))
    counted = Profile.from_outputs(BINARY, fitted, outputs["logits"], values, features)
    of_night = Profile.from_outputs(BINARY, fitted, outputs["logits"], outputs["activations"], features)
    read = [row for row in range(300) if depth[row] != BY_WORDS]
    for profile in (counted, of_night):  # a reference has the values of all documents
        assert profile.documents == 300
        assert profile.sums["lengths"].sum() == profile.sums["unknown"].sum() == len(read)
        of_read = make_profile(take_rows(outputs, np.array(read)))  # type: ignore[arg-type]
        assert profile.sums["lengths"].tolist() == of_read.sums["lengths"].tolist()
        assert profile.sums["exits"].tolist() == [300 - len(read), len(read)]
        assert profile.sums["read"].tolist() == [300] * words + [len(read)] * (NEURONS - words)
        aligned = (outputs["activations"] - fitted.standardizer.mean) / fitted.standardizer.scale
        np.testing.assert_allclose(MEANS.means(profile.sums)[words:], aligned[read][:, words:].mean(0), atol=1e-5)
        np.testing.assert_allclose(MEANS.deviations(profile.sums)[words:], aligned[read][:, words:].std(0), rtol=1e-5)
        np.testing.assert_allclose(MEANS.means(profile.sums)[:words], aligned[:, :words].mean(0), atol=1e-5)


@pytest.mark.parametrize(("share", "drifted"), [(0.5, False), (0.9, True), (0.1, True)])
def test_a_changed_share_of_documents_that_words_decide_is_drift(share: float, drifted: bool) -> None:
    """Of nothing else, since the documents are the same."""

    def profile(count: int, seed: int, by_words: float) -> Profile:
        outputs, draw = make_outputs(count, seed), np.random.default_rng(seed)
        depth = np.where(draw.random(count) < by_words, BY_WORDS, SELECTION.depth).astype(np.int32)
        head = LinearHead(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
        fitted = replace(make_fitted(), exits=(EarlyExit(BY_WORDS, head, 0.9),))
        features = replace(outputs["features"], depth=depth)
        return Profile.from_outputs(BINARY, fitted, outputs["logits"], outputs["activations"], features)

    drifts = measure(profile(3000, 1, share), profile(2000, 0, 0.5), SELECTION, 0.1)
    assert {drift.name for drift in drifts if drift.drifted} == ({"exits"} if drifted else set())
    assert "exits" in {drift.name for drift in drifts}
    nobody = measure(profile(3000, 1, 1.0), profile(2000, 0, 0.5), SELECTION, 0.1)
    assert {drift.name for drift in nobody} == {"labels", "exits", "scores", "neurons"}
    assert nobody[-1].now == (0, 0), "no neuron was read"


def test_labels_of_a_multilabel_task_are_judged_by_the_number_of_documents() -> None:
    """Labels of one document are no independent draws: the limit is that of as many documents."""
    counted = make_profile(make_outputs(300))
    many = Profile({**counted.sums, "labels": np.array([290, 280, 0])})
    drifts = {drift.name: drift.limit for drift in measure(many, many, SELECTION, 0.1)}
    assert drifts["labels"] == stability_limit(2, 300, 300, 0.1)


def test_the_stability_index_is_the_symmetric_divergence() -> None:
    draw = np.random.default_rng(0)
    current, reference = draw.integers(100, 1000, (2, 12))
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (current, reference))
    assert stability(current, reference) == pytest.approx(entropy(p, q) + entropy(q, p))
    assert stability(current, reference) == stability(reference, current)
    assert stability(current, current) == 0
    assert np.isfinite(stability(np.array([5, 0]), np.array([0, 5])))


@pytest.mark.parametrize(("n", "m"), [(150, 500), (2000, 4000), (1_000_000, 4000)])
def test_the_limit_holds_for_few_and_for_many_documents(n: int, m: int) -> None:
    """Warnings are rare where shares moved by exactly what is allowed, and certain where they moved by far more."""
    draw = np.random.default_rng(n)
    base = draw.dirichlet(np.full(10, 4.0))

    def move_shares(strength: float) -> NDArray[np.floating]:
        shares = base * np.exp(strength * np.linspace(-1, 1, 10))
        return shares / shares.sum()

    def divergence(strength: float) -> float:
        return float(entropy(move_shares(strength), base) + entropy(base, move_shares(strength)))

    def warning_rate(strength: float, tries: int = 600) -> float:
        limit = stability_limit(10, n, m, 0.1)
        pairs = zip(draw.multinomial(n, move_shares(strength), tries), draw.multinomial(m, base, tries), strict=True)
        return float(np.mean([stability(current, reference) > limit for current, reference in pairs]))

    allowed = brentq(lambda s: divergence(s) - 0.1, 0.01, 4)
    assert warning_rate(0) == 0
    assert warning_rate(allowed) < 4 * SIGNIFICANCE
    assert warning_rate(brentq(lambda s: divergence(s) - 1, 0.01, 6)) > 0.9


def test_each_property_drifts_independently() -> None:
    assert drifted_properties() == set()
    assert drifted_properties(good=0.75) == {"labels"}
    assert drifted_properties(length=90) == {"lengths"}
    assert drifted_properties(unknown=0.5) == {"unknown"}
    assert drifted_properties(shift=0.6) == {"neurons"}
    assert drifted_properties(shift=0.1, good=0.45, length=41) == set()


def test_drift_names_the_neuron_that_moved() -> None:
    drifts = measure(make_profile(make_outputs(3000, 1, shift=2)), make_profile(make_outputs(2000)), SELECTION, 0.1)
    neurons = drifts[-1]
    assert neurons.now == (1, NEURONS - 1)
    assert (neurons.moved[0].column, neurons.moved[0].neuron) == ("ffn.01.mean", 3)
    # in standard deviations of the reference, not in units of the training scale
    assert neurons.moved[0].shift == pytest.approx(2, abs=0.1)
    assert neurons.psi == pytest.approx(neurons.moved[0].shift ** 2, abs=0.01)


@pytest.mark.parametrize(("words", "name"), [(2, ("ffn.01.mean", 1)), (4, ("words", 3))])
def test_drift_names_what_moved_beside_words(words: int, name: tuple[str, int]) -> None:
    """The words' logits come before the neurons; the fourth feature has moved."""
    selection = Selection(
        {COLUMN: np.arange(NEURONS - words)}, {COLUMN: np.ones(NEURONS - words)}, 0.9, word_logits=words
    )
    profiles = make_profile(make_outputs(3000, 1, shift=2)), make_profile(make_outputs(2000))
    moved = measure(*profiles, selection, 0.1)[-1].moved[0]
    assert (moved.column, moved.neuron) == name


def test_many_neurons_at_the_limit_seldom_warn() -> None:
    """All neurons are shifted by exactly what is allowed, and hardly any night in a hundred exceeds the limit."""
    draw, n, m = np.random.default_rng(0), 400, 900
    base_profile = make_profile(make_outputs(n))

    def draw_profile(count: int, shift: float) -> Profile:
        means = draw.normal(shift, 1 / math.sqrt(count), NEURONS)
        scores = np.bincount([19], minlength=20) * count
        sums = {"documents": np.array(count), "scores": scores}
        sums |= {"sums": count * means, "squares": count * (1 + means**2)}
        return Profile({**base_profile.sums, **sums})

    pairs = [(draw_profile(n, math.sqrt(0.1)), draw_profile(m, 0)) for _ in range(400)]
    warned = [measure(current, reference, SELECTION, 0.1)[-1].drifted for current, reference in pairs]
    assert np.mean(warned) < 4 * SIGNIFICANCE


RARE = slice(0, 4)
"""neurons that are silent on most documents"""


def draw_sparse_activations(count: int, seed: int, rate: float) -> NDArray[np.floating]:
    """Activations (n, p) of which those of `RARE` are 0 but for a share `rate` of the documents of each."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, NEURONS))
    values[:, RARE] = np.where(draw.random((count, 4)) < rate, draw.lognormal(0, 0.5, (count, 4)), 0)
    return values


def make_sparse_profile(values: NDArray[np.floating]) -> Profile:
    """The profile of activations, standardised on 4,000 training documents, on 8 of which a neuron of `RARE` fires."""
    standardizer = Standardizer.fit(draw_sparse_activations(4000, 0, 0.002))
    fitted = replace(make_fitted(), standardizer=standardizer)
    outputs = make_outputs(len(values)) | {"activations": values}
    return Profile.from_outputs(BINARY, fitted, **outputs)


@pytest.mark.parametrize("count", [30, 100, 1000, 5000])
@pytest.mark.parametrize("reference_rate", [0, 0.002])
def test_neurons_that_are_silent_in_the_reference_do_not_warn_without_drift(count: int, reference_rate: float) -> None:
    """They fire on a few documents of a night, as they did in training, of small nights and large ones."""
    reference = make_sparse_profile(draw_sparse_activations(500, 1, reference_rate))
    nights = [make_sparse_profile(draw_sparse_activations(count, 10 + night, 0.002)) for night in range(30)]
    warned = sum(measure(night, reference, SELECTION, 0.1)[-1].drifted for night in nights)
    assert warned == 0


@pytest.mark.parametrize("count", [100, 1000, 5000])
def test_neurons_that_are_silent_in_the_reference_still_drift(count: int) -> None:
    """A night is found on a third of whose documents they fire, and one in which another neuron has moved."""
    reference = make_sparse_profile(draw_sparse_activations(500, 1, 0))
    firing = measure(make_sparse_profile(draw_sparse_activations(count, 2, 0.33)), reference, SELECTION, 0.1)[-1]
    assert firing.drifted
    assert firing.now == (4, NEURONS - 4)
    assert {shift.neuron for shift in firing.moved[:4]} == set(range(4))
    values = draw_sparse_activations(count, 3, 0.002)
    values[:, 20] += 1
    other = measure(make_sparse_profile(values), reference, SELECTION, 0.1)[-1]
    assert other.drifted
    assert other.moved[0].neuron == 20
    assert other.psi == pytest.approx(other.moved[0].shift ** 2, abs=0.01)


def test_an_empty_profile_is_not_compared() -> None:
    empty = make_profile(take_rows(make_outputs(10), slice(0, 0)))
    assert measure(empty, make_profile(make_outputs(10)), SELECTION, 0.1) == []


class Margins(Distribution):
    """(2,) documents whose classes are more and less than one apart in their logits."""

    name, description = "margins", "documents with a clear label"

    def sum_outcomes(self, outcomes: Outcomes) -> Sums:
        clear = np.abs(np.diff(outcomes.logits, axis=1)) > 1
        return {self.name: np.array([clear.sum(), (~clear).sum()])}


def test_a_statistic_that_is_added_is_summed_compared_and_follows_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles from before have no sums of it, and are compared without."""
    before = make_profile(make_outputs(2000))
    monkeypatch.setattr(drift_statistics, "STATISTICS", (*STATISTICS, Margins()))
    outputs, then = make_outputs(3000, 1), make_profile(make_outputs(2000))
    unclear = make_profile({**outputs, "logits": outputs["logits"] / 100})
    total = Profile.from_bytes(save_tensors(dict((unclear + unclear).sums)))
    assert total.sums["margins"].tolist() == [0, 6000]
    [drift] = [drift for drift in measure(total, then, SELECTION, 0.1) if drift.name == "margins"]
    assert drift.drifted
    assert drift.psi == stability(total.sums["margins"], then.sums["margins"])
    assert "margins" not in {drift.name for drift in measure(total, before, SELECTION, 0.1)}
    held_out = HeldOutLogits(np.zeros((1, 50, 2), np.float32), np.zeros(50, np.int64))
    assert then.under(held_out, (), Decision.of(BINARY, DecisionSettings())).sums["margins"].tolist() == [0, 50]
