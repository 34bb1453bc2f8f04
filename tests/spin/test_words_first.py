"""Documents that their words alone decide: which they are, that the backbone never sees them, and what is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin import TrainedClassifier
from spin.activations.extract import count_tokens, extract
from spin.activations.features import Features
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone, Tokens
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace, class_names
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings
from spin.sites import BY_WORDS, FeatureColumn, Site
from spin.words.word_regression import WordRegression
from tests.support import tiny
from tests.support.gaps import find_gap
from tests.support.summaries import build_choice_summary
from tests.support.word_regression import build_word_regression

TEXTS = [document["text"] for document in tiny.make_documents(70, ("good", "bad", "plain"), seed=9)]
CLASSES = ("bad", "good", "plain")
TEMPERATURE, BIAS = 2.0, np.array([0.3, -0.2, 0.0], np.float32)


@pytest.fixture(scope="module")
def regression() -> WordRegression:
    return build_word_regression(TEXTS)


@pytest.fixture(scope="module", params=["neurons", "neurons and words", "multi-label"])
def spin(request: pytest.FixtureRequest, backbone_folder: Path, regression: WordRegression) -> TrainedClassifier:
    """A classifier of three blocks with exits by words and after the first block, which about a third each takes.

    The head and the exit after the first block read neurons alone, or words, too.
    """
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=200)
    label_space, draw = LabelSpace(CLASSES, request.param == "multi-label"), np.random.default_rng(0)
    columns = [FeatureColumn(Site(layer, kind), "mean") for layer in (1, 2, 3) for kind in ("ffn", "resid")]
    neurons = {column: np.sort(draw.choice(16, 5, replace=False)) for column in sorted(columns)}
    backbone = load_backbone(settings)
    values = extract(backbone, TEXTS, [*neurons], keep=neurons).values
    selection, standardizer = Selection(neurons, {c: np.ones(5) for c in neurons}, 0.5), Standardizer.fit(values)
    words = regression.logits(TEXTS)
    if request.param == "neurons and words":
        selection, standardizer = selection.join_words(3), standardizer.join_words(words.std(0))
        values = np.concatenate([words, values], axis=1)
    coef = draw.normal(0, 0.4, (3, len(selection))).astype(np.float32)
    X, width = standardizer.transform(values), len(selection.up_to(1))
    by_words = LinearHead(np.eye(3, dtype=np.float32) / TEMPERATURE, BIAS)
    shallow = LinearHead(2 * coef[:, :width], np.zeros(3, np.float32))
    exits, going = [], np.ones(len(TEXTS), bool)
    for depth, head, read, share in ((BY_WORDS, by_words, words, 2 / 3), (1, shallow, X[:, :width], 1 / 2)):
        certainty = np.array([confidence(label_space, head.coef @ x + head.intercept) for x in read])
        threshold = find_gap(certainty[going], share)
        exits.append(EarlyExit(depth, head, threshold))
        going &= certainty < threshold
    fitted = FittedClassifier(
        selection, standardizer, LinearHead(coef, BIAS), build_choice_summary(), exits=tuple(exits)
    )
    result = TrainingResult({"accuracy": fitted}, (), 0, regression)
    return TrainedClassifier(settings, backbone.digest, label_space, result, "macro_f1", early=True)


def confidence(label_space: LabelSpace, logits: Any) -> float:
    """Of one document, by its logits (K,)."""
    probabilities = label_space.probabilities(np.asarray(logits)[None])[0]
    second, first = np.sort(probabilities)[-2:]
    return float(np.abs(2 * probabilities - 1).min() if label_space.multilabel else first - second)


def assemble(
    spin: TrainedClassifier, engine: str = "torch", *, early: bool = True, **changes: Any
) -> TrainedClassifier:
    """The classifier with other settings, and a backbone of its own."""
    return TrainedClassifier(
        spin.settings.model_copy(update={"engine": engine}),
        spin.backbone_digest,
        spin.label_space,
        changes.pop("result", spin.training_result),
        "macro_f1",
        early=early,
        **changes,
    )


def loop_exits(spin: TrainedClassifier, texts: list[str] = TEXTS) -> tuple[list[int], list[Any]]:
    """Depth and logits of every text, one after another, from what is read of it at full depth."""
    fitted, depths, logits = spin.fitted, [], []
    assert spin.training_result.words is not None
    for text in texts:
        words = spin.training_result.words.logits([text])[0]
        neurons = fitted.selection.neurons
        [raw] = extract(spin.backbone, [text], [*neurons], keep=neurons).values
        raw = np.concatenate([words, raw]) if fitted.selection.word_logits else raw
        x = (raw - fitted.standardizer.mean) / fitted.standardizer.scale
        width = len(fitted.selection.up_to(1))
        shallow, full = fitted.exits[1].head, fitted.head
        assert isinstance(full, LinearHead)
        steps = [
            (BY_WORDS, words / TEMPERATURE + BIAS, fitted.exits[0].threshold),
            (1, shallow.coef @ x[:width] + shallow.intercept, fitted.exits[1].threshold),
            (3, full.coef @ x + full.intercept, 0.0),
        ]
        taken = next(step for step in steps if confidence(spin.label_space, step[1]) >= step[2])
        depths.append(taken[0])
        logits.append(taken[1])
    return depths, logits


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_documents_stop_where_a_loop_over_all_exits_stops(spin: TrainedClassifier, engine: str) -> None:
    """Depths and logits are those of the loop; documents that words decide have no tokens and no values."""
    depths, logits = loop_exits(spin)
    assert {*depths} == {BY_WORDS, 1, 3}
    early, advanced = assemble(spin, engine), []
    features = early.features(TEXTS, progress=advanced.append)
    predictions = early.predict_features(features)
    assert predictions.exit_depth.tolist() == depths
    np.testing.assert_allclose(predictions.logits, logits, atol=1e-3)
    assert sum(advanced) == len(TEXTS)
    read = np.array(depths) != BY_WORDS
    counted = count_tokens(early.backbone, TEXTS)
    assert features.n_tokens.tolist() == np.where(read, counted.n_tokens, 0).tolist()
    for column, values in features.columns.items():
        np.testing.assert_array_equal(np.isfinite(values).all(1), column.site.layer <= np.array(depths))


@pytest.mark.slow
def test_only_documents_that_words_do_not_decide_are_tokenized(
    spin: TrainedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths, _ = loop_exits(spin)
    early, seen, tokenize = assemble(spin), [], Backbone.tokenize

    def record(self: Backbone, texts: list[str]) -> Tokens:
        seen.extend(texts)
        return tokenize(self, texts)

    early.prepare()
    monkeypatch.setattr(Backbone, "tokenize", record)
    early.predict(TEXTS)
    assert sorted(seen) == sorted(text for text, depth in zip(TEXTS, depths, strict=True) if depth != BY_WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_where_words_decide_all_the_backbone_reads_nothing(
    spin: TrainedClassifier, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_words = replace(spin.fitted.exits[0], threshold=0.0)
    fitted = replace(spin.fitted, exits=(by_words, *spin.fitted.exits[1:]))
    early = assemble(spin, engine, result=replace(spin.training_result, choices={"accuracy": fitted}))
    early.prepare()
    monkeypatch.setattr(Backbone, "tokenize", lambda *_: pytest.fail("a text was tokenized"))
    advanced: list[int] = []
    predictions = early.predict_all(TEXTS, progress=advanced.append)
    assert {*predictions.exit_depth.tolist()} == {BY_WORDS}
    assert sum(advanced) == len(TEXTS)
    assert early.training_result.words is not None
    np.testing.assert_allclose(
        predictions.logits, early.training_result.words.logits(TEXTS) / TEMPERATURE + BIAS, rtol=1e-5, atol=1e-5
    )
    assert early.predict_all([]).exit_depth.tolist() == []


def test_without_early_exits_words_cost_nothing(spin: TrainedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regression is read only where the head reads it, and every document runs to full depth."""
    late = assemble(spin, early=False)
    if not spin.fitted.selection.word_logits:
        monkeypatch.setattr(WordRegression, "logits", lambda *_: pytest.fail("words were read"))
    features = late.features(TEXTS)
    assert features.depth is None
    assert (features.n_tokens > 0).all()
    assert late.predict_features(features).exit_depth.tolist() == [3] * len(TEXTS)


@pytest.mark.slow
def test_a_document_on_which_the_decision_abstains_goes_on(spin: TrainedClassifier) -> None:
    band = DecisionSettings(abstain=0.45)
    cautious = assemble(spin, decision=band)
    by_words = cautious.fitted.at(0)
    assert cautious.training_result.words is not None
    words = cautious.training_result.words.logits(TEXTS)
    _, abstains = cautious.decision_rule.decide(spin.label_space.probabilities(by_words.logits(words)))
    decided = np.array(loop_exits(spin)[0]) == BY_WORDS
    assert (decided & abstains).any(), "or nothing is tested"
    depth = cautious.features(TEXTS).depth
    assert depth is not None
    np.testing.assert_array_equal(depth == BY_WORDS, decided & ~abstains)
    np.testing.assert_array_equal(cautious.member.decided_by_words(words), decided & ~abstains)


@pytest.mark.slow
def test_depths_and_logits_follow_from_values_at_full_depth(spin: TrainedClassifier) -> None:
    """As a drift reference computes them, from stored features and the words' logits."""
    depths, logits = loop_exits(spin)
    assert spin.training_result.words is not None
    values, words = assemble(spin, early=False).features(TEXTS).values, spin.training_result.words.logits(TEXTS)
    of_values = spin.fitted.exit_depths(values, spin.decision_rule, words)
    assert of_values.tolist() == depths
    np.testing.assert_allclose(spin.fitted.predict_logits(values, of_values, words), logits, atol=1e-3)


@pytest.mark.slow
def test_features_of_parts_are_joined(spin: TrainedClassifier) -> None:
    """Also where words decide all documents of a part, or none."""
    whole, depths = spin.features(TEXTS), np.array(loop_exits(spin)[0])
    order = np.argsort(depths, kind="stable")
    cut = int((depths == BY_WORDS).sum())
    parts = [spin.features([TEXTS[row] for row in rows]) for rows in (order[:cut], order[cut:], order[:0])]
    joined = spin.predict_features(Features.concatenate(parts))
    expected = spin.predict_features(whole)
    np.testing.assert_array_equal(joined.exit_depth, expected.exit_depth[order])
    np.testing.assert_allclose(joined.logits, expected.logits[order], atol=1e-4)


@pytest.mark.slow
def test_an_explanation_of_a_document_that_words_decide_has_terms_alone(spin: TrainedClassifier) -> None:
    depths, logits = loop_exits(spin)
    for depth in (BY_WORDS, 1, 3):
        row = depths.index(depth)
        explanation = spin.explain(TEXTS[row])
        np.testing.assert_allclose(explanation.logits, logits[row], atol=1e-3)
        np.testing.assert_allclose(
            explanation.word_contributions.sum(0) + explanation.bias, explanation.logits, atol=1e-4
        )
        assert bool(explanation.neurons) == (depth != BY_WORDS)
        assert bool(explanation.terms) == (depth == BY_WORDS or spin.fitted.selection.word_logits > 0)


@pytest.mark.slow
def test_a_deep_explanation_reads_the_model_whatever_decides(spin: TrainedClassifier) -> None:
    """It is that of a classifier without exits, and has neurons; otherwise it says what was not read."""
    depths, _ = loop_exits(spin)
    whole = assemble(spin, early=False)
    for depth, note in ((BY_WORDS, "decided by words; the model was not read; --deep adds neurons"), (3, None)):
        text = TEXTS[depths.index(depth)]
        assert spin.explain(text).exit_note == note
        deep, expected = spin.explain(text, deep=True), whole.explain(text)
        label = ", ".join(sorted(class_names(spin.predict([text])[0])))
        night = f"read to full depth; without --deep, as in a night, it is decided by words: {label}"
        assert deep.exit_note == (night if depth == BY_WORDS else None)
        assert deep.neurons
        np.testing.assert_allclose(deep.logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(deep.contributions, expected.contributions, atol=1e-4)
    assert (spin.explain(TEXTS[depths.index(1)]).exit_note or "").startswith("decided after block 1;")


def test_a_deep_explanation_needs_no_proof_for_full_depth(
    spin: TrainedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explanation does not abstain, so that an error that only the exits keep below `max_error` is no obstacle."""
    expected = spin.explain(TEXTS[0], deep=True)
    monkeypatch.setattr(spin, "requested", DecisionSettings(max_error=0.1))
    monkeypatch.setattr(spin, "held_out", {})
    np.testing.assert_allclose(spin.explain(TEXTS[0], deep=True).logits, expected.logits, atol=1e-5)


def test_the_exit_is_saved_and_loaded(spin: TrainedClassifier, tmp_path: Path) -> None:
    spin.save(tmp_path)
    loaded = TrainedClassifier.load(tmp_path, early=True)
    expected, actual = spin.predict_all(TEXTS), loaded.predict_all(TEXTS)
    np.testing.assert_array_equal(actual.exit_depth, expected.exit_depth)
    np.testing.assert_array_equal(actual.logits, expected.logits)
