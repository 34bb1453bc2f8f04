"""The measurements of trust: scores equal plain loops, and sections say what holds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.trust import conflict, costs, privacy, robustness
from spin.audit.privacy import FREQUENCY, LeakFigures, Membership, PrivacyReport
from spin.audit.verbatim import VerbatimLeaks
from spin.audit.word_recovery import Recovery
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn
from tests.spin.audit.test_robustness import SINGLE, make_texts, measure
from tests.spin.roi.test_operating_points import SPACE, draw_operation
from tests.support.random_classifiers import build_classifier


def test_conflict_is_the_share_of_layers_against_the_class_by_a_plain_loop() -> None:
    columns = [FeatureColumn.parse(name) for name in ("ffn.01.mean", "resid.02.max", "ffn.02.mean")]
    neurons = {column: np.array([1, 4, 6]) for column in sorted(columns)}
    fitted = build_classifier(BackboneSettings(model="none"), "digest", neurons, seed=3).fitted
    features = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    layers = [column.site.layer for column in neurons for _ in range(3)]
    expected = []
    for row in features:
        logits = fitted.head.coef @ row + fitted.head.intercept
        second, first = np.argsort(logits)[-2:]
        sums = dict.fromkeys(layers, 0.0)
        for j, layer in enumerate(layers):
            sums[layer] += row[j] * (fitted.head.coef[first, j] - fitted.head.coef[second, j])
        expected.append(sum(-s for s in sums.values() if s < 0) / sum(abs(s) for s in sums.values()))
    assert conflict.layer_conflict(fitted, features) == pytest.approx(np.array(expected), rel=1e-4)
    assert 0 < np.mean(expected) < 1


def test_detection_at_equal_probability_takes_the_probability_away() -> None:
    """A score that only repeats the probability finds nothing there; one that knows more does."""
    draw = np.random.default_rng(0)
    kind = draw.random(4000) < 0.5
    uncertain = draw.random(4000) * 0.5 + 0.3 * kind
    scores = {
        conflict.SCORES[0]: uncertain,
        conflict.SCORES[1]: uncertain + draw.normal(0, 0.01, 4000),
        conflict.SCORES[2]: kind + draw.normal(0, 0.5, 4000),
    }
    scored = conflict._Scored(scores, np.zeros(4000, np.int64))
    found = conflict._detect(scored, scored, np.flatnonzero(~kind), np.flatnonzero(kind))
    for name, values in scores.items():
        assert found.auroc[name] == pytest.approx(roc_auc_score(kind, values))
    assert found.at_equal_probability["conflict"] == pytest.approx(0.5, abs=0.06)
    assert found.at_equal_probability["drift"] > 0.85


def test_a_score_is_worth_a_column_only_where_it_beats_both_others_everywhere() -> None:
    names = conflict.SCORES
    better = conflict.Detection(dict(zip(names, (0.6, 0.7, 0.5), strict=True)), dict.fromkeys(names, 0.5), 10)
    worse = conflict.Detection(dict(zip(names, (0.6, 0.7, 0.8), strict=True)), dict.fromkeys(names, 0.5), 10)
    text, [(holds, verdict)] = conflict.section({"one": better, "two": worse})
    assert not holds
    assert "conflict finds more than both others: one;" in verdict
    assert "| one | 0.600 | 0.700 | 0.500 | 0.500 | 0.500 | 10 |" in text
    assert conflict.section({"one": better})[1][0][0]


@pytest.mark.slow
def test_the_cost_of_the_other_half_is_compared_with_the_interval() -> None:
    operation, y = draw_operation(600, seed=8)
    covered = costs._cover([operation], SPACE, y, 0.4, 0.25)
    assert covered.inside >= costs.LEAST_INSIDE
    assert abs(covered.gap) < 0.1
    text, [(holds, promise)] = costs.section([covered])
    assert holds
    assert f"| 0.4 / 0.25 | {covered.inside} |" in text
    assert promise == f"the realised cost lies inside in {covered.inside} of 100 splits, expected 88"


def test_the_section_on_robustness_has_a_row_per_perturbation() -> None:
    texts, y = make_texts()
    report = measure(SINGLE, texts, y)
    text, verdicts = robustness.section({"as shipped": report, "full depth": report})
    assert verdicts == []
    upper = next(row for row in report.at(2) if row.name == "case")
    assert f"| case | {100 * upper.loss:+.1f} | {100 * upper.loss:+.1f} | {100 * upper.flips:.1f} % |" in text


@pytest.mark.parametrize(("leaked", "holds"), [(0, True), (1, True), (3, False)])
def test_the_section_on_privacy_compares_leaks_with_chance(leaked: int, holds: bool) -> None:
    figures = (
        LeakFigures(FREQUENCY, 0, Recovery(0.2, {"rare": 0.0}, 50), {}),
        LeakFigures("last layer", 384, Recovery(0.5, {"rare": 0.1, "frequent": 0.9}, 50), {"link": 0.75}),
    )
    verbatim = VerbatimLeaks(100, leaked, {}, 50, 1)
    report = PrivacyReport(10, 12, 400, figures, Membership(0.6, 0.2, 0.3, 10, 12), verbatim)
    text, [(verdict, _)] = privacy.section(report)
    assert verdict is holds
    assert "| last layer | 384 | 50.0 % | 10.0 % | – | 90.0 % | 0.75 |" in text
    assert "| word frequency alone | 0 | 20.0 % | 0.0 % | – | – | – |" in text
