"""Versions that are signed, by a pair of keys: altered by a byte or unsigned, they are refused and name the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pipelines.registry import packaging, signatures
from pipelines.registry.promotion import promote
from pipelines.registry.versions import Registry
from pipelines.training.workflow import TrainingStage, run_workflow
from spin.errors import UserError
from tests.support import small_training
from tests.support.key_pair import write_key_pair
from tests.support.registry_fixture import TEXTS, RegistryFixture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings `registry` that name a pair of keys."""
    return write_key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def shared_fixture(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, tracking_uri: str, keys: dict[str, str]
) -> RegistryFixture:
    return RegistryFixture(tmp_path_factory.mktemp("registry"), backbone_folder, tracking_uri, registry=keys)


@pytest.fixture
def registry_fixture(shared_fixture: RegistryFixture) -> Iterator[RegistryFixture]:
    """A registry with a signed version, whose files and digests are restored after the test."""
    client, name = shared_fixture.registry.tracking.client, shared_fixture.name
    tags = client.get_model_version(name, "1").tags
    yield shared_fixture
    shared_fixture.restore()
    for tag in ("spin.artifact", "spin.model"):
        client.set_model_version_tag(name, "1", tag, tags[tag])


def open_registry(fixture: RegistryFixture, **keys: str) -> Registry:
    """The registry by settings with other keys."""
    section = fixture.settings.registry.model_copy(update={"sign": None, "verify": None, **keys})
    return Registry(fixture.settings.model_copy(update={"registry": section}))


def change_with_digests(fixture: RegistryFixture, change: Callable[[Path], Any]) -> None:
    """Change the stored files of the version and its digests, as anyone who may write to the registry can."""

    def change_all(model: Path) -> None:
        change(model)
        client, signatures = fixture.registry.tracking.client, model / "signatures"
        aside = signatures.rename(model.parent / f"{model.name}.aside") if signatures.exists() else None
        for tag, folder in (("spin.artifact", model / "artifacts" / "spin"), ("spin.model", model)):
            client.set_model_version_tag(fixture.name, "1", tag, packaging.folder_digest(folder))
        if aside is not None:
            aside.rename(signatures)

    fixture.change(change_all)


@pytest.mark.usefixtures("gate_in_process")
def test_a_signed_version_is_used_as_any_other(shared_fixture: RegistryFixture, tmp_path: Path) -> None:
    """Its signatures are no part of its files, and need not be looked at."""
    registry = shared_fixture.registry
    assert registry.load("1").predict(TEXTS) == shared_fixture.labels
    assert not (registry.download_model("1", tmp_path) / "signatures").exists()
    assert promote.promote(registry, "1", "signed").to_version == "1"
    registry.tracking.client.delete_registered_model_alias(shared_fixture.name, "champion")
    assert open_registry(shared_fixture).load("1").predict(TEXTS) == shared_fixture.labels


def flip_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("with_digests", [False, True], ids=["files", "files and digests"])
@pytest.mark.parametrize(
    "file", ["artifacts/spin/model.safetensors", "artifacts/backbone/model.safetensors", "MLmodel"]
)
def test_a_version_that_is_unsigned_or_altered_by_a_byte_is_refused(
    registry_fixture: RegistryFixture, tmp_path: Path, file: str, with_digests: bool
) -> None:
    """The error names the file. A night reads the artifact alone, and promotion all of the model."""
    change = change_with_digests if with_digests else RegistryFixture.change
    change(registry_fixture, lambda model: flip_bit(model / file))
    name, place = file.removeprefix("artifacts/spin/"), "artifacts/spin/"
    fault = "version 1 of tiny .* has no valid signature by the key of .*key.pub: {} is not as it was signed; promote"
    with pytest.raises(UserError, match=fault.format(file)):
        registry_fixture.registry.download_model("1", tmp_path)
    with pytest.raises(UserError, match=fault.format(file)):
        promote.promote(registry_fixture.registry, "1", "all the same", force=True)
    if file.startswith(place):
        (tmp_path / "fetched").mkdir()
        with pytest.raises(UserError, match=fault.format(name)):
            registry_fixture.registry.download("1", tmp_path / "fetched")
        assert [*(tmp_path / "fetched").iterdir()] == []
        with pytest.raises(UserError, match=fault.format(name)):
            registry_fixture.registry.load("1")
    elif with_digests:
        assert registry_fixture.registry.load("1").predict(TEXTS) == registry_fixture.labels
    if with_digests and file != "MLmodel":  # as without signatures
        open_registry(registry_fixture).download_model("1", tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda model: (model / "MLmodel").write_text("b"), "MLmodel is not as it was signed"),
        (lambda model: (model / "MLmodel").unlink(), "MLmodel is missing"),
        (lambda model: (model / ".gitignore").touch(), ".gitignore is not signed"),
        (lambda model: (model / "MLmodel").rename(model / "other"), "MLmodel is missing, and 1 more differ"),
        (lambda model: None, None),
    ],
)
def test_the_first_file_that_differs_is_named(
    tmp_path: Path, keys: dict[str, str], change: Callable[[Path], Any], fault: str | None
) -> None:
    model = tmp_path / "model"
    (model / "artifacts" / "spin").mkdir(parents=True)
    for file in (model / "MLmodel", model / "artifacts" / "spin" / "config.json"):
        file.write_text("a")
    signatures.sign_model(model, tmp_path / "signatures", keys["sign"], keys["verify"])
    change(model)
    found = signatures.find_fault("model", model, tmp_path / "signatures", keys["verify"])
    assert (found is None) if fault is None else str(found).endswith(f"key.pub: {fault}")


def test_a_version_without_a_signature_is_refused(registry_fixture: RegistryFixture, tmp_path: Path) -> None:
    """Somebody who may write to the registry has removed it, or registered a version of his own."""
    registry_fixture.change(lambda model: [file.unlink() for file in (model / "signatures").iterdir()])
    refused = "version 1 of tiny .* is not signed, expected a signature by the key of .*key.pub; promote another"
    for read in (registry_fixture.registry.load, lambda number: promote.promote(registry_fixture.registry, number, "")):
        with pytest.raises(UserError, match=refused):
            read("1")
    assert open_registry(registry_fixture).load("1").predict(TEXTS) == registry_fixture.labels
    registry_fixture.change(lambda model: [file.write_text("{") for file in (model / "signatures").iterdir()])
    with pytest.raises(UserError, match="has no valid signature by the key of"):
        registry_fixture.registry.load("1")


def test_a_version_that_another_key_has_signed_is_refused(registry_fixture: RegistryFixture, tmp_path: Path) -> None:
    other = write_key_pair(tmp_path)
    with pytest.raises(UserError, match=f"has no valid signature by the key of {other['verify']}: Key mismatch"):
        open_registry(registry_fixture, verify=other["verify"]).load("1")


def test_keys_that_are_no_pair_register_nothing(
    shared_fixture: RegistryFixture, keys: dict[str, str], tmp_path: Path
) -> None:
    """Every command would refuse the version."""
    other, versions = write_key_pair(tmp_path), shared_fixture.registry.versions()
    fixture = RegistryFixture.__new__(RegistryFixture)
    fixture.folder = shared_fixture.folder
    fixture.registry = open_registry(shared_fixture, sign=other["sign"], verify=keys["verify"])
    with pytest.raises(
        UserError, match=r"^registry\.verify: .*key.pub does not belong to .*; name the two files of one"
    ):
        fixture.register()
    assert shared_fixture.registry.versions() == versions


@pytest.mark.parametrize("first", ["extract", "train"])
def test_a_key_that_cannot_be_used_is_noticed_before_any_stage(
    tmp_path: Path, keys: dict[str, str], first: TrainingStage
) -> None:
    """Not when all is computed."""
    other = {**keys, "sign": write_key_pair(tmp_path)["sign"]}
    for pair, fault in (({"sign": str(tmp_path / "none")}, "none cannot be used"), (other, "does not belong to")):
        settings = small_training.make_settings(tmp_path, tmp_path / "store", registry=pair)
        with pytest.raises(UserError, match=fault):
            run_workflow(settings, first=first)
    assert not (tmp_path / "store").exists()


def write_other_key(file: Path) -> None:
    """A key of another kind."""
    key = ed25519.Ed25519PrivateKey.generate()
    no_password = serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password))


def write_locked_key(file: Path) -> None:
    """A key with a password."""
    password = serialization.BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password))


@pytest.mark.parametrize("write", [None, write_other_key, write_locked_key, lambda file: file.write_text("no key")])
def test_a_file_that_is_no_key_is_named(
    shared_fixture: RegistryFixture, tmp_path: Path, write: Callable[[Path], Any] | None
) -> None:
    key = tmp_path / "a key"
    if write is not None:
        write(key)
    expected = f"{key} cannot be used: .*; expected a PEM file with a key on the curve"
    with pytest.raises(UserError, match=rf"^registry\.verify: {expected}"):
        open_registry(shared_fixture, verify=str(key)).load("1")
    with pytest.raises(UserError, match=rf"^registry\.sign: {expected}"):
        signatures.sign_model(shared_fixture.folder, tmp_path / "signatures", str(key), None)


def test_without_the_extra_the_command_that_installs_it_is_named(
    shared_fixture: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signatures, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need model-signing, not installed here; run: pip install .*\[sign\]"):
        shared_fixture.registry.load("1")
