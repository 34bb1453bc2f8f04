"""Forgotten documents are in no object of an output, and the other rows stay: over histories, crashes and wake-ups."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.forgotten_ids import FOLDER
from pipelines.nightly.forget import forget_nights, rewritten_run
from pipelines.nightly.forget.forget_nights import forget_in_output
from pipelines.nightly.nights import list_output, restore
from pipelines.nightly.review.checked_labels import add_labels, list_scores
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import PREDICTIONS, read_rows
from pipelines.service_errors import BadRowsError, HeldError
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError
from tests.support.fake_nights import (
    DATE,
    LAST,
    NEXT,
    WAKING,
    FakeNights,
    FakeRegistry,
    before_call,
    make_rows,
    use_fake_step,
)
from tests.support.leases import hold_model
from tests.support.object_search import find_in_files, find_in_store

SECRETS = ["Xyzzy-4711", "Xyzzy-dead", "Xyzzy-twice"]
TEXTS = [f"text {id}" for id in SECRETS]
DATA = {"keep": ["note"]}
LIMITS = {"dead_letter_text": True}
STEPS = {
    "before it claims": (forget_nights, "claim_nights"),
    "before a night is written": (rewritten_run, "run_name"),
    "before it counts as given up": (rewritten_run, "abandon_run"),
    "before the plan is copied": (rewritten_run, "_copy_plan"),
    "before the records": (rewritten_run, "begin_run"),
    "between the records": (rewritten_run, "finish_run"),
    "before it counts as complete": (rewritten_run, "revive_run"),
    "before it publishes": (rewritten_run, "publish_night"),
    "before claims are checked": (forget_nights, "require_claim"),
    "before runs are given up": (forget_nights, "abandon_run"),
    "before files are listed": (forget_nights, "find_unused"),
    "before side tables are cleaned": (forget_nights, "clean_side_tables"),
    "before labels are removed": (forget_nights, "remove_labels"),
    "before the report is shown": (forget_nights, "show_newest_report"),
    "before nights are scored": (forget_nights, "rescore_nights"),
}
"""functions before which a process may end"""


def write_inputs(nights: FakeNights) -> None:
    """Files with the secrets: a prediction, a dead letter, and an id that occurs twice."""
    rows = [*make_rows("a1", "a2", "a3"), {"id": SECRETS[0], "text": TEXTS[0]}, {"id": SECRETS[1], "text": ""}]
    nights.write("a.jsonl", [{**row, "note": f"note of {row['id']}"} for row in rows])
    rows = [*make_rows("b1", "b2"), {"id": SECRETS[2], "text": TEXTS[2]}, {"id": SECRETS[2], "text": "good again"}]
    nights.write("b.jsonl", [{**row, "note": f"note of {row['id']}"} for row in rows])


def run(nights: FakeNights, date: str = DATE, **options: Any) -> Any:
    return nights.run(date, data=DATA, limits=LIMITS, **options)


def make_history(nights: FakeNights) -> None:
    """A night that was done twice, a night of one secret, and one of none."""
    write_inputs(nights)
    run(nights)
    run(nights, restart=True)
    run(nights, NEXT, source=f"{nights.source}/a.jsonl")
    nights.write("c.jsonl", [{**row, "note": "none"} for row in make_rows("c1", "c2")], folder="other")
    run(nights, LAST, source=f"{nights.source.removesuffix('data')}other")


class KeptHistories:
    """Histories of nights, each made once for a module and brought back for every test that begins with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nights = FakeNights(str(folder / "store"))
        """in the folder that all histories are made in and brought back to: records of nights name it"""

    def bring_back(self, name: str, make: Callable[[], object]) -> FakeNights:
        """The nights after a history, which is made unless it is kept."""
        store, kept = self.folder / "store", self.folder / name
        shutil.rmtree(store, ignore_errors=True)
        if kept.exists():
            shutil.copytree(kept, store)
        else:
            make()
            shutil.copytree(store, kept)
        return FakeNights(str(store))

    def history(self) -> FakeNights:
        """The nights of `make_history`."""
        return self.bring_back("history", lambda: make_history(self.nights))

    def crashed(self, step: str) -> FakeNights:
        """The same after documents were forgotten in a process that ended before a step."""

        def forget_and_crash() -> None:
            nights = self.history()
            with before_call(*STEPS[step], action=crash), pytest.raises(SystemError):
                forget_in_output(nights.output, SECRETS)

        return self.bring_back(step, forget_and_crash)


@pytest.fixture(scope="module")
def kept_histories(tmp_path_factory: pytest.TempPathFactory) -> KeptHistories:
    return KeptHistories(tmp_path_factory.mktemp("histories"))


@pytest.fixture
def histories(kept_histories: KeptHistories, monkeypatch: pytest.MonkeyPatch) -> KeptHistories:
    """Those of nights without a model."""
    use_fake_step(monkeypatch)
    return kept_histories


REMAINING = {DATE: ["a1", "a2", "a3", "b1", "b2"], NEXT: ["a1", "a2", "a3"], LAST: ["c1", "c2"]}


def check_forgotten(nights: FakeNights) -> None:
    assert find_in_store(nights.out, [*SECRETS, *TEXTS]) == {}
    assert nights.ids() == REMAINING
    for night in list_nights(nights.tables):
        rows = read_rows(nights.tables.open(PREDICTIONS), {"date": night.date})
        assert set(rows["run"].to_pylist()) == {night.run}, "also in files that held none of the documents"
    assert [nights.dead_letters(date) for date in REMAINING] == [[], [], []]
    assert nights.inputs() == {"a.jsonl": "taken", "b.jsonl": "taken"}
    states = {each.run: each.state for each in list_output(nights.output)}
    assert sorted(set(states.values())) == ["abandoned", "published"]
    assert [each.date for each in list_output(nights.output) if each.state == "published"] == list(REMAINING)


@pytest.mark.slow
def test_documents_are_found_in_no_object(nights: FakeNights) -> None:
    """In a folder and on the S3 server: predictions, dead letters, replaced and unfinished runs, reports, records."""
    make_history(nights)
    with (
        before_call(*WAKING["before its records"], action=crash),
        pytest.raises(SystemError),
    ):
        run(nights, LAST, restart=True)
    assert {secret for hits in find_in_store(nights.out, SECRETS).values() for secret in hits} == set(SECRETS)
    before = {each.run for each in list_output(nights.output)}
    untouched = next(each.run for each in list_output(nights.output) if each.date == LAST)
    planned = forget_in_output(nights.output, SECRETS, dry_run=True)
    assert {each.run for each in list_output(nights.output)} == before
    assert find_in_store(nights.out, SECRETS)
    done = forget_in_output(nights.output, SECRETS)
    check_forgotten(nights)
    assert done.rows == planned.rows == {PREDICTIONS: 3, "dead_letters": 3}
    assert set(done.rewritten) == set(planned.rewritten)
    assert done.given_up == planned.given_up
    assert untouched in {each.run for each in list_output(nights.output) if each.state == "published"}
    [record] = nights.out.list(f"{FOLDER}/records")
    assert nights.out.read_json(record)["rows"] == dict(done.rows)
    again = forget_in_output(nights.output, SECRETS)
    assert (again.rows, again.rewritten, again.given_up, again.labels) == ({}, {}, (), 0)
    check_forgotten(nights)


def crash() -> None:
    raise SystemError("the process ends here")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_after_a_crash_the_same_command_completes_it(histories: KeptHistories, step: str) -> None:
    local_nights = histories.crashed(step)
    assert {date: set(ids) - set(SECRETS) for date, ids in local_nights.ids().items()} == {
        date: set(ids) for date, ids in REMAINING.items()
    }
    forget_in_output(local_nights.output, SECRETS)
    check_forgotten(local_nights)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_night_after_a_crash_leaves_the_documents_out(histories: KeptHistories, step: str) -> None:
    """The hashes are stored before anything else, so that nights need not wait for the command to be repeated."""
    local_nights = histories.crashed(step)
    run(local_nights, DATE, restart=True)
    assert local_nights.ids()[DATE] == REMAINING[DATE]
    forget_in_output(local_nights.output, SECRETS)
    assert find_in_store(local_nights.out, [*SECRETS, *TEXTS]) == {}
    assert local_nights.ids() == REMAINING


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_the_same_night_after_a_crash_loses_no_row(histories: KeptHistories, step: str) -> None:
    """Without --restart it finds its night published, also where the input has moved away meanwhile."""
    local_nights = histories.crashed(step)
    local_nights.store.delete_many(["data/b.jsonl"])
    run(local_nights, DATE)
    assert set(local_nights.ids()[DATE]) - set(SECRETS) == set(REMAINING[DATE])
    forget_in_output(local_nights.output, SECRETS)
    check_forgotten(local_nights)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_other_documents_are_forgotten_after_a_crash(histories: KeptHistories, step: str) -> None:
    local_nights = histories.crashed(step)
    forget_in_output(local_nights.output, ["a1-text-nobody-has", "c1"])
    assert local_nights.ids()[LAST] == ["c2"]
    forget_in_output(local_nights.output, SECRETS)
    assert find_in_store(local_nights.out, [*SECRETS, *TEXTS]) == {}
    assert local_nights.ids() == {**REMAINING, LAST: ["c2"]}


@pytest.mark.slow
@pytest.mark.parametrize("moment", WAKING)
def test_a_driver_that_slept_meanwhile_publishes_nothing(histories: KeptHistories, moment: str) -> None:
    """What it writes after it wakes is in a run that was given up, whose files the next call deletes."""
    local_nights = histories.history()

    def sleep() -> None:
        local_nights.expire_lease()
        forget_in_output(local_nights.output, SECRETS)

    with before_call(*WAKING[moment], action=sleep), pytest.raises(SpinError):
        run(local_nights, DATE, restart=True)
    assert local_nights.ids() == REMAINING
    forget_in_output(local_nights.output, SECRETS)
    check_forgotten(local_nights)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before a night is written", "before it publishes"])
def test_an_overtaken_forget_says_so(histories: KeptHistories, step: str) -> None:
    """It misses files that its successor has deleted; the status is that of a command that was overtaken, 3."""
    local_nights = histories.history()

    def overtake() -> None:
        local_nights.expire_lease()
        forget_in_output(local_nights.output, SECRETS)

    with before_call(*STEPS[step], action=overtake), pytest.raises(HeldError):
        forget_in_output(local_nights.output, SECRETS)
    check_forgotten(local_nights)


@pytest.mark.slow
def test_later_nights_leave_the_documents_out(local_nights: FakeNights) -> None:
    """As dead letters that say where the row stands and nothing else, and that no limit counts."""
    write_inputs(local_nights)
    run(local_nights, DATE)
    forget_in_output(local_nights.output, SECRETS)
    report = local_nights.run(NEXT, data=DATA, limits={**LIMITS, "max_dead_fraction": 0.0})
    assert report.counts.reasons == {"forgotten": 4}
    rows = local_nights.dead_letters(NEXT)
    assert sorted((row["file"].rpartition("/")[2], row["row"], row["reason"]) for row in rows) == [
        ("a.jsonl", 3, "forgotten"),
        ("a.jsonl", 4, "forgotten"),
        ("b.jsonl", 2, "forgotten"),
        ("b.jsonl", 3, "forgotten"),
    ]
    assert {(row["id"], row["text"], row["note"]) for row in rows} == {(None, None, None)}
    assert local_nights.ids()[NEXT] == REMAINING[DATE]
    assert find_in_store(local_nights.out, [*SECRETS, *TEXTS]) == {}
    local_nights.write("d.jsonl", [{"id": "d", "text": ""}])
    with pytest.raises(BadRowsError, match="1 of 10 rows"):
        local_nights.run(LAST, data=DATA, limits={**LIMITS, "max_dead_fraction": 0.0})


@pytest.mark.slow
def test_files_stay_taken(local_nights: FakeNights) -> None:
    write_inputs(local_nights)
    run(local_nights, DATE, incremental=True)
    forget_in_output(local_nights.output, SECRETS)
    assert run(local_nights, NEXT, incremental=True).files.skipped == 2
    assert local_nights.ids()[NEXT] == []
    again = run(local_nights, DATE, incremental=True)  # the night is published, so nothing is computed
    assert (again.run, again.forgotten) == (list_output(local_nights.output)[1].run, 2)


@pytest.mark.slow
def test_restore_refuses_runs_that_held_a_document(histories: KeptHistories) -> None:
    """A replaced run without one can still be restored."""
    local_nights = histories.history()
    run(local_nights, LAST, source=f"{local_nights.source.removesuffix('data')}other", restart=True)
    runs = {state: [r.run for r in list_output(local_nights.output) if r.state == state] for state in ("replaced",)}
    forget_in_output(local_nights.output, SECRETS)
    first, last = runs["replaced"]
    with pytest.raises(UserError, match=f"{first} is abandoned"):
        restore(local_nights.output, run=first)
    assert restore(local_nights.output, run=last).name == last
    check_ids = local_nights.ids()
    assert check_ids == REMAINING


@pytest.mark.slow
def test_a_night_at_work_is_not_disturbed(local_nights: FakeNights) -> None:
    """It is refused, and nights that begin later leave the documents out already."""
    write_inputs(local_nights)
    run(local_nights, DATE)
    with hold_model(local_nights.out, "tiny"), pytest.raises(HeldError):
        forget_in_output(local_nights.output, SECRETS)
    assert SECRETS[0] in local_nights.ids()[DATE]
    run(local_nights, NEXT)
    assert local_nights.ids()[NEXT] == REMAINING[DATE]


@pytest.mark.slow
def test_a_model_that_begins_after_the_claims_is_left_alone(histories: KeptHistories) -> None:
    """Its first night leaves the documents out, and is published beside the ones that are written again."""
    local_nights = histories.history()
    late = FakeRegistry("late")
    with before_call(forget_nights, "find_unused", action=lambda: run(local_nights, NEXT, registry=late)):
        forget_in_output(local_nights.output, SECRETS)
    assert local_nights.ids("late") == {NEXT: REMAINING[DATE]}
    assert local_nights.ids() == REMAINING
    assert find_in_store(local_nights.out, [*SECRETS, *TEXTS]) == {}


@pytest.mark.slow
def test_a_published_run_with_a_mark_keeps_its_files(histories: KeptHistories) -> None:
    """A vacuum that slept may have marked a run that was published meanwhile."""
    local_nights = histories.history()
    for each in list_output(local_nights.output):
        if each.date == LAST:
            local_nights.out.create(f"{RUNS}/{each.run}/abandoned.json", b"{}")
    forget_in_output(local_nights.output, SECRETS)
    assert local_nights.ids() == REMAINING


@pytest.mark.slow
def test_files_that_nothing_names_are_deleted(histories: KeptHistories) -> None:
    """Such as those of attempts at a shard of a published run, and temporary files of killed workers."""
    local_nights = histories.history()
    published = [each.run for each in list_output(local_nights.output) if each.state == "published"]
    for run_name in published:
        local_nights.out.write(f"{PREDICTIONS}/{run_name}/stray.parquet", SECRETS[0].encode())
        local_nights.out.write(f"{RUNS}/{run_name}/spool/.part.{32 * '0'}", SECRETS[0].encode())
        local_nights.out.write(f"{RUNS}/{run_name}/spool/part", SECRETS[0].encode())
    forget_in_output(local_nights.output, SECRETS)
    check_forgotten(local_nights)
    assert find_in_files(Path(local_nights.out.root), SECRETS) == {}


@pytest.mark.slow
def test_all_models_of_an_output_forget(local_nights: FakeNights) -> None:
    """Those of a pass, and a model that begins its first night while leases are taken."""
    first, second, third = (FakeRegistry(name) for name in ("one", "it's/another", "late"))
    write_inputs(local_nights)
    local_nights.run_several(first, second, date=DATE, data=DATA, limits=LIMITS).raise_failures()

    def begin_night() -> None:
        with before_call(*WAKING["before the intake"], action=crash), pytest.raises(SystemError):
            run(local_nights, NEXT, registry=third)

    with before_call(forget_nights, "claim_nights", action=begin_night):
        done = forget_in_output(local_nights.output, SECRETS)
    assert done.models == ("it's/another", "late", "one")
    for model in (first.name, second.name):
        assert local_nights.ids(model) == {DATE: REMAINING[DATE]}
    assert find_in_store(local_nights.out, [*SECRETS, *TEXTS]) == {}
    assert [key for key in local_nights.out.list(RUNS) if key.startswith(f"{RUNS}/pass-")] == []
    late = [each for each in list_output(local_nights.output) if each.model == "late"]
    assert [each.state for each in late] == ["abandoned"]


def score_a_night(nights: FakeNights, folder: Path) -> dict[str, str]:
    """Run a night and add labels, of which those of the secrets are wrong; return the label of each document."""
    write_inputs(nights)
    run(nights, DATE)
    given = {row["id"]: row["label"] for row in nights.predictions()}
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "true_label"])
        writer.writerows([id, "wrong" if id in SECRETS else label] for id, label in given.items())
    [score] = add_labels(nights.output, folder / "labels.csv", new_classes=["wrong"]).nights
    assert (score.checked, score.right) == (7, 5)
    return given


@pytest.mark.slow
def test_labels_are_removed_and_nights_scored_anew(local_nights: FakeNights, tmp_path: Path) -> None:
    given = score_a_night(local_nights, tmp_path)
    assert forget_in_output(local_nights.output, SECRETS).labels == 2
    [score] = list_scores(local_nights.tables)
    assert (score.checked, score.right) == (5, 5)
    assert find_in_store(local_nights.out, SECRETS) == {}
    assert forget_in_output(local_nights.output, list(given)).labels == 5
    assert list_scores(local_nights.tables) == []
    assert local_nights.ids() == {DATE: []}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before claims are checked", "before nights are scored"])
def test_a_night_keeps_its_score_after_a_crash(step: str, local_nights: FakeNights, tmp_path: Path) -> None:
    """The command that completes the work finds the night published by the one that crashed."""
    score_a_night(local_nights, tmp_path)
    with before_call(*STEPS[step], action=crash), pytest.raises(SystemError):
        forget_in_output(local_nights.output, SECRETS)
    forget_in_output(local_nights.output, SECRETS)
    [score] = list_scores(local_nights.tables)
    assert (score.checked, score.right) == (5, 5)


def test_labels_keep_their_order(local_nights: FakeNights, tmp_path: Path) -> None:
    """A file that is shortened to the labels of a later one does not take its place: the last label counts."""
    write_inputs(local_nights)
    run(local_nights, DATE)
    right = local_nights.predictions()[0]["label"]
    for number, rows in enumerate(([("a1", right), (SECRETS[0], "x")], [("a1", "wrong")], [("a1", right)])):
        file = tmp_path / f"{number}.csv"
        file.write_text("id,true_label\n" + "".join(f"{id},{label}\n" for id, label in rows))
        add_labels(local_nights.output, file, new_classes=["wrong", "x"])
    forget_in_output(local_nights.output, SECRETS)
    [score] = list_scores(local_nights.tables)
    assert (score.checked, score.right) == (1, 1)


def test_an_output_without_nights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no table predictions"):
        forget_in_output(str(tmp_path), SECRETS)
    assert Store(str(tmp_path)).list() == []
