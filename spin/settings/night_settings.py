"""The sections about nights: `classify`, what one does, and `metrics`, where the figures go that outlive a command."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from spin.settings.credentials import Uri
from spin.settings.section import Section

_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = ("bound", "instance", "job", "model", "output", "property", "reason", "run", "version")
"""labels that the figures have already"""


class ClassifySettings(Section):
    """A night: one run of `spin classify` over a batch of documents."""

    max_bad_files: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the files of a run that may be unreadable; above it the night ends with status 4. Files "
        "that an incremental run skips do not count, nor do those that an earlier night has quarantined.",
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
    drift_documents: int = Field(
        3,
        ge=0,
        le=20,
        description="Ids that the report names per neuron that drifted: of the documents, among a sample of about a "
        "thousand, whose values lie farthest in the direction of the shift. 0: none.",
    )
    drift_words: bool = Field(
        False,
        description="Name per neuron that drifted also the words that are more frequent in such documents than in the "
        "others of the sample. They are part of the texts, for everyone who may read the output or its runs in MLflow.",
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
    reasons_for: Literal["all", "unsure"] = Field(
        "all",
        description="Predictions that have reasons: all of them, or unsure, only those that no early exit was sure of, "
        "which saves time.",
    )
    dead_letter_text: bool = Field(
        False, description="Write the texts of dead letters into the output, for everyone who may read it."
    )


class MetricsSettings(Section):
    """The figures of the last night, for Prometheus: its date, its documents, its drift, and whether it failed."""

    pushgateway: Uri | None = Field(
        None,
        description="Address of a Prometheus Pushgateway, such as http://pushgateway:9091, that gets the figures at "
        "the end of every night. Default: none.",
    )
    textfile: str | None = Field(
        None,
        description="Folder of the textfile collector of a node_exporter, in which the figures of each model are "
        "written to spin_night_MODEL-DIGEST.prom at the end of every night. Default: none.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Labels that distinguish the figures of several projects, such as {environment: staging}: "
        "figures with the same labels, model and output replace each other.",
    )

    @field_validator("labels")
    @classmethod
    def _check_names(cls, labels: dict[str, str]) -> dict[str, str]:
        """Raise ValueError for a name that Prometheus does not take, or that the figures have themselves."""
        for name in labels:
            if not _LABEL.fullmatch(name) or name in _TAKEN:
                raise ValueError(
                    f"'{name}' is no label; expected letters, digits and _, not beginning with a digit or __, and none "
                    f"of {', '.join(_TAKEN)}"
                )
        return labels
