"""The search chooses on validation rows alone; the final head is fitted on all labelled rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

import spin.integrate.head_fitter
import spin.integrate.integrate
from spin.arrays import Floats
from spin.errors import UserError
from spin.fitted.candidate import Candidate, Subset
from spin.fitted.fitted_classifier import TrainingResult
from spin.heads.calibration import calibration_error, log_loss
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Source, Stack, fit_stack
from spin.integrate.exit_thresholds import READING_COST
from spin.integrate.feature_matrix import FeatureMatrix, row_weights
from spin.integrate.fit_words import WordFit
from spin.integrate.frontier import best_per_depth, choose_candidates
from spin.integrate.integrate import CandidateFitter, integrate
from spin.integrate.search import FoldSearch, Search, SearchStart, most_fits
from spin.labels.cross_validation import Fold, jackknife_rows, labelled_rows, make_folds, score_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, DecisionSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe, fit_probes
from spin.sparsify.ridge import RidgeImportance, fit_ridge
from spin.sparsify.select import Ranking
from spin.words.word_regression import WordRegression

pytestmark = pytest.mark.usefixtures("all_folds", "few_labels")
Rows = NDArray[np.int64]
FLOPS = {Site(layer, kind): layer / 4 + (kind == "resid") / 8 for layer in (1, 2, 3, 4) for kind in ("ffn", "resid")}
SEARCH = SearchSettings(etas=(0.3, 0.6, 0.9), max_share=0.3, strengths=(0.1, 1, 10), network="off")
LABEL_SPACES = {"multi-class": LabelSpace(("a", "b", "c")), "multi-label": LabelSpace(("a", "b", "c"), multilabel=True)}


@dataclass
class Project:
    """Activations of four layers under two poolings, targets, folds, test rows outside all folds, and fitted probes."""

    label_space: LabelSpace
    activations: dict[FeatureColumn, Floats]
    y: Targets
    folds: Sequence[Fold]
    test: Rows
    probes: list[Probe]
    ridge: list[RidgeImportance]

    @property
    def data(self) -> TrainingData:
        return TrainingData(self.y, tuple(self.folds), self.label_space, "accuracy")

    def read(self, selection: Selection, rows: Rows) -> Floats:
        return np.concatenate([self.activations[c][rows][:, n] for c, n in selection.neurons.items()], axis=1)

    def read_blocks(self, selection: Selection, rows: Rows) -> Iterator[Floats]:
        """The rows in three blocks."""
        return (self.read(selection, part) for part in np.array_split(rows, 3))

    def integrate(self, settings: SearchSettings = SEARCH, **changes: Any) -> TrainingResult:
        options: dict[str, Any] = {"settings": settings, "compute": FLOPS, **changes}
        return integrate(self.probes, self.ridge, self.read_blocks, self.data, **options)

    def search(
        self,
        settings: SearchSettings = SEARCH,
        kind: str = "none",
        group: ProcessGroup | None = None,
        words: WordFit | None = None,
    ) -> Search:
        matrix = FeatureMatrix(self.read_blocks, replace(self.data, class_weights=kind), group or ProcessGroup())
        return Search(matrix, self.probes, self.ridge, settings, FLOPS, words=words)

    def ranking(self, fold: int) -> Ranking:
        """The ranking of neurons by the training rows of a fold."""
        probes = {probe.column: probe.for_fold(fold) for probe in self.probes}
        return Ranking.of(probes, {r.column: r.folds[fold] for r in self.ridge})

    def refit(self, selection: Selection, scaled_on: Rows, train: Rows, rows: Rows, strength: float) -> Floats:
        """Logits of scikit-learn's regressions on a selection, standardised on some rows and fitted on others."""
        raw = self.read(selection, np.arange(len(self.y))).astype(np.float64)
        X = (raw - raw[scaled_on].mean(0)) / raw[scaled_on].std(0) / len(selection) ** 0.5
        model = LogisticRegression(C=strength, tol=1e-7, max_iter=10000)
        if not self.label_space.multilabel:
            return model.fit(X[train], self.y[train]).decision_function(X[rows])
        return np.stack([model.fit(X[train], has).decision_function(X[rows]) for has in self.y[train].T], axis=1)


def build_project(
    seed: int = 0, *, signal: float = 0.8, kind: str = "multi-class", n: int | None = None, folds: int = 1
) -> Project:
    """A copy of a project that a test may change; its probes are fitted once per session and arguments.

    Three quarters of its n documents are labelled: by default few with several folds, and many with one (`few_labels`).
    """
    return deepcopy(_fit_project(seed, signal, kind, n or (360 if folds == 1 else 348), folds))


@cache
def _fit_project(seed: int, signal: float, kind: str, n: int, folds: int) -> Project:
    """Each layer shows the classes through three of its twelve neurons, on a larger scale than the layer before."""
    draw, label_space = np.random.default_rng(seed), LABEL_SPACES[kind]
    y = draw.random((n, 3)) < 0.4 if label_space.multilabel else np.arange(n) % 3
    columns = [
        FeatureColumn.parse(f"ffn.{layer:02d}.{pooling}") for layer in (1, 2, 3, 4) for pooling in ("max", "mean")
    ]
    activations = {}
    for column in columns:
        values = draw.normal(size=(n, 12))
        values[:, :3] += signal * label_space.indicator(y)
        activations[column] = (values * 10.0**column.site.layer + 3).astype(np.float32)
    order = draw.permutation(n)
    train, valid, test = (np.sort(part) for part in np.split(order, [n // 2, 3 * n // 4]))
    parts = (Fold(train, valid),) if folds == 1 else make_folds(label_space, y, train, valid, seed)[:folds]
    probe_settings = ProbeSettings(penalties=5)
    data = TrainingData(y, tuple(parts), label_space, "accuracy")
    ridge, _ = fit_ridge(lambda column, rows: activations[column][rows], columns, data)
    return Project(label_space, activations, y, parts, test, fit_probes(activations, data, probe_settings), ridge)


@pytest.fixture(scope="module")
def few_labels() -> Iterator[None]:
    """Labels are few below 270."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spin.labels.training_data.FEW_LABELS", 270)
        yield


@pytest.fixture(scope="module", params=["multi-class", "multi-label", "three folds"])
def project(request: pytest.FixtureRequest, few_labels: None) -> Project:
    """A project per kind of task, and one with three folds; tests that change a project build their own."""
    return build_project(folds=3) if request.param == "three folds" else build_project(kind=request.param)


@pytest.fixture(scope="module")
def search(project: Project) -> Search:
    """The search with the default settings of these tests, after it has run."""
    search = project.search()
    search.run()
    return search


@pytest.fixture(scope="module")
def candidates(search: Search) -> list[Candidate]:
    """Every candidate of that search."""
    return search.tried


@pytest.fixture(scope="module")
def result(project: Project) -> TrainingResult:
    """The result with the default settings of these tests."""
    return project.integrate()


@pytest.mark.slow
@pytest.mark.parametrize("folds", [1, 3])
def test_test_rows_do_not_affect_the_result(folds: int) -> None:
    """Whatever they hold, NaN included, choices and heads are the same bit for bit."""
    project = build_project(folds=folds)
    settings = SEARCH.model_copy(update={"network": "auto"})
    before = project.integrate(settings)
    for values in project.activations.values():
        values[project.test] = np.nan
    project.y[project.test] = 77
    after = project.integrate(settings)
    assert after.summary() == before.summary()
    for name, actual in after.choices.items():
        expected = before.choices[name]
        assert actual.selection.rows() == expected.selection.rows()
        np.testing.assert_array_equal(
            actual.head.slopes(actual.standardizer.mean), expected.head.slopes(actual.standardizer.mean)
        )


def test_resampled_figures_leave_out_whole_groups() -> None:
    """Here each is without three of sixty groups of neighbouring documents."""
    project = build_project()
    groups = np.arange(len(project.y), dtype=np.uint64) // 6
    data = replace(project.data, groups=groups)
    search = Search(
        FeatureMatrix(project.read_blocks, data, ProcessGroup()), project.probes, project.ridge, SEARCH, FLOPS
    )
    candidate = search.run()[0]
    [logits], [losses] = (held_out := search.held_out(candidate).logits), calibrated_losses(project, held_out)
    valid = project.folds[0].valid
    numbers = np.unique(groups[valid], return_inverse=True)[1] % 20
    right = project.y[valid] == candidate.stack.logits({"neurons": logits}).argmax(1)
    assert candidate.resampled == pytest.approx([right[numbers != part].mean() for part in range(20)])
    expected = [losses[numbers != part].mean() for part in range(20)]
    assert candidate.resampled_losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_validation_labels_decide_the_scores() -> None:
    """Other validation labels give other scores, while the fits on the training rows stay as they are."""
    project = build_project()
    searches = [project.search()]
    before = {(c.depth, c.eta, c.part, c.strength): c for c in searches[0].run()}
    logits = {key: searches[0].held_out(candidate).logits[0] for key, candidate in before.items()}
    project.y[project.folds[0].valid] = (project.y[project.folds[0].valid] + 1) % 3
    searches.append(project.search())
    after = {(c.depth, c.eta, c.part, c.strength): c for c in searches[1].run()}
    assert max(c.valid_score for c in after.values()) < 0.5 < max(c.valid_score for c in before.values())
    for key in before.keys() & after.keys():
        np.testing.assert_allclose(searches[1].held_out(after[key]).logits[0], logits[key], atol=0.1)


def calibrated_losses(project: Project, held_out: Sequence[Floats]) -> list[Floats]:
    """The log loss of every validation row of each fold, with the weight and biases that are best for all of them."""
    y = np.concatenate([project.y[fold.valid] for fold in project.folds])
    stack, losses = fit_stack({"neurons": np.concatenate(held_out)}, y, project.label_space), []
    for of_fold, fold in zip(held_out, project.folds, strict=True):
        logits = stack.neurons * of_fold + np.array(stack.bias)
        has = project.label_space.indicator(project.y[fold.valid]).astype(bool)
        if project.label_space.multilabel:
            right = expit(np.where(has, logits, -logits))
        else:
            right = softmax(logits, axis=1)[has][:, None]
        losses.append(-np.log(right).sum(1))
    return losses


@pytest.mark.slow
def test_every_candidate_equals_an_independent_refit(
    project: Project, search: Search, candidates: list[Candidate]
) -> None:
    """Its score is that of scikit-learn on raw activations, and its neurons, depth and compute are correct."""
    assert len(candidates) >= 15
    for candidate in candidates:
        sizes, differences, answers, held_out = [], [], [], search.held_out(candidate).logits
        losses = calibrated_losses(project, held_out)
        for at, fold in enumerate(project.folds):
            ranking = project.ranking(at)
            top = ranking.eta_for(int(96 * SEARCH.max_share))  # of each fold, which may be less
            selection = ranking.select(min(candidate.eta, top)).up_to(candidate.depth, candidate.part)
            sizes.append(len(selection))
            answers.append(project.label_space.predict(candidate.stack.logits({"neurons": held_out[at]})))
            logits = project.refit(selection, fold.train, fold.train, fold.valid, candidate.strength)
            differences.append(
                np.mean(project.label_space.predict(held_out[at]) != project.label_space.predict(logits))
            )
        valid_score, resampled = score_folds(
            "accuracy", search.valid_targets, np.concatenate(answers), project.folds, project.data.groups
        )
        assert candidate.valid_score == pytest.approx(valid_score)
        assert candidate.resampled == pytest.approx(resampled)
        if len(losses) > 1:
            assert candidate.resampled_losses == pytest.approx([of_fold.mean() for of_fold in losses], rel=1e-5)
        else:
            parts = [losses[0][rows].mean() for rows in jackknife_rows(len(losses[0]))]
            assert candidate.resampled_losses == pytest.approx(parts, rel=1e-5)
        assert candidate.valid_loss == pytest.approx(np.mean([of_fold.mean() for of_fold in losses]), rel=1e-5)
        assert max(differences, default=0) < 0.04, "documents near the border may differ by the tolerance"
        assert candidate.neurons == round(np.mean(sizes))
        assert candidate.compute == candidate.depth / 4


def test_the_search_tries_strengths_poolings_and_depths(project: Project, candidates: list[Candidate]) -> None:
    """All strengths at full depth, each pooling, and every depth, with few labels at one strength."""
    deep = [c for c in candidates if c.depth == 4 and not c.part]
    assert {(c.eta, c.strength) for c in deep} == {(c.eta, strength) for c in deep for strength in SEARCH.strengths}
    assert {c.part for c in candidates} == {(), ("max",), ("mean",)}
    for depth in (1, 2, 3):
        strengths = {c.strength for c in candidates if c.depth == depth and not c.part}
        assert (len(strengths) == 1) == project.data.has_few_labels
        assert strengths


def test_smaller_etas_are_tried_while_they_lower_the_loss(candidates: list[Candidate]) -> None:
    """From the largest down, and the first that does not is the last."""
    least: dict[float, float] = {}
    for c in candidates:
        if c.depth == 4 and not c.part:
            least[c.eta] = min(c.valid_loss, least.get(c.eta, np.inf))
    etas, losses = list(least), list(least.values())
    assert etas == sorted(etas, reverse=True)
    assert losses[:-1] == sorted(losses[:-1], reverse=True)
    assert min(SEARCH.etas) in etas or losses[-1] >= min(losses[:-1])


def test_every_depth_is_on_the_frontier(project: Project, candidates: list[Candidate], result: TrainingResult) -> None:
    """Shallow first, each the best of its depth; choices and summary agree with the candidates."""
    assert result.tried == len(candidates)
    assert [point.depth for point in result.frontier] == [1, 2, 3, 4]
    best = best_per_depth(candidates)
    assert result.summary().frontier == result.frontier == tuple(point.summary() for point in best)
    for point in best:
        assert point.valid_loss == min(c.valid_loss for c in candidates if c.depth == point.depth)
    chosen = choose_candidates(candidates, SEARCH, project.folds)
    assert set(result.choices) == set(chosen) == {"accuracy", "balanced", "cheapest"}
    for name, candidate in chosen.items():
        summary = result.choices[name].summary
        assert {key: getattr(summary, key) for key in ("depth", "eta", "strength", "valid_score")} == {
            key: getattr(candidate.summary(), key) for key in ("depth", "eta", "strength", "valid_score")
        }
        assert summary.neurons == len(result.choices[name].selection)
        assert result.choices[name].selection.depth <= candidate.depth


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_max_share_is_respected(project: Project, share: float) -> None:
    """No candidate or final selection exceeds that share of the 96 neurons, and some come close to it."""
    settings = SEARCH.model_copy(update={"max_share": share, "strengths": (1,), "etas": (0.3, 0.9)})
    candidates = project.search(settings).run()
    assert 96 * share * 0.8 < max(c.neurons for c in candidates) <= int(96 * share)
    for fitted in project.integrate(settings).choices.values():
        assert len(fitted.selection) <= int(96 * share)


def test_the_final_head_is_fitted_on_all_labelled_rows(project: Project, result: TrainingResult) -> None:
    """Training and validation rows together, standardised as the probes were and stacked."""
    fitted = result.choices["accuracy"]
    summary, rows = fitted.summary, labelled_rows(project.folds)
    mean = {p.column: p.standardizer.mean for p in project.probes}
    assert fitted.standardizer.mean.tolist() == [mean[column][neuron] for column, neuron, _ in fitted.selection.rows()]
    raw = project.read(fitted.selection, project.test)
    standardised = (raw.astype(np.float64) - fitted.standardizer.mean) / fitted.standardizer.scale
    np.testing.assert_allclose(fitted.standardizer.transform(raw), standardised, atol=1e-4)
    scaled_on = rows if len(project.folds) > 1 else project.folds[0].train
    logits = project.refit(fitted.selection, scaled_on, rows, project.test, summary.strength)
    to_probabilities = expit if project.label_space.multilabel else lambda values: softmax(values, axis=1)
    assert fitted.recipe is not None
    stacked = fitted.recipe.head.stack.logits({"neurons": logits})
    np.testing.assert_allclose(to_probabilities(fitted.logits(raw)), to_probabilities(stacked), atol=0.05)


def test_the_stack_is_chosen_on_held_out_logits(
    project: Project, search: Search, candidates: list[Candidate], result: TrainingResult
) -> None:
    """Weight and log loss of the summary are recomputed from the held-out logits of the candidate."""
    candidate = choose_candidates(candidates, SEARCH, project.folds)["accuracy"]
    losses = calibrated_losses(project, held_out := search.held_out(candidate).logits)
    y = np.concatenate([project.y[fold.valid] for fold in project.folds])
    stack = fit_stack({"neurons": np.concatenate(held_out)}, y, project.label_space)
    summary = result.choices["accuracy"].summary
    assert summary.shares == {"neurons": 1.0}
    assert result.choices["accuracy"].recipe is not None
    assert result.choices["accuracy"].recipe.head.stack.neurons == pytest.approx(stack.neurons, abs=1e-3)
    assert summary.valid_log_loss == pytest.approx(np.concatenate(losses).mean(), abs=2e-4)


def test_a_fold_without_any_neuron_is_an_error() -> None:
    """Where no neuron varies over its training documents; a fold with neurons by one of both measures is none."""
    project = build_project(folds=3)
    empty = [replace(r, folds=(r.folds[0], np.zeros_like(r.folds[1]), r.folds[2])) for r in project.ridge]
    project = replace(project, ridge=empty)
    assert project.search().run()
    search = project.search()
    search.rankings[1] = Ranking.of(
        {p.column: replace(p, coef=0 * p.coef) for p in project.probes}, {r.column: r.folds[1] for r in empty}
    )
    with pytest.raises(UserError, match="too few documents to choose neurons"):
        search.run()


@pytest.mark.slow
@pytest.mark.parametrize("rare", [2, 4])
def test_a_rare_class_that_looks_wrong_does_not_end_the_training(rare: int) -> None:
    """The predictions contradict most of its labels; the ridge regression keeps some of them."""
    draw = np.random.default_rng(0)
    y = np.array([1] * rare + [0] * (100 - rare))
    columns = [FeatureColumn.parse(f"ffn.{layer:02d}.mean") for layer in (1, 2)]
    activations = {c: draw.normal(size=(100, 30)).astype(np.float32) for c in columns}
    label_space = LabelSpace(("a", "b"))
    data = TrainingData(y, make_folds(label_space, y, np.arange(80), np.arange(80, 100), 0), label_space, "macro_f1")
    probes = fit_probes(activations, data, ProbeSettings(penalties=3, max_extra=0))
    ridge, _ = fit_ridge(lambda column, rows: activations[column][rows], columns, data)
    assert all(sum(float(r.folds[fold].sum()) for r in ridge) > 0.5 for fold in range(len(data.folds)))

    def read(selection: Selection, rows: Rows) -> list[Floats]:
        return [np.concatenate([activations[c][np.ix_(rows, n)] for c, n in selection.neurons.items()], axis=1)]

    result = integrate(probes, ridge, read, data, settings=SEARCH, compute=FLOPS)
    assert len(result.choices["accuracy"].selection) > 0


def test_exits_read_the_features_of_their_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the strength of the head at full depth, which is fitted once. Their cost is all that runs up to them."""
    project, fits, costs = build_project(), [], []
    fit, choose = Search.fit_folds, spin.integrate.integrate.choose_exit_thresholds

    def spy(self: Search, parts: Sequence[Selection], strengths: Sequence[float]) -> Any:
        fits.append((parts, strengths))
        return fit(self, parts, strengths)

    monkeypatch.setattr(Search, "fit_folds", spy)

    def record(exits: Any, *args: Any, **options: Any) -> Any:
        costs.extend([*(offer.cost for offer in exits), options["cost"]])
        return choose(exits, *args, **options)

    monkeypatch.setattr(spin.integrate.integrate, "choose_exit_thresholds", record)
    candidate = next(c for c in project.search().run() if c.depth == 4)
    fits.clear()
    cascade = CascadeSettings(depths=(0.25, 0.5))
    CandidateFitter(project.search(), cascade, DecisionSettings()).fit(candidate)
    [([full_selection], strengths), *exits] = fits
    assert list(strengths) == [candidate.strength]
    assert [part.rows() for [part], _ in exits] == [full_selection.up_to(depth).rows() for depth in (1, 2)]
    assert [list(of_exit) for _, of_exit in exits] == [[candidate.strength]] * 2
    assert costs == [READING_COST + compute for compute in (1 / 4 + 1 / 8, 2 / 4 + 1 / 8, candidate.compute)]


def test_the_held_out_heads_are_those_of_their_folds() -> None:
    """Each gives the logits of its own fold's validation rows."""
    search = build_project(folds=3).search()
    candidate = search.run()[0]
    held_out, selections = search.held_out(candidate), search.fold_selections(candidate.subset)
    assert len(held_out.heads) == 3
    for fold, selection, head, logits in zip(search.folds, selections, held_out.heads, held_out.logits, strict=True):
        np.testing.assert_array_equal(fold._predict(fold._valid_features(selection), [head])[0], logits)


def without_ridge(column: FeatureColumn, width: int) -> list[RidgeImportance]:
    """A ridge regression that finds no neuron important, so that the probes alone rank them."""
    nothing = np.zeros(width, np.float32)
    return [RidgeImportance(column, nothing, (nothing,))]


def build_interaction_project(seed: int = 0, n: int = 900) -> Project:
    """Two classes that differ by the size of a neuron, whatever its sign, which a linear head cannot separate."""
    draw, label_space = np.random.default_rng(seed), LabelSpace(("a", "b"))
    column = FeatureColumn.parse("ffn.01.mean")
    X = draw.normal(size=(n, 6)).astype(np.float32)
    y = (np.abs(X[:, 0]) + 0.3 * X[:, 2] > 0.67).astype(np.int64)
    rows = np.arange(n)
    folds = (Fold(rows[: n // 2], rows[n // 2 : 3 * n // 4]),)
    coef = np.ones((1, 6), np.float32)
    probe = Probe(column, coef, coef[:, 0], Standardizer(np.zeros(6, np.float32), coef[0]), 0.1, 1.0, 0.0, 0.9)
    return Project(label_space, {column: X}, y, folds, rows[3 * n // 4 :], [probe], without_ridge(column, 6))


@pytest.mark.slow
def test_a_network_counts_by_what_it_is_worth() -> None:
    """What no linear head shows gives it all the weight; without a network the classes cannot be told apart."""
    settings = SEARCH.model_copy(update={"network": "auto", "max_share": 1, "etas": (1.0,)})
    interaction = build_interaction_project(n=3000)
    fitted = interaction.integrate(settings).choices["accuracy"]
    assert type(fitted.head) is NetworkHead
    assert fitted.summary.head == "network"
    assert fitted.summary.shares["network"] > 0.5
    raw = interaction.read(fitted.selection, interaction.test)
    assert (fitted.logits(raw).argmax(1) == interaction.y[interaction.test]).mean() > 0.8
    assert fitted.summary.valid_score > 0.8
    without = interaction.integrate(settings.model_copy(update={"network": "off"})).choices["accuracy"].summary
    assert (without.head, without.valid_score < 0.7) == ("linear", True)
    assert without.shares.keys() == {"neurons"}


@pytest.mark.slow
def test_a_network_without_weight_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldSearch, "fit_network", lambda fold, part: (np.zeros((len(fold.fold.valid), 3)), 3))
    fitted = build_project().integrate(SEARCH.model_copy(update={"network": "auto"})).choices["accuracy"]
    assert type(fitted.head) is LinearHead
    assert fitted.recipe is not None
    assert (fitted.recipe.head.epochs, fitted.summary.head) == (0, "linear")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "fitted"), [(196, False), (204, True)])
def test_no_network_is_fitted_where_labels_are_very_few(n: int, fitted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """147 labelled documents have the last layer in its place; 153 have a network."""
    calls: list[Selection] = []
    fit_network = FoldSearch.fit_network

    def fit(fold: FoldSearch, part: Selection) -> tuple[Floats, int]:
        calls.append(part)
        return fit_network(fold, part)

    monkeypatch.setattr(FoldSearch, "fit_network", fit)
    build_project(n=n, folds=3).integrate(SEARCH.model_copy(update={"network": "auto"}))
    assert bool(calls) == fitted


def make_words(project: Project, signal: float) -> WordFit:
    """Held-out logits that show the classes with a strength, or nothing at 0, and a regression that is never run."""
    draw, label_space = np.random.default_rng(1), project.label_space
    held_out = []
    for fold in project.folds:
        has = label_space.indicator(project.y[fold.valid])
        held_out.append((signal * has + draw.normal(size=has.shape)).astype(np.float32))
    nothing = WordRegression((), np.zeros((3, 0), np.float32), np.zeros(3, np.float32))
    return WordFit(nothing, tuple(held_out), 4.0)


@pytest.mark.slow
def test_every_candidate_is_judged_with_and_without_words(project: Project, candidates: list[Candidate]) -> None:
    """Without words it is the candidate of a search without them; with words the same neurons in a weighted sum."""
    words = make_words(project, 1.0)
    search = project.search(words=words)
    tried = search.run()
    plain = {(c.subset, c.strength): c for c in tried if not c.reads_words}
    stacked = [c for c in tried if c.reads_words and c.neurons]
    assert plain.keys() >= {(c.subset, c.strength) for c in candidates[:3]}
    assert stacked
    y = search.valid_targets
    for candidate in stacked:
        without = plain[candidate.subset, candidate.strength]
        of_neurons, of_words = np.concatenate(search.held_out(candidate).logits), np.concatenate(words.held_out)
        logits = candidate.stack.neurons * of_neurons + candidate.stack.words * of_words + candidate.stack.bias
        loss = log_loss(logits, y, project.label_space)
        assert candidate.valid_loss == pytest.approx(loss, abs=2e-3)
        assert loss <= log_loss(without.stack.logits({"neurons": of_neurons}), y, project.label_space) + 1e-3
    [alone] = [c for c in tried if not c.neurons]
    assert (alone.depth, alone.compute, alone.strength) == (0, 0, words.strength)


@pytest.mark.parametrize("words", ["on", "off"])
def test_words_may_be_wanted_or_not(words: str) -> None:
    project = build_project()
    settings = SEARCH.model_copy(update={"words": words})
    tried = project.search(settings, words=make_words(project, 1.0)).run()
    assert {c.reads_words for c in tried} == {words == "on"}


@pytest.mark.slow
def test_words_that_show_nothing_have_hardly_any_weight() -> None:
    project = build_project(n=2000, signal=0.4)
    result = project.integrate(words=make_words(project, 0.0))
    coefs = [
        fitted.head.slopes(np.zeros(len(fitted.selection))) / fitted.standardizer.scale
        for fitted in result.choices.values()
    ]
    assert all(
        np.abs(coef[:, : 3 if fitted.selection.word_logits else 0]).max(initial=0) < 0.1
        for coef, fitted in zip(coefs, result.choices.values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", ["auto", "on"])
def test_no_candidate_has_neurons_or_words_without_weight(words: str) -> None:
    """Such a one would run the backbone for nothing, and would be the fullest all the same."""
    for seed in range(2):
        project = build_project(seed=seed, signal=0.0, n=400)
        search = project.search(SEARCH.model_copy(update={"words": words}), words=make_words(project, 2.0))
        nothing = [0 * logits for logits in search.words.held_out]  # type: ignore[union-attr]
        assert [stack.words for stack in search._stacks(nothing)] == (
            [0] if words == "auto" else []
        )  # words alone come last
        useless = replace(search.words, held_out=tuple(nothing))  # type: ignore[type-var]
        evidence, search.words = search.words.held_out, useless  # type: ignore[union-attr]
        assert [stack.words for stack in search._stacks(evidence)] == [0]
        search.words = make_words(project, 2.0)
        stacks = [c.stack for c in search.run() if c.reads_neurons and c.reads_words]
        assert all(min(stack.neurons, stack.words) > 0 for stack in stacks)


def test_cheapest_never_costs_more_than_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its network gains too little, `cheapest` is what `balanced` is, and not `accuracy`."""
    project = build_project(signal=3.0, n=600)
    settings = SEARCH.model_copy(update={"balanced_loss": 0.3, "cheapest_loss": 0.5})
    plain = project.integrate(settings).choices
    assert plain["balanced"].selection.depth < plain["accuracy"].selection.depth
    keeps_limit = CandidateFitter.keeps_limit

    def refuse_cheapest(fitter: CandidateFitter, ours: Candidate, theirs: Candidate, limit: float) -> bool:
        return limit != 0.5 and keeps_limit(fitter, ours, theirs, limit)

    monkeypatch.setattr(CandidateFitter, "keeps_limit", refuse_cheapest)
    choices = project.integrate(settings).choices
    assert choices["cheapest"] is choices["balanced"] is not choices["accuracy"]


@pytest.mark.slow
def test_every_exit_has_a_stack_of_its_own() -> None:
    """At shallow depths the neurons show less, and the words have more weight beside them."""
    project = build_project(n=1600, signal=0.5)
    cascade = CascadeSettings(max_loss=0.9, depths=(0.3, 0.6), words=False)
    settings = SEARCH.model_copy(update={"words": "on"})
    fitted = project.integrate(settings, words=make_words(project, 1.0), cascade=cascade).choices["accuracy"]
    heads = [*(exit.head for exit in fitted.exits), fitted.head]
    assert len(heads) > 1
    shares = []
    for head in heads:
        slopes = np.abs(head.slopes(np.zeros(len(fitted.selection))))
        shares.append(slopes[0, 0] / slopes[0, 3:].sum())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1.1 * shares[-1]
    assert fitted.recipe is not None
    stacks: list[Stack] = [recipe.head.stack for recipe in fitted.recipe.exits]
    assert len({*stacks, fitted.recipe.head.stack}) == len(heads)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["auto", "off"])
def test_the_head_of_a_choice_gives_the_stacked_logits(network: str) -> None:
    """The words come before the neurons, with the weight of the stack."""
    project = build_project(n=800)
    settings = SEARCH.model_copy(update={"words": "on", "network": network})
    words = make_words(project, 1.0)
    fitted = project.integrate(settings, words=words).choices["accuracy"]
    assert fitted.summary.words
    assert fitted.selection.word_logits == 3
    assert ("network" in fitted.summary.shares) == (type(fitted.head) is NetworkHead)
    assert network == "auto" or type(fitted.head) is LinearHead
    np.testing.assert_allclose(fitted.standardizer.scale[:3], np.concatenate(words.held_out).std(0), rtol=1e-5)
    neurons = replace(fitted.selection, word_logits=0)
    rows = project.test
    of_words = np.random.default_rng(2).normal(size=(len(rows), 3)).astype(np.float32)
    logits = fitted.logits(np.concatenate([of_words, project.read(neurons, rows)], axis=1))
    without = fitted.logits(np.concatenate([np.zeros_like(of_words), project.read(neurons, rows)], axis=1))
    weight = (logits - without) / of_words
    assert weight.std() < 1e-2
    assert fitted.recipe is not None
    assert weight.mean() == pytest.approx(fitted.recipe.head.stack.words, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["auto", "off"])
def test_a_cheaper_choice_that_a_network_leaves_behind_gives_way_to_accuracy(network: str) -> None:
    """Linear heads are equally bad at both depths; with a network the deeper one is right, and the other is not."""
    project = build_interaction_project(n=3000)
    [(deep, values)], [probe] = project.activations.items(), project.probes
    noise = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
    shallow, deep = FeatureColumn.parse("ffn.01.mean"), FeatureColumn.parse("ffn.02.mean")
    noise[:, 2] = values[:, 2]
    project.activations = {shallow: noise, deep: values}
    project.probes = [replace(probe, column=shallow), replace(probe, column=deep)]
    project.ridge = [*without_ridge(shallow, 6), *without_ridge(deep, 6)]
    settings = SEARCH.model_copy(update={"network": network, "max_share": 1, "etas": (1.0,), "cheapest_loss": 0.1})
    choices = project.integrate(settings).choices
    assert choices["accuracy"].summary.depth == 2
    assert (choices["cheapest"] is choices["accuracy"]) == (network == "auto")


@pytest.mark.slow
def test_words_that_a_network_makes_worthless_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at full depth nor at the exits after blocks, although the candidate had words."""
    fit = Search.fit_stack

    def leave_out_words(search: Search, sources: Any) -> Stack:
        stack = fit(search, sources)
        return replace(stack, words=0.0, network=0.5) if "network" in sources else stack

    monkeypatch.setattr(Search, "fit_stack", leave_out_words)
    project = build_project(n=1600, signal=0.5)
    settings = SEARCH.model_copy(update={"words": "on", "network": "auto"})
    cascade = CascadeSettings(max_loss=0.9, depths=(0.3, 0.6), words=False)
    fitted = project.integrate(settings, words=make_words(project, 1.0), cascade=cascade).choices["accuracy"]
    assert (fitted.selection.word_logits, fitted.summary.words) == (0, False)
    assert fitted.block_exits
    values, words = project.read(fitted.selection, project.test), np.zeros((len(project.test), 3), np.float32)
    depths = fitted.exit_depths(values, fitted.decision(project.label_space, DecisionSettings()), words)
    assert fitted.predict_logits(values, depths, words).shape == (len(project.test), 3)


@pytest.mark.slow
def test_words_alone_are_chosen_where_neurons_add_little() -> None:
    project = build_project(signal=0.05, n=1200)
    result = project.integrate(words=make_words(project, 3.0))
    cheapest = result.choices["cheapest"]
    assert (cheapest.summary.neurons, cheapest.summary.words, cheapest.exits) == (0, True, ())
    assert cheapest.selection.neurons == {}
    assert len(cheapest.standardizer) == 3
    assert result.words is not None


def test_probes_without_neurons_are_an_error() -> None:
    """There is nothing to fit a head on."""
    project = build_project()
    project.probes = [replace(p, coef=p.coef * 0) for p in project.probes]
    with pytest.raises(UserError, match="no probe kept a neuron"):
        project.integrate()


def test_a_layer_without_neurons_is_not_on_the_frontier() -> None:
    """The frontier continues with the other layers."""
    project = build_project()
    probes = [replace(p, coef=p.coef * 0) if p.column.site.layer == 2 else p for p in project.probes]
    ridge = [
        replace(r, importance=0 * r.importance, folds=tuple(0 * f for f in r.folds)) if r.column.site.layer == 2 else r
        for r in project.ridge
    ]
    result = replace(project, probes=probes, ridge=ridge).integrate()
    assert [point.depth for point in result.frontier] == [1, 3, 4]


@pytest.mark.parametrize("folds", [1, 3])
def test_progress_is_reported_once_per_group_of_heads(folds: int) -> None:
    """A group holds the heads of one eta, depth and part that are fitted together."""
    project, reports = build_project(folds=folds), []
    project.integrate(progress=reports.append)
    groups = {(c.eta, c.depth, c.part) for c in project.search().run()}
    assert reports == [folds] * len(groups)
    assert sum(reports) <= most_fits(SEARCH, list(project.activations), folds)


def test_the_search_goes_depth_by_depth() -> None:
    """The members of a process group must agree on the order; below full depth every column is read."""
    candidates: list[Candidate] = build_project().search().run()
    groups = list(dict.fromkeys((c.depth, c.part) for c in candidates if c.depth < 4))
    assert groups == [(1, ()), (2, ()), (3, ())]


# Weights of rows


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_row_weights_equal_a_plain_loop(kind: str) -> None:
    """Every class weighs the same, in a multi-label task every side of every class; each column sums to 1."""
    draw = np.random.default_rng(0)
    y, multilabel = draw.choice(3, 50, p=[0.7, 0.2, 0.1]), draw.random((50, 3)) < [0.7, 0.3, 0.1]
    actual = row_weights(LABEL_SPACES["multi-class"].indicator(y), kind, LABEL_SPACES["multi-class"])
    counts = np.bincount(y)
    expected = [1 / 50 if kind == "none" else 1 / (3 * counts[k]) for k in y]
    np.testing.assert_allclose(actual, np.array(expected)[:, None], rtol=1e-5)
    actual = row_weights(multilabel, kind, LABEL_SPACES["multi-label"])
    np.testing.assert_allclose(actual.sum(0), 1, rtol=1e-5)
    if kind == "balanced":
        assert actual.shape == (50, 3)
        for k in range(3):
            expected_side = [1 / (2 * (multilabel[:, k] == has).sum()) for has in multilabel[:, k]]
            np.testing.assert_allclose(actual[:, k], expected_side, rtol=1e-5)
    absent = np.array([[True, False], [True, False]])
    np.testing.assert_allclose(row_weights(absent, kind, LabelSpace(("a", "b"))).sum(), 1)


def build_imbalanced_project(kind: str, n: int = 8_000) -> Project:
    """Classes of shares 0.88, 0.08 and 0.04, all shown by the same neuron; in a multi-label task by one each."""
    draw, label_space = np.random.default_rng(0), LABEL_SPACES[kind]
    column, shares = FeatureColumn.parse("ffn.02.mean"), [0.88, 0.08, 0.04]
    X = draw.normal(size=(n, 6)).astype(np.float32)
    if label_space.multilabel:
        y: Targets = draw.random((n, 3)) < shares
        X[:, :3] += 2 * y
    else:
        y = draw.choice(3, n, p=shares)
        X[:, 0] += np.array([0, 1, 2])[y]
    rows, signs = np.arange(n), np.ones((len(label_space) - 1 + label_space.multilabel, 6), np.float32)
    folds = (Fold(rows[: n // 4], rows[n // 4 : n // 2]),)
    probe = Probe(column, signs, signs[:, 0], Standardizer(np.zeros(6, np.float32), signs[0]), 0.1, 1.0, 0.0, 0.9)
    return Project(label_space, {column: X}, y, folds, rows[n // 2 :], [probe], without_ridge(column, 6))


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_balanced_weights_keep_their_recall_and_their_probabilities_are_calibrated(kind: str, metric: str) -> None:
    """On new documents the labels are better than the most probable class, for the rare class above all."""
    project = build_imbalanced_project(kind)
    data = replace(project.data, class_weights="balanced", metric=metric)
    settings = SEARCH.model_copy(update={"max_share": 1, "etas": (1.0,)})
    result = integrate(project.probes, project.ridge, project.read_blocks, data, settings=settings, compute=FLOPS)
    fitted, label_space, y = result.choices["accuracy"], project.label_space, project.y[project.test]
    assert fitted.summary.valid_ece < 0.025
    logits = fitted.logits(project.read(fitted.selection, project.test))
    probabilities = label_space.probabilities(logits)
    assert calibration_error(probabilities, y, label_space) < 0.025
    assert probabilities.mean(0) == pytest.approx(label_space.indicator(y).mean(0), abs=0.02)
    assert fitted.summary.thresholds is not None
    given, _ = fitted.decision(label_space, DecisionSettings()).decide(probabilities)
    plain = label_space.predict(logits)
    assert score(metric, y, given) > score(metric, y, plain)
    is_rare = label_space.indicator(y)[:, 2]
    recall, plain_recall = (label_space.indicator(labels)[is_rare, 2].mean() for labels in (given, plain))
    assert recall > plain_recall + 0.1


def test_the_heads_of_exits_have_biases_and_their_labels_the_chosen_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their probabilities under balanced weights are calibrated too; exits are chosen under the thresholds."""
    project, decisions = build_imbalanced_project("multi-class"), []
    [(column, X)], [probe] = project.activations.items(), project.probes
    early = FeatureColumn.parse("ffn.01.mean")
    project.activations, project.probes = {early: X, column: X}, [replace(probe, column=early), probe]
    project.ridge = [*without_ridge(early, 6), *without_ridge(column, 6)]
    choose = spin.integrate.integrate.choose_exit_thresholds
    monkeypatch.setattr(
        spin.integrate.integrate, "choose_exit_thresholds", lambda *a, **k: decisions.append(a[3]) or choose(*a, **k)
    )
    data = replace(project.data, class_weights="balanced", metric="balanced_accuracy")
    settings = SEARCH.model_copy(update={"max_share": 1, "etas": (1.0,)})
    cascade = CascadeSettings(depths=(0.5,), max_loss=0.5)
    options: Any = {"settings": settings, "compute": FLOPS, "cascade": cascade}
    fitted = integrate(project.probes, project.ridge, project.read_blocks, data, **options).choices["accuracy"]
    [_] = fitted.exits
    assert fitted.summary.thresholds is not None
    assert decisions[0].thresholds == pytest.approx([*fitted.summary.thresholds.values()], rel=1e-5)
    part = fitted.at(0)
    probabilities = project.label_space.probabilities(part.logits(project.read(part.selection, project.test)))
    shares = project.label_space.indicator(project.y[project.test]).mean(0)
    assert probabilities.mean(0) == pytest.approx(shares, abs=0.02)


@pytest.mark.slow
def test_for_accuracy_no_thresholds_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most probable class is right most often, unless balanced weights have moved the logits."""
    project, seen = build_project(folds=3), []
    monkeypatch.setattr(spin.integrate.integrate, "choose_class_thresholds", lambda *a, **k: seen.append(k["metric"]))
    for kind, tried in (("none", False), ("balanced", True)):
        data = replace(project.data, class_weights=kind)
        result = integrate(project.probes, project.ridge, project.read_blocks, data, settings=SEARCH, compute=FLOPS)
        assert bool(seen) == tried
        assert result.choices["accuracy"].summary.thresholds is None


@pytest.mark.parametrize("grouped", [False, True])
def test_near_identical_documents_count_as_one_where_thresholds_are_chosen(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do the predictions of one document by several folds."""
    project, seen = build_project(folds=3), []
    choose = spin.integrate.integrate.choose_class_thresholds
    monkeypatch.setattr(
        spin.integrate.integrate,
        "choose_class_thresholds",
        lambda *a, **k: seen.append(k["documents"]) or choose(*a, **k),
    )
    groups = np.arange(360, dtype=np.uint64) // 2 if grouped else None
    data = replace(project.data, groups=groups, metric="macro_f1")
    integrate(project.probes, project.ridge, project.read_blocks, data, settings=SEARCH, compute=FLOPS)
    rows = np.concatenate([fold.valid for fold in project.folds])
    assert seen[0].tolist() == (rows // 2 if grouped else rows).tolist()


def test_a_classifier_has_at_most_max_neurons() -> None:
    """Whatever share of all neurons that is; the etas of the candidates are lowered."""
    search = build_project().search(SEARCH.model_copy(update={"max_neurons": 20, "max_share": 1.0}))
    search.run()
    assert max(candidate.neurons for candidate in search.tried) <= 20
    assert len(search.select(search.tried[0].subset)) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_features_in_files_give_the_same_candidates(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits and predictions go through blocks of a few rows then."""
    project, settings = build_project(kind=kind), SEARCH.model_copy(update={"strengths": (1,)})
    in_memory = project.search(settings)
    in_memory.run()
    monkeypatch.setattr("spin.heads.feature_rows.MOST_IN_MEMORY", 0)
    monkeypatch.setattr("spin.heads.feature_rows.BLOCK_BYTES", 4 * 13 * 12)
    in_files = project.search(settings)
    in_files.run()
    assert not in_files.cut.raw.in_memory
    first, second = (search.tried[0] for search in (in_memory, in_files))
    assert first.subset == second.subset
    for expected, actual in zip(in_memory.held_out(first).logits, in_files.held_out(second).logits, strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02)
    scores = [max(candidate.valid_score for candidate in search.tried) for search in (in_memory, in_files)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_a_document_that_validates_twice_counts_once_in_a_stack() -> None:
    project = build_project(folds=10)
    search = project.search()
    sources: dict[Source, Floats] = {"neurons": np.eye(3, dtype=np.float32)[search.valid_targets]}
    once = fit_stack(sources, search.valid_targets, project.label_space, repeats=2)
    assert search.fit_stack(sources) == once
    assert once != fit_stack(sources, search.valid_targets, project.label_space)


def test_a_search_with_a_start_tries_what_is_next_to_its_choices(project: Project, result: TrainingResult) -> None:
    """On the same documents it makes the same choices, from a share of the fits."""
    start = SearchStart.of(result)
    assert start is not None
    fits = list[int]()
    again = project.integrate(start=start, progress=fits.append)
    assert again.tried < result.tried / 2
    assert sum(fits) == most_fits(SEARCH, list(project.activations), len(project.folds), start)
    for choice, fitted in result.choices.items():
        found = again.choices[choice].summary
        assert (found.depth, found.eta, found.part) == (fitted.summary.depth, fitted.summary.eta, fitted.summary.part)
        assert found.valid_score == pytest.approx(fitted.summary.valid_score, abs=0.02)


def test_classifiers_without_neurons_are_no_start() -> None:
    """Words alone are tried anyway, and neurons that came to nothing may tell something in the next training."""
    result = build_project().integrate()
    accuracy = result.choices["accuracy"]
    words = replace(accuracy, summary=accuracy.summary.model_copy(update={"neurons": 0}))
    of = accuracy.summary
    some = SearchStart.of(replace(result, choices={"accuracy": accuracy, "cheapest": words}))
    assert some == SearchStart(((Subset(of.eta, of.depth, of.part), of.strength),))
    assert SearchStart.of(replace(result, choices={"accuracy": words, "cheapest": words})) is None


def test_a_start_without_any_neuron_here_is_followed_by_the_full_search() -> None:
    project = build_project()
    start = SearchStart(((Subset(0.3, 4, ("resid",)), 1.0),))  # the project has no such site
    assert project.integrate(start=start).tried == project.integrate().tried
