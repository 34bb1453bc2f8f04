"""Near-identical texts have the same hash, and so has everything with the same value of a group column."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin.labels.split_groups import choose_group, hash_group, hash_text

SAME = [
    ("The crew was lovely", "the  CREW was\nlovely!!!"),
    ("The crew was lovely", "@JetBlue the crew was lovely http://t.co/Ab1"),
    ("The crew was lovely", "RT @some_one: The crew was lovely"),
    ("The crew was lovely", "“The crew” was lovely… www.example.org/a?b=c via @news"),
    ("café", "cafe\u0301"),
    ("ﬁne ＡＢＣ", "fine abc"),
    ("Straße", "STRASSE"),
    ("snake_case_name", "snake case name"),
    ("I \u2764\ufe0f it", "I \u2764 it"),
    ("\u0932\u0921\u093c\u0915\u093e, \u0917\u092f\u093e!", "\u0932\u0921\u093c\u0915\u093e \u0917\u092f\u093e"),
]
DIFFERENT = [
    ("flight 12 is late", "flight 13 is late"),
    ("the crew was lovely", "the crew was lovely today"),
    ("not good", "good"),
    ("@JetBlue", "@united"),
    ("http://t.co/a", "http://t.co/b"),
    ("😀", "😡"),
    (
        "\u0932\u0921\u093c\u0915\u093e \u0917\u092f\u093e",
        "\u0932\u0921\u093c\u0915\u0940 \u0917\u092f\u0940",
    ),  # Hindi: the boy, the girl went
    ("\u0e40\u0e2a\u0e37\u0e49\u0e2d", "\u0e40\u0e2a\u0e37\u0e2d"),  # Thai: shirt, tiger
    ("mail me at a@b.example", "mail me at a@c.example"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_near_identical_texts_have_one_hash(first: str, second: str) -> None:
    """Case, forms of a character, punctuation, white space, mentions and links make no difference."""
    assert hash_text(first) == hash_text(second)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_texts_that_differ_in_words_or_numbers_have_different_hashes(first: str, second: str) -> None:
    """Of a text without any word, such as a mention or an emoji alone, every character counts."""
    assert hash_text(first) != hash_text(second)


words = st.lists(st.text("abcdefgßéжた9", min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.mark.slow
@given(words, st.data())
def test_what_surrounds_the_words_makes_no_difference(parts: list[str], data: st.DataObject) -> None:
    separators = st.text(" \n\t.,;!?-_…\"'()😀", min_size=1, max_size=3)
    varied = "".join(word.upper() + data.draw(separators) for word in parts)
    varied = data.draw(
        st.sampled_from([varied, unicodedata.normalize("NFD", varied), f"RT @x_1: {varied} https://t.co/x"])
    )
    assert hash_text(varied) == hash_text(" ".join(parts))


@given(st.text(min_size=1))
def test_any_text_has_a_hash_of_64_bits(text: str) -> None:
    """The hash is the same again. A group's is another one than that of a text with the same characters."""
    assert 0 <= hash_text(text) == hash_text(text) < 2**64
    assert 0 <= hash_group(text) < 2**64
    assert hash_group(text) != hash_text(text)


def test_a_lone_surrogate_has_a_hash() -> None:
    """JSON can hold it, and so can a Python string."""
    assert hash_text("a \ud800") == hash_text("a")
    assert hash_text("\ud800") != hash_text("\ud801")
    assert hash_group("\ud800") != hash_group("\ud801")


def test_a_document_belongs_to_its_group_or_else_to_its_text() -> None:
    assert choose_group(5, None) == 5
    assert choose_group(5, "author 1") == hash_group("author 1") != hash_group("Author 1")


def test_hashes_are_those_of_earlier_versions() -> None:
    """A change of the rule would move documents from one split to another; it needs a new format of the features."""
    assert hash_text("The crew was lovely!") == 6920563621102949396
    assert hash_group("author 1") == 11206782281242717490
