"""The tables and lines that are printed when a training ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs import terminal
from pipelines.data.training_labels import SplitOverlap
from pipelines.registry.version_records import RegisteredVersion
from pipelines.training.train import TrainReport, TrainResults, TrainSeconds
from pipelines.training.workflow import StageEvent
from spin.heads.candidate import CandidateSummary
from spin.heads.fitted import ChoiceSummary, ExitSummary, LeakageCap, TrainingSummary, UncappedChoice
from spin.settings import Choice

POINTS = [
    CandidateSummary(
        depth=depth,
        compute=compute,
        eta=0.5,
        part=("ffn",) * (depth == 2),
        strength=1,
        l1=0.03,
        neurons=100 * depth,
        valid_score=score,
    )
    for depth, compute, score in ((1, 0.1666, 0.61), (2, 0.3333, 0.702), (3, 0.5, 0.7049), (4, 1.0, 0.71))
]


def build_train_report(choose: Choice, exits: tuple[ExitSummary, ...] = (), **depths: int) -> TrainReport:
    """The report of a train stage; `depths` gives the number of blocks that each choice reads."""
    choices = {
        name: ChoiceSummary(
            **POINTS[depth - 1].model_dump(),
            head="mlp",
            mlp_chance=None,
            valid_log_loss=0.5,
            temperature=1.0,
            valid_ece=0.1,
            valid_ece_uncalibrated=0.2,
            exits=exits,
        )
        for name, depth in depths.items()
    }
    results = TrainResults(
        choice=TrainingSummary(choices=choices, frontier=tuple(POINTS), tried=30),
        classes=("bad", "good"),
        multilabel=False,
        table=(),
        per_class={},
        test_ece=None,
        counts={"train": 80, "valid": 20, "test": 0},
        suspects=0,
        overlap=SplitOverlap(),
        notes=(),
        seconds=TrainSeconds(1.0, 0.0),
        artifact={},
    )
    return TrainReport("f" * 64, results, RegisteredVersion("tiny", "3", "r"), choose)


def read_printed_words(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the words of each printed line, without the frame of the table."""
    lines = capsys.readouterr().out.splitlines()
    return [line.translate(str.maketrans("│┃", "  ")).split() for line in lines]


def test_the_frontier_is_printed_by_depth_with_the_choices_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """Every depth has one row with its share of the compute; each choice is named in the row of its depth."""
    terminal.trained(build_train_report("balanced", accuracy=4, balanced=2, cheapest=2))
    lines = read_printed_words(capsys)
    assert ["1", "17", "%", "100", "no", "0.50", "61.0"] in lines
    assert ["2", "33", "%", "200", "no", "0.50", "70.2", "balanced,", "cheapest"] in lines
    assert ["3", "50", "%", "300", "no", "0.50", "70.5"] in lines
    assert ["4", "100", "%", "400", "no", "0.50", "71.0", "accuracy"] in lines
    for line in (
        "accuracy 71.0 on validation, 100 % of the compute, 400 neurons of 4 blocks",
        "balanced 70.2 on validation, 33 % of the compute, 200 neurons of 2 blocks (ffn only)",
    ):
        assert line.split() in lines
    assert lines[-1] == ["registered", "tiny", "version", "3", "as", "challenger"]


def test_the_shares_of_exits_are_printed_with_each_choice(capsys: pytest.CaptureFixture[str]) -> None:
    exits = tuple(ExitSummary(depth=d, threshold=0.9, valid_share=s) for d, s in ((-1, 0.314), (2, 0.2)))
    terminal.trained(build_train_report("accuracy", exits, accuracy=4, balanced=4, cheapest=4))
    line = "accuracy 71.0 on validation, 100 % of the compute, 400 neurons of 4 blocks; "
    assert f"{line}31 % exit by words; 20 % exit after block 2".split() in read_printed_words(capsys)


def test_leakage_and_the_price_of_a_cap_are_printed_with_each_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """The frontier shows what its candidates reveal. A choice that the cap has not changed costs nothing."""
    report = build_train_report("accuracy", accuracy=4, balanced=2, cheapest=1)
    choices = {
        name: choice.model_copy(update={"leakage": 0.382, "head": head})
        for (name, choice), head in zip(report.results.choice.choices.items(), ("linear", "mlp", "linear"), strict=True)
    }
    cap = LeakageCap(
        max_leakage=0.4,
        by_frequency=0.08,
        known=2000,
        judged=1500,
        uncapped={
            name: UncappedChoice(leakage=leakage, valid_score=0.724, price=price)
            for name, leakage, price in (("accuracy", 0.548, 0.014), ("balanced", 0.5, -0.002), ("cheapest", 0.382, 0))
        },
    )
    frontier = tuple(point.model_copy(update={"leakage": 0.1 * point.depth}) for point in POINTS)
    summary = report.results.choice.model_copy(update={"choices": choices, "cap": cap, "frontier": frontier})
    terminal.trained(replace(report, results=replace(report.results, choice=summary)))
    lines = read_printed_words(capsys)
    assert " ".join(lines[0]) == "best candidate of every depth that reveals at most 40 % of the words"
    assert ["2", "33", "%", "200", "no", "0.50", "70.2", "20.0", "%", "balanced"] in lines
    costs = "reveals 38.2 % of the words of a text; search.max_leakage costs"
    without = "without it 72.4 on validation, and"
    assert f"{costs} 1.4 points: {without} 54.8 % of the words".split() in lines
    assert f"{costs} -0.2 points of a linear head: {without} 50.0 % of the words".split() in lines
    assert f"{costs} nothing".split() in lines


def test_nothing_about_leakage_is_printed_without_a_cap(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.trained(build_train_report("accuracy", accuracy=4, balanced=2, cheapest=1))
    printed = capsys.readouterr().out
    assert "leakage" not in printed
    assert "reveals" not in printed


@pytest.mark.parametrize(("choose", "neurons", "depth"), [("accuracy", "400", "4"), ("cheapest", "100", "1")])
def test_a_stage_prints_the_choice_in_use(
    capsys: pytest.CaptureFixture[str], choose: Choice, neurons: str, depth: str
) -> None:
    report = build_train_report(choose, accuracy=4, balanced=2, cheapest=1)
    terminal.stage(StageEvent("train", report, 12.3, resumed=False))
    line = f"train {neurons} neurons of {depth} blocks by l1, eta 0.50, mlp head, strength 1, L1 0.03 — 12 s"
    assert read_printed_words(capsys) == [line.split()]
