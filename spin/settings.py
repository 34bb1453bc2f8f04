"""The settings: frozen models read from one YAML file. An unknown key is an error; every field says what it is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spin.errors import UserError

Choice = Literal["accuracy", "balanced", "cheapest"]
"""which of the three classifiers of an artifact is used"""
Stage = Literal["extract", "probe", "train", "classify"]
POOLINGS = ("first", "last", "mean", "max")
"""ways to make one vector per document of its tokens"""
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
"""figures that can make every choice"""
_PASSWORD = re.compile(r"://[^:/?#@\s]*:[^@]+@|[?&]\w*pass(word|wd)?=", re.IGNORECASE)
"""in a URI: after the name of a user, a slash in it or not, or as a parameter"""


def holds_password(text: str) -> bool:
    """Whether a URI with a password stands in a text."""
    return _PASSWORD.search(text) is not None


def _without_password(uri: str) -> str:
    if holds_password(uri):
        raise ValueError(
            "a password stands in it; expected none: it comes from the environment "
            "(MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY)"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_password)]
"""a place; the name of a user may stand in it, a password may not"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneSettings(_Section):
    """The frozen language model that is read."""

    model: str = Field(description="hub id, directory, .gguf file, or package:IMPORT_NAME/path inside a wheel")
    revision: str | None = Field(None, description="hub revision: a commit is best")
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="auto takes bfloat16 where the hardware computes in it, else float32; int8 is for classify alone",
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="what runs it; auto takes openvino on a processor where it is installed, else torch"
    )
    max_tokens: int = Field(256, ge=4, description="tokens; longer texts are cut at the end and counted")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens a forward pass, padding included; by default what a GPU's memory has room for, or 2048",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    compile: bool = Field(
        False,
        description="on a GPU, compile for a minute or so a worker, and keep what is made where it is clearly faster",
    )
    pool_special_tokens: bool = Field(
        False, description="let mean and max see special tokens and a decoder's first position"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that lies in the backbone's directory or hub repository"
    )


class DataSettings(_Section):
    """The labelled corpus: Parquet, JSONL or CSV."""

    train: Uri = Field(description="URI, folder or glob of the labelled text")
    id: str = Field("id", description="column with a unique id a document")
    text: str = Field("text", description="column with the text")
    label: str = Field("label", description="column with the class")
    split: str | None = Field(None, description="column with train, valid or test; without it a hash of the id decides")
    valid_fraction: float = Field(0.15, gt=0, lt=0.5, description="share of documents for choices, without a split")
    test_fraction: float = Field(0.15, ge=0, lt=0.5, description="share of documents for the test, without a split")
    ids: Literal["checked", "trusted"] = Field(
        "checked", description="checked: a night looks for ids seen before; trusted: it does not"
    )


class ProbeSettings(_Section):
    """The L1 regularisation path of one site.pooling."""

    penalties: int = Field(10, ge=2, description="penalties from lam_max to lam_max x min_ratio, geometric")
    min_ratio: float = Field(1 / 30, gt=0, lt=1, description="smallest penalty of the path, as a share of lam_max")
    max_extra: int = Field(2, ge=0, description="further penalties, tried only while validation improves")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class weighs as much as all others together, in probes and head"
    )

    @property
    def step(self) -> float:
        """From a penalty of the path to the next."""
        return self.min_ratio ** (1 / (self.penalties - 1))

    def ratios(self) -> list[float]:
        """The penalties of the path as shares of lam_max."""
        return [self.step**index for index in range(self.penalties)]


class SearchSettings(_Section):
    """What integration searches on the validation documents."""

    etas: tuple[float, ...] = Field((0.3, 0.5, 0.7, 0.9), description="shares of importance kept a site.pooling")
    max_share: float = Field(0.1, gt=0, le=1, description="of all neurons, kept at most; an eta that keeps more is cut")
    strengths: tuple[float, ...] = Field(
        (0.1, 0.3, 1, 3, 10), description="prior variance of a logit in the head, small is strongly regularised"
    )
    l1: tuple[float, ...] = Field(
        (0.01, 0.03), description="L1 penalties tried on the best head, as shares of the one that zeroes it"
    )
    head: Literal["auto", "linear", "mlp"] = Field(
        "auto", description="auto takes mlp where a paired test on validation says that it is better"
    )
    balanced_loss: float = Field(0.003, ge=0, description="of the metric, given up at most by choose: balanced")
    cheapest_loss: float = Field(0.02, ge=0, description="of the metric, given up at most by choose: cheapest")

    @field_validator("etas")
    @classmethod
    def _shares(cls, etas: tuple[float, ...]) -> tuple[float, ...]:
        if not etas or not all(0 < eta <= 1 for eta in etas):
            raise ValueError("expected shares above 0, at most 1")
        return etas

    @field_validator("l1")
    @classmethod
    def _below_one(cls, l1: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in l1):
            raise ValueError("expected shares above 0 and below 1")
        return l1

    @field_validator("strengths")
    @classmethod
    def _positive(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if not strengths or not all(0 < strength < math.inf for strength in strengths):
            raise ValueError("expected numbers above 0")
        return strengths


class CascadeSettings(_Section):
    """Exits for documents that are sure of their class before the last block."""

    max_loss: float = Field(
        0.002, ge=0, lt=1, description="of the metric against full depth, that the exits may cost; 0: no exits"
    )
    depths: tuple[float, ...] = Field(
        (1 / 6, 1 / 3, 2 / 3), description="where exits are offered, as shares of a model's depth"
    )

    @field_validator("depths")
    @classmethod
    def _inside(cls, depths: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < depth < 1 for depth in depths):
            raise ValueError("expected shares above 0 and below 1")
        return depths


class DecisionSettings(_Section):
    """From probabilities to labels."""

    thresholds: dict[str, float] = Field(
        {}, description="probability that a class needs, by class; by default all need the same"
    )
    abstain: float = Field(0, ge=0, lt=1, description="band of probability around the border where no label is given")

    @field_validator("thresholds")
    @classmethod
    def _probabilities(cls, thresholds: dict[str, float]) -> dict[str, float]:
        if not all(0 < threshold < 1 for threshold in thresholds.values()):
            raise ValueError("expected probabilities above 0 and below 1")
        return thresholds


class MlflowSettings(_Section):
    """Where models are registered."""

    tracking_uri: Uri | None = Field(
        None,
        description="by default MLFLOW_TRACKING_URI, else SQLite: in the store if it is a folder, else ./mlflow.db",
    )
    model: str = Field("spin", pattern=r"^[^:/\\%\"']+$", description="name of the registered model")


class RegistrySettings(_Section):
    """What is registered."""

    include_backbone: bool = Field(
        True, description="keep the backbone's files with every version; else they must lie where they lay in training"
    )


class StageSettings(_Section):
    """The workers of one stage, where they are not those of all."""

    workers: int | None = Field(None, ge=1, description="as ray.workers, for this stage")
    min_workers: int | None = Field(None, ge=1, description="as ray.min_workers, for this stage")
    cpus_per_worker: int | None = Field(None, ge=1, description="as ray.cpus_per_worker, for this stage")
    gpus_per_worker: float | None = Field(None, ge=0, le=1, description="as ray.gpus_per_worker, for this stage")


class RaySettings(_Section):
    """The cluster and what a worker takes of it."""

    address: str | None = Field(None, description="a running cluster (auto finds it); by default Ray starts here")
    workers: int | None = Field(None, ge=1, description="workers a stage, at most; by default as many as fit")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="workers a stage, at least, where nodes come and go; by default all, or 1 if workers is open",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs and torch threads a worker")
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=1,
        description="GPUs a worker; at 0.5 two share one, and one reads and tokenises while the other computes",
    )
    retry_seconds: float = Field(120, ge=0, description="how long a shard is tried again whose store does not answer")
    stall_seconds: float = Field(3600, gt=0, description="without any shard ending, after which a stage gives up")
    shard_documents: int = Field(8192, ge=1, description="documents a shard, about; fewer where features are wide")
    extract: StageSettings = Field(default_factory=StageSettings)
    probe: StageSettings = Field(default_factory=StageSettings)
    train: StageSettings = Field(default_factory=StageSettings)
    classify: StageSettings = Field(default_factory=StageSettings)

    def of(self, stage: Stage) -> RaySettings:
        """What counts for a stage."""
        own: StageSettings = getattr(self, stage)
        return self.model_copy(update=own.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def _least_at_most(self) -> RaySettings:
        for stage in get_args(Stage):
            of = self.of(stage)
            if of.workers is not None and of.min_workers is not None and of.min_workers > of.workers:
                raise ValueError(
                    f"min_workers of {stage} is {of.min_workers}, workers {of.workers}; expected at least min_workers"
                )
        return self


class ClassifySettings(_Section):
    """A night."""

    max_bad_files: float = Field(
        0.1, ge=0, le=1, description="share of files that cannot be read, above which a night fails"
    )
    max_dead_fraction: float = Field(0.1, ge=0, le=1, description="share of dead letters above which a night fails")
    max_psi: float = Field(
        0.1, gt=0, description="population stability index against training above which, chance aside, it is drift"
    )
    fail_on_drift: bool = Field(False, description="leave with status 7 where documents have drifted, after publishing")
    cascade: bool = Field(True, description="let documents leave at the exits that training chose")
    dead_letter_text: bool = Field(False, description="keep the texts of dead letters, for who may read the output")


class PromoteSettings(_Section):
    """The gate before a version becomes champion."""

    min_score: float | None = Field(
        None, ge=0, le=1, description="of the metric, at least; by default more than one answer for all documents has"
    )
    max_regression: float = Field(
        0.01, ge=0, le=1, description="of the metric, that a version may lose to the champion"
    )
    significance: float = Field(0.05, gt=0, lt=0.5, description="chance that one that loses just as much passes")
    class_floors: dict[str, float] = Field({}, description="F1 from 0 to 1, at least, by class")
    max_ece: float = Field(0.1, gt=0, le=1, description="expected calibration error, at most, chance aside")
    min_docs_per_s: float = Field(0, ge=0, description="documents a second in one process, at least")

    @field_validator("class_floors")
    @classmethod
    def _shares(cls, floors: dict[str, float]) -> dict[str, float]:
        if not all(0 <= floor <= 1 for floor in floors.values()):
            raise ValueError("expected figures from 0 to 1")
        return floors


class Settings(_Section):
    """All of a project's settings."""

    backbone: BackboneSettings
    data: DataSettings
    sites: tuple[str, ...] = Field(("resid", "ffn"), description="resid and ffn at all layers, or single ones: ffn.03")
    poolings: tuple[str, ...] | None = Field(
        None,
        description="of first, last, mean, max; by default mean and max for encoders, last and mean for decoders",
    )
    metric: str = Field("macro_f1", description="chooses everything: " + ", ".join(METRICS))
    seed: int = Field(0, description="of the split by hash and of every draw")
    store: Uri = Field(description="folder or s3://bucket/prefix for features, probes and the model")
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    choose: Choice = Field(
        "accuracy",
        description="accuracy: the fullest near the best on validation; balanced, cheapest: least compute in a loss",
    )
    cascade: CascadeSettings = Field(default_factory=CascadeSettings)
    decision: DecisionSettings = Field(default_factory=DecisionSettings)
    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    classify: ClassifySettings = Field(default_factory=ClassifySettings)
    promote: PromoteSettings = Field(default_factory=PromoteSettings)

    @field_validator("poolings")
    @classmethod
    def _known_poolings(cls, poolings: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = set(poolings or ()) - set(POOLINGS)
        if unknown or poolings == ():
            raise ValueError(f"expected some of {', '.join(POOLINGS)}")
        return poolings

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"expected one of {', '.join(METRICS)}")
        return metric


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file; each override is `a.b=value`, its value read as YAML.

    Raises UserError that names the key, what was found and what was expected.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no settings file at {path}; `spin init {path}` writes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise UserError(f"{path} cannot be read as YAML: {_reason(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}, expected a mapping of settings")
    for override in overrides:
        _override(tree, override)
    return parse_settings(tree, str(path))


def parse_settings(tree: dict[str, Any], origin: str = "settings") -> Settings:
    """Settings from a mapping. Raises UserError with every mistake in one line."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_say(e) for e in error.errors())) from None


def _override(tree: dict[str, Any], override: str) -> None:
    shown = "***" if holds_password(override) else override
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {shown}: expected a.b=value")
    *parents, last = path.split(".")
    for key in parents:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {shown}: '{key}' is a value, it has no '{last}'")
        tree = child
    try:
        tree[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"--set {shown}: {_shown(value)} is not YAML") from None


def _say(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting '{key}'"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}' is {_shown(error['input'])}: {error['msg'].removeprefix('Value error, ')}"


def _shown(value: object) -> str:
    """A value in a message: as it was typed, but never a password."""
    return "'***'" if holds_password(repr(value)) else repr(value)


def _reason(error: Exception) -> str:
    """What is wrong with a YAML file, and where; not the line itself, in which a password may stand."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
