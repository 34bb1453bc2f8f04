"""The reasons of predictions and explanations have the contributions that a plain loop over tokens finds.

Reasons are the words and neurons with the largest ones, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from spin import TrainedClassifier
from spin.activations.extract import extract
from spin.activations.features import Features
from spin.backbone.hooks import capture_sites
from spin.backbone.loading import load_backbone
from spin.backbone.windows import OWN
from spin.classifier import feature_columns
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit, confidence
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.pages.explanation import Explanation, stretches
from spin.settings import BackboneSettings, DecisionSettings
from tests.support import tiny
from tests.support.attribution_loop import Attribution, attribute
from tests.support.gaps import find_gap
from tests.support.reason_rows import neurons_of, words_of
from tests.support.summaries import build_choice_summary
from tests.support.word_regression import build_word_regression

CLASSES = ("bad", "good", "plain")
REPEATED = "film " * 100
ODD_TEXTS = [
    "bad", "unheard of words", "the crew 😀😀 was late !", "a\nlovely   day", REPEATED, "é\0film\u200b", "?",
]  # fmt: skip
TEXTS = [*ODD_TEXTS, *(row["text"] for row in tiny.make_documents(40, CLASSES, seed=5))]
POOLINGS = ("mean", "max", "first", "last")
REASONS = 3


def fit_standardizer(values: np.ndarray) -> Standardizer:
    return Standardizer(values.mean(0), values.std(0) + np.float32(0.1))


def draw_head(shape: tuple[int, int], seed: int) -> LinearHead:
    draw = np.random.default_rng(seed)
    return LinearHead(*((draw.normal(size=size) / 3).astype(np.float32) for size in (shape, shape[:1])))


def build_classifier(
    settings: BackboneSettings,
    *,
    sites: Sequence[str] = ("resid", "ffn"),
    poolings: Sequence[str] = POOLINGS,
    classes: Sequence[str] = CLASSES,
    multilabel: bool = False,
    words: bool = False,
    network: bool = False,
    exits: Sequence[int] = (),
    decision: DecisionSettings | None = None,
) -> TrainedClassifier:
    """Return a classifier on every third neuron of some sites, with heads of random weights.

    About a third of the texts stop at each exit; at depth -1 by their words, and else by the words too if they count.
    """
    backbone, count = load_backbone(settings), len(classes)
    columns = sorted(feature_columns(backbone, sites, poolings))
    neurons = {column: np.arange(1, backbone.width(column.site), 3) for column in columns}
    values = np.concatenate(list(extract(backbone, TEXTS, columns, keep=neurons).columns.values()), axis=1)
    standardizer, regression = fit_standardizer(values), None
    selection = Selection(neurons, {column: np.ones(len(n)) for column, n in neurons.items()}, 1.0)
    if words or -1 in exits:
        regression = build_word_regression(TEXTS, count)
    if words:
        assert regression is not None
        selection, scale = selection.join_words(count), np.linspace(1, 2, count)
        standardizer = standardizer.join_words(scale)
        values = np.concatenate([regression.logits(TEXTS), values], axis=1)
    head: LinearHead = draw_head((count, values.shape[1]), 1)
    if network:
        draw = np.random.default_rng(2)
        shapes = ((8, values.shape[1]), (8,), (count, 8))
        inner, bias, outer = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
        inner[:, : selection.word_logits] = 0  # as `Stack.join` has it: a network reads neurons alone
        head = NetworkHead(*vars(draw_head((count, values.shape[1]), 1)).values(), inner, bias, outer)
    fitted = FittedClassifier(selection, standardizer, head, build_choice_summary())
    for number, depth in enumerate(exits):
        width = count if depth < 0 else len(selection.up_to(depth))
        exit = EarlyExit(depth, draw_head((count, width), 3 + number), 0.0)
        fitted = replace(fitted, exits=(*fitted.exits, exit))
    space = LabelSpace(tuple(classes), multilabel)
    fitted = replace(
        fitted, exits=tuple(set_threshold(fitted, n, values, regression, space) for n in range(len(exits)))
    )
    result = TrainingResult(dict.fromkeys(("accuracy", "balanced", "cheapest"), fitted), (), 0, regression)
    early = len(exits) > 0
    return TrainedClassifier(
        settings, backbone.digest, space, result, "accuracy", backbone=backbone, early=early, decision=decision
    )


def set_threshold(
    fitted: FittedClassifier, number: int, values: np.ndarray, words: Any, space: LabelSpace
) -> EarlyExit:
    """Return an exit at which about a third of the texts stop."""
    logits = words.logits(TEXTS) if words is not None else None
    part = fitted.at(number)
    probabilities = space.probabilities(part.logits(fitted.read_at(number, values, logits)))
    confident = confidence(Decision.of(space, DecisionSettings()), probabilities)
    return replace(fitted.exits[number], threshold=find_gap(confident, 0.65))


def with_reasons(spin: TrainedClassifier, count: int = REASONS) -> TrainedClassifier:
    """Return the classifier with reasons."""
    return TrainedClassifier(
        spin.settings, spin.backbone_digest, spin.label_space, spin.training_result, spin.metric,
        backbone=spin.backbone, early=spin.early, decision=spin.decision, reasons=count,
    )  # fmt: skip


def check_reasons(spin: TrainedClassifier, texts: Sequence[str] = TEXTS, tolerance: float = 1e-4) -> Any:
    """The reasons of all texts in one call, and `explain` of each, are those of the loop; return the predictions.

    Two contributions that are equal up to rounding may change places, and so may a neuron's largest two tokens.
    """
    predictions, tied_texts = with_reasons(spin).predict_all(texts), 0
    plain = spin.predict_all(texts)
    np.testing.assert_allclose(predictions.logits, plain.logits, atol=tolerance)
    np.testing.assert_array_equal(predictions.exit_depth, plain.exit_depth)
    assert predictions.reasons is not None
    for row, text in enumerate(texts):
        explanation = spin.explain(text)
        k = explanation.classes.index(explanation.label)
        assert predictions.reasons.classes[row] == k, text
        expected_of = attribute(spin, text, k, int(predictions.exit_depth[row]))
        by_word = {(text[start:end], start, end): value for (start, end), value in expected_of.words.items()}
        by_neuron = expected_of.neurons
        words = [((w.word, w.start, w.end), w.contribution) for w in words_of(predictions.reasons, row)]
        neurons = [((n.column, n.neuron), n.contribution) for n in neurons_of(predictions.reasons, row)]
        tied = find_tied_share(spin, text, explanation, k)
        tied_texts += tied > tolerance
        check_explanation(explanation, k, expected_of, tolerance, tolerance + tied)
        for found, expected, atol in ((words, by_word, tolerance + tied), (neurons, by_neuron, tolerance)):
            assert [name for name, _ in found] == list(dict(found)), text  # each once
            largest = sorted((abs(value) for value in expected.values() if value != 0), reverse=True)[:REASONS]
            np.testing.assert_allclose([abs(value) for _, value in found], largest, atol=atol, err_msg=text)
            np.testing.assert_allclose(
                [value for _, value in found], [expected[name] for name, _ in found], atol=atol, err_msg=text
            )
    assert tied_texts <= max(1, len(texts) / 4)
    return predictions


def check_explanation(
    explanation: Explanation, k: int, expected: Attribution, tolerance: float, tolerance_of_words: float
) -> None:
    """The contributions to class k are those of the loop, and the loudest word of each neuron has its largest share."""
    text = explanation.text
    found = [(str(column), neuron) for column, neuron in explanation.neurons]
    assert found == list(expected.neurons), text
    contributions = explanation.contributions[:, k]
    np.testing.assert_allclose(contributions, list(expected.neurons.values()), atol=tolerance, err_msg=text)
    by_word = {
        (start, end): float(explanation.word_contributions[indices, k].sum())
        for start, end, indices in stretches(explanation.words)
    }
    assert by_word.keys() == expected.words.keys(), text
    for span, value in expected.words.items():
        assert by_word[span] == pytest.approx(value, abs=tolerance_of_words), (text, span)
    for name, word in zip(found, explanation.loudest.tolist(), strict=True):
        shares = expected.shares[name]
        share = shares[explanation.words[word]]
        assert share == pytest.approx(max(shares.values()), abs=tolerance_of_words), (text, name)


def find_tied_share(spin: TrainedClassifier, text: str, explanation: Explanation, k: int) -> float:
    """Return what neurons under max contribute whose largest value two tokens have, but for rounding.

    Which of both it is depends on the processor and on the batch. Values that are equal exactly are so everywhere.
    """
    backbone, values = spin.backbone, {}
    tokens = backbone.tokenize([text])
    ids, mask = backbone.pad_tokens(tokens, range(len(tokens.ids)))
    own = mask == OWN if backbone.reads_windows else mask > 0
    content = backbone.find_content(ids, mask > 0).bool() & own
    sites = sorted({column.site for column, _ in explanation.neurons if column.pooling == "max"})
    if not sites:
        return 0.0
    with torch.inference_mode(), capture_sites(backbone, sites, values.__setitem__) as run:
        run(ids, mask > 0)
    tied = 0.0
    for (column, neuron), contribution in zip(explanation.neurons, explanation.contributions[:, k], strict=True):
        if column.pooling == "max" and content.sum() > 1:
            first, second = values[column.site][content][:, neuron].topk(2).values.tolist()
            tied += abs(float(contribution)) * (0 < first - second < 1e-6)
    return tied


@pytest.fixture(scope="module", params=["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def settings(request: pytest.FixtureRequest, backbone_folder: Path) -> BackboneSettings:
    return BackboneSettings(
        model=str(backbone_folder), dtype="float32", device="cpu", engine=request.param, batch_tokens=128
    )


@pytest.mark.slow
@pytest.mark.parametrize("special", [False, True])
def test_reasons_are_those_of_an_explanation_under_all_poolings(settings: BackboneSettings, special: bool) -> None:
    """Of texts of all lengths in batches with padding, cut texts, and texts without any token of a word."""
    check_reasons(build_classifier(settings.model_copy(update={"pool_special_tokens": special})))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_reasons_under_a_single_pooling(settings: BackboneSettings, pooling: str) -> None:
    """A pass that outputs no projections, or no positions."""
    check_reasons(build_classifier(settings, poolings=[pooling], sites=["ffn.02", "resid.03"]))


@pytest.mark.slow
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("exits", [(1,), (1, 2), (-1,), (-1, 1, 2)])
def test_reasons_are_those_of_the_exit_at_which_a_text_stops(
    settings: BackboneSettings, exits: tuple[int, ...], words: bool
) -> None:
    """By other heads, and without the neurons above; a text that its words decide has words alone."""
    predictions = check_reasons(build_classifier(settings, exits=exits, words=words))
    assert set(predictions.exit_depth) == {*exits, 3}
    for row in np.flatnonzero(predictions.exit_depth == -1):
        assert neurons_of(predictions.reasons, row) == []
        assert words_of(predictions.reasons, row) or TEXTS[row] == "?"


@pytest.mark.slow
@pytest.mark.parametrize("long_texts", [False, True])
def test_texts_that_exit_early_can_do_without_reasons(settings: BackboneSettings, long_texts: bool) -> None:
    """The others have those that they have beside them."""
    windows = {"long_texts": "windows", "max_tokens": 12, "window_overlap": 3, "max_windows": 4} if long_texts else {}
    classifier = build_classifier(settings.model_copy(update=windows), exits=(-1, 1, 2), words=True)
    classifier.reasons = REASONS
    of_all, unsure = classifier.predict_all(TEXTS).reasons, copy(classifier)
    unsure.explains_exits = False
    predictions = unsure.predict_all(TEXTS)
    found, sure = predictions.reasons, predictions.exit_depth < 3
    assert of_all is not None
    assert found is not None
    assert {*predictions.exit_depth} == {-1, 1, 2, 3}
    np.testing.assert_array_equal(found.classes, np.where(sure, -1, of_all.classes))
    for row in range(len(TEXTS)):
        assert words_of(found, row) == ([] if sure[row] else words_of(of_all, row))
        assert neurons_of(found, row) == ([] if sure[row] else neurons_of(of_all, row))


@pytest.mark.slow
@pytest.mark.parametrize("words", [False, True])
def test_reasons_of_a_multi_label_task_and_a_network_head(settings: BackboneSettings, words: bool) -> None:
    """They are for the likeliest of the predicted classes, also where none is predicted."""
    check_reasons(build_classifier(settings, multilabel=True, words=words))
    check_reasons(build_classifier(settings, words=words, network=True), tolerance=1e-3)


@pytest.mark.slow
def test_reasons_of_a_document_without_a_label(settings: BackboneSettings) -> None:
    """They are for the class that it would have, by the thresholds."""
    decision = DecisionSettings(thresholds={"good": 0.05}, abstain=0.3)
    predictions = check_reasons(build_classifier(settings, decision=decision))
    assert 0 < predictions.labels.count(None) < len(TEXTS)
    likeliest = predictions.probabilities.argmax(1)
    assert (predictions.reasons.classes != likeliest).any()


@pytest.mark.slow
def test_reasons_of_many_classes(settings: BackboneSettings) -> None:
    check_reasons(build_classifier(settings, classes=[f"class {k}" for k in range(40)], words=True), tolerance=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("exits", [(), (1, 2)])
def test_reasons_of_long_texts_are_from_all_windows(settings: BackboneSettings, exits: tuple[int, ...]) -> None:
    """A token that two windows read counts once; positions are those in the whole text."""
    windows = {"long_texts": "windows", "max_tokens": 12, "window_overlap": 3, "max_windows": 4}
    predictions = check_reasons(build_classifier(settings.model_copy(update=windows), exits=exits, words=True))
    assert predictions.reasons is not None
    text = " ".join(["the film was on it of a day and the crew"] * 2 + ["lovely"])
    spin = build_classifier(settings.model_copy(update=windows), poolings=["max"])
    assert any(word.start > 40 for word in words_of(check_reasons(spin, [text]).reasons, 0))


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_reasons_of_a_decoder(tmp_path: Path, engine: str) -> None:
    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    config = LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=64, initializer_range=0.6)
    folder = tiny.save_backbone(tmp_path, config, tiny.build_tokenizer(special=False))
    settings = BackboneSettings.model_validate(
        {"model": str(folder), "dtype": "float32", "device": "cpu", "engine": engine}
    )
    # where all tokens are the same, so are their activations up to rounding, and any of them may be the largest
    check_reasons(build_classifier(settings, exits=(2,)), [text for text in TEXTS if text != REPEATED])


@pytest.mark.slow
def test_positions_beyond_256_are_exact(tmp_path: Path) -> None:
    """In bfloat16 too, which OpenVINO may compute positions in: it is exact up to 256."""
    from transformers import BertConfig

    tokenizer = tiny.build_tokenizer()
    tokenizer.model_max_length = 400
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=400, initializer_range=0.6,
    )  # fmt: skip
    folder = tiny.save_backbone(tmp_path, config, tokenizer)
    text = "film " * 300 + "lovely " + "day " * 40
    for engine in ("torch", "openvino"):
        for dtype in ("float32", "bfloat16"):
            settings = BackboneSettings.model_validate(
                {"model": str(folder), "dtype": dtype, "device": "cpu", "engine": engine, "max_tokens": 400}
            )
            spin = build_classifier(settings, sites=["resid.00"], poolings=["max"])
            [top] = words_of(with_reasons(spin, 1).predict_all([text]).reasons, 0)  # type: ignore[arg-type]
            explanation = spin.explain(text)
            k = explanation.classes.index(explanation.label)
            by_word = {
                (a, b): value
                for (a, b), value in zip(explanation.words, explanation.word_contributions[:, k], strict=True)
            }
            assert by_word[top.start, top.end] == pytest.approx(top.contribution, rel=0.02, abs=0.02)
            assert top.start in range(1490, 1520) or top.word != "lovely"


def test_the_number_of_reasons_is_at_most_that_of_words_and_neurons(settings: BackboneSettings) -> None:
    spin = with_reasons(build_classifier(settings, sites=["ffn.01"], poolings=["mean"]), 50)
    reasons = spin.predict_all(["fine film", "day"]).reasons
    assert reasons is not None
    assert [len(words_of(reasons, row)) for row in range(2)] == [2, 1]
    assert [len(neurons_of(reasons, row)) for row in range(2)] == [spin.fitted.selection.neuron_count] * 2


@pytest.mark.slow
def test_reasons_of_a_classifier_that_reads_words_alone(settings: BackboneSettings) -> None:
    """With an exit by words too, which takes about a third of the texts."""
    both = build_classifier(settings, words=True, exits=(-1,))
    width = both.fitted.selection.word_logits
    assert isinstance(both.fitted.head, LinearHead)
    for exits in ((), both.fitted.exits):
        alone = replace(
            both.fitted,
            selection=Selection({}, {}, 1.0).join_words(width),
            standardizer=both.fitted.standardizer.keep(slice(width)),
            head=replace(both.fitted.head, coef=both.fitted.head.coef[:, :width]),
            exits=exits,
        )
        result = replace(both.training_result, choices=dict.fromkeys(both.training_result.choices, alone))
        spin = TrainedClassifier(
            settings,
            both.backbone_digest,
            both.label_space,
            result,
            "accuracy",
            backbone=both.backbone,
            early=True,
        )
        predictions = check_reasons(spin)
        assert {*predictions.exit_depth.tolist()} == ({0, -1} if exits else {0})
        assert words_of(predictions.reasons, 0)


@pytest.mark.slow
def test_reasons_at_full_depth_of_a_classifier_with_exits(settings: BackboneSettings) -> None:
    """Texts that could not stop earlier have the reasons of the whole classifier."""
    spin = build_classifier(settings, exits=(1, 2), words=True)
    spin.early = False
    assert {*check_reasons(spin).exit_depth.tolist()} == {spin.depth}


@pytest.mark.slow
def test_reasons_of_many_portions_of_texts(settings: BackboneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts that words decide and of others, in portions that words decide in whole, in part or not at all."""
    monkeypatch.setattr("spin.passes.reason_finder._BLOCK", 5)
    monkeypatch.setattr("spin.activations.portions._FIRST_PORTION", 1)
    monkeypatch.setattr("spin.activations.portions._LARGEST_PORTION", 2)
    predictions = check_reasons(build_classifier(settings, exits=(-1, 1), words=True))
    by_words = (predictions.exit_depth == -1)[np.argsort([len(text) for text in TEXTS], kind="stable")]
    portions = [by_words[:1], *np.split(by_words[1:], range(2, len(TEXTS) - 1, 2))]
    assert {(portion.any(), portion.all()) for portion in portions} == {(False, False), (True, False), (True, True)}


def test_reasons_of_parts_are_concatenated(settings: BackboneSettings) -> None:
    """As a worker does with the pieces of a shard; also of no texts."""
    spin = with_reasons(build_classifier(settings, exits=(1,), words=True))
    parts = [spin.features(TEXTS[:9]), spin.features([]), spin.features(TEXTS[9:])]
    joined = spin.predict_features(Features.concatenate(parts)).reasons
    whole = spin.predict_all(TEXTS).reasons
    assert joined is not None
    assert whole is not None
    for row in range(len(TEXTS)):
        for found, expected in (
            (words_of(joined, row), words_of(whole, row)),
            (neurons_of(joined, row), neurons_of(whole, row)),
        ):
            np.testing.assert_allclose(
                [reason.contribution for reason in found], [reason.contribution for reason in expected], atol=1e-4
            )


def test_without_reasons_predictions_have_none(settings: BackboneSettings) -> None:
    assert build_classifier(settings).predict_all(TEXTS[:2]).reasons is None
