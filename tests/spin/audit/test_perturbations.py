"""Perturbations: each can be undone, or counted, by independent means; none depends on the texts beside it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import unicodedata

import pytest

from spin.audit.perturbations import PERTURBATIONS, SEVERITIES, Perturbation, mix_perturbations
from tests.support.hostile_text import HOSTILE_TEXTS

TEXT = (
    "The people at the desk were kind to us, and Nobody minded that our train came late & wet; "
    "we have seen worse hotels, which can happen to anyone who books the cheapest room in a large city."
)
BY_NAME = {perturbation.name: perturbation for perturbation in PERTURBATIONS}


def apply(name: str, severity: int, text: str = TEXT, seed: int = 0) -> str:
    [changed] = BY_NAME[name].apply([text], severity, seed)
    return changed


def osa_distance(one: str, other: str) -> int:
    """The number of insertions, deletions, substitutions and swaps of neighbours between two words."""
    table = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            cost = one[i - 1] != other[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + cost)
            if i > 1 and j > 1 and one[i - 2 : i] == other[j - 2 : j][::-1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(one), len(other)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("severity", "share"), [(1, 0.05), (2, 0.1), (3, 0.2)])
def test_typos_change_a_share_of_the_long_words_by_one_error(severity: int, share: float, seed: int) -> None:
    before, after = TEXT.split(), apply("typos", severity, seed=seed).split()
    assert len(before) == len(after)
    long_words = sum(len(word) >= 4 for word in before)
    distances = [osa_distance(*pair) for pair in zip(before, after, strict=True)]
    assert max(distances) == 1
    # a swap of two equal letters, or a neighbour of a character that is no letter, changes nothing
    assert round(share * long_words) - 2 <= sum(distances) <= round(share * long_words)
    assert all(len(word) >= 4 for word, distance in zip(before, distances, strict=True) if distance)


def test_case_changes_nothing_but_case() -> None:
    changed = [apply("case", severity) for severity in SEVERITIES]
    assert changed[:2] == [TEXT.lower(), TEXT.upper()]
    assert changed[2].lower() == TEXT.lower()
    assert changed[2] not in (TEXT, TEXT.lower(), TEXT.upper())


def test_homoglyphs_are_cyrillic_letters_in_place_of_latin_ones() -> None:
    counts = []
    for severity in SEVERITIES:
        changed = apply("homoglyphs", severity)
        assert len(changed) == len(TEXT)
        pairs = [(a, b) for a, b in zip(TEXT, changed, strict=True) if a != b]
        assert all(unicodedata.name(b).startswith("CYRILLIC") for _, b in pairs)
        assert all(unicodedata.name(a).startswith("LATIN") for a, _ in pairs)
        assert all(a.isupper() == b.isupper() for a, b in pairs)
        counts.append(len(pairs))
    letters = sum(letter in "aceijopsxyABCEHIJKMOPSTX" for letter in TEXT)
    assert counts == [max(1, round(share * letters)) for share in (0.02, 0.1, 0.3)]


def test_zero_width_characters_lie_within_words_and_can_be_taken_out() -> None:
    counts = []
    for severity in SEVERITIES:
        changed = apply("zero_width", severity)
        invisible = [letter for letter in changed if unicodedata.category(letter) == "Cf"]
        assert re.sub("[" + "".join(set(invisible)) + "]", "", changed) == TEXT
        counts.append(len(invisible))
    words = sum(len(word) > 1 for word in TEXT.split())
    assert counts == [round(share * words) for share in (0.05, 0.2, 0.5)]


def test_white_space_stays_white_space() -> None:
    for severity in SEVERITIES:
        assert apply("white_space", severity).split() == TEXT.split()
        assert apply("white_space", severity) != TEXT
    assert re.search(r"(?<! ) (?! )", apply("white_space", 3)) is None, "at severity 3 no single space is left"


def test_markup_without_its_tags_is_the_text() -> None:
    for severity in SEVERITIES:
        changed = apply("markup", severity)
        assert changed.startswith("<p>")
        assert changed.endswith("</p>")
        assert html.unescape(re.sub("<[^>]*>", "", changed)) == TEXT
    tags = [apply("markup", severity).count("<") for severity in SEVERITIES]
    assert tags == sorted(set(tags))


def test_truncation_keeps_the_first_words() -> None:
    words = TEXT.split()
    for severity, share in zip(SEVERITIES, (0.9, 0.75, 0.5), strict=True):
        kept = apply("truncation", severity)
        assert TEXT.startswith(kept)
        assert kept.split() == words[: round(share * len(words))]
    assert apply("truncation", 3, "one") == "one"


def test_appended_sentences_follow_the_text() -> None:
    for severity, sentences in zip(SEVERITIES, (1, 2, 4), strict=True):
        more = apply("appended", severity).removeprefix(TEXT + " ")
        assert more != TEXT
        assert len(set(re.findall(r"[^.]+\.", more))) == sentences


@pytest.mark.parametrize(
    ("text", "first", "every"),
    [
        ("It is good and was cheap", "It is not good and was cheap", "It is not good and was not cheap"),
        ("It is not good", "It is not good", "It is not good"),
        ("It isn't good, it WILL hurt", "It isn't good, it WILL not hurt", "It isn't good, it WILL not hurt"),
        ("I can't, we won’t, they do", "I can't, we won’t, they do not", "I can't, we won’t, they do not"),
        ("A fine film", "A fine film", "A fine film"),
    ],
)
def test_negation_follows_auxiliary_verbs(text: str, first: str, every: str) -> None:
    changed = [apply("negation", severity, text) for severity in SEVERITIES]
    assert changed == [first, every, f"It is not true that {text}"]
    assert [name for name, perturbation in BY_NAME.items() if not perturbation.keeps_label] == ["negation"]


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda perturbation: perturbation.name)
def test_a_text_is_changed_the_same_way_whatever_lies_beside_it(perturbation: Perturbation) -> None:
    """The seed changes it, unless the perturbation leaves no choice; no text becomes empty."""
    texts = [TEXT, "!", "é", "1", "it is", *HOSTILE_TEXTS]
    for severity in SEVERITIES:
        changed = perturbation.apply(texts, severity)
        assert changed == [perturbation.apply([text], severity)[0] for text in texts]
        assert all(text.strip() for text in changed)
        chooses = perturbation.name not in ("truncation", "negation") and (perturbation.name, severity) not in (
            ("case", 1), ("case", 2), ("markup", 1),
        )  # fmt: skip
        seeded = {perturbation.apply([TEXT], severity, seed=seed)[0] for seed in range(6)}
        assert (len(seeded) > 1) == chooses


def test_another_process_changes_texts_in_the_same_way() -> None:
    """Random numbers come from the text itself, not from Python's hash, which differs per process."""
    program = (
        "import sys; from spin.audit.perturbations import *;"
        "print(ascii([p.apply([sys.argv[1]], 2)[0] for p in PERTURBATIONS] + mix_perturbations([sys.argv[1]])))"
    )
    printed = subprocess.run([sys.executable, "-c", program, TEXT], capture_output=True, check=True, text=True).stdout
    expected = [p.apply([TEXT], 2)[0] for p in PERTURBATIONS] + mix_perturbations([TEXT])
    assert printed.strip() == ascii(expected)


def test_a_mix_puts_each_text_under_one_perturbation_that_keeps_its_class() -> None:
    texts = [f"{TEXT} {number}" for number in range(400)]
    mixed = mix_perturbations(texts)
    kept = [perturbation for perturbation in PERTURBATIONS if perturbation.keeps_label]
    possible = [perturbation.apply(texts, 2) for perturbation in kept]
    chosen = [next(i for i, changed in enumerate(possible) if changed[row] == mixed[row]) for row in range(len(texts))]
    assert min(chosen.count(i) for i in range(len(kept))) > 25, "each of eight is chosen for about 50 of 400 texts"
    assert mix_perturbations(texts[7:9]) == mixed[7:9]
