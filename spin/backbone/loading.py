"""Load a frozen model: find its files, choose its engine and precision, and check that all weights are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer

from spin.backbone.digest import cached_digest
from spin.backbone.engine_choice import EngineChoice, announce_engine, choose_engine, preferred_device
from spin.backbone.hub import locate_model, silence_transformers
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings


def load_backbone(
    settings: BackboneSettings, *, expect_digest: str | None = None, scales: Int8Scales | None = None
) -> Backbone:
    """Load a frozen model in evaluation mode from safetensors, for the engine and precision of `choose_engine`.

    `scales` are those by which int8 rounds. Raises UserError if the model is missing, is of an unsupported kind or
    differs from `expect_digest`. Raises it too if the engine or the precision of the settings cannot compute it.
    """
    folder, digest = find_backbone(settings, expect_digest=expect_digest)
    device = preferred_device(settings)
    choice = choose_engine(settings, device, folder, digest)
    return open_backbone(settings, folder, digest, device, choice, scales=scales)


def open_backbone(
    settings: BackboneSettings,
    folder: Path,
    digest: str,
    device: str,
    choice: EngineChoice,
    *,
    blocks: int | None = None,
    scales: Int8Scales | None = None,
) -> Backbone:
    """Load the frozen model in a folder for an engine and precision that are already chosen.

    With `blocks` it has its first blocks alone, as many as that. Raises UserError if the model is of an unsupported
    kind, lacks weights or has no fast tokenizer.
    """
    # OpenVINO's graph is traced from float32; the engine converts it to the precision
    dtype = torch.bfloat16 if choice.precision == "bfloat16" and choice.engine == "torch" else torch.float32
    model, missing, tokenizer = _load_model(settings, folder, dtype, blocks)
    if missing:  # transformers would fill them with random numbers
        raise UserError(
            f"backbone {settings.model} lacks {len(missing)} of its weights, {missing[0]} for one; fetch it anew"
        )
    if not tokenizer.is_fast:
        raise UserError(f"backbone {settings.model} has no fast tokenizer; expected a tokenizer.json in {folder}")
    return Backbone(
        model=model.to(device),
        tokenizer=tokenizer,
        digest=digest,
        max_tokens=settings.max_tokens,
        batch_tokens=settings.batch_tokens or 0,
        pool_special_tokens=settings.pool_special_tokens,
        long_texts=settings.long_texts,
        window_overlap=settings.window_overlap,
        max_windows=settings.max_windows,
        engine=choice.engine,
        precision=choice.precision,
        scales=scales,
        compile=settings.compile,
    )


def announce_backbone(settings: BackboneSettings, backbone: Backbone) -> None:
    """Log, as `announce_engine` does, what a loaded backbone runs with."""
    family = getattr(backbone.model.config, "model_type", None)
    announce_engine(settings.engine, backbone.engine, backbone.precision, backbone.device.type, family)


def find_backbone(settings: BackboneSettings, *, expect_digest: str | None = None) -> tuple[Path, str]:
    """The local folder of a frozen model and the digest of its files (see `cached_digest` for what is trusted).

    Raises UserError if the model is missing or differs from `expect_digest`.
    """
    folder = locate_model(settings.model, settings.revision, include_code=settings.trust_remote_code)
    digest = cached_digest(folder, include_code=settings.trust_remote_code)
    if expect_digest and digest != expect_digest:
        raise UserError(f"backbone {settings.model} {_describe_mismatch(folder, digest, expect_digest, settings)}")
    return folder, digest


def _describe_mismatch(folder: Path, digest: str, expected: str, settings: BackboneSettings) -> str:
    """A clause on the difference between these files and those of the training, with what to do about it."""
    code = settings.trust_remote_code
    if cached_digest(folder, include_code=not code) == expected:
        was, now = ("off", "on") if code else ("on", "off")
        return f"was trained on with backbone.trust_remote_code {was}, here it is {now}; set it to what it was"
    return (
        f"has digest {digest[:12]}, the model was trained on {expected[:12]}; "
        "point backbone.model at the weights it was trained on"
    )


def _load_model(
    settings: BackboneSettings, folder: Path, dtype: torch.dtype, blocks: int | None
) -> tuple[Any, list[str], Any]:
    """The model, the sorted names of weights that its files lack, and the tokenizer."""
    # given to transformers even if off: without it, transformers asks at the terminal whether code may run
    code = settings.trust_remote_code
    try:
        with silence_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=code)
            if blocks is not None:
                _keep_blocks(config, blocks)
            model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=code,
                # None: by torch. That of a config.json may name code on the hub, which transformers would fetch and run
                attn_implementation=None,
                experts_implementation=None,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        message = " ".join(str(error).split())
        if not code and "trust_remote_code" in message:
            raise UserError(
                f"backbone {settings.model} needs Python code of its own, which is not run; read it, then set "
                "backbone.trust_remote_code: true, or take a model that transformers ships"
            ) from None
        raise UserError(f"backbone {settings.model} cannot be loaded: {message}") from None
    # the pooler is not read
    return model, sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")), tokenizer


def _keep_blocks(config: Any, blocks: int) -> None:
    """Let a model of this configuration have its first blocks alone."""
    config.num_hidden_layers = min(blocks, config.num_hidden_layers)
    if getattr(config, "layer_types", None):  # by block, in families that alternate kinds of attention
        config.layer_types = config.layer_types[: config.num_hidden_layers]
