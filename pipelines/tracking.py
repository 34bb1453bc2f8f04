"""The connection to MLflow: where it is, its client, the experiment, and its errors in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.store import Store, store_errors
from spin.errors import SpinError, UnavailableError
from spin.settings import Settings


class Tracking:
    """MLflow at one tracking URI, with one experiment of the model's name. Only a driver makes one, never a worker."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        self.name = settings.mlflow.model
        self.uri = settings.mlflow.tracking_uri or _default_uri(settings.store)
        self._store = settings.store
        with self.answers():
            import mlflow
            from mlflow import MlflowClient

            for noisy in ("mlflow", "alembic"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            self.client = MlflowClient(self.uri, self.uri)

    def experiment(self) -> str:
        """The experiment's id, made where there is none; on SQLite its artifacts lie in the store."""
        found = self.client.get_experiment_by_name(self.name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:"):
            store = Store(self._store)
            location = Path(store.root).absolute().as_uri() + "/mlflow" if store.local else f"{store.uri}/mlflow"
        return str(self.client.create_experiment(self.name, artifact_location=location))

    @contextmanager
    def answers(self) -> Iterator[None]:
        """MLflow's errors in one line."""
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with store_errors(f"registry {self.uri}"):
                yield
        except SpinError:
            raise
        except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnavailableError(f"registry {self.uri}: {reason}; try again") from None


def _default_uri(store_uri: str) -> str:
    store = Store(store_uri)
    folder = Path(store.root).absolute() if store.local else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"
