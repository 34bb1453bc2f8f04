"""What users would otherwise run in torch: Hugging Face's pipeline, a plain loop, sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.rounds import Answer, Contender, Precision
from benchmarks.speed.trial import Trial
from spin.arrays import Floats
from spin.backbone.hub import silence_transformers
from spin.backbone.pooling import pool

_FITTED = 32
"""documents a batch of those that the head is fitted on"""
Embed = Callable[[Sequence[str], int], Floats]
"""embeddings (n, width) of n texts, read in batches of a size"""
Batch = tuple[list[int], NDArray[np.int64], NDArray[np.int64]]
"""rows of the texts, token ids (B, T) and their mask, padded on the right"""


def peer(
    trial: Trial, name: str, precision: Precision, load: Callable[[], Embed], *, calibrated: bool = False
) -> Contender:
    """A contender that embeds, with the trial's head upon it, which is fitted on first use."""

    def answer() -> Answer:
        if trial.head is None:
            trial.fit(loop(trial, torch.float32)(trial.train[0], _FITTED))
        embed = load()
        return lambda texts, batch: trial.classes(embed(texts, batch))

    return Contender(name, precision, answer, trial.batches, calibrated=calibrated)


def torch_peers(trial: Trial) -> list[Contender]:
    """The pipeline and, for an encoder, sentence-transformers; for a decoder the plain loop."""
    found = [peer(trial, "Hugging Face pipeline", "float32", lambda: pipeline(trial))]
    if trial.causal:
        found.append(peer(trial, "plain loop", "float32", lambda: loop(trial, torch.float32)))
        found.append(peer(trial, "plain loop", "bfloat16", lambda: loop(trial, torch.bfloat16)))
    else:
        found.append(peer(trial, "sentence-transformers", "float32", lambda: sentences(trial, torch.float32)))
        found.append(peer(trial, "sentence-transformers", "bfloat16", lambda: sentences(trial, torch.bfloat16)))
    return found


def pipeline(trial: Trial) -> Embed:
    """`pipeline("feature-extraction")` in batches, its token vectors pooled; it does not say which are padding."""
    from transformers import pipeline as make

    model, tokenizer = hugging_face(trial, torch.float32)
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    run = make("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    cut = {"truncation": True, "max_length": trial.plan.max_tokens}

    def embed(texts: Sequence[str], batch: int) -> Floats:
        rows = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        ordered = [texts[row] for row in rows]
        counts = [len(ids) for ids in tokenizer(ordered, **cut)["input_ids"]]
        found = run(ordered, batch_size=batch, return_tensors=True, tokenize_kwargs=cut)
        out = np.empty((len(texts), found[0].shape[-1]), np.float32)
        for row, count, values in zip(rows, counts, found, strict=True):
            out[row] = pool(values[:, :count], torch.ones(1, count, dtype=torch.bool), trial.pooling).numpy()[0]
        return out

    return embed


def loop(trial: Trial, dtype: torch.dtype) -> Embed:
    """A loop over batches by length, the pooled last layer kept."""
    model, tokenizer = hugging_face(trial, dtype)

    def embed(texts: Sequence[str], batch: int) -> Floats:
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows, ids, mask in by_length(tokenizer, texts, batch, trial.plan.max_tokens):
                tokens, seen = torch.from_numpy(ids), torch.from_numpy(mask)
                out[rows] = pool(model(input_ids=tokens, attention_mask=seen)[0], seen.bool(), trial.pooling).numpy()
        return out

    return embed


def sentences(trial: Trial, dtype: torch.dtype) -> Embed:
    """sentence-transformers, which sorts by length itself; without its normalisation, as the head is given none."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with silence_transformers():
        words = Transformer(str(trial.folder), model_kwargs={"dtype": dtype}, max_seq_length=trial.plan.max_tokens)
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), trial.pooling)], device="cpu")
    return lambda texts, batch: np.asarray(model.encode(list(texts), batch_size=batch, show_progress_bar=False))


def hugging_face(trial: Trial, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer as users load them."""
    from transformers import AutoModel, AutoTokenizer

    with silence_transformers():
        model = AutoModel.from_pretrained(trial.folder, dtype=dtype).eval().requires_grad_(False)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model, AutoTokenizer.from_pretrained(trial.folder)


def by_length(tokenizer: Any, texts: Sequence[str], batch: int, max_tokens: int) -> Iterator[Batch]:
    """Batches of texts of like length."""
    tokens = tokenizer(list(texts), truncation=True, max_length=max_tokens, return_attention_mask=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        ids = np.zeros((len(rows), len(tokens[rows[-1]])), np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(tokens[row])] = tokens[row]
            mask[at, : len(tokens[row])] = 1
        yield rows, ids, mask
