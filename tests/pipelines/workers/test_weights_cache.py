"""Publishing a backbone in the store and fetching it once per node, checked by its digest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.object_store import Store
from pipelines.workers import weights_cache
from spin.backbone import hub
from spin.backbone.digest import compute_digest
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, Settings, parse_settings
from tests.support import tiny


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache folder of a node."""
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


@pytest.fixture
def build_settings(store_uri: str, backbone_folder: Path) -> Callable[..., Settings]:
    def build(model: str = str(backbone_folder), address: str | None = "auto") -> Settings:
        tree: dict[str, Any] = {"data": {"train": "none"}, "store": store_uri, "ray": {"address": address}}
        return parse_settings({**tree, "backbone": {"model": model, "device": "cpu"}})

    return build


@pytest.fixture
def digest(backbone_folder: Path) -> str:
    return compute_digest(backbone_folder)


def published_backbones(store_uri: str) -> Store:
    return Store(store_uri) / "backbones"


def test_a_node_fetches_the_published_backbone_once(
    build_settings: Callable[..., Settings],
    store_uri: str,
    digest: str,
    cache: Path,
    backbone_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node receives the same files as the driver has and never asks the Hugging Face Hub for a model id."""
    weights_cache.publish(build_settings(), digest)

    def fail(*_: Any) -> None:
        raise AssertionError("the backbone was downloaded from the hub or fetched a second time")

    monkeypatch.setattr(hub, "_download", fail)
    received = weights_cache.receive(build_settings("someone/model"), digest)
    assert received.model == str(cache / digest)
    expected = {path.name: path.read_bytes() for path in backbone_folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (cache / digest).iterdir()} == expected
    assert load_backbone(received, expect_digest=digest).depth == 3
    monkeypatch.setattr(weights_cache, "_fetch", fail)
    assert weights_cache.receive(build_settings("someone/model"), digest) == received


def test_a_backbone_is_published_once(
    build_settings: Callable[..., Settings], store_uri: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of files is written last; afterwards publishing needs neither the hub nor the model folder."""
    written: list[str] = []
    for name in ("upload", "write"):
        original = getattr(Store, name)

        def record(self: Store, key: str, *rest: Any, original: Any = original) -> None:
            written.append(key)
            original(self, key, *rest)

        monkeypatch.setattr(Store, name, record)
    weights_cache.publish(build_settings(), digest)
    assert written[-1] == "files.json"
    assert sorted(written) == sorted(key.rpartition("/")[2] for key in published_backbones(store_uri).list())
    written.clear()
    weights_cache.publish(build_settings("/not/there"), digest)
    assert written == []


def test_without_a_cluster_nothing_is_published_or_copied(
    build_settings: Callable[..., Settings], store_uri: str, digest: str, cache: Path
) -> None:
    settings = build_settings(address=None)
    weights_cache.publish(settings, digest)
    assert weights_cache.receive(settings, digest) == settings.backbone
    assert not published_backbones(store_uri).list()
    assert not cache.exists()


def test_a_node_uses_the_model_path_if_its_digest_is_right(
    build_settings: Callable[..., Settings], digest: str, cache: Path, backbone_folder: Path, tmp_path: Path
) -> None:
    """If a path on the node holds different weights, the node fetches the published ones."""
    settings = build_settings()
    weights_cache.publish(settings, digest)
    assert weights_cache.receive(settings, digest) == settings.backbone
    assert not cache.exists()
    other = tiny.save_bert(tmp_path / "other", seed=1)
    assert weights_cache.receive(build_settings(str(other)), digest).model == str(cache / digest)


def test_weights_with_a_wrong_digest_are_refused(
    build_settings: Callable[..., Settings], store_uri: str, digest: str, cache: Path, tmp_path: Path
) -> None:
    """The driver does not publish them, and a node that fetched them raises an error and keeps none of the files."""
    other = tiny.save_bert(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=rf"has digest \w+, the model was trained on {digest[:12]}; point backbone.model at"
    ):
        weights_cache.publish(build_settings(str(other)), digest)
    assert not published_backbones(store_uri).list()
    with pytest.raises(UserError, match="does not hold the backbone; run the stage again"):
        weights_cache.receive(build_settings("someone/model"), digest)
    weights_cache.publish(build_settings(), digest)
    published_backbones(store_uri).write(f"{digest}/model.safetensors", (other / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"holds a backbone of digest .*, expected {digest[:12]}; delete it there"):
        weights_cache.receive(build_settings("someone/model"), digest)
    assert [path.name for path in cache.iterdir()] == [f".{digest}.lock"]


def test_a_file_list_with_a_path_outside_the_cache_is_refused(
    build_settings: Callable[..., Settings], store_uri: str, digest: str, cache: Path, backbone_folder: Path
) -> None:
    """A list that was tampered with must not make a node write outside its cache."""
    weights_cache.publish(build_settings(), digest)
    names = [path.name for path in backbone_folder.iterdir()]
    published_backbones(store_uri).write_json(f"{digest}/files.json", [*names, "../../escaped"])
    Store(store_uri).write("escaped", b"")
    with pytest.raises(UserError, match=r"names a file '\.\./\.\./escaped'; expected names without a folder"):
        weights_cache.receive(build_settings("someone/model"), digest)
    assert not [path for path in cache.parent.rglob("*") if path.name == "escaped"]


def test_workers_on_one_node_fetch_a_backbone_once(
    build_settings: Callable[..., Settings], digest: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three workers that start at the same moment, one fetches and the others wait for its complete folder."""
    weights_cache.publish(build_settings(), digest)
    settings, fetch, calls, start = build_settings("someone/model"), weights_cache._fetch, [], threading.Barrier(3)

    def count_and_fetch(*args: Any, **options: Any) -> None:
        calls.append(args)
        fetch(*args, **options)

    def receive(_: int) -> str:
        start.wait()
        return weights_cache.receive(settings, digest).model

    monkeypatch.setattr(weights_cache, "_fetch", count_and_fetch)
    with ThreadPoolExecutor(3) as workers:
        assert list(workers.map(receive, range(3))) == [str(cache / digest)] * 3
    assert len(calls) == 1
    assert compute_digest(cache / digest) == digest
    assert sorted(path.name for path in cache.iterdir()) == [f".{digest}.lock", digest]


def test_a_large_file_is_uploaded_and_downloaded_unchanged(store_uri: str, tmp_path: Path) -> None:
    """It is larger than one part of an S3 upload; downloading a missing object is a user error."""
    data = bytes(range(256)) * (60 << 12)  # 60 MiB: s3fs sends such a file in parts
    (tmp_path / "large").write_bytes(data)
    Store(store_uri).upload("large", tmp_path / "large")
    Store(store_uri).download("large", tmp_path / "downloaded")
    assert (tmp_path / "downloaded").read_bytes() == data
    with pytest.raises(UserError, match="not found"):
        Store(store_uri).download("none", tmp_path / "none")


@pytest.mark.parametrize(("workers", "gpus", "device"), [(0, 0, "cpu"), (0, 1, "cuda"), (1, 0, "auto")])
def test_without_workers_a_gpu_is_used_only_if_the_settings_give_one(
    backbone_folder: Path, workers: int, gpus: float, device: str
) -> None:
    """Workers see only the GPUs that they are given; the process of the command sees all."""
    tree = {"backbone": {"model": str(backbone_folder)}, "data": {"train": "t"}, "store": "s"}
    settings = parse_settings({**tree, "ray": {"workers": workers, "gpus_per_worker": gpus}})
    assert weights_cache.with_engine(settings, "classify").backbone.device == device


def test_windows_decide_activations_only_where_they_are_read() -> None:
    """Where texts are cut, other windows are no reason to begin again."""
    cut = BackboneSettings(model="x", window_overlap=5)
    assert set(weights_cache.activation_settings(cut)) == {
        *("dtype", "engine", "compile", "max_tokens", "batch_tokens", "pool_special_tokens")
    }
    windows = weights_cache.activation_settings(cut.model_copy(update={"long_texts": "windows"}))
    assert (windows["long_texts"], windows["window_overlap"], windows["max_windows"]) == ("windows", 5, 16)
    assert windows.keys() > weights_cache.activation_settings(cut).keys()
