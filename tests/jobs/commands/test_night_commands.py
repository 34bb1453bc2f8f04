"""`spin nights` as an operator types it, on outputs on a disk whose nights are written without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.intake import FileOutcome
from pipelines.nightly import nights
from pipelines.nightly.tables import publication
from pipelines.nightly.tables.night_records import LEASES, abandon_run, begin_run, lease_model
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, NightTables, partitions
from pipelines.nightly.tables.publication import write_inputs
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.support.command_line import CallSpin
from tests.support.fake_nights import before_call
from tests.support.nights import DATE, MODEL, claim_model, published_ids, run_night

NEXT = "2026-03-02"
Run = Callable[..., str]


@pytest.fixture
def out(tmp_path: Path) -> Store:
    """An empty output."""
    return Store(str(tmp_path / "nights"))


@pytest.fixture
def spin(call_spin: CallSpin) -> Run:
    """A function that runs `spin nights` and returns its output, or the one line of its error."""

    def run(*words: str, status: int = 0) -> str:
        found, output, errors = call_spin("nights", *words)
        assert found == status, errors
        assert errors.count("\n") == (0 if status == 0 else 1), errors
        return output if status == 0 else errors

    return run


def read_runs(spin: Run, out: Store) -> dict[str, str]:
    """The state of each run, as `spin nights list --json` prints it."""
    return {run["run"]: run["state"] for run in json.loads(spin("list", "--output", out.uri, "--json"))}


def begin_unfinished_run(out: Store, date: str = NEXT, *, incremental: bool = False) -> str:
    """Begin a run that is never finished; returns its name."""
    token = claim_model(NightTables(out))
    return begin_run(out, date=date, model=MODEL, model_version="8", claim=token, incremental=incremental).name


def test_runs_are_listed_with_what_they_are_to_readers(spin: Run, out: Store) -> None:
    replaced = run_night(out, ["a"])
    published = run_night(out, ["a", "b"], dead=["d"])
    abandoned, unfinished = begin_unfinished_run(out), begin_unfinished_run(out)
    abandon_run(out, abandoned)
    assert read_runs(spin, out) == {
        replaced.name: "replaced",
        published.name: "published",
        abandoned: "abandoned",
        unfinished: "unfinished",
    }
    rows = {row["run"]: row for row in json.loads(spin("list", "--output", out.uri, "--json"))}
    assert (rows[published.name]["predictions"], rows[published.name]["dead_letters"]) == (2, 1)
    assert rows[unfinished]["predictions"] is None
    committed = datetime.fromisoformat(rows[published.name]["published"])
    assert abs(committed - datetime.now(UTC)) < timedelta(minutes=5)
    assert rows[replaced.name]["published"] is None


def test_the_list_is_a_table_and_names_what_can_be_resumed(spin: Run, out: Store) -> None:
    night = run_night(out, ["a", "b"], dead=["d"])
    unfinished = begin_unfinished_run(out)
    printed = spin("list", "--output", out.uri)
    cells = [line.split() for line in printed.splitlines()[1:3]]
    assert [row[:5] for row in cells] == [[night.name, "published", "7", "2", "1"], [unfinished, "unfinished", "8"]]
    assert datetime.strptime(" ".join(cells[0][5:]), "%Y-%m-%d %H:%M")
    assert f"spin classify … --output {out.uri} --date {NEXT}" in printed.splitlines()[-1]


def test_an_incremental_run_is_resumed_as_one(spin: Run, out: Store) -> None:
    """Without the option, the command would be refused: the run has another input."""
    run = begin_unfinished_run(out, incremental=True)
    assert f"--date {NEXT} --incremental` resumes it" in spin("list", "--output", out.uri)
    assert f"{run}: unfinished, incremental night of {NEXT}" in spin("show", run, "--output", out.uri)


def test_a_run_after_which_another_was_begun_is_not_named_to_be_resumed(spin: Run, out: Store) -> None:
    """The command of its date goes on with the last run; a run that was given up does not count."""
    begin_unfinished_run(out)
    last = begin_unfinished_run(out)
    abandon_run(out, begin_unfinished_run(out))
    printed = spin("list", "--output", out.uri)
    assert [line.split()[0] for line in printed.splitlines() if "resumes it" in line] == [last]
    run_night(out, ["a"], date=NEXT)
    assert "resumes it" not in spin("list", "--output", out.uri)


def test_a_night_is_listed_after_its_folder_of_records_was_deleted(spin: Run, out: Store) -> None:
    """Readers of the table still see it."""
    night = run_night(out, ["a", "b"])
    out.delete_many(out.list(f"_runs/{night.name}"))
    assert read_runs(spin, out) == {night.name: "published"}
    assert "published" in spin("list", "--output", out.uri)
    assert night.name in spin("show", night.name, "--output", out.uri)


def test_a_run_is_shown_with_its_rows_and_the_files_that_it_left_out(
    spin: Run, out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [FileOutcome("a.jsonl", 7, "v1", 2), FileOutcome("[b].csv", 9, "v1", 0, "an open quote")]
    monkeypatch.setattr(
        "tests.support.nights.write_inputs", lambda tables, run, token, _: write_inputs(tables, run, token, rows)
    )
    night = run_night(out, ["a", "b"], dead=["d"])
    out.write(f"_runs/{night.name}/report.html", b"<p>")
    for words in ([night.name], ["--date", DATE]):
        lines = spin("show", *words, "--output", out.uri).splitlines()
        assert lines[0] == f"{night.name}: published, night of {DATE}, model {MODEL}, version 7"
        assert lines[1].split()[0] == "begun"
        assert [line.strip() for line in lines[2:]] == [
            "2 predictions, 1 dead letter, 0 disagreements",
            "1 input file taken, 1 quarantined",
            "quarantined: [b].csv: an open quote",
            f"report: {out.uri}/_runs/{night.name}/report.html",
        ]
    [shown] = json.loads(spin("show", night.name, "--output", out.uri, "--json"))
    assert shown["rows"] == {"predictions": 2, "dead_letters": 1, "inputs": 2, "disagreements": 0}
    assert shown["quarantined"] == [{"uri": "[b].csv", "reason": "an open quote"}]
    assert shown["night"]["run"] == night.name


def test_a_replaced_run_is_shown_with_its_files(spin: Run, out: Store) -> None:
    """Its rows are no longer in the table of inputs."""
    replaced, _ = run_night(out, ["a"]), run_night(out, ["b"])
    assert "0 input files taken, 0 quarantined" in spin("show", replaced.name, "--output", out.uri)


def test_show_needs_a_run_or_a_date_that_is_there(spin: Run, out: Store) -> None:
    run_night(out, ["a"])
    assert "either the name of a run or --date" in spin("show", "--output", out.uri, status=2)
    assert "either the name of a run or --date" in spin("show", "r", "--date", DATE, "--output", out.uri, status=2)
    assert "either the name of a run or --date" in spin("show", "r", "--run", "r", "--output", out.uri, status=2)
    assert "no night of 2026-03-03" in spin("show", "--date", "2026-03-03", "--output", out.uri, status=2)
    assert "no run other" in spin("show", "other", "--output", out.uri, status=2)


def test_show_names_the_unfinished_run_of_a_date_without_a_night(spin: Run, out: Store) -> None:
    """The command that the line names shows that run."""
    run = begin_unfinished_run(out)
    error = spin("show", "--date", NEXT, "--output", out.uri, status=2)
    assert f"no published night of {NEXT}, but unfinished: {run}; `spin nights show {run} --output {out.uri}`" in error
    assert f"{run}: unfinished" in spin("show", run, "--output", out.uri)
    assert f"{run}: unfinished" in spin("show", "--run", run, "--output", out.uri)


def test_a_quarantined_file_is_named_once(spin: Run, out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most reasons begin with the file."""
    rows = [FileOutcome("s3://b/a.csv", 9, "v1", 0, "s3://b/a.csv row 7: an open quote")]
    monkeypatch.setattr(
        "tests.support.nights.write_inputs", lambda tables, run, token, _: write_inputs(tables, run, token, rows)
    )
    printed = spin("show", run_night(out, ["a"]).name, "--output", out.uri)
    assert "quarantined: s3://b/a.csv row 7: an open quote\n" in printed


@pytest.mark.parametrize("named", ["run", "date", "both"])
def test_a_replaced_night_is_restored_with_its_side_rows(spin: Run, out: Store, named: str) -> None:
    first = run_night(out, ["a", "b"], dead=["d"])
    second = run_night(out, ["c"])
    words = {"run": ["--run", first.name], "date": ["--date", DATE], "both": ["--run", first.name, "--date", DATE]}
    printed = spin("restore", *words[named], "--output", out.uri)
    assert printed == f"the night of {DATE} of {MODEL} is run {first.name}, by version 7\n"
    tables = NightTables(out)
    assert published_ids(tables) == {(DATE, MODEL): ["a", "b"]}
    assert {partition["run"] for partition in partitions(tables.open(DEAD_LETTERS))} == {first.name}
    assert read_runs(spin, out) == {first.name: "published", second.name: "replaced"}


@pytest.mark.slow
def test_the_report_at_the_top_is_that_of_the_newest_night_after_a_restore(spin: Run, out: Store) -> None:
    old = [run_night(out, [id], date=date) for date in (DATE, NEXT) for id in "ab"]
    for night in old:
        for report in ("report.json", "report.html"):
            out.write(f"_runs/{night.name}/{report}", night.name.encode())
    out.write("report.html", old[-1].name.encode())
    spin("restore", "--date", DATE, "--output", out.uri)
    assert out.read("report.html") == old[-1].name.encode(), "a later night is there"
    spin("restore", "--date", NEXT, "--output", out.uri)
    assert out.read("report.html") == old[2].name.encode()


@pytest.mark.slow
def test_a_restore_refuses_what_is_not_one_published_run(spin: Run, out: Store) -> None:
    """Nothing is committed then."""
    runs = [run_night(out, [id]).name for id in "abc"]
    unfinished = begin_unfinished_run(out)
    refused = {
        ("--date", DATE): f"found {runs[0]}, {runs[1]}",
        (
            "--date",
            NEXT,
        ): f"no run of {NEXT} was replaced or deleted, so there is nothing to restore; `spin nights list",
        ("--run", "other"): "no run other",
        ("--run", unfinished): f"{unfinished} is unfinished",
        ("--run", runs[0], "--date", NEXT): f"is of {DATE}, not of {NEXT}",
        (): "expected --run, --date, or both",
    }
    version = NightTables(out).open("predictions").version
    for words, message in refused.items():
        assert message in spin("restore", *words, "--output", out.uri, status=2)
    assert NightTables(out).open("predictions").version == version


@pytest.mark.slow
def test_a_restore_waits_for_no_run_at_work(spin: Run, out: Store) -> None:
    """A claim would overtake it, so the restore ends with status 3 before it claims."""
    first = run_night(out, ["a"])
    run_night(out, ["b"])
    version = NightTables(out).open("predictions").version
    with Lease(out / f"{LEASES}/{MODEL}", ttl=1.0):
        for words in (("restore", "--run", first.name), ("delete", "--before", NEXT), ("vacuum",)):
            assert "is held by" in spin(*words, "--output", out.uri, status=3)
    assert NightTables(out).open("predictions").version == version


def test_an_overtaken_restore_says_so(spin: Run, out: Store) -> None:
    """Another command takes over after the claim was checked, and gives up the run, as `spin forget` may."""
    first = run_night(out, ["a"])
    run_night(out, ["b"])

    def overtake() -> None:
        out.delete_many(out.list(f"{LEASES}/{MODEL}"))
        successor.__enter__()
        abandon_run(out, first.name)

    successor = lease_model(out, MODEL)
    with before_call(publication, "require_complete", overtake):
        error = spin("restore", "--run", first.name, "--output", out.uri, status=3)
    successor.__exit__(None, None, None)
    assert "was given up" not in error
    assert published_ids(NightTables(out)) == {(DATE, MODEL): ["b"]}


@pytest.mark.slow
def test_a_deletion_names_what_it_deletes_and_what_brings_it_back(spin: Run, out: Store) -> None:
    old, new = run_night(out, ["a", "b"]), run_night(out, ["c"], date=NEXT)
    delete = ("delete", "--before", NEXT, "--output", out.uri)
    assert spin(*delete, "--dry-run") == f"{old.name}: 2 predictions\nwould delete 1 night\n"
    assert read_runs(spin, out) == {old.name: "published", new.name: "published"}
    *named, hint = spin(*delete).splitlines()
    assert named == [f"{old.name}: 2 predictions", "deleted 1 night"]
    assert hint == f"`spin nights restore --run RUN --output {out.uri}` brings one back; a vacuum frees the space"
    assert read_runs(spin, out) == {old.name: "deleted", new.name: "published"}
    assert spin(*delete) == "deleted 0 nights\n"
    freed = spin(*delete, "--forget-files").splitlines()
    assert freed == ["deleted 0 nights", "freed the input files of 1 night deleted earlier"]
    assert "expected a day as YYYY-MM-DD" in spin("delete", "--before", "yesterday", "--output", out.uri, status=2)


def set_clock(monkeypatch: pytest.MonkeyPatch, later: timedelta) -> None:
    """Let the commands believe that it is later."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + later

    monkeypatch.setattr(nights, "datetime", Clock)


@pytest.mark.slow
def test_a_vacuum_gives_up_old_runs_and_names_them(spin: Run, out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_night(out, ["a"])
    unfinished = begin_unfinished_run(out)
    out.write(f"_runs/{unfinished}/spool/0.parquet", bytes(2_000))
    assert spin("vacuum", "--output", out.uri) == "deleted 0 objects, 0 bytes\n", "nothing is a week old"
    set_clock(monkeypatch, timedelta(days=3))
    assert spin("vacuum", "--output", out.uri) == "deleted 0 objects, 0 bytes\n"
    planned = spin("vacuum", "--older-than", "2", "--dry-run", "--output", out.uri).splitlines()
    assert planned == [
        f"would give up {unfinished}; it can be neither resumed nor restored",
        "would delete 1 object, 2.0 kB",
    ]
    assert read_runs(spin, out)[unfinished] == "unfinished"
    done = spin("vacuum", "--older-than", "2", "--output", out.uri).splitlines()
    assert done == [f"gave up {unfinished}; it can be neither resumed nor restored", "deleted 1 object, 2.0 kB"]
    assert read_runs(spin, out)[unfinished] == "abandoned"
    assert published_ids(NightTables(out)) == {(DATE, MODEL): ["a"]}


@pytest.mark.parametrize("days", ["0.5", "1e6"])
def test_a_vacuum_refuses_an_age_below_a_day_or_beyond_the_calendar(spin: Run, out: Store, days: str) -> None:
    run_night(out, ["a"])
    assert "Invalid value for '--older-than'" in spin("vacuum", "--older-than", days, "--output", out.uri, status=2)


def test_an_output_of_another_program_is_refused_and_left_as_it_is(spin: Run, out: Store) -> None:
    out.write("predictions/date=2026-03-01/part.parquet", b"PAR1")
    delete = ["delete", "--before", NEXT]
    for command in (["list"], ["show", "r"], ["restore", "--run", "r"], delete, ["vacuum"], ["vacuum", "--dry-run"]):
        assert "predictions holds date=2026-03-01/part.parquet and no Delta table" in spin(
            *command, "--output", out.uri, status=2
        )
    assert out.list() == ["predictions/date=2026-03-01/part.parquet"]
    assert out.read("predictions/date=2026-03-01/part.parquet") == b"PAR1"


def test_an_output_without_nights_is_an_error(spin: Run, out: Store) -> None:
    for command in (["list"], ["show", "r"], ["restore", "--run", "r"], ["delete", "--before", NEXT], ["vacuum"]):
        assert "`spin classify` makes one" in spin(*command, "--output", out.uri, status=2)


def test_a_run_whose_list_of_files_is_lost_is_not_shown_as_one_that_read_nothing(spin: Run, out: Store) -> None:
    night = run_night(out, ["a"])
    [file] = night.files["inputs"]
    out.delete_many([f"inputs/{file.path}"])
    assert f"inputs/{file.path} is missing" in spin("show", night.name, "--output", out.uri, status=2)


def test_of_many_quarantined_files_ten_are_shown_and_the_others_counted(
    spin: Run, out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [FileOutcome(f"{number}.csv", 9, "v1", 0, "an open quote") for number in range(12)]
    monkeypatch.setattr(
        "tests.support.nights.write_inputs", lambda tables, run, token, _: write_inputs(tables, run, token, rows)
    )
    lines = spin("show", run_night(out, ["a"]).name, "--output", out.uri).splitlines()
    assert sum("quarantined: " in line for line in lines) == 10
    assert lines[-1].strip() == "… and 2 more; --json lists them"
