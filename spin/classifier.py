"""The whole method on one machine: fit, predict, explain, save and load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment, split_segments
from spin.activations.engines.engine import CALIBRATION_TEXTS, Engine, open_engine
from spin.activations.extract import Progress, count_tokens, extract, read_activations
from spin.activations.features import Features
from spin.activations.word_reader import WordSink
from spin.arrays import Floats
from spin.backbone.flops import relative_flops
from spin.backbone.loading import announce_backbone, load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.heads import persistence
from spin.heads.abstention import keep_promise
from spin.heads.decision import Decision
from spin.heads.early_exit import should_exit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.persistence import ClassifierMetadata
from spin.labels.label_space import Label, LabelSpace
from spin.labels.split_groups import hash_text
from spin.labels.splits import assign_split
from spin.labels.training_data import TrainingData
from spin.pages.explanation import Explanation, explain
from spin.predictions import Predictions
from spin.reason_finder import ReasonFinder, ReasonSink
from spin.settings import (
    METRICS,
    TRAINED_SETTINGS,
    BackboneSettings,
    CascadeSettings,
    Choice,
    DecisionSettings,
    ProbeSettings,
    SearchSettings,
    Settings,
)
from spin.sites import BY_WORDS, POOLINGS, FeatureColumn, choose_sites
from spin.words.word_regression import WordRegression
from spin.words_first import DecideByWords, WordsFirst, decide_none


class SpinClassifier:
    """A text classifier that reads the salient inner neurons of a frozen language model, and the words of a text.

    >>> spin = SpinClassifier("sentence-transformers/all-MiniLM-L6-v2").fit(texts, labels)  # doctest: +SKIP
    >>> spin.predict(["a fine film"])  # doctest: +SKIP

    `backbone` is what `backbone.model` takes in a settings file, or all settings of a backbone. Training returns three
    classifiers, and `choose` names the one that is used: `accuracy`, `balanced` or `cheapest`. A threshold in
    `decision` replaces the one that training chose for its class. `cascade` says how much of the metric the early exits
    that training offers may cost; with `early`, documents stop at these exits. `calibration` are some hundred texts
    that int8 is scaled by; `fit` sets them. With `reasons` above 0, predictions come with as many words and neurons
    per text that contribute most to the logit of its class.
    """

    def __init__(
        self,
        backbone: str | BackboneSettings,
        *,
        sites: Sequence[str] = ("resid", "ffn"),
        poolings: Sequence[str] | None = None,
        metric: str = "macro_f1",
        seed: int = 0,
        probe: ProbeSettings | None = None,
        search: SearchSettings | None = None,
        cascade: CascadeSettings | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | None = None,
        early: bool = False,
        calibration: Sequence[str] = (),
        reasons: int = 0,
    ) -> None:
        if metric not in METRICS:
            raise UserError(f"metric '{metric}': expected one of {', '.join(METRICS)}")
        self.settings = backbone if isinstance(backbone, BackboneSettings) else BackboneSettings(model=backbone)
        self.sites, self.poolings, self.metric, self.seed = tuple(sites), poolings, metric, seed
        self.probe, self.search = probe or ProbeSettings(), search or SearchSettings()
        self.cascade = cascade or CascadeSettings()
        self.choose, self.decision, self.early = choose, decision or DecisionSettings(), early
        if self.decision.max_error is not None:
            raise UserError(
                "decision.max_error: only the test documents of a version that spin train made can prove it; give the "
                "setting to SpinClassifier.load with the folder of one, or set abstain"
            )
        self.calibration, self.reasons = tuple(calibration), reasons
        self.backbone_digest: str | None = None
        self._label_space: LabelSpace | None = None
        self._training_result: TrainingResult | None = None
        self._backbone: Backbone | None = None
        self._engine: Engine | None = None

    @classmethod
    def assemble(
        cls,
        settings: BackboneSettings,
        digest: str,
        label_space: LabelSpace,
        training_result: TrainingResult,
        metric: str,
        *,
        backbone: Backbone | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | None = None,
        early: bool = False,
        calibration: Sequence[str] = (),
        reasons: int = 0,
    ) -> SpinClassifier:
        """A fitted classifier from parts that were fitted elsewhere.

        `digest` is that of the backbone that was trained on; `backbone` is that backbone if it is loaded already.
        Raises UserError for a decision that does not fit the classes.
        """
        spin = cls(
            settings,
            metric=metric,
            choose=choose,
            decision=decision,
            early=early,
            calibration=calibration,
            reasons=reasons,
        )
        Decision.of(label_space, spin.decision)
        spin._label_space, spin.backbone_digest = label_space, digest
        spin._training_result, spin._backbone = training_result, backbone
        return spin

    def fit(self, texts: Sequence[str], labels: Sequence[Label], *, valid_fraction: float = 0.15) -> SpinClassifier:
        """Fit on n texts and their labels: one class each, or in a multi-label task a list of classes each.

        A hash of a text decides whether it trains or validates the choices (penalty, eta, depth and head). Below 5,000
        texts cross-validation makes the choices, and of more than `search.documents` texts a sample. Near-identical
        texts stay on the same side. Raises UserError for texts that are not text, a single class, or a class with too
        few texts that differ.
        """
        # these bring Numba and scikit-learn, which inference does not need
        from spin.audit.selection_attack import prepare_attack
        from spin.fit import fit_classifiers

        if len(texts) != len(labels):
            raise UserError(f"fit: found {len(texts)} texts and {len(labels)} labels; expected as many of both")
        texts = checked_texts(texts)
        groups = [hash_text(text) for text in texts]
        splits = [assign_split(group, self.seed, valid_fraction, 0.0) for group in groups]
        given = [label if isinstance(label, (list, tuple, set)) else str(label) for label in labels]
        label_space = LabelSpace.of(given, splits, groups)
        Decision.of(label_space, self.decision)
        backbone = load_backbone(self.settings)
        announce_backbone(self.settings, backbone, calibrated=False)
        columns = feature_columns(backbone, self.sites, self.poolings)
        features = extract(backbone, texts, columns).columns
        data = TrainingData.from_splits(
            label_space.index(given),
            splits,
            label_space,
            groups=np.array(groups, np.uint64),
            metric=self.metric,
            class_weights=self.probe.class_weights,
            seed=self.seed,
            device=backbone.device.type,
            documents=self.search.documents,
        )
        *_, self._training_result = fit_classifiers(
            features,
            data,
            compute=relative_flops(backbone),
            probe=self.probe,
            search=self.search,
            cascade=self.cascade,
            decision=self.decision,
            texts=texts,
            attack=prepare_attack(self.search, lambda rows: [texts[row] for row in rows.tolist()], data),
        )
        self.calibration = tuple(texts[:CALIBRATION_TEXTS])
        self._label_space, self.backbone_digest = label_space, backbone.digest
        self._backbone, self._engine = backbone, None
        return self

    @property
    def label_space(self) -> LabelSpace:
        """The classes. Raises UserError before `fit`."""
        if self._label_space is None:
            raise UserError("the classifier is not fitted; call fit(texts, labels) or load a directory")
        return self._label_space

    @property
    def task(self) -> LabelSpace:
        """The label space under the name that model versions registered before 0.2 use; removed in 0.4."""
        return self.label_space

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of logits and probabilities."""
        return self.label_space.classes

    @property
    def training_result(self) -> TrainingResult:
        """All that training returned: the three classifiers and the frontier. Raises UserError before `fit`."""
        _ = self.label_space
        assert self._training_result is not None
        return self._training_result

    @property
    def fitted(self) -> FittedClassifier:
        """The classifier that `choose` names: its neurons and their head. Raises UserError before `fit`."""
        return self.training_result.choices[self.choose]

    @property
    def decision_rule(self) -> Decision:
        """How probabilities become labels: by `decision`, and where it is silent by the thresholds of `fitted`."""
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

    def choosing(self, choose: Choice) -> SpinClassifier:
        """Another of the three classifiers of the same training, with the same backbone and without early exits."""
        assert self.backbone_digest is not None
        return self.assemble(
            self.settings,
            self.backbone_digest,
            self.label_space,
            self.training_result,
            self.metric,
            backbone=self.backbone,
            choose=choose,
            decision=self.decision,
            calibration=self.calibration,
        )

    def share_backbone(self, other: SpinClassifier) -> None:
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
        words = WordsFirst(texts, self.word_regression, decide)
        sink = None
        if self.reasons:
            sink = ReasonSink(self._reason_finder, self.backbone, texts, words.logits)
            words.on_decided = partial(sink.store_unread, by_words=True)
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
        """What the backbone reads of the texts that words do not decide."""
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

    def _read_words(self, words: Floats | None) -> Floats | None:
        """The words' logits (n, K) if they are features of the head, and not only of the exit by words."""
        return words if self.fitted.selection.words else None

    def decided_by_words(self, words: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the texts that exit by their words alone, by the word regression's logits (n, K)."""
        if not self.exits_by_words:
            return np.zeros(len(words), bool)
        return self.fitted.decided_by_words(words, self.label_space, self.decision_rule)

    def keep_mask(self, words: Floats | None, index: int, rows: NDArray[np.int64], values: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the texts `rows` that go on after a segment of blocks, by their values (n, p) so far.

        `words` (t, K) are the words' logits of all t texts, if the classifier has a word regression.
        """
        if (read := self._read_words(words)) is not None:
            values = np.concatenate([read[rows], values], axis=1)
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
            return self.choosing(self.choose).explain(text)
        [text] = checked_texts([text])
        features = self.features([text])
        depths = [exit.depth for exit in self.fitted.exits]
        depth = self.depth if features.depth is None else features.depth[0]
        part = self.fitted.at(depths.index(depth) if depth in depths else len(depths))
        of_neurons = np.concatenate([np.empty(0, np.float32), *(values[0] for values in features.columns.values())])
        pooled = of_neurons[: part.selection.neuron_count]
        words = self.training_result.words
        explanation = explain(self.backbone, part, self.label_space, text, pooled, words, self.decision_rule)
        return replace(explanation, exit=int(depth)) if depth < self.depth else explanation

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; no pickle, and not the backbone."""
        folder, files = Path(folder), self.files()
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """The contents of the files that `save` writes, by name. Raises UserError before `fit`."""
        label_space = self.label_space
        assert self.backbone_digest is not None
        metadata = ClassifierMetadata(
            classes=label_space.classes,
            multilabel=label_space.multilabel,
            backbone=portable_settings(self.settings),
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
    ) -> SpinClassifier:
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
        label_space, fitted = LabelSpace(metadata.classes, metadata.multilabel), training_result.choices[choose]
        given = metadata.decision if decision is None else decision
        return cls.assemble(
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
    ) -> SpinClassifier:
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
    chosen = poolings or DEFAULT_POOLINGS[backbone.causal]
    unknown = sorted(set(chosen) - set(POOLINGS))
    if unknown:
        raise UserError(f"pooling '{unknown[0]}': expected some of {', '.join(POOLINGS)}")
    return [FeatureColumn(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


def portable_settings(settings: BackboneSettings) -> BackboneSettings:
    """The settings of a backbone as an artifact keeps them: without what holds on one machine only."""
    default = BackboneSettings(model=settings.model)
    local = {name: getattr(default, name) for name in ("trust_remote_code", "engine", "compile")}
    return settings.model_copy(update=local | {"dtype": "auto" if settings.dtype == "int8" else settings.dtype})


def open_calibrated(backbone: Backbone, segments: Sequence[BlockSegment], calibration: Sequence[str]) -> Engine:
    """The engine of `open_engine`. Raises UserError for int8 without texts to calibrate it with."""
    if backbone.precision == "int8" and not calibration:
        raise UserError("backbone.dtype int8 is scaled by texts, and there are none; set `calibration` to some hundred")
    return open_engine(backbone, segments, calibration=calibration)


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises UserError for one that is empty or no text."""
    if isinstance(texts, str):
        raise UserError("found one string; expected a list of texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {row} is {text!r:.40}; expected text that is not empty")
    return list(texts)  # a column of pandas or an array is as good as a list
