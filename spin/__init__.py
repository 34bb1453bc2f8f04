"""Classify text with the salient inner neurons of a frozen language model."""

from spin.classifier import SpinClassifier
from spin.errors import SpinError
from spin.settings import Settings, load_settings

__all__ = ["Settings", "SpinClassifier", "SpinError", "load_settings"]
