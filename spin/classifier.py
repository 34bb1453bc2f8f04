"""The whole method on one machine: fit, predict, explain, save and load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.activations.encoder import BlockSegment, split_segments
from spin.activations.engine import CALIBRATION_TEXTS, Engine, open_engine
from spin.activations.extract import Features, Progress, extract, read_activations
from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.fit import learn
from spin.heads import persistence
from spin.heads.decision import Decision
from spin.heads.early_exit import should_exit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.labels.label_space import Label, LabelSpace
from spin.labels.splits import assign_split, rows_in_split
from spin.pages.explanation import Explanation, explain
from spin.settings import (
    METRICS,
    POOLINGS,
    BackboneSettings,
    CascadeSettings,
    Choice,
    DecisionSettings,
    ProbeSettings,
    SearchSettings,
)
from spin.sites import FeatureColumn, choose_sites


class SpinClassifier:
    """A text classifier from the salient inner neurons of a frozen language model.

    >>> spin = SpinClassifier("sentence-transformers/all-MiniLM-L6-v2").fit(texts, labels)  # doctest: +SKIP
    >>> spin.predict(["a fine film"])  # doctest: +SKIP

    `backbone` is what `backbone.model` takes in a settings file, or all of its settings. `choose` says which of the
    three classifiers that training gives is used: `accuracy`, `balanced` or `cheapest`. `cascade` says what the exits
    may cost that training offers; `early`, whether documents leave at them.
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
    ) -> None:
        if metric not in METRICS:
            raise UserError(f"metric '{metric}': expected one of {', '.join(METRICS)}")
        self.settings = backbone if isinstance(backbone, BackboneSettings) else BackboneSettings(model=backbone)
        self.sites, self.poolings, self.metric, self.seed = tuple(sites), poolings, metric, seed
        self.probe, self.search = probe or ProbeSettings(), search or SearchSettings()
        self.cascade = cascade or CascadeSettings()
        self.choose, self.decision, self.early = choose, decision or DecisionSettings(), early
        self.calibration: tuple[str, ...] = ()
        """texts by which int8 is scaled"""
        self.backbone_digest: str | None = None
        self._task: LabelSpace | None = None
        self._integrated: TrainingResult | None = None
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
    ) -> SpinClassifier:
        """A fitted classifier from parts that were fitted elsewhere.

        Raises UserError for a decision that does not fit the classes.
        """
        spin = cls(settings, metric=metric, choose=choose, decision=decision, early=early)
        Decision.of(label_space, spin.decision)
        spin._task, spin.backbone_digest = label_space, digest
        spin._integrated, spin._backbone = training_result, backbone
        return spin

    def fit(self, texts: Sequence[str], labels: Sequence[Label], *, valid_fraction: float = 0.15) -> SpinClassifier:
        """Fit on n texts and their labels, a class each or in a multi-label task a list of classes each.

        A hash of the position sets a part aside to choose penalty, eta, depth and head; below 1,000 texts
        cross-validation chooses. Raises UserError for texts that are not text, one class only or a class too small.
        """
        if len(texts) != len(labels):
            raise UserError(f"fit: found {len(texts)} texts and {len(labels)} labels; expected as many of both")
        splits = [assign_split(str(row), self.seed, valid_fraction, 0.0) for row in range(len(texts))]
        given = [label if isinstance(label, (list, tuple, set)) else str(label) for label in labels]
        label_space = LabelSpace.of(given, splits)
        Decision.of(label_space, self.decision)
        backbone = load_backbone(self.settings)
        columns = feature_columns(backbone, self.sites, self.poolings)
        features = extract(backbone, _checked(texts), columns).columns
        self.calibration = tuple(texts[:CALIBRATION_TEXTS])
        _, self._integrated = learn(
            features,
            label_space,
            label_space.index(given),
            rows_in_split(splits, "train"),
            rows_in_split(splits, "valid"),
            flops=relative_flops(backbone),
            metric=self.metric,
            probe=self.probe,
            search=self.search,
            cascade=self.cascade,
            seed=self.seed,
            device=backbone.device.type,
        )
        self._task, self.backbone_digest, self.backbone = label_space, backbone.digest, backbone
        return self

    @property
    def label_space(self) -> LabelSpace:
        """The classes. Raises UserError before `fit`."""
        if self._task is None:
            raise UserError("the classifier is not fitted; call fit(texts, labels) or load a directory")
        return self._task

    @property
    def task(self) -> LabelSpace:
        """The label space under the name by which versions registered before 0.2 ask for it; removed in 0.4."""
        return self.label_space

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of logits and probabilities."""
        return self.label_space.classes

    @property
    def training_result(self) -> TrainingResult:
        """All that training gave: the three classifiers and the frontier. Raises UserError before `fit`."""
        _ = self.label_space
        assert self._integrated is not None
        return self._integrated

    @property
    def fitted(self) -> FittedClassifier:
        """The chosen neurons and their head. Raises UserError before `fit`."""
        return self.training_result.choices[self.choose]

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at first use, checked against the digest it was trained on and cut to the depth."""
        if self._backbone is None:
            self._backbone = load_backbone(self.settings, expect_digest=self.backbone_digest)
            self._backbone.truncate(self.depth)
        return self._backbone

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        """One that is loaded already, of the same weights and settings, and not cut below the depth."""
        self._backbone, self._engine = backbone, None

    @property
    def engine(self) -> Engine:
        """What runs the backbone for the chosen neurons, opened at first use.

        Raises UserError for int8 where there are no texts in `calibration`.
        """
        if self._engine is None:
            if self.backbone.precision == "int8" and not self.calibration:
                raise UserError(
                    "backbone.dtype int8 is scaled by texts, and there are none; set `calibration` to some hundred"
                )
            self._engine = open_engine(self.backbone, self._segments(), calibration=self.calibration)
        return self._engine

    @property
    def exits_early(self) -> bool:
        """Whether documents may leave before the last block that is needed."""
        return self.early and len(self.fitted.exits) > 0

    def _segments(self) -> list[BlockSegment]:
        chosen = self.fitted
        return split_segments(
            chosen.selection.neurons, [taken.depth for taken in chosen.exits] if self.exits_early else []
        )

    @property
    def depth(self) -> int:
        """Blocks of the backbone that run."""
        return self.fitted.selection.depth

    def features(
        self,
        texts: Sequence[str],
        *,
        progress: Progress = lambda documents: None,
    ) -> Features:
        """The pooled activations of the selected neurons, as far as each text goes."""
        return read_activations(
            self.engine, _checked(texts), keep_mask=self._keep_mask if self.exits_early else None, progress=progress
        )

    def _keep_mask(self, index: int, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which documents go on after an exit."""
        decision, taken = Decision.of(self.label_space, self.decision), self.fitted.exits[index]
        return ~should_exit(self.label_space, decision, taken.threshold, self.fitted.at(index).logits(values))

    def predict_logits(
        self, texts: Sequence[str], *, progress: Progress = lambda documents: None
    ) -> NDArray[np.floating]:
        """(n, K) calibrated logits, classes in the order of `classes`."""
        found = self.features(texts, progress=progress)
        return self.fitted.answer(found.values, found.depth)

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(n, K) calibrated probabilities: each row sums to 1, or in a multi-label task each class is by itself."""
        return self.label_space.probabilities(self.predict_logits(texts))

    def predict(self, texts: Sequence[str]) -> list[Label | None]:
        """n labels by the thresholds of `decision`, None where it abstains."""
        return self.labels(self.predict_proba(texts))

    def labels(self, probabilities: NDArray[np.floating]) -> list[Label | None]:
        """n labels of probabilities (n, K)."""
        y, near = Decision.of(self.label_space, self.decision).labels(probabilities)
        return [None if close else name for name, close in zip(self.label_space.names(y), near, strict=True)]

    def explain(self, text: str) -> Explanation:
        """The logits of one text, divided among neurons and among words: those of the exit at which it leaves."""
        [text] = _checked([text])
        found = self.features([text])
        depths = [taken.depth for taken in self.fitted.exits]
        at = len(depths) if found.depth is None or found.depth[0] not in depths else depths.index(found.depth[0])
        part = self.fitted.at(at)
        return explain(self.backbone, part, self.label_space, text, found.values[0, : len(part.selection)])

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; no pickle, and not the backbone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        facts = {
            "classes": self.classes,
            "multilabel": self.label_space.multilabel,
            "backbone": {**_elsewhere(self.settings), "digest": self.backbone_digest},
            "metric": self.metric,
            "decision": self.decision.model_dump(),
        }
        return persistence.save(self.training_result, facts)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: BackboneSettings | None = None,
        choose: Choice = "accuracy",
        decision: DecisionSettings | None = None,
        early: bool = False,
    ) -> SpinClassifier:
        """Read what `save` wrote; `backbone` says where the same weights lie here and how they are run.

        `choose` takes another of its three classifiers, `decision` other thresholds than it was saved with. Raises
        UserError for an artifact that is not whole, or of another format.
        """
        training_result, config = persistence.load(Path(folder))
        try:
            kept = dict(config["backbone"])
            digest = kept.pop("digest")
            # whether code may run is for who loads it to say, not for the artifact
            settings = BackboneSettings.model_validate({**kept, "trust_remote_code": False})
            if backbone is not None:  # what decides the activations stays as it was in training
                trained = {name: getattr(settings, name) for name in ("max_tokens", "pool_special_tokens")}
                settings = backbone.model_copy(update=trained)
            label_space = LabelSpace(tuple(config["classes"]), config["multilabel"])
            decision = decision or DecisionSettings.model_validate(config["decision"])
            return cls.assemble(
                settings,
                digest,
                label_space,
                training_result,
                config["metric"],
                choose=choose,
                decision=decision,
                early=early,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def feature_columns(backbone: Backbone, sites: Sequence[str], poolings: Sequence[str] | None) -> list[FeatureColumn]:
    """Every site.pooling that settings ask for, in order."""
    chosen = poolings or DEFAULT_POOLINGS[backbone.causal]
    unknown = sorted(set(chosen) - set(POOLINGS))
    if unknown:
        raise UserError(f"pooling '{unknown[0]}': expected some of {', '.join(POOLINGS)}")
    return [FeatureColumn(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


def _elsewhere(settings: BackboneSettings) -> dict[str, Any]:
    """What an artifact says of its backbone: nothing of what this machine alone has."""
    kept = settings.model_dump(exclude={"trust_remote_code", "engine", "compile"})
    return {**kept, "dtype": "auto" if settings.dtype == "int8" else settings.dtype}


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserError("found one string; expected a list of texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {row} is {text!r:.40}; expected text that is not empty")
    return list(texts)  # a column of pandas or an array is as good as a list
