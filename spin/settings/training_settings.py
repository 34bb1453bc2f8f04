"""The sections by which a classifier is trained and decides: `probe`, `search`, `cascade`, `train` and `decision`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from spin.settings.section import Section, Share, not_empty

Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _word_of_yaml(value: Any) -> Any:
    """YAML reads a bare `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class ProbeSettings(Section):
    """The probes: sparse linear classifiers, one per site and pooling, that show which neurons carry the classes."""

    penalties: int = Field(
        10,
        ge=2,
        description="Number of L1 penalties that are tried, falling in equal ratios from the one that keeps no neuron.",
    )
    min_ratio: float = Field(
        1 / 30, gt=0, lt=1, description="Smallest of these penalties, as a share of the one that keeps no neuron."
    )
    max_extra: int = Field(
        2, ge=0, description="Number of still smaller penalties, tried only while they lower the held-out log loss."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="none: every document counts the same. balanced: every class counts the same, however rare, in "
        "the probes and in the final classifier; its probabilities are calibrated to the classes' true frequency all "
        "the same.",
    )

    @property
    def step(self) -> float:
        """The ratio of a penalty of the path to the one before it."""
        return self.min_ratio ** (1 / (self.penalties - 1))


class SearchSettings(Section):
    """The candidates that a training compares on the validation documents to choose the classifier."""

    documents: int = Field(
        20_000,
        ge=150,  # fewer labels have the last layer beside the neurons, which many have not
        description="Labelled documents that neurons are ranked and candidates are compared on: a stratified sample if "
        "there are more. The heads on neurons that were chosen are then fitted on all but some that calibrate them.",
    )
    etas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(not_empty)] = Field(
        (0.3, 0.5, 0.7, 0.9),
        description="Shares of the importance of all neurons that the selected ones must hold together; more keeps "
        "more neurons.",
    )
    max_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Largest share of all neurons that is selected; an eta that would select more is lowered. With "
        "fewer than 150 labelled documents, a classifier also reads all neurons of its last layer.",
    )
    max_neurons: int = Field(
        16_000,
        ge=1,
        description="Largest number of neurons that a classifier may use, which bounds the memory of training whatever "
        "the size of the backbone.",
    )
    max_leakage: Share | None = Field(
        None,
        description="Largest share of the words of a text that an attacker may read back from the neurons of a "
        "classifier, measured on validation documents as in `spin audit privacy`; fewer neurons are selected where "
        "more would be read back. Default: any share, and nothing is measured.",
    )
    strengths: Annotated[tuple[Strength, ...], AfterValidator(not_empty)] = Field(
        (0.1, 0.3, 1, 3, 10),
        description="Strengths of the classifier's regularisation that are tried, as prior variance of a logit: a "
        "small number means strong regularisation.",
    )
    words: Annotated[Literal["auto", "on", "off"], BeforeValidator(_word_of_yaml)] = Field(
        "auto",
        description="Whether the words of a text count beside its neurons, by a logistic regression on words, word "
        "pairs and strings of characters, which needs no model. auto: where the validation documents do not speak "
        "against it. Where neurons add nothing, or in a choice that may lose some accuracy, words may decide alone.",
    )
    network: Annotated[Literal["auto", "off"], BeforeValidator(_word_of_yaml)] = Field(
        "auto",
        description="Whether a small neural network on the selected neurons counts beside the linear head. auto: from "
        "150 labelled documents on, by what it is worth on the validation documents.",
    )
    balanced_loss: float = Field(
        0.003,
        ge=0,
        description="Loss of the metric that `choose: balanced` accepts to compute less, with 95 % confidence on the "
        "validation documents; 0.003 is 0.3 points.",
    )
    cheapest_loss: float = Field(
        0.02,
        ge=0,
        description="Loss of the metric that `choose: cheapest` accepts to compute less, with 95 % confidence on the "
        "validation documents; 0.02 is 2 points.",
    )


class CascadeSettings(Section):
    """Early exits: a document whose class is certain by its words, or after a few blocks, skips the (other) blocks."""

    max_loss: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="Loss of the metric that all exits together may cause; 0.005 is half a point. 0: no exits.",
    )
    words: bool = Field(
        True,
        description="Offer an exit before the model: a document whose words alone make its class certain is never "
        "run. It needs search.words.",
    )
    depths: tuple[Share, ...] = Field(
        (1 / 6, 1 / 3, 2 / 3),
        description="Where exits are offered, as shares of the blocks that the classifier uses.",
    )


class TrainSettings(Section):
    """The end of a training: the comparison on the test documents, and what is stored of training documents."""

    baselines: bool = Field(
        True,
        description="Fit the simpler classifiers that the new one is compared with, on at most 40,000 "
        "documents. It changes no classifier; a training that has finished keeps the table that it has.",
    )
    keep_texts: bool = Field(
        False,
        description="Store texts of training documents beside their ids: in the version those of the documents that "
        "activate a neuron most (up to five per neuron), in suspects.parquet those of suspects. Explanations then need "
        "no corpus. Whoever may read the version can read these texts for as long as it is registered; `spin purge` "
        "deletes suspects.parquet alone. Default: ids alone. A finished training is only changed with --restart.",
    )


class DecisionSettings(Section):
    """From the probabilities of the classes to a label."""

    thresholds: dict[str, Share] = Field(
        {},
        description="Probability that a class needs, by class, such as {spam: 0.9}. Default: the thresholds that "
        "training chose where they pay on validation; else the most probable class wins, in a multi-label task every "
        "class from 0.5 on.",
    )
    abstain: float = Field(
        0,
        ge=0,
        lt=1,
        description="Smallest lead of the best class over the second best, after division by the thresholds; in a "
        "multi-label task, smallest distance of a probability from its threshold. Documents with less "
        "get no label. 0: every document gets one.",
    )
    max_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Largest share of wrong labels among those that are given, in place of `abstain`: as few documents "
        "as possible get no label. It holds with 95 % confidence for documents like the test documents. It is proven "
        "on those that the gate does not read, about half, and in the precision of the training; 0.05 takes 59 of them "
        "at least. Default: nothing is promised.",
    )

    def without_promise(self) -> DecisionSettings:
        """The same decision without `max_error`: only with the test documents of a version does it become a band."""
        return self.model_copy(update={"max_error": None})

    @model_validator(mode="after")
    def _one_band(self) -> Self:
        if self.max_error is not None and self.abstain:
            raise ValueError("abstain and max_error: expected one of them; max_error chooses the band")
        return self
