"""Registered versions are downloaded unchanged; files changed in the artifact store are refused and never run.

The registry is SQLite, then a real MLflow server with PostgreSQL, passwords and artifacts in S3.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.forget.forget import forget_documents
from pipelines.registry import packaging
from pipelines.registry.mlflow_client import Tracking
from pipelines.registry.promotion import promote
from pipelines.registry.version_records import LoggedData
from pipelines.registry.versions import CHALLENGER, CHAMPION, Registry
from pipelines.service_errors import UnavailableError
from spin.errors import UserError
from spin.fitted import persistence
from spin.settings import Settings, parse_settings
from tests.support.registry_fixture import CARD, TEXTS, RegistryFixture, build_evaluation_set, read_files


@pytest.fixture(scope="module")
def shared_fixture(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, tracking_uri: str
) -> RegistryFixture:
    return RegistryFixture(tmp_path_factory.mktemp("registry"), backbone_folder, tracking_uri)


@pytest.fixture
def registry_fixture(shared_fixture: RegistryFixture) -> Iterator[RegistryFixture]:
    """A registry whose stored files are restored after the test."""
    yield shared_fixture
    shared_fixture.restore()


def test_a_download_equals_the_registered_files(shared_fixture: RegistryFixture, tmp_path: Path) -> None:
    """The classifier predicts as before; only the whole model, not the artifact, contains the backbone."""
    (tmp_path / "fetched").mkdir()
    shared_fixture.registry.download("1", tmp_path / "fetched")
    assert read_files(shared_fixture.folder / "artifact") == read_files(tmp_path / "fetched")
    assert shared_fixture.registry.load("1").predict(TEXTS) == shared_fixture.labels
    model = read_files(shared_fixture.registry.download_model("1", tmp_path))
    artifact = {f"artifacts/spin/{name}": data for name, data in read_files(shared_fixture.folder / "artifact").items()}
    assert artifact.items() <= model.items()
    assert {"MLmodel", "pyfunc.py", "artifacts/backbone/model.safetensors"} <= set(model)


def test_a_version_of_another_format_is_refused_by_name(
    shared_fixture: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "FORMAT", (stored := persistence.FORMAT) + 1)
    formats = f"has format {stored}, this version reads {stored + 1}"
    found = rf"^version 1 of {shared_fixture.name} {formats}; train the model again$"
    with pytest.raises(UserError, match=found):
        shared_fixture.registry.load("1")


def flip_bit(path: Path) -> None:
    """Flip a bit of the last byte."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def add_pickle(folder: Path, mark: Path) -> None:
    """Add files that write `mark` when they are unpickled."""
    for name in ("model.pkl", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Malicious(mark)))


def add_subfolder(artifact: Path) -> None:
    (artifact / "subfolder").mkdir()
    shutil.copy(artifact / "config.json", artifact / "subfolder")


CHANGED = "version 1 of tiny .* was changed since it was registered: expected digest [0-9a-f]{12} of its %s, found "


@pytest.mark.parametrize(
    "change",
    [
        lambda artifact, _: flip_bit(artifact / "model.safetensors"),
        add_pickle,
        lambda artifact, _: (artifact / "config.json").write_text("{}"),
        lambda artifact, _: (artifact / "config.json").rename(artifact / "other.json"),
        lambda artifact, _: (artifact / "model.safetensors").unlink(),
        lambda artifact, _: add_subfolder(artifact),
    ],
    ids=["flipped bit", "pickles", "other config", "renamed config", "no weights", "subfolder"],
)
def test_a_changed_artifact_is_refused(
    registry_fixture: RegistryFixture, tmp_path: Path, change: Callable[[Path, Path], Any]
) -> None:
    """Every reader refuses it before a file reaches the target folder; no pickle is loaded."""
    registry_fixture.change(lambda model: change(model / "artifacts" / "spin", tmp_path / "mark"))
    (tmp_path / "fetched").mkdir()
    with pytest.raises(UserError, match=CHANGED % "artifact"):
        registry_fixture.registry.download("1", tmp_path / "fetched")
    with pytest.raises(UserError, match=CHANGED % "model"):
        registry_fixture.registry.download_model("1", tmp_path / "fetched")
    with pytest.raises(UserError, match=CHANGED % "(artifact|model)"):
        promote.promote(registry_fixture.registry, "1", "")
    assert [*(tmp_path / "fetched").iterdir()] == []
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda model, mark: (model / "pyfunc.py").write_text(f"open({str(mark)!r}, 'w')"),
        lambda model, mark: (model / "MLmodel").write_text("flavors: {}"),
        lambda model, mark: flip_bit(model / "artifacts" / "backbone" / "model.safetensors"),
        lambda model, mark: add_pickle(model / "artifacts" / "backbone", mark),
        lambda model, mark: (model / "requirements.txt").write_text("other\n"),
    ],
    ids=["code", "MLmodel", "backbone", "pickles", "requirements"],
)
def test_a_changed_logged_model_is_refused(
    registry_fixture: RegistryFixture, tmp_path: Path, change: Callable[[Path, Path], Any]
) -> None:
    """Readers that would run its code refuse it. SPIN itself reads only the artifact, which is unchanged here."""
    registry_fixture.change(lambda model: change(model, tmp_path / "mark"))
    (tmp_path / "fetched").mkdir()
    with pytest.raises(UserError, match=CHANGED % "model"):
        registry_fixture.registry.download_model("1", tmp_path / "fetched")
    assert [*(tmp_path / "fetched").iterdir()] == []
    assert registry_fixture.registry.load("1").predict(TEXTS) == registry_fixture.labels
    assert not (tmp_path / "mark").exists()


def test_missing_files_are_a_user_error(registry_fixture: RegistryFixture, tmp_path: Path) -> None:
    """Another attempt would not bring them back."""
    registry_fixture.change(lambda model: shutil.rmtree(model / "artifacts" / "spin"))
    # an artifact store on disk may keep the empty folder, whose digest then differs
    with pytest.raises(UserError, match="version 1 of tiny .* (has lost its files, artifacts/spin|was changed since)"):
        registry_fixture.registry.download("1", tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_symbolic_link_has_no_digest(tmp_path: Path) -> None:
    """Its target could change after the digest was computed."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds model/link, which is not a plain file"):
        packaging.folder_digest(tmp_path)


@pytest.mark.parametrize(
    ("tag", "read"),
    [
        ("spin.artifact", lambda registry, folder: registry.download("1", folder)),
        ("spin.model", lambda registry, folder: registry.download_model("1", folder)),
    ],
)
def test_a_version_without_a_digest_is_refused(
    shared_fixture: RegistryFixture, tmp_path: Path, tag: str, read: Callable[[Registry, Path], Any]
) -> None:
    """Without it the files cannot be checked."""
    client = shared_fixture.registry.tracking.client
    digest = client.get_model_version(shared_fixture.name, "1").tags[tag]
    client.delete_model_version_tag(shared_fixture.name, "1", tag)
    try:
        with pytest.raises(UserError, match=f"version 1 of tiny .* has no tag {tag}.*; promote another"):
            read(shared_fixture.registry, tmp_path)
    finally:
        client.set_model_version_tag(shared_fixture.name, "1", tag, digest)


def test_a_version_is_resolved_by_number_and_alias(shared_fixture: RegistryFixture) -> None:
    """The newest version is the challenger; the error for a missing version lists the existing ones."""
    registry, name = shared_fixture.registry, shared_fixture.name
    assert registry.resolve(f"models:/{name}@{CHALLENGER}") == "1"
    with pytest.raises(UserError, match=r"@champion does not exist; versions: 1 @challenger; `spin promote` makes"):
        registry.resolve()
    number = shared_fixture.register(fingerprint="g")
    assert registry.resolve(f"models:/{name}@{CHALLENGER}") == number
    registry.set_alias(CHAMPION, "1")
    assert (registry.resolve(), registry.champion()) == ("1", "1")
    newest, *_, first = registry.versions()
    assert (newest.number, newest.aliases, newest.fingerprint) == (number, ("challenger",), "g")
    assert (first.number, first.aliases, first.metrics) == ("1", ("champion",), {"test_accuracy": 0.5})
    for model in ("models:/other/1", f"models:/{name}", "1"):
        with pytest.raises(UserError, match="is not a model here; expected models:/"):
            registry.resolve(model)
    with pytest.raises(UserError, match=f"/77 does not exist; versions: .*{number} @challenger.*, 1 @champion"):
        registry.resolve(f"models:/{name}/77")


def test_a_version_whose_run_was_deleted_for_good_has_no_metrics(tmp_path: Path, sqlite_uri: str) -> None:
    """As `mlflow gc` does: the other versions are listed as before, and `spin forget` goes on."""
    name = f"tiny {uuid.uuid4().hex[:8]}"
    settings = build_settings(tmp_path, sqlite_uri)
    settings = settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update={"model": name})})
    registry = Registry(settings)
    client = registry.tracking.client
    client.create_registered_model(name)
    runs = [client.create_run(registry.tracking.experiment()).info.run_id for _ in range(2)]
    for run in runs:
        client.log_metric(run, "test_accuracy", 0.5)
        client.create_model_version(name, f"file://{tmp_path}/model", run)
    client.delete_run(runs[0])
    client._tracking_client.store._hard_delete_run(runs[0])
    assert [(each.number, each.metrics) for each in registry.versions()] == [("2", {"test_accuracy": 0.5}), ("1", {})]
    [of_model] = forget_documents(settings, ["any"], []).registries
    assert of_model.unreadable.keys() == {"1", "2"}  # neither has files


@pytest.mark.slow
def test_the_first_version_freezes_the_evaluation_set(tmp_path: Path, backbone_folder: Path, tracking_uri: str) -> None:
    """Later versions do not replace it, and a changed file is refused."""
    first = build_evaluation_set([{"id": "a", "text": "ein Bär – 熊", "label": "good"}])
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, tracking_uri, evaluation_set=first)
    registry, client = registry_fixture.registry, registry_fixture.registry.tracking.client
    assert registry.evaluation_set() == first
    registry_fixture.register(build_evaluation_set([{"id": "b", "text": "other", "label": "bad"}]))
    assert registry.evaluation_set() == first
    (tmp_path / "evaluation.json").write_text("[]")
    client.log_artifact(registry.tags()["spin.evaluation.run"], str(tmp_path / "evaluation.json"), "evaluation")
    with pytest.raises(UserError, match="the frozen evaluation set of tiny .* has digest .*, expected"):
        registry.evaluation_set()


def test_the_model_card_is_the_description(shared_fixture: RegistryFixture) -> None:
    """It is cut to the limit of MLflow and names the full card in the artifact."""
    description = shared_fixture.registry.tracking.client.get_model_version(shared_fixture.name, "1").description
    shown, _, ending = description.partition("\n\n… ")
    assert len(CARD) > len(description) > 4900
    assert CARD.startswith(shown + "\n")
    assert ending == "the rest is in artifacts/spin/MODEL_CARD.md"


def test_an_interrupted_night_is_logged_again(shared_fixture: RegistryFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while logging leaves a failed run; a complete run is not logged again."""
    tags = {"spin.version": "1", "spin.night": "2026-03-01", "spin.run": "2026-03-01-001", "spin.output": "s3://nights"}
    data = LoggedData(
        name="tiny",
        source="s3://documents/day",
        digest="0123456789abcdef" * 4,
        profile={"documents": 8, "files": 2},
    )
    registry, tracking = shared_fixture.registry, shared_fixture.registry.tracking

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    def find_runs() -> list[Any]:
        return list(tracking.client.search_runs([tracking.experiment()], "tags.`spin.night` = '2026-03-01'"))

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.log_text", kill)
        with pytest.raises(Killed):
            registry.log_night(tags, {"rows": 8}, {"report.html": b"<p>"}, data)
    assert [run.info.status for run in find_runs()] == ["FAILED"]
    for _ in range(2):
        registry.log_night(tags, {"rows": 8}, {"report.html": b"<p>"}, data)
    finished = [run for run in find_runs() if run.info.status == "FINISHED"]
    assert len(finished) == 1
    assert finished[0].data.metrics == {"rows": 8}
    [read] = finished[0].inputs.dataset_inputs
    assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "inference")]
    assert (read.dataset.name, read.dataset.digest) == ("tiny", "0123456789abcdef")
    assert json.loads(read.dataset.profile) == {"documents": 8, "files": 2}
    assert mlflow.data.get_source(read.dataset).uri == "s3://documents/day"
    registry.log_night({**tags, "spin.output": "s3://others"}, {}, {}, data)
    assert len(find_runs()) == 3


# ---------------------------------------------------------------- tracking URI, credentials and permissions


def build_settings(folder: Path, uri: str | None) -> Settings:
    """Return settings with a store folder and a tracking URI."""
    tree = {"backbone": {"model": "none"}, "data": {"train": "none"}, "store": str(folder)}
    return parse_settings({**tree, "mlflow": {"tracking_uri": uri, "model": "tiny"}})


@pytest.mark.slow
def test_the_tracking_uri_comes_from_the_settings_then_the_environment_then_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SQLite file is in the store. A password in the URI is refused and not printed."""
    from_environment, from_settings = "http://127.0.0.1:9/environment", "http://127.0.0.1:9/settings"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Tracking(build_settings(tmp_path, from_settings)).uri == from_settings
    assert Tracking(build_settings(tmp_path, None)).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", from_environment)
    assert Tracking(build_settings(tmp_path, from_settings)).uri == from_settings
    assert Tracking(build_settings(tmp_path, None)).uri == from_environment
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert Tracking(build_settings(tmp_path, None)).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match="^MLFLOW_TRACKING_URI: a password stands in it; .*_PASSWORD") as error:
        Tracking(build_settings(tmp_path, None))
    assert "hunter2" not in str(error.value)


@pytest.mark.slow
def test_what_mlflow_writes_to_a_store_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder was there before, and is open to others: that stays as it is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    try:
        Tracking(build_settings(tmp_path, None)).experiment()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path, *tmp_path.iterdir())}
    assert modes == {tmp_path.name: 0o755, "mlflow": 0o700, "mlflow.db": 0o600}


@pytest.mark.slow
def test_files_come_through_the_server_since_its_address_of_the_store_may_be_unknown_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client would ask the server for URLs of the store, which only the server's own network may resolve."""
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD,
        MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD,
    )

    for variable in (MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD, MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD):
        monkeypatch.delenv(variable.name, raising=False)
        Tracking(build_settings(tmp_path, None))
        assert variable.is_set()
        assert variable.get() is False


def test_a_token_in_the_tracking_uri_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnavailableError, match=r"registry http://\*\*\*@127\.0\.0\.1:9") as error:
        Registry(build_settings(tmp_path, "http://hush@127.0.0.1:9")).champion()
    assert "hush" not in str(error.value)


@pytest.mark.mlflow
def test_a_wrong_password_is_a_user_error_that_does_not_show_it(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variables to set."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not the password")
    with pytest.raises(UserError) as error:
        Registry(build_settings(tmp_path, mlflow_server)).champion()
    assert str(error.value) == (
        f"registry {mlflow_server} does not know the user 'spin' by this password; "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


@pytest.mark.mlflow
def test_a_user_without_write_permission_can_only_read(
    mlflow_server: str, tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a user can load a version, but cannot move an alias, write a tag, register or change stored files.

    Without a permission, as users begin, it can not even load one.
    """
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, mlflow_server)
    user = {"username": f"reader-{registry_fixture.name[-8:]}", "password": "may read, no more"}
    ask = partial(ask_as_user, mlflow_server, os.environ.copy())
    ask("2.0/mlflow/users/create", user)
    experiment = registry_fixture.registry.tracking.experiment()
    for name, value in user.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name.upper()}", value)
    with pytest.raises(UserError, match=f"does not allow this to the user '{user['username']}'"):
        registry_fixture.registry.load("1")
    for kind, id in (("registered_model", registry_fixture.name), ("experiment", experiment)):
        grant = {"username": user["username"], "permission": "READ", "resource_type": kind, "resource_id": id}
        ask("3.0/mlflow/users/permissions/grant", grant)
    assert registry_fixture.registry.load("1").predict(TEXTS) == registry_fixture.labels
    for write in (
        lambda: registry_fixture.registry.set_alias(CHAMPION, "1"),
        lambda: registry_fixture.registry.set_tag("spin.history.000001", "{}"),
        registry_fixture.register,
    ):
        with pytest.raises(UserError) as error:
            write()
        assert f"does not allow this to the user '{user['username']}'; have the right given" in str(error.value)
    with pytest.raises(Exception, match=r"403|[Pp]ermission"):
        registry_fixture.change(lambda model: (model / "MLmodel").write_text("flavors: {}"))
    assert registry_fixture.registry.champion() is None


@pytest.mark.mlflow
def test_a_user_that_begins_without_permissions_can_register(
    mlflow_server: str, tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has made the model, as the runbook says: nobody is told that what he may not see is not there."""
    name = f"driver-{uuid.uuid4().hex[:8]}"
    ask_as_user(
        mlflow_server, os.environ.copy(), "2.0/mlflow/users/create", {"username": name, "password": "drives nights"}
    )
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "drives nights")
    ask_as_user(mlflow_server, os.environ.copy(), "2.0/mlflow/registered-models/create", {"name": name})
    settings = {"model": name, "tracking_uri": mlflow_server}
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, mlflow_server, mlflow=settings)
    assert registry_fixture.registry.champion() is None
    registry_fixture.registry.set_alias(CHAMPION, "1")
    assert registry_fixture.registry.load("1").predict(TEXTS) == registry_fixture.labels


def ask_as_user(server: str, environment: Mapping[str, str], path: str, body: Mapping[str, object]) -> None:
    """Send a request of MLflow's API as the user of an environment."""
    import requests

    user = (environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"])
    requests.post(f"{server}/api/{path}", json=body, auth=user, timeout=60).raise_for_status()


@pytest.mark.mlflow
def test_a_server_without_mlflow_is_a_user_error(mlflow_server: str, tmp_path: Path) -> None:
    """Another attempt with the same address would not succeed."""
    with pytest.raises(UserError, match="404"):
        Registry(build_settings(tmp_path, f"{mlflow_server}/elsewhere")).champion()
