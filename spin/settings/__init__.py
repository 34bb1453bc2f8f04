"""The settings of a project: frozen pydantic models that are read from one YAML file. An unknown key is an error.

The first line of each class docstring and every `description=` are what `spin init` and the JSON Schema show.
"""

from __future__ import annotations

from spin.settings.backbone_settings import OF_INT8, TRAINED_SETTINGS, BackboneSettings, Precision, choose_precision
from spin.settings.credentials import holds_password, holds_secret, holds_user_part, mask_credentials
from spin.settings.data_settings import DataSettings
from spin.settings.night_settings import ClassifySettings, MetricsSettings
from spin.settings.project_settings import METRICS, Choice, ClassifierSettings, Metric, Settings
from spin.settings.registry_settings import MlflowSettings, PromoteSettings, RegistrySettings
from spin.settings.settings_file import load_settings, parse_section, parse_settings
from spin.settings.store_settings import StoreSettings
from spin.settings.training_settings import (
    CascadeSettings,
    DecisionSettings,
    ProbeSettings,
    SearchSettings,
    TrainSettings,
)
from spin.settings.worker_settings import RaySettings, Stage, StageSettings

__all__ = [
    "METRICS",
    "OF_INT8",
    "TRAINED_SETTINGS",
    "BackboneSettings",
    "CascadeSettings",
    "Choice",
    "ClassifierSettings",
    "ClassifySettings",
    "DataSettings",
    "DecisionSettings",
    "Metric",
    "MetricsSettings",
    "MlflowSettings",
    "Precision",
    "ProbeSettings",
    "PromoteSettings",
    "RaySettings",
    "RegistrySettings",
    "SearchSettings",
    "Settings",
    "Stage",
    "StageSettings",
    "StoreSettings",
    "TrainSettings",
    "choose_precision",
    "holds_password",
    "holds_secret",
    "holds_user_part",
    "load_settings",
    "mask_credentials",
    "parse_section",
    "parse_settings",
]
