"""The child process of an engine trial: it computes some texts in OpenVINO and in torch and reports the difference.

`python -m spin.activations.engines.engine_child REPORT` reads a `TrialRequest` as JSON from standard input and writes a
`Verdict` as JSON to the file REPORT; `spin.backbone.engine_trial` starts it and describes the protocol. It may die
of a signal, which is why it is a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.activations.engines.encoder import BlockSegment
from spin.activations.engines.engine import Engine, TorchEngine
from spin.activations.engines.int8_rounding import measure_scales, round_products
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.arrays import Floats
from spin.backbone.engine_choice import EngineChoice
from spin.backbone.engine_trial import TOLERANCES, TrialRequest, Verdict
from spin.backbone.loading import open_backbone
from spin.backbone.model import Backbone
from spin.errors import UserError, describe_error
from spin.poolings.registry import POOLINGS
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn, Site

_TEXT = (
    "The crew was lovely and the film was fine, but on the seventh day of a long and cold journey the train stood "
    "still under a bright sky. Nobody on it had been told why! A man with a broken table walked to the door, read "
    'the paper twice (it was late, dull and awful), and asked: "What does it cost, 12.50 or 1,300 pounds?" '
)
_SHORT, _LONG = 3, 256
"""tokens of the texts, twice as many where longer ones are read; a backbone without room for them gets shorter ones"""
_BLOCKS = 2
"""blocks that are loaded and run: the code that OpenVINO generates for a block is that of all blocks of its kind, and
families that alternate have two kinds"""
_BFLOAT16_FACTOR = 2
"""OpenVINO in bfloat16 may have so many times the error of torch in bfloat16"""
_NEURON_STEP = 4
"""where few neurons of a site are read, they are every fourth one"""


def try_engine(request: TrialRequest) -> Verdict:
    """Compare OpenVINO with torch in float32 on the first blocks and a few texts; errors are judged, not raised.

    Lack of memory, a missing package and the backbone's files are no errors of the engine.
    """
    code = request.trust_remote_code
    most = max(_LONG, request.max_tokens)
    settings = BackboneSettings(model=request.model, max_tokens=most, device="cpu", trust_remote_code=code)
    try:
        choice = EngineChoice("openvino", request.precision)
        backbone = open_backbone(settings, Path(request.folder), request.digest, "cpu", choice, blocks=_BLOCKS)
    except UserError as error:
        return Verdict("inconclusive", str(error))
    try:
        return compare_engines(backbone)
    except (UserError, ImportError, MemoryError) as error:
        return Verdict("inconclusive", describe_error(error))
    except Exception as error:  # OpenVINO raises many kinds for a graph that it cannot compile or run
        return Verdict("inconclusive" if "bad_alloc" in str(error) else "failed", describe_error(error))


def compare_engines(backbone: Backbone) -> Verdict:
    """The verdict by the column whose error in OpenVINO is largest, measured by what it is allowed.

    The texts run alone and in batches with padding. Of int8 torch rounds the same products. A backbone that loses much
    in bfloat16 in torch too is allowed twice as much in OpenVINO. To find out, its weights are converted to bfloat16
    for good.
    """
    segments, batches = sample_segments(backbone), list(sample_batches(backbone))
    if backbone.precision == "int8":
        backbone.scales = measure_scales(backbone, [_TEXT[start:] for start in range(0, 300, 30)])
    with nullcontext() if backbone.scales is None else round_products(backbone, backbone.scales):
        expected = _run(TorchEngine(backbone, segments), batches)
    errors = _largest_errors(_run(OpenVinoEngine(backbone, segments), batches), expected)
    allowed = dict.fromkeys(errors, TOLERANCES[backbone.precision])
    if backbone.precision == "bfloat16":
        backbone.model.to(torch.bfloat16)
        rounded = _largest_errors(_run(TorchEngine(backbone, segments), batches), expected)
        allowed = {column: max(allowed[column], _BFLOAT16_FACTOR * error) for column, error in rounded.items()}
    column = max(errors, key=lambda c: errors[c] / allowed[c])
    detail = f"relative error {errors[column]:.2g} in {column}, expected at most {allowed[column]:.2g}"
    return Verdict("agrees" if errors[column] <= allowed[column] else "differs", detail)


def relative_error(values: Floats, expected: Floats) -> float:
    """The largest error of a text, as a share of the norm of its values, both (B, p); infinite if one is not finite."""
    if not np.isfinite(values).all():
        return float("inf")
    norms = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(values - expected, axis=1) / np.maximum(norms, 1e-6)).max())


def sample_segments(backbone: Backbone) -> list[BlockSegment]:
    """The blocks in two segments: of the first all neurons are read, of the second few."""
    middle, depth = backbone.depth // 2, backbone.depth

    def columns(sites: Sequence[Site], step: int | None) -> dict[FeatureColumn, NDArray[np.int64] | None]:
        return {
            FeatureColumn(site, pooling.name): None if step is None else np.arange(0, backbone.width(site), step)
            for site in sites
            if site in backbone.sites
            for pooling in POOLINGS
        }

    first = columns([Site(0, "resid"), Site(middle, "resid"), Site(middle, "ffn")], None)
    last = columns([Site(depth, "ffn"), Site(depth, "resid")], _NEURON_STEP)
    last[FeatureColumn(backbone.final_site, "mean")] = None
    if not middle:
        return [BlockSegment(0, depth, first | last)]
    return [BlockSegment(0, middle, first), BlockSegment(middle, depth, last)]


def sample_batches(backbone: Backbone) -> list[tuple[Tensor, Tensor]]:
    """Token ids and masks of three batches: a short text, a short and a long one with padding, and nine short ones.

    OpenVINO fills the batch of nine up (see `BATCH_MULTIPLE`).
    """
    ids = backbone.tokenize([_TEXT * 9]).ids[0]
    nine = [ids[: 2 + row % 7] for row in range(9)]
    return [backbone.pad_batch(batch) for batch in ([ids[:_SHORT]], [ids[:_SHORT], ids[: 2 * _LONG]], nine)]


def _largest_errors(batches: Sequence[dict[str, Floats]], expected: Sequence[dict[str, Floats]]) -> dict[str, float]:
    """The largest error of each column over all batches."""
    pairs = list(zip(batches, expected, strict=True))
    return {column: max(relative_error(a[column], b[column]) for a, b in pairs) for column in expected[0]}


def _run(engine: Engine, batches: Sequence[tuple[Tensor, Tensor]]) -> list[dict[str, Floats]]:
    """The values (B, width) of every column, for each batch."""
    found: list[dict[str, Floats]] = []
    for ids, mask in batches:
        hidden = None
        found.append({})
        for index, segment in enumerate(engine.segments):
            values, hidden, _ = engine.run(index, ids, mask, hidden)
            values = np.array(values)  # the engine may use its memory again
            found[-1] |= {str(column): values[:, part] for column, part in segment.slices(engine.backbone).items()}
    return found


def main() -> None:
    """Run the trial that standard input asks for and write its report."""
    with suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an expected result: write no core file
    message = json.load(sys.stdin)
    torch.set_num_threads(message["threads"])
    verdict = try_engine(TrialRequest(**message["subject"]))
    Path(sys.argv[1]).write_text(json.dumps(asdict(verdict)), encoding="utf-8")


if __name__ == "__main__":
    main()
