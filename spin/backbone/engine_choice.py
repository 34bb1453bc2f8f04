"""Which engine runs a backbone, and in which precision: what the settings name, or what a trial has shown to work."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from spin.backbone import engine_trial
from spin.backbone.engine_trial import Subject, Verdict
from spin.errors import UserError
from spin.settings import BackboneSettings

OPENVINO_FAMILIES = frozenset({"bert", "distilbert", "gemma2", "gpt2", "gpt_neox", "llama", "opt", "qwen3", "roberta"})
"""families that OpenVINO is known to compute right; it does not those with a sliding window"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineChoice:
    """What a backbone is computed by and in."""

    engine: str
    """torch or openvino"""
    precision: str
    """float32, bfloat16 or int8"""
    uncalibrated: str = "float32"
    """what takes the place of int8 where there are no texts to scale it by"""


def choose(settings: BackboneSettings, device: str, folder: Path, digest: str) -> EngineChoice:
    """The engine and precision for the backbone of a digest, whose files lie in a folder.

    `engine: auto` takes OpenVINO where `engine_name` allows it and a trial on this processor passes, else torch. It
    does not fall back on OpenVINO in float32 where bfloat16 was to be had: on a Xeon with AMX, SmolLM2-135M in batches
    of 2048 tokens reads 27 documents a second in torch with bfloat16, 8 in OpenVINO and 9 in torch with float32.
    OpenVINO by name with `dtype: auto` takes float32 where bfloat16 fails.
    Raises UserError where what the settings name fails its trial, or is not to be had here.
    """
    engine, fast = engine_name(settings.engine, device, folder), fast_precision(device)
    if engine == "torch":
        if settings.dtype == "int8":
            raise UserError("backbone.dtype: int8 is computed by openvino; set backbone.engine openvino, or bfloat16")
        return EngineChoice("torch", fast if settings.dtype == "auto" else settings.dtype)
    trials = _Trials(settings, folder, digest)
    either = list(dict.fromkeys((fast, "float32")))
    if settings.dtype == "int8":
        return EngineChoice("openvino", trials.first(["int8"]), uncalibrated=trials.first(either))
    if settings.engine == "openvino":
        return EngineChoice("openvino", trials.first(either if settings.dtype == "auto" else [settings.dtype]))
    precision = fast if settings.dtype == "auto" else settings.dtype
    if (verdict := trials.verdict(precision)).outcome == "agrees":
        return EngineChoice("openvino", precision)
    _warn_once(f"{trials.told(precision, verdict)}; torch in {precision} is used")
    return EngineChoice("torch", precision)


def engine_name(wanted: str, device: str, folder: Path | None) -> str:
    """The engine that `auto` stands for before any trial: OpenVINO on a processor where it is installed, for a backbone
    in a folder whose family it is known to compute right; else torch.

    Raises UserError where OpenVINO is asked for and is not installed, or is to run on a GPU.
    """
    on_cpu, installed = device == "cpu", find_spec("openvino") is not None
    if wanted == "openvino" and not installed:
        raise UserError(
            "backbone.engine: openvino is not installed; pip install 'spin-neurons[openvino]', or set torch"
        )
    if wanted == "openvino" and not on_cpu:
        raise UserError(f"backbone.engine: openvino runs on the processor, backbone.device is {device}; set torch")
    if wanted == "auto":
        return (
            "openvino"
            if on_cpu and installed and folder is not None and _family(folder) in OPENVINO_FAMILIES
            else "torch"
        )
    return wanted


def fast_precision(device: str) -> str:
    """bfloat16 where the hardware computes in it, else float32."""
    on_gpu = device.startswith("cuda")
    fast = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


class _Trials:
    """What trials of OpenVINO with one backbone have shown."""

    def __init__(self, settings: BackboneSettings, folder: Path, digest: str) -> None:
        self.settings, self.folder, self.digest = settings, folder, digest

    def verdict(self, precision: str) -> Verdict:
        return engine_trial.engine_verdict(self._subject(precision))

    def first(self, precisions: Sequence[str]) -> str:
        """The first precision that passes; those before it are logged. Raises UserError where none does."""
        failed: list[str] = []
        for precision in precisions:
            if (verdict := self.verdict(precision)).outcome == "agrees":
                for told in failed:
                    _warn_once(f"{told}; openvino in {precision} is used")
                return precision
            failed.append(self.told(precision, verdict))
        raise UserError(f"backbone.engine: {'; '.join(failed)}; {_remedy(precisions)}")

    def told(self, precision: str, verdict: Verdict) -> str:
        """A failed trial in words."""
        again = ""
        if verdict.outcome != "unjudged":
            again = f" (remembered: delete {engine_trial.file_of(self._subject(precision))} to try again)"
        return f"openvino in {precision} {verdict.finding} when tried with {self.settings.model} on this machine{again}"

    def _subject(self, precision: str) -> Subject:
        return Subject(self.settings.model, str(self.folder), self.digest, precision, self.settings.trust_remote_code)


def _remedy(precisions: Sequence[str]) -> str:
    if "int8" in precisions:
        return "set backbone.dtype: auto"
    return f"set backbone.engine: torch{'' if 'float32' in precisions else ', or backbone.dtype: float32'}"


@cache
def _warn_once(message: str) -> None:
    """Log a warning; a process loads a backbone several times."""
    _log.warning(message)


def _family(folder: Path) -> str | None:
    """What transformers calls the kind of a model."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
