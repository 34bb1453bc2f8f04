"""The sections about versions of a model: `mlflow`, `registry` and `promote`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spin.errors import UserError
from spin.settings.credentials import Uri
from spin.settings.section import Section


class MlflowSettings(Section):
    """The MLflow registry, which keeps every trained version and remembers which one is used."""

    tracking_uri: Uri | None = Field(
        None,
        description="Address of the MLflow server, or a database URI. Default: the environment variable "
        "MLFLOW_TRACKING_URI, else a SQLite file: in `store` if that is a folder, else ./mlflow.db.",
    )
    model: str | None = Field(
        None,
        pattern=r"^[^:/\\%\"']+$",
        description="Name under which this project's versions are registered: one that no other project has, whose "
        "versions would pass for its own.",
    )

    @property
    def name(self) -> str:
        """The registered name. Raises UserError where the settings have none."""
        if self.model is None:
            raise UserError(
                "'mlflow.model' is missing; expected the name under which this project's versions are registered, one "
                "that no other project has, in the settings file or by --set mlflow.model=NAME"
            )
        return self.model


class RegistrySettings(Section):
    """The content of a registered version, and by whose signature it is known."""

    include_backbone: bool = Field(
        True,
        description="Keep the files of the language model with every version. Otherwise they must stay where they "
        "were during training.",
    )
    sign: str | None = Field(
        None,
        description="File with a private key (PEM, elliptic curve) by which versions are signed when they are "
        "registered, and signed again when `spin forget` changes them. It needs the extra `sign`. Default: versions "
        "are not signed.",
    )
    verify: str | None = Field(
        None,
        description="File with the public key by which versions must be signed: promotion, nights and all other "
        "commands refuse a version without a valid signature. It needs the extra `sign`. Default: signatures are not "
        "looked at.",
    )


class PromoteSettings(Section):
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
    max_robustness_loss: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Loss of the metric against the champion that is accepted on perturbed texts (typing errors, "
        "look-alike letters, markup and the like); 0.02 is 2 points. Default: not compared.",
    )
    significance: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Risk that all attempts together ever pass a version that is worse by exactly `max_regression`: "
        "after f others an attempt may spend the share 1 / ((1 + f) (2 + f)) of it. Also used, undivided, for "
        "`max_ece`.",
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
