"""Several classifiers in one pass: each predicts as it does alone, and no block runs that none of them needs."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spin
from spin import SharedPass, TrainedClassifier, classify_many
from spin.activations.engines.int8_rounding import measure_scales
from spin.activations.features import Features
from spin.backbone.int8_scales import Int8Scales
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.passes.pass_member import PassMember
from spin.settings import BackboneSettings
from spin.sites import BY_WORDS, FeatureColumn
from tests.support import tiny
from tests.support.random_classifiers import build_classifier, draw_neurons
from tests.support.word_regression import build_word_regression

DRAW = random.Random(0)
WORDS = [*tiny.FILLER, *(word for words in tiny.WORDS.values() for word in words), "zebra"]
TEXTS = [" ".join(DRAW.choices(WORDS, k=DRAW.randint(1, 24))) for _ in range(150)]
REGRESSIONS = [build_word_regression(TEXTS[:n], classes=3) for n in (60, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of 6 blocks, so wide that torch pools few and many neurons by different kernels."""
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=64,
        hidden_size=40,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=136,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    return tiny.save_backbone(tmp_path_factory.mktemp("deep"), config)


@pytest.fixture(scope="module", params=["cut", "windows"])
def settings(folder: Path, request: pytest.FixtureRequest) -> BackboneSettings:
    """They cut some of the texts, or read at most two windows of them."""
    return BackboneSettings(
        model=str(folder),
        dtype="float32",
        device="cpu",
        batch_tokens=256,
        max_tokens=20 if request.param == "cut" else 12,
        long_texts=request.param,
        window_overlap=2,
        max_windows=2,
    )


@pytest.fixture(scope="module")
def backbone(settings: BackboneSettings) -> Backbone:
    return load_backbone(settings)


def draw_classifier(
    draw: np.random.Generator,
    settings: BackboneSettings,
    backbone: Backbone,
    *,
    early: bool = True,
    words: bool = False,
) -> TrainedClassifier:
    """Return a classifier with random depth, columns, neurons, classes and words, and exits if `early`.

    With `words` it has an exit by words, else it may have one.
    """
    depth = int(draw.integers(1, 7))
    *others, last = (site for site in backbone.sites if site.layer <= depth)
    columns = [FeatureColumn(s, p) for s in others for p in ("first", "last", "max", "mean") if draw.random() < 0.3]
    columns = [*columns, FeatureColumn(last, "mean")]
    neurons = draw_neurons(draw, columns, [backbone.width(c.site) for c in columns], draw.choice([0.1, 0.3, 0.9]))
    regression = REGRESSIONS[draw.integers(2)] if words or draw.random() < 0.5 else None
    depths = [d for d in range(max(1, columns[0].site.layer), depth) if draw.random() < 0.5]
    by_words = [BY_WORDS] if regression is not None and (words or draw.random() < 0.5) else []
    exits = [(d, float(draw.uniform(0.4, 0.9))) for d in (*by_words, *depths)] if early else []
    return build_classifier(
        settings,
        backbone.digest,
        {} if regression is not None and not early and draw.random() < 0.3 else neurons,
        exits=exits,
        multilabel=draw.random() < 0.3,
        words=regression,
        head_reads_words=draw.random() < 0.5 or not early,
        seed=int(draw.integers(1000)),
    )


def draw_seeds(count: int) -> list[Any]:
    """Seeds of random classifiers, of which the first three are quick enough for `--fast`."""
    return [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 3)) for seed in range(count)]


def draw_classifiers(seed: int, settings: BackboneSettings, backbone: Backbone) -> list[TrainedClassifier]:
    """Return two to five classifiers with exits; of every third seed all of them exit by words."""
    draw = np.random.default_rng(seed)
    return [draw_classifier(draw, settings, backbone, words=seed % 3 == 0) for _ in range(draw.integers(2, 6))]


def assert_same_features(actual: Features, expected: Features, atol: float) -> None:
    """The counts and depths are equal, and the values within a tolerance."""
    assert list(actual.columns) == list(expected.columns)
    for column, values in expected.columns.items():
        np.testing.assert_allclose(actual.columns[column], values, rtol=atol, atol=atol)
    for name in ("n_tokens", "n_unknown", "depth", "words", "windows", "unread_tokens"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)
    assert (actual.truncated, actual.head_reads_words) == (expected.truncated, expected.head_reads_words)


def count_block_rows(backbone: Backbone) -> Counter[int]:
    """Return a counter, to be filled from now on, of the windows that run through each block, counted from 1."""
    counts: Counter[int] = Counter()

    def add(number: int, arguments: Any, keywords: dict[str, Any]) -> None:
        counts[number] += len(arguments[0] if arguments else keywords["hidden_states"])

    for number, block in enumerate(backbone.blocks, 1):
        if first := next(block.children(), None):  # blocks that are skipped are called, but not what is in them
            first.register_forward_pre_hook(lambda _, a, k, number=number: add(number, a, k), with_kwargs=True)
    return counts


def count_windows(backbone: Backbone) -> np.ndarray:
    """Return the number of windows of each text, one where texts are cut."""
    return np.array(backbone.tokenize(TEXTS).windows.counts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", draw_seeds(12))
def test_each_classifier_exits_where_it_does_alone_and_no_other_block_runs(
    settings: BackboneSettings, backbone: Backbone, seed: int
) -> None:
    """The documents of a block are those that some classifier alone runs through it."""
    classifiers = draw_classifiers(seed, settings, backbone)
    expected = [each.features(TEXTS) for each in classifiers]
    shared = SharedPass(classifiers)
    shared.prepare()
    rows = count_block_rows(classifiers[0].backbone)
    features = shared.features(TEXTS)
    for actual, alone in zip(features, expected, strict=True):
        assert_same_features(actual, alone, 1e-4)
    depths = [
        np.full(len(TEXTS), each.depth) if alone.depth is None else alone.depth
        for each, alone in zip(classifiers, expected, strict=True)
    ]
    needed = np.max(depths, axis=0)
    windows = count_windows(backbone)
    assert {n: rows[n] for n in range(1, 7)} == {n: windows[needed >= n].sum() for n in range(1, 7)}
    for each, of_pass, alone in zip(classifiers, features, expected, strict=True):
        predicted, own = each.predict_features(of_pass), each.predict_features(alone)
        assert predicted.labels == own.labels
        np.testing.assert_allclose(predicted.probabilities, own.probabilities, atol=1e-3)
        np.testing.assert_array_equal(predicted.exit_depth, own.exit_depth)


@pytest.mark.slow
def test_the_random_classifiers_cover_all_kinds_of_exits(settings: BackboneSettings, backbone: Backbone) -> None:
    """Texts that no classifier sends to the backbone, and exits at every depth."""
    depths: Counter[int] = Counter()
    for seed in range(12):
        classifiers = draw_classifiers(seed, settings, backbone)
        exit_depths = [each.predict_all(TEXTS).exit_depth for each in classifiers]
        depths.update(np.max(exit_depths, axis=0).tolist())
    assert set(depths) == {-1, *range(1, 7)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", draw_seeds(6))
def test_without_exits_the_values_are_the_same_bit_for_bit(
    settings: BackboneSettings, backbone: Backbone, seed: int
) -> None:
    """So are logits, since the values lie in memory as they do alone; words alone take part without a pass."""
    draw = np.random.default_rng(seed)
    classifiers = [draw_classifier(draw, settings, backbone, early=False) for _ in range(5)]
    expected = [each.features(TEXTS) for each in classifiers]
    shared = SharedPass(classifiers)
    for each, actual, alone in zip(classifiers, shared.features(TEXTS), expected, strict=True):
        assert_same_features(actual, alone, 0)
        assert all(values.flags.c_contiguous for values in actual.columns.values())
        np.testing.assert_array_equal(each.predict_features(actual).logits, each.predict_features(alone).logits)


def test_words_alone_take_part_without_a_pass(settings: BackboneSettings, backbone: Backbone) -> None:
    """Their tokens are counted, also of the texts that words decide for all others; alone they open no engine."""
    by_words = build_classifier(settings, backbone.digest, {}, words=REGRESSIONS[0], seed=1)
    column = FeatureColumn.parse("resid.02.mean")
    reader = build_classifier(
        settings, backbone.digest, {column: np.arange(9)}, words=REGRESSIONS[1], exits=[(BY_WORDS, 0.6)]
    )
    expected = [each.features(TEXTS) for each in (by_words, reader)]
    assert 0 < (expected[1].depth == BY_WORDS).sum() < len(TEXTS)
    shared = SharedPass([by_words, reader])
    shared.prepare()
    rows = count_block_rows(reader.backbone)
    for actual, alone in zip(shared.features(TEXTS), expected, strict=True):
        assert_same_features(actual, alone, 1e-4)
    assert rows[1] == count_windows(reader.backbone)[expected[1].depth != BY_WORDS].sum()
    alone_of_both = SharedPass([by_words, by_words]).features(TEXTS)
    for actual in alone_of_both:
        assert_same_features(actual, expected[0], 0)
    assert by_words.forward_pass.engine is None


def test_texts_that_words_decide_for_all_are_not_tokenized(
    settings: BackboneSettings, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = FeatureColumn.parse("resid.02.mean")
    classifiers = [
        build_classifier(
            settings, backbone.digest, {column: np.arange(9)}, words=each, exits=[(BY_WORDS, 0.6)], seed=seed
        )
        for seed, each in enumerate(REGRESSIONS)
    ]
    depths = [each.predict_all(TEXTS).exit_depth for each in classifiers]
    undecided = np.flatnonzero(np.max(depths, axis=0) > BY_WORDS)
    assert 0 < len(undecided) < len(TEXTS)
    shared, tokenized = SharedPass(classifiers), []
    shared.prepare()
    tokenize = classifiers[0].backbone.tokenize

    def record_and_tokenize(texts: Sequence[str]) -> Any:
        tokenized.extend(texts)
        return tokenize(texts)

    monkeypatch.setattr(classifiers[0].backbone, "tokenize", record_and_tokenize)
    shared.features(TEXTS)
    assert sorted(tokenized) == sorted(TEXTS[row] for row in undecided)
    tokenized.clear()
    shared.run_backbones(TEXTS)
    assert sorted(tokenized) == sorted(TEXTS), "a check of the backbone reads what words decide too"


@pytest.mark.slow
def test_no_head_judges_a_document_that_it_has_decided(
    settings: BackboneSettings, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared pass a head judges as many documents at each exit as alone."""
    classifiers = draw_classifiers(3, settings, backbone)
    judged: Counter[tuple[int, int]] = Counter()
    decided_after = PassMember.decided_after

    def count_and_judge(self: PassMember, words: Any, index: int, rows: Any, values: Any) -> Any:
        judged[id(self.fitted.head), index] += len(rows)
        return decided_after(self, words, index, rows, values)

    monkeypatch.setattr(PassMember, "decided_after", count_and_judge)
    for each in classifiers:
        each.features(TEXTS)
    alone = +judged
    judged.clear()
    SharedPass(classifiers).features(TEXTS)
    assert len(alone) > 2
    assert judged == alone


@pytest.mark.slow
def test_classifiers_share_a_pass_only_on_the_same_weights_and_settings(
    settings: BackboneSettings, backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    """Where the weights were loaded from does not matter. A group has one backbone, cut at the largest depth."""
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    elsewhere = settings.model_copy(update={"model": str(copied)})
    if settings.long_texts == "cut":  # then nothing depends on it
        elsewhere = elsewhere.model_copy(update={"window_overlap": 3})
    shorter = settings.model_copy(update={"max_tokens": 8})
    other_folder = tiny.save_bert(tmp_path / "other", seed=1)
    other_settings = settings.model_copy(update={"model": str(other_folder)})
    other = load_backbone(other_settings)

    def build(settings: BackboneSettings, digest: str, site: str) -> TrainedClassifier:
        return build_classifier(settings, digest, {FeatureColumn.parse(f"{site}.mean"): np.arange(8)})

    classifiers = [
        build(settings, backbone.digest, "resid.01"),
        build(other_settings, other.digest, "ffn.02"),
        build(shorter, backbone.digest, "resid.02"),
        build(elsewhere, backbone.digest, "ffn.04"),
    ]
    expected = [each.features(TEXTS) for each in classifiers]
    shared = SharedPass(classifiers)
    assert shared.groups == [[0, 3], [1], [2]]
    for actual, alone in zip(shared.features(TEXTS), expected, strict=True):
        assert_same_features(actual, alone, 0)
    assert classifiers[0].backbone is classifiers[3].backbone
    present = [not isinstance(block, torch.nn.Identity) for block in classifiers[0].backbone.blocks]
    assert present == [True] * 4 + [False] * 2


@pytest.mark.slow
def test_openvino_shares_a_pass(settings: BackboneSettings, backbone: Backbone) -> None:
    """With several streams; depths may differ where a confidence is within rounding of its threshold."""
    draw, threads = np.random.default_rng(5), torch.get_num_threads()
    openvino = settings.model_copy(update={"engine": "openvino"})
    classifiers = [draw_classifier(draw, openvino, backbone) for _ in range(3)]
    torch.set_num_threads(2)
    try:
        expected = [each.predict_all(TEXTS) for each in classifiers]
        for actual, alone in zip(classify_many(classifiers, TEXTS), expected, strict=True):
            assert np.mean(actual.exit_depth == alone.exit_depth) > 0.98
            same = actual.exit_depth == alone.exit_depth
            np.testing.assert_allclose(actual.probabilities[same], alone.probabilities[same], atol=1e-3)
    finally:
        torch.set_num_threads(threads)
    assert any(len(set(alone.exit_depth.tolist())) > 1 for alone in expected)


@pytest.mark.slow
def test_in_int8_classifiers_of_the_same_scales_share_a_pass(settings: BackboneSettings, backbone: Backbone) -> None:
    """Another one has the scales of its own training."""
    int8 = settings.model_copy(update={"engine": "openvino", "dtype": "int8"})
    columns = [FeatureColumn.parse(name) for name in ("resid.02.mean", "ffn.03.max", "resid.03.mean")]
    first, other = measure_scales(backbone, TEXTS[:40]), measure_scales(backbone, TEXTS[40:44])
    classifiers = [
        build_classifier(int8, backbone.digest, {column: np.arange(9)}, scales=scales)
        for column, scales in zip(columns, (first, other, Int8Scales.from_bytes(first.to_bytes())), strict=True)
    ]
    assert SharedPass(classifiers).groups == [[0, 2], [1]]
    for column, actual, own in zip(columns, classify_many(classifiers, TEXTS), classifiers, strict=True):
        own._backbone = None
        np.testing.assert_allclose(actual.probabilities, own.predict_all(TEXTS).probabilities, atol=1e-3)
        exact = build_classifier(settings, backbone.digest, {column: np.arange(9)}).predict_all(TEXTS)
        assert 1e-6 < np.abs(actual.probabilities - exact.probabilities).mean() < 0.1


@pytest.mark.slow
def test_reasons_are_those_of_each_classifier_alone(settings: BackboneSettings, backbone: Backbone) -> None:
    """Classifiers that give reasons run by themselves, on the backbone that all share."""
    draw = np.random.default_rng(5)
    classifiers = [draw_classifier(draw, settings, backbone) for _ in range(4)]
    classifiers[1].reasons, classifiers[3].reasons = 3, 2
    expected = [each.predict_all(TEXTS) for each in classifiers]
    shared = SharedPass(classifiers)
    assert shared.groups == [[0, 2], [1], [3]]
    for actual, alone in zip(shared.predict_all(TEXTS), expected, strict=True):
        np.testing.assert_allclose(actual.probabilities, alone.probabilities, atol=1e-6)
        assert (actual.reasons is None) is (alone.reasons is None)
        if actual.reasons is not None and alone.reasons is not None:
            assert actual.reasons.words.words == alone.reasons.words.words
            np.testing.assert_array_equal(actual.reasons.neurons.neurons, alone.reasons.neurons.neurons)
    assert len({id(each.backbone) for each in classifiers}) == 1


def test_classify_many_predicts_as_each_classifier_alone(settings: BackboneSettings, backbone: Backbone) -> None:
    draw = np.random.default_rng(1)
    classifiers = [draw_classifier(draw, settings, backbone, early=False) for _ in range(3)]
    expected = [each.predict(TEXTS) for each in classifiers]
    assert [predictions.labels for predictions in spin.classify_many(classifiers, TEXTS)] == expected
    assert [predictions.labels for predictions in classify_many(classifiers, (text for text in TEXTS))] == expected
    assert [len(predictions) for predictions in classify_many(classifiers, [])] == [0, 0, 0]
    assert classify_many([], TEXTS) == []
    with pytest.raises(UserError, match="text 1 is ''"):
        classify_many(classifiers, ["fine", ""])
