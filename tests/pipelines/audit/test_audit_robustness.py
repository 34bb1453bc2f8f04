"""`spin audit robustness` on a registered version: what it prints, writes and logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as save_tensors

from pipelines.audit.audit_robustness import audit_robustness
from pipelines.audit.audited_version import draw_rows, open_audited
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import CHAMPION, Registry
from spin.audit import perturbations
from spin.audit.perturbations import PERTURBATIONS, Perturbation, mix_perturbations
from spin.errors import UserError
from spin.fitted.held_out import HELD_OUT, HeldOutLogits
from spin.integrate.bootstrap import difference_interval
from spin.labels.metrics import score
from spin.settings import parse_settings
from tests.support import tiny
from tests.support.command_line import read_cells, run_spin
from tests.support.registry_databases import create_database
from tests.support.registry_fixture import RegistryFixture, build_evaluation_set, build_quick_classifier

ROWS = tiny.make_documents(80, seed=5)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> RegistryFixture:
    """A registry with one version, and a settings file."""
    folder = tmp_path_factory.mktemp("audited")
    uri = create_database(folder / "mlflow.db")
    fixture = RegistryFixture(folder, backbone_folder, uri, evaluation_set=build_evaluation_set(ROWS))
    tree = fixture.settings.model_dump(mode="json", exclude_unset=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return fixture


@pytest.mark.slow
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
    names = {row["name"] for row in report["figures"]}
    rows = [cells for cells in read_cells(printed) if cells[0] in names]
    assert len(rows) == len(report["figures"])
    for cells, row in zip(rows, report["figures"], strict=True):
        assert cells[0] == row["name"]
        flips = row["flips"] if row["keeps_label"] else row["flips_of_right"]
        assert cells[5] == f"{100 * flips:.1f} %"
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_audit_decides_as_the_settings_say_but_gives_no_reasons(audited: RegistryFixture) -> None:
    """Reasons would take time in each of its passes."""
    tree = audited.settings.model_dump(mode="json", exclude_unset=True)
    decided = {"decision": {"abstain": 0.25}, "classify": {"reasons": 2}}
    spin = open_audited(Registry(parse_settings(tree | decided)), f"models:/{audited.name}/1", 10).spin
    assert (spin.reasons, spin.decision_rule.abstain, spin.early) == (0, 0.25, True)


@pytest.mark.slow
def test_an_audit_without_an_evaluation_set_is_refused(backbone_folder: Path, tmp_path: Path) -> None:
    fixture = RegistryFixture(tmp_path, backbone_folder, create_database(tmp_path / "mlflow.db"))
    with pytest.raises(UserError, match="has no frozen evaluation set; `spin run` with test documents freezes one"):
        open_audited(fixture.registry, f"models:/{fixture.name}/1", 30)


@pytest.mark.slow
def test_a_class_that_the_version_does_not_know_is_named(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = EvaluationSet(["a", "b"], ["fine", "poor"], ["good", "ugly"])
    uri = create_database(tmp_path / "mlflow.db")
    fixture = RegistryFixture(tmp_path, backbone_folder, uri, evaluation_set=unknown)
    (tmp_path / "settings.yaml").write_text(
        yaml.safe_dump(fixture.settings.model_dump(mode="json", exclude_unset=True))
    )
    words = "audit", "robustness", str(tmp_path / "settings.yaml"), "--model", f"models:/{fixture.name}/1"
    assert "label 'ugly' is not one of the model's: bad, good" in run_spin(capsys, monkeypatch, *words, status=2)


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    audited: RegistryFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = str(audited.folder / "settings.yaml")
    message = run_spin(capsys, monkeypatch, "audit", "robustness", settings, "--html", "/nowhere/page.html", status=2)
    assert "there is no directory /nowhere" in message


@pytest.fixture(scope="module")
def with_champion(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> RegistryFixture:
    """A registry whose champion, version 2, learned from labels of which every third is wrong."""
    folder = tmp_path_factory.mktemp("with_champion")
    uri = create_database(folder / "mlflow.db")
    fixture = RegistryFixture(folder, backbone_folder, uri, evaluation_set=build_evaluation_set(ROWS))
    rows = tiny.make_documents(120, seed=8)
    swapped = {"good": "bad", "bad": "good"}
    labels = [row["label"] if number % 3 else swapped[row["label"]] for number, row in enumerate(rows)]
    build_quick_classifier(fixture.settings.backbone).fit([row["text"] for row in rows], labels).save(
        folder / "artifact"
    )
    assert fixture.register() == "2"
    fixture.registry.set_alias(CHAMPION, "2")
    tree = fixture.settings.model_dump(mode="json", exclude_unset=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return fixture


@pytest.fixture
def broken_champion(with_champion: RegistryFixture) -> Iterator[RegistryFixture]:
    """The same, but version 1 is the champion, and one of its files was changed."""
    with_champion.registry.set_alias(CHAMPION, "1")
    with_champion.change(lambda model: (model / "artifacts" / "spin" / "config.json").write_text("{}"))
    yield with_champion
    with_champion.restore()
    with_champion.registry.set_alias(CHAMPION, "2")


@pytest.mark.slow
def test_the_champion_beside_a_version_has_the_figures_of_its_own_audit(with_champion: RegistryFixture) -> None:
    fixture = with_champion
    beside = audit_robustness(fixture.settings, fixture.registry, model=f"models:/{fixture.name}/1")
    alone = audit_robustness(fixture.settings, fixture.registry)
    assert (beside.record.content["version"], alone.record.content["version"]) == ("1", "2")
    assert alone.champion is None
    assert beside.champion is not None
    assert beside.champion.champion == "2"
    assert beside.champion.report == alone.report
    assert beside.report != alone.report
    scores = [row.champion_score for row in beside.champion.differences]
    assert scores == pytest.approx([row.score for row in alone.report.figures if row.keeps_label])
    settings = beside.champion.to_json()
    assert {name: settings[name] for name in alone.report.to_json()} == alone.report.to_json()


@pytest.mark.slow
def test_the_difference_to_the_champion_is_that_of_a_paired_bootstrap(with_champion: RegistryFixture) -> None:
    """By the labels that both versions give when they are opened by themselves."""
    fixture = with_champion
    audit = audit_robustness(fixture.settings, fixture.registry, model=f"models:/{fixture.name}/1")
    assert audit.champion is not None
    typos = next(p for p in PERTURBATIONS if p.name == "typos")
    texts = [row["text"] for row in ROWS]
    changed = typos.apply(texts, 3, fixture.settings.seed)
    rows = [number for number, text in enumerate(texts) if changed[number] != text]
    space = fixture.spin.label_space
    y = space.index([ROWS[number]["label"] for number in rows])
    given, others = (
        space.index(fixture.registry.load(number).predict([changed[row] for row in rows])) for number in ("1", "2")
    )
    [found] = [row for row in audit.champion.differences if (row.name, row.severity) == ("typos", 3)]
    assert found.score == pytest.approx(score("macro_f1", y, given))
    assert found.champion_score == pytest.approx(score("macro_f1", y, others))
    significance, seed = fixture.settings.promote.significance, fixture.settings.seed
    low, _ = difference_interval("macro_f1", y, given, others, significance, seed)
    assert found.difference.low == pytest.approx(low)
    assert found.difference.low <= found.difference.value <= found.difference.high


@pytest.mark.slow
def test_the_command_prints_and_logs_the_champion_beside_a_version(
    with_champion: RegistryFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    fixture, page = with_champion, tmp_path / "robustness.html"
    words = ["audit", "robustness", str(fixture.folder / "settings.yaml"), "--model", f"models:/{fixture.name}/1"]
    printed = run_spin(capsys, monkeypatch, *words, "--html", str(page))
    report = json.loads(run_spin(capsys, monkeypatch, *words, "--json"))
    _, _, second = printed.partition("against the champion, version 2: macro_f1")
    differences = report["champion"]["differences"]
    names = {row["name"] for row in differences}
    rows = [cells for cells in read_cells(second) if cells[0] in names]
    assert len(rows) == len(differences) == len([row for row in report["figures"] if row["keeps_label"]])
    for cells, row in zip(rows, differences, strict=True):
        assert cells[0] == row["name"]
        assert cells[2:4] == [f"{100 * row['score']:.1f}", f"{100 * row['champion_score']:.1f}"]
        assert " to " in cells[5]
    assert "The champion, version 2, changes by" in printed
    assert "Against the champion" in page.read_text()
    client = fixture.registry.tracking.client
    runs = client.search_runs([fixture.registry.tracking.experiment()], "tags.`spin.audit` = 'robustness'")
    logged = runs[0].data.metrics
    assert logged["champion_mean_loss"] == pytest.approx(report["champion"]["mean_loss"])
    [typos] = [row for row in differences if (row["name"], row["severity"]) == ("typos", 2)]
    assert logged["typos_difference"] == pytest.approx(typos["difference"]["value"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--model", "models:/{name}/1", "--without-champion"], []])
def test_only_one_version_is_measured_where_that_suffices(
    with_champion: RegistryFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
) -> None:
    """The champion is not measured beside itself, nor where the option says so."""
    fixture, loaded, page = with_champion, [], tmp_path / "robustness.html"
    load = Registry.load
    monkeypatch.setattr(Registry, "load", lambda self, number, **more: loaded.append(number) or load(self, number))
    words = ["audit", "robustness", str(fixture.folder / "settings.yaml"), "--documents", "10", "--html", str(page)]
    printed = run_spin(capsys, monkeypatch, *words, *(option.format(name=fixture.name) for option in options))
    assert loaded == ["1" if options else "2"]
    assert "champion" not in printed
    assert "champion" not in page.read_text()


@pytest.mark.slow
def test_a_champion_that_does_not_load_leaves_a_note(
    broken_champion: RegistryFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """On the terminal, on the page and in the JSON; the version has its figures all the same."""
    fixture, page = broken_champion, tmp_path / "robustness.html"
    words = ["audit", "robustness", str(fixture.folder / "settings.yaml"), "--model", f"models:/{fixture.name}/2"]
    words += ["--documents", "10"]
    printed = run_spin(capsys, monkeypatch, *words, "--html", str(page))
    note = "The champion, version 1, is not compared, because it cannot be measured: version 1 of"
    assert note in printed
    assert note in page.read_text()
    assert f"the champion, version 1 of {fixture.name}, cannot be measured" in caplog.text
    report = json.loads(run_spin(capsys, monkeypatch, *words, "--json"))
    assert report["champion"] is None
    assert report["note"].startswith(note)
    assert report["documents"] == 10


@pytest.mark.slow
def test_a_champion_that_cannot_keep_the_promise_is_measured_without_a_band(with_champion: RegistryFixture) -> None:
    """As in the gate: only the version has test documents that prove `decision.max_error`."""
    fixture = with_champion
    rows = tiny.make_documents(200, seed=9)
    logits = fixture.spin.predict_logits([row["text"] for row in rows])
    stops = len(fixture.spin.fitted.exits) + 1
    right = HeldOutLogits(np.stack([logits] * stops), fixture.spin.label_space.predict(logits))
    fixture.spin.save(fixture.folder / "artifact")
    held_out = fixture.folder / "artifact" / HELD_OUT
    held_out.write_bytes(save_tensors(right.to_tensors("accuracy")))
    number = fixture.register()
    held_out.unlink()
    tree = fixture.settings.model_dump(mode="json", exclude_unset=True)
    promising = parse_settings({**tree, "decision": {"max_error": 0.2}})
    audit = audit_robustness(promising, Registry(promising), model=f"models:/{fixture.name}/{number}", documents=20)
    assert audit.note is None
    assert audit.champion is not None
    assert audit.champion.report == audit_robustness(fixture.settings, fixture.registry, documents=20).report


class Repetition(Perturbation):
    name = "repetition"
    description = "the text <again>, once to three times"

    def change(self, text: str, severity: int, rng: Random) -> str:
        return " ".join([text] * (1 + severity))


@pytest.mark.slow
def test_a_perturbation_that_is_added_is_measured_shown_and_part_of_the_mix(
    audited: RegistryFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturbations, "PERTURBATIONS", (PERTURBATIONS[0], Repetition()))
    audit = audit_robustness(audited.settings, audited.registry, model=f"models:/{audited.name}/1")
    texts = [row["text"] for row in ROWS]
    measured = [row for row in audit.report.figures if row.name == "repetition"]
    assert [(row.severity, row.documents) for row in measured] == [(level, len(texts)) for level in (1, 2, 3)]
    predict = audited.registry.load("1").predict
    pairs = zip(predict(texts), predict([" ".join([text] * 4) for text in texts]), strict=True)
    assert measured[-1].flips == np.mean([before != after for before, after in pairs])
    assert audit.record.metrics["repetition_loss"] == measured[1].loss
    assert "the text &lt;again&gt;, once to three times" in audit.record.page
    mixed = mix_perturbations(texts)
    assert 0 < sum(changed == f"{text} {text} {text}" for changed, text in zip(mixed, texts, strict=True)) < len(texts)
