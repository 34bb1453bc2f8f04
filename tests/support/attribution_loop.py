"""What neurons and words contribute to the logit of a class, token by token in plain loops: an independent computation.

It shares nothing with `spin.attribution` and its readers: activations come from hooks on the modules of BERT and Llama,
tokens from the tokenizer. What terms add to the words' logits is that of the word regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spin import TrainedClassifier
from spin.heads.linear_head import LinearHead
from spin.sites import BY_WORDS

Span = tuple[int, int]
Neuron = tuple[str, int]
"""feature column and index within the site"""


@dataclass(frozen=True)
class Attribution:
    """What contributes to the logit of one class of a text."""

    neurons: dict[Neuron, float]
    words: dict[Span, float]
    """by start and end; words that overlap are one, special tokens are left out"""
    shares: dict[Neuron, dict[Span, float]]
    """for each neuron, by word, the largest absolute share that a token of it has in the neuron's contribution"""


@dataclass(frozen=True)
class _Token:
    """A token that is no repetition of the window before."""

    word: tuple[int, int]
    """-1 and the number of its word in the text; of a token of no word the numbers of its window and of its position"""
    span: Span
    is_pooled: bool
    """by mean and max"""
    activations: dict[str, np.ndarray]
    """by site"""


def attribute(spin: TrainedClassifier, text: str, k: int, depth: int) -> Attribution:
    """Return what contributes to the logit of class k of a text that stops after `depth` blocks."""
    fitted = spin.fitted
    exit = next((exit for exit in fitted.exits if exit.depth == depth), None)
    head, scale = (fitted.head if exit is None else exit.head), fitted.standardizer.scale
    if depth == BY_WORDS:
        slopes, words, neurons = head.coef[k], len(head.coef), []  # type: ignore[union-attr]
        scale = np.ones(words)
    else:
        words = fitted.selection.word_logits
        neurons = [(c, i) for c, of in fitted.selection.neurons.items() for i in of.tolist() if c.site.layer <= depth]
    tokens = read_tokens(spin, text) if neurons else tokenize(spin, text)
    shares_of = [share_out(tokens, [t.activations[str(c.site)][i] for t in tokens], c.pooling) for c, i in neurons]
    means = fitted.standardizer.mean[words:]
    features = [sum(part * value for part, value in share) for share in shares_of]
    if depth != BY_WORDS:
        standard = [(x - mean) / s for x, mean, s in zip(features, means, scale[words:], strict=False)]
        slopes = mean_slopes(head, np.array([0.0] * words + standard), k)
    spans = span_words(tokens)
    by_token, by_neuron, shares = [0.0] * len(tokens), {}, {}
    for j, (column, index) in enumerate(neurons):
        parts = [part * (x - means[j]) / scale[words + j] * slopes[words + j] for part, x in shares_of[j]]
        name = str(column), index
        by_neuron[name] = float(sum(parts))
        shares[name] = {}
        for position, (token, part) in enumerate(zip(tokens, parts, strict=True)):
            by_token[position] += part
            shares[name][spans[token.word]] = max(shares[name].get(spans[token.word], 0.0), abs(part))
    by_word = dict.fromkeys(spans.values(), 0.0)
    for token, part in zip(tokens, by_token, strict=True):
        by_word[spans[token.word]] += part
    merged = merge_overlaps(by_word)
    places, of_places = [], []
    if words:
        assert spin.training_result.words is not None
        for term in spin.training_result.words.contributions(text):
            value = sum(slopes[c] / scale[c] * term.logits[c] for c in range(words))
            places += list(term.places)
            of_places += [float(value) / len(term.places)] * len(term.places)
    return Attribution(by_neuron, add_places_in_a_loop(list(merged), list(merged.values()), places, of_places), shares)


def tokenize(spin: TrainedClassifier, text: str, read: Any = None) -> list[_Token]:
    """Return the tokens of a text in all windows; `read` takes the ids of a window and returns activations by site."""
    backbone, tokens = spin.backbone, []
    in_windows = backbone.long_texts == "windows"
    encodings = backbone.tokenizer(
        text,
        truncation=True,
        max_length=backbone.max_tokens,
        stride=backbone.window_overlap if in_windows else 0,
        return_overflowing_tokens=True,
    ).encodings
    for number, encoding in enumerate(encodings[: backbone.max_windows if in_windows else 1]):
        ids = encoding.ids or [backbone.tokenizer.pad_token_id]
        activations = read(ids) if read is not None else {}
        repeated = backbone.window_overlap if number else 0
        for position, token_id in enumerate(ids):
            special = token_id in backbone.tokenizer.all_special_ids
            if repeated and not encoding.special_tokens_mask[position]:
                repeated -= 1
                continue
            word = encoding.word_ids[position] if encoding.ids else None
            start, end = encoding.offsets[position] if encoding.ids else (0, 0)
            start = end - len(text[start:end].lstrip()) if text[start:end].strip() else start
            tokens.append(
                _Token(
                    (number, position) if word is None else (-1, word),
                    (start, end),
                    backbone.pool_special_tokens or not (special or (backbone.causal and position == 0)),
                    {site: values[position] for site, values in activations.items()},
                )
            )
        if number == 0:
            first = len(tokens)
    if not any(token.is_pooled for token in tokens):
        tokens[:first] = [_Token(t.word, t.span, True, t.activations) for t in tokens[:first]]
    return tokens


def read_tokens(spin: TrainedClassifier, text: str) -> list[_Token]:
    """Return the tokens of a text with their activations at all sites."""
    model = spin.backbone.model
    is_bert = hasattr(model, "encoder")
    blocks = model.encoder.layer if is_bert else model.layers

    def read(ids: list[int]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}

        def keep(site: str, values: Any) -> None:
            values = values if isinstance(values, torch.Tensor) else values[0]
            found[site] = values.detach().reshape(len(ids), -1).float().numpy().astype(np.float64)

        def before(site: str) -> Any:
            return lambda _module, args, kwargs: keep(site, args[0] if args else kwargs["hidden_states"])

        def after(site: str) -> Any:
            return lambda _module, _args, output: keep(site, output)

        handles = [blocks[0].register_forward_pre_hook(before("resid.00"), with_kwargs=True)]
        for layer, block in enumerate(blocks, start=1):
            projection = block.output.dense if is_bert else block.mlp.down_proj
            handles.append(block.register_forward_hook(after(f"resid.{layer:02d}")))
            handles.append(projection.register_forward_pre_hook(before(f"ffn.{layer:02d}"), with_kwargs=True))
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        for handle in handles:
            handle.remove()
        return found

    return tokenize(spin, text, read)


def share_out(tokens: Sequence[_Token], values: Sequence[float], pooling: str) -> list[tuple[float, float]]:
    """Return (part, value) of every token: what is pooled is the sum of the values, each times its part."""
    pooled = [position for position, token in enumerate(tokens) if token.is_pooled]
    if pooling == "mean":
        return [(1 / len(pooled) if token.is_pooled else 0.0, x) for token, x in zip(tokens, values, strict=True)]
    if pooling == "max":
        at = max(pooled, key=lambda position: (values[position], -position))
    else:
        at = 0 if pooling == "first" else len(tokens) - 1
    return [(float(position == at), x) for position, x in enumerate(values)]


def mean_slopes(head: Any, x: np.ndarray, k: int) -> np.ndarray:
    """Return the mean slopes (p,) of the logit of class k from 0 to x; those of a network in many small steps."""
    if type(head) is LinearHead:
        return head.coef[k]
    steps = (np.arange(100_000) + 0.5) / 100_000
    active = steps[:, None] * (head.inner @ x) + head.inner_bias > 0
    return head.coef[k] + (head.outer[k] * active.mean(0)) @ head.inner


def span_words(tokens: Sequence[_Token]) -> dict[tuple[int, int], Span]:
    """Return where the word of every token stands: from its first token to its last one."""
    spans: dict[tuple[int, int], Span] = {}
    for token in tokens:
        start, _ = spans.setdefault(token.word, token.span)
        spans[token.word] = start, token.span[1]
    return spans


def merge_overlaps(words: dict[Span, float]) -> dict[Span, float]:
    """Return words in the order of the text without those of no length; those that overlap are one, with their sum."""
    merged: list[tuple[Span, float]] = []
    for (start, end), value in sorted(words.items()):
        if start == end:
            continue
        if merged and start < merged[-1][0][1]:
            (first, last), before = merged.pop()
            merged.append(((first, max(last, end)), before + value))
        else:
            merged.append(((start, end), value))
    return dict(merged)


def add_places_in_a_loop(
    words: list[Span], sums: list[float], places: list[Span], of_places: list[float]
) -> dict[Span, float]:
    """Return the sums of the words of one text, those of places that are in no word included."""
    word_of: dict[int, Span] = {}
    result = dict.fromkeys(words, 0.0)
    for span, value in zip(words, sums, strict=True):
        result[span] += value
        for character in range(*span):
            word_of.setdefault(character, span)
    lonely = sorted({c for span in places for c in range(*span)} - word_of.keys())
    run: list[int] = []
    for character in [*lonely, -1]:
        if run and character != run[-1] + 1:
            result[run[0], run[-1] + 1] = 0.0
            word_of |= dict.fromkeys(run, (run[0], run[-1] + 1))
            run = []
        run.append(character)
    for (start, end), value in zip(places, of_places, strict=True):
        for character in range(start, end):
            result[word_of[character]] += value / (end - start)
    return result
