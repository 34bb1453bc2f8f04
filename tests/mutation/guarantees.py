"""What a night guarantees, and for each guarantee the lines of code whose removal a test must detect.

`python -m tests.mutation.guarantees [NUMBER...]` checks all guarantees, or those with the given numbers. It copies the
repository and runs the tests of the guarantees there, which must pass. Then it removes the listed lines one after
another, and each time a test must fail. The exit status is 1 if a test passes without its lines. Some tests need the S3
server: run the command within infra/s3/run.sh.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase, settings

from tests.support.repository import ROOT

TEST_TIMEOUT = 120
"""seconds for one test; without some of the lines a test would wait forever"""


@dataclass(frozen=True)
class Cut:
    """Lines of code that a guarantee depends on."""

    test: str
    """the pytest node that must fail without the lines"""
    file: str
    lines: str
    """the lines without their indentation; the file must contain them exactly once"""
    replacement: str = ""
    """lines to put in their place, where removal alone would not be valid Python or would not break the guarantee"""

    def apply(self, text: str) -> str:
        """Return the text of the file without the lines. Raises ValueError unless it contains them exactly once."""
        wanted, rows = self.lines.splitlines(), text.splitlines()
        stripped = [row.strip() for row in rows]
        starts = [row for row in range(len(rows)) if stripped[row : row + len(wanted)] == wanted]
        if len(starts) != 1:
            raise ValueError(f"{self.file} has {len(starts)} times: {wanted[0]}")
        [start] = starts
        indent = rows[start][: len(rows[start]) - len(rows[start].lstrip())]
        rows[start : start + len(wanted)] = [indent + line for line in self.replacement.splitlines()]
        return "\n".join(rows) + "\n"


@dataclass(frozen=True)
class Guarantee:
    text: str
    """the same words as in the table of docs/reliability.md"""
    cuts: tuple[Cut, ...]


NIGHT, CLASSIFY, PUBLICATION, VACUUM, DEDUP, SEVERAL, CLASSIFIERS = (
    f"tests/pipelines/nightly/{name}.py"
    for name in (
        "test_night",
        "test_classify",
        "tables/test_publication",
        "tables/test_vacuum",
        "steps/test_dedup",
        "test_several_models",
        "test_several_classifiers",
    )
)
STORE, FAULTS, SHARD_LOG, TABLE, LEASE = (
    f"tests/pipelines/storage/test_{name}.py"
    for name in ("object_store", "faults", "shard_log", "delta_table", "lease")
)
INTAKE, WORKFLOW, WORKERS, ISOLATION, SIGNALS = (
    "tests/pipelines/data/test_intake.py",
    "tests/pipelines/training/test_workflow.py",
    "tests/pipelines/workers/test_map_shards.py",
    "tests/pipelines/workers/test_fault_isolation.py",
    "tests/jobs/test_signals.py",
)
FORGET = "tests/pipelines/nightly/forget/test_forget_nights.py"
FORGETTING = "pipelines/nightly/forget"
OUTCOMES = "tests/pipelines/nightly/test_night_outcomes.py"
OVERTAKEN = "tests/pipelines/training/test_overtaken_training.py"
PURGE = "tests/pipelines/training/test_purge.py"
TABLES = "pipelines/nightly/tables"

GUARANTEES = (
    Guarantee(
        "every input row is either predicted or a dead letter, ids are unique, and a run whose counts do not add up "
        "fails",
        (
            Cut(
                f"{NIGHT}::test_a_night_whose_counts_do_not_add_up_is_not_published",
                "pipelines/nightly/finish.py",
                "if not accounted == counts.rows == planned or counts.work != work_digest(shard):",
                "if False:",
            ),
            Cut(
                f"{CLASSIFY}::test_a_document_that_raises_is_the_only_dead_letter_of_its_shard",
                "pipelines/nightly/steps/classify_step.py",
                'dead |= {row: ("poison", message) for row, message in computed.failing.items()}',
            ),
        ),
    ),
    Guarantee(
        "over any history of commands with `--incremental` no row is in two nights of a model, whatever is suspended, "
        "killed, resumed, done again, restored, deleted or vacuumed in between",
        (
            Cut(
                f"{NIGHT}::test_a_failed_night_that_is_resumed_after_its_successor_takes_no_file_twice",
                f"{TABLES}/resume.py",
                "if run is not None and (published or not _some_taken(tables, run, request)):",
                "if run is not None:",
            ),
            Cut(
                f"{PUBLICATION}::test_files_count_as_taken_by_published_nights_of_other_dates",
                f"{TABLES}/night_history.py",
                "runs = {night.run for night in list_nights(tables) if night.model == model and night.date != date}",
                "runs = {night.run for night in list_nights(tables) if night.model == model}",
            ),
            Cut(
                f"{PUBLICATION}::test_missing_input_rows_do_not_pass_as_nothing_taken",
                f"{TABLES}/night_history.py",
                "if lacking := sorted(run for run, found in by_run.items() if not found):",
                "if lacking := []:",
            ),
            Cut(
                f"{PUBLICATION}::test_an_incremental_night_is_not_restored_next_to_a_night_that_has_taken_its_files",
                f"{TABLES}/publication.py",
                "retry_commits(tables.out)(require_not_taken, tables, night)",
                "pass",
            ),
        ),
    ),
    Guarantee(
        "a driver that was overtaken while it was suspended changes nothing that a reader sees",
        (
            Cut(
                f"{PUBLICATION}::test_a_driver_that_wakes_after_its_successor_changes_nothing",
                f"{TABLES}/publication.py",
                "_require_last(predictions, night.model, claim)",
                "pass",
            ),
            Cut(
                f"{PUBLICATION}::test_a_driver_that_wakes_after_its_successor_changes_nothing",
                f"{TABLES}/publication.py",
                "require_claim(tables, night.model, claim)",
                "pass",
            ),
            Cut(
                f"{TABLE}::test_a_stale_writer_is_refused_where_nothing_was_removed",
                "pipelines/storage/delta_table.py",
                "max_commit_retries=0,",
            ),
            Cut(
                f"{PUBLICATION}::test_rows_are_removed_only_under_the_last_claim",
                f"{TABLES}/publication.py",
                "_require_last(predictions, model, claim)",
                "pass",
            ),
        ),
    ),
    Guarantee(
        "the death of a worker changes nothing in the result",
        (
            Cut(
                f"{WORKFLOW}::test_a_killed_worker_does_not_change_the_result",
                "pipelines/workers/map_shards.py",
                "num_cpus=settings.cpus_per_worker,",
                "num_cpus=settings.cpus_per_worker, max_restarts=0, max_task_retries=0,",
            ),
            Cut(
                f"{NIGHT}::test_crashes_of_the_machine_are_not_blamed_on_a_document",
                "pipelines/workers/fault_isolation.py",
                "if self.suspicious and len(rows) > 1 and not self.deadly:",
                "if self.suspicious and not self.deadly:",
            ),
        ),
    ),
    Guarantee(
        "a crash counts against a document only under the driver that saw it, and a worker that fails on what is known "
        "to be good is at fault itself",
        (
            Cut(
                f"{SHARD_LOG}::test_a_new_driver_starts_with_a_clean_slate",
                "pipelines/storage/shard_log.py",
                'return self.layout.key("attempts", f"{self.claim:06d}")',
                'return self.layout.key("attempts")',
            ),
            Cut(
                f"{ISOLATION}::test_a_worker_that_fails_on_what_is_known_to_be_good_is_blamed_itself",
                "pipelines/workers/fault_isolation.py",
                "run_check(self.check)",
                "pass",
            ),
            Cut(
                f"{WORKERS}::test_a_slow_shard_is_retried_because_computing_does_not_count",
                "pipelines/storage/retrying.py",
                "return now - first_failure + state.upcoming_sleep >= store.retry_seconds",
                "return now - state.start_time + state.upcoming_sleep >= store.retry_seconds",
            ),
        ),
    ),
    Guarantee(
        "work follows the nodes of a cluster: a new node takes part, a lost node costs only the shards it was "
        "computing",
        (
            Cut(
                "tests/pipelines/workers/test_cluster.py::test_a_night_uses_added_nodes_and_survives_lost_ones",
                "pipelines/workers/map_shards.py",
                "most = work if settings.address is not None and settings.workers is None else now",
                "most = now",
            ),
        ),
    ),
    Guarantee(
        "a killed driver loses no finished work: a rerun computes at most one shard per worker again",
        (
            Cut(
                f"{NIGHT}::test_a_resumed_run_computes_only_what_is_missing",
                "pipelines/workers/map_shards.py",
                "waiting = [shard for shard in shards if shard.name not in outcomes]",
                "waiting = list(shards)",
            ),
        ),
    ),
    Guarantee(
        "a crash at any step loses nothing and corrupts nothing; a file that is named is never replaced",
        (
            Cut(
                f"{SHARD_LOG}::test_the_first_outcome_of_a_shard_is_the_only_one",
                "pipelines/storage/shard_log.py",
                "if first is not None:\nreturn first",
                "return outcome",
            ),
            Cut(
                f"{PUBLICATION}::test_the_first_record_of_a_run_wins",
                f"{TABLES}/night_records.py",
                'if out.create(f"{RUNS}/{run.name}/{NIGHT}", _to_bytes(finished)):',
                'if out.write(f"{RUNS}/{run.name}/{NIGHT}", _to_bytes(finished)) is None:',
            ),
            Cut(
                f"{STORE}::test_a_failed_write_keeps_the_old_object",
                "pipelines/storage/local_files.py",
                "temporary = _temporary(path, data)\ntry:\ntemporary.replace(path)",
                "temporary = _temporary(path, data)\npath.write_bytes(data)\ntry:\n    temporary.replace(path)",
            ),
        ),
    ),
    Guarantee(
        "a reader sees all of a night or none of it, and only files that are there",
        (
            Cut(
                f"{TABLE}::test_replacing_a_partition_leaves_the_others",
                "pipelines/storage/delta_table.py",
                "filters=filters,\nschema=schema,",
                "schema=schema,",
            ),
            Cut(
                f"{PUBLICATION}::test_a_run_that_lost_a_file_is_not_published",
                f"{TABLES}/publication.py",
                "retrying(require_complete, tables, night.name, night.files)",
            ),
            Cut(
                f"{PUBLICATION}::test_a_night_is_restored_with_all_its_rows",
                f"{TABLES}/publication.py",
                "for table in SIDE_TABLES:\nretrying(_commit_side_rows, tables, table, night, claim, kept)",
            ),
        ),
    ),
    Guarantee(
        "one run of a model at a time works on an output, and the lease of a dead run can be taken over",
        (
            Cut(
                f"{LEASE}::test_a_lease_that_cannot_be_read_but_changes_is_held",
                "pipelines/storage/lease.py",
                "if now.beat != first.beat:",
                "if False:",
            ),
        ),
    ),
    Guarantee(
        "a command that is ended by SIGTERM or SIGINT releases what it holds, prints one line and can be resumed",
        (
            Cut(
                f"{SIGNALS}::test_a_signal_releases_what_a_command_holds",
                "jobs/signals.py",
                "raise Stopped(number)",
                "raise SystemExit(number)",
            ),
        ),
    ),
    Guarantee(
        "throttling, 5xx responses, timeouts, broken connections and a server that stops reading are retried for a "
        "limited time; then the run ends with status 5 and can be resumed",
        (
            Cut(
                f"{FAULTS}::test_every_operation_succeeds_after_temporary_faults",
                "pipelines/storage/filesystem.py",
                "set_custom_error_handler(_is_temporary)",
            ),
            Cut(
                f"{FAULTS}::test_a_permanent_fault_raises_unavailable_error",
                "pipelines/storage/filesystem.py",
                'return UnavailableError(f"{what}: the store does not answer ({reason}); try again")',
                'return UserError(f"{what}: the store does not answer ({reason}); try again")',
            ),
            Cut(
                f"{FAULTS}::test_a_write_to_a_server_that_stops_reading_times_out",
                "pipelines/storage/object_store.py",
                'options["timeout"] = DEADLINE if seconds is None else seconds',
                "pass",
            ),
        ),
    ),
    Guarantee(
        "a file that is corrupt, cut, empty, of the wrong type or changed before it is read is quarantined as a whole "
        "and named; too many such files fail the night",
        (
            Cut(
                f"{INTAKE}::test_none_of_the_rows_of_a_bad_file_is_taken",
                "pipelines/data/intake.py",
                "spool.reject()",
                "spool.accept(piece.uri)",
            ),
            Cut(
                f"{INTAKE}::test_a_file_that_is_bad_in_one_window_is_left_out_of_all",
                "pipelines/data/intake.py",
                "if not (len(report.files) == 1 and report.files[0].uri in bad)",
                "if True",
            ),
            Cut(
                f"{NIGHT}::test_a_file_that_changes_during_a_night_is_quarantined_alone",
                "pipelines/storage/input_opener.py",
                "raise _changed(uri)",
                "pass",
            ),
            Cut(
                f"{CLASSIFY}::test_unreadable_files_above_the_limit_fail_the_night",
                "pipelines/nightly/finish.py",
                "if len(quarantined) > allowed.max_bad_files * total:",
                "if False:",
            ),
        ),
    ),
    Guarantee(
        "a document that raises an error, or kills its process every time, becomes a dead letter",
        (
            Cut(
                f"{SHARD_LOG}::test_exactly_the_failing_rows_become_dead_letters",
                "pipelines/workers/fault_isolation.py",
                "self.attempt.write_note(replace(self._note(), trying=bounds))",
                "pass",
            ),
            Cut(
                f"{CLASSIFY}::test_a_document_that_raises_is_the_only_dead_letter_of_its_shard",
                "pipelines/workers/fault_isolation.py",
                "self._divide(rows, 2, result)",
                "raise",
            ),
        ),
    ),
    Guarantee(
        "of documents with the same id the first sound one in the order of the plan is predicted, and finding them "
        "takes bounded memory",
        (
            Cut(
                f"{DEDUP}::test_the_first_sound_row_with_an_id_is_no_duplicate",
                "pipelines/nightly/steps/dedup.py",
                'rows = rows[np.lexsort((rows["row"], rows["shard"], rows["low"], rows["high"]))]',
                'rows = rows[np.lexsort((-rows["row"], rows["shard"], rows["low"], rows["high"]))]',
            ),
            Cut(
                f"{DEDUP}::test_texts_of_large_parquet_files_decide_which_row_is_first",
                "pipelines/data/spool.py",
                'ids = pc.if_else(sound, table["id"], pa.scalar(None, pa.string())).to_pylist()',
                'ids = table["id"].to_pylist()',
            ),
            Cut(
                f"{DEDUP}::test_a_partition_holds_a_bounded_number_of_documents",
                "pipelines/nightly/steps/dedup.py",
                "return [Shard(n) for n in range(min(_BUCKETS, max(1, math.ceil(documents / PARTITION))))]",
                "return [Shard(0)]",
            ),
        ),
    ),
    Guarantee(
        "a full disk or an exhausted quota is reported, and nothing half-written becomes visible",
        (
            Cut(
                f"{NIGHT}::test_a_full_disk_ends_a_night_with_status_5_and_it_resumes",
                "pipelines/storage/filesystem.py",
                'full=code in (*FULL, "507") or getattr(error, "errno", None) in _FULL_DISK,',
                'full=code in (*FULL, "507"),',
            ),
            Cut(
                f"{FAULTS}::test_an_exhausted_quota_fails_the_night_and_publishes_nothing",
                "pipelines/storage/filesystem.py",
                'full=code in (*FULL, "507") or getattr(error, "errno", None) in _FULL_DISK,',
                'full=getattr(error, "errno", None) in _FULL_DISK,',
            ),
        ),
    ),
    Guarantee(
        "a run goes on only with the settings and the files with which it began (limits such as "
        "`classify.max_bad_files` and the number of workers may change), and `--restart` computes all of them anew",
        (
            Cut(
                f"{NIGHT}::test_a_run_with_other_settings_is_refused_without_restart",
                "pipelines/storage/stage_plan.py",
                'if plan_fingerprint(stage, metadata) != plan_fingerprint(stored["stage"], stored["metadata"]):',
                "if False:",
            ),
            Cut(
                f"{NIGHT}::test_a_restart_computes_everything_anew",
                f"{TABLES}/resume.py",
                "name, published = (None, False) if request.restart else _find_current(tables, request.date, "
                "request.model)",
                "name, published = _find_current(tables, request.date, request.model)",
            ),
        ),
    ),
    Guarantee(
        "one run uses one version of the model",
        (
            Cut(
                f"{CLASSIFY}::test_a_night_does_not_resume_with_another_model_version",
                "pipelines/nightly/night_models.py",
                '"model": {"name": registry.name, "version": version, "backbone": digest},',
                '"model": {"name": registry.name},',
            ),
        ),
    ),
    Guarantee(
        "of several models in one command each is published, refused, overtaken and resumed by itself, and its rows "
        "are those of a night of its own",
        (
            Cut(
                f"{SEVERAL}::test_a_model_that_fails_its_limits_holds_back_no_other",
                "pipelines/nightly/night_driver.py",
                "with self._keeping_failure(night), overtaken_first(night.lease):\nif isinstance(share, SpinError):",
                "with overtaken_first(night.lease):\n    if isinstance(share, SpinError):",
            ),
            Cut(
                f"{SEVERAL}::test_a_driver_that_is_overtaken_for_one_model_publishes_the_others",
                "pipelines/storage/lease.py",
                "del self._held[0]",
                "raise",
            ),
            Cut(
                f"{SEVERAL}::test_a_command_for_other_models_begins_what_it_cannot_resume",
                f"{TABLES}/resume.py",
                "elif others := [run for run in open_runs(tables, shared.runs) if run not in going_on]:",
                "elif others := []:",
            ),
            Cut(
                f"{SEVERAL}::test_incremental_is_asked_per_model",
                "pipelines/data/intake.py",
                "if not shards or apart or not _fits([other for _, other in shards[-1]], ready, documents):",
                "if not shards or not _fits([other for _, other in shards[-1]], ready, documents):",
            ),
            Cut(
                f"{CLASSIFIERS}::test_a_document_that_only_one_model_cannot_compute_is_a_dead_letter_of_that_one",
                "pipelines/nightly/steps/pass_features.py",
                "if len(piece) > 1 or len(models) == 1 or not _may_be_of_document(error):",
                "if True:",
            ),
            Cut(
                f"{CLASSIFIERS}::test_the_rows_of_each_model_are_those_of_a_night_of_its_own",
                "pipelines/nightly/steps/pass_features.py",
                "return PieceFeatures(tuple(self._shared(models).features(texts, progress=attempt.advance)), None)",
                "return PieceFeatures((self._shared(models).features(texts)[0],) * len(models), None)",
            ),
        ),
    ),
    Guarantee(
        "a vacuum deletes only what no night, no unfinished run and no restorable run names",
        (
            Cut(
                f"{SEVERAL}::test_a_vacuum_keeps_the_old_objects_of_a_pass_that_can_go_on",
                f"{TABLES}/vacuum.py",
                "if unfinished.isdisjoint(each.runs):",
                "if True:",
            ),
            Cut(
                f"{VACUUM}::test_a_replaced_run_can_be_restored_until_it_is_old",
                f"{TABLES}/vacuum.py",
                "if run in contents.named or (not marked and contents.is_restorable(run, before)):",
                "if run in contents.named:",
            ),
            Cut(
                f"{VACUUM}::test_a_claim_after_runs_were_given_up_stops_the_vacuum_before_it_deletes",
                f"{TABLES}/publication.py",
                "_require_last(predictions, model, claim)",
            ),
            Cut(
                f"{VACUUM}::test_a_driver_that_wakes_after_a_vacuum_names_no_deleted_file",
                f"{TABLES}/publication.py",
                "for commit in (claim_side_tables, remove_replaced_rows):",
                "for commit in (remove_replaced_rows,):",
            ),
            Cut(
                f"{VACUUM}::test_a_lost_record_does_not_make_a_published_night_garbage",
                f"{TABLES}/vacuum.py",
                "delete += [item for item in unused if item.key not in contents.keys]",
                "delete += unused",
            ),
        ),
    ),
    Guarantee(
        "a document that was forgotten is in no object of an output, and no later night reads it",
        (
            Cut(
                f"{FORGET}::test_documents_are_found_in_no_object",
                f"{FORGETTING}/forget_nights.py",
                "kept = {run for run in restorable if not _holds(tables, run, records[run].files, forgotten)}",
                "kept = set(restorable)",
            ),
            Cut(
                f"{FORGET}::test_after_a_crash_the_same_command_completes_it",
                f"{FORGETTING}/forget_nights.py",
                "for run in given_up:",
                "for run in given_up[:0]:",
            ),
            Cut(
                f"{FORGET}::test_a_night_after_a_crash_leaves_the_documents_out",
                "pipelines/data/forgotten_ids.py",
                "stored = store.read_many(store.list(_HASHES)).values()",
                "stored: list[bytes] = []",
            ),
            Cut(
                f"{FORGET}::test_a_driver_that_slept_meanwhile_publishes_nothing",
                f"{FORGETTING}/forget_nights.py",
                "claims[model] = claim_nights(tables, model)",
                "claims[model] = tables.open(PREDICTIONS).last_transaction('spin:' + model) or 0",
            ),
            Cut(
                f"{FORGET}::test_all_models_of_an_output_forget",
                f"{FORGETTING}/unused_objects.py",
                "return {name for name, each in runs.items() if all(is_run_of(run, models) for run in each)}",
                "return set()",
            ),
            Cut(
                f"{FORGET}::test_later_nights_leave_the_documents_out",
                "pipelines/data/spool.py",
                "shown[gone] = False",
            ),
        ),
    ),
    Guarantee(
        "the same documents get the same labels, from one worker or two, in shards of any size",
        (
            Cut(
                f"{CLASSIFY}::test_labels_do_not_depend_on_the_shard_size",
                "spin/backbone/model.py",
                "return torch.full(mask.shape, self.pad_id).masked_scatter_(mask, tokens), mask",
                "return torch.full(mask.shape, self.pad_id).masked_scatter_(mask, tokens), torch.ones_like(mask)",
            ),
        ),
    ),
    Guarantee(
        "nothing hangs silently: a run in which no shard ends for `ray.stall_seconds` fails and names the shards in "
        "progress",
        (
            Cut(
                f"{NIGHT}::test_a_stalled_run_fails_and_names_the_shards_in_progress",
                "pipelines/workers/map_shards.py",
                "answer = waiting.get(timeout=seconds)",
                "answer = waiting.get()",
            ),
        ),
    ),
    Guarantee(
        "what a training that was overtaken while it was suspended still writes is not among the results of its "
        "successor",
        (
            Cut(
                f"{OVERTAKEN}::test_a_shard_of_an_overtaken_extraction_is_not_among_those_of_its_successor",
                "pipelines/storage/stage_plan.py",
                "return self.fingerprint[:16]",
                'return "results"',
            ),
            Cut(
                "tests/pipelines/storage/test_stage_plan.py::"
                "test_a_driver_that_sleeps_while_it_plans_a_restart_deletes_nothing_of_its_successor",
                "pipelines/storage/stage_plan.py",
                "lease.check()\nfor key in sorted(keys, key=_deletion_rank):",
                "for key in sorted(keys, key=_deletion_rank):",
            ),
            Cut(
                "tests/pipelines/storage/test_stage_plan.py::"
                "test_a_driver_that_sleeps_while_it_clears_a_store_stops_before_it_deletes_more",
                "pipelines/storage/stage_plan.py",
                "lease.check(max_age=_CONFIRMED_SECONDS)",
            ),
            Cut(
                f"{OVERTAKEN}::test_an_artifact_that_another_training_wrote_is_not_registered",
                "pipelines/training/train.py",
                "return files if digests == manifest.results.artifact else None",
                "return files",
            ),
        ),
    ),
    Guarantee(
        "a purge deletes nothing while a stage of the training is at work, and what it leaves half-deleted never "
        "counts as finished",
        (
            Cut(
                f"{PURGE}::test_a_purge_deletes_nothing_while_any_stage_is_at_work",
                "pipelines/training/purge.py",
                "leases = {stage: stack.enter_context(Lease(store / stage)) for stage in STAGE_FOLDERS}",
                "leases = {work.stage: stack.enter_context(Lease(store / work.stage)) for work in plan.delete[:1]}",
            ),
            Cut(
                f"{PURGE}::test_a_purge_that_dies_leaves_nothing_that_looks_finished",
                "pipelines/storage/stage_plan.py",
                "for key in sorted(keys, key=_deletion_rank):",
                "for key in sorted(keys):",
            ),
        ),
    ),
    Guarantee(
        "the figures that a night exports are those of the newest night, whatever fails, sleeps or is done again",
        (
            Cut(
                f"{OUTCOMES}::test_a_driver_that_slept_while_or_after_it_published_exports_nothing",
                "pipelines/nightly/night_outcomes.py",
                "self._leases[model].check()",
                "pass",
            ),
            Cut(
                f"{OUTCOMES}::test_a_night_of_an_earlier_date_leaves_the_figures_of_the_newest",
                "pipelines/nightly/night_outcomes.py",
                "return newest is not None and newest.date > self.date",
                "return False",
            ),
            Cut(
                f"{OUTCOMES}::test_a_command_that_finds_the_output_held_exports_nothing",
                "pipelines/nightly/night_outcomes.py",
                "if isinstance(error, HeldError):",
                "if False:",
            ),
        ),
    ),
)


def copy_repository(to: Path) -> None:
    """Copy the files of the repository as they are, committed or not."""
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_python(copy: Path, *args: str) -> tuple[int, str]:
    """Run Python in the copy, with the packages of the copy; returns exit status and output."""
    env = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file changed within a second may keep its size and modification time
        "COLUMNS": "300",  # on narrower lines pytest omits why a test failed
    }
    done = subprocess.run([sys.executable, *args], cwd=copy, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def pytest_configure() -> None:
    """Tell Hypothesis not to shrink failing examples. The runs of pytest below load this module as a plugin."""
    settings.register_profile("guarantees", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("guarantees")


def run_tests(copy: Path, *tests: str) -> tuple[int, str]:
    """Run tests in the copy up to the first failure, with a fixed Hypothesis seed; returns exit status and output."""
    plugins = ["-p", "no:cacheprovider", "-p", "tests.mutation.guarantees"]
    options = ["-x", "-q", "-rfs", "--tb=line", "--hypothesis-seed=0", f"--timeout={TEST_TIMEOUT}"]
    return run_python(copy, "-m", "pytest", *plugins, *options, *tests)


def check_imports(copy: Path) -> None:
    """Raise SystemExit unless Python imports the packages of the copy, even if this repository is installed."""
    code = "import spin, pipelines, jobs, tests; print(*(m.__path__[0] for m in (spin, pipelines, jobs, tests)))"
    status, output = run_python(copy, "-c", code)
    if status or output.split() != [str(copy / name) for name in ("spin", "pipelines", "jobs", "tests")]:
        raise SystemExit(f"the copy's packages are not imported: {output}")


def find_failure_without(copy: Path, cut: Cut) -> str | None:
    """Return the message with which the test fails without the lines, or None if it does not fail."""
    path = copy / cut.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(cut.apply(whole), encoding="utf-8")
    try:
        status, output = run_tests(copy, cut.test)
    finally:
        path.write_text(whole, encoding="utf-8")
    failed = re.search(r"^FAILED .*? - (.*)", output, re.MULTILINE)
    if status == 1 and failed:  # an error in a fixture or at import does not count
        return failed[1][:100]
    if status != 0:
        print(output[-1000:])
    return None


def run(numbers: Sequence[int]) -> int:
    """Check guarantees by number, or all of them; returns the exit status."""
    chosen = [(number, GUARANTEES[number - 1]) for number in numbers or range(1, len(GUARANTEES) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        copy_repository(copy)
        check_imports(copy)
        status, output = run_tests(copy, *dict.fromkeys(cut.test for _, guarantee in chosen for cut in guarantee.cuts))
        if status or "SKIPPED" in output:
            print(f"with all lines in place the tests fail or are skipped:\n{output[-2000:]}")
            return 1
        missed = 0
        for number, guarantee in chosen:
            print(f"{number:2} {guarantee.text}", flush=True)
            for cut in guarantee.cuts:
                failure = find_failure_without(copy, cut)
                missed += failure is None
                print(f"   without {cut.lines.splitlines()[0]} in {cut.file}", flush=True)
                print(f"      {cut.test}: {failure or 'DOES NOT FAIL'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(run([int(number) for number in sys.argv[1:]]))
