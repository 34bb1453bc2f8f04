"""A night: one version of the champion over a batch of documents, every row predicted or dead-lettered."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import corpus
from pipelines.documents import Documents, Shard, is_unicode
from pipelines.lease import Lease
from pipelines.manifest import Plan, finish, finished, freeze
from pipelines.registry import Registry
from pipelines.shards import map_shards
from pipelines.store import Store
from spin import artifact
from spin.classifier import SpinClassifier
from spin.errors import BadRowsError, UserError
from spin.settings import Settings
from spin.task import Label, names_of

FORMAT = 2
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
DEAD_LETTERS = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)


def predictions_schema(multilabel: bool) -> pa.Schema:
    """The columns of predictions; the label is a list of classes in a multi-label task, null where there is none."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.list_(pa.string()) if multilabel else pa.string()),
            ("score", pa.float32()),
            ("scores", pa.list_(pa.float32())),
            ("depth", pa.int32()),
            ("model_version", pa.string()),
        ]
    )


class ClassifyStep:
    """Reads a shard and gives its predictions and its dead letters."""

    def __init__(
        self,
        model: Store,
        version: str,
        settings: Settings,
        repeats: dict[str, list[int]],
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in (artifact.CONFIG, artifact.TENSORS):
                (Path(folder) / name).write_bytes(model.read(name) or b"")
            self.spin = SpinClassifier.load(
                folder, backbone=settings.backbone, choose=settings.choose, decision=settings.decision
            )
        _ = self.spin.backbone  # loaded once, before the first shard
        self.version, self.data, self.repeats = version, settings.data, repeats

    def __call__(self, shard: Shard) -> tuple[dict[str, bytes], dict[str, Any]]:
        documents = corpus.read_shard(shard, self.data)
        dead = triage(documents, self.repeats.get(shard.name, ()))
        rows = [row for row in range(len(documents)) if row not in dead]
        features = self.spin.features([documents.texts[row] for row in rows])
        values = np.concatenate(list(features.columns.values()), axis=1)
        scores = self.spin.task.probabilities(self.spin.integration.logits(values))
        chosen = self.spin.labels(scores)
        predictions = pa.table(
            [
                [documents.ids[row] for row in rows],
                chosen,
                self._score(scores, chosen),
                list(scores.astype(np.float32)),
                np.full(len(rows), self.spin.depth, np.int32),
                [self.version] * len(rows),
            ],
            schema=predictions_schema(self.spin.task.multilabel),
        )
        letters = [
            {
                "id": _unicode(documents.ids[row]),
                "shard": shard.name,
                "row": row,
                "reason": reason,
                "message": message,
            }
            for row, (reason, message) in sorted(dead.items())
        ]
        outcome = {
            "rows": len(documents),
            "predicted": len(rows),
            "dead": len(letters),
            "reasons": dict(Counter(reason for reason, _ in dead.values())),
            "labels": dict(Counter(name for label in chosen for name in names_of(label))),
            "abstained": sum(label is None for label in chosen),
            "tokens": int(features.n_tokens.sum()),
            "truncated": features.truncated,
        }
        files = {"predictions.parquet": _to_parquet(predictions)}
        if letters:
            files["dead.parquet"] = _to_parquet(pa.Table.from_pylist(letters, schema=DEAD_LETTERS))
        return files, outcome

    def _score(self, scores: NDArray[np.floating], chosen: Sequence[Label | None]) -> list[float]:
        """The probability of each label; the largest where that is a list or none."""
        at = {name: k for k, name in enumerate(self.spin.classes)}
        return [
            row[at[label]] if isinstance(label, str) else row.max() for row, label in zip(scores, chosen, strict=True)
        ]


def triage(documents: Documents, repeats: Iterable[int]) -> dict[int, tuple[str, str]]:
    """The rows that cannot be classified, each with a reason and what was found; no text of the document is in it."""
    repeated = set(repeats)
    dead: dict[int, tuple[str, str]] = {}
    for row, (id, text) in enumerate(zip(documents.ids, documents.texts, strict=True)):
        if row in documents.malformed:
            dead[row] = "malformed", documents.malformed[row]
        elif id is None:
            dead[row] = "null_id", "the id is null or empty"
        elif not is_unicode(id):
            dead[row] = "bad_id", "the id holds lone surrogates, expected Unicode"
        elif row in repeated:
            dead[row] = "repeated_id", "the id was seen before in this run"
        elif text is None:
            dead[row] = "null_text", "the text is null"
        elif not isinstance(text, str):
            dead[row] = "not_text", f"the text is {type(text).__name__}, expected a string"
        elif not text.strip():
            dead[row] = "empty_text", "the text is empty"
        elif not is_unicode(text):
            dead[row] = "not_text", "the text holds lone surrogates, expected Unicode"
    return dead


def run_classify(
    settings: Settings,
    registry: Registry,
    source: str,
    output: str,
    *,
    model: str | None = None,
    night: str | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Classify a batch and publish it under `output`, giving the manifest.

    While it runs, parts lie under `_runs/DATE/`; after the manifest, whole parts are put into
    `predictions/date=DATE/` and `dead_letters/date=DATE/`, and `latest` moves last. Raises HeldError where another
    run works here, BadRowsError, with nothing published, for more dead letters than the settings allow.
    """
    night = _night(night)
    out = Store(output)
    run = out / f"_runs/{night}"
    version = registry.resolve(model)
    files = corpus.list_files(source)
    with Lease(out) as lease, tempfile.TemporaryDirectory() as folder:
        registry.download(version, Path(folder))
        facts = _facts(settings, registry, version, Path(folder), files)
        plan = freeze(run, "classify", facts, lambda: _plan(settings, files), restart=restart)
        for name in (artifact.CONFIG, artifact.TENSORS):
            run.write(f"model/{name}", (Path(folder) / name).read_bytes())
        manifest = finished(run, plan)
        if manifest is None:
            manifest = _run(settings, run, plan, version, files, lease)
        _check_share(settings, manifest["counts"])
        if not run.exists("published.json"):
            lease.check()
            _publish(out, run, night, manifest)
        return manifest


def _run(
    settings: Settings, run: Store, plan: Plan, version: str, files: list[corpus.File], lease: Lease
) -> dict[str, Any]:
    shards = [Shard(**shard) for shard in plan.detail["shards"]]
    outcomes = map_shards(
        ClassifyStep,
        (run / "model", version, settings, plan.detail["repeats"]),
        shards,
        run,
        settings.ray,
        stage="classify",
        documents=plan.detail["documents"],
        lease=lease,
    )
    counts = {
        name: sum(outcome[name] for outcome in outcomes)
        for name in ("rows", "predicted", "abstained", "dead", "tokens", "truncated")
    }
    counts["truncated_share"] = round(counts["truncated"] / max(1, counts["predicted"]), 4)
    for name in ("reasons", "labels"):
        counts[name] = dict(sum((Counter(outcome[name]) for outcome in outcomes), Counter()))
    lease.check()
    return finish(
        run,
        plan,
        model_version=version,
        inputs=corpus.describe(files),
        counts=counts,
        seconds=round(sum(outcome["seconds"] for outcome in outcomes), 1),
        shards=outcomes,
    )


def _publish(out: Store, run: Store, night: str, manifest: dict[str, Any]) -> None:
    """Put whole parts where readers look; what an earlier run of the same night left there goes first.

    `latest` goes before it if it names this night, so that no reader takes half of the new parts for a night.
    """
    latest = out.read_json("latest")
    if latest is not None and latest["date"] == night:
        out.delete("latest")
    for kind, ending in (("predictions", "predictions.parquet"), ("dead_letters", "dead.parquet")):
        out.delete(f"{kind}/date={night}")
        for key in _files(manifest, ending):
            out.copy(f"_runs/{night}/{key}", f"{kind}/date={night}/{_part(key)}")
    report = {name: value for name, value in manifest.items() if name != "shards"}
    out.write_json("report.json", {"date": night, **report})
    out.write_json("latest", {"date": night, "manifest": f"_runs/{night}/manifest.json"})
    run.write_json("published.json", {"at": datetime.now(UTC).isoformat(timespec="seconds")})


def read_predictions(output: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of the latest night, by the readers' contract: `latest`, its manifest, the parts."""
    out = Store(output)
    latest = out.read_json("latest")
    manifest = None if latest is None else out.read_json(latest["manifest"])
    if manifest is None:
        raise UserError(f"{output} has no finished night; `spin classify` makes one")
    rows: list[dict[str, Any]] = []
    for key in _files(manifest, "predictions.parquet"):
        with out.open(f"predictions/date={latest['date']}/{_part(key)}") as file:
            rows += pq.read_table(file).to_pylist()
        if count is not None and len(rows) >= count:
            return rows[:count]
    return rows


def _files(manifest: dict[str, Any], ending: str) -> list[str]:
    """The parts of one kind, in plan order."""
    return [key for outcome in manifest["shards"] for key in outcome["files"] if key.endswith(ending)]


def _part(key: str) -> str:
    """The published name of a part."""
    return f"part-{Path(key).name.partition('.')[0]}.parquet"


def _plan(settings: Settings, files: list[corpus.File]) -> dict[str, Any]:
    shards = corpus.plan_shards(files, settings.ray.shard_documents, settings.data)
    repeats, rows = ({}, 0) if settings.data.ids == "trusted" else corpus.find_repeats(shards, settings.data)
    estimated = rows or sum(shard.stop - shard.start for shard in shards if not shard.by_bytes)
    return {
        "shards": [asdict(shard) for shard in shards],
        "repeats": {f"{index:06d}": rows for index, rows in repeats.items()},
        "documents": estimated,
    }


def _facts(
    settings: Settings, registry: Registry, version: str, artifact: Path, files: Sequence[corpus.File]
) -> dict[str, Any]:
    """What changes predictions; not worker counts, logging or the share of dead letters that is allowed."""
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
    return {
        "format": FORMAT,
        "model": {"name": registry.name, "version": version, "backbone": config["backbone"]["digest"]},
        "choose": settings.choose,
        "decision": settings.decision.model_dump(),
        "backbone": settings.backbone.model_dump(
            include={"dtype", "max_tokens", "batch_tokens", "pool_special_tokens"}
        ),
        "data": {**settings.data.model_dump(include={"id", "text", "ids"}), "files": corpus.describe(files)},
        "shard_documents": settings.ray.shard_documents,
    }


def _check_share(settings: Settings, counts: dict[str, Any]) -> None:
    allowed = settings.classify.max_dead_fraction
    if counts["dead"] > allowed * counts["rows"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(counts["reasons"]).most_common(4))
        raise BadRowsError(
            f"{counts['dead']} of {counts['rows']} rows cannot be classified ({reasons}), more than "
            f"classify.max_dead_fraction {allowed} allows; mend them, or raise it and run again"
        )


def _night(night: str | None) -> str:
    if night is None:
        return datetime.now(UTC).date().isoformat()
    try:
        if _DATE.fullmatch(night):
            return date.fromisoformat(night).isoformat()
    except ValueError:
        pass
    raise UserError(f"--date {night}: expected a day as YYYY-MM-DD")


def _unicode(text: str | None) -> str | None:
    """The text with lone surrogates, which no Arrow string can hold, replaced."""
    return None if text is None else text.encode(errors="replace").decode()


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
