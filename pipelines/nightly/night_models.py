"""The models of a night and their shadows: their versions, artifacts and backbones, and what changes predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from pipelines.nightly.steps.classify_job import ShadowJob
from pipelines.nightly.steps.shadow import ShadowSpec, choose_shadow, find_own_backbone, resolve_shadow
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.workers import weights_cache
from pipelines.workers.artifact_copy import ArtifactCopy
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.fitted.persistence import ClassifierMetadata
from spin.settings import BackboneSettings, DecisionSettings, Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestedModel:
    """A registered model that a command is to classify with."""

    registry: Registry
    model: str | None = None
    """`models:/NAME@ALIAS` or `models:/NAME/N`, the champion if it is None"""
    shadow: str | None = None
    """version that is its shadow, see `resolve_shadow`"""

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.registry.name


@dataclass(frozen=True)
class ChosenVersion:
    """The version of a registered model that classifies a night."""

    registry: Registry
    version: str
    shadow: str | None
    """version of its shadow, None without one"""


@dataclass(frozen=True)
class NightModel:
    """A model of a night and its shadow, downloaded."""

    registry: Registry
    """registry of both versions"""
    version: str
    metadata: ClassifierMetadata
    folder: Path
    """folder that contains `model/` and, if there is a shadow, `shadow/`"""
    settings: Settings
    """settings of the night, with an engine and with the backbone of the model"""
    decision: DecisionSettings
    """how the model decides, with the band that keeps a promised error"""
    shadow: ShadowSpec | None = None

    @cached_property
    def artifact(self) -> str:
        """The digest of the classifier: two registries may give the same name and number to different versions."""
        return persistence.digest_artifact(self.folder / "model")

    def plan_metadata(self, source: str) -> dict[str, object]:
        """What changes predictions beside the classifier: not the number of workers, logging or permitted failures."""
        registry, version, digest = self.registry, self.version, self.metadata.backbone_digest
        settings = self.settings
        metadata: dict[str, object] = {
            # guarded by test_a_night_does_not_resume_with_another_model_version; broken by:
            #   "model": {"name": registry.name},
            "model": {"name": registry.name, "version": version, "backbone": digest},
            "choose": settings.choose,
            "decision": self.decision.model_dump(exclude_none=True),
            "backbone": weights_cache.activation_settings(settings.backbone),
            "data": {
                **settings.data.model_dump(include={"id", "text", "ids", "keep"}),
                **settings.data.file_format(),
                "input": source,
            },
            "shard_documents": settings.ray.shard_documents,
            "cascade": settings.classify.cascade,
            "dead_letter_text": settings.classify.dead_letter_text,
            "reasons": settings.classify.reasons,
            "reasons_for": settings.classify.reasons_for,
        }
        return metadata if self.shadow is None else {**metadata, "shadow": self.shadow.metadata()}

    def share(self, store: Store, driver: str) -> tuple[ArtifactCopy, ShadowJob | None]:
        """Write the artifacts to the store of a run or a pass and announce the weights, so that workers can load them.

        `driver` distinguishes what this driver writes there for this model.
        """
        weights_cache.publish(self.settings, self.metadata.backbone_digest)
        model = self._copy("model", store, driver)
        if self.shadow is None:
            return model, None
        weights_cache.publish(self.shadow.settings(self.settings), self.shadow.digest)
        return model, ShadowJob(self.shadow, self._copy("shadow", store, driver))

    def _copy(self, name: str, store: Store, driver: str) -> ArtifactCopy:
        names = (persistence.CONFIG, persistence.TENSORS)
        files = {file: (self.folder / name / file).read_bytes() for file in names}
        return ArtifactCopy.write(store / f"{name}/{driver}", files)


def choose_versions(requested: Sequence[RequestedModel]) -> list[ChosenVersion]:
    """The versions of some models, in order of name. Raises UserError unless the registered names differ.

    Raises UserError also if several of them have a shadow.
    """
    names = sorted(each.name for each in requested)
    if twice := [name for name, following in pairwise(names) if name == following]:
        raise UserError(
            f"--model: {twice[0]} is given twice; expected models of different registered names, each with a night of "
            "its own. A second version of one model can be its --shadow"
        )
    shadows = [each.name for each in requested if each.shadow is not None]
    if len(shadows) > 1:
        raise UserError(f"--shadow: {', '.join(sorted(shadows))} have one each; expected a shadow of one of the models")
    chosen = []
    for each in sorted(requested, key=lambda each: each.name):
        version = each.registry.resolve(each.model)
        shadow = None if each.shadow is None else resolve_shadow(each.registry, each.shadow, version)
        chosen.append(ChosenVersion(each.registry, version, shadow))
    return chosen


def download_model(chosen: ChosenVersion, folder: Path, given: Settings) -> NightModel:
    """Download a model and its shadow to a new folder.

    `given` are the settings of the command; the model has an engine for its own precision. One that was trained on
    another backbone has the one that its artifact names. Raises UserError for a backbone that cannot be found, for a
    decision that the model cannot take, and if the shadow does not fit the model.
    """
    folder.mkdir()
    metadata = persistence.read_metadata(_download(chosen.registry, chosen.version, folder / "model"))
    if not _is_backbone(given.backbone, metadata):
        try:
            own = find_own_backbone(metadata.backbone, metadata.backbone_digest, given.backbone)
        except UserError as error:
            raise UserError(f"version {chosen.version} of {chosen.registry.name} cannot be used: {error}") from None
        given = given.model_copy(update={"backbone": own})
    settings = weights_cache.with_engine(given, "classify", metadata.backbone.dtype)
    decision = TrainedClassifier.open(folder / "model", settings).decision
    shadow = None
    if chosen.shadow is not None:
        shadow_folder = _download(chosen.registry, chosen.shadow, folder / "shadow")
        shadow = choose_shadow(chosen.shadow, shadow_folder, metadata, settings)
    return NightModel(chosen.registry, chosen.version, metadata, folder, settings, decision, shadow)


def _download(registry: Registry, version: str, folder: Path) -> Path:
    folder.mkdir()
    registry.download(version, folder)
    persistence.require_format(folder, f"version {version} of {registry.name}")
    return folder


def _is_backbone(backbone: BackboneSettings, metadata: ClassifierMetadata) -> bool:
    """Whether settings name the backbone of a model; by name and revision if its weights are not on this machine."""
    try:
        return weights_cache.local_digest(backbone) == metadata.backbone_digest
    except UserError:
        _log.debug("the weights of %s are not on this machine", backbone.model, exc_info=True)
        trained = metadata.backbone
        return (backbone.model, backbone.revision) == (trained.model, trained.revision)
