"""The version that an audit judges, and the documents by which it does so: the frozen evaluation set, or a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import Registry
from spin.arrays import Hashes
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.labels.label_space import Targets


@dataclass(frozen=True)
class AuditedVersion:
    """A version, opened as a night opens it but without reasons, and n documents that nothing was learned from."""

    number: str
    spin: TrainedClassifier
    frozen: EvaluationSet
    """all frozen documents, or those of the half that was asked for"""
    texts: list[str]
    """of the n documents that are drawn from them"""
    y: Targets
    """their targets"""
    groups: Hashes | None
    """(n,) their groups; None if each stands for itself"""


def open_audited(
    registry: Registry, model: str | None, documents: int | None, *, certificate: bool = False
) -> AuditedVersion:
    """Open a version, by default the champion, and draw some of the frozen documents, by default all, in their order.

    With `certificate` they are drawn from the half that the gate does not read.
    Raises UserError where no evaluation set is frozen, or the version does not know one of its classes.
    """
    number = registry.resolve(model)
    frozen = registry.evaluation_set()
    if certificate:
        frozen = frozen.certificate_half
    if not frozen:
        raise UserError(
            f"an audit needs labelled documents that nothing was learned from, and {registry.name} has no frozen "
            "evaluation set; `spin run` with test documents freezes one"
        )
    settings = registry.settings
    classify = settings.classify.model_copy(update={"reasons": 0})
    spin = Registry(settings.model_copy(update={"classify": classify}), registry.name).load(number)
    rows = draw_rows(len(frozen), documents, settings.seed)
    drawn = frozen.take(rows)
    try:
        y = spin.label_space.index(drawn.labels)
    except UserError as error:
        raise UserError(f"the evaluation set of {registry.name}: {error}") from None
    return AuditedVersion(number, spin, frozen, list(drawn.texts), y, drawn.group_hashes)


def draw_rows(count: int, documents: int | None, seed: int) -> list[int]:
    """Row numbers below `count`, ascending: `documents` of them that the seed draws, or all."""
    if documents is None or documents >= count:
        return list(range(count))
    rows: list[int] = np.sort(np.random.default_rng(seed).choice(count, documents, replace=False)).tolist()
    return rows
