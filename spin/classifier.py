"""A trained classifier on one machine: predict, explain, save and load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.activations.extract import Progress
from spin.activations.features import Features
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import announce_backbone, load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.explainer import explain_text
from spin.fitted import persistence
from spin.fitted.abstention import keep_promise, refuse_promise, require_precision
from spin.fitted.decision import Decision
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.fitted.held_out import HeldOutLogits
from spin.fitted.persistence import ClassifierMetadata
from spin.labels.label_space import Label, LabelSpace, class_names
from spin.labels.label_types import describe_table
from spin.pages.explanation import Explanation
from spin.passes.forward_pass import ForwardPass
from spin.passes.pass_member import PassMember
from spin.poolings.registry import find_pooling
from spin.predictions import Predictions
from spin.settings import (
    TRAINED_SETTINGS,
    BackboneSettings,
    Choice,
    DecisionSettings,
    Metric,
    Settings,
    choose_precision,
)
from spin.sites import FeatureColumn, choose_sites

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TrainedClassifier:
    """A trained text classifier: it predicts, explains, and is saved and loaded. Its classes are named by strings.

    `SpinClassifier.fit` and `spin train` make one; nights, the registry and servers load it, without scikit-learn.
    `digest` is that of the backbone that was trained on, which `settings` describe; `backbone` is that backbone if it
    is loaded already. `choose` names the one of the three classifiers of a training that is used. A threshold in
    `decision` replaces the one that training chose for its class. With `early`, documents stop at the early exits that
    training offers. `scales` are those by which int8 rounds. With `reasons` above 0, predictions come with as many
    words and neurons per text that contribute most to the logit of its class, without `explains_exits` only those of
    texts that no early exit stops. `held_out` are the test documents of each choice, by which `max_error` of the
    decision becomes an abstention band.

    Raises UserError for a decision that does not fit the classes, or a `max_error` that is not proven.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        digest: str,
        label_space: LabelSpace,
        training_result: TrainingResult,
        metric: Metric,
        *,
        backbone: Backbone | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | None = None,
        early: bool = False,
        scales: Int8Scales | None = None,
        reasons: int = 0,
        explains_exits: bool = True,
        held_out: Mapping[Choice, HeldOutLogits] | None = None,
    ) -> None:
        self.settings, self.backbone_digest = settings, digest
        self.label_space, self.training_result, self.metric = label_space, training_result, metric
        self.choose, self.early, self.held_out = choose, early, held_out
        self.requested = decision or DecisionSettings()
        """the decision as it was given; `decision` has the band that keeps its `max_error`"""
        Decision.of(label_space, self.requested)
        if held_out is None:
            refuse_promise(self.requested, "`load`")
        proof = None if held_out is None else held_out.get(choose)
        self.decision = keep_promise(proof, self.fitted, label_space, self.requested, early=early)
        self.scales, self.reasons, self.explains_exits = scales, reasons, explains_exits
        self._backbone = backbone
        self._pass: ForwardPass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the loaded backbone and its pass, which a copy or a pickle loads again at its first use."""
        return {**vars(self), "_backbone": None, "_pass": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of logits and probabilities."""
        return self.label_space.classes

    @property
    def fitted(self) -> FittedClassifier:
        """The classifier that `choose` names: its neurons and their head."""
        return self.training_result.choices[self.choose]

    @property
    def decision_rule(self) -> Decision:
        """The rule from probabilities to labels: `decision`, and where it is silent the thresholds of `fitted`."""
        return self.fitted.decision(self.label_space, self.decision)

    @property
    def backbone(self) -> Backbone:
        """The backbone, truncated to the depth that is needed.

        Loaded at first use. Raises UserError if its weights are not those that the classifier was trained on.
        """
        if self._backbone is None:
            self._backbone = load_backbone(self.settings, expect_digest=self.backbone_digest, scales=self.scales)
            self._backbone.truncate(self.depth)
        return self._backbone

    def choosing(
        self, choose: Choice, *, decision: DecisionSettings | None = None, early: bool = False
    ) -> TrainedClassifier:
        """Another of the three classifiers of the same training, with the same backbone if that is loaded so deep.

        `decision` replaces the present one, whose `max_error` is proven anew. Raises UserError where it is not.
        """
        depth, backbone = self.training_result.choices[choose].selection.depth, self._backbone
        return TrainedClassifier(
            self.settings,
            self.backbone_digest,
            self.label_space,
            self.training_result,
            self.metric,
            backbone=backbone if backbone is not None and backbone.reaches(depth) else None,
            choose=choose,
            # guarded by test_a_promise_is_proven_anew_for_another_decision; broken by:
            #   decision=self.decision if decision is None else decision,
            decision=self.requested if decision is None else decision,
            early=early,
            scales=self.scales,
            reasons=self.reasons,
            explains_exits=self.explains_exits,
            held_out=self.held_out,
        )

    def share_backbone(self, other: TrainedClassifier) -> None:
        """Use the loaded backbone of a classifier with the same weights, settings and scales and no smaller depth."""
        self._backbone, self._pass = other.backbone, None

    @property
    def member(self) -> PassMember:
        """The classifier as a forward pass reads it: it has no exits unless documents may stop early."""
        fitted = self.fitted if self.early else replace(self.fitted, exits=())
        words = self.training_result.words if fitted.selection.word_logits or fitted.words_exit else None
        return PassMember(fitted, self.decision_rule, words, self.reasons, self.explains_exits)

    @property
    def forward_pass(self) -> ForwardPass:
        """The pass that reads texts for this classifier alone, opened at first use. Raises as `backbone` does."""
        if self._pass is None:
            self._pass = ForwardPass([self.member], self.backbone)
            if self._pass.engine is not None:
                announce_backbone(self.settings, self.backbone)
        return self._pass

    def prepare(self) -> None:
        """Load the backbone and open its engine now rather than at the first text. Raises as `forward_pass` does."""
        _ = self.forward_pass

    @property
    def scales_digest(self) -> str | None:
        """The digest of the scales by which the backbone is rounded to int8; None if it runs in another precision."""
        return self.scales.digest if self.scales is not None and self.settings.dtype == "int8" else None

    @property
    def exits_early(self) -> bool:
        """Whether documents may exit by their words, or before the last block that is needed."""
        return self.early and len(self.fitted.exits) > 0

    @property
    def depth(self) -> int:
        """Number of the backbone's blocks that run."""
        return self.fitted.selection.depth

    def features(self, texts: Iterable[str], *, progress: Progress = lambda documents: None) -> Features:
        """The words' logits, if they count, and the pooled activations of the selected neurons.

        The activations of a text are read up to the depth at which it exits. One that its words alone decide is not
        even tokenized: it has no tokens, and depth -1.
        """
        return self.forward_pass.features(checked_texts(texts), progress)[0]

    def predict_features(self, features: Features) -> Predictions:
        """The predictions that follow from features of this classifier."""
        depth = features.depth
        if depth is None:
            depth = np.full(len(features.n_tokens), self.depth, np.int32)
        logits = self.fitted.predict_logits(features.values, features.depth, features.words)
        return Predictions.from_logits(logits, depth, self.decision_rule, features.reasons)

    def predict_all(self, texts: Iterable[str], *, progress: Progress = lambda documents: None) -> Predictions:
        """Logits, probabilities, labels, scores and exit depths of n texts."""
        return self.predict_features(self.features(texts, progress=progress))

    def predict_logits(self, texts: Iterable[str]) -> NDArray[np.floating]:
        """(n, K) calibrated logits, classes in the order of `classes`."""
        return self.predict_all(texts).logits

    def predict_proba(self, texts: Iterable[str]) -> NDArray[np.floating]:
        """(n, K) calibrated probabilities: each row sums to 1, or in a multi-label task each class is independent."""
        return self.predict_all(texts).probabilities

    def predict(self, texts: Iterable[str]) -> list[Label | None]:
        """n labels by the thresholds of `decision` and those that training chose, None where it abstains."""
        return self.predict_all(texts).labels

    def labels(self, probabilities: NDArray[np.floating]) -> list[Label | None]:
        """n labels by probabilities (n, K) and the thresholds of `decision` and those that training chose."""
        return self.decision_rule.labels(probabilities)

    def explain(self, text: str, *, deep: bool = False) -> Explanation:
        """The logits of one text as a sum over neurons and terms, and over words, at the exit where the text stops.

        With `deep` it does not stop: the explanation is that of full depth, whose label may be another one.
        """
        if deep and self.exits_early:
            predictions = self.predict_all([text])
            stop, label = int(predictions.exit_depth[0]), ", ".join(sorted(class_names(predictions.labels[0])))
            # the band as it is: full depth need not prove `max_error`, since an explanation does not abstain
            whole = self.choosing(self.choose, decision=self.decision).explain(text)
            return replace(whole, passed=(stop, label)) if stop < self.depth else whole
        [text] = checked_texts([text])
        features = self.features([text])
        depths = [exit.depth for exit in self.fitted.exits]
        depth = self.depth if features.depth is None else features.depth[0]
        stop = depths.index(depth) if depth in depths else len(depths)
        part, read = self.fitted.at(stop), self.fitted.read_at(stop, features.values, features.words)[0]
        words = self.training_result.words
        explanation = explain_text(self.backbone, part, self.label_space, text, read, words, self.decision_rule)
        return replace(explanation, exit=int(depth)) if depth < self.depth else explanation

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; no pickle, and not the backbone."""
        folder, files = Path(folder), self.files()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """The contents of the files that `save` writes, by name."""
        # what has scales was trained in int8, in whatever precision it was loaded
        trained = {} if self.scales is None else {"dtype": "int8"}
        metadata = ClassifierMetadata(
            classes=self.label_space.classes,
            multilabel=self.label_space.multilabel,
            label_type=self.label_space.label_type,
            backbone=self.settings.model_copy(update=trained),
            backbone_digest=self.backbone_digest,
            metric=self.metric,
            decision=self.decision,
        )
        scales = None if self.scales is None else self.scales.to_tensors()
        return persistence.save(self.training_result, metadata, scales)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: BackboneSettings | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | None = None,
        early: bool = False,
        reasons: int = 0,
        explains_exits: bool = True,
    ) -> TrainedClassifier:
        """Read what `save` wrote.

        `backbone` says where the same weights lie on this machine and how they are run; for its precision see
        `choose_precision`. Without it the saved settings hold, with other `weights` (a folder) or another `device` if
        given. `choose` names the classifier that is used, `decision` replaces the saved settings of the decision; for
        its `max_error` the abstention band is chosen here. `reasons` is the number of words and neurons that
        predictions come with, without `explains_exits` only those that no early exit was sure of. Raises UserError for
        an incomplete artifact or one of another format.
        """
        training_result, metadata = persistence.load(Path(folder))
        saved = metadata.backbone
        if backbone is not None:  # what decides the activations stays as it was in training
            trained = {name: getattr(saved, name) for name in TRAINED_SETTINGS}
            settings = backbone.model_copy(update=trained | {"dtype": choose_precision(backbone.dtype, saved.dtype)})
        else:
            here: dict[str, str | None] = {} if device is None else {"device": device}
            if weights is not None:
                here |= {"model": str(weights), "revision": None}
            settings = saved.model_copy(update=here)
        if choose not in training_result.choices:
            raise UserError(f"choose '{choose}': expected one of {', '.join(training_result.choices)}")
        label_space = LabelSpace(metadata.classes, metadata.multilabel, metadata.label_type)
        given = metadata.decision if decision is None else decision
        require_precision(given, saved.dtype, settings.dtype)
        return cls(
            settings,
            metadata.backbone_digest,
            label_space,
            training_result,
            metadata.metric,
            choose=choose,
            decision=given,
            early=early,
            scales=Int8Scales.from_tensors(persistence.load_scales(Path(folder))) if saved.dtype == "int8" else None,
            reasons=reasons,
            explains_exits=explains_exits,
            held_out=None if given.max_error is None else HeldOutLogits.read_all(Path(folder)),
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        settings: Settings,
        *,
        backbone: BackboneSettings | None = None,
    ) -> TrainedClassifier:
        """Read what `save` wrote, run and decided as a night with these settings does.

        `backbone` replaces the settings' own if the weights lie elsewhere. Raises UserError as `load` does.
        """
        return cls.load(
            folder,
            backbone=backbone or settings.backbone,
            choose=settings.choose,
            decision=settings.decision,
            early=settings.classify.cascade,
            reasons=settings.classify.reasons,
            explains_exits=settings.classify.reasons_for == "all",
        )


def load_scales(folder: str | Path, digest: str) -> Int8Scales:
    """The scales of the classifier in a folder, for the backbone with a digest.

    Raises UserError for a classifier that was trained in another precision or on another backbone.
    """
    metadata = persistence.read_metadata(Path(folder))
    if metadata.backbone.dtype != "int8":
        raise UserError(
            f"backbone.scales: found a classifier that was trained with {metadata.backbone.dtype}, not int8"
        )
    if metadata.backbone_digest != digest:
        raise UserError(
            f"backbone.scales: found those of a backbone with digest {metadata.backbone_digest[:12]}, expected "
            f"{digest[:12]}; name a classifier that was trained on the same backbone"
        )
    return Int8Scales.from_tensors(persistence.load_scales(Path(folder)))


def feature_columns(backbone: Backbone, sites: Sequence[str], poolings: Sequence[str] | None) -> list[FeatureColumn]:
    """The feature columns that settings ask for, in order; by default the poolings that suit the backbone.

    Raises UserError for a site or pooling that does not exist.
    """
    chosen = [find_pooling(name).name for name in poolings or DEFAULT_POOLINGS[backbone.causal]]
    return [FeatureColumn(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises UserError for a table, or a text that is empty or no text."""
    if isinstance(texts, str):
        raise UserError("found one string; expected a list of texts")
    if isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1:
        columns = list(getattr(texts, "columns", ["text"]))
        column = "text" if "text" in columns or not columns else columns[0]
        raise UserError(f"found {describe_table(texts)}; expected one column of texts, such as df[{column!r}]")
    texts = list(texts)  # a column of pandas, an array or a generator is as good as a list
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {row} is {text!r:.40}; expected text that is not empty")
        if _LONE_SURROGATE.search(text):
            raise UserError(
                f"text {row} holds half a character (a lone surrogate): {text!r:.40}; expected Unicode text"
            )
    return texts
