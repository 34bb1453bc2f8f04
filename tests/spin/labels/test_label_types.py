"""Labels have names, and a type to which the names lead back."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spin.errors import UserError
from spin.labels.label_types import PARSERS, name_labels


@pytest.mark.parametrize(
    ("labels", "names", "label_type"),
    [
        ([3, -1], ["3", "-1"], "int"),
        (np.array([3, -1], np.int8), ["3", "-1"], "int"),
        (np.array([0.1, 2], np.float32), ["0.10000000149011612", "2.0"], "float"),
        ((True, np.False_), ["True", "False"], "bool"),
        (pd.Series(["a", "nan"], index=[5, 6]), ["a", "nan"], "str"),
        (pd.Categorical([2, 4]), ["2", "4"], "int"),
        ([[1, 2], (), np.array([2])], [["1", "2"], [], ["2"]], "int"),
        ([[], []], [[], []], "str"),
    ],
)
def test_names_lead_back_to_the_labels(labels: Any, names: list[Any], label_type: str) -> None:
    assert name_labels(labels) == (names, label_type)
    given = [value for label in labels for value in (label if isinstance(names[0], list) else [label])]
    flat = [name for entry in names for name in ([entry] if isinstance(entry, str) else entry)]
    assert [PARSERS[label_type](name) for name in flat] == given


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")])
def test_missing_labels_are_refused_with_their_positions(missing: Any) -> None:
    for label in (missing, ["a", missing]):
        with pytest.raises(UserError, match=r"labels: 1 of 3 missing \(None or NaN\), at position 1; label"):
            name_labels(["a", label, "b"])
    positions = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    with pytest.raises(UserError, match=f"labels: 12 of 13 missing .* at positions {positions}; label"):
        name_labels([missing] * 12 + ["a"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "1"], r"found 1 \(int\) and '1' \(str\); expected labels of one type"),
        ([["a"], [2.5]], r"found 'a' \(str\) and 2.5 \(float\)"),
        ([True, 1], r"found True \(bool\) and 1 \(int\)"),
        ([b"a", b"b"], r"found b'a' \(bytes\); expected str, int, float, bool"),
        ([date(2026, 1, 1)], r"found datetime.date\(2026, 1, 1\) \(date\)"),
        (np.eye(2), r"found an array of shape \(2, 2\); expected one label per text"),
        (pd.DataFrame({"label": ["a"]}), "found a table with the columns label; expected one label per text"),
        (None, "found nothing; expected one label per text"),
        ("good", "found a str; expected one label per text"),
    ],
)
def test_labels_of_other_or_several_types_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        name_labels(labels)
