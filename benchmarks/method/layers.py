"""Two ways to weigh layers, which the paper names as its next step; SPIN itself weighs none.

- *penalty per layer*: the features of a layer are scaled by what a head on this layer alone gains on validation
  documents, so that the penalty of the joint head acts less on layers that know more (SIREN scales by macro-F1).
- *gate per document*: one head per layer, and a softmax over layers in each document, which is computed from how
  certain each layer is and how much its classes compete. It tells which layers a document listened to.

Both read the neurons that SPIN selects without words, and compare with the row `SPIN, neurons`. A third way, attention
over the tokens of each layer, is in benchmarks/method/attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from time import process_time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.method.contenders import Answer, FittedSpin, calibrate, temperature
from benchmarks.method.corpora import Exam
from spin.arrays import Floats, Rows
from spin.heads.calibration import log_loss
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.integrate.feature_matrix import Probes, row_weights, selected_standardizer
from spin.integrate.fit_linear import fit_linear
from spin.integrate.frontier import one_standard_error_choice
from spin.labels.label_space import Targets
from spin.process_group import ProcessGroup
from spin.settings import SearchSettings

LEAST_WEIGHT = 0.1
_GATE_STEPS, _GATE_DECAY = 200, 1e-3
STRENGTHS = tuple(sorted(SearchSettings().strengths))


class Layer(NamedTuple):
    """Where the selected neurons of a block stand among the features, and what they know."""

    block: int
    features: slice
    strength: float
    """of a head on this layer alone"""
    held_out: Floats
    """(n, K) its logits of the validation documents"""
    loss: float
    """their log loss at the best temperature"""


def penalty_per_layer(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """One head on the neurons of all layers, each layer scaled by what it gains on its own."""
    start, [fold] = process_time(), exam.folds
    selection, of_fold = _select(fitted_spin)
    X, Z = (features_of(exam, selection, of_fold, rows) for rows in (fold.train, fold.valid))
    layers = fit_layers(exam, selection, X, Z)
    weights = weigh_layers(exam, layers)
    heads = fit_heads(exam, X * weights, fold.train, STRENGTHS)
    held_out = [head.logits(Z * weights) for head in heads]
    best = int(np.argmin([_loss(exam, logits) for logits in held_out]))
    chosen, final = _select(fitted_spin, final=True)
    all_rows, test = (features_of(exam, chosen, final, rows) for rows in (exam.data.rows, exam.test))
    of_final = _spread(weights, selection, chosen)
    [head] = fit_heads(exam, all_rows * of_final, exam.data.rows, [STRENGTHS[best]])
    logits, seconds = head.logits(test * of_final), process_time() - start
    choice = "scales " + ", ".join(f"{weights[layer.features][0]:.2f}" for layer in layers)
    neurons, deepest = chosen.neuron_count, max(column.site for column in chosen.neurons)
    return calibrate(exam, "penalty per layer", logits, [held_out[best]], seconds, choice, neurons, deepest)


def gate_per_document(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """One head per layer, weighed in each document by a gate that is fitted on held-out logits."""
    start, [fold] = process_time(), exam.folds
    selection, of_fold = _select(fitted_spin)
    X, Z = (features_of(exam, selection, of_fold, rows) for rows in (fold.train, fold.valid))
    layers = fit_layers(exam, selection, X, Z)
    gate = Gate(len(layers), len(exam.corpus.label_space))
    gate.fit(np.stack([layer.held_out for layer in layers]), exam.y[fold.valid])
    chosen, final = _select(fitted_spin, final=True)
    all_rows, test = (features_of(exam, chosen, final, rows) for rows in (exam.data.rows, exam.test))
    of_layers = []
    for layer in layers:
        place = _places(chosen).get(layer.block, slice(0, 0))
        [head] = fit_heads(exam, np.ascontiguousarray(all_rows[:, place]), exam.data.rows, [layer.strength])
        of_layers.append(head.logits(test[:, place]))
    logits, shares = gate.predict(np.stack(of_layers))
    seconds, choice = process_time() - start, f"mean shares {np.round(shares.mean(1), 2).tolist()}"
    deepest = max(column.site for column in chosen.neurons)
    compute = exam.corpus.compute(deepest)
    return Answer("gate per document", logits, chosen.neuron_count, deepest.layer, compute, seconds, choice)


def _select(fitted_spin: FittedSpin, *, final: bool = False) -> tuple[Selection, Probes]:
    """The neurons of the best candidate without words, by the only fold or by all labelled rows, with their probes."""
    search = fitted_spin.search
    subset = one_standard_error_choice([c for c in search.tried if not c.reads_words], search.data.folds).subset
    return (search.select(subset), search.final_probes) if final else (search.select(subset, 0), search.fold_probes[0])


def features_of(exam: Exam, selection: Selection, probes: Probes, rows: Rows) -> Floats:
    """(n, p) the standardised features of some rows."""
    raw = [exam.corpus.features[column][np.ix_(rows, neurons)] for column, neurons in selection.neurons.items()]
    return selected_standardizer(selection, probes).transform(np.concatenate(raw, axis=1))


def _places(selection: Selection) -> dict[int, slice]:
    """The features of each block, whose columns stand side by side."""
    widths = {
        layer: sum(len(selection.neurons[column]) for column in columns)
        for layer, columns in groupby(selection.neurons, key=lambda column: column.site.layer)
    }
    ends = np.cumsum(list(widths.values())).tolist()
    return {layer: slice(end - width, end) for (layer, width), end in zip(widths.items(), ends, strict=True)}


def _spread(weights: Floats, selection: Selection, other: Selection) -> Floats:
    """The weight of each feature of another selection, by that of its block in this one."""
    of_block = {layer: weights[place][0] for layer, place in _places(selection).items()}
    return np.concatenate([
        np.full(place.stop - place.start, of_block.get(layer, LEAST_WEIGHT), np.float32)
        for layer, place in _places(other).items()
    ])  # fmt: skip


def fit_layers(exam: Exam, selection: Selection, X: Floats, Z: Floats) -> list[Layer]:
    """A head on each layer's neurons alone, at the strength with the least held-out log loss."""
    [fold], layers = exam.folds, []
    for block, place in _places(selection).items():
        heads = fit_heads(exam, np.ascontiguousarray(X[:, place]), fold.train, STRENGTHS)
        held_out = [head.logits(Z[:, place]) for head in heads]
        losses = [_loss(exam, logits) for logits in held_out]
        best = int(np.argmin(losses))
        layers.append(Layer(block, place, STRENGTHS[best], held_out[best], losses[best]))
    return layers


def fit_heads(exam: Exam, X: Floats, rows: Rows, strengths: Sequence[float]) -> list[LinearHead]:
    """Linear heads on standardised features (n, p) of some rows, one per strength."""
    label_space = exam.corpus.label_space
    has = label_space.indicator(exam.y[rows])
    weights = row_weights(has, "none", label_space)
    return fit_linear(Design(FeatureRows(X), has, weights, not label_space.multilabel, ProcessGroup()), strengths)


def weigh_layers(exam: Exam, layers: Sequence[Layer]) -> Floats:
    """(p,) each layer's gain over knowing nothing as a share of the best layer's, at least 0.1; mean square 1."""
    [fold] = exam.folds
    shares = np.log(exam.corpus.label_space.indicator(exam.y[fold.train]).mean(0).clip(1e-6))
    nothing = _loss(exam, np.tile(shares.astype(np.float32), (len(fold.valid), 1)))
    gains = np.array([nothing - layer.loss for layer in layers]).clip(1e-9)
    weights = np.empty(layers[-1].features.stop, np.float32)
    for layer, gain in zip(layers, gains / gains.max(), strict=True):
        weights[layer.features] = max(gain, LEAST_WEIGHT)
    return weights / np.sqrt(np.mean(weights**2))


def _loss(exam: Exam, held_out: Floats) -> float:
    [fold] = exam.folds
    return log_loss(held_out / temperature(exam, [held_out]), exam.y[fold.valid], exam.corpus.label_space)


class Gate(nn.Module):
    """A softmax over layers in each document, times the logits of each layer."""

    def __init__(self, layers: int, classes: int) -> None:
        super().__init__()
        self.by_layer = nn.Parameter(torch.zeros(layers, 3))
        """of a constant, the largest probability and the entropy"""
        self.scale = nn.Parameter(torch.ones(layers))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, K) of documents and the shares (L, n) of the layers, from each layer's logits (L, n, K)."""
        probabilities = logits.softmax(2)
        entropy = -(probabilities * probabilities.clamp_min(1e-9).log()).sum(2)
        known = torch.stack([torch.ones_like(entropy), probabilities.amax(2), entropy], 2)
        shares = (known * self.by_layer[:, None]).sum(2).softmax(0)
        return (shares[..., None] * self.scale[:, None, None] * logits).sum(0) + self.bias, shares

    def fit(self, held_out: Floats, y: Targets) -> None:
        """Minimise the log loss on held-out logits (L, n, K), with a small penalty."""
        logits, targets = torch.from_numpy(held_out), torch.from_numpy(y)
        optimiser = torch.optim.LBFGS(self.parameters(), max_iter=_GATE_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = nn.functional.cross_entropy(self(logits)[0], targets) + _GATE_DECAY * self.by_layer.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)

    def predict(self, logits: Floats) -> tuple[Floats, Floats]:
        """The same of arrays."""
        with torch.no_grad():
            joined, shares = self(torch.from_numpy(logits))
        return joined.numpy(), shares.numpy()
