"""From probes to classifiers: the search, then for each choice the final calibrated head on all labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.calibration import calibration_error, fit_temperature, log_loss
from spin.heads.candidate import Candidate
from spin.heads.early_exit import EarlyExit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.integrate.bootstrap import bootstrap_p_value
from spin.integrate.exit_thresholds import choose_exit_thresholds, exit_indices, offered_depths
from spin.integrate.fit_linear import fit_linear
from spin.integrate.fit_mlp import fit_mlp
from spin.integrate.frontier import best_per_depth, choose_candidates
from spin.integrate.search import Progress, Read, Search, TrainingData
from spin.labels.cross_validation import Fold, labelled
from spin.labels.label_space import LabelSpace, Targets
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, Choice, SearchSettings
from spin.sites import Site
from spin.sparsify.probe import Probe
from spin.sparsify.select import standardization

SIGNIFICANT = 0.05
"""a paired test's chance below which `auto` takes the mlp head"""


def integrate(
    probes: Sequence[Probe],
    read: Read,
    y: Targets,
    folds: Sequence[Fold],
    label_space: LabelSpace,
    *,
    metric: str,
    settings: SearchSettings,
    cascade: CascadeSettings | None = None,
    class_weights: str = "none",
    flops: Mapping[Site, float],
    group: ProcessGroup | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda fits: None,
) -> TrainingResult:
    """Search eta, depth, sites, poolings and head strength by the validation metric, then fit what was chosen.

    `read` gives the raw activations of a selection for some rows, `y` (n, …) are the targets of all rows and `flops`
    what reading a site costs, as a share of the whole backbone. Features of different layers meet standardised on
    the training rows and weighted by site and neuron (`select.alignment`). The final heads are fitted on the rows
    of all folds, training and validation, with the choices that the validation rows made, and cooled by the
    temperature that the held-out logits chose, and so are those of the exits that `cascade` grants. Members of a
    `group` share the training rows; all get the same result.
    Raises UserError when no probe kept a neuron.
    """
    if not any(probe.coef.any() for probe in probes):
        raise UserError(
            "data: no probe kept a neuron, because no neuron varies over the training documents; "
            "check that their texts differ"
        )
    material = TrainingData(
        read,
        y,
        labelled(folds),
        label_space,
        metric,
        class_weights,
        group or ProcessGroup(),
        device,
        weigh_sites=len(folds) == 1,
    )
    search = Search(material, probes, folds, settings, flops, progress)
    tried = search.run()
    fitter = _Fitter(search, cascade or CascadeSettings(), seed)
    fitted: dict[int, FittedClassifier] = {}
    choices: dict[Choice, FittedClassifier] = {}
    for name, candidate in choose_candidates(tried, settings, folds).items():
        if id(candidate) not in fitted:
            fitted[id(candidate)] = fitter.fit(candidate)
        choices[name] = fitted[id(candidate)]
    return TrainingResult(choices, best_per_depth(tried), len(tried))


class _Fitter:
    """Makes a candidate whole: its head's kind, its temperature, and the final head on all labelled rows."""

    def __init__(self, search: Search, cascade: CascadeSettings, seed: int) -> None:
        self.search, self.cascade, self.seed = search, cascade, seed
        self.material, self.label_space, self.group = (
            search.material,
            search.material.label_space,
            search.material.group,
        )
        self.valid_y = np.concatenate([part.valid_y for part in search.parts])

    def fit(self, candidate: Candidate) -> FittedClassifier:
        held_out, steps, chance = self._bend(candidate)
        logits = np.concatenate(held_out)
        y = self.valid_y
        temperature = fit_temperature(logits, y, self.label_space)
        errors = [
            calibration_error(self.label_space.probabilities(values), y, self.label_space)
            for values in (logits, logits / np.float32(temperature))
        ]
        selection, mean, scale, head = self._final(candidate, steps)
        exits, mix = self._exits(candidate, steps, selection, logits / np.float32(temperature))
        facts = {
            **candidate.describe(),
            "neurons": len(selection),
            "head": "linear" if steps is None else "mlp",
            "mlp_chance": chance,
            "valid_score": round(float(np.mean(self.search.judge(held_out))), 4),
            "valid_log_loss": round(log_loss(logits / np.float32(temperature), y, self.label_space), 4),
            "temperature": round(temperature, 4),
            "valid_ece": round(errors[1], 4),
            "valid_ece_uncalibrated": round(errors[0], 4),
            "exits": mix,
        }
        said: tuple[float, dict[str, Any]] = self.group.broadcast_object((temperature, facts))
        return FittedClassifier(selection, mean, scale, head.with_temperature(said[0]), said[1], exits)

    def _exits(
        self, candidate: Candidate, steps: int | None, selection: Selection, final: Floats
    ) -> tuple[tuple[EarlyExit, ...], list[dict[str, Any]]]:
        """The exits of a candidate whose calibrated held-out logits are `final`, and the share that leaves at each."""
        found: list[tuple[int, Floats, float]] = []
        costs: list[float] = []
        of_folds = self._read_in_folds(candidate, steps) if self.cascade.max_loss else []
        reached = {column.site.layer for column in selection.neurons}
        for depth in offered_depths(self.cascade.depths, selection.depth) if self.cascade.max_loss else ():
            parts = [read.part(depth) for read in of_folds]
            if depth < min(reached) or not all(map(len, parts)):
                continue
            ridge = Penalty(candidate.penalty.strength)
            fits = [of.fit(part, [ridge])[0] for of, part in zip(self.search.parts, parts, strict=True)]
            logits = np.concatenate([values for _, values in fits])
            temperature = self.group.broadcast_object(fit_temperature(logits, self.valid_y, self.label_space))
            found.append((depth, logits / np.float32(temperature), temperature))
            costs.append(self.search.compute[Site(depth, "resid")])
        held_out = [logits for _, logits, _ in found]
        thresholds: list[float] = self.group.broadcast_object(
            choose_exit_thresholds(
                held_out, final, self.valid_y, self.label_space,
                metric=self.material.metric, costs=[*costs, candidate.compute], max_loss=self.cascade.max_loss,
            )
        )  # fmt: skip
        at = exit_indices(held_out, thresholds, final, self.label_space)
        exits: list[EarlyExit] = []
        mix: list[dict[str, Any]] = []
        taken = 0
        for index, ((depth, _, temperature), threshold) in enumerate(zip(found, thresholds, strict=True)):
            share = float((at == index).mean())
            part = selection.part(depth)
            if share and len(part) > taken:  # an exit reads something that those before it do not
                taken = len(part)
                design = self.material.design(part, self.search.final, self.material.rows)
                [head] = fit_linear(design, [Penalty(candidate.penalty.strength)])
                exits.append(EarlyExit(depth, head.with_temperature(temperature), threshold))
                mix.append({"depth": depth, "threshold": round(threshold, 4), "valid_share": round(share, 4)})
        return tuple(exits), self.group.broadcast_object(mix)

    def _read_in_folds(self, candidate: Candidate, steps: int | None) -> list[Selection]:
        """What the head of each fold reads: as in the final one, no neurons that its L1 part left out."""
        found = []
        for probes, part in zip(self.search.of_fold, self.search.parts, strict=True):
            selection = self.search.selection(candidate.eta, candidate.depth, candidate.part, probes)
            if steps is None and candidate.penalty.l1:
                [(head, _)] = part.fit(selection, [candidate.penalty])
                selection = selection.keep(_used(head))
            found.append(selection)
        return found

    def _bend(self, candidate: Candidate) -> tuple[tuple[Floats, ...], int | None, float | None]:
        """Held-out logits of the head that is taken, its steps if that is the mlp, and the test's chance."""
        kind = self.search.settings.head
        if kind == "linear" or (kind == "auto" and len(self.search.parts) > 1):  # too few documents to tell
            return candidate.held_out, None, None
        found, steps = [], []
        for probes, part in zip(self.search.of_fold, self.search.parts, strict=True):
            selection = self.search.selection(candidate.eta, candidate.depth, candidate.part, probes)
            logits, last = part.bend(selection, candidate.penalty, self.seed)
            found.append(logits)
            steps.append(last)
        bent, straight = (self.label_space.predict(np.concatenate(values)) for values in (found, candidate.held_out))
        chance = bootstrap_p_value(self.material.metric, self.valid_y, bent, straight, self.seed)
        taken = kind == "mlp" or chance < SIGNIFICANT
        taken, chance = self.group.broadcast_object((taken, chance))
        if not taken:
            return candidate.held_out, None, chance
        return tuple(found), round(float(np.mean(steps))), chance

    def _final(self, candidate: Candidate, steps: int | None) -> tuple[Selection, Floats, Floats, LinearHead | MlpHead]:
        """The head on all labelled rows; neurons that its L1 part left out are gone from the selection."""
        probes = self.search.final
        selection = self.search.selection(candidate.eta, candidate.depth, candidate.part, probes)
        mean, scale = standardization(selection, probes)
        design = self.material.design(selection, probes, self.material.rows)
        [head] = fit_linear(design, [candidate.penalty])
        if steps is not None:
            bent, _ = fit_mlp(head, design, candidate.penalty.strength, seed=self.seed, steps=steps)
            return selection, mean, scale, bent
        wanted = _used(head)
        return selection.keep(wanted), mean[wanted], scale[wanted], head.keep(wanted)


def _used(head: LinearHead) -> NDArray[np.bool_]:
    """(p,) the features that a head reads: something, if only to ignore it."""
    used: NDArray[np.bool_] = np.any(head.coef != 0, axis=0)
    return used | (not used.any())
