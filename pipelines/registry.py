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

from pipelines.manifest import fingerprint as digest_of
from pipelines.tracking import Tracking
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.settings import BackboneSettings, Settings

CHAMPION, CHALLENGER = "champion", "challenger"
_EVALUATION = "evaluation/evaluation.json"
_ARTIFACT = "spin.artifact"
"""tag of a version: the digest of its artifact"""


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
        """Log a run with the artifact folder, register it as a new version and make that the challenger.

        The first version of a model freezes `evaluation` as its evaluation set.
        """
        import mlflow
        import pandas as pd
        from mlflow.models import infer_signature

        with self.tracking.answers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spin = SpinClassifier.load(artifact, backbone=self.settings.backbone)
            logits = spin.predict_logits(example)
            scores = spin.task.probabilities(logits).max(1).astype(float)
            # the plain labels: a list that is empty, or none at all, would leave a signature without its type
            named = spin.task.names(logits.argmax(1))
            answer = pd.DataFrame({"label": [[n] for n in named] if spin.task.multilabel else named, "score": scores})
            question = pd.DataFrame({"text": list(example)})
            with mlflow.start_run(experiment_id=self.tracking.experiment()) as run:
                mlflow.log_params(params)
                mlflow.log_metrics(metrics)
                mlflow.log_dict(facts, "report.json")
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(Path(__file__).with_name("pyfunc.py")),
                    artifacts={"spin": str(artifact)},
                    signature=infer_signature(question, answer),
                    input_example=question,
                    pip_requirements=["spin-neurons"],
                )
                if self._model() is None:
                    self._client.create_registered_model(self.name)
                self._freeze(run.info.run_id, evaluation)
                tags = {"spin.fingerprint": fingerprint, _ARTIFACT: _digest(artifact)}
                version = self._client.create_model_version(self.name, logged.model_uri, run.info.run_id, tags=tags)
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
        """The classifier of a version, from its safetensors and JSON: no code comes from the registry."""
        with tempfile.TemporaryDirectory() as folder:
            self.download(number, Path(folder))
            return SpinClassifier.load(
                folder,
                backbone=backbone or self.settings.backbone,
                choose=self.settings.choose,
                decision=self.settings.decision,
            )

    def log_night(self, number: str, manifest: dict[str, Any], reports: Mapping[str, bytes]) -> None:
        """A run under a version for a night, its counts as metrics and its reports; none where it is logged already."""
        import mlflow

        counts, name = manifest["counts"], f"night {manifest['run']}"
        tags = {"spin.version": number, "spin.night": manifest["date"]}
        tags |= {f"spin.{name}": manifest[name] for name in ("run", "output", "fingerprint")}
        rows = max(1, counts["rows"])
        metrics = {key: counts[key] for key in ("rows", "predicted", "abstained", "dead", "tokens", "truncated")}
        metrics |= {
            "dead_rate": counts["dead"] / rows,
            "quarantined_files": len(manifest["quarantined"]),
            "documents_per_s": round(counts["rows"] / max(manifest["seconds"], 1e-3), 2),
            **{f"depth_{depth}": count / rows for depth, count in counts["depths"].items()},
            **{f"psi_{row['name']}": row["psi"] for row in manifest["drift"]},
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

    def download_model(self, number: str, folder: Path) -> Path:
        """Fetch the whole logged model of a version into a folder; gives where it lies there."""
        import mlflow

        with self.tracking.answers():
            return Path(mlflow.artifacts.download_artifacts(f"models:/{self.name}/{number}", dst_path=str(folder)))

    def download(self, number: str, folder: Path) -> None:
        """Fetch a version's artifact into a folder: config.json, model.safetensors and what describes them.

        Raises UserError, with nothing put there, for one that is not what was registered.
        """
        import mlflow

        with self.tracking.answers(), tempfile.TemporaryDirectory() as scratch:
            version = f"version {number} of {self.name}"
            expected = self._client.get_model_version(self.name, number).tags.get(_ARTIFACT)
            if expected is None:
                raise UserError(
                    f"{version} has no tag {_ARTIFACT}, so that nothing tells whether it was changed since it was "
                    "registered; promote another version, or train again"
                )
            uri = f"models:/{self.name}/{number}/artifacts/"
            fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            found = next(fetched.rglob("model.safetensors"), None)
            if found is None:
                raise UserError(f"{version} holds no model.safetensors; it was not made by spin")
            digest = _digest(found.parent)
            if digest != expected:
                raise UserError(
                    f"{version} was changed since it was registered: expected digest {expected[:12]} of its artifact, "
                    f"found {digest[:12]}; promote another version, or train again"
                )
            for path in found.parent.iterdir():
                shutil.copyfile(path, folder / path.name)

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


def _digest(artifact: Path) -> str:
    """sha256 over the names and contents of an artifact's files. Raises UserError for what is no plain file in it."""
    digests: dict[str, str] = {}
    for path in artifact.iterdir():
        if path.is_symlink() or not path.is_file():
            raise UserError(f"the artifact holds {path.name}, which is not a plain file; promote another version")
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(digests)
