"""The figures of a night that are logged to MLflow under the version that classified it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.registry.logged_data import LoggedData


@dataclass(frozen=True)
class ShadowSummary:
    """The agreement with a second version that classified the same documents without publishing."""

    version: str
    agreement: float | None
    """share of the documents with the same label; None where no document was compared"""


@dataclass(frozen=True)
class NightSummary:
    """One published night."""

    date: str
    """YYYY-MM-DD"""
    run: str
    """name of the run within the output"""
    output: str
    """URI"""
    fingerprint: str
    """of the plan"""
    rows: int
    """documents of the input, dead letters included"""
    predicted: int
    abstained: int
    dead: int
    """dead letters"""
    tokens: int
    truncated: int
    """documents that were not read to their end"""
    depths: Mapping[str, int]
    """documents by the number of blocks that ran for them; -1: their words alone decided"""
    quarantined_files: int
    """files that could not be read"""
    seconds: float
    """in which shards were computed"""
    psi: Mapping[str, float]
    """population stability index against training, by the name of what is compared"""
    quality: Mapping[str, float] = field(default_factory=dict)
    """share of the documents that got a label, and what is estimated of the labels' quality, by metric"""
    shadow: ShadowSummary | None = None
    windows: int = 0
    """windows in which documents were read, 0 where long ones are cut"""
    unread_tokens: int = 0
    """tokens of the documents beyond their last window"""
    data: LoggedData | None = None
    """what the night has read"""

    def tags(self, version: str) -> dict[str, str]:
        """The tags of the MLflow run; no two nights of a version have the same."""
        tags = {
            "spin.version": version,
            "spin.night": self.date,
            "spin.run": self.run,
            "spin.output": self.output,
            "spin.fingerprint": self.fingerprint,
        }
        return tags | ({"spin.shadow": self.shadow.version} if self.shadow else {})

    def metrics(self) -> dict[str, float]:
        """The metrics of the MLflow run."""
        rows = max(1, self.rows)
        metrics = {
            "rows": self.rows,
            "predicted": self.predicted,
            "abstained": self.abstained,
            "dead": self.dead,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "dead_rate": self.dead / rows,
            "quarantined_files": self.quarantined_files,
            "documents_per_s": round(self.rows / max(self.seconds, 1e-3), 2),
            **{f"depth_{depth}": count / rows for depth, count in self.depths.items()},
            **{f"psi_{name}": value for name, value in self.psi.items()},
            **self.quality,
        }
        if self.windows:
            metrics |= {"windows": self.windows, "unread_tokens": self.unread_tokens}
        if self.shadow is not None and self.shadow.agreement is not None:
            metrics["shadow_agreement"] = self.shadow.agreement
        return metrics
