"""Promotion, rollback and history on a real registry; versions are loaded by real fresh processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs.cli import main
from pipelines.registry import promote
from pipelines.registry.gate import GateCheck, GateReport
from pipelines.registry.subprocess_predict import predict_in_subprocess
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from spin import SpinClassifier
from spin.errors import UserError
from spin.settings import Settings, parse_settings
from tests.support import tiny
from tests.support.registry_fixture import build_evaluation_set, build_quick_classifier, build_training_record

ROWS = tiny.documents(240, seed=5)
TEXTS = [row["text"] for row in ROWS]


class PromotionFixture:
    """A registry with four versions: 1, 2 with the same files, 3 trained on wrong labels, 4 without its artifact."""

    def __init__(self, folder: Path, backbone: Path, uri: str) -> None:
        self.folder, self.name = folder, f"tiny {uuid.uuid4().hex[:8]}"  # unique: other tests use the same registry
        self.tree: dict[str, Any] = {
            "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu"},
            "data": {"train": "none"},
            "store": str(folder / "store"),
            "mlflow": {"model": self.name, "tracking_uri": uri},
        }
        self.settings = parse_settings(self.tree)
        self.registry = Registry(self.settings)
        rows = tiny.documents(120)
        swapped = [{**row, "label": rows[at // 4 * 4 % 7]["label"]} for at, row in enumerate(rows)]
        self.fit(rows).save(folder / "1")
        self.fit(swapped).save(folder / "3")
        for copied in "24":
            shutil.copytree(folder / "1", folder / copied)
        for number in "1234":
            self.registry.register(folder / number, build_training_record(build_evaluation_set(ROWS)))
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        location = self.registry.tracking.client.get_model_version_download_uri(self.name, "4")
        get_artifact_repository(location, tracking_uri=uri).delete_artifacts("artifacts")

    def fit(self, rows: list[dict[str, str]]) -> SpinClassifier:
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
        return build_quick_classifier(self.settings.backbone).fit(texts, labels)

    def driver(self, store: str = "store", **promote: Any) -> Registry:
        """The registry as another driver opens it, with its own store where one is named."""
        return Registry(parse_settings({**self.tree, "store": str(self.folder / store), "promote": promote}))

    def tags(self, number: str) -> dict[str, str]:
        tags = self.registry.tracking.client.get_model_version(self.name, number).tags
        return {name: value for name, value in tags.items() if name.startswith("spin.gate.")}

    def run(self, run: str) -> tuple[Any, dict[str, Any]]:
        """A run of MLflow and its gate.json."""
        client = self.registry.tracking.client
        return client.get_run(run), json.loads(Path(client.download_artifacts(run, "gate.json")).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, tracking_uri: str) -> PromotionFixture:
    return PromotionFixture(tmp_path_factory.mktemp("promotion"), backbone_folder, tracking_uri)


@pytest.fixture
def registry_fixture(made: PromotionFixture) -> Iterator[PromotionFixture]:
    """The champion and the history are removed after the test."""
    yield made
    client = made.registry.tracking.client
    client.delete_registered_model_alias(made.name, "champion")
    for name in made.registry.tags():
        if name.startswith("spin.history"):
            client.delete_registered_model_tag(made.name, name)


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate passes at once, for tests of what follows it."""
    passed = GateReport((GateCheck("loads", 1, 1, "", "", ""),), {"score": 0.5})
    monkeypatch.setattr(promote, "run_gate", lambda *_: passed)
    monkeypatch.setattr(promote, "check_loads", lambda *_: passed)


def moves(registry: Registry) -> list[tuple[Any, ...]]:
    return [(e.move, e.from_version, e.to_version, e.why) for e in promote.history(registry)]


def test_a_fresh_process_predicts_as_a_night(
    registry_fixture: PromotionFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the settings' choice and thresholds, not the artifact's; nothing is imported from the working directory."""
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


def test_the_death_of_the_process_is_an_error(registry_fixture: PromotionFixture, tmp_path: Path) -> None:
    """Logged code that ends its process does not end this one."""
    model = registry_fixture.registry.download_model("1", tmp_path)
    [code] = model.rglob("pyfunc.py")
    code.write_text("import os, sys\nprint('out of memory', file=sys.stderr, flush=True)\nos._exit(7)\n")
    with pytest.raises(UserError, match=r"its process ended with status 7: out of memory"):
        predict_in_subprocess(model, TEXTS, registry_fixture.settings)


def test_promotions_a_refusal_and_a_rollback(registry_fixture: PromotionFixture) -> None:
    """The first champion, an equal one, a worse version that is refused, and a rollback; all of it is logged."""
    registry = registry_fixture.registry
    shown: list[tuple[GateCheck, ...]] = []
    first = promote.promote(registry, "1", "the first", on_checks=shown.append)
    assert [check.name for check in shown[0]] == ["loads", "schema", "score", "calibration", "throughput"]
    assert (first.from_version, first.to_version, first.forced) == (None, "1", ())
    truth = [row["label"] for row in ROWS]
    spin = registry.load("1")
    right = np.mean([a == b for a, b in zip(spin.predict(TEXTS), truth, strict=True)])
    assert first.score == pytest.approx(right, abs=0.01)  # macro F1 of two balanced classes

    second = promote.promote(registry, "2", "the same again")
    assert second.score == second.score_before == first.score
    run, report = registry_fixture.run(second.run)
    assert run.info.run_name == "promote 2"
    assert run.data.tags["spin.version"] == "2"
    assert run.data.metrics["difference_at_least"] == 0
    assert all(row["passed"] for row in report["checks"])
    assert registry_fixture.tags("2")["spin.gate.passed"] == "true"
    assert registry_fixture.tags("2")["spin.gate.regression"] == "passed: +0.0, at least +0.0"

    with pytest.raises(UserError, match=r"version 3 of .* is not promoted: .*regression: -\d.*--force and --why"):
        promote.promote(registry, "3", "", on_checks=shown.append)
    assert registry.champion() == "2"
    assert not next(check for check in shown[-1] if check.name == "regression").passed
    kept = registry_fixture.tags("3")
    assert kept["spin.gate.passed"] == kept["spin.gate.forced"] == "false"
    assert kept["spin.gate.regression"].startswith("failed: -")
    _, report = registry_fixture.run(kept["spin.gate.run"])
    assert (report["version"], report["champion"], report["passed"]) == ("3", "2", "false")
    assert {row["name"]: row["passed"] for row in report["checks"]}["regression"] is False

    last = promote.rollback(registry, "complaints")
    assert registry.champion() == "1"
    run, report = registry_fixture.run(last.run)
    assert run.info.run_name == "rollback 1"
    assert [(row["name"], row["passed"]) for row in report["checks"]] == [("loads", True)]
    with pytest.raises(
        UserError, match=f"{registry_fixture.name} has no earlier champion to go back to; `spin models`"
    ):
        promote.rollback(registry, "")
    assert moves(registry) == [
        ("promote", None, "1", "the first"),
        ("promote", "1", "2", "the same again"),
        ("rollback", "2", "1", "complaints"),
    ]
    assert all(event.who and event.when and event.run for event in promote.history(registry))


def test_a_version_that_does_not_load_is_never_champion(
    registry_fixture: PromotionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By promotion, force or rollback; the reason is tagged and nothing moves."""
    with pytest.raises(
        UserError, match=rf"version 4 of {registry_fixture.name} is not promoted: loads: .*; correct what it names"
    ):
        promote.promote(registry_fixture.registry, "4", "it must", force=True)
    assert registry_fixture.tags("4")["spin.gate.loads"].startswith("failed: ")
    with monkeypatch.context() as patch:
        patch.setattr(promote, "run_gate", lambda *_: GateReport((), {}))
        promote.promote(registry_fixture.registry, "1", "")
    with pytest.raises(
        UserError, match=rf"version 4 of {registry_fixture.name} is not champion again: .*; roll back to another"
    ):
        promote.rollback(registry_fixture.registry, "", "4")
    assert registry_fixture.registry.champion() == "1"
    assert moves(registry_fixture.registry) == [("promote", None, "1", "")]


@pytest.mark.usefixtures("open_gate")
def test_rollback_targets(registry_fixture: PromotionFixture) -> None:
    """By default the version that the champion replaced, never one that a rollback left; with `to` any version."""
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
    client = registry_fixture.registry.tracking.client
    client.set_model_version_tag(registry_fixture.name, "1", "spin.gate.class_floors", "failed: bad 10.0")
    promote.promote(registry_fixture.registry, "1", "")
    assert set(registry_fixture.tags("1")) == {
        f"spin.gate.{name}" for name in ("passed", "champion", "forced", "loads", "run")
    }
    assert "spin.artifact" in client.get_model_version(registry_fixture.name, "1").tags


HOLD = """
import sys
from pipelines.registry import promote
from pipelines.registry.gate import GateReport
from pipelines.registry.versions import Registry
from spin.errors import SpinError
from spin.settings import load_settings

def run_gate(*_):
    print("inside", flush=True)
    sys.stdin.readline()
    return GateReport((), {})

promote.run_gate = run_gate
try:
    promote.promote(Registry(load_settings(sys.argv[1])), sys.argv[2], "from another process")
except SpinError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""
"""promotes, and waits at the gate until it reads a line"""


@pytest.fixture
def other(registry_fixture: PromotionFixture, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that waits at the gate with version 1."""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(registry_fixture.tree))
    words = [sys.executable, "-c", HOLD, str(tmp_path / "settings.yaml"), "1"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("open_gate")
def test_of_two_simultaneous_promotions_one_wins(
    registry_fixture: PromotionFixture,
    other: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other command, or a rollback, names the holder and ends with status 3; afterwards it can run again."""
    with pytest.raises(HeldError, match=rf"promotion is held by .* process {other.pid}; wait until it ends"):
        promote.rollback(registry_fixture.registry, "", "2")
    monkeypatch.setattr(sys, "argv", ["spin", "promote", str(tmp_path / "settings.yaml"), "--version", "2"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    assert f"process {other.pid}" in capsys.readouterr().err
    assert registry_fixture.registry.champion() is None
    other.communicate("\n", timeout=60)
    assert other.returncode == 0
    assert moves(registry_fixture.registry) == [("promote", None, "1", "from another process")]
    promote.promote(registry_fixture.registry, "2", "")
    assert registry_fixture.registry.champion() == "2"


@pytest.mark.usefixtures("open_gate")
def test_a_champion_that_was_moved_meanwhile_is_kept(
    registry_fixture: PromotionFixture, other: subprocess.Popen[str]
) -> None:
    """Two drivers with different stores: the slower one compared its version with another champion and is refused."""
    promote.promote(registry_fixture.driver("elsewhere"), "2", "the faster")
    output, _ = other.communicate("\n", timeout=60)
    assert other.returncode == 2
    assert "moved meanwhile: expected version none, with which version 1 was compared, found 2" in output
    assert registry_fixture.registry.champion() == "2"
    assert moves(registry_fixture.registry) == [("promote", None, "2", "the faster")]


class PausedDriver:
    """A driver with its own store, in a thread that pauses before a method of its registry."""

    def __init__(self, registry_fixture: PromotionFixture, number: str, method: str) -> None:
        self.error = ""
        self.there, self.go = threading.Event(), threading.Event()
        self.registry = registry_fixture.driver(f"store-{number}")
        original = getattr(self.registry, method)

        def hold(*args: Any) -> Any:
            self.there.set()
            assert self.go.wait(60)
            return original(*args)

        setattr(self.registry, method, hold)
        self.thread = threading.Thread(target=self._promote, args=(number,))
        self.thread.start()
        assert self.there.wait(60)

    def _promote(self, number: str) -> None:
        try:
            promote.promote(self.registry, number, "held")
        except UserError as error:
            self.error = str(error)

    def end(self) -> str:
        self.go.set()
        self.thread.join()
        return self.error


@pytest.mark.usefixtures("open_gate")
def test_a_move_sees_another_that_has_not_finished(registry_fixture: PromotionFixture) -> None:
    """The faster driver has written its event and not yet moved the alias when the slower one checks."""
    slower = PausedDriver(registry_fixture, "1", "set_tag")
    faster = PausedDriver(registry_fixture, "2", "set_alias")
    assert "moved meanwhile: expected version none" in slower.end()
    assert faster.end() == ""
    assert registry_fixture.registry.champion() == "2"
    assert moves(registry_fixture.registry) == [("promote", None, "2", "held")]


@pytest.mark.usefixtures("open_gate")
def test_simultaneous_events_do_not_overwrite_each_other(
    registry_fixture: PromotionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both events exist before either driver checks: both are removed and nothing moves."""
    both = threading.Barrier(2, timeout=60)
    written: list[str] = []
    set_tag = Registry.set_tag

    def write(registry: Registry, name: str, value: str) -> None:
        both.wait()
        set_tag(registry, name, value)
        both.wait()
        written.extend(name for name in registry.tags() if name.startswith("spin.history"))
        both.wait()

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_tag", write)
        errors: list[str] = []

        def promote_from_own_store(number: str) -> None:
            try:
                promote.promote(registry_fixture.driver(f"store-{number}"), number, "")
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
def test_the_commands(
    registry_fixture: PromotionFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--force without a reason and a failing version end with status 2; `spin history` lists every move."""
    file = str(tmp_path / "settings.yaml")
    Path(file).write_text(yaml.safe_dump(registry_fixture.tree))

    def spin(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spin", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    assert spin("history", file)[1] == f"{registry_fixture.name} has had no champion; `spin promote` makes one\n"
    status, _, error = spin("promote", file, "--version", "1", "--force", "--why", " ")
    assert (status, "--force without --why" in error) == (2, True)
    promote.promote(registry_fixture.registry, "1", "")
    failing = GateReport(
        (GateCheck("score", 0.1, 0.5, "10.0 accuracy", "at least 50.0", "train again"),), {"score": 0.1}
    )
    monkeypatch.setattr(promote, "run_gate", lambda *_: failing)
    status, out, error = spin("promote", file, "--version", "2")
    assert status == 2
    assert "failed" in out
    refused = f"version 2 of {registry_fixture.name} is not promoted"
    assert f"{refused}: score: 10.0 accuracy, expected at least 50.0; train again, or" in error
    status, out, _ = spin("promote", file, "--version", "2", "--force", "--why", "a [test]")
    assert status == 0
    assert "version 2 is champion in place of version 1, 10.0 on the frozen evaluation set, forced although" in out
    event = promote.history(registry_fixture.registry)[-1]
    assert (event.forced, event.why) == (("score",), "a [test]")
    run, report = registry_fixture.run(event.run)
    assert (
        run.data.tags["spin.gate.forced"]
        == report["forced"]
        == registry_fixture.tags("2")["spin.gate.forced"]
        == "true"
    )
    assert (report["why"], report["passed"]) == ("a [test]", "false")
    assert spin("rollback", file, "--why", "it was poor")[0] == 0
    lines = spin("history", file)[1].splitlines()
    assert [line.split(" ", 2)[2].partition(", run ")[0] for line in lines] == [
        "promote from none to 1",
        "promote --force (score) from 1 to 2",
        "rollback from 2 to 1",
    ]
    assert lines[1].endswith(": a [test]")
    assert lines[0] < lines[1] < lines[2]
    assert "moved" not in spin("models", file)[1]


def test_settings_of_the_gate_are_checked() -> None:
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s"}
    for section, message in (
        ({"class_floors": {"bad": 80}}, "'promote.class_floors.bad' is 80: Input should be less than or equal to 1"),
        ({"min_score": 80}, "'promote.min_score' is 80"),
        ({"significance": 0}, "'promote.significance' is 0"),
    ):
        with pytest.raises(UserError) as raised:
            parse_settings({**tree, "promote": section})
        assert message in str(raised.value)
    assert Settings.model_validate(tree).promote.max_regression == 0.01
