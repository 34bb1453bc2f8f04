"""Choose the abstention band that keeps the error of the labels that are given below a promised one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier
from spin.fitted.held_out import HeldOutLogits
from spin.labels.label_space import LabelSpace, differ
from spin.settings import DecisionSettings, Precision

RISK = 0.05
"""probability that the promise does not hold, over the draws of the test documents"""
_BANDS = np.tanh(np.linspace(6, 0, 121))
"""bands that are tried, from the widest to none: of two classes, tanh(log odds / 2) at equal
steps of the log odds"""
_START = 0.2
"""share of the test documents that get a label under the first band that is tested, or more where they are few: see
`least_documents`. Among fewer labels, a single wrong one would end the tests"""


@dataclass(frozen=True)
class PromisedBand:
    """An abstention band, and how the labels outside of it fare on the test documents."""

    abstain: float
    """width of the band, as the setting `decision.abstain` gives it"""
    coverage: float
    """share of the test documents that get a label"""
    error: float
    """share of wrong labels among these"""


@dataclass(frozen=True)
class ErrorPromise:
    """The proof of `decision.max_error` by the test documents of a version."""

    max_error: float
    """largest share of wrong labels among those that are given, from 0 to 1"""
    documents: int
    """number of test documents that the gate does not read"""
    band: PromisedBand | None
    """the band that keeps the promise; None where they prove none, and no night begins"""


def choose_band(
    held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision, max_error: float
) -> PromisedBand | None:
    """The narrowest abstention band under which at most `max_error` of the labels are wrong; None if there is none.

    `exits` are those at which documents may stop. With probability 1 - `RISK` over the draw of the test documents, the
    error holds for all documents like them, whatever the number of bands. The test documents must be independent. This
    is fixed-sequence testing (Angelopoulos et al., Learn then Test, 2021), from a wide band to narrower ones. It stops
    at the first band for which the binomial test of "the error is larger" does not reject at level `RISK`. In a
    multi-label task a label is wrong if any of its classes is.
    """
    from scipy.stats import binom  # takes a second, and most classifiers promise nothing

    # in a multi-label task the band is the distance of a probability from its threshold, at most 0.5 from one half
    bands = _BANDS * (0.5 if decision.label_space.multilabel else 1.0)
    outcomes = [_judge(held_out, exits, replace(decision, abstain=float(band))) for band in bands]
    labelled, wrong = (np.array(each) for each in zip(*outcomes, strict=True))
    # where the tests start depends on the number of labels alone, not on how many of them are wrong
    first = int((labelled >= max(_START * len(held_out), least_documents(max_error))).argmax())
    # the p-value of "the error is larger": the probability of so few wrong labels if the error were just `max_error`
    proven = binom.cdf(wrong[first:], labelled[first:], max_error) <= RISK
    # the last band before the first failure: later bands do not count even where their own test would reject
    last = first + int(np.argmin([*proven, False])) - 1
    if last < first:
        return None
    return PromisedBand(float(bands[last]), labelled[last] / len(held_out), wrong[last] / labelled[last])


def least_documents(max_error: float) -> int:
    """The number of test documents below which nothing proves a promise, even if all of their labels are right.

    If a share `max_error` of all labels were wrong, n labels would all be right with probability (1 - max_error)^n.
    That is at most `RISK` from n = log(RISK) / log(1 - max_error) on: 59 for 0.05, 299 for 0.01.
    """
    return math.ceil(math.log(RISK) / math.log1p(-max_error))


def require_precision(settings: DecisionSettings, trained: Precision, precision: Precision) -> None:
    """Raise UserError if `max_error` is to hold in another precision than that in which test documents were read.

    `trained` and `precision` are the settings `backbone.dtype` of the training and of now.
    """
    # guarded by test_a_promise_is_void_in_another_precision
    if settings.max_error is not None and precision != trained:
        raise UserError(
            f"decision.max_error {settings.max_error:g}: the test documents of the version prove it for labels in the "
            f"precision of its training, backbone.dtype {trained}, and not in {precision}; set backbone.dtype "
            f"{trained}, or decision.abstain"
        )


def keep_promise(
    held_out: HeldOutLogits | None,
    fitted: FittedClassifier,
    label_space: LabelSpace,
    settings: DecisionSettings,
    *,
    early: bool,
) -> DecisionSettings:
    """Settings of a decision with the abstention band that keeps `max_error`.

    `held_out` are the test documents of the classifier, None if it has none, and `early` says whether documents stop at
    its exits. The band is proven for just this decision: these exits, and the thresholds of `settings`. Without
    `max_error` the settings stay as they are. Raises UserError if the test documents allow no band.
    """
    if settings.max_error is None:
        return settings
    if held_out is None:
        raise UserError(
            f"decision.max_error {settings.max_error:g}: the version has no test documents to prove it on; train one "
            "with a test split, or set decision.abstain"
        )
    exits = fitted.exits if early else ()
    band = choose_band(held_out, exits, fitted.decision(label_space, settings), settings.max_error)
    if band is None:
        raise UserError(describe_failure(len(held_out), settings.max_error))
    return settings.model_copy(update={"abstain": band.abstain, "max_error": None})


def refuse_promise(settings: DecisionSettings, load: str) -> None:
    """Raise UserError if a decision without test documents is to promise an error; `load` names what has them."""
    if settings.max_error is not None:
        raise UserError(
            "decision.max_error: only the test documents of a version that spin train made can prove it; give the "
            f"setting to {load} with the folder of one, or set abstain"
        )


def describe_failure(documents: int, max_error: float) -> str:
    """A message that an error cannot be promised with so many test documents, and what to do."""
    least = least_documents(max_error)
    if documents < least:
        return (
            f"decision.max_error {max_error:g} cannot be promised: it takes {least:,} test documents that the gate "
            f"does not read, and the version has {documents:,}; label about {2 * least:,} test documents, since the "
            "gate reads half of them, and more if some of their labels will be wrong, raise it, or set decision.abstain"
        )
    return (
        f"decision.max_error {max_error:g} cannot be promised: not even for the documents with the most certain labels "
        f"do {documents:,} test documents prove it; raise it, label more test documents, or set decision.abstain"
    )


def _judge(held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision) -> tuple[int, int]:
    """The number of labels that a decision gives, and of wrong ones among them."""
    given, abstains = decision.decide(held_out.probabilities(exits, decision))
    return int((~abstains).sum()), int(differ(given, held_out.y)[~abstains].sum())
