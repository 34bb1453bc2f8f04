"""Seconds to the first model: fits of a few hundred texts, each in a fresh process, and the quickstart's first run."""

from __future__ import annotations

import ast
import hashlib
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from benchmarks.section_page import Part, Verdict, table

MODULES = {
    "concurrency": "asyncio concurrent multiprocessing threading queue subprocess sched selectors",
    "files": "os shutil pathlib zipfile tarfile tempfile glob posixpath ntpath gzip bz2 lzma mailbox filecmp fileinput "
    "_pyio zipimport pickle shelve dbm codecs",
    "internet": "email http urllib smtplib ftplib imaplib poplib socket socketserver ssl xmlrpc ipaddress wsgiref "
    "webbrowser",
    "numbers": "statistics decimal _pydecimal fractions random datetime _pydatetime _strptime calendar zoneinfo "
    "numbers colorsys heapq bisect",
    "programs": "unittest doctest pdb bdb inspect dis ast importlib pydoc trace traceback profile cProfile pstats "
    "timeit pkgutil symtable code codeop venv",
    "text": "html xml json csv textwrap string re difflib configparser tokenize gettext argparse optparse cmd shlex "
    "pprint plistlib tomllib logging",
}
"""modules of Python's standard library by the class of their docstrings"""
PER_CLASS, TRAINED = 220, 880
"""docstrings of each class, and how many of all train; the others are classified"""
SHORT_CLASSES, SHORT_PER_CLASS, SHORT_TRAINED = ("internet", "numbers"), 140, 140
_FEWEST_WORDS = 5
"""a docstring with fewer says nothing"""
_ROUNDS = 3


@dataclass(frozen=True)
class Texts:
    """Labelled texts in an order without meaning."""

    texts: Sequence[str]
    labels: Sequence[str]
    trained: int
    """the first ones, which train; the others are classified"""


@dataclass(frozen=True)
class FitTime:
    """One `SpinClassifier.fit` in a fresh process."""

    fit: float
    """seconds of the call"""
    process: float
    """seconds of the process: with imports, and with the classification of the other texts"""
    accuracy: float
    """on the other texts"""


@dataclass(frozen=True)
class SmallFits:
    """What the first models take."""

    fits: Mapping[str, Sequence[FitTime]]
    """by name of the texts, one per round"""
    quickstart: float
    """seconds of `spin quickstart` in an empty folder"""


def read_docstrings() -> Texts:
    """As many docstrings of the standard library for each class, which its module decides."""
    return choose_texts(collect_docstrings(), PER_CLASS, TRAINED)


def read_short_texts() -> Texts:
    """The first lines of docstrings of two classes."""
    found = collect_docstrings()
    lines = {name: [text.partition("\n")[0] for text in found[name]] for name in SHORT_CLASSES}
    return choose_texts(lines, SHORT_PER_CLASS, SHORT_TRAINED)


@cache
def collect_docstrings() -> dict[str, list[str]]:
    """The docstrings of modules, classes and functions by class; read from source files, no module is imported."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return {
        name: [text for module in modules.split() for file in _sources(library / module) for text in _docstrings(file)]
        for name, modules in MODULES.items()
    }


def _sources(module: Path) -> list[Path]:
    """The source files of a module or package without its tests; none if this Python does not have it."""
    if module.is_dir():
        return [file for file in sorted(module.rglob("*.py")) if not {"test", "tests"} & set(file.parts)]
    return [file] if (file := module.with_suffix(".py")).exists() else []


def _docstrings(file: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def choose_texts(found: Mapping[str, Sequence[str]], per_class: int, trained: int) -> Texts:
    """As many different texts of each class, none of which is in two classes, in an order that hashes give."""
    chosen: dict[str, str] = {}
    for name, texts in found.items():
        elsewhere = {text for other, others in found.items() if other != name for text in others}
        long_enough = {text for text in texts if len(text.split()) >= _FEWEST_WORDS}
        own = sorted(long_enough - elsewhere, key=partial(_hash, b"choose"))
        if len(own) < per_class:
            raise SystemExit(f"{name}: this Python has {len(own)} such texts, expected at least {per_class}")
        chosen |= dict.fromkeys(own[:per_class], name)
    texts = sorted(chosen, key=partial(_hash, b"order"))
    return Texts(texts, [chosen[text] for text in texts], trained)


def _hash(purpose: bytes, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), key=purpose).digest()


_SHORT, _LONG, _QUICKSTART = "140 short texts, 2 classes", "880 docstrings, 6 classes", "spin quickstart, first run"
_MOST = {_SHORT: 8.0, _LONG: 40.0, _QUICKSTART: 150.0}
"""promises: seconds on two cores that do nothing else"""


def measure(folder: Path, *, quick: bool) -> SmallFits:
    """Fit in rounds, after one fit that is not measured: it leaves the verdict on the engine in the cache."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {_SHORT: folder / "short.json", _LONG: folder / "docstrings.json"}
    for file, read in zip(files.values(), (read_short_texts, read_docstrings), strict=True):
        file.write_text(json.dumps(asdict(read())), encoding="utf-8")
    _fit_apart(files[_SHORT])
    fits = {name: [_fit_apart(files[name]) for _ in range(1 if quick else _ROUNDS)] for name in files}
    print(fits, flush=True)
    start = time.perf_counter()
    command = "from jobs.cli import main; main()"
    subprocess.run([sys.executable, "-c", command, "quickstart", "--folder", str(folder / "quickstart")], check=True)
    return SmallFits(fits, time.perf_counter() - start)


def section(measured: SmallFits) -> Part:
    """Seconds and accuracy of the fits, and the seconds of the quickstart."""
    rows = [
        [name, f"{_median(times):.1f}", ", ".join(f"{time.fit:.1f}" for time in times),
         f"{statistics.median(time.process for time in times):.1f}", f"{100 * times[0].accuracy:.1f}"]
        for name, times in measured.fits.items()
    ]  # fmt: skip
    rows.append([_QUICKSTART, "", "", f"{measured.quickstart:.1f}", ""])
    text = [
        table(["", "fit, s (median)", "rounds, s", "process, s", "accuracy, %"], rows),
        "`SpinClassifier(MODEL).fit(texts, labels)` with MiniLM and nothing else, each in a fresh process in which the "
        "verdict on the engine is cached. Docstrings: of Python's standard library, classes by group of modules, "
        f"{TRAINED} of {PER_CLASS * len(MODULES):,} train. Short texts: the first lines of docstrings of two classes, "
        f"{SHORT_TRAINED} of {SHORT_PER_CLASS * len(SHORT_CLASSES)} train. Accuracy: on the others. Process: with "
        "imports and the classification of the others. Quickstart: the whole command in an empty folder.\n",
    ]
    seconds = {name: _median(times) for name, times in measured.fits.items()} | {_QUICKSTART: measured.quickstart}
    return "\n".join(text), [_judge(name, taken) for name, taken in seconds.items()]


def _median(times: Sequence[FitTime]) -> float:
    return statistics.median(time.fit for time in times)


def _judge(name: str, seconds: float) -> Verdict:
    return seconds <= _MOST[name], f"{name}: {seconds:.1f} s, expected at most {_MOST[name]:.0f} s"


def _fit_apart(file: Path) -> FitTime:
    """Fit the texts of a file in a fresh process and time it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.limits.small_fits", str(file)]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - start
    return FitTime(**json.loads(process.stdout.splitlines()[-1]), process=seconds)


def _fit(file: Path) -> dict[str, float]:
    """Fit and classify; this is what the fresh process does."""
    from jobs.quickstart import BACKBONE
    from spin import SpinClassifier

    texts, labels, trained = json.loads(file.read_text(encoding="utf-8")).values()
    start = time.perf_counter()
    spin = SpinClassifier(BACKBONE).fit(texts[:trained], labels[:trained])
    seconds = time.perf_counter() - start
    predicted = spin.predict(texts[trained:])
    right = [given == found for given, found in zip(labels[trained:], predicted, strict=True)]
    return {"fit": seconds, "accuracy": sum(right) / len(right)}


if __name__ == "__main__":
    print(json.dumps(_fit(Path(sys.argv[1]))))
