"""A night whose labels people have checked in part."""

from __future__ import annotations

from dataclasses import dataclass

from spin.monitor.quality import Estimate


@dataclass(frozen=True)
class ScoredNight:
    """A night that was checked in part: its accuracy beside the one that it had estimated."""

    date: str
    """YYYY-MM-DD"""
    model: str
    """registered name of the model"""
    model_version: str
    """version of the model"""
    run: str
    """name of the run"""
    checked: int
    """documents with a label of people"""
    right: int
    """checked documents whose label is right"""
    accuracy: Estimate | None = None
    """of all labels of the night, by the checked ones; None where no document of one stratum was checked"""
    estimated: Estimate | None = None
    """what the night had estimated without labels, if it had"""
