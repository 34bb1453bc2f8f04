"""Nights of several real classifiers in this process: what each publishes is what it publishes alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from pipelines.nightly import classify, classify_pass
from pipelines.nightly.command_result import CommandResult
from pipelines.nightly.night_models import RequestedModel
from pipelines.nightly.steps import classify_step, pass_features
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, DISAGREEMENTS, PREDICTIONS, NightTables, read_rows
from pipelines.storage.object_store import Store
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.estimator import SpinClassifier
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings, load_settings
from spin.shared_pass import SharedPass
from tests.pipelines.nightly.steps.test_shadow import ROWS, FailingBlockStep, list_labels
from tests.support import tiny
from tests.support.chaos import FolderRegistry
from tests.support.night_project import DATE, run_shards_here

Row = dict[str, Any]
SHALLOW, DEEP, MULTILABEL, ELSEWHERE = "shallow", "deep", "multilabel", "elsewhere"
QUICK = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off", words="off")
PROBE = ProbeSettings(penalties=3, max_extra=0)

pytestmark = [pytest.mark.usefixtures("all_folds"), pytest.mark.slow]


class NamedRegistry(FolderRegistry):
    """A registered model of a name, whose versions are those of the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.name = name

    def resolve(self, model: str | None = None) -> str:
        return self.name if model is None else model.rpartition("/")[2]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A folder with classifiers of several depths, three of them on one backbone."""
    folder = tmp_path_factory.mktemp("versions")
    other = tiny.save_bert(tmp_path_factory.mktemp("elsewhere"), seed=1)
    parts: dict[str, tuple[Path, list[str], list[str], Callable[[Row], Any]]] = {
        SHALLOW: (backbone_folder, ["ffn.01"], ["mean"], lambda row: row["label"]),
        DEEP: (backbone_folder, ["ffn.01", "resid.03"], ["mean", "max"], lambda row: row["label"]),
        MULTILABEL: (backbone_folder, ["resid.02"], ["max"], list_labels),
        ELSEWHERE: (other, ["resid.02"], ["mean"], lambda row: row["label"]),
    }
    rows = tiny.make_documents(240, ("good", "bad", "plain"))
    for name, (backbone, sites, poolings, label) in parts.items():
        float32 = BackboneSettings(model=str(backbone), dtype="float32", device="cpu")
        classifier = SpinClassifier(float32, sites=sites, poolings=poolings, probe=PROBE, search=QUICK)
        classifier.fit([row["text"] for row in rows], [label(row) for row in rows]).save(folder / name)
    return folder


class SeveralProject:
    """A folder or an S3 prefix with input files, and nights of several models that classify them."""

    def __init__(self, folder: Path, versions: Path, backbone: Path, uri: str | None = None) -> None:
        self.folder, self.versions, self.backbone = folder, versions, backbone
        self.store = Store(str(folder) if uri is None else uri)

    def write(self, rows: list[Row], name: str = "a.jsonl") -> None:
        self.store.write(f"data/{name}", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def run(
        self,
        out: str,
        *models: str,
        shadows: Mapping[str, str] | None = None,
        cascade: bool = False,
        date: str = DATE,
        incremental: bool = False,
        **limits: float,
    ) -> CommandResult:
        """Run a night of some models, with a version as the shadow of some."""
        tree: dict[str, Any] = {
            "backbone": {"model": str(self.backbone), "dtype": "float32", "device": "cpu", "engine": "torch"},
            "data": {"train": "nowhere"},
            "store": "nowhere",
            "ray": {"shard_documents": 40},
            "classify": {"cascade": cascade, **limits},
        }
        settings = self.folder / "settings.yaml"
        settings.write_text(json.dumps(tree))
        requested = [
            RequestedModel(NamedRegistry(self.versions, name), None, (shadows or {}).get(name))  # type: ignore[arg-type]
            for name in models
        ]
        source, output = f"{self.store.uri}/data", f"{self.store.uri}/{out}"
        return classify.classify_nights(
            load_settings(settings), requested, source, output, night=date, incremental=incremental
        )

    def read(self, out: str, table: str, model: str, date: str = DATE) -> list[Row]:
        """The rows of a model, without the run."""
        rows: list[Row] = read_rows(
            NightTables(self.store / out).open(table), {"date": date, "model": model}
        ).to_pylist()
        return rows


@pytest.fixture
def project(tmp_path: Path, versions: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SeveralProject:
    run_shards_here(monkeypatch)
    return SeveralProject(tmp_path, versions, backbone_folder)


def test_the_rows_of_each_model_are_those_of_a_night_of_its_own(
    project: SeveralProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 without exits they are equal bit for bit, and the backbone ran as often as for the deepest alone."""
    calls: Counter[str] = Counter()
    forward = BertModel.forward

    def count_forward(model: Any, *args: Any, **keywords: Any) -> Any:
        calls["forward"] += 1
        return forward(model, *args, **keywords)

    monkeypatch.setattr(BertModel, "forward", count_forward)
    project.write([*ROWS[:77], {"id": "x", "text": None}, dict(ROWS[3]), *ROWS[77:]])
    together = project.run("together", DEEP, MULTILABEL, SHALLOW)
    together.raise_failures()
    in_one_pass = calls["forward"]
    for name, report in zip((DEEP, MULTILABEL, SHALLOW), together.reports, strict=True):
        calls.clear()
        [alone] = project.run(f"alone-{name}", name).reports
        assert calls["forward"] == in_one_pass
        assert report.counts == alone.counts
        for table in (PREDICTIONS, DEAD_LETTERS):
            rows = project.read("together", table, name)
            assert rows == project.read(f"alone-{name}", table, name)
            assert rows
        assert [(drift.name, drift.psi) for drift in report.drift] == [(d.name, d.psi) for d in alone.drift]


TEN = tuple(f"model-{n}" for n in range(10))
SITES = ("ffn.01", "ffn.02", "resid.01", "resid.02", "ffn.01", "resid.03", "ffn.02", "resid.02", "resid.01", "ffn.02")
SHARED_WORK = {"pass.json", "intake", "spool", "repeats-0", "model"}
STRICT = TEN[5]
"""the only one of ten models that reads the third block"""


@pytest.fixture(scope="module")
def ten_versions(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """A folder with ten classifiers on one backbone, of different depths, neurons and labels."""
    folder, rows = tmp_path_factory.mktemp("ten"), tiny.make_documents(120, ("good", "bad", "plain"))
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    for number, (name, site) in enumerate(zip(TEN, SITES, strict=True)):
        classifier = SpinClassifier(
            backbone, sites=[site], poolings=[("mean", "max")[number % 2]], probe=PROBE, search=QUICK, seed=number
        )
        classifier.fit([row["text"] for row in rows], [f"{number} {row['label']}" for row in rows])
        classifier.save(folder / name)
    return folder


def predict_plainly(versions: Path, model: str, rows: list[Row]) -> dict[str, tuple[Any, float]]:
    """The label and the score of each document by its id, of the classifier by itself."""
    classifier = TrainedClassifier.load(versions / model)
    predictions = classifier.predict_all([row["text"] for row in rows])
    scored = zip(predictions.labels, predictions.score.tolist(), strict=True)
    return {row["id"]: found for row, found in zip(rows, scored, strict=True)}


def test_ten_classifiers_share_one_pass_and_publish_by_themselves(
    store_uri: str, tmp_path: Path, ten_versions: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have classified different files before, and one of them cannot compute some documents of the night.

    The work lies in the folder of one pass, and each model predicts each document once, as the classifier does alone.
    """
    run_shards_here(monkeypatch)
    monkeypatch.setattr(classify_pass, "ClassifyStep", FailingBlockStep)
    monkeypatch.setattr(pass_features, "KNOWN_GOOD_TEXT", ROWS[0]["text"])
    project = SeveralProject(tmp_path, ten_versions, backbone_folder, store_uri)
    unknown = [{"id": f"unknown {n}", "text": "the zebra was late"} for n in range(4)]
    files = {"a.jsonl": ROWS[:20], "b.jsonl": ROWS[20:30], "c.jsonl": [*ROWS[30:50], *unknown, dict(ROWS[40])]}
    earlier: dict[str, list[Row]] = {model: [] for model in TEN}
    for date, name, models in (("2026-02-27", "a.jsonl", TEN[:2]), ("2026-02-28", "b.jsonl", TEN[1:3])):
        project.write(files[name], name)
        project.run("out", *models, date=date, incremental=True).raise_failures()
        earlier |= {model: [*ROWS[: 20 if name == "a.jsonl" else 30]] for model in models}
    project.write(files["c.jsonl"], "c.jsonl")
    before = set((project.store / f"out/{RUNS}").list_names())

    night = project.run("out", *TEN, incremental=True, max_dead_fraction=0.05)

    assert [(failure.model, failure.status) for failure in night.failures] == [(STRICT, 4)]
    assert [report.model for report in night.reports] == [model for model in TEN if model != STRICT]
    [shared] = {project.store.read_json(f"out/{RUNS}/{report.run}/run.json")["pass_name"] for report in night.reports}
    new = set((project.store / f"out/{RUNS}").list_names()) - before
    assert len(new) == 1 + len(TEN)
    work = {name: set((project.store / f"out/{RUNS}/{name}").list_names()) for name in new}
    assert work.pop(shared) >= SHARED_WORK
    assert set().union(*work.values()).isdisjoint(SHARED_WORK)

    everything = [*ROWS[:50], *unknown]
    night_rows = rows_by_version(project, {"date": DATE})
    assert STRICT not in night_rows
    for model in TEN:
        if model != STRICT:
            check_rows(project, model, night_rows[model], [row for row in everything if row not in earlier[model]])

    project.run("out", *TEN, incremental=True, max_dead_fraction=0.5).raise_failures()
    all_rows = rows_by_version(project, {})
    for model in TEN:
        check_rows(project, model, all_rows[model], ROWS[:50] if model == STRICT else everything)


def rows_by_version(project: SeveralProject, partition: Mapping[str, str]) -> dict[str, list[Row]]:
    """The published rows with some partition values, by the version of their model, which is its name here."""
    rows: dict[str, list[Row]] = {}
    for row in read_rows(NightTables(project.store / "out").open(PREDICTIONS), partition).to_pylist():
        rows.setdefault(row["model_version"], []).append(row)
    return rows


def check_rows(project: SeveralProject, model: str, published: list[Row], rows: list[Row]) -> None:
    """A model has published one row for each document, equal to what the classifier alone predicts."""
    expected = predict_plainly(project.versions, model, rows)
    assert sorted(row["id"] for row in published) == sorted(expected)
    assert {row["id"]: row["label"] for row in published} == {id: label for id, (label, _) in expected.items()}
    scores = [expected[row["id"]][1] for row in published]
    assert [row["score"] for row in published] == pytest.approx(scores, abs=1e-6)


def test_each_model_keeps_its_own_exits(project: SeveralProject) -> None:
    project.write(ROWS)
    together = project.run("together", DEEP, SHALLOW, cascade=True)
    together.raise_failures()
    for name, report in zip((DEEP, SHALLOW), together.reports, strict=True):
        [alone] = project.run(f"alone-{name}", name, cascade=True).reports
        assert (report.counts.depths, report.counts.labels) == (alone.counts.depths, alone.counts.labels)
        rows, own = (
            [(row["id"], row["label"], row["depth"]) for row in project.read(out, PREDICTIONS, name)]
            for out in ("together", f"alone-{name}")
        )
        assert rows == own


def test_a_model_on_another_backbone_has_a_pass_of_its_own(project: SeveralProject) -> None:
    """Its backbone is the one that its artifact names; the settings name that of the others."""
    project.write(ROWS)
    together = project.run("together", DEEP, ELSEWHERE, SHALLOW)
    together.raise_failures()
    assert [report.model for report in together.reports] == [DEEP, ELSEWHERE, SHALLOW]
    alone = TrainedClassifier.load(project.versions / ELSEWHERE)
    expected = alone.predict([row["text"] for row in ROWS])
    assert [row["label"] for row in project.read("together", PREDICTIONS, ELSEWHERE)] == expected
    # so the command that resumes its run by itself, which names this one model, goes on
    project.run("by itself", ELSEWHERE).raise_failures()
    assert [row["label"] for row in project.read("by itself", PREDICTIONS, ELSEWHERE)] == expected


def test_a_document_that_only_one_model_cannot_compute_is_a_dead_letter_of_that_one(
    project: SeveralProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third block raises on words that the tokenizer does not know; only the deep model reads it."""
    monkeypatch.setattr(classify_pass, "ClassifyStep", FailingBlockStep)
    monkeypatch.setattr(pass_features, "KNOWN_GOOD_TEXT", ROWS[0]["text"])
    rows = [*ROWS[:17], {"id": "unknown word", "text": "the zebra was late"}, *ROWS[17:]]
    project.write(rows)
    together = project.run("together", DEEP, SHALLOW)
    together.raise_failures()
    deep, shallow = together.reports
    assert (deep.counts.reasons, shallow.counts.reasons) == ({"poison": 1}, {})
    assert [row["id"] for row in project.read("together", DEAD_LETTERS, DEEP)] == ["unknown word"]
    assert [row["id"] for row in project.read("together", PREDICTIONS, SHALLOW)] == [row["id"] for row in rows]
    project.run("alone", DEEP).raise_failures()
    labels = [[(r["id"], r["label"]) for r in project.read(out, PREDICTIONS, DEEP)] for out in ("together", "alone")]
    assert labels[0] == labels[1]
    strict = project.run("strict", DEEP, SHALLOW, max_dead_fraction=0)
    assert [(failure.model, failure.status) for failure in strict.failures] == [(DEEP, 4)]
    assert [report.model for report in strict.reports] == [SHALLOW]


def test_one_of_several_models_has_a_shadow(project: SeveralProject) -> None:
    """Its disagreements are those of a night of its own with the shadow, and no row of any model changes."""
    project.write(ROWS)
    shadows = {SHALLOW: f"models:/{SHALLOW}/{DEEP}"}
    together = project.run("together", MULTILABEL, SHALLOW, shadows=shadows)
    together.raise_failures()
    [alone] = project.run("alone", SHALLOW, shadows=shadows).reports
    without = project.run("without", MULTILABEL, SHALLOW)
    assert [report.shadow for report in together.reports] == [None, alone.shadow]
    disagreements = project.read("together", DISAGREEMENTS, SHALLOW)
    assert disagreements == project.read("alone", DISAGREEMENTS, SHALLOW)
    assert disagreements
    assert project.read("together", DISAGREEMENTS, MULTILABEL) == []
    for report, model in zip(without.reports, (MULTILABEL, SHALLOW), strict=True):
        assert project.read("together", PREDICTIONS, model) == project.read("without", PREDICTIONS, model)
        assert report.shadow is None


@pytest.mark.parametrize("where", ["loading", "preparing", "deciding"])
@pytest.mark.parametrize("error", [ZeroDivisionError, UserError])
def test_an_error_of_one_model_names_it(
    where: str, error: type[Exception], project: SeveralProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the operator knows which `--model` to leave out; of an error of the machine, none is to blame."""
    project.write(ROWS)
    named: list[TrainedClassifier] = []
    load, prepare, decide = classify_step._load, TrainedClassifier.prepare, TrainedClassifier.predict_features

    def load_one(*args: Any) -> Any:
        if where == "loading" and len(named) == 1:
            raise error("broken")
        named.append(load(*args))
        return named[-1]

    def fail_second(original: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(spin: TrainedClassifier, *args: Any) -> Any:
            if where == kind and spin is named[1]:
                raise error("broken")
            return original(spin, *args)

        return call

    def fail(*_: Any) -> None:
        raise RuntimeError("the pass of both")

    monkeypatch.setattr(classify_step, "_load", load_one)
    monkeypatch.setattr(TrainedClassifier, "prepare", fail_second(prepare, "preparing"))
    monkeypatch.setattr(TrainedClassifier, "predict_features", fail_second(decide, "deciding"))
    if where == "preparing":
        monkeypatch.setattr(SharedPass, "prepare", fail)
    result = project.run("together", DEEP, SHALLOW)
    what = "broken" if error is UserError else "ZeroDivisionError: broken"
    assert {failure.message for failure in result.failures} == {f"model {SHALLOW}, version {SHALLOW}: {what}"}
    assert {failure.status for failure in result.failures} == {2 if error is UserError else 1}


def test_a_model_whose_backbone_is_gone_is_refused_before_any_work(project: SeveralProject, tmp_path: Path) -> None:
    project.write(ROWS)
    moved = tmp_path / "versions"
    (moved / "gone").mkdir(parents=True)
    for file in (project.versions / ELSEWHERE).iterdir():
        (moved / "gone" / file.name).write_bytes(file.read_bytes())
    config = json.loads((moved / "gone" / "config.json").read_text())
    config["metadata"]["backbone"]["model"] = "/nowhere"
    (moved / "gone" / "config.json").write_text(json.dumps(config))
    (moved / SHALLOW).symlink_to(project.versions / SHALLOW)
    project.versions = moved
    with pytest.raises(UserError, match="version gone of gone cannot be used: .*no directory"):
        project.run("out", "gone", SHALLOW)
    assert [key for key in Store(str(tmp_path / "out")).list() if not key.startswith("_leases/")] == []
