"""The weights of the backbone for workers on other machines: written to the store once, fetched once per node."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from spin.backbone.digest import cached_digest, compute_digest, list_model_files
from spin.backbone.engine_choice import announce_engine, choose_engine, model_family, preferred_engine
from spin.backbone.hub import locate_model
from spin.backbone.loading import find_backbone
from spin.backbone.local_cache import cache_folder
from spin.errors import UserError
from spin.settings import BackboneSettings, Precision, Settings, Stage, choose_precision

_log = logging.getLogger(__name__)
_ACTIVATION_SETTINGS = {"dtype", "engine", "compile", "max_tokens", "batch_tokens", "pool_special_tokens"}
"""the settings of a backbone that change its activations"""
_WINDOW_SETTINGS = {"long_texts", "window_overlap", "max_windows"}
"""those that do only where long texts are read in windows"""
_FILES = "files.json"
"""lists the names of the files; written last, so that a list means that the files are complete"""


def activation_settings(backbone: BackboneSettings) -> dict[str, Any]:
    """The settings that change the activations, by name; those of windows only where long texts are read in windows."""
    windows = _WINDOW_SETTINGS if backbone.long_texts == "windows" else set()
    return backbone.model_dump(include=_ACTIVATION_SETTINGS | windows)


def local_digest(backbone: BackboneSettings) -> str:
    """The digest of the weights that settings name on this machine. Raises UserError if they are not here."""
    code = backbone.trust_remote_code
    return cached_digest(locate_model(backbone.model, backbone.revision, include_code=code), include_code=code)


def publish(settings: Settings, digest: str) -> None:
    """Write the backbone with a digest to the store, unless it is there or the settings name no cluster.

    Raises UserError if `backbone.model` names another backbone on this machine.
    """
    if settings.ray.address is None:
        return
    store = _weights_store(settings, digest)
    if store.exists(_FILES):
        return
    folder, _ = find_backbone(settings.backbone, expect_digest=digest)
    files = list_model_files(folder, include_code=settings.backbone.trust_remote_code)
    for path in files:
        store.upload(path.name, path)
    store.write_json(_FILES, [path.name for path in files])


def with_engine(settings: Settings, stage: Stage, trained: Precision | None = None) -> Settings:
    """The settings with `backbone.engine: auto` replaced by an engine, so that all workers of a run use the same.

    The precision is that of `choose_precision` for a version with `trained` as `backbone.dtype` of its training.
    Without workers (`ray.workers: 0`) the device is set too, because this process sees GPUs even if
    `ray.gpus_per_worker` is 0.
    The driver decides by a trial on its own processor; a worker on another type of processor tries that engine itself.
    Raises UserError for an engine that is not installed here or does not run on the device of the stage. It is raised
    as well for a device that the workers of the stage are not given; UnavailableError if the trial ran out of time or
    memory.
    """
    if trained is not None:
        precision = choose_precision(settings.backbone.dtype, trained)
        run = settings.backbone.model_copy(update={"dtype": precision})
        settings = settings.model_copy(update={"backbone": run})
    backbone, ray = settings.backbone, settings.ray.for_stage(stage)
    device = _worker_device(settings, stage)
    if device.startswith("cuda") and not ray.gpus_per_worker:
        raise UserError(
            f"backbone.device: {device}, and the workers of {stage} are given no GPU; set ray.gpus_per_worker to 1, or "
            "to a fraction of one that several workers share"
        )
    folder = _local_folder(backbone)
    engine = preferred_engine(backbone, device, folder)
    if engine == "openvino" and backbone.engine == "auto" and folder is not None:
        digest = cached_digest(folder, include_code=backbone.trust_remote_code)
        choice = choose_engine(backbone, device, folder, digest)
        if not choice.conclusive:  # a resumed run must choose the same engine
            raise UnavailableError(
                "backbone.engine: auto cannot choose, because the trial of openvino ran out of time or memory; run the "
                "command again, or set backbone.engine to torch"
            )
        engine = choice.engine
    chosen = {"engine": engine, "device": device if ray.workers == 0 else backbone.device}
    return settings.model_copy(update={"backbone": backbone.model_copy(update=chosen)})


def announce_workers(given: Settings, settings: Settings, stage: Stage) -> None:
    """Log which engine and precision the workers of a stage run; see `announce_engine`.

    `settings` are the `given` ones with an engine. On a cluster the processor of each worker decides the precision.
    Raises UserError where the engine or precision does not run on this machine, if the workers do.
    """
    backbone, folder = settings.backbone, _local_folder(settings.backbone)
    family = None if folder is None else model_family(folder)
    precision, device = decide_precision(settings, stage), _worker_device(settings, stage)
    announce_engine(given.backbone.engine, backbone.engine, precision, device, family)


def decide_precision(settings: Settings, stage: Stage) -> str | None:
    """The precision in which the workers of a stage run the backbone; None if each decides by its processor.

    Raises UserError where the engine or precision does not run on this machine, if the workers do.
    """
    backbone, folder = settings.backbone, _local_folder(settings.backbone)
    if settings.ray.address is not None or folder is None:
        return None if backbone.dtype == "auto" else backbone.dtype
    digest = cached_digest(folder, include_code=backbone.trust_remote_code)
    return choose_engine(backbone, _worker_device(settings, stage), folder, digest).precision


def _worker_device(settings: Settings, stage: Stage) -> str:
    """The device that the settings name, by default the one of the workers of a stage."""
    on_gpu = settings.ray.for_stage(stage).gpus_per_worker > 0 and settings.backbone.dtype != "int8"
    return {"auto": "cuda" if on_gpu else "cpu"}.get(settings.backbone.device, settings.backbone.device)


def _local_folder(backbone: BackboneSettings) -> Path | None:
    """The folder of the weights on this machine, None if they are not here."""
    try:
        return locate_model(backbone.model, backbone.revision, include_code=backbone.trust_remote_code)
    except UserError:
        _log.debug("the weights of %s are not on this machine", backbone.model, exc_info=True)
        return None


def receive(settings: Settings, digest: str) -> BackboneSettings:
    """The settings of the backbone on a worker: a path that its node shares, or weights fetched from the store.

    The first worker of a node fetches the weights into the cache while the others wait. No model hub is contacted.
    Raises UserError if the store does not hold the weights, or holds weights of another digest.
    """
    backbone = settings.backbone
    if settings.ray.address is None or _is_on_this_node(backbone, digest):
        return backbone
    folder = cache_folder() / "backbones" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{digest}.lock")):
        if not folder.is_dir():
            _fetch(_weights_store(settings, digest), folder, digest, code=backbone.trust_remote_code)
    return backbone.model_copy(update={"model": str(folder), "revision": None})


def _weights_store(settings: Settings, digest: str) -> Store:
    return Store.of(settings) / f"backbones/{digest}"


def _is_on_this_node(backbone: BackboneSettings, digest: str) -> bool:
    """Whether this node has the weights under the path of the driver; the name of a hub model is not a path."""
    path = Path(backbone.model).expanduser()
    if not backbone.model.startswith("package:") and not (path.is_absolute() and path.exists()):
        return False
    try:
        return local_digest(backbone) == digest
    except UserError:
        _log.debug("the weights of %s are not on this node", backbone.model, exc_info=True)
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
        actual = compute_digest(fetched, include_code=code)  # of every byte: the files come from another machine
        if actual != digest:
            raise UserError(
                f"{store.uri} holds a backbone of digest {actual[:12]}, expected {digest[:12]}; delete it there and "
                "run the stage again, its driver publishes it anew"
            )
        shutil.move(fetched, folder)
