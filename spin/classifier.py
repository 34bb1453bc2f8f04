"""A trained classifier on one machine: predict, explain, save and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment, split_segments
from spin.activations.engines.engine import Engine, open_engine
from spin.activations.extract import Progress, count_tokens, read_activations
from spin.activations.features import Features
from spin.activations.word_reader import WordSink
from spin.arrays import Floats
from spin.backbone.loading import announce_backbone, load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.explainer import explain_text
from spin.heads import persistence
from spin.heads.abstention import keep_promise, refuse_promise
from spin.heads.decision import Decision
from spin.heads.early_exit import should_exit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.persistence import ClassifierMetadata
from spin.labels.label_space import Label, LabelSpace, class_names
from spin.labels.label_types import describe_table
from spin.pages.explanation import Explanation
from spin.poolings.registry import find_pooling
from spin.predictions import Predictions
from spin.reason_finder import ReasonFinder, ReasonSink
from spin.settings import TRAINED_SETTINGS, BackboneSettings, Choice, DecisionSettings, Metric, Settings
from spin.sites import BY_WORDS, FeatureColumn, choose_sites
from spin.words.word_regression import WordRegression
from spin.words_first import DecideByWords, WordsFirst, decide_none


class TrainedClassifier:
    """A trained text classifier: it predicts, explains, and is saved and loaded. Its classes are named by strings.

    `SpinClassifier.fit` and `spin train` make one; nights, the registry and servers load it, without scikit-learn.
    `digest` is that of the backbone that was trained on, which `settings` describe; `backbone` is that backbone if it
    is loaded already. `choose` names the one of the three classifiers of a training that is used. A threshold in
    `decision` replaces the one that training chose for its class. With `early`, documents stop at the early exits that
    training offers. `calibration` are some hundred texts that int8 is scaled by. With `reasons` above 0, predictions
    come with as many words and neurons per text that contribute most to the logit of its class.

    Raises UserError for a decision that does not fit the classes.
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
        calibration: Sequence[str] = (),
        reasons: int = 0,
    ) -> None:
        self.settings, self.backbone_digest = settings, digest
        self.label_space, self.training_result, self.metric = label_space, training_result, metric
        self.choose, self.decision, self.early = choose, decision or DecisionSettings(), early
        refuse_promise(self.decision, "`load`")
        Decision.of(label_space, self.decision)
        self.calibration, self.reasons = tuple(calibration), reasons
        self._backbone = backbone
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the loaded backbone and its engine, which a copy or a pickle loads again at its first use."""
        return {**vars(self), "_backbone": None, "_engine": None}

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
            self._backbone = load_backbone(self.settings, expect_digest=self.backbone_digest)
            self._backbone.truncate(self.depth)
        return self._backbone

    def choosing(
        self, choose: Choice, *, decision: DecisionSettings | None = None, early: bool = False
    ) -> TrainedClassifier:
        """Another of the three classifiers of the same training, with the same backbone if that is loaded so deep.

        `decision` replaces the present one.
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
            decision=self.decision if decision is None else decision,
            early=early,
            calibration=self.calibration,
            reasons=self.reasons,
        )

    def share_backbone(self, other: TrainedClassifier) -> None:
        """Use the loaded backbone of another classifier with the same weights and settings and at least this depth."""
        self._backbone, self._engine = other.backbone, None

    @property
    def engine(self) -> Engine:
        """The engine that computes the selected neurons, opened at first use.

        Raises UserError for int8 without texts in `calibration`.
        """
        if self._engine is None:
            self._engine = open_calibrated(self.backbone, self._segments(), self.calibration)
            announce_backbone(self.settings, self.backbone, calibrated=True)
        return self._engine

    def prepare(self) -> None:
        """Load the backbone and open its engine now rather than at the first text. Raises as `engine` does."""
        _ = self.engine if self.fitted.selection.neurons else self.backbone

    @property
    def exits_early(self) -> bool:
        """Whether documents may exit by their words, or before the last block that is needed."""
        return self.early and len(self.fitted.exits) > 0

    @property
    def exits_by_words(self) -> bool:
        """Whether documents may exit by their words alone, before the backbone."""
        return self.early and self.fitted.words_exit is not None

    def _segments(self) -> list[BlockSegment]:
        """The blocks between one exit and the next."""
        exit_depths = [exit.depth for exit in self.fitted.block_exits] if self.exits_early else []
        segments = split_segments(self.fitted.selection.neurons, exit_depths)
        return self._reason_finder.add_directions(segments) if self.reasons else segments

    @property
    def _reason_finder(self) -> ReasonFinder:
        fitted = self.fitted if self.early else replace(self.fitted, exits=())
        return ReasonFinder(self.reasons, fitted, self.decision_rule, self.training_result.words)

    @property
    def depth(self) -> int:
        """Number of the backbone's blocks that run."""
        return self.fitted.selection.depth

    def features(self, texts: Sequence[str], *, progress: Progress = lambda documents: None) -> Features:
        """The words' logits, if they count, and the pooled activations of the selected neurons.

        The activations of a text are read up to the depth at which it exits. One that its words alone decide is not
        even tokenized: it has no tokens, and depth -1.
        """
        return self._read(checked_texts(texts), self.decided_by_words, progress)

    def run_backbone(self, texts: Sequence[str]) -> None:
        """Do what `features` does, but with the backbone also on texts that words decide. Raises what that raises."""
        self._read(checked_texts(texts), decide_none, lambda documents: None)

    def _read(self, texts: Sequence[str], decide: DecideByWords, progress: Progress) -> Features:
        """The features of texts, of which the backbone reads those that words do not decide."""
        sink: ReasonSink | None = None

        def store_decided(rows: NDArray[np.int64]) -> None:
            if sink is not None:
                sink.store_unread(rows, by_words=True)

        words = WordsFirst(texts, self.word_regression, decide, store_decided)
        if self.reasons:
            sink = ReasonSink(self._reason_finder, self.backbone, texts, words.logits)
        read = self._read_backbone(texts, words, sink, lambda documents: progress(documents + words.count_new()))
        progress(words.count_new())
        depth = read.depth
        if self.exits_by_words:
            reached = self.depth if depth is None else depth
            depth = np.where(words.decided, BY_WORDS, reached).astype(np.int32)
        if sink is not None and not self.fitted.selection.neurons:
            sink.store_unread(np.flatnonzero(~words.decided), by_words=False)
        return replace(
            read,
            depth=depth,
            words=words.logits,
            head_reads_words=self.fitted.selection.words > 0,
            reasons=None if sink is None else sink.reasons(),
        )

    def _read_backbone(
        self, texts: Sequence[str], words: WordsFirst, sink: WordSink | None, progress: Progress
    ) -> Features:
        """The features that the backbone reads of the texts that words do not decide."""
        if not self.fitted.selection.neurons:
            features = count_tokens(self.backbone, texts, words.choose_rows)
            progress(int((~words.decided).sum()))
            return features
        exits_early = self.exits_early and self.fitted.block_exits
        return read_activations(
            self.engine,
            texts,
            keep_mask=partial(self.keep_mask, words.logits) if exits_early else None,
            choose_rows=words.choose_rows,
            word_sink=sink,
            progress=progress,
        )

    @property
    def word_regression(self) -> WordRegression | None:
        """The word regression; None for a classifier that neither reads words nor exits by them."""
        return self.training_result.words if self.fitted.selection.words or self.exits_by_words else None

    def decided_by_words(self, words: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the texts that exit by their words alone, by the word regression's logits (n, K)."""
        if not self.exits_by_words:
            return np.zeros(len(words), bool)
        return self.fitted.decided_by_words(words, self.label_space, self.decision_rule)

    def keep_mask(self, words: Floats | None, index: int, rows: NDArray[np.int64], values: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the texts `rows` that go on after a segment of blocks, by their values (n, p) so far.

        `words` (t, K) are the words' logits of all t texts, if the classifier has a word regression.
        """
        if words is not None and self.fitted.selection.words:  # they are features of the head, not only of an exit
            values = np.concatenate([words[rows], values], axis=1)
        index += len(self.fitted.exits) - len(self.fitted.block_exits)
        exit, logits = self.fitted.exits[index], self.fitted.at(index).logits(values)
        return ~should_exit(self.label_space, self.decision_rule, exit.threshold, logits)

    def predict_features(self, features: Features) -> Predictions:
        """The predictions that follow from features of this classifier."""
        depth = features.depth
        if depth is None:
            depth = np.full(len(features.n_tokens), self.depth, np.int32)
        logits = self.fitted.predict_logits(features.values, features.depth, features.words)
        return Predictions.from_logits(logits, depth, self.decision_rule, features.reasons)

    def predict_all(self, texts: Sequence[str], *, progress: Progress = lambda documents: None) -> Predictions:
        """Logits, probabilities, labels, scores and exit depths of n texts."""
        return self.predict_features(self.features(texts, progress=progress))

    def predict_logits(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(n, K) calibrated logits, classes in the order of `classes`."""
        return self.predict_all(texts).logits

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(n, K) calibrated probabilities: each row sums to 1, or in a multi-label task each class is independent."""
        return self.predict_all(texts).probabilities

    def predict(self, texts: Sequence[str]) -> list[Label | None]:
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
            whole = self.choosing(self.choose).explain(text)
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
        metadata = ClassifierMetadata(
            classes=self.label_space.classes,
            multilabel=self.label_space.multilabel,
            label_type=self.label_space.label_type,
            backbone=self.settings,
            backbone_digest=self.backbone_digest,
            metric=self.metric,
            decision=self.decision,
        )
        return persistence.save(self.training_result, metadata)

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
        calibration: Sequence[str] = (),
        reasons: int = 0,
    ) -> TrainedClassifier:
        """Read what `save` wrote.

        `backbone` says where the same weights lie on this machine and how they are run. Without it the saved settings
        hold, with other `weights` (a folder) or another `device` if given. `choose` names the classifier that is used,
        `decision` replaces the saved settings of the decision; for its `max_error` the abstention band is chosen here.
        `reasons` is the number of words and neurons that
        predictions come with. Raises UserError for an incomplete artifact or one of another format.
        """
        training_result, metadata = persistence.load(Path(folder))
        saved = metadata.backbone
        if backbone is not None:  # what decides the activations stays as it was in training
            settings = backbone.model_copy(update={name: getattr(saved, name) for name in TRAINED_SETTINGS})
        else:
            here: dict[str, str | None] = {} if device is None else {"device": device}
            if weights is not None:
                here |= {"model": str(weights), "revision": None}
            settings = saved.model_copy(update=here)
        if choose not in training_result.choices:
            raise UserError(f"choose '{choose}': expected one of {', '.join(training_result.choices)}")
        label_space = LabelSpace(metadata.classes, metadata.multilabel, metadata.label_type)
        fitted = training_result.choices[choose]
        given = metadata.decision if decision is None else decision
        return cls(
            settings,
            metadata.backbone_digest,
            label_space,
            training_result,
            metadata.metric,
            choose=choose,
            decision=keep_promise(Path(folder), choose, fitted, label_space, given, early=early),
            early=early,
            calibration=calibration,
            reasons=reasons,
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        settings: Settings,
        *,
        backbone: BackboneSettings | None = None,
        calibration: Sequence[str] = (),
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
            calibration=calibration,
            reasons=settings.classify.reasons,
        )


def feature_columns(backbone: Backbone, sites: Sequence[str], poolings: Sequence[str] | None) -> list[FeatureColumn]:
    """The feature columns that settings ask for, in order; by default the poolings that suit the backbone.

    Raises UserError for a site or pooling that does not exist.
    """
    chosen = [find_pooling(name).name for name in poolings or DEFAULT_POOLINGS[backbone.causal]]
    return [FeatureColumn(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


def open_calibrated(backbone: Backbone, segments: Sequence[BlockSegment], calibration: Sequence[str]) -> Engine:
    """The engine of `open_engine`. Raises UserError for int8 without texts to calibrate it with."""
    if backbone.precision == "int8" and not calibration:
        raise UserError("backbone.dtype int8 is scaled by texts, and there are none; set `calibration` to some hundred")
    return open_engine(backbone, segments, calibration=calibration)


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises UserError for a table, or a text that is empty or no text."""
    if isinstance(texts, str):
        raise UserError("found one string; expected a list of texts")
    if isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1:
        columns = list(getattr(texts, "columns", ["text"]))
        column = "text" if "text" in columns or not columns else columns[0]
        raise UserError(f"found {describe_table(texts)}; expected one column of texts, such as df[{column!r}]")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {row} is {text!r:.40}; expected text that is not empty")
    return list(texts)  # a column of pandas or an array is as good as a list
