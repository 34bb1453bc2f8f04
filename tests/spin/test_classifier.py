"""The method on one machine: it learns, explains itself exactly, and is the same after it was saved."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin import SpinClassifier
from spin.backbone.digest import compute_digest
from spin.errors import UserError
from spin.labels.metrics import score
from spin.settings import BackboneSettings, Choice, DecisionSettings, ProbeSettings, SearchSettings
from tests.support import tiny
from tests.support.repository import ROOT

CLASSES = {2: ("good", "bad"), 3: ("good", "bad", "plain")}
QUICK: dict[str, Any] = {
    "probe": ProbeSettings(penalties=5),
    "search": SearchSettings(etas=(0.5,), max_share=1, strengths=(0.3, 1), head="linear"),
}


def read(count: int, classes: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    documents = tiny.documents(count, CLASSES[classes], seed)
    return [d["text"] for d in documents], [d["label"] for d in documents]


def read_lists(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Texts that hold words of any number of classes, and the lists of those, some empty."""
    draw = random.Random(seed)
    labels = [[name for name in tiny.WORDS if draw.random() < 0.4] for _ in range(count)]
    words = [[draw.choice(tiny.WORDS[name]) for name in label for _ in range(2)] for label in labels]
    return [" ".join([*draw.choices(tiny.FILLER, k=4), *of]) for of in words], labels


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path) -> BackboneSettings:
    return BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=512)


@pytest.fixture(scope="module", params=[2, 3])
def fitted(request: pytest.FixtureRequest, backbone: BackboneSettings) -> SpinClassifier:
    """Fitted on two classes, then on three."""
    search = SearchSettings(etas=(0.5, 0.9), max_share=1, strengths=(0.3, 1, 3), head="linear")
    return SpinClassifier(backbone, search=search).fit(*read(1200, request.param, seed=0))


@pytest.fixture(scope="module")
def deep(backbone: BackboneSettings) -> SpinClassifier:
    """Three classes read from the FFN alone under all four poolings."""
    spin = SpinClassifier(backbone, sites=["ffn"], poolings=["mean", "max", "first", "last"], **QUICK)
    return spin.fit(*read(300, 3, seed=0))


@pytest.fixture(scope="module")
def lists(backbone: BackboneSettings) -> SpinClassifier:
    """Fitted on texts that have any number of three classes."""
    return SpinClassifier(backbone, **QUICK).fit(*read_lists(1200, seed=0))


def test_it_learns(fitted: SpinClassifier) -> None:
    """Documents that it has never seen get their classes."""
    texts, labels = read(300, len(fitted.classes), seed=1)
    assert fitted.classes == tuple(sorted(CLASSES[len(fitted.classes)]))
    assert (np.array(fitted.predict(texts)) == np.array(labels)).mean() > 0.85
    assert fitted.fitted.summary.valid_score > 0.85


def test_predictions_agree_with_one_another(fitted: SpinClassifier) -> None:
    """Labels are those of the largest probability, probabilities the softmax of the logits."""
    texts, _ = read(40, len(fitted.classes), seed=2)
    logits, probabilities, labels = fitted.predict_logits(texts), fitted.predict_proba(texts), fitted.predict(texts)
    assert logits.shape == probabilities.shape == (40, len(fitted.classes))
    assert len(labels) == 40
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    odds = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-4)
    assert labels == [fitted.classes[k] for k in probabilities.argmax(1)]


def test_features_are_the_selected_neurons_alone(fitted: SpinClassifier) -> None:
    """One value a selected neuron and no other leaves the backbone."""
    found = fitted.features(["the film", "a fine day"]).columns
    selection = fitted.fitted.selection
    assert list(found) == list(selection.neurons)
    assert [v.shape for v in found.values()] == [(2, len(n)) for n in selection.neurons.values()]


def test_nothing_to_predict(fitted: SpinClassifier) -> None:
    """No texts give no labels, of the right shapes."""
    assert fitted.predict([]) == []
    assert fitted.predict_proba([]).shape == (0, len(fitted.classes))
    assert fitted.predict_logits([]).shape == (0, len(fitted.classes))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("a fine film", "found one string; expected a list of texts"),
        (["fine", None], "text 1 is None; expected text that is not empty"),
        ([3.5], "text 0 is 3.5; expected text"),
        (["fine", " \n"], r"text 1 is ' \\n'; expected text that is not empty"),
        ([b"fine"], "text 0 is b'fine'"),
        ([["fine"]], r"text 0 is \['fine'\]"),
    ],
)
def test_what_is_not_text_is_refused(deep: SpinClassifier, texts: list[str], said: str) -> None:
    """By everything that reads texts."""
    for call in (deep.predict, deep.predict_proba, deep.predict_logits):
        with pytest.raises(UserError, match=said):
            call(texts)
    for text in () if isinstance(texts, str) else texts[-1:]:
        with pytest.raises(UserError, match="expected text that is not empty"):
            deep.explain(text)


def test_any_number_of_classes(lists: SpinClassifier, tmp_path: Path) -> None:
    """Lists of classes train a classifier that answers with lists, some empty, also when it was saved and loaded."""
    texts, labels = read_lists(200, seed=1)
    predicted = lists.predict(texts)
    agree = [
        (name in found) == (name in label)
        for found, label in zip(predicted, labels, strict=True)
        for name in tiny.WORDS
    ]
    assert np.mean(agree) > 0.85
    assert {len(found) for found in predicted} >= {0, 1, 2}
    probabilities = lists.predict_proba(texts)
    np.testing.assert_allclose(
        probabilities, 1 / (1 + np.exp(-lists.predict_logits(texts).astype(np.float64))), rtol=1e-4
    )
    assert predicted == [[c for c, p in zip(lists.classes, row, strict=True) if p >= 0.5] for row in probabilities]
    lists.save(tmp_path)
    assert SpinClassifier.load(tmp_path).predict(texts) == predicted


def test_few_labels_are_cross_validated(deep: SpinClassifier, fitted: SpinClassifier) -> None:
    """Below a thousand texts all of them train and all judge, as often as the folds; above, a part does."""
    texts, labels = read(300, 3, seed=1)
    found = score("macro_f1", deep.label_space.index(labels), deep.label_space.index(deep.predict(texts)))
    assert found == pytest.approx(deep.fitted.summary.valid_score, abs=0.08), "an honest estimate"
    rows = sum(len(held) for held in deep.training_result.frontier[-1].held_out)
    assert rows > 300
    assert rows % 300 == 0
    assert len(deep.training_result.frontier[-1].held_out) > 2
    [held] = fitted.training_result.frontier[-1].held_out
    assert 100 < len(held) < 300


@pytest.mark.parametrize("choose", ["accuracy", "balanced", "cheapest"])
def test_one_of_three_is_chosen(fitted: SpinClassifier, tmp_path: Path, choose: Choice) -> None:
    """Under its name, when it is loaded and before, to the depth of its neurons; all three lie in the artifact."""
    fitted.save(tmp_path)
    back = SpinClassifier.load(tmp_path, choose=choose)
    mine = fitted.training_result.choices[choose]
    assert back.depth == mine.selection.depth == mine.summary.depth
    texts, _ = read(30, len(fitted.classes), seed=5)
    raw = np.concatenate(list(back.features(texts).columns.values()), axis=1)
    np.testing.assert_allclose(back.predict_logits(texts), mine.logits(raw), atol=1e-5)
    assert set(back.training_result.choices) == {"accuracy", "balanced", "cheapest"}
    depths = [back.training_result.choices[name].summary.compute for name in ("cheapest", "balanced", "accuracy")]
    assert depths == sorted(depths)


def test_thresholds_and_abstention(fitted: SpinClassifier, tmp_path: Path) -> None:
    """A decision moves labels and no probability; it is saved, and another may be given when it is loaded."""
    texts, _ = read(300, len(fitted.classes), seed=6)
    fitted.save(tmp_path)
    probabilities = fitted.predict_proba(texts)
    strict = SpinClassifier.load(tmp_path, decision=DecisionSettings(thresholds={"good": 0.9}))
    np.testing.assert_array_equal(strict.predict_proba(texts), probabilities)
    at = strict.classes.index("good")
    rest = 0.1 / (len(strict.classes) - 1)
    others = np.delete(probabilities, at, 1).max(1) / rest
    assert [label == "good" for label in strict.predict(texts)] == (probabilities[:, at] / 0.9 > others).tolist()
    assert strict.predict(texts).count("good") < fitted.predict(texts).count("good")
    unsure = SpinClassifier.load(tmp_path, decision=DecisionSettings(abstain=0.5))
    first = np.sort(probabilities, axis=1)[:, -2:]
    assert [label is None for label in unsure.predict(texts)] == (first[:, 1] - first[:, 0] < 0.5).tolist()
    assert 0 < unsure.predict(texts).count(None) < 300
    unsure.save(tmp_path / "again")
    assert SpinClassifier.load(tmp_path / "again").predict(texts) == unsure.predict(texts)
    with pytest.raises(UserError, match="has no class 'ugly'; it has bad, good"):
        SpinClassifier.load(tmp_path, decision=DecisionSettings(thresholds={"ugly": 0.5}))


def test_a_decision_that_does_not_fit_is_refused_before_the_fit(backbone: BackboneSettings) -> None:
    """Of a class that the labels do not have: in words, at once."""
    spin = SpinClassifier(backbone, decision=DecisionSettings(thresholds={"ugly": 0.5}), **QUICK)
    with pytest.raises(UserError, match="has no class 'ugly'"):
        spin.fit(*read(40, 2, seed=0))


def test_fit_refuses_what_it_cannot_learn(backbone: BackboneSettings) -> None:
    """Unequal lengths, one class, something that is not text."""
    texts, labels = read(40, 2, seed=0)
    spin = SpinClassifier(backbone, **QUICK)
    with pytest.raises(UserError, match="found 40 texts and 39 labels"):
        spin.fit(texts, labels[1:])
    with pytest.raises(UserError, match="one class only"):
        spin.fit(texts, ["good"] * 40)
    with pytest.raises(UserError, match="text 39 is None"):
        spin.fit([*texts[:-1], None], labels)  # type: ignore[list-item]
    with pytest.raises(UserError, match="not fitted"):
        spin.predict(texts)


def test_texts_that_are_all_alike_are_said_in_words(backbone: BackboneSettings) -> None:
    """Where no neuron varies, no probe can keep one: no traceback."""
    texts = ["the film ."] * 100
    with pytest.raises(UserError, match="no probe kept a neuron"):
        SpinClassifier(backbone, metric="accuracy", **QUICK).fit(texts, ["good", "good", "bad", "good"] * 25)


@pytest.mark.parametrize("call", ["predict", "predict_proba", "predict_logits", "features", "explain", "save"])
def test_before_fit_it_says_so(backbone: BackboneSettings, tmp_path: Path, call: str) -> None:
    """Everything but fit needs a fitted classifier."""
    argument = {"explain": "fine", "save": tmp_path / "model"}.get(call, ["fine"])
    with pytest.raises(UserError, match="the classifier is not fitted; call fit"):
        getattr(SpinClassifier(backbone), call)(argument)


def test_columns_of_a_table_are_texts(backbone: BackboneSettings) -> None:
    """A numpy array and a pandas column are read as a list is."""
    import pandas as pd

    texts, labels = read(120, 2, seed=0)
    spin = SpinClassifier(backbone, sites=["resid.00"], **QUICK)
    as_list = spin.fit(texts, labels).predict_logits(texts)
    frame = pd.DataFrame({"text": texts, "label": labels}, index=range(1000, 1120))
    as_column = spin.fit(frame["text"], frame["label"]).predict_logits(frame["text"])
    as_array = spin.fit(np.array(texts), np.array(labels)).predict_logits(np.array(texts))
    np.testing.assert_array_equal(as_list, as_column)
    np.testing.assert_array_equal(as_list, as_array)


def test_fit_is_reproducible(backbone: BackboneSettings) -> None:
    """The same texts give the same classifier, bit for bit."""
    first, second = (SpinClassifier(backbone, sites=["resid"], **QUICK).fit(*read(150, 3, seed=0)) for _ in range(2))
    assert first.fitted.selection.rows() == second.fitted.selection.rows()
    np.testing.assert_array_equal(first.fitted.head.coef, second.fitted.head.coef)


def test_company_and_order_do_not_matter(fitted: SpinClassifier, deep: SpinClassifier) -> None:
    """Alone, shuffled or among longer texts: a text has its logits."""
    for spin in (fitted, deep):
        texts, _ = read(60, len(spin.classes), seed=3)
        together = spin.predict_logits(texts)
        order = random.Random(0).sample(range(60), 60)
        np.testing.assert_allclose(spin.predict_logits([texts[i] for i in order]), together[order], atol=1e-4)
        alone = np.concatenate([spin.predict_logits([text]) for text in texts[:10]])
        np.testing.assert_allclose(alone, together[:10], atol=1e-4)
        crowd = spin.predict_logits([" ".join(["film"] * 50), *texts[:10]])[1:]
        np.testing.assert_allclose(crowd, together[:10], atol=1e-4)


def test_saved_and_loaded_it_predicts_the_same(fitted: SpinClassifier, tmp_path: Path) -> None:
    """Bit for bit, from a directory that holds one JSON and one safetensors file: no pickle."""
    fitted.save(tmp_path / "deep" / "model")
    files = {path.name for path in (tmp_path / "deep" / "model").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    back = SpinClassifier.load(tmp_path / "deep" / "model")
    texts, _ = read(50, len(fitted.classes), seed=5)
    # the loaded backbone is cut to the depth, the fitted one is whole
    np.testing.assert_array_equal(back.predict_logits(texts), fitted.predict_logits(texts))
    assert back.predict(texts) == fitted.predict(texts)
    assert (back.classes, back.metric, back.depth) == (fitted.classes, fitted.metric, fitted.depth)
    assert back.fitted.selection.rows() == fitted.fitted.selection.rows()
    back.save(tmp_path / "again")
    tensors, configs = (
        [(folder / name).read_bytes() for folder in (tmp_path / "again", tmp_path / "deep" / "model")]
        for name in ("model.safetensors", "config.json")
    )
    assert tensors[0] == tensors[1]
    assert json.loads(configs[0]) == json.loads(configs[1])


def edited(**changed: object) -> Callable[[Path], None]:
    """Change entries of config.json; None takes one away."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(changed)
        config = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited(format=99), "has format 99, this version reads 4; train the model again"),
        (edited(format=None), "has format None, this version reads 4"),
        (edited(classes=None), "is not a whole classifier: 'classes'"),
        (edited(multilabel=None), "is not a whole classifier: 'multilabel'"),
        (edited(integrations=None), "is not a whole classifier: 'integrations'"),
        (edited(decision={"thresholds": {"good": 2}}), "is not a whole classifier: .*thresholds"),
        (edited(backbone={"digest": "x"}), "is not a whole classifier: .*model"),
        (edited(backbone="bert"), "is not a whole classifier"),
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
    deep: SpinClassifier, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    """Another format, what is missing, what is not what it should be."""
    deep.save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        SpinClassifier.load(tmp_path / "model")


def test_texts_are_read_as_in_training(deep: SpinClassifier, tmp_path: Path) -> None:
    """Another batch size may be given for the weights; how texts are cut and pooled is the artifact's own."""
    deep.save(tmp_path)
    changed = {"max_tokens": 4, "pool_special_tokens": True, "batch_tokens": 64}
    back = SpinClassifier.load(tmp_path, backbone=deep.settings.model_copy(update=changed))
    assert (back.settings.max_tokens, back.settings.pool_special_tokens) == (deep.settings.max_tokens, False)
    assert back.settings.batch_tokens == 64
    texts, _ = read(20, 3, seed=6)
    np.testing.assert_allclose(back.predict_logits(texts), deep.predict_logits(texts), atol=1e-4)


def test_other_weights_are_refused(deep: SpinClassifier, backbone_folder: Path, tmp_path: Path) -> None:
    """A classifier follows its weights to another place, and does not run on other ones."""
    deep.save(tmp_path / "model")
    moved, other = tmp_path / "moved", tiny.bert(tmp_path / "other", seed=1)
    shutil.copytree(backbone_folder, moved)
    texts, _ = read(20, 3, seed=6)

    def load(folder: Path) -> SpinClassifier:
        settings = BackboneSettings(model=str(folder), dtype="float32", device="cpu")
        return SpinClassifier.load(tmp_path / "model", backbone=settings)

    np.testing.assert_allclose(load(moved).predict_logits(texts), deep.predict_logits(texts), atol=1e-4)
    with pytest.raises(UserError, match="the model was trained on .*; point backbone.model at the weights"):
        load(other).predict(texts)
    with (moved / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="the model was trained on"):
        load(moved).predict(texts)
    edited(backbone={**deep.settings.model_dump(), "digest": "0" * 64})(tmp_path / "model")
    with pytest.raises(UserError, match="the model was trained on 000000000000"):
        SpinClassifier.load(tmp_path / "model").predict(texts)


def test_an_artifact_does_not_let_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its config says: only who loads it can trust the code of its backbone."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    folder = tiny.save_model_with_code(tmp_path / "coded", mark)
    trusting = BackboneSettings(model=str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    texts, labels = read(120, 2, seed=0)
    spin = SpinClassifier(trusting, sites=["resid.00"], **QUICK).fit(texts, labels)
    spin.save(tmp_path / "model")
    mark.unlink()
    assert "trust_remote_code" not in json.loads((tmp_path / "model" / "config.json").read_text())["backbone"]
    off = trusting.model_copy(update={"trust_remote_code": False})
    for digest in (spin.backbone_digest, compute_digest(folder)):
        edited(backbone={**trusting.model_dump(), "digest": digest})(tmp_path / "model")
        with pytest.raises(UserError, match="trust_remote_code"):
            SpinClassifier.load(tmp_path / "model").predict(texts)
        with pytest.raises(UserError, match="trust_remote_code"):
            SpinClassifier.load(tmp_path / "model", backbone=off).predict(texts)
    assert not mark.exists()
    spin.save(tmp_path / "model")
    assert SpinClassifier.load(tmp_path / "model", backbone=trusting).predict(texts) == spin.predict(texts)


def test_the_class_needs_no_cluster() -> None:
    """Importing it loads neither Ray nor MLflow nor an object store's client."""
    script = (
        "import sys; from spin import SpinClassifier; "
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'ray', 'mlflow', 's3fs', 'fsspec', 'botocore', 'pipelines', 'jobs'}))"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_threads_may_ask_at_once(fitted: SpinClassifier) -> None:
    """What hooks on the model sees only the pass of its own thread, of predictions and explanations alike."""
    texts, _ = read(64, 2, seed=3)
    parts = [texts[start : start + 8] for start in range(0, 64, 8)]
    one_by_one = [(fitted.predict_proba(part), fitted.explain(part[0]).logits) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda part: (fitted.predict_proba(part), fitted.explain(part[0]).logits), parts))
    for (probabilities, explained), (expected, told) in zip(at_once, one_by_one, strict=True):
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        assert explained == pytest.approx(told)
