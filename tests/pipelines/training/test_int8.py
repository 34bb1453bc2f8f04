"""Trainings in int8: every stage reads by scales that were measured once, on training documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.data.training_labels import Labels
from pipelines.forget.training_store import forget_in_store
from pipelines.training import reading_precision
from pipelines.training.extract_features import load_features, run_extract
from pipelines.training.workflow import run_workflow
from spin import TrainedClassifier, precision_trial
from spin.activations.engines import openvino_engine
from spin.activations.extract import extract
from spin.backbone.loading import load_backbone
from spin.errors import UserError
from spin.labels.splits import rows_in_split
from spin.pages.model_card import CARD
from spin.precision_trial import LabelledTexts
from spin.settings import Settings
from spin.sites import FeatureColumn
from tests.support import small_training, tiny

pytestmark = pytest.mark.slow

COLUMN = FeatureColumn.parse("ffn.02.mean")
SEARCH = {"documents": 200, "etas": [0.5], "strengths": [1], "network": "off", "words": "off"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    small_training.write_corpus(folder, 400, ("good", "bad"))
    return folder


def make_settings(folder: Path, store: Path, **changes: Any) -> Settings:
    backbone = {"model": str(folder / "bert"), "dtype": "int8", "engine": "openvino", "device": "cpu"}
    return small_training.make_settings(folder, store, **{"backbone": backbone, "search": SEARCH, **changes})


@pytest.mark.parametrize("passes", ["all", "two_pass"])
def test_all_stages_and_the_version_have_the_same_scales(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: str
) -> None:
    """They are measured once, by the driver; a version has them without the store of its training."""
    # in bfloat16, what int8 leaves alone would depend on the batch
    monkeypatch.setattr(openvino_engine, "fast_precision", lambda device: "float32")
    measured: list[list[str]] = []
    measure = reading_precision.measure_scales
    monkeypatch.setattr(
        reading_precision, "measure_scales", lambda backbone, texts: measure(backbone, measured.append(texts) or texts)
    )
    settings = make_settings(folder, tmp_path / "store", extract=passes)
    run_workflow(settings)
    plan, _, features = load_features(settings)
    scales = plan.derived.reading.int8_scales
    assert scales is not None
    spin = TrainedClassifier.open(tmp_path / "store/model", settings)
    assert spin.scales is not None
    assert spin.scales.digest == scales.digest
    texts = pq.read_table(folder / "train.parquet")["text"].to_pylist()
    rows = np.arange(400) if features.extracted is None else features.extracted
    backbone = load_backbone(settings.backbone, scales=scales)
    expected = extract(backbone, [texts[row] for row in rows], [COLUMN]).columns[COLUMN]
    np.testing.assert_allclose(features.read_rows(COLUMN, rows), expected, rtol=2e-3, atol=2e-3)
    [read] = measured
    assert 100 < len(read) <= 256
    tested = {texts[row] for row in rows_in_split(Labels.of(features, settings).splits, "test")}
    assert len(tested) > 20
    assert not set(read) & tested


def test_forgetting_in_int8_keeps_the_scales(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training reads no text again, though it would measure other scales."""
    rows = pq.read_table(folder / "train.parquet")
    data = {"train": str(tmp_path / "train.parquet")}
    pq.write_table(rows, data["train"])
    settings = make_settings(folder, tmp_path / "store", data=data)
    run_extract(settings)
    scales = load_features(settings)[0].derived.reading.scales
    forget_in_store(settings, rows["id"].to_pylist()[:3])
    pq.write_table(rows.slice(3), data["train"])
    monkeypatch.setattr(reading_precision, "measure_scales", lambda *_: pytest.fail("scales are measured again"))
    counts = run_extract(settings).results.counts
    assert counts.extracted == 0
    assert load_features(settings)[0].derived.reading.scales == scales


def test_a_training_takes_over_the_scales_of_a_version(folder: Path, tmp_path: Path) -> None:
    """From the registry or from a folder; of another backbone they are refused, and no store is begun."""
    first = make_settings(folder, tmp_path / "first")
    run_workflow(first)
    expected = load_features(first)[0].derived.reading.int8_scales
    assert expected is not None
    registry = {"model": "tiny", "tracking_uri": first.mlflow.tracking_uri}
    given = {**first.backbone.model_dump(), "scales": "models:/tiny/1"}
    few = folder / "few.parquet"
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, 200), few)
    for number, source in enumerate(("models:/tiny/1", str(tmp_path / "first/model"))):
        backbone = {**given, "scales": source}
        data = {"train": str(few)}
        settings = make_settings(folder, tmp_path / f"{number}", backbone=backbone, data=data, mlflow=registry)
        run_extract(settings)
        scales = load_features(settings)[0].derived.reading.int8_scales
        assert scales is not None
        assert scales.digest == expected.digest
    other = str(tiny.save_bert(tmp_path / "other", seed=1))
    backbone = {**given, "model": other}
    settings = make_settings(folder, tmp_path / "refused", backbone=backbone, mlflow=registry)
    with pytest.raises(UserError, match=r"backbone\.scales: found those of a backbone with digest"):
        run_extract(settings)


def test_scales_of_an_alias_are_refused(folder: Path, tmp_path: Path) -> None:
    """It may name another version when the training goes on."""
    backbone = make_settings(folder, tmp_path).backbone.model_dump() | {"scales": "models:/tiny@champion"}
    with pytest.raises(UserError, match="found models:/tiny@champion; expected models:/NAME/VERSION"):
        run_extract(make_settings(folder, tmp_path / "store", backbone=backbone))


def test_few_parts_of_a_large_spool_are_read_for_scales(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_part = reading_precision.read_part
    monkeypatch.setattr(reading_precision, "_PARTS_READ", 3)
    monkeypatch.setattr(
        reading_precision, "read_part", lambda piece, *args: (read.append(piece.uri), read_part(piece, *args))[1]
    )
    ray = {"workers": 0, "shard_documents": 20}
    run_extract(make_settings(folder, tmp_path / "store", ray=ray))
    assert 2 <= len(read) <= 3


@pytest.mark.parametrize("taken", [True, False])
def test_auto_stands_for_what_a_trial_on_labelled_documents_has_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, taken: bool
) -> None:
    """All stages keep to it, also where a trial would now end otherwise; the version, report and card say so."""
    monkeypatch.setattr(precision_trial, "SMALLEST_CORPUS", 200)
    monkeypatch.setattr(precision_trial, "_ALLOWED_LOSS", 0.5 if taken else -0.5)
    tried: list[LabelledTexts] = []
    hold_out = precision_trial._held_out_score
    monkeypatch.setattr(precision_trial, "_held_out_score", lambda *args: (tried.append(args[2]), hold_out(*args))[1])
    backbone = make_settings(folder, tmp_path).backbone.model_dump() | {"dtype": "auto"}
    settings = make_settings(folder, tmp_path / "store", backbone=backbone, extract="two_pass")
    run_extract(settings)
    monkeypatch.setattr(precision_trial, "_ALLOWED_LOSS", -0.5 if taken else 0.5)
    report = run_workflow(settings)

    plan, extracted, features = load_features(settings)
    trial = extracted.results.precision_trial
    assert trial is not None
    assert trial.taken == taken
    assert len(tried) == 2, "one trial, of two precisions"
    rows = rows_in_split(Labels.of(features, settings).splits, "test")
    tested = pq.read_table(folder / "train.parquet")["text"].take(rows).to_pylist()
    assert len(tested) > 20
    texts, classes = tried[0].texts, tried[0].classes
    assert not set(texts) & set(tested)
    assert trial.documents == len(texts) > 200
    corpus = pq.read_table(folder / "train.parquet").to_pydict()
    labels = dict(zip(corpus["text"], corpus["label"], strict=True))
    assert [("bad", "good")[has.argmax()] for has in classes] == [labels[text] for text in texts]
    spin = TrainedClassifier.open(tmp_path / "store/model", settings)
    assert (spin.settings.dtype, spin.backbone.precision == "int8") == ("int8" if taken else "auto", taken)
    assert (plan.derived.reading.int8_scales is not None) == taken
    of_report = json.loads((tmp_path / "store/report.json").read_text())["stages"]["extract"]["precision_trial"]
    assert of_report["taken"] == taken
    card = (tmp_path / "store/model" / CARD).read_text()
    assert f"int8 is {'taken' if taken else 'not taken'}: micro-F1" in card
    assert report.results.counts["test"] == len(tested)
