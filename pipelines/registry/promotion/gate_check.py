"""One check of the gate: a figure, its limit, and what to do where it fails."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GateCheck:
    """One figure compared with its limit."""

    name: str
    """as in the tags `spin.gate.NAME` of a version"""
    value: float
    """NaN where it cannot be measured; that does not pass"""
    limit: float
    measured: str
    """the value as a person reads it"""
    expected: str
    """the limit as a person reads it"""
    remedy: str
    """what to do where the check fails"""
    at_most: bool = False
    """whether the limit is the largest value that passes, not the smallest"""

    @property
    def passed(self) -> bool:
        """Whether the value reaches the limit, or with `at_most` does not exceed it."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """The check as in gate.json."""
        values = asdict(self) | {"value": self.value if math.isfinite(self.value) else None, "passed": self.passed}
        return {"found" if name == "measured" else name: value for name, value in values.items()}
