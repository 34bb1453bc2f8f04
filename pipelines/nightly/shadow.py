"""The shadow of a night: another version that scores the same documents, is compared, and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.data.readers import Documents
from pipelines.registry.versions import Registry
from pipelines.storage.shard_log import Attempt
from pipelines.workers.fault_isolation import MAX_CRASHES
from spin.activations.extract import Features
from spin.backbone.digest import cached_digest
from spin.backbone.hub import locate_model
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.heads.persistence import ClassifierMetadata
from spin.monitor.agreement import AgreementCounts, count_agreement
from spin.predictions import Predictions
from spin.settings import BackboneSettings, Settings
from spin.shared_pass import SharedPass

Read = tuple[Features, Features | None]
"""what the model reads of some documents, and what the shadow does where the two could together"""

_RAISES = 100
"""after which the rest of a shard counts as failed: a shadow that can do nothing must not hold up a night"""


@dataclass(frozen=True)
class ShadowSpec:
    """The version that is the shadow of a night."""

    version: str
    digest: str
    """of the backbone that it reads"""
    backbone: BackboneSettings | None
    """where that lies and how it is run, None where it is the model's own"""

    def settings(self, night: Settings) -> Settings:
        """Those of the night, with its own backbone."""
        return night if self.backbone is None else night.model_copy(update={"backbone": self.backbone})

    def facts(self) -> dict[str, Any]:
        """What tells a night with it from others."""
        return {"version": self.version, "backbone": self.digest}


def resolve_shadow(registry: Registry, given: str, version: str) -> str | None:
    """The version of an alias, of `models:/NAME@alias` or of `models:/NAME/N`; None for `version`, the night's own.

    A job that names the challenger every night goes on when that was promoted. Raises UserError for one that does not
    exist.
    """
    number = registry.resolve(given if given.startswith("models:/") else f"models:/{registry.name}@{given}")
    return None if number == version else number


def choose_shadow(version: str, folder: Path, model: ClassifierMetadata, settings: Settings) -> ShadowSpec:
    """The shadow whose artifact lies in `folder`, checked before any work; `model` is the metadata of the night's own.

    On another backbone than the model's it reads the one that its artifact names, without running code from there.
    Raises UserError where it cannot be loaded or answers in another form than the model.
    """
    try:
        spin = SpinClassifier.load(folder, choose=settings.choose, decision=settings.decision)
        if spin.label_space.multilabel != model.multilabel:
            forms = {True: "a list of classes", False: "one class"}
            mine, theirs = (forms[multilabel] for multilabel in (model.multilabel, spin.label_space.multilabel))
            raise UserError(f"it gives a document {theirs}, the model {mine}")
        digest, backbone = str(spin.backbone_digest), None
        if digest != model.backbone_digest:
            elsewhere = {"model": spin.settings.model, "revision": spin.settings.revision, "trust_remote_code": False}
            backbone = settings.backbone.model_copy(update=elsewhere)
            found = cached_digest(locate_model(backbone.model, backbone.revision))
            if found != digest:
                raise UserError(f"its backbone {backbone.model} has digest {found[:12]}, expected {digest[:12]}")
    except UserError as error:
        raise UserError(f"--shadow: version {version} cannot stand beside the model of the night: {error}") from None
    return ShadowSpec(version, digest, backbone)


class Shadow:
    """Reads what the model of a night reads, in one pass where it can, and is held against its labels."""

    def __init__(self, model: SpinClassifier, spin: SpinClassifier, version: str) -> None:
        self.pair, self.spin, self.version = SharedPass(model, spin), spin, version

    def read(self, texts: list[str], attempt: Attempt) -> Read:
        """What both read, or what the model reads without a shadow: where the two raise, and after many deaths.

        A process that was killed more often than is laid to the machine may have had too much in it with two.
        """
        if attempt.crashes < MAX_CRASHES:
            try:
                return self.pair.features(texts)
            except Exception:  # whose fault it is shows when the model is alone
                pass
        return self.pair.first.features(texts), None

    def compare(
        self,
        pieces: Sequence[tuple[list[int], Read]],
        documents: Documents,
        attempt: Attempt,
        model: Predictions,
        model_version: str,
    ) -> tuple[pa.Table, AgreementCounts]:
        """The rows of a shard on which the labels differ, and counts; `model` answers for all pieces, in order.

        A row that only the shadow cannot score is counted as failed.
        """
        found: list[tuple[list[int], Features]] = []
        for rows, (_, theirs) in pieces:
            if theirs is not None:
                found.append((rows, theirs))
            elif attempt.crashes < MAX_CRASHES:
                found += self._alone(rows, documents)
        features = Features.concatenate([part for _, part in found] or [self.spin.features([])])
        shadow = self.spin.predict_features(features)
        every = [row for rows, _ in pieces for row in rows]
        compared = [row for rows, _ in found for row in rows]
        place = {row: n for n, row in enumerate(every)}
        mine = [place[row] for row in compared]
        labels = [model.labels[n] for n in mine]
        odd = [n for n, label in enumerate(labels) if label != shadow.labels[n]]
        table = pa.table(
            [
                [documents.ids[compared[n]] for n in odd],
                [labels[n] for n in odd],
                [model.score[mine[n]] for n in odd],
                [shadow.labels[n] for n in odd],
                [shadow.score[n] for n in odd],
                [model_version] * len(odd),
                [self.version] * len(odd),
            ],
            schema=disagreements_schema(self.spin.label_space.multilabel),
        )
        failed = len(every) - len(compared)
        return table, count_agreement(labels, shadow.labels, self.spin.label_space.multilabel, failed=failed)

    def _alone(self, rows: list[int], documents: Documents) -> list[tuple[list[int], Features]]:
        """What the shadow reads by itself where something raises: pieces that do are halved, `_RAISES` times at most.

        Not as `isolate_failing_rows` does it, which goes on until the night knows the reason for every row.
        """
        waiting, found, raised = [rows], [], 0
        while waiting and raised < _RAISES:
            part = waiting.pop()
            try:
                found.append((part, self.spin.features([documents.texts[row] for row in part])))
            except Exception:
                raised += 1
                if len(part) > 1:
                    waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        return found


def disagreements_schema(multilabel: bool) -> pa.Schema:
    """The columns of disagreements; labels are lists of classes in a multi-label task, null where there is none."""
    label = pa.list_(pa.string()) if multilabel else pa.string()
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", label),
            ("score", pa.float32()),
            ("shadow_label", label),
            ("shadow_score", pa.float32()),
            ("model_version", pa.string()),
            ("shadow_version", pa.string()),
        ]
    )
