"""The shadow of a night: a second version that classifies the same documents, for comparison only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.data.spool import CheckedRows
from pipelines.registry.versions import Registry
from pipelines.storage.shard_log import Attempt
from pipelines.workers.fault_isolation import MAX_CRASHES
from pipelines.workers.weights_cache import local_digest
from spin.activations.features import Features
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.fitted.persistence import ClassifierMetadata
from spin.monitor.agreement import AgreementCounts, count_agreement
from spin.predictions import Predictions
from spin.settings import OF_INT8, BackboneSettings, DecisionSettings, Settings

_log = logging.getLogger(__name__)

_MAX_ERRORS = 100
"""errors after which the rest of a shard counts as failed, so that a broken shadow does not hold up a night"""


@dataclass(frozen=True)
class ShadowSpec:
    """The version that is the shadow of a night."""

    version: str
    """version in the registry"""
    artifact: str
    """digest of its files"""
    digest: str
    """digest of its backbone"""
    backbone: BackboneSettings | None
    """settings of its backbone, None if it is the backbone of the model"""
    decision: DecisionSettings
    """how it decides, with a band of its own that keeps a promised error"""

    def settings(self, night: Settings) -> Settings:
        """Return the settings of the night with the backbone of the shadow, which gives no reasons."""
        classify = night.classify.model_copy(update={"reasons": 0})
        backbone = night.backbone if self.backbone is None else self.backbone
        return night.model_copy(update={"classify": classify, "backbone": backbone, "decision": self.decision})

    def metadata(self) -> dict[str, str]:
        """Return what the plan of a night records of its shadow."""
        return {"version": self.version, "artifact": self.artifact, "backbone": self.digest}


def resolve_shadow(registry: Registry, given: str, version: str) -> str | None:
    """Return the version of an alias, `models:/NAME@ALIAS` or `models:/NAME/N`; None if it is `version`, the model's.

    So a job that names the challenger every night still runs after the challenger was promoted. Raises UserError for a
    version that does not exist.
    """
    number = registry.resolve(given if given.startswith("models:/") else f"models:/{registry.name}@{given}")
    return None if number == version else number


def choose_shadow(version: str, folder: Path, model: ClassifierMetadata, settings: Settings) -> ShadowSpec:
    """Return the shadow whose artifact is in `folder`, after checking that it fits the model, given by its metadata.

    If its backbone differs from that of the model, the one that its artifact names is used, without running remote
    code. One that was trained in int8 has an engine of its own. Raises UserError if it cannot be loaded, or if only one
    of the two is multi-label.
    """
    try:
        # guarded by test_a_shadow_is_refused_in_another_precision_than_that_of_its_promise; broken by:
        #   spin = TrainedClassifier.load(folder, choose=settings.choose, decision=settings.decision)
        spin = TrainedClassifier.open(folder, settings)
        if spin.label_space.multilabel != model.multilabel:
            forms = {True: "a list of classes", False: "one class"}
            shadow_form, model_form = forms[spin.label_space.multilabel], forms[model.multilabel]
            raise UserError(f"it gives a document {shadow_form}, the model {model_form}")
        digest, backbone = spin.backbone_digest, None
        if digest != model.backbone_digest:
            backbone = find_own_backbone(persistence.read_metadata(folder).backbone, digest, settings.backbone)
        if spin.settings.dtype == "int8" != settings.backbone.dtype:
            backbone = (backbone or settings.backbone).model_copy(update={"dtype": "int8", **OF_INT8})
    except UserError as error:
        raise UserError(
            f"--shadow: version {version} cannot be compared with the model of the night: {error}"
        ) from None
    return ShadowSpec(version, persistence.digest_artifact(folder), digest, backbone, spin.decision)


def find_own_backbone(trained: BackboneSettings, digest: str, night: BackboneSettings) -> BackboneSettings:
    """The settings of a night with the backbone that an artifact names, which may run no remote code.

    Raises UserError if it is not on this machine, or has another digest than that in the artifact.
    """
    source = {"model": trained.model, "revision": trained.revision, "trust_remote_code": False}
    backbone = night.model_copy(update=source)
    actual = local_digest(backbone)
    if actual != digest:
        raise UserError(f"its backbone {backbone.model} has digest {actual[:12]}, expected {digest[:12]}")
    return backbone


class Shadow:
    """Compares the labels of a model with those of its shadow."""

    def __init__(self, spin: TrainedClassifier, version: str) -> None:
        self.spin, self.version = spin, version

    def compare(
        self,
        pieces: Sequence[tuple[list[int], Features | None]],
        documents: CheckedRows,
        attempt: Attempt,
        model: Predictions,
        model_version: str,
    ) -> tuple[pa.Table, AgreementCounts]:
        """Return the rows of a shard on which the labels differ, and the counts.

        `pieces` are rows with the features of the shadow, None where it could not be computed together with the model;
        it is then tried alone, unless the shard has killed several processes: these may lack the memory for two
        classifiers. `model` holds the predictions of the model for the rows of all pieces, in order. A row that only
        the shadow cannot classify counts as failed.
        """
        parts: list[tuple[list[int], Features]] = []
        for rows, features in pieces:
            if features is not None:
                parts.append((rows, features))
            elif attempt.crashes < MAX_CRASHES:
                parts += self._features_alone(rows, documents)
        shadow = self.spin.predict_features(
            Features.concatenate([features for _, features in parts] or [self.spin.features([])])
        )
        at = {row: n for n, row in enumerate(row for rows, _ in pieces for row in rows)}
        compared = [row for rows, _ in parts for row in rows]
        labels = [model.labels[at[row]] for row in compared]
        multilabel = self.spin.label_space.multilabel
        agreement = count_agreement(labels, shadow.labels, multilabel, failed=len(at) - len(compared))
        differing = [n for n, label in enumerate(labels) if label != shadow.labels[n]]
        rows = [compared[n] for n in differing]
        kind, name = (pa.list_(pa.string()), "labels") if multilabel else (pa.string(), "label")
        columns = {
            "id": pa.array([documents.ids[row] for row in rows], pa.string()),
            name: pa.array([labels[n] for n in differing], kind),
            "score": pa.array([float(model.score[at[row]]) for row in rows], pa.float32()),
            f"shadow_{name}": pa.array([shadow.labels[n] for n in differing], kind),
            "shadow_score": pa.array([float(shadow.score[n]) for n in differing], pa.float32()),
            "model_version": pa.repeat(model_version, len(rows)),
            "shadow_version": pa.repeat(self.version, len(rows)),
        }
        return pa.table(columns), agreement

    def _features_alone(self, rows: list[int], documents: CheckedRows) -> list[tuple[list[int], Features]]:
        """Return the features of the shadow alone. A piece that raises is halved, until `_MAX_ERRORS` errors.

        Unlike `isolate_failing_rows`, it need not find the reason for each row.
        """
        waiting, parts, errors = [rows], [], 0
        while waiting and errors < _MAX_ERRORS:
            piece = waiting.pop()
            try:
                parts.append((piece, self.spin.features(documents.texts_of(piece))))
            except Exception:
                _log.debug("the shadow failed on %d documents", len(piece), exc_info=True)
                errors += 1
                if len(piece) > 1:
                    waiting += [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
        return parts
