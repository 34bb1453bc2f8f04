"""A registry with a version of a tiny classifier in it, at any tracking URI."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.registry.evaluation_set import EvaluationRow, EvaluationSet
from pipelines.registry.versions import Registry, TrainingRecord
from spin import SpinClassifier
from spin.labels.label_space import Label
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings, Settings, parse_settings
from tests.support import tiny

TEXTS = [row["text"] for row in tiny.documents(20, seed=3)]
CARD = "# Model card\n\n" + "\n".join(f"- fact {number} of the corpus" for number in range(300)) + "\n"


class RegistryFixture:
    """A registry with one version, whose stored files can be changed and restored."""

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

    def register(self, evaluation_set: EvaluationSet = EvaluationSet(), fingerprint: str = "f") -> str:  # noqa: B008
        """Register the artifact once more; returns the version's number."""
        record = training_record(evaluation_set, fingerprint, params={"depth": 3}, metrics={"test_accuracy": 0.5})
        return self.registry.register(self.folder / "artifact", record).version

    def change(self, change: Callable[[Path], Any]) -> None:
        """Change the stored files of the version, as anyone with write access to the artifact store can."""
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


def evaluation_set(rows: Sequence[Mapping[str, Any]]) -> EvaluationSet:
    """Documents as `tiny.documents` makes them."""
    return EvaluationSet(tuple(EvaluationRow(row["id"], row["text"], row["label"]) for row in rows))


def training_record(
    frozen: EvaluationSet = EvaluationSet(),  # noqa: B008
    fingerprint: str = "f",
    *,
    params: Mapping[str, float] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> TrainingRecord:
    """What a training of which little matters to the test registers with its artifact."""
    return TrainingRecord(
        params=params or {},
        metrics=metrics or {},
        report="{}",
        example=TEXTS[:2],
        evaluation_set=frozen,
        fingerprint=fingerprint,
    )


def quick_classifier(backbone: BackboneSettings) -> SpinClassifier:
    """One that is not fitted yet and has few penalties and heads to try."""
    quick = SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), l1=(), head="linear")
    return SpinClassifier(backbone, sites=["resid"], probe=ProbeSettings(penalties=3, max_extra=0), search=quick)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by its path in it."""
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
