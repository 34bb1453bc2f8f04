"""A trained classifier on one machine: predict, explain, save and load."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from spin import SpinClassifier, TrainedClassifier
from spin.backbone.digest import compute_digest
from spin.errors import UserError
from spin.labels.metrics import score
from spin.labels.training_data import TrainingData
from spin.settings import BackboneSettings, Choice, DecisionSettings, ProbeSettings, SearchSettings
from tests.support import many_words, tiny
from tests.support.repository import ROOT

CLASSES = {2: ("good", "bad"), 3: ("good", "bad", "plain")}
QUICK: dict[str, Any] = {
    "probe": ProbeSettings(penalties=5),
    "search": SearchSettings(etas=(0.5,), max_share=1, strengths=(0.3, 1), network="off"),
}


def generate_documents(count: int, classes: int, seed: int) -> tuple[list[str], list[str]]:
    """Return texts and labels."""
    documents = tiny.make_documents(count, CLASSES[classes], seed)
    return [d["text"] for d in documents], [d["label"] for d in documents]


def generate_multilabel_documents(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Return texts with words of any number of classes, and the lists of these classes, some empty."""
    draw = random.Random(seed)
    labels = [[name for name in tiny.WORDS if draw.random() < 0.4] for _ in range(count)]
    words = [[draw.choice(tiny.WORDS[name]) for name in label for _ in range(2)] for label in labels]
    return [" ".join([*draw.choices(tiny.FILLER, k=4), *of_labels]) for of_labels in words], labels


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path, many_labels: None) -> BackboneSettings:
    return BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=512)


@pytest.fixture(scope="module", params=[2, 3])
def fitted(request: pytest.FixtureRequest, backbone: BackboneSettings) -> TrainedClassifier:
    """A classifier of two classes, then one of three. Words, which decide these texts alone, do not count."""
    search = SearchSettings(etas=(0.5, 0.9), max_share=1, strengths=(0.3, 1, 3), network="off", words="off")
    return SpinClassifier(backbone, search=search).fit(*generate_documents(1200, request.param, seed=0)).trained_


@pytest.fixture(scope="module")
def ffn_classifier(backbone: BackboneSettings, all_folds: None) -> TrainedClassifier:
    """A classifier of three classes from FFN sites under all four poolings, chosen with as many folds as users get."""
    options = QUICK | {"search": QUICK["search"].model_copy(update={"words": "off"})}
    spin = SpinClassifier(backbone, sites=["ffn"], poolings=["mean", "max", "first", "last"], **options)
    return spin.fit(*generate_documents(300, 3, seed=0)).trained_


@pytest.fixture(scope="module")
def multilabel(backbone: BackboneSettings) -> TrainedClassifier:
    """A classifier of texts that have any number of three classes."""
    return SpinClassifier(backbone, **QUICK).fit(*generate_multilabel_documents(1200, seed=0)).trained_


def test_unseen_documents_are_classified_correctly(fitted: TrainedClassifier) -> None:
    """Accuracy on test documents and the validation score are above 0.85."""
    texts, labels = generate_documents(300, len(fitted.classes), seed=1)
    assert fitted.classes == tuple(sorted(CLASSES[len(fitted.classes)]))
    assert (np.array(fitted.predict(texts)) == np.array(labels)).mean() > 0.85
    assert fitted.fitted.summary.valid_score > 0.85


def test_labels_probabilities_and_logits_agree(fitted: TrainedClassifier) -> None:
    """The label has the largest probability, and the probabilities are the softmax of the logits."""
    texts, _ = generate_documents(40, len(fitted.classes), seed=2)
    logits, probabilities, labels = fitted.predict_logits(texts), fitted.predict_proba(texts), fitted.predict(texts)
    assert logits.shape == probabilities.shape == (40, len(fitted.classes))
    assert len(labels) == 40
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    exponentials = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-4)
    assert labels == [fitted.classes[k] for k in probabilities.argmax(1)]


def test_features_are_the_values_of_the_selected_neurons_only(fitted: TrainedClassifier) -> None:
    columns = fitted.features(["the film", "a fine day"]).columns
    selection = fitted.fitted.selection
    assert list(columns) == list(selection.neurons)
    assert [values.shape for values in columns.values()] == [(2, len(n)) for n in selection.neurons.values()]


@pytest.mark.slow
def test_fit_complies_with_a_cap_on_leakage(backbone: BackboneSettings, tmp_path: Path) -> None:
    """It reads neurons that reveal fewer words of its own texts, and keeps the figures."""
    texts, labels = generate_documents(600, 2, seed=0)
    texts = many_words.add_words(texts)
    reading = backbone.model_copy(update={"model": str(many_words.save_bert(tmp_path))})

    def fit(max_leakage: float) -> TrainedClassifier:
        changes = {"max_leakage": max_leakage, "etas": (0.9,), "words": "off"}
        search = QUICK["search"].model_copy(update=changes)
        spin = SpinClassifier(reading, sites=["ffn"], search=search, probe=QUICK["probe"])
        return spin.fit(texts, labels).trained_

    free = fit(0.99)
    result, before = free.training_result, free.fitted.summary
    assert result.cap is not None
    assert before.leakage is not None
    assert before.leakage > result.cap.by_frequency + 0.05
    most = (before.leakage + result.cap.by_frequency) / 2
    capped = fit(most)
    after = capped.fitted.summary
    assert after.leakage is not None
    assert result.cap.by_frequency - 0.03 < after.leakage <= most < before.leakage
    assert capped.training_result.cap is not None
    uncapped = capped.training_result.cap.uncapped["accuracy"]
    assert (uncapped.leakage, uncapped.valid_score) == (before.leakage, before.valid_score)
    assert uncapped.price == pytest.approx(before.valid_score - after.valid_score, abs=2e-4)


def test_no_texts_give_empty_results(fitted: TrainedClassifier) -> None:
    assert fitted.predict([]) == []
    assert fitted.predict_proba([]).shape == (0, len(fitted.classes))
    assert fitted.predict_logits([]).shape == (0, len(fitted.classes))


def test_half_a_character_is_named(fitted: TrainedClassifier) -> None:
    """Tokenizers refuse it, and say neither of which text nor why."""
    with pytest.raises(UserError, match=r"^text 1 holds half a character \(a lone surrogate\): 'so \\ud83d'"):
        fitted.predict(["fine", "so \ud83d"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a fine film", "found one string; expected a list of texts"),
        (["fine", None], "text 1 is None; expected text that is not empty"),
        ([3.5], "text 0 is 3.5; expected text"),
        (["fine", " \n"], r"text 1 is ' \\n'; expected text that is not empty"),
        ([b"fine"], "text 0 is b'fine'"),
        ([["fine"]], r"text 0 is \['fine'\]"),
    ],
)
def test_values_that_are_not_text_are_refused(
    ffn_classifier: TrainedClassifier, texts: list[str], message: str
) -> None:
    """All methods that read texts refuse them."""
    for method in (ffn_classifier.predict, ffn_classifier.predict_proba, ffn_classifier.predict_logits):
        with pytest.raises(UserError, match=message):
            method(texts)
    for text in () if isinstance(texts, str) else texts[-1:]:
        with pytest.raises(UserError, match="expected text that is not empty"):
            ffn_classifier.explain(text)


def test_a_multilabel_classifier_predicts_lists_of_classes(multilabel: TrainedClassifier, tmp_path: Path) -> None:
    """Lists may be empty; a loaded classifier predicts the same lists."""
    texts, labels = generate_multilabel_documents(200, seed=1)
    predicted = cast(list[list[str]], multilabel.predict(texts))
    agreements = [
        (name in prediction) == (name in label)
        for prediction, label in zip(predicted, labels, strict=True)
        for name in tiny.WORDS
    ]
    assert np.mean(agreements) > 0.85
    assert {len(prediction) for prediction in predicted} >= {0, 1, 2}
    probabilities = multilabel.predict_proba(texts)
    np.testing.assert_allclose(
        probabilities, 1 / (1 + np.exp(-multilabel.predict_logits(texts).astype(np.float64))), rtol=1e-4
    )
    assert predicted == [[c for c, p in zip(multilabel.classes, row, strict=True) if p >= 0.5] for row in probabilities]
    multilabel.save(tmp_path)
    assert TrainedClassifier.load(tmp_path).predict(texts) == predicted


def test_few_labels_are_cross_validated(
    ffn_classifier: TrainedClassifier, backbone: BackboneSettings, all_folds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 300 texts the scores are those of five folds; with 1,200 those of the validation split."""
    texts, labels = generate_documents(300, 3, seed=1)
    index, valid_score = ffn_classifier.label_space.index, ffn_classifier.fitted.summary.valid_score
    test_score = score("macro_f1", index(labels), index(ffn_classifier.predict(texts)))  # type: ignore[arg-type]
    assert test_score == pytest.approx(valid_score, abs=0.08), "the validation score is biased"
    folds: list[int] = []

    def count_folds(features: object, data: TrainingData, **options: object) -> None:
        folds.append(len(data.folds))
        raise StopIteration

    monkeypatch.setattr("spin.fit.fit_classifiers", count_folds)
    for count in (300, 1200):
        with pytest.raises(StopIteration):
            SpinClassifier(backbone, sites=["resid.00"], **QUICK).fit(*generate_documents(count, 3, seed=0))
    assert folds[0] in (3, 5)
    assert folds[1] == 1


@pytest.mark.parametrize("choose", ["accuracy", "balanced", "cheapest"])
def test_a_saved_classifier_offers_three_choices(fitted: TrainedClassifier, tmp_path: Path, choose: Choice) -> None:
    """`choose` selects one at loading, with its neurons, depth and head; costlier choices compute more."""
    fitted.save(tmp_path)
    loaded = TrainedClassifier.load(tmp_path, choose=choose)
    choice = fitted.training_result.choices[choose]
    assert loaded.depth == choice.selection.depth == choice.summary.depth
    texts, _ = generate_documents(30, len(fitted.classes), seed=5)
    raw = loaded.features(texts).values
    np.testing.assert_allclose(loaded.predict_logits(texts), choice.logits(raw), atol=1e-5)
    assert set(loaded.training_result.choices) == {"accuracy", "balanced", "cheapest"}
    costs = [loaded.training_result.choices[name].summary.compute for name in ("cheapest", "balanced", "accuracy")]
    assert costs == sorted(costs)


@pytest.mark.slow
def test_thresholds_and_abstention_change_labels_but_not_probabilities(
    fitted: TrainedClassifier, tmp_path: Path
) -> None:
    """The decision is saved with the classifier, and loading may replace it."""
    texts, _ = generate_documents(300, len(fitted.classes), seed=6)
    fitted.save(tmp_path)
    probabilities = fitted.predict_proba(texts)
    strict = TrainedClassifier.load(tmp_path, decision=DecisionSettings(thresholds={"good": 0.9}))
    np.testing.assert_array_equal(strict.predict_proba(texts), probabilities)
    good = strict.classes.index("good")
    other_threshold = 0.1 / (len(strict.classes) - 1)
    others = np.delete(probabilities, good, 1).max(1) / other_threshold
    assert [label == "good" for label in strict.predict(texts)] == (probabilities[:, good] / 0.9 > others).tolist()
    assert strict.predict(texts).count("good") < fitted.predict(texts).count("good")
    abstaining = TrainedClassifier.load(tmp_path, decision=DecisionSettings(abstain=0.5))
    top_two = np.sort(probabilities, axis=1)[:, -2:]
    assert [label is None for label in abstaining.predict(texts)] == (top_two[:, 1] - top_two[:, 0] < 0.5).tolist()
    assert 0 < abstaining.predict(texts).count(None) < 300
    abstaining.save(tmp_path / "again")
    assert TrainedClassifier.load(tmp_path / "again").predict(texts) == abstaining.predict(texts)
    with pytest.raises(UserError, match="has no class 'ugly'; it has bad, good"):
        TrainedClassifier.load(tmp_path, decision=DecisionSettings(thresholds={"ugly": 0.5}))


def test_chosen_thresholds_decide_wherever_a_classifier_gives_labels(fitted: TrainedClassifier, tmp_path: Path) -> None:
    """In predictions, labels of probabilities and explanations, also after saving; the settings replace them."""
    texts, _ = generate_documents(100, len(fitted.classes), seed=6)
    fitted.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    thresholds = dict.fromkeys(fitted.classes, 1e-9) | {"bad": 1.0 - 1e-9}
    for part in config["classifiers"]:
        part["summary"]["thresholds"] = thresholds
    (tmp_path / "config.json").write_text(json.dumps(config))
    decided = TrainedClassifier.load(tmp_path)
    assert decided.predict(texts).count("bad") < fitted.predict(texts).count("bad")
    assert decided.labels(decided.predict_proba(texts)) == decided.predict(texts)
    pairs = zip(texts, fitted.predict(texts), decided.predict(texts), strict=True)
    text = next(text for text, before, after in pairs if before != after)
    explanation = decided.explain(text)
    assert [explanation.label] == decided.predict([text])
    assert [explanation.classes[k] for k in explanation.chosen] == decided.predict([text])
    decided.save(tmp_path / "again")
    assert TrainedClassifier.load(tmp_path / "again").predict(texts) == decided.predict(texts)
    equal = DecisionSettings(thresholds=dict.fromkeys(fitted.classes, 0.5))
    assert TrainedClassifier.load(tmp_path, decision=equal).predict(texts) == fitted.predict(texts)


def test_a_threshold_for_an_unknown_class_is_refused_by_fit(backbone: BackboneSettings) -> None:
    spin = SpinClassifier(backbone, decision=DecisionSettings(thresholds={"ugly": 0.5}), **QUICK)
    with pytest.raises(UserError, match="has no class 'ugly'"):
        spin.fit(*generate_documents(40, 2, seed=0))


def test_fit_refuses_texts_and_labels_that_cannot_be_learned(backbone: BackboneSettings) -> None:
    """Unequal lengths, a single class, and a value that is not text. The classifier then stays unfitted."""
    texts, labels = generate_documents(40, 2, seed=0)
    spin = SpinClassifier(backbone, **QUICK)
    with pytest.raises(UserError, match="found 40 texts and 39 labels"):
        spin.fit(texts, labels[1:])
    with pytest.raises(UserError, match="one class only"):
        spin.fit(texts, ["good"] * 40)
    with pytest.raises(UserError, match="text 39 is None"):
        spin.fit([*texts[:-1], None], labels)  # type: ignore[list-item]
    with pytest.raises(UserError, match="not fitted"):
        spin.predict(texts)


@pytest.mark.parametrize("count", [120, 1200])
def test_near_identical_texts_never_train_and_validate_in_the_same_fold(
    backbone: BackboneSettings, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Neither in cross-validation nor where labels are many; a text that is added later moves none."""

    class Fitted(Exception):
        """Raised in place of the fit, with the data that it was given."""

    def stop(_: Any, data: TrainingData, **__: Any) -> None:
        raise Fitted(data)

    monkeypatch.setattr("spin.fit.fit_classifiers", stop)
    names = [f"number {n // 2}" for n in range(count)]
    texts = [f"the film {name}" if n % 2 else f"@you The FILM: {name}!" for n, name in enumerate(names)]
    labels = ["good" if n // 2 % 2 else "bad" for n in range(count)]

    def read_folds(texts: list[str], labels: list[str], names: list[str]) -> list[list[set[str]]]:
        """The names of the documents that train and validate, by fold."""
        with pytest.raises(Fitted) as fitted:
            SpinClassifier(backbone, sites=["resid.00"], **QUICK).fit(texts, labels)
        return [[{names[row] for row in rows} for rows in (f.train, f.valid)] for f in fitted.value.args[0].folds]

    folds = read_folds(texts, labels, names)
    assert (len(folds) > 1) == (count < 1000)
    for train, valid in folds:
        assert train
        assert valid
        assert not train & valid
    if len(folds) == 1:
        [[more_train, more_valid]] = read_folds(["a new one", *texts], ["bad", *labels], ["new", *names])
        assert (more_train - {"new"}, more_valid - {"new"}) == (train, valid)


def test_fit_refuses_classes_without_two_texts_that_differ(backbone: BackboneSettings) -> None:
    """Cross-validation would have nothing to validate on that it has not trained on."""
    message = (
        "all documents of class 'bad', 'good' to train and validate are of one group: their texts are near-identical"
    )
    with pytest.raises(UserError, match=message):
        SpinClassifier(backbone, **QUICK).fit(["the film ."] * 100, ["good", "good", "bad", "good"] * 25)


@pytest.mark.slow
def test_fit_refuses_texts_that_are_all_equal_to_the_model(backbone: BackboneSettings) -> None:
    """The words are unknown to its tokenizer. No neuron varies, so no probe can select one."""
    texts = [f"unknown{n}" for n in range(100)]
    with pytest.raises(UserError, match="no probe kept a neuron"):
        SpinClassifier(backbone, metric="accuracy", **QUICK).fit(texts, ["good", "good", "bad", "good"] * 25)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_logits", "explain", "save"])
def test_an_unfitted_classifier_asks_for_fit(backbone: BackboneSettings, tmp_path: Path, method: str) -> None:
    argument = {"explain": "fine", "save": tmp_path / "model"}.get(method, ["fine"])
    with pytest.raises(UserError, match="the classifier is not fitted; call fit"):
        getattr(SpinClassifier(backbone), method)(argument)


@pytest.mark.slow
def test_numpy_arrays_and_pandas_columns_are_read_like_lists(backbone: BackboneSettings) -> None:
    import pandas as pd

    texts, labels = generate_documents(120, 2, seed=0)
    spin = SpinClassifier(backbone, sites=["resid.00"], **QUICK)
    from_list = spin.fit(texts, labels).predict_logits(texts)
    frame = pd.DataFrame({"text": texts, "label": labels}, index=range(1000, 1120))
    from_column = spin.fit(frame["text"], frame["label"]).predict_logits(frame["text"])
    from_array = spin.fit(np.array(texts), np.array(labels)).predict_logits(np.array(texts))  # type: ignore[arg-type]
    np.testing.assert_array_equal(from_list, from_column)
    np.testing.assert_array_equal(from_list, from_array)


@pytest.mark.slow
def test_the_same_texts_give_bitwise_the_same_classifier(backbone: BackboneSettings) -> None:
    first, second = (
        SpinClassifier(backbone, sites=["resid"], **QUICK).fit(*generate_documents(150, 3, seed=0)).trained_
        for _ in range(2)
    )
    assert first.fitted.selection.rows() == second.fitted.selection.rows()
    np.testing.assert_array_equal(first.fitted.head.coef, second.fitted.head.coef)  # type: ignore[union-attr]


def test_logits_of_a_text_do_not_depend_on_other_texts(
    fitted: TrainedClassifier, ffn_classifier: TrainedClassifier
) -> None:
    """A text has the same logits alone, in another order, and next to a long text."""
    for spin in (fitted, ffn_classifier):
        texts, _ = generate_documents(60, len(spin.classes), seed=3)
        together = spin.predict_logits(texts)
        order = random.Random(0).sample(range(60), 60)
        np.testing.assert_allclose(spin.predict_logits([texts[i] for i in order]), together[order], atol=1e-4)
        alone = np.concatenate([spin.predict_logits([text]) for text in texts[:10]])
        np.testing.assert_allclose(alone, together[:10], atol=1e-4)
        after_long_text = spin.predict_logits([" ".join(["film"] * 50), *texts[:10]])[1:]
        np.testing.assert_allclose(after_long_text, together[:10], atol=1e-4)


def test_a_loaded_classifier_predicts_bitwise_the_same(fitted: TrainedClassifier, tmp_path: Path) -> None:
    """The directory holds one JSON and one safetensors file, no pickle; saving it again gives the same files."""
    fitted.save(tmp_path / "deep" / "model")
    files = {path.name for path in (tmp_path / "deep" / "model").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    loaded = TrainedClassifier.load(tmp_path / "deep" / "model")
    texts, _ = generate_documents(50, len(fitted.classes), seed=5)
    # the loaded backbone is truncated at the depth of the classifier, the fitted one is whole
    np.testing.assert_array_equal(loaded.predict_logits(texts), fitted.predict_logits(texts))
    assert loaded.predict(texts) == fitted.predict(texts)
    assert (loaded.classes, loaded.metric, loaded.depth) == (fitted.classes, fitted.metric, fitted.depth)
    assert loaded.fitted.selection.rows() == fitted.fitted.selection.rows()
    loaded.save(tmp_path / "again")
    tensors, configs = (
        [(folder / name).read_bytes() for folder in (tmp_path / "again", tmp_path / "deep" / "model")]
        for name in ("model.safetensors", "config.json")
    )
    assert tensors[0] == tensors[1]
    assert json.loads(configs[0]) == json.loads(configs[1])


def edit_config(section: str | None = None, **changes: object) -> Callable[[Path], None]:
    """Return a function that changes entries of config.json in a folder, or of a section; None removes an entry."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edited = config if section is None else config[section]
        edited.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del edited[name]
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_config(format=99), "has format 99, this version reads 11; install the version of SPIN that wrote it"),
        (edit_config(format=None), "has format None, this version reads 11"),
        (edit_config("metadata", classes=None), "is not a whole classifier: metadata.classes: Field required"),
        (edit_config(metadata=None), "is not a whole classifier: 'metadata'"),
        (edit_config(classifiers=None), "is not a whole classifier: classifiers: Field required"),
        (edit_config("metadata", decision={"thresholds": {"good": 2}}), "is not a whole classifier: .*thresholds"),
        (edit_config("metadata", backbone={"device": "cpu"}), "is not a whole classifier: .*model"),
        (edit_config("metadata", backbone="bert"), "is not a whole classifier"),
        (lambda folder: (folder / "config.json").unlink(), "is not a classifier that can be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is not a classifier that can be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a classifier that can be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "has format None"),
        (lambda folder: (folder / "config.json").write_text("3"), "is not a classifier that can be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"PK"), "is not a classifier that can be read"),
        (shutil.rmtree, "is not a classifier that can be read"),
    ],
)
def test_a_damaged_directory_is_refused(
    ffn_classifier: TrainedClassifier, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """The format is unknown, a file or an entry is missing, or a value is wrong."""
    ffn_classifier.save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        TrainedClassifier.load(tmp_path / "model")


def test_loading_does_not_change_truncation_and_pooling(ffn_classifier: TrainedClassifier, tmp_path: Path) -> None:
    """Settings given at loading may change the batch size; truncation and pooling stay those of training."""
    ffn_classifier.save(tmp_path)
    changes = {"max_tokens": 4, "pool_special_tokens": True, "batch_tokens": 64}
    loaded = TrainedClassifier.load(tmp_path, backbone=ffn_classifier.settings.model_copy(update=changes))
    assert (loaded.settings.max_tokens, loaded.settings.pool_special_tokens) == (
        ffn_classifier.settings.max_tokens,
        False,
    )
    assert loaded.settings.batch_tokens == 64
    texts, _ = generate_documents(20, 3, seed=6)
    np.testing.assert_allclose(loaded.predict_logits(texts), ffn_classifier.predict_logits(texts), atol=1e-4)


def test_loading_keeps_the_windows_of_training(ffn_classifier: TrainedClassifier, tmp_path: Path) -> None:
    """Whatever the settings at loading."""
    windows = {"max_tokens": 8, "long_texts": "windows", "window_overlap": 2, "max_windows": 3}
    trained = TrainedClassifier(
        ffn_classifier.settings.model_copy(update=windows), ffn_classifier.backbone_digest,
        ffn_classifier.label_space, ffn_classifier.training_result, ffn_classifier.metric,
    )  # fmt: skip
    trained.save(tmp_path)
    texts = [" ".join(generate_documents(3, 3, seed=seed)[0]) for seed in range(8)]
    assert not np.allclose(trained.predict_logits(texts), ffn_classifier.predict_logits(texts), atol=1e-3)
    for given in (None, ffn_classifier.settings, ffn_classifier.settings.model_copy(update={"max_windows": 1})):
        loaded = TrainedClassifier.load(tmp_path, backbone=given)
        assert {name: getattr(loaded.settings, name) for name in windows} == windows
        np.testing.assert_allclose(loaded.predict_logits(texts), trained.predict_logits(texts), atol=1e-4)


def test_a_classifier_runs_only_on_the_weights_of_its_training(
    ffn_classifier: TrainedClassifier, backbone_folder: Path, tmp_path: Path
) -> None:
    """The weights may be in another folder; different weights or a different tokenizer are refused."""
    ffn_classifier.save(tmp_path / "model")
    moved, other = tmp_path / "moved", tiny.save_bert(tmp_path / "other", seed=1)
    shutil.copytree(backbone_folder, moved)
    texts, _ = generate_documents(20, 3, seed=6)

    def load(folder: Path) -> TrainedClassifier:
        settings = BackboneSettings(model=str(folder), dtype="float32", device="cpu")
        return TrainedClassifier.load(tmp_path / "model", backbone=settings)

    np.testing.assert_allclose(load(moved).predict_logits(texts), ffn_classifier.predict_logits(texts), atol=1e-4)
    with pytest.raises(UserError, match="the model was trained on .*; point backbone.model at the weights"):
        load(other).predict(texts)
    with (moved / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="the model was trained on"):
        load(moved).predict(texts)
    edit_config("metadata", backbone_digest="0" * 64)(tmp_path / "model")
    with pytest.raises(UserError, match="the model was trained on 000000000000"):
        TrainedClassifier.load(tmp_path / "model").predict(texts)


@pytest.mark.slow
def test_an_artifact_cannot_allow_code_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its config holds, only the settings given at loading can trust the code of the backbone."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"
    folder = tiny.save_model_with_code(tmp_path / "coded", marker)
    trusting = BackboneSettings(model=str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    texts, labels = generate_documents(120, 2, seed=0)
    spin = SpinClassifier(trusting, sites=["resid.00"], **QUICK).fit(texts, labels).trained_
    spin.save(tmp_path / "model")
    marker.unlink()
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["metadata"]["backbone"]
    assert stored["trust_remote_code"] is False
    distrusting = trusting.model_copy(update={"trust_remote_code": False})
    for digest in (spin.backbone_digest, compute_digest(folder)):
        edit_config("metadata", backbone=trusting.model_dump(), backbone_digest=digest)(tmp_path / "model")
        with pytest.raises(UserError, match="trust_remote_code"):
            TrainedClassifier.load(tmp_path / "model").predict(texts)
        with pytest.raises(UserError, match="trust_remote_code"):
            TrainedClassifier.load(tmp_path / "model", backbone=distrusting).predict(texts)
    assert not marker.exists()
    spin.save(tmp_path / "model")
    assert TrainedClassifier.load(tmp_path / "model", backbone=trusting).predict(texts) == spin.predict(texts)


@pytest.mark.slow
def test_importing_the_classifier_loads_no_cluster_libraries() -> None:
    """Neither Ray nor MLflow nor a client of an object store is imported."""
    script = (
        "import sys; from spin import TrainedClassifier; "
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'ray', 'mlflow', 's3fs', 'fsspec', 'botocore', 'pipelines', 'jobs'}))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.strip() == "[]"


def test_threads_may_predict_and_explain_concurrently(fitted: TrainedClassifier) -> None:
    """Each thread's hooks on the model see only the forward pass of that thread."""
    texts, _ = generate_documents(64, 2, seed=3)
    batches = [texts[start : start + 8] for start in range(0, 64, 8)]
    sequential = [(fitted.predict_proba(batch), fitted.explain(batch[0]).logits) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        concurrent = list(
            pool.map(lambda batch: (fitted.predict_proba(batch), fitted.explain(batch[0]).logits), batches)
        )
    for (probabilities, logits), (expected_probabilities, expected_logits) in zip(concurrent, sequential, strict=True):
        np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-6)
        assert logits == pytest.approx(expected_logits)
