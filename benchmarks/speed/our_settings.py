"""The contenders of SPIN: one search, early exits for several losses, and several engines and precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import numpy as np

from benchmarks.method.contenders import FittedSpin, fit_spin, reader
from benchmarks.method.corpora import METRIC, Exam
from benchmarks.speed.choice import distinct
from benchmarks.speed.contender import SHIPPED, Answers, Classify, Contender, OurSetting, Precision
from benchmarks.speed.trial import Trial
from spin import TrainedClassifier
from spin.activations.engines.int8_rounding import measure_scales
from spin.activations.extract import extract
from spin.arrays import Floats
from spin.backbone.engine_choice import choose_engine
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import find_backbone, load_backbone
from spin.errors import UserError
from spin.fitted.fitted_classifier import TrainingResult
from spin.integrate.integrate import integrate
from spin.precision_trial import LabelledTexts, settle_int8
from spin.settings import BackboneSettings, CascadeSettings, Choice, SearchSettings
from spin.sites import Site

_ENGINES: tuple[tuple[str, Precision], ...] = (
    ("torch", "float32"), ("torch", "bfloat16"),
    ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"),
)  # fmt: skip
"""engine and precision of each row at full depth; the agreement of the others is measured against the first"""


class OurSettings:
    """The settings of SPIN that run on this machine, by what they are measured for."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        engines = [(e, p) for e, p in _ENGINES if _runs(trial, e, p)]
        self.full = [OurSetting(engine, precision) for engine, precision in engines]
        """at full depth, in every engine and precision"""
        self.shipped = OurSetting(*_settle(trial), max_loss=SHIPPED, default=True)
        self._int8 = (self.shipped.engine, "int8") in engines

    def fixed(self) -> list[OurSetting]:
        """The settings that are timed in any case: full depth, and of an encoder the defaults and rows with reasons."""
        in_16_bits = [OurSetting(engine, "bfloat16", max_loss=SHIPPED) for engine in ("torch", self.shipped.engine)]
        exits = [s for s in in_16_bits if s.full in self.full and s != replace(self.shipped, default=False)]
        reasons = [setting.with_reasons for setting in (self.shipped.full, self.shipped)]
        return self.full if self.trial.causal else [*self.full, self.shipped, *dict.fromkeys(exits), *reasons]

    def grid(self) -> list[OurSetting]:
        """Choices and losses in the engine and precision of the defaults.

        Where training gives the same classifier several times, the first of these settings stands for all.
        """
        default = replace(self.shipped, default=False)
        folder = train_classifiers(self.trial, in_int8=default.precision == "int8")
        settings = [
            replace(default, choose=choose, max_loss=loss)
            for choose in get_args(Choice)
            for loss in (None, *self.trial.losses)
        ]
        settings = [self.shipped if setting == default else setting for setting in settings]
        return distinct(settings, {setting: _fitted(folder, setting) for setting in settings})

    def in_int8(self, settings: Sequence[OurSetting]) -> list[OurSetting]:
        """The same settings in int8, where it runs on this machine; those that are in it are left out."""
        others = [setting for setting in settings if self._int8 and setting.precision != "int8"]
        return [replace(setting, precision="int8", default=False) for setting in others]

    def contender(self, setting: OurSetting) -> Contender:
        """The contender of a setting; SPIN is trained at first use."""
        return Contender(setting, lambda: load(self.trial, setting))


def _settle(trial: Trial) -> tuple[str, Precision]:
    """The engine and the precision in which a training with default settings reads the documents to learn from."""
    backbone = load_backbone(_settings(trial, "auto", "auto"))
    rows = trial.exam.data.rows

    def read(count: int) -> LabelledTexts:
        some = rows[:: -(-len(rows) // count)]
        classes, groups = trial.label_space.indicator(trial.y(some)), trial.exam.corpus.groups[some]
        return LabelledTexts(trial.texts(some), classes, trial.label_space.multilabel, groups)

    def measure() -> Int8Scales:
        return measure_scales(backbone, trial.train_texts)

    scales, tried = settle_int8(_settings(trial, "auto", "auto"), backbone, len(rows), measure, read)
    if tried is not None:
        print(tried, flush=True)
    precision: Precision = "bfloat16" if backbone.precision == "bfloat16" else "float32"
    return backbone.engine, precision if scales is None else "int8"


def train_classifiers(trial: Trial, *, in_int8: bool = False) -> Path:
    """The folder of the classifiers, each in a folder with the loss that its early exits may cost as its name.

    They are fitted with the default settings on the documents to learn from, and differ in their early exits alone.
    `in_int8` they are fitted on what int8 computes.
    """

    def train(folder: Path) -> None:
        exam, scales = _read_in_int8(trial) if in_int8 else (trial.exam, None)
        fitted = fit_spin(exam)
        settings = _settings(trial, "auto", "int8" if in_int8 else "auto")
        digest = find_backbone(settings)[1]
        for loss in trial.losses:
            result = fitted.training_result if loss == SHIPPED else with_exits(exam, fitted, loss)
            spin = TrainedClassifier(settings, digest, trial.label_space, result, METRIC, scales=scales)
            spin.save(folder / str(loss))

    return trial.parts.get("-".join(["spin", *(["int8"] if in_int8 else []), *map(str, trial.losses)]), train)


def _read_in_int8(trial: Trial) -> tuple[Exam, Int8Scales]:
    """What the contenders learn from, read again in int8, and the scales that it shows."""
    corpus, rows = trial.exam.corpus, trial.exam.data.rows
    backbone = load_backbone(_settings(trial, "openvino", "int8"))
    backbone.scales = measure_scales(backbone, trial.train_texts)

    def read(folder: Path) -> None:
        files = {  # rows that are not read take no room on the disk
            column: np.lib.format.open_memmap(folder / f"{column}.npy", "w+", values.dtype, values.shape)
            for column, values in corpus.features.items()
        }
        for part in np.array_split(rows, -(-len(rows) // 1024)):
            values = extract(backbone, trial.texts(part), list(corpus.features)).columns
            for column, file in files.items():
                file[part] = values[column]

    folder = trial.parts.get("int8", read)
    features = {column: np.asarray(np.load(folder / f"{column}.npy", mmap_mode="r")) for column in corpus.features}
    return replace(trial.exam, corpus=replace(corpus, features=features)), backbone.scales


def with_exits(exam: Exam, fitted: FittedSpin, loss: float) -> TrainingResult:
    """The same training with early exits that may cost another loss; the search is not repeated."""
    search = fitted.search
    with (
        patch("spin.integrate.integrate.Search", lambda *_, **__: search),
        patch.object(search, "run", lambda: search.tried),
    ):
        return integrate(
            fitted.probes,
            [],
            reader(exam),
            exam.data,
            settings=SearchSettings(),
            compute=exam.corpus.flops,
            cascade=CascadeSettings(max_loss=loss),
            words=fitted.words,
        )


def load(trial: Trial, setting: OurSetting) -> Classify:
    """Load the classifier of a setting; the token budget of the settings determines its batches."""
    folder = train_classifiers(trial, in_int8=setting.precision == "int8")
    spin = TrainedClassifier.load(
        _artifact(folder, setting),
        backbone=_settings(trial, setting.engine, setting.precision),
        choose=setting.choose,
        early=setting.max_loss is not None,
        reasons=setting.reasons,
    )
    return classify_with(spin, trial.exam.corpus.flops)


def classify_with(spin: TrainedClassifier, flops: Mapping[Site, float]) -> Classify:
    """How a fitted classifier answers; `flops` are the shares of the backbone's FLOPs that reading a site takes."""
    spin.prepare()

    def classify(texts: Sequence[str], _: int) -> Answers:
        predictions = spin.predict_all(texts)
        classes = spin.label_space.index([str(label) for label in predictions.labels])
        return Answers(classes, _compute(flops, spin, predictions.exit_depth))

    return classify


def _compute(flops: Mapping[Site, float], spin: TrainedClassifier, depth: np.ndarray) -> Floats:
    """(n,) the share of the backbone's FLOPs that documents took which ran through `depth` (n,) blocks."""
    shares = {d: 0.0 if d <= 0 else flops[Site(d, "resid")] for d in np.unique(depth).tolist()}
    shares[spin.depth] = spin.fitted.summary.compute
    return np.array([shares[d] for d in depth.tolist()])


def _fitted(folder: Path, setting: OurSetting) -> object:
    """What tells one classifier from another: figures of the search, calibration, thresholds and exits."""
    spin = TrainedClassifier.load(_artifact(folder, setting), choose=setting.choose)
    exits = () if setting.max_loss is None else spin.fitted.summary.exits
    return spin.fitted.summary.model_copy(update={"exits": exits})


def _artifact(folder: Path, setting: OurSetting) -> Path:
    return folder / str(SHIPPED if setting.max_loss is None else setting.max_loss)


def _runs(trial: Trial, engine: str, precision: Precision) -> bool:
    """Whether an engine passes its trial with the backbone on this machine; the table leaves out one that does not."""
    settings = _settings(trial, engine, precision)
    try:
        choose_engine(settings, "cpu", *find_backbone(settings))
    except UserError as error:
        print(f"SPIN, {engine} in {precision} is left out: {error}", flush=True)
        return False
    return True


def _settings(trial: Trial, engine: str, precision: str) -> BackboneSettings:
    return BackboneSettings.model_validate(
        {
            "model": trial.plan.model, "engine": engine, "dtype": precision, "device": "cpu",
            "max_tokens": trial.plan.max_tokens,
        }
    )  # fmt: skip
