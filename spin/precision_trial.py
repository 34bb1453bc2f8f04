"""Whether a backbone is read in int8: what a plain classifier of the same texts loses by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.activations.extract import extract
from spin.arrays import Hashes
from spin.backbone.engine_choice import adds_int8_products
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

SMALLEST_CORPUS = 5_000
"""labelled documents from which int8 is tried; of fewer, those of the trial would be too few to tell, and it would take
a good part of the training: half a minute on two cores of an EPYC, with the trial of the engine"""
_FEWEST, _MOST = 1000, 2000
"""documents of a trial: a tenth of all, within these limits"""
_ALLOWED_LOSS = 0.002
"""of micro-F1"""
_STRENGTHS = np.geomspace(10, 1e4, 7)
"""penalties of the ridge regression, of which leave-one-out chooses"""
_FOLDS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the classes that they have."""

    texts: Sequence[str]
    classes: NDArray[np.bool_]
    """(n, K) whether a text has a class"""
    multilabel: bool
    """whether a text may have no class or several"""
    groups: Hashes
    """(n,) texts of one group are in one fold"""

    def draw(self, count: int) -> LabelledTexts:
        """About `count` of them, from the first to the last."""
        rows = range(0, len(self.texts), -(-len(self.texts) // count))
        return replace(self, texts=[self.texts[r] for r in rows], classes=self.classes[rows], groups=self.groups[rows])


@dataclass(frozen=True)
class PrecisionTrial:
    """The held-out micro-F1 (accuracy where each document has one class) of a ridge regression, by precision."""

    documents: int
    scores: Mapping[str, float]
    """from 0 to 1"""
    taken: bool
    """whether int8 loses little enough to be taken"""

    def __str__(self) -> str:
        figures = ", ".join(f"{precision} {100 * score:.1f}" for precision, score in self.scores.items())
        outcome = "taken" if self.taken else "not taken"
        return f"int8 is {outcome}: micro-F1 of a plain classifier on {self.documents:,} documents: {figures}"


def settle_int8(
    settings: BackboneSettings,
    backbone: Backbone,
    documents: int,
    measure: Callable[[], Int8Scales],
    read: Callable[[int], LabelledTexts],
) -> tuple[Int8Scales | None, PrecisionTrial | None]:
    """The scales by which the texts of a training are read in int8, None for another precision, and the trial if any.

    `backbone` is as the settings load it, `documents` are those that train or validate, `measure` returns scales of
    them, and `read` about as many of them as it is asked for.
    """
    if backbone.precision == "int8":
        return measure(), None
    count = _trial_size(settings, backbone, documents)
    if not count:
        return None, None
    scales = measure()
    trial = _try_int8(settings, backbone, scales, read(count))
    return (scales if trial is not None and trial.taken else None), trial


def _trial_size(settings: BackboneSettings, backbone: Backbone, documents: int) -> int:
    """How many of so many labelled documents decide by a trial whether the backbone is read in int8; 0: no trial.

    There is none unless `dtype` is auto. Nor is there one for decoders, which lose more than encoders, without
    OpenVINO, and on a processor without VNNI or AMX, where int8 is no faster.
    """
    wanted = settings.dtype == "auto" and backbone.engine == "openvino" and not backbone.causal
    if not wanted or documents < SMALLEST_CORPUS or not adds_int8_products():
        return 0
    return min(_MOST, max(_FEWEST, documents // 10))


def _try_int8(
    settings: BackboneSettings, backbone: Backbone, scales: Int8Scales, labelled: LabelledTexts
) -> PrecisionTrial | None:
    """Compare int8 with the precision of a backbone; None where int8 cannot be computed.

    A ridge regression on the mean residual stream at each third of the depth is fitted on what either precision
    computes. The difference is noisy: of 2,000 documents of which 3 % change their label it has a standard error of 0.4
    points, so that an int8 that loses nothing is refused in a third of the cases, and one that loses a point is taken
    in one of forty.
    """
    try:
        in_int8 = load_backbone(settings.model_copy(update={"dtype": "int8"}), scales=scales)
    except UserError as error:
        _log.warning("int8 is not tried: %s", error)
        return None
    columns = [FeatureColumn(Site(round(backbone.depth * part / 3), "resid"), "mean") for part in (1, 2, 3)]
    scores = {each.precision: _held_out_score(each, columns, labelled) for each in (backbone, in_int8)}
    before, after = scores.values()
    # two of 1,000 documents are 0.2 points, also as floating-point numbers
    return PrecisionTrial(len(labelled.texts), scores, before - after <= _ALLOWED_LOSS + 1e-9)


def _held_out_score(backbone: Backbone, columns: Sequence[FeatureColumn], labelled: LabelledTexts) -> float:
    """The micro-F1 of texts by a ridge regression on these columns that has not seen their groups."""
    # only a training needs scikit-learn; what it has found is read in a night, too
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import f1_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = extract(backbone, labelled.texts, columns).columns
    values = np.concatenate(list(features.values()), axis=1).astype(np.float64)
    model, wanted = make_pipeline(StandardScaler(), RidgeCV(_STRENGTHS)), labelled.classes.astype(np.float64)
    found = cross_val_predict(model, values, wanted, groups=labelled.groups, cv=GroupKFold(_FOLDS))
    given = found > 0.5 if labelled.multilabel else found == found.max(1, keepdims=True)
    return float(f1_score(labelled.classes, given, average="micro"))
