"""The files that a model loads from, and the digest of their contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spin.errors import UserError

_LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)
"""what loading a model reads of its folder"""


def compute_digest(folder: Path, *, code: bool = False) -> str:
    """sha256 over names and contents of what loads from a folder."""
    total = hashlib.sha256()
    for path in list_model_files(folder, code=code):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def list_model_files(folder: Path, *, code: bool = False) -> list[Path]:
    """What loads from a folder: weights, configuration and tokenizer, and the code where that may run.

    Raises UserError where there are no weights.
    """
    files = sorted({path for pattern in (*_LOADED, *(["*.py"] if code else [])) for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"backbone: no .safetensors in {folder}; save the model there with save_pretrained")
    return files
