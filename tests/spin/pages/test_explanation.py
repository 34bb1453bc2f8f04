"""Explanations add up to the logits: over neurons, words, sites and layers, for every head, task and pooling."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from transformers import AutoConfig, LlamaConfig

from spin import SpinClassifier, TrainedClassifier
from spin.activations.extract import extract
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.explainer import explain_text
from spin.fitted.decision import Decision
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.labels.label_space import Label, LabelSpace
from spin.labels.standardizer import Standardizer
from spin.pages.explanation import Explanation
from spin.settings import BackboneSettings, DecisionSettings, ProbeSettings, SearchSettings
from tests.support import tiny
from tests.support.summaries import build_choice_summary

SEARCH = SearchSettings(etas=(0.5,), strengths=(1,), network="off")
QUICK: dict[str, Any] = {"probe": ProbeSettings(penalties=3, max_extra=0), "search": SEARCH}
CLASSES = {"binary": ("good", "bad"), "multi-class": ("good", "bad", "plain"), "multi-label": tuple(tiny.WORDS)}
BACKBONES_AND_POOLINGS = [("encoder", "mean"), ("encoder", "max"), ("decoder", "last"), ("decoder", "mean")]
TEXTS = ["a fine film .", "bad", "unheard of words", "the crew was late !", "a\nlovely   day", "film " * 100]


def make_documents(count: int, label_space: str, seed: int = 0) -> tuple[list[str], list[Label]]:
    """Texts and labels. In a multi-label task a text holds words of each of its classes, which may be none."""
    documents = tiny.make_documents(count, CLASSES[label_space], seed)
    if label_space != "multi-label":
        return [d["text"] for d in documents], [d["label"] for d in documents]
    draw = random.Random(seed)
    labels: list[Label] = [[name for name in tiny.WORDS if draw.random() < 0.5] for _ in documents]
    words = [[draw.choice(tiny.WORDS[name]) for name in label for _ in range(2)] for label in labels]
    return [" ".join([*draw.choices(tiny.FILLER, k=4), *words_of_document]) for words_of_document in words], labels


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path) -> BackboneSettings:
    """Settings of a tiny random BERT."""
    return BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> BackboneSettings:
    """Settings of a tiny random Llama."""
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    config = LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=64, initializer_range=0.6)
    folder = tiny.save_backbone(tmp_path_factory.mktemp("llama"), config, tiny.build_tokenizer(special=False))
    return BackboneSettings(model=str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def deep(backbone: BackboneSettings) -> TrainedClassifier:
    """Three classes from FFN neurons under all four poolings at once, with a head of random weights."""
    loaded, draw = load_backbone(backbone), np.random.default_rng(0)
    columns = feature_columns(loaded, ["ffn"], ["mean", "max", "first", "last"])
    activations = extract(loaded, make_documents(60, "multi-class")[0], columns).columns
    neurons = {column: np.arange(0, 24, 5) for column in sorted(columns)}
    values = np.concatenate([activations[column][:, positions] for column, positions in neurons.items()], axis=1)
    selection = Selection(
        neurons, {column: np.full(len(positions), 1 / len(positions)) for column, positions in neurons.items()}, 1.0
    )
    shape = 3, values.shape[1]
    head = LinearHead(*((draw.normal(size=size) / 4).astype(np.float32) for size in (shape, shape[:1])))
    fitted = FittedClassifier(selection, Standardizer(values.mean(0), values.std(0)), head, build_choice_summary())
    training_result = TrainingResult(dict.fromkeys(("accuracy", "balanced", "cheapest"), fitted), (), 0)
    label_space = LabelSpace(CLASSES["multi-class"])
    return TrainedClassifier(backbone, loaded.digest, label_space, training_result, "accuracy", backbone=loaded)


@pytest.fixture(scope="module")
def fit_binary(backbone: BackboneSettings) -> Callable[[str, str, bool], TrainedClassifier]:
    """Return a function that fits a binary classifier once per site, pooling and treatment of special tokens."""

    @cache
    def fit(site: str, pooling: str, special: bool) -> TrainedClassifier:
        settings = backbone.model_copy(update={"pool_special_tokens": special})
        neurons_alone = {**QUICK, "search": SEARCH.model_copy(update={"words": "off"})}
        classifier = SpinClassifier(settings, sites=[site], poolings=[pooling], **neurons_alone)
        return classifier.fit(*make_documents(150, "binary")).trained_

    return fit


def check_sums(explanation: Explanation, logits: np.ndarray, tolerance: float) -> None:
    """Neurons, sites and layers each add up, with terms and bias, to the logits; so do words, with the bias.

    Sites and layers equal sums in a loop.
    """
    terms = explanation.term_contribution
    parts = {
        "neurons": explanation.contributions.sum(0) + terms,
        "words": explanation.word_contributions.sum(0),
        "sites": np.sum(list(explanation.by_site().values()), axis=0) + terms,
        "layers": np.sum(list(explanation.by_layer().values()), axis=0) + terms,
    }
    np.testing.assert_allclose(terms, sum((term.logits for term in explanation.terms), np.zeros(len(logits))))
    for name, part in parts.items():
        np.testing.assert_allclose(part + explanation.bias, logits, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(explanation.logits, logits, atol=tolerance)
    sites: dict[Any, Any] = {}
    layers: dict[Any, Any] = {}
    for (column, _), values in zip(explanation.neurons, explanation.contributions, strict=True):
        for k, value in enumerate(values):
            sites[column.site, k] = sites.get((column.site, k), 0.0) + value
            layers[column.site.layer, k] = layers.get((column.site.layer, k), 0.0) + value
    for expected, sums in ((sites, explanation.by_site()), (layers, explanation.by_layer())):
        assert {(place, k) for place in sums for k in range(len(explanation.label_space))} == expected.keys()
        assert list(sums) == sorted(sums)
        for (place, k), value in expected.items():
            assert sums[place][k] == pytest.approx(value, abs=1e-6)  # type: ignore[index]


def check_explanation(classifier: TrainedClassifier, text: str, tolerance: float = 1e-4) -> None:
    """The explanation adds up to the logits of the classifier and names the same class."""
    explanation = classifier.explain(text)
    check_sums(explanation, classifier.predict_logits([text])[0], tolerance)
    assert explanation.contributions.shape == (classifier.fitted.selection.neuron_count, len(classifier.classes))
    np.testing.assert_allclose(explanation.probabilities, classifier.predict_proba([text])[0], atol=tolerance)
    named = [classifier.classes[k] for k in explanation.chosen]
    [label] = classifier.predict([text])
    assert (
        sorted(named) == sorted(label) if classifier.label_space.multilabel else named == [label] == [explanation.label]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pooling", "label_space", "head"),
    [(*backbone, label_space, "linear") for backbone in BACKBONES_AND_POOLINGS for label_space in CLASSES]
    + [
        (*backbone, label_space, "network")
        for backbone, label_space in zip(
            BACKBONES_AND_POOLINGS, ("binary", "multi-class", "multi-label", "binary"), strict=True
        )
    ],
)
def test_explanations_of_every_head_and_task_add_up(
    backbone: BackboneSettings,
    decoder: BackboneSettings,
    kind: str,
    pooling: str,
    label_space: str,
    head: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within 1e-4 for a linear head and 1e-2 for a network, under the poolings that suit each kind of backbone."""
    monkeypatch.setattr("spin.integrate.integrate.LEAST_SHARE", -1.0)  # a network is taken whatever it is worth
    settings = {
        **QUICK,
        "search": SEARCH.model_copy(
            update={"network": "auto" if head == "network" else "off", "words": "auto" if head == "linear" else "off"}
        ),
        "sites": ["resid.01", "ffn.03"],
    }
    spin = SpinClassifier(backbone if kind == "encoder" else decoder, poolings=[pooling], **settings)
    classifier = spin.fit(*make_documents(240 if head == "network" else 120, label_space)).trained_
    assert type(classifier.fitted.head) is (LinearHead if head == "linear" else NetworkHead)
    for text in TEXTS:
        check_explanation(classifier, text, 1e-4 if head == "linear" else 1e-2)


@pytest.fixture(scope="module")
def with_words(backbone: BackboneSettings) -> SpinClassifier:
    """A classifier that reads words as well."""
    classifier = SpinClassifier(backbone, **{**QUICK, "search": SEARCH.model_copy(update={"words": "on"})})
    return classifier.fit(*make_documents(150, "multi-class"))


@pytest.mark.parametrize("text", ["\0lovely crew", "lovely\0\0 crew \x01", "é\0film\u200b", "lovely " * 3000])
def test_characters_that_the_backbone_drops_count_for_their_terms(with_words: SpinClassifier, text: str) -> None:
    explanation = with_words.explain(text)
    assert explanation.terms
    total = explanation.word_contributions.sum(0) + explanation.bias
    np.testing.assert_allclose(total, with_words.predict_logits([text])[0], atol=1e-4)


def test_the_label_is_the_predicted_one(deep: TrainedClassifier) -> None:
    """By the thresholds, where these give another class than the most probable."""
    explanation = deep.explain("a fine film .")
    rare = explanation.classes[explanation.ranked[1]]
    settings = DecisionSettings(thresholds={rare: 0.001})
    changed = replace(explanation, decision=Decision.of(explanation.label_space, settings))
    assert (explanation.label, changed.label) == (explanation.classes[explanation.ranked[0]], rare)
    assert changed.top(1) == explanation.top(1, rare)


@pytest.mark.parametrize("text", TEXTS)
def test_the_explanation_of_a_network_head_is_complete(deep: TrainedClassifier, text: str) -> None:
    """Integrated gradients add up to the logits even if random hidden weights make the head far from linear."""
    draw = np.random.default_rng(0)
    linear, (k, p) = deep.fitted.head, deep.fitted.head.coef.shape  # type: ignore[union-attr]
    shapes = ((32, p), (32,), (k, 32))
    network = NetworkHead(*vars(linear).values(), *(draw.normal(size=shape).astype(np.float32) for shape in shapes))  # type: ignore[arg-type]
    fitted = replace(deep.fitted, head=network)
    values = np.concatenate(list(deep.features([text]).columns.values()), axis=1)
    logits = fitted.logits(values)[0]
    assert np.abs(logits - deep.fitted.logits(values)[0]).max() > 1
    check_sums(explain_text(deep.backbone, fitted, deep.label_space, text, values[0]), logits, 1e-2)


@pytest.mark.parametrize("text", TEXTS)
def test_an_explanation_is_exact_under_all_poolings_at_once(deep: TrainedClassifier, text: str) -> None:
    """Texts beyond the token limit and unknown words are included."""
    assert {column.pooling for column in deep.fitted.selection.neurons} == {"mean", "max", "first", "last"}
    check_explanation(deep, text)


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last"])
@pytest.mark.parametrize("special", [False, True])
def test_an_explanation_is_exact_under_each_pooling(
    fit_binary: Callable[[str, str, bool], TrainedClassifier], pooling: str, special: bool
) -> None:
    """Each pooling by itself, with and without special tokens in the pooled content."""
    for text in make_documents(5, "binary", seed=4)[0]:
        check_explanation(fit_binary("ffn", pooling, special), text)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_words_are_shown_as_typed(fit_binary: Callable[[str, str, bool], TrainedClassifier], pooling: str) -> None:
    """Special tokens have no contribution under mean and max pooling."""
    text = "the  crew was lovely !"
    explanation = fit_binary("ffn", pooling, False).explain(text)
    words = [explanation.word(i) for i in range(len(explanation.words))]
    assert words == ["(special)", "the", "crew", "was", "lovely", "!", "(special)"]
    np.testing.assert_array_equal(explanation.word_contributions[[0, -1]], 0)


@pytest.mark.slow
def test_the_pieces_of_a_word_are_explained_as_one_word(tmp_path: Path) -> None:
    """Where a tokenizer splits words, a word gets the sum over its pieces and is shown whole."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "day", "love", "##ly", "aw", "##fu", "##l", "!"]
    config = AutoConfig.from_pretrained(tiny.save_bert(tmp_path / "plain"))
    tokenizer = tiny.build_tokenizer()
    model_tokenizer = tokenizer.backend_tokenizer
    model_tokenizer.model = WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    settings = BackboneSettings(model=str(tiny.save_backbone(tmp_path / "pieces", config, tokenizer)), dtype="float32")
    texts = ["the lovely day !", "awful day", "the day was awful !", "lovely"] * 30
    spin = SpinClassifier(settings, sites=["ffn"], **QUICK).fit(texts, ["good", "bad", "bad", "good"] * 30)
    classifier = spin.trained_
    explanation = classifier.explain("the awful  lovely!")
    assert len(classifier.backbone.tokenizer("the awful  lovely!")["input_ids"]) == 9
    words = [explanation.word(i) for i in range(len(explanation.words))]
    assert words == ["(special)", "the", "awful", "lovely", "!", "(special)"]
    check_explanation(classifier, "the awful  lovely!")


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("text", ["the day was lovely and it was the film", "a cold crew !"])
def test_words_have_the_contribution_of_their_own_activations(
    fit_binary: Callable[[str, str, bool], TrainedClassifier], text: str, pooling: str
) -> None:
    """Computed from the hidden states. Each word gets its share of a mean, and a single word gets all of a max."""
    classifier = fit_binary("resid.01", pooling, False)
    explanation, head, standardizer = classifier.explain(text), classifier.fitted.head, classifier.fitted.standardizer
    with torch.no_grad():
        encoded = classifier.backbone.tokenizer(text, return_tensors="pt")
        hidden = classifier.backbone.model(**encoded, output_hidden_states=True).hidden_states[1][0].numpy()
    expected = np.zeros((len(hidden), 2))
    content = np.arange(1, len(hidden) - 1)
    for feature, (_, neuron) in enumerate(explanation.neurons):
        shares = np.zeros(len(hidden))
        if pooling == "mean":
            shares[content] = (hidden[content, neuron] - standardizer.mean[feature]) / len(content)
        else:
            position = 1 + hidden[content, neuron].argmax()
            shares[position] = hidden[position, neuron] - standardizer.mean[feature]
        shares /= standardizer.scale[feature]
        expected += shares[:, None] * head.coef[:, feature]
        assert explanation.loudest[feature] == np.abs(shares).argmax()
    np.testing.assert_allclose(explanation.word_contributions, expected, atol=1e-4)


def test_the_top_neurons_have_the_largest_contributions(deep: TrainedClassifier) -> None:
    """In descending order, for the predicted class or a given one, each with the word of its largest share."""
    explanation = deep.explain("the crew was late !")
    for label in (None, *explanation.classes):
        column = explanation.contributions[:, explanation.classes.index(label or explanation.label)]
        top = explanation.top(4, label)
        assert [abs(n.contribution) for n in top] == sorted(np.abs(column), reverse=True)[:4]
        for neuron in top:
            index = explanation.neurons.index((neuron.column, neuron.neuron))
            assert neuron.contribution == column[index]
            assert neuron.word == explanation.word(int(explanation.loudest[index]))
            assert neuron.value == explanation.values[index]
    features = np.concatenate(list(deep.features([explanation.text]).columns.values()), axis=1)
    np.testing.assert_allclose(explanation.values, deep.fitted.standardizer.transform(features)[0], atol=1e-4)


def test_a_loaded_classifier_gives_the_same_explanation(deep: TrainedClassifier, tmp_path: Path) -> None:
    """An explanation needs nothing that is not saved."""
    deep.save(tmp_path)
    loaded = TrainedClassifier.load(tmp_path)
    check_explanation(loaded, "the crew was late !")
    explanation, expected = loaded.explain("a fine film"), deep.explain("a fine film")
    np.testing.assert_allclose(explanation.word_contributions, expected.word_contributions, atol=1e-5)


LONG_TEXTS = ["a fine film .", "\t".join(f"the {word} crew\nwas  late on it !" for word in tiny.WORDS["good"] * 3)]


@pytest.fixture(scope="module")
def in_windows(deep: TrainedClassifier) -> TrainedClassifier:
    """The classifier `deep`, for texts that are read in windows of 12 tokens."""
    windows = {"max_tokens": 12, "long_texts": "windows", "window_overlap": 4, "max_windows": 9}
    settings = deep.settings.model_copy(update=windows)
    return TrainedClassifier(
        settings, deep.backbone_digest, deep.label_space, deep.training_result, deep.metric
    )  # fmt: skip


@pytest.mark.parametrize("text", [*TEXTS, *LONG_TEXTS, "[SEP] " * 30])
def test_an_explanation_of_several_windows_is_exact(in_windows: TrainedClassifier, text: str) -> None:
    """Under all poolings at once, also of a text without content and of one of more tokens than are read."""
    check_explanation(in_windows, text)


def test_words_of_several_windows_are_shown_once_and_as_typed(in_windows: TrainedClassifier) -> None:
    text = LONG_TEXTS[1]
    explanation = in_windows.explain(text)
    words = [explanation.word(i) for i in range(len(explanation.words))]
    read = text.split()[: 10 + 8 * 6]
    assert len(text.split()) > len(read)
    assert [word for word in words if word != "(special)"] == read
    assert explanation.truncated
    assert not in_windows.explain(" ".join(read)).truncated


def test_a_text_that_ends_with_what_the_tokenizer_drops_is_not_truncated(
    deep: TrainedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the variation selector behind many an emoji."""
    monkeypatch.setattr(deep.backbone.tokenizer.backend_tokenizer, "normalizer", BertNormalizer())
    assert not deep.explain("a fine film \ufe0f").truncated


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_words_have_the_contribution_of_their_own_activations_in_their_window(
    fit_binary: Callable[[str, str, bool], TrainedClassifier], pooling: str
) -> None:
    """Computed from the hidden states of windows that are cut by hand; the words of an overlap count where they end."""
    fitted, text = fit_binary("resid.01", pooling, False), "the day was lovely and it was the film on a cold crew of it"
    words, room, overlap = text.split(), 6, 2
    windows = {"max_tokens": room + 2, "long_texts": "windows", "window_overlap": overlap}
    classifier = TrainedClassifier(
        fitted.settings.model_copy(update=windows), fitted.backbone_digest, fitted.label_space,
        fitted.training_result, fitted.metric,
    )  # fmt: skip
    rows: list[np.ndarray] = []
    for start in range(0, len(words) - overlap, room - overlap):
        with torch.no_grad():
            encoded = fitted.backbone.tokenizer(" ".join(words[start : start + room]), return_tensors="pt")
            states = fitted.backbone.model(**encoded, output_hidden_states=True).hidden_states[1][0].numpy()
        rows += list(states[1:-1][overlap if start else 0 :])
    hidden, expected = np.array(rows), np.zeros((len(words), 2))
    explanation, standardizer = classifier.explain(text), fitted.fitted.standardizer
    for feature, (_, neuron) in enumerate(explanation.neurons):
        shares = (hidden[:, neuron] - standardizer.mean[feature]) / len(words)
        if pooling == "max":
            at = hidden[:, neuron].argmax()
            shares = np.where(np.arange(len(words)) == at, hidden[at, neuron] - standardizer.mean[feature], 0)
        expected += (shares / standardizer.scale[feature])[:, None] * fitted.fitted.head.coef[:, feature]  # type: ignore[union-attr]
    of_words = [i for i in range(len(explanation.words)) if explanation.word(i) != "(special)"]
    assert [explanation.word(i) for i in of_words] == words
    np.testing.assert_allclose(explanation.word_contributions[of_words], expected, atol=1e-4)
