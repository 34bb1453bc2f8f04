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


NIGHT, CLASSIFY, SHARD_LOG = (
    "tests/pipelines/nightly/test_night.py",
    "tests/pipelines/nightly/test_classify.py",
    "tests/pipelines/storage/test_shard_log.py",
)
STORE, FAULTS, WORKFLOW, DEDUP = (
    "tests/pipelines/storage/test_object_store.py",
    "tests/pipelines/storage/test_faults.py",
    "tests/pipelines/training/test_workflow.py",
    "tests/pipelines/nightly/test_dedup.py",
)

GUARANTEES = (
    Guarantee(
        "every input row is either predicted or a dead letter, ids are unique, and a run whose counts do not add up "
        "fails",
        (
            Cut(
                f"{NIGHT}::test_a_night_whose_counts_do_not_add_up_is_not_published",
                "pipelines/nightly/publish.py",
                "if not accounted == counts.rows == planned:",
                "if False:",
            ),
            Cut(
                f"{CLASSIFY}::test_a_document_that_raises_is_the_only_dead_letter_of_its_shard",
                "pipelines/nightly/classify_step.py",
                'dead |= {row: ("poison", message) for row, message in failing.items()}',
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
                f"{NIGHT}::test_a_crash_at_any_step_loses_nothing",
                "pipelines/workers/map_shards.py",
                "waiting = [shard for shard in shards if shard.name not in outcomes]",
                "waiting = list(shards)",
            ),
        ),
    ),
    Guarantee(
        "a crash at any step of the commit loses nothing and corrupts nothing",
        (
            Cut(
                f"{NIGHT}::test_a_crash_at_any_step_loses_nothing",
                "pipelines/nightly/publish.py",
                "if self.out.size(key) != part.bytes:",
                "if True:",
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
        "a reader who follows `latest` sees all of a night or none of it",
        (
            Cut(
                f"{NIGHT}::test_a_reader_at_any_step_sees_all_of_a_night_or_none",
                "pipelines/nightly/publish.py",
                'yield lambda: self.out.delete("latest")',
            ),
        ),
    ),
    Guarantee(
        "one run at a time works on an output; the lease of a dead run can be taken over, and a run that lost its "
        "lease publishes nothing",
        (
            Cut(
                f"{NIGHT}::test_a_run_that_lost_its_lease_publishes_nothing",
                "pipelines/nightly/publish.py",
                "self.lease.check()\nstep()",
                "step()",
            ),
            Cut(
                f"{NIGHT}::test_a_run_that_wakes_after_its_lease_was_taken_publishes_nothing",
                "pipelines/storage/lease.py",
                "if now.beat != first.beat:",
                "if False:",
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
                'raise UnavailableError(f"{what}: the store does not answer ({_reason(error)}); try again") from None',
                "raise",
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
        "a file that is corrupt, truncated, empty or of the wrong type is quarantined as a whole and named; too "
        "many such files fail the night",
        (
            Cut(
                f"{CLASSIFY}::test_unreadable_files_above_the_limit_fail_the_night",
                "pipelines/data/sharding.py",
                "bad[file.uri] = str(error)",
            ),
            Cut(
                f"{CLASSIFY}::test_unreadable_files_above_the_limit_fail_the_night",
                "pipelines/nightly/classify.py",
                "_check_shares(settings, manifest)",
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
        "of documents with the same id the first in the order of the plan is predicted, and finding them takes "
        "bounded memory",
        (
            Cut(
                f"{DEDUP}::test_a_row_is_a_duplicate_if_an_earlier_row_has_its_id",
                "pipelines/nightly/dedup.py",
                'order = np.lexsort((digests["row"], shard_index, digests["low"], digests["high"]))',
                'order = np.lexsort((digests["row"], -shard_index, digests["low"], digests["high"]))',
            ),
            Cut(
                f"{CLASSIFY}::test_the_first_document_with_a_duplicate_id_is_predicted",
                "pipelines/nightly/classify_step.py",
                "elif row in repeated:",
                "elif False:",
            ),
            Cut(
                f"{DEDUP}::test_a_partition_holds_a_bounded_number_of_documents",
                "pipelines/nightly/dedup.py",
                "return [Shard(n) for n in range(max(1, math.ceil(documents / PARTITION)))]",
                "return [Shard(0)]",
            ),
        ),
    ),
    Guarantee(
        "a full disk or an exhausted quota is reported, and nothing half-written becomes visible",
        (
            Cut(
                f"{NIGHT}::test_a_full_disk_at_any_step_fails_clearly_and_resumes",
                "pipelines/storage/filesystem.py",
                'if _code(error) in _FULL or getattr(error, "errno", None) in _FULL_DISK:',
                "if _code(error) in _FULL:",
            ),
            Cut(
                f"{NIGHT}::test_a_full_disk_at_any_step_fails_clearly_and_resumes",
                "pipelines/storage/local_files.py",
                "except BaseException:\ntemporary.unlink(missing_ok=True)\nraise",
                "except BaseException:\n    raise",
            ),
            Cut(
                f"{FAULTS}::test_an_exhausted_quota_fails_the_night_and_publishes_nothing",
                "pipelines/storage/filesystem.py",
                'if _code(error) in _FULL or getattr(error, "errno", None) in _FULL_DISK:',
                'if getattr(error, "errno", None) in _FULL_DISK:',
            ),
        ),
    ),
    Guarantee(
        "a run resumes only the plan with which it began",
        (
            Cut(
                f"{NIGHT}::test_a_changed_plan_is_refused_without_restart",
                "pipelines/storage/stage_plan.py",
                "if stored is not None and not restart:\n_refuse(store, stage, metadata, stored)",
            ),
            Cut(
                f"{NIGHT}::test_new_files_wait_for_the_next_night",
                "pipelines/nightly/publish.py",
                'metadata = {**metadata, "files": to_json(planned)}',
            ),
        ),
    ),
    Guarantee(
        "one run uses one version of the model",
        (
            Cut(
                f"{CLASSIFY}::test_a_night_does_not_resume_with_another_model_version",
                "pipelines/nightly/classify.py",
                '"model": {"name": registry.name, "version": version, "backbone": digest},',
                '"model": {"name": registry.name},',
            ),
        ),
    ),
    Guarantee(
        "the same documents get the same labels, from one worker or two, in shards of any size",
        (
            Cut(
                f"{CLASSIFY}::test_labels_do_not_depend_on_the_shard_size",
                "spin/backbone/model.py",
                "mask = torch.arange(width) < lengths.unsqueeze(1)",
                "mask = torch.ones_like(ids, dtype=torch.bool)",
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
