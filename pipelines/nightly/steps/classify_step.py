"""The classify step of a night: one shard of documents in, the predictions and dead letters of each model out."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.files.shards import Shard
from pipelines.data.spool import CheckedRows, read_rows
from pipelines.nightly.steps.classify_job import ENDINGS, PROFILE, SAMPLE, ClassifyJob, ShadowJob
from pipelines.nightly.steps.counts import ClassifyCounts, PassCounts
from pipelines.nightly.steps.night_profile import NightProfile
from pipelines.nightly.steps.pass_features import ModelRows, PassFeatures
from pipelines.nightly.steps.shadow import Shadow
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, DISAGREEMENTS, PREDICTIONS, file_rows
from pipelines.nightly.tables.prediction_columns import PredictedRows, fill_columns
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import to_json
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.workers import weights_cache
from pipelines.workers.artifact_copy import ArtifactCopy
from pipelines.workers.fault_isolation import isolate_failing_rows
from pipelines.workers.worker_faults import is_fault_of_worker
from spin.activations.features import Features
from spin.classifier import TrainedClassifier
from spin.errors import SpinError, describe_error
from spin.fitted import persistence
from spin.labels.label_space import Label, class_names
from spin.monitor.agreement import AgreementCounts, count_agreement
from spin.monitor.document_sample import DocumentSample, is_sampled
from spin.predictions import Predictions
from spin.settings import Settings

_log = logging.getLogger(__name__)
DeadRow = tuple[str, str]
"""the reason and a message for a row that cannot be classified"""


class ClassifyStep:
    """Reads a shard and returns the predictions and dead letters of each model, and the rows on which a shadow differs.

    The models read the documents in one forward pass.
    """

    def __init__(self, job: ClassifyJob, settings: Settings) -> None:
        self.job, self.keep_text = job, settings.classify.dead_letter_text
        self.sample_words = settings.classify.drift_words
        self.classifiers: list[TrainedClassifier] = []
        for number, model in enumerate(job.models):
            with self._naming(number):
                own = settings.model_copy(update={"decision": model.decision})
                self.classifiers.append(_load(model.artifact, own))
        self.shadowed = next((number for number, model in enumerate(job.models) if model.shadow is not None), None)
        self.shadow = None if self.shadowed is None else _load_shadow(job.models[self.shadowed].shadow, settings)
        # the backbone is loaded once, before the first shard
        self.features = self._prepare()
        if self.features.shadow is None:
            self.shadow = None

    def _prepare(self) -> PassFeatures:
        """Load the backbone. Where that fails for several models, the error names one that fails by itself."""
        try:
            return PassFeatures(self.classifiers, None if self.shadow is None else self.shadow.spin)
        except Exception:
            for number, spin in enumerate(self.classifiers):
                with self._naming(number):
                    spin.prepare()
            raise

    @contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Name a model of several in an error: what is wrong with it ends the pass, and the others go on without it."""
        try:
            yield
        except Exception as error:
            if len(self.job.models) == 1 or is_fault_of_worker(error):
                raise
            run = self.job.models[number].run
            kind, message = (
                (type(error), str(error)) if isinstance(error, SpinError) else (SpinError, describe_error(error))
            )
            raise kind(f"model {run.model}, version {run.model_version}: {message}") from error

    def check(self) -> None:
        """Run the backbone on a text that is known to be good. Raises what that raises."""
        self.features.check()

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[PassCounts]:
        documents = read_rows(shard, self.job.kept, self.job.forgotten)
        dead = {number: self._find_dead(number, shard, documents) for number in self.job.takers(shard)}
        results: dict[int, StepResult[ClassifyCounts]] = {}
        for members in _with_equal_rows(dead):
            valid = [row for row in range(len(documents)) if row not in dead[members[0]]]
            compute = partial(self.features.compute, members, documents, attempt, with_shadow=self.shadowed in members)
            isolated = isolate_failing_rows(valid, compute, attempt, self.check)
            for place, number in enumerate(members):
                with self._naming(number):
                    computed = ModelRows.of(isolated, place)
                    results[number] = self._result(number, shard, documents, dead[number], computed, attempt)
        return self.job.combine({number: results[number] for number in dead})

    def _result(
        self,
        number: int,
        shard: Shard,
        documents: CheckedRows,
        dead: dict[int, DeadRow],
        computed: ModelRows,
        attempt: Attempt,
    ) -> StepResult[ClassifyCounts]:
        """The files and counts of one model."""
        spin, run = self.classifiers[number], self.job.models[number].run
        # guarded by test_a_document_that_raises_is_the_only_dead_letter_of_its_shard
        dead |= {row: ("poison", message) for row, message in computed.failing.items()}
        rows = [row for piece, _, _ in computed.pieces for row in piece]
        features = Features.concatenate([part for _, part, _ in computed.pieces] or [spin.features([])])
        predictions = spin.predict_features(features)
        ids = [documents.ids[row] for row in rows]
        predicted = PredictedRows(ids, predictions, features, spin.label_space, run.model_version)
        counts = replace(
            _count(shard, documents, dead, predictions.labels),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            windows=0 if features.windows is None else int(features.windows.sum()),
            unread_tokens=0 if features.unread_tokens is None else int(features.unread_tokens.sum()),
            depths={str(depth): n for depth, n in sorted(Counter(predictions.exit_depth.tolist()).items())},
        )
        tables = {
            PREDICTIONS: _with_kept(fill_columns(predicted), documents, rows),
            DEAD_LETTERS: self._dead_letters(documents, dead),
        }
        if number == self.shadowed:
            differing, agreement = self._compare(computed, documents, attempt, predictions, run.model_version)
            tables |= {} if differing is None else {DISAGREEMENTS: differing}
            counts = replace(counts, shadow=agreement)
        profile = NightProfile.of(spin, predictions, features)
        files = {**self._to_files(number, tables), PROFILE: profile.to_bytes()}
        return StepResult(files | self._sample(number, documents, rows, features.values), counts)

    def _sample(
        self, number: int, documents: CheckedRows, rows: Sequence[int], values: NDArray[np.floating]
    ) -> dict[str, bytes]:
        """The file of a model with those of n rows that belong to its sample, given their values (n, p), if any do."""
        share = self.job.models[number].sampled
        ids = {at: documents.ids[row] or "" for at, row in enumerate(rows)} if share else {}
        chosen = [at for at, id in ids.items() if is_sampled(id, share)]
        if not chosen:
            return {}
        standardised = self.classifiers[number].fitted.standardizer.transform(values[chosen])
        texts = documents.texts_of([rows[at] for at in chosen]) if self.sample_words else []
        return {SAMPLE: DocumentSample.of_texts([ids[at] for at in chosen], standardised, texts).to_bytes()}

    def _compare(
        self,
        computed: ModelRows,
        documents: CheckedRows,
        attempt: Attempt,
        predictions: Predictions,
        model_version: str,
    ) -> tuple[pa.Table | None, AgreementCounts]:
        """The rows on which the shadow differs, and the counts; all have failed if the shadow cannot be used."""
        pieces = [(piece, of_shadow) for piece, _, of_shadow in computed.pieces]
        if self.shadow is not None:
            try:
                return self.shadow.compare(pieces, documents, attempt, predictions, model_version)
            except Exception:
                _log.warning("the shadow could not be compared; the documents of the shard count as failed for it")
                _log.debug("the shadow could not be compared", exc_info=True)
        failed = sum(len(piece) for piece, _ in pieces)
        multilabel = self.classifiers[self.shadowed or 0].label_space.multilabel
        return None, count_agreement([], [], multilabel, failed=failed)

    def _find_dead(self, number: int, shard: Shard, documents: CheckedRows) -> dict[int, DeadRow]:
        """The rows that a model need not read, since they cannot be classified or another one is in their place."""
        repeated = dict.fromkeys(
            self.job.models[number].duplicates.of(shard),
            ("repeated_id", "another row of this run with the id is predicted"),
        )
        return {**repeated, **documents.dead}

    def _dead_letters(self, documents: CheckedRows, dead: Mapping[int, DeadRow]) -> pa.Table:
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

    def _to_files(self, number: int, tables: Mapping[str, pa.Table]) -> dict[str, bytes]:
        """The files of a model by ending; tables without rows have none."""
        run = self.job.models[number].run
        by_run = {"date": run.date, "model": run.model, "run": run.name}
        filled = {table: rows for table, rows in tables.items() if len(rows)}
        return {
            ENDINGS[table]: to_parquet(file_rows(table, rows, **by_run, kept=self.job.kept))
            for table, rows in filled.items()
        }


def _with_equal_rows(dead: Mapping[int, Mapping[int, DeadRow]]) -> list[list[int]]:
    """The models, by number, in groups that have the same rows to classify: in all of a night but rare shards, one."""
    groups: dict[frozenset[int], list[int]] = {}
    for number, rows in dead.items():
        groups.setdefault(frozenset(rows), []).append(number)
    return list(groups.values())


def work_digest(shard: Shard) -> str:
    """Digest of the pieces of a shard."""
    return hashlib.sha256(json.dumps(to_json(shard), sort_keys=True).encode()).hexdigest()[:32]


def _load(artifact: ArtifactCopy, settings: Settings) -> TrainedClassifier:
    """The classifier of a run's copy of an artifact, whose digests are checked.

    Its backbone is copied to this node if it is not there yet, and loaded when it is first used.
    """
    with tempfile.TemporaryDirectory() as folder:
        artifact.fetch(Path(folder))
        digest = persistence.read_metadata(Path(folder)).backbone_digest
        backbone = weights_cache.receive(settings, digest)
        return TrainedClassifier.open(folder, settings, backbone=backbone)


def _load_shadow(job: ShadowJob | None, settings: Settings) -> Shadow | None:
    """The shadow of a job; None if it cannot be loaded, which must not cost the night anything."""
    assert job is not None
    try:
        return Shadow(_load(job.artifact, job.spec.settings(settings)), job.spec.version)
    except Exception:
        _log.warning("the shadow could not be loaded; its documents count as failed", exc_info=True)
        return None


def _with_kept(table: pa.Table, documents: CheckedRows, rows: Sequence[int]) -> pa.Table:
    """The rows with their kept columns."""
    for name in documents.kept.column_names:
        table = table.append_column(name, documents.kept[name].take(pa.array(rows, pa.int64())))
    return table


def _count(
    shard: Shard, documents: CheckedRows, dead: Mapping[int, DeadRow], labels: Sequence[Label | None]
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
