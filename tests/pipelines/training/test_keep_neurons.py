"""Training in two passes: every neuron of a sample, and of the other documents the chosen neurons alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load as load_tensors

from pipelines.data.feature_store import FeatureShards
from pipelines.data.files.shards import Shard
from pipelines.data.training_labels import FrozenDocuments, Labels
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, StepResult
from pipelines.training import extract_features, fit_heads
from pipelines.training.extract_features import load_features, open_corpus, run_extract
from pipelines.training.fit_probes import load_probes, run_probe
from pipelines.training.keep_neurons import KeepStep, KeptColumns, run_keep
from pipelines.training.train import TrainReport, run_train
from pipelines.training.workflow import run_workflow
from spin import TrainedClassifier
from spin.errors import UserError
from spin.fitted.held_out import HeldOutLogits
from spin.heads.selection import Selection
from spin.integrate.fit_words import fit_words
from spin.labels.splits import certifies
from spin.monitor.drift_statistics import LENGTHS
from spin.monitor.profile import Profile
from spin.settings import Choice, Settings, StoreSettings
from spin.sites import FeatureColumn
from tests.support import small_training, tiny
from tests.support.leases import expire_lease
from tests.support.selected_features import read_selection

pytestmark = pytest.mark.slow

N, SAMPLED = 900, 300
SEARCH = {"documents": SAMPLED, "etas": [0.5, 0.9], "strengths": [1, 10], "network": "off", "words": "off"}
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 900 documents and a backbone."""
    folder = tmp_path_factory.mktemp("two passes")
    small_training.write_corpus(folder, N, ("good", "bad", "plain"))
    return folder


def make_settings(folder: Path, store: Path, **changes: Any) -> Settings:
    """Settings of a training in two passes."""
    return small_training.make_settings(folder, store, **{"search": SEARCH, "extract": "two_pass", **changes})


class Training:
    """A training that has finished, and what it has read and stored."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.report: TrainReport = run_workflow(settings)
        self.plan, self.manifest, self.features = load_features(settings)
        self.labels = Labels.of(self.features, settings)
        self.spin = TrainedClassifier.open(Path(settings.store.uri) / "model", settings)


@pytest.fixture(scope="module")
def in_two_passes(folder: Path) -> Training:
    return Training(make_settings(folder, folder / "two"))


@pytest.fixture(scope="module")
def in_one_pass(folder: Path) -> Training:
    return Training(make_settings(folder, folder / "one", extract="all"))


def count_chosen(training: Training) -> int:
    """Number of documents of the first pass that train or validate."""
    assert training.features.extracted is not None
    return sum(training.labels.splits[row] in ("train", "valid") for row in training.features.extracted)


def size(store: Path, *names: str) -> int:
    files = (file for name in names for file in (store / name).rglob("*.parquet"))
    return sum(file.stat().st_size for file in files if "documents" not in file.name)


def test_both_ways_give_the_same_classifier(in_one_pass: Training, in_two_passes: Training) -> None:
    """The choices are made on the same sample, and the heads fitted on the same documents."""
    one, two = in_one_pass.report.results, in_two_passes.report.results
    assert two.choice == one.choice
    by_sample = ("last_layer", "best_site")  # in two passes they learn from the documents of the first
    figures = [
        [(row.name, row.accuracy, row.macro_f1, row.neurons) for row in results.table if row.name not in by_sample]
        for results in (one, two)
    ]
    assert figures[0] == figures[1]
    of_all = f"{count_chosen(in_two_passes)} of {two.counts['train'] + two.counts['valid']} documents that train or"
    for name in by_sample:
        assert f"{name}: fitted on a stratified sample, {of_all} validate" in two.notes
    checked = f"{SAMPLED} of {two.counts['train'] + two.counts['valid']} documents to train and validate were checked"
    assert f"labels of {checked}, of the sample that makes the choices (search.documents)" in one.notes
    assert one.suspects == two.suspects
    assert [row.name for row in two.table][:4] == ["tfidf", "last_layer", "best_site", "spin"]
    assert two.counts == one.counts
    texts = [row["text"] for row in tiny.make_documents(50, ("good", "bad", "plain"), seed=9)]
    np.testing.assert_allclose(
        in_two_passes.spin.predict_logits(texts), in_one_pass.spin.predict_logits(texts), atol=2e-3
    )
    neurons = [
        Store(training.settings.store.uri).read("model/neurons.json") for training in (in_one_pass, in_two_passes)
    ]
    assert neurons[0] == neurons[1]


def test_the_heads_are_fitted_on_all_labelled_documents(in_two_passes: Training) -> None:
    """Not on the sample: the heads of the search differ from the registered ones."""
    model, own = Store(in_two_passes.settings.store.uri) / "model", in_two_passes.report.fingerprint[:16]
    of_sample, of_all, registered = (
        load_tensors((model / folder).read("model.safetensors") or b"")
        for folder in (f"{own}/heads", f"{own}/heads/all", "")
    )
    assert np.abs(of_sample["0.head.coef"] - of_all["0.head.coef"]).max() > 0.01
    np.testing.assert_array_equal(registered["0.head.coef"], of_all["0.head.coef"])
    data = in_two_passes.labels.training_data(in_two_passes.settings)
    assert len(data.rows) == SAMPLED
    assert data.not_sampled is not None
    assert len(data.all_rows) == sum(in_two_passes.report.results.counts[split] for split in ("train", "valid"))


def test_documents_that_are_held_back_calibrate_the_heads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head is fitted on them; the stack is fitted on their logits by neurons and words."""
    monkeypatch.setattr("spin.labels.training_data._LEAST_HELD_BACK", 20)
    jobs: list[Any] = []
    run = fit_heads._run_group
    monkeypatch.setattr(fit_heads, "_run_group", lambda *a, **k: jobs.append(a[1]) or run(*a, **k))
    training = Training(make_settings(folder, tmp_path / "store", search={**SEARCH, "words": "on"}))
    job, labelled = jobs[-1], [*training.labels.part("train")[0], *training.labels.part("valid")[0]]
    assert sorted([*job.data.all_rows, *job.held_back.rows]) == sorted(labelled)
    assert len(job.held_back.rows) == (len(labelled) - SAMPLED) // 10
    texts = open_corpus(training.settings, training.plan).read_texts(job.held_back.rows)
    np.testing.assert_allclose(job.held_back.words, job.result.words.logits(texts), atol=1e-4)
    stacks = [r.choices["accuracy"].recipe.head.stack for r in (job.result, training.spin.training_result)]  # type: ignore[union-attr]
    assert stacks[0] != stacks[1]


def test_the_reference_is_that_of_all_test_documents(in_two_passes: Training) -> None:
    """It is added up over shards: the labels are those that the classifier gives the texts."""
    training = in_two_passes
    data = (Store(training.settings.store.uri) / "model").read(REFERENCE)
    assert data is not None
    profile = Profile.from_bytes(data, "accuracy.")
    rows, _ = training.labels.part("test")
    texts = pq.read_table(training.settings.data.train)["text"].to_pylist()
    tested = [texts[row] for row in rows]
    assert len([shard for shard in np.split(rows, np.searchsorted(rows, np.arange(100, N, 100))) if len(shard)]) > 5
    assert profile.documents == len(rows)
    probabilities = training.spin.label_space.probabilities(training.spin.predict_logits(tested))
    given, _ = training.spin.decision_rule.decide(probabilities)
    counts = np.bincount(given, minlength=3)  # type: ignore[arg-type]
    tied = (training.spin.decision_rule.margins(probabilities) < 1e-2).sum()  # which the stored float16 values may turn
    assert tied < 3
    assert np.abs(profile.sums["labels"] - [*counts, 0]).sum() <= 2 * tied
    lengths = np.searchsorted(LENGTHS, list(map(len, training.spin.backbone.tokenize(tested).ids)))
    np.testing.assert_array_equal(profile.sums["lengths"], np.bincount(lengths, minlength=len(LENGTHS) + 1))


def test_the_held_out_logits_are_those_of_the_test_documents_that_prove_promises(in_two_passes: Training) -> None:
    """Of each classifier, at every place where a document may stop: so that they follow for any decision."""
    training = in_two_passes
    rows, y = training.labels.part("test")
    assert training.labels.groups is not None
    proving = [certifies(group) for group in training.labels.groups[rows].tolist()]
    rows, y = rows[proving], y[proving]
    texts = pq.read_table(training.settings.data.train)["text"].to_pylist()
    tested = [texts[row] for row in rows]
    for choice in get_args(Choice):
        held_out = HeldOutLogits.read_all(Path(training.settings.store.uri) / "model").get(choice)
        assert held_out is not None
        np.testing.assert_array_equal(held_out.y, y)
        for early in (False, True):
            spin = TrainedClassifier.load(
                Path(training.settings.store.uri) / "model",
                backbone=training.settings.backbone,
                choose=choice,
                early=early,
            )
            exits = spin.fitted.exits if early else ()
            assert len(held_out.logits) == len(spin.fitted.exits) + 1
            probabilities = held_out.probabilities(exits, spin.decision_rule)
            np.testing.assert_allclose(probabilities, spin.predict_proba(tested), atol=2e-3)


def test_only_the_sample_has_all_neurons(in_one_pass: Training, in_two_passes: Training, folder: Path) -> None:
    counts = in_two_passes.manifest.results.counts
    assert (counts.rows, counts.extracted) == (N, SAMPLED)
    assert in_one_pass.manifest.results.counts.extracted == N
    whole, sampled = (size(folder / name, "features") for name in ("one", "two"))
    assert sampled < 0.5 * whole
    assert size(folder / "two", "features", "kept") < 0.75 * size(folder / "one", "features")
    assert not (folder / "one" / "kept").exists()


def test_a_second_pass_continues_where_the_first_try_ended(
    folder: Path, tmp_path: Path, in_two_passes: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were finished are not computed again, and the result is that of an undisturbed training."""
    settings = make_settings(folder, tmp_path / "store")
    computed: list[int] = []
    compute = KeepStep.__call__

    def fail_at_the_fifth(step: KeepStep, shard: Shard, attempt: Attempt) -> StepResult[Any]:
        if len(computed) == 4:
            raise UserError("the disk is full")
        computed.append(shard.index)
        return compute(step, shard, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(KeepStep, "__call__", fail_at_the_fifth)
        with pytest.raises(UserError, match="the disk is full"):
            run_workflow(settings)
    assert computed == [0, 1, 2, 3]
    patch_calls: list[int] = []
    monkeypatch.setattr(
        KeepStep,
        "__call__",
        lambda step, shard, attempt: patch_calls.append(shard.index) or compute(step, shard, attempt),
    )
    report = run_workflow(settings)
    assert patch_calls == [4, 5, 6, 7, 8]
    assert report.results.choice == in_two_passes.report.results.choice
    assert report.results.per_class == in_two_passes.report.results.per_class


def test_other_neurons_replace_those_of_a_second_pass(folder: Path, tmp_path: Path) -> None:
    """A training that starts over with another search keeps other neurons; the extraction stays as it is."""
    settings = make_settings(folder, tmp_path / "store")
    run_workflow(settings)
    kept = Store.of(settings) / "kept"
    [before], features = folders(kept), (Store.of(settings) / "features").read_json("manifest.json")
    changed = make_settings(folder, tmp_path / "store", search={**SEARCH, "max_share": 0.02})
    with pytest.raises(UserError, match=r"search\.max_share is 0\.02"):
        run_train(changed, Registry(changed))
    report = run_train(changed, Registry(changed), restart=True)
    [after] = folders(kept)
    assert after != before, "the neurons of the other search are deleted"
    assert (Store.of(settings) / "features").read_json("manifest.json") == features
    most = 0.02 * next(row.neurons_of for row in report.results.table)
    assert all(row.neurons <= most for row in report.results.table if row.name == "spin")


def folders(store: Store) -> set[str]:
    """The folders of a store, that of the lease aside."""
    return {key.split("/")[0] for key in store.list()} - {"_lease"}


def test_a_driver_that_wakes_after_its_successor_leaves_its_neurons_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it computes its last shard, another training keeps other neurons, and ends.

    It ends with an error then. What its worker has still written is not among the shards of the other training, which
    are whole: one that goes on from there computes none, and deletes what does not belong to it.
    """
    settings = make_settings(folder, tmp_path / "store")
    changed = make_settings(folder, tmp_path / "store", search={**SEARCH, "max_share": 0.05})
    store, compute, reports = Store.of(settings), KeepStep.__call__, []

    def be_overtaken(step: KeepStep, shard: Shard, attempt: Attempt) -> StepResult[Any]:
        result = compute(step, shard, attempt)
        if shard.index == 8 and not reports:
            reports.append(None)  # the other training computes this shard, too
            for part in ("kept", "model"):
                expire_lease(store / part)
            reports[:] = [run_train(changed, Registry(changed), restart=True)]
        return result

    monkeypatch.setattr(Lease, "_renew", lambda lease: None)  # a suspended process renews nothing
    monkeypatch.setattr(KeepStep, "__call__", be_overtaken)
    with pytest.raises(HeldError):
        run_workflow(settings)
    [report] = reports
    assert len(folders(store / "kept")) == 2
    monkeypatch.setattr(KeepStep, "__call__", lambda *args: pytest.fail("a shard is computed again"))
    store.delete_many(["model/manifest.json"])
    again = run_train(changed, Registry(changed))
    assert again.results.per_class == report.results.per_class
    [neurons] = folders(store / "kept")
    assert len([key for key in (store / "kept" / neurons / "parts").list() if key.endswith(".json")]) == 9


@pytest.mark.parametrize("deletions", [0, 1, 2, *range(10, 16)])
def test_a_pass_that_is_deleted_in_part_is_never_continued(
    in_two_passes: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """Wherever the process dies while it deletes: neurons that are wanted again are read from files that exist."""
    training = in_two_passes
    settings = training.settings.model_copy(update={"store": StoreSettings(uri=str(tmp_path / "store"))})
    shutil.copytree(Path(training.settings.store.uri) / "features", tmp_path / "store" / "features")
    plan, _, features = load_features(settings)
    column = FeatureColumn.parse("ffn.01.mean")
    one, other = (Selection({column: np.array([n])}, {column: np.zeros(1)}, 1.0) for n in (3, 5))

    def keep(selection: Selection) -> FeatureShards:
        return run_keep(settings, plan, features, training.labels, selection, [])

    rows = np.flatnonzero(np.array(training.labels.splits) != "dropped")
    before = read_selection(keep(one), one, rows)
    delete, deleted, folder = Store.delete_many, [], folders(Store.of(settings) / "kept")

    def die(store: Store, keys: Sequence[str]) -> None:
        for key in keys:
            if key.split("/")[0] in folder:
                if len(deleted) == deletions:
                    raise KeyboardInterrupt
                deleted.append(key)
            delete(store, [key])

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_many", die)
        with pytest.raises(KeyboardInterrupt):
            keep(other)
    assert len(deleted) == deletions
    np.testing.assert_array_equal(read_selection(keep(one), one, rows), before)


@pytest.mark.parametrize(("documents", "extracted"), [(180, 180), (181, N)])
def test_auto_takes_two_passes_from_five_times_the_sample_on(
    folder: Path, tmp_path: Path, documents: int, extracted: int
) -> None:
    """A store keeps the number of passes that it began with."""
    settings = make_settings(folder, tmp_path / "store", extract="auto", search={**SEARCH, "documents": documents})
    manifest = run_extract(settings)
    assert manifest.results.counts.extracted == extracted
    assert load_features(settings)[1] == manifest
    if extracted == N:
        fewer = make_settings(folder, tmp_path / "store", extract="auto", search={**SEARCH, "documents": 150})
        assert run_extract(fewer) == manifest


def test_a_sample_of_another_size_is_refused(in_two_passes: Training, folder: Path) -> None:
    other = make_settings(folder, folder / "two", search={**SEARCH, "documents": SAMPLED + 1})
    with pytest.raises(UserError, match=r"sample\.documents is 301, was 300"):
        run_extract(other)


@pytest.mark.parametrize("fraction", ["valid_fraction", "test_fraction"])
def test_other_splits_ask_for_another_sample(in_two_passes: Training, folder: Path, fraction: str) -> None:
    """The sample holds its share of every split."""
    data = {"train": str(folder / "train.parquet"), fraction: 0.3}
    with pytest.raises(UserError, match=rf"sample\.{fraction} is 0\.3, was 0\.15"):
        run_extract(make_settings(folder, folder / "two", data=data))


def test_a_sample_that_cannot_be_learned_from_is_refused_before_the_backbone_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("cross-validation: found no division")

    monkeypatch.setattr("spin.labels.training_data.make_folds", fail)
    monkeypatch.setattr(extract_features, "map_shards", lambda *args, **options: pytest.fail("it runs"))
    with pytest.raises(
        UserError, match=r"found no division; or raise search\.documents, since these are a sample of 7"
    ):
        run_extract(make_settings(folder, tmp_path / "store"))


def test_two_passes_over_few_documents_are_one(folder: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tmp_path / "store", search={**SEARCH, "documents": N})
    manifest = run_extract(settings)
    plan, _, _ = load_features(settings)
    assert sum(shard.documents for shard in plan.derived.unread) == N
    assert manifest.results.counts.extracted == N


def test_large_shards_are_divided_by_what_is_extracted_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positions of the sample are those in the shards that are written."""
    sample = load_sample(folder, tmp_path / "large")
    monkeypatch.setattr(extract_features, "MAX_SHARD_BYTES", 10 * 2 * 2 * (4 * 16 + 3 * 24 + 16))
    assert load_sample(folder, tmp_path / "small") == sample


def test_a_shard_full_of_the_sample_fits_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where documents that train come first, the sample is nearly all of some shards and nothing of others."""
    table = pq.read_table(folder / "train.parquet").to_pylist()
    split = [
        {**row, "split": ("valid" if n % 5 == 0 else "train") if n < 350 else "test"} for n, row in enumerate(table)
    ]
    pq.write_table(pa.Table.from_pylist(split), tmp_path / "split.parquet", row_group_size=10)
    most = 25
    monkeypatch.setattr(extract_features, "MAX_SHARD_BYTES", most * (4 * (4 * 16 + 3 * 24) + 2 * 16))
    settings = make_settings(
        folder, tmp_path / "store", data={"train": str(tmp_path / "split.parquet"), "split": "split"}
    )
    manifest = run_extract(settings)
    plan, _, _ = load_features(settings)
    read = [shard.documents for shard in plan.derived.unread]
    assert sum(read) == SAMPLED
    assert max(read) <= most
    assert manifest.results.counts.extracted == SAMPLED


def load_sample(folder: Path, store: Path) -> list[str]:
    """The ids of the documents that an extraction takes into its sample."""
    settings = make_settings(folder, store)
    run_extract(settings)
    plan, _, features = load_features(settings)
    assert features.extracted is not None
    rows = [FeatureColumn.parse("ffn.01.mean")], features.extracted
    assert len(features.read_rows(rows[0][0], rows[1])) == SAMPLED
    assert max(shard.documents for shard in plan.derived.shards) <= 100
    ids = features.documents(["id"])["id"].to_pylist()
    return [ids[row] for row in features.extracted.tolist()]


def test_words_are_fitted_on_the_texts_of_the_sample(in_two_passes: Training, tmp_path: Path) -> None:
    """The stage numbers the sampled documents anew; the texts are those of their rows in the corpus."""
    search = {**SEARCH, "words": "on"}
    settings = in_two_passes.settings.model_copy(update={"store": StoreSettings(uri=str(tmp_path / "store"))})
    settings = settings.model_copy(update={"search": settings.search.model_validate(search)})
    shutil.copytree(Path(in_two_passes.settings.store.uri) / "features", tmp_path / "store" / "features")
    run_probe(settings)
    source, _, features = load_features(settings)
    labels = Labels.of(features, settings)
    words = load_probes(settings, source, labels)[3]
    texts = pq.read_table(settings.data.train)["text"].to_pylist()
    expected = fit_words(lambda rows: [texts[row] for row in rows], labels.training_data(settings))
    assert words is not None
    assert expected is not None
    assert words.to_bytes() == expected.to_bytes()


def test_a_second_pass_leaves_out_documents_that_serve_for_nothing(in_two_passes: Training) -> None:
    """Each document is in the sample, in the second pass, or dropped because a frozen evaluation set holds its text."""
    training = in_two_passes
    rows = [row for row in range(N) if training.labels.splits[row] == "train"]
    texts = pq.read_table(training.settings.data.train)["text"].to_pylist()
    frozen = FrozenDocuments.of([], [texts[row] for row in rows[:20]])
    labels = Labels.of(training.features, training.settings, frozen)
    assert labels.splits.count("dropped") >= 20
    kept = KeptColumns.plan(training.features, labels, Selection({}, {}, 0.0), [])
    seen = [labels.splits[row] for row in global_rows(training.features, kept.rows)]
    tested = [labels.splits[row] for row in global_rows(training.features, kept.tested)]
    assert set(seen) == {"train", "valid"}
    assert set(tested) == {"test"}
    assert training.features.extracted is not None
    left_out = [labels.splits[row] for row in np.setdiff1d(np.arange(N), training.features.extracted)]
    assert len(seen) + len(tested) + left_out.count("dropped") == len(left_out)
    data = labels.training_data(training.settings)
    assert 0 < len(data.rows) < SAMPLED
    assert np.isin(data.rows, training.features.extracted).all(), "choices are made on what has all neurons"


def global_rows(features: FeatureShards, rows: tuple[Any, ...]) -> list[int]:
    return [int(row + first) for own, first in zip(rows, features.borders, strict=False) for row in own]


def test_a_classifier_without_neurons_needs_no_activations(in_two_passes: Training, tmp_path: Path) -> None:
    """The second pass for words alone runs no backbone, and no column can be read afterwards."""
    training = in_two_passes
    settings = training.settings.model_copy(update={"store": StoreSettings(uri=str(tmp_path / "store"))})
    shutil.copytree(Path(training.settings.store.uri) / "features", tmp_path / "store" / "features")
    plan, _, features = load_features(settings)
    features = run_keep(settings, plan, features, training.labels, Selection({}, {}, 0.0), [])
    rows = np.arange(N)
    assert read_selection(features, Selection({}, {}, 0.0), rows).shape == (N, 0)
    column = FeatureColumn.parse("ffn.01.mean")
    selection = Selection({column: np.array([0])}, {column: np.zeros(1)}, 1.0)
    assert read_selection(replace(features, kept=None), selection, features.extracted).shape == (SAMPLED, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="have no values"):
        read_selection(features, selection, rows)
