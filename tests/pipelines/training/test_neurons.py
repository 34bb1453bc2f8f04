"""The descriptions of selected neurons agree with a plain loop over the features, and the commands print them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from jobs import named_classifier
from jobs.commands import model_commands
from jobs.commands.model_commands import print_neurons
from pipelines.data.corpus import Corpus
from pipelines.data.feature_pool import Places
from pipelines.data.feature_store import LABELS, Columns, FeatureShards, add_places
from pipelines.data.training_labels import Labels
from pipelines.storage.object_store import Store
from pipelines.training.neurons import (
    NEURONS,
    ChosenNeuron,
    NeuronRow,
    TopDocument,
    describe_neurons,
    load_neurons,
    neurons_from_json,
    neurons_to_json,
    read_drivers,
)
from spin import SpinClassifier, TrainedClassifier
from spin.activations.extract import extract
from spin.activations.feature_table import features_table
from spin.activations.features import Features
from spin.arrays import Rows
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.fitted.fitted_classifier import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import Label, LabelSpace
from spin.labels.standardizer import Standardizer
from spin.pages.explanation import Explanation
from spin.pages.explanation_page import Driver
from spin.settings import BackboneSettings, DataSettings, ProbeSettings, SearchSettings, Settings, parse_settings
from spin.sites import FeatureColumn
from tests.support import tiny
from tests.support.command_line import run_spin
from tests.support.corpora import spool_corpus
from tests.support.summaries import build_choice_summary

FFN, RESID = FeatureColumn.parse("ffn.01.mean"), FeatureColumn.parse("resid.02.max")


@dataclass(frozen=True)
class RecordingShards(FeatureShards):
    """Features that record which columns of which shards are read."""

    reads: list[tuple[int, list[str]]] = field(default_factory=list)
    """the shard and the names of the columns of each read"""

    def _read(self, index: int, own: Rows, columns: Columns) -> NDArray[np.floating]:
        self.reads.append((index, list(map(str, columns))))
        return super()._read(index, own, columns)


def write_features(folder: Path, labels: Labels, values: dict[FeatureColumn, Any], shards: int = 2) -> RecordingShards:
    """Write features to a folder as the extract stage does."""
    keys, sizes = list[str](), list[int]()
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for index, rows in enumerate(np.array_split(np.arange(len(labels.ids)), shards)):
        nothing = np.zeros(len(rows), np.int32)
        table = features_table(Features({c: v[rows] for c, v in values.items()}, nothing, nothing, nothing > 0))
        key = f"parts/{index:06d}-000001-1.features.parquet"
        pq.write_table(table, folder / key)
        keys.append(key)
        sizes.append(len(rows))
    pq.write_table(add_places(pa.table({}), Places.of_sizes(sizes)), folder / LABELS)
    widths = {c: v.shape[1] for c, v in values.items()}
    return RecordingShards(Store(str(folder)), tuple(sizes), tuple(keys), widths)


def build_random_classifier(label_space: LabelSpace) -> tuple[TrainedClassifier, Labels, dict[FeatureColumn, Any]]:
    """Random linear heads, labels and features of 40 documents; `cheapest` reads fewer neurons than the others.

    Features are small integers, so that many documents have the same value.
    """
    draw = np.random.default_rng(len(label_space) + label_space.multilabel)
    values = {c: draw.integers(-4, 5, (40, width)).astype(np.float16) for c, width in ((FFN, 9), (RESID, 6))}

    def fitted(neurons: dict[FeatureColumn, list[int]], scale: float = 1.0) -> FittedClassifier:
        p = sum(map(len, neurons.values()))
        selected = {c: np.array(n) for c, n in neurons.items()}
        shares = np.linspace(0.1, 0.3, 9) * scale
        selection = Selection(selected, {c: shares[n] for c, n in selected.items()}, 0.5)
        mean, scale = (
            np.concatenate([f(9)[n] for n in selected.values()]) for f in (np.arange, lambda n: 2.0 + np.arange(n))
        )
        head = LinearHead(draw.normal(size=(len(label_space), p)), draw.normal(size=len(label_space)))
        return FittedClassifier(selection, Standardizer(mean, scale), head, build_choice_summary())

    first, second = fitted({FFN: [1, 4, 7], RESID: [0, 5]}), fitted({FFN: [4, 8]}, 1e-4)
    training_result = TrainingResult({"accuracy": first, "balanced": first, "cheapest": second}, (), 0)
    y = (
        draw.random((40, len(label_space))) < 0.4
        if label_space.multilabel
        else draw.integers(len(label_space), size=40)
    )
    splits = [("train", "train", "valid", "test")[i] for i in draw.integers(4, size=40)]
    spin = TrainedClassifier(BackboneSettings(model="none"), "digest", label_space, training_result, "accuracy")
    return spin, Labels([f"d{i}" for i in range(40)], label_space, y, splits, np.arange(40, dtype=np.uint64)), values


LABEL_SPACES = [LabelSpace(("bad", "good")), LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)]


@pytest.mark.parametrize("label_space", LABEL_SPACES, ids=["binary", "three classes", "multilabel"])
def test_neuron_descriptions_agree_with_a_plain_loop(tmp_path: Path, label_space: LabelSpace) -> None:
    """Each has its importance, the class with the largest weight, and the training documents of the largest values."""
    spin, labels, values = build_random_classifier(label_space)
    described = describe_neurons(spin, write_features(tmp_path, labels, values), labels, count=3)
    rows = json.loads(neurons_to_json(described))
    assert neurons_from_json(neurons_to_json(described)) == described
    assert [list(row) for row in rows] == [["column", "neuron", "heads", "top"]] * len(rows)
    assert [(row["column"], row["neuron"]) for row in rows] == [
        *(("ffn.01.mean", n) for n in (1, 4, 7, 8)),
        *(("resid.02.max", n) for n in (0, 5)),
    ]
    label_names = labels.label_space.names(labels.y)
    for row in rows:
        column, neuron = FeatureColumn.parse(row["column"]), row["neuron"]
        assert set(row["heads"]) == {
            name
            for name, fitted in spin.training_result.choices.items()
            if neuron in fitted.selection.neurons.get(column, [])
        }
        for name, head in row["heads"].items():
            fitted = spin.training_result.choices[name]
            position = [(c, n) for c, n, _ in fitted.selection.rows()].index((column, neuron))
            weights = {label_space.classes[k]: fitted.head.coef[k, position] for k in range(len(label_space))}  # type: ignore[union-attr]
            assert head["class"] == max(weights, key=weights.__getitem__)
            assert head["slope"] == pytest.approx(max(weights.values()), rel=1e-3)
            assert head["importance"] == pytest.approx(fitted.selection.rows()[position][2], rel=1e-3)
            highest = sorted(
                (i for i in range(40) if labels.splits[i] == "train"), key=lambda i: (-values[column][i, neuron], i)
            )[:3]
            assert [top["id"] for top in row["top"]] == [f"d{i}" for i in highest]
            assert [top["label"] for top in row["top"]] == [label_names[i] for i in highest]
            expected = [
                (values[column][i, neuron] - fitted.standardizer.mean[position]) / fitted.standardizer.scale[position]
                for i in highest
            ]
            assert [top["value"] for top in row["top"]] == pytest.approx(expected, rel=1e-3)


def test_each_shard_is_read_once(tmp_path: Path) -> None:
    """And of it only the columns with a neuron that a classifier reads."""
    spin, labels, values = build_random_classifier(LABEL_SPACES[0])
    features = write_features(tmp_path, labels, values)
    describe_neurons(spin, features, labels)
    assert features.reads == [(index, ["ffn.01.mean", "resid.02.max"]) for index in range(2)]


@pytest.mark.parametrize("count", [1, 30, 100])
def test_a_neuron_has_at_most_all_training_documents(tmp_path: Path, count: int) -> None:
    spin, labels, values = build_random_classifier(LABEL_SPACES[0])
    rows = describe_neurons(spin, write_features(tmp_path, labels, values, shards=1), labels, count)
    assert {len(row.top) for row in rows} == {min(count, labels.splits.count("train"))}


def open_corpus(folder: Path, ids: Sequence[str]) -> Corpus:
    """A corpus of documents with these ids, whose texts name them, in parts of 15."""
    texts = [f"text of {id}" for id in ids]
    pq.write_table(pa.table({"id": ids, "text": texts, "label": ["a"] * len(ids)}), folder / "corpus.parquet")
    data = DataSettings(train=str(folder / "corpus.parquet"))
    return spool_corpus(data.train, Store(str(folder)), 15, data)


@pytest.mark.parametrize("label_space", LABEL_SPACES[1:], ids=["three classes", "multilabel"])
def test_top_documents_have_their_texts_only_if_these_are_kept(tmp_path: Path, label_space: LabelSpace) -> None:
    """By default `neurons.json` has no field for them, so that the files of versions do not change."""
    spin, labels, values = build_random_classifier(label_space)
    features, corpus = write_features(tmp_path, labels, values), open_corpus(tmp_path, labels.ids)
    plain, kept = describe_neurons(spin, features, labels), describe_neurons(spin, features, labels, texts=corpus)
    rows = json.loads(neurons_to_json(kept))
    assert neurons_from_json(neurons_to_json(kept)) == kept
    tops = [top for row in rows for top in row["top"]]
    assert [list(top) for top in tops] == [["id", "label", "value", "text"]] * len(tops)
    assert [top.pop("text") for top in tops] == [f"text of {top['id']}" for top in tops]
    assert rows == json.loads(neurons_to_json(plain))
    assert "text" not in neurons_to_json(plain).decode()


@dataclass
class RegistryFixture:
    """A registry with one version, whose files are in a folder."""

    folder: Path
    settings: Settings | None = None
    name: str = "tiny"

    def resolve(self, model: str | None = None) -> str:
        return "3"

    def load(self, number: str) -> TrainedClassifier:
        return TrainedClassifier.load(self.folder)

    def download(self, number: str, folder: Path) -> None:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def test_neurons_of_a_choice_are_sorted_by_importance_times_slope(tmp_path: Path) -> None:
    """Only the neurons that the choice reads are returned. A version without the file is refused."""
    spin, labels, values = build_random_classifier(LABEL_SPACES[1])
    rows = describe_neurons(spin, write_features(tmp_path / "store", labels, values), labels)
    (tmp_path / "model").mkdir()
    registry_fixture: Any = RegistryFixture(tmp_path / "model")
    with pytest.raises(UserError, match="version 3 of tiny holds no neurons.json; `spin run` trains and registers one"):
        load_neurons(registry_fixture, "3", "accuracy")
    (tmp_path / "model" / NEURONS).write_bytes(neurons_to_json(rows))
    for choose in ("accuracy", "cheapest"):
        neurons = load_neurons(registry_fixture, "3", choose)
        selected = {(str(c), n) for c, n, _ in spin.training_result.choices[choose].selection.rows()}
        assert {(neuron.row.column, neuron.row.neuron) for neuron in neurons} == selected
        importance = {(str(c), n): share for c, n, share in spin.training_result.choices[choose].selection.rows()}
        weights = [importance[neuron.row.column, neuron.row.neuron] * abs(neuron.head.slope) for neuron in neurons]
        assert weights == sorted(weights, reverse=True)
        assert len(set(weights)) == len(weights) > 1


def test_small_shares_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with two digits."""
    spin, labels, values = build_random_classifier(LABEL_SPACES[1])
    rows = describe_neurons(spin, write_features(tmp_path, labels, values), labels)
    for choose, shown in (("accuracy", "20 %"), ("cheapest", "0.0020 %")):
        print_neurons([ChosenNeuron(row, row.heads[choose]) for row in rows if choose in row.heads], {}, 5)
        printed = " ".join(capsys.readouterr().out.split())
        assert shown in printed
        assert "by importance (share of that of all neurons) times slope" in printed


def test_drivers_get_their_texts_from_the_corpus(tmp_path: Path) -> None:
    """The files of the corpus are read for the texts of each row's documents, whose order stays.

    Documents that are missing or have a null text are left out. Lists of labels are joined.
    """
    for file in (0, 1):
        rows = [{"id": f"d{i}", "text": f"text {i}" if i != 7 else None} for i in range(5 * file, 5 * file + 5)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{file}.parquet")
    labels: list[Label] = ["a", ["a", "b"], []]
    tops = [TopDocument(f"d{i}", label, 9.0 - i) for i, label in enumerate(labels)]
    left_out = [TopDocument(f"d{i}", "a", 1.0) for i in (99, 7)]
    settings = parse_settings({"backbone": {"model": "m"}, "data": {"train": str(tmp_path)}, "store": "s"})
    neurons = [
        NeuronRow("ffn.01.mean", 4, {}, (*tops[::-1], *left_out)),
        NeuronRow("ffn.01.mean", 5, {}, (TopDocument("d9", "b", 0.5),)),
    ]
    assert read_drivers(neurons, settings) == {
        (FFN, 4): [
            Driver("d2", "no class", "text 2", 7.0),
            Driver("d1", "a, b", "text 1", 8.0),
            Driver("d0", "a", "text 0", 9.0),
        ],
        (FFN, 5): [Driver("d9", "b", "text 9", 0.5)],
    }
    missing = parse_settings({"backbone": {"model": "m"}, "data": {"train": str(tmp_path / "no")}, "store": "s"})
    assert read_drivers([], missing) == {}
    with pytest.raises(UserError, match="no data at"):
        read_drivers(neurons, missing)


def test_texts_that_a_version_holds_are_not_read_from_the_corpus(tmp_path: Path) -> None:
    """The others are; a corpus that is not needed need not exist."""
    pq.write_table(pa.table({"id": ["d0", "d1"], "text": ["text 0", "text 1"]}), tmp_path / "corpus.parquet")
    tree = {"backbone": {"model": "m"}, "data": {"train": str(tmp_path / "corpus.parquet")}, "store": "s"}
    stored = NeuronRow("ffn.01.mean", 4, {}, (TopDocument("d0", "a", 2.0, "stored text"),))
    other = NeuronRow("ffn.01.mean", 5, {}, (TopDocument("d1", "a", 1.0),))
    drivers = {(FFN, 4): [Driver("d0", "a", "stored text", 2.0)], (FFN, 5): [Driver("d1", "a", "text 1", 1.0)]}
    assert read_drivers([stored, other], parse_settings(tree)) == drivers
    missing = parse_settings({**tree, "data": {"train": str(tmp_path / "no")}})
    assert read_drivers([stored], missing) == {(FFN, 4): drivers[FFN, 4]}
    with pytest.raises(UserError, match="no data at"):
        read_drivers([stored, other], missing)


@dataclass
class Project:
    """The folder of a trained tiny classifier and its corpus, on which commands can be run."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def spin(self, *words: str, fails: bool = False) -> str:
        """Run `spin COMMAND settings.yaml …`; returns its output, or its error message if it is expected to fail."""
        for module in (model_commands, named_classifier):
            self.monkeypatch.setattr(
                module, "open_registry", lambda settings: RegistryFixture(self.folder / "model", settings)
            )
        words = (words[0], str(self.folder / "settings.yaml"), *words[1:])
        return run_spin(self.capsys, self.monkeypatch, *words, status=2 if fails else 0)


def train(folder: Path, backbone: BackboneSettings, texts: Sequence[str], labels: Sequence[Label]) -> None:
    """Train a classifier and write the files that the commands read: settings, corpus, model and neurons."""
    search = SearchSettings(etas=(0.9,), max_share=1, strengths=(1,), network="off")
    sites, probe = ["resid.01", "ffn.03"], ProbeSettings(penalties=3, max_extra=0)
    spin = SpinClassifier(backbone, sites=sites, probe=probe, search=search).fit(texts, labels).trained_
    spin.save(folder / "model")
    ids = [f"d{i}" for i in range(len(texts))]
    y = spin.label_space.index(labels)
    splits = ["train" if i % 4 else "test" for i in range(len(texts))]
    split_labels = Labels(ids, spin.label_space, y, splits, np.arange(len(texts), dtype=np.uint64))
    values = extract(spin.backbone, texts, feature_columns(spin.backbone, sites, None)).columns
    rows = describe_neurons(spin, write_features(folder / "store", split_labels, values), split_labels)
    (folder / "model" / NEURONS).write_bytes(neurons_to_json(rows))
    pq.write_table(pa.table({"id": ids, "text": list(texts), "label": list(labels)}), folder / "corpus.parquet")
    tree = {"backbone": backbone.model_dump(), "data": {"train": str(folder / "corpus.parquet")}, "store": str(folder)}
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def trained(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two classes; the texts contain HTML and markup of the terminal library."""
    documents = tiny.make_documents(120)
    texts = [f"<script>window.hit = 1</script> [bold] {d['text']}" for d in documents]
    folder = tmp_path_factory.mktemp("trained")
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    train(folder, backbone, texts, [d["label"] for d in documents])
    return folder


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    return Project(trained, monkeypatch, capsys)


@pytest.mark.slow
def test_spin_neurons_lists_the_most_important_neurons(project: Project) -> None:
    """Each neuron has its class and a document. Options limit their number or class, or print JSON."""
    spin = TrainedClassifier.load(project.folder / "model")
    rows = json.loads(project.spin("neurons", "--top", "999", "--json"))
    assert len(rows) == spin.fitted.selection.neuron_count
    output = project.spin("neurons", "--top", "3")
    assert len(rows) > 3
    assert f"3 of {len(rows):,} neurons" in output
    names = [f"{row['column']}[{row['neuron']}]" for row in rows]
    assert [name for name in names if name in output] == names[:3]
    assert "<script>window.hit = 1</script> [bold] " in output
    assert {row["class"] for row in rows} == set(spin.classes)
    for label in spin.classes:
        of_class = json.loads(project.spin("neurons", "--class", label, "--json", "--top", "999"))
        assert of_class == [row for row in rows if row["class"] == label]
    error = project.spin("neurons", "--class", "ugly", fails=True)
    assert "no neuron raises the score of 'ugly'; expected one of bad, good" in error


def test_neurons_are_listed_without_documents_if_the_corpus_is_missing(project: Project) -> None:
    """The output names the missing corpus."""
    output = project.spin("neurons", "--set", "data.train=/nowhere")
    assert "without training documents: no data at /nowhere" in output
    assert "script" not in output
    assert "neurons, by importance" in output


def test_neurons_and_pages_show_the_texts_that_a_version_holds(project: Project, tmp_path: Path) -> None:
    """They need no corpus then."""
    folder, page = shutil.copytree(project.folder, tmp_path / "kept"), tmp_path / "page.html"
    rows = json.loads((folder / "model" / NEURONS).read_text())
    for row in rows:
        row["top"] = [{**top, "text": f"kept text of {top['id']}"} for top in row["top"]]
    (folder / "model" / NEURONS).write_text(json.dumps(rows))
    kept, nowhere = Project(folder, project.monkeypatch, project.capsys), ("--set", "data.train=/nowhere")
    output = kept.spin("neurons", *nowhere)
    assert "kept text of d" in output
    assert "without training documents" not in output
    kept.spin("explain", "--text", "a fine day", "--html", str(page), *nowhere)
    assert "kept text of d" in page.read_text("utf-8")
    listed = json.loads(kept.spin("neurons", "--json"))
    assert all(top["text"] == f"kept text of {top['id']}" for row in listed for top in row["top"])


def test_deep_is_asked_for_on_the_command_line(project: Project) -> None:
    asked: list[bool] = []
    explain = TrainedClassifier.explain

    def record(spin: TrainedClassifier, text: str, *, deep: bool = False) -> Explanation:
        asked.append(deep)
        return explain(spin, text, deep=deep)

    project.monkeypatch.setattr(TrainedClassifier, "explain", record)
    project.spin("explain", "--text", "fine")
    project.spin("explain", "--text", "fine", "--deep")
    assert asked == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "is a directory; name a file in it"),
        ("no/page.html", "there is no directory"),
        ("/proc/page.html", "cannot be written"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused(project: Project, tmp_path: Path, path: str, message: str) -> None:
    assert message in project.spin("explain", "--text", "fine", "--html", str(tmp_path / path), fails=True)


def test_a_version_without_neurons_is_explained_in_text_but_has_no_page(project: Project, tmp_path: Path) -> None:
    folder = shutil.copytree(project.folder, tmp_path / "old")
    (folder / "model" / NEURONS).unlink()
    old = Project(folder, project.monkeypatch, project.capsys)
    assert "`spin run` trains and registers one that does" in old.spin("neurons", fails=True)
    assert "`spin run` trains and registers one that does" in old.spin(
        "explain", "--text", "fine", "--html", str(tmp_path / "x"), fails=True
    )
    assert "neurons for and against" in old.spin("explain", "--text", "fine")


@pytest.mark.slow
def test_explain_covers_every_predicted_class_of_a_multilabel_classifier(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every class whose probability reaches one half has its neurons; if none does, the most probable class has."""
    texts = [
        " ".join(["the film", *(word for name in classes for word in tiny.WORDS[name][:2])])
        for classes in ([], ["good"], ["bad"])
    ]
    texts.append(" ".join(texts))
    labels: list[Label] = [[], ["good"], ["bad"], ["bad", "good"]]
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu")
    draw = random.Random(0)  # texts that differ in more than their form, or folds could not learn one by the others
    varied = [" ".join([text, *draw.choices(tiny.FILLER, k=6)]) for text in texts * 40]
    train(tmp_path, backbone, varied, labels * 40)
    project = Project(tmp_path, monkeypatch, capsys)
    spin = TrainedClassifier.load(tmp_path / "model")
    for text in texts:
        [label] = spin.predict([text])
        assert isinstance(label, list)
        output = project.spin("explain", "--text", text)
        explanation = spin.explain(text)
        explained = label or [explanation.label]
        assert [output.count(f"neurons for and against {name}") for name in spin.classes] == [
            int(name in explained) for name in spin.classes
        ]
        assert output.startswith("no class reaches its threshold: " if not label else explanation.label)
        for name, share in zip(spin.classes, explanation.probabilities, strict=True):
            assert f"{name} {share:.2f}" in output
    assert {len(label) for label in spin.predict(texts)} >= {0, 2}  # type: ignore[arg-type]
