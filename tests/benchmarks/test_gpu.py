"""The benchmark of GPUs: its run on a processor, what it counts and compares, its page; no GPU is used."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.masking_utils
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import random_backbone
from benchmarks.gpu.deviations import Deviation, Expected, measure_deviation
from benchmarks.gpu.documents import LONG, MAX_TOKENS, SHORT, Documents, build_tokenizer, draw_documents
from benchmarks.gpu.gemm import GemmRate
from benchmarks.gpu.gpu_page import render
from benchmarks.gpu.operations import count_operations
from benchmarks.gpu.plain_pass import PlainPass
from benchmarks.gpu.random_backbone import LookupBackbone, open_random_backbone, place_model, random_model
from benchmarks.gpu.reference import reference_features
from benchmarks.gpu.results import GpuMachine, Results, judge
from benchmarks.gpu.shapes import Shape, full_shapes, tiny_shapes
from benchmarks.gpu.solver_times import Problem, measure_solver, small_problems
from benchmarks.gpu.speed_rounds import (
    ALL_NEURONS,
    EXITS,
    FROM_TEXT,
    IN_ORDER,
    SAME_SPIN,
    SORTED,
    SPIN,
    Speed,
    WorkloadSpeed,
    find_waits,
)
from benchmarks.gpu.spin_pass import SpinPass, TopicHeads, choose_neurons
from benchmarks.gpu.timer import Times, time_queued
from spin.activations.engines import encoder
from spin.activations.engines.encoder import NeuronEncoder, split_segments
from spin.backbone.model import Backbone
from spin.poolings.end_token import LastToken
from spin.poolings.maximum import Maximum
from spin.poolings.mean import Mean

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MISSING = ("ray", "mlflow", "sklearn", "scipy", "numba", "pydantic", "typer", "rich", "jinja2", "pandas", "fsspec")
"""packages that a bare GPU machine lacks"""
MEASURED = (
    "spin.backbone.hooks",
    "spin.poolings.registry",
    "spin.backbone.batching",
    "spin.backbone.flops",
    "spin.activations.extract",
    "spin.heads.linear_head",
    "spin.fitted.early_exit",
    "spin.integrate.fit_linear",
    "spin.sparsify.solvers.batched_l1_path",
    "spin.sparsify.solvers.fista",
    "spin.sparsify.solvers.ridge_regression",
)


def run_without_packages(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own that cannot import `MISSING`, with no installed package of ours."""
    blocked = f"import runpy, sys\nsys.modules.update(dict.fromkeys({MISSING!r}))\n{code}"
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, "-c", blocked]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=tiny_shapes(), ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


def draw(shape: Shape, count: int = 40, seed: int = 0) -> Documents:
    random = np.random.default_rng(seed)
    return draw_documents(shape, random.integers(6, 30, count), random)


def open_pass(shape: Shape, documents: Documents, dtype: torch.dtype) -> SpinPass:
    backbone = open_random_backbone(shape, place_model(random_model(shape), dtype, CPU))
    assert isinstance(backbone, LookupBackbone)
    backbone.learn(documents)
    return SpinPass(backbone, choose_neurons(backbone, np.random.default_rng(0)), shape.exit_depth)


# ---------------------------------------------------------------- the run


@pytest.mark.slow
def test_measured_modules_need_no_package_that_a_bare_gpu_machine_lacks(tmp_path: Path) -> None:
    imports = "\n".join(f"import {name}" for name in MEASURED)
    done = run_without_packages(f"sys.path.insert(0, {str(ROOT)!r})\n{imports}", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_folder_run_on_a_processor_measures_all_parts_and_agrees(tmp_path: Path) -> None:
    """It runs by its path, where no package is installed that a bare GPU machine lacks."""
    arguments = ["gpu", "--device", "cpu", "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")]
    folder = str(ROOT / "benchmarks" / "gpu")
    code = f"sys.argv = {arguments!r}\nrunpy.run_path({folder!r}, run_name='__main__')"
    done = run_without_packages(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goal" not in done.stdout
    measured = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert len(measured["speeds"]) == len(measured["derived"]["speeds"]) == 2 * len(tiny_shapes())
    assert len(measured["deviations"]) == 2 * len(tiny_shapes())
    assert [each["solver"] for each in measured["solvers"]] == list(small_problems())
    assert all(each["share_of_gemm"] > 0 for each in measured["derived"]["speeds"])
    assert not measured["failures"]
    page = (tmp_path / "page.md").read_text()
    assert "## Goals" not in page
    for title in ("The whole pass", "Against plain transformers", "Exits, text and training", "Agreement"):
        assert f"## {title}\n" in page
    assert page.count("| tiny Llama, tweets |") == 3


@pytest.mark.slow
def test_an_error_in_a_part_is_reported_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import run

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(run, "random_model", fail)
    monkeypatch.setattr(run, "small_problems", dict)
    with pytest.raises(SystemExit, match="tiny BERT: OutOfMemoryError: no room"):
        run.main(["--device", "cpu", "--out", str(tmp_path)])
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert len(measured["failures"]) == 3
    assert measured["gemm"]


# ---------------------------------------------------------------- documents and operations


def test_documents_have_the_token_ids_of_their_tokenizer(shape: Shape) -> None:
    documents = draw(shape)
    assert build_tokenizer(shape)(documents.texts)["input_ids"] == documents.ids
    assert documents.head(100).tokens >= 100


@pytest.mark.parametrize("workload", [SHORT, LONG])
def test_lengths_have_their_mean_and_fit(workload: object) -> None:
    assert workload in (SHORT, LONG)
    lengths = (SHORT if workload is SHORT else LONG).draw_lengths(np.random.default_rng(0), 200_000)
    assert lengths.max() <= MAX_TOKENS
    assert lengths.mean() == pytest.approx(33 if workload is SHORT else 356, rel=0.05)


def test_operations_are_those_that_torch_counts(shape: Shape) -> None:
    """torch counts all pairs of tokens in attention, which the masks of decoders and windows do not leave."""
    backbone, length = open_random_backbone(shape, random_model(shape)), 24
    ids = torch.full((1, length), 7)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.model(input_ids=ids, **backbone.forward_options)
    pooler = 2 * 32 * 32 if "BERT" in shape.name and "Modern" not in shape.name else 0
    heads = backbone.model.config.hidden_size
    all_pairs = length**2 * backbone.depth
    seen = sum(int(mask.sum()) for mask in attention_masks(shape, length))
    assert count_operations(backbone, [length]) == counter.get_total_flops() - pooler - 4 * heads * (all_pairs - seen)
    assert count_operations(backbone, [length, length]) == 2 * count_operations(backbone, [length])


def attention_masks(shape: Shape, length: int) -> list[np.ndarray]:
    """For each layer which tokens attend to which."""
    query, key = np.ogrid[:length, :length]
    kinds = getattr(shape.config, "layer_types", None) or ["full_attention"] * shape.config.num_hidden_layers
    window = {"full_attention": length, "sliding_attention": 8}
    return [(abs(query - key) <= window[kind]) & ((key <= query) | (not shape.causal)) for kind in kinds]


def test_the_full_shapes_have_the_sizes_of_their_models() -> None:
    bert, modern, llama = full_shapes()
    assert (bert.config.num_hidden_layers, bert.config.hidden_size, bert.config.vocab_size) == (12, 768, 30522)
    assert (modern.config.num_hidden_layers, modern.config.intermediate_size) == (22, 1152)
    assert (llama.config.num_hidden_layers, llama.config.num_key_value_heads, llama.exit_depth) == (16, 8, 5)


# ---------------------------------------------------------------- the pass


def test_exits_give_the_labels_of_the_heads_where_documents_stop(shape: Shape) -> None:
    documents = draw(shape, 60)
    spin = open_pass(shape, documents, torch.float32)
    heads = spin.fit_heads(documents)
    labels, share = spin.label_with_exits(documents.texts, heads)
    values = spin.features(documents.texts)
    full, early = heads.full.logits(values).argmax(1), heads.early.logits(values).argmax(1)
    assert 0 < share < 1
    assert ((labels == full) | (labels == early)).all()
    np.testing.assert_array_equal(spin.label(documents.texts, heads), full)


def test_plain_transformers_give_the_same_labels_in_either_order(shape: Shape) -> None:
    documents = draw(shape)
    plain = PlainPass(open_pass(shape, documents, torch.float32).backbone)
    np.testing.assert_array_equal(plain.label_sorted(documents), plain.label_in_order(documents))


def test_an_encoder_stays_on_its_device_and_looks_at_no_value(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values and does not mix with others; only transformers looks whether there is padding."""
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        monkeypatch.setattr(transformers.masking_utils, name, lambda *_, **__: False)
    backbone = open_random_backbone(shape, random_model(shape))
    neurons = choose_neurons(backbone, np.random.default_rng(0))
    backbone.model.to("meta")
    backbone._special = backbone._special.to("meta")
    hidden: list[torch.Tensor] = []
    segments = split_segments(neurons, [shape.exit_depth])
    for segment in segments:
        run = NeuronEncoder(backbone, segment, carry=segment is not segments[-1])
        ids, mask = torch.zeros(3, 5, dtype=torch.int64, device="meta"), torch.ones(3, 5, dtype=torch.bool)
        values, *hidden = run(ids, mask.to("meta"), *hidden)
        assert values.device.type == "meta"
        assert values.shape == (3, sum(map(len, segment.neurons.values())))


# ---------------------------------------------------------------- agreement


def compare(shape: Shape, documents: Documents, dtype: torch.dtype, change: Callable[[], None]) -> Deviation:
    """The deviation of a pass after a change of the code that it runs."""
    spin = open_pass(shape, documents, dtype)
    heads = spin.fit_heads(documents)
    backbones = [open_random_backbone(shape, place_model(random_model(shape), d, CPU)) for d in (torch.float64, dtype)]
    expected = Expected(documents.texts, *(reference_features(b, documents.ids, spin.neurons) for b in backbones))
    change()
    changed = SpinPass(spin.backbone, spin.neurons, shape.exit_depth)
    return measure_deviation(shape.name, changed, expected, heads)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_agrees_with_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    deviation = compare(shape, draw(shape), dtype, lambda: None)
    assert deviation.holds, deviation.describe()
    assert max(deviation.by_site.values()) > 0


def shift_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = encoder._NeuronGather._gather
    monkeypatch.setattr(encoder._NeuronGather, "_gather", lambda self, values: gather(self, values.roll(1, -1)))


def pool_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "content_mask", lambda _self, _ids, mask: mask)


def write_huge_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for pooling in (Mean, Maximum, LastToken):
        monkeypatch.setattr(pooling, "pool", lambda *given, pool=pooling.pool: pool(*given).fill_(1e30))


@pytest.mark.slow
@pytest.mark.parametrize("broken", [shift_gather, pool_special_tokens, write_huge_values])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_pass_is_noticed(
    shape: Shape, dtype: torch.dtype, broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    deviation = compare(shape, draw(shape), dtype, lambda: broken(monkeypatch))
    assert not deviation.holds


def test_solvers_agree_and_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import solver_times

    for solver, [problem] in small_problems().items():
        assert measure_solver(solver, problem, CPU, 1).holds
        solve, calls = solver_times._SOLVERS[solver], []

        def drift(*given: object, solve: Callable = solve, calls: list = calls) -> np.ndarray:
            calls.append(None)
            return solve(*given) * (1 if len(calls) == 1 else 1.2)  # the last call is that of the processor

        monkeypatch.setitem(solver_times._SOLVERS, solver, drift)
        assert not measure_solver(solver, problem, CPU, 1).holds


# ---------------------------------------------------------------- what only a GPU has, simulated


def test_waits_are_counted_by_line_in_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait(_: int) -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(wait, range(3)))

    [(line, count)] = find_waits(torch.device("cuda"), work).items()
    assert line.startswith("tests/benchmarks/test_gpu.py:")
    assert count == 3
    assert modes == ["warn", "default"]


def test_queued_work_is_timed_by_events_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, _end: Event) -> float:
            return 6.0  # milliseconds

    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("idle"))
    works = [lambda: log.append("work")] * 3
    times = time_queued(torch.device("cuda"), works, 2)
    assert times.seconds == (0.002, 0.002)
    assert log == ["work"] * 3 + ["idle", "record", *["work"] * 3, "record", "wait"] * 2


def test_a_card_is_named_even_if_its_driver_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setenv("PATH", "")
    machine = GpuMachine.of(torch.device("cuda"))
    assert (machine.device, machine.memory, machine.driver) == ("NVIDIA H100", 80 << 30, "unknown")


def test_batches_have_room_in_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the product's where nothing else is on the card, and no larger than half of what is free."""
    backbone = open_random_backbone(tiny_shapes()[0], random_model(tiny_shapes()[0]))
    on_gpu = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    fake = SimpleNamespace(
        sites=backbone.sites,
        width=backbone.width,
        max_tokens=512,
        device=on_gpu.device,
        model=SimpleNamespace(config=backbone.model.config, parameters=lambda: iter([on_gpu])),
    )
    free = [80 << 30]
    monkeypatch.setattr(random_backbone, "choose_batch_tokens", lambda *_: 1 << 16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 80 << 30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    assert random_backbone._batch_tokens(fake) == 1 << 16  # type: ignore[arg-type]
    free[0] = 1 << 28
    assert 1 < random_backbone._batch_tokens(fake) < 1 << 16  # type: ignore[arg-type]


# ---------------------------------------------------------------- goals and page

MACHINE = GpuMachine("NVIDIA H100 80GB HBM3", 80 << 30, "580.1", "AMD EPYC", 16, {"torch": "2.11.0"})


def fill_results(share: float, rate: float, device: str = MACHINE.device) -> Results:
    """Results of a GPU on which every pass runs at a share of 1 TFLOP/s and at a rate in tokens per second."""
    names = (SPIN, SAME_SPIN, SORTED, IN_ORDER, EXITS, FROM_TEXT, ALL_NEURONS)
    tokens = 1_000_000
    seconds = tokens / rate
    speeds = [
        WorkloadSpeed(
            name,
            workload.name,
            1000,
            tokens,
            tokens + 1,
            10,
            round(share * 1e12 * seconds),
            {contender: Speed(tokens, Times((seconds, seconds))) for contender in names},
            0.5,
            {"transformers/masking_utils.py:354": 10},
            1 << 30,
        )
        for name in ("BERT-base", "Llama, 1 billion")
        for workload in (SHORT, LONG)
    ]
    gemm = [GemmRate((1000, 500, 1000), Times((1e-3,)))]
    deviation = Deviation("BERT-base", "cuda", "float32", {"ffn.01": 1e-6}, {"ffn.01": 1e-3}, 1.0)
    return Results(replace(MACHINE, device=device), False, gemm, speeds, [deviation])


def test_goals_are_judged_by_the_slower_documents() -> None:
    reached = fill_results(0.36, 0.71e6)
    assert [holds for holds, _ in judge(reached)] == [True, True, True]
    assert [holds for holds, _ in judge(fill_results(0.34, 0.69e6))] == [False, False, False]
    slower = replace(reached.speeds[1], operations=reached.speeds[1].operations // 2)
    verdicts = judge(replace(reached, speeds=[reached.speeds[0], slower, *reached.speeds[2:]]))
    assert verdicts[0] == (False, "BERT-base: 18.0% of the rate of matrix products (longer documents), goal 35%")


def test_tokens_per_second_are_judged_on_an_h100_alone_and_nothing_without_a_gpu() -> None:
    results = fill_results(0.36, 0.71e6, "NVIDIA L4")
    assert len(judge(results)) == 2
    assert judge(replace(results, machine=replace(MACHINE, memory=0))) == []


def test_the_page_names_the_machine_and_what_was_missed_or_failed() -> None:
    results = fill_results(0.34, 0.71e6)
    wrong = replace(results.deviations[0], by_site={"ffn.01": float("inf")})
    page = render(replace(results, deviations=[wrong], failures=["ridge: RuntimeError: x"]))
    for text in (
        "NVIDIA H100 80GB HBM3, 80 GiB, driver 580.1; AMD EPYC, 16 cores; torch 2.11.0",
        "- **missed**: Llama, 1 billion: 34.0% of the rate of matrix products",
        "- reached: BERT-base on an H100: 0.71 million tokens per second",
        "- **failed**: BERT-base on cuda in float32: ffn.01 deviates by inf",
        "- **failed**: ridge: RuntimeError: x.",
        "| BERT-base, tweets | 10 | 1.0 | transformers/masking_utils.py:354 |",
    ):
        assert text in page


def test_a_problem_without_a_processor_has_no_difference() -> None:
    problem = replace(small_problems()["ridge"][0], on_processor=False)
    assert isinstance(problem, Problem)
    timed = measure_solver("ridge", problem, CPU, 1)
    assert timed.processor is timed.difference is None
    assert timed.holds


def test_heads_ignore_features_beyond_their_own() -> None:
    shape = tiny_shapes()[0]
    documents = draw(shape)
    spin = open_pass(shape, documents, torch.float32)
    heads: TopicHeads = spin.fit_heads(documents)
    values = spin.features(documents.texts)
    width = len(heads.early.standardizer.mean)
    assert 0 < width < values.shape[1]
    np.testing.assert_array_equal(heads.early.logits(values), heads.early.logits(values[:, :width]))
