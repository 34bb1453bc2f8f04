"""The activations of single tokens: the explanation of one text reads them, a pass over many does without them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.arrays import Floats
from spin.backbone.hooks import HOOK_LOCK, capture_sites
from spin.backbone.model import Backbone
from spin.sites import FeatureColumn, Site


def read_token_values(
    backbone: Backbone, ids: Tensor, mask: Tensor, neurons: Mapping[FeatureColumn, NDArray[np.int64]]
) -> dict[FeatureColumn, Floats]:
    """The activations (w, T, m) float32 of the neurons of each column in every token of w windows, 0 for padding.

    `ids` and `mask` (w, T) are those of `Backbone.pad_tokens`. The windows are read in torch, one after another and
    without padding, so that the activations of whole sites are in memory of one window only.
    """
    values: dict[FeatureColumn, Floats] = {c: np.zeros((*ids.shape, len(n)), np.float32) for c, n in neurons.items()}
    if not neurons:
        return values
    window, length = 0, 0

    def store(site: Site, of_site: Tensor) -> None:
        for column, indices in neurons.items():
            if column.site == site:
                chosen = of_site[0][:, torch.from_numpy(indices).to(of_site.device)]
                values[column][window, :length] = chosen.float().cpu().numpy()

    read = mask > 0
    with HOOK_LOCK, capture_sites(backbone, sorted({column.site for column in neurons}), store) as forward:
        for window, length in enumerate(read.sum(1).tolist()):
            each = slice(window, window + 1), slice(length)
            forward(ids[each].to(backbone.device), read[each].to(backbone.device))
    return values
