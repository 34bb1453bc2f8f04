"""The model registry: what is registered, how a version is named, and what comes back from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.registry import packaging
from pipelines.registry.mlflow_client import Tracking
from spin.activations.engine import CALIBRATION_TEXTS
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.settings import BackboneSettings, Settings

CHAMPION, CHALLENGER = "champion", "challenger"
_EVALUATION = "evaluation/evaluation.json"
_ARTIFACT, _MODEL = "spin.artifact", "spin.model"
"""tags of a version: the digests of its artifact and of all that is logged"""


@dataclass(frozen=True)
class Version:
    """One version of the registered model."""

    number: str
    run_id: str
    aliases: tuple[str, ...]
    fingerprint: str
    created: str
    metrics: dict[str, float]


class Registry:
    """One registered model at one tracking URI. Only a driver makes one, never a worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.mlflow.model
        self.tracking = Tracking(settings)
        self._client = self.tracking.client

    @property
    def key(self) -> str:
        """Tells this registered model from others, in the name of an object."""
        return hashlib.sha256(f"{self.tracking.uri} {self.name}".encode()).hexdigest()[:16]

    def frozen(self) -> dict[str, Any] | None:
        """The frozen evaluation set: `rows` of id, text and label and their `digest`; None before the first version.

        Raises UserError when its content is not what was frozen.
        """
        with self.tracking.answers():
            model = self._model()
            if model is None or "spin.evaluation.run" not in model.tags:
                return None
            run, digest = model.tags["spin.evaluation.run"], model.tags["spin.evaluation.digest"]
            with tempfile.TemporaryDirectory() as folder:
                data = Path(self._client.download_artifacts(run, _EVALUATION, folder)).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise UserError(f"the frozen evaluation set of {self.name} has digest {found[:12]}, expected {digest[:12]}")
        return {"rows": json.loads(data), "digest": digest}

    def calibration(self) -> list[str]:
        """Texts by which int8 is scaled, the same for all versions. Raises UserError where none are frozen."""
        frozen = self.frozen()
        if frozen is None or not frozen["rows"]:
            raise UserError(
                f"backbone.dtype int8 is scaled by the frozen evaluation set, and {self.name} has none; train with "
                "test rows, or set bfloat16"
            )
        return [row["text"] for row in frozen["rows"][:CALIBRATION_TEXTS]]

    def register(
        self,
        artifact: Path,
        *,
        params: dict[str, Any],
        metrics: dict[str, float],
        facts: dict[str, Any],
        example: Sequence[str],
        evaluation: list[dict[str, Any]],
        fingerprint: str,
    ) -> dict[str, Any]:
        """Log a run and a pyfunc of the artifact folder, register it as a new version and make that the challenger.

        The first version of a model freezes `evaluation` as its evaluation set.
        """
        import mlflow
        from mlflow.entities import LoggedModelOutput

        with self.tracking.answers(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")
            with mlflow.start_run(experiment_id=self.tracking.experiment()) as run:
                mlflow.log_params(params)
                mlflow.log_dict(facts, "report.json")
                told = {name: str(value) for name, value in params.items()}
                model = self._client.create_logged_model(
                    run.info.experiment_id, "model", source_run_id=run.info.run_id, params=told
                )
                self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
                folder, about = Path(scratch) / "model", {"run_id": run.info.run_id, "model_id": model.model_id}
                # saved, then logged: what is digested is what is sent
                written = mlflow.models.Model(artifact_path=model.artifact_location, **about)
                packaging.write_bundle(folder, artifact, self.settings, example, written)
                self._client.log_model_artifacts(model.model_id, str(folder))
                self._client.finalize_logged_model(model.model_id, "READY")
                mlflow.log_metrics(metrics, model_id=model.model_id)
                if self._model() is None:
                    self._client.create_registered_model(self.name)
                self._freeze(run.info.run_id, evaluation)
                version = self._client.create_model_version(
                    self.name,
                    model.model_uri,
                    run.info.run_id,
                    tags={
                        "spin.fingerprint": fingerprint,
                        _ARTIFACT: packaging.digest(artifact),
                        _MODEL: packaging.digest(folder),
                    },
                    description=packaging.description(artifact),
                    model_id=model.model_id,
                )
            self.set_alias(CHALLENGER, str(version.version))
        return {"model": self.name, "version": str(version.version), "run_id": run.info.run_id}

    def resolve(self, model: str | None = None) -> str:
        """The version of `models:/NAME@alias` or `models:/NAME/N`, by default the champion. Raises UserError."""
        reference = model or f"models:/{self.name}@{CHAMPION}"
        name, _, alias = reference.removeprefix("models:/").partition("@")
        name, _, number = name.partition("/")
        if not reference.startswith("models:/") or name != self.name or bool(alias) == bool(number):
            raise UserError(
                f"'{reference}' is not a model here; expected models:/{self.name}@alias or models:/{self.name}/N"
            )
        numbers, aliases = self._numbers(), self._aliases()
        found = aliases.get(alias) if alias else number
        if found in numbers:
            return str(found)
        named = {n: "".join(f" @{a}" for a, of in sorted(aliases.items()) if of == n) for n in numbers}
        have = ", ".join(n + named[n] for n in numbers) or "none"
        remedy = "; `spin promote` makes a champion" if alias == CHAMPION else ""
        raise UserError(f"{reference} does not exist; versions: {have}{remedy}")

    def load(self, number: str, *, backbone: BackboneSettings | None = None) -> SpinClassifier:
        """The classifier of a version as a night uses it, from safetensors and JSON: no code comes from there."""
        with tempfile.TemporaryDirectory() as folder:
            self.download(number, Path(folder))
            chosen = backbone or self.settings.backbone
            calibration = self.calibration() if chosen.dtype == "int8" else ()
            return SpinClassifier.open(folder, self.settings, backbone=chosen, calibration=calibration)

    def log_night(self, number: str, manifest: dict[str, Any], reports: Mapping[str, bytes]) -> None:
        """A run under a version for a night, its counts as metrics and its reports; none where it is logged already."""
        import mlflow

        counts, name = manifest["counts"], f"night {manifest['run']}"
        tags = {"spin.version": number, "spin.night": manifest["date"]}
        tags |= {f"spin.{name}": manifest[name] for name in ("run", "output", "fingerprint")}
        rows, shadow = max(1, counts["rows"]), manifest.get("shadow")
        tags |= {"spin.shadow": shadow["version"]} if shadow else {}
        metrics = {key: counts[key] for key in ("rows", "predicted", "abstained", "dead", "tokens", "truncated")}
        metrics |= {
            "dead_rate": counts["dead"] / rows,
            "quarantined_files": len(manifest["quarantined"]),
            "documents_per_s": round(counts["rows"] / max(manifest["seconds"], 1e-3), 2),
            **{f"depth_{depth}": count / rows for depth, count in counts["depths"].items()},
            **{f"psi_{row['name']}": row["psi"] for row in manifest["drift"]},
            **({"shadow_agreement": shadow["agreement"]} if shadow and shadow["compared"] else {}),
        }
        with self.tracking.answers():
            experiment = self.tracking.experiment()
            # one that was cut off has its tags, but not its figures
            wanted = f"attributes.status = 'FINISHED' and tags.`spin.night` = '{manifest['date']}'"
            logged = self._client.search_runs([experiment], wanted)
            if any(tags.items() <= run.data.tags.items() for run in logged):
                return
            with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags):
                mlflow.log_metrics(metrics)
                for file, data in reports.items():
                    mlflow.log_text(data.decode(), file)

    def log_move(self, number: str, kind: str, tags: dict[str, str], figures: dict[str, float], report: Any) -> str:
        """A run of what was found before a version was to be champion, with `gate.json`; gives the run's id."""
        import mlflow

        tags = {"spin.version": number, "spin.move": kind, **tags}
        with self.tracking.answers():
            experiment = self.tracking.experiment()
            with mlflow.start_run(experiment_id=experiment, run_name=f"{kind} {number}", tags=tags) as run:
                mlflow.log_metrics(figures)
                mlflow.log_dict(report, "gate.json")
            return str(run.info.run_id)

    def tag_version(self, number: str, prefix: str, tags: Mapping[str, str]) -> None:
        """Note what was found of a version, each name under a prefix, in place of what was noted there before."""
        with self.tracking.answers():
            before = self._client.get_model_version(self.name, number).tags
            for name in before:
                if name.startswith(f"{prefix}.") and name.removeprefix(f"{prefix}.") not in tags:
                    self._client.delete_model_version_tag(self.name, number, name)
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, number, f"{prefix}.{name}", value)

    def download(self, number: str, folder: Path) -> None:
        """Fetch a version's artifact into a folder: config.json, model.safetensors and what describes them.

        Raises UserError, with nothing put there, for one that is not what was registered.
        """
        with tempfile.TemporaryDirectory() as scratch:
            found = self._fetch(number, packaging.SPIN, _ARTIFACT, scratch)
            shutil.copytree(found, folder, dirs_exist_ok=True)

    def download_model(self, number: str, folder: Path) -> Path:
        """Fetch all that is logged of a version, as MLflow loads it, into a folder; gives where it lies in it.

        Raises UserError, with nothing put there, for one that is not what was registered.
        """
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            return self._fetch(number, "", _MODEL, scratch).rename(folder / f"model-{number}")

    def _fetch(self, number: str, part: str, tag: str, scratch: str) -> Path:
        """Part of what is logged of a version, held against the digest in a tag."""
        import mlflow

        with self.tracking.answers():
            version = f"version {number} of {self.name}"
            expected = self._client.get_model_version(self.name, number).tags.get(tag)
            if expected is None:
                raise UserError(
                    f"{version} has no tag {tag}, so that nothing tells whether it was changed since it was "
                    "registered; promote another version, or train again"
                )
            uri = f"{self._client.get_model_version_download_uri(self.name, number)}/{part}".rstrip("/")
            if not mlflow.artifacts.list_artifacts(artifact_uri=uri):
                raise UserError(f"{version} has lost its files, {part or 'all'} of them; promote another version")
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            if not part:  # what MLflow and Python leave beside a model that was loaded where it is kept; no part of it
                (found / "registered_model_meta").unlink(missing_ok=True)
                shutil.rmtree(found / "__pycache__", ignore_errors=True)
            digest = packaging.digest(found)
            if digest != expected:
                raise UserError(
                    f"{version} was changed since it was registered: expected digest {expected[:12]} of its "
                    f"{'model' if tag == _MODEL else 'artifact'}, found {digest[:12]}; promote another version, or "
                    "train again"
                )
            return found

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with self.tracking.answers():
            aliases = self._aliases()
            return [
                Version(
                    number := str(v.version),
                    v.run_id,
                    tuple(sorted(alias for alias, of in aliases.items() if of == number)),
                    v.tags.get("spin.fingerprint", ""),
                    datetime.fromtimestamp(v.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
                    dict(self._client.get_run(v.run_id).data.metrics),
                )
                for v in self._found()
            ]

    def champion(self) -> str | None:
        """The champion's version number."""
        return self._aliases().get(CHAMPION)

    def tags(self) -> dict[str, str]:
        """What is noted at the registered model."""
        with self.tracking.answers():
            model = self._model()
            return {} if model is None else dict(model.tags)

    def set_tag(self, name: str, value: str) -> None:
        with self.tracking.answers():
            self._client.set_registered_model_tag(self.name, name, value)

    def delete_tag(self, name: str) -> None:
        with self.tracking.answers():
            self._client.delete_registered_model_tag(self.name, name)

    def set_alias(self, alias: str, number: str) -> None:
        with self.tracking.answers():
            self._client.set_registered_model_alias(self.name, alias, number)

    def _freeze(self, run_id: str, evaluation: list[dict[str, Any]]) -> None:
        model = self._model()
        if model is not None and "spin.evaluation.run" in model.tags:
            return
        data = json.dumps(evaluation).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(_EVALUATION).name
            path.write_bytes(data)
            self._client.log_artifact(run_id, str(path), str(Path(_EVALUATION).parent))
        self._client.set_registered_model_tag(self.name, "spin.evaluation.digest", hashlib.sha256(data).hexdigest())
        self._client.set_registered_model_tag(self.name, "spin.evaluation.run", run_id)

    def _found(self) -> list[Any]:
        """MLflow's versions, the newest first."""
        with self.tracking.answers():
            return sorted(self._client.search_model_versions(f"name='{self.name}'"), key=lambda v: -int(v.version))

    def _numbers(self) -> list[str]:
        return [str(v.version) for v in self._found()]

    def _aliases(self) -> dict[str, str]:
        """Alias to version number."""
        with self.tracking.answers():
            model = self._model()
            return {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}

    def _model(self) -> Any:
        """The registered model, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
