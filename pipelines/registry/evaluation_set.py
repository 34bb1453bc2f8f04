"""The frozen evaluation set: the labelled documents on which all versions of a registered model are compared."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.storage.lease import Lease
from spin.arrays import Hashes
from spin.errors import UserError
from spin.labels.label_space import Label
from spin.labels.splits import certifies

_FILE = "evaluation/evaluation.json"
"""artifact of the MLflow run that registered the first version"""
_RUN_TAG, _DIGEST_TAG, _NEXT_TAG = "spin.evaluation.run", "spin.evaluation.digest", "spin.evaluation.next"
"""tags of the registered model; the last one is there while the set is being replaced"""
_FIELDS = ("id", "text", "label", "group")
"""of a stored document; sets that were frozen before groups were kept have no groups"""


@dataclass(frozen=True)
class EvaluationSet:
    """The test documents of the first version that has some, kept unchanged for all later ones."""

    ids: Sequence[str] = ()
    """as in the corpus; the documents are left out of later trainings, and so are near-identical texts"""
    texts: Sequence[str] = ()
    labels: Sequence[Label] = ()
    """a class each, or in a multi-label task a list of classes"""
    groups: Sequence[str] = ()
    """hash of the group of each in hexadecimal digits, see `split_groups`; empty if each stands for itself"""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def gate_half(self) -> EvaluationSet:
        """The documents by which the gate compares versions."""
        return self.take([row for row, group in enumerate(self._units) if not certifies(group)])

    @property
    def certificate_half(self) -> EvaluationSet:
        """The documents that the gate never reads: promises, estimates of quality and costs rest on them."""
        return self.take([row for row, group in enumerate(self._units) if certifies(group)])

    def take(self, rows: Sequence[int]) -> EvaluationSet:
        """Some of the documents."""
        return EvaluationSet(*([column[row] for row in rows] for column in self._columns))

    @property
    def group_hashes(self) -> Hashes | None:
        """(n,) the group of each document; None if each stands for itself."""
        return np.array([int(group, 16) for group in self.groups], np.uint64) if self.groups else None

    @property
    def _units(self) -> Sequence[object]:
        """(n,) what the half of each document is decided by."""
        return self.ids if self.group_hashes is None else self.group_hashes.tolist()

    def to_json(self) -> bytes:
        """The set as it is stored: a JSON list of one object per document."""
        return b"".join(self.json_parts())

    def json_parts(self) -> Iterator[bytes]:
        """The parts of the stored set, a document at a time, since there may be many."""
        yield b"["
        for number, row in enumerate(zip(*self._columns, strict=True)):
            yield (b", " if number else b"") + json.dumps(dict(zip(_FIELDS, row, strict=False))).encode()
        yield b"]"

    @classmethod
    def from_json(cls, data: bytes) -> EvaluationSet:
        rows = json.loads(data)
        return cls(*([row[name] for row in rows] for name in _FIELDS if not rows or name in rows[0]))

    @property
    def _columns(self) -> tuple[Sequence[Any], ...]:
        columns = (self.ids, self.texts, self.labels)
        return (*columns, self.groups) if self.groups else columns


def read_frozen(client: Any, name: str, tags: Mapping[str, str]) -> EvaluationSet:
    """Return the frozen set of the registered model `name` by the model's tags; an empty one before the first version.

    `client` is an MlflowClient. Raises UserError when the stored file is not the one that was frozen.
    """
    if _RUN_TAG not in tags:
        return EvaluationSet()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(client.download_artifacts(tags[_RUN_TAG], _FILE, folder)).read_bytes()
    digest, expected = hashlib.sha256(data).hexdigest(), tags[_DIGEST_TAG]
    if digest not in (expected, tags.get(_NEXT_TAG)):
        raise UserError(
            f"the frozen evaluation set of {name} has digest {digest[:12]}, expected {expected[:12]}; restore {_FILE} "
            f"of run {tags[_RUN_TAG]}"
        )
    return EvaluationSet.from_json(data)


def freeze(client: Any, name: str, tags: Mapping[str, str], run_id: str, evaluation_set: EvaluationSet) -> bool:
    """Store the set with an MLflow run and tag the registered model with it, unless a set is frozen already.

    Returns whether it was frozen by this call. One without documents is not: the first version that has test documents
    freezes its own.
    """
    if _RUN_TAG in tags or not len(evaluation_set):
        return False
    with tempfile.TemporaryDirectory() as folder:
        path, digest = _write(evaluation_set, Path(folder))
        client.log_artifact(run_id, str(path), str(Path(_FILE).parent))
    client.set_registered_model_tag(name, _DIGEST_TAG, digest)
    client.set_registered_model_tag(name, _RUN_TAG, run_id)
    return True


def replace_frozen(
    client: Any, name: str, tags: Mapping[str, str], evaluation_set: EvaluationSet, lease: Lease
) -> None:
    """Replace the frozen set of the registered model `name`, from which documents were forgotten.

    Its digest is announced first and settled last, so that the set can be read, the old one or the new one, wherever a
    process ends in between. Predictions of former champions that gates have stored are for the old set, and no longer
    compared with. Raises HeldError, with nothing more written, once another process has the lease.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, digest = _write(evaluation_set, Path(folder))
        lease.check()
        client.set_registered_model_tag(name, _NEXT_TAG, digest)
        lease.check()
        client.log_artifact(tags[_RUN_TAG], str(path), str(Path(_FILE).parent))
    settle_frozen(client, name, {_NEXT_TAG: digest}, evaluation_set, lease)


def settle_frozen(client: Any, name: str, tags: Mapping[str, str], stored: EvaluationSet, lease: Lease) -> None:
    """End a replacement of the frozen set, if the model's tags say that one was begun, given the set that is stored.

    Where that is the announced one, its digest becomes that of the model. Raises as `replace_frozen`.
    """
    if _NEXT_TAG not in tags:
        return
    lease.check()
    if hashlib.sha256(stored.to_json()).hexdigest() == tags[_NEXT_TAG]:
        client.set_registered_model_tag(name, _DIGEST_TAG, tags[_NEXT_TAG])
    client.delete_registered_model_tag(name, _NEXT_TAG)


def _write(evaluation_set: EvaluationSet, folder: Path) -> tuple[Path, str]:
    """Write a set to a folder, a document at a time; return the file and its sha256."""
    digest, path = hashlib.sha256(), folder / Path(_FILE).name
    with path.open("wb") as file:
        for part in evaluation_set.json_parts():
            file.write(part)
            digest.update(part)
    return path, digest.hexdigest()
