"""The attack by which training measures what the selected neurons of a candidate reveal about texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spin.arrays import Rows
from spin.audit.word_recovery import WordAttack
from spin.errors import UserError
from spin.integrate.leakage import LeakageAttack, percent_above
from spin.labels.sampling import sample_rows
from spin.labels.split_groups import hash_text
from spin.labels.training_data import TrainingData
from spin.settings import SearchSettings

MOST_DOCUMENTS = 2_000
"""documents that the attacker knows, and documents that are attacked, at most: as many as in `spin audit privacy`"""


def prepare_attack(
    settings: SearchSettings, read: Callable[[Rows], Sequence[str]], data: TrainingData
) -> LeakageAttack | None:
    """The attack on the words of validation documents that the search needs; None without `search.max_leakage`.

    The attacker knows training documents of the same fold, the first one. No two documents have near-identical texts,
    and none that is attacked has a document of its group among those that are known. `read` returns the texts of rows
    in ascending order. Raises UserError where too few words can be looked for, and for a cap below what is revealed
    without any neuron.
    """
    if settings.max_leakage is None:
        return None
    fold = data.folds[0]
    known = _sample(fold.train, data)
    attackable = fold.valid
    if data.groups is not None:
        attackable = attackable[~np.isin(data.groups[attackable], data.groups[known])]
    judged = _sample(attackable, data)
    seen = set[int]()
    known, known_texts = _distinct(known, read(known), seen)
    judged, judged_texts = _distinct(judged, read(judged), seen)
    try:
        attack = WordAttack.of(known_texts, data.y[known], judged_texts, data.label_space)
    except UserError as error:
        raise UserError(f"search.max_leakage: {error}") from None
    by_frequency = attack.recover_by_frequency().every
    if settings.max_leakage < by_frequency:
        raise UserError(
            f"search.max_leakage is {settings.max_leakage:g}, and the frequency of words alone reveals "
            f"{100 * by_frequency:.1f} % of the words of a text, whatever is read; set it to "
            f"{percent_above(by_frequency):g} or more"
        )
    return LeakageAttack(known, judged, attack.recover_share, by_frequency)


def _sample(rows: Rows, data: TrainingData) -> Rows:
    return sample_rows(rows, data.label_space.strata(data.y[rows]), MOST_DOCUMENTS, data.seed)


def _distinct(rows: Rows, texts: Sequence[str], seen: set[int]) -> tuple[Rows, list[str]]:
    """The rows and texts without those that are near-identical to one before them or `seen`, to which they are added.

    Copies among the known texts would vouch for each other where the attack chooses its penalty, and weaken it.
    """
    places = []
    for place, text in enumerate(texts):
        if (key := hash_text(text)) not in seen:
            seen.add(key)
            places.append(place)
    return rows[places], [texts[place] for place in places]
