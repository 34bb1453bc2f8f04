"""The gate's checks on constructed predictions: every check can fail alone, and figures match independent ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from jobs.commands.registry_commands import print_gate
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion import gate, gate_checks, judged_version
from pipelines.registry.promotion.earlier_gates import EarlierGates
from pipelines.registry.promotion.gate import GateReport, run_gate
from pipelines.registry.promotion.gate_checks import CheckResult
from pipelines.registry.promotion.judged_version import JudgedVersion, NoReply
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from pipelines.service_errors import StalledError
from spin.settings import Settings, parse_settings
from tests.support.command_line import read_cells

N = 400
TRUTH = ["bad" if row % 2 else "good" for row in range(N)]
WRONG_LABEL = {"bad": "good", "good": "bad"}


def build_settings(metric: str = "accuracy", decision: dict[str, Any] | None = None, **promote: Any) -> Settings:
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "metric": metric, "promote": promote}
    return parse_settings({**tree, "decision": decision or {}})


def build_reply(errors: Any, *, confidence: float = 0.9, classes: tuple[str, ...] = ("bad", "good")) -> PredictionReply:
    """Predictions that are wrong on the rows `errors` and give every label the probability `confidence`."""
    labels = [WRONG_LABEL[label] if row in errors else label for row, label in enumerate(TRUTH)]
    probabilities = np.zeros((N, len(classes)))
    for row, label in enumerate(labels):
        probabilities[row, [classes.index(WRONG_LABEL[label]), classes.index(label)]] = 1 - confidence, confidence
    return PredictionReply({"text": "string"}, classes, False, list(labels), probabilities, 1.0)


TENTH = range(40)
CALIBRATED = build_reply(TENTH)
"""predictions that are wrong on a tenth of the rows and give every label the probability 0.9"""


def judge(*of_version: Any, **keywords: Any) -> GateReport:
    """The report on a version, given by the fields of `JudgedVersion`."""
    version = JudgedVersion(*of_version, **keywords)
    return GateReport((gate_checks.judge_loading(version.model), *gate_checks.judge(version)), version.labels_digest)


def list_failed_checks(report: GateReport) -> list[str]:
    """Return the names of the failed checks."""
    return [check.name for check in report.failed]


def find_check(report: GateReport, name: str) -> CheckResult:
    [check] = [check for check in report.checks if check.name == name]
    return check


COMPARISONS = ["regression", "best_champion"]
ALL_CHECKS = ["loads", "schema", "classes", "score", *COMPARISONS, "class_floors", "calibration", "throughput"]


@pytest.mark.parametrize(
    ("name", "promote", "model", "measured", "expected"),
    [
        ("schema", {}, replace(CALIBRATED, input_columns={"text": "long"}), "text: long", "text: string"),
        ("schema", {}, replace(CALIBRATED, input_columns={}), "none", "text: string"),
        ("classes", {}, build_reply(TENTH, classes=("bad", "good", "extra")), "adds extra", "the champion's 2 classes"),
        ("score", {"min_score": 0.95}, CALIBRATED, "90.0 accuracy", "at least 95.0"),
        ("class_floors", {"class_floors": {"bad": 0.8, "good": 0.95}}, CALIBRATED, "bad 90.0, good 90", "good 95"),
        ("class_floors", {"class_floors": {"extra": 0.1}}, CALIBRATED, "extra has no document", "extra 10.0"),
        ("calibration", {}, build_reply(TENTH, confidence=0.6), "error 30.0", "at most 10.0"),
        ("throughput", {"min_docs_per_s": 500}, CALIBRATED, "400.0 documents/s, the champion 400.0", "at least 500"),
    ],
)  # fmt: skip
def test_each_check_can_fail_alone(
    name: str, promote: dict[str, Any], model: PredictionReply, measured: str, expected: str
) -> None:
    """The other checks pass; the failing one has the measured value, the limit and a remedy."""
    report = judge(build_settings(**{"class_floors": {"good": 0.5}, **promote}), TRUTH, model, CALIBRATED)
    assert [check.name for check in report.checks] == ALL_CHECKS
    assert list_failed_checks(report) == [name]
    check = find_check(report, name)
    assert check.measured.startswith(measured)
    assert expected in check.expected
    assert check.remedy


def test_the_score_says_how_certain_it_is_and_on_what_it_was_measured() -> None:
    """The interval is that of a share: 90 % of 400 documents."""
    settings = build_settings()
    report = judge(settings, TRUTH, CALIBRATED, None)
    half = 1.96 * np.sqrt(0.9 * 0.1 / N)
    low, high = report.figures["score_low"], report.figures["score_high"]
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.006)
    shown = f"90.0 accuracy [{100 * low:.1f}–{100 * high:.1f}] on 400 documents"
    assert find_check(report, "score").measured == f"{shown} with early exits, as in a night"
    whole = settings.model_copy(update={"classify": settings.classify.model_copy(update={"cascade": False})})
    assert find_check(judge(whole, TRUTH, CALIBRATED, None), "score").measured == f"{shown} at full depth"


def test_a_worse_version_fails_against_the_champion_who_is_also_the_best() -> None:
    """Both checks have the measured difference, its bound, the margin and the confidence."""
    report = judge(build_settings(), TRUTH, build_reply(range(60)), CALIBRATED)
    assert list_failed_checks(report) == COMPARISONS
    regression, best = (find_check(report, name) for name in COMPARISONS)
    assert regression.measured.startswith("-5.0, at least -7.")
    assert best.measured == f"{regression.measured} against the champion, 90.0"
    assert regression.expected == "at least -1.0 against the champion, with 97.5 % confidence"
    assert best.expected == "at least -1.0 against the best champion, with 97.5 % confidence"


def test_the_best_champion_is_the_one_with_the_highest_score() -> None:
    """A version within the margin of the champion fails where an earlier one was better; failed ones raise the bar."""
    champions = {"3": build_reply(range(20)), "5": build_reply(range(4)), "7": build_reply(range(8))}
    model = build_reply(range(40))
    report = judge(build_settings(), TRUTH, model, CALIBRATED, EarlierGates(champions, missing=("1", "2")))
    assert list_failed_checks(report) == ["best_champion"]
    measured = find_check(report, "best_champion").measured
    assert measured.startswith("-9.0, at least -1")
    assert measured.endswith(" against version 5, 99.0; no predictions of version 1, 2 to compare with")
    assert report.figures["score_best"] == pytest.approx(0.99)
    assert report.figures["difference_best"] == pytest.approx(-0.09)
    assert -0.13 < report.figures["difference_best_at_least"] < -0.1


def test_former_champions_count_also_when_the_version_of_the_champion_was_deleted() -> None:
    """MLflow deletes the alias with the version, so there is no champion, and the attempt counts for later ones."""
    earlier = EarlierGates({"3": build_reply(range(20)), "5": build_reply(range(4))})
    report = judge(build_settings(), TRUTH, build_reply(range(40)), None, earlier)
    assert list_failed_checks(report) == ["best_champion"]
    assert find_check(report, "best_champion").measured.endswith(" against version 5, 99.0")
    assert report.labels_digest
    assert not judge(build_settings(), TRUTH, build_reply(range(40)), None).labels_digest


def test_stored_predictions_are_decided_by_the_settings() -> None:
    """Stored probabilities count, under these thresholds, and not stored labels; unusable predictions are named."""
    stored = replace(CALIBRATED, labels=[WRONG_LABEL[str(label)] for label in CALIBRATED.labels])
    other_classes = build_reply([], classes=("bad", "good", "extra"))
    cut = replace(CALIBRATED, labels=CALIBRATED.labels[:9], probabilities=CALIBRATED.probabilities[:9])
    earlier = EarlierGates({"1": stored, "2": replace(other_classes, classes=("b", "g", "x")), "3": cut})
    settings = build_settings(decision={"thresholds": {"good": 0.95}})
    report = judge(settings, TRUTH, CALIBRATED, NoReply("it was changed"), earlier)
    measured = find_check(report, "best_champion").measured  # under this threshold every label is bad
    assert measured.startswith("+40.0, at least +3")
    assert measured.endswith(" against version 1, 50.0; no predictions of version 2, 3 to compare with")


def test_each_version_is_decided_by_the_thresholds_that_its_training_chose() -> None:
    """Of stored predictions too, and where the decision abstains; the settings replace them."""
    chosen = replace(CALIBRATED, labels=[None] * N, thresholds={"bad": 0.05, "good": 0.95})
    report = judge(build_settings(), TRUTH, chosen, CALIBRATED, EarlierGates({"1": chosen}))
    assert report.figures["score"] == pytest.approx(0.5)  # every label is bad
    assert report.figures["score_best"] == pytest.approx(0.9)
    assert judge(build_settings(), TRUTH, CALIBRATED, None, EarlierGates()).figures["score"] == pytest.approx(0.9)
    settings = build_settings(decision={"thresholds": {"good": 0.5}})
    assert judge(settings, TRUTH, chosen, None).figures["score"] == pytest.approx(0.9)


def test_attempts_share_the_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    """After f others an attempt may spend 1 / ((1 + f) (2 + f)) of it; one that gave the same labels is the same."""
    asked: list[float] = []
    bound = judged_version.lower_bound
    monkeypatch.setattr(judged_version, "lower_bound", lambda *args: asked.append(args[4]) or bound(*args))
    plain = judge(build_settings(), TRUTH, build_reply(range(42)), CALIBRATED)
    earlier = EarlierGates(tried=frozenset({"another", plain.labels_digest}), with_others=1)
    report = judge(build_settings(), TRUTH, build_reply(range(42)), CALIBRATED, earlier)
    assert asked == [0.05 / 2, 0.05 / 12]
    expected = "at least -1.0 against the champion, with 99.58 % confidence, after 2 other attempts"
    assert find_check(report, "regression").expected == expected
    assert find_check(report, "best_champion").expected == expected.replace("the champion", "the best champion")
    assert report.figures["difference_at_least"] < plain.figures["difference_at_least"]


def test_all_failed_checks_are_reported() -> None:
    """A failed check does not prevent the others from running."""
    strict = build_settings(min_score=0.99, class_floors={"bad": 0.99}, min_docs_per_s=1e6)
    model = replace(
        build_reply(range(200), confidence=0.99, classes=("bad", "good", "extra")), input_columns={"body": "string"}
    )
    assert list_failed_checks(judge(strict, TRUTH, model, CALIBRATED)) == ALL_CHECKS[1:]


def test_a_version_that_does_not_load_has_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed check gives the reason."""
    monkeypatch.setattr(gate, "_measure", lambda *_: NoReply("there is no backbone"))
    registry: Any = SimpleNamespace(settings=build_settings())
    report = run_gate(registry, "2", "1", EvaluationSet(["a"], ["text"], ["good"]), EarlierGates())
    assert [(check.name, check.measured) for check in report.failed] == [("loads", "there is no backbone")]
    assert len(report.checks) == 1
    assert not report.failed[0].can_be_forced


def test_without_predictions_of_the_champion_the_regression_check_fails() -> None:
    """A version that cannot be compared with the champion may be worse."""
    report = judge(build_settings(), TRUTH, CALIBRATED, NoReply("it was changed"))
    assert list_failed_checks(report) == ["regression"]
    assert find_check(report, "regression").measured == "the champion does not predict: it was changed"
    assert "score_before" not in report.figures


def test_the_first_version_is_compared_with_fixed_limits_only() -> None:
    """Checks that need a champion are left out."""
    report = judge(build_settings(), TRUTH, CALIBRATED, None)
    assert [check.name for check in report.checks] == ["loads", "schema", "score", "calibration", "throughput"]
    assert not report.failed
    assert list_failed_checks(judge(build_settings(), TRUTH, build_reply(TENTH, confidence=0.6), None)) == [
        "calibration"
    ]


def test_without_an_evaluation_set_only_checks_that_need_no_rows_run() -> None:
    """The checks are whether the version loads, its schema and its classes."""
    report = judge(build_settings(), [], CALIBRATED, CALIBRATED)
    assert [check.name for check in report.checks] == ["loads", "schema", "classes"]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_figures_equal_those_of_scikit_learn(metric: str) -> None:
    """The model and the champion have different error rates; `difference` is that of their scores."""
    draw = np.random.default_rng(0)
    model, champion = (build_reply(np.flatnonzero(draw.random(N) < share)) for share in (0.08, 0.15))
    report = judge(build_settings(metric, class_floors={"bad": 0, "good": 0}), TRUTH, model, champion)
    sklearn_score = {
        "accuracy": lambda labels: np.mean([a == b for a, b in zip(TRUTH, labels, strict=True)]),
        "balanced_accuracy": lambda labels: balanced_accuracy_score(TRUTH, labels),
        "macro_f1": lambda labels: f1_score(TRUTH, labels, average="macro"),
    }[metric]
    assert report.figures["score"] == pytest.approx(sklearn_score(model.labels))
    assert report.figures["difference"] == pytest.approx(sklearn_score(model.labels) - sklearn_score(champion.labels))
    bad, good = f1_score(TRUTH, model.labels, average=None)
    assert find_check(report, "class_floors").measured == f"bad {100 * bad:.1f}, good {100 * good:.1f}"
    assert find_check(report, "class_floors").value == pytest.approx(min(bad, good))


def test_the_regression_check_uses_the_lower_bound() -> None:
    """Equal predictions have the bound 0; a difference within the margin fails if it is too uncertain."""
    no_margin = build_settings("accuracy", max_regression=0)
    assert judge(no_margin, TRUTH, CALIBRATED, CALIBRATED).figures["difference_at_least"] == 0
    assert not judge(no_margin, TRUTH, CALIBRATED, CALIBRATED).failed
    # 20 errors of the model alone and 20 of the champion alone: the normal bound is 1.96 * sqrt(0.1 / 400) below 0
    report = judge(build_settings("accuracy"), TRUTH, build_reply(range(20, 60)), CALIBRATED)
    assert report.figures["difference"] == 0
    assert report.figures["difference_at_least"] == pytest.approx(-1.96 * np.sqrt(0.1 / N), abs=0.006)
    assert list_failed_checks(report) == COMPARISONS
    assert not judge(
        build_settings("accuracy", max_regression=0.04), TRUTH, build_reply(range(20, 60)), CALIBRATED
    ).failed
    assert not judge(no_margin, TRUTH, build_reply(range(10)), CALIBRATED).failed


def test_a_constant_prediction_fails_the_score_check() -> None:
    """By default a version must score above the best constant label; an equal score does not pass."""
    for metric, constant in (("accuracy", 0.5), ("macro_f1", 1 / 3)):
        constant_reply = build_reply([row for row in range(N) if TRUTH[row] == "bad"], confidence=0.5)
        report = judge(build_settings(metric), TRUTH, constant_reply, None)
        assert report.figures["score"] == pytest.approx(constant)
        assert list_failed_checks(report) == ["score"]
        assert find_check(report, "score").expected == f"above {100 * constant:.1f}, one label for all"
    assert not judge(build_settings(min_score=0.3), TRUTH, constant_reply, None).failed


def test_the_calibration_limit_allows_for_few_documents() -> None:
    """With 30 documents the limit is the error that chance alone gives; with many it is the setting."""
    model, rows = CALIBRATED, slice(25, 55)
    reply = replace(model, labels=model.labels[rows], probabilities=model.probabilities[rows])
    check = find_check(judge(build_settings(max_ece=0.01), TRUTH[rows], reply, None), "calibration")
    assert check.limit > 0.05
    assert "as chance alone gives" in check.expected
    assert check.value == pytest.approx(abs(0.5 - 0.9))
    assert not check.passed
    assert find_check(judge(build_settings(), TRUTH, model, None), "calibration").limit == 0.1


def test_documents_of_an_unknown_class_count_as_errors() -> None:
    """The evaluation set has a class that the version does not know."""
    truth = ["extra" if row < 40 else label for row, label in enumerate(TRUTH)]
    report = judge(build_settings("accuracy"), truth, build_reply([]), None)
    assert report.figures["score"] == pytest.approx(0.9)
    assert report.figures["ece"] == pytest.approx(0, abs=1e-9)


def test_a_multilabel_model_is_scored_by_whole_lists() -> None:
    """Only an equal list is correct; calibration covers the classes that are given; the constant is a list."""
    truth = [["a"], ["a", "b"], []] * 36 + [["c"]] * 12  # the version does not know c
    predicted: list[Any] = [["a"], ["a", "b"], []] * 36 + [["a"]] * 12
    probabilities = np.array([[0.8 if c in names else 0.1 for c in "ab"] for names in predicted])
    model = PredictionReply({"text": "string"}, ("a", "b"), True, predicted, probabilities, 1.0)
    report = judge(build_settings("accuracy"), truth, model, None)
    correct = [set(a) == set(b) for a, b in zip(truth, predicted, strict=True)]
    assert report.figures["score"] == pytest.approx(np.mean(correct))
    given = [name in names for names, labels in zip(truth, predicted, strict=True) for name in labels]
    assert report.figures["ece"] == pytest.approx(np.mean(given) - 0.8)
    assert find_check(report, "score").limit == pytest.approx(0.3)


def test_an_abstention_counts_as_the_label_without_the_band() -> None:
    """The abstention band changes no score."""
    model = CALIBRATED
    abstaining = replace(model, labels=[None if row % 3 else label for row, label in enumerate(model.labels)])
    scores = [judge(build_settings(), TRUTH, candidate, model).figures["score"] for candidate in (abstaining, model)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("value", "at_least", "at_most"),
    [(0.5, False, True), (0.6, True, True), (0.7, True, False), (np.nan, False, False)],
)
def test_a_check_passes_up_to_and_at_its_limit(value: float, at_least: bool, at_most: bool) -> None:
    """The limit itself passes; a value that cannot be measured never does."""
    check = CheckResult("score", value, 0.6, "", "", "")
    assert (check.passed, replace(check, at_most=True).passed) == (at_least, at_most)
    assert check.to_dict()["passed"] is at_least


def test_the_printed_table_shows_all_checks(capsys: pytest.CaptureFixture[str]) -> None:
    """It has one row per check and prints brackets literally; the remedies of the failed checks follow."""
    model = replace(build_reply(TENTH, confidence=0.6), input_columns={"[bold]": "long"})
    print_gate(judge(build_settings(), TRUTH, model, None).checks)
    output = capsys.readouterr().out
    rows = read_cells(output)
    assert ["schema", "[bold]: long", "text: string", "failed"] in rows
    [found] = [row[1:] for row in rows if row[0] == "score"]
    assert found[0].startswith("90.0 accuracy [")
    assert found[1:] == ["above 50.0, one label for all", "passed"]
    [calibration] = [row[1:] for row in rows if row[0] == "calibration"]
    assert calibration[0].startswith("error 30.0, exact probabilities up to ")
    assert calibration[1:] == ["at most 10.0", "failed"]
    assert output.splitlines()[-2:] == [
        "schema: register the version with `spin train`",
        "calibration: train again with more validation documents, or raise promote.max_ece",
    ]


def test_a_champion_that_hangs_fails_a_check_and_a_version_that_hangs_ends_the_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a champion that hangs can be replaced by force."""

    def predict(model: Path, *_: Any) -> PredictionReply:
        if model.name == "hangs":
            raise StalledError("did not load and predict within 3 s")
        return CALIBRATED

    monkeypatch.setattr(gate, "predict_in_subprocess", predict)
    monkeypatch.setattr(gate, "with_engine", lambda settings, _: settings)
    registry: Any = SimpleNamespace(
        settings=build_settings(), name="tiny", download_model=lambda number, folder: folder / number
    )
    rows = EvaluationSet([str(row) for row in range(len(TRUTH))], ["text"] * len(TRUTH), TRUTH)
    report = run_gate(registry, "sound", "hangs", rows, EarlierGates())
    assert list(report.predictions) == ["sound"]
    assert list_failed_checks(report) == ["regression"]
    expected = "the champion does not predict: version hangs of tiny did not load and predict within 3 s"
    assert find_check(report, "regression").measured == expected
    with pytest.raises(StalledError, match="^version hangs of tiny did not load and predict within 3 s$"):
        run_gate(registry, "hangs", "sound", rows, EarlierGates())


def test_a_version_that_perturbations_break_more_than_the_champion_fails() -> None:
    """On perturbed texts alone; both were right on the original ones."""
    settings = build_settings(max_robustness_loss=0.02)
    perturbed = build_reply(range(80)), CALIBRATED
    report = judge(settings, TRUTH, CALIBRATED, CALIBRATED, perturbed=perturbed)
    assert list_failed_checks(report) == ["robustness"]
    check = find_check(report, "robustness")
    assert check.measured.startswith("-10.0, at least -1")
    assert check.expected == "at least -2.0 against the champion on perturbed texts, with 97.5 % confidence"
    assert "promote.max_robustness_loss" in check.remedy
    assert not judge(settings, TRUTH, CALIBRATED, CALIBRATED, perturbed=(build_reply(range(42)), CALIBRATED)).failed
    assert report.figures["difference_perturbed"] == pytest.approx(-0.1)
    mute = judge(settings, TRUTH, CALIBRATED, CALIBRATED, perturbed=(NoReply("it fails"), CALIBRATED))
    assert find_check(mute, "robustness").measured == "the version does not predict: it fails"
    silent = judge(settings, TRUTH, CALIBRATED, CALIBRATED, perturbed=(CALIBRATED, NoReply("it was changed")))
    assert find_check(silent, "robustness").measured == "the champion does not predict: it was changed"
    assert list_failed_checks(silent) == ["robustness"]


@pytest.mark.parametrize(("limit", "champion"), [(0.02, "2"), (0.02, None), (None, "2")])
def test_the_gate_perturbs_texts_only_where_they_are_compared(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, champion: str | None
) -> None:
    """The other figures, and what is stored for later gates, are of the original texts."""
    asked: list[tuple[str, list[str]]] = []

    def predict(model: Path, texts: list[str], _: Any) -> PredictionReply:
        asked.append((model.name, list(texts)))
        fails = model.name == "1" and texts[0].endswith("perturbed")
        labels = ["good" if fails else TRUTH[int(text.split()[1])] for text in texts]
        probabilities = np.array([[0.95, 0.05] if label == "bad" else [0.05, 0.95] for label in labels])
        return PredictionReply({"text": "string"}, ("bad", "good"), False, list(labels), probabilities, 40.0)

    monkeypatch.setattr(gate, "predict_in_subprocess", predict)
    monkeypatch.setattr(gate, "with_engine", lambda settings, _: settings)
    monkeypatch.setattr(gate, "mix_perturbations", lambda texts: [f"{text} perturbed" for text in texts])
    registry: Any = SimpleNamespace(
        settings=build_settings(max_robustness_loss=limit), name="tiny",
        download_model=lambda number, folder: folder / number,
    )  # fmt: skip
    texts = [f"text {row} of many" for row in range(N)]
    report = run_gate(registry, "1", champion, EvaluationSet(list(map(str, range(N))), texts, TRUTH), EarlierGates())
    versions = [version for version in ("1", champion) if version]
    compared = limit is not None and champion is not None
    perturbed = [f"{text} perturbed" for text in texts]
    assert asked == [(version, texts) for version in versions] + [(v, perturbed) for v in versions if compared]
    assert list_failed_checks(report) == ["robustness"] * compared
    assert {number: len(reply.labels) for number, reply in report.predictions.items()} == dict.fromkeys(versions, N)
    assert report.figures["score"] == 1
    assert report.figures["documents_per_s"] == pytest.approx(10)


def test_the_bound_counts_documents_of_a_group_together() -> None:
    """Groups of ten that are right or wrong together: the bound is that of a tenth of the documents."""
    groups = np.arange(N, dtype=np.uint64) // 10
    model, champion = build_reply(range(20, 60)), build_reply(range(40))
    grouped, alone = (judge(build_settings("accuracy"), TRUTH, model, champion, groups=g) for g in (groups, None))
    bound, width = alone.figures["difference_at_least"], alone.figures["score_high"] - alone.figures["score_low"]
    assert grouped.figures["difference"] == alone.figures["difference"] == 0
    assert grouped.figures["difference_at_least"] == pytest.approx(np.sqrt(10) * bound, rel=0.2)
    wider = grouped.figures["score_high"] - grouped.figures["score_low"]
    assert wider == pytest.approx(np.sqrt(10) * width, rel=0.2)
