"""Attacks on stored numbers: they agree with plain solutions, and recover what the numbers hold and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin.audit.privacy import (
    ATTRIBUTES,
    FREQUENCY,
    Membership,
    attribute_presence,
    measure_privacy,
    privacy_page,
    probe_attributes,
)
from spin.audit.word_recovery import WordAttack, content_words, predict_targets, word_presence
from spin.labels.label_space import LabelSpace
from tests.support.browser import open_page
from tests.support.hostile_text import HOSTILE_TEXTS

SPACE = LabelSpace(("bad", "good"))


def test_the_attack_finds_what_is_linear_in_the_numbers_whatever_their_scale() -> None:
    """Of more numbers than texts, in float16 too, beside large numbers that hold nothing; noise is shrunk away."""
    draw = np.random.default_rng(0)
    weights, mixing = draw.normal(size=(20, 3)), draw.normal(size=(20, 400)) / 100
    hidden, judged_hidden = draw.normal(size=(300, 20)), draw.normal(size=(200, 20))
    known, judged = (
        np.hstack([values @ mixing, 100 * draw.normal(size=(len(values), 50))]).astype(np.float16)
        for values in (hidden, judged_hidden)
    )
    predicted = predict_targets(known, hidden @ weights, judged)
    assert np.corrcoef(predicted[:, 0], (judged_hidden @ weights)[:, 0])[0, 1] > 0.95
    assert predict_targets(known, draw.normal(size=(300, 3)), judged).std() < 0.4, "of noise of deviation 1"


def make_texts(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of ten words each out of 200 that are the rarer the later, and one that tells the class."""
    draw = np.random.default_rng(seed)
    words = [f"{'abcdefghij'[k // 20]}{'klmnopqrst'[k % 20 // 2]}{'uv'[k % 2]}word" for k in range(200)]
    weights = 1 / np.arange(5, 205)
    y = draw.integers(2, size=count)
    texts = []
    for label in y:
        chosen = draw.choice(200, 10, replace=False, p=weights / weights.sum())
        texts.append(" ".join([*(words[k] for k in chosen), ("dreadful", "lovely")[label], "the and"]))
    return texts, y


def test_content_words_are_no_stop_words_and_have_three_letters() -> None:
    assert content_words("The Flight, flight2 to ÅRHUS is a 100 % mess_up: l'été") == {"flight", "århus", "mess", "été"}


def test_the_vocabulary_leaves_out_the_words_of_the_classes() -> None:
    texts, y = make_texts(400, 0)
    attack = WordAttack.of([*texts, "good " * 9], np.append(y, 1), texts, SPACE)
    assert not {"dreadful", "lovely", "good", "the"} & set(attack.words)
    counts = {word: sum(word in text.split() for text in texts) for word in attack.words}
    assert attack.documents.tolist() == list(counts.values())
    assert min(counts.values()) >= 5


@pytest.fixture(scope="module")
def attack() -> WordAttack:
    (known, y), (judged, _) = make_texts(400, 0), make_texts(300, 1)
    return WordAttack.of(known, y, judged, SPACE)


def test_numbers_that_hold_the_words_give_them_away(attack: WordAttack) -> None:
    mixing = np.random.default_rng(2).normal(size=(len(attack.words), 400))
    recovery = attack.recover(attack.known @ mixing, attack.judged @ mixing)
    assert recovery.every > 0.95
    assert recovery.words == attack.judged.sum()


def test_numbers_that_hold_nothing_give_no_more_than_the_frequency(attack: WordAttack) -> None:
    """And the frequency gives what a plain loop counts."""
    documents, judged, draw = attack.documents, attack.judged, np.random.default_rng(3)
    noise = attack.recover(draw.normal(size=(400, 50)), draw.normal(size=(300, 50)))
    frequency = attack.recover_by_frequency()
    assert noise.every <= frequency.every + 0.02
    ranked = np.argsort(-documents, kind="stable")
    hits = by_rare = rare_words = 0
    for row in judged.toarray() > 0:
        named = ranked[: row.sum()]
        hits += row[named].sum()
        is_rare = documents < 50
        by_rare += sum(row[k] and 10 <= documents[k] < 50 for k in named)
        rare_words += (row & is_rare & (documents >= 10)).sum()
    assert frequency.every == pytest.approx(hits / judged.sum())
    assert frequency.by_band["common"] == pytest.approx(by_rare / rare_words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("we met Ada Lovelace there", {"name"}),
        ("we met Ada K. Lovelace there", {"name"}),
        ("write to ada@example.org", {"e-mail"}),
        ("thanks @ada_l !", {"mention"}),
        ("see https://example.org/a?b", {"link"}),
        ("see www.example.org", {"link"}),
        ("gate 7", {"number"}),
        ("Nothing of the kind", set()),
    ],
)
def test_attributes_are_found_by_patterns(text: str, expected: set[str]) -> None:
    [row] = attribute_presence([text])
    assert {name for name, has in zip(ATTRIBUTES, row, strict=True) if has} == expected


def test_a_probe_finds_the_attribute_that_the_numbers_hold() -> None:
    """And none that they do not hold; one that too few texts have is left out."""
    draw = np.random.default_rng(0)
    known, judged = (draw.random((300, len(ATTRIBUTES))) < [0.3, 0.01, 0.5, 0.5, 0.99] for _ in range(2))
    values = [np.column_stack([has[:, 0] + draw.normal(0, 0.3, 300), draw.normal(size=300)]) for has in (known, judged)]
    found = probe_attributes((values[0], known), (values[1], judged))
    assert list(found) == ["name", "link", "mention"]
    assert found["name"] > 0.95
    assert abs(found["link"] - 0.5) < 0.12


def test_membership_is_the_probability_of_a_lower_loss() -> None:
    draw = np.random.default_rng(0)
    train, test = draw.exponential(0.5, 300), draw.exponential(1.0, 200)
    membership = Membership.of(train, test)
    lower = np.mean([a < b for a in train for b in test])
    assert membership.auroc == pytest.approx(lower)
    assert (membership.train_documents, membership.test_documents) == (300, 200)
    assert membership.test_loss == pytest.approx(test.mean())


def test_copies_of_known_texts_weaken_no_attack() -> None:
    """The penalty would be chosen by left-out texts whose copies are known: it would be too small for other texts."""
    texts, y = make_texts(400, 5)
    draw = np.random.default_rng(0)
    words = word_presence(texts, sorted({word for text in texts for word in text.split()})).toarray()
    numbers = (words @ draw.normal(size=(words.shape[1], 60)) + draw.normal(size=(400, 60))).astype(np.float32)
    twice = np.concatenate([numbers, numbers + 1e-4])
    alone = measure_privacy(texts, y, SPACE, {"numbers": numbers})
    copied = measure_privacy([*texts, *texts], np.tile(y, 2), SPACE, {"numbers": twice})
    assert (copied.known, copied.judged) == (alone.known, 2 * alone.judged)
    found = [report.figures[1].recovery.every for report in (alone, copied)]
    assert found[1] == pytest.approx(found[0], abs=0.005)


def test_the_attacker_is_judged_on_texts_that_it_does_not_know(browser: Any, tmp_path: Path) -> None:
    """Numbers that name each text, and so hold all of the known ones, reveal no more than the frequency; the page
    shows it."""
    texts, y = make_texts(400, 5)
    presence = word_presence(texts, sorted({word for text in texts for word in text.split()})).toarray()
    stored = {HOSTILE_TEXTS[0]: np.eye(400, dtype=np.float32), "the words": presence}
    steps: list[int] = []
    report = measure_privacy(texts, y, SPACE, stored, progress=steps.append)
    assert sum(steps) == 2
    assert (report.known, report.judged) == (200, 200)
    recovered = {figure.name: figure.recovery.every for figure in report.figures}
    assert recovered[HOSTILE_TEXTS[0]] == pytest.approx(recovered[FREQUENCY], abs=0.05)
    assert recovered["the words"] > 0.9
    membership = Membership(0.61, 0.2, 0.4, 100, 200)
    for given in (None, membership):
        page = privacy_page(measure_privacy(texts, y, SPACE, stored, membership=given), HOSTILE_TEXTS[1])
        with open_page(browser, tmp_path, page) as window:
            assert window.inner_text("h1") == HOSTILE_TEXTS[1]
            rows = [row.locator("th, td").all_inner_texts() for row in window.locator("tbody tr").all()]
            assert [row[0] for row in rows] == [FREQUENCY, HOSTILE_TEXTS[0], "the words"]
            assert rows[2][3].split("\u202f")[0] == f"{100 * recovered['the words']:.1f}"
            assert ("0.610" in window.inner_text("main")) == (given is not None)
            assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
