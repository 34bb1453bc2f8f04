"""The gate's checks on figures made in code: each against its own count, each failing alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from jobs import terminal
from pipelines.registry.gate import Check, GateReport, judge
from pipelines.registry.subprocess_predict import Answer
from spin.settings import Settings, parse_settings

N = 400
TRUTH = ["bad" if row % 2 else "good" for row in range(N)]
OTHER = {"bad": "good", "good": "bad"}


def settings(metric: str = "accuracy", decision: dict[str, Any] | None = None, **promote: Any) -> Settings:
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "metric": metric, "promote": promote}
    return parse_settings({**tree, "decision": decision or {}})


def answer(errors: Any, *, sure: float = 0.9, classes: tuple[str, ...] = ("bad", "good")) -> Answer:
    """One that errs on these rows and is always as sure."""
    labels = [OTHER[label] if row in errors else label for row, label in enumerate(TRUTH)]
    probabilities = np.zeros((N, len(classes)))
    for row, label in enumerate(labels):
        probabilities[row, [classes.index(OTHER[label]), classes.index(label)]] = 1 - sure, sure
    return Answer({"text": "string"}, classes, False, list(labels), probabilities, 1.0)


TENTH = range(40)
"""rows on which a version errs that is as sure as it should be"""


def failed(found: GateReport) -> list[str]:
    return [check.name for check in found.failed]


def check_of(found: GateReport, name: str) -> Check:
    [check] = [check for check in found.checks if check.name == name]
    return check


ALL = ["loads", "schema", "classes", "score", "regression", "class_floors", "calibration", "throughput"]


@pytest.mark.parametrize(
    ("name", "promote", "mine", "found", "expected"),
    [
        ("schema", {}, replace(answer(TENTH), columns={"text": "long"}), "text: long", "text: string"),
        ("schema", {}, replace(answer(TENTH), columns={}), "none", "text: string"),
        ("classes", {}, answer(TENTH, classes=("bad", "good", "odd")), "adds odd", "the champion's 2 classes"),
        ("score", {"min_score": 0.95}, answer(TENTH), "90.0 accuracy", "at least 95.0"),
        ("regression", {}, answer(range(60)), "-5.0, at least -6.", "at least -1.0 against the champion, 95 % sure"),
        ("class_floors", {"class_floors": {"bad": 0.8, "good": 0.95}}, answer(TENTH), "bad 90.0, good 90", "good 95"),
        ("class_floors", {"class_floors": {"odd": 0.1}}, answer(TENTH), "odd has no document", "odd 10.0"),
        ("calibration", {}, answer(TENTH, sure=0.6), "error 30.0", "at most 10.0"),
        ("throughput", {"min_docs_per_s": 500}, answer(TENTH), "400.0 documents/s, the champion 400.0", "at least 500"),
    ],
)  # fmt: skip
def test_each_check_can_fail_alone(name: str, promote: dict[str, Any], mine: Answer, found: str, expected: str) -> None:
    """The others are made all the same, and pass; what was found, what was expected and what to do are told."""
    findings = judge(settings(**{"class_floors": {"good": 0.5}, **promote}), TRUTH, mine, answer(TENTH))
    assert [check.name for check in findings.checks] == ALL
    assert failed(findings) == [name]
    check = check_of(findings, name)
    assert check.found.startswith(found)
    assert expected in check.expected
    assert check.remedy


def test_a_version_that_fails_in_all_is_told_of_all() -> None:
    """No check stands behind another."""
    wanted = settings(min_score=0.99, class_floors={"bad": 0.99}, min_docs_per_s=1e6)
    mine = replace(answer(range(200), sure=0.99, classes=("bad", "good", "odd")), columns={"body": "string"})
    assert failed(judge(wanted, TRUTH, mine, answer(TENTH))) == ALL[1:]


def test_a_version_that_does_not_load_has_nothing_to_measure() -> None:
    findings = judge(settings(), TRUTH, "there is no backbone", answer(TENTH))
    assert [(check.name, check.found) for check in findings.failed] == [("loads", "there is no backbone")]
    assert len(findings.checks) == 1


def test_a_champion_that_does_not_answer_is_no_pass() -> None:
    """What cannot be compared is not known to be no worse."""
    findings = judge(settings(), TRUTH, answer(TENTH), "it was changed")
    assert failed(findings) == ["regression"]
    assert check_of(findings, "regression").found == "the champion does not answer: it was changed"
    assert "score_before" not in findings.figures


def test_the_first_version_meets_the_floors_only() -> None:
    findings = judge(settings(), TRUTH, answer(TENTH), None)
    assert [check.name for check in findings.checks] == ["loads", "schema", "score", "calibration", "throughput"]
    assert not findings.failed
    assert failed(judge(settings(), TRUTH, answer(TENTH, sure=0.6), None)) == ["calibration"]


def test_without_rows_only_what_needs_none_is_checked() -> None:
    findings = judge(settings(), [], answer(TENTH), answer(TENTH))
    assert [check.name for check in findings.checks] == ["loads", "schema", "classes"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_figures_are_those_of_scikit_learn(metric: str) -> None:
    """On answers with unequal errors; the difference is that of both scores."""
    draw = np.random.default_rng(0)
    mine, theirs = (answer(np.flatnonzero(draw.random(N) < share)) for share in (0.08, 0.15))
    found = judge(settings(metric, class_floors={"bad": 0, "good": 0}), TRUTH, mine, theirs)
    own = {
        "accuracy": lambda said: np.mean([a == b for a, b in zip(TRUTH, said, strict=True)]),
        "balanced_accuracy": lambda said: balanced_accuracy_score(TRUTH, said),
        "macro_f1": lambda said: f1_score(TRUTH, said, average="macro"),
    }[metric]
    assert found.figures["score"] == pytest.approx(own(mine.labels))
    assert found.figures["difference"] == pytest.approx(own(mine.labels) - own(theirs.labels))
    bad, good = f1_score(TRUTH, mine.labels, average=None)
    assert check_of(found, "class_floors").found == f"bad {100 * bad:.1f}, good {100 * good:.1f}"
    assert check_of(found, "class_floors").value == pytest.approx(min(bad, good))


def test_no_worse_is_what_the_margin_and_the_number_of_documents_say() -> None:
    """Equal answers lose exactly nothing; a difference within the margin on average may still be too uncertain."""
    none = settings("accuracy", max_regression=0)
    assert judge(none, TRUTH, answer(TENTH), answer(TENTH)).figures["difference_at_least"] == 0
    assert not judge(none, TRUTH, answer(TENTH), answer(TENTH)).failed
    # as many errors, on other documents: 20 against 20 of 400, the normal bound is 1.645 * sqrt(0.1 / 400) below 0
    found = judge(settings("accuracy"), TRUTH, answer(range(20, 60)), answer(TENTH))
    assert found.figures["difference"] == 0
    assert found.figures["difference_at_least"] == pytest.approx(-1.645 * np.sqrt(0.1 / N), abs=0.006)
    assert failed(found) == ["regression"]
    assert not judge(settings("accuracy", max_regression=0.04), TRUTH, answer(range(20, 60)), answer(TENTH)).failed
    assert not judge(none, TRUTH, answer(range(10)), answer(TENTH)).failed


def test_a_constant_answer_is_no_model() -> None:
    """By default the floor is above what one answer for all documents scores; just as much does not pass."""
    for metric, constant in (("accuracy", 0.5), ("macro_f1", 1 / 3)):
        one = answer([row for row in range(N) if TRUTH[row] == "bad"], sure=0.5)
        found = judge(settings(metric), TRUTH, one, None)
        assert found.figures["score"] == pytest.approx(constant)
        assert failed(found) == ["score"]
        assert check_of(found, "score").expected == f"above {100 * constant:.1f}, one answer for all"
    assert not judge(settings(min_score=0.3), TRUTH, one, None).failed


def test_few_documents_show_an_error_of_their_own() -> None:
    """Sure as it should be, on 30 documents: the limit is what chance shows; on many it is the setting."""
    mine, rows = answer(TENTH), slice(25, 55)
    few = replace(mine, labels=mine.labels[rows], probabilities=mine.probabilities[rows])
    found = check_of(judge(settings(max_ece=0.01), TRUTH[rows], few, None), "calibration")
    assert found.limit > 0.05
    assert "which chance alone shows" in found.expected
    assert found.value == pytest.approx(abs(0.5 - 0.9))
    assert not found.passed
    assert check_of(judge(settings(), TRUTH, mine, None), "calibration").limit == 0.1


def test_what_a_version_does_not_know_is_an_error_of_it() -> None:
    """The evaluation set has a class that it lacks: its documents are wrong, and it was sure of something else."""
    truth = ["odd" if row < 40 else label for row, label in enumerate(TRUTH)]
    found = judge(settings("accuracy"), truth, answer([]), None)
    assert found.figures["score"] == pytest.approx(0.9)
    assert found.figures["ece"] == pytest.approx(0, abs=1e-9)


def test_lists_of_classes_are_measured_as_lists() -> None:
    """Right as a whole, calibration over every class of every document; one answer for all is the commonest list."""
    truth = [["a"], ["a", "b"], []] * 36 + [["c"]] * 12  # c is not known to the version
    said: list[Any] = [["a"], ["a", "b"], []] * 36 + [["a"]] * 12
    probabilities = np.array([[0.9 if c in of else 0.1 for c in "ab"] for of in said])
    found = judge(
        settings("accuracy"), truth, Answer({"text": "string"}, ("a", "b"), True, said, probabilities, 1.0), None
    )
    right = [set(a) == set(b) for a, b in zip(truth, said, strict=True)]
    assert found.figures["score"] == pytest.approx(np.mean(right))
    has = np.array([[c in of for c in "abc"] for of in truth])
    probabilities = np.hstack([probabilities, np.zeros((120, 1))])
    gaps = [abs((has[probabilities == level] - level).sum()) for level in (0, 0.1, 0.9)]
    assert found.figures["ece"] == pytest.approx(sum(gaps) / has.size)
    assert check_of(found, "score").limit == pytest.approx(0.3)


def test_an_abstention_counts_as_the_label_without_the_band() -> None:
    """A band in which a night gives no label makes a version neither better nor worse."""
    mine = answer(TENTH)
    silent = replace(mine, labels=[None if row % 3 else label for row, label in enumerate(mine.labels)])
    assert (
        judge(settings(), TRUTH, silent, mine).figures["score"] == judge(settings(), TRUTH, mine, mine).figures["score"]
    )


def test_mlflow_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ModelValidationFailedException, and nothing else, fails a check."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    check = Check("score", 0.5, 0.6, "", "", "")
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


def test_the_table_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A row a check as it stands there, brackets and all; below it what to do about those that failed."""
    mine = replace(answer(TENTH, sure=0.6), columns={"[bold]": "long"})
    terminal.gate(judge(settings(), TRUTH, mine, None).checks)
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert ["schema", "[bold]: long", "text: string", "failed"] in rows
    assert ["score", "90.0 accuracy", "above 50.0, one answer for all", "passed"] in rows
    assert ["calibration", "error 30.0", "at most 10.0", "failed"] in rows
    assert shown.splitlines()[-2:] == [
        "schema: register the version with `spin train`",
        "calibration: train again with more validation documents, or raise promote.max_ece",
    ]
