"""The gate's checks on constructed predictions: each against an independent count, each failing alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from jobs import terminal
from pipelines.registry.gate import GateCheck, GateReport, NoReply, judge
from pipelines.registry.subprocess_predict import PredictionReply
from spin.settings import Settings, parse_settings

N = 400
TRUTH = ["bad" if row % 2 else "good" for row in range(N)]
OTHER = {"bad": "good", "good": "bad"}


def settings(metric: str = "accuracy", decision: dict[str, Any] | None = None, **promote: Any) -> Settings:
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "metric": metric, "promote": promote}
    return parse_settings({**tree, "decision": decision or {}})


def reply(errors: Any, *, sure: float = 0.9, classes: tuple[str, ...] = ("bad", "good")) -> PredictionReply:
    """Predictions that are wrong on the rows `errors` and give every label the probability `sure`."""
    labels = [OTHER[label] if row in errors else label for row, label in enumerate(TRUTH)]
    probabilities = np.zeros((N, len(classes)))
    for row, label in enumerate(labels):
        probabilities[row, [classes.index(OTHER[label]), classes.index(label)]] = 1 - sure, sure
    return PredictionReply({"text": "string"}, classes, False, list(labels), probabilities, 1.0)


TENTH = range(40)
"""errors on a tenth of the rows: a version that gives its labels probability 0.9 is then calibrated"""


def failed(report: GateReport) -> list[str]:
    return [check.name for check in report.failed]


def check_of(report: GateReport, name: str) -> GateCheck:
    [check] = [check for check in report.checks if check.name == name]
    return check


ALL = ["loads", "schema", "classes", "score", "regression", "class_floors", "calibration", "throughput"]


@pytest.mark.parametrize(
    ("name", "promote", "model", "measured", "expected"),
    [
        ("schema", {}, replace(reply(TENTH), input_columns={"text": "long"}), "text: long", "text: string"),
        ("schema", {}, replace(reply(TENTH), input_columns={}), "none", "text: string"),
        ("classes", {}, reply(TENTH, classes=("bad", "good", "odd")), "adds odd", "the champion's 2 classes"),
        ("score", {"min_score": 0.95}, reply(TENTH), "90.0 accuracy", "at least 95.0"),
        ("regression", {}, reply(range(60)), "-5.0, at least -6.", "-1.0 against the champion, with 95 % confidence"),
        ("class_floors", {"class_floors": {"bad": 0.8, "good": 0.95}}, reply(TENTH), "bad 90.0, good 90", "good 95"),
        ("class_floors", {"class_floors": {"odd": 0.1}}, reply(TENTH), "odd has no document", "odd 10.0"),
        ("calibration", {}, reply(TENTH, sure=0.6), "error 30.0", "at most 10.0"),
        ("throughput", {"min_docs_per_s": 500}, reply(TENTH), "400.0 documents/s, the champion 400.0", "at least 500"),
    ],
)  # fmt: skip
def test_each_check_can_fail_alone(
    name: str, promote: dict[str, Any], model: PredictionReply, measured: str, expected: str
) -> None:
    """The other checks pass; the failing one has the measured value, the limit and a remedy."""
    report = judge(settings(**{"class_floors": {"good": 0.5}, **promote}), TRUTH, model, reply(TENTH))
    assert [check.name for check in report.checks] == ALL
    assert failed(report) == [name]
    check = check_of(report, name)
    assert check.measured.startswith(measured)
    assert expected in check.expected
    assert check.remedy


def test_a_version_that_fails_all_checks_gets_all_of_them() -> None:
    """No check hides another."""
    wanted = settings(min_score=0.99, class_floors={"bad": 0.99}, min_docs_per_s=1e6)
    model = replace(reply(range(200), sure=0.99, classes=("bad", "good", "odd")), input_columns={"body": "string"})
    assert failed(judge(wanted, TRUTH, model, reply(TENTH))) == ALL[1:]


def test_a_version_that_does_not_load_has_no_other_check() -> None:
    report = judge(settings(), TRUTH, NoReply("there is no backbone"), reply(TENTH))
    assert [(check.name, check.measured) for check in report.failed] == [("loads", "there is no backbone")]
    assert len(report.checks) == 1


def test_without_predictions_of_the_champion_the_regression_check_fails() -> None:
    """A version that cannot be compared is not known to be as good."""
    report = judge(settings(), TRUTH, reply(TENTH), NoReply("it was changed"))
    assert failed(report) == ["regression"]
    assert check_of(report, "regression").measured == "the champion does not predict: it was changed"
    assert "score_before" not in report.figures


def test_the_first_version_is_compared_with_fixed_limits_only() -> None:
    report = judge(settings(), TRUTH, reply(TENTH), None)
    assert [check.name for check in report.checks] == ["loads", "schema", "score", "calibration", "throughput"]
    assert not report.failed
    assert failed(judge(settings(), TRUTH, reply(TENTH, sure=0.6), None)) == ["calibration"]


def test_without_rows_only_checks_that_need_none_are_made() -> None:
    report = judge(settings(), [], reply(TENTH), reply(TENTH))
    assert [check.name for check in report.checks] == ["loads", "schema", "classes"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_figures_are_those_of_scikit_learn(metric: str) -> None:
    """With different error rates of the two versions; `difference` is that of their scores."""
    draw = np.random.default_rng(0)
    model, champion = (reply(np.flatnonzero(draw.random(N) < share)) for share in (0.08, 0.15))
    report = judge(settings(metric, class_floors={"bad": 0, "good": 0}), TRUTH, model, champion)
    own = {
        "accuracy": lambda labels: np.mean([a == b for a, b in zip(TRUTH, labels, strict=True)]),
        "balanced_accuracy": lambda labels: balanced_accuracy_score(TRUTH, labels),
        "macro_f1": lambda labels: f1_score(TRUTH, labels, average="macro"),
    }[metric]
    assert report.figures["score"] == pytest.approx(own(model.labels))
    assert report.figures["difference"] == pytest.approx(own(model.labels) - own(champion.labels))
    bad, good = f1_score(TRUTH, model.labels, average=None)
    assert check_of(report, "class_floors").measured == f"bad {100 * bad:.1f}, good {100 * good:.1f}"
    assert check_of(report, "class_floors").value == pytest.approx(min(bad, good))


def test_the_regression_check_uses_the_lower_bound() -> None:
    """Equal predictions have the bound 0; a mean difference within the margin fails where it is too uncertain."""
    none = settings("accuracy", max_regression=0)
    assert judge(none, TRUTH, reply(TENTH), reply(TENTH)).figures["difference_at_least"] == 0
    assert not judge(none, TRUTH, reply(TENTH), reply(TENTH)).failed
    # as many errors on other documents, 20 against 20 of 400, the normal bound is 1.645 * sqrt(0.1 / 400) below 0
    report = judge(settings("accuracy"), TRUTH, reply(range(20, 60)), reply(TENTH))
    assert report.figures["difference"] == 0
    assert report.figures["difference_at_least"] == pytest.approx(-1.645 * np.sqrt(0.1 / N), abs=0.006)
    assert failed(report) == ["regression"]
    assert not judge(settings("accuracy", max_regression=0.04), TRUTH, reply(range(20, 60)), reply(TENTH)).failed
    assert not judge(none, TRUTH, reply(range(10)), reply(TENTH)).failed


def test_a_constant_prediction_fails() -> None:
    """By default the limit is above the score of the same label for all documents; an equal score does not pass."""
    for metric, constant in (("accuracy", 0.5), ("macro_f1", 1 / 3)):
        one = reply([row for row in range(N) if TRUTH[row] == "bad"], sure=0.5)
        report = judge(settings(metric), TRUTH, one, None)
        assert report.figures["score"] == pytest.approx(constant)
        assert failed(report) == ["score"]
        assert check_of(report, "score").expected == f"above {100 * constant:.1f}, one label for all"
    assert not judge(settings(min_score=0.3), TRUTH, one, None).failed


def test_the_calibration_limit_allows_for_few_documents() -> None:
    """A calibrated version on 30 documents: the limit is what chance alone gives; on many it is the setting."""
    model, rows = reply(TENTH), slice(25, 55)
    few = replace(model, labels=model.labels[rows], probabilities=model.probabilities[rows])
    check = check_of(judge(settings(max_ece=0.01), TRUTH[rows], few, None), "calibration")
    assert check.limit > 0.05
    assert "as chance alone gives" in check.expected
    assert check.value == pytest.approx(abs(0.5 - 0.9))
    assert not check.passed
    assert check_of(judge(settings(), TRUTH, model, None), "calibration").limit == 0.1


def test_documents_of_an_unknown_class_count_as_errors() -> None:
    """The evaluation set has a class that the version lacks."""
    truth = ["odd" if row < 40 else label for row, label in enumerate(TRUTH)]
    report = judge(settings("accuracy"), truth, reply([]), None)
    assert report.figures["score"] == pytest.approx(0.9)
    assert report.figures["ece"] == pytest.approx(0, abs=1e-9)


def test_a_multilabel_model_is_measured_by_whole_lists() -> None:
    """A list is right as a whole; calibration covers every class of every document; the constant is a list."""
    truth = [["a"], ["a", "b"], []] * 36 + [["c"]] * 12  # c is not known to the version
    predicted: list[Any] = [["a"], ["a", "b"], []] * 36 + [["a"]] * 12
    probabilities = np.array([[0.9 if c in names else 0.1 for c in "ab"] for names in predicted])
    model = PredictionReply({"text": "string"}, ("a", "b"), True, predicted, probabilities, 1.0)
    report = judge(settings("accuracy"), truth, model, None)
    right = [set(a) == set(b) for a, b in zip(truth, predicted, strict=True)]
    assert report.figures["score"] == pytest.approx(np.mean(right))
    has = np.array([[c in names for c in "abc"] for names in truth])
    probabilities = np.hstack([probabilities, np.zeros((120, 1))])
    gaps = [abs((has[probabilities == level] - level).sum()) for level in (0, 0.1, 0.9)]
    assert report.figures["ece"] == pytest.approx(sum(gaps) / has.size)
    assert check_of(report, "score").limit == pytest.approx(0.3)


def test_an_abstention_counts_as_the_label_without_the_band() -> None:
    """The abstention band changes no score."""
    model = reply(TENTH)
    silent = replace(model, labels=[None if row % 3 else label for row, label in enumerate(model.labels)])
    assert (
        judge(settings(), TRUTH, silent, model).figures["score"]
        == judge(settings(), TRUTH, model, model).figures["score"]
    )


def test_mlflow_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelValidationFailedException fails a check; every other exception is raised."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    check = GateCheck("score", 0.5, 0.6, "", "", "")
    assert not check.passed
    assert replace(check, at_most=True).passed
    assert not replace(check, value=float("nan"), at_most=True).passed
    monkeypatch.setattr(mlflow, "validate_evaluation_results", lambda *_: None)
    assert check.passed

    def refuse(error: Exception) -> Any:
        raise error

    monkeypatch.setattr(mlflow, "validate_evaluation_results", lambda *_: refuse(ModelValidationFailedException("no")))
    assert not replace(check, value=0.7).passed
    monkeypatch.setattr(mlflow, "validate_evaluation_results", lambda *_: refuse(MlflowException("broken")))
    with pytest.raises(MlflowException, match="broken"):
        _ = check.passed


def test_the_table_shows_all_checks(capsys: pytest.CaptureFixture[str]) -> None:
    """One row per check, brackets printed as they are; below it the remedies of the failed checks."""
    model = replace(reply(TENTH, sure=0.6), input_columns={"[bold]": "long"})
    terminal.gate(judge(settings(), TRUTH, model, None).checks)
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert ["schema", "[bold]: long", "text: string", "failed"] in rows
    assert ["score", "90.0 accuracy", "above 50.0, one label for all", "passed"] in rows
    assert ["calibration", "error 30.0", "at most 10.0", "failed"] in rows
    assert shown.splitlines()[-2:] == [
        "schema: register the version with `spin train`",
        "calibration: train again with more validation documents, or raise promote.max_ece",
    ]
