"""Trials of OpenVINO with a backbone, each in a child process, and a record of their verdicts in the cache folder.

OpenVINO generates machine code for the processor it finds, and some of that code kills its process. So a child process
compiles the backbone, runs some texts through it and compares the values with those of torch. If it dies, this process
lives and knows.

The protocol: this process starts `python -m spin.activations.engines.engine_child REPORT` (a layer above, so it is not
imported here). It writes to the child's standard input `{"subject": TrialRequest, "threads": torch's number of
threads}` as JSON. The child writes a `Verdict` as JSON to the file REPORT and ends with status 0. A child that ends
otherwise is judged by its exit status. Most signals are a crash of the engine, but a signal from outside, a time limit,
or any other status say nothing about the engine. Such an inconclusive verdict is not recorded on disk.

A verdict holds for one type of processor, digest of the backbone, precision, texts up to `SHORT_TEXT` tokens or longer
ones, set of poolings and versions of the packages involved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from spin.backbone.local_cache import cache_folder, lock_record, read_record, write_record
from spin.poolings.registry import POOLINGS

TOLERANCES = {"float32": 0.001, "bfloat16": 0.05, "int8": 0.25}
"""the relative error that every backbone is allowed, by precision; for the measure see `relative_error` in the child

Measured on two blocks of MiniLM and SmolLM2-135M against torch in float32, OpenVINO in float32 has 0.000004 at most. In
bfloat16 it has 0.008 and 0.020, torch itself 0.011 and 0.023. In int8 it has 0.029 in both, against torch that rounds
the same products. An encoder that attends to its padding has 1.4, a decoder whose positions are stretched by 5 % has
0.077: in int8 that is not noticed. How many labels int8 changes is for `--check` to measure.
"""
CHILD_COMMAND = (sys.executable, "-P", "-m", "spin.activations.engines.engine_child")
"""the command of the child process, to which the path of the report is added"""
TIMEOUT_S = 300.0
"""seconds that a trial may take"""
SHORT_TEXT = 256
"""tokens, up to which OpenVINO compiles without fused attention, which takes as long there as its parts, or longer"""
_FORMAT = 6
"""version of the trial's procedure; verdicts of another version are not used"""
_PACKAGES = ("openvino", "torch", "transformers")
_INSTRUCTION_SETS = ("avx", "amx", "sse", "ssse", "fma", "f16c", "asimd", "sve", "sme", "bf16", "i8mm")
"""beginnings of the names, as Linux gives them, of instruction sets that engines use"""
_EXTERNAL_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM})
"""signals from outside, such as by the kernel when memory runs out; they are no evidence against the engine"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialRequest:
    """A backbone and the precision in which OpenVINO is to be tried with it."""

    model: str
    """the backbone as the settings name it"""
    folder: str
    """the directory of its files"""
    digest: str
    """the digest of its files"""
    precision: str
    """float32, bfloat16 or int8"""
    max_tokens: int = SHORT_TEXT
    """tokens of a text that are read at most: above `SHORT_TEXT` other code is compiled"""
    trust_remote_code: bool = False
    """whether Python code of the model may run"""


@dataclass(frozen=True)
class Verdict:
    """The result of a trial."""

    outcome: Literal["agrees", "crashed", "failed", "differs", "inconclusive"]
    """agrees: values within the tolerance of torch's; crashed: the child died of a signal; failed: OpenVINO raised an
    error; differs: values beyond the tolerance; inconclusive: the trial shows nothing about the engine"""
    detail: str = ""
    """the error and where it occurred, or the signal"""

    @property
    def description(self) -> str:
        """The outcome as the predicate of a sentence."""
        predicates = {"agrees": "agreed", "crashed": "crashed", "failed": "failed", "differs": "differed from torch"}
        return f"{predicates.get(self.outcome, 'could not be tried')} ({self.detail})"


@cache
def judge_engine(request: TrialRequest) -> Verdict:
    """The verdict on OpenVINO for a backbone and precision: the recorded one, or that of a trial now.

    Of several processes that need it at the same time, one runs the trial and the others wait. Inconclusive verdicts
    are remembered by this process alone, as are all verdicts if the cache folder cannot be written (which is logged).
    """
    file = verdict_path(request)
    with lock_record(file):
        verdict = _read_verdict(file) or _run_trial(request)
        if verdict.outcome != "inconclusive":
            # with all that it depends on, for people who read the file
            write_record(file, {**asdict(verdict), "model": request.model, **_dependencies(request)})
    return verdict


def verdict_path(request: TrialRequest) -> Path:
    """The file in which the verdict is recorded on this machine, named by a hash of all that the verdict depends on."""
    key = hashlib.sha256(json.dumps(_dependencies(request), sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "engine_trials" / f"{key}.json"


def _dependencies(request: TrialRequest) -> dict[str, object]:
    """Everything that a verdict depends on."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "format": _FORMAT,
        "processor": processor(),
        "digest": request.digest,
        "precision": request.precision,
        "long_texts": request.max_tokens > SHORT_TEXT,
        "poolings": [pooling.name for pooling in POOLINGS],
        "versions": versions,
    }


def _version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def processor() -> str:
    """The type of this machine's processor: its model, and the instruction sets that engines use."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        first_core = ""  # not Linux
    pairs = (line.partition(":") for line in first_core.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    wanted = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    model = [f"{name}: {fields.get(name)}" for name in wanted]
    # the other flags change with the kernel and its options, and not with what an engine computes
    flags = fields.get("flags", fields.get("Features", "")).split()
    instructions = sorted(flag for flag in flags if flag.startswith(_INSTRUCTION_SETS))
    found = sorted(name for name, present in torch.cpu.get_capabilities().items() if present is True)
    return "\n".join([platform.machine(), platform.processor(), *model, *instructions, *found])


def _run_trial(request: TrialRequest) -> Verdict:
    """Run the child process and judge its report or its end."""
    _log.info("trying openvino in %s with %s, once on this processor", request.precision, request.model)
    # without the fault handler, which would print the stack of a crash; the child imports from where this process does,
    # and nothing from the working directory
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        try:
            child = subprocess.run(
                [*CHILD_COMMAND, str(file)],
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                input=json.dumps({"subject": asdict(request), "threads": torch.get_num_threads()}).encode(),
                capture_output=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return Verdict("inconclusive", f"not done after {TIMEOUT_S:.0f} s")
        except OSError as error:
            return Verdict("inconclusive", f"its process could not be started: {error}")
        stderr = child.stderr.decode(errors="replace").strip()
        _log.debug("the trial ended with status %d: %s", child.returncode, stderr[-2000:])
        if child.returncode == 0 and (verdict := _read_verdict(file)):
            return verdict
    return _judge_exit(child.returncode, stderr)


def _judge_exit(status: int, stderr: str) -> Verdict:
    """The verdict on a child process that ended without a report; a negative status is the number of a signal."""
    if status >= 0:
        return Verdict("inconclusive", f"its process ended with status {status}{': ' * bool(stderr)}{stderr[-300:]}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status in _EXTERNAL_SIGNALS or "bad_alloc" in stderr:
        return Verdict("inconclusive", f"its process was ended by {name}, as where memory runs out")
    return Verdict("crashed", name)


def _read_verdict(file: Path) -> Verdict | None:
    """The recorded verdict; None if there is none that can be read."""
    content = read_record(file)
    if not isinstance(content, dict) or not {"outcome", "detail"} <= content.keys():
        return None
    return Verdict(content["outcome"], content["detail"])
