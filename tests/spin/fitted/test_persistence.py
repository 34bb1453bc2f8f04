"""A loaded classifier equals the saved one bit for bit; an incomplete or foreign file is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.errors import UserError
from spin.fitted import persistence
from spin.fitted.candidate import Candidate
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier, LeakageCap, TrainingResult, UncappedChoice
from spin.fitted.persistence import CONFIG, TENSORS, ClassifierMetadata, load, save
from spin.fitted.recipe import ClassifierRecipe, ExitRecipe, HeadRecipe, LastLayerRecipe
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Stack
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings
from spin.sites import BY_WORDS, FeatureColumn
from spin.words.vocabulary import Vocabulary
from spin.words.word_regression import WordRegression
from tests.support.summaries import build_choice_summary

COLUMNS = [FeatureColumn.parse(text) for text in ("resid.00.mean", "ffn.01.max", "ffn.02.mean")]
SUMMARY = build_choice_summary(depth=2, temperature=1.25)
METADATA = ClassifierMetadata(
    classes=("a", "b", "c"),
    multilabel=False,
    backbone=BackboneSettings(model="none"),
    backbone_digest="digest",
    metric="macro_f1",
    decision=DecisionSettings(thresholds={"a": 0.4}, abstain=0.25),
)

PLAIN = Stack((0.0, 0.0, 0.0), 1.0)


def make_fitted(
    seed: int, *, network: bool, classes: int = 3, columns: int = 3, words: bool = False
) -> FittedClassifier:
    """Random neurons and a random head on them, and on the words' logits if wanted."""
    draw = np.random.default_rng(seed)
    neurons = {c: np.sort(draw.permutation(50)[: draw.integers(1, 6)]).astype(np.int64) for c in COLUMNS[:columns]}
    importance = {c: draw.random(len(n)) for c, n in neurons.items()}
    p = sum(map(len, neurons.values())) + words * classes

    def values(*shape: int) -> Any:
        return draw.normal(size=shape).astype(np.float32)

    head: LinearHead = LinearHead(values(classes, p), values(classes))
    if network:
        head = NetworkHead(head.coef, head.intercept, values(4, p), values(4), values(classes, 4))
    selection = Selection(neurons, importance, 0.1 + seed % 7 / 10, words * classes)
    summary = SUMMARY.model_copy(update={"head": head.name})
    return FittedClassifier(selection, Standardizer(values(p), values(p)), head, summary)


def make_regression(classes: int = 3) -> WordRegression:
    """A small word regression."""
    vocabularies = (
        Vocabulary("words", ("crew", "lovely crew", "naïve"), np.array([1, 2, 3], np.float32)),
        Vocabulary("characters", (" cre", "rew"), np.array([1.5, 2.5], np.float32)),
    )
    coef = np.arange(classes * 5, dtype=np.float32).reshape(classes, 5)
    return WordRegression(vocabularies, coef, np.arange(classes, dtype=np.float32))


def make_training_result(*parts: FittedClassifier) -> TrainingResult:
    """Three choices from the given fitted classifiers, of which the last fills all remaining names."""
    names = ("accuracy", "balanced", "cheapest")
    choices = {name: parts[min(at, len(parts) - 1)] for at, name in enumerate(names)}
    points = (
        Candidate(1 / 3, 0, (), compute=0.0, strength=0.3, stack=PLAIN, neurons=4, valid_score=0.625),
        Candidate(
            0.7, 2, ("ffn",), compute=0.66, strength=3, neurons=7, valid_score=2 / 3,
            stack=Stack((0.0, 0.0, 0.0), 0.75, 0.25),
        ),
    )  # fmt: skip
    frontier = tuple(point.summary() for point in points)
    regression = next(
        (make_regression(part.selection.word_logits) for part in parts if part.selection.word_logits), None
    )
    return TrainingResult(choices, frontier, 31, regression)  # type: ignore[arg-type]


def write(folder: Path, result: TrainingResult) -> Path:
    for name, data in save(result, METADATA).items():
        (folder / name).write_bytes(data)
    return folder


def check_equal(actual: FittedClassifier, expected: FittedClassifier) -> None:
    """The same values, bit for bit, and the same types."""
    assert actual.selection.rows() == expected.selection.rows()
    assert list(actual.selection.neurons) == list(expected.selection.neurons)
    assert replace(actual.selection, neurons={}, importance={}) == replace(
        expected.selection, neurons={}, importance={}
    )
    assert actual.summary == expected.summary
    assert type(actual.head) is type(expected.head)
    pairs: list[tuple[Any, Any]] = [
        (actual.standardizer.mean, expected.standardizer.mean),
        (actual.standardizer.scale, expected.standardizer.scale),
    ]
    stored = actual.head.to_tensors()
    pairs += [(stored[name], values) for name, values in expected.head.to_tensors().items()]
    pairs += [(actual.selection.neurons[c], expected.selection.neurons[c]) for c in expected.selection.neurons]
    pairs += [(actual.selection.importance[c], expected.selection.importance[c]) for c in expected.selection.neurons]
    for actual_array, expected_array in pairs:
        assert actual_array.dtype == expected_array.dtype
        np.testing.assert_array_equal(actual_array, expected_array)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=1, max_size=3), st.integers(2, 4), st.integers(1, 3))
def test_a_loaded_training_result_equals_the_saved_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, network: list[bool], classes: int, columns: int
) -> None:
    """Every choice is equal bit for bit, with a linear or a network head.

    A classifier under several names is still one object.
    """
    parts = [
        make_fitted(seed + at, network=b, classes=classes, columns=columns, words=(seed + at) % 3 == 0)
        for at, b in enumerate(network)
    ]
    result = make_training_result(*parts)
    folder = write(tmp_path_factory.mktemp("artifact"), result)
    loaded, metadata = load(folder)
    assert list(loaded.choices) == list(result.choices)
    for name, expected in result.choices.items():
        check_equal(loaded.choices[name], expected)
    assert len({id(choice) for choice in loaded.choices.values()}) == len(network)
    assert loaded.frontier == result.frontier
    assert loaded.tried == 31
    assert (loaded.words is None) == (result.words is None)
    if loaded.words is not None and result.words is not None:
        text = "a lovely crew, naïve"
        np.testing.assert_array_equal(loaded.words.logits([text]), result.words.logits([text]))
    assert metadata == METADATA
    assert save(loaded, metadata) == {name: (folder / name).read_bytes() for name in (CONFIG, TENSORS)}


def test_leakage_and_its_cap_are_stored_with_the_choices(tmp_path: Path) -> None:
    """They come back as they were; without a cap nothing is written of them."""
    fitted = make_fitted(0, network=False)
    result = make_training_result(fitted)
    assert b"leakage" not in save(result)[CONFIG]
    cap = LeakageCap(
        max_leakage=0.4,
        by_frequency=0.08,
        known=200,
        judged=100,
        uncapped={"accuracy": UncappedChoice(leakage=0.5, valid_score=0.9, price=0.01)},
    )
    measured = replace(fitted, summary=fitted.summary.model_copy(update={"leakage": 0.3812}))
    frontier = tuple(candidate.model_copy(update={"leakage": 0.3812}) for candidate in result.frontier)
    capped = replace(make_training_result(measured), cap=cap, frontier=frontier)
    loaded, _ = load(write(tmp_path, capped))
    assert loaded.cap == cap
    assert loaded.frontier == frontier
    assert loaded.summary() == capped.summary()
    assert loaded.choices["accuracy"].summary.leakage == 0.3812


def test_the_chosen_thresholds_are_stored_with_each_classifier(tmp_path: Path) -> None:
    """They come back exactly, and decide where the settings are silent."""
    label_space, thresholds = LabelSpace(("a", "b", "c")), {"a": 0.1234567, "b": 0.5, "c": 0.3765433}
    parts = [make_fitted(seed, network=False) for seed in range(2)]
    parts[1] = replace(parts[1], summary=parts[1].summary.model_copy(update={"thresholds": thresholds}))
    loaded, _ = load(write(tmp_path, make_training_result(*parts)))
    assert [loaded.choices[name].summary.thresholds for name in ("accuracy", "balanced")] == [None, thresholds]  # type: ignore[index]
    decision = loaded.choices["balanced"].decision(label_space, DecisionSettings())
    assert decision.thresholds == pytest.approx([*thresholds.values()])


def test_exits_are_stored_with_their_recipes(tmp_path: Path) -> None:
    """That by words comes first; it keeps the word regression, which no head reads, and is incomplete without it."""
    draw, fitted = np.random.default_rng(0), make_fitted(0, network=True)
    heads = [LinearHead(*(draw.normal(size=s).astype(np.float32) for s in ((3, p), 3))) for p in (3, 2)]
    recipes = [
        ExitRecipe(depth, 0.75, 0.5, HeadRecipe(4.0, Stack((0.5, 0.25, 0.125), *weights)))
        for depth, weights in ((BY_WORDS, (0.0, 1.0)), (1, (0.5, 0.0)))
    ]
    exits = tuple(EarlyExit(r.depth, head, r.threshold) for r, head in zip(recipes, heads, strict=True))
    last_layer = LastLayerRecipe(FeatureColumn.parse("resid.01.mean"), 3.0, (0.4, 0.3))
    head = HeadRecipe(1.0, Stack((1.0, 2.0, 3.0), 1.5, network=0.5), epochs=40, last_layer=last_layer)
    recipe = ClassifierRecipe(head, tuple(recipes))
    result = make_training_result(replace(fitted, exits=exits, recipe=recipe))
    loaded, _ = load(write(tmp_path, replace(result, words=make_regression())))
    actual = loaded.choices["accuracy"]
    assert actual.recipe == recipe
    assert [(exit.depth, exit.threshold, exit.by_words) for exit in actual.exits] == [
        (BY_WORDS, 0.75, True),
        (1, 0.75, False),
    ]
    for exit, head in zip(actual.exits, heads, strict=True):
        np.testing.assert_array_equal(exit.head.coef, head.coef)
        np.testing.assert_array_equal(exit.head.intercept, head.intercept)
    words = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(actual.at(0).logits(words), heads[0].logits(words))
    remove_all_words(tmp_path)
    with pytest.raises(UserError, match="it reads words, and has no word regression"):
        load(tmp_path)


def test_a_classifier_under_several_names_is_stored_once(tmp_path: Path) -> None:
    """Two equal classifiers that are different objects are stored separately."""
    fitted = make_fitted(0, network=False)
    names = load_tensors(save(make_training_result(fitted))[TENSORS])
    assert {name.partition(".")[0] for name in names} == {"0"}
    loaded, _ = load(write(tmp_path, make_training_result(fitted)))
    assert loaded.choices["accuracy"] is loaded.choices["balanced"] is loaded.choices["cheapest"]
    names = load_tensors(save(make_training_result(fitted, make_fitted(0, network=False)))[TENSORS])
    assert {name.partition(".")[0] for name in names} == {"0", "1"}


def test_a_head_of_array_views_is_saved_correctly(tmp_path: Path) -> None:
    """Strided or transposed arrays come back with the same values, whatever their order in memory."""
    fitted = make_fitted(0, network=False)
    assert isinstance(fitted.head, LinearHead)
    wide = np.asfortranarray(np.repeat(fitted.head.coef, 2, axis=1))
    head = LinearHead(wide[:, ::2], fitted.head.intercept)
    loaded, _ = load(
        write(tmp_path, make_training_result(FittedClassifier(fitted.selection, fitted.standardizer, head, SUMMARY)))
    )
    np.testing.assert_array_equal(loaded.choices["accuracy"].head.slopes(fitted.standardizer.mean), fitted.head.coef)


def remove_tensor(tensor: str) -> Callable[[Path], None]:
    """Return a function that removes a tensor from the file."""

    def damage(folder: Path) -> None:
        tensors = load_tensors((folder / TENSORS).read_bytes())
        del tensors[tensor]
        (folder / TENSORS).write_bytes(save_tensors(tensors))

    return damage


@dataclass(frozen=True)
class OwnMeanHead(LinearHead):
    """A head with tensors that the standardizer has too."""

    name: ClassVar[str] = "own_mean"

    mean: np.ndarray
    scale: np.ndarray


def test_a_head_may_have_tensors_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "HEADS", (*persistence.HEADS, OwnMeanHead))
    fitted = make_fitted(0, network=False)
    head = OwnMeanHead(*fitted.head.to_tensors().values(), np.ones(3, np.float32), np.zeros(3, np.float32))
    expected = replace(fitted, head=head, summary=fitted.summary.model_copy(update={"head": "own_mean"}))
    loaded, _ = load(write(tmp_path, make_training_result(expected)))
    check_equal(loaded.choices["accuracy"], expected)


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return a function that changes config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def truncate(name: str, share: float) -> Callable[[Path], None]:
    """Return a function that keeps only the first part of a file."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def remove_all_words(folder: Path) -> None:
    """Remove the word regression that a choice reads."""
    tensors = load_tensors((folder / TENSORS).read_bytes())
    (folder / TENSORS).write_bytes(save_tensors({n: t for n, t in tensors.items() if not n.startswith("words.")}))


INCOMPLETE, UNREADABLE = "is not a whole classifier: ", "is not a classifier that can be read: "


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *[
            (
                edit_config(lambda c, n=n: c.update(format=n)),
                f"format {n}, this version reads 11; train the model again",
            )
            for n in (1, 8)
        ],
        (
            edit_config(lambda c: c.update(format=12)),
            "has format 12, this version reads 11; install the version of SPIN",
        ),
        (edit_config(lambda c: c.pop("format")), "has format None, this version reads 11; train the model again"),
        *[(remove_tensor(f"0.{name}"), f"{INCOMPLETE}'{name}'") for name in ("mean", "scale")],
        *[(remove_tensor(f"0.head.{name}"), f"{INCOMPLETE}'{name}'") for name in ("coef", "intercept")],
        (remove_tensor("0.head.inner_bias"), f"{INCOMPLETE}'inner_bias'"),
        (remove_tensor("0.neurons.ffn.01.max"), f"{INCOMPLETE}'neurons.ffn.01.max'"),
        (remove_tensor("0.importance.ffn.02.mean"), f"{INCOMPLETE}'importance.ffn.02.mean'"),
        *[
            (remove_tensor(f"words.{name}"), f"{INCOMPLETE}'{name}'")
            for name in ("coef", "intercept", "words.terms", "characters.terms")
        ],
        (remove_all_words, f"{INCOMPLETE}.*it reads words, and has no word regression"),
        (edit_config(lambda c: c.pop("choices")), f"{INCOMPLETE}choices: Field required"),
        (edit_config(lambda c: c.pop("frontier")), f"{INCOMPLETE}frontier: Field required"),
        (edit_config(lambda c: c.pop("tried")), f"{INCOMPLETE}tried: Field required"),
        (edit_config(lambda c: c["choices"].update(accuracy=7)), f"{INCOMPLETE}list index out of range"),
        (edit_config(lambda c: c.update(choices=3)), f"{INCOMPLETE}choices: Input should be a valid dictionary"),
        (edit_config(lambda c: c["frontier"][0].pop("strength")), f"{INCOMPLETE}frontier.0.strength: Field required"),
        (edit_config(lambda c: c.update(novel=1)), f"{INCOMPLETE}novel: Extra inputs are not permitted"),
        (
            edit_config(lambda c: c["classifiers"][0]["summary"].update(head="tree")),
            f"{INCOMPLETE}head 'tree': expected one of linear, network",
        ),
        (
            edit_config(lambda c: c["metadata"]["backbone"].update(max_tokens="many")),
            f"{INCOMPLETE}metadata.backbone.max_tokens: Input should be a valid integer",
        ),
        (
            edit_config(lambda c: c["classifiers"][0].update(columns=["ffn.77.max"])),
            f"{INCOMPLETE}'neurons.ffn.77.max'",
        ),
        (edit_config(lambda c: c["classifiers"][0].update(columns=["nonsense"])), "'' is not a site"),
        (truncate(TENSORS, 0.9), UNREADABLE),
        (truncate(TENSORS, 0.01), UNREADABLE),
        (truncate(TENSORS, 0), UNREADABLE),
        (truncate(CONFIG, 0.9), UNREADABLE),
        (truncate(CONFIG, 0), UNREADABLE),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), UNREADABLE),
    ],
)
def test_an_incomplete_or_unreadable_classifier_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """The error is one line that names the folder and the missing part."""
    write(tmp_path, make_training_result(make_fitted(0, network=True, words=True)))
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
