"""Summaries of classifiers that tests build by hand."""

from __future__ import annotations

from typing import Any

from spin.fitted.fitted_classifier import ChoiceSummary


def build_choice_summary(**changes: Any) -> ChoiceSummary:
    """Return a summary with plausible figures, of which `changes` replaces some."""
    figures: dict[str, Any] = {
        "depth": 3,
        "compute": 0.5,
        "eta": 0.5,
        "part": (),
        "strength": 1.0,
        "neurons": 7,
        "words": False,
        "valid_score": 0.9,
        "head": "linear",
        "valid_log_loss": 0.3,
        "shares": {"neurons": 1.0},
        "valid_ece": 0.02,
        "exits": (),
    }
    return ChoiceSummary(**figures | changes)
