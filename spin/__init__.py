"""Classify text with the salient inner neurons of a frozen language model."""

from spin.classifier import SpinClassifier
from spin.errors import SpinError
from spin.pages.explanation import Explanation, stretches
from spin.settings import Settings, load_settings

__all__ = ["Explanation", "Settings", "SpinClassifier", "SpinError", "load_settings", "stretches"]
