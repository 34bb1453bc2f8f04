"""Promise an error: an abstention band by test documents, compared with plain loops and over many draws of them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from scipy.stats import binomtest

from spin.arrays import Floats
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.estimator import SpinClassifier
from spin.fitted.abstention import RISK, choose_band, keep_promise, least_documents, require_precision
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.fitted.held_out import HELD_OUT, HeldOutLogits
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.splits import certifies
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, Choice, DecisionSettings, Precision
from tests.support.summaries import build_choice_summary

SINGLE, SEVERAL = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)
NO_HEAD = LinearHead(np.zeros((3, 0)), np.zeros(3))
EXITS = (EarlyExit(1, NO_HEAD, 0.8), EarlyExit(2, NO_HEAD, 0.6))


def make_decision(space: LabelSpace = SINGLE) -> Decision:
    return Decision.of(space, DecisionSettings())


def draw_documents(count: int, seed: int, space: LabelSpace = SINGLE, *, sharpness: float = 2.0) -> HeldOutLogits:
    """Documents whose classes are drawn from probabilities; exits know less of them, and claim to know as much."""
    draw = np.random.default_rng(seed)
    final = sharpness * draw.normal(size=(count, 3))
    p = space.probabilities(final)
    y = draw.random(p.shape) < p if space.multilabel else (p.cumsum(1) > draw.random((count, 1))).argmax(1)
    early = [final + noise * draw.normal(size=final.shape) for noise in (1.5, 0.8)]
    return HeldOutLogits(np.stack([*early, final]).astype(np.float32), y)


def find_labels(held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision) -> list[object]:
    """The label of each document by a plain loop over its stops; None where the decision abstains."""
    labels: list[object] = []
    for row in range(len(held_out)):
        for at, exit in enumerate([*exits, None]):
            logits = held_out.logits[at if exit is not None else -1][row : row + 1]
            probabilities = decision.label_space.probabilities(logits)
            [label] = decision.labels(probabilities)
            second, first = np.sort(probabilities[0])[-2:]
            margin = first - second
            if decision.label_space.multilabel:
                margin = np.abs(2 * probabilities - 1).min()
            if exit is None or (label is not None and margin >= exit.threshold):
                labels.append(label)
                break
    return labels


def measure_error(held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision) -> tuple[int, int]:
    """Wrong labels, and labels."""
    pairs = zip(find_labels(held_out, exits, decision), decision.label_space.names(held_out.y), strict=True)
    wrong = [given != true for given, true in pairs if given is not None]
    return sum(wrong), len(wrong)


@pytest.mark.parametrize("space", [SINGLE, SEVERAL])
@pytest.mark.parametrize("exits", [(), EXITS])
def test_the_band_is_the_last_before_the_first_that_is_not_proven(
    space: LabelSpace, exits: tuple[EarlyExit, ...]
) -> None:
    held_out, decision, max_error = draw_documents(1500, 0, space, sharpness=4.0), make_decision(space), 0.15
    bands = np.tanh(np.linspace(6, 0, 121)) / (1 + space.multilabel)
    found = choose_band(held_out, exits, decision, max_error)
    assert found is not None
    at = int(np.abs(bands - found.abstain).argmin())
    proofs = []
    for band in bands[at - 1 : at + 2]:
        wrong, labelled = measure_error(held_out, exits, replace(decision, abstain=float(band)))
        proofs.append(binomtest(wrong, labelled, max_error, alternative="less").pvalue <= RISK)
        if band == found.abstain:
            assert (found.coverage, found.error) == pytest.approx((labelled / 1500, wrong / labelled))
    assert proofs == [True, True, False]
    assert 0.1 < found.coverage < 1


@pytest.mark.slow
def test_the_promise_holds_over_draws_of_the_test_documents() -> None:
    """It fails in 5 % of them at most; a band under which the test documents just have the error, in half of them."""
    population, decision, max_error = draw_documents(100_000, 1), make_decision(), 0.1
    draw, promised, broken, naive = np.random.default_rng(2), 0, 0, 0

    def find_errors(p: Floats, y: np.ndarray, band: float) -> np.ndarray:
        given, abstains = replace(decision, abstain=band).decide(p)
        return (given != y)[~abstains]

    of_all = population.probabilities((), decision)
    for _ in range(200):
        rows = draw.choice(len(population), 800, replace=False)
        sample = HeldOutLogits(population.logits[:, rows], population.y[rows])
        band = choose_band(sample, (), decision, max_error)
        if band is not None:
            promised += 1
            broken += find_errors(of_all, population.y, band.abstain).mean() > max_error
        bands = [b for b in np.tanh(np.linspace(6, 0, 121)) if len(find_errors(of_all[rows], sample.y, b)) > 50]
        met = [b for b in bands if find_errors(of_all[rows], sample.y, b).mean() <= max_error]
        naive += find_errors(of_all, population.y, min(met)).mean() > max_error
    assert promised > 170
    assert broken <= 18  # more have a probability of 0.7 % if 10 fail on average
    assert naive > 60


def test_no_band_where_even_certain_labels_are_wrong() -> None:
    held_out = draw_documents(1000, 3, sharpness=0.2)
    assert choose_band(held_out, (), make_decision(), 0.1) is None
    assert choose_band(draw_documents(100, 3), (), make_decision(), 0.01) is None  # 300 right ones would prove it


@pytest.mark.slow
def test_a_promise_holds_for_the_version_that_the_gate_chose() -> None:
    """It is broken in 5 % of 40 draws at most; by the documents that chose the version, in more than a third.

    Of 40 versions that are all alike, the gate takes the one with the highest accuracy on its documents.
    """
    count, max_error, draw = 1200, 0.22, np.random.default_rng(7)
    decision = make_decision(LabelSpace(("a", "b")))
    proves = np.array([certifies(f"document {number}") for number in range(count)])
    margins = np.abs(2 * draw.normal(size=200_000))
    lead, error = np.tanh(margins / 2), 1 / (1 + np.exp(margins))

    def is_broken(right: NDArray[np.bool_], margins: Floats) -> bool:
        """Whether more of all labels are wrong than a version promises, by how certain and right some of them are."""
        logits = np.stack([-margins, margins], 1)[None] / 2
        band = choose_band(HeldOutLogits(logits, right.astype(np.int64)), (), decision, max_error)
        return band is not None and error[lead >= band.abstain].mean() > max_error

    by_halves = by_the_same = 0
    for _ in range(40):
        margins = np.abs(2 * draw.normal(size=(40, count)))
        right = draw.random(margins.shape) > 1 / (1 + np.exp(margins))
        chosen = right[:, ~proves].mean(1).argmax()
        by_halves += is_broken(right[chosen, proves], margins[chosen, proves])
        chosen = right.mean(1).argmax()
        by_the_same += is_broken(right[chosen], margins[chosen])
    assert by_halves <= 5  # more have a probability of 1 %
    assert by_the_same > 14


@pytest.mark.parametrize("max_error", [0.3, 0.05, 0.01])
def test_a_promise_takes_as_many_documents_as_prove_it_without_an_error(max_error: float) -> None:
    """With one less, the binomial test of labels that are all right does not reject; with just so many it does."""
    least = least_documents(max_error)
    assert binomtest(0, least, max_error, alternative="less").pvalue <= RISK
    assert binomtest(0, least - 1, max_error, alternative="less").pvalue > RISK
    for documents in (least, least - 1):  # all differ in how certain their labels are
        margin = np.linspace(1, 4, documents)
        all_right = HeldOutLogits(np.stack([0 * margin, margin, 0 * margin - 9], 1)[None], np.ones(documents, int))
        band = choose_band(all_right, (), make_decision(), max_error)
        assert (band is not None) == (documents == least)


def test_a_promise_is_void_in_another_precision(tmp_path: Path) -> None:
    (tmp_path / HELD_OUT).write_bytes(save_tensors(draw_documents(2000, 4, sharpness=4.0).to_tensors("accuracy")))
    promise = DecisionSettings(max_error=0.15)
    assert keep(tmp_path, promise).abstain > 0
    for precision in get_args(Precision)[1:]:
        with pytest.raises(UserError, match=f"backbone.dtype auto, and not in {precision}; set backbone.dtype auto"):
            keep(tmp_path, promise, precision=precision)
        assert keep(tmp_path, DecisionSettings(abstain=0.2), precision=precision).abstain == 0.2


@pytest.mark.slow
def test_a_promise_is_that_of_the_exits_and_thresholds_in_use(tmp_path: Path) -> None:
    """Each decision has a band of its own, and none takes that of another."""
    held_out = draw_documents(2000, 4, sharpness=4.0)
    (tmp_path / HELD_OUT).write_bytes(save_tensors(held_out.to_tensors("accuracy")))
    bands = []
    for thresholds in ({}, {"a": 0.7}):
        settings = DecisionSettings(max_error=0.15, thresholds=thresholds)
        decision = Decision.of(SINGLE, settings.without_promise())
        for early, exits in ((False, ()), (True, EXITS)):
            band = choose_band(held_out, exits, decision, 0.15)
            assert band is not None
            assert keep(tmp_path, settings, early=early).abstain == band.abstain
            bands.append(band.abstain)
    assert len(set(bands)) > 2


def make_fitted(exits: tuple[EarlyExit, ...] = ()) -> FittedClassifier:
    return FittedClassifier(
        Selection({}, {}, 0.0), Standardizer.concatenate([]), NO_HEAD, build_choice_summary(), exits
    )


def keep(
    folder: Path, settings: DecisionSettings, *, early: bool = False, precision: Precision = "auto"
) -> DecisionSettings:
    require_precision(settings, "auto", precision)
    return keep_promise(
        HeldOutLogits.read_all(folder).get("accuracy"), make_fitted(EXITS), SINGLE, settings, early=early
    )


@pytest.mark.slow
def test_a_promise_becomes_the_band_of_the_classifier_in_use(tmp_path: Path) -> None:
    held_out, promise = draw_documents(2000, 4, sharpness=4.0), DecisionSettings(max_error=0.15)
    (tmp_path / HELD_OUT).write_bytes(save_tensors(held_out.to_tensors("accuracy")))
    for early, exits in ((False, ()), (True, EXITS)):
        band = choose_band(held_out, exits, make_decision(), 0.15)
        assert band is not None
        assert keep(tmp_path, promise, early=early) == DecisionSettings(abstain=band.abstain)
    assert keep(tmp_path, promise) != keep(tmp_path, promise, early=True)
    assert keep(tmp_path, DecisionSettings(abstain=0.2)) == DecisionSettings(abstain=0.2)


def test_a_promise_is_proven_anew_for_another_decision(tmp_path: Path) -> None:
    """A classifier that is loaded may be given other exits, another choice and other thresholds."""
    held_out = {name: draw_documents(2000, 4, sharpness=4.0 + n) for n, name in enumerate(get_args(Choice))}
    result = TrainingResult({name: make_fitted(EXITS) for name in held_out}, (), 0)
    TrainedClassifier(BackboneSettings(model="none"), "0" * 64, SINGLE, result, "macro_f1").save(tmp_path)
    y = held_out["accuracy"].y
    tensors = {f"{name}.logits": each.logits for name, each in held_out.items()}
    (tmp_path / HELD_OUT).write_bytes(save_tensors(tensors | {"y": y}))
    promise = {"max_error": 0.15}
    spin, bands = SpinClassifier.load(tmp_path, decision=promise), []
    for changed in ({}, {"early": True}, {"choose": "cheapest"}, {"decision": promise | {"thresholds": {"a": 0.7}}}):
        trained = spin.set_params(**changed).trained_
        rule = Decision.of(SINGLE, trained.decision.model_copy(update={"abstain": 0.0}))
        documents = HeldOutLogits(held_out[trained.choose].logits, y)
        band = choose_band(documents, EXITS if trained.early else (), rule, 0.15)
        assert band is not None
        assert trained.decision.abstain == band.abstain
        assert pickle.loads(pickle.dumps(spin)).trained_.decision == trained.decision
        bands.append(band.abstain)
    assert len(set(bands)) == 4
    loaded = TrainedClassifier.load(tmp_path, decision=DecisionSettings(max_error=0.15))
    assert [loaded.choosing("accuracy", early=early).decision.abstain for early in (False, True)] == bands[:2]
    with pytest.raises(UserError, match=r"max_error 0.001 cannot be promised"):
        trained.choosing("accuracy", decision=DecisionSettings(max_error=0.001))
    assert trained.choosing("accuracy", decision=DecisionSettings(abstain=0.2)).decision.abstain == 0.2
    refused = r"decision.max_error: only the test documents of a version"
    with pytest.raises(UserError, match=refused):
        _ = SpinClassifier.load(tmp_path).set_params(decision=promise).trained_
    with pytest.raises(UserError, match=refused):
        spin.fit(["fine"], ["a"])


def test_a_promise_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decision.max_error 0.1: the version has no test documents .*test split"):
        keep(tmp_path, DecisionSettings(max_error=0.1))
    (tmp_path / HELD_OUT).write_bytes(save_tensors(draw_documents(500, 5, sharpness=0.2).to_tensors("accuracy")))
    with pytest.raises(UserError, match=r"max_error 0.1 cannot be promised: .* 500 test documents .*raise it"):
        keep(tmp_path, DecisionSettings(max_error=0.1))
    with pytest.raises(UserError, match=r"takes 2,995 test documents .* version has 500; label about 5,990 test"):
        keep(tmp_path, DecisionSettings(max_error=0.001))
    (tmp_path / HELD_OUT).write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{HELD_OUT} cannot be read"):
        keep(tmp_path, DecisionSettings(max_error=0.1))


def test_only_a_version_with_test_documents_can_promise() -> None:
    """A classifier that was fitted in Python has none, and would give labels without a band."""
    with pytest.raises(
        UserError, match=r"decision.max_error: only the test documents of a version .*SpinClassifier.load"
    ):
        SpinClassifier("nothing", decision=DecisionSettings(max_error=0.1))


def test_a_band_and_a_promise_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="abstain and max_error: expected one of them"):
        DecisionSettings(abstain=0.1, max_error=0.1)
