"""The bill of materials of a version in CycloneDX: what it consists of, what it was trained on, and what it reaches."""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.metadata import metadata
from pathlib import Path

import yaml
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from huggingface_hub.repocard import metadata_load
from packageurl import PackageURL

from pipelines.registry.packaging import BACKBONE, PYFUNC, REQUIREMENTS, SPIN
from pipelines.registry.version_records import TrainingRecord
from spin.backbone.hub import locate_model
from spin.fitted import persistence
from spin.settings import Settings, mask_credentials

BILL = "bom.cdx.json"
"""file of a logged model"""
_FILES = (PYFUNC.name, f"{SPIN}/{persistence.CONFIG}", f"{SPIN}/{persistence.TENSORS}")
"""files that decide what a version predicts, beside its weights; `spin forget` changes none of them"""

_log = logging.getLogger(__name__)


def write_bill(model: Path, settings: Settings, record: TrainingRecord) -> None:
    """Write the bill of materials of a training that is registered into its logged model."""
    version = Component(
        name=settings.mlflow.name,
        version=record.fingerprint,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="version",
        components=[_file(model, name) for name in _FILES],
    )
    parts = [_weights(model, settings), *_data(record), *map(_library, REQUIREMENTS)]
    bom: Bom = Bom(components=parts)
    bom.metadata.component = version
    bom.register_dependency(version, parts)
    tree = json.loads(JsonV1Dot6(bom).output_as_string())
    # the library has no class for what CycloneDX says of models
    figures = [{"type": name, "value": str(value)} for name, value in sorted(record.metrics.items())]
    tree["metadata"]["component"]["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": figures}}
    (model / BILL).write_text(json.dumps(tree, indent=2), encoding="utf-8")


def _file(model: Path, name: str) -> Component:
    with (model / name).open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=content)]
    return Component(name=name, type=ComponentType.FILE, bom_ref=f"file:{name}", hashes=hashes)


def _weights(model: Path, settings: Settings) -> Component:
    """The backbone, with its files where the version holds them."""
    licence = _find_licence(settings) if settings.registry.include_backbone else None
    files = [f"{BACKBONE}/{path.name}" for path in sorted((model / BACKBONE).glob("*"))]
    digest = persistence.read_metadata(model / SPIN).backbone_digest
    return Component(
        name=mask_credentials(settings.backbone.model),
        version=settings.backbone.revision,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="weights",
        licenses=[] if licence is None else [LicenseFactory().make_from_string(licence)],
        properties=[Property(name="spin:digest", value=digest)],
        components=[_file(model, name) for name in files],
    )


def _find_licence(settings: Settings) -> str | None:
    """The licence that the card beside the weights names; None without one."""
    card = locate_model(settings.backbone.model, settings.backbone.revision) / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        _log.debug("%s names no licence that can be read", card, exc_info=True)
        return None
    return licence if isinstance(licence, str) else None


def _data(record: TrainingRecord) -> list[Component]:
    """The corpus, and the documents that the version was tested on."""
    test = hashlib.sha256()
    for part in record.evaluation_set.json_parts():
        test.update(part)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=test.hexdigest())]
    data = record.data
    documents = data.profile.get("documents")
    facts = {"source": mask_credentials(data.source), "digest": data.digest, "documents": documents}
    properties = [Property(name=f"spin:{name}", value=str(value)) for name, value in facts.items()]
    return [
        Component(name="test documents", type=ComponentType.DATA, bom_ref="data:test", hashes=hashes),
        Component(name=data.name, type=ComponentType.DATA, bom_ref="data:corpus", properties=properties),
    ]


def _library(name: str) -> Component:
    """A distribution that the code of a version imports, at the version that is installed."""
    installed = metadata(name)
    licence, *_ = installed.get_all("License-Expression") or [None]
    version = installed["Version"]
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"library:{name}",
        licenses=[] if licence is None else [LicenseFactory().make_from_string(licence)],
        purl=PackageURL("pypi", name=name, version=version),
    )
