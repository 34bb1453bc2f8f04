"""A registry that holds one version of a tiny classifier, at any tracking URI."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion.subprocess_predict import PredictionReply, PredictionRequest, parse_reply, reply_to
from pipelines.registry.version_records import LoggedData, TrainingRecord
from pipelines.registry.versions import Registry
from spin import SpinClassifier
from spin.labels.label_space import Label
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings, Settings, parse_settings
from tests.support import tiny

TEXTS = [row["text"] for row in tiny.make_documents(20, seed=3)]
CARD = "# Model card\n\n" + "\n".join(f"- fact {number} of the corpus" for number in range(300)) + "\n"
DATA = LoggedData(name="reviews", source="reviews.csv", digest="0123456789abcdef", profile={"documents": 120})


class RegistryFixture:
    """A registry with one version, whose stored files can be changed and restored."""

    def __init__(
        self,
        folder: Path,
        backbone: Path,
        uri: str,
        /,
        *,
        multilabel: bool = False,
        evaluation_set: EvaluationSet = EvaluationSet(),  # noqa: B008
        **changes: Any,
    ) -> None:
        self.folder, self.settings = folder, _build_settings(folder, backbone, uri, changes)
        rows = tiny.make_documents(120)
        labels: Sequence[Label] = [row["label"] for row in rows]
        if multilabel:  # a third class next to good and bad
            labels = [[str(row["label"])] + ["film"] * ("film" in row["text"]) for row in rows]
        classifier = build_quick_classifier(self.settings.backbone)
        self.spin = classifier.fit([row["text"] for row in rows], labels).trained_
        self.spin.save(folder / "artifact")
        (folder / "artifact" / "MODEL_CARD.md").write_text(CARD)
        self.labels = self.spin.predict(TEXTS)
        self.registry = Registry(self.settings)
        self.name = self.registry.name
        self.register(evaluation_set)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracking = self.registry.tracking
        location = tracking.client.get_model_version_download_uri(self.name, "1")
        self._store = get_artifact_repository(location, tracking_uri=tracking.uri)
        self._original = Path(tempfile.mkdtemp(dir=folder))
        self._store.download_artifacts("", str(self._original))
        self._stored = read_files(self._original)

    def register(self, evaluation_set: EvaluationSet = EvaluationSet(), fingerprint: str = "f") -> str:  # noqa: B008
        """Register the artifact once more; return the version number."""
        record = build_training_record(evaluation_set, fingerprint, params={"depth": 3}, metrics={"test_accuracy": 0.5})
        return self.registry.register(self.folder / "artifact", record).version

    def change(self, change: Callable[[Path], Any]) -> None:
        """Change the stored files of the version, as anyone with write access to the artifact store can."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self._original, folder, dirs_exist_ok=True)
            change(Path(folder))
            self._upload(Path(folder))

    def restore(self) -> None:
        """Undo the changes."""
        self._upload(self._original)

    def _upload(self, folder: Path) -> None:
        files = read_files(folder)
        for name in self._stored.keys() - files.keys():
            self._store.delete_artifacts(name)
        for name in files:
            if self._stored.get(name) != files[name]:
                self._store.log_artifact(str(folder / name), str(Path(name).parent).removeprefix("."))
        self._stored = files


def build_evaluation_set(rows: Sequence[Mapping[str, Any]]) -> EvaluationSet:
    """Build an evaluation set of documents from `tiny.make_documents`."""
    return EvaluationSet(*([row[name] for row in rows] for name in ("id", "text", "label")))


def build_training_record(
    evaluation_set: EvaluationSet = EvaluationSet(),  # noqa: B008
    fingerprint: str = "f",
    *,
    params: Mapping[str, float] | None = None,
    metrics: Mapping[str, float] | None = None,
    data: LoggedData = DATA,
) -> TrainingRecord:
    """Build the record that training registers with its artifact, with placeholder values."""
    return TrainingRecord(
        params=params or {},
        metrics=metrics or {},
        report="{}",
        evaluation_set=evaluation_set,
        fingerprint=fingerprint,
        data=data,
    )


def build_quick_classifier(backbone: BackboneSettings | Path, **options: Any) -> SpinClassifier:
    """Build an unfitted classifier that tries few penalties and heads; the options are those of SpinClassifier."""
    search = SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), network="off", words="off")
    quick = {"sites": ["resid"], "probe": ProbeSettings(penalties=3, max_extra=0), "search": search}
    return SpinClassifier(str(backbone) if isinstance(backbone, Path) else backbone, **{**quick, **options})


def predict_in_this_process(model: Path, texts: Sequence[str], settings: Settings) -> PredictionReply:
    """Predict with a logged model as the fresh process does, without the ten seconds that its imports take."""
    request = PredictionRequest.of(texts, settings).model_dump_json()
    return parse_reply(reply_to(request, str(model)))


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, by its path relative to the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _build_settings(folder: Path, backbone: Path, uri: str, changes: dict[str, Any]) -> Settings:
    tree: dict[str, Any] = {
        "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu"},
        "data": {"train": "none"},
        "store": str(folder / "store"),
        # a unique name, since tests share the registry
        "mlflow": {"model": f"tiny {uuid.uuid4().hex[:8]}", "tracking_uri": uri},
    }
    return parse_settings(tree | changes)
