"""The benchmark of the method where a document may have several classes: its draws, and every row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.method import contenders, lineup, paper, siren
from benchmarks.method.all_neurons import all_neurons
from benchmarks.method.corpora import Corpus, Exam, Plan, draw_exam
from benchmarks.method.division import draw_until_each_class
from benchmarks.method.tasks.task import LAYERS
from spin.fitted.decision import apply_thresholds
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.labels.split_groups import hash_text
from spin.sites import FeatureColumn, Site

PLAN = Plan("tiny", "tiny", "none", None, 200, 60, 120)
WORDS = ("fine", "cold", "table", "film")
SHARES = (0.5, 0.3, 0.2, 0.08)


@pytest.fixture(scope="module")
def corpus(backbone_folder: Path) -> Corpus:
    """500 documents with any of four classes, which a word and some neurons of the upper block give away mostly."""
    draw = np.random.default_rng(0)
    y = draw.random((500, 4)) < SHARES
    shown = y ^ (draw.random(y.shape) < 0.05)
    texts = [
        f"document {row} " + " ".join(word for word, has in zip(WORDS, shown[row], strict=True) if has)
        for row in range(500)
    ]
    columns = [FeatureColumn(Site(0, "resid"), pooling) for pooling in ("max", "mean")]
    columns += [FeatureColumn(Site(1, kind), p) for kind in ("ffn", "resid") for p in ("max", "mean")]
    features = {
        c: (y @ draw.normal(size=(4, 60)) * (1 + c.site.layer) / 2 + draw.normal(size=(500, 60))).astype("f4")
        for c in [*columns, FeatureColumn(Site(1, "final"), "mean")]
    }
    groups = np.array([hash_text(text) for text in texts], np.uint64)
    flops = {c.site: float(c.site.layer) for c in columns}
    plan = replace(PLAN, model=str(backbone_folder))  # model2vec distils it
    return Corpus(plan, texts, groups, y, LabelSpace(tuple("abcd"), multilabel=True), features, flops, 1)


def test_few_documents_are_drawn_until_each_class_has_its_number() -> None:
    """Rare classes come first, and what they bring along of other classes counts there."""
    has = np.zeros((300, 3), bool)
    has[:200, 0] = True
    has[100:140, 1] = True  # all of them have the first class too
    has[200:205, 2] = True
    groups = np.arange(300, dtype=np.uint64)
    groups[1] = groups[0]
    parts = draw_until_each_class(has, groups, np.arange(300), 10, 0)
    rows = np.concatenate(parts)
    assert [len(part) for part in parts] == [5, 10, 0, 10]
    assert has[rows].sum(0).tolist() == [10, 10, 5]
    assert len(np.unique(groups[rows])) == len(rows)
    assert not has[parts[-1]].any()
    assert not np.array_equal(rows, np.concatenate(draw_until_each_class(has, groups, np.arange(300), 10, 1)))


def test_every_class_is_divided_in_proportion(corpus: Corpus) -> None:
    exam = draw_exam(corpus, "full", 0)
    sides = (exam.train, exam.valid, exam.test)
    assert [len(side) for side in sides] == [200, 60, 120]
    assert len(np.unique(np.concatenate(sides))) == 380
    for side in sides:
        assert corpus.y[side].mean(0) == pytest.approx(corpus.y.mean(0), abs=0.06)


def test_labels_of_several_classes_cannot_be_flipped(corpus: Corpus) -> None:
    with pytest.raises(AssertionError, match="no other one"):
        draw_exam(corpus, "noisy", 0)


@pytest.fixture(scope="module", params=["full", "few16"])
def exam(corpus: Corpus, request: pytest.FixtureRequest) -> Exam:
    """An exam with most of the documents, and one with a few of each class."""
    return draw_exam(corpus, request.param, 0)


@pytest.mark.slow
def test_all_rows_answer(exam: Exam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a probability per class that does not depend on the others, and is better than constant answers."""
    pytest.importorskip("fasttext")
    pytest.importorskip("model2vec")
    monkeypatch.setattr(siren, "RATES", (2e-3,))
    monkeypatch.setattr(paper, "ETAS", (0.5,))
    y = exam.y[exam.test]
    constant = max(score("macro_f1", y, np.full_like(y, answer)) for answer in (False, True))
    names = []
    for answer in lineup.answers(exam, "full", LAYERS):
        names.append(answer.name)
        row = json.loads(json.dumps(answer.row(exam)))
        assert row["macro_f1"] > constant + 0.1, row
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["ece"] < (0.5 if answer.name.startswith("SetFit") else 0.3), row  # it has no temperature
        assert answer.logits.shape == y.shape
        predicted = exam.corpus.label_space.predict(answer.logits) if answer.predicted is None else answer.predicted
        assert predicted.shape == y.shape
        assert predicted.dtype == bool
        counts = predicted.sum(1)
        assert counts.min() == 0
        assert counts.max() > 1
    assert names == [row.name for row in lineup.rows_of("full", LAYERS)]


def test_all_neurons_are_a_regression_per_class(exam: Exam) -> None:
    """Another class does not change the logits of one, up to the strength that is chosen for all together."""
    logits = all_neurons(exam).logits
    assert np.abs(np.corrcoef(logits.T)[np.triu_indices(4, 1)]).max() < 0.7


def test_thresholds_are_chosen_on_held_out_logits(corpus: Corpus) -> None:
    """Where the logits of a rare class are too low, the documents that deserve it get it all the same."""
    exam = draw_exam(corpus, "few64", 0)
    draw = np.random.default_rng(0)
    offsets = np.array([0, 0, 0, -3.0])

    def made(rows: np.ndarray) -> np.ndarray:
        return (4.0 * exam.y[rows] - 2 + draw.normal(size=(len(rows), 4)) + offsets).astype(np.float32)

    held_out = [made(fold.valid) for fold in exam.folds]
    logits = made(exam.test) / contenders.temperature(exam, held_out)
    chosen = contenders.choose_targets(exam, held_out, logits)
    assert chosen is not None
    y = exam.y[exam.test]
    plain = exam.corpus.label_space.predict(logits)
    assert score("macro_f1", y, chosen) > score("macro_f1", y, plain) + 0.05
    half = apply_thresholds(exam.corpus.label_space, exam.corpus.label_space.probabilities(logits), np.full(4, 0.5))
    np.testing.assert_array_equal(half, plain)


def test_classes_that_no_or_every_document_has_get_a_constant_logit() -> None:
    draw = np.random.default_rng(0)
    X, Z = draw.normal(size=(50, 3)), draw.normal(size=(7, 3))
    y = np.column_stack([X[:, 0] > 0, np.zeros(50, bool), np.ones(50, bool)])
    logits = contenders.regression_logits(X, y, Z, 1.0, LabelSpace(("a", "b", "c"), multilabel=True))
    assert np.corrcoef(logits[:, 0], Z[:, 0])[0, 1] > 0.9
    assert (logits[:, 1] == -np.log(51)).all()
    assert (logits[:, 2] == np.log(51)).all()


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (1,)])
def test_a_regression_has_a_logit_for_classes_that_are_absent(present: tuple[int, ...]) -> None:
    """Those that are present are told apart as ever; absent ones come last."""
    draw = np.random.default_rng(0)
    X, Z = draw.normal(size=(90, 3)), draw.normal(size=(20, 3))
    y = np.array(present)[(X[:, : len(present)]).argmax(1)]
    logits = contenders.regression_logits(X, y, Z, 100.0, LabelSpace(("a", "b", "c")))
    assert logits.shape == (20, 3)
    if len(present) > 1:
        expected = np.array(present)[Z[:, : len(present)].argmax(1)]
        assert (logits[:, list(present)].argmax(1) == np.searchsorted(present, expected)).mean() > 0.9


@pytest.mark.slow
def test_sirens_network_learns_each_class_by_itself(corpus: Corpus) -> None:
    """Half of the documents have all classes, the others none, which a softmax could not say."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(256, 4)).astype(np.float32)
    y = np.repeat(X[:, :1] > 0, 4, axis=1)
    exam, trial = draw_exam(corpus, "few16", 0), siren.Trial(0.8, 1e-2, (16, 16))
    network, _ = siren.fit_network(X, y, trial, exam, 40)
    assert (exam.corpus.label_space.predict(network(X)) == y).mean() > 0.9
