"""The last layer beside selected neurons: an average of two linear heads, where labels are very few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from spin.arrays import Floats, Rows
from spin.heads.calibration import fit_temperature, log_loss
from spin.heads.selection import Selection
from spin.integrate import last_layer as module
from spin.integrate.feature_matrix import FeatureMatrix
from spin.integrate.fit_linear import fit_linear
from spin.integrate.frontier import one_standard_error_choice
from spin.integrate.integrate import CandidateFitter
from spin.integrate.last_layer import find_last_columns, select_all
from spin.integrate.search import Progress, Search, most_fits
from spin.labels.cross_validation import make_folds
from spin.labels.label_space import LabelSpace
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import fit_probes
from spin.sparsify.ridge import fit_ridge

pytestmark = pytest.mark.usefixtures("plain_deviations")

COLUMNS = [FeatureColumn.parse(f"{kind}.{layer:02d}.mean") for layer in (1, 2) for kind in ("ffn", "resid")]
COMPUTE = {Site(layer, kind): layer / 2 - (kind == "ffn") / 10 for layer in (1, 2) for kind in ("ffn", "resid")}
SEARCH = SearchSettings(etas=(0.3, 0.9), strengths=(0.3, 3.0), max_share=0.2)
LAST = FeatureColumn.parse("resid.02.mean")


def draw_documents(seed: int, n: int) -> tuple[Mapping[FeatureColumn, Floats], np.ndarray]:
    """Activations in which all neurons of the residual stream show a little of the class, and a few of the FFN more."""
    draw, y = np.random.default_rng(seed), np.arange(n) % 3
    shown = np.eye(3)[y]
    activations = {}
    for column in COLUMNS:
        directions = np.random.default_rng(column.site.layer).normal(size=(3, 30))
        values = draw.normal(size=(n, 30))
        if column.site.kind == "resid":
            values += 0.25 * shown @ directions
        else:
            values[:, :3] += 0.7 * shown
        activations[column] = values.astype(np.float32)
    return activations, y


def make_search(
    seed: int = 0, labels: int = 60, settings: SearchSettings = SEARCH, progress: Progress = lambda fits: None
) -> tuple[Search, Mapping[FeatureColumn, Floats], Rows]:
    """A search that has run on some labels, the activations, and the rows of other documents."""
    activations, y = draw_documents(seed, labels + 600)
    rows = np.arange(labels)
    folds = make_folds(LabelSpace(("a", "b", "c")), y, rows[: labels * 4 // 5], rows[labels * 4 // 5 :], seed)
    data = TrainingData(y, folds, LabelSpace(("a", "b", "c")))
    probes = fit_probes(activations, data, ProbeSettings(penalties=5))
    ridge, _ = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)

    def read(selection: Selection, rows: Rows) -> list[Floats]:
        return [np.concatenate([activations[c][rows][:, n] for c, n in selection.neurons.items()], axis=1)]

    search = Search(FeatureMatrix(read, data, ProcessGroup()), probes, ridge, settings, COMPUTE, progress)
    search.run()
    return search, activations, np.arange(labels, labels + 600)


def test_held_out_logits_are_the_average_at_equal_temperatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the head on selected neurons alone, and of scikit-learn's regression on the last layer."""
    search, activations, _ = make_search()
    candidate = one_standard_error_choice([c for c in search.tried if c.depth == 2], search.data.folds)
    held_out = search.held_out(candidate)
    monkeypatch.setattr(module, "LAST_LAYER_BELOW", 0)
    alone, _, _ = make_search()
    of_neurons = np.concatenate(alone.held_out(candidate).logits)
    label_space, y = search.data.label_space, search.valid_targets
    of_strengths = {}
    for strength in SEARCH.strengths:
        logits = []
        for fold in search.data.folds:
            X = activations[LAST].astype(np.float64)
            X = (X - X[fold.train].mean(0)) / X[fold.train].std(0) / np.sqrt(30)
            model = LogisticRegression(C=strength, tol=1e-7, max_iter=10000).fit(
                X[fold.train], search.data.y[fold.train]
            )
            logits.append(model.decision_function(X[fold.valid]))
        of_strengths[strength] = np.concatenate(logits)
    losses = {
        strength: log_loss(logits / fit_temperature(logits, y, label_space), y, label_space)
        for strength, logits in of_strengths.items()
    }
    assert held_out.last_layer is not None
    assert held_out.last_layer.strength == min(losses, key=lambda strength: losses[strength])
    of_last = of_strengths[held_out.last_layer.strength]
    expected = sum(0.5 * logits / fit_temperature(logits, y, label_space) for logits in (of_neurons, of_last))
    # probabilities are the same for logits that differ by a constant of the document
    actual, expected = (
        logits - logits.mean(1, keepdims=True) for logits in (np.concatenate(held_out.logits), expected)
    )
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


def test_the_final_head_is_the_sum_of_both_on_all_labelled_rows() -> None:
    search, activations, test = make_search()
    candidate = one_standard_error_choice([c for c in search.tried if c.depth == 2], search.data.folds)
    fitter = CandidateFitter(search, CascadeSettings(max_loss=0), DecisionSettings())
    fitted = fitter.fit(candidate)
    assert fitted.recipe is not None
    recipe = fitted.recipe.head
    assert recipe.last_layer is not None
    assert recipe.last_layer.column == LAST
    assert len(fitted.selection.neurons[LAST]) == 30
    assert fitted.summary.neurons == len(fitted.selection)
    assert fitted.summary.compute == COMPUTE[LAST.site]

    def standardized(selection: Selection) -> Floats:
        raw = np.concatenate([activations[c][:, n] for c, n in selection.neurons.items()], axis=1)
        return (raw[test] - raw[search.data.rows].mean(0)) / raw[search.data.rows].std(0)

    neurons = fitter.fitter.fit(search.select(candidate.subset), replace(recipe, last_layer=None))
    last = select_all(LAST, search.final_probes)
    design = search.matrix.design(search.cut, last, search.final_probes, search.data.rows)
    [last_head] = fit_linear(design, [recipe.last_layer.strength])
    ours, others = recipe.last_layer.weights
    joined = ours * neurons.head.logits(standardized(neurons.selection)) + others * last_head.logits(standardized(last))
    expected = recipe.stack.logits({"neurons": joined})
    raw = np.concatenate([activations[c][test][:, n] for c, n in fitted.selection.neurons.items()], axis=1)
    np.testing.assert_allclose(fitted.logits(raw), expected, rtol=1e-3, atol=1e-3)


def test_its_fits_are_not_counted_beyond_those_of_the_search() -> None:
    """Progress would else pass its end."""
    reports: list[int] = []
    search, _, _ = make_search(progress=reports.append)
    groups = {(c.eta, c.depth, c.part) for c in search.tried}
    assert reports == [len(search.folds)] * len(groups)
    assert sum(reports) <= most_fits(SEARCH, COLUMNS, len(search.folds))


@pytest.mark.slow
def test_few_labels_gain_by_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selected neurons alone are right less often, in the mean of eight draws of 48 documents."""

    def accuracy(seed: int) -> float:
        search, activations, test = make_search(seed, 48)
        fitter = CandidateFitter(search, CascadeSettings(max_loss=0), DecisionSettings())
        fitted = fitter.fit(one_standard_error_choice(search.tried, search.data.folds))
        raw = np.concatenate([activations[c][test][:, n] for c, n in fitted.selection.neurons.items()], axis=1)
        return float((fitted.logits(raw).argmax(1) == search.data.y[test]).mean())

    joined = [accuracy(seed) for seed in range(8)]
    monkeypatch.setattr(module, "LAST_LAYER_BELOW", 0)
    alone = [accuracy(seed) for seed in range(8)]
    assert np.mean(joined) > np.mean(alone) + 0.02


def make_data(labels: int) -> TrainingData:
    y, rows = np.arange(labels) % 3, np.arange(labels)
    label_space = LabelSpace(("a", "b", "c"))
    return TrainingData(y, make_folds(label_space, y, rows[::2], rows[1::2], 0), label_space)


def test_the_last_layer_counts_where_labels_are_very_few_alone() -> None:
    found = find_last_columns(COLUMNS, make_data(149), SEARCH)
    assert found == {1: FeatureColumn.parse("resid.01.mean"), 2: LAST}
    assert find_last_columns(COLUMNS, make_data(150), SEARCH) == {}
    assert find_last_columns(COLUMNS, replace(make_data(100), not_sampled=np.arange(100, 150)), SEARCH) == {}


def test_it_is_left_out_under_a_cap_on_leakage() -> None:
    assert find_last_columns(COLUMNS, make_data(60), SEARCH.model_copy(update={"max_leakage": 0.5})) == {}


@pytest.mark.parametrize(
    ("poolings", "expected"),
    [(("max", "last", "mean"), "mean"), (("max", "last"), "last"), (("std", "max"), "std")],
)
def test_one_pooling_of_the_last_layer_is_read(poolings: tuple[str, ...], expected: str) -> None:
    columns = [FeatureColumn(Site(2, kind), pooling) for kind in ("ffn", "resid") for pooling in poolings]
    assert find_last_columns(columns, make_data(60), SEARCH) == {2: FeatureColumn(Site(2, "resid"), expected)}


def test_neurons_that_are_joined_have_no_importance() -> None:
    first, last = FeatureColumn.parse("ffn.02.mean"), LAST
    some = Selection(
        {first: np.array([1]), last: np.array([0, 2])}, {first: np.array([0.5]), last: np.array([0.3, 0.2])}, 0.9
    )
    joined = some.join(Selection({last: np.arange(4)}, {last: np.zeros(4)}, 1.0))
    assert joined.rows() == [(first, 1, 0.5), (last, 0, 0.3), (last, 1, 0.0), (last, 2, 0.2), (last, 3, 0.0)]
    assert joined.eta == 0.9
