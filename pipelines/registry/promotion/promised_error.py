"""The check of the gate that a version keeps the error that `decision.max_error` promises."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.registry.promotion.gate_check import GateCheck
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from pipelines.registry.versions import Registry
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.labels.label_space import Label, class_names
from spin.settings import Settings


def settle_promise(registry: Registry, number: str) -> tuple[Settings, str | None]:
    """The registry's settings with the abstention band of a version in place of `max_error`.

    Where its test documents prove no band there is none, and the reason is returned too.
    """
    settings = registry.settings
    if settings.decision.max_error is None:
        return settings, None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            registry.download(number, folder)
            decision, reason = TrainedClassifier.open(folder, settings).decision, None
        except UserError as error:
            decision, reason = settings.decision.without_promise(), str(error)
    return settings.model_copy(update={"decision": decision}), reason


def check_promised_error(
    max_error: float | None, reply: PredictionReply, labels: Sequence[Label], reason: str | None
) -> list[GateCheck]:
    """The check `max_error` of a version by its labels for the evaluation set; none where nothing is promised.

    It passes if at most the promised share is wrong of the labels that a night would give, with early exits and the
    abstention band of the version. It fails where the version has no band, for a `reason`.
    """
    if max_error is None or not labels:
        return []
    if reason is not None:
        return [_check(max_error, math.nan, reason)]
    pairs = zip(reply.labels, labels, strict=True)
    wrong = [set(class_names(given)) != set(class_names(true)) for given, true in pairs if given is not None]
    share, coverage = float(np.mean(wrong or [False])), len(wrong) / len(labels)
    return [_check(max_error, share, f"{100 * share:.1f} % of the {100 * coverage:.1f} % that get a label")]


def _check(max_error: float, error: float, measured: str) -> GateCheck:
    return GateCheck(
        "max_error",
        value=error,
        limit=max_error,
        measured=measured,
        expected=f"at most {100 * max_error:g} % of the labels wrong",
        remedy="train again, or raise decision.max_error",
        at_most=True,
    )
