"""The backbone on its way to the workers: published in the store under its digest, fetched once by every node."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from pipelines.storage.object_store import Store
from spin.backbone.digest import cached_digest, compute_digest, list_model_files
from spin.backbone.engine_choice import choose_engine, preferred_engine
from spin.backbone.hub import locate_model
from spin.backbone.loading import find_backbone
from spin.backbone.local_cache import cache_folder
from spin.errors import UserError
from spin.settings import BackboneSettings, Settings, Stage

ACTIVATION_SETTINGS = {"dtype", "engine", "compile", "max_tokens", "batch_tokens", "pool_special_tokens"}
"""of the settings of a backbone, what decides its activations"""
_FILES = "files.json"
"""names of the files, written last"""


def publish(settings: Settings, digest: str) -> None:
    """Put the backbone of a digest into the store, once; without a cluster it stays where it is.

    Raises UserError where it is neither in the store nor what `backbone.model` names here.
    """
    if settings.ray.address is None:
        return
    store = _shelf(settings, digest)
    if store.exists(_FILES):
        return
    folder, _ = find_backbone(settings.backbone, expect_digest=digest)
    files = list_model_files(folder, include_code=settings.backbone.trust_remote_code)
    for path in files:
        store.upload(path.name, path)
    store.write_json(_FILES, [path.name for path in files])


def with_engine(settings: Settings, stage: Stage) -> Settings:
    """The settings with the engine that `auto` stands for, decided once by the driver: all workers of a run have one.

    By a trial on the driver's own processor; a worker on another type of processor tries that engine itself. Raises
    UserError for an engine that this driver does not have, or that cannot run where the stage does, and for a device
    that the stage's workers are not given.
    """
    backbone, on_gpu = settings.backbone, settings.ray.for_stage(stage).gpus_per_worker > 0
    device = {"auto": "cuda" if on_gpu else "cpu"}.get(backbone.device, backbone.device)
    if device.startswith("cuda") and not on_gpu:
        raise UserError(
            f"backbone.device: {device}, and the workers of {stage} are given no GPU; set ray.gpus_per_worker to 1, or "
            "to a part of one that some share"
        )
    folder = _folder(backbone)
    engine = preferred_engine(backbone.engine, device, folder)
    if engine == "openvino" and backbone.engine == "auto" and folder is not None:
        engine = choose_engine(
            backbone, device, folder, cached_digest(folder, include_code=backbone.trust_remote_code)
        ).engine
    return settings.model_copy(update={"backbone": backbone.model_copy(update={"engine": engine})})


def _folder(backbone: BackboneSettings) -> Path | None:
    """Where the weights lie here, if they do."""
    try:
        return locate_model(backbone.model, backbone.revision, include_code=backbone.trust_remote_code)
    except UserError:
        return None


def receive(settings: Settings, digest: str) -> BackboneSettings:
    """Where a worker of a cluster finds the backbone: on a path that its node shares, else fetched from the store.

    The first worker of a node fetches it into the cache, the others wait for that. No model hub is asked. Raises
    UserError where the store does not hold it, or holds something else under its name.
    """
    backbone = settings.backbone
    if settings.ray.address is None or _is_here(backbone, digest):
        return backbone
    folder = cache_folder() / "backbones" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{digest}.lock")):
        if not folder.is_dir():
            _fetch(_shelf(settings, digest), folder, digest, code=backbone.trust_remote_code)
    return backbone.model_copy(update={"model": str(folder), "revision": None})


def _shelf(settings: Settings, digest: str) -> Store:
    return Store(settings.store) / f"backbones/{digest}"


def _is_here(backbone: BackboneSettings, digest: str) -> bool:
    """Whether this node has the weights under the driver's path. A hub's id is none, and is not looked up."""
    path = Path(backbone.model).expanduser()
    if not backbone.model.startswith("package:") and not (path.is_absolute() and path.exists()):
        return False
    try:
        code = backbone.trust_remote_code
        return cached_digest(locate_model(backbone.model, include_code=code), include_code=code) == digest
    except UserError:
        return False


def _fetch(store: Store, folder: Path, digest: str, *, code: bool) -> None:
    names = store.read_json(_FILES)
    if names is None:
        raise UserError(f"{store.uri} does not hold the backbone; run the stage again, its driver publishes it")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fetched = Path(scratch) / digest
        fetched.mkdir()
        for name in names:
            if Path(name).name != name:
                raise UserError(f"{store.uri} names a file {name!r}; expected names without a folder")
            store.download(name, fetched / name)
        found = compute_digest(fetched, include_code=code)  # every byte, since it comes from elsewhere
        if found != digest:
            raise UserError(
                f"{store.uri} holds a backbone of digest {found[:12]}, expected {digest[:12]}; delete it there and run "
                "the stage again, its driver publishes it anew"
            )
        shutil.move(fetched, folder)
