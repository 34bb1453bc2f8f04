"""The model registry: log, register, resolve, gate, promote and roll back. The only module that knows MLflow."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.store import Store, store_errors
from spin.calibrate import Decision
from spin.classifier import SpinClassifier
from spin.errors import SpinError, UnavailableError, UserError
from spin.metric import score
from spin.settings import BackboneSettings, Settings
from spin.task import Task, names_of

CHAMPION, CHALLENGER = "champion", "challenger"
_EVALUATION = "evaluation/evaluation.json"
_HISTORY = "spin.history"


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
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        self.settings = settings
        self.name = settings.mlflow.model
        self.uri = settings.mlflow.tracking_uri or _default_uri(settings.store)
        with self._answers():
            import mlflow
            from mlflow import MlflowClient

            for noisy in ("mlflow", "alembic"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            self._client = MlflowClient(self.uri, self.uri)

    @property
    def key(self) -> str:
        """Tells this registered model from others, in the name of an object."""
        return hashlib.sha256(f"{self.uri} {self.name}".encode()).hexdigest()[:16]

    def frozen(self) -> dict[str, Any] | None:
        """The frozen evaluation set: `rows` of id, text and label and their `digest`; None before the first version.

        Raises UserError when its content is not what was frozen.
        """
        with self._answers():
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

        with self._answers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spin = SpinClassifier.load(artifact, backbone=self.settings.backbone)
            logits = spin.predict_logits(example)
            scores = spin.task.probabilities(logits).max(1).astype(float)
            # the plain labels: a list that is empty, or none at all, would leave a signature without its type
            named = spin.task.names(logits.argmax(1))
            answer = pd.DataFrame({"label": [[n] for n in named] if spin.task.multilabel else named, "score": scores})
            question = pd.DataFrame({"text": list(example)})
            with mlflow.start_run(experiment_id=self._experiment()) as run:
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
                version = self._client.create_model_version(
                    self.name, logged.model_uri, run.info.run_id, tags={"spin.fingerprint": fingerprint}
                )
            self._client.set_registered_model_alias(self.name, CHALLENGER, version.version)
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

    def log_night(self, number: str, manifest: dict[str, Any]) -> None:
        """A run under a version for a night, its counts as metrics and its report; none where it is logged already."""
        import mlflow

        counts, name = manifest["counts"], f"night {manifest['run']}"
        tags = {"spin.version": number, "spin.night": manifest["date"], "spin.fingerprint": manifest["fingerprint"]}
        rows = max(1, counts["rows"])
        metrics = {key: counts[key] for key in ("rows", "predicted", "abstained", "dead", "tokens", "truncated")}
        metrics |= {
            "dead_rate": counts["dead"] / rows,
            "quarantined_files": len(manifest["quarantined"]),
            "documents_per_s": round(counts["rows"] / max(manifest["seconds"], 1e-3), 2),
            **{f"depth_{depth}": count / rows for depth, count in counts["depths"].items()},
        }
        with self._answers():
            found = (
                f"tags.`spin.fingerprint` = '{manifest['fingerprint']}' and tags.`spin.night` = '{manifest['date']}'"
            )
            if self._client.search_runs([self._experiment()], found, max_results=1):
                return
            with mlflow.start_run(experiment_id=self._experiment(), run_name=name, tags=tags):
                mlflow.log_metrics(metrics)
                mlflow.log_dict({key: manifest[key] for key in manifest.keys() - {"shards", "parts"}}, "report.json")

    def download(self, number: str, folder: Path) -> None:
        """Fetch a version's artifact into a folder: config.json, model.safetensors and what describes them."""
        with self._answers(), tempfile.TemporaryDirectory() as scratch:
            import mlflow

            uri = f"models:/{self.name}/{number}/artifacts/"
            fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            found = next(fetched.rglob("model.safetensors"), None)
            if found is None:
                raise UserError(f"version {number} of {self.name} holds no model.safetensors; it was not made by spin")
            for path in found.parent.iterdir():
                shutil.copyfile(path, folder / path.name)

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with self._answers():
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

    def promote(self, number: str, why: str) -> dict[str, Any]:
        """Make a version the champion after it loads, predicts and is no worse on the frozen evaluation set.

        Raises UserError, saying by how much, for one that is worse than the champion.
        """
        frozen = self.frozen()
        current = self.champion()
        if current == number:
            raise UserError(f"version {number} of {self.name} is the champion already")
        challenger = self._score(number, frozen)
        before = None if current is None else self._score(current, frozen)
        if before is not None and challenger is not None and challenger < before:
            raise UserError(
                f"version {number} of {self.name} scores {challenger:.4f} {self.settings.metric} on the frozen "
                f"evaluation set, the champion (version {current}) {before:.4f}; not promoted"
            )
        return self._move(current, number, why, {"score": challenger, "score_before": before})

    def rollback(self, why: str, to: str | None = None) -> dict[str, Any]:
        """Make the champion before this one, or the version `to`, champion again, if it loads and predicts."""
        current = self.champion()
        past = [event["from"] for event in self.history() if event["to"] == current and event["from"]]
        target = to or (past[-1] if past else None)
        if current is None or target is None:
            raise UserError(f"{self.name} has no earlier champion to roll back to; `spin models` lists the versions")
        return self._move(
            current, self.resolve(f"models:/{self.name}/{target}"), why, {"score": self._score(target, None)}
        )

    def history(self) -> list[dict[str, Any]]:
        """Every move of the champion, the oldest first: who, when, from, to and why."""
        with self._answers():
            model = self._model()
            tags = {} if model is None else model.tags
            return [json.loads(tags[name]) for name in sorted(tags) if name.startswith(f"{_HISTORY}.")]

    def _move(self, current: str | None, number: str, why: str, figures: dict[str, Any]) -> dict[str, Any]:
        event = {
            "who": getpass.getuser(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "from": current,
            "to": number,
            "why": why,
            **figures,
        }
        place = f"{_HISTORY}.{len(self.history()) + 1:06d}"
        with self._answers():
            self._client.set_registered_model_tag(self.name, place, json.dumps(event))
            self._client.set_registered_model_alias(self.name, CHAMPION, number)
        return event

    def _score(self, number: str, frozen: dict[str, Any] | None) -> float | None:
        """The metric of a version on the evaluation set; without rows, only that it predicts."""
        spin = self.load(number)
        if frozen is None or not frozen["rows"]:
            spin.predict(["Does it predict?"])
            return None
        rows = frozen["rows"]
        y, _ = Decision.of(spin.task, spin.decision).labels(spin.predict_proba([row["text"] for row in rows]))
        predicted, truth = spin.task.names(y), [row["label"] for row in rows]
        # the set may have classes that this version does not know
        every = sorted({name for label in [*truth, *predicted] for name in names_of(label)})
        both = Task(tuple(every), spin.task.multilabel)
        return score(self.settings.metric, both.index(truth), both.index(predicted))

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
        with self._answers():
            return sorted(self._client.search_model_versions(f"name='{self.name}'"), key=lambda v: -int(v.version))

    def _numbers(self) -> list[str]:
        return [str(v.version) for v in self._found()]

    def _aliases(self) -> dict[str, str]:
        """Alias to version number."""
        with self._answers():
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

    def _experiment(self) -> str:
        """The experiment of the model's name; on SQLite its artifacts lie in the store."""
        found = self._client.get_experiment_by_name(self.name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:"):
            store = Store(self.settings.store)
            location = Path(store.root).absolute().as_uri() + "/mlflow" if store.local else f"{store.uri}/mlflow"
        return str(self._client.create_experiment(self.name, artifact_location=location))

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """MLflow's errors in one line; no password of the URI is in it."""
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        shown = self.uri.replace(f"{urlsplit(self.uri).password or chr(0)}", "***")
        try:
            with store_errors(f"registry {shown}"):
                yield
        except SpinError:
            raise
        except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
            reason = " ".join(str(error).split())[:200].replace(self.uri, shown)
            raise UnavailableError(f"registry {shown}: {reason}; try again") from None


def _default_uri(store_uri: str) -> str:
    store = Store(store_uri)
    folder = Path(store.root).absolute() if store.local else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"
