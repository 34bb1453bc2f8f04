"""Promotion, rollback and history on the real MLflow server.

The tests of the workflow, of the tutorials and of version 0.1 promote in SQLite; the gate of the workflow's first
version starts a fresh process.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml

from pipelines.registry.promotion import promote
from pipelines.registry.promotion.gate import GateReport
from pipelines.registry.promotion.gate_checks import CheckResult
from pipelines.registry.promotion.subprocess_predict import predict_in_subprocess
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from spin.errors import UserError
from spin.labels.splits import certifies
from spin.settings import BackboneSettings, parse_settings
from tests.support import tiny
from tests.support.command_line import CallSpin
from tests.support.hanging import hang_fresh_process
from tests.support.registry_fixture import build_evaluation_set, build_quick_classifier, build_training_record

pytestmark = pytest.mark.mlflow
ROWS = tiny.make_documents(240, seed=5)
TEXTS = [row["text"] for row in ROWS]
GATE_ROWS = [row for row in ROWS if not certifies(row["id"])]
"""those of the evaluation set that the gate reads"""


class PromotionFixture:
    """A registry with four versions: 1, 2 with the same files, 3 trained on wrong labels, 4 without its artifact.

    `artifacts` holds the folders `sound` and `mislabelled`.
    """

    def __init__(self, folder: Path, backbone: Path, artifacts: Path, uri: str) -> None:
        self.folder, self.name = folder, f"tiny {uuid.uuid4().hex[:8]}"  # unique: other tests use the same registry
        self.tree: dict[str, Any] = {
            "backbone": build_backbone_section(backbone),
            "data": {"train": "none"},
            "store": str(folder / "store"),
            "mlflow": {"model": self.name, "tracking_uri": uri},
        }
        self.settings = parse_settings(self.tree)
        self.registry = Registry(self.settings)
        for artifact in ("sound", "sound", "mislabelled", "sound"):
            self.registry.register(artifacts / artifact, build_training_record(build_evaluation_set(ROWS)))
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        location = self.registry.tracking.client.get_model_version_download_uri(self.name, "4")
        get_artifact_repository(location, tracking_uri=uri).delete_artifacts("artifacts")

    def open_registry(self, store: str = "store", **promote: Any) -> Registry:
        """Open the registry as another driver does, with a store of its own unless it has the default name."""
        return Registry(parse_settings({**self.tree, "store": str(self.folder / store), "promote": promote}))

    def read_gate_tags(self, number: str) -> dict[str, str]:
        tags = self.registry.tracking.client.get_model_version(self.name, number).tags
        return {name: value for name, value in tags.items() if name.startswith("spin.gate.")}

    def read_run(self, run: str) -> tuple[Any, dict[str, Any]]:
        """Return a run of MLflow and the content of its gate.json."""
        client = self.registry.tracking.client
        return client.get_run(run), json.loads(Path(client.download_artifacts(run, "gate.json")).read_text())


def build_backbone_section(backbone: Path) -> dict[str, Any]:
    """Return the settings section `backbone`."""
    return {"model": str(backbone), "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A folder with the artifacts `sound` and `mislabelled` of classifiers; no test changes them."""
    folder = tmp_path_factory.mktemp("artifacts")
    rows = tiny.make_documents(120)
    mislabelled = [{**row, "label": rows[index // 4 * 4 % 7]["label"]} for index, row in enumerate(rows)]
    for name, training in (("sound", rows), ("mislabelled", mislabelled)):
        classifier = build_quick_classifier(BackboneSettings.model_validate(build_backbone_section(backbone_folder)))
        classifier.fit([row["text"] for row in training], [row["label"] for row in training]).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def shared_fixture(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, artifacts: Path, mlflow_server: str
) -> PromotionFixture:
    return PromotionFixture(tmp_path_factory.mktemp("promotion"), backbone_folder, artifacts, mlflow_server)


@pytest.fixture
def registry_fixture(shared_fixture: PromotionFixture) -> Iterator[PromotionFixture]:
    """A registry whose champion and history are removed after the test."""
    yield shared_fixture
    client = shared_fixture.registry.tracking.client
    client.delete_registered_model_alias(shared_fixture.name, "champion")
    for name in shared_fixture.registry.tags():
        if name.startswith("spin.history"):
            client.delete_registered_model_tag(shared_fixture.name, name)


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gate pass at once, for tests of the steps after it."""
    passed = GateReport((CheckResult("loads", 1, 1, "", "", "", figures={"score": 0.5}),))
    monkeypatch.setattr(promote, "run_gate", lambda *_: passed)
    monkeypatch.setattr(promote, "check_loads", lambda *_: passed)


def list_moves(registry: Registry) -> list[tuple[Any, ...]]:
    """Return the kind, the versions and the reason of every move of the champion."""
    return [(e.move, e.from_version, e.to_version, e.why) for e in promote.history(registry)]


def test_a_fresh_process_predicts_as_the_nightly_job_does(
    registry_fixture: PromotionFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses the choice and thresholds of the settings and imports nothing from the working directory."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    decision = {"thresholds": {"good": 0.2}, "abstain": 0.05}
    settings = parse_settings({**registry_fixture.tree, "choose": "cheapest", "decision": decision})
    night = Registry(settings).load("1")
    reply = predict_in_subprocess(registry_fixture.registry.download_model("1", tmp_path), TEXTS, settings)
    assert reply.labels == night.predict(TEXTS)
    assert None in reply.labels
    np.testing.assert_allclose(reply.probabilities, night.predict_proba(TEXTS), atol=1e-6)
    assert (reply.input_columns, reply.classes, reply.multilabel) == ({"text": "string"}, ("bad", "good"), False)
    assert reply.seconds > 0


def test_the_death_of_the_fresh_process_is_an_error(
    registry_fixture: PromotionFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of a former release that ends its process does not end the command."""
    model = registry_fixture.registry.download_model("1", tmp_path)
    [code] = model.rglob("pyfunc.py")
    code.write_text("import os, sys\nprint('out of memory', file=sys.stderr, flush=True)\nos._exit(7)\n")
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    monkeypatch.setattr("pipelines.registry.logged_code.FORMER_RELEASES", {digest: "a former release"})
    with pytest.raises(UserError, match=r"its process ended with status 7: out of memory"):
        predict_in_subprocess(model, TEXTS, registry_fixture.settings)


@pytest.mark.usefixtures("gate_in_process")
def test_promotions_refusals_and_rollbacks_are_recorded(registry_fixture: PromotionFixture) -> None:
    """The moves are a first champion, an equal version, a worse version that is refused, and a rollback."""
    registry = registry_fixture.registry
    shown_checks: list[tuple[CheckResult, ...]] = []
    first = promote.promote(registry, "1", "the first", on_checks=shown_checks.append)
    assert [check.name for check in shown_checks[0]] == ["loads", "schema", "score", "calibration", "throughput"]
    assert (first.from_version, first.to_version, first.forced) == (None, "1", ())
    truth = [row["label"] for row in GATE_ROWS]
    labels = registry.load("1").predict([row["text"] for row in GATE_ROWS])
    accuracy = np.mean([label == expected for label, expected in zip(labels, truth, strict=True)])
    assert first.score == pytest.approx(accuracy, abs=0.01)  # macro F1 of two balanced classes

    second = promote.promote(registry, "2", "the same again")
    assert second.score == second.score_before == first.score
    run, report = registry_fixture.read_run(second.run)
    assert run.info.run_name == "promote 2"
    assert run.data.tags["spin.version"] == "2"
    assert run.data.metrics["difference_at_least"] == 0
    assert all(row["passed"] for row in report["checks"])
    assert registry_fixture.read_gate_tags("2")["spin.gate.passed"] == "true"
    assert registry_fixture.read_gate_tags("2")["spin.gate.regression"] == "passed: +0.0, at least +0.0"

    with pytest.raises(UserError, match=r"version 3 of .* is not promoted: .*regression: -\d.*--force and --why"):
        promote.promote(registry, "3", "", on_checks=shown_checks.append)
    assert registry.champion() == "2"
    assert not next(check for check in shown_checks[-1] if check.name == "regression").passed
    tags = registry_fixture.read_gate_tags("3")
    assert tags["spin.gate.passed"] == tags["spin.gate.forced"] == "false"
    assert tags["spin.gate.regression"].startswith("failed: -")
    _, report = registry_fixture.read_run(tags["spin.gate.run"])
    assert (report["version"], report["champion"], report["passed"]) == ("3", "2", "false")
    assert {row["name"]: row["passed"] for row in report["checks"]}["regression"] is False

    rolled_back = promote.rollback(registry, "complaints")
    assert registry.champion() == "1"
    run, report = registry_fixture.read_run(rolled_back.run)
    assert run.info.run_name == "rollback 1"
    assert [(row["name"], row["passed"]) for row in report["checks"]] == [("loads", True)]
    with pytest.raises(
        UserError, match=f"{registry_fixture.name} has no earlier champion to go back to; `spin promote`"
    ):
        promote.rollback(registry, "")
    assert list_moves(registry) == [
        ("promote", None, "1", "the first"),
        ("promote", "1", "2", "the same again"),
        ("rollback", "2", "1", "complaints"),
    ]
    assert all(event.who and event.when and event.run for event in promote.history(registry))


def read_attempts(checks: tuple[CheckResult, ...]) -> int:
    """How many other attempts a gate counts."""
    [expected] = [check.expected for check in checks if check.name == "regression"]
    return int((re.search(r"after (\d+) other attempt", expected) or [0, 0])[1])


@pytest.mark.usefixtures("gate_in_process")
def test_gates_keep_predictions_and_count_attempts(
    registry_fixture: PromotionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion's run holds the predictions of version and champion; all are found, deleted runs included."""
    registry, client = registry_fixture.registry, registry_fixture.registry.tracking.client
    first = promote.promote(registry, "1", "the first")
    shown_checks: list[tuple[CheckResult, ...]] = []
    for _ in range(2):
        with pytest.raises(UserError, match="version 3 of .* is not promoted"):
            promote.promote(registry, "3", "", on_checks=shown_checks.append)
    [tag] = [name for name in registry.tags() if name.startswith("spin.history.")]
    # one run on each page
    monkeypatch.setattr(mlflow.tracking.fluent, "NUM_RUNS_PER_PAGE_PANDAS", 1)
    gates = f"tags.`spin.gate.after` = '{tag}'"
    failed = registry.search_runs(f"{gates} and tags.`spin.gate.passed` = 'false'")
    assert [run.data.tags["spin.version"] for run in failed] == ["3", "3"]
    assert len({run.data.tags["spin.gate.labels"] for run in failed}) == 1
    client.delete_run(registry_fixture.read_gate_tags("3")["spin.gate.run"])
    assert len(registry.search_runs(gates)) == 2
    assert registry.search_runs("tags.`spin.gate.after` = 'another'") == []

    second = promote.promote(registry, "2", "the same again", on_checks=shown_checks.append)
    checks = {check.name: check for check in shown_checks[-1]}
    assert checks["best_champion"].measured.startswith("+0.0, at least +0.0 against the champion, ")
    with pytest.raises(
        UserError, match=r"best_champion: -.* against the champion, .* % confidence, after .*train again"
    ):
        promote.promote(registry, "3", "", on_checks=shown_checks.append)
    others = read_attempts(shown_checks[0])  # of other tests: those by the same documents count for good
    assert [read_attempts(checks) - others for checks in shown_checks] == [0, 0, 1, 2]
    stored = json.loads(registry.read_run_file(second.run, "predictions.json") or "")
    assert stored.keys() == {"1", "2"}
    assert stored["1"]["labels"] == registry.load("1").predict([row["text"] for row in GATE_ROWS])
    assert first.evaluation == second.evaluation is not None
    assert promote.history(registry) == [first, second]
    assert registry.read_run_file(second.run, "other.json") is None
    assert registry.read_run_file("0" * 32, "predictions.json") is None


def test_a_version_that_does_not_load_never_becomes_champion(
    registry_fixture: PromotionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promotion, promotion by force and rollback are refused; the reason is a tag of the version."""
    with pytest.raises(
        UserError, match=rf"version 4 of {registry_fixture.name} is not promoted: loads: .*; correct what it names"
    ):
        promote.promote(registry_fixture.registry, "4", "it must", force=True)
    assert registry_fixture.read_gate_tags("4")["spin.gate.loads"].startswith("failed: ")
    with monkeypatch.context() as patch:
        patch.setattr(promote, "run_gate", lambda *_: GateReport(()))
        promote.promote(registry_fixture.registry, "1", "")
    with pytest.raises(
        UserError, match=rf"version 4 of {registry_fixture.name} is not champion again: .*; roll back to another"
    ):
        promote.rollback(registry_fixture.registry, "", "4")
    assert registry_fixture.registry.champion() == "1"
    assert list_moves(registry_fixture.registry) == [("promote", None, "1", "")]


@pytest.mark.usefixtures("open_gate")
def test_rollback_goes_to_the_version_that_the_champion_replaced(registry_fixture: PromotionFixture) -> None:
    """It never goes to a version that a rollback left. With a version number, it goes to that version."""
    registry = registry_fixture.registry
    for number in "123":
        promote.promote(registry, number, "")
    assert promote.rollback(registry, "").to_version == "2"
    assert promote.rollback(registry, "").to_version == "1"
    assert promote.rollback(registry, "", "3").to_version == "3"
    assert promote.rollback(registry, "").to_version == "2"
    with pytest.raises(UserError, match=f"version 2 of {registry_fixture.name} is the champion already"):
        promote.rollback(registry, "", "2")
    with pytest.raises(UserError, match=r"models:/.*/9 does not exist; versions: 4 @challenger, 3, 2 @champion, 1"):
        promote.rollback(registry, "", "9")
    assert len(promote.history(registry)) == 7


@pytest.mark.usefixtures("open_gate")
def test_tags_of_checks_that_no_longer_exist_are_removed(registry_fixture: PromotionFixture) -> None:
    """Tags that are not of the gate stay."""
    client = registry_fixture.registry.tracking.client
    client.set_model_version_tag(registry_fixture.name, "1", "spin.gate.class_floors", "failed: bad 10.0")
    promote.promote(registry_fixture.registry, "1", "")
    assert set(registry_fixture.read_gate_tags("1")) == {
        f"spin.gate.{name}" for name in ("passed", "champion", "forced", "loads", "run")
    }
    assert "spin.artifact" in client.get_model_version(registry_fixture.name, "1").tags


WAITING_PROMOTION = """
import sys
from pipelines.registry.promotion import promote
from pipelines.registry.promotion.gate import GateReport
from pipelines.registry.versions import Registry
from spin.errors import SpinError
from spin.settings import load_settings

def run_gate(*_):
    print("inside", flush=True)
    sys.stdin.readline()
    return GateReport(())

promote.run_gate = run_gate
try:
    promote.promote(Registry(load_settings(sys.argv[1])), sys.argv[2], "from another process")
except SpinError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""
"""code that promotes a version and waits at the gate until it reads a line"""


@pytest.fixture
def waiting_process(registry_fixture: PromotionFixture, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that promotes version 1 and waits at the gate."""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(registry_fixture.tree))
    command = [sys.executable, "-c", WAITING_PROMOTION, str(tmp_path / "settings.yaml"), "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("open_gate")
def test_a_promotion_in_progress_excludes_other_promotions_and_rollbacks(
    registry_fixture: PromotionFixture,
    waiting_process: subprocess.Popen[str],
    tmp_path: Path,
    call_spin: CallSpin,
) -> None:
    """They name the holder and end with status 3; after the promotion has ended they can run."""
    with pytest.raises(HeldError, match=rf"promotion is held by .* process {waiting_process.pid}; wait until it ends"):
        promote.rollback(registry_fixture.registry, "", "2")
    status, _, error = call_spin("promote", tmp_path / "settings.yaml", "--version", "2")
    assert (status, f"process {waiting_process.pid}" in error) == (3, True)
    assert registry_fixture.registry.champion() is None
    waiting_process.communicate("\n", timeout=60)
    assert waiting_process.returncode == 0
    assert list_moves(registry_fixture.registry) == [("promote", None, "1", "from another process")]
    promote.promote(registry_fixture.registry, "2", "")
    assert registry_fixture.registry.champion() == "2"


def test_a_version_that_hangs_ends_promotion_and_rollback_with_status_6_and_frees_the_lease(
    registry_fixture: PromotionFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_spin: CallSpin,
) -> None:
    """Nothing is moved, the error is one line, and the next promotion need not wait."""
    hang_fresh_process(tmp_path / "hang", monkeypatch)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(registry_fixture.tree))
    with monkeypatch.context() as patch:
        patch.setattr(promote, "run_gate", lambda *_: GateReport(()))
        promote.promote(registry_fixture.registry, "1", "")
    for words in (["promote", "--version", "2"], ["rollback", "--to", "2"]):
        limit = ("--set", "promote.timeout_seconds=1")
        status, _, error = call_spin(words[0], tmp_path / "settings.yaml", *words[1:], *limit)
        assert status == 6
        [line] = error.splitlines()
        assert line.startswith(f"error: version 2 of {registry_fixture.name} did not load and predict within 1 s")
        leases = Store(registry_fixture.tree["store"]) / "promotion"
        assert leases.read_json(leases.list("_lease")[-1])["ended"]
    assert registry_fixture.registry.champion() == "1"
    assert list_moves(registry_fixture.registry) == [("promote", None, "1", "")]


@pytest.mark.usefixtures("open_gate")
def test_a_promotion_is_refused_if_the_champion_changed_meanwhile(
    registry_fixture: PromotionFixture, waiting_process: subprocess.Popen[str]
) -> None:
    """Drivers with different stores share no lease: the slower one compared its version with the former champion."""
    promote.promote(registry_fixture.open_registry("elsewhere"), "2", "the faster")
    output, _ = waiting_process.communicate("\n", timeout=60)
    assert waiting_process.returncode == 2
    assert "moved meanwhile: expected version none, with which version 1 was compared, found 2" in output
    assert registry_fixture.registry.champion() == "2"
    assert list_moves(registry_fixture.registry) == [("promote", None, "2", "the faster")]


class PausedDriver:
    """A driver with its own store that promotes in a thread and pauses before a method of its registry."""

    def __init__(self, registry_fixture: PromotionFixture, number: str, method: str) -> None:
        self.error = ""
        self.paused, self.resume = threading.Event(), threading.Event()
        self.registry = registry_fixture.open_registry(f"store-{number}")
        original = getattr(self.registry, method)

        def pause(*args: Any) -> Any:
            self.paused.set()
            assert self.resume.wait(60)
            return original(*args)

        setattr(self.registry, method, pause)
        self.thread = threading.Thread(target=self._promote, args=(number,))
        self.thread.start()
        assert self.paused.wait(60)

    def _promote(self, number: str) -> None:
        try:
            promote.promote(self.registry, number, "held")
        except UserError as error:
            self.error = str(error)

    def finish(self) -> str:
        """Let the driver go on and return its error, or an empty string."""
        self.resume.set()
        self.thread.join()
        return self.error


@pytest.mark.usefixtures("open_gate")
def test_a_promotion_notices_another_that_has_not_finished(registry_fixture: PromotionFixture) -> None:
    """The faster driver has written its event but not yet moved the alias when the slower one checks."""
    slower = PausedDriver(registry_fixture, "1", "set_tag")
    faster = PausedDriver(registry_fixture, "2", "set_alias")
    assert "moved meanwhile: expected version none" in slower.finish()
    assert faster.finish() == ""
    assert registry_fixture.registry.champion() == "2"
    assert list_moves(registry_fixture.registry) == [("promote", None, "2", "held")]


@pytest.mark.usefixtures("open_gate")
def test_simultaneous_events_do_not_overwrite_each_other(
    registry_fixture: PromotionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both events exist before a driver checks: each driver removes its own and at most one moves the champion."""
    barrier = threading.Barrier(2, timeout=60)
    written: list[str] = []
    set_tag = Registry.set_tag

    def write_together(registry: Registry, name: str, value: str) -> None:
        barrier.wait()
        set_tag(registry, name, value)
        barrier.wait()
        written.extend(name for name in registry.tags() if name.startswith("spin.history"))
        barrier.wait()

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_tag", write_together)
        errors: list[str] = []

        def promote_from_own_store(number: str) -> None:
            try:
                promote.promote(registry_fixture.open_registry(f"store-{number}"), number, "")
            except UserError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=promote_from_own_store, args=(number,)) for number in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(written)) == 2
    assert len(written) == 4
    assert all("moved meanwhile" in error for error in errors)
    assert len(errors) in (1, 2)  # the second driver may check after the first has removed its event
    assert len(promote.history(registry_fixture.registry)) == 2 - len(errors)
    assert (registry_fixture.registry.champion() is None) == (len(errors) == 2)


@pytest.mark.usefixtures("open_gate")
def test_the_promotion_commands_print_and_record_every_move(
    registry_fixture: PromotionFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_spin: CallSpin,
) -> None:
    """`--force` without a reason and a version that fails the gate end with status 2."""
    file = str(tmp_path / "settings.yaml")
    Path(file).write_text(yaml.safe_dump(registry_fixture.tree))
    assert call_spin("history", file)[1] == f"{registry_fixture.name} has had no champion; `spin promote` makes one\n"
    status, _, error = call_spin("promote", file, "--version", "1", "--force", "--why", " ")
    assert (status, "--force without --why" in error) == (2, True)
    promote.promote(registry_fixture.registry, "1", "")
    failing = GateReport(
        (CheckResult("score", 0.1, 0.5, "10.0 accuracy", "at least 50.0", "train again", figures={"score": 0.1}),)
    )
    monkeypatch.setattr(promote, "run_gate", lambda *_: failing)
    status, out, error = call_spin("promote", file, "--version", "2")
    assert status == 2
    assert "failed" in out
    refusal = f"version 2 of {registry_fixture.name} is not promoted"
    assert f"{refusal}: score: 10.0 accuracy, expected at least 50.0; train again, or" in error
    status, out, _ = call_spin("promote", file, "--version", "2", "--force", "--why", "a [test]")
    assert status == 0
    assert (
        "version 2 is champion in place of version 1, on the frozen evaluation set 10.0 accuracy, forced although"
        in out
    )
    event = promote.history(registry_fixture.registry)[-1]
    assert (event.forced, event.why) == (("score",), "a [test]")
    run, report = registry_fixture.read_run(event.run)
    tags = registry_fixture.read_gate_tags("2")
    assert run.data.tags["spin.gate.forced"] == report["forced"] == tags["spin.gate.forced"] == "true"
    assert (report["why"], report["passed"]) == ("a [test]", "false")
    assert call_spin("rollback", file, "--why", "it was poor")[0] == 0
    lines = call_spin("history", file)[1].splitlines()
    assert [line.split(" ", 2)[2].partition(", run ")[0] for line in lines] == [
        "promote from none to 1",
        "promote --force (score) from 1 to 2",
        "rollback from 2 to 1",
    ]
    assert lines[1].endswith(": a [test]")
    assert lines[0] < lines[1] < lines[2]
    assert "moved" not in call_spin("models", file)[1]
