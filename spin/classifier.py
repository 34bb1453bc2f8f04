"""The whole method on one machine: fit, predict, explain, save and load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.activations.encoder import Group, divide
from spin.activations.engine import CALIBRATED, Engine, open_engine
from spin.activations.extract import Features, Progress, extract, read
from spin.backbone.flops import relative_compute
from spin.backbone.loading import load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.fit import learn
from spin.heads import persistence
from spin.heads.decision import Decision
from spin.heads.early_exit import leaving
from spin.heads.fitted import Integrated, Integration
from spin.labels.label_space import Label, Task
from spin.labels.splits import rows_of, split_of
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
from spin.sites import Column, choose_sites


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
        self._task: Task | None = None
        self._integrated: Integrated | None = None
        self._backbone: Backbone | None = None
        self._engine: Engine | None = None

    @classmethod
    def assemble(
        cls,
        settings: BackboneSettings,
        digest: str,
        task: Task,
        integrated: Integrated,
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
        Decision.of(task, spin.decision)
        spin._task, spin.backbone_digest = task, digest
        spin._integrated, spin._backbone = integrated, backbone
        return spin

    def fit(self, texts: Sequence[str], labels: Sequence[Label], *, valid_fraction: float = 0.15) -> SpinClassifier:
        """Fit on n texts and their labels, a class each or in a multi-label task a list of classes each.

        A hash of the position sets a part aside to choose penalty, eta, depth and head; below 1,000 texts
        cross-validation chooses. Raises UserError for texts that are not text, one class only or a class too small.
        """
        if len(texts) != len(labels):
            raise UserError(f"fit: found {len(texts)} texts and {len(labels)} labels; expected as many of both")
        splits = [split_of(str(row), self.seed, valid_fraction, 0.0) for row in range(len(texts))]
        given = [label if isinstance(label, (list, tuple, set)) else str(label) for label in labels]
        task = Task.of(given, splits)
        Decision.of(task, self.decision)
        backbone = load_backbone(self.settings)
        columns = columns_of(backbone, self.sites, self.poolings)
        features = extract(backbone, _checked(texts), columns).columns
        self.calibration = tuple(texts[:CALIBRATED])
        _, self._integrated = learn(
            features,
            task,
            task.index(given),
            rows_of(splits, "train"),
            rows_of(splits, "valid"),
            flops=relative_compute(backbone),
            metric=self.metric,
            probe=self.probe,
            search=self.search,
            cascade=self.cascade,
            seed=self.seed,
            device=backbone.device.type,
        )
        self._task, self.backbone_digest, self.backbone = task, backbone.digest, backbone
        return self

    @property
    def task(self) -> Task:
        """The classes. Raises UserError before `fit`."""
        if self._task is None:
            raise UserError("the classifier is not fitted; call fit(texts, labels) or load a directory")
        return self._task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of logits and probabilities."""
        return self.task.classes

    @property
    def integrated(self) -> Integrated:
        """All that training gave: the three classifiers and the frontier. Raises UserError before `fit`."""
        _ = self.task
        assert self._integrated is not None
        return self._integrated

    @property
    def integration(self) -> Integration:
        """The chosen neurons and their head. Raises UserError before `fit`."""
        return self.integrated.choices[self.choose]

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at first use, checked against the digest it was trained on and cut to the depth."""
        if self._backbone is None:
            self._backbone = load_backbone(self.settings, expect_digest=self.backbone_digest)
            self._backbone.cut(self.depth)
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
            self._engine = open_engine(self.backbone, self._groups(), calibration=self.calibration)
        return self._engine

    @property
    def leaves(self) -> bool:
        """Whether documents may leave before the last block that is needed."""
        return self.early and len(self.integration.exits) > 0

    def _groups(self) -> list[Group]:
        chosen = self.integration
        return divide(chosen.selection.neurons, [taken.depth for taken in chosen.exits] if self.leaves else [])

    @property
    def depth(self) -> int:
        """Blocks of the backbone that run."""
        return self.integration.selection.depth

    def features(
        self,
        texts: Sequence[str],
        *,
        progress: Progress = lambda documents: None,
    ) -> Features:
        """The pooled activations of the selected neurons, as far as each text goes."""
        return read(self.engine, _checked(texts), stay=self._stay if self.leaves else None, progress=progress)

    def _stay(self, index: int, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which documents go on after an exit."""
        decision, taken = Decision.of(self.task, self.decision), self.integration.exits[index]
        return ~leaving(self.task, decision, taken.threshold, self.integration.at(index).logits(values))

    def predict_logits(
        self, texts: Sequence[str], *, progress: Progress = lambda documents: None
    ) -> NDArray[np.floating]:
        """(n, K) calibrated logits, classes in the order of `classes`."""
        found = self.features(texts, progress=progress)
        return self.integration.answer(found.values, found.depth)

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(n, K) calibrated probabilities: each row sums to 1, or in a multi-label task each class is by itself."""
        return self.task.probabilities(self.predict_logits(texts))

    def predict(self, texts: Sequence[str]) -> list[Label | None]:
        """n labels by the thresholds of `decision`, None where it abstains."""
        return self.labels(self.predict_proba(texts))

    def labels(self, probabilities: NDArray[np.floating]) -> list[Label | None]:
        """n labels of probabilities (n, K)."""
        y, near = Decision.of(self.task, self.decision).labels(probabilities)
        return [None if close else name for name, close in zip(self.task.names(y), near, strict=True)]

    def explain(self, text: str) -> Explanation:
        """The logits of one text, divided among neurons and among words: those of the exit at which it leaves."""
        [text] = _checked([text])
        found = self.features([text])
        depths = [taken.depth for taken in self.integration.exits]
        at = len(depths) if found.depth is None or found.depth[0] not in depths else depths.index(found.depth[0])
        part = self.integration.at(at)
        return explain(self.backbone, part, self.task, text, found.values[0, : len(part.selection)])

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
            "multilabel": self.task.multilabel,
            "backbone": {**_elsewhere(self.settings), "digest": self.backbone_digest},
            "metric": self.metric,
            "decision": self.decision.model_dump(),
        }
        return persistence.save(self.integrated, facts)

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
        integrated, config = persistence.load(Path(folder))
        try:
            kept = dict(config["backbone"])
            digest = kept.pop("digest")
            # whether code may run is for who loads it to say, not for the artifact
            settings = BackboneSettings.model_validate({**kept, "trust_remote_code": False})
            if backbone is not None:  # what decides the activations stays as it was in training
                trained = {name: getattr(settings, name) for name in ("max_tokens", "pool_special_tokens")}
                settings = backbone.model_copy(update=trained)
            task = Task(tuple(config["classes"]), config["multilabel"])
            decision = decision or DecisionSettings.model_validate(config["decision"])
            return cls.assemble(
                settings, digest, task, integrated, config["metric"], choose=choose, decision=decision, early=early
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def columns_of(backbone: Backbone, sites: Sequence[str], poolings: Sequence[str] | None) -> list[Column]:
    """Every site.pooling that settings ask for, in order."""
    chosen = poolings or DEFAULT_POOLINGS[backbone.causal]
    unknown = sorted(set(chosen) - set(POOLINGS))
    if unknown:
        raise UserError(f"pooling '{unknown[0]}': expected some of {', '.join(POOLINGS)}")
    return [Column(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


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
