"""Forget documents in outputs, in the store of a training, and in the registry."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.forget.training_store import ForgottenInStore, forget_in_store
from pipelines.nightly.forget.forget_nights import ForgottenRows, announce_forgotten, forget_in_output
from pipelines.nightly.forget.rewritten_run import without_documents
from pipelines.nightly.report.night_report import REPORT, NightReport
from pipelines.nightly.report.run_report import render_reports
from pipelines.nightly.tables.night_tables import open_output
from pipelines.nightly.tables.vacuum import models_of
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.file_replacement import (
    replace_evaluation_set,
    replace_night_files,
    replace_version_file,
    require_signing_key,
)
from pipelines.registry.versions import Registry
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json
from pipelines.training.neurons import NEURONS, without_named_documents
from spin.errors import UserError
from spin.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForgottenInRegistry:
    """The rows and files of a registered model that were forgotten."""

    model: str
    """registered name"""
    evaluation: int = 0
    """documents that were removed from the frozen evaluation set"""
    versions: tuple[str, ...] = ()
    """versions whose neurons named one of the documents"""
    nights: int = 0
    """logged nights whose report named one of the documents"""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """why versions could not be read, by their numbers: what they name is not known"""


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget`: what was removed, or would be."""

    outputs: tuple[ForgottenRows, ...]
    """what was removed from each output"""
    store: ForgottenInStore
    """what was removed from the store of the training"""
    registries: tuple[ForgottenInRegistry, ...]
    """what was removed from the registered models"""


def read_ids(file: Path) -> list[str]:
    """The ids in a text file, one per line, each once. Raises UserError if it cannot be read or holds none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}; expected a text file with an id per line") from None
    ids = list(dict.fromkeys(line.removesuffix("\r") for line in lines if line.removesuffix("\r")))
    if not ids:
        raise UserError(f"{file} is empty; expected an id per line")
    return ids


def forget_documents(
    settings: Settings, ids: Collection[str], outputs: Sequence[str], *, dry_run: bool = False
) -> Forgotten:
    """Remove documents from outputs, from the store of a training, and from the registered models of all of these.

    First the hashes of the ids are stored in all outputs. To call it again changes nothing more, and completes what an
    earlier call has begun. With `dry_run`, nothing is changed. Raises as `forget_in_output`, `forget_in_store` and the
    registry do; what was removed before stays removed. A version that cannot be read is named in the result. Raises
    UserError before anything is changed where a signed version names one of the documents and cannot be signed again.
    """
    forgotten = ForgottenIds.of(ids)
    # guarded by test_a_signed_version_is_not_changed_without_its_key
    _require_signing_keys(settings, outputs, forgotten)
    for output in [] if dry_run else outputs:
        announce_forgotten(output, ids)
    of_outputs = tuple(forget_in_output(output, ids, dry_run=dry_run) for output in outputs)
    of_store = forget_in_store(settings, ids, dry_run=dry_run)
    names = dict.fromkeys([settings.mlflow.name, *(model for each in of_outputs for model in each.models)])
    # of two at once, one would be undone
    with nullcontext() if dry_run else Lease(Store.of(settings) / "forget") as lease:
        registries = tuple(_forget_in_registry(Registry(settings, name), forgotten, lease) for name in names)
    return Forgotten(of_outputs, of_store, registries)


def _require_signing_keys(settings: Settings, outputs: Sequence[str], forgotten: ForgottenIds) -> None:
    """Raise UserError where a signed version of one of the models would be changed and cannot be signed again."""
    names = dict.fromkeys([settings.mlflow.name, *(name for each in outputs for name in models_of(open_output(each)))])
    rewrite = partial(without_named_documents, forgotten=forgotten)
    for registry in (Registry(settings, name) for name in names):
        for version in registry.versions():
            require_signing_key(registry, version.number, NEURONS, rewrite)


def _forget_in_registry(registry: Registry, forgotten: ForgottenIds, lease: Lease | None) -> ForgottenInRegistry:
    """Remove documents from the evaluation set, the versions and the logged nights of a registered model.

    Without a lease, only find what would be removed.
    """
    evaluation = replace_evaluation_set(registry, partial(_shorten, forgotten), lease)
    nights = replace_night_files(registry, REPORT, partial(_without_causes, forgotten), lease)
    rewrite = partial(without_named_documents, forgotten=forgotten)
    changed: list[str] = []
    unreadable: dict[str, str] = {}
    for version in registry.versions():
        try:
            if replace_version_file(registry, version.number, NEURONS, rewrite, lease):
                changed.append(version.number)
        except UserError as error:
            _log.warning("version %s of %s: %s", version.number, registry.name, error)
            unreadable[version.number] = str(error)
    return ForgottenInRegistry(
        registry.name,
        evaluation=evaluation,
        versions=tuple(changed),
        nights=nights,
        unreadable=unreadable,
    )


def _shorten(forgotten: ForgottenIds, frozen: EvaluationSet) -> EvaluationSet:
    """An evaluation set without forgotten documents."""
    gone = set(forgotten.find(frozen.ids))
    return frozen.take([at for at in range(len(frozen)) if at not in gone])


def _without_causes(forgotten: ForgottenIds, text: str) -> Mapping[str, str] | None:
    """The files of a night's report without forgotten documents; None if it names none."""
    try:
        report = from_json(NightReport, json.loads(text))
    except ValidationError:
        _log.debug("a logged report is of a version that named no documents", exc_info=True)
        return None
    left = without_documents(report, forgotten)
    return None if left == report else {name: data.decode() for name, data in render_reports(left).items()}
