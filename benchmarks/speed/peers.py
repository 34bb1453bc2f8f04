"""The alternatives that run in torch: Hugging Face's pipeline, a plain loop and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.contender import Answers, Classify, Contender, TransformerPeer
from benchmarks.speed.trial import Trial
from spin.arrays import Floats
from spin.backbone.hub import silence_transformers
from spin.poolings.registry import find_pooling

_FITTED = 32
"""batch size, in documents, for the embeddings that the head is fitted on"""
Embed = Callable[[Sequence[str], int], Floats]
"""returns the embeddings (n, width) of n texts, for a batch size in documents"""
Batch = tuple[list[int], NDArray[np.int64], NDArray[np.int64]]
"""row numbers of B texts, their token ids (B, T), padded on the right, and the mask"""


def peer(trial: Trial, role: TransformerPeer, load: Callable[[], Embed]) -> Contender:
    """A contender that embeds texts and classifies them by the trial's head, which is fitted at first use."""

    def load_with_head() -> Classify:
        if trial.head is None:
            trial.fit_head(lambda texts: loop(trial, torch.float32)(texts, _FITTED))
        embed = load()
        return lambda texts, batch: Answers(trial.classes(embed(texts, batch)))

    return Contender(role, load_with_head, trial.batches)


def torch_peers(trial: Trial) -> list[Contender]:
    """The pipeline and, for an encoder, sentence-transformers; for a decoder the plain loop."""
    peers = [peer(trial, TransformerPeer("Hugging Face pipeline", "float32"), lambda: pipeline(trial))]
    name, embed = ("plain loop", loop) if trial.causal else ("sentence-transformers", sentences)
    return [
        *peers,
        peer(trial, TransformerPeer(name, "float32"), lambda: embed(trial, torch.float32)),
        peer(trial, TransformerPeer(name, "bfloat16"), lambda: embed(trial, torch.bfloat16)),
    ]


def pipeline(trial: Trial) -> Embed:
    """`pipeline("feature-extraction")` in batches; token counts tell the padding from the tokens."""
    from transformers import pipeline as build_pipeline

    model, tokenizer = hugging_face(trial, torch.float32)
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    run = build_pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    truncation = {"truncation": True, "max_length": trial.plan.max_tokens}

    def embed(texts: Sequence[str], batch: int) -> Floats:
        rows = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        ordered = [texts[row] for row in rows]
        counts = [len(ids) for ids in tokenizer(ordered, **truncation)["input_ids"]]
        vectors = run(ordered, batch_size=batch, return_tensors=True, tokenize_kwargs=truncation)
        out = np.empty((len(texts), vectors[0].shape[-1]), np.float32)
        for row, count, values in zip(rows, counts, vectors, strict=True):
            mask = torch.ones(1, count, dtype=torch.bool)
            out[row] = find_pooling(trial.pooling).pool(values[:, :count], mask).numpy()[0]
        return out

    return embed


def loop(trial: Trial, dtype: torch.dtype) -> Embed:
    """A loop over batches of texts of similar length, which pools the last layer."""
    model, tokenizer = hugging_face(trial, dtype)

    def embed(texts: Sequence[str], batch: int) -> Floats:
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows, ids, mask in by_length(tokenizer, texts, batch, trial.plan.max_tokens):
                tokens, attended = torch.from_numpy(ids), torch.from_numpy(mask)
                values = model(input_ids=tokens, attention_mask=attended)[0]
                out[rows] = find_pooling(trial.pooling).pool(values, attended.bool()).numpy()
        return out

    return embed


def sentences(trial: Trial, dtype: torch.dtype) -> Embed:
    """sentence-transformers, which sorts by length itself; without its normalisation, as the head is fitted without."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with silence_transformers():
        encoder = Transformer(str(trial.folder), model_kwargs={"dtype": dtype}, max_seq_length=trial.plan.max_tokens)
    pooling = Pooling(encoder.get_embedding_dimension(), trial.pooling)
    model = SentenceTransformer(modules=[encoder, pooling], device="cpu")
    return lambda texts, batch: np.asarray(model.encode(list(texts), batch_size=batch, show_progress_bar=False))


def hugging_face(trial: Trial, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model and its tokenizer, loaded as in the documentation of transformers."""
    from transformers import AutoModel, AutoTokenizer

    with silence_transformers():
        model = AutoModel.from_pretrained(trial.folder, dtype=dtype).eval().requires_grad_(False)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model, AutoTokenizer.from_pretrained(trial.folder)


def by_length(tokenizer: Any, texts: Sequence[str], batch: int, max_tokens: int) -> Iterator[Batch]:
    """Yield batches of texts of similar length."""
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
