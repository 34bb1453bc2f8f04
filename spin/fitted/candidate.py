"""A candidate of the search, and what a report holds of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from spin.heads.stack import Stack


class CandidateSummary(BaseModel):
    """A candidate as reports and artifacts hold it, its figures rounded."""

    model_config = ConfigDict(frozen=True)

    depth: int
    """number of the backbone's blocks that run"""
    compute: float
    """FLOPs per token to read the deepest site, as a share of the whole backbone's"""
    eta: float
    """share of the importance that the selected neurons carry"""
    part: tuple[str, ...]
    """the kinds of sites or the poolings that are read; empty for all"""
    strength: float
    """prior variance of a logit; a small one is strong regularisation"""
    neurons: int
    """number of selected neurons"""
    words: bool
    """whether the words of a text count beside its neurons, or alone if there are none"""
    valid_score: float
    """the metric on the validation rows, of all folds of a repeat together"""
    leakage: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """share of the words of a text that an attack reads back from the neurons; None, and not written, if unmeasured"""


@dataclass(frozen=True)
class Subset:
    """The neurons that a candidate reads, given by what selects them."""

    eta: float
    """share of the importance that the selected neurons carry"""
    depth: int
    """number of the backbone's blocks that may run"""
    part: tuple[str, ...] = ()
    """the kinds of sites or the poolings that are read; empty for all"""


@dataclass(frozen=True, kw_only=True)
class Candidate(Subset):
    """A point of the search: which neurons, how strong the regularisation, and how it scored on validation."""

    compute: float
    """FLOPs per token to read the deepest site, as a share of the whole backbone's"""
    strength: float
    """prior variance of a logit; a small one is strong regularisation"""
    stack: Stack
    """the weights of neurons and words in its logits"""
    neurons: int
    """number of neurons with a coefficient that is not zero, the mean over folds"""
    valid_score: float
    """the metric on the validation rows, of all folds of a repeat together, the mean over repeats"""
    resampled: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """the scores without each part of the validation documents in turn, for a standard error"""
    valid_loss: float = field(default=0.0, compare=False)
    """log loss in nats per validation document of its calibrated probabilities, the mean over folds"""
    resampled_losses: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """resampled log losses for a standard error: one per fold, or with a single fold one per part that is left out"""
    leakage: float | None = None
    """share of the words of a text that an attack reads back from the neurons; None if it was not measured"""

    @property
    def reads_neurons(self) -> bool:
        """Whether it reads any neuron, and not words alone."""
        return self.eta > 0

    @property
    def reads_words(self) -> bool:
        """Whether words have a weight in its logits."""
        return self.stack.words > 0

    @property
    def subset(self) -> Subset:
        """The neurons that it reads."""
        return Subset(self.eta, self.depth, self.part)

    def summary(self) -> CandidateSummary:
        """The candidate as a report holds it."""
        return CandidateSummary(
            depth=self.depth,
            compute=round(self.compute, 4),
            eta=round(self.eta, 4),
            part=self.part,
            strength=self.strength,
            neurons=self.neurons,
            words=self.reads_words,
            valid_score=round(self.valid_score, 4),
            leakage=None if self.leakage is None else round(self.leakage, 4),
        )
