"""Recipes by which the heads of a classifier are fitted on any rows, once validation has made all choices."""

from __future__ import annotations

from dataclasses import dataclass

from spin.heads.stack import Stack
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class LastLayerRecipe:
    """A head on all neurons of a feature column, whose logits are added to those of the selected neurons."""

    column: FeatureColumn
    strength: float
    """of the regularisation of the head on this column"""
    weights: tuple[float, float]
    """of the logits of the selected neurons, and of those of this head"""


@dataclass(frozen=True)
class HeadRecipe:
    """Everything about a head but its coefficients."""

    strength: float
    """of the regularisation: the prior variance of a logit"""
    stack: Stack
    """the weights of neurons, words and network, and the biases; fitted anew where more documents are held back"""
    epochs: int = 0
    """epochs in which validation fitted the network best; 0 without a network"""
    last_layer: LastLayerRecipe | None = None
    """the last layer beside the selected neurons, where labels are very few"""


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
