"""What this project runs: one classifier, trained once, in every engine and precision, with and without the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Answer, Contender, Precision
from benchmarks.trial import Trial
from spin import SpinClassifier
from spin.settings import BackboneSettings

_ENGINES: tuple[tuple[str, Precision], ...] = (("torch", "float32"), ("torch", "bfloat16"))
"""engine and precision of each row at full depth; the first is what all others are compared with"""


def ours(trial: Trial, folder: Path) -> list[Contender]:
    """Every row of one classifier, which is trained on first use and kept in `folder`."""
    rows: list[Contender] = []
    rows += [contender(trial, folder, engine, precision) for engine, precision in _ENGINES]
    # ---- further rows go here: the engine `openvino` (float32, bfloat16, int8), and the cascade at several losses as
    # contender(..., max_loss=0.002), whose `compute` is the share of FLOPs that its mix of depths took ----
    return rows


def contender(
    trial: Trial, folder: Path, engine: str, precision: Precision, max_loss: float | None = None
) -> Contender:
    """The classifier in one engine and precision; it batches by tokens, as its settings say."""
    share = 1.0

    def load() -> Answer:
        nonlocal share
        if not folder.exists():
            train(trial, folder)
        spin = SpinClassifier.load(folder, backbone=_settings(trial, engine, precision))
        share = float(spin.integration.facts["compute"])
        to_trial = np.array([trial.task.classes.index(name) for name in spin.classes])

        def answer(texts: Sequence[str], _batch: int) -> NDArray[np.integer]:
            found: NDArray[np.integer] = to_trial[spin.predict_proba(texts).argmax(1)]
            return found

        return answer

    name = f"SPIN, {engine}"
    return Contender(name, precision, load, ours=True, max_loss=max_loss, compute=lambda: share)


def train(trial: Trial, folder: Path) -> None:
    """Fit on the trial's training documents in float32, and save."""
    spin = SpinClassifier(_settings(trial, "torch", "float32"), sites=trial.sites)
    spin.fit(*trial.train).save(folder)


def _settings(trial: Trial, engine: str, precision: Precision) -> BackboneSettings:
    named: dict[str, Any] = {"engine": engine} if "engine" in BackboneSettings.model_fields else {}
    return BackboneSettings(model=trial.plan.model, dtype=precision, max_tokens=trial.plan.max_tokens, **named)
