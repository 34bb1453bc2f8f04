"""The fine-tuned encoder: its training, its early end, its stored fits, and the page."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.finetune import encoder, page, run
from benchmarks.finetune.encoder import Encoder, find_best_epoch, fine_tune, judge
from benchmarks.finetune.run import RATES, FineTuning, choose_rate, development_rows, plan_fits, run_missing
from benchmarks.method.attention import draw_batches
from benchmarks.method.contenders import Answer
from benchmarks.method.corpora import Corpus, Exam, draw_exam
from benchmarks.method.run import Experiment, read_result, write_result
from benchmarks.method.tasks import task as task_module
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.tweets import TWEETS
from spin.heads import calibration
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.labels.split_groups import hash_text
from tests.benchmarks.peers.test_peers import make_corpus
from tests.benchmarks.test_method import make_results
from tests.support import tiny

RATE = 5e-3
"""the weights of the tiny backbone are random"""
FITS = ("rate-0", *(f"{setting}-{draw}" for draw in range(5) for setting in ("few16", "few64", "few256", "full")))
"""those of the tweets"""


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of one block with weights that a few steps can change."""
    return tiny.save_bert(tmp_path_factory.mktemp("bert"), width=32, blocks=1, spread=0.1)


@pytest.fixture(autouse=True)
def high_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head learns as fast as the tiny backbone, whose weights are random."""
    monkeypatch.setattr(encoder, "HEAD_RATE", RATE)


@pytest.fixture
def corpus(backbone_folder: Path) -> Corpus:
    """400 documents of three classes."""
    return make_corpus(backbone_folder, multilabel=False)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_loss_falls_and_all_weights_change(backbone_folder: Path, multilabel: bool) -> None:
    corpus = make_corpus(backbone_folder, multilabel)
    torch.manual_seed(0)
    fitted = Encoder(corpus)
    before = {name: values.clone() for name, values in fitted.model.state_dict().items()}
    losses = [loss for loss, _ in zip(fitted.fit(corpus.texts[:64], corpus.y[:64], RATE), range(12), strict=False)]
    assert losses[-1] < 0.5 * losses[0]
    same = [name for name, values in fitted.model.state_dict().items() if torch.equal(values, before[name])]
    assert all(name.startswith("pooler.") or not before[name].is_floating_point() for name in same), same


def test_logits_are_those_of_single_texts_averaged_over_their_tokens(corpus: Corpus) -> None:
    """In the order of the texts, without padding and without dropout."""
    fitted = Encoder(corpus)
    fitted.model.train()
    texts = [" ".join(text.split()[: 1 + row % 7]) for row, text in enumerate(corpus.texts[:20])]
    found = fitted.logits(texts)
    for text, logits in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = fitted.model(torch.tensor(fitted.backbone.tokenize([text]).ids)).last_hidden_state
            expected = fitted.head(hidden[0].mean(0)).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_an_epoch_has_every_document_once_in_batches_of_similar_length() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 100, (1000,)).tolist()
    batches = draw_batches(lengths, 16, 32)
    assert sorted(row for rows in batches for row in rows) == list(range(1000))
    assert {len(rows) for rows in batches} == {16, 1000 % 16}
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches != draw_batches(lengths, 16, 32)


def test_the_early_end_takes_the_best_epoch_and_its_logits(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal epochs the first; 104 documents are seven batches, so that three epochs pass before the end."""
    scores, shown = [0.2, 0.5, 0.4, 0.5, 0.3, 0.9], []

    def judge_by_list(_: LabelSpace, __: Any, logits: Any) -> float:
        shown.append(logits)
        return scores[len(shown) - 1]

    monkeypatch.setattr(encoder, "judge", judge_by_list)
    [fold, *_] = draw_exam(corpus, "few64", 0).folds
    best = find_best_epoch(corpus, corpus.y, replace(fold, train=fold.train[:104]), RATE, 0)
    assert (best.number, best.score) == (2, 0.5)
    assert len(shown) == 5
    assert best.logits is shown[1]
    assert not np.array_equal(shown[0], shown[1])


def test_training_ends_without_a_worse_epoch_too(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter(range(1000))
    monkeypatch.setattr(encoder, "judge", lambda *_: float(next(rising)))
    monkeypatch.setattr(encoder, "STEPS", 40)
    [fold, *_] = draw_exam(corpus, "few16", 0).folds
    assert find_best_epoch(corpus, corpus.y, replace(fold, train=fold.train[:32]), RATE, 0).number == 20


def test_classes_of_a_multi_label_task_are_judged_by_their_order(corpus: Corpus) -> None:
    """Logits that are all below 0 give no class, and yet those of the right documents may be the highest."""
    y = np.random.default_rng(0).random((50, 3)) < 0.3
    space = LabelSpace(("a", "b", "c"), multilabel=True)
    assert judge(space, y, y - 9.0) == 1.0
    assert judge(space, y, 9.0 - y) < 0.5
    logits = np.random.default_rng(1).normal(size=(50, 3)) - 9
    given = np.zeros_like(y)
    for k in range(3):
        given[sorted(range(50), key=lambda row, k=k: -logits[row, k])[: y[:, k].sum()], k] = True
    assert judge(space, y, logits) == score("macro_f1", y, given)
    assert judge(corpus.label_space, corpus.y, np.eye(3)[corpus.y]) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_from_all_labelled_documents_and_from_no_label_of_the_test(
    backbone_folder: Path, multilabel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the mean of the best epochs of the folds; the same twice, also with other labels of the test documents."""
    fits, fit = [], Encoder.fit

    def record(self: Encoder, texts: list[str], y: Any, rate: float) -> Any:
        fits.append([texts, 0])
        for loss in fit(self, texts, y, rate):
            fits[-1][1] += 1
            yield loss

    monkeypatch.setattr(Encoder, "fit", record)
    exam = draw_exam(make_corpus(backbone_folder, multilabel), "few64", 0)
    answer, epochs = fine_tune(exam, RATE)
    assert answer.row(exam)["macro_f1"] > 0.8
    assert answer.choice == f"learning rate {RATE:g}, {epochs} epochs"
    assert fits[-1] == [[exam.corpus.texts[row] for row in exam.data.rows], epochs]
    assert len(fits) == 1 + len(exam.folds)
    hidden = exam.y.copy()
    hidden[exam.test] = hidden[exam.test[0]]
    again, _ = fine_tune(replace(exam, data=replace(exam.data, y=hidden)), RATE)
    np.testing.assert_allclose(again.logits, answer.logits, rtol=1e-4, atol=1e-4)


def test_many_documents_are_validated_by_one_fold(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[Any] = []

    def find(corpus: Corpus, y: Any, fold: Any, rate: float, seed: int) -> encoder.BestEpoch:
        validated.append(fold.valid)
        return encoder.BestEpoch(1, 0.5, np.eye(3)[y[fold.valid]])

    monkeypatch.setattr(encoder, "find_best_epoch", find)
    exam = draw_exam(corpus, "few64", 0)
    monkeypatch.setattr(encoder, "VERY_FEW_LABELS", len(exam.data.rows))
    fine_tune(exam, RATE)
    [rows] = validated
    assert np.array_equal(rows, exam.folds[0].valid)


def fits_of(corpus: Corpus) -> list[FineTuning]:
    return [FineTuning(corpus.plan, setting, seed) for setting in ("full", "few16") for seed in range(3)]


def test_the_learning_rate_is_chosen_on_documents_that_no_draw_tests(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of the half that a hash of the text sets aside; the one with the best validation score is taken."""
    folds = []

    def find(_: Corpus, y: Any, fold: Any, rate: float, seed: int) -> encoder.BestEpoch:
        folds.append(fold)
        return encoder.BestEpoch(3, {RATES[0]: 0.4, RATES[1]: 0.6, RATES[2]: 0.5}[rate], np.empty(0))

    monkeypatch.setattr(run, "find_best_epoch", find)
    chosen = choose_rate(corpus, fits_of(corpus))
    assert (chosen["rate"], chosen["scores"]) == (RATES[1], [0.4, 0.6, 0.5])
    assert len(folds) == len(RATES)
    used = np.concatenate([rows for fold in folds for rows in (fold.train, fold.valid)])
    for fit in fits_of(corpus):
        assert not np.isin(used, draw_exam(corpus, fit.setting, fit.seed).test).any()
    assert all(hash_text(corpus.texts[row]) % 2 == 0 for row in used)
    assert not np.isin(folds[0].train, folds[0].valid).any()
    assert len(np.unique(used)) > 0.9 * len(development_rows(corpus, fits_of(corpus)))


@pytest.fixture
def stub_fits(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fits that only tell which they are."""
    done: list[str] = []

    def fit(exam: Exam, rate: float) -> tuple[Answer, int]:
        done.append(f"{len(exam.data.rows)} with {rate:g}, seed {exam.seed}")
        return Answer(encoder.NAME, np.eye(3)[exam.y[exam.test]], 0, 6, 1.0, 60.0, "learning rate 1, 3 epochs"), 3

    def choose(*_: Any) -> dict[str, Any]:
        done.append("rate")
        return {"rate": RATES[1], "summary": "5e-05, by the macro-F1 of 9 documents"}

    monkeypatch.setattr(calibration, "_DRAWS", 20)
    monkeypatch.setattr(task_module, "_decoder_file", lambda: "weights.gguf")
    monkeypatch.setattr(run, "extract_corpus", lambda *_: None)
    monkeypatch.setattr(run, "load", lambda *_: corpus)
    monkeypatch.setattr(run, "fine_tune", fit)
    monkeypatch.setattr(run, "choose_rate", choose)
    return done


def test_a_stored_fit_is_not_run_again(stub_fits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumes after the last fit; time, a number, and a new format decide which fits it runs."""
    run_missing(TWEETS, tmp_path, tmp_path / "results", fits=2)
    assert stub_fits == ["rate", "48 with 5e-05, seed 0"]
    run_missing(TWEETS, tmp_path, tmp_path / "results", hours=0.0)
    run_missing(TWEETS, tmp_path, tmp_path / "results", fits=0)
    assert len(stub_fits) == 2
    run_missing(TWEETS, tmp_path, tmp_path / "results", hours=inf, fits=1)
    assert stub_fits[2:] == ["192 with 5e-05, seed 0"]
    files = sorted(file.name for file in (tmp_path / "results/tweets").iterdir())
    assert files == ["minilm-few16-0.json", "minilm-few64-0.json", "minilm-rate-0.json"]
    monkeypatch.setattr(run, "FORMAT", run.FORMAT + 1)
    run_missing(TWEETS, tmp_path, tmp_path / "results", fits=1)
    assert stub_fits[3:] == ["rate"]


def test_every_task_has_the_draws_of_the_method_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "_decoder_file", lambda: "weights.gguf")
    for name, settings, draws in (
        ("tweets", 4, 5), ("debtags", 4, 5), ("debian", 2, 2), ("manuals", 4, 1),
    ):  # fmt: skip
        fits = plan_fits(TASKS[name])
        assert len(fits) == 1 + settings * draws
        assert {fit.seed for fit in fits} == set(range(draws))
        assert {fit.plan.name for fit in fits} == {"minilm"}
    assert tuple(fit.key.removeprefix("minilm-") for fit in plan_fits(TWEETS)) == FITS


@pytest.fixture
def call_main(stub_fits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the command in an empty folder; returns the page."""

    def call(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        Path("benchmarks").mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["benchmarks.finetune", *arguments])
        run.main()
        return Path("benchmarks/finetune.md").read_text(encoding="utf-8")

    return call


def test_the_page_names_the_fits_that_are_missing(call_main: Callable[..., str]) -> None:
    """Of all tasks, whichever was measured last."""
    text = call_main("--fits", "6")
    assert f"**Not finished: {', '.join(FITS[6:])}.** `make bench-finetune` computes" in text
    assert "**Not finished: rate-0, few16-0, full-0, few16-1, full-1.** `make bench-finetune TASK=debian`" in text
    assert "Learning rate 5e-05, by the macro-F1 of 9 documents.\n" in text
    assert "| 16 per class | 2 | 100.0 | 100.0 |" in text
    assert "- 16 per class: `make bench-method` has stored no result of SPIN.\n" in text
    assert "Not finished: few" not in call_main("--fits", str(len(FITS)))


def test_the_difference_to_spin_is_that_of_the_draws_that_both_have(
    call_main: Callable[..., str], tmp_path: Path
) -> None:
    call_main()
    stored = make_results({"words": [0.0] * 3})
    experiments = [Experiment(TWEETS.plans(quick=False)[0], "few16", draw) for draw in range(3)]
    (tmp_path / "benchmarks/results/tweets").mkdir()
    for experiment, result in zip(experiments, stored, strict=True):
        write_result(tmp_path / "benchmarks/results/tweets", experiment, result | {"digest": experiment.digest})
    spin = [row["macro_f1"] for result in stored for row in result["rows"] if row["name"] == "SPIN, accuracy"]
    differences = [100 * value - 100 for value in spin]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / 3**0.5
    text = call_main()
    expected = f"- 16 per class, 3 of 5 draws: SPIN, accuracy − fine-tuned {mean:+.2f} ± {error:.2f} points of macro-F1"
    assert f"{expected}: fine-tuning is ahead, by more than two standard errors.\n" in text
    assert f"| {100 + mean:.1f} ± 2.0 | 70.0 | 1.0 |\n" in text
    for experiment in experiments[1:]:
        (tmp_path / "benchmarks/results/tweets" / f"{experiment.key}.json").unlink()
    assert "1 of 5 draws: SPIN, accuracy − fine-tuned -30.00, no standard error of a single draw points" in call_main()


@pytest.mark.parametrize(("gains", "words"), [
    ([1.0, 1.2], "SPIN is ahead, by more than two standard errors"),
    ([-1.0, 1.2], "SPIN is ahead, within two standard errors"),
    ([-1.2, -1.0], "fine-tuning is ahead, by more than two standard errors"),
])  # fmt: skip
def test_a_verdict_says_which_is_ahead_and_whether_by_chance(gains: list[float], words: str) -> None:
    runs = make_results({"words": gains})
    for result in runs:
        named = {row["name"]: row for row in result["rows"]}
        result["rows"] = [named["words"] | {"name": encoder.NAME}, named["SPIN, accuracy"]]
    assert page._verdict(runs).endswith(f"points of macro-F1: {words}.")


def test_a_result_is_stored_with_its_epochs_and_its_digest(call_main: Callable[..., str], tmp_path: Path) -> None:
    call_main("--fits", "2")
    fit = plan_fits(TWEETS)[1]
    stored = read_result(tmp_path / "benchmarks/results/finetune/tweets", fit)
    assert stored is not None
    assert json.loads(json.dumps(stored))["rows"][0] | {"choice": ""} == {
        "name": "fine-tuned", "accuracy": 1.0, "macro_f1": 1.0, "ece": stored["rows"][0]["ece"],
        "ece_limit": stored["rows"][0]["ece_limit"], "neurons": 0, "depth": 6, "compute": 1.0, "seconds": 60.0,
        "choice": "", "epochs": 3,
    }  # fmt: skip
    assert stored["documents"] == [39, 9, 100]
    assert fit.digest != Experiment(fit.plan, fit.setting, fit.seed).digest


def test_the_makefile_passes_the_task() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert "benchmarks.finetune --task $(TASK) $(BENCH)\n" in makefile
