"""A registry with a version of a tiny classifier in it, at any tracking URI."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.registry.versions import Registry
from spin import SpinClassifier
from spin.labels.label_space import Label
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings, Settings, parse_settings
from tests.support import tiny

TEXTS = [row["text"] for row in tiny.documents(20, seed=3)]
CARD = "# Model card\n\n" + "\n".join(f"- fact {number} of the corpus" for number in range(300)) + "\n"


class RegistryFixture:
    """A registry with one version, and what MLflow keeps of it."""

    def __init__(self, folder: Path, backbone: Path, uri: str, /, *, multilabel: bool = False, **changes: Any) -> None:
        self.folder, self.settings = folder, _settings(folder, backbone, uri, changes)
        rows = tiny.documents(120)
        labels: Sequence[Label] = [row["label"] for row in rows]
        if multilabel:  # a class of its own beside good and bad
            labels = [[str(row["label"])] + ["film"] * ("film" in row["text"]) for row in rows]
        self.spin = quick_classifier(self.settings.backbone).fit([row["text"] for row in rows], labels)
        self.spin.save(folder / "artifact")
        (folder / "artifact" / "MODEL_CARD.md").write_text(CARD)
        self.labels = self.spin.predict(TEXTS)
        self.registry = Registry(self.settings)
        self.name = self.registry.name
        self.register()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracking = self.registry.tracking
        location = tracking.client.get_model_version_download_uri(self.name, "1")
        self._store = get_artifact_repository(location, tracking_uri=tracking.uri)
        self._kept = Path(tempfile.mkdtemp(dir=folder))
        self._store.download_artifacts("", str(self._kept))
        self._held = files(self._kept)

    def register(self, evaluation: Sequence[dict[str, Any]] = (), fingerprint: str = "f") -> str:
        """Registers the artifact once more; gives the version's number."""
        artifact = self.folder / "artifact"
        told: dict[str, Any] = {"params": {"depth": 3}, "metrics": {"test_accuracy": 0.5}, "facts": {}}
        found = self.registry.register(
            artifact, example=TEXTS[:2], evaluation=list(evaluation), fingerprint=fingerprint, **told
        )
        return str(found["version"])

    def change(self, change: Callable[[Path], Any]) -> None:
        """Does with what MLflow keeps of the version what one may who has a right to write there."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self._kept, folder, dirs_exist_ok=True)
            change(Path(folder))
            self._put(Path(folder))

    def restore(self) -> None:
        self._put(self._kept)

    def _put(self, folder: Path) -> None:
        wanted = files(folder)
        for name in self._held.keys() - wanted.keys():
            self._store.delete_artifacts(name)
        for name in wanted:
            if self._held.get(name) != wanted[name]:
                self._store.log_artifact(str(folder / name), str(Path(name).parent).removeprefix("."))
        self._held = wanted


def quick_classifier(backbone: BackboneSettings) -> SpinClassifier:
    """One that is not fitted yet and has few penalties and heads to try."""
    quick = SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), l1=(), head="linear")
    return SpinClassifier(backbone, sites=["resid"], probe=ProbeSettings(penalties=3, max_extra=0), search=quick)


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _settings(folder: Path, backbone: Path, uri: str, changes: dict[str, Any]) -> Settings:
    tree: dict[str, Any] = {
        "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {"train": "none"},
        "store": str(folder / "store"),
        # a registry keeps the models of other tests too
        "mlflow": {"model": f"tiny {uuid.uuid4().hex[:8]}", "tracking_uri": uri},
    }
    return parse_settings(tree | changes)
