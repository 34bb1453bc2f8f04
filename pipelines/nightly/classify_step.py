"""The classify step of a night: one shard of documents in, its predictions and its dead letters out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import readers
from pipelines.data.readers import Documents
from pipelines.data.shards import Shard
from pipelines.data.text_values import is_unicode
from pipelines.nightly.dedup import duplicate_rows
from pipelines.nightly.run_records import ClassifyCounts
from pipelines.nightly.shadow import FeaturePair, Shadow, ShadowSpec
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.workers import weights_cache
from pipelines.workers.fault_isolation import check_readable, isolate_failing_rows
from spin.activations.extract import Features
from spin.classifier import SpinClassifier
from spin.heads import persistence
from spin.labels.label_space import Label, class_names
from spin.monitor.profile import Profile
from spin.predictions import Predictions
from spin.settings import Settings

DEAD_LETTERS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("first", pa.int64()),  # start of the shard in its file: a row, in plain JSONL a byte
        ("row", pa.int64()),  # row within the shard
        ("reason", pa.string()),
        ("message", pa.string()),
        ("text", pa.string()),  # null unless `classify.dead_letter_text` is true
    ]
)
PROFILE = "profile.safetensors"
"""ending of the file from which drift is measured"""
CALIBRATION = "calibration.json"
"""file of the texts from which int8 scales are computed, in the folder of the model"""


def predictions_schema(multilabel: bool) -> pa.Schema:
    """Return the columns of predictions; a label is a list of classes in a multi-label task, null without a label."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.list_(pa.string()) if multilabel else pa.string()),
            ("score", pa.float32()),
            ("scores", pa.list_(pa.float32())),
            ("depth", pa.int32()),
            ("model_version", pa.string()),
        ]
    )


class ClassifyStep:
    """Reads a shard and returns its predictions and dead letters, and the rows on which a shadow differs.

    `duplicate_keys` are the files in `duplicates` that list the rows with duplicate ids; `unreadable` holds the reason
    for each file whose ids could not be read. The artifacts are in the store of the run under `model/` and `shadow/`.
    """

    def __init__(
        self,
        run: Store,
        version: str,
        settings: Settings,
        duplicates: Store,
        duplicate_keys: Sequence[str],
        unreadable: Mapping[str, str],
        shadow: ShadowSpec | None = None,
    ) -> None:
        self.spin = _load(run / "model", settings)
        self.shadow = None
        if shadow is not None:
            self.shadow = Shadow(self.spin, _load(run / "shadow", shadow.settings(settings)), shadow.version)
        _ = self.spin.engine  # opened once, before the first shard
        self.version, self.data, self.keep_text = version, settings.data, settings.classify.dead_letter_text
        self.duplicates, self.duplicate_keys, self.unreadable = duplicates, duplicate_keys, unreadable

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        try:
            documents = self._read(shard, attempt)
        except BadFileError as error:
            return StepResult({}, replace(_count(shard, 0, {}, []), bad=str(error)))
        dead = triage(documents, duplicate_rows(shard, self.duplicates, self.duplicate_keys))
        valid = [row for row in range(len(documents)) if row not in dead]

        def compute(rows: list[int]) -> FeaturePair:
            texts = [documents.texts[row] for row in rows]
            return (self.spin.features(texts), None) if self.shadow is None else self.shadow.features(texts, attempt)

        isolated = isolate_failing_rows(valid, compute, attempt)
        pieces, failing = isolated.pieces, isolated.failing
        dead |= {row: ("poison", message) for row, message in failing.items()}
        rows = [row for row in valid if row not in failing]
        features = Features.concatenate([part for _, (part, _) in pieces] or [self.spin.features([])])
        predictions = self.spin.predict_features(features)
        counts = replace(
            _count(shard, len(documents), dead, predictions.labels),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            depths={str(depth): n for depth, n in sorted(Counter(predictions.exit_depth.tolist()).items())},
        )
        profile = Profile.from_outputs(
            self.spin.label_space, self.spin.fitted, predictions.logits, features.values, features
        )
        table = self._predictions_table([documents.ids[row] for row in rows], predictions)
        files = {"predictions.parquet": _to_parquet(table), PROFILE: profile.to_bytes()}
        if dead:
            files["dead.parquet"] = _to_parquet(self._dead_letters_table(shard, documents, dead))
        if self.shadow is not None:
            differing, agreement = self.shadow.compare(pieces, documents, attempt, predictions, self.version)
            counts = replace(counts, shadow=agreement)
            if len(differing):
                files["disagreements.parquet"] = _to_parquet(differing)
        return StepResult(files, counts)

    def _read(self, shard: Shard, attempt: Attempt) -> Documents:
        """Return the documents of a shard. Raises BadFileError if its file cannot be read."""
        if shard.uri in self.unreadable:
            raise BadFileError(self.unreadable[shard.uri])
        check_readable(shard.uri, attempt)
        return readers.read_shard(shard, self.data)

    def _predictions_table(self, ids: Sequence[str | None], predictions: Predictions) -> pa.Table:
        """Return the predictions of n documents, in the order of their ids (n,)."""
        return pa.table(
            [
                ids,
                predictions.labels,
                predictions.score,
                list(predictions.probabilities.astype(np.float32)),
                predictions.exit_depth,
                [self.version] * len(ids),
            ],
            schema=predictions_schema(self.spin.label_space.multilabel),
        )

    def _dead_letters_table(self, shard: Shard, documents: Documents, dead: Mapping[int, tuple[str, str]]) -> pa.Table:
        """Return one row per dead letter; `dead` holds the reason and the message by row."""
        letters = [
            {
                "id": _unicode(documents.ids[row]),
                "file": shard.uri,
                "first": shard.start,
                "row": row,
                "reason": reason,
                "message": message,
                "text": _unicode(documents.texts[row]) if self.keep_text else None,
            }
            for row, (reason, message) in sorted(dead.items())
        ]
        return pa.Table.from_pylist(letters, schema=DEAD_LETTERS)


def _load(artifact: Store, settings: Settings) -> SpinClassifier:
    """Return the classifier of an artifact in the store.

    Its backbone is copied to this node if it is not there yet, and loaded when it is first used.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in (persistence.CONFIG, persistence.TENSORS):
            (Path(folder) / name).write_bytes(artifact.read(name) or b"")
        digest = persistence.read_metadata(Path(folder)).backbone_digest
        calibration = artifact.read_json(CALIBRATION) or () if settings.backbone.dtype == "int8" else ()
        backbone = weights_cache.receive(settings, digest)
        return SpinClassifier.open(folder, settings, backbone=backbone, calibration=calibration)


def triage(documents: Documents, duplicates: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return the reason and a message for each row that cannot be classified; no message contains a document's text.

    `duplicates` are the rows whose id occurs earlier in the plan.
    """
    repeated = set(duplicates)
    dead: dict[int, tuple[str, str]] = {}
    for row, (id, text) in enumerate(zip(documents.ids, documents.texts, strict=True)):
        if row in documents.malformed:
            dead[row] = "malformed", documents.malformed[row]
        elif id is None:
            dead[row] = "null_id", "the id is null or empty"
        elif not is_unicode(id):
            dead[row] = "bad_id", "the id holds lone surrogates, expected Unicode"
        elif row in repeated:
            dead[row] = "repeated_id", "the id was seen before in this run"
        elif text is None:
            dead[row] = "null_text", "the text is null"
        elif not isinstance(text, str):
            dead[row] = "not_text", f"the text is {type(text).__name__}, expected a string"
        elif not text.strip():
            dead[row] = "empty_text", "the text is empty"
        elif not is_unicode(text):
            dead[row] = "not_text", "the text holds lone surrogates, expected Unicode"
    return dead


def _count(shard: Shard, rows: int, dead: dict[int, tuple[str, str]], labels: Sequence[Label | None]) -> ClassifyCounts:
    """Return the counts of a shard, without those of the backbone: tokens, truncated texts and exit depths."""
    return ClassifyCounts(
        rows=rows,
        uri=shard.uri,
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


def _unicode(text: object) -> str | None:
    """Return a text with lone surrogates replaced, since an Arrow string cannot hold them; None if it is no text."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else None


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
