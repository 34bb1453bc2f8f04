"""A classifier as one graph for other runtimes: token ids in, scores out, with no torch where it runs."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from spin.activations.encoder import NeuronEncoder, split_segments
from spin.arrays import Floats
from spin.backbone.hub import silence_transformers
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.heads.decision import Decision
from spin.heads.fitted import FittedClassifier
from spin.heads.mlp_head import MlpHead

NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""the formats, and the packages that write and run them"""
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "scores"
_OPSET = 17  # the first with layer normalisation as one operation
_TOLERANCE = 1e-3
_TRIED = ("a", "It wasn't “late”: 9:45, naïve — so what?", "the crew was lovely and ")
"""texts on which a graph is held against torch; the last is repeated until it is cut"""

Run = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]


def export(spin: SpinClassifier, folder: str | Path, kind: str) -> list[str]:
    """Write a classifier at full depth and in float32 as `onnx` or `openvino` into a new or empty folder.

    There are then the graph, from `input_ids` and `attention_mask` (B, T) int64 to calibrated `scores` (B, K);
    tokenizer.json, which cuts and pads; config.json, with the classes and their thresholds. Gives the files' names.
    Raises UserError for another format, one whose packages are not installed, a folder that is not empty, or a
    backbone that the format does not compute as torch does; nothing is written then.
    """
    folder = Path(folder).resolve()
    check(folder, kind)
    plain = {"dtype": "float32", "engine": "torch", "device": "cpu"}
    backbone = load_backbone(spin.settings.model_copy(update=plain), expect_digest=spin.backbone_digest)
    backbone.truncate(spin.depth)
    scorer = Scorer(backbone, spin.fitted, spin.label_space.multilabel).eval()
    tokenizer = _tokenizer(backbone)
    there = folder.is_dir()  # it may be a mount, which nothing can take the place of
    with tempfile.TemporaryDirectory(dir=folder if there else folder.parent) as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()  # with the rights that a folder has here
        run = _write_onnx(scorer, staged) if kind == "onnx" else _write_openvino(scorer, staged)
        _compare(scorer, tokenizer, run, kind)
        tokenizer.save(str(staged / TOKENIZER))
        config = json.dumps(_config(spin, backbone, kind), indent=2, ensure_ascii=False)
        (staged / CONFIG).write_text(config + "\n", encoding="utf-8")
        if not there:
            staged.replace(folder)
        else:
            for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG):  # which says that all is there
                path.replace(folder / path.name)
    return sorted(path.name for path in folder.iterdir())


def check(folder: Path, kind: str) -> None:
    """Before any work is spent: raise UserError for what could not be written there."""
    if kind not in NEEDS:
        raise UserError(f"format '{kind}': expected one of {', '.join(NEEDS)}")
    absent = [name for name in NEEDS[kind] if find_spec(name) is None]
    if absent:
        extra = "export" if kind == "onnx" else "openvino"
        raise UserError(f"format {kind}: {absent[0]} is not installed; pip install 'spin-neurons[{extra}]'")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new or empty folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


class Scorer(nn.Module):
    """From token ids and mask (B, T) to calibrated scores (B, K): the cut backbone, the chosen neurons, their head."""

    def __init__(self, backbone: Backbone, fitted: FittedClassifier, multilabel: bool) -> None:
        super().__init__()
        self.multilabel, head = multilabel, fitted.head
        self.encoder = NeuronEncoder(backbone, split_segments(fitted.selection.neurons, [])[0])
        self.mean, self.scale = _constant(fitted.standardizer.mean), _constant(fitted.standardizer.scale)
        self.inner = self.outer = None
        if isinstance(head, MlpHead):
            self.inner, self.outer = _layer(head.inner, head.inner_bias), _layer(head.outer)
            head = head.linear
        self.linear = _layer(head.coef, head.intercept)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask.bool()
        # a text of no tokens still needs one to read
        first = torch.arange(input_ids.shape[1], device=input_ids.device) < 1
        seen = seen | (first & ~seen.any(1, keepdim=True))
        x = (self.encoder(input_ids, seen)[0] - self.mean) / self.scale
        logits: Tensor = self.linear(x)
        if self.inner is not None and self.outer is not None:
            logits = logits + self.outer(torch.tanh(self.inner(x)))
        return logits.sigmoid() if self.multilabel else logits.softmax(1)


def _constant(values: Floats) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float32), requires_grad=False)


def _layer(weight: Floats, bias: Floats | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = _constant(weight)
    if bias is not None:
        layer.bias = _constant(bias)
    return layer


def _tokenizer(backbone: Backbone) -> Any:
    """The backbone's tokenizer by itself, which cuts and pads as `Backbone.tokenize` and `Backbone.pad_batch` do."""
    tokenizer = Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(backbone.max_tokens, direction=backbone.tokenizer.truncation_side)
    name = tokenizer.id_to_token(backbone.pad_id) or "[PAD]"
    tokenizer.enable_padding(direction="right", pad_id=backbone.pad_id, pad_token=name)
    return tokenizer


def _write_onnx(scorer: Scorer, folder: Path) -> Run:
    """By tracing: torch's newer exporter cannot follow a forward pass that ends at the deepest neuron."""
    import onnxruntime

    path = str(folder / "model.onnx")
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUTS} | {OUTPUT: {0: "batch"}}
    with silence_transformers(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of tracing, about what is constant in it
        torch.onnx.export(
            scorer,
            scorer.encoder.example_inputs(),
            path,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]


def _write_openvino(scorer: Scorer, folder: Path) -> Run:
    import openvino

    from spin.activations.openvino_engine import convert_to_openvino

    path = str(folder / "model.xml")
    graph = convert_to_openvino(scorer.encoder, scorer)
    for parameter, name in zip(graph.get_parameters(), INPUTS, strict=True):
        parameter.set_element_type(openvino.Type.i64)
        parameter.set_partial_shape(openvino.PartialShape([-1, -1]))
        parameter.output(0).get_tensor().set_names({name})
    graph.output(0).get_tensor().set_names({OUTPUT})
    graph.validate_nodes_and_infer_types()
    openvino.save_model(graph, path, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda ids, mask: compiled([ids, mask])[0]


def _compare(scorer: Scorer, tokenizer: Any, run: Run, kind: str) -> None:
    """Raise UserError where tokens or scores of some texts, the longest as long as any may be, are not torch's."""
    backbone = scorer.encoder.backbone
    texts = [*_TRIED[:-1], _TRIED[-1] * backbone.max_tokens]
    ids, mask = backbone.pad_batch(backbone.tokenize(texts).ids)
    found_ids, found_mask = encode(tokenizer, texts)
    if not (np.array_equal(found_ids, ids.numpy()) and np.array_equal(found_mask, mask.numpy())):
        raise UserError(
            f"export: {type(backbone.tokenizer).__name__} gives other tokens than its tokenizer.json by itself, which "
            "is all that runs without transformers; take a backbone with a tokenizer of a standard kind"
        )
    with torch.inference_mode():
        expected = scorer(ids, mask).numpy()
    found = run(found_ids, found_mask)
    apart = float(np.abs(found - expected).max())
    if not apart < _TOLERANCE:  # nor where it is no number
        raise UserError(
            f"export: {kind} does not compute {type(backbone.model).__name__} right: its scores are {apart:.2g} from "
            f"torch's, expected less than {_TOLERANCE:g}; try another format of {', '.join(NEEDS)}"
        )


def encode(tokenizer: Any, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask (B, T) of a tokenizer that pads."""
    tokens = tokenizer.encode_batch(list(texts))
    return np.array([t.ids for t in tokens], np.int64), np.array([t.attention_mask for t in tokens], np.int64)


def _config(spin: SpinClassifier, backbone: Backbone, kind: str) -> dict[str, Any]:
    """What a reader of scores needs to know, and what they were made from."""
    decision, selection = Decision.of(spin.label_space, spin.decision), spin.fitted.selection
    return {
        "format": kind,
        "classes": spin.classes,
        "multilabel": spin.label_space.multilabel,
        "thresholds": decision.thresholds.tolist(),
        "abstain": decision.abstain,
        "max_tokens": backbone.max_tokens,
        "pad_id": backbone.pad_id,
        "depth": selection.depth,
        "neurons": len(selection),
        "backbone_digest": backbone.digest,
        "versions": {name: version(name) for name in ("spin-neurons", "torch", "transformers", *NEEDS[kind])},
    }
