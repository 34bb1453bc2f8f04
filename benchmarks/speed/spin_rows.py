"""The contenders of SPIN: one classifier, trained once, in every engine and precision, with and without the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.rounds import Answer, Contender, Precision
from benchmarks.speed.trial import Trial
from benchmarks.speed.verdicts import SHIPPED
from spin import SpinClassifier
from spin.activations.engine import CALIBRATION_TEXTS
from spin.activations.extract import extract
from spin.backbone.engine_choice import choose_engine
from spin.backbone.flops import relative_flops
from spin.backbone.loading import find_backbone, load_backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.fit import fit_classifiers
from spin.heads.selection import Selection
from spin.integrate.integrate import integrate
from spin.labels.splits import assign_split
from spin.labels.training_data import TrainingData
from spin.settings import BackboneSettings, CascadeSettings, SearchSettings

_ENGINES: tuple[tuple[str, Precision], ...] = (
    ("torch", "float32"), ("torch", "bfloat16"),
    ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"),
)  # fmt: skip
"""engine and precision of each row at full depth; the agreement of the others is measured against the first"""
_FAST: tuple[Precision, ...] = ("bfloat16", "int8")
_LOSSES = (SHIPPED, 0.005, 0.01, 0.02)
"""losses of macro-F1 that the cascade may cost"""
_METRIC = "macro_f1"


def spin_contenders(trial: Trial, folder: Path) -> list[Contender]:
    """One classifier in every engine and precision that runs here; it is trained at first use and saved in `folder`."""
    engines = [(e, p) for e, p in _ENGINES if not (trial.causal and p == "int8") and _runs(trial, e, p)]
    rows = [contender(trial, folder, engine, precision) for engine, precision in engines]
    if trial.causal:
        return rows
    rows += [
        contender(trial, folder, "openvino", p, loss) for p in _FAST if ("openvino", p) in engines for loss in _LOSSES
    ]
    return [*rows, contender(trial, folder, "torch", "bfloat16", SHIPPED)]


def _runs(trial: Trial, engine: str, precision: Precision) -> bool:
    """Whether an engine passes its trial with the backbone on this machine; the table leaves out one that does not."""
    settings = _settings(trial, engine, precision)
    try:
        choose_engine(settings, "cpu", *find_backbone(settings))
    except UserError as error:
        print(f"SPIN, {engine} in {precision} is left out: {error}", flush=True)
        return False
    return True


def contender(
    trial: Trial, folder: Path, engine: str, precision: Precision, max_loss: float | None = None
) -> Contender:
    """The classifier in one engine and precision; the token budget of the settings determines its batches."""
    share = 1.0

    def load() -> Answer:
        if not folder.exists():
            train(trial, folder)
        artifact = folder / str(SHIPPED if max_loss is None else max_loss)
        spin = SpinClassifier.load(
            artifact,
            backbone=_settings(trial, engine, precision),
            early=max_loss is not None,
            calibration=trial.train[0][:CALIBRATION_TEXTS],
        )
        compute = spin.fitted.summary.compute
        to_trial = np.array([trial.label_space.classes.index(name) for name in spin.classes])
        _ = spin.engine

        def answer(texts: Sequence[str], _batch: int) -> NDArray[np.integer]:
            nonlocal share
            features = spin.features(texts)
            mean_depth = spin.depth if features.depth is None else np.average(features.depth, weights=features.n_tokens)
            share = compute * float(mean_depth) / spin.depth
            logits = spin.fitted.predict_logits(features.values, features.depth)
            classes: NDArray[np.integer] = to_trial[logits.argmax(1)]
            return classes

        return answer

    name = f"SPIN, {engine}"
    return Contender(name, precision, load, spin=True, max_loss=max_loss, compute=lambda: share)


def train(trial: Trial, folder: Path) -> None:
    """Fit on the training documents, once per loss of the cascade: the classifiers differ only in their exits."""
    texts, labels = trial.train
    backbone = load_backbone(_settings(trial, "openvino", "float32"))
    columns = feature_columns(backbone, trial.sites, None)
    features, flops = extract(backbone, texts, columns).columns, relative_flops(backbone)
    splits = [assign_split(str(row), 0, 0.15, 0.0) for row in range(len(texts))]
    data = TrainingData.from_splits(trial.label_space.index(labels), splits, trial.label_space, metric=_METRIC)
    first, *others = (CascadeSettings(max_loss=loss) for loss in (_LOSSES if not trial.causal else (SHIPPED,)))
    probes, ridge, training_result = fit_classifiers(features, data, compute=flops, cascade=first)

    def read(selection: Selection, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        return [np.concatenate([features[c][np.ix_(rows, n)] for c, n in selection.neurons.items()], axis=1)]

    results = {first: training_result}
    for cascade in others:
        settings = SearchSettings()
        results[cascade] = integrate(probes, ridge, read, data, settings=settings, cascade=cascade, compute=flops)
    for cascade, training_result in results.items():
        local = _settings(trial, "auto", "float32")
        spin = SpinClassifier.assemble(local, backbone.digest, trial.label_space, training_result, _METRIC)
        spin.save(folder / str(cascade.max_loss))


def _settings(trial: Trial, engine: str, precision: Precision) -> BackboneSettings:
    return BackboneSettings.model_validate(
        {"model": trial.plan.model, "engine": engine, "dtype": precision, "max_tokens": trial.plan.max_tokens}
    )
