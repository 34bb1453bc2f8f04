"""The attack that training uses: which documents it knows and attacks, and that it is the attack of the audit."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from spin.arrays import Rows
from spin.audit import selection_attack
from spin.audit.selection_attack import prepare_attack
from spin.audit.word_recovery import WordAttack
from spin.errors import UserError
from spin.integrate.leakage import LeakageAttack
from spin.labels.cross_validation import Fold
from spin.labels.label_space import LabelSpace
from spin.labels.training_data import TrainingData
from spin.settings import SearchSettings
from tests.spin.audit.test_privacy import make_texts

SPACE = LabelSpace(("bad", "good"))
TRAIN, VALID = np.arange(0, 500), np.arange(500, 800)
"""rows from 800 to 999 test"""


class Corpus:
    """1,000 texts, and the rows whose texts have been read."""

    def __init__(self) -> None:
        self.texts, self.y = make_texts(1000, 0)
        self.rows_read: set[int] = set()

    def read(self, rows: Rows) -> Sequence[str]:
        assert (np.diff(rows) > 0).all(), "rows must ascend"
        self.rows_read.update(rows.tolist())
        return [self.texts[row] for row in rows.tolist()]

    def data(self, groups: Sequence[int] | None = None) -> TrainingData:
        folds = (Fold(TRAIN, VALID), Fold(VALID, TRAIN))
        return TrainingData(self.y, folds, SPACE, groups=None if groups is None else np.array(groups, np.uint64))

    def prepare(self, max_leakage: float = 0.9, groups: Sequence[int] | None = None) -> LeakageAttack:
        attack = prepare_attack(SearchSettings(max_leakage=max_leakage), self.read, self.data(groups))
        assert attack is not None
        return attack


def test_the_attacker_knows_training_documents_and_attacks_validation_documents() -> None:
    """Of the first fold; test documents are never read."""
    corpus = Corpus()
    attack = corpus.prepare()
    assert attack.known.tolist() == TRAIN.tolist()
    assert attack.judged.tolist() == VALID.tolist()
    assert corpus.rows_read == set(range(800))


def test_large_samples_are_cut_with_every_class_in_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_attack, "MOST_DOCUMENTS", 200)
    corpus = Corpus()
    attack = corpus.prepare()
    assert corpus.rows_read == {*attack.known.tolist(), *attack.judged.tolist()}
    for sample, rows in ((attack.known, TRAIN), (attack.judged, VALID)):
        assert len(sample) == 200
        assert set(sample.tolist()) <= set(rows.tolist())
        assert corpus.y[sample].mean() == pytest.approx(corpus.y[rows].mean(), abs=0.01)


def test_no_attacked_document_has_a_near_identical_one_that_the_attacker_knows() -> None:
    """A split column may put copies on both sides."""
    groups = list(range(1000))
    groups[510], groups[799], groups[520] = 3, 77, 900
    attack = Corpus().prepare(groups=groups)
    assert attack.judged.tolist() == [row for row in VALID.tolist() if row not in (510, 799)]
    corpus = Corpus()  # texts of other groups, such as other authors, may be near-identical, too
    corpus.texts[510] = corpus.texts[3].upper()
    assert corpus.prepare(groups=list(range(1000))).judged.tolist() == [row for row in VALID.tolist() if row != 510]


def test_it_recovers_what_the_audit_recovers() -> None:
    """From any numbers, and as workers get it."""
    corpus = Corpus()
    attack = pickle.loads(pickle.dumps(corpus.prepare()))
    known, judged = ([corpus.texts[row] for row in rows.tolist()] for rows in (TRAIN, VALID))
    by_audit = WordAttack.of(known, corpus.y[TRAIN], judged, SPACE)
    presence = by_audit.known, by_audit.judged
    mixing = np.random.default_rng(2).normal(size=(len(by_audit.words), 40))
    values = [words @ mixing for words in presence]
    expected = by_audit.recover(*values).every
    assert attack.recover(*values) == expected > attack.by_frequency + 0.1
    ranked = np.argsort(-by_audit.documents, kind="stable")
    hits = sum(row[ranked[: int(row.sum())]].sum() for row in presence[1].toarray())
    assert attack.by_frequency == pytest.approx(hits / presence[1].sum())


def test_without_a_cap_no_text_is_read() -> None:
    corpus = Corpus()
    assert prepare_attack(SearchSettings(), corpus.read, corpus.data()) is None
    assert corpus.rows_read == set()


def test_a_cap_below_the_frequency_of_words_is_refused_with_what_is_possible() -> None:
    least = Corpus().prepare().by_frequency
    with pytest.raises(
        UserError, match=rf"search.max_leakage is 0.01.*reveals {100 * least:.1f} % of the words"
    ) as info:
        Corpus().prepare(0.01)
    possible = float(str(info.value).rpartition("set it to ")[2].split()[0])
    assert 0 < possible - least <= 0.01
    assert Corpus().prepare(possible).by_frequency == least


def test_too_few_words_are_refused_by_the_name_of_the_setting() -> None:
    corpus = Corpus()
    corpus.texts = [f"the same words again {number}" for number in range(1000)]
    with pytest.raises(UserError, match=r"search.max_leakage: found \d content words that 5 of 500 texts have"):
        corpus.prepare()
