"""The precision that a processor is fast in, and what is said of the engine that runs or could be installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipelines.workers.weights_cache import announce_workers, with_engine
from spin.backbone import engine_choice
from spin.backbone.engine_choice import announce_engine, fast_precision
from spin.settings import parse_settings

HINT = "OpenVINO usually runs this model faster: pip install openvino"


@pytest.fixture(autouse=True)
def notices(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """The records of a process that has said nothing yet, and where OpenVINO is not installed."""
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", frozenset({"bert"}))
    monkeypatch.setattr(engine_choice, "find_spec", lambda name: None)
    engine_choice._announce_once.cache_clear()
    with caplog.at_level(logging.INFO, "spin.engine"):
        yield caplog
    engine_choice._announce_once.cache_clear()


def test_a_faster_engine_is_named_once_where_it_could_be_installed(notices: pytest.LogCaptureFixture) -> None:
    """Not where the settings name torch, on a GPU, or for a family that OpenVINO is not used for."""
    for wanted, device, family in (("torch", "cpu", "bert"), ("auto", "cuda", "bert"), ("auto", "cpu", "gemma3_text")):
        announce_engine(wanted, "torch", "bfloat16", device, family)
    assert notices.messages == ["engine: torch, bfloat16"]
    for _ in range(2):
        announce_engine("auto", "torch", "bfloat16", "cpu", "bert")
    assert notices.messages == ["engine: torch, bfloat16", HINT]
    assert notices.records[0].fields == {"engine": "torch", "precision": "bfloat16"}


def test_a_driver_names_what_its_workers_run(notices: pytest.LogCaptureFixture, settings_tree: dict[str, Any]) -> None:
    """The precision is that of this machine; on a cluster each worker chooses its own."""
    here = parse_settings(settings_tree)
    announce_workers(here, with_engine(here, "classify"), "classify")
    backbone = {"model": settings_tree["backbone"]["model"], "engine": "torch"}
    there = parse_settings({**settings_tree, "backbone": backbone, "ray": {"address": "auto"}})
    announce_workers(there, there, "classify")
    on_cluster = "engine: torch, in the precision that the processor of each worker is fast in"
    assert notices.messages == ["engine: torch, float32", HINT, on_cluster]


@pytest.mark.parametrize(
    ("processor", "fast"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "float32"),
        ({"architecture": "aarch64"}, "float32"),
    ],
)
def test_bfloat16_is_taken_where_the_processor_is_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, Any], fast: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert fast_precision("cpu") == fast
