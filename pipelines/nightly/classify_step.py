"""The classify step of a night: one shard of documents in, its predictions and its dead letters out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.shards import Shard
from pipelines.data.spool import CheckedRows, read_rows
from pipelines.nightly.dedup import DuplicateRows
from pipelines.nightly.reason_columns import reason_columns
from pipelines.nightly.run_records import ClassifyCounts
from pipelines.nightly.shadow import FeaturePair, Shadow, ShadowSpec
from pipelines.nightly.tables.night_records import RUNS, RunRecord
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, DISAGREEMENTS, PREDICTIONS, file_rows
from pipelines.service_errors import BadFileError
from pipelines.storage.records import to_json
from pipelines.storage.shard_log import Attempt, LogLayout, StepResult
from pipelines.workers import weights_cache
from pipelines.workers.artifact_copy import ArtifactCopy
from pipelines.workers.fault_isolation import isolate_failing_rows
from spin.activations.extract import Features
from spin.classifier import SpinClassifier
from spin.heads import persistence
from spin.labels.label_space import Label, class_names
from spin.monitor.profile import Profile
from spin.predictions import Predictions
from spin.settings import Settings

PROFILE = "profile.safetensors"
"""ending of the file from which drift is measured"""
CALIBRATION = "calibration.json"
"""file of the texts from which int8 scales are computed, in the folder of the model"""
ENDINGS = {
    PREDICTIONS: "predictions.parquet",
    DEAD_LETTERS: "dead.parquet",
    DISAGREEMENTS: "disagreements.parquet",
}
"""ending of a shard's file by the table that it belongs to"""
_SOUND = "This is a short and simple text."
"""classified by every new worker, and before a document is blamed for an error"""


@dataclass(frozen=True)
class ClassifyJob:
    """What the workers of a run have in common."""

    run: RunRecord
    """the run"""
    model: ArtifactCopy
    """artifact of the model"""
    kept: pa.Schema
    """kept columns with their types"""
    duplicates: DuplicateRows
    """rows whose id another row has"""
    shadow: ShadowSpec | None = None
    """the shadow, None without one"""
    shadow_model: ArtifactCopy | None = None
    """artifact of the shadow, None without one"""


def data_layout(run: str) -> LogLayout:
    """Where the files of a run's shards are in an output: those of tables in the folders of the tables."""
    return LogLayout(f"{RUNS}/{run}", {ending: f"{table}/{run}" for table, ending in ENDINGS.items()})


class ClassifyStep:
    """Reads a shard and returns its predictions and dead letters, and the rows on which a shadow differs."""

    def __init__(self, job: ClassifyJob, settings: Settings) -> None:
        self.job, self.data, self.keep_text = job, settings.data, settings.classify.dead_letter_text
        self.spin = _load(job.model, settings)
        self.shadow = None
        if job.shadow is not None and job.shadow_model is not None:
            shadow = _load(job.shadow_model, job.shadow.settings(settings))
            self.shadow = Shadow(self.spin, shadow, job.shadow.version)
        self.spin.prepare()  # once, before the first shard

    def check(self) -> None:
        """Run the backbone on a text that is known to be good. Raises what that raises."""
        self.spin.read_backbone([_SOUND], self.spin.word_logits([_SOUND]))

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        try:
            documents = read_rows(shard, self.data, self.job.kept)
        except BadFileError as error:
            return StepResult({}, replace(_count(shard, CheckedRows(), {}, []), bad=error.reason))
        dead = self._find_dead(shard, documents)
        valid = [row for row in range(len(documents)) if row not in dead]

        def compute(rows: list[int]) -> FeaturePair:
            texts = documents.texts_of(rows)
            return (self.spin.features(texts), None) if self.shadow is None else self.shadow.features(texts, attempt)

        isolated = isolate_failing_rows(valid, compute, attempt, self.check)
        dead |= {row: ("poison", message) for row, message in isolated.failing.items()}
        rows = [row for row in valid if row not in isolated.failing]
        features = Features.concatenate([part for _, (part, _) in isolated.pieces] or [self.spin.features([])])
        predictions = self.spin.predict_features(features)
        counts = replace(
            _count(shard, documents, dead, predictions.labels),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            windows=0 if features.windows is None else int(features.windows.sum()),
            unread_tokens=0 if features.unread_tokens is None else int(features.unread_tokens.sum()),
            depths={str(depth): n for depth, n in sorted(Counter(predictions.exit_depth.tolist()).items())},
        )
        profile = Profile.from_outputs(
            self.spin.label_space, self.spin.fitted, predictions.logits, features.values, features
        )
        tables = {
            PREDICTIONS: self._predictions(documents, rows, predictions, features.unread_tokens),
            DEAD_LETTERS: self._dead_letters(documents, dead),
        }
        if self.shadow is not None:
            version = self.job.run.model_version
            tables[DISAGREEMENTS], agreement = self.shadow.compare(
                isolated.pieces, documents, attempt, predictions, version
            )
            counts = replace(counts, shadow=agreement)
        files = {ENDINGS[table]: self._to_parquet(table, content) for table, content in tables.items() if len(content)}
        return StepResult({**files, PROFILE: profile.to_bytes()}, counts)

    def _find_dead(self, shard: Shard, documents: CheckedRows) -> dict[int, tuple[str, str]]:
        """The reason and a message for each row that cannot be classified."""
        repeated = dict.fromkeys(
            self.job.duplicates.of(shard), ("repeated_id", "another row of this run with the id is predicted")
        )
        return {**repeated, **documents.dead}

    def _predictions(
        self,
        documents: CheckedRows,
        rows: Sequence[int],
        predictions: Predictions,
        unread_tokens: NDArray[np.int32] | None,
    ) -> pa.Table:
        """The predictions of n rows, in their order; `unread_tokens` (n,) where texts are read in windows."""
        space = self.spin.label_space
        kind, name = (pa.list_(pa.string()), "labels") if space.multilabel else (pa.string(), "label")
        columns = {
            "id": pa.array([documents.ids[row] for row in rows], pa.string()),
            name: pa.array(predictions.labels, kind),
            "score": pa.array(predictions.score, pa.float32()),
            "scores": _scores_by_class(predictions, self.spin.classes),
            "depth": pa.array(predictions.exit_depth, pa.int32()),
            "model_version": pa.repeat(self.job.run.model_version, len(rows)),
        }
        if unread_tokens is not None:
            columns["unread_tokens"] = pa.array(unread_tokens, pa.int32())
        columns |= reason_columns(predictions.reasons, self.spin.classes)
        return _with_kept(pa.table(columns), documents, rows)

    def _dead_letters(self, documents: CheckedRows, dead: Mapping[int, tuple[str, str]]) -> pa.Table:
        """One row per dead letter; `dead` holds the reason and the message by row."""
        rows = sorted(dead)
        columns = {
            "id": pa.array([documents.ids[row] for row in rows], pa.string()),
            "file": pa.array([documents.files[row] for row in rows], pa.string()),
            "first": pa.array([documents.firsts[row] for row in rows], pa.int64()),
            "row": pa.array([documents.rows[row] for row in rows], pa.int64()),
            "reason": pa.array([dead[row][0] for row in rows], pa.string()),
            "message": pa.array([dead[row][1] for row in rows], pa.string()),
            "text": pa.array([documents.texts[row] if self.keep_text else None for row in rows], pa.string()),
        }
        return _with_kept(pa.table(columns), documents, rows)

    def _to_parquet(self, table: str, content: pa.Table) -> bytes:
        """Rows as a file of a table."""
        run = self.job.run
        rows = file_rows(table, content, date=run.date, model=run.model, run=run.run, kept=self.job.kept)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        return sink.getvalue().to_pybytes()


def work_digest(shard: Shard) -> str:
    """Digest of the pieces of a shard."""
    return hashlib.sha256(json.dumps(to_json(shard), sort_keys=True).encode()).hexdigest()[:32]


def _load(artifact: ArtifactCopy, settings: Settings) -> SpinClassifier:
    """The classifier of a run's copy of an artifact, whose digests are checked.

    Its backbone is copied to this node if it is not there yet, and loaded when it is first used.
    """
    with tempfile.TemporaryDirectory() as folder:
        artifact.fetch(Path(folder))
        digest = persistence.read_metadata(Path(folder)).backbone_digest
        calibration = Path(folder) / CALIBRATION
        texts = json.loads(calibration.read_text(encoding="utf-8")) if calibration.exists() else ()
        backbone = weights_cache.receive(settings, digest)
        return SpinClassifier.open(folder, settings, backbone=backbone, calibration=texts)


def _scores_by_class(predictions: Predictions, classes: Sequence[str]) -> pa.Array:
    """The probabilities (n, K) as maps from class to probability."""
    probabilities = predictions.probabilities.astype(np.float32)
    count = len(probabilities)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(classes))
    return pa.MapArray.from_arrays(
        offsets, pa.array(list(classes) * count, pa.string()), pa.array(probabilities.ravel())
    )


def _with_kept(table: pa.Table, documents: CheckedRows, rows: Sequence[int]) -> pa.Table:
    """The rows with their kept columns."""
    for name in documents.kept.column_names:
        table = table.append_column(name, documents.kept[name].take(pa.array(rows, pa.int64())))
    return table


def _count(
    shard: Shard, documents: CheckedRows, dead: Mapping[int, tuple[str, str]], labels: Sequence[Label | None]
) -> ClassifyCounts:
    """The counts of a shard, without those of the backbone: tokens, windows, truncated texts and exit depths."""
    return ClassifyCounts(
        rows=len(documents),
        uri=documents.files[0] if documents.files else shard.pieces[0].uri,
        work=work_digest(shard),
        predicted=len(labels),
        dead=len(dead),
        reasons=dict(Counter(reason for reason, _ in dead.values())),
        labels=dict(Counter(name for label in labels for name in class_names(label))),
        abstained=sum(label is None for label in labels),
        unlabelled=sum(not class_names(label) for label in labels),
        depths={},
        tokens=0,
        truncated=0,
    )
