"""The settings of a project: frozen pydantic models that are read from one YAML file. An unknown key is an error.

The first line of each class docstring and every `description=` are what `spin init` and the JSON Schema show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from spin.errors import UserError

Choice = Literal["accuracy", "balanced", "cheapest"]
"""the three classifiers that every training chooses"""
Stage = Literal["extract", "probe", "train", "classify"]
Pooling = Literal["first", "last", "mean", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
"""ways to make one vector per document of the vectors of its tokens"""
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""figures by which a training can make its choices"""
Share = Annotated[float, Field(gt=0, lt=1)]
"""a number above 0 and below 1"""
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TRAINED_SETTINGS = ("max_tokens", "long_texts", "window_overlap", "max_windows", "pool_special_tokens")
"""settings of a backbone that a classifier keeps from its training, since they decide what its neurons do"""
_PASSWORD = re.compile(r"://[^:/?#@\s]*:[^@]+@|[?&]\w*pass(word|wd)?=", re.IGNORECASE)
"""a password in a URI: after the name of a user, with or without a slash in it, or as a parameter"""
_USER_PART = re.compile(r"://(?:[^/?#\s]*|[^:/?#@\s]*:[^@\s]*)@")
"""the part of a URI before @: the name of a user, a token, or a user and a password, which may hold a slash"""
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:pass(?:word|wd)?|token|secret|signature|credential)=)[^&\s'\"]*", re.IGNORECASE
)


def holds_password(text: str) -> bool:
    """Return whether a text holds a URI with a password."""
    return _PASSWORD.search(text) is not None


def holds_user_part(text: str) -> bool:
    """Return whether a text holds a URI with a part before @: the name of a user, or a token in its place."""
    return _USER_PART.search(text) is not None


def mask_credentials(text: str) -> str:
    """Return a text for a message or a log, with asterisks for what may be a credential in its URIs.

    That is everything before an @, since a token may stand in the place of the user, and parameters named like secrets.
    """
    return _SECRET_PARAMETER.sub(r"\1***", _USER_PART.sub("://***@", text))


def _without_password(uri: str) -> str:
    if holds_password(uri):
        raise ValueError(
            "a password stands in it; expected none: it comes from the environment "
            "(MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY)"
        )
    return uri


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("expected at least one")
    return values


def _word_of_yaml(value: Any) -> Any:
    """YAML reads a bare `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Uri = Annotated[str, AfterValidator(_without_password)]
"""a location; it may hold the name of a user but no password"""


def _with_types(columns: Any) -> Any:
    """A list of names as a mapping from names to no type."""
    if isinstance(columns, dict):
        return columns
    if not isinstance(columns, (list, tuple)):
        raise ValueError("expected a list of names, or names with types")
    if len(set(map(str, columns))) < len(columns):
        raise ValueError("expected every name once")
    return dict.fromkeys(columns)


_SCALAR = r"(string|bool|int(8|16|32|64)|float(32|64)|date|timestamp|decimal\(([1-9]|[12]\d|3[0-8]), ?\d{1,2}\))"
_TYPE = rf"^({_SCALAR}|list<{_SCALAR}>)$"


def _type_of_output(name: str) -> str:
    if not re.match(_TYPE, name):
        raise ValueError(
            "expected string, bool, int8, int16, int32, int64, float32, float64, decimal(P,S), date, timestamp or "
            "list<TYPE>"
        )
    return name


_KEPT_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "object", "additionalProperties": {"type": ["string", "null"], "pattern": _TYPE}},
    ]
}
KeptColumns = Annotated[
    dict[str, Annotated[str, AfterValidator(_type_of_output)] | None],
    BeforeValidator(_with_types),
    WithJsonSchema(_KEPT_SCHEMA),
]
"""names of columns, each with a type or None; in the file also a list of names"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        """A section that holds comments alone is null in YAML: all of its settings have their defaults."""
        return {} if value is None else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """In the JSON Schema too, a section without required settings may be null."""
        schema = handler(core_schema)
        section = handler.resolve_ref_schema(schema)
        if "required" not in section:
            section["type"] = ["object", "null"]
        return schema


class BackboneSettings(_Section):
    """The language model. Its weights are never changed; the classifier reads what its neurons do."""

    model: str = Field(
        description="Which model: the id of a model on Hugging Face, a directory with its files, a .gguf file, or "
        "package:IMPORT_NAME/PATH for files inside an installed Python package."
    )
    revision: str | None = Field(
        None,
        description="Version of a Hugging Face model: a commit, tag or branch. Name a commit, so that the weights "
        "cannot change. Default: the newest.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Precision in which the model computes. auto: bfloat16 where the hardware computes in it, else "
        "float32. int8 is for `spin classify` alone and needs the extra `openvino`.",
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="Library that runs the model. auto: OpenVINO on a processor, where it is installed and agrees "
        "with PyTorch in a trial; else PyTorch.",
    )
    max_tokens: int = Field(
        256, ge=4, description="Length limit in tokens, of a text or, with `long_texts: windows`, of a window of it."
    )
    long_texts: Literal["cut", "windows"] = Field(
        "cut",
        description="How a text of more than `max_tokens` is read. cut: its end is cut off; such texts are counted. "
        "windows: in windows of `max_tokens` each, whose activations are pooled as those of one text.",
    )
    window_overlap: int = Field(
        32,
        ge=0,
        description="With windows: tokens at the end of a window that the next one reads again as context. They are "
        "pooled once.",
    )
    max_windows: int = Field(
        16,
        ge=1,
        description="With windows: number of windows of a text that are read. The tokens of a text beyond them are "
        "not read, and counted per row and per night.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens per forward pass, padding included. Default: as many as the memory of a GPU has room "
        "for, 2048 on a processor.",
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N. auto: a GPU where workers are given one (ray.gpus_per_worker), "
        "else the processor; in Python, a GPU if there is one.",
    )
    compile: bool = Field(
        False,
        description="On a GPU, compile the model, which takes each worker about a minute, and use the compiled one "
        "where it is clearly faster.",
    )
    pool_special_tokens: bool = Field(
        False,
        description="Let the poolings mean and max include special tokens and the first position of a decoder. "
        "Default: they cover the tokens of the text alone.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model. Only for a model whose code you have read. "
        "Default: a model that needs it is refused.",
    )

    @model_validator(mode="after")
    def _windows_advance(self) -> BackboneSettings:
        if self.long_texts == "windows" and self.window_overlap >= self.max_tokens:
            raise ValueError(
                f"window_overlap {self.window_overlap}: expected less than max_tokens, which is {self.max_tokens}, so "
                "that every window reads something new"
            )
        return self


class DataSettings(_Section):
    """The labelled text to learn from, in Parquet, JSONL or CSV files."""

    train: Uri = Field(description="Where it is: a file, a folder, a pattern such as data/*.parquet, or s3://…")
    id: str = Field("id", description="Column with an id that is unique per document.")
    text: str = Field("text", description="Column with the text.")
    label: str = Field(
        "label",
        description="Column with the class. A list of classes per document makes the task multi-label.",
    )
    split: str | None = Field(
        None,
        description="Column that says how a document is used: train (to learn), valid (to choose between candidates) "
        "or test (for the final figures). Default: a hash of the text decides, so that near-identical texts are used "
        "in the same way.",
    )
    group: str | None = Field(
        None,
        description="Column with what documents have in common, such as an author or a thread. Documents with the same "
        "value are used in the same way: its hash decides, or that of the text where it is null. Default: none.",
    )
    valid_fraction: float = Field(
        0.15, gt=0, lt=0.5, description="Without a split column: share of documents used to choose between candidates."
    )
    test_fraction: float = Field(
        0.15, ge=0, lt=0.5, description="Without a split column: share of documents used for the final figures."
    )
    ids: Literal["checked", "trusted"] = Field(
        "checked",
        description="checked: a night looks for duplicate ids before it classifies. trusted: it does not, which "
        "saves one pass over the ids.",
    )
    keep: KeptColumns = Field(
        {},
        description="Further columns that a night carries into predictions and dead letters: a list of names, such as "
        "[lang, source], or names with types, such as {priority: int64}. Types: string, bool, int8 to int64, float32, "
        "float64, decimal(P,S), date, timestamp (UTC) and list<TYPE>. Default of a type: the one in a Parquet file, "
        "string from JSONL and CSV.",
    )


class ProbeSettings(_Section):
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
        2, ge=0, description="Number of still smaller penalties, tried only while they improve the validation score."
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


class SearchSettings(_Section):
    """The candidates that a training compares on the validation documents to choose the classifier."""

    documents: int = Field(
        20_000,
        ge=100,
        description="Labelled documents that neurons are ranked and candidates are compared on: a stratified sample if "
        "there are more. The heads on neurons that were chosen are then fitted on all of them.",
    )
    rules: Annotated[tuple[Literal["l1", "ridge"], ...], AfterValidator(_not_empty)] = Field(
        ("l1", "ridge"),
        description="What measures the importance of neurons. l1: sparse probes of one site each, which suit many "
        "clean labels; ridge: a regression on all neurons at once, which suits few or wrong labels. The better one on "
        "the validation documents is used.",
    )
    etas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_not_empty)] = Field(
        (0.3, 0.5, 0.7, 0.9),
        description="Shares of the importance (by l1 of each probe, by ridge of all neurons together) that the "
        "selected neurons must hold together; more keeps more neurons.",
    )
    max_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Largest share of all neurons that a classifier may use; an eta that would select more is lowered.",
    )
    max_neurons: int = Field(
        16_000,
        ge=1,
        description="Largest number of neurons that a classifier may use, which bounds the memory of training whatever "
        "the size of the backbone.",
    )
    strengths: Annotated[tuple[Strength, ...], AfterValidator(_not_empty)] = Field(
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
    l1: tuple[Share, ...] = Field(
        (0.01, 0.03),
        description="L1 penalties tried on the best classifier to drop further neurons, as shares of the penalty "
        "that drops all. An empty list tries none.",
    )
    head: Literal["auto", "linear", "mlp"] = Field(
        "auto",
        description="Kind of classifier on the selected neurons. auto: linear, or a small neural network (mlp) where "
        "a paired test on the validation documents shows that it is better.",
    )
    balanced_loss: float = Field(
        0.003,
        ge=0,
        description="Loss of the metric that `choose: balanced` accepts to compute less; 0.003 is 0.3 points.",
    )
    cheapest_loss: float = Field(
        0.02, ge=0, description="Loss of the metric that `choose: cheapest` accepts to compute less; 0.02 is 2 points."
    )


class CascadeSettings(_Section):
    """Early exits: a document whose class is certain by its words, or after a few blocks, skips the (other) blocks."""

    max_loss: float = Field(
        0.002,
        ge=0,
        lt=1,
        description="Loss of the metric that all exits together may cause; 0.002 is 0.2 points. 0: no exits.",
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


class TrainSettings(_Section):
    """The comparison at the end of a training, on the test documents."""

    baselines: bool = Field(
        True,
        description="Fit the simpler classifiers that the new one is compared with, on at most 20,000 training "
        "documents. It changes no classifier; a training that has finished keeps the table that it has.",
    )


class DecisionSettings(_Section):
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


class MlflowSettings(_Section):
    """The MLflow registry, which keeps every trained version and remembers which one is used."""

    tracking_uri: Uri | None = Field(
        None,
        description="Address of the MLflow server, or a database URI. Default: the environment variable "
        "MLFLOW_TRACKING_URI, else a SQLite file: in `store` if that is a folder, else ./mlflow.db.",
    )
    model: str = Field(
        "spin", pattern=r"^[^:/\\%\"']+$", description="Name under which this project's versions are registered."
    )


class RegistrySettings(_Section):
    """What a registered version contains."""

    include_backbone: bool = Field(
        True,
        description="Keep the files of the language model with every version. Otherwise they must stay where they "
        "were during training.",
    )


class StageSettings(_Section):
    """Workers of a single stage, for example GPUs for extract alone. null: as set above for all stages."""

    workers: int | None = Field(
        None, ge=0, description="Like ray.workers, but for this stage alone. Default: ray.workers."
    )
    min_workers: int | None = Field(
        None, ge=1, description="Like ray.min_workers, but for this stage alone. Default: ray.min_workers."
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="Like ray.cpus_per_worker, but for this stage alone. Default: ray.cpus_per_worker."
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Like ray.gpus_per_worker, but for this stage alone. Default: ray.gpus_per_worker.",
    )


class RaySettings(_Section):
    """The workers: processes that Ray starts, on this machine or on the nodes of a cluster."""

    address: str | None = Field(
        None,
        description="Address of a running Ray cluster; auto finds the one that this machine is part of. Default: Ray "
        "starts on this machine.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Largest number of workers per stage. 0: a stage runs in the process of the command, without Ray, "
        "which is quicker for trials and small corpora; a document that kills this process is not found. Default: as "
        "many as the CPUs and GPUs allow.",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Smallest number of workers with which a stage goes on when nodes are lost. Default: `workers`, "
        "or 1 where that is not set.",
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs, and PyTorch threads, per worker.")
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=1,
        description="GPUs per worker. 0: no GPU is used, even if there is one. 0.5: two workers share one, so that "
        "one reads text while the other computes.",
    )
    retry_seconds: float = Field(
        120, ge=0, description="Seconds for which a shard is tried again while its object store does not answer."
    )
    stall_seconds: float = Field(
        3600, gt=0, description="Seconds without any finished shard after which a stage ends with an error."
    )
    shard_documents: int = Field(
        8192,
        ge=1,
        description="Documents per shard, the unit of work that a worker takes; fewer where the activations of a "
        "document are large, or where they hold more than 64 MB of text.",
    )
    extract: StageSettings = Field(default_factory=StageSettings)
    probe: StageSettings = Field(default_factory=StageSettings)
    train: StageSettings = Field(default_factory=StageSettings)
    classify: StageSettings = Field(default_factory=StageSettings)

    def for_stage(self, stage: Stage) -> RaySettings:
        """Return these settings with those of one stage in place of the general ones."""
        own: StageSettings = getattr(self, stage)
        return self.model_copy(update=own.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def _min_workers_at_most_workers(self) -> RaySettings:
        for stage in get_args(Stage):
            ray = self.for_stage(stage)
            if ray.workers is not None and ray.min_workers is not None and ray.min_workers > ray.workers:
                raise ValueError(
                    f"min_workers of {stage} is {ray.min_workers}, workers {ray.workers}; expected at least min_workers"
                )
        return self


class ClassifySettings(_Section):
    """A night: one run of `spin classify` over a batch of documents."""

    max_bad_files: float = Field(
        0.1, ge=0, le=1, description="Share of files that may be unreadable; above it the night ends with status 4."
    )
    max_dead_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of documents that may be dead letters (documents that cannot be classified); above it the "
        "night ends with status 4.",
    )
    max_psi: float = Field(
        0.1,
        gt=0,
        description="Drift limit: the population stability index, which compares the documents of a night with those "
        "of the training. Above the limit, by more than chance explains, drift is reported.",
    )
    fail_on_drift: bool = Field(
        False, description="End with status 7 where drift is reported. The night is published all the same."
    )
    cascade: bool = Field(True, description="Use the early exits that training chose.")
    reasons: int = Field(
        0,
        ge=0,
        le=100,
        description="Words, and as many neurons, that a prediction names as its reasons: those with the largest "
        "contributions for or against its class. The words are part of the text, for everyone who may read the output. "
        "0: none, which saves a tenth of the time, more where words count beside neurons.",
    )
    dead_letter_text: bool = Field(
        False, description="Write the texts of dead letters into the output, for everyone who may read it."
    )


class PromoteSettings(_Section):
    """The gate: what a new version must show before `spin promote` makes it the champion, the version in use."""

    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Lowest value of the metric on the frozen evaluation set, the test documents of the first "
        "training. Default: it must beat a classifier that gives every document the same label.",
    )
    max_regression: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Loss of the metric against the champion, and against the best champion so far, that is accepted; "
        "0.01 is 1 point.",
    )
    significance: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Risk of passing a version that is worse by exactly `max_regression`, divided by one plus the "
        "number of attempts that failed since the last change of champion; also used, undivided, for `max_ece`.",
    )
    class_floors: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="Lowest F1 by class, from 0 to 1, such as {spam: 0.8}. Default: none."
    )
    max_ece: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Largest expected calibration error: the average gap between probability and share of right "
        "answers. A larger value fails only if chance cannot explain it.",
    )
    min_docs_per_s: float = Field(0, ge=0, description="Lowest speed, in documents per second in one process.")
    timeout_seconds: float = Field(
        3600,
        gt=0,
        description="Time limit for a version to load and predict the evaluation set, in a process of its own that is "
        "ended after it; the command then ends with status 6.",
    )


class Settings(_Section):
    """Settings of a SPIN project."""

    backbone: BackboneSettings
    data: DataSettings
    store: Uri = Field(
        description="Where features, probes, the trained model and its report are kept: a folder or s3://BUCKET/PREFIX."
    )
    sites: tuple[str, ...] = Field(
        ("resid", "ffn"),
        description="Neurons that are read. resid: the residual stream after every block; ffn: the inner neurons of "
        "every feed-forward layer; ffn.03: those of block 3 alone.",
    )
    poolings: Annotated[tuple[Pooling, ...], AfterValidator(_not_empty)] | None = Field(
        None,
        description="How the values of a neuron on all tokens of a text become one value: any of mean, max, first "
        "(token) and last (token). Default: mean and max for encoders, last and mean for decoders.",
    )
    extract: Literal["all", "two_pass", "auto"] = Field(
        "auto",
        description="What training stores of the documents. all: every neuron of every document, so that another "
        "search needs no backbone. two_pass: every neuron of the search.documents that neurons are chosen on, and of "
        "the others only the chosen neurons, by a second pass; that takes about a tenth of the space. auto: two_pass "
        "from five times as many documents on.",
    )
    metric: Metric = Field(
        "macro_f1",
        description="Measure by which probes, thresholds, exits and the kind of head are chosen, and the loss for less "
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
    train: TrainSettings = Field(default_factory=TrainSettings)
    decision: DecisionSettings = Field(default_factory=DecisionSettings)
    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    classify: ClassifySettings = Field(default_factory=ClassifySettings)
    promote: PromoteSettings = Field(default_factory=PromoteSettings)


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file; each override is `a.b=value`, its value read as YAML.

    Raises UserError that names the key, what was found and what was expected.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no settings file at {path}; `spin init {path}` writes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise UserError(f"{path} cannot be read as YAML: {_describe_yaml_error(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}, expected a mapping of settings")
    for override in overrides:
        _override(tree, override)
    return parse_settings(tree, str(path))


def parse_settings(tree: dict[str, Any], origin: str = "settings") -> Settings:
    """Return the settings of a mapping. Raises UserError with every mistake in one line."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_describe_mistake(e) for e in error.errors())) from None


def _override(tree: dict[str, Any], override: str) -> None:
    shown = "***" if holds_password(override) else mask_credentials(override)
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {shown}: expected a.b=value")
    *parents, last = path.split(".")
    for key in parents:
        if tree.get(key) is None:
            tree[key] = {}
        child = tree[key]
        if not isinstance(child, dict):
            raise UserError(f"--set {shown}: '{key}' is a value, it has no '{last}'")
        tree = child
    try:
        tree[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"--set {shown}: {_mask_password(value)} is not YAML") from None


def _describe_mistake(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting '{key}'"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}' is {_mask_password(error['input'])}: {error['msg'].removeprefix('Value error, ')}"


def _mask_password(value: object) -> str:
    """Return a value as it was typed, for a message, or asterisks if it holds a password, or for the user in a URI."""
    return "'***'" if holds_password(repr(value)) else mask_credentials(repr(value))


def _describe_yaml_error(error: Exception) -> str:
    """Return what is wrong with a YAML file, and where, without the line itself, which may hold a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
