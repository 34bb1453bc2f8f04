"""The choice of the engine and precision that a backbone runs with: from the settings, or by a trial on this processor.

`load_backbone` calls `choose_engine`, which asks `engine_trial.judge_engine` for a verdict on each precision that it
considers for OpenVINO.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from spin.backbone import engine_trial
from spin.backbone.engine_trial import TrialRequest, Verdict
from spin.errors import UserError
from spin.settings import BackboneSettings
from spin_neurons import install_command

OPENVINO_FAMILIES = frozenset({"bert", "distilbert", "gemma2", "gpt2", "gpt_neox", "llama", "opt", "qwen3", "roberta"})
"""model families (`model_type` of transformers) that `auto` may run in OpenVINO

OpenVINO computes them as torch does; it does not where attention has a sliding window.
"""
_log = logging.getLogger(__name__)
_notices = logging.getLogger("spin.engine")
"""the command shows its records whatever SPIN_LOG says"""


@dataclass(frozen=True)
class EngineChoice:
    """The engine and precision that a backbone runs with."""

    engine: str
    """torch or openvino"""
    precision: str
    """float32, bfloat16 or int8"""
    conclusive: bool = field(default=True, compare=False)
    """False if torch is chosen only because the trial ran out of time or memory, so that another trial may differ"""


def choose_engine(settings: BackboneSettings, device: str, folder: Path, digest: str) -> EngineChoice:
    """Choose the engine and precision for the backbone in a folder; `digest` is the digest of its files.

    - `engine: auto` takes OpenVINO if `preferred_engine` allows it and its trial on this processor passes, else torch.
      A failed trial in bfloat16 leads to torch in bfloat16 rather than OpenVINO in float32. On a Xeon with AMX,
      SmolLM2-135M in batches of 2048 tokens reads 27 documents per second in torch with bfloat16. With float32 it reads
      8 in OpenVINO and 9 in torch.
    - `engine: openvino` with `dtype: auto` takes float32 if the trial in bfloat16 fails.
    - `dtype: int8` is computed by OpenVINO alone, whatever the family, on a processor that adds up its products without
      a loss; if its trial fails, no other engine or precision takes its place.

    Raises UserError if an engine or precision that the settings name fails its trial or is not available here.
    """
    engine, fast = preferred_engine(settings, device, folder), fast_precision(device)
    if engine == "torch":
        return EngineChoice("torch", fast if settings.dtype == "auto" else settings.dtype)
    code = settings.trust_remote_code
    request = TrialRequest(settings.model, str(folder), digest, fast, settings.max_tokens, code)
    if settings.dtype == "int8" and not adds_int8_products():
        raise UserError(
            "backbone.dtype: int8 needs a processor with VNNI or AMX, since others cut off sums of its products, and "
            "this one has neither; set float32"
        )
    if settings.engine == "openvino" or settings.dtype == "int8":
        unquantized = list(dict.fromkeys((fast, "float32")))
        candidates = unquantized if settings.dtype == "auto" else [settings.dtype]
        return EngineChoice("openvino", _first_passing(request, candidates))
    request = request if settings.dtype == "auto" else replace(request, precision=settings.dtype)
    if (verdict := engine_trial.judge_engine(request)).outcome == "agrees":
        return EngineChoice("openvino", request.precision)
    _warn_once(f"{_describe_failure(request, verdict)}; torch in {request.precision} is used")
    return EngineChoice("torch", request.precision, conclusive=verdict.outcome != "inconclusive")


def preferred_device(settings: BackboneSettings) -> str:
    """The device that the setting `device` stands for in this process: `auto` a GPU if there is one, but for int8."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() and settings.dtype != "int8" else "cpu"


def preferred_engine(settings: BackboneSettings, device: str, folder: Path | None) -> str:
    """The engine (torch or openvino) that the setting `engine` stands for before any trial.

    `auto` stands for OpenVINO if it is installed, the device is the processor and the model in `folder` is of one of
    `OPENVINO_FAMILIES`, and for int8. Otherwise, and without a folder, it stands for torch. Raises UserError if the
    setting is openvino, or the precision int8, and OpenVINO is not installed, or the device is a GPU; and for int8 in
    torch.
    """
    on_cpu, installed = device == "cpu", find_spec("openvino") is not None
    in_int8 = settings.dtype == "int8"
    if settings.engine == "torch" and in_int8:
        raise UserError("backbone.dtype: int8 is computed by openvino; set backbone.engine openvino, or dtype float32")
    engine = "openvino" if in_int8 else settings.engine
    remedy = "set backbone.dtype: float32" if in_int8 else "set torch"
    if engine == "openvino" and not installed:
        raise UserError(f"backbone.engine: openvino is not installed; run: {install_command('openvino')}, or {remedy}")
    if engine == "openvino" and not on_cpu:
        raise UserError(f"backbone.engine: openvino runs on the processor, backbone.device is {device}; {remedy}")
    if engine != "auto":
        return engine
    supported = folder is not None and model_family(folder) in OPENVINO_FAMILIES
    return "openvino" if on_cpu and installed and supported else "torch"


def announce_engine(wanted: str, engine: str, precision: str | None, device: str, family: str | None) -> None:
    """Log which engine and precision run, and which engine to install if a faster one is not there; once in a process.

    `wanted` is the setting `engine`, `family` that of the model. Without a precision, each worker chooses its own.
    """
    shown = precision or "in the precision that the processor of each worker is fast in"
    _announce_once(f"engine: {engine}, {shown}", engine, precision)
    if wanted == "auto" and device == "cpu" and find_spec("openvino") is None and family in OPENVINO_FAMILIES:
        _announce_once("OpenVINO usually runs this model faster: pip install openvino", engine, precision)


def fast_precision(device: str) -> str:
    """bfloat16 if the hardware of the device multiplies faster in it, else float32.

    Intel's cores have a fast bfloat16 in AMX alone: a core of a Xeon whose AMX is switched off multiplies matrices at
    161 GFLOP/s in float32 and at 83 in bfloat16. Two of an EPYC with AVX512-BF16 do so at 219 and at 943.
    """
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    processor = torch.cpu.get_capabilities()
    fast_avx = processor.get("avx512_bf16", False) and "Intel" not in str(processor.get("cpu_name"))
    return "bfloat16" if fast_avx or processor.get("amx_bf16", False) else "float32"


def adds_int8_products() -> bool:
    """Whether the processor adds up products of int8 in 32 bits.

    Processors of Intel's kind without such an instruction add pairs in 16 bits, where large sums are cut off.
    """
    processor = torch.cpu.get_capabilities()
    if processor.get("architecture") != "x86_64":
        return True
    return any(processor.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _first_passing(request: TrialRequest, precisions: Sequence[str]) -> str:
    """The first precision whose trial passes; failures before it are logged. Raises UserError if none passes."""
    failures: list[str] = []
    for precision in precisions:
        tried = replace(request, precision=precision)
        if (verdict := engine_trial.judge_engine(tried)).outcome == "agrees":
            for failure in failures:
                _warn_once(f"{failure}; openvino in {precision} is used")
            return precision
        failures.append(_describe_failure(tried, verdict))
    raise UserError(f"backbone.engine: {'; '.join(failures)}; {_remedy(precisions)}")


def _describe_failure(request: TrialRequest, verdict: Verdict) -> str:
    """A clause on a failed trial, for a message."""
    again = "the next start tries again"
    if verdict.outcome != "inconclusive":
        again = f"remembered: delete {engine_trial.verdict_path(request)} to try again"
    tried = f"when tried with {request.model} on this machine"
    return f"openvino in {request.precision} {verdict.description} {tried} ({again})"


def _remedy(precisions: Sequence[str]) -> str:
    if "int8" in precisions:
        return "set backbone.dtype: float32"
    return f"set backbone.engine: torch{'' if 'float32' in precisions else ', or backbone.dtype: float32'}"


@cache
def _warn_once(message: str) -> None:
    """Log a warning, once in this process, which may load a backbone several times."""
    _log.warning(message)


@cache
def _announce_once(message: str, engine: str, precision: str | None) -> None:
    """Log what is said of an engine, which is a field of JSON lines too."""
    _notices.info(message, extra={"fields": {"engine": engine, "precision": precision}})


def model_family(folder: Path) -> str | None:
    """The `model_type` that transformers knows the model in a folder by; None if its config does not say."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("no model_type in %s: %r", folder / "config.json", error)
        return None
