"""Estimate the quality of labels from probabilities: plain loops, and coverage over many nights."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from spin.arrays import Floats
from spin.fitted.decision import Decision
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.monitor.quality import (
    LEAST_DOCUMENTS,
    QualityEstimate,
    QualitySums,
    _divide,
    _total,
    _weigh_classes,
    estimate_quality,
    expect_quality,
)
from spin.settings import DecisionSettings

SINGLE, SEVERAL = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)


def draw_documents(count: int, seed: int, space: LabelSpace, *, sharpness: float = 1.0) -> tuple[Floats, Targets]:
    """Probabilities, too sure by a factor of the logits, and the classes that were drawn from the right ones."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.normal(size=(count, 3)) - np.array([0, 0.5, 1])
    p = space.probabilities(logits)
    y = draw.random(p.shape) < p if space.multilabel else (p.cumsum(1) > draw.random((count, 1))).argmax(1)
    return space.probabilities(sharpness * logits), y


def decide(space: LabelSpace, abstain: float = 0.0) -> Decision:
    return Decision.of(space, DecisionSettings(abstain=abstain))


def estimate(
    space: LabelSpace, seed: int, *, sharpness: float = 1.0, abstain: float = 0.0, test: int = 1000, count: int = 3000
) -> tuple[QualityEstimate, float, float]:
    """The estimate of a night, and its true accuracy and macro-F1."""
    decision = decide(space, abstain)
    p, y = draw_documents(count, 2 * seed, space, sharpness=sharpness)
    given, abstains = decision.decide(p)
    sums = QualitySums.of(space, given[~abstains], p[~abstains])
    found = estimate_quality(sums, *draw_documents(test, 2 * seed + 1, space, sharpness=sharpness), decision)
    assert found is not None
    true = y[~abstains], given[~abstains]
    return found, score("accuracy", *true), score("macro_f1", *true)


@pytest.mark.parametrize("space", [SINGLE, SEVERAL])
def test_sums_are_those_of_a_plain_loop_and_add_up(space: LabelSpace) -> None:
    p, _ = draw_documents(60, 0, space)
    given, _ = decide(space).decide(p)
    sums = QualitySums.of(space, given, p)
    right, variance, hits, support = [], [], np.zeros(3), np.zeros(3)
    for row in range(60):
        has = [bool(given[row][k]) if space.multilabel else given[row] == k for k in range(3)]
        each = [p[row, k] if has[k] else 1 - p[row, k] for k in range(3)]
        right.append(np.prod(each) if space.multilabel else p[row, given[row]])
        variance.append(right[-1] * (1 - right[-1]))
        hits += [p[row, k] * has[k] for k in range(3)]
        support += p[row]
    assert sums.right == pytest.approx(sum(right))
    assert sums.right_variance == pytest.approx(sum(variance))
    assert sums.hits == pytest.approx(hits)
    assert sums.support == pytest.approx(support)
    assert sums.predicted == pytest.approx(space.indicator(given).sum(0))
    parts = [QualitySums.of(space, given[rows], p[rows]) for rows in (slice(0, 7), slice(7, 7), slice(7, 60))]
    whole = reduce(add, parts)
    for name, value in sums.to_tensors("").items():
        assert whole.to_tensors("")[name] == pytest.approx(value), name
    restored = QualitySums.from_tensors(sums.to_tensors("quality."), "quality.")
    assert restored is not None
    assert restored.hits == pytest.approx(hits)
    with pytest.raises(KeyError, match="other"):
        QualitySums.from_tensors(sums.to_tensors("quality."), "other.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "sharpness", "abstain"), [(SINGLE, 1.0, 0.0), (SINGLE, 1.3, 0.2), (SEVERAL, 1.0, 0.0), (SEVERAL, 0.8, 0)]
)
def test_the_true_quality_lies_in_the_intervals(space: LabelSpace, sharpness: float, abstain: float) -> None:
    """Of 200 nights at least 90 %, also where probabilities are too sure, on the test documents as at night."""
    inside = np.zeros(2)
    for seed in range(200):
        found, accuracy, f1 = estimate(space, seed, sharpness=sharpness, abstain=abstain)
        inside += [
            found.accuracy.low <= accuracy <= found.accuracy.high,
            found.macro_f1.low <= f1 <= found.macro_f1.high,
        ]
    assert (inside >= 180).all(), inside


def draw_mix(mix: tuple[float, ...], count: int, seed: int) -> tuple[Floats, Targets]:
    """Documents of three classes in a mix, and their probabilities, which are right for the mix 0.5, 0.35, 0.15."""
    draw = np.random.default_rng(seed)
    y, centres = draw.choice(3, count, p=mix), 1.6 * np.eye(3)
    x = centres[y] + draw.normal(size=(count, 3))
    return SINGLE.probabilities(x @ centres.T + np.log([0.5, 0.35, 0.15])), y


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3, 6])
def test_the_intervals_hold_where_a_class_is_more_frequent_than_among_the_test_documents(times: int) -> None:
    """In 170 of 200 nights at least. Without weights of the classes they hold in 126 at three times, in 21 at six."""
    mix, inside, gaps = np.array([0.5, 0.35, 0.15 * times]), np.zeros(2), []
    for seed in range(200):
        p, y = draw_mix(tuple(mix / mix.sum()), 2000, 2 * seed)
        given = p.argmax(1)
        found = estimate_quality(
            QualitySums.of(SINGLE, given, p), *draw_mix((0.5, 0.35, 0.15), 1000, 2 * seed + 1), decide(SINGLE)
        )
        assert found is not None
        accuracy, f1 = (score(metric, y, given) for metric in ("accuracy", "macro_f1"))
        inside += [
            found.accuracy.low <= accuracy <= found.accuracy.high,
            found.macro_f1.low <= f1 <= found.macro_f1.high,
        ]
        gaps.append(found.accuracy.value - accuracy)
    assert (inside >= 170).all(), inside
    assert abs(np.mean(gaps)) < 0.012


def test_the_mix_of_a_night_is_found() -> None:
    """Weights are the ratios of the shares; a night like the test documents, and a short one, have about 1."""
    parts = _divide(*draw_mix((0.5, 0.35, 0.15), 20_000, 0), decide(SINGLE))
    of_classes = [reduce(add, of_class) for of_class in zip(*parts, strict=True)]
    for mix, count in (((0.5, 0.35, 0.15), 20_000), ((0.2, 0.2, 0.6), 50_000)):
        p, _ = draw_mix(mix, count, 1)
        weights = _weigh_classes(QualitySums.of(SINGLE, p.argmax(1), p), of_classes)
        assert weights == pytest.approx(np.array(mix) / [0.5, 0.35, 0.15], rel=0.06)
    p, _ = draw_mix((0.0, 0.0, 1.0), 5, 1)
    assert max(_weigh_classes(QualitySums.of(SINGLE, p.argmax(1), p), of_classes)) < 1.4


def test_variances_grow_with_the_square_of_the_weights_of_classes() -> None:
    """A night has three times as many of the third class: its few test documents count for many, and vary as much."""
    p, _ = draw_mix((0.3, 0.2, 0.5), 2000, 0)
    now = QualitySums.of(SINGLE, p.argmax(1), p)
    tested, y = draw_mix((0.5, 0.35, 0.15), 1000, 1)
    parts = _divide(tested, y, decide(SINGLE))
    weights = np.array(_weigh_classes(now, [reduce(add, of_class) for of_class in zip(*parts, strict=True)]))
    right = tested.max(1)
    assert weights.max() > 2
    assert _total(now, parts).expected.right == pytest.approx((weights[y] * right).sum())
    assert _total(now, parts).expected.right_variance == pytest.approx((weights[y] ** 2 * right * (1 - right)).sum())


def test_a_class_without_test_documents_is_not_weighed() -> None:
    p, y = draw_mix((0.5, 0.5, 0.0), 1000, 0)
    found = estimate_quality(QualitySums.of(SINGLE, p.argmax(1), p), p, y, decide(SINGLE))
    assert found is not None
    assert found.accuracy.value == pytest.approx((p.argmax(1) == y).mean(), abs=0.02)


def test_a_larger_test_set_makes_narrower_intervals() -> None:
    widths = []
    for test in (300, 3000):
        found, *_ = estimate(SINGLE, 0, test=test)
        widths.append(found.accuracy.high - found.accuracy.low)
    assert widths[1] < 0.6 * widths[0]


def test_classes_are_estimated_each() -> None:
    p, y = draw_documents(4000, 10, SINGLE)
    decision = decide(SINGLE)
    given, _ = decision.decide(p)
    found = estimate_quality(QualitySums.of(SINGLE, given, p), *draw_documents(4000, 11, SINGLE), decision)
    assert found is not None
    assert found.documents == 4000
    for k, each in enumerate(found.classes):
        hits = ((given == k) & (y == k)).sum()
        assert each.name == SINGLE.classes[k]
        assert each.predicted == (given == k).sum()
        assert each.precision == pytest.approx(hits / (given == k).sum(), abs=0.05)
        assert each.recall == pytest.approx(hits / (y == k).sum(), abs=0.05)
        assert each.f1.low < each.f1.value < each.f1.high


def test_few_errors_among_the_test_documents_make_no_certainty() -> None:
    """Where none of 100 labels is wrong, 1 in 100 may be; with fewer documents there is no estimate."""
    decision, p = decide(SINGLE), np.tile([0.98, 0.01, 0.01], (100, 1))
    sums = QualitySums.of(SINGLE, np.zeros(10_000, np.int64), np.tile(p[:1], (10_000, 1)))
    found = estimate_quality(sums, p, np.zeros(100, np.int64), decision)
    assert found is not None
    assert found.accuracy.low < 0.98
    assert estimate_quality(sums, p[:99], np.zeros(99, np.int64), decision) is None


def test_a_corrected_figure_is_no_more_than_one() -> None:
    """The test documents were right more often than their probabilities say, and the night's are still surer."""
    decision, p = decide(SINGLE), np.tile([0.985, 0.01, 0.005], (300, 1))
    night = np.tile([0.993, 0.005, 0.002], (2000, 1))
    found = estimate_quality(
        QualitySums.of(SINGLE, np.zeros(2000, np.int64), night), p, np.zeros(300, np.int64), decision
    )
    assert found is not None
    assert found.accuracy.low < found.accuracy.value == found.accuracy.high == 1


def test_there_is_no_estimate_without_labels_or_without_test_documents() -> None:
    p, y = draw_documents(200, 0, SINGLE)
    decision = decide(SINGLE)
    assert estimate_quality(QualitySums.of(SINGLE, y[:0], p[:0]), p, y, decision) is None
    sums = QualitySums.of(SINGLE, decision.decide(p)[0], p)
    assert estimate_quality(sums, p[:0], y[:0], decision) is None
    assert estimate_quality(sums, p, y, decide(SINGLE, 0.999999)) is None


@pytest.mark.parametrize(("space", "abstain"), [(SINGLE, 0.0), (SINGLE, 0.3), (SEVERAL, 0.1)])
def test_the_expected_estimate_is_that_of_a_night_of_such_documents(space: LabelSpace, abstain: float) -> None:
    """Its interval is about as wide as those of nights that are drawn, of which the same share gets a label."""
    decision = decide(space, abstain)
    p, y = draw_documents(500, 1, space)
    expected = expect_quality(p, y, decision, 10_000)
    assert expected is not None
    night = np.tile(p, (20, 1))
    given, abstains = decision.decide(night)
    repeated = estimate_quality(QualitySums.of(space, given[~abstains], night[~abstains]), p, y, decision)
    assert repeated is not None
    assert expected.documents == repeated.documents == (~abstains).sum()
    for one, other in ((expected.accuracy, repeated.accuracy), (expected.macro_f1, repeated.macro_f1)):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=2e-4)
    drawn, _ = draw_documents(10_000, 2, space)
    given, abstains = decision.decide(drawn)
    another = estimate_quality(QualitySums.of(space, given[~abstains], drawn[~abstains]), p, y, decision)
    assert another is not None
    assert expected.accuracy.width == pytest.approx(another.accuracy.width, rel=0.2)


def test_nothing_is_expected_of_too_few_test_documents() -> None:
    p, y = draw_documents(LEAST_DOCUMENTS - 1, 0, SINGLE)
    assert expect_quality(p, y, decide(SINGLE), 10_000) is None
    assert expect_quality(p[:0], y[:0], decide(SINGLE), 10_000) is None
