"""Rows of other libraries: they learn from the labelled documents alone, and from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.method import contenders
from benchmarks.method.contenders import Answer
from benchmarks.method.corpora import Corpus, Exam, Plan, draw_exam
from benchmarks.method.groups import join_groups
from benchmarks.method.peers import fast_text, libraries, set_fit, static_model
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.sites import FeatureColumn, Site
from tests.support import tiny

pytestmark = pytest.mark.slow

CLASSES = ("bad", "good", "plain")
LIBRARY = {
    contenders.tfidf_characters: "sklearn",
    fast_text.fast_text: "fasttext",
    static_model.static_model: "model2vec",
    set_fit.set_fit: "setfit",
    set_fit.set_fit_head: "sklearn",
}
Row = Callable[[Exam], Answer]


def make_corpus(model: Path, multilabel: bool) -> Corpus:
    """400 documents with two words of each of their classes."""
    draw = np.random.default_rng(0)
    indicator = draw.random((400, 3)) < 0.4 if multilabel else np.eye(3, dtype=bool)[draw.integers(0, 3, 400)]
    texts = []
    for row, has in enumerate(indicator):
        words = [tiny.WORDS[name][i] for name in np.array(CLASSES)[has] for i in draw.integers(0, 5, 2)]
        words += [tiny.FILLER[i] for i in draw.integers(0, 10, 5)]
        texts.append(" ".join(draw.permutation(words)) + f" {row}.")
    column = FeatureColumn(Site(3, "final"), "mean")
    values = (indicator @ draw.normal(size=(3, 16)) + draw.normal(size=(400, 16)) / 3).astype(np.float32)
    y = indicator if multilabel else indicator.argmax(1)
    label_space = LabelSpace(CLASSES, multilabel)
    plan = Plan("tiny", "tiny", str(model), None, 200, 50, 100)
    return Corpus(plan, texts, join_groups(texts), y, label_space, {column: values}, {}, 3)


@pytest.fixture(scope="module", params=["single-label", "multi-label"])
def exam(backbone_folder: Path, request: pytest.FixtureRequest) -> Exam:
    """64 documents per class and cross-validation."""
    return draw_exam(make_corpus(backbone_folder, request.param == "multi-label"), "few64", 0)


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of one block with weights that a few steps can change."""
    return tiny.save_bert(tmp_path_factory.mktemp("bert"), width=32, blocks=1, spread=0.1)


def permuted(exam: Exam) -> Exam:
    """The exam with the labels of its labelled documents exchanged among them."""
    y = exam.y.copy()
    rows = exam.data.rows
    y[rows] = y[np.random.default_rng(1).permutation(rows)]
    return replace(exam, data=replace(exam.data, y=y))


@pytest.fixture(autouse=True)
def high_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone has random weights, which the published rate hardly changes."""
    monkeypatch.setattr(set_fit, "RATE", 5e-3)


@pytest.mark.parametrize("row", LIBRARY, ids=lambda row: row.__name__)
def test_a_row_learns_its_labels_and_no_others(exam: Exam, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the labels of other documents it is no better than chance, and the labels of the test are not read."""
    pytest.importorskip(LIBRARY[row])
    monkeypatch.setattr(set_fit, "ITERATIONS", 4)
    answer = row(exam)
    found = answer.row(exam)
    assert found["macro_f1"] > 0.85
    assert 0 <= found["ece"] < 0.4
    assert answer.logits.shape == (100, 3)
    assert np.isfinite(answer.logits).all()
    chance = row(permuted(exam)).row(exam)["macro_f1"]
    assert chance < 0.6
    hidden = exam.y.copy()
    hidden[exam.test] = hidden[exam.test[0]]
    again = row(replace(exam, data=replace(exam.data, y=hidden)))
    np.testing.assert_allclose(again.logits, answer.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [fast_text.fast_text, static_model.static_model, set_fit.set_fit])
def test_another_seed_gives_other_logits(exam: Exam, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARY[row])
    monkeypatch.setattr(set_fit, "ITERATIONS", 1)
    assert np.abs(row(exam).logits - row(replace(exam, data=replace(exam.data, seed=7))).logits).max() > 1e-3


def test_characters_are_those_of_a_plain_loop_over_strengths(backbone_folder: Path) -> None:
    """Each strength fitted per fold with scikit-learn, and the best one on all labelled documents."""
    exam = draw_exam(make_corpus(backbone_folder, False), "few16", 0)
    texts = np.array(exam.corpus.texts, object)

    def fitted(rows: np.ndarray, out: np.ndarray, strength: float) -> np.ndarray:
        vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True, dtype=np.float32
        )
        X = vectorizer.fit_transform(texts[rows])
        model = LogisticRegression(C=strength, max_iter=5000).fit(X, exam.y[rows])
        return model.decision_function(vectorizer.transform(texts[out]))

    means = []
    for strength in contenders.TFIDF_STRENGTHS:
        scores = []
        for fold in exam.folds:
            scores.append(
                score("macro_f1", exam.y[fold.valid], fitted(fold.train, fold.valid, strength).argmax(1)),
            )
        means.append(np.mean(scores))
    strength = contenders.TFIDF_STRENGTHS[int(np.argmax(means))]
    answer = contenders.tfidf_characters(exam)
    assert answer.choice == f"C {strength:.3g}"
    expected = fitted(exam.data.rows, exam.test, strength)
    ratio = answer.logits / expected
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0, 0]), rtol=1e-3)  # the temperature


def test_fast_text_does_not_learn_one_class_after_another(
    backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would forget the classes that came first, and a corpus may be in the order of its classes."""
    fasttext = pytest.importorskip("fasttext")
    corpus = make_corpus(backbone_folder, False)
    exam = draw_exam(corpus, "few64", 0)
    texts = {row: fast_text.prepare(text) for row, text in enumerate(corpus.texts)}
    rows = exam.data.rows[np.argsort(exam.y[exam.data.rows], kind="stable")]
    orders, train = [], fasttext.train_supervised

    def record(input: str, **options: Any) -> Any:
        orders.append([line.split()[0] for line in Path(input).read_text(encoding="utf-8").splitlines()])
        return train(input=input, **options)

    monkeypatch.setattr(fasttext, "train_supervised", record)
    fast_text._logits(exam, texts, rows, exam.test, fast_text.TRIALS[0])
    [labels] = orders
    assert len(labels) == len(rows)
    for start in range(0, len(labels), 32):
        assert set(labels[start : start + 32]) == {"__label__0", "__label__1", "__label__2"}


def test_fast_text_keeps_classes_apart_that_have_no_document(backbone_folder: Path) -> None:
    """An absent class gets a small constant share; documents without classes count in a multi-label task."""
    pytest.importorskip("fasttext")
    corpus = make_corpus(backbone_folder, False)
    exam = draw_exam(corpus, "few16", 0)
    texts = {row: fast_text.prepare(text) for row, text in enumerate(corpus.texts)}
    rows = exam.train[exam.y[exam.train] != 1]
    logits = fast_text._logits(exam, texts, rows, exam.test, fast_text.TRIALS[0])
    assert logits[:, 1] == pytest.approx(np.log(1 / (len(rows) + 2)))
    several = draw_exam(make_corpus(backbone_folder, True), "full", 0)
    assert not several.y[several.train].any(1).all()
    labels = [fast_text._labels(several.y[row], several.corpus.label_space) for row in several.train]
    assert labels.count("__label__none") == (~several.y[several.train].any(1)).sum()


def test_texts_are_prepared_as_words_and_marks_on_one_line() -> None:
    assert fast_text.prepare("It's a\nFILE_name; ok.") == "it ' s a file name ; ok ."
    assert fast_text.prepare("a " * 900).count("a") == fast_text.LONGEST


def test_embeddings_of_set_fit_are_the_last_layer_of_the_corpus(backbone_folder: Path) -> None:
    """The head alone reads what was extracted; it is what the library gets from the backbone without fine-tuning."""
    pytest.importorskip("setfit")
    from sentence_transformers import SentenceTransformer

    from spin.activations.extract import choose_column_types, extract
    from spin.backbone.loading import load_backbone
    from spin.settings import BackboneSettings

    texts = make_corpus(backbone_folder, False).texts[:8]
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), device="cpu"))
    column = FeatureColumn(backbone.final_site, "mean")
    values = extract(backbone, texts, choose_column_types(backbone, texts, [column])).columns[column]
    embeddings = SentenceTransformer(str(backbone_folder), device="cpu").encode(texts)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert (set_fit._unit_length(values) * unit).sum(1).min() > 0.999


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda module: None if module == "fasttext" else object())
    with pytest.raises(UserError, match=r"fasttext cannot be imported; make setup"):
        libraries.require_peers()
    monkeypatch.undo()
    libraries.require_peers(["sklearn"])
