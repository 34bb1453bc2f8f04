"""The measurement of a trial: contenders are judged by validation, ours are chosen, and what remains is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from benchmarks.method.corpora import METRIC
from benchmarks.speed.choice import Validation, chosen_settings, frontier
from benchmarks.speed.contender import Contender, OurSetting, Role, WordPeer
from benchmarks.speed.graphs import graph_peers
from benchmarks.speed.our_settings import OurSettings
from benchmarks.speed.peers import torch_peers
from benchmarks.speed.rounds import Race, Ready, make_ready, race, validate
from benchmarks.speed.row import Row
from benchmarks.speed.trial import Trial
from benchmarks.speed.word_peers import word_contenders
from spin.labels.metrics import score


class Measurement:
    """All that is measured of a trial, of the contenders whose keys match the pattern `only`."""

    def __init__(self, trial: Trial, only: str = "*") -> None:
        self.trial, self.only = trial, only
        self.ready: list[Ready] = []
        """the contenders that will be timed"""
        self.validations: dict[str, Validation] = {}
        """by the key of a contender, also of settings that are not timed"""
        self.tried: dict[OurSetting, Validation] = {}
        """our settings on the validation documents, but for those that give reasons"""

    def enter_peers(self) -> None:
        """Load all peers, choose their batch sizes and judge them on the validation documents."""
        with tempfile.TemporaryDirectory() as folder:
            peers = torch_peers(self.trial)
            if not self.trial.causal:
                peers += [*graph_peers(self.trial, Path(folder)), *word_contenders(self.trial)]
            for contender in peers:
                if fnmatch(contender.key, self.only):
                    self.ready.append(self._judge(contender))

    def enter_ours(self) -> None:
        """Judge our settings on the validation documents; load those that are timed anyway or chosen for the peers."""
        targets = [validation.score for validation in self.validations.values()]
        ours = OurSettings(self.trial)
        fixed = [setting for setting in ours.fixed() if fnmatch(setting.key, self.only)]
        for setting in fixed:
            self.ready.append(self._judge(ours.contender(setting)))
        if not self.trial.causal:
            grid = ours.grid()
            self._try(ours, grid)
            best = frontier({setting: self.tried[setting] for setting in grid if setting in self.tried})
            self._try(ours, ours.in_int8(best))
        for setting in chosen_settings(self.tried, targets):
            if setting not in fixed:
                self.ready.append(make_ready(ours.contender(setting), self.trial.texts(self.trial.valid)))

    def race(self, rounds: int) -> tuple[list[Row], Race]:
        """Time the loaded contenders on the test documents."""
        results = race(self.ready, self.trial.texts(self.trial.test), rounds)
        return [self._row(ready, results) for ready in self.ready], results

    def _try(self, ours: OurSettings, settings: Sequence[OurSetting]) -> None:
        """Judge settings, and forget what was loaded: a setting's memory is free until it is chosen."""
        for setting in settings:
            if setting not in self.tried and fnmatch(setting.key, self.only):
                self._judge(ours.contender(setting))

    def _judge(self, contender: Contender) -> Ready:
        texts, y = self.trial.texts(self.trial.valid), self.trial.y(self.trial.valid)
        ready = make_ready(contender, texts)
        validation = self.validations[contender.key] = validate(ready, texts, y)
        if isinstance(contender.role, OurSetting) and not contender.role.reasons:
            self.tried[contender.role] = validation
        return ready

    def _row(self, ready: Ready, results: Race) -> Row:
        """The figures of a contender."""
        role, answers, y = ready.contender.role, results.answers[ready.key], self.trial.y(self.trial.test)
        compute = 0.0 if isinstance(role, WordPeer) else 1.0
        if answers.compute is not None:
            compute = float(np.average(answers.compute, weights=self.trial.lengths))
        reference = reference_key(role, [other.contender.role for other in self.ready])
        return Row(
            role,
            tuple(results.seconds[ready.key]),
            answers.classes,
            score(METRIC, y, answers.classes),
            float((answers.classes == y).mean()),
            self.validations[ready.key].score,
            float((answers.classes == results.answers[reference].classes).mean()) if reference else float("nan"),
            ready.batch,
            compute,
        )


def reference_key(role: Role, roles: Sequence[Role]) -> str | None:
    """The key of the row whose labels a role's should equal: the first of its kind in float32 without exits."""
    for other in roles:
        if isinstance(role, WordPeer) or type(other) is not type(role) or other.precision != "float32":
            continue
        if not isinstance(other, OurSetting) or (other == other.full and other.choose == "accuracy"):
            return other.key
    return None
