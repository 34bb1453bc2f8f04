"""Classify text with the salient inner neurons of a frozen language model.

The public names below are imported when they are first used, so that `import spin` and the `spin` command start at
once. The classifier needs PyTorch and transformers, which take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spin.classifier import TrainedClassifier
    from spin.errors import SpinError
    from spin.estimator import SpinClassifier
    from spin.pages.explanation import Explanation, stretches
    from spin.predictions import Predictions
    from spin.settings import Settings, load_settings
    from spin.shared_pass import SharedPass, classify_many

__all__ = [
    "Explanation",
    "Predictions",
    "Settings",
    "SharedPass",
    "SpinClassifier",
    "SpinError",
    "TrainedClassifier",
    "classify_many",
    "load_settings",
    "stretches",
]

_MODULES = {
    "Explanation": "spin.pages.explanation",
    "Predictions": "spin.predictions",
    "Settings": "spin.settings",
    "SharedPass": "spin.shared_pass",
    "SpinClassifier": "spin.estimator",
    "SpinError": "spin.errors",
    "TrainedClassifier": "spin.classifier",
    "classify_many": "spin.shared_pass",
    "load_settings": "spin.settings",
    "stretches": "spin.pages.explanation",
}
"""module that defines each public name"""


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'spin' has no attribute '{name}'")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
