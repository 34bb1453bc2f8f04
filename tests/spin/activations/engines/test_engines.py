"""All engines give the same values for every family and precision, and refuse what they cannot run."""

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

import spin.activations.portions
import spin.backbone.engine_choice
from spin import SpinClassifier, TrainedClassifier
from spin.activations.engines.encoder import NeuronEncoder, split_segments
from spin.activations.engines.engine import TorchEngine, open_engine
from spin.activations.engines.engine_child import compare_engines
from spin.activations.engines.openvino_engine import OpenVinoEngine
from spin.activations.extract import extract, read_activations, single_segment
from spin.backbone.engine_choice import preferred_device, preferred_engine
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn
from tests.spin.backbone.test_model import FAMILIES, TEXTS
from tests.support import tiny

OPENVINO_SUPPORTED = frozenset({"bert", "distilbert", "gemma2", "gpt2", "gpt_neox", "llama", "opt", "qwen3", "roberta"})
MORE_TEXTS = (*TEXTS, "fine " * 30, "late")


def select_neurons(backbone: Any) -> dict[FeatureColumn, Any]:
    """Select a quarter of the neurons of every column, and more than half of those of the last column."""
    selected = {column: np.arange(1, backbone.width(column.site), 4) for column in list_columns(backbone)}
    last = list_columns(backbone)[-1]
    selected[last] = np.arange(backbone.width(last.site) - 2)
    return selected


def list_columns(backbone: Any) -> list[FeatureColumn]:
    return [FeatureColumn(site, pooling) for site in backbone.sites for pooling in ("first", "last", "max", "mean")]


def test_selected_neurons_have_the_values_of_a_full_extraction(model: Any) -> None:
    full, selected = extract(model, MORE_TEXTS, list_columns(model)).columns, select_neurons(model)
    values = extract(model, MORE_TEXTS, list(selected), keep=selected).columns
    for column, neurons in selected.items():
        assert values[column] == pytest.approx(full[column][:, neurons], rel=1e-5, abs=1e-6), column


def test_tokenizing_in_portions_does_not_change_values(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions grow up to a limit, and every text is read once."""
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone, widths = load_backbone(settings), []
    texts = [f"fine {'late ' * (row % 5)}{row}" for row in range(25)]
    engine = TorchEngine(backbone, split_segments(select_neurons(backbone), []))
    expected, tokenize = read_activations(engine, texts).values, backbone.tokenize

    def record_and_tokenize(portion: Sequence[str]) -> Any:
        widths.append(len(portion))
        return tokenize(portion)

    monkeypatch.setattr(spin.activations.portions, "_FIRST_PORTION", 2)
    monkeypatch.setattr(spin.activations.portions, "_LARGEST_PORTION", 8)
    monkeypatch.setattr(backbone, "tokenize", record_and_tokenize)
    assert read_activations(engine, texts).values == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert widths == [2, 4, 8, 8, 3]


@pytest.mark.slow
def test_openvino_runs_a_segment_that_does_not_use_its_token_ids(backbone_folder: Path) -> None:
    """The graph of the second segment, which only pools positions, has an input for token ids all the same."""
    settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    segments = split_segments(
        {FeatureColumn.parse("resid.01.first"): np.arange(4), FeatureColumn.parse("resid.03.last"): np.arange(4)}, [1]
    )
    expected = read_activations(TorchEngine(backbone, segments), MORE_TEXTS).values
    assert read_activations(OpenVinoEngine(backbone, segments), MORE_TEXTS).values == pytest.approx(
        expected, rel=1e-3, abs=1e-3
    )


@pytest.mark.slow
def test_openvino_streams_agree_with_torch_and_restore_its_number_of_threads(backbone_folder: Path) -> None:
    """Values and exit depths agree for batches of any size; afterwards torch has as many threads as before."""
    threads_before = torch.get_num_threads()
    threads_in_thread: list[int] = []
    progress: list[int] = []
    torch.set_num_threads(3)
    try:
        texts = [*MORE_TEXTS, *("fine " * (2 + row % 3) for row in range(1000))]
        settings = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=128)
        backbone = load_backbone(settings)
        segments = split_segments(select_neurons(backbone), [1])

        first = read_activations(TorchEngine(backbone, segments[:1]), texts).values.sum(1)
        middle = (first.min() + first.max()) / 2

        def keep_mask(_index: int, _rows: np.ndarray, values: np.ndarray) -> np.ndarray:
            return values.sum(1) > middle

        expected = read_activations(TorchEngine(backbone, segments), texts, keep_mask=keep_mask)
        engine = OpenVinoEngine(backbone, segments)
        assert engine.streams == 3
        actual = read_activations(engine, texts, keep_mask=keep_mask, progress=progress.append)
        assert (sum(progress), len(progress) > 6) == (len(texts), True)
        assert actual.depth is not None
        assert expected.depth is not None
        assert set(actual.depth) == {1, backbone.depth}
        assert np.array_equal(actual.depth, expected.depth)
        assert actual.values == pytest.approx(expected.values, rel=1e-3, abs=1e-3, nan_ok=True)
        values, hidden, _ = engine.run(0, *backbone.pad_batch(backbone.tokenize(["fine"] * 13).ids))
        assert (len(values), len(hidden)) == (13, 13)  # not 16, the size of the padded batch
        thread = Thread(target=lambda: threads_in_thread.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (threads_in_thread, torch.get_num_threads()) == ([3], 3)
    finally:
        torch.set_num_threads(threads_before)


def test_segments_give_the_values_of_the_whole_model(model: Any) -> None:
    """Each segment passes the residual stream to the next."""
    whole = read_activations(TorchEngine(model, split_segments(select_neurons(model), [])), MORE_TEXTS)
    segments = read_activations(TorchEngine(model, split_segments(select_neurons(model), [1, 2])), MORE_TEXTS)
    assert np.array_equal(segments.values, whole.values)


def test_only_the_first_segment_runs_the_embeddings(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later segments start from the residual stream, in families whose embeddings are one module."""
    word_embeddings, lookups = model.model.get_input_embeddings().weight, []
    embedding = torch.nn.functional.embedding

    def record_and_embed(ids: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        lookups.append(weight is word_embeddings)
        return embedding(ids, weight, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "embedding", record_and_embed)
    engine = TorchEngine(model, split_segments(select_neurons(model), [1]))
    ids, mask = model.pad_batch(model.tokenize(TEXTS).ids)
    hidden = engine.run(0, ids, mask).hidden
    assert sum(lookups) == 1
    engine.run(1, ids, mask, hidden)
    assert sum(lookups) == (1 if hasattr(model.model, "embeddings") else 2)


@pytest.mark.slow
def test_openvino_agrees_with_torch_for_every_supported_family(model: Any) -> None:
    """Three segments, and the two of a trial. For other families the values are not finite, and a trial says so."""
    selected = select_neurons(model)
    expected = read_activations(TorchEngine(model, split_segments(selected, [])), MORE_TEXTS).values
    if model.model.config.model_type not in OPENVINO_SUPPORTED:
        assert compare_engines(model).outcome == "differs"
        return
    assert compare_engines(model).outcome == "agrees"
    actual = read_activations(OpenVinoEngine(model, split_segments(selected, [1, 2])), MORE_TEXTS).values
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_auto_prefers_openvino_on_cpus_for_supported_families(
    backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spin.backbone.engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED)
    assert preferred_engine(BackboneSettings(model="m", engine="auto"), "cpu", backbone_folder) == "openvino"
    assert preferred_engine(BackboneSettings(model="m", engine="auto"), "cuda", backbone_folder) == "torch"
    assert preferred_engine(BackboneSettings(model="m", engine="auto"), "cpu", None) == "torch"
    assert preferred_engine(BackboneSettings(model="m", engine="torch"), "cpu", backbone_folder) == "torch"
    monkeypatch.setattr(spin.backbone.engine_choice, "OPENVINO_FAMILIES", OPENVINO_SUPPORTED - {"bert"})
    assert preferred_engine(BackboneSettings(model="m", engine="auto"), "cpu", backbone_folder) == "torch"
    assert preferred_engine(BackboneSettings(model="m", engine="openvino"), "cpu", backbone_folder) == "openvino"
    monkeypatch.setattr(spin.backbone.engine_choice, "find_spec", lambda name: None)
    assert preferred_engine(BackboneSettings(model="m", engine="auto"), "cpu", backbone_folder) == "torch"
    with pytest.raises(UserError, match="openvino is not installed; run: pip install"):
        preferred_engine(BackboneSettings(model="m", engine="openvino"), "cpu", backbone_folder)


@pytest.mark.slow
def test_every_family_for_which_auto_prefers_openvino_is_tested() -> None:
    """The families are read in another process, since `conftest.py` empties the set in this one."""
    process = subprocess.run(
        [sys.executable, "-c", "from spin.backbone import engine_choice as e; print(*sorted(e.OPENVINO_FAMILIES))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert frozenset(process.stdout.split()) == OPENVINO_SUPPORTED
    assert {family.config().model_type for family in FAMILIES} >= OPENVINO_SUPPORTED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openvino", "device": "cuda"}, "backbone.device is cuda; set torch"),
        ({"engine": "torch", "dtype": "int8"}, "int8 is computed by openvino"),
    ],
)
def test_settings_that_an_engine_cannot_run_are_refused(
    backbone_folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(BackboneSettings(model=str(backbone_folder), **{"device": "cpu", **settings}))


@pytest.mark.slow
def test_openvino_sends_no_telemetry() -> None:
    """OpenVINO does not load the package that reports its use."""
    code = (
        "import sys, tempfile, pathlib, numpy as np\n"
        "from tests.support import tiny\n"
        "from spin.backbone.loading import find_backbone, open_backbone\n"
        "from spin.activations.engines.engine import open_engine\n"
        "from spin.activations.engines.int8_rounding import measure_scales\n"
        "from spin.backbone.engine_choice import EngineChoice\n"
        "from spin.activations.extract import single_segment\n"
        "from spin.settings import BackboneSettings\n"
        "from spin.sites import FeatureColumn\n"
        "folder = tiny.save_bert(pathlib.Path(tempfile.mkdtemp()))\n"
        "settings = BackboneSettings(model=str(folder))\n"
        "choice = EngineChoice('openvino', 'int8')\n"
        "backbone = open_backbone(settings, *find_backbone(settings), 'cpu', choice)\n"
        "segment = single_segment([FeatureColumn(backbone.sites[1], 'mean')])\n"
        "backbone.scales = measure_scales(backbone, ['a fine film'] * 9)\n"
        "open_engine(backbone, [segment])\n"
        "print(sorted(name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.splitlines()[-1:] == ["[]"], process.stderr[-2000:]


@pytest.fixture(scope="module")
def fitted(backbone_folder: Path) -> TrainedClassifier:
    return fit_few(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))


def fit_few(settings: BackboneSettings) -> TrainedClassifier:
    """A classifier of 300 documents."""
    rows = tiny.make_documents(300)
    return (
        SpinClassifier(
            settings,
            probe=ProbeSettings(penalties=4),
            search=SearchSettings(etas=(0.5,), max_share=1, strengths=(1,), network="off", words="off"),
        )
        .fit([row["text"] for row in rows], [row["label"] for row in rows])
        .trained_
    )


def save_and_load(fitted: TrainedClassifier, folder: Path, **settings: Any) -> TrainedClassifier:
    """Load the classifier with other backbone settings."""
    fitted.save(folder)
    return TrainedClassifier.load(folder, backbone=fitted.settings.model_copy(update=settings))


DOCUMENTS = [row["text"] for row in tiny.make_documents(200, seed=5)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_labels_agree_with_float32_in_every_precision(fitted: TrainedClassifier, tmp_path: Path, dtype: str) -> None:
    """At least 90 % of labels agree, all of them in float32, and an explanation adds up to the logits of the engine."""
    loaded = save_and_load(fitted, tmp_path, engine="openvino", dtype=dtype)
    agreement = np.mean([a == b for a, b in zip(loaded.predict(DOCUMENTS), fitted.predict(DOCUMENTS), strict=True)])
    assert agreement >= (1 if dtype == "float32" else 0.9)
    if dtype != "bfloat16" or torch.cpu.get_capabilities().get("avx512_bf16", False):  # others compute in float32
        difference = np.abs(loaded.predict_logits(DOCUMENTS) - fitted.predict_logits(DOCUMENTS)).max()
        assert (difference > 1e-4) == (dtype != "float32")
    explanation = loaded.explain(DOCUMENTS[3])
    logits = loaded.predict_logits([DOCUMENTS[3]])[0]
    assert explanation.word_contributions.sum(0) + explanation.bias == pytest.approx(logits, abs=1e-4)


@pytest.mark.slow
def test_a_classifier_of_int8_is_loaded_with_its_scales(backbone_folder: Path, tmp_path: Path) -> None:
    """It is fitted on what int8 computes, and computes that again, also where the precision is left open.

    In float32 it computes other values, if that is asked for, and most of the labels are the same.
    """
    settings = BackboneSettings(model=str(backbone_folder), dtype="int8", engine="openvino", device="cpu")
    fitted = fit_few(settings)
    assert fitted.backbone.precision == "int8"
    expected = fitted.predict_all(DOCUMENTS)
    fitted.save(tmp_path)
    assert TrainedClassifier.load(tmp_path).settings.dtype == "int8"
    for dtype in ("auto", "int8"):
        given = settings.model_copy(update={"dtype": dtype})
        loaded = TrainedClassifier.load(tmp_path, backbone=given)
        assert loaded.scales is not None
        assert loaded.scales.digest == fitted.backbone.scales.digest
        np.testing.assert_allclose(loaded.predict_logits(DOCUMENTS), expected.logits, atol=1e-4)
    explanation = loaded.explain(DOCUMENTS[3])
    assert explanation.word_contributions.sum(0) + explanation.bias == pytest.approx(expected.logits[3], abs=1e-3)
    exact = TrainedClassifier.load(tmp_path, backbone=settings.model_copy(update={"dtype": "float32"}))
    predictions = exact.predict_all(DOCUMENTS)
    assert np.abs(predictions.logits - expected.logits).max() > 1e-3
    assert np.mean([a == b for a, b in zip(predictions.labels, expected.labels, strict=True)]) >= 0.9
    exact.save(tmp_path / "again")
    assert TrainedClassifier.load(tmp_path / "again").settings.dtype == "int8"


def test_a_classifier_of_another_precision_is_not_run_in_int8(fitted: TrainedClassifier, tmp_path: Path) -> None:
    """It has no scales; it runs as it was trained."""
    assert save_and_load(fitted, tmp_path, engine="openvino", dtype="int8").settings.dtype == "float32"


def test_int8_runs_on_the_processor_unless_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In OpenVINO, whatever the family of the model."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    int8, fast = (BackboneSettings(model="m", dtype=dtype) for dtype in ("int8", "auto"))
    assert [preferred_device(settings) for settings in (int8, fast)] == ["cpu", "cuda"]
    assert preferred_engine(int8, "cpu", None) == "openvino"
    with pytest.raises(UserError, match=r"openvino runs on the processor.*; set backbone\.dtype: float32"):
        preferred_engine(int8, "cuda", None)


def test_the_engine_of_this_machine_is_not_saved_with_a_classifier(fitted: TrainedClassifier, tmp_path: Path) -> None:
    fitted.settings = fitted.settings.model_copy(update={"engine": "openvino"})
    fitted.save(tmp_path)
    saved = TrainedClassifier.load(tmp_path).settings
    fitted.settings = fitted.settings.model_copy(update={"engine": "auto"})
    assert (saved.engine, saved.dtype) == ("auto", "float32")


def test_several_predictions_open_one_engine(fitted: TrainedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record_and_open(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return open_engine(*args, **kwargs)

    monkeypatch.setattr("spin.passes.forward_pass.open_engine", record_and_open)
    fitted.share_backbone(fitted)
    fitted.predict(DOCUMENTS[:3])
    fitted.predict(DOCUMENTS[3:6])
    assert len(calls) == 1


def test_neurons_are_gathered_before_pooling_only_if_they_are_few(backbone_folder: Path) -> None:
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    all_neurons = single_segment(list_columns(backbone))
    [one_neuron] = split_segments({column: np.array([3]) for column in list_columns(backbone)}, [])
    for segment, gather_first in ((all_neurons, False), (one_neuron, True)):
        [encoder] = TorchEngine(backbone, [segment]).encoders
        assert isinstance(encoder, NeuronEncoder)
        assert all(gather.gather_first == gather_first for gather in encoder.sites.values())


@pytest.mark.slow
def test_two_streams_give_the_values_of_one(backbone_folder: Path) -> None:
    """With any number of streams, progress counts every document once."""
    backbone = load_backbone(
        BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=40)
    )
    segments = split_segments(select_neurons(backbone), [1])
    threads_before, values, totals = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            engine = OpenVinoEngine(backbone, segments)
            assert engine.streams == threads
            counts: list[int] = []
            values.append(read_activations(engine, DOCUMENTS, progress=counts.append).values)
            totals.append(sum(counts))
    finally:
        torch.set_num_threads(threads_before)
    assert values[1] == pytest.approx(values[0], abs=1e-5)
    assert totals == [len(DOCUMENTS)] * 2


@pytest.mark.slow
def test_an_error_in_a_stream_is_raised(backbone_folder: Path) -> None:
    """The engine can read all documents afterwards."""
    backbone = load_backbone(
        BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", batch_tokens=40)
    )
    engine = OpenVinoEngine(backbone, split_segments(select_neurons(backbone), [1]))

    def fail(_index: int, _rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    for _ in range(2 * engine.streams):
        with pytest.raises(ZeroDivisionError):
            read_activations(engine, DOCUMENTS, keep_mask=fail)
    assert len(read_activations(engine, DOCUMENTS).values) == len(DOCUMENTS)
