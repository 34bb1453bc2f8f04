"""Recipes by which the heads of a classifier are fitted on any rows, once validation has made all choices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spin.heads.blend import Blend
from spin.heads.calibration import Calibration
from spin.heads.linear_head import LinearHead, Penalty
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class LastLayerRecipe:
    """A head on all neurons of a feature column, whose logits are blended with those of the selected neurons."""

    column: FeatureColumn
    strength: float
    """of the penalty of the head on this column"""
    blend: Blend


@dataclass(frozen=True)
class HeadRecipe:
    """Everything about a head but its coefficients."""

    penalty: Penalty
    temperature: float
    bias: tuple[float, ...] | None = None
    """(K,) added to the logits after the temperature; None for none"""
    kind: str = LinearHead.name
    """the name of a head in `HEADS`"""
    steps: int = 0
    """steps in which validation fitted the head best; 0 for a head that is fitted without steps"""
    blend: Blend | None = None
    """the weights of neurons and words; None for neurons alone"""
    last_layer: LastLayerRecipe | None = None
    """the last layer beside the selected neurons, where labels are very few"""
    scale_norm: float | None = None
    """norm of the scales of all features that validation judged, of which an L1 penalty may have dropped some; None:
    of the features that the head has"""

    @property
    def calibration(self) -> Calibration:
        """The calibration of its logits."""
        return Calibration(self.temperature, None if self.bias is None else np.array(self.bias, np.float32))


@dataclass(frozen=True)
class ExitRecipe:
    """An early exit without the coefficients of its head."""

    depth: int
    """number of blocks that have run; `BY_WORDS` for the exit before the backbone"""
    threshold: float
    """confidence from which a document stops here"""
    valid_share: float
    """share of the validation documents that stop here"""
    head: HeadRecipe


@dataclass(frozen=True)
class ClassifierRecipe:
    """The heads of a classifier."""

    head: HeadRecipe
    exits: tuple[ExitRecipe, ...]
    """the heads of the exits, shallow first"""
