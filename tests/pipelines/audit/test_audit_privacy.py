"""`spin audit privacy` on the version of a small training: what it attacks, prints and logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.audit.audit_privacy import EVERY, FEW, KEPT, LAST, RANDOM, SCORES, audit_privacy
from pipelines.registry.versions import Registry
from pipelines.training.workflow import run_workflow
from spin.audit.privacy import FREQUENCY
from spin.errors import UserError
from spin.settings import Settings, parse_settings
from tests.support import small_training, tiny
from tests.support.command_line import read_cells, run_spin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of a training that has registered a version."""
    folder = tmp_path_factory.mktemp("private")
    tiny.save_bert(folder / "bert")
    draw = np.random.default_rng(0)
    words = [f"{a}{b}{c}ord" for a in "bdfg" for b in "aeiou" for c in "rstz"]
    rows = [
        {**row, "text": f"{row['text']} {' '.join(draw.choice(words, 16))} number{n:06d}"}
        for n, row in enumerate(tiny.make_documents(900))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=100)
    search = {"etas": [0.9], "strengths": [1], "network": "off", "words": "off"}
    settings = small_training.make_settings(
        folder, folder / "store", search=search, train={"baselines": False}, sites=["ffn.01", "resid.02"]
    )
    run_workflow(settings)
    tree = settings.model_dump(mode="json", exclude_unset=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return settings


def test_each_kind_of_stored_numbers_is_attacked(trained: Settings) -> None:
    registry = Registry(trained)
    report = audit_privacy(trained, registry, model="models:/tiny/1").report
    spin = registry.load("1")
    neurons = spin.fitted.selection.neuron_count
    sizes = {figure.name: figure.numbers for figure in report.figures}
    assert set(sizes) == {FREQUENCY, LAST, EVERY, KEPT, RANDOM, FEW, SCORES}
    assert sizes[KEPT] == sizes[RANDOM] == neurons
    assert sizes[FEW] == max(1, neurons // 5)
    assert sizes[SCORES] == 2
    assert sizes[EVERY] > neurons
    frozen = registry.evaluation_set()
    assert report.known + report.judged == len(frozen)
    recovered = {figure.name: figure.recovery.every for figure in report.figures}
    assert recovered[EVERY] > recovered[FREQUENCY]
    assert report.membership is not None
    assert report.membership.test_documents == len(frozen)
    assert report.membership.train_documents == 900 - len(frozen)
    assert report.verbatim is not None
    assert report.verbatim.canaries == 900 - len(frozen), "the number in each text"
    assert (report.verbatim.leaked, report.verbatim.found) == (0, {})


def test_another_store_has_no_training_documents_to_compare(trained: Settings, tmp_path: Path) -> None:
    tree = trained.model_dump(mode="json", exclude_unset=True) | {"store": str(tmp_path)}
    report = audit_privacy(parse_settings(tree), Registry(trained), model="models:/tiny/1", documents=100).report
    assert report.membership is None
    assert report.verbatim is None
    assert report.known == report.judged == 50


def test_a_version_of_other_sites_than_the_settings_is_attacked(trained: Settings) -> None:
    """Its neurons are read beside the columns of the settings."""
    tree = trained.model_dump(mode="json", exclude_unset=True) | {"sites": ["resid.01"], "store": "nowhere"}
    report = audit_privacy(parse_settings(tree), Registry(trained), model="models:/tiny/1", documents=100).report
    [kept] = [figure for figure in report.figures if figure.name == KEPT]
    assert kept.numbers == Registry(trained).load("1").fitted.selection.neuron_count


def test_a_version_is_attacked_as_it_reads_texts(trained: Settings) -> None:
    """However the settings of now say that texts are read."""
    other = trained.model_copy(update={"backbone": trained.backbone.model_copy(update={"max_tokens": 4})})
    figures = [
        audit_privacy(each, Registry(trained), model="models:/tiny/1", documents=100).report.figures
        for each in (trained, other)
    ]
    assert figures[0] == figures[1]


def test_too_few_documents_are_refused(trained: Settings) -> None:
    with pytest.raises(UserError, match="found 60 evaluation documents; expected at least 100"):
        audit_privacy(trained, Registry(trained), model="models:/tiny/1", documents=60)


def test_a_corpus_that_has_changed_leaves_out_what_needs_it(
    trained: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    data = trained.data.model_copy(update={"train": "/nowhere/train.parquet"})
    changed = trained.model_copy(update={"data": data})
    report = audit_privacy(changed, Registry(trained), model="models:/tiny/1", documents=100).report
    assert report.membership is None
    assert "no data at /nowhere/train.parquet" in caplog.text


def test_the_command_prints_writes_and_logs_the_figures(
    trained: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, page = Path(trained.store.uri).parent / "settings.yaml", tmp_path / "privacy.html"
    words = ["audit", "privacy", str(settings), "--model", "models:/tiny/1"]
    printed = [run_spin(capsys, monkeypatch, *words, *more) for more in (["--html", str(page)], ["--json"])]
    report = json.loads(printed[1])
    rows = read_cells(printed[0])
    for row, figure in zip(rows[1:], report["figures"], strict=False):
        assert row[:3] == [figure["name"], f"{figure['numbers']:,}", f"{100 * figure['recovery']['every']:.1f} %"]
    assert "Of the content words of a text, an attacker recovers" in printed[0]
    assert "Privacy of tiny, version 1" in page.read_text()
    registry = Registry(trained)
    client = registry.tracking.client
    [run, *_] = client.search_runs([registry.tracking.experiment()], "tags.`spin.audit` = 'privacy'")
    assert run.data.metrics["membership_auroc"] == pytest.approx(report["membership"]["auroc"])
    stored = json.loads(Path(client.download_artifacts(run.info.run_id, "privacy.json")).read_text())
    assert stored["version"] == "1"
    assert "### privacy" in client.get_model_version("tiny", "1").description
