"""Words beside neurons, from texts to labels: training, features, early exits, explanations, shared passes, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spin import SpinClassifier, TrainedClassifier
from spin.activations.extract import extract
from spin.fitted.decision import Decision
from spin.settings import BackboneSettings, CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.shared_pass import SharedPass
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("many_labels")
SEARCH = SearchSettings(etas=(0.5,), max_share=1, strengths=(0.3, 1), network="off", words="on")
CLASSES = ("good", "bad", "plain")
TEXTS = [d["text"] for d in tiny.make_documents(90, CLASSES, seed=3)]


def fit(backbone: BackboneSettings, seed: int = 0, search: SearchSettings = SEARCH) -> TrainedClassifier:
    """A classifier of documents whose labels are wrong now and then, so that no evidence is perfect."""
    documents = tiny.make_documents(1100, CLASSES, seed)
    draw = np.random.default_rng(seed)
    labels = [str(draw.choice(CLASSES)) if draw.random() < 0.3 else d["label"] for d in documents]
    cascade = CascadeSettings(max_loss=0.3, depths=(0.4, 0.8))
    spin = SpinClassifier(backbone, probe=ProbeSettings(penalties=4), search=search, cascade=cascade)
    return spin.fit([d["text"] for d in documents], labels).trained_


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path, many_labels: None) -> BackboneSettings:
    return BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=64)


@pytest.fixture(scope="module")
def spin(backbone: BackboneSettings) -> TrainedClassifier:
    """A classifier with exits that some documents take, though words alone would lose little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.integrate.exit_thresholds.THRESHOLDS", (0.6,))
        return fit(backbone)


@pytest.fixture(scope="module")
def folder(spin: TrainedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved classifier."""
    path: Path = tmp_path_factory.mktemp("spin")
    spin.save(path)
    return path


def test_features_are_the_words_logits_and_the_neurons(spin: TrainedClassifier) -> None:
    """By the word regression and by an extraction of all neurons, each on its own."""
    features, selection = spin.features(TEXTS), spin.fitted.selection
    assert spin.training_result.words is not None
    assert selection.word_logits == 3
    assert len(selection) == features.values.shape[1] == 3 + selection.neuron_count
    everything = extract(spin.backbone, TEXTS, list(selection.neurons)).columns
    expected = [everything[column][:, neurons] for column, neurons in selection.neurons.items()]
    np.testing.assert_array_equal(features.values[:, :3], spin.training_result.words.logits(TEXTS))
    np.testing.assert_allclose(features.values[:, 3:], np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_documents_exit_by_words_and_neurons_together(spin: TrainedClassifier, folder: Path) -> None:
    """Depths and logits are those that the values at full depth give, document by document."""
    early = TrainedClassifier.load(folder, early=True)
    assert early.exits_early
    fitted, values = early.fitted, spin.features(TEXTS).values
    depths = fitted.exit_depths(values, Decision.of(early.label_space, DecisionSettings()))
    predictions = early.predict_all(TEXTS)
    np.testing.assert_array_equal(predictions.exit_depth, depths)
    assert len(set(depths)) > 1
    np.testing.assert_allclose(predictions.logits, fitted.predict_logits(values, depths), rtol=1e-4, atol=1e-4)
    [row] = [index for index in range(len(TEXTS)) if depths[index] == min(depths)][:1]
    explanation = early.explain(TEXTS[row])
    np.testing.assert_allclose(explanation.logits, predictions.logits[row], atol=1e-4)


def test_a_loaded_classifier_reads_the_same_words(spin: TrainedClassifier, folder: Path) -> None:
    np.testing.assert_array_equal(TrainedClassifier.load(folder).predict_logits(TEXTS), spin.predict_logits(TEXTS))


def test_words_may_decide_alone(spin: TrainedClassifier, folder: Path) -> None:
    """Where that loses little, the cheapest choice reads no neuron, runs no block and opens no engine."""
    cheapest = TrainedClassifier.load(folder, choose="cheapest", early=True)
    summary = cheapest.fitted.summary
    assert (summary.neurons, summary.words, summary.depth, summary.compute) == (0, True, 0, 0)
    cheapest.prepare()
    assert cheapest.forward_pass.engine is None
    advanced: list[int] = []
    features = cheapest.features(TEXTS, progress=advanced.append)
    assert sum(advanced) == len(TEXTS)
    assert features.columns == {}
    np.testing.assert_array_equal(features.n_tokens, spin.features(TEXTS).n_tokens)
    regression = cheapest.training_result.words
    assert regression is not None
    head = cheapest.fitted.head
    weight = head.slopes(np.zeros(3, np.float32))[0, 0] / cheapest.fitted.standardizer.scale[0]
    expected = weight * regression.logits(TEXTS) + head.bias
    np.testing.assert_allclose(cheapest.predict_logits(TEXTS), expected, rtol=1e-4, atol=1e-5)
    explanation = cheapest.explain("a lovely day for the crew")
    assert explanation.neurons == ()
    assert {term for term, _ in explanation.top_terms(3, "good")} & {"lovely"}
    np.testing.assert_allclose(explanation.word_contributions.sum(0) + explanation.bias, explanation.logits, atol=1e-5)


def test_strings_of_characters_count_with_the_word_that_they_stand_in(folder: Path) -> None:
    """No piece of a word is listed by itself, and nothing of the sum is lost."""
    spin = TrainedClassifier.load(folder, choose="cheapest")
    explanation = spin.explain("We sat for hours, hours; and it was LOVELY!")
    whole = explanation.whole_terms
    words = {"we", "sat", "for", "hours", "and", "it", "was", "lovely"}
    assert {name for name in whole if " " not in name} <= words
    pieces = [term for term in explanation.terms if term.unit == "characters" and term.term.strip() not in words]
    assert pieces, "the vocabulary holds strings of characters"
    np.testing.assert_allclose(sum(whole.values()), explanation.term_contribution, atol=1e-6)
    assert {term for term, _ in explanation.top_terms(99)} == set(whole)


def test_an_explanation_covers_the_words_that_the_backbone_does_not_read(spin: TrainedClassifier, folder: Path) -> None:
    """A word beyond the token limit has the contribution of its terms, and the sum is still exact."""
    cut = TrainedClassifier.load(folder)
    cut.settings = cut.settings.model_copy(update={"max_tokens": 8})
    text = "the crew was on it " * 3 + "lovely"
    explanation = cut.explain(text)
    assert explanation.truncated
    start = text.index("lovely")
    [index] = [i for i, (begin, _) in enumerate(explanation.words) if begin == start]
    assert explanation.word_contributions[index, explanation.classes.index("good")] > 0
    total = explanation.word_contributions.sum(0) + explanation.bias
    np.testing.assert_allclose(total, cut.predict_logits([text])[0], atol=1e-4)


@pytest.mark.slow
def test_classifiers_in_a_shared_pass_read_their_own_words(backbone: BackboneSettings, spin: TrainedClassifier) -> None:
    other = fit(backbone, seed=1)
    features = SharedPass([spin, other]).features(TEXTS)
    for classifier, own in zip((spin, other), features, strict=True):
        np.testing.assert_array_equal(own.values, classifier.features(TEXTS).values)
    assert not np.array_equal(features[0].values[:, :3], features[1].values[:, :3])


def test_a_choice_of_words_alone_shares_no_pass(spin: TrainedClassifier, folder: Path) -> None:
    cheapest = TrainedClassifier.load(folder, choose="cheapest")
    shared = SharedPass([spin, cheapest])
    first, second = shared.features(TEXTS)
    np.testing.assert_array_equal(first.values, spin.features(TEXTS).values)
    np.testing.assert_array_equal(second.values, cheapest.features(TEXTS).values)


@pytest.mark.slow
def test_without_words_nothing_of_them_is_kept(backbone: BackboneSettings) -> None:
    spin = fit(backbone, search=SEARCH.model_copy(update={"words": "off"}))
    assert spin.training_result.words is None
    assert not any(fitted.selection.word_logits for fitted in spin.training_result.choices.values())
    assert spin.features(TEXTS).words is None
    assert not any(name.startswith("words.") for name in spin.files())
    assert spin.explain(TEXTS[0]).terms == ()
