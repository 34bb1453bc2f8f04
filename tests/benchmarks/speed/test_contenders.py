"""The contenders: what they learn from, and the labels that they predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from benchmarks import machine
from benchmarks.method import contenders
from benchmarks.method.contenders import fit_spin
from benchmarks.method.corpora import Corpus, Documents, Plan, extract_corpus, load
from benchmarks.method.peers import fast_text, static_model
from benchmarks.speed.contender import REASONS, SHIPPED, Contender, OurSetting, TransformerPeer, WordPeer
from benchmarks.speed.measurement import Measurement, reference_key
from benchmarks.speed.our_settings import OurSettings, train_classifiers, with_exits
from benchmarks.speed.peers import by_length, loop, torch_peers
from benchmarks.speed.trial import Sides, Trial, divide_corpus, flops, make_trial
from benchmarks.speed.word_peers import word_contenders
from spin import TrainedClassifier
from spin.backbone.loading import load_backbone
from spin.labels.metrics import score
from spin.settings import BackboneSettings
from tests.support import tiny

pytestmark = pytest.mark.slow

SIDES = Sides(64, 16, 10, 20)


@pytest.fixture(scope="module")
def corpus(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """140 documents with their activations in a tiny encoder; the last 20 are copies of the first ones."""
    rows = tiny.make_documents(120)
    rows += rows[:20]
    documents = Documents([row["text"] for row in rows], [row["label"] for row in rows])
    plan = Plan("tiny", "tiny", str(backbone_folder), None, 0, 0, 0, max_tokens=64)
    folder = tmp_path_factory.mktemp("corpus")
    extract_corpus(plan, lambda: documents, folder)
    return load(plan, folder)


@pytest.fixture(scope="module")
def trial(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The trial of that corpus, with the fitted head of the peers."""
    trial = make_trial(corpus, SIDES, tmp_path_factory.mktemp("parts"), threads=1, batches=(2,), losses=(SHIPPED, 0.02))
    trial.fit_head(lambda texts: loop(trial, torch.float32)(texts, 8))
    return trial


def test_no_contender_learns_from_documents_that_choose_or_are_timed(corpus: Corpus) -> None:
    """Neither from copies of them."""
    exam, valid = divide_corpus(corpus, SIDES)
    sides = [set(rows.tolist()) for rows in (exam.data.rows, valid, exam.test)]
    assert [len(side) for side in sides] == [80, 10, 20]
    texts = [{corpus.texts[row] for row in side} for side in sides]
    assert not any(texts[i] & texts[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_head_of_the_peers_is_kept(trial: Trial) -> None:
    """A second fit reads it, and embeds nothing."""
    embeddings = loop(trial, torch.float32)(trial.train_texts, 8)
    expected = trial.classes(embeddings)
    trial.fit_head(lambda texts: pytest.fail("embedded again"))
    assert (trial.classes(embeddings) == expected).all()
    assert (expected == trial.y(trial.exam.data.rows)).mean() > 0.65


def test_batches_by_length_hold_every_text_once() -> None:
    """The ids of a batch are padded and masked."""
    texts = [row["text"] for row in tiny.make_documents(10)]
    batched: list[int] = []
    for rows, ids, mask in by_length(tiny.build_tokenizer(), texts, 4, 64):
        assert ids.shape == mask.shape
        assert (ids[mask == 0] == 0).all()
        assert (mask.sum(1) == [len(tiny.build_tokenizer()(texts[row])["input_ids"]) for row in rows]).all()
        batched += rows
    assert sorted(batched) == list(range(10))


def test_flops_follow_the_formula(backbone_folder: Path) -> None:
    """The hidden size is 16, and the feed-forward layer is 24 wide instead of the usual 4 × 16."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32"))
    per_token = 2 * 3 * (4 * 16 * 16 + 2 * 16 * 24)
    assert flops(backbone, [3, 5]) == 8 * per_token + 4 * 16 * 3 * (9 + 25)


def test_the_benchmark_restarts_without_variables_that_slow_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not restart if none of them is set."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(machine.os, "execve", lambda _path, _arguments, environment: started.append(environment))
    for name in machine.THROTTLES:
        monkeypatch.delenv(name, raising=False)
    machine.unthrottle()
    assert started == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    machine.unthrottle()
    assert "OPENBLAS_CORETYPE" not in started[0]
    assert "PATH" in started[0]


@pytest.mark.usefixtures("all_folds")
def test_every_setting_predicts_what_its_classifier_predicts(trial: Trial) -> None:
    """All settings share one training."""
    ours, texts = OurSettings(trial), trial.texts(trial.test)
    settings = dict.fromkeys([*ours.fixed(), *ours.grid(), *ours.in_int8([ours.shipped])])
    assert ours.shipped in settings
    assert ours.shipped.with_reasons in settings
    for setting in settings:
        answers = ours.contender(setting).load()(texts, 0)
        assert (answers.classes == trial.y(trial.test)).mean() > 0.9, setting.key
        assert answers.compute is not None
        assert ((answers.compute >= 0) & (answers.compute <= 1)).all()
    folder = train_classifiers(trial)
    spin = TrainedClassifier.load(folder / str(SHIPPED), early=True)
    shipped = ours.contender(ours.shipped).load()(texts, 0)
    assert trial.label_space.names(shipped.classes) == spin.predict(texts)


@pytest.mark.usefixtures("all_folds")
def test_exits_for_another_loss_are_those_of_a_training_of_their_own(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words included, with the search done once."""
    fitted = fit_spin(trial.exam)
    monkeypatch.setattr(contenders.spin.integrate.integrate.Search, "run", lambda _: pytest.fail("searched again"))
    again = with_exits(trial.exam, fitted, SHIPPED)
    assert again.summary() == fitted.training_result.summary()
    assert again.words is not None
    none = with_exits(trial.exam, fitted, 0.0)
    assert not any(choice.exits for choice in none.choices.values())


def test_word_peers_predict_as_in_the_benchmark_of_the_method(trial: Trial) -> None:
    """They are kept on disk in between; the method's rows are fitted anew."""
    for package in ("fasttext", "model2vec", "skeletoken"):
        pytest.importorskip(package)
    rows = [contenders.tfidf, fast_text.fast_text, static_model.static_model]
    peers = word_contenders(trial)
    assert len(peers) == len(rows)
    for contender, row in zip(peers, rows, strict=True):
        predicted = contender.load()(trial.texts(trial.test), 0).classes
        assert (predicted == row(trial.exam).logits.argmax(1)).all(), contender.key
        again = contender.load()(trial.texts(trial.test), 0).classes
        assert (predicted == again).all(), contender.key


def test_a_measurement_judges_chooses_and_times(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows hold the scores of scikit-learn, and all chosen settings are among them."""
    monkeypatch.setattr("benchmarks.speed.measurement.graph_peers", lambda *_: [])
    monkeypatch.setattr("benchmarks.speed.measurement.word_contenders", lambda _: [])
    monkeypatch.setattr("benchmarks.speed.rounds.peaks", lambda: {"float32": 1.0})
    measurement = Measurement(trial, "*float32")
    measurement.enter_peers()
    measurement.enter_ours()
    rows, _ = measurement.race(2)
    assert {"Hugging Face pipeline float32", "SPIN, torch float32"} <= {row.key for row in rows}
    assert {row.key for row in rows} <= set(measurement.validations)
    for row in rows:
        assert row.score == pytest.approx(f1_score(trial.y(trial.test), row.classes, average="macro"))
        assert row.score == score("macro_f1", trial.y(trial.test), row.classes)
        assert len(row.seconds) == 2
        assert row.agreement > 0.9


def test_settings_with_reasons_are_timed_but_not_chosen(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are judged at full depth and as shipped, and their classifiers give as many reasons as their names say."""
    given: list[int] = []
    opened = TrainedClassifier.load

    def record(*args: Any, **options: Any) -> TrainedClassifier:
        given.append(options.get("reasons", 0))
        return opened(*args, **options)

    monkeypatch.setattr(TrainedClassifier, "load", record)
    measurement = Measurement(trial, "*reasons*")
    measurement.enter_ours()
    assert ["max_loss" in ready.key for ready in measurement.ready] == [False, True]
    assert [reasons for reasons in given if reasons] == [REASONS, REASONS]
    assert set(measurement.validations) == {ready.key for ready in measurement.ready}
    assert not measurement.tried


def test_labels_are_compared_with_those_of_the_first_in_float32() -> None:
    """Of peers with peers and of ours with full depth; words have no other precision."""
    graph, loop_, exits = TransformerPeer("a", "int8"), TransformerPeer("b", "float32"), 0.02
    ours = [OurSetting("torch", "float32", max_loss=exits), OurSetting("torch", "float32", "cheapest")]
    full = OurSetting("openvino", "float32")
    roles = [graph, loop_, TransformerPeer("c", "float32"), *ours, full, WordPeer("d")]
    assert reference_key(graph, roles) == "b float32"
    assert reference_key(ours[0], roles) == full.key
    assert reference_key(WordPeer("d"), roles) is None
    assert reference_key(graph, [graph]) is None


def test_torch_peers_give_the_embeddings_of_the_plain_loop(trial: Trial) -> None:
    """Padding is left out of their mean: in float32 the embeddings are equal."""
    pytest.importorskip("sentence_transformers")
    assert_embeddings_agree(trial, torch_peers(trial))


def test_exported_graphs_give_the_embeddings_of_the_plain_loop(trial: Trial, tmp_path: Path) -> None:
    """The file of a graph is written when it is first loaded."""
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    from benchmarks.speed.graphs import graph_peers

    assert_embeddings_agree(trial, graph_peers(trial, tmp_path))


def assert_embeddings_agree(trial: Trial, peers: list[Contender]) -> None:
    """The embeddings that peers give to the head agree with those of the plain loop, up to their precision."""
    texts = trial.texts(trial.test)
    expected = loop(trial, torch.float32)(texts, 4)
    assert len({peer.key for peer in peers}) == len(peers) > 2
    embeddings: list[np.ndarray] = []

    def record(actual: np.ndarray) -> np.ndarray:
        embeddings.append(actual)
        return np.zeros(len(actual), int)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "classes", record)
        for peer in peers:
            assert len(peer.load()(texts, 2).classes) == len(texts)
            if peer.role.precision == "float32":
                np.testing.assert_allclose(embeddings[-1], expected, atol=1e-4, err_msg=peer.key)
            correlations = [np.corrcoef(*pair)[0, 1] for pair in zip(embeddings[-1], expected, strict=True)]
            if peer.role.precision == "int8":  # how far a text may be off depends on the processor
                assert np.median(correlations) > 0.9, peer.key
            else:
                assert min(correlations) > 0.99, peer.key
