"""Texts to pooled activations, in batches of a token budget, original order kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.backbone import Backbone
from spin.capture import capture
from spin.errors import NotFiniteError, UserError
from spin.pooling import pool
from spin.sites import Column, Site

SAFE_FLOAT16 = 65504 / 4
"""a quarter of float16's range: columns that a first batch shows above it are kept as float32"""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Features:
    """Pooled activations of n texts."""

    columns: dict[Column, NDArray[np.floating]]
    """(n, width) each, width being the site's or the number of neurons kept"""
    n_tokens: NDArray[np.int32]
    """(n,) tokens read, special tokens included"""
    n_unknown: NDArray[np.int32]
    """(n,) of those, what the tokenizer does not know"""
    truncated: int
    """texts that were cut at the backbone's max_tokens"""


def extract(
    backbone: Backbone,
    texts: Sequence[str],
    columns: Mapping[Column, type[np.floating]] | Sequence[Column],
    *,
    keep: Mapping[Column, NDArray[np.int64]] | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """Read `columns` from every text; a mapping gives each column's type, float32 otherwise.

    `keep` names the neurons wanted of each column; no other leaves the hook. `progress`
    is told the documents of each batch. The result does not depend on the order of the texts, and batches depend
    on these texts alone. Raises UserError, naming the site, when a value does not fit a float16 column.
    """
    dtypes = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, np.float32)
    tokens = backbone.tokenize(texts)
    gather = {c: torch.from_numpy(neurons).to(backbone.device) for c, neurons in (keep or {}).items()}
    out = {
        c: np.empty((len(texts), len(gather[c]) if c in gather else backbone.width(c.site)), dtype)
        for c, dtype in dtypes.items()
    }
    by_site: dict[Site, list[Column]] = {}
    for column in dtypes:
        by_site.setdefault(column.site, []).append(column)
    rows: list[int] = []
    mask = content = torch.empty(0)

    def read(site: Site, values: Tensor) -> None:
        for column in by_site[site]:
            pooled = pool(values, pooling_mask(column, mask, content), column.pooling)
            # gathering a few neurons of every token would cost more than pooling all of them
            _store(out[column], rows, pooled[:, gather[column]] if column in gather else pooled, column)

    if texts:
        with capture(backbone, list(by_site), read) as forward:
            for rows in token_batches(list(map(len, tokens.ids)), backbone.batch_tokens):
                ids, mask = backbone.batch([tokens.ids[row] for row in rows])
                content = backbone.content(ids, mask)
                forward(ids, mask)
                progress(len(rows))
    lengths = np.array([len(row) for row in tokens.ids], np.int32)
    return Features(out, lengths, np.array(tokens.unknown, np.int32), tokens.truncated)


def pooling_mask(column: Column, mask: Tensor, content: Tensor) -> Tensor:
    """Mean and max see the content; `first`, `last` and a sentence embedding's mean see all tokens."""
    return content if column.pooling in ("mean", "max") and column.site.kind != "final" else mask


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts in order of length, in batches of at most `budget` tokens with padding, one text at least."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def column_types(
    backbone: Backbone, texts: Sequence[str], columns: Sequence[Column]
) -> dict[Column, type[np.floating]]:
    """float16, or float32 for the columns that `texts`, a first batch, shows above a quarter of float16's range."""
    features = extract(backbone, texts, columns)
    return {
        column: np.float32 if values.size and np.abs(values).max() > SAFE_FLOAT16 else np.float16
        for column, values in features.columns.items()
    }


def _store(target: NDArray[np.floating], rows: list[int], pooled: Tensor, column: Column) -> None:
    if not bool(torch.isfinite(pooled).all()):
        raise NotFiniteError(f"{column.site}: the backbone gave values that are not finite; try backbone.dtype float32")
    if target.dtype == np.float16:
        largest = float(pooled.abs().max())
        if largest > 65504:
            raise UserError(
                f"{column.site}: a value of {largest:.0f} does not fit its float16 column, which the first batch had "
                "shown small; leave the site out of `sites`, or start over with --restart and other first documents"
            )
    target[rows] = pooled.cpu().numpy()
