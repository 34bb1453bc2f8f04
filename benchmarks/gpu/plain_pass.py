"""Plain transformers: the same model on padded batches, its last hidden state pooled by mean, and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.gpu.documents import TOPICS, Documents
from spin.backbone.batching import token_batches
from spin.backbone.model import Backbone

FIXED_BATCH = 32
"""documents per batch in the order given"""


class PlainPass:
    """Classifies documents as a short program on transformers would, if its author knew GPUs well.

    Batches are padded from arrays and copied from pinned memory, and the labels stay on the device until the end.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.device = backbone, backbone.device
        weights = next(backbone.model.parameters())
        self.head = nn.Linear(backbone.model.config.hidden_size, TOPICS, device=self.device, dtype=weights.dtype)

    def label_sorted(self, documents: Documents) -> NDArray[np.int64]:
        """(n,) the labels, from batches by length and by the budget of tokens that SPIN has."""
        return self._label(documents, list(token_batches(documents.lengths, self.backbone.batch_tokens)))

    def label_in_order(self, documents: Documents) -> NDArray[np.int64]:
        """(n,) the labels, from batches of `FIXED_BATCH` documents in the order given."""
        order = range(len(documents.ids))
        return self._label(documents, [list(order[start : start + FIXED_BATCH]) for start in order[::FIXED_BATCH]])

    @torch.inference_mode()
    def _label(self, documents: Documents, batches: Sequence[list[int]]) -> NDArray[np.int64]:
        labels = [self._label_batch([documents.ids[row] for row in batch]) for batch in batches]
        order = np.concatenate([np.array(batch) for batch in batches])
        result = np.empty(len(order), np.int64)
        result[order] = torch.cat(labels).cpu().numpy()
        return result

    def _label_batch(self, rows: Sequence[list[int]]) -> torch.Tensor:
        ids, mask = self.backbone.pad_batch(rows)
        if self.device.type == "cuda":
            ids, mask = (tensor.pin_memory().to(self.device, non_blocking=True) for tensor in (ids, mask))
        output = self.backbone.model(input_ids=ids, attention_mask=mask.long(), **self.backbone.forward_options)
        hidden, weights = output.last_hidden_state, mask.unsqueeze(-1)
        return self.head((hidden * weights).sum(1) / weights.sum(1)).argmax(1)
