"""The model registry: register versions, resolve their names, load them, move aliases, log nights and gates."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pipelines.registry import evaluation_set, packaging, signatures
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.mlflow_client import Tracking
from pipelines.registry.version_records import AuditRecord, LoggedData, RegisteredVersion, TrainingRecord, Version
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.settings import BackboneSettings, DecisionSettings, Settings

CHAMPION, CHALLENGER = "champion", "challenger"
ARTIFACT_TAG, MODEL_TAG = "spin.artifact", "spin.model"
"""tags of a version: the digests of its artifact and of the whole logged model"""
TAGS: dict[signatures.Part, str] = {"artifact": ARTIFACT_TAG, "model": MODEL_TAG}
NEXT = ".next"
"""ending of these tags while a file of the version is being replaced"""
_REPLACEMENT = "promote another version, or delete this one in MLflow, and `spin run` registers it again"

T = TypeVar("T")
_log = logging.getLogger(__name__)


def model_name(reference: str) -> str | None:
    """The registered name in `models:/NAME@ALIAS` or `models:/NAME/N`; None for another form, such as an alias alone.

    >>> model_name("models:/tweets@champion")
    'tweets'
    """
    match = re.fullmatch(r"models:/([^@/]+)[@/].+", reference)
    return None if match is None else match[1]


class Registry:
    """One registered model at one tracking URI: `name`, or by default the one that the settings name.

    Only drivers open one, workers do not.
    """

    def __init__(self, settings: Settings, name: str | None = None) -> None:
        if name is not None:
            settings = settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update={"model": name})})
        self.settings = settings
        self.name = settings.mlflow.name
        self.tracking = Tracking(settings)
        self._client = self.tracking.client

    @property
    def key(self) -> str:
        """Distinguishes this registered model from others in the name of an object."""
        return hashlib.sha256(f"{self.tracking.uri} {self.name}".encode()).hexdigest()[:16]

    def evaluation_set(self) -> EvaluationSet:
        """The frozen evaluation set; an empty one before the first version.

        Raises UserError when its content is not what was frozen.
        """
        with self.tracking.session():
            tags = self.tags()
            frozen = self._find(lambda: evaluation_set.read_frozen(self._client, self.name, tags))
        if frozen is None:
            raise UserError(
                f"the frozen evaluation set of {self.name} is lost: MLflow no longer has the run that holds it, which "
                "the model's tag spin.evaluation.run names; restore this run, or train under another mlflow.model"
            )
        return frozen

    def register(self, artifact: Path, record: TrainingRecord) -> RegisteredVersion:
        """Log a run and the artifact folder as an MLflow model, register a new version and make it the challenger.

        The first version of a model freezes the record's evaluation set.
        """
        import mlflow

        from pipelines.registry.bill_of_materials import write_bill  # brings CycloneDX, which nothing else needs

        with self.tracking.session(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")
            with mlflow.start_run(experiment_id=self.tracking.experiment()) as run:
                mlflow.log_params(dict(record.params))
                mlflow.log_text(record.report, "report.json")
                self._client.log_inputs(run.info.run_id, [record.data.to_input("training")])
                model = self._create_model(run.info, record)
                folder = Path(scratch) / "model"
                # saved, then logged: the digest is taken of exactly what is uploaded
                metadata = mlflow.models.Model(
                    artifact_path=model.artifact_location, run_id=run.info.run_id, model_id=model.model_id
                )
                packaging.write_bundle(folder, artifact, self.settings, metadata)
                # guarded by test_a_version_holds_a_bill_of_materials
                write_bill(folder, self.settings, record)
                digests = {ARTIFACT_TAG: packaging.folder_digest(artifact), MODEL_TAG: packaging.folder_digest(folder)}
                if (key := self.settings.registry.sign) is not None:
                    signed = Path(scratch) / signatures.FOLDER
                    signatures.sign_model(folder, signed, key, self.settings.registry.verify)
                    signed.rename(folder / signatures.FOLDER)
                self._client.log_model_artifacts(model.model_id, str(folder))
                self._client.finalize_logged_model(model.model_id, "READY")
                mlflow.log_metrics(dict(record.metrics), model_id=model.model_id)
                if self._model() is None:
                    self._client.create_registered_model(self.name)
                first = evaluation_set.freeze(
                    self._client, self.name, self.tags(), run.info.run_id, record.evaluation_set
                )
                if first and self._model_versions():
                    _log.warning(
                        "%s: the first version with test documents. Earlier ones may have learned from them, so the "
                        "gate may prefer these: promote it with --force and --why",
                        self.name,
                    )
                version = self._client.create_model_version(
                    self.name,
                    model.model_uri,
                    run.info.run_id,
                    tags={"spin.fingerprint": record.fingerprint, **digests},
                    description=packaging.version_description(artifact),
                    model_id=model.model_id,
                )
            self.set_alias(CHALLENGER, str(version.version))
        return RegisteredVersion(self.name, str(version.version), run.info.run_id)

    def holds(self, number: str, fingerprint: str) -> bool:
        """Whether a version exists that was registered with this fingerprint, and is signed if the settings sign."""
        with self.tracking.session(), tempfile.TemporaryDirectory() as scratch:
            version: Any = self._find(lambda: self._client.get_model_version(self.name, number))
            if version is None or version.tags.get("spin.fingerprint") != fingerprint:
                return False
            return self.settings.registry.sign is None or self.fetch_signatures(number, Path(scratch)) is not None

    def fetch_signatures(self, number: str, scratch: Path) -> Path | None:
        """Download the signatures of a version, not checked, into a folder of `scratch`; None where it has none."""
        import mlflow

        with self.tracking.session():
            uri = f"{self._client.get_model_version_download_uri(self.name, number)}/{signatures.FOLDER}"
            if not mlflow.artifacts.list_artifacts(artifact_uri=uri):
                return None
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))

    def _create_model(self, run: Any, record: TrainingRecord) -> Any:
        """A logged model of MLflow, still without files, as the output of a run."""
        from mlflow.entities import LoggedModelOutput

        params = {name: str(value) for name, value in record.params.items()}
        model = self._client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id, params=params)
        self._client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def resolve(self, model: str | None = None) -> str:
        """The version number of `models:/NAME@alias` or `models:/NAME/N`, by default of the champion.

        Raises UserError for another form or name, or a version that does not exist.
        """
        reference = model or f"models:/{self.name}@{CHAMPION}"
        name, _, alias = reference.removeprefix("models:/").partition("@")
        name, _, number = name.partition("/")
        if not reference.startswith("models:/") or name != self.name or bool(alias) == bool(number):
            raise UserError(
                f"'{reference}' is not a model here; expected models:/{self.name}@alias or models:/{self.name}/N"
            )
        numbers, aliases = [str(v.version) for v in self._model_versions()], self._aliases()
        target = aliases.get(alias) if alias else number
        if target in numbers:
            return str(target)
        shown = (n + "".join(f" @{a}" for a, target in sorted(aliases.items()) if target == n) for n in numbers)
        have = ", ".join(shown) or "none"
        remedy = "`spin promote` makes a champion" if alias == CHAMPION else "`spin models` lists them"
        if not numbers:
            remedy = "`spin run` trains and registers one"
        raise UserError(f"{reference} does not exist; versions: {have}; {remedy}")

    def load(
        self, number: str, *, backbone: BackboneSettings | None = None, decision: DecisionSettings | None = None
    ) -> TrainedClassifier:
        """The classifier of a version as a night uses it, from safetensors and JSON; no code of the version runs.

        `backbone` and `decision` replace those of the settings.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.download(number, Path(folder))
            persistence.require_format(Path(folder), f"version {number} of {self.name}")
            chosen, settings = backbone or self.settings.backbone, self.settings
            if decision is not None:
                settings = settings.model_copy(update={"decision": decision})
            return TrainedClassifier.open(folder, settings, backbone=chosen)

    def log_night(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], reports: Mapping[str, bytes], data: LoggedData
    ) -> None:
        """Log a night as a run with report files and the data that it has read, unless it is logged already.

        No two nights of a version have the same tags.
        """
        with self.tracking.session():
            # an interrupted run has its tags, but not its metrics
            finished = f"attributes.status = 'FINISHED' and tags.`spin.night` = '{tags['spin.night']}'"
            logged = self._client.search_runs([self.tracking.experiment()], finished)
            if any(tags.items() <= run.data.tags.items() for run in logged):
                return
            texts = {file: data.decode() for file, data in reports.items()}
            self.log_run(f"night {tags['spin.run']}", tags, metrics, texts, data)

    def log_audit(self, number: str, audit: AuditRecord) -> None:
        """Log an audit of a version as a run with metrics and files, and add its summary to the description."""
        tags = {"spin.version": number, "spin.audit": audit.kind}
        self.log_run(f"audit {audit.kind} {number}", tags, audit.metrics, audit.files)
        with self.tracking.session():
            description = self._client.get_model_version(self.name, number).description or ""
            self._client.update_model_version(self.name, number, audit.add_to(description))

    def log_run(
        self,
        name: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        files: Mapping[str, str],
        read: LoggedData | None = None,
    ) -> str:
        """Log a run with metrics, text files by name and the data that was read; returns its id."""
        import mlflow

        with self.tracking.session():
            with mlflow.start_run(experiment_id=self.tracking.experiment(), run_name=name, tags=dict(tags)) as run:
                mlflow.log_metrics(dict(metrics))
                if read is not None:
                    self._client.log_inputs(run.info.run_id, [read.to_input("inference")])
                for file, text in files.items():
                    mlflow.log_text(text, file)
            return str(run.info.run_id)

    def read_run_file(self, run: str, file: str) -> str | None:
        """The text of a file of an MLflow run, such as one of `log_run`; None if either no longer exists."""

        def read() -> str | None:
            if not any(logged.path == file for logged in self._client.list_artifacts(run)):
                return None
            with tempfile.TemporaryDirectory() as folder:
                return Path(self._client.download_artifacts(run, file, folder)).read_text(encoding="utf-8")

        return self._find(read)

    def search_runs(self, condition: str) -> list[Any]:
        """MLflow's records of all runs of the model that meet a condition, also of those that were deleted there."""
        import mlflow

        every = mlflow.entities.ViewType.ALL
        with self.tracking.session():
            return mlflow.search_runs(
                filter_string=condition,
                run_view_type=every,
                max_results=sys.maxsize,
                output_format="list",
                experiment_names=[self.name],
            )

    def training_report(self, number: str) -> Mapping[str, Any]:
        """The manifest of the train stage that a version was registered with; empty if its run no longer exists."""
        with self.tracking.session():
            run = self._client.get_model_version(self.name, number).run_id
        text = self.read_run_file(run, "report.json")
        return json.loads(text) if text else {}

    def tag_version(self, number: str, prefix: str, tags: Mapping[str, str]) -> None:
        """Replace the tags `PREFIX.…` of a version."""
        with self.tracking.session():
            before = self._client.get_model_version(self.name, number).tags
            for name in before:
                if name.startswith(f"{prefix}.") and name.removeprefix(f"{prefix}.") not in tags:
                    self._client.delete_model_version_tag(self.name, number, name)
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, number, f"{prefix}.{name}", value)

    def download(self, number: str, folder: Path, *, verify: bool = True) -> None:
        """Download a version's artifact into a folder: config.json, model.safetensors and their descriptions.

        Raises UserError, with nothing written there, where the digest is not the registered one, or the signature that
        the settings ask for is missing or not valid. Without `verify`, signatures are not looked at.
        """
        with tempfile.TemporaryDirectory() as scratch:
            artifact = self._fetch(number, "artifact", scratch, verify=verify)
            shutil.copytree(artifact, folder, dirs_exist_ok=True)

    def download_model(self, number: str, folder: Path, *, verify: bool = True) -> Path:
        """Download the whole logged model of a version, as MLflow loads it, into a new subfolder; returns that.

        Raises UserError, with nothing written there, as `download` does.
        """
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            return self._fetch(number, "model", scratch, verify=verify).rename(folder / f"model-{number}")

    def _fetch(self, number: str, part: signatures.Part, scratch: str, *, verify: bool) -> Path:
        """Part of a version's logged model, checked against its digest, and its signature if asked for."""
        import mlflow

        tag = TAGS[part]
        with self.tracking.session():
            version = f"version {number} of {self.name}"
            tags = self._client.get_model_version(self.name, number).tags
            expected = tags.get(tag)
            if expected is None:
                raise UserError(
                    f"{version} has no tag {tag}, so its files cannot be checked against what was registered; "
                    f"{_REPLACEMENT}"
                )
            place = signatures.PARTS[part]
            uri = f"{self._client.get_model_version_download_uri(self.name, number)}/{place}".rstrip("/")
            if not mlflow.artifacts.list_artifacts(artifact_uri=uri):
                raise UserError(f"{version} has lost its files, {place or 'all'} of them; promote another version")
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            if part == "model":  # MLflow and Python write these where a model is loaded from an artifact store on disk
                (folder / "registered_model_meta").unlink(missing_ok=True)
                shutil.rmtree(folder / "__pycache__", ignore_errors=True)
                shutil.rmtree(folder / signatures.FOLDER, ignore_errors=True)
            # guarded by test_a_version_that_is_unsigned_or_altered_by_a_byte_is_refused
            if verify:
                self._verify(number, part, folder)
            digest = packaging.folder_digest(folder)
            if digest not in (expected, tags.get(tag + NEXT)):
                raise UserError(
                    f"{version} was changed since it was registered: expected digest {expected[:12]} of its "
                    f"{part}, found {digest[:12]}; {_REPLACEMENT}"
                )
            return folder

    def _verify(self, number: str, part: signatures.Part, files: Path) -> None:
        """Raise UserError unless the files are signed by the key that the settings ask for; most ask for none."""
        if (key := self.settings.registry.verify) is None:
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.fetch_signatures(number, Path(scratch)) or Path(scratch)
            fault = signatures.find_fault(part, files, folder, key)
        if fault is not None:
            raise UserError(f"version {number} of {self.name} {fault}; {_REPLACEMENT}, with registry.sign")

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        with self.tracking.session():
            aliases = self._aliases()
            return [
                Version(
                    number := str(v.version),
                    tuple(sorted(alias for alias, target in aliases.items() if target == number)),
                    v.tags.get("spin.fingerprint", ""),
                    datetime.fromtimestamp(v.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
                    self._metrics(v.run_id),
                )
                for v in self._model_versions()
            ]

    def _metrics(self, run: str) -> dict[str, float]:
        """The metrics of an MLflow run; empty if it no longer exists."""
        found: Any = self._find(lambda: self._client.get_run(run))
        return {} if found is None else dict(found.data.metrics)

    def champion(self) -> str | None:
        """The champion's version number."""
        return self._aliases().get(CHAMPION)

    def tags(self) -> dict[str, str]:
        """The tags of the registered model."""
        model = self._model()
        return {} if model is None else dict(model.tags)

    def set_tag(self, name: str, value: str) -> None:
        with self.tracking.session():
            self._client.set_registered_model_tag(self.name, name, value)

    def delete_tag(self, name: str) -> None:
        with self.tracking.session():
            self._client.delete_registered_model_tag(self.name, name)

    def set_alias(self, alias: str, number: str) -> None:
        with self.tracking.session():
            self._client.set_registered_model_alias(self.name, alias, number)

    def _model_versions(self) -> list[Any]:
        """MLflow's records of the versions, newest first."""
        with self.tracking.session():
            return sorted(self._client.search_model_versions(f"name='{self.name}'"), key=lambda v: -int(v.version))

    def _aliases(self) -> dict[str, str]:
        """Version number by alias."""
        model = self._model()
        return {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}

    def _model(self) -> Any:
        """MLflow's record of the registered model; None before the first version."""
        return self._find(lambda: self._client.get_registered_model(self.name))

    def _find(self, read: Callable[[], T]) -> T | None:
        """What a function reads of MLflow; None where MLflow no longer has it, or never had."""
        from mlflow.exceptions import MlflowException

        with self.tracking.session():
            try:
                return read()
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    _log.debug("%s: %s", self.name, error)
                    return None
                raise
