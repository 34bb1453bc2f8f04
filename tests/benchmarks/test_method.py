"""The benchmark of the method: its division of documents, the parts of its rows, its claims, and stale results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.method import contenders, lineup, run, siren
from benchmarks.method.contenders import Answer
from benchmarks.method.corpora import Corpus, Exam, Plan, draw_exam
from benchmarks.method.division import divide, draw_per_class
from benchmarks.method.run import Experiment, read_result, write_report
from benchmarks.method.table import Difference, few_claims, full_claims, noisy_claims, report
from spin.fitted.early_exit import should_exit
from spin.heads import calibration
from spin.labels.label_space import LabelSpace
from spin.labels.split_groups import hash_text
from spin.settings import DecisionSettings
from spin.sites import FeatureColumn, Site

PLAN = Plan("tiny", "tiny", "none", None, 800, 240, 200)
BLOCKS = 2


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """1,500 documents of three classes; a fifth repeat the one before them with a mention and a link, or two do."""
    draw = np.random.default_rng(0)
    y = draw.choice(3, 1500, p=[0.5, 0.3, 0.2])
    numbers = np.arange(1500)
    for row in np.flatnonzero(draw.random(1500) < 0.2):
        numbers[row] = numbers[row - 1]  # the classes of near-identical documents may differ
    forms = ("flight {}", "@crew Flight {}!", "flight... {} https://t.co/x")
    texts = [forms[row % 3].format(number) for row, number in enumerate(numbers)]
    columns = [FeatureColumn(Site(0, "resid"), pooling) for pooling in ("max", "mean")]
    for layer in range(1, BLOCKS + 1):
        columns += [FeatureColumn(Site(layer, kind), p) for kind in ("ffn", "resid") for p in ("max", "mean")]
    classes = np.eye(3)[y]
    features = {
        c: (classes @ draw.normal(size=(3, 20)) * (c.site.layer + 1) / 3 + draw.normal(size=(1500, 20))).astype("f4")
        for c in [*columns, FeatureColumn(Site(BLOCKS, "final"), "mean")]
    }
    groups = np.array([hash_text(text) for text in texts], np.uint64)
    flops = {c.site: c.site.layer / BLOCKS for c in columns}
    return Corpus(PLAN, texts, groups, y, LabelSpace(("a", "b", "c")), features, flops, BLOCKS)


def test_divided_sides_have_their_sizes_and_proportions_and_share_no_group(corpus: Corpus) -> None:
    """What is left over is a side as well: no document of it is near-identical to one that was drawn."""
    sizes = (PLAN.train, PLAN.valid, PLAN.test)
    sides = divide(corpus.y, corpus.groups, sizes, 0)
    assert tuple(map(len, sides)) == sizes
    assert len(np.unique(corpus.groups)) < 0.9 * len(corpus.y)
    rest = np.setdiff1d(np.arange(1500), np.concatenate(sides))
    assert len(rest) == 1500 - sum(sizes)
    assert_disjoint(corpus, [*sides, rest])
    shares = np.bincount(corpus.y) / 1500
    for side in sides:
        assert np.abs(np.bincount(corpus.y[side]) - shares * len(side)).max() < 2
        assert (np.diff(side) > 0).all()


def test_another_seed_divides_differently(corpus: Corpus) -> None:
    sides = [divide(corpus.y, corpus.groups, (800, 200), seed)[0] for seed in (0, 0, 1)]
    assert np.array_equal(sides[0], sides[1])
    assert len(np.intersect1d(sides[0], sides[2])) < 700


def test_a_group_that_is_too_large_for_a_side_is_not_divided() -> None:
    """If no side has room for it, it is left over, and the last sides are shorter."""
    y, groups = np.zeros(100, np.int64), np.arange(100, dtype=np.uint64)
    groups[:30] = 1000
    for seed in range(10):
        large, small = divide(y, groups, (60, 20), seed)
        assert (len(large), len(small)) in ((60, 20), (60, 10))
        assert np.isin(np.arange(30), large).all() or not np.isin(np.arange(30), [*large, *small]).any()
    with pytest.raises(ValueError, match="120 of 100"):
        divide(y, groups, (60, 60), 0)


def test_few_documents_of_each_class_are_drawn_of_different_groups(corpus: Corpus) -> None:
    pool = np.arange(0, 1500, 2)
    drawn = draw_per_class(corpus.y, corpus.groups, pool, 30, 0)
    assert [np.unique(corpus.y[rows]).tolist() for rows in drawn] == [[0], [1], [2]]
    rows = np.concatenate(drawn)
    assert len(np.unique(corpus.groups[rows])) == 90
    assert np.isin(rows, pool).all()


@pytest.mark.parametrize("setting", ["full", "noisy", "few16", "few100"])
def test_no_exam_divides_near_identical_documents(corpus: Corpus, setting: str) -> None:
    """Neither among training, validation and test nor among the folds; SPIN itself learns the groups as well."""
    for seed in range(3):
        exam = draw_exam(corpus, setting, seed)
        assert_disjoint(corpus, [exam.train, exam.valid, exam.test])
        for fold in exam.folds:
            assert_disjoint(corpus, [fold.train, fold.valid, exam.test])
        assert exam.data.groups is corpus.groups
        assert len(exam.test) == PLAN.test
        if setting.startswith("few"):
            assert len(exam.train) + len(exam.valid) == 3 * int(setting.removeprefix("few"))
            assert len(exam.folds) > 1


def test_few_labels_share_their_test_documents_and_divisions_do_not(corpus: Corpus) -> None:
    few, full = ([draw_exam(corpus, setting, seed) for seed in (0, 1)] for setting in ("few16", "full"))
    assert np.array_equal(few[0].test, few[1].test)
    assert not np.array_equal(few[0].train, few[1].train)
    assert np.array_equal(few[0].test, full[0].test)
    assert not np.array_equal(full[0].test, full[1].test)


def assert_disjoint(corpus: Corpus, sides: list[Any]) -> None:
    """No two sides have a group in common."""
    counts = np.unique(np.concatenate([np.unique(corpus.groups[side]) for side in sides]), return_counts=True)[1]
    assert counts.max() == 1


@pytest.fixture(scope="module", autouse=True)
def one_learning_rate() -> Iterator[None]:
    """Shorten the search of SIREN's recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siren, "RATES", (2e-3,))
        yield


@pytest.fixture(scope="module", params=["full", "few16"])
def exam(corpus: Corpus, request: pytest.FixtureRequest) -> Exam:
    """An exam with one division, and one with cross-validation."""
    return draw_exam(corpus, request.param, 0)


@pytest.fixture(scope="module")
def fitted_spin(exam: Exam) -> contenders.FittedSpin:
    """SPIN with its default settings."""
    return contenders.fit_spin(exam)


@pytest.fixture(scope="module")
def sirens_answer(exam: Exam, fitted_spin: contenders.FittedSpin) -> contenders.Answer:
    """The answer of SIREN's recipe, which fits no probe of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders.spin.fit, "fit_probes", None)
        return siren.siren(exam, fitted_spin)


@pytest.mark.slow
def test_rows_share_the_probes_of_spin(
    exam: Exam, fitted_spin: contenders.FittedSpin, sirens_answer: contenders.Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their time counts in each of these rows. All of them learn something."""
    monkeypatch.setattr(contenders.spin.fit, "fit_probes", None)
    assert sorted(fitted_spin.probing) == sorted({column.site for column in exam.corpus.sites})
    answers = [
        sirens_answer,
        contenders.neurons_alone(exam, fitted_spin),
        contenders.spin_choice(exam, fitted_spin, "accuracy"),
        contenders.lower_half(exam, fitted_spin),
    ]
    for answer in answers:
        row = answer.row(exam)
        assert row["macro_f1"] > 0.5, row
        assert 0 < row["neurons"] < exam.corpus.neurons
        assert row["depth"] <= BLOCKS
    assert answers[1].seconds == fitted_spin.seconds > sum(fitted_spin.probing.values()) < answers[3].seconds * 2
    assert answers[3].depth <= BLOCKS // 2


@pytest.mark.slow
def test_rows_with_and_without_words(exam: Exam, fitted_spin: contenders.FittedSpin) -> None:
    """The words alone read no neuron; the row of the kind that `accuracy` prefers is its classifier without network."""
    alone = contenders.words(exam, fitted_spin)
    assert (alone.neurons, alone.depth, alone.compute) == (0, 0, 0.0)
    assert fitted_spin.words is not None
    texts = [exam.corpus.texts[row] for row in exam.test]
    np.testing.assert_array_equal(alone.logits.argmax(1), fitted_spin.words.regression.logits(texts).argmax(1))
    without = contenders.neurons_alone(exam, fitted_spin)
    assert "without words" in without.choice
    both, chosen = (
        contenders.neurons_and_words(exam, fitted_spin),
        contenders.spin_choice(exam, fitted_spin, "accuracy"),
    )
    assert ", with words" in both.choice
    of_its_kind = both if ", with words" in chosen.choice else without
    assert of_its_kind.neurons == chosen.neurons
    assert ", linear," in of_its_kind.choice
    assert np.array_equal(of_its_kind.logits, chosen.logits) == (", linear," in chosen.choice)


@pytest.mark.slow
def test_sirens_neurons_are_those_of_the_averaged_residual_stream_weighted_by_layer(
    exam: Exam, fitted_spin: contenders.FittedSpin, sirens_answer: contenders.Answer
) -> None:
    """Against a plain computation, one layer and one neuron after another."""
    probes = [p for p in fitted_spin.probes if p.column.site.kind == "resid" and p.column.pooling == "mean"]
    assert len(probes) == BLOCKS + 1
    X = siren.join_layers(exam, probes, 0.8, exam.test)
    scores = [probe.valid_score for probe in probes]
    expected = []
    for probe in probes:
        values = exam.corpus.features[probe.column]
        weight = max(0.1, (probe.valid_score - min(scores)) / (max(scores) - min(scores)))
        importance = np.abs(probe.coef).sum(0)
        chosen: list[int] = []
        for neuron in np.argsort(-importance):
            if importance[chosen].sum() < 0.8 * importance.sum():
                chosen.append(neuron)
        for neuron in sorted(chosen):
            mean, scale = probe.standardizer.mean[neuron], probe.standardizer.scale[neuron]
            expected.append(weight * (values[exam.test, neuron] - mean) / scale)
    np.testing.assert_allclose(X, np.array(expected).T, rtol=1e-4, atol=1e-5)
    assert sirens_answer.neurons in [siren.join_layers(exam, probes, eta, exam.test).shape[1] for eta in siren.ETAS]
    assert sirens_answer.depth == BLOCKS


def test_layers_that_are_equally_good_weigh_the_same() -> None:
    assert siren.weigh_layers([0.5, 0.5]).tolist() == pytest.approx([0.1, 0.1])
    assert siren.weigh_layers([0.5, 0.52, 0.7]).tolist() == pytest.approx([0.1, 0.1, 1.0])


def test_sirens_network_is_two_relu_layers_without_dropout_when_it_answers() -> None:
    torch.manual_seed(0)
    network = siren.Network(5, (8, 4), 3)
    X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    layers = [layer for layer in network.module if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [5, 4, 3]
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in network.module) == 2
    values = X
    for index, layer in enumerate(layers):
        values = values @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        values = np.maximum(values, 0) if index < 2 else values
    network.module.train()
    np.testing.assert_allclose(network(X), values, atol=1e-5)


def test_sirens_network_is_the_best_of_its_epochs_and_ends_ten_after_it(corpus: Corpus) -> None:
    """Of equally good epochs it is the first. Without a judge it lasts for all epochs."""
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(64, 6)).astype(np.float32), draw.integers(0, 3, 64)
    exam, trial = draw_exam(corpus, "few16", 0), siren.Trial(0.8, 1e-2, (4, 4))
    seen: list[np.ndarray] = []
    scores = [0.1, 0.2, 0.5, *[0.5] * 20]

    def judge(network: siren.Network) -> float:
        seen.append(network(X))
        return scores[len(seen) - 1]

    network, epochs = siren.fit_network(X, y, trial, exam, 100, judge)
    assert (epochs, len(seen)) == (3, 13)
    np.testing.assert_array_equal(network(X), seen[2])
    again, epochs = siren.fit_network(X, y, trial, exam, 3)
    assert epochs == 3
    np.testing.assert_array_equal(again(X), seen[2])
    other = replace(exam, data=replace(exam.data, seed=1))
    assert not np.array_equal(siren.fit_network(X, y, trial, other, 3)[0](X), seen[2])


MEASURED = "2026-01-31; a processor"


def make_results(gains: dict[str, list[float]], setting: str = "full", **spin: float) -> list[dict[str, Any]]:
    """Results in which SPIN is better than each row by these points of macro-F1, one per draw."""
    same: dict[str, Any] = {"accuracy": 0.7, "ece": 0.01, "depth": 6, "compute": 1.0, "seconds": 9.0, "choice": ""}
    same["ece_limit"] = 0.02
    draws = len(next(iter(gains.values())))
    names = [row.name for row in lineup.rows_of(setting)]
    results = []
    for draw in range(draws):
        rows = []
        for name in names:
            gain = gains.get(name, [1.0] * draws)[draw] if not name.startswith("SPIN, a") else 0.0
            own = {"neurons": 100, **(spin if name == "SPIN, accuracy" else {})}
            rows.append({"name": name, "macro_f1": 0.70 + draw / 50 - gain / 100, **same, **own})
        experiment = {"plan": {"title": "tweets", "documents": None}, "setting": setting, "seed": draw}
        sizes = {
            "neurons": 1000,
            "classes": 3,
            "depth": 6,
            "documents": [6, 2, 4],
            "measured": MEASURED,
        }
        results.append({"experiment": experiment, "rows": rows, **sizes})
    return results


def claims(text: str, words: str) -> str:
    """The one line of claims that contains these words."""
    [line] = [line for line in text.splitlines() if words in line]
    return line


def test_the_gain_on_all_neurons_is_judged_by_mean_interval_and_share() -> None:
    """Differences of 0.3, 0.4 … 0.7 have a mean of 0.5, and 0.15 on both sides hold 90 %."""
    steady = {"all neurons": [0.3, 0.4, 0.5, 0.6, 0.7]}
    gain = Difference.of(make_results(steady), "all neurons")
    assert (gain.mean, gain.error) == (
        pytest.approx(0.5),
        pytest.approx(np.std(steady["all neurons"], ddof=1) / 5**0.5),
    )
    assert gain.lower == pytest.approx(0.5 - 2.131847 * gain.error)
    line = claims(full_claims(make_results(steady)), "on all neurons")
    assert line.startswith("- holds: ")
    assert "(+0.50, interval +0.35 to +0.65, 10.0 %)" in line
    cases = [
        make_results({"all neurons": [0.1, 0.2, 0.3, 0.4, 0.45]}),  # a mean of 0.29
        make_results({"all neurons": [-2, -1, 1, 2, 3]}),  # 0.6 by chance
        make_results(steady, neurons=101),
        make_results({"all neurons": [0.5]}),  # one draw has no interval
    ]
    for results in cases:
        assert claims(full_claims(results), "on all neurons").startswith("- **does not hold**: ")
    assert "+0.50, no interval of a single draw" in full_claims(cases[-1])


def test_calibration_and_words_are_judged_with_all_labels() -> None:
    text = full_claims(make_results({"TF-IDF": [-0.1, 0.0, -0.2]}, ece=0.0201))
    assert claims(text, "ECE").startswith("- **does not hold**: ")
    assert claims(text, "below TF-IDF").startswith("- **does not hold**: ")
    assert claims(text, "higher macro-F1 than TF-IDF (").startswith("- **does not hold**: ")
    assert claims(text, "SIREN").startswith("- holds: ")
    text = full_claims(make_results({"TF-IDF": [-1.0, 0.0, 0.9]}, ece=0.02))
    assert claims(text, "ECE").startswith("- holds: ")
    assert claims(text, "below TF-IDF").startswith("- holds: ")


@pytest.mark.slow
def test_the_claim_on_calibration_holds_for_exact_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all but about 5 % of 60 test sets of 1,000 documents, whose error is nearly always above 2 %."""
    monkeypatch.setattr(calibration, "_DRAWS", 400)
    draw, space, held, errors = np.random.default_rng(0), LabelSpace(("a", "b", "c")), 0, []
    for _ in range(60):
        p = space.probabilities(1.5 * draw.normal(size=(1000, 3)))
        y = (p.cumsum(1) > draw.random((1000, 1))).argmax(1)
        errors.append(calibration.calibration_error(p, y, space))
        limit = calibration.calibration_error_limit(p, space)
        text = full_claims(make_results({"all neurons": [0.5]}, ece=errors[-1], ece_limit=limit))
        held += claims(text, "ECE").startswith("- holds: ")
    assert np.mean(np.array(errors) > 0.02) > 0.9
    assert 52 <= held < 60


def test_few_labels_are_judged_by_the_mean_against_all_neurons_and_the_last_layer() -> None:
    """From 256 labels per class the last layer is among the other rows, which allow one standard error."""
    gains = {"all neurons": [0.2, -0.1], "last layer": [-0.2, 0.1]}
    results = make_results(gains, "few")
    lines = few_claims({16: results, 64: make_results({"all neurons": [0.0, 0.0]}, "few"), 256: results})
    assert claims(lines, "16 per class, `accuracy` is in the mean").startswith("- **does not hold**: ")
    assert claims(lines, "64 per class, `accuracy` is in the mean").startswith("- holds: ")
    assert claims(lines, "256 per class, `accuracy` is in the mean").startswith("- holds: ")
    assert claims(lines, "256 per class, `accuracy` is below no other row").startswith("- holds: ")
    below = few_claims({256: make_results({"all neurons": [0.2, -0.3], "last layer": [-0.2, -0.1]}, "few")})
    assert claims(below, "in the mean").startswith("- **does not hold**: ")
    line = claims(below, "no other row")
    assert line.startswith("- **does not hold**: ")
    assert "except last layer (-0.15 ± 0.05)" in line


def test_flipped_labels_are_judged_by_one_standard_error() -> None:
    near, far = ({"all neurons": values, "TF-IDF": values} for values in ([-0.3, 0.1], [-0.3, -0.1]))
    for gains, verdict in ((near, "- holds: "), (far, "- **does not hold**: ")):
        text = noisy_claims(make_results(gains, "noisy"))
        assert claims(text, "below all neurons").startswith(verdict)
        assert claims(text, "below TF-IDF").startswith(verdict)
        assert claims(text, "no other row").startswith("- holds: ")


def test_the_page_holds_every_table_and_names_what_is_missing() -> None:
    gains = {"all neurons": [0.1, 0.2]}
    results = {f"tweets-{setting}": make_results(gains, setting) for setting in ("full", "few16", "few256", "noisy")}
    page = report(results, ["tweets-full-2"])
    assert "**Not finished: tweets-full-2.**" in page
    assert page.count("below TF-IDF") == 4
    assert "| SIREN's recipe |" in page
    assert "2 draws" in page
    assert "Tried" not in page


def test_rows_that_only_some_settings_or_draws_have_are_shown_where_they_are() -> None:
    """SetFit has a figure of its two draws, paired with those of SPIN, and none with 256 labels."""
    results = {f"tweets-few{count}": make_results({"all neurons": [0.1] * 3}, f"few{count}") for count in (64, 256)}
    for result, gain in zip(results["tweets-few64"], (2.0, 4.0, None), strict=True):
        spin = next(row for row in result["rows"] if row["name"] == "SPIN, accuracy")
        result["rows"] = [row for row in result["rows"] if not row["name"].startswith("SetFit")]
        if gain is not None:
            result["rows"].insert(0, spin | {"name": "SetFit", "macro_f1": spin["macro_f1"] - gain / 100})
    page = report(results)
    assert (
        "| SetFit | 68.0 ± 0.0 | +3.00 ± 1.00 | – | – |" in page or "| SetFit | 68.0 | +3.00 ± 1.00 | – | – |" in page
    )
    assert "SetFit with 64 per class has 2 draws" in page
    assert "256 per class has" not in page


def test_a_table_without_the_lower_half_makes_no_claim_about_it() -> None:
    results = make_results({"all neurons": [0.1, 0.2]})
    assert "lower half" in full_claims(results)
    for result in results:
        result["rows"] = [row for row in result["rows"] if row["name"] != "SPIN, lower half"]
    assert "lower half" not in full_claims(results)
    assert "runs 100 %" in full_claims(results)


@pytest.mark.parametrize("row", lineup.ROWS, ids=lambda row: row.name)
def test_every_row_takes_what_the_lineup_gives_it(row: lineup.Row) -> None:
    """The exam, and what SPIN has fitted only if the row says that it reads that."""
    signature(row.answer).bind(*["exam", "fitted"][: 1 + row.reads_spin])


def test_results_of_another_version_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result counts only if format, documents and grids are those of the present code."""
    experiment = Experiment(PLAN, "full", 0)
    [result] = make_results({"all neurons": [0.5]})
    file = tmp_path / f"{experiment.key}.json"
    assert read_result(tmp_path, experiment) is None
    file.write_text(json.dumps(result))
    assert read_result(tmp_path, experiment) is None  # of the time before digests
    file.write_text(json.dumps(result | {"digest": experiment.digest}))
    assert read_result(tmp_path, experiment) is not None
    write_report([experiment], tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Not finished" not in page
    assert f"\nMeasured {MEASURED}. Written by" in page, "not where and when the page is written"
    assert read_result(tmp_path, replace(experiment, plan=replace(PLAN, test=201))) is None
    for owner, name, value in (
        (lineup, "FORMAT", lineup.FORMAT + 1),
        (siren, "ETAS", (0.5,)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert read_result(tmp_path, experiment) is None
            write_report([experiment], tmp_path, tmp_path / "page.md")
            assert f"Not finished: {experiment.key}" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert read_result(tmp_path, experiment) is not None


def test_after_a_change_of_code_only_rows_of_spin_are_computed_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, computed = Experiment(PLAN, "full", 0), list[str]()

    def answer(name: str) -> Any:
        def answered(exam: Exam, *_: object) -> Answer:
            computed.append(name)
            return Answer(name, np.zeros((len(exam.test), 3), np.float32), 0, 0, 0.0, 0.0, str(len(computed)))

        return answered

    rows = (lineup.Row("peer", answer("peer")), lineup.Row("SPIN", answer("SPIN"), reads_spin=True))
    monkeypatch.setattr(lineup, "ROWS", rows)
    monkeypatch.setattr(contenders, "fit_spin", lambda exam: None)
    monkeypatch.setattr(run, "load", lambda *_: corpus)
    for code in ("one", "other"):
        run.run_one(experiment, tmp_path, tmp_path, code)
        stored = read_result(tmp_path, experiment)
        assert stored is not None
        assert stored["code"] == code
    assert computed == ["peer", "SPIN", "SPIN"]
    assert [(row["name"], row["choice"]) for row in stored["rows"]] == [("peer", "1"), ("SPIN", "3")]


def test_a_result_without_a_new_row_is_completed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPIN is fitted only if the new row reads it."""
    experiment, fits = Experiment(PLAN, "full", 0), list[int]()

    def row(name: str, reads_spin: bool = False) -> lineup.Row:
        def answer(exam: Exam, *_: object) -> Answer:
            return Answer(name, np.zeros((len(exam.test), 3), np.float32), 0, 0, 0.0, 0.0, "")

        return lineup.Row(name, answer, reads_spin=reads_spin)

    monkeypatch.setattr(contenders, "fit_spin", lambda exam: fits.append(1))
    monkeypatch.setattr(run, "load", lambda *_: corpus)
    monkeypatch.setattr(run, "digest_code", lambda: "code")
    rows = list[lineup.Row]()
    for new in (row("peer"), row("another peer"), row("SPIN", reads_spin=True)):
        rows.append(new)
        monkeypatch.setattr(lineup, "ROWS", tuple(rows))
        assert run.find_missing([experiment], tmp_path) == [experiment]
        run.run_one(experiment, tmp_path, tmp_path, "code")
        assert run.find_missing([experiment], tmp_path) == []
    assert fits == [1]
    stored = read_result(tmp_path, experiment)
    assert stored is not None
    assert [stored_row["name"] for stored_row in stored["rows"]] == ["peer", "another peer", "SPIN"]


@pytest.mark.slow
def test_with_exits_each_document_has_the_logits_of_the_exit_at_which_it_stops(
    exam: Exam, fitted_spin: contenders.FittedSpin
) -> None:
    """One document after another, by the head of its exit; without exits it is `accuracy`."""
    fitted = fitted_spin.training_result.choices["accuracy"]
    answer, full = contenders.with_exits(exam, fitted_spin), contenders.spin_choice(exam, fitted_spin, "accuracy")
    depths = [exit.depth for exit in fitted.exits]
    assert answer.depth <= full.depth
    assert answer.compute <= full.compute
    assert answer.logits.shape == full.logits.shape
    assert depths or np.array_equal(answer.logits, full.logits)
    label_space = exam.corpus.label_space
    decision = fitted.decision(label_space, DecisionSettings())
    assert fitted_spin.words is not None
    words = fitted_spin.words.regression.logits([exam.corpus.texts[row] for row in exam.test])
    features = contenders.reader(exam)(fitted.selection, exam.test)[0]
    if fitted.selection.word_logits:
        features = np.concatenate([words, features], axis=1)
    for document, logits in enumerate(answer.logits):
        one, said = features[[document]], words[[document]]
        for index, early in enumerate(fitted.exits):
            at = fitted.at(index).logits(fitted.read_at(index, one, said))
            if should_exit(decision, early.threshold, at)[0]:
                break
        else:
            at = fitted.logits(one)
        np.testing.assert_allclose(logits, at[0], rtol=1e-5, atol=1e-5)


def test_exits_may_lose_little_in_the_mean_and_in_the_worst_draw() -> None:
    for losses, holds in (([0.1, 0.79], True), ([0.0, 0.81], False), ([0.6, 0.5], False)):
        text = claims(full_claims(make_results({"SPIN, with exits": losses})), "early exits lose")
        assert text.startswith("- holds: ") == holds, text
