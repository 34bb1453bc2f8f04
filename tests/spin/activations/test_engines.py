"""Engines give the same values: segments, families and precisions; and the errors for what they cannot run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

import spin.activations.extract
import spin.backbone.engine_choice
from spin import SpinClassifier
from spin.activations.encoder import split_segments
from spin.activations.engine import TorchEngine, open_engine
from spin.activations.engine_child import compare_engines
from spin.activations.extract import extract, read_activations, single_segment
from spin.activations.openvino_engine import OpenVinoEngine
from spin.backbone.engine_choice import preferred_engine
from spin.backbone.engine_trial import TOLERANCES
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn
from tests.spin.backbone.test_model import FAMILIES, TEXTS, Family
from tests.support import tiny

OPENVINO_SUPPORTED = frozenset({"bert", "distilbert", "gemma2", "gpt2", "gpt_neox", "llama", "opt", "qwen3", "roberta"})
LONG = (*TEXTS, "fine " * 30, "late")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family: Family = request.param
    folder = tiny.save_backbone(
        tmp_path_factory.mktemp(family.name), family.config(), tiny.tokenizer(special=not family.causal)
    )
    return load_backbone(BackboneSettings(model=str(folder), dtype="float32", device="cpu", batch_tokens=64))


def chosen(backbone: Any) -> dict[FeatureColumn, Any]:
    """A few neurons of every site under every pooling, and of one site more than half of them."""
    some = {c: np.arange(1, backbone.width(c.site), 4) for c in columns(backbone)}
    some[columns(backbone)[-1]] = np.arange(backbone.width(columns(backbone)[-1].site) - 2)
    return some


def columns(backbone: Any) -> list[FeatureColumn]:
    return [FeatureColumn(site, p) for site in backbone.sites for p in ("first", "last", "max", "mean")]


def test_selected_neurons_equal_those_of_all_neurons(model: Any) -> None:
    every, some = extract(model, LONG, columns(model)).columns, chosen(model)
    found = extract(model, LONG, list(some), keep=some).columns
    for column, neurons in some.items():
        assert found[column] == pytest.approx(every[column][:, neurons], rel=1e-5, abs=1e-6), column


def test_windows_of_texts_do_not_change_values(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows grow up to a bound; every text is read once, with the values of tokenising all at once."""
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone, widths = load_backbone(settings), []
    texts = [f"fine {'late ' * (row % 5)}{row}" for row in range(25)]
    engine = TorchEngine(backbone, split_segments(chosen(backbone), []))
    expected, tokenize = read_activations(engine, texts).values, backbone.tokenize

    def counted(some: Sequence[str]) -> Any:
        widths.append(len(some))
        return tokenize(some)

    monkeypatch.setattr(spin.activations.extract, "_FIRST_WINDOW", 2)
    monkeypatch.setattr(spin.activations.extract, "_LARGEST_WINDOW", 8)
    monkeypatch.setattr(backbone, "tokenize", counted)
    assert read_activations(engine, texts).values == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert widths == [2, 4, 8, 8, 3]


def test_a_segment_may_not_use_its_token_ids(backbone_folder: Path) -> None:
    """A graph takes token ids even if it uses none: only positions are pooled, and another segment embedded them."""
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    segments = split_segments(
        {FeatureColumn.parse("resid.01.first"): np.arange(4), FeatureColumn.parse("resid.03.last"): np.arange(4)}, [1]
    )
    expected = read_activations(TorchEngine(backbone, segments), LONG).values
    assert read_activations(OpenVinoEngine(backbone, segments), LONG).values == pytest.approx(
        expected, rel=1e-3, abs=1e-3
    )


def test_streams_restore_the_number_of_threads(backbone_folder: Path) -> None:
    """Streams give the values of torch for batches of any size, and torch has as many threads afterwards as before."""
    before, later = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        texts, done = [*LONG, *("fine " * (2 + row % 3) for row in range(1000))], []
        settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=128)
        backbone = load_backbone(settings)
        segments = split_segments(chosen(backbone), [1])

        first = read_activations(TorchEngine(backbone, segments[:1]), texts).values.sum(1)
        middle = (first.min() + first.max()) / 2

        def keep_mask(_index: int, found: np.ndarray) -> np.ndarray:
            return found.sum(1) > middle

        expected = read_activations(TorchEngine(backbone, segments), texts, keep_mask=keep_mask)
        engine = OpenVinoEngine(backbone, segments)
        assert engine.streams == 3
        found = read_activations(engine, texts, keep_mask=keep_mask, progress=done.append)
        assert (sum(done), len(done) > 6) == (len(texts), True)
        assert found.depth is not None
        assert set(found.depth) == {1, backbone.depth}
        assert np.array_equal(found.depth, expected.depth)
        assert found.values == pytest.approx(expected.values, rel=1e-3, abs=1e-3, nan_ok=True)
        values, hidden = engine.run(0, *backbone.pad_batch(backbone.tokenize(["fine"] * 13).ids))
        assert (len(values), len(hidden)) == (13, 13)  # and not 16, as the graph was given
        thread = Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (later, torch.get_num_threads()) == ([3], 3)
    finally:
        torch.set_num_threads(before)


def test_segments_equal_the_whole_model(model: Any) -> None:
    """The residual stream goes from segment to segment, with the values of one run of the whole model."""
    once = read_activations(TorchEngine(model, split_segments(chosen(model), [])), LONG)
    parts = read_activations(TorchEngine(model, split_segments(chosen(model), [1, 2])), LONG)
    assert np.array_equal(parts.values, once.values)


def test_embeddings_run_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first segment runs the embeddings, if they are one module; the others start from the residual stream."""
    words, looked = model.model.get_input_embeddings().weight, []
    real = torch.nn.functional.embedding

    def look(ids: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        looked.append(weight is words)
        return real(ids, weight, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "embedding", look)
    engine, batch = TorchEngine(model, split_segments(chosen(model), [1])), model.pad_batch(model.tokenize(TEXTS).ids)
    _, hidden = engine.run(0, *batch)
    assert sum(looked) == 1
    engine.run(1, *batch, hidden)
    assert sum(looked) == (1 if hasattr(model.model, "embeddings") else 2)


def test_openvino_computes_what_torch_does(model: Any) -> None:
    """It does for every family that `auto` takes OpenVINO for; for the others a trial finds the difference."""
    some = chosen(model)
    expected = read_activations(TorchEngine(model, split_segments(some, [])), LONG).values
    if model.model.config.model_type not in OPENVINO_SUPPORTED:
        assert compare_engines(model).difference == float("inf")
        return
    assert (compare_engines(model).difference or 0) < TOLERANCES["float32"]
    for stops in ([], [1, 2]):
        found = read_activations(OpenVinoEngine(model, split_segments(some, stops)), LONG).values
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_auto_takes_openvino_for_known_families(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin.backbone.engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    assert preferred_engine("auto", "cpu", backbone_folder) == "openvino"
    assert preferred_engine("auto", "cuda", backbone_folder) == "torch"
    assert preferred_engine("auto", "cpu", None) == "torch"
    assert preferred_engine("torch", "cpu", backbone_folder) == "torch"
    monkeypatch.setattr(spin.backbone.engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED - {"bert"})
    assert preferred_engine("auto", "cpu", backbone_folder) == "torch"
    assert preferred_engine("openvino", "cpu", backbone_folder) == "openvino"
    monkeypatch.setattr(spin.backbone.engine_choice, "find_spec", lambda name: None)
    assert preferred_engine("auto", "cpu", backbone_folder) == "torch"
    with pytest.raises(UserError, match=r"pip install 'spin-neurons\[openvino\]'"):
        preferred_engine("openvino", "cpu", backbone_folder)


def test_the_families_of_auto_are_those_that_are_tested() -> None:
    """Read in another process: in this one `conftest.py` makes `auto` take torch."""
    found = subprocess.run(
        [sys.executable, "-c", "from spin.backbone import engine_choice as e; print(*sorted(e.OPENVINO_FAMILIES))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert frozenset(found.stdout.split()) == OPENVINO_SUPPORTED
    assert {family.config().model_type for family in FAMILIES} >= OPENVINO_SUPPORTED


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "openvino", "device": "cuda"}, "backbone.device is cuda; set torch"),
        ({"engine": "torch", "dtype": "int8"}, "int8 is computed by openvino"),
    ],
)
def test_what_an_engine_cannot_run_is_an_error(backbone_folder: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(BackboneSettings(model=str(backbone_folder), **{"device": "cpu", **settings}))


def test_openvino_sends_no_telemetry() -> None:
    """Neither OpenVINO nor NNCF loads the package that reports their use."""
    code = (
        "import sys, tempfile, pathlib, numpy as np\n"
        "from tests.support import tiny\n"
        "from spin.backbone.loading import find_backbone, open_backbone\n"
        "from spin.activations.engine import open_engine\n"
        "from spin.backbone.engine_choice import EngineChoice\n"
        "from spin.activations.extract import single_segment\n"
        "from spin.settings import BackboneSettings\n"
        "from spin.sites import FeatureColumn\n"
        "folder = tiny.bert(pathlib.Path(tempfile.mkdtemp()))\n"
        "settings = BackboneSettings(model=str(folder))\n"
        "choice = EngineChoice('openvino', 'int8')\n"
        "backbone = open_backbone(settings, *find_backbone(settings), 'cpu', choice)\n"
        "segment = single_segment([FeatureColumn(backbone.sites[1], 'mean')])\n"
        "open_engine(backbone, [segment], calibration=['a fine film'] * 9)\n"
        "print(sorted(name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr[-2000:]


@pytest.fixture(scope="module")
def fitted(backbone_folder: Path) -> SpinClassifier:
    rows = tiny.documents(300)
    return SpinClassifier(
        BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"),
        probe=ProbeSettings(penalties=4),
        search=SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), l1=(), head="linear"),
    ).fit([row["text"] for row in rows], [row["label"] for row in rows])


def loaded(fitted: SpinClassifier, folder: Path, **settings: Any) -> SpinClassifier:
    fitted.save(folder)
    return SpinClassifier.load(folder, backbone=fitted.settings.model_copy(update=settings))


MORE = [row["text"] for row in tiny.documents(200, seed=5)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_labels_are_those_of_float32(fitted: SpinClassifier, tmp_path: Path, dtype: str) -> None:
    """Nearly all labels agree, in every precision, and an explanation adds up to the values of the engine."""
    there = loaded(fitted, tmp_path, engine="openvino", dtype=dtype)
    there.calibration = tuple(MORE[:50])
    mine, theirs = there.predict(MORE), fitted.predict(MORE)
    agreed = np.mean([a == b for a, b in zip(mine, theirs, strict=True)])
    assert agreed >= (1 if dtype == "float32" else 0.9)
    assert (np.abs(there.predict_logits(MORE) - fitted.predict_logits(MORE)).max() > 1e-4) == (dtype != "float32")
    told = there.explain(MORE[3])
    assert told.word_contributions.sum(0) + told.bias == pytest.approx(there.predict_logits([MORE[3]])[0], abs=1e-4)


def test_int8_without_calibration_is_logged(fitted: SpinClassifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set `calibration`"):
        loaded(fitted, tmp_path, engine="openvino", dtype="int8").predict(MORE)


def test_an_artifact_names_no_engine(fitted: SpinClassifier, tmp_path: Path) -> None:
    """The engine of this machine is not saved with a model."""
    fitted.settings = fitted.settings.model_copy(update={"engine": "openvino", "dtype": "int8"})
    fitted.save(tmp_path)
    kept = SpinClassifier.load(tmp_path).settings
    fitted.settings = fitted.settings.model_copy(update={"engine": "auto", "dtype": "float32"})
    assert (kept.engine, kept.dtype) == ("auto", "auto")


def test_an_engine_is_opened_once(fitted: SpinClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("spin.classifier.open_engine", lambda *a, **k: opened.append(1) or open_engine(*a, **k))
    fitted.share_backbone(fitted)
    fitted.predict(MORE[:3])
    fitted.predict(MORE[3:6])
    assert len(opened) == 1


def test_all_neurons_of_a_site_are_not_gathered_first(backbone_folder: Path) -> None:
    """Neurons are gathered before pooling only if they are few."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    engine = TorchEngine(backbone, [single_segment(columns(backbone))])
    assert not any(gather.gather_first for gather in engine.encoders[0].sites.values())
    few = TorchEngine(backbone, split_segments({c: np.array([3]) for c in columns(backbone)}, []))
    assert all(gather.gather_first for gather in few.encoders[0].sites.values())


def test_streams_give_the_values_of_one_stream(backbone_folder: Path) -> None:
    """Two streams give the values of one, and progress counts every document once."""
    backbone = load_backbone(
        BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=40)
    )
    segments = split_segments(chosen(backbone), [1])
    before, found, told = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            engine = OpenVinoEngine(backbone, segments)
            assert engine.streams == threads
            counts: list[int] = []
            found.append(read_activations(engine, MORE, progress=counts.append).values)
            told.append(sum(counts))
    finally:
        torch.set_num_threads(before)
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert told == [len(MORE)] * 2


def test_the_error_of_a_stream_is_raised(backbone_folder: Path) -> None:
    """The error of a stream is raised, and the stream can be used again."""
    backbone = load_backbone(
        BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=40)
    )
    engine = OpenVinoEngine(backbone, split_segments(chosen(backbone), [1]))

    def refuse(index: int, values: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    for _ in range(2 * engine.streams):
        with pytest.raises(ZeroDivisionError):
            read_activations(engine, MORE, keep_mask=refuse)
    assert len(read_activations(engine, MORE).values) == len(MORE)
