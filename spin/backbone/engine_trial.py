"""A trial of OpenVINO with a backbone in a child process, and the memory of its verdicts.

OpenVINO compiles machine code for the processor it finds, and some of that kills its process: only a process that may
die can find it out.
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
from typing import Any, Literal

import torch
from filelock import FileLock

from spin.backbone.hub import cache_folder

TOLERANCES = {"float32": 0.001, "bfloat16": 0.15, "int8": 0.9}
"""error of the values read that is allowed, as a share of their size, by precision

Measured on MiniLM and SmolLM2-135M against torch in float32: OpenVINO in float32 0.00001 at most, bfloat16 0.01 and
(in torch) 0.05, int8 0.27 and 0.5; an encoder that sees its padding is off by 2, a decoder whose positions are
stretched by 5 % by 0.2. What int8 costs in labels is for `--check` to say.
"""
CHILD = (sys.executable, "-P", "-m", "spin.activations.engine_child")
"""the command of the child, which takes the name of the file that its report goes into"""
LIMIT_S = 600.0
"""seconds that a trial may take"""
_FORMAT = 1
"""of what a trial does and compares: verdicts of another one are not taken"""
_PACKAGES = ("openvino", "nncf", "torch", "transformers")
_STOPPED = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM})
"""signals that come from outside, such as from the kernel where memory runs out, and show nothing of the engine"""
_known: dict[str, Verdict] = {}
"""what this process has found or read, by key: also what is not remembered on disk"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A backbone in a precision, to be tried."""

    model: str
    """as the settings name it"""
    folder: str
    digest: str
    precision: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Report:
    """What a child found: the largest error and the column that has it, or the error that the engine raised."""

    difference: float | None = None
    """norm of the error of a text's values, over the norm of the values; infinite where one is not finite"""
    column: str = ""
    allowed: float = 0.0
    """the largest error that this column may have"""
    error: str = ""
    judged: bool = True
    """whether an error is the engine's own, and not one of memory, of what is installed or of the backbone's files"""


@dataclass(frozen=True)
class Verdict:
    """What a trial has shown."""

    outcome: Literal["agrees", "crashed", "failed", "differs", "unjudged"]
    detail: str = ""

    @property
    def finding(self) -> str:
        """What happened, as the predicate of a sentence."""
        told = {"agrees": "agreed", "crashed": "crashed", "failed": "failed", "differs": "differed from torch"}
        return f"{told.get(self.outcome, 'could not be tried')} ({self.detail})"


def engine_verdict(subject: Subject) -> Verdict:
    """The verdict on a subject: as remembered in `SPIN_CACHE`, else by a trial now, one at a time of all processes.

    A trial that ran out of time or memory is remembered by this process alone.
    """
    key = key_of(subject)
    if key in _known:
        return _known[key]
    file = file_of(subject)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            _known[key] = _read(file) or _tried(subject)
            if _known[key].outcome != "unjudged":
                _write(file, subject, _known[key])
    except (OSError, NotImplementedError) as error:  # a folder that is read-only, or that knows no locks
        _log.warning("%s cannot keep the verdict of a trial (%s); every process makes its own", file.parent, error)
        if key not in _known:
            _known[key] = _tried(subject)
    return _known[key]


def file_of(subject: Subject) -> Path:
    """Where the verdict on a subject is remembered on this machine."""
    return cache_folder() / "engine_trials" / f"{key_of(subject)}.json"


def key_of(subject: Subject) -> str:
    """A hash of all that a verdict depends on: processor, weights, versions and precision."""
    return hashlib.sha256(json.dumps(_circumstances(subject), sort_keys=True).encode()).hexdigest()[:32]


def _circumstances(subject: Subject) -> dict[str, Any]:
    versions = {name: _version(name) for name in _PACKAGES if name != "nncf" or subject.precision == "int8"}
    return {
        "format": _FORMAT,
        "processor": processor(),
        "digest": subject.digest,
        "precision": subject.precision,
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def processor() -> str:
    """The type of this machine's processor: its name and model, and the instructions that engines look for."""
    facts = {"machine": platform.machine(), "name": platform.processor()}
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        first = ""  # not Linux
    for line in first.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in wanted:
            facts[name] = value
        elif name in ("flags", "Features"):
            prefixes = ("avx", "amx", "sse", "ssse", "fma", "f16c", "asimd", "sve", "sme", "bf16", "i8mm")
            facts["instructions"] = " ".join(sorted(of for of in value.split() if of.startswith(prefixes)))
    facts["torch"] = " ".join(sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True))
    return json.dumps(facts, sort_keys=True)


def _tried(subject: Subject) -> Verdict:
    _log.info("trying openvino in %s with %s, once on this processor", subject.precision, subject.model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        try:
            done = subprocess.run(
                [*CHILD, str(file)],
                # it imports what this process would, and nothing that happens to lie in the working directory
                env={**_environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
                input=json.dumps({"subject": asdict(subject), "threads": torch.get_num_threads()}).encode(),
                capture_output=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return Verdict("unjudged", f"not done after {LIMIT_S:.0f} s")
        said = done.stderr.decode(errors="replace").strip()
        _log.debug("the trial ended with status %d: %s", done.returncode, said[-2000:])
        if done.returncode == 0 and file.exists():
            return _judged(Report(**json.loads(file.read_bytes())))
    return _ended(done.returncode, said)


def _environment() -> dict[str, str]:
    """This process's, without what writes the stack of a crash."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}


def _judged(report: Report) -> Verdict:
    if report.difference is None:
        return Verdict("failed" if report.judged else "unjudged", report.error)
    detail = f"relative error {report.difference:.2g} in {report.column}, expected at most {report.allowed:.2g}"
    return Verdict("agrees" if report.difference <= report.allowed else "differs", detail)


def _ended(status: int, said: str) -> Verdict:
    """The verdict on a child that ended without a report."""
    if status >= 0:
        return Verdict("unjudged", f"its process ended with status {status}{': ' * bool(said)}{said[-300:]}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status in _STOPPED or "bad_alloc" in said:
        return Verdict("unjudged", f"its process was ended by {name}, as where memory runs out")
    return Verdict("crashed", name)


def _read(file: Path) -> Verdict | None:
    """A verdict that is remembered; None where there is none that can be read."""
    try:
        kept = json.loads(file.read_bytes())
        return Verdict(kept["outcome"], kept["detail"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read (%s); openvino is tried anew", file, error)
        return None


def _write(file: Path, subject: Subject, verdict: Verdict) -> None:
    """Whole or not at all; with what it depends on, for people to read."""
    kept = {**asdict(verdict), "model": subject.model, **_circumstances(subject)}
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        made = Path(scratch) / file.name
        made.write_text(json.dumps(kept, indent=2), encoding="utf-8")
        made.replace(file)
