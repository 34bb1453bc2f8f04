"""The features of the documents of a shard for all classifiers of a pass; a fault that only some have is kept apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.data.spool import CheckedRows
from pipelines.storage.shard_log import Attempt
from pipelines.workers.fault_isolation import MAX_CRASHES, IsolatedRows, run_check
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT, is_fault_of_worker
from spin.activations.extract import Progress
from spin.activations.features import Features
from spin.classifier import TrainedClassifier
from spin.errors import NotFiniteError, SpinError
from spin.shared_pass import SharedPass

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PieceFeatures:
    """The features of some rows of a shard."""

    models: tuple[Features | str, ...]
    """by model; in place of those of a model that cannot compute the one row, the reason"""
    shadow: Features | None
    """of the shadow, None if it could not be computed together with the models"""


@dataclass(frozen=True)
class ModelRows:
    """The results of one model for the rows of a shard."""

    pieces: list[tuple[list[int], Features, Features | None]]
    """rows in order, with the features of the model, and of the shadow if it was computed with them"""
    failing: dict[int, str]
    """rows that the model cannot compute, each with the reason"""

    @classmethod
    def of(cls, isolated: IsolatedRows[PieceFeatures], place: int) -> ModelRows:
        """The results of the model at a place in the pieces."""
        found = cls([], dict(isolated.failing))
        for rows, piece in isolated.pieces:
            features = piece.models[place]
            if isinstance(features, str):
                found.failing.update(dict.fromkeys(rows, features))
            else:
                found.pieces.append((rows, features, piece.shadow))
        return found


class PassFeatures:
    """Computes the features of the classifiers of a pass, in one forward pass for all that read the same backbone.

    A shadow takes part where the values of the models are the same with it, bit for bit: in torch, without exits. One
    that cannot be prepared is left out: `shadow` is then None.
    """

    def __init__(self, models: Sequence[TrainedClassifier], shadow: TrainedClassifier | None) -> None:
        self.models, self.shadow = tuple(models), shadow
        self._passes: dict[tuple[TrainedClassifier, ...], SharedPass] = {}
        self._shadow_joins = False
        with self._leaving_shadow_out():
            self._join_shadow()
        if not self._shadow_joins:
            self._shared(self.models).prepare()
            with self._leaving_shadow_out():
                if self.shadow is not None:
                    self.shadow.prepare()

    def _join_shadow(self) -> None:
        """Load the backbone for models and shadow, and open the engine of all if the shadow may take part."""
        if self.shadow is not None:
            together = self._shared((*self.models, self.shadow))
            together.share_backbones()
            exits = any(spin.exits_early for spin in together.classifiers)
            if not exits and all(spin.backbone.engine == "torch" for spin in self.models):
                together.prepare()
                self._shadow_joins = True

    @contextmanager
    def _leaving_shadow_out(self) -> Iterator[None]:
        """Go on without the shadow where it cannot be prepared."""
        try:
            yield
        except Exception:
            _log.warning("the shadow could not be prepared; its documents count as failed", exc_info=True)
            self.shadow = None

    def check(self) -> None:
        """Run the backbone on a text that is known to be good, whether its words decide it or not, for all models.

        Raises what that raises.
        """
        self._shared(self.models).run_backbones([KNOWN_GOOD_TEXT])

    def compute(
        self, members: Sequence[int], documents: CheckedRows, attempt: Attempt, rows: list[int], *, with_shadow: bool
    ) -> PieceFeatures:
        """Compute the features of some rows for some of the models, given by number. Raises what a model raises.

        If a single row raises for several models, each is tried alone, so that it is a failing row of those alone that
        cannot compute it.
        """
        models, texts = tuple(self.models[member] for member in members), documents.texts_of(rows)
        shadow = self.shadow if with_shadow and attempt.crashes < MAX_CRASHES else None
        if shadow is not None and (found := self._with_shadow(models, shadow, texts, attempt.advance)) is not None:
            return found
        try:
            # guarded by test_the_rows_of_each_model_are_those_of_a_night_of_its_own; broken by:
            #   return PieceFeatures((self._shared(models).features(texts)[0],) * len(models), None)
            return PieceFeatures(tuple(self._shared(models).features(texts, progress=attempt.advance)), None)
        except Exception as error:
            # guarded by test_a_document_that_only_one_model_cannot_compute_is_a_dead_letter_of_that_one; broken by:
            #   if True:
            if len(rows) > 1 or len(models) == 1 or not _may_be_of_document(error):
                raise
            _log.debug("a row failed in a pass of several models; each is tried alone", exc_info=True)
        return PieceFeatures(_apart(models, texts, self.check), None)

    def _with_shadow(
        self, models: tuple[TrainedClassifier, ...], shadow: TrainedClassifier, texts: list[str], progress: Progress
    ) -> PieceFeatures | None:
        """The features of models and shadow; None if that fails, which must not cost the models anything."""
        try:
            if self._shadow_joins:
                *features, of_shadow = self._shared((*models, shadow)).features(texts, progress=progress)
            else:
                features = self._shared(models).features(texts, progress=progress)
                of_shadow = shadow.features(texts)
            return PieceFeatures(tuple(features), of_shadow)
        except Exception:
            _log.debug("the pass of models and shadow failed; the models run without it", exc_info=True)
            return None

    def _shared(self, classifiers: tuple[TrainedClassifier, ...]) -> SharedPass:
        if classifiers not in self._passes:
            self._passes[classifiers] = SharedPass(classifiers)
        return self._passes[classifiers]


def _apart(
    models: Sequence[TrainedClassifier], texts: Sequence[str], check: Callable[[], object]
) -> tuple[Features | str, ...]:
    """The features of one text for each model by itself, or the reason; raises the last error if all fail."""
    found: list[Features | str] = []
    last: Exception | None = None
    for model in models:
        try:
            found.append(model.features(texts))
        except Exception as error:
            if not _may_be_of_document(error):
                raise
            _log.debug("a row failed for one model", exc_info=True)
            found.append(f"computing it raised {type(error).__name__}")
            last = error
    if last is not None:
        if all(isinstance(each, str) for each in found):
            raise last
        run_check(check)
    return tuple(found)


def _may_be_of_document(error: Exception) -> bool:
    """Whether an error may be the fault of a document, as `isolate_failing_rows` sees it."""
    service = isinstance(error, SpinError) and not isinstance(error, NotFiniteError)
    return not service and not is_fault_of_worker(error)
