"""The whole method on one machine: fit, predict, explain, save and load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from spin.backbone import DEFAULT_POOLINGS, Backbone, load_backbone
from spin.errors import UserError
from spin.explain import Explanation, explain
from spin.extract import Features, Progress, extract
from spin.head import LinearHead
from spin.integrate import Integration, integrate
from spin.metric import METRICS
from spin.pooling import POOLINGS
from spin.probe import fit_probe
from spin.select import Selection
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.sites import Column, choose_sites
from spin.split import index_classes, rows_of, split_of

FORMAT = 1
"""of the artifact; a reader refuses what it does not know"""
_LIBRARIES = ("torch", "transformers", "numpy", "scikit-learn", "safetensors")


class SpinClassifier:
    """A text classifier from the salient inner neurons of a frozen language model.

    >>> spin = SpinClassifier("sentence-transformers/all-MiniLM-L6-v2").fit(texts, labels)  # doctest: +SKIP
    >>> spin.predict(["a fine film"])  # doctest: +SKIP

    `backbone` is what `backbone.model` takes in a settings file, or all of its settings.
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
    ) -> None:
        if metric not in METRICS:
            raise UserError(f"metric '{metric}': expected one of {', '.join(sorted(METRICS))}")
        self.settings = backbone if isinstance(backbone, BackboneSettings) else BackboneSettings(model=backbone)
        self.sites, self.poolings, self.metric, self.seed = tuple(sites), poolings, metric, seed
        self.probe, self.search = probe or ProbeSettings(), search or SearchSettings()
        self.classes: tuple[str, ...] = ()
        self.backbone_digest: str | None = None
        self._integration: Integration | None = None
        self._backbone: Backbone | None = None

    @classmethod
    def assemble(
        cls,
        settings: BackboneSettings,
        digest: str,
        classes: Sequence[str],
        integration: Integration,
        metric: str,
        backbone: Backbone | None = None,
    ) -> SpinClassifier:
        """A fitted classifier from parts that were fitted elsewhere."""
        spin = cls(settings, metric=metric)
        spin.classes, spin.backbone_digest = tuple(classes), digest
        spin._integration, spin._backbone = integration, backbone
        return spin

    def fit(self, texts: Sequence[str], labels: Sequence[str], *, valid_fraction: float = 0.15) -> SpinClassifier:
        """Fit on n texts and labels; a hash of the position sets a part aside to choose penalty, eta and depth.

        Raises UserError for texts that are not text, one class only or a class too small to validate.
        """
        if len(texts) != len(labels):
            raise UserError(f"fit: found {len(texts)} texts and {len(labels)} labels; expected as many of both")
        splits = [split_of(str(row), self.seed, valid_fraction, 0.0) for row in range(len(texts))]
        classes, y = index_classes(list(map(str, labels)), splits)
        train, valid = rows_of(splits, "train"), rows_of(splits, "valid")
        self._backbone = load_backbone(self.settings)
        columns = columns_of(self._backbone, self.sites, self.poolings)
        features = extract(self._backbone, _checked(texts), columns).columns
        probes = [
            fit_probe(
                column,
                (values[train], y[train]),
                (values[valid], y[valid]),
                len(classes),
                metric=self.metric,
                settings=self.probe,
            )
            for column, values in features.items()
        ]
        self._integration = integrate(
            probes,
            lambda selection: np.concatenate([features[c][:, n] for c, n in selection.neurons.items()], axis=1),
            (train, y[train]),
            (valid, y[valid]),
            metric=self.metric,
            settings=self.search,
        )
        self.classes, self.backbone_digest = tuple(classes), self._backbone.digest
        return self

    @property
    def integration(self) -> Integration:
        """The chosen neurons and their head. Raises UserError before `fit`."""
        if self._integration is None:
            raise UserError("the classifier is not fitted; call fit(texts, labels) or load a directory")
        return self._integration

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at first use, checked against the digest it was trained on and cut to the depth."""
        if self._backbone is None:
            self._backbone = load_backbone(self.settings, expect_digest=self.backbone_digest)
            self._backbone.cut(self.integration.selection.depth)
        return self._backbone

    @property
    def depth(self) -> int:
        """Blocks of the backbone that run."""
        return self.integration.selection.depth

    def features(self, texts: Sequence[str], *, progress: Progress = lambda documents: None) -> Features:
        """The pooled activations of the selected neurons, and nothing else."""
        neurons = self.integration.selection.neurons
        return extract(self.backbone, _checked(texts), list(neurons), keep=neurons, progress=progress)

    def predict_logits(
        self, texts: Sequence[str], *, progress: Progress = lambda documents: None
    ) -> NDArray[np.floating]:
        """(n, K) logits, classes in the order of `classes`."""
        values = np.concatenate(list(self.features(texts, progress=progress).columns.values()), axis=1)
        return self.integration.head.logits(self.integration.standardise(values))

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """(n, K) probabilities, each row summing to 1."""
        return softmax(self.predict_logits(texts), axis=1)

    def predict(self, texts: Sequence[str]) -> NDArray[np.str_]:
        """(n,) labels."""
        return np.array(self.classes)[self.predict_logits(texts).argmax(1)]

    def explain(self, text: str) -> Explanation:
        """The logits of one text, divided among neurons and among words."""
        [text] = _checked([text])
        return explain(self.backbone, self.integration, self.classes, text)

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; no pickle, and not the backbone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        integration = self.integration
        tensors: dict[str, NDArray[Any]] = {
            "mean": integration.mean,
            "scale": integration.scale,
            "coef": integration.head.coef,
            "intercept": integration.head.intercept,
        }
        for column, neurons in integration.selection.neurons.items():
            tensors[f"neurons.{column}"] = neurons
            tensors[f"importance.{column}"] = integration.selection.importance[column]
        config = {
            "format": FORMAT,
            "classes": self.classes,
            "backbone": {**self.settings.model_dump(), "digest": self.backbone_digest},
            "metric": self.metric,
            "eta": integration.selection.eta,
            "strength": integration.head.strength,
            "depth": self.depth,
            "valid_score": integration.valid_score,
            "columns": [str(column) for column in integration.selection.neurons],
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, backbone: BackboneSettings | None = None) -> SpinClassifier:
        """Read what `save` wrote; `backbone` says where the same weights lie here and how they are run.

        Raises UserError for an artifact that is not whole, or of another format.
        """
        folder = Path(folder)
        try:
            config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
            tensors = load_file(folder / "model.safetensors")
        except (OSError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} is not a classifier that can be read: {error}") from None
        if config.get("format") != FORMAT:
            raise UserError(
                f"{folder} has format {config.get('format')}, this version reads {FORMAT}; train the model again"
            )
        try:
            columns = [Column.parse(text) for text in config["columns"]]
            selection = Selection(
                {c: tensors[f"neurons.{c}"] for c in columns},
                {c: tensors[f"importance.{c}"] for c in columns},
                config["eta"],
            )
            head = LinearHead(tensors["coef"], tensors["intercept"], config["strength"])
            integration = Integration(selection, tensors["mean"], tensors["scale"], head, config["valid_score"], ())
            trained = dict(config["backbone"])
            digest = trained.pop("digest")
            settings = BackboneSettings(**trained)
            if backbone is not None:  # what decides the activations stays as it was in training
                kept = {name: getattr(settings, name) for name in ("max_tokens", "pool_special_tokens")}
                settings = backbone.model_copy(update=kept)
            return cls.assemble(settings, digest, config["classes"], integration, config["metric"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def columns_of(backbone: Backbone, sites: Sequence[str], poolings: Sequence[str] | None) -> list[Column]:
    """Every site.pooling that settings ask for, in order."""
    chosen = poolings or DEFAULT_POOLINGS[backbone.causal]
    unknown = sorted(set(chosen) - set(POOLINGS))
    if unknown:
        raise UserError(f"pooling '{unknown[0]}': expected some of {', '.join(POOLINGS)}")
    return [Column(site, pooling) for site in choose_sites(sites, backbone.sites) for pooling in chosen]


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserError("found one string; expected a list of texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"text {row} is {text!r:.40}; expected text that is not empty")
    return list(texts)  # a column of pandas or an array is as good as a list
