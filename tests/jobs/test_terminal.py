"""The tables and lines that are printed when a training ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jobs import terminal
from jobs.commands.audit_commands import print_comparison, print_privacy, print_robustness
from jobs.commands.job_commands import print_jobs
from jobs.commands.label_commands import print_scores
from jobs.commands.model_commands import print_evaluation
from jobs.commands.night_commands import print_runs
from jobs.commands.registry_commands import print_versions
from jobs.commands.train_commands import _frontier, print_stage, print_training
from pipelines.data.training_labels import SplitOverlap
from pipelines.registry.version_records import RegisteredVersion
from pipelines.training.train import TrainReport, TrainResults, TrainSeconds
from pipelines.training.workflow import StageEvent
from spin.audit.privacy import ATTRIBUTES
from spin.control_characters import escape_controls, show_controls
from spin.fitted.candidate import CandidateSummary
from spin.fitted.fitted_classifier import ChoiceSummary, ExitSummary, LeakageCap, TrainingSummary, UncappedChoice
from spin.pages.model_card import ContenderResult, ScoreInterval
from spin.settings import Choice

POINTS = [
    CandidateSummary(
        depth=depth,
        compute=compute,
        eta=0.5,
        part=("ffn",) * (depth == 2),
        strength=1,
        neurons=100 * depth,
        words=False,
        valid_score=score,
    )
    for depth, compute, score in ((1, 0.1666, 0.61), (2, 0.3333, 0.702), (3, 0.5, 0.7049), (4, 1.0, 0.71))
]

NARROW = Console(force_terminal=True, color_system=None, width=80, highlight=False, markup=False, emoji=False)


def build_train_report(choose: Choice, exits: tuple[ExitSummary, ...] = (), **depths: int) -> TrainReport:
    """The report of a train stage; `depths` gives the number of blocks that each choice reads."""
    choices = {
        name: ChoiceSummary(
            **POINTS[depth - 1].model_dump(),
            head="network",
            valid_log_loss=0.5,
            shares={"neurons": 1.0},
            valid_ece=0.1,
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
        test_ece_limit=None,
        counts={"train": 80, "valid": 20, "test": 0},
        suspects=0,
        overlap=SplitOverlap(),
        notes=(),
        seconds=TrainSeconds(1.0, 0.0),
        artifact={},
    )
    return TrainReport("f" * 64, results, RegisteredVersion("tiny", "3", "r"), choose)


def build_contender(name: str, interval: ScoreInterval, **figures: int) -> ContenderResult:
    sizes = {"neurons": 16_000, "words": 100_000, "depth": 12, "depth_of": 12} | figures
    return ContenderResult(name, 0.75, interval, 0.70, interval, 4000, neurons_of=160_000, docs_per_s=44_407.2, **sizes)


def test_the_table_has_intervals_and_marks_what_cannot_be_told_apart_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger half of the interval counts; the row `spin` itself is not marked."""
    monkeypatch.setattr(terminal, "out", NARROW)
    report = build_train_report("accuracy", accuracy=4, balanced=2, cheapest=1)
    apart, alike, same = (ScoreInterval(0.69, 0.76, *ends) for ends in ((-0.02, -0.001), (-0.02, 0.001), (0.0, 0.0)))
    rows = [build_contender(*pair) for pair in (("last_layer", apart), ("best_site", alike), ("spin", same))]
    print_training(replace(report, results=replace(report.results, table=tuple(rows))))
    printed = capsys.readouterr().out
    sizes = ["16,000", "100,000", "12/12", "44,400"]
    lines = [line.translate(str.maketrans("│┃", "  ")).split() for line in printed.splitlines()]
    assert ["last_layer", "75.0", "±6.0", "70.0", "±6.0", *sizes] in lines
    assert ["best_site", "75.0", "±6.0", "≈", "70.0", "±6.0", "≈", *sizes] in lines
    assert ["spin", "75.0", "±6.0", "70.0", "±6.0", *sizes] in lines
    assert "±: 95 % interval over 4,000 test documents, at full depth;" in printed
    assert max(len(line) for line in printed.splitlines() if "│" in line) <= 80


def read_printed_words(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the words of each printed line, without the frame of the table."""
    lines = capsys.readouterr().out.splitlines()
    return [line.translate(str.maketrans("│┃", "  ")).split() for line in lines]


def test_the_frontier_is_printed_by_depth_with_the_choices_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """Every depth has one row with its share of the compute; each choice is named in the row of its depth."""
    print_training(build_train_report("balanced", accuracy=4, balanced=2, cheapest=2))
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
    print_training(build_train_report("accuracy", exits, accuracy=4, balanced=4, cheapest=4))
    line = "accuracy 71.0 on validation, 100 % of the compute, 400 neurons of 4 blocks; "
    assert f"{line}31 % exit by words; 20 % exit after block 2".split() in read_printed_words(capsys)


def test_leakage_and_the_price_of_a_cap_are_printed_with_each_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """The frontier shows what its candidates reveal. A choice that the cap has not changed costs nothing."""
    report = build_train_report("accuracy", accuracy=4, balanced=2, cheapest=1)
    choices = {
        name: choice.model_copy(update={"leakage": 0.382, "head": head})
        for (name, choice), head in zip(
            report.results.choice.choices.items(), ("linear", "network", "linear"), strict=True
        )
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
    print_training(replace(report, results=replace(report.results, choice=summary)))
    lines = read_printed_words(capsys)
    assert " ".join(lines[0]) == "best candidate of every depth that reveals at most 40 % of the words"
    assert ["2", "33", "%", "200", "no", "0.50", "70.2", "20.0", "%", "balanced"] in lines
    costs = "reveals 38.2 % of the words of a text; search.max_leakage costs"
    without = "without it 72.4 on validation, and"
    assert f"{costs} 1.4 points: {without} 54.8 % of the words".split() in lines
    assert f"{costs} -0.2 points of a linear head: {without} 50.0 % of the words".split() in lines
    assert f"{costs} nothing".split() in lines


def test_nothing_about_leakage_is_printed_without_a_cap(capsys: pytest.CaptureFixture[str]) -> None:
    print_training(build_train_report("accuracy", accuracy=4, balanced=2, cheapest=1))
    printed = capsys.readouterr().out
    assert "leakage" not in printed
    assert "reveals" not in printed


@pytest.mark.parametrize(
    ("choose", "size"), [("accuracy", "400 neurons of 4 blocks"), ("cheapest", "100 neurons of 1 block")]
)
def test_a_stage_prints_the_choice_in_use(capsys: pytest.CaptureFixture[str], choose: Choice, size: str) -> None:
    report = build_train_report(choose, accuracy=4, balanced=2, cheapest=1)
    print_stage(StageEvent("train", report, 12.3, resumed=False))
    line = f"train {size} by eta 0.50, linear head and network, strength 1 — 12 s"
    assert read_printed_words(capsys) == [line.split()]


# Tables in a terminal of 80 columns, and in a pipe

RUN = "2026-11-27-customer-messages-by-topic-full-000012"
JOB = "classify-customer-messages-by-topic-full-2026-11-27-3f2a1b2c-2"
MODEL = "customer-messages-by-topic-full"
CLASS = "delivery-late-or-missing-and-refund-requested"
Record = SimpleNamespace
SHARE = Record(value=0.981, low=0.972, high=0.987)


def show_runs() -> None:
    published = {"state": "published", "published": "2026-11-28T02:10:00", "model_version": "12"}
    run = Record(run=RUN, predictions=12_345_678, dead_letters=12_345, model=MODEL, date="2026-11-27", **published)
    print_runs([run], "out")  # type: ignore[list-item]


def show_scores() -> None:
    score = Record(date="2026-11-27", model=MODEL, model_version="12", right=1_180, checked=1_200)
    score.accuracy = SHARE
    print_scores([score])  # type: ignore[list-item]


def show_jobs() -> None:
    print_jobs([Record(id=JOB, seconds=12_345, exit_status=143, status="SUCCEEDED", started="2026-11-27 02:10")])


def show_models() -> None:
    metrics = {"test_accuracy": 0.7512, "test_macro_f1": 0.7112, "seconds": 1234.5}
    version = Record(number="12", aliases=("challenger", "champion"), metrics=metrics, fingerprint="0123456789ab" * 4)
    version.created = "2026-11-27T02:10:11+00:00"
    print_versions(MODEL, [version])  # type: ignore[list-item]


def show_evaluation() -> None:
    figures = Record(precision=1.0, recall=1.0, f1=1.0, support=12_345)
    report = Record(
        per_class={CLASS: figures, "x": figures}, metrics={}, intervals={}, model_version="1", documents=9, abstained=0
    )
    report.decision = Record(thresholds={}, abstain=0)
    print_evaluation(report)  # type: ignore[arg-type]


def show_frontier() -> None:
    report = build_train_report("accuracy", accuracy=4, balanced=4, cheapest=4).results.choice
    points = tuple(point.model_copy(update={"leakage": 0.551, "neurons": 16_000}) for point in POINTS)
    cap = LeakageCap(max_leakage=0.4, by_frequency=0.08, known=2000, judged=1500, uncapped={})
    terminal.show(_frontier(report.model_copy(update={"frontier": points, "cap": cap})))


def show_robustness() -> None:
    row = Record(name="white_space", severity=2, keeps_label=True, documents=1_000, score=0.9, loss=0.123, flips=0.12)
    row.ece, row.flips_of_right = 0.12, 0.1
    print_robustness(Record(metric="macro_f1", ece_limit=0.0312, figures=[row]))  # type: ignore[arg-type]


def show_comparison() -> None:
    difference = Record(value=-0.123, low=-0.145, high=-0.101)
    row = Record(name="white_space", severity=2, score=0.9, champion_score=0.9, difference=difference)
    champion = Record(champion="12", report=Record(metric="macro_f1"), confidence=0.95, differences=[row])
    print_comparison(champion)  # type: ignore[arg-type]


def show_privacy() -> None:
    figure = Record(name="a fifth of the selected neurons", numbers=27_648, attributes=dict.fromkeys(ATTRIBUTES, 0.71))
    figure.recovery = Record(every=0.412, by_band={"rare": 0.112, "common": 0.312})
    print_privacy(Record(figures=[figure], attributes=list(ATTRIBUTES)))  # type: ignore[arg-type]


TABLES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "runs": (show_runs, [RUN, "published", "12,345,678"]),
    "scores": (show_scores, [f"{MODEL} 12", "1,180 of 1,200"]),
    "jobs": (show_jobs, [JOB, "succeeded", "143"]),
    "models": (show_models, ["0123456789ab", "2026-11-27 02:10", "challenger", "0.7512"]),
    "evaluation": (show_evaluation, [CLASS, "12,345"]),
    "frontier": (show_frontier, ["16,000", "55.1 %", "cheapest"]),
    "robustness": (show_robustness, ["white_space", "12.0 %"]),
    "comparison": (show_comparison, ["white_space", "−14.5 to −10.1"]),
    "privacy": (show_privacy, ["27,648", "41.2 %", "0.71"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_80_columns_and_cuts_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that other commands take are whole in one line, also long ones."""
    monkeypatch.setattr(terminal, "out", NARROW)
    print_table, whole = TABLES[name]
    print_table()
    lines = capsys.readouterr().out.splitlines()
    for text in whole:
        assert any(text in line for line in lines), (text, lines)
    assert [line for line in lines if cell_len(line) > 80 and not line.startswith(("version", "words:"))] == []


HOSTILE = "a\x1b[2J\x9b2J\u202e\nwrote\x85b.csv"
SHOWN = "a␛[2J�2J�␊wrote␤b.csv"


def print_table_of(name: str) -> None:
    table = terminal.new_table(["file"], ["rows"], title=name)
    table.add_row(name, "9" * 80)  # wide, so that a narrow terminal shows rows in place of the table
    terminal.show(table)


@pytest.mark.parametrize("width", [None, 80, 300], ids=["pipe", "narrow", "wide"])
@pytest.mark.parametrize(
    "show",
    [terminal.say, print_table_of, lambda name: terminal.out.print(Text(name, "red")), terminal.failure],
    ids=["line", "table", "styled", "failure"],
)
def test_names_cannot_act_on_a_terminal(
    show: Callable[[str], None], width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor forge a line: each character that could is a visible one, and an error is one line."""
    if width is not None:
        for name in ("out", "_err"):
            console = terminal._FilteredConsole(
                stderr=name == "_err",
                force_terminal=True,
                color_system=None,
                width=width,
                highlight=False,
                markup=False,
                emoji=False,
            )
            monkeypatch.setattr(terminal, name, console)
    show(HOSTILE)
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert not {"\x1b", "\x9b", "\u202e", "\r", "\x85"} & set(printed)
    assert (SHOWN if show is not terminal.failure else "error: a␛[2J�2J� wrote b.csv") in printed
    assert not [line for line in printed.splitlines() if line.startswith("wrote")]


def test_half_a_character_is_shown_and_raises_nothing() -> None:
    """As in a JSON file that was cut within an escaped character; no encoding has it."""
    assert show_controls("a\ud83db\udfff") == "a\ufffdb\ufffd"
    assert json.loads(escape_controls('"a\ud83db"').encode()) == "a\ud83db"


def test_the_output_of_a_job_keeps_its_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.raw("one\r\ntwo\tthree\x1b]0;title\x07\n")
    assert capsys.readouterr().out == "one\ntwo\tthree␛]0;title␇\n"


def test_json_holds_the_name_and_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.plain({"file": HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"file": HOSTILE}
    assert not {"\x1b", "\x9b", "\u202e", "\r", "\x85"} & set(printed)


def test_a_table_in_a_pipe_is_aligned_columns_without_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([Record(id=JOB, seconds=9, exit_status=0, status="SUCCEEDED", started="2026-11-27 02:10")])
    header, row = capsys.readouterr().out.splitlines()
    assert header == f"{'job':<{len(JOB)}}  seconds  exit status  status     started (UTC)"
    assert row == f"{JOB}        9            0  succeeded  2026-11-27 02:10"
