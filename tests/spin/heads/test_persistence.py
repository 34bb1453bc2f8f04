"""What is saved is what is loaded, bit for bit; what is not whole or of another format is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.errors import UserError
from spin.heads.candidate import Candidate
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.persistence import CONFIG, TENSORS, ClassifierMetadata, load, save
from spin.heads.selection import Selection
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings
from spin.sites import FeatureColumn
from tests.support.summaries import choice_summary

COLUMNS = [FeatureColumn.parse(text) for text in ("resid.00.mean", "ffn.01.max", "ffn.02.mean")]
SUMMARY = choice_summary(depth=2, temperature=1.25)
METADATA = ClassifierMetadata(
    classes=("a", "b", "c"),
    multilabel=False,
    backbone=BackboneSettings(model="none"),
    backbone_digest="digest",
    metric="macro_f1",
    decision=DecisionSettings(thresholds={"a": 0.4}, abstain=0.25),
)


def fitted(seed: int, *, bent: bool, classes: int = 3, columns: int = 3) -> FittedClassifier:
    """Random neurons and a random head of them."""
    draw = np.random.default_rng(seed)
    neurons = {c: np.sort(draw.permutation(50)[: draw.integers(1, 6)]).astype(np.int64) for c in COLUMNS[:columns]}
    importance = {c: draw.random(len(n)) for c, n in neurons.items()}
    p = sum(map(len, neurons.values()))

    def values(*shape: int) -> Any:
        return draw.normal(size=shape).astype(np.float32)

    head: LinearHead | MlpHead = LinearHead(values(classes, p), values(classes))
    if bent:
        head = MlpHead(head, values(4, p), values(4), values(classes, 4))
    selection = Selection(neurons, importance, 0.1 + seed % 7 / 10)
    return FittedClassifier(selection, Standardizer(values(p), values(p)), head, SUMMARY)


def training_result(*parts: FittedClassifier) -> TrainingResult:
    """Three choices of some integrations, the last of which has all the rest."""
    names = ("accuracy", "balanced", "cheapest")
    choices = {name: parts[min(at, len(parts) - 1)] for at, name in enumerate(names)}
    points = (
        Candidate(0, 0.0, 1 / 3, (), Penalty(0.3), 4, 0.625, (0.5, 0.75), (np.zeros((2, 3)),)),
        Candidate(2, 0.66, 0.7, ("ffn",), Penalty(3, 0.02), 7, 2 / 3, (2 / 3,)),
    )
    return TrainingResult(choices, points, 31)  # type: ignore[arg-type]


def written(folder: Path, subject: TrainingResult) -> Path:
    for name, data in save(subject, METADATA).items():
        (folder / name).write_bytes(data)
    return folder


def check_equal(back: FittedClassifier, mine: FittedClassifier) -> None:
    """Bit for bit, and of the same types."""
    assert back.selection.rows() == mine.selection.rows()
    assert list(back.selection.neurons) == list(mine.selection.neurons)
    assert back.selection.eta == mine.selection.eta
    assert back.summary == mine.summary
    assert type(back.head) is type(mine.head)
    pairs: list[tuple[Any, Any]] = [
        (back.standardizer.mean, mine.standardizer.mean),
        (back.standardizer.scale, mine.standardizer.scale),
    ]
    linear = [h.linear if isinstance(h, MlpHead) else h for h in (back.head, mine.head)]
    pairs += [(linear[0].coef, linear[1].coef), (linear[0].intercept, linear[1].intercept)]
    if isinstance(mine.head, MlpHead):
        pairs += [(getattr(back.head, name), getattr(mine.head, name)) for name in ("inner", "inner_bias", "outer")]
    pairs += [(back.selection.neurons[c], mine.selection.neurons[c]) for c in mine.selection.neurons]
    pairs += [(back.selection.importance[c], mine.selection.importance[c]) for c in mine.selection.neurons]
    for here, there in pairs:
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=1, max_size=3), st.integers(2, 4), st.integers(1, 3))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bent: list[bool], classes: int, columns: int
) -> None:
    """Every choice bit for bit, linear and bent; one that stands under several names still is one."""
    parts = [fitted(seed + at, bent=b, classes=classes, columns=columns) for at, b in enumerate(bent)]
    subject = training_result(*parts)
    folder = written(tmp_path_factory.mktemp("artifact"), subject)
    back, metadata = load(folder)
    assert list(back.choices) == list(subject.choices)
    for name, mine in subject.choices.items():
        check_equal(back.choices[name], mine)
    assert len({id(found) for found in back.choices.values()}) == len(bent)
    assert back.frontier == subject.frontier
    assert back.tried == 31
    assert metadata == METADATA
    assert save(back, metadata) == {name: (folder / name).read_bytes() for name in (CONFIG, TENSORS)}


def test_a_shared_integration_is_stored_once(tmp_path: Path) -> None:
    """Equal ones that are not the same are stored each."""
    one = fitted(0, bent=False)
    names = load_tensors(save(training_result(one))[TENSORS])
    assert {name.partition(".")[0] for name in names} == {"0"}
    back, _ = load(written(tmp_path, training_result(one)))
    assert back.choices["accuracy"] is back.choices["balanced"] is back.choices["cheapest"]
    names = load_tensors(save(training_result(one, fitted(0, bent=False)))[TENSORS])
    assert {name.partition(".")[0] for name in names} == {"0", "1"}


def test_a_view_is_saved_as_it_is(tmp_path: Path) -> None:
    """A head whose arrays are columns of others, or transposed, comes back right, whatever its order in memory."""
    mine = fitted(0, bent=False)
    assert isinstance(mine.head, LinearHead)
    wide = np.asfortranarray(np.repeat(mine.head.coef, 2, axis=1))
    head = LinearHead(wide[:, ::2], mine.head.intercept)
    back, _ = load(
        written(tmp_path, training_result(FittedClassifier(mine.selection, mine.standardizer, head, SUMMARY)))
    )
    np.testing.assert_array_equal(back.choices["accuracy"].head.slopes(mine.standardizer.mean), mine.head.coef)


def without(tensor: str) -> Callable[[Path], None]:
    """Take a tensor away."""

    def damage(folder: Path) -> None:
        tensors = load_tensors((folder / TENSORS).read_bytes())
        del tensors[tensor]
        (folder / TENSORS).write_bytes(save_tensors(tensors))

    return damage


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    """Leave only the first part of a file."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


NOT_WHOLE, NOT_READ = "is not a whole classifier: ", "is not a classifier that can be read: "


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited(lambda c: c.update(format=1)), "has format 1, this version reads 4; train the model again"),
        (edited(lambda c: c.pop("format")), "has format None, this version reads 4; train the model again"),
        *[(without(f"0.{name}"), f"{NOT_WHOLE}'{name}'") for name in ("mean", "scale", "coef", "intercept")],
        (without("0.inner_bias"), f"{NOT_WHOLE}'inner_bias'"),
        (without("0.neurons.ffn.01.max"), f"{NOT_WHOLE}'neurons.ffn.01.max'"),
        (without("0.importance.ffn.02.mean"), f"{NOT_WHOLE}'importance.ffn.02.mean'"),
        (edited(lambda c: c.pop("choices")), f"{NOT_WHOLE}'choices'"),
        (edited(lambda c: c.pop("frontier")), f"{NOT_WHOLE}'frontier'"),
        (edited(lambda c: c.pop("tried")), f"{NOT_WHOLE}'tried'"),
        (edited(lambda c: c["choices"].update(accuracy=7)), f"{NOT_WHOLE}list index out of range"),
        (edited(lambda c: c.update(choices=3)), NOT_WHOLE),
        (edited(lambda c: c["frontier"][0].pop("penalty")), f"{NOT_WHOLE}'penalty'"),
        (edited(lambda c: c["frontier"][0].update(novel=1)), f"{NOT_WHOLE}.*unexpected keyword argument 'novel'"),
        (edited(lambda c: c["integrations"][0].update(columns=["ffn.77.max"])), f"{NOT_WHOLE}'neurons.ffn.77.max'"),
        (edited(lambda c: c["integrations"][0].update(columns=["nonsense"])), "'' is not a site"),
        (cut(TENSORS, 0.9), NOT_READ),
        (cut(TENSORS, 0.01), NOT_READ),
        (cut(TENSORS, 0), NOT_READ),
        (cut(CONFIG, 0.9), NOT_READ),
        (cut(CONFIG, 0), NOT_READ),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), NOT_READ),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """In words that name the folder and what is missing."""
    written(tmp_path, training_result(fitted(0, bent=True)))
    damage(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
