"""The label mix of `spin roi`: what the option `--label-mix` takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.planning.roi_terms import read_label_mix, weigh_classes
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from tests.support.hostile_text import HOSTILE_TEXTS

SPACE = LabelSpace(("ham", "spam"))


def test_one_value_is_a_list_and_several_are_a_class_each() -> None:
    """In a list a comma divides classes; of several values it is part of a name."""
    assert read_label_mix(["spam=0.25, ham=0.75"]) == {"spam": 0.25, "ham": 0.75}
    assert read_label_mix(["spam=0.25", "ham=0.75"]) == {"spam": 0.25, "ham": 0.75}
    assert read_label_mix(["food, drink=0.25", "a=1,b=0.75"]) == {"food, drink": 0.25, "a=1,b": 0.75}
    assert read_label_mix([]) == {}


def test_the_last_equals_sign_divides_a_class_from_its_share() -> None:
    """In both forms: names of classes may hold one."""
    assert read_label_mix(["a=b=0.25,c=0.75"]) == {"a=b": 0.25, "c": 0.75}
    assert read_label_mix(["a=b=0.25", "=c==0.75"]) == {"a=b": 0.25, "=c=": 0.75}


@pytest.mark.parametrize("name", [*HOSTILE_TEXTS, "a,b", "a=1,b=2", "spam=0.5"])
def test_every_class_can_be_named(tmp_path: Path, name: str) -> None:
    """By an option of its own, and by a file of either kind."""
    mix = {name: 0.25, "ham": 0.75}
    assert read_label_mix([f"{given}={share}" for given, share in mix.items()]) == mix
    for file, content in (("mix.json", json.dumps(mix, indent="\t")), ("mix.yaml", yaml.safe_dump(mix))):
        (tmp_path / file).write_text(content, encoding="utf-8")
        assert read_label_mix([str(tmp_path / file)]) == mix


def test_a_file_may_lie_in_a_folder_with_an_equals_sign_and_a_comma(tmp_path: Path) -> None:
    folder = tmp_path / "date=2026,1"
    folder.mkdir()
    (folder / "mix.yml").write_text("spam: 1\nham: 0\n")
    assert read_label_mix([str(folder / "mix.yml")]) == {"spam": 1.0, "ham": 0.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["spam"], "found 'spam'; expected a share of each class, such as spam=0.2,ham=0.8; for classes with commas"),
        (["food, drink=0.5"], "found 'food'; .* give --label-mix NAME=SHARE once per class"),
        (["spam=much,ham=0.5"], "found 'spam=much'"),
        (["=0.5,ham=0.5"], "found '=0.5'"),
        (["0.5"], "found '0.5'"),
        ([""], "found ''"),
        (["spam=0.5", "mix.yaml"], "found 'mix.yaml'"),
        (["spam=0.5", "spam=0.5"], "found 'spam' twice; .* leave one out"),
    ],
)
def test_values_of_another_form_are_refused(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"--label-mix: {message}"):
        read_label_mix(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"found \[1, 2\]; expected shares by class, such as {spam: 0.2, ham: 0.8}"),
        ("", "found None; expected shares by class"),
        ("{}", "found {}; expected shares by class"),
        ("spam: much", "found 'much' for class 'spam'; expected shares by class"),
        ("spam: true", "found True for class 'spam'"),
        ("yes: 0.5", "found True; expected the name of a class; put quotes around"),
        ("spam: [", "cannot be read: .*; expected a YAML or JSON file"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mix.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"mix.yaml:? (?s:{message})"):
        read_label_mix([str(tmp_path / "mix.yaml")])


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.json cannot be read: .*No such file"):
        read_label_mix([str(tmp_path / "absent.json")])


def test_the_weights_of_the_classes_are_in_their_order() -> None:
    y = np.array([0, 1, 1])
    weights = weigh_classes({"spam": 0.2, "ham": 0.8}, SPACE, y)
    assert weights is not None
    assert weights.tolist() == [0.8, 0.2]
    assert weigh_classes({}, SPACE, y) is None


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"spam": 1.0}, "found 'spam'; expected a share of 'ham', 'spam'; name each of them once"),
        ({"ham": 0.5, "spam": 0.4}, "add up to 0.9; expected shares from 0 that add up to 1"),
        ({"ham": 1.5, "spam": -0.5}, "expected shares from 0"),
        ({"ham": float("nan"), "spam": 0.5}, "add up to nan"),
        ({"ham": 0.5, "spam": 0.5}, "no document of class 'spam', so its errors are unknown"),
    ],
)
def test_a_mix_that_does_not_fit_the_classes_is_refused(mix: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        weigh_classes(mix, SPACE, np.zeros(3, np.int64))
