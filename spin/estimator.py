"""`SpinClassifier`, the scikit-learn estimator: fit, predict, explain, save and load with the labels' own type."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from spin.activations.engines.int8_rounding import measure_scales
from spin.activations.extract import extract
from spin.arrays import Floats
from spin.backbone.flops import relative_flops
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import announce_backbone, load_backbone
from spin.backbone.model import Backbone
from spin.classifier import TrainedClassifier, checked_texts, feature_columns, load_scales
from spin.errors import UserError
from spin.fit_progress import StartStep, show_steps, start_silently
from spin.fitted.abstention import refuse_promise
from spin.fitted.decision import Decision
from spin.labels.label_space import LabelSpace, divide_rare_classes
from spin.labels.label_types import LabelValue, name_labels
from spin.labels.split_groups import hash_text
from spin.labels.splits import assign_split
from spin.labels.training_data import TrainingData
from spin.pages.explanation import Explanation
from spin.precision_trial import LabelledTexts, settle_int8
from spin.settings import (
    BackboneSettings,
    CascadeSettings,
    Choice,
    ClassifierSettings,
    DecisionSettings,
    Metric,
    ProbeSettings,
    SearchSettings,
    parse_section,
)

_log = logging.getLogger(__name__)


class NotFittedClassifierError(UserError, NotFittedError):
    """A classifier that is used before `fit`."""


class _Parameters(ClassifierSettings):
    """The parameters of `SpinClassifier`, validated."""

    early: bool = False


class SpinClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier that reads the salient inner neurons of a frozen language model, and the words of a text.

    >>> spin = SpinClassifier("sentence-transformers/all-MiniLM-L6-v2").fit(texts, labels)  # doctest: +SKIP
    >>> spin.predict(["a fine film"])  # doctest: +SKIP

    A scikit-learn estimator whose samples are texts. `backbone` is what `backbone.model` takes in a settings file, or
    all settings of a backbone. This and the other settings may be dictionaries, such as `search={"words": "off"}`.
    Training returns three classifiers, and `choose` names the one that is used: `accuracy`, `balanced` or `cheapest`.
    A threshold in `decision` replaces the one that training chose for its class. `cascade` says how much of
    the metric the early exits that training offers may cost; with `early`, documents stop at these exits. `choose`,
    `decision` and `early` also take effect when they are changed after `fit`, the other parameters at the next `fit`.
    Raises UserError for a parameter that is not understood.
    """

    _trained: TrainedClassifier

    def __init__(
        self,
        backbone: str | BackboneSettings | dict[str, Any],
        *,
        sites: Sequence[str] = ("resid", "ffn"),
        poolings: Sequence[str] | None = None,
        metric: Metric = "macro_f1",
        seed: int = 0,
        probe: ProbeSettings | dict[str, Any] | None = None,
        search: SearchSettings | dict[str, Any] | None = None,
        cascade: CascadeSettings | dict[str, Any] | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | dict[str, Any] | None = None,
        early: bool = False,
    ) -> None:
        self.backbone, self.sites, self.poolings, self.metric, self.seed = backbone, sites, poolings, metric, seed
        self.probe, self.search, self.cascade = probe, search, cascade
        self.choose, self.decision, self.early = choose, decision, early
        refuse_promise(self._validate().decision, "SpinClassifier.load")

    def _validate(self) -> _Parameters:
        """The parameters as settings, which the estimator itself keeps as they were given."""
        given = self.get_params(deep=False)
        if isinstance(self.backbone, str):
            given["backbone"] = {"model": self.backbone}
        return parse_section(_Parameters, given, "SpinClassifier")

    def fit(
        self, X: Iterable[str], y: Iterable[Any], *, valid_fraction: float = 0.15, progress: bool = False
    ) -> SpinClassifier:
        """Fit on n texts and their labels: one class each, or in a multi-label task a list of classes each.

        A hash of a text decides whether it trains or validates the choices (penalty, eta, depth and head); of a rare
        class that would be on one side alone, some texts change sides. Below 5,000 texts cross-validation makes the
        choices, and of more than `search.documents` texts a sample. Near-identical texts stay on the same side.
        `progress` shows a bar per step on standard error. Raises UserError for texts that are not text, and for labels
        that are missing or of several types. Raises it too for a single class, or a class with too few texts that
        differ.
        """
        with show_steps() if progress else nullcontext(start_silently) as start:
            return self._fit(X, y, valid_fraction, start)

    def _fit(self, X: Iterable[str], y: Iterable[Any], valid_fraction: float, start: StartStep) -> SpinClassifier:
        # these bring Numba, which predictions do not need
        from spin.audit.selection_attack import prepare_attack
        from spin.fit import fit_classifiers

        parameters, texts = self._validate(), checked_texts(X)
        refuse_promise(parameters.decision, "SpinClassifier.load")
        labels, label_type = name_labels(y)
        if len(texts) != len(labels):
            raise UserError(f"fit: found {len(texts)} texts and {len(labels)} labels; expected as many of both")
        groups = [hash_text(text) for text in texts]
        hashed = [assign_split(group, parameters.seed, valid_fraction, 0.0) for group in groups]
        splits = divide_rare_classes(labels, hashed, groups)
        label_space = LabelSpace.of(labels, splits, groups, label_type)
        Decision.of(label_space, parameters.decision)
        start("backbone", 1)
        hashes, y = np.array(groups, np.uint64), label_space.index(labels)
        labelled = LabelledTexts(texts, label_space.indicator(y), label_space.multilabel, hashes)
        settings, backbone = _load_settled(parameters.backbone, labelled)
        announce_backbone(settings, backbone)
        columns = feature_columns(backbone, parameters.sites, parameters.poolings)
        features = extract(backbone, texts, columns, progress=start("documents", len(texts))).columns
        data = TrainingData.from_splits(
            y,
            splits,
            label_space,
            groups=hashes,
            metric=parameters.metric,
            class_weights=parameters.probe.class_weights,
            seed=parameters.seed,
            device=backbone.device.type,
            documents=parameters.search.documents,
        )
        *_, training_result = fit_classifiers(
            features,
            data,
            compute=relative_flops(backbone),
            probe=parameters.probe,
            search=parameters.search,
            cascade=parameters.cascade,
            decision=parameters.decision,
            texts=texts,
            attack=prepare_attack(parameters.search, lambda rows: [texts[row] for row in rows.tolist()], data),
            start=start,
        )
        self._trained = TrainedClassifier(
            settings,
            backbone.digest,
            label_space,
            training_result,
            parameters.metric,
            backbone=backbone,
            choose=parameters.choose,
            decision=parameters.decision,
            early=parameters.early,
            scales=backbone.scales,
        )
        return self

    @property
    def trained_(self) -> TrainedClassifier:
        """The classifier that predicts, which has the training's result and names classes by strings.

        It is the one that `choose` names now, with the present `decision` and `early`, for which `max_error` of a
        loaded classifier is proven anew. Raises NotFittedClassifierError before `fit`, and UserError for a `max_error`
        that is not proven.
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedClassifierError("the classifier is not fitted; call fit(texts, labels) or load a folder")
        trained, parameters = self._trained, self._validate()
        choose, decision, early = parameters.choose, parameters.decision, parameters.early
        if (trained.choose, trained.requested, trained.early) != (choose, decision, early):
            self._trained = trained = trained.choosing(choose, decision=decision, early=early)
        return trained

    @property
    def classes_(self) -> NDArray[Any]:
        """(K,) the classes in the labels' own type, sorted, in the order of logits and probabilities."""
        label_space = self.trained_.label_space
        return np.array([label_space.value(name) for name in label_space.classes])

    def predict_logits(self, X: Iterable[str]) -> Floats:
        """(n, K) calibrated logits, classes in the order of `classes_`."""
        return self.trained_.predict_logits(X)

    def predict_proba(self, X: Iterable[str]) -> Floats:
        """(n, K) calibrated probabilities: each row sums to 1, or in a multi-label task each class is independent."""
        return self.trained_.predict_proba(X)

    def predict(self, X: Iterable[str]) -> NDArray[Any] | list[list[LabelValue] | None]:
        """(n,) labels in their own type, by the thresholds of `decision` and those that training chose.

        Where `decision` abstains from some texts, the array is one of objects, None among them. In a multi-label task
        a list of lists.
        """
        trained = self.trained_
        value, labels = trained.label_space.value, trained.predict(X)
        if trained.label_space.multilabel:
            return [None if label is None else [value(name) for name in label] for label in labels]
        values = [None if label is None else value(str(label)) for label in labels]
        return np.array(values, object if None in values else self.classes_.dtype)

    def score(self, X: Iterable[str], y: Iterable[Any], sample_weight: Sequence[float] | None = None) -> float:
        """The share of texts whose label, or list of labels, is right; a text without a label counts as wrong."""
        trained, (labels, label_type) = self.trained_, name_labels(y)
        expected, predicted = trained.label_space.label_type, trained.predict(X)
        if labels and label_type != expected:
            raise UserError(f"score: found labels of type {label_type}; the classifier was fitted on {expected}")
        pairs = zip(predicted, labels, strict=True)
        right = [p == y if isinstance(y, str) else p is not None and set(p) == set(y) for p, y in pairs]
        return float(np.average(right, weights=sample_weight))

    def explain(self, text: str, *, deep: bool = False) -> Explanation:
        """The logits of one text as a sum over neurons and terms, and over words, at the exit where the text stops.

        With `deep` it does not stop: the explanation is that of full depth, whose label may be another one.
        """
        return self.trained_.explain(text, deep=deep)

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; no pickle, and not the backbone."""
        self.trained_.save(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: BackboneSettings | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | dict[str, Any] | None = None,
        early: bool = False,
    ) -> SpinClassifier:
        """Read what `save` wrote, as `TrainedClassifier.load` does.

        Of the parameters by which a classifier was fitted, the folder holds those of the backbone, the metric and the
        decision. For `max_error` of the decision the abstention band is chosen here. Raises UserError for an incomplete
        artifact or one of another format.
        """
        trained = TrainedClassifier.load(
            folder,
            backbone=backbone,
            weights=weights,
            device=device,
            choose=choose,
            decision=None if decision is None else parse_section(DecisionSettings, decision, "decision"),
            early=early,
        )
        spin = cls(trained.settings, metric=trained.metric, choose=choose, early=early)
        # set here, since `__init__` refuses `max_error`, which it cannot prove
        spin.decision, spin._trained = trained.requested, trained
        return spin

    def __sklearn_is_fitted__(self) -> bool:
        return "_trained" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.classifier_tags.multi_label = True
        return tags


def _load_settled(settings: BackboneSettings, labelled: LabelledTexts) -> tuple[BackboneSettings, Backbone]:
    """The backbone that reads the texts of a fit, and its settings: with int8 for `dtype: auto` if a trial takes it."""
    backbone = load_backbone(settings)

    def measure() -> Int8Scales:
        given = settings.scales
        return measure_scales(backbone, labelled.texts) if given is None else load_scales(given, backbone.digest)

    scales, trial = settle_int8(settings, backbone, len(labelled.texts), measure, labelled.draw)
    if trial is not None:
        _log.info("%s", trial)
    if scales is None:
        return settings, backbone
    settings = settings.model_copy(update={"dtype": "int8"})
    return settings, load_backbone(settings, scales=scales)
