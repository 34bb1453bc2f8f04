"""Export a classifier as one graph for ONNX Runtime or OpenVINO: token ids in, scores out, without torch."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from spin.activations.engines.encoder import NeuronEncoder, pools_content, split_segments
from spin.arrays import Floats
from spin.backbone.hub import silence_transformers
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.backbone.windows import CONTEXT, OWN, context_of
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted.fitted_classifier import FittedClassifier
from spin.heads.linear_head import constant
from spin.poolings.registry import find_pooling
from spin.words.vocabulary import CHARACTERS_READ, UNITS, Unit
from spin.words.word_regression import WordRegression
from spin_neurons import install_command

REQUIRED_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""the packages that write and run each format"""
CONFIG_FILE, TOKENIZER_FILE, WORDS_FILE = "config.json", "tokenizer.json", "words.npz"
INPUTS, WORDS_INPUT, OUTPUT = ("input_ids", "attention_mask"), "words", "scores"
"""names of the graph's inputs and output; `words` is there for a classifier that reads words"""
_OPSET = 17
"""version of the ONNX operators: the first that has layer normalisation as one operation"""
_TOLERANCE = 1e-3
"""allowed difference of a score from torch's"""
_SAMPLE_TEXTS = ("a", "It wasn't “late”: 9:45, naïve — so what?", "the crew was lovely and ")
"""texts on which a graph is compared with torch; the last is repeated until it is truncated"""

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Floats]
"""runs a graph: takes its inputs by name, returns scores (B, K)"""


@dataclass(frozen=True)
class ExportConfig:
    """The content of config.json: what a program that reads scores needs to know, and where the graph is from."""

    format: str
    """onnx or openvino"""
    classes: Sequence[str]
    """the K classes, in the order of the scores"""
    multilabel: bool
    """whether a text may have several classes"""
    thresholds: list[float]
    """K scores, one per class; see `Decision.decide` for how labels follow from them"""
    abstain: float
    """a text whose scores are closer to the border between two labels than this gets no label; 0: all texts get one"""
    max_tokens: int
    """tokens per text, or per window of a text, that tokenizer.json truncates to"""
    long_texts: str
    """cut, or windows: the rows of a batch are then the windows of one text"""
    window_overlap: int
    """tokens of a window that the next one repeats, and the mask marks with 2; 0 for texts that are cut"""
    max_windows: int
    """windows of a text that are read; 1 for texts that are cut"""
    pad_id: int
    """the token id of padding"""
    depth: int
    """blocks of the backbone that are in the graph"""
    neurons: int
    """neurons that the classifier reads"""
    words: Mapping[Unit, Mapping[str, Any]]
    """by each unit of terms in words.npz the arguments of TfidfVectorizer of scikit-learn, beside `sublinear_tf=True`;
    empty without words"""
    characters_read: int
    """characters at the start of a text in which the terms of the unit `characters` are counted"""
    backbone_digest: str
    """digest of the backbone's files"""
    versions: dict[str, str]
    """versions of the packages that built the graph"""


def export(spin: TrainedClassifier, folder: str | Path, kind: str) -> list[str]:
    """Write a classifier at full depth and in float32 as `onnx` or `openvino` into a new or empty folder.

    A classifier that was trained in int8 is written without its roundings, on which its heads were fitted.

    The first file is the graph, from `input_ids` and `attention_mask` (B, T) int64 to calibrated `scores` (B, K). The
    others are tokenizer.json, which truncates and pads, and config.json, an `ExportConfig`. The graph of a classifier
    that reads words has a third input, `words` (B, K) float32. These are the logits of the word regression, whose
    arrays are in words.npz. `words` is the only input where words decide alone. Where long texts are read in windows, a
    run takes the windows (W, T) of one text and returns its scores (1, K). The mask is 2 for the tokens that a window
    repeats. Returns the sorted file names. Raises UserError for another format, and for one whose packages are not
    installed. Raises it too for a folder that is not empty or cannot be written, for a backbone that the format does
    not compute as torch does, and for `max_error` of a decision that is not proven for the graph. Then no file is
    written.
    """
    folder = Path(folder).resolve()
    check_target(folder, kind)
    if spin.requested.max_error is not None and spin.settings.dtype != "float32":
        raise UserError(
            "export: found decision.max_error, which is proven for labels in the precision of the training, "
            f"backbone.dtype {spin.settings.dtype}, and not in float32, in which a graph computes; train with "
            "backbone.dtype float32, or set decision.abstain"
        )
    spin = spin.choosing(spin.choose)  # a graph has no exits, and without them a promise has another band
    on_cpu = {"dtype": "float32", "engine": "torch", "device": "cpu"}
    backbone = load_backbone(spin.settings.model_copy(update=on_cpu), expect_digest=spin.backbone_digest)
    backbone.truncate(spin.depth)
    scorer = Scorer(backbone, spin.fitted, spin.label_space.multilabel).eval()
    words = spin.training_result.words if spin.fitted.selection.word_logits else None
    tokenizer = _export_tokenizer(backbone)
    exists = folder.is_dir()  # a folder that exists may be a mount, which cannot be replaced
    with tempfile.TemporaryDirectory(dir=folder if exists else folder.parent) as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()  # with usual permissions, which a temporary directory does not have
        run = _write_onnx(scorer, staged) if kind == "onnx" else _write_openvino(scorer, staged)
        _compare_with_torch(scorer, tokenizer, words, run, kind)
        tokenizer.save(str(staged / TOKENIZER_FILE))
        if words is not None:
            np.savez_compressed(staged / WORDS_FILE, **words.to_tensors())  # type: ignore[arg-type]
        config = json.dumps(asdict(_config(spin, backbone, words, kind)), indent=2, ensure_ascii=False)
        (staged / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        if not exists:
            staged.replace(folder)
        else:
            # the config last: where it is, all files are
            for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG_FILE):
                path.replace(folder / path.name)
    return sorted(path.name for path in folder.iterdir())


def check_target(folder: Path, kind: str) -> None:
    """Check, before any work is done, that a format can be written into a folder; create the folder's parents.

    Raises UserError if the format is unknown, its packages are not installed, or the folder is not new or empty.
    """
    if kind not in REQUIRED_PACKAGES:
        raise UserError(f"format '{kind}': expected one of {', '.join(REQUIRED_PACKAGES)}")
    missing = [name for name in REQUIRED_PACKAGES[kind] if find_spec(name) is None]
    if missing:
        extra = "export" if kind == "onnx" else "openvino"
        raise UserError(f"format {kind}: {missing[0]} is not installed; run: {install_command(extra)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new or empty folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


class Scorer(nn.Module):
    """A module of the truncated backbone, the selected neurons and their head.

    Takes the inputs `input_names`: token ids and mask (B, T) if it reads neurons, and the words' logits (B, K) if it
    reads words. Returns calibrated scores (B, K); of a backbone that reads windows, those of one text (1, K).
    """

    def __init__(self, backbone: Backbone, fitted: FittedClassifier, multilabel: bool) -> None:
        super().__init__()
        self.backbone, self.multilabel, self.words = backbone, multilabel, fitted.selection.word_logits
        self.encoder = None
        if fitted.selection.neurons:
            self.encoder = NeuronEncoder(backbone, split_segments(fitted.selection.neurons, [])[0])
        self.mean, self.scale = constant(fitted.standardizer.mean), constant(fitted.standardizer.scale)
        self.head = fitted.head.graph()

    @property
    def input_names(self) -> list[str]:
        """The names of the graph's inputs, in order."""
        return [*(INPUTS if self.encoder is not None else ()), *([WORDS_INPUT] if self.words else [])]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs to trace the module with: two documents, or two windows of one."""
        tokens = () if self.encoder is None else self.encoder.example_inputs()
        documents = 1 if self.encoder is not None and self.backbone.reads_windows else 2
        return (*tokens, torch.ones(documents, self.words)) if self.words else tokens

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [inputs[-1]] if self.words else []
        if self.encoder is not None:
            input_ids, windows = inputs[0], inputs[1]
            mask = windows.bool()
            # a text without tokens is read at its first position, which is padding
            first = torch.arange(input_ids.shape[1], device=input_ids.device) < 1
            empty = first & ~mask.any(1, keepdim=True)
            if self.backbone.reads_windows:
                windows = torch.where(empty, OWN, windows)
                values = merge_one_text(self.encoder, input_ids, windows, self.encoder(input_ids, windows)[0])
            else:
                values = self.encoder(input_ids, mask | empty)[0]
            parts.append(values)
        features = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        logits: Tensor = self.head((features - self.mean) / self.scale)
        return logits.sigmoid() if self.multilabel else logits.softmax(1)


def merge_one_text(encoder: NeuronEncoder, ids: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """The values (1, p) of a text from those of its windows (W, p), as `WindowShares.merge`, in operations of a graph.

    `ids` and `mask` (W, T) are those of `Backbone.pad_tokens`.
    """
    own, content = encoder.backbone.count_own(ids, mask)
    first = torch.arange(ids.shape[0], device=ids.device) < 1
    content = torch.where((content.sum() < 1) & first, 1, content)
    of_all, of_content = ((counts / counts.sum()).float().unsqueeze(1) for counts in (own, content))
    merged = []
    for column, part in encoder.segment.slices(encoder.backbone).items():
        share = of_content if pools_content(column) else of_all
        merged.append(find_pooling(column.pooling).merge(values[:, part], share))
    return torch.cat(merged, 1)


def _export_tokenizer(backbone: Backbone) -> Tokenizer:
    """A tokenizer without transformers, which truncates and pads as the methods of `Backbone` do."""
    tokenizer = Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str())
    side = backbone.tokenizer.truncation_side
    tokenizer.enable_truncation(backbone.max_tokens, stride=backbone.window_overlap, direction=side)
    name = tokenizer.id_to_token(backbone.pad_id) or "[PAD]"
    tokenizer.enable_padding(direction="right", pad_id=backbone.pad_id, pad_token=name)
    return tokenizer


def _write_onnx(scorer: Scorer, folder: Path) -> Run:
    """Write the graph and return a function that runs it.

    The scorer is traced: torch's newer exporter cannot follow a forward pass that ends at the deepest neuron.
    """
    import onnxruntime

    path = str(folder / "model.onnx")
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUTS} | {WORDS_INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    names = scorer.input_names
    with silence_transformers(), warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns of values that become constants
        torch.onnx.export(
            scorer,
            scorer.example_inputs(),
            path,
            input_names=names,
            output_names=[OUTPUT],
            dynamic_axes={name: axes[name] for name in (*names, OUTPUT)},
            opset_version=_OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))[0]


def _write_openvino(scorer: Scorer, folder: Path) -> Run:
    """Write the graph and return a function that runs it."""
    import openvino

    from spin.activations.engines.openvino_engine import convert_to_openvino

    path = str(folder / "model.xml")
    graph = convert_to_openvino(scorer, scorer.example_inputs())
    for parameter, name in zip(graph.get_parameters(), scorer.input_names, strict=True):
        of_words = name == WORDS_INPUT
        parameter.set_element_type(openvino.Type.f32 if of_words else openvino.Type.i64)
        parameter.set_partial_shape(openvino.PartialShape([-1, scorer.words if of_words else -1]))
        parameter.output(0).get_tensor().set_names({name})
    graph.output(0).get_tensor().set_names({OUTPUT})
    graph.validate_nodes_and_infer_types()
    openvino.save_model(graph, path, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(dict(inputs))[0]


def _compare_with_torch(
    scorer: Scorer, tokenizer: Tokenizer, words: WordRegression | None, run: Run, kind: str
) -> None:
    """Raise UserError if tokens or scores of sample texts, one of them too long, differ from those in torch."""
    texts = [*_SAMPLE_TEXTS[:-1], _SAMPLE_TEXTS[-1] * scorer.backbone.max_tokens]
    by_text = scorer.encoder is not None and scorer.backbone.reads_windows
    for batch in [[text] for text in texts] if by_text else [texts]:
        tokens = _check_tokens(scorer.backbone, tokenizer, batch)
        inputs: dict[str, NDArray[Any]] = dict(zip(INPUTS, tokens, strict=True))
        if words is not None:
            inputs[WORDS_INPUT] = words.logits(batch)
        read = {name: inputs[name] for name in scorer.input_names}
        with torch.inference_mode():
            expected = scorer(*map(torch.from_numpy, read.values())).numpy()
        difference = float(np.abs(run(read) - expected).max())
        if not difference < _TOLERANCE:  # also if it is not a number
            raise UserError(
                f"export: {kind} does not compute {type(scorer.backbone.model).__name__} right: its scores are "
                f"{difference:.2g} from torch's, expected less than {_TOLERANCE:g}; try another format of "
                f"{', '.join(REQUIRED_PACKAGES)}"
            )


def _check_tokens(
    backbone: Backbone, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask (B, T) by the exported tokenizer. Raises UserError if the backbone's own gives others.

    Where long texts are read in windows they are those of a single text.
    """
    tokens = backbone.tokenize(texts)
    ids, mask = backbone.pad_tokens(tokens, range(len(tokens.ids)))
    if backbone.reads_windows:
        [text] = texts
        exported_ids, exported_mask = encode_windows(tokenizer, text, backbone.window_overlap, backbone.max_windows)
    else:
        exported_ids, exported_mask = encode(tokenizer, texts)
    if not (np.array_equal(exported_ids, ids.numpy()) and np.array_equal(exported_mask, mask.numpy())):
        raise UserError(
            f"export: {type(backbone.tokenizer).__name__} gives other tokens than its tokenizer.json by itself, which "
            "is all that runs without transformers; take a backbone with a tokenizer of a standard kind"
        )
    return exported_ids, exported_mask


def encode_windows(
    tokenizer: Tokenizer, text: str, overlap: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask (W, T) of the windows of a text, by a tokenizer that divides and pads.

    The mask is 2 for tokens that a window repeats from the one before.
    """
    tokens = tokenizer.encode(text)
    windows = [tokens, *tokens.overflowing][:limit]
    ids, mask = (np.array([getattr(w, name) for w in windows], np.int64) for name in ("ids", "attention_mask"))
    for row, window in zip(mask[1:], windows[1:], strict=True):
        row[context_of(window, overlap)] = CONTEXT
    return ids, mask


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask (B, T) of texts, by a tokenizer that pads."""
    tokens = tokenizer.encode_batch(list(texts))
    return np.array([t.ids for t in tokens], np.int64), np.array([t.attention_mask for t in tokens], np.int64)


def _config(spin: TrainedClassifier, backbone: Backbone, words: WordRegression | None, kind: str) -> ExportConfig:
    decision, selection = spin.decision_rule, spin.fitted.selection
    packages = ("spin-neurons", "torch", "transformers", *REQUIRED_PACKAGES[kind])
    return ExportConfig(
        format=kind,
        classes=spin.classes,
        multilabel=spin.label_space.multilabel,
        thresholds=decision.thresholds.tolist(),
        abstain=decision.abstain,
        max_tokens=backbone.max_tokens,
        long_texts=backbone.long_texts,
        window_overlap=backbone.window_overlap,
        max_windows=backbone.max_windows,
        pad_id=backbone.pad_id,
        depth=selection.depth,
        neurons=selection.neuron_count,
        words={} if words is None else {each.unit: UNITS[each.unit] for each in words.vocabularies},
        characters_read=CHARACTERS_READ,
        backbone_digest=backbone.digest,
        versions={name: version(name) for name in packages},
    )
