"""The record of an audit at a version: a run with figures and files, and a section of the version's description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.registry.packaging import DESCRIPTION_LIMIT, cut_card

_HEADING, _SECTION = "\n\n## Audits\n", "\n### "


@dataclass(frozen=True)
class AuditRecord:
    """The outcome of an audit of one version."""

    kind: str
    """`robustness`; a later audit of the same kind replaces its section"""
    summary: str
    """some sentences with the main figures, in Markdown"""
    metrics: Mapping[str, float]
    """of the MLflow run, by name"""
    files: Mapping[str, str]
    """of the MLflow run: text by file name"""

    def add_to(self, description: str) -> str:
        """The description of a version with the summary under the heading `Audits`, within MLflow's limit.

        The card before it is cut where there is no room for both.
        """
        card, _, sections = description.partition(_HEADING)
        audits = dict(section.split("\n", 1) for section in sections.split(_SECTION) if "\n" in section.strip())
        audits[self.kind] = self.summary
        listed = "\n".join(f"{_SECTION}{kind}\n\n{text.strip()}" for kind, text in sorted(audits.items()))
        return cut_card(card, DESCRIPTION_LIMIT - len(_HEADING + listed)) + _HEADING + listed
