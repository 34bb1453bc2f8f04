"""The recipe of SIREN, a successor of SPIN for the detection of harmful text by some of its authors.

Jiao et al. 2026, *LLM Safety From Within: Detecting Harmful Content with Internal Representations* (arXiv 2604.18519),
and its public code. Taken from them:

- an L1 probe per layer on the residual stream, averaged over the tokens;
- of each layer the fewest neurons whose weights' absolute values reach a share eta of their sum;
- a weight per layer: the macro-F1 of its probe on the validation documents, scaled so that the worst layer has 0 and
  the best 1, and at least 0.1. It multiplies the values of the layer's neurons;
- the neurons of all layers side by side, and on them a network of ReLU layers with dropout: Kaiming's initialisation,
  Adam with a weight decay of 1e-4, at most 100 epochs, the best of them by the macro-F1 on the validation documents,
  and an end after 10 epochs without a better one;
- eta, learning rate and widths by validation, then a network on the training and validation documents together.

Chosen here, since the recipe is for two classes and for more than 100,000 documents on a GPU:

- absolute weights are summed over the classes, and the network ends in a softmax over them, in a multi-label task in
  a sigmoid for each;
- the probes are those of SPIN at the same places: solved exactly, and at the best penalty of a whole path instead of
  three. They are fitted on standardised activations, and the network reads the same: the layers of a decoder differ in
  scale by far more than their weights do. On the encoder, raw ones had the same score on validation documents;
- batches of a 25th of the documents, from 16 to 256, instead of 8,192;
- a grid within the published ranges instead of 32 trials of a Bayesian search with five networks each: every eta with
  every learning rate, then other widths at the best of them;
- the last network has as many epochs as the best ones had in the mean, instead of 512;
- where labels are few, validation is one round of the cross-validation; all logits are calibrated as in other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from time import process_time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.method.contenders import Answer, FittedSpin, calibrate
from benchmarks.method.corpora import METRIC, Exam
from benchmarks.method.paper import ROUND, most_important, order
from spin.arrays import Floats, Rows
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.sparsify.probe import Probe

ETAS = (0.6, 0.8, 0.9)
RATES = (2e-4, 6e-4, 2e-3)
"""learning rates; the published range is 1e-4 to 5e-3"""
WIDTHS = ((256, 64), (768, 256))
"""of the hidden layers, which are never wider than the input; the first ones are tried with every eta and rate"""
DROPOUT = 0.35
_LEAST_WEIGHT = 0.1
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""the loss of logits (n, K) and targets"""
_WEIGHT_DECAY = 1e-4
_EPOCHS, _PATIENCE = 100, 10
_BATCHES, _SMALLEST_BATCH, _LARGEST_BATCH = 25, 16, 256


class Trial(NamedTuple):
    """What validation chooses."""

    eta: float
    rate: float
    widths: tuple[int, ...] = WIDTHS[0]


@dataclass(frozen=True)
class Candidate:
    """A trial, judged on every fold."""

    trial: Trial
    valid_score: float
    epochs: int
    """the mean over the folds of the best network's"""
    held_out: list[Floats]


def siren(exam: Exam, fitted_spin: FittedSpin) -> Answer:
    """Layers weighted by the validation score of their probes, and a neural network on the neurons of all of them."""
    start = process_time()
    probes = [p for p in fitted_spin.probes if p.column.site.kind == "resid" and p.column.pooling == "mean"]
    probes = [p for p in probes if all(part.coef.any() for part in (p, *p.folds))]
    best = _search(exam, probes)
    X = join_layers(exam, probes, best.trial.eta, exam.data.rows)
    network, _ = fit_network(X, exam.y[exam.data.rows], best.trial, exam, best.epochs)
    logits = network(join_layers(exam, probes, best.trial.eta, exam.test))
    deepest = max(probe.column.site for probe in probes)
    seconds = sum(fitted_spin.probing[probe.column.site] for probe in probes) + process_time() - start
    eta, rate, widths = best.trial
    choice = f"eta {eta}, learning rate {rate:g}, widths {list(widths)}, {best.epochs} epochs"
    return calibrate(exam, "SIREN's recipe", logits, best.held_out, seconds, choice, X.shape[1], deepest)


def _search(exam: Exam, probes: Sequence[Probe]) -> Candidate:
    """The candidate with the best validation score, of equals the first."""

    def best_of(trials: Iterable[Trial]) -> Candidate:
        return max((_judge(exam, probes, trial) for trial in trials), key=lambda candidate: candidate.valid_score)

    best = best_of(Trial(eta, rate) for eta, rate in product(ETAS, RATES))
    other = best_of(best.trial._replace(widths=widths) for widths in WIDTHS[1:])
    return max(best, other, key=lambda candidate: candidate.valid_score)


def _judge(exam: Exam, probes: Sequence[Probe], trial: Trial) -> Candidate:
    """Fit a network on the training documents of each fold; the fold's validation documents stop it."""
    scores, epochs, held_out = [], [], []
    for index, fold in enumerate(exam.folds[:ROUND]):
        of_fold = [probe.for_fold(index) for probe in probes]
        X, Z = (join_layers(exam, of_fold, trial.eta, rows) for rows in (fold.train, fold.valid))
        judge = partial(_score, exam.y[fold.valid], Z, exam.corpus.label_space)
        network, count = fit_network(X, exam.y[fold.train], trial, exam, _EPOCHS, judge)
        held_out.append(network(Z))
        scores.append(judge(network))
        epochs.append(count)
    return Candidate(trial, float(np.mean(scores)), round(float(np.mean(epochs))), held_out)


def _score(y: Targets, X: Floats, label_space: LabelSpace, network: Network) -> float:
    return score(METRIC, y, label_space.predict(network(X)))


def weigh_layers(scores: Sequence[float]) -> Floats:
    """The weight of each layer by the validation score of its probe: from 0.1 to 1."""
    values = np.array(scores, np.float32)
    spread = float(values.max() - values.min()) or 1.0
    return np.maximum((values - values.min()) / spread, np.float32(_LEAST_WEIGHT))


def select_neurons(coef: Floats, eta: float) -> NDArray[np.int64]:
    """The fewest neurons of a probe (K, width) whose absolute weights reach a share `eta` of their sum."""
    return most_important(*order(np.abs(coef).sum(0)), eta)


def join_layers(exam: Exam, probes: Sequence[Probe], eta: float, rows: Rows) -> Floats:
    """The selected neurons of all layers side by side (rows, p), standardised and times the weight of their layer."""
    parts = []
    for probe, weight in zip(probes, weigh_layers([probe.valid_score for probe in probes]), strict=True):
        neurons = select_neurons(probe.coef, eta)
        values = exam.corpus.features[probe.column][np.ix_(rows, neurons)]
        parts.append(weight * probe.standardizer.keep(neurons).transform(values))
    return np.concatenate(parts, axis=1)


class Network:
    """A classifier of ReLU layers with dropout."""

    def __init__(self, width: int, hidden: Sequence[int], classes: int) -> None:
        sizes = [width, *(min(width, size) for size in hidden), classes]
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            linear = nn.Linear(inner, outer)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(), nn.Dropout(DROPOUT)]
        self.module = nn.Sequential(*layers[:-2])

    def __call__(self, X: Floats) -> Floats:
        """Logits (n, K) of features (n, p), without dropout."""
        self.module.eval()
        with torch.no_grad():
            logits: Floats = self.module(torch.from_numpy(X)).numpy()
        return logits


def fit_network(
    X: Floats,
    y: Targets,
    trial: Trial,
    exam: Exam,
    epochs: int,
    judge: Callable[[Network], float] | None = None,
) -> tuple[Network, int]:
    """Fit a network and return it with its number of epochs.

    `judge` scores a network after each epoch: the best one is returned, and fitting ends after 10 epochs without a
    better one. Without `judge` it lasts for all epochs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exam.seed)
        network = Network(X.shape[1], trial.widths, len(exam.corpus.label_space))
        optimiser = torch.optim.Adam(network.module.parameters(), lr=trial.rate, weight_decay=_WEIGHT_DECAY)
        features, targets = torch.from_numpy(X), torch.from_numpy(y)
        loss: Loss = nn.functional.cross_entropy
        if exam.corpus.label_space.multilabel:
            targets, loss = targets.float(), nn.functional.binary_cross_entropy_with_logits
        best_score, best_epoch, best_state = -1.0, epochs, None
        for epoch in range(1, epochs + 1):
            _run_epoch(network, optimiser, features, targets, loss)
            if judge is None:
                continue
            if (valid_score := judge(network)) > best_score:
                best_score, best_epoch = valid_score, epoch
                best_state = {name: values.clone() for name, values in network.module.state_dict().items()}
            elif epoch - best_epoch >= _PATIENCE:
                break
    if best_state is not None:
        network.module.load_state_dict(best_state)
    return network, best_epoch


def _run_epoch(
    network: Network, optimiser: torch.optim.Optimizer, features: torch.Tensor, targets: torch.Tensor, loss: Loss
) -> None:
    network.module.train()
    batch = int(np.clip(len(features) // _BATCHES, _SMALLEST_BATCH, _LARGEST_BATCH))
    for rows in torch.randperm(len(features)).split(batch):
        optimiser.zero_grad()
        loss(network.module(features[rows]), targets[rows]).backward()
        optimiser.step()
