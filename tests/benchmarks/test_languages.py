"""Manual pages in other languages: a page and its translations are on one side, and figures are those of a language."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.method.contenders import Answer
from benchmarks.method.corpora import Corpus, Plan
from benchmarks.method.languages import ENGLISH, TRANSLATIONS, describe, divide, keep_sections, score_languages
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score

LANGUAGES = [ENGLISH, *TRANSLATIONS]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """6,000 pages of three sections: every name in English, and half of them in each other language."""
    draw = np.random.default_rng(0)
    y, names = draw.integers(0, 3, 2400), np.arange(2400, dtype=np.uint64)
    rows = np.concatenate([names, *(draw.choice(names, 1200, replace=False) for _ in TRANSLATIONS)])
    plan = Plan("minilm", "pages", "model", None, 0, 0, 0)
    texts = [f"page {row}" for row in range(len(rows))]
    return Corpus(plan, texts, rows, y[rows.astype(int)], LabelSpace(("1", "2", "3")), {}, {}, 6)


@pytest.fixture(scope="module")
def languages() -> list[str]:
    return [ENGLISH] * 2400 + [language for language in TRANSLATIONS for _ in range(1200)]


@pytest.mark.parametrize("english_alone", [True, False])
def test_no_page_is_learned_from_whose_translation_is_tested(
    corpus: Corpus, languages: list[str], english_alone: bool
) -> None:
    exam = divide(corpus, languages, 0, english_alone=english_alone)
    learned = np.concatenate([exam.train, exam.valid])
    assert not np.isin(corpus.groups[exam.test], corpus.groups[learned]).any()
    assert not np.isin(corpus.groups[exam.train], corpus.groups[exam.valid]).any()
    of_learned = {languages[row] for row in learned}
    assert of_learned == ({ENGLISH} if english_alone else set(LANGUAGES))
    assert {languages[row] for row in exam.test} == set(LANGUAGES)
    assert len(exam.test) == pytest.approx(0.3 * 6000, rel=0.1)
    assert len(exam.valid) == pytest.approx(0.2 * len(learned), rel=0.15)


def test_both_classifiers_of_a_draw_are_tested_on_the_same_pages(corpus: Corpus, languages: list[str]) -> None:
    exams = [divide(corpus, languages, 3, english_alone=alone) for alone in (True, False)]
    assert exams[0].test.tolist() == exams[1].test.tolist()
    assert np.isin(exams[0].data.rows, exams[1].data.rows).all()


def test_the_figures_are_those_of_each_language(corpus: Corpus, languages: list[str]) -> None:
    exam = divide(corpus, languages, 0, english_alone=True)
    logits = np.random.default_rng(1).normal(size=(len(exam.test), 3)).astype(np.float32)
    answer = Answer("row", logits, 0, 0, 0.0, 0.0, "")
    figures = score_languages(exam, languages, answer)
    for language in LANGUAGES:
        own = [at for at, row in enumerate(exam.test) if languages[row] == language]
        assert figures[language] == 100 * score("macro_f1", exam.y[exam.test[own]], logits[own].argmax(1))


def test_the_table_names_what_was_learned_from() -> None:
    draws = [dict.fromkeys(LANGUAGES, 60.0), dict.fromkeys(LANGUAGES, 62.0)]
    text = describe({("English", "TF-IDF"): draws}, [ENGLISH, ENGLISH, "French"])
    assert "| TF-IDF, from English | 61.0 ± 1.4 | 61.0 ± 1.4 | 61.0 ± 1.4 | 61.0 ± 1.4 |" in text
    assert "2 English, 0 German, 1 French, 0 Spanish" in text


def test_sections_with_few_english_pages_are_left_out() -> None:
    sections, languages = ["1", "1", "9", "9", "1"], [ENGLISH, ENGLISH, ENGLISH, "French", "French"]
    assert keep_sections(sections, languages, 2) == [0, 1, 4]
