"""The backbone on its way to the workers: published once, fetched once by a node, and never another one."""

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
from spin.settings import Settings, parse_settings
from tests.support import tiny


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a node that has fetched nothing."""
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


@pytest.fixture
def settings_of(store_uri: str, backbone_folder: Path) -> Callable[..., Settings]:
    def settings(model: str = str(backbone_folder), address: str | None = "auto") -> Settings:
        tree: dict[str, Any] = {"data": {"train": "none"}, "store": store_uri, "ray": {"address": address}}
        return parse_settings({**tree, "backbone": {"model": model, "device": "cpu"}})

    return settings


@pytest.fixture
def digest(backbone_folder: Path) -> str:
    return compute_digest(backbone_folder)


def registry_fixture(store_uri: str) -> Store:
    return Store(store_uri) / "backbones"


def test_a_node_fetches_it_once(
    settings_of: Callable[..., Settings],
    store_uri: str,
    digest: str,
    cache: Path,
    backbone_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub's id is not looked up on a node; what it gets is what the driver has, file by file."""
    weights_cache.publish(settings_of(), digest)

    def never(*_: Any) -> None:
        raise AssertionError("a hub was asked, or the store again")

    monkeypatch.setattr(hub, "_download", never)
    got = weights_cache.receive(settings_of("someone/model"), digest)
    assert got.model == str(cache / digest)
    mine = {path.name: path.read_bytes() for path in backbone_folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (cache / digest).iterdir()} == mine
    assert load_backbone(got, expect_digest=digest).depth == 3
    monkeypatch.setattr(weights_cache, "_fetch", never)
    assert weights_cache.receive(settings_of("someone/model"), digest) == got


def test_it_is_published_once(
    settings_of: Callable[..., Settings], store_uri: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of its files last; once it is there the driver needs neither hub nor folder."""
    written: list[str] = []
    for name in ("upload", "write"):
        original = getattr(Store, name)

        def spy(self: Store, key: str, *rest: Any, original: Any = original) -> None:
            written.append(key)
            original(self, key, *rest)

        monkeypatch.setattr(Store, name, spy)
    weights_cache.publish(settings_of(), digest)
    assert written[-1] == "files.json"
    assert sorted(written) == sorted(key.rpartition("/")[2] for key in registry_fixture(store_uri).list())
    written.clear()
    weights_cache.publish(settings_of("/not/there"), digest)
    assert written == []


def test_without_a_cluster_it_stays_where_it_is(
    settings_of: Callable[..., Settings], store_uri: str, digest: str, cache: Path
) -> None:
    settings = settings_of(address=None)
    weights_cache.publish(settings, digest)
    assert weights_cache.receive(settings, digest) == settings.backbone
    assert not registry_fixture(store_uri).list()
    assert not cache.exists()


def test_a_path_that_nodes_share_is_taken(
    settings_of: Callable[..., Settings], digest: str, cache: Path, backbone_folder: Path, tmp_path: Path
) -> None:
    """If the same weights lie there; others are passed over for those of the store."""
    settings = settings_of()
    weights_cache.publish(settings, digest)
    assert weights_cache.receive(settings, digest) == settings.backbone
    assert not cache.exists()
    other = tiny.bert(tmp_path / "other", seed=1)
    assert weights_cache.receive(settings_of(str(other)), digest).model == str(cache / digest)


def test_other_weights_are_refused(
    settings_of: Callable[..., Settings], store_uri: str, digest: str, cache: Path, tmp_path: Path
) -> None:
    """By the driver that would publish them, and by the node that was given them; nothing of them stays."""
    other = tiny.bert(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=rf"has digest \w+, the model was trained on {digest[:12]}; point backbone.model at"
    ):
        weights_cache.publish(settings_of(str(other)), digest)
    assert not registry_fixture(store_uri).list()
    with pytest.raises(UserError, match="does not hold the backbone; run the stage again"):
        weights_cache.receive(settings_of("someone/model"), digest)
    weights_cache.publish(settings_of(), digest)
    registry_fixture(store_uri).write(f"{digest}/model.safetensors", (other / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"holds a backbone of digest .*, expected {digest[:12]}; delete it there"):
        weights_cache.receive(settings_of("someone/model"), digest)
    assert [path.name for path in cache.iterdir()] == [f".{digest}.lock"]


def test_names_that_lead_elsewhere_do_not(
    settings_of: Callable[..., Settings], store_uri: str, digest: str, cache: Path, backbone_folder: Path
) -> None:
    """A list of files that was tampered with writes nowhere but into the cache."""
    weights_cache.publish(settings_of(), digest)
    names = [path.name for path in backbone_folder.iterdir()]
    registry_fixture(store_uri).write_json(f"{digest}/files.json", [*names, "../../escaped"])
    Store(store_uri).write("escaped", b"")
    with pytest.raises(UserError, match=r"names a file '\.\./\.\./escaped'; expected names without a folder"):
        weights_cache.receive(settings_of("someone/model"), digest)
    assert not [path for path in cache.parent.rglob("*") if path.name == "escaped"]


def test_workers_of_a_node_wait_for_the_first(
    settings_of: Callable[..., Settings], digest: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at once end with one whole folder that was fetched once."""
    weights_cache.publish(settings_of(), digest)
    settings, fetch, fetched, start = settings_of("someone/model"), weights_cache._fetch, [], threading.Barrier(3)

    def count(*args: Any, **options: Any) -> None:
        fetched.append(args)
        fetch(*args, **options)

    def receive(_: int) -> str:
        start.wait()
        return weights_cache.receive(settings, digest).model

    monkeypatch.setattr(weights_cache, "_fetch", count)
    with ThreadPoolExecutor(3) as workers:
        assert list(workers.map(receive, range(3))) == [str(cache / digest)] * 3
    assert len(fetched) == 1
    assert compute_digest(cache / digest) == digest
    assert sorted(path.name for path in cache.iterdir()) == [f".{digest}.lock", digest]


def test_large_objects_pass_in_files(store_uri: str, tmp_path: Path) -> None:
    """More than one part of an upload, byte for byte."""
    data = bytes(range(256)) * (60 << 12)  # 60 MiB: s3fs sends such a file in parts
    (tmp_path / "large").write_bytes(data)
    Store(store_uri).upload("large", tmp_path / "large")
    Store(store_uri).download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(UserError, match="not found"):
        Store(store_uri).download("none", tmp_path / "none")
