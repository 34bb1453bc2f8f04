"""What is registered is what comes back; what was changed in MLflow's store since is refused and never run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import promotion
from pipelines.registry import Registry
from spin import SpinClassifier
from spin.errors import UserError
from spin.settings import ProbeSettings, SearchSettings, Settings, parse_settings
from tests import tiny

TEXTS = [row["text"] for row in tiny.documents(20, seed=3)]


class Shelf:
    """A registry with one version, and the folder in which MLflow keeps its artifact."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.settings = folder, _settings(folder, backbone)
        rows = tiny.documents(120)
        quick = SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), l1=(), head="linear")
        spin = SpinClassifier(
            self.settings.backbone, sites=["resid"], probe=ProbeSettings(penalties=3, max_extra=0), search=quick
        )
        spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "model")
        self.labels = spin.predict(TEXTS)
        self.registry = Registry(self.settings)
        self.registry.register(
            folder / "model", params={}, metrics={}, facts={}, example=TEXTS[:2], evaluation=[], fingerprint="f"
        )

    @property
    def artifact(self) -> Path:
        [found] = (self.folder / "store" / "mlflow").rglob("model.safetensors")
        return found.parent


def _settings(folder: Path, backbone: Path) -> Settings:
    tree: dict[str, Any] = {
        "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {"train": "none"},
        "store": str(folder / "store"),
        "mlflow": {"model": "tiny"},
    }
    return parse_settings(tree)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("registry"), backbone_folder)


@pytest.fixture
def shelf(made: Shelf, tmp_path: Path) -> Iterator[Shelf]:
    """Its artifact is put back as it was."""
    artifact = made.artifact
    shutil.copytree(artifact, tmp_path / "kept")
    yield made
    shutil.rmtree(artifact)
    shutil.copytree(tmp_path / "kept", artifact)


def test_what_was_registered_comes_back(shelf: Shelf, tmp_path: Path) -> None:
    """File by file, and it predicts as it did."""
    (tmp_path / "fetched").mkdir()
    shelf.registry.download("1", tmp_path / "fetched")
    mine, back = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (shelf.folder / "model", tmp_path / "fetched")
    )
    assert mine == back
    assert shelf.registry.load("1").predict(TEXTS) == shelf.labels


def flip(artifact: Path) -> None:
    """The last byte, of a weight."""
    data = (artifact / "model.safetensors").read_bytes()
    (artifact / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def add_pickle(artifact: Path) -> None:
    evil = Evil(artifact.parent / "mark")
    for name in ("model.pkl", "pytorch_model.bin"):
        (artifact / name).write_bytes(pickle.dumps(evil))


def add_folder(artifact: Path) -> None:
    (artifact / "deep").mkdir()
    shutil.copy(artifact / "config.json", artifact / "deep")


CHANGED = "version 1 of tiny was changed since it was registered: expected digest [0-9a-f]{12} .*, found [0-9a-f]{12}; "


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, CHANGED),
        (add_pickle, CHANGED),
        (lambda artifact: (artifact / "config.json").write_text("{}"), CHANGED),
        (lambda artifact: (artifact / "config.json").rename(artifact / "other.json"), CHANGED),
        (lambda artifact: (artifact / "config.json").unlink(), CHANGED),
        (lambda artifact: (artifact / "model.safetensors").unlink(), "version 1 of tiny holds no model.safetensors"),
        (add_folder, "holds deep, which is not a plain file"),
    ],
    ids=["a bit", "a pickle", "other config", "renamed", "less", "no weights", "a folder"],
)
def test_what_was_changed_is_refused(shelf: Shelf, tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
    """By all that reads a version, before anything of it lies where it would be read; no pickle is ever opened."""
    change(shelf.artifact)
    (tmp_path / "fetched").mkdir()
    with pytest.raises(UserError, match=said):
        shelf.registry.download("1", tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
    with pytest.raises(UserError, match=said):
        promotion.promote(shelf.registry, "1", "")
    assert not list(shelf.folder.rglob("mark"))


def test_a_version_without_a_digest_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """Nothing tells whether it was changed."""
    client = shelf.registry.tracking.client
    digest = client.get_model_version("tiny", "1").tags["spin.artifact"]
    client.delete_model_version_tag("tiny", "1", "spin.artifact")
    try:
        with pytest.raises(UserError, match="version 1 of tiny has no tag spin.artifact.*; promote another"):
            shelf.registry.download("1", tmp_path)
    finally:
        client.set_model_version_tag("tiny", "1", "spin.artifact", digest)


def test_a_night_that_was_cut_off_is_logged_again(shelf: Shelf) -> None:
    """A process that dies in the middle leaves a run without figures; one with them is not made twice."""
    night = {
        "date": "2026-03-01",
        "run": "2026-03-01-001",
        "output": "s3://nights",
        "fingerprint": "f" * 64,
        "quarantined": [],
        "seconds": 2.0,
        "drift": [{"name": "labels", "psi": 0.25}],
        "counts": dict.fromkeys(("rows", "predicted", "abstained", "dead", "tokens", "truncated"), 8)
        | {"depths": {"3": 8}},
    }
    registry, tracking = shelf.registry, shelf.registry.tracking

    class Killed(BaseException):
        pass

    class Report(bytes):
        def decode(self, *_: Any) -> str:
            raise Killed

    def runs() -> list[Any]:
        return list(tracking.client.search_runs([tracking.experiment()], "tags.`spin.night` = '2026-03-01'"))

    with pytest.raises(Killed):
        registry.log_night("1", night, {"report.html": Report()})
    assert [run.info.status for run in runs()] == ["FAILED"]
    for _ in range(2):
        registry.log_night("1", night, {"report.html": b"<p>"})
    finished = [run for run in runs() if run.info.status == "FINISHED"]
    assert len(finished) == 1
    assert finished[0].data.metrics == {
        **dict.fromkeys(("rows", "predicted", "abstained", "dead", "tokens", "truncated"), 8),
        "dead_rate": 1,
        "quarantined_files": 0,
        "documents_per_s": 4,
        "depth_3": 1,
        "psi_labels": 0.25,
    }
    shadow = {"version": "2", "compared": 8, "agreement": 0.75}
    registry.log_night("1", night | {"output": "s3://others", "shadow": shadow}, {})
    assert len(runs()) == 3
    [beside] = [run for run in runs() if run.data.tags.get("spin.shadow") == "2"]
    assert beside.data.metrics["shadow_agreement"] == 0.75
