"""Whole documents against cut ones, on tiny texts of a few windows; nothing is timed against a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from benchmarks.method.corpora import Corpus, Documents, Exam, Plan, extract_corpus, load
from benchmarks.speed import whole_documents
from benchmarks.speed.contender import SHIPPED, OurSetting
from benchmarks.speed.page import Conditions
from benchmarks.speed.trial import Sides, divide_corpus
from benchmarks.speed.whole_documents import Comparison, measure, section
from spin import TrainedClassifier
from spin.activations.extract import Features, extract
from spin.arrays import Rows
from spin.backbone.model import Backbone
from spin.fit import fit_classifiers
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn
from tests.support import tiny

pytestmark = pytest.mark.slow

SIDES = Sides(64, 16, 0, 30)
CONDITIONS = Conditions("make bench TASK=manuals", 1.0, 60.0, 0.04)
BEGINNING, ROOM = "the film was on a day of the crew and it", 8
"""words without a class, more than the first window has room for, special tokens not counted"""


def windows(model: Path) -> BackboneSettings:
    """The settings of three windows of 10 tokens, two of which are special and two read again."""
    return BackboneSettings(
        model=str(model),
        dtype="float32",
        device="cpu",
        max_tokens=10,
        long_texts="windows",
        window_overlap=2,
        max_windows=3,
    )


@pytest.fixture(scope="module")
def corpus(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """120 documents, two thirds of which have the words of their class after the first window."""
    rows = tiny.make_documents(120)
    texts = [row["text"] if number % 3 == 0 else f"{BEGINNING} {row['text']}" for number, row in enumerate(rows)]
    plan = Plan("tiny", "tiny", str(backbone_folder), None, 0, 0, 0, max_tokens=64)
    folder = tmp_path_factory.mktemp("corpus")
    extract_corpus(plan, lambda: Documents(texts, [row["label"] for row in rows]), folder)
    return load(plan, folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


def fit_neurons(exam: Exam) -> Any:
    """Fit on neurons alone, by a small search: words would decide these texts without any window."""
    probe, search = ProbeSettings(penalties=3, max_extra=0), SearchSettings(etas=(0.5,), strengths=(1,), network="off")
    *_, result = fit_classifiers(exam.corpus.sites, exam.data, compute=exam.corpus.flops, probe=probe, search=search)
    return SimpleNamespace(training_result=result)


@pytest.fixture(scope="module")
def comparison(corpus: Corpus, backbone_folder: Path, parts: Path) -> Comparison:
    """Two rounds, of classifiers without words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed.rounds.peaks", lambda: {"float32": 1.0})
        patch.setattr(whole_documents, "fit_spin", fit_neurons)
        return measure(corpus, windows(backbone_folder), SIDES, parts, 2, ["resid"])


def test_the_same_documents_are_cut_and_read_in_windows(comparison: Comparison, corpus: Corpus) -> None:
    """Tokens are words here, so that they can be counted by hand."""
    exam, _ = divide_corpus(corpus, SIDES)
    words = np.array([len(corpus.texts[row].split()) for row in exam.test])
    cut, whole = comparison.cut, comparison.whole
    assert cut.n_tokens.tolist() == (np.minimum(words, ROOM) + 2).tolist()
    assert cut.unread_tokens is not None
    assert cut.unread_tokens.tolist() == np.maximum(words - ROOM, 0).tolist()
    count = np.clip(1 + np.ceil((words - ROOM) / (ROOM - 2)), 1, 3)  # each further window has room for 6 new words
    assert whole.windows is not None
    assert whole.windows.tolist() == count.tolist()
    read = np.minimum(words, ROOM + (count - 1) * (ROOM - 2))
    assert whole.n_tokens.tolist() == (read + 2 * (count - 1) + 2 * count).tolist()
    assert whole.unread_tokens is not None
    assert whole.unread_tokens.tolist() == (words - read).tolist()
    assert max(words - read) > 0


def test_every_row_is_of_a_classifier_that_reads_so(comparison: Comparison, corpus: Corpus, parts: Path) -> None:
    """At full depth and as shipped; scores are those of scikit-learn."""
    exam, _ = divide_corpus(corpus, SIDES)
    texts, y = [corpus.texts[row] for row in exam.test], comparison.y
    assert y.tolist() == corpus.y[exam.test].tolist()
    roles = [(way, early) for early in (False, True) for way in ("cut", "windows")]
    for reading, (way, early) in zip(comparison.readings, roles, strict=True):
        role = reading.row.role
        assert isinstance(role, OurSetting)
        assert (role.windows, role.default, role.max_loss) == (way == "windows", early, SHIPPED if early else None)
        [artifact] = parts.glob(f"*/{way}")
        spin = TrainedClassifier.load(artifact, early=early)
        assert (spin.settings.long_texts, spin.settings.max_tokens) == (way, 10)
        predictions = spin.predict_all(texts)
        assert corpus.label_space.names(reading.row.classes) == predictions.labels
        assert reading.row.score == pytest.approx(f1_score(y, reading.row.classes, average="macro"))
        assert reading.row.accuracy == pytest.approx(accuracy_score(y, reading.row.classes))
        runs = predictions.exit_depth > 0
        assert reading.by_words == pytest.approx(1 - runs.mean())
        assert reading.tokens == pytest.approx((spin.features(texts).n_tokens * runs).mean())
        assert len(reading.row.seconds) == 2
    cut, in_windows, *_ = (reading.row.score for reading in comparison.readings)
    assert in_windows > cut + 0.1  # the words of most documents stand behind the first window


def test_nothing_is_learned_from_test_documents(
    corpus: Corpus, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their texts are not read, and other labels of theirs change nothing. This is the training that users get."""
    exam, _ = divide_corpus(corpus, SIDES)
    read: list[str] = []

    def record(backbone: Backbone, texts: list[str], columns: list[FeatureColumn]) -> Features:
        read.extend(texts)
        return extract(backbone, texts, columns)

    monkeypatch.setattr(whole_documents, "extract", record)
    settings, y = windows(backbone_folder), corpus.y.copy()
    y[exam.test] = 1 - y[exam.test]
    for name, targets in (("one", corpus.y), ("other", y)):
        relabelled = replace(exam, corpus=replace(corpus, y=targets), data=replace(exam.data, y=targets))
        whole_documents.train(relabelled, settings, ["resid.03"], tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    learned: Rows = exam.data.rows
    assert read == [corpus.texts[row] for row in learned] * 2


def test_classifiers_are_kept(corpus: Corpus, backbone_folder: Path, parts: Path, comparison: Comparison) -> None:
    """A second run only times, and predicts the same; other windows are trained anew."""
    settings = windows(backbone_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed.rounds.peaks", lambda: {"float32": 1.0})
        patch.setattr(whole_documents, "fit_spin", lambda _: pytest.fail("trained again"))
        again = measure(corpus, settings, SIDES, parts, 2, ["resid"])
        for first, second in zip(comparison.readings, again.readings, strict=True):
            assert first.row.classes.tolist() == second.row.classes.tolist()
        fewer = settings.model_copy(update={"max_windows": 2})
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            measure(corpus, fewer, SIDES, parts.with_name("other"), 2, ["resid"])


def test_the_section_shows_differences_with_intervals(comparison: Comparison) -> None:
    """By hand: windows take three times as long, and are right on five documents more, of 30."""
    y, readings = np.tile([0, 1], 15), []
    for reading in comparison.readings:
        in_windows = reading.row.role.windows  # type: ignore[union-attr]
        classes = np.where(np.arange(30) < (10 if not in_windows else 5), 1 - y, y)
        seconds = (6.0, 6.6) if in_windows else (2.0, 2.2)
        score = f1_score(y, classes, average="macro")
        accuracy = float((classes == y).mean())
        row = replace(reading.row, classes=classes, seconds=seconds, score=score, accuracy=accuracy)
        readings.append(replace(reading, row=row))
    page = section(replace(comparison, y=y, readings=readings), CONDITIONS, threads=2)
    [line] = [line for line in page.splitlines() if line.startswith("| at full depth |")]
    _, ratio, macro_f1, accuracy_cell = (cell.strip() for cell in line.strip("| ").split(" | "))
    assert ratio == "0.33 × [0.33–0.33]"
    assert macro_f1.startswith("+16.")
    assert accuracy_cell.startswith("+16.7 [+")
    assert page.startswith("## Whole documents\n\n")
    assert page.count("| SPIN, torch") == 4
    # 3.15 s per 30 documents on two cores
    [cut] = [line for line in page.splitlines() if line.startswith("| SPIN, torch |")]
    assert [cell.strip() for cell in cut.strip("| ").split(" | ")][1:3] == ["14.3", "13.6–15.0"]
    assert cut.endswith("| 1.56 |")


def test_the_section_counts_documents_and_tokens(comparison: Comparison) -> None:
    page, cut, whole = section(comparison, CONDITIONS, threads=2), comparison.cut, comparison.whole
    assert cut.unread_tokens is not None
    assert whole.windows is not None
    longer = np.mean(whole.windows > 1)
    assert f"{100 * longer:.1f} % of the test documents are longer than 10 tokens" in page
    assert f"in {whole.windows.mean():.1f} windows per document" in page
    unread = cut.unread_tokens.sum() / (cut.n_tokens + cut.unread_tokens).sum()
    assert f"({100 * unread:.1f} % of all) are not. In windows" in page
    assert "their choices are made by cross-validation within these" in page
