"""The paired bootstrap: the p-value of a candidate against a baseline, and the lower bound of their difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score

from spin.integrate import bootstrap
from spin.integrate.bootstrap import (
    bootstrap_scores,
    difference_interval,
    lower_bound,
    score_intervals,
)
from spin.labels.metrics import score


def make_predictions(better: int, worse: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, and the predictions of a candidate and a baseline.

    The candidate alone is right on `better` documents, the baseline alone on `worse`.
    """
    y = np.arange(n) % 2
    candidate, baseline = y.copy(), y.copy()
    baseline[:better] = 1 - baseline[:better]
    candidate[better : better + worse] = 1 - candidate[better : better + worse]
    return y, candidate, baseline


def count_macro_f1(y: np.ndarray, predicted: np.ndarray) -> float:
    """Macro F1 from the counts of each class."""
    right, given, had = (y & predicted).sum(0), predicted.sum(0), y.sum(0)
    return float(np.mean(2 * right / (given + had)))


@pytest.mark.parametrize(("better", "worse"), [(30, 10), (12, 8), (20, 20), (8, 12), (0, 20)])
@pytest.mark.parametrize("significance", [0.05, 0.2])
def test_the_lower_bound_is_that_of_a_mean_difference(better: int, worse: int, significance: float) -> None:
    """For accuracy it is nearly the normal bound of a mean difference of documents that count +1, 0 or -1."""
    mean = (better - worse) / 400
    spread = np.sqrt(((better + worse) / 400 - mean**2) / 400)
    bound = lower_bound("accuracy", *make_predictions(better, worse), significance)
    # one document more, that the candidate gets wrong, is among the samples
    assert bound == pytest.approx(norm.ppf(significance, mean, spread) - 1 / 400, abs=0.003)


def test_the_lower_bound_of_equal_predictions_is_zero() -> None:
    """Exactly 0; where they differ, one document on which the candidate is better is no proof."""
    y, candidate, _ = make_predictions(10, 10)
    assert lower_bound("macro_f1", y, candidate, candidate.copy(), 0.05) == 0.0
    assert lower_bound("accuracy", y, y, 1 - y, 0.05) == pytest.approx(1 - 2 * 3 / 401, abs=1e-9)
    assert lower_bound("accuracy", y, 1 - y, y, 0.05) == -1.0
    assert lower_bound("accuracy", *make_predictions(0, 1), 0.05) < 0
    assert lower_bound("accuracy", *make_predictions(1, 0), 0.05) < 0


@pytest.mark.parametrize(("better", "worse"), [(40, 10), (25, 10), (16, 12), (12, 12), (10, 25)])
def test_the_lower_bound_agrees_with_mcnemar(better: int, worse: int) -> None:
    """It is above 0 exactly where McNemar's exact one-sided test finds that the candidate has fewer errors."""
    p_value = binomtest(better, better + worse, alternative="greater").pvalue
    assert not 0.03 < p_value < 0.07  # not a borderline case
    assert (lower_bound("accuracy", *make_predictions(better, worse), 0.05) > 0) == (p_value < 0.05)


def test_the_lower_bound_equals_a_plain_loop() -> None:
    """Bootstrap samples drawn independently, with multi-label targets and another metric."""
    draw = np.random.default_rng(0)
    y = draw.random((150, 3)) < 0.4
    candidate, baseline = y ^ (draw.random(y.shape) < 0.20), y ^ (draw.random(y.shape) < 0.23)
    differences = []
    for _ in range(4000):
        rows = draw.integers(0, 150, 150)
        differences.append(count_macro_f1(y[rows], candidate[rows]) - count_macro_f1(y[rows], baseline[rows]))
    bound = lower_bound("macro_f1", y, candidate, baseline, 0.05)
    assert bound == pytest.approx(sorted(differences)[200], abs=0.01)


@pytest.mark.slow
def test_a_rare_class_counts_the_same_for_both_predictions() -> None:
    """Samples without its only document average the other classes, whoever predicts it; so says scikit-learn."""
    y = np.array([0] * 60 + [1] * 39 + [2])
    candidate, baseline = y.copy(), y.copy()
    candidate[:2], baseline[:2] = 2, 1
    draw = np.random.default_rng(0)
    differences = []
    for _ in range(250):
        rows = draw.integers(0, 100, 100)
        f1 = [
            f1_score(y[rows], predicted[rows], labels=np.unique(y[rows]), average="macro", zero_division=0.0)
            for predicted in (candidate, baseline)
        ]
        differences.append(f1[0] - f1[1])
    bound = lower_bound("macro_f1", y, candidate, baseline, 0.2)
    assert bound == pytest.approx(np.quantile(differences, 0.2), abs=0.03)


def test_predictions_worse_by_the_margin_seldom_pass() -> None:
    """A candidate that is worse by exactly the margin passes about one time in twenty."""
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(60):
        y = draw.integers(0, 2, 100)
        candidate, baseline = (np.where(draw.random(100) < share, 1 - y, y) for share in (0.35, 0.30))
        passed += lower_bound("accuracy", y, candidate, baseline, 0.05) >= -0.05
    assert 1 <= passed <= 8


def test_an_interval_lies_between_the_bounds_of_both_directions() -> None:
    """About one document from them, since each of the bounds has a document more against it."""
    y, candidate, baseline = make_predictions(30, 10)
    low, high = difference_interval("accuracy", y, candidate, baseline, 0.05, 0)
    assert low == pytest.approx(lower_bound("accuracy", y, candidate, baseline, 0.05) + 1 / 400, abs=0.003)
    assert high == pytest.approx(-lower_bound("accuracy", y, baseline, candidate, 0.05) - 1 / 400, abs=0.003)
    assert low < 20 / 400 < high
    assert difference_interval("accuracy", y, candidate, candidate.copy(), 0.05, 0) == (0.0, 0.0)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "balanced_accuracy"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_scores_of_samples_equal_a_plain_loop(metric: str, multilabel: bool) -> None:
    """Documents with the same classes are counted together, which changes nothing."""
    draw = np.random.default_rng(3)
    if multilabel:
        y = draw.random((60, 3)) < 0.3
        predictions = [y ^ (draw.random(y.shape) < share) for share in (0.1, 0.3)]
    else:
        y = draw.choice(4, size=60, p=[0.6, 0.25, 0.12, 0.03])
        predictions = [np.where(draw.random(60) < share, draw.integers(4, size=60), y) for share in (0.2, 0.5)]
    scores = bootstrap_scores(metric, y, predictions, seed=5, draws=80)
    again = np.random.default_rng(5)
    columns = np.concatenate([targets.reshape(60, -1) for targets in (y, *predictions)], axis=1)
    _, first, kinds = np.unique(columns, axis=0, return_index=True, return_counts=True)
    for sample in scores:
        rows = np.repeat(first, again.multinomial(60, kinds / 60))
        expected = [score(metric, y[rows], predicted[rows]) for predicted in predictions]
        np.testing.assert_allclose(sample, expected, rtol=1e-12)


@pytest.mark.slow
def test_the_interval_of_a_score_holds_the_true_one() -> None:
    """In 95 of 100 sets of documents or a little more, also where few are wrong; a share below it is seldom true."""
    draw, missed = np.random.default_rng(0), 0
    for seed in range(100):
        y = draw.integers(0, 2, 80)
        predicted = np.where(draw.random(80) < 0.05, 1 - y, y)
        [(low, high)] = score_intervals("accuracy", y, [predicted], seed)
        missed += not low <= 0.95 <= high
    assert missed <= 8  # with probability 0.94 for an interval that misses one time in twenty
    [(low, high)] = score_intervals("accuracy", y, [y], 0)
    assert high == 1
    assert low == pytest.approx(1 - 3 / 80, abs=0.02), "about the rule of three (Hanley & Lippman-Hand 1983)"


def test_the_interval_of_many_documents_is_that_of_a_share() -> None:
    y, candidate, baseline = make_predictions(80, 40, 4000)
    intervals = score_intervals("accuracy", y, [candidate, baseline], 0)
    for (low, high), share in zip(intervals, (0.99, 0.98), strict=True):
        half = norm.ppf(0.975) * np.sqrt(share * (1 - share) / 4000)
        assert (low, high) == pytest.approx((share - half, share + half), abs=0.001)


GROUPS = np.repeat(np.arange(200, dtype=np.uint64), 10)


def draw_grouped(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2,000 documents in groups of ten that are right or wrong together, by two predictions that are equally good."""
    y = draw.integers(0, 2, 2000)
    candidate, baseline = (np.where(np.repeat(draw.random(200) < 0.2, 10), 1 - y, y) for _ in range(2))
    return y, candidate, baseline


@pytest.mark.slow
def test_intervals_and_bounds_hold_for_documents_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """They miss about one time in twenty; as if documents stood for themselves, they miss a third of the time."""
    monkeypatch.setattr(bootstrap, "_VERDICT_DRAWS", 500)
    draw, missed = np.random.default_rng(3), {"groups": np.zeros(3, int), "documents": np.zeros(3, int)}
    for seed in range(60):
        y, candidate, baseline = draw_grouped(draw)
        for name, groups in (("groups", GROUPS), ("documents", None)):
            [(low, high)] = score_intervals("accuracy", y, [candidate], seed, groups)
            lower, upper = difference_interval("accuracy", y, candidate, baseline, 0.025, seed, groups)
            bound = lower_bound("accuracy", y, candidate, baseline, 0.05, groups)
            missed[name] += [not low <= 0.8 <= high, not lower <= 0 <= upper, bound > 0]
    assert (missed["groups"] <= 8).all(), missed  # more have a probability of 0.4 %
    assert (missed["documents"] >= 14).all(), missed


@pytest.mark.parametrize("kind", ["single", "multilabel"])
def test_bounds_and_intervals_do_not_depend_on_the_order_of_the_classes(kind: str) -> None:
    """The document more is of the commonest class, and its wrong label the next commonest, whatever their names."""
    y = np.repeat([0, 1, 2], [10, 600, 390])
    version, champion = y.copy(), y.copy()
    version[100:105], champion[200:205] = 2, 2
    found = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        targets, ours, theirs = (np.array(order)[each] for each in (y, version, champion))
        if kind == "multilabel":
            targets, ours, theirs = (each[:, None] == np.arange(3) for each in (targets, ours, theirs))
        bound = lower_bound("macro_f1", targets, ours, theirs, 0.05)
        [interval] = score_intervals("macro_f1", targets, [ours], 0)
        found.append((bound, *interval))
    np.testing.assert_allclose(found, [found[0]] * 3, atol=0.002)
    assert found[0][0] > -0.01


def test_the_document_more_of_a_multilabel_task_has_one_wrong_class() -> None:
    """Twenty rare classes: one wrong in each would move the bound by as many documents."""
    draw = np.random.default_rng(0)
    y = draw.random((1000, 20)) < 0.02
    ours, theirs = y.copy(), y.copy()
    ours[0, 3], theirs[1, 4] = ~ours[0, 3], ~theirs[1, 4]
    assert lower_bound("macro_f1", y, ours, theirs, 0.05) > -0.02
    [(low, high)] = score_intervals("macro_f1", y, [y], 0)
    assert low > 0.98
    assert high == 1


def test_groups_without_an_error_prove_as_much_as_as_many_documents() -> None:
    """Ten groups of a hundred documents that are all right say little about the next group."""
    y, groups = np.arange(1000) // 100 % 2, np.arange(1000, dtype=np.uint64) // 100
    [of_groups] = score_intervals("accuracy", y, [y], 0, groups)
    [of_documents] = score_intervals("accuracy", y[::100], [y[::100]], 0)
    assert of_groups == pytest.approx(of_documents, abs=0.03)
    worse = np.where(groups == 9, 1 - y, y)
    bound = lower_bound("accuracy", y, y, worse, 0.025, groups)
    assert bound == pytest.approx(lower_bound("accuracy", y[::100], y[::100], worse[::100], 0.025), abs=0.03)


def test_groups_of_one_document_change_nothing_but_the_draws() -> None:
    """Groups of several are drawn whole: a group that is wrong is wrong as often as it is drawn."""
    y, candidate, baseline = make_predictions(30, 10)
    alone = np.random.default_rng(0).permutation(400).astype(np.uint64)
    expected = bootstrap_scores("macro_f1", y, [candidate, baseline], 1, 50)
    np.testing.assert_allclose(bootstrap_scores("macro_f1", y, [candidate, baseline], 1, 50, alone), expected)
    groups = np.arange(400, dtype=np.uint64) // 4
    wrong = np.where(np.arange(400) < 4, 1 - y, y)
    scores = bootstrap_scores("accuracy", y, [wrong], 1, 200, groups)[:, 0]
    times = (1 - scores) * 100
    np.testing.assert_allclose(times, times.round(), atol=1e-9)
    assert times.mean() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_scores_of_samples_of_groups_equal_a_plain_loop(metric: str) -> None:
    """Their mean and spread, over samples that are drawn otherwise; some groups have one document."""
    draw = np.random.default_rng(4)
    groups = np.sort(draw.integers(0, 40, 150)).astype(np.uint64)
    y = draw.integers(0, 3, 150)
    predicted = np.where(np.isin(groups, draw.choice(40, 12)), (y + 1) % 3, y)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    expected = []
    for _ in range(1500):
        rows = np.concatenate([members[each] for each in draw.integers(len(members), size=len(members))])
        expected.append(score(metric, y[rows], predicted[rows]))
    found = bootstrap_scores(metric, y, [predicted], 1, 1500, groups)[:, 0]
    assert found.mean() == pytest.approx(np.mean(expected), abs=0.01)
    assert found.std() == pytest.approx(np.std(expected), rel=0.08)
