"""A training that is suspended, and wakes while another with other settings works in its store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pipelines.data.files.shards import Shard
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.training import fit_heads, fit_probes, train
from pipelines.training.extract_features import ExtractStep, load_features, run_extract
from pipelines.training.fit_probes import run_probe
from pipelines.training.train import TrainReport, run_train
from pipelines.training.workflow import run_stages, run_workflow
from spin.settings import Settings
from spin.sparsify.probe import Probe
from tests.support import small_training
from tests.support.leases import expire_lease

pytestmark = pytest.mark.slow

T = TypeVar("T")
_running: ContextVar[Suspended | None] = ContextVar("running", default=None)
"""the stage that calls, in whichever thread of it"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 400 documents and a backbone."""
    folder = tmp_path_factory.mktemp("overtaken")
    small_training.write_corpus(folder, 400, ("good", "bad"))
    return folder


def make_settings(folder: Path, store: Path, **changes: Any) -> Settings:
    """Settings of a training without baselines."""
    search = {"etas": [0.5, 0.9], "strengths": [1, 10], "network": "off", "words": "off"}
    return small_training.make_settings(folder, store, **{"search": search, "train": {"baselines": False}, **changes})


class Suspended:
    """A stage that runs in a thread, sleeps where it calls `sleep`, and goes on when its successor calls `wake`."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._asleep, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._catch)
        self.error: Exception | None = None

    def start(self) -> None:
        """Start the stage and return when it sleeps."""
        self._thread.start()
        while self._thread.is_alive() and not self._asleep.wait(0.1):
            pass
        assert self._asleep.is_set(), self.error

    def is_running_here(self) -> bool:
        """Whether this is called by the suspended stage."""
        return _running.get() is self

    def sleep(self) -> None:
        self._asleep.set()
        assert self._woken.wait(600)

    def wake(self) -> None:
        """Let the stage go on, and return when it has ended."""
        self._woken.set()
        self._thread.join()

    def _catch(self) -> None:
        _running.set(self)
        try:
            self._run()
        except Exception as error:
            self.error = error


@pytest.fixture(autouse=True)
def _suspended_processes_renew_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)


def overtake(suspended: Suspended, store: Store, successor: Callable[[], T]) -> T:
    """Start a stage, let it sleep beyond its lease, and run its successor, which wakes it; return what this returns."""
    suspended.start()
    expire_lease(store)
    result = successor()
    assert isinstance(suspended.error, HeldError)
    return result


def test_a_shard_of_an_overtaken_extraction_is_not_among_those_of_its_successor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written after the successor has planned, and before it computes this shard."""
    settings = make_settings(folder, tmp_path / "store", poolings=["max"])
    changed = make_settings(folder, tmp_path / "store", poolings=["mean"])
    suspended, compute = Suspended(lambda: run_extract(settings)), ExtractStep.__call__

    def call(step: ExtractStep, shard: Shard, attempt: Attempt) -> StepResult[Any]:
        result = compute(step, shard, attempt)
        if suspended.is_running_here() and shard.index == 3:
            suspended.sleep()
        elif shard.index == 0 and not suspended.is_running_here():
            suspended.wake()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(ExtractStep, "__call__", call)
        overtake(suspended, Store.of(settings) / "features", lambda: run_extract(changed, restart=True))
    plan, manifest, features = load_features(changed)
    assert all(key.startswith(f"pool/{plan.derived.form}/") for key in manifest.results.files)
    clean = make_settings(folder, tmp_path / "clean", poolings=["mean"])
    run_extract(clean)
    _, _, expected = load_features(clean)
    for column in expected.columns:
        assert features.read_rows(column, range(400)).tolist() == expected.read_rows(column, range(400)).tolist()


def test_a_probe_of_an_overtaken_stage_is_not_among_those_of_its_successor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(folder, tmp_path / "store")
    changed = make_settings(folder, tmp_path / "store", metric="accuracy", probe={"penalties": 3})
    run_extract(settings)
    suspended, fit, fitted = Suspended(lambda: run_probe(settings)), fit_probes.fit_probes, list[str]()
    _, _, features = load_features(settings)
    sites = len({column.site for column in features.probed})

    def fit_and_sleep(activations: Any, *args: Any) -> Sequence[Probe]:
        probes = fit(activations, *args)
        if suspended.is_running_here():
            fitted.append(str(next(iter(activations)).site))
            if len(fitted) == sites:
                suspended.sleep()
        elif str(next(iter(activations)).site) == fitted[0]:
            suspended.wake()
        return probes

    with monkeypatch.context() as patch:
        patch.setattr(fit_probes, "fit_probes", fit_and_sleep)
        manifest = overtake(suspended, Store.of(settings) / "probes", lambda: run_probe(changed, restart=True))
    clean = make_settings(folder, tmp_path / "clean", metric="accuracy", probe={"penalties": 3})
    run_stages(clean, ["extract"])
    expected = run_probe(clean)
    assert manifest.results.probes == expected.results.probes


def test_heads_and_a_version_of_an_overtaken_training_are_not_those_of_its_successor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has fitted its heads when it sleeps, and writes them before its successor looks for its own."""
    settings = make_settings(folder, tmp_path / "store")
    search = {**settings.search.model_dump(), "etas": [0.8]}
    changed = make_settings(folder, tmp_path / "store", search=search)
    run_stages(settings, ["extract", "probe"])
    suspended = Suspended(lambda: run_train(settings, Registry(settings)))
    integrate, estimate_compute = fit_heads.integrate, train.relative_flops

    def sleep(*args: Any, **kwargs: Any) -> Any:
        result = integrate(*args, **kwargs)
        if suspended.is_running_here():
            suspended.sleep()
        return result

    def wake(*args: Any) -> Any:
        if not suspended.is_running_here():
            suspended.wake()
        return estimate_compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fit_heads, "integrate", sleep)
        patch.setattr(train, "relative_flops", wake)
        report = overtake(
            suspended,
            Store.of(settings) / "model",
            lambda: run_train(changed, Registry(changed), restart=True),
        )
    clean = make_settings(folder, tmp_path / "clean", search=search)
    assert report.results.choice == run_workflow(clean).results.choice
    assert [version.number for version in Registry(changed).versions()] == [report.registered.version]


def test_an_artifact_that_another_training_wrote_is_not_registered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that slept while it wrote the files of its own: they are written again from the fitted heads."""
    settings = make_settings(folder, tmp_path / "store")
    run_stages(settings, ["extract", "probe", "train"])
    store, registry = Store.of(settings) / "model", Registry(settings)
    neurons = store.read("neurons.json")
    for key in store.list():
        if "/registered/" in key:
            store.delete_many([key])
    store.write("neurons.json", b"[]")
    registered: list[bytes] = []

    def register(registry: Registry, artifact: Path, *args: Any, register: Any = Registry.register) -> Any:
        registered.append((artifact / "neurons.json").read_bytes())
        return register(registry, artifact, *args)

    monkeypatch.setattr(Registry, "register", register)
    monkeypatch.setattr(fit_heads, "integrate", lambda *_, **__: pytest.fail("heads are fitted again"))
    run_train(settings, registry)
    assert [store.read("neurons.json"), *registered] == [neurons, neurons]


@pytest.mark.parametrize("last_step", ["check_labels", "write_manifest", "_register_once"])
def test_a_training_that_was_overtaken_before_it_ends_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: str
) -> None:
    """It sleeps before it writes its artifact, registers it or reports, and changes nothing of its successor's work."""
    settings = make_settings(folder, tmp_path / "store")
    changed = make_settings(folder, tmp_path / "store", search={**settings.search.model_dump(), "etas": [0.8]})
    run_stages(settings, ["extract", "probe"])
    store, before = Store.of(settings), dict[str, bytes | None]()
    suspended, step = Suspended(lambda: run_train(settings, Registry(settings))), getattr(train, last_step)

    def step_and_sleep(*args: Any) -> Any:
        result = step(*args)
        if suspended.is_running_here():
            suspended.sleep()
        return result

    def succeed() -> TrainReport:
        report = run_train(changed, Registry(changed), restart=True)
        before.update({key: store.read(key) for key in store.list() if not key.startswith("model/_lease")})
        suspended.wake()
        return report

    with monkeypatch.context() as patch:
        patch.setattr(train, last_step, step_and_sleep)
        overtake(suspended, store / "model", succeed)
    assert "report.json" in before
    assert {key: store.read(key) for key in before} == before
    registered = last_step == "_register_once"
    assert len(Registry(changed).versions()) == 1 + registered
