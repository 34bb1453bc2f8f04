"""The frozen evaluation set: the labelled documents on which all versions of a registered model are compared."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.errors import UserError
from spin.labels.label_space import Label

_FILE = "evaluation/evaluation.json"
"""artifact of the MLflow run that registered the first version"""
_RUN_TAG, _DIGEST_TAG = "spin.evaluation.run", "spin.evaluation.digest"
"""tags of the registered model"""
_FIELDS = ("id", "text", "label")


@dataclass(frozen=True)
class EvaluationSet:
    """The test documents of the first version, kept unchanged for all later ones; none where its corpus had none."""

    ids: Sequence[str] = ()
    """as in the corpus; the documents are left out of later trainings, and so are near-identical texts"""
    texts: Sequence[str] = ()
    labels: Sequence[Label] = ()
    """a class each, or in a multi-label task a list of classes"""

    def __len__(self) -> int:
        return len(self.ids)

    def to_json(self) -> bytes:
        """The set as it is stored: a JSON list of one object per document."""
        return b"".join(self.json_parts())

    def json_parts(self) -> Iterator[bytes]:
        """The same, a document at a time, since there may be many."""
        yield b"["
        for number, row in enumerate(zip(self.ids, self.texts, self.labels, strict=True)):
            yield (b", " if number else b"") + json.dumps(dict(zip(_FIELDS, row, strict=True))).encode()
        yield b"]"

    @classmethod
    def from_json(cls, data: bytes) -> EvaluationSet:
        rows = json.loads(data)
        return cls(*([row[name] for row in rows] for name in _FIELDS))


def read_frozen(client: Any, name: str, tags: Mapping[str, str]) -> EvaluationSet | None:
    """Return the frozen set of the registered model `name` by the model's tags; None before the first version.

    `client` is an MlflowClient. Raises UserError when the stored file is not the one that was frozen.
    """
    if _RUN_TAG not in tags:
        return None
    with tempfile.TemporaryDirectory() as folder:
        data = Path(client.download_artifacts(tags[_RUN_TAG], _FILE, folder)).read_bytes()
    digest, expected = hashlib.sha256(data).hexdigest(), tags[_DIGEST_TAG]
    if digest != expected:
        raise UserError(
            f"the frozen evaluation set of {name} has digest {digest[:12]}, expected {expected[:12]}; restore {_FILE} "
            f"of run {tags[_RUN_TAG]}"
        )
    return EvaluationSet.from_json(data)


def freeze(client: Any, name: str, tags: Mapping[str, str], run_id: str, evaluation_set: EvaluationSet) -> None:
    """Store the set with an MLflow run and tag the registered model with it, unless a set is frozen already."""
    if _RUN_TAG in tags:
        return
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(_FILE).name
        with path.open("wb") as file:
            for part in evaluation_set.json_parts():
                file.write(part)
                digest.update(part)
        client.log_artifact(run_id, str(path), str(Path(_FILE).parent))
    client.set_registered_model_tag(name, _DIGEST_TAG, digest.hexdigest())
    client.set_registered_model_tag(name, _RUN_TAG, run_id)
