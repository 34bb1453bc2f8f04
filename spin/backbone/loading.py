"""Load a frozen model from its folder, on the device and in the precision that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from spin.backbone.batching import batch_tokens
from spin.backbone.digest import compute_digest
from spin.backbone.engine_choice import EngineChoice, choose
from spin.backbone.hub import locate, quiet
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings


def load_backbone(settings: BackboneSettings, *, expect_digest: str | None = None) -> Backbone:
    """Load a frozen model in evaluation mode from safetensors, for the engine and precision that `choose` gives.

    Raises UserError when it is not there, is not of a supported kind, differs from `expect_digest`, or cannot be
    computed by the engine or in the precision that the settings name.
    """
    folder, digest = find_backbone(settings, expect_digest=expect_digest)
    device = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return open_backbone(settings, folder, digest, device, choose(settings, device, folder, digest))


def open_backbone(settings: BackboneSettings, folder: Path, digest: str, device: str, choice: EngineChoice) -> Backbone:
    """The frozen model of a folder and its digest, for an engine and precision that are chosen already.

    Raises UserError when it is not of a supported kind or lacks weights.
    """
    # a graph is traced from float32 and computes in what its engine is told
    dtype = torch.bfloat16 if choice.precision == "bfloat16" and choice.engine == "torch" else torch.float32
    model, found, tokenizer = _read(settings, folder, dtype)
    absent = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if absent:  # transformers would fill them with random numbers
        raise UserError(
            f"backbone {settings.model} lacks {len(absent)} of its weights, {absent[0]} for one; fetch it anew"
        )
    if not tokenizer.is_fast:
        raise UserError(f"backbone {settings.model} has no fast tokenizer; expected a tokenizer.json beside it")
    backbone = Backbone(
        model.to(device),
        tokenizer,
        digest,
        settings.max_tokens,
        pool_special_tokens=settings.pool_special_tokens,
        engine=choice.engine,
        precision=choice.precision,
        uncalibrated=choice.uncalibrated,
        compile=settings.compile,
    )
    widest = max(map(backbone.width, backbone.sites))
    backbone.batch_tokens = settings.batch_tokens or batch_tokens(model, widest, backbone.max_tokens)
    return backbone


def find_backbone(settings: BackboneSettings, *, expect_digest: str | None = None) -> tuple[Path, str]:
    """The local folder of a frozen model and its digest.

    Raises UserError when it is not there, or differs from `expect_digest`.
    """
    folder = locate(settings.model, settings.revision, code=settings.trust_remote_code)
    digest = compute_digest(folder, code=settings.trust_remote_code)
    if expect_digest and digest != expect_digest:
        raise UserError(f"backbone {settings.model} {_other(folder, digest, expect_digest, settings)}")
    return folder, digest


def _other(folder: Path, digest: str, expected: str, settings: BackboneSettings) -> str:
    """What to do about weights that are not those of the training."""
    code = settings.trust_remote_code
    if compute_digest(folder, code=not code) == expected:
        was, now = ("off", "on") if code else ("on", "off")
        return f"was trained on with backbone.trust_remote_code {was}, here it is {now}; set it to what it was"
    return (
        f"has digest {digest[:12]}, the model was trained on {expected[:12]}; "
        "point backbone.model at the weights it was trained on"
    )


def _read(settings: BackboneSettings, folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any], Any]:
    """Model, what transformers says of its weights, and tokenizer."""
    code = settings.trust_remote_code  # given to transformers even if off: else it asks whoever sits at the terminal
    try:
        with quiet():
            model, found = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=code,
            )
            return model, found, AutoTokenizer.from_pretrained(folder, trust_remote_code=code)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        said = " ".join(str(error).split())
        if not code and "trust_remote_code" in said:
            raise UserError(
                f"backbone {settings.model} needs Python code of its own, which is not run; read it, then set "
                "backbone.trust_remote_code: true, or take a model that transformers ships"
            ) from None
        raise UserError(f"backbone {settings.model} cannot be loaded: {said}") from None
