"""The settings of a project, with all sections."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from spin.poolings import registry
from spin.settings.backbone_settings import BackboneSettings
from spin.settings.data_settings import DataSettings
from spin.settings.night_settings import ClassifySettings, MetricsSettings
from spin.settings.registry_settings import MlflowSettings, PromoteSettings, RegistrySettings
from spin.settings.section import Section, known_name, not_empty
from spin.settings.store_settings import StoreSettings
from spin.settings.training_settings import (
    CascadeSettings,
    DecisionSettings,
    ProbeSettings,
    SearchSettings,
    TrainSettings,
)
from spin.settings.worker_settings import RaySettings

Choice = Literal["accuracy", "balanced", "cheapest"]
"""the three classifiers that every training chooses"""
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""figures by which a training can make its choices"""


_PoolingName = Annotated[
    str,
    AfterValidator(lambda name: known_name(name, [pooling.name for pooling in registry.POOLINGS])),
    Field(json_schema_extra={"enum": [pooling.name for pooling in registry.POOLINGS]}),
]


class ClassifierSettings(Section):
    """The settings by which a classifier is fitted and decides."""

    backbone: BackboneSettings
    sites: tuple[str, ...] = Field(
        ("resid", "ffn"),
        description="Neurons that are read. resid: the residual stream after every block; ffn: the inner neurons of "
        "every feed-forward layer; ffn.03: those of block 3 alone.",
    )
    poolings: Annotated[tuple[_PoolingName, ...], AfterValidator(not_empty)] | None = Field(
        None,
        description="How the values of a neuron on all tokens of a text become one value; any of "
        + ", ".join(f"{pooling.name} ({pooling.description})" for pooling in registry.POOLINGS)
        + ". Default: mean and max for encoders, last and mean for decoders.",
    )
    metric: Metric = Field(
        "macro_f1",
        description="Measure by which probes, thresholds and exits are chosen, and the loss for less "
        "compute is limited: accuracy, balanced_accuracy (the mean recall of the classes) or macro_f1 (the mean F1 of "
        "the classes), over the classes that occur. Classifiers are compared by the log loss of their probabilities.",
    )
    seed: int = Field(0, description="Seed of the split by hash and of every random draw.")
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    choose: Choice = Field(
        "accuracy",
        description="Which of the three trained classifiers is used. accuracy: among the best on validation the one "
        "that computes most; balanced and cheapest: the one that computes least within "
        "search.balanced_loss or search.cheapest_loss.",
    )
    cascade: CascadeSettings = Field(default_factory=CascadeSettings)
    decision: DecisionSettings = Field(default_factory=DecisionSettings)


class Settings(ClassifierSettings):
    """Settings of a SPIN project."""

    data: DataSettings
    store: StoreSettings
    extract: Literal["all", "two_pass", "auto"] = Field(
        "auto",
        description="What training stores of the documents. all: every neuron of every document, so that another "
        "search needs no backbone. two_pass: every neuron of the search.documents that neurons are chosen on, and of "
        "the others only the chosen neurons, by a second pass; that takes about a tenth of the space. auto: two_pass "
        "from five times as many documents on.",
    )
    train: TrainSettings = Field(default_factory=TrainSettings)
    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    classify: ClassifySettings = Field(default_factory=ClassifySettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    promote: PromoteSettings = Field(default_factory=PromoteSettings)
