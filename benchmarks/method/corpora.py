"""A corpus of the benchmark: its documents, their activations on disk, and their division by a seed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from benchmarks.method.division import divide, draw_per_class, draw_until_each_class
from benchmarks.method.groups import join_groups
from spin.activations.extract import choose_column_types, extract
from spin.arrays import Floats, Hashes, Rows
from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import Label, LabelSpace, Targets, class_names
from spin.labels.training_data import TrainingData
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

METRIC = "macro_f1"
"""by which every choice is made"""
FLIPPED = 0.2
"""share of the training labels that the noisy setting moves to another class"""
_VALID_SHARE = 0.2
_CHUNK = 1024


@dataclass(frozen=True)
class Plan:
    """The documents and the model of a corpus."""

    name: str
    title: str
    model: str
    documents: int | None
    """drawn once from all of the task, in proportion to the classes if each document has one; None for all"""
    train: int
    valid: int
    test: int
    max_tokens: int = 256
    classes: int | None = None
    """the number of classes, the largest of the task; None for all"""

    def record(self) -> dict[str, Any]:
        """The plan as JSON values; without `classes` where it is None, since plans had no such field before."""
        return {name: value for name, value in asdict(self).items() if name != "classes" or value is not None}


@dataclass(frozen=True)
class Documents:
    """Labelled texts."""

    texts: list[str]
    labels: Sequence[Label]
    """one class each, or in a multi-label task a list of classes, which may be empty"""
    origin: str = ""
    """where the texts are from, with the version, for the page"""
    groups: Sequence[str] = ()
    """a name each: documents of one name are never divided among training, validation and test; none if empty"""

    @property
    def multilabel(self) -> bool:
        """Whether the labels are lists of classes."""
        return not isinstance(self.labels[0], str)

    def of_largest_classes(self, count: int) -> Documents:
        """The documents of the classes with the most documents; in a multi-label task all, with fewer labels each."""
        counts = Counter(name for label in self.labels for name in class_names(label))
        largest = set(sorted(counts, key=lambda name: (-counts[name], name))[:count])
        if self.multilabel:
            return replace(self, labels=[[name for name in label if name in largest] for label in self.labels])
        kept = [row for row, label in enumerate(self.labels) if label in largest]
        texts, labels = [self.texts[row] for row in kept], [self.labels[row] for row in kept]
        return replace(self, texts=texts, labels=labels, groups=[self.groups[row] for row in kept if self.groups])


@dataclass(frozen=True)
class Corpus:
    """Documents with their labels and their activations in a frozen model."""

    plan: Plan
    texts: list[str]
    groups: Hashes
    """(n,) equal for documents that are never divided: near-identical texts, and those of one group of the task"""
    y: Targets
    label_space: LabelSpace
    features: dict[FeatureColumn, Floats]
    """(n, width) each, memory-mapped; the last layer after the final norm included"""
    flops: dict[Site, float]
    """FLOPs per token to read a site, as a share of the whole backbone's"""
    depth: int
    origin: str = ""
    """where the texts are from, with the version"""

    @property
    def sites(self) -> dict[FeatureColumn, Floats]:
        """The columns that probes are fitted on: all but the last layer after the final norm."""
        return {c: values for c, values in self.features.items() if c.site.kind != "final"}

    @property
    def neurons(self) -> int:
        """The number of neurons that probes are fitted on, counted once per pooling."""
        return sum(values.shape[1] for values in self.sites.values())

    def compute(self, site: Site) -> float:
        """The share of the backbone's FLOPs that reading a site costs; 1 for the last layer after the final norm."""
        return 1.0 if site.kind == "final" else self.flops[site]


@dataclass(frozen=True)
class Exam:
    """The input of every contender: documents to learn from, and test documents."""

    corpus: Corpus
    train: Rows
    valid: Rows
    test: Rows
    data: TrainingData
    """the labelled documents and the folds of validation"""

    @classmethod
    def of(cls, corpus: Corpus, y: Targets, train: Rows, valid: Rows, test: Rows, seed: int) -> Exam:
        """The exam of a division, by targets `y` of all documents."""
        folds = make_folds(corpus.label_space, y, train, valid, seed, corpus.groups)
        data = TrainingData(y, folds, corpus.label_space, METRIC, seed=seed, groups=corpus.groups)
        return cls(corpus, train, valid, test, data)

    @property
    def y(self) -> Targets:
        """Targets of all documents, those of the training documents possibly flipped."""
        return self.data.y

    @property
    def seed(self) -> int:
        """By which the documents were drawn."""
        return self.data.seed

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Training against validation documents, or cross-validation of both where labels are few."""
        return self.data.folds


def draw_exam(corpus: Corpus, setting: str, seed: int) -> Exam:
    """The documents of a setting: `full`, `noisy`, or `few16` with the number of labels per class.

    In `full` and `noisy` the seed draws the division. With few labels it draws from all documents but the first
    division's test documents, which so all draws share. Documents of one group are never divided, neither
    among training, validation and test nor among folds. A multi-label corpus is divided in proportion to the rarest
    classes of the documents, and has no setting `noisy`.
    """
    few, plan = setting.startswith("few"), corpus.plan
    strata = corpus.label_space.strata(corpus.y)
    train, valid, test = divide(strata, corpus.groups, (plan.train, plan.valid, plan.test), 0 if few else seed)
    y = corpus.y
    if few:
        pool = np.setdiff1d(np.arange(len(corpus.y)), test)
        train, valid = _few(corpus, pool, int(setting.removeprefix("few")), seed)
    elif setting == "noisy":
        y = _flipped(corpus, train, seed)
    return Exam.of(corpus, y, train, valid, test, seed)


def _few(corpus: Corpus, pool: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    """`count` documents per class from `pool`, a fifth of them for validation; all differ by more than their form."""
    draw = draw_until_each_class if corpus.label_space.multilabel else draw_per_class
    drawn = draw(corpus.y, corpus.groups, pool, count, seed)
    valid_count = max(1, round(_VALID_SHARE * count))
    valid, train = ([rows[part] for rows in drawn] for part in (slice(valid_count), slice(valid_count, None)))
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))


def _flipped(corpus: Corpus, train: Rows, seed: int) -> Targets:
    """The targets with a share of the training ones moved to another class, chosen uniformly."""
    assert not corpus.label_space.multilabel, "a document with several classes has no other one to move to"
    draw, y = np.random.default_rng(seed), corpus.y.copy()
    flipped = draw.choice(train, round(FLIPPED * len(train)), replace=False)
    y[flipped] = (y[flipped] + draw.integers(1, len(corpus.label_space), len(flipped))) % len(corpus.label_space)
    return y


def extract_corpus(plan: Plan, read: Callable[[], Documents], folder: Path) -> None:
    """Extract all activations of a corpus into `folder`, unless it already holds those of the same plan.

    `read` returns the documents that the plan draws from; it is called only if they are needed.
    """
    file = folder / "corpus.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")).get("plan") == plan.record():
        return
    file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    documents = read()
    drawn = _draw(documents, plan)
    backbone = load_backbone(BackboneSettings(model=plan.model, device="cpu", max_tokens=plan.max_tokens))
    columns = [FeatureColumn(site, p) for site in backbone.sites for p in DEFAULT_POOLINGS[backbone.causal]]
    columns += [
        FeatureColumn(backbone.final_site, pooling) for pooling in (("last", "mean") if backbone.causal else ("mean",))
    ]
    texts = drawn["text"].tolist()
    start = time.perf_counter()
    _write_activations(plan, backbone, texts, columns, folder)
    metadata = {
        "plan": plan.record(),
        "columns": [str(column) for column in columns],
        "flops": {str(site): share for site, share in relative_flops(backbone).items()},
        "depth": backbone.depth,
        "origin": documents.origin,
        "docs_per_s": round(len(texts) / (time.perf_counter() - start), 1),
    }
    drawn.to_parquet(folder / "documents.parquet")
    file.write_text(json.dumps(metadata), encoding="utf-8")


def load(plan: Plan, folder: Path) -> Corpus:
    """The corpus that `extract_corpus` wrote to a folder."""
    metadata = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    documents = pd.read_parquet(folder / "documents.parquet")
    labels = [label if isinstance(label, str) else list(label) for label in documents["label"]]
    multilabel = not isinstance(labels[0], str)
    label_space = LabelSpace(tuple(sorted({name for label in labels for name in class_names(label)})), multilabel)
    features = {
        FeatureColumn.parse(name): np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        for name in metadata["columns"]
    }
    texts = documents["text"].tolist()
    return Corpus(
        plan,
        texts,
        join_groups(texts, documents["group"].tolist() if "group" in documents else ()),
        label_space.index(labels),
        label_space,
        features,
        {Site.parse(name): share for name, share in metadata["flops"].items()},
        metadata["depth"],
        metadata.get("origin", ""),
    )


def _draw(documents: Documents, plan: Plan) -> pd.DataFrame:
    """The documents of a plan, with the columns `text` and `label`, and `group` if the task has groups."""
    if plan.classes is not None:
        documents = documents.of_largest_classes(plan.classes)
    frame = pd.DataFrame({"text": documents.texts, "label": documents.labels})
    if documents.groups:
        frame["group"] = documents.groups
    if plan.documents is not None:
        strata = None if documents.multilabel else frame["label"]
        frame, _ = train_test_split(frame, train_size=plan.documents, stratify=strata, random_state=0)
    return frame.reset_index(drop=True)


def _write_activations(
    plan: Plan, backbone: Backbone, texts: Sequence[str], columns: list[FeatureColumn], folder: Path
) -> None:
    """Write one array per feature column to disk, chunk by chunk."""
    types = choose_column_types(backbone, texts[:64], columns)
    files = {
        c: np.lib.format.open_memmap(folder / f"{c}.npy", "w+", types[c], (len(texts), backbone.width(c.site)))
        for c in columns
    }
    start = time.perf_counter()
    for first in range(0, len(texts), _CHUNK):
        activations = extract(backbone, texts[first : first + _CHUNK], types)
        for column, values in activations.columns.items():
            files[column][first : first + len(values)] = values
        end = min(first + _CHUNK, len(texts))
        print(f"{plan.title}: {end:,} of {len(texts):,} documents, {time.perf_counter() - start:.0f} s", flush=True)
