"""The child process of an engine trial, which computes some texts in OpenVINO and in torch and compares them.

`python -m spin.activations.engine_child REPORT` reads the subject as JSON from standard input. It may die of a signal:
to find that out is what it is for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.activations.encoder import BlockSegment
from spin.activations.engine import Engine, TorchEngine
from spin.activations.openvino_engine import OpenVinoEngine
from spin.backbone.engine_choice import EngineChoice
from spin.backbone.engine_trial import TOLERANCES, Report, Subject
from spin.backbone.loading import open_backbone
from spin.backbone.model import Backbone
from spin.backbone.pooling import POOLINGS
from spin.errors import UserError
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

Floats = NDArray[np.floating]
_TEXT = (
    "The crew was lovely and the film was fine, but on the seventh day of a long and cold journey the train stood "
    "still under a bright sky. Nobody on it had been told why! A man with a broken table walked to the door, read "
    'the paper twice (it was late, dull and awful), and asked: "What does it cost, 12.50 or 1,300 pounds?" '
)
_LENGTHS = (3, 40, 256)
"""tokens of the texts, where the backbone has room for them"""
_OWN = 2
"""times the error of torch in bfloat16 that OpenVINO in bfloat16 may have"""
_FEW = 4
"""one neuron in so many is picked where few are read"""


def try_out(subject: Subject) -> Report:
    """How far OpenVINO is from torch in float32 on texts of several lengths."""
    settings = BackboneSettings.model_validate(
        {
            "model": subject.model,
            "max_tokens": max(_LENGTHS),
            "device": "cpu",
            "trust_remote_code": subject.trust_remote_code,
        }
    )
    try:
        choice = EngineChoice("openvino", subject.precision)
        backbone = open_backbone(settings, Path(subject.folder), subject.digest, "cpu", choice)
    except UserError as error:
        return Report(error=str(error), judged=False)
    try:
        return compare(backbone)
    except (UserError, ImportError, MemoryError) as error:
        return Report(error=f"{type(error).__name__}: {error}"[:500], judged=False)
    except Exception as error:  # whatever OpenVINO raises on a graph that it cannot compile or run
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        return Report(error=said, judged="bad_alloc" not in said)


def compare(backbone: Backbone) -> Report:
    """The largest error of OpenVINO, over texts alone and in batches with padding, and the column that has it.

    A backbone that bfloat16 moves far in torch as well may be moved twice as far. Computes in bfloat16 from then on.
    """
    segments, batches = sample_groups(backbone), list(sample_batches(backbone))
    expected = [_run(TorchEngine(backbone, segments), *batch) for batch in batches]
    calibration = [_TEXT[start:] for start in range(0, 300, 30)] if backbone.precision == "int8" else []
    engine = OpenVinoEngine(backbone, segments, calibration)
    found = [_run(engine, *batch) for batch in batches]
    errors = _errors(found, expected)
    allowed = dict.fromkeys(errors, TOLERANCES[backbone.precision])
    if backbone.precision == "bfloat16":
        backbone.model.to(torch.bfloat16)
        rounded = [_run(TorchEngine(backbone, segments), *batch) for batch in batches]
        allowed = {c: max(allowed[c], _OWN * error) for c, error in _errors(rounded, expected).items()}
    column = max(errors, key=lambda c: errors[c] / allowed[c])
    return Report(errors[column], column, allowed[column])


def _errors(found: Sequence[dict[str, Floats]], expected: Sequence[dict[str, Floats]]) -> dict[str, float]:
    """The largest error of each column over some batches."""
    pairs = list(zip(found, expected, strict=True))
    return {column: max(difference(a[column], b[column]) for a, b in pairs) for column in expected[0]}


def difference(found: Floats, expected: Floats) -> float:
    """The largest error of a text (B, p), as a share of its values; infinite where one is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    sizes = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(found - expected, axis=1) / np.maximum(sizes, 1e-6)).max())


def sample_groups(backbone: Backbone) -> list[BlockSegment]:
    """All blocks in two groups: of the first all neurons of some sites are read, of the second few.

    Most blocks are not read, so that what OpenVINO fuses within a block is fused.
    """
    middle = backbone.depth // 2
    first = [site for site in (Site(0, "resid"), Site(middle, "resid"), Site(middle, "ffn")) if site in backbone.sites]
    last = [site for site in (Site(backbone.depth, "resid"), Site(backbone.depth, "ffn")) if site in backbone.sites]
    whole: dict[FeatureColumn, NDArray[np.int64] | None] = {
        FeatureColumn(site, p): None for site in first for p in POOLINGS
    }
    few: dict[FeatureColumn, NDArray[np.int64] | None] = {
        FeatureColumn(site, p): np.arange(0, backbone.width(site), _FEW) for site in sorted(last) for p in POOLINGS
    }
    few[FeatureColumn(backbone.final, "mean")] = None
    if not middle:
        return [BlockSegment(0, backbone.depth, whole | few)]
    return [BlockSegment(0, middle, whole), BlockSegment(middle, backbone.depth, few)]


def sample_batches(backbone: Backbone) -> list[tuple[Tensor, Tensor]]:
    """Token ids and mask of texts alone, of them all with padding, and of so many that a batch is filled up."""
    ids = backbone.tokenize([_TEXT * 9]).ids[0]
    rows = [ids[:length] for length in _LENGTHS]
    short = [ids[: 2 + row % 7] for row in range(9)]
    return [backbone.batch(of) for of in ([rows[0]], [rows[-1]], rows, short)]


def _run(engine: Engine, ids: Tensor, mask: Tensor) -> dict[str, Floats]:
    """The values of every column."""
    found: dict[str, Floats] = {}
    hidden = None
    for index, segment in enumerate(engine.segments):
        values, hidden = engine.run(index, ids, mask, hidden)
        ends: Sequence[int] = np.cumsum(segment.widths(engine.backbone))[:-1].tolist()
        found |= dict(zip(map(str, segment.neurons), np.split(np.array(values), ends, axis=1), strict=True))
    return found


def main() -> None:
    with suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected and its memory of no use
    question = json.load(sys.stdin)
    torch.set_num_threads(question["threads"])
    report = try_out(Subject(**question["subject"]))
    Path(sys.argv[1]).write_text(json.dumps(asdict(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
