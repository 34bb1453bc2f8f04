"""The explanation of one text: what neurons, terms and words contribute to the logits of all classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spin.activations.word_reader import find_masks, words_of
from spin.arrays import Floats
from spin.attribution.text_words import Ints, TextWords, sum_by_text
from spin.attribution.token_sums import (
    TokenReadings,
    TokenWeights,
    find_loudest_tokens,
    sum_tokens,
    warn_of_missing_shares,
)
from spin.attribution.word_sums import Places, add_places
from spin.backbone.hooks import read_token_values
from spin.backbone.model import Backbone, Tokens
from spin.fitted.attribution_weights import token_directions, token_weights
from spin.fitted.decision import Decision
from spin.fitted.fitted_classifier import FittedClassifier
from spin.labels.label_space import LabelSpace
from spin.pages.explanation import Explanation
from spin.words.word_regression import Place, TermContribution, WordRegression


def explain_text(
    backbone: Backbone,
    fitted: FittedClassifier,
    label_space: LabelSpace,
    text: str,
    features: Floats,
    words: WordRegression | None = None,
    decision: Decision | None = None,
) -> Explanation:
    """The contributions of neurons, terms and words to the logits of a text, whose label follows by `decision`.

    `features` (p,) are the raw ones of `fitted`, with the activations that the engine returned, and `words` is the
    regression of a classifier that reads words. The contribution of a neuron is w (x - mean) / scale. In a linear head
    w is its weight, in a network its integrated gradient (Sundararajan et al., Axiomatic Attribution for Deep
    Networks, 2017). Under mean pooling each token of the content has the part of the contribution that comes from its
    own activation, less an equal part of the mean. Under max, first and last pooling one token has all of it. Where no
    token has a share, it counts for no word, which is logged. The
    tokens of a text that is read in windows are those of all windows, each once. A term contributes its part of the
    word regression's logits, times their weights in the head, in equal parts at its places in the text.
    """
    weights = [token_weights(fitted, features[None], np.array([k])) for k in range(len(label_space))]
    contributions = np.concatenate([each.contributions for each in weights]).T.astype(np.float64)
    tokens = backbone.tokenize([text], places=True)
    words_read = words_of(tokens)
    by_token, loudest = _share_tokens(backbone, fitted, tokens, features, weights)
    by_word = sum_by_text(by_token, words_read.word_of, len(words_read.owners))
    terms, constant = _weigh_terms(words, np.concatenate([each.words for each in weights]), text)
    bias = fitted.head.bias + constant
    all_words, by_word = _add_terms(words_read, by_word, terms)
    return Explanation(
        text=text,
        label_space=label_space,
        logits=np.sum([bias, contributions.sum(0), *(term.logits for term in terms)], axis=0),
        bias=bias,
        neurons=tuple((column, neuron) for column, neuron, _ in fitted.selection.rows()),
        contributions=contributions,
        words=all_words,
        word_contributions=by_word,
        loudest=np.where(loudest < 0, -1, words_read.word_of[loudest]),
        values=fitted.standardizer.transform(features[None])[0, fitted.selection.word_logits :],
        terms=terms,
        truncated=tokens.cut[0],
        decision=decision,
    )


def _share_tokens(
    backbone: Backbone, fitted: FittedClassifier, tokens: Tokens, features: Floats, weights: Sequence[TokenWeights]
) -> tuple[Floats, Ints]:
    """The contributions (t, K) of the t own tokens of a text to each class, and the loudest token per neuron.

    `weights` are those of the K classes.
    """
    neurons = fitted.selection.neurons
    warn_of_missing_shares(neurons)
    ids, mask = backbone.pad_tokens(tokens, range(len(tokens.ids)))
    masks = find_masks(backbone, np.zeros(len(ids), np.int64), ids, mask)
    values = read_token_values(backbone, ids, mask, neurons)
    readings = TokenReadings.of_values(values, token_directions([fitted], neurons), masks)
    columns = fitted.selection.slices
    by_class = [sum_tokens(readings, masks, each, columns)[masks.own] for each in weights]
    totals = (features - fitted.standardizer.mean)[fitted.selection.word_logits :]
    loudest = find_loudest_tokens(values, readings, masks, totals, columns)
    own_before = np.cumsum(masks.own) - 1
    return np.stack(by_class, axis=1), np.where(loudest < 0, -1, own_before[loudest])


def _weigh_terms(
    words: WordRegression | None, slopes: Floats, text: str
) -> tuple[tuple[TermContribution, ...], Floats | float]:
    """The contributions of a text's terms, and of the regression's intercept, to the logits of a head.

    `slopes` (K, K) are the head's for the regression's logits.
    """
    if words is None or not slopes.size:
        return (), 0.0
    terms = (replace(term, logits=slopes @ term.logits) for term in words.contributions(text))
    return tuple(terms), slopes @ words.intercept


def _add_terms(
    words: TextWords, by_word: Floats, terms: Sequence[TermContribution]
) -> tuple[tuple[Place, ...], Floats]:
    """The words of a text and their contributions (W, K) with those of the terms that stand in them.

    Words of terms that the backbone does not read, such as those beyond its limit, come after the others.
    """
    spans = np.array([place for term in terms for place in term.places], np.int64).reshape(-1, 2)
    parts = [term.logits / len(term.places) for term in terms for _ in term.places]
    sums = np.array(parts).reshape(len(parts), by_word.shape[1])
    places = Places(np.zeros(len(spans), np.int64), spans[:, 0], spans[:, 1], sums)
    found = add_places(Places(words.owners, words.starts, words.ends, by_word), places)
    return tuple(zip(found.starts.tolist(), found.ends.tolist(), strict=True)), found.sums
