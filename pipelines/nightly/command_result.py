"""The result of a command for its models: the reports of their nights, and what has failed or drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.nightly.report.night_report import NightReport
from pipelines.service_errors import DriftError
from spin.errors import SpinError, describe_error, exit_status
from spin.settings import BackboneSettings


@dataclass(frozen=True)
class NightFailure:
    """The failure of a model's night, before or after it was published."""

    model: str
    """name of the registered model"""
    error: Exception

    @property
    def status(self) -> int:
        """Exit status of the error."""
        return exit_status(self.error)

    @property
    def message(self) -> str:
        """The error in one line."""
        return str(self.error) if isinstance(self.error, SpinError) else describe_error(self.error)


@dataclass(frozen=True)
class CommandResult:
    """The result of a command for its models."""

    models: tuple[str, ...]
    """names of the registered models, in order"""
    reports: tuple[NightReport, ...]
    """reports of the nights that are published, in order of model"""
    failures: tuple[NightFailure, ...]
    """what has failed, in order of model"""
    backbones: Mapping[str, BackboneSettings] = field(default_factory=dict)
    """settings of the backbone by model: that of the command's settings, or the model's own"""

    def raise_failures(self) -> None:
        """Raise the error with the highest exit status, if there is one; of several models, the message names each.

        That of drift counts as the lowest: it says that a night is published, and must not hide that another one is
        not.
        """
        if not self.failures:
            return
        worst = max(self.failures, key=lambda failure: (failure.status != DriftError.status, failure.status))
        if len(self.models) == 1:
            raise worst.error
        kind = type(worst.error) if isinstance(worst.error, SpinError) else SpinError
        ordered = [worst, *(failure for failure in self.failures if failure is not worst)]
        raise kind("; ".join(f"model {failure.model}: {failure.message}" for failure in ordered)) from worst.error


def check_drift(report: NightReport) -> None:
    """Raise DriftError, with the properties that have drifted, for the report of a published night."""
    moved = [f"{drift.name} ({drift.psi:.2f}, limit {drift.limit:.2f})" for drift in report.drift if drift.drifted]
    if moved:
        raise DriftError(
            f"the night of {report.date} is published, but it drifted from training: {', '.join(moved)}; see "
            f"{report.output}/_runs/{report.run}/report.html"
        )
