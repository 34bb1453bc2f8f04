"""The use of GPUs, which most tests simulate; the last test needs a real one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from pipelines.workers.ray_cluster import _check_gpus, configure_worker, worker_count
from pipelines.workers.weights_cache import with_engine
from spin.activations.engines import torch_compile as compiling
from spin.activations.engines.encoder import BlockSegment, NeuronEncoder, split_segments
from spin.activations.engines.engine import TorchEngine
from spin.activations.engines.torch_compile import choose_faster, compile_encoder
from spin.activations.extract import read_activations, single_segment
from spin.backbone.batching import CPU_BATCH_TOKENS, bytes_per_token, choose_batch_tokens, tokens_that_fit
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, RaySettings, parse_settings
from spin.sites import FeatureColumn
from tests.support import tiny

GB = 1 << 30
TEXTS = ["great film crew", "the day was cold", "a", "late and dull paper on the table", "broken", "the film !"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    return tiny.save_backbone(tmp_path_factory.mktemp("llama"), config, tiny.build_tokenizer(special=False))


def load(folder: Path, **settings: Any) -> Backbone:
    return load_backbone(
        BackboneSettings.model_validate(
            {"model": str(folder), "dtype": "float32", "engine": "torch", "device": "cpu", **settings}
        )
    )


def list_columns(backbone: Backbone) -> list[FeatureColumn]:
    return [FeatureColumn(site, pooling) for site in backbone.sites for pooling in ("mean", "max", "last")]


def split_into_two_segments(backbone: Backbone) -> list[BlockSegment]:
    """Select a third of the neurons of every column, in two segments."""
    return split_segments({c: np.arange(0, backbone.width(c.site), 3) for c in list_columns(backbone)}, [1])


# ---------------------------------------------------------------- batch size from memory

MINILM, LLAMA = bytes_per_token(384, 1536, 12, 256, 2), bytes_per_token(2048, 8192, 32, 256, 2)


@pytest.mark.parametrize(
    ("memory", "token_bytes", "tokens"),
    [
        (80 * GB, MINILM, 1 << 16),  # a larger batch would only need more padding
        (int(1.5 * GB), MINILM, 1 << 14),
        (5 * GB, LLAMA, 1 << 13),
        (10 * GB, LLAMA, 1 << 14),
        (1000, LLAMA, 1),  # if one token is too many, the GPU reports it
        (-GB, LLAMA, 1),
    ],
)
def test_the_batch_size_follows_from_memory_and_bytes_per_token(memory: int, token_bytes: int, tokens: int) -> None:
    assert tokens_that_fit(memory, token_bytes) == tokens


@given(st.integers(1, 80 * GB), st.integers(1, 1 << 24))
def test_a_batch_uses_between_a_quarter_and_half_of_the_memory(memory: int, token_bytes: int) -> None:
    """The smallest and the largest batch are exceptions."""
    tokens = tokens_that_fit(memory, token_bytes)
    assert tokens == 1 or tokens * token_bytes <= memory / 2
    assert tokens == 1 << 16 or tokens * token_bytes * 4 > memory - 2


def test_the_batch_size_follows_from_the_share_of_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share counts in full, less the weights; the memory that other processes use at the moment does not matter."""
    share = [1.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=12 * GB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: share[0])
    weights = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2, numel=lambda: GB)
    config = SimpleNamespace(hidden_size=2048, num_attention_heads=32)
    model = SimpleNamespace(config=config, parameters=lambda: iter([weights]))
    assert choose_batch_tokens(model, 8192, 256) == tokens_that_fit(10 * GB, LLAMA) == 1 << 14
    share[0] = 0.5
    assert choose_batch_tokens(model, 8192, 256) == tokens_that_fit(4 * GB, LLAMA) == 1 << 13


def test_the_batch_size_on_a_cpu_is_a_constant_unless_set(backbone_folder: Path) -> None:
    assert load(backbone_folder).batch_tokens == CPU_BATCH_TOKENS
    assert load(backbone_folder, batch_tokens=77).batch_tokens == 77


# ---------------------------------------------------------------- out of memory


class LimitedEncoder:
    """An encoder that runs out of memory on more than `capacity` documents."""

    def __init__(self, encoder: Any, capacity: int) -> None:
        self.encoder, self.capacity = encoder, capacity
        self.batch_sizes: list[int] = []

    def __call__(self, ids: torch.Tensor, *others: Any) -> Any:
        if len(ids) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batch_sizes.append(len(ids))
        return self.encoder(ids, *others)


@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(llama: Path, capacity: int) -> None:
    """The values of all segments stay the same, also if documents exit early."""
    backbone = load(llama)

    def keep_mask(_index: int, _rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        return values[:, 0] > np.median(values[:, 0])

    for should_exit in (None, keep_mask):
        engine = TorchEngine(backbone, split_into_two_segments(backbone))
        expected = read_activations(engine, TEXTS, keep_mask=should_exit).values
        limited = [LimitedEncoder(encoder, capacity) for encoder in engine.encoders]
        engine.encoders = [*limited]
        np.testing.assert_allclose(
            read_activations(engine, TEXTS, keep_mask=should_exit).values, expected, rtol=1e-5, atol=1e-6
        )
        batch_sizes = limited[0].batch_sizes
        assert sum(batch_sizes) == len(TEXTS)
        assert max(batch_sizes) == {1: 1, 2: 2, 4: 3}[capacity]


def test_a_document_that_does_not_fit_is_an_error(llama: Path) -> None:
    backbone = load(llama)
    engine = TorchEngine(backbone, split_into_two_segments(backbone))
    engine.encoders = [LimitedEncoder(encoder, 0) for encoder in engine.encoders]
    with pytest.raises(UserError, match=r"no room for a single text of 2 tokens; lower backbone\.max_tokens"):
        read_activations(engine, TEXTS)


# ---------------------------------------------------------------- waiting for the device


class WaitCounter(TorchDispatchMode):
    """Counts the operations for whose result the processor would wait if the tensors were on a GPU."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.names or by_mask:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def test_reading_neurons_waits_for_the_device_no_more_often_than_the_model(backbone_folder: Path, llama: Path) -> None:
    """The model itself looks whether a batch has padding; hooks, poolings and gathers look at nothing."""
    for folder in (backbone_folder, llama):
        for long_texts in ({}, {"long_texts": "windows", "max_tokens": 4, "window_overlap": 1}):
            backbone = load(folder, **long_texts)
            ids, mask = backbone.pad_tokens(backbone.tokenize(TEXTS), range(2))
            segments = split_into_two_segments(backbone)
            first = NeuronEncoder(backbone, segments[0], carry=True)
            second = NeuronEncoder(backbone, segments[1])
            with torch.inference_mode():
                hidden = first(ids, mask)[-1]
                with WaitCounter() as of_model:
                    backbone.model(input_ids=ids, attention_mask=(mask > 0).long(), **backbone.forward_options)
                for encoder, inputs in ((first, (ids, mask)), (second, (ids, mask, hidden))):
                    with WaitCounter() as of_encoder:
                        encoder(*inputs)
                    assert of_encoder.counted == of_model.counted


@pytest.mark.slow
def test_two_streams_of_torch_give_the_values_of_one(llama: Path) -> None:
    """A GPU has two: one thread queues a batch while the other waits for its own."""
    backbone = load(llama, batch_tokens=8)
    texts = [text for text in TEXTS for _ in range(20)]
    for keep_mask in (None, lambda _index, rows, _values: rows % 3 > 0):
        engine = TorchEngine(backbone, split_into_two_segments(backbone))
        assert engine.streams == 1
        expected = read_activations(engine, texts, keep_mask=keep_mask)
        engine.streams = 2
        actual = read_activations(engine, texts, keep_mask=keep_mask)
        np.testing.assert_array_equal(actual.values, expected.values)
        if keep_mask is not None:
            np.testing.assert_array_equal(actual.depth, expected.depth)


# ---------------------------------------------------------------- torch.compile


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_values(backbone_folder: Path, llama: Path) -> None:
    """Values agree for batch sizes that were not traced, and for the second segment."""
    for folder, index in ((backbone_folder, 0), (llama, 1)):
        backbone = load(folder)
        encoder = NeuronEncoder(backbone, split_into_two_segments(backbone)[index], carry=index == 0)
        run = compile_encoder(encoder, backend="eager")
        for texts in (TEXTS, TEXTS[:1]):
            ids, mask = backbone.pad_batch(backbone.tokenize(texts).ids)
            hidden = [torch.randn(*ids.shape, 16)] if index else []
            with torch.inference_mode():
                for actual, expected in zip(run(ids, mask, *hidden), encoder(ids, mask, *hidden), strict=True):
                    torch.testing.assert_close(actual, expected)


def double(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (values * 2,)


def fail(*_: Any) -> Any:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("seconds", "candidate", "chosen"),
    [
        (0.5, lambda values: (values + values,), True),
        (0.5, lambda values: (values + values * 1.001,), True),  # rounding differs
        (0.9, lambda values: (values + values,), False),  # hardly faster
        (0.5, lambda values: (values * 2.1,), False),
        (0.5, lambda values: (values * torch.nan,), False),
        (0.5, fail, False),
    ],
)
def test_a_candidate_is_chosen_if_it_is_clearly_faster_and_gives_the_same_values(
    monkeypatch: pytest.MonkeyPatch, seconds: float, candidate: Callable[..., Any], chosen: bool
) -> None:
    monkeypatch.setattr(compiling, "_seconds", lambda run, _: 1.0 if run is double else seconds)
    faster = choose_faster(double, lambda: candidate, [(torch.ones(3),)])
    assert faster is (candidate if chosen else double)


def test_an_encoder_that_cannot_be_compiled_runs_uncompiled() -> None:
    assert choose_faster(double, fail, [(torch.ones(3),)]) is double


def test_timing_a_run_gives_a_positive_duration() -> None:
    assert compiling._seconds(double, [(torch.ones(3),)]) > 0


# ---------------------------------------------------------------- workers


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A machine with 8 CPUs and 2 GPUs. Returns the list of the memory shares that are requested."""
    shares: list[float] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return shares


def test_a_worker_uses_its_share_of_gpu_memory(gpus: list[float]) -> None:
    """A worker without a share sees no GPU."""
    configure_worker(RaySettings(gpus_per_worker=0.5))
    assert (gpus, os.environ["CUDA_VISIBLE_DEVICES"]) == ([0.5], "0,1")
    configure_worker(RaySettings())
    assert (gpus, os.environ["CUDA_VISIBLE_DEVICES"]) == ([0.5], "")


def test_a_gpu_that_torch_does_not_see_is_an_error(gpus: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="a GPU that its torch does not see"):
        configure_worker(RaySettings(gpus_per_worker=1))
    assert not gpus


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("share", "workers"), [(0, 8), (1, 2), (0.5, 4), (0.25, 8), (0.1, 8)])
def test_the_number_of_workers_follows_from_cpus_and_gpus(share: float, workers: int) -> None:
    assert worker_count(RaySettings(gpus_per_worker=share), None) == workers


@pytest.mark.usefixtures("gpus")
def test_more_gpus_than_the_machine_has_are_refused() -> None:
    """Ray's actors would wait for them for ever."""
    _check_gpus(RaySettings(gpus_per_worker=1))
    with pytest.raises(UserError, match="1 for 3 workers, and torch sees 2 GPUs here"):
        _check_gpus(RaySettings.model_validate({"classify": {"gpus_per_worker": 1, "workers": 3}}))


def test_device_cuda_without_gpus_for_workers_is_refused() -> None:
    tree = {"backbone": {"model": "m", "device": "cuda"}, "data": {"train": "t"}, "store": "s"}
    with pytest.raises(UserError, match="workers of extract are given no GPU; set ray.gpus_per_worker"):
        with_engine(parse_settings(tree), "extract")
    with_gpus = parse_settings({**tree, "ray": {"gpus_per_worker": 0.5}})
    assert with_engine(with_gpus, "extract").backbone.engine == "torch"


def test_more_than_one_gpu_per_worker_is_refused() -> None:
    with pytest.raises(UserError, match=r"ray\.gpus_per_worker"):
        parse_settings(
            {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": "s", "ray": {"gpus_per_worker": 2}}
        )


# ---------------------------------------------------------------- with a real GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("windows", [{}, {"long_texts": "windows", "max_tokens": 4, "window_overlap": 1}])
def test_a_gpu_gives_the_values_of_a_cpu(llama: Path, compile: bool, windows: dict[str, Any]) -> None:
    backbone = load(llama, **windows)
    expected = read_activations(TorchEngine(backbone, split_into_two_segments(backbone)), TEXTS).values
    on_gpu = load(llama, device="cuda", compile=compile, **windows)
    actual = read_activations(TorchEngine(on_gpu, split_into_two_segments(on_gpu)), TEXTS).values
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert on_gpu.batch_tokens > CPU_BATCH_TOKENS
    assert np.isfinite(
        read_activations(TorchEngine(on_gpu, [single_segment(list_columns(on_gpu))]), TEXTS).values
    ).all()
