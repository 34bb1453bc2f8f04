"""MiniLM: its activations of the tweets, and how many feature columns it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.method.corpora import DEFAULT_POOLINGS
from jobs.quickstart import BACKBONE, read_tweets
from spin.activations.extract import extract
from spin.backbone.loading import load_backbone
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn

_SETTINGS = BackboneSettings(model=BACKBONE, device="cpu")


def extract_tweets(count: int, columns: Sequence[FeatureColumn]) -> tuple[dict[FeatureColumn, NDArray[Any]], list[str]]:
    """Activations of MiniLM in float16 and labels of some tweets."""
    tweets = read_tweets().sample(count, random_state=0)
    features = extract(load_backbone(_SETTINGS), tweets["text"].tolist(), dict.fromkeys(columns, np.float16)).columns
    return features, tweets["label"].tolist()


def count_columns() -> dict[int, int]:
    """Number of feature columns of MiniLM by width, under the default poolings."""
    backbone = load_backbone(_SETTINGS)
    widths = [backbone.width(site) for site in backbone.sites for _ in DEFAULT_POOLINGS[backbone.causal]]
    return {width: widths.count(width) for width in sorted(set(widths))}
