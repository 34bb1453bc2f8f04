"""Training of SPIN, with texts: one search, and early exits for several losses."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import spin.integrate.integrate
from benchmarks.method.contenders import FittedSpin, fit_spin, reader
from benchmarks.method.corpora import METRIC
from benchmarks.speed.role import SHIPPED
from benchmarks.speed.trial import Trial
from spin import TrainedClassifier
from spin.backbone.loading import load_backbone
from spin.fitted.fitted_classifier import TrainingResult
from spin.integrate.integrate import integrate
from spin.settings import BackboneSettings, CascadeSettings, SearchSettings


def train_classifiers(trial: Trial) -> Path:
    """The folder of the classifiers, each in a folder with the loss that its early exits may cost as its name.

    They are fitted with the default settings on the documents to learn from, and differ in their early exits alone.
    """

    def train(folder: Path) -> None:
        fitted, settings = fit_spin(trial.exam), BackboneSettings(model=trial.plan.model)
        settings = settings.model_copy(update={"max_tokens": trial.plan.max_tokens, "device": "cpu"})
        digest = load_backbone(settings).digest
        for loss in trial.losses:
            result = fitted.training_result if loss == SHIPPED else with_exits(trial, fitted, loss)
            spin = TrainedClassifier(settings, digest, trial.label_space, result, METRIC)
            spin.save(folder / str(loss))

    return trial.parts.get("-".join(["spin", *map(str, trial.losses)]), train)


def with_exits(trial: Trial, fitted: FittedSpin, loss: float) -> TrainingResult:
    """The same training with early exits that may cost another loss; the search is not repeated."""
    search = fitted.search
    with (
        patch.object(spin.integrate.integrate, "Search", lambda *_, **__: search),
        patch.object(search, "run", lambda: search.tried),
    ):
        return integrate(
            fitted.probes,
            [],
            reader(trial.exam),
            trial.exam.data,
            settings=SearchSettings(),
            compute=trial.exam.corpus.flops,
            cascade=CascadeSettings(max_loss=loss),
            words=fitted.words,
        )
