"""`spin audit robustness` on a registered version: what it prints, writes and logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipelines.audit.audited_version import draw_rows, open_audited
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import Registry
from spin.audit.perturbations import PERTURBATIONS
from spin.errors import UserError
from spin.labels.metrics import score
from spin.settings import parse_settings
from tests.support import tiny
from tests.support.command_line import run_spin
from tests.support.registry_fixture import RegistryFixture, build_evaluation_set

ROWS = tiny.make_documents(80, seed=5)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> RegistryFixture:
    """A registry with one version, and a settings file."""
    folder = tmp_path_factory.mktemp("audited")
    uri = f"sqlite:///{folder}/mlflow.db"
    fixture = RegistryFixture(folder, backbone_folder, uri, evaluation_set=build_evaluation_set(ROWS))
    tree = fixture.settings.model_dump(mode="json", exclude_unset=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return fixture


def test_the_audit_prints_writes_and_logs_the_same_figures(
    audited: RegistryFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, model = str(audited.folder / "settings.yaml"), f"models:/{audited.name}/1"
    page = tmp_path / "robustness.html"
    printed = run_spin(capsys, monkeypatch, "audit", "robustness", settings, "--model", model, "--html", str(page))
    report = json.loads(
        run_spin(capsys, monkeypatch, "audit", "robustness", settings, "--model", model, "--json")
    )  # the same seed
    opened = audited.registry.load("1")
    predicted = audited.spin.label_space.index(opened.predict([row["text"] for row in ROWS]))
    y = audited.spin.label_space.index([row["label"] for row in ROWS])
    assert report["score"] == pytest.approx(score("macro_f1", y, predicted))
    assert report["documents"] == 80
    assert {row["name"] for row in report["figures"]} <= {p.name for p in PERTURBATIONS}
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert len(rows) == len(report["figures"])
    for cells, row in zip(rows, report["figures"], strict=True):
        assert cells[1].strip() == row["name"]
        flips = row["flips"] if row["keeps_label"] else row["flips_of_right"]
        assert cells[6].strip() == f"{100 * flips:.1f} %"
    summary = printed.splitlines()[-2]
    assert summary.startswith(f"{audited.name} version 1: Moderate perturbations")
    assert f"wrote {page}" in printed
    assert f"Robustness of {audited.name}, version 1" in page.read_text()
    client = audited.registry.tracking.client
    runs = client.search_runs([audited.registry.tracking.experiment()], "tags.`spin.audit` = 'robustness'")
    assert len(runs) == 2
    for logged in runs:
        assert logged.data.metrics["mean_loss"] == pytest.approx(report["mean_loss"])
        stored = json.loads(Path(client.download_artifacts(logged.info.run_id, "robustness.json")).read_text())
        assert stored == report
    description = client.get_model_version(audited.name, "1").description
    assert description.endswith(summary.partition(": ")[2])
    assert description.count("### robustness") == 1


def test_a_sample_is_part_of_the_evaluation_set(audited: RegistryFixture) -> None:
    sample = open_audited(audited.registry, f"models:/{audited.name}/1", 30)
    labels = audited.spin.label_space.names(sample.y)
    by_text = {row["text"]: row["label"] for row in ROWS}
    assert [by_text[text] for text in sample.texts] == labels
    assert len(sample.texts) == 30
    assert len(sample.frozen) == 80
    assert draw_rows(80, 30, 1) == sorted({*draw_rows(80, 30, 1)})
    assert draw_rows(80, 30, 1) != draw_rows(80, 30, 2)
    assert draw_rows(80, None, 1) == draw_rows(80, 1000, 1) == list(range(80))


def test_an_audit_decides_as_the_settings_say_but_gives_no_reasons(audited: RegistryFixture) -> None:
    """Reasons would take time in each of its passes."""
    tree = audited.settings.model_dump(mode="json", exclude_unset=True)
    decided = {"decision": {"abstain": 0.25}, "classify": {"reasons": 2}}
    spin = open_audited(Registry(parse_settings(tree | decided)), f"models:/{audited.name}/1", 10).spin
    assert (spin.reasons, spin.decision_rule.abstain, spin.early) == (0, 0.25, True)


def test_an_audit_without_an_evaluation_set_is_refused(backbone_folder: Path, tmp_path: Path) -> None:
    fixture = RegistryFixture(tmp_path, backbone_folder, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="has no frozen evaluation set; train with test documents"):
        open_audited(fixture.registry, f"models:/{fixture.name}/1", 30)


def test_a_class_that_the_version_does_not_know_is_named(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = EvaluationSet(["a", "b"], ["fine", "poor"], ["good", "ugly"])
    fixture = RegistryFixture(tmp_path, backbone_folder, f"sqlite:///{tmp_path}/mlflow.db", evaluation_set=unknown)
    (tmp_path / "settings.yaml").write_text(
        yaml.safe_dump(fixture.settings.model_dump(mode="json", exclude_unset=True))
    )
    words = "audit", "robustness", str(tmp_path / "settings.yaml"), "--model", f"models:/{fixture.name}/1"
    assert "label 'ugly' is not one of the model's: bad, good" in run_spin(capsys, monkeypatch, *words, status=2)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    audited: RegistryFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = str(audited.folder / "settings.yaml")
    message = run_spin(capsys, monkeypatch, "audit", "robustness", settings, "--html", "/nowhere/page.html", status=2)
    assert "there is no directory /nowhere" in message
