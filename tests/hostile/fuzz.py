"""`make fuzz`: mutated files among good ones, for an hour or as many minutes as `MINUTES` says; prints a summary.

A file depends on the seed and its number alone. A run goes on after the last file of the run before, as
`build/fuzz.json` says, unless `--seed` or `--from` say otherwise. Twenty mutants and two good files are taken in at a
time, in a process of their own. It is a failure if that ends with an exception, dies or takes too long, or if a good
file is not whole. The mutants that cause one are written to `build/fuzz`, and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.hostile.intake_run import Taken, take_folder, write_good_files
from tests.hostile.mutations import Base, build_bases, mutate

BUILD = Path("build")
BATCH = 20
"""mutants that are taken in at a time"""
_SECONDS = 900
"""time after which a batch is a failure"""
_KINDS_SHOWN = 25
_DEATH = re.compile(
    r"ends the process that reads it \(\w+\)|takes more than .* of (?:memory|processor time)|done nothing"
)
"""why a reader was ended, in the reason of a file"""
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|-?\d[\d,.]*")
"""what differs in reasons of one kind"""


@dataclass(frozen=True)
class Mutant:
    """A mutated file."""

    number: int
    base: Base
    content: bytes

    @property
    def name(self) -> str:
        """Name in the folder."""
        return f"{self.number:09d}{self.base.ending}"


@dataclass
class Tally:
    """What became of the mutants so far."""

    good: Counter[str] = field(default_factory=Counter)
    """by format"""
    bad: Counter[str] = field(default_factory=Counter)
    """by format"""
    kinds: Counter[str] = field(default_factory=Counter)
    """bad ones by the kind of reason"""
    deaths: Counter[str] = field(default_factory=Counter)
    """bad ones that ended a reader, by how"""
    failures: list[str] = field(default_factory=list)
    memory: int = 0
    """most bytes of any process that took files in or was started by one"""

    @property
    def files(self) -> int:
        return self.good.total() + self.bad.total()

    def add(self, mutants: Sequence[Mutant], taken: Taken) -> None:
        """Count the outcomes of a batch."""
        for mutant in mutants:
            reason = taken.reasons.get(mutant.name)
            (self.bad if reason else self.good)[mutant.base.kind] += 1
            if reason is None:
                continue
            self.kinds[_kind_of(reason)] += 1
            if death := _DEATH.search(reason):
                self.deaths[death[0]] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz for some minutes; return the exit status."""
    options = _parse(arguments)
    logging.disable(logging.WARNING)
    seed, number = _starting_point(options)
    began, tally, process = time.monotonic(), Tally(), IntakeProcess()
    bases = build_bases()
    try:
        while time.monotonic() < began + 60 * options.minutes or not tally.files:
            mutants = [make_mutant(seed, number + n, bases) for n in range(BATCH)]
            _try_batch(process, mutants, seed, tally)
            number += BATCH
            _save_state(seed, number)
    finally:
        tally.memory = max(tally.memory, process.end())
    print(summarize(tally, seed, number, time.monotonic() - began))
    return 1 if tally.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, help="by default that of the run before, or 0")
    parser.add_argument("--from", type=int, dest="first", help="number of the first file")
    return parser.parse_args(arguments)


def _starting_point(options: argparse.Namespace) -> tuple[int, int]:
    """The seed, and the number of the first file."""
    state = {"seed": 0, "files": 0}
    if (path := BUILD / "fuzz.json").exists():
        state = json.loads(path.read_text(encoding="utf-8"))
    seed = state["seed"] if options.seed is None else options.seed
    done = state["files"] if seed == state["seed"] else 0
    return seed, done if options.first is None else options.first


def _save_state(seed: int, files: int) -> None:
    BUILD.mkdir(exist_ok=True)
    (BUILD / "fuzz.json").write_text(json.dumps({"seed": seed, "files": files}) + "\n", encoding="utf-8")


def make_mutant(seed: int, number: int, bases: Sequence[Base]) -> Mutant:
    """The mutant of a number, always the same for a seed."""
    random = Random(f"{seed} {number}")
    base = random.choice(bases)
    return Mutant(number, base, mutate(base, random))


def _try_batch(process: IntakeProcess, mutants: Sequence[Mutant], seed: int, tally: Tally) -> None:
    """Take mutants in together and, if that fails, one by one to find the culprit."""
    found = process.take(mutants)
    if isinstance(found, Taken):
        tally.add(mutants, found)
        return
    alone = [(mutant, process.take([mutant])) for mutant in mutants] if len(mutants) > 1 else [(mutants[0], found)]
    for mutant, each in alone:
        if isinstance(each, Taken):
            tally.add([mutant], each)
    culprits = [(mutant, each) for mutant, each in alone if isinstance(each, str)]
    # a failure that only the files together cause is that of all of them
    for mutant, failure in culprits or [(mutant, found) for mutant in mutants]:
        path = BUILD / "fuzz" / f"seed-{seed}-{mutant.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutant.content)
        tally.failures.append(f"{path} ({mutant.base.name}): {failure}")
        print(tally.failures[-1], flush=True)


class IntakeProcess:
    """A process that takes folders in, and is started again if it dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def take(self, mutants: Sequence[Mutant]) -> Taken | str:
        """What became of mutants between two good files, or what went wrong."""
        with tempfile.TemporaryDirectory(prefix="spin-fuzz-") as folder:
            write_good_files(Path(folder))
            for mutant in mutants:
                (Path(folder) / mutant.name).write_bytes(mutant.content)
            self.connection.send(Path(folder))
            try:
                if not self.connection.poll(_SECONDS):
                    self._restart()
                    return f"the intake did not end within {_SECONDS} s"
                answer: Taken | str = self.connection.recv()
            except (EOFError, ConnectionError):
                self.process.join()
                status = self.process.exitcode
                self._restart()
                return f"the process that takes files in died with status {status}"
        return _judge(answer) or answer

    def _restart(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self._start()

    def end(self) -> int:
        """End the process; return the bytes of the largest one."""
        self.connection.send(None)
        memory: int = self.connection.recv()
        self.process.join()
        self.connection.close()
        return memory


def _judge(answer: Taken | str) -> str | None:
    """Describe what went wrong."""
    if isinstance(answer, str):
        return answer
    harmed = answer.good_files_harmed()
    return f"a good file is not whole (reason, rows read, rows saved): {harmed}" if harmed else None


def _serve(connection: Connection) -> None:
    """In a process: take in the folders that come, until None does."""
    logging.disable(logging.WARNING)
    while (folder := connection.recv()) is not None:
        try:
            answer: Taken | str = take_folder(folder)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)
    uses = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    connection.send(max(uses) << 10)


def _kind_of(reason: str) -> str:
    """The reason without the file and what differs between files."""
    _, _, text = reason.partition(" ")
    return _PARTICULARS.sub("…", text)[:90].replace("|", "/")


def summarize(tally: Tally, seed: int, number: int, seconds: float) -> str:
    """Tables in Markdown."""
    head = (
        f"\n{tally.files:,} files up to number {number:,} of seed {seed} in {seconds / 60:.0f} minutes: "
        f"{tally.files / seconds:.1f} per second; the largest process had {tally.memory / 1e6:,.0f} MB; "
        f"{len(tally.failures)} failures\n"
    )
    formats = sorted(tally.good | tally.bad)
    by_format = [f"| {name} | {tally.good[name]:,} | {tally.bad[name]:,} |" for name in formats]
    total = f"| all | {tally.good.total():,} | {tally.bad.total():,} |"
    deaths = [f"| {how} | {count:,} |" for how, count in tally.deaths.most_common()]
    kinds = [f"| {kind} | {count:,} |" for kind, count in tally.kinds.most_common(_KINDS_SHOWN)]
    rest = sum(tally.kinds.values()) - sum(count for _, count in tally.kinds.most_common(_KINDS_SHOWN))
    return "\n".join(
        [
            head,
            *("| format | good | bad |", "| --- | ---: | ---: |", *by_format, total),
            *("", "| processes that died: why | files |", "| --- | ---: |", *deaths),
            *("", "| why files are bad | files |", "| --- | ---: |", *kinds, f"| other reasons | {rest:,} |"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
