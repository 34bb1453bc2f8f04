"""The pooled neurons of documents, one document at a time, without padding, gathers and the product's hooks.

They are pooled in float64 whatever the precision of the backbone. Only where blocks and feed-forward projections are
is taken from the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.shapes import END, PAD, START, UNKNOWN
from spin.backbone.model import Backbone
from spin.sites import FeatureColumn, Site


def reference_features(
    backbone: Backbone, ids: Sequence[list[int]], neurons: Mapping[FeatureColumn, NDArray[np.int64]]
) -> dict[FeatureColumn, NDArray[np.float64]]:
    """(n, m) for each column, of n documents given by their token ids."""
    rows: dict[FeatureColumn, list[NDArray[np.float64]]] = {column: [] for column in neurons}
    for document in ids:
        activations = _activations(backbone, document)
        for column, indices in neurons.items():
            rows[column].append(_pool(activations[column.site], document, column.pooling, backbone.causal)[indices])
    return {column: np.stack(values) for column, values in rows.items()}


def _activations(backbone: Backbone, document: Sequence[int]) -> dict[Site, NDArray[np.float64]]:
    """The activations (T, width) of all sites for one document."""
    found: dict[Site, NDArray[np.float64]] = {}

    def keep(site: Site) -> Callable[..., None]:
        def hook(_module: Any, *values: Any) -> None:
            value = values[-1]
            while not isinstance(value, torch.Tensor):
                value = value[0]
            found[site] = value.detach().cpu().double().reshape(len(document), -1).numpy()

        return hook

    def keep_input(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        keep(Site(0, "resid"))(None, args[0] if args else kwargs["hidden_states"])

    handles = [backbone.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    for layer, block in enumerate(backbone.blocks, 1):
        handles.append(block.register_forward_hook(keep(Site(layer, "resid"))))
        handles.append(backbone.ffn_projection(layer).register_forward_pre_hook(keep(Site(layer, "ffn"))))
    with torch.no_grad():
        ids = torch.tensor([list(document)], device=backbone.device)
        backbone.model(input_ids=ids, **backbone.forward_options)
    for handle in handles:
        handle.remove()
    return found


def _pool(values: NDArray[np.float64], document: Sequence[int], pooling: str, causal: bool) -> NDArray[np.float64]:
    """(width,) the values (T, width) of the words, pooled; special tokens and a decoder's first are no words."""
    if pooling == "last":
        return values[-1]
    special = {PAD, UNKNOWN, START, END}
    words = [t for t, token in enumerate(document) if token not in special and (t > 0 or not causal)]
    return values[words].mean(0) if pooling == "mean" else values[words].max(0)
