"""The connection to MLflow: its tracking URI, client and experiment, and its errors as one line each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.service_errors import UnavailableError
from pipelines.storage.filesystem import store_errors
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError, shorten_message
from spin.settings import Settings, holds_password, mask_credentials

_URI, _USER, _PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_TRANSIENT = (408, 409, 429)
"""HTTP statuses below 500 after which the same request may succeed later"""

_log = logging.getLogger(__name__)


class Tracking:
    """MLflow at one tracking URI, with one experiment named after the model. Only drivers make one, workers do not."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        # else files come from the store by the address that the server has for it, which may be unknown here
        os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
        os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        self.name = settings.mlflow.name
        self.uri = settings.mlflow.tracking_uri or _environment_uri() or _default_uri(settings.store.uri)
        self._store = settings.store.uri
        with self.session():
            from mlflow import MlflowClient

            for noisy in ("mlflow", "alembic"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            self.client = MlflowClient(self.uri, self.uri)

    def experiment(self) -> str:
        """The experiment's id, created where there is none; with SQLite its artifacts are in the store."""
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None
        if self.uri.startswith("sqlite:"):
            store = Store(self._store)
            location = f"{store.uri}/mlflow"
            if store.local:  # the store may be there and open to others: versions hold words, and reports texts
                folder = Path(store.root).absolute() / "mlflow"
                folder.mkdir(0o700, parents=True, exist_ok=True)
                location = folder.as_uri()
        return str(self.client.create_experiment(self.name, artifact_location=location))

    @contextmanager
    def session(self) -> Iterator[None]:
        """Point MLflow's own functions at this tracking URI and turn its errors into one line each.

        Raises UserError where credentials or the request are refused, UnavailableError where trying again may help.
        """
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._select()
        with store_errors(f"registry {self.uri}"):
            try:
                yield
            except MlflowException as error:
                raise self._translate(error, error.get_http_status_code()) from None
            except requests.RequestException as error:
                raise self._translate(error, getattr(error.response, "status_code", 500)) from None
            except SQLAlchemyError as error:
                raise self._translate(error, 500) from None

    def _select(self) -> None:
        """Make this the tracking URI of MLflow's own functions, which have one for the whole process.

        MLflow also writes it to the environment, where the next registry would read it as a default; that is undone.
        """
        import mlflow

        before = {name: os.environ.get(name) for name in (_URI, "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _translate(self, error: Exception, status: int) -> SpinError:
        """Our error for one of MLflow, by its HTTP status."""
        registry = f"registry {mask_credentials(self.uri)}"
        _log.debug("%s: HTTP status %s", registry, status, exc_info=error)
        who = f"the user '{os.environ.get(_USER, '')}'"
        if status == 401:
            return UserError(f"{registry} does not know {who} by this password; set {_USER} and {_PASSWORD}")
        if status == 403:
            return UserError(
                f"{registry} does not allow this to {who}; have the right given in MLflow, or set {_USER} "
                f"and {_PASSWORD} of one who has it"
            )
        reason = f"{registry}: {shorten_message(mask_credentials(str(error)))}"
        if status < 500 and status not in _TRANSIENT:
            return UserError(reason)
        return UnavailableError(f"{reason}; try again")


def _environment_uri() -> str | None:
    """The tracking URI of the environment. Raises UserError for one with a password in it: messages show the URI."""
    uri = os.environ.get(_URI)
    if uri and holds_password(uri):
        raise UserError(f"{_URI}: a password stands in it; expected none; set {_PASSWORD} or PGPASSWORD instead")
    return uri or None


def _default_uri(store_uri: str) -> str:
    store = Store(store_uri)
    folder = Path(store.root).absolute() if store.local else Path.cwd()
    folder.mkdir(0o700, parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    if not database.exists():
        database.touch(0o600)
    return f"sqlite:///{database}"
