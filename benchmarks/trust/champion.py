"""The champion of the quickstart on tweets, and texts that it has never seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.quickstart import run_quickstart
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import Registry
from spin.classifier import TrainedClassifier
from spin.settings import Settings, load_settings


@dataclass(frozen=True)
class Champion:
    """A champion with the evaluation set that no choice has seen."""

    settings: Settings
    registry: Registry
    number: str
    evaluation_set: EvaluationSet

    def classifier(self, *, exits: bool) -> TrainedClassifier:
        """The classifier, with or without early exits."""
        classify = self.settings.classify.model_copy(update={"cascade": exits})
        return Registry(self.settings.model_copy(update={"classify": classify})).load(self.number)


def open_champion(folder: Path) -> Champion:
    """Run the quickstart in a folder, which takes seconds if it is finished, and open its champion."""
    run_quickstart(folder)
    settings = load_settings(folder / "settings.yaml")
    registry = Registry(settings)
    evaluation_set = registry.evaluation_set()
    assert evaluation_set, "the quickstart freezes its test documents"
    return Champion(settings, registry, registry.resolve(), evaluation_set)
