"""The step of a night: a shard of documents in, its predictions and its dead letters out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import readers
from pipelines.data.readers import Documents, Shard, is_unicode
from pipelines.nightly.dedup import duplicate_rows
from pipelines.nightly.run_records import ClassifyCounts
from pipelines.nightly.shadow import Read, Shadow, ShadowSpec
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
from spin.settings import Settings

DEAD_LETTERS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("first", pa.int64()),  # where the shard begins in its file: a row, in plain JSONL a byte
        ("row", pa.int64()),  # after that
        ("reason", pa.string()),
        ("message", pa.string()),
        ("text", pa.string()),  # null unless `classify.dead_letter_text` asks for it
    ]
)
PROFILE = "profile.safetensors"
"""ending of the file with what drift is measured on"""
CALIBRATION = "calibration.json"
"""texts by which int8 is scaled, beside the model of a run"""


def predictions_schema(multilabel: bool) -> pa.Schema:
    """The columns of predictions; the label is a list of classes in a multi-label task, null where there is none."""
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
    """Reads a shard and gives its predictions and its dead letters, and of a shadow where they differ from it.

    `keys` of `repeats` hold the rows whose id stood earlier; `bad` are the files whose ids could not be read, and why.
    The artifacts lie in the run's store under `model/` and `shadow/`.
    """

    def __init__(
        self,
        run: Store,
        version: str,
        settings: Settings,
        repeats: Store,
        keys: Sequence[str],
        bad: Mapping[str, str],
        shadow: ShadowSpec | None = None,
    ) -> None:
        self.spin = _load(run / "model", settings)
        self.shadow = None
        if shadow is not None:
            self.shadow = Shadow(self.spin, _load(run / "shadow", shadow.settings(settings)), shadow.version)
        _ = self.spin.engine  # opened once, before the first shard
        self.version, self.data, self.keep_text = version, settings.data, settings.classify.dead_letter_text
        self.repeats, self.repeat_keys, self.bad = repeats, keys, bad

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        try:
            if shard.uri in self.bad:
                raise BadFileError(self.bad[shard.uri])
            check_readable(shard.uri, attempt)
            documents = readers.read_shard(shard, self.data)
        except BadFileError as error:
            return StepResult({}, replace(_count(shard, 0, {}, []), bad=str(error)))
        dead = triage(documents, duplicate_rows(shard, self.repeats, self.repeat_keys))
        sound = [row for row in range(len(documents)) if row not in dead]

        def read(rows: list[int]) -> Read:
            texts = [documents.texts[row] for row in rows]
            return (self.spin.features(texts), None) if self.shadow is None else self.shadow.read(texts, attempt)

        isolated = isolate_failing_rows(sound, read, attempt)
        pieces, failing = isolated.pieces, isolated.failing
        dead |= {row: ("poison", message) for row, message in failing.items()}
        rows = [row for row in sound if row not in failing]
        features = Features.concatenate([part for _, (part, _) in pieces] or [self.spin.features([])])
        predictions = self.spin.predict_features(features)
        table = pa.table(
            [
                [documents.ids[row] for row in rows],
                predictions.labels,
                predictions.score,
                list(predictions.probabilities.astype(np.float32)),
                predictions.exit_depth,
                [self.version] * len(rows),
            ],
            schema=predictions_schema(self.spin.label_space.multilabel),
        )
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
        counts = replace(
            _count(shard, len(documents), dead, predictions.labels),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            depths={str(depth): n for depth, n in sorted(Counter(predictions.exit_depth.tolist()).items())},
        )
        profile = Profile.from_outputs(
            self.spin.label_space, self.spin.fitted, predictions.logits, features.values, features
        )
        files = {"predictions.parquet": _to_parquet(table), PROFILE: profile.to_bytes()}
        if letters:
            files["dead.parquet"] = _to_parquet(pa.Table.from_pylist(letters, schema=DEAD_LETTERS))
        if self.shadow is not None:
            differing, agreement = self.shadow.compare(pieces, documents, attempt, predictions, self.version)
            counts = replace(counts, shadow=agreement)
            if len(differing):
                files["disagreements.parquet"] = _to_parquet(differing)
        return StepResult(files, counts)


def _load(kept: Store, settings: Settings) -> SpinClassifier:
    """The classifier of an artifact in the store, on a backbone that is on this node and loaded at first use."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (persistence.CONFIG, persistence.TENSORS):
            (Path(folder) / name).write_bytes(kept.read(name) or b"")
        digest = persistence.read_metadata(Path(folder)).backbone_digest
        calibration = kept.read_json(CALIBRATION) or () if settings.backbone.dtype == "int8" else ()
        backbone = weights_cache.receive(settings, digest)
        return SpinClassifier.open(folder, settings, backbone=backbone, calibration=calibration)


def triage(documents: Documents, repeats: Iterable[int]) -> dict[int, tuple[str, str]]:
    """The rows that cannot be classified, each with a reason and what was found; no text of the document is in it."""
    repeated = set(repeats)
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


def _count(shard: Shard, rows: int, dead: dict[int, tuple[str, str]], chosen: Sequence[Label | None]) -> ClassifyCounts:
    """The counts of a shard, without what the backbone read."""
    return ClassifyCounts(
        rows=rows,
        uri=shard.uri,
        predicted=len(chosen),
        dead=len(dead),
        reasons=dict(Counter(reason for reason, _ in dead.values())),
        labels=dict(Counter(name for label in chosen for name in class_names(label))),
        abstained=sum(label is None for label in chosen),
        unlabelled=sum(not class_names(label) for label in chosen),
        depths={},
        tokens=0,
        truncated=0,
    )


def _unicode(text: Any) -> str | None:
    """The text with lone surrogates, which no Arrow string can hold, replaced; None for what is no text."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else None


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
