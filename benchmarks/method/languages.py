"""`make bench-languages`: manual pages in other languages, by classifiers that learn from English pages or from all.

Pages are classified by the section of the manual, as in the task `manuals`. A page and its translations are on one
side: a classifier never learns from a page whose translation it is tested on. Writes benchmarks/method-languages.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.method.contenders import Answer, fit_spin, last_layer, spin_choice, tfidf_characters, words
from benchmarks.method.corpora import METRIC, Corpus, Documents, Exam, extract_corpus, load
from benchmarks.method.run import FOLDER
from benchmarks.method.table import spread
from benchmarks.method.tasks.apt import PrivateApt
from benchmarks.method.tasks.manual_page import download_sources, render_page
from benchmarks.method.tasks.manuals import MANUALS, PACKAGES
from benchmarks.section_page import table, write_page
from spin.labels.metrics import score

PAGE = Path("benchmarks/method-languages.md")
ENGLISH = "English"
TRANSLATIONS = {
    language: (code, (f"manpages-{code}", f"manpages-{code}-dev"))
    for language, code in (("German", "de"), ("French", "fr"), ("Spanish", "es"))
}
"""the code and the packages of each language"""
LEAST_PAGES = 100
"""English pages of a section; smaller sections are left out"""
DRAWS = 3
_TEST_SHARE, _VALID_SHARE = 0.3, 0.2


class Sizes(NamedTuple):
    """Pages, at most."""

    english: int
    """in the corpus"""
    translated: int
    """in the corpus, of each other language"""


SIZES, QUICK = Sizes(5000, 1500), Sizes(700, 200)


@dataclass(frozen=True)
class Pages:
    """The pages of all languages."""

    documents: Documents
    """with the name of a page, such as `ls.1`, as its group"""
    languages: list[str]


def read_pages(folder: Path, sizes: Sizes) -> Pages:
    """A random part of the pages in every language, which are downloaded into the folder."""
    apt = PrivateApt(folder / "apt")
    apt.update()
    sources = {ENGLISH: download_sources(apt, folder, PACKAGES)}
    for language, (code, packages) in TRANSLATIONS.items():
        sources[language] = download_sources(apt, folder, packages, code)
    draw = np.random.default_rng(0)
    pages = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for language, of_language in sources.items():
            count = min(len(of_language), sizes.english if language == ENGLISH else sizes.translated)
            drawn = [of_language[place] for place in draw.permutation(len(of_language))[:count]]
            for source, page in zip(drawn, pool.map(render_page, drawn), strict=True):
                if page.text:
                    pages.append((page.text, page.section, source.name, language))
    _, all_sections, _, all_languages = zip(*pages, strict=True)
    kept = [pages[row] for row in keep_sections(all_sections, all_languages, LEAST_PAGES)]
    texts, sections, names, languages = (list(column) for column in zip(*kept, strict=True))
    return Pages(Documents(texts, sections, apt.release(), names), languages)


def keep_sections(sections: Sequence[str], languages: Sequence[str], least: int) -> list[int]:
    """The rows of the sections with enough English pages."""
    english = [section for section, language in zip(sections, languages, strict=True) if language == ENGLISH]
    return [row for row, section in enumerate(sections) if english.count(section) >= least]


def divide(corpus: Corpus, languages: Sequence[str], seed: int, *, english_alone: bool) -> Exam:
    """Pages to learn from, of English alone or of all languages, and pages of other names in every language."""
    draw, of_rows = np.random.default_rng(seed), np.array(languages)
    groups = np.unique(corpus.groups)
    side = dict(zip(groups.tolist(), draw.random(len(groups)).tolist(), strict=True))
    places = np.array([side[group] for group in corpus.groups.tolist()])
    test = np.flatnonzero(places < _TEST_SHARE)
    learn = np.flatnonzero((places >= _TEST_SHARE) & ((of_rows == ENGLISH) | (not english_alone)))
    is_valid = places[learn] >= 1 - _VALID_SHARE * (1 - _TEST_SHARE)
    train, valid = learn[~is_valid], learn[is_valid]
    return Exam.of(corpus, corpus.y, train, valid, test, seed)


def answers(exam: Exam) -> Iterator[Answer]:
    """The rows that are compared."""
    fitted = fit_spin(exam)
    yield tfidf_characters(exam)
    yield last_layer(exam)
    yield words(exam, fitted)
    yield spin_choice(exam, fitted, "accuracy")


def score_languages(exam: Exam, languages: Sequence[str], answer: Answer) -> dict[str, float]:
    """The macro-F1 of the test pages of each language, in percent."""
    predicted = exam.corpus.label_space.predict(answer.logits) if answer.predicted is None else answer.predicted
    of_test = np.array(languages)[exam.test]
    return {
        language: 100 * score(METRIC, exam.y[exam.test][of_test == language], predicted[of_test == language])
        for language in (ENGLISH, *TRANSLATIONS)
    }


def measure(corpus: Corpus, languages: Sequence[str], draws: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """By what was learned from and by row, the figures of every draw."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(draws):
        for learned, english_alone in (("English", True), ("all languages", False)):
            exam = divide(corpus, languages, seed, english_alone=english_alone)
            for answer in answers(exam):
                figures = score_languages(exam, languages, answer)
                found.setdefault((learned, answer.name), []).append(figures)
                print(f"draw {seed}, {learned}, {answer.name}: {figures}", flush=True)
    return found


def describe(found: Mapping[tuple[str, str], Sequence[Mapping[str, float]]], languages: Sequence[str]) -> str:
    """The table, and a paragraph about the pages."""
    tested = (ENGLISH, *TRANSLATIONS)
    rows = []
    for (learned, name), draws in found.items():
        cells = [spread(np.array([draw[language] for draw in draws]), 1) for language in tested]
        rows.append([f"{name}, from {learned}", *cells])
    counts = ", ".join(f"{list(languages).count(language):,} {language}" for language in tested)
    draws = len(next(iter(found.values())))
    return (
        f"Macro-F1 of pages in each language, in percent, mean ± sd of {draws} divisions; MiniLM reads the first "
        f"{MANUALS.encoder.max_tokens} tokens. Pages: {counts}. A page and its translations are on one side.\n\n"
        + table(["learned from", *tested], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pages and one division: shows only that it runs")
    quick = parser.parse_args().quick
    folder = FOLDER / ("quick/languages" if quick else "languages")
    plan = replace(MANUALS.plans(False)[0], name="minilm", title="manual pages, MiniLM", documents=None)
    pages = folder / "languages.json"
    if not pages.exists():
        read = read_pages(FOLDER, QUICK if quick else SIZES)
        extract_corpus(plan, lambda: read.documents, folder / plan.name)
        pages.write_text(json.dumps(read.languages), encoding="utf-8")
    languages = json.loads(pages.read_text(encoding="utf-8"))
    found = measure(load(plan, folder / plan.name), languages, 1 if quick else DRAWS)
    path = folder / PAGE.name if quick else PAGE
    write_page(
        path,
        "Manual pages in other languages",
        "make bench-languages",
        {"Sections of the manual": (describe(found, languages), [])},
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
