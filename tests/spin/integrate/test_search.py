"""The search chooses on validation rows alone and says what it chose from; the final head is fitted on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

import spin.integrate.integrate
from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.candidate import Candidate
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.integrate.feature_matrix import FeatureMatrix, align, row_weights
from spin.integrate.frontier import best_per_depth, choose_candidates
from spin.integrate.integrate import integrate
from spin.integrate.search import FoldSearch, Search
from spin.labels.cross_validation import Fold, jackknife_rows, labelled_rows, make_folds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, ProbeSettings, SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe, fit_probes
from spin.sparsify.select import largest_eta, select

Rows = NDArray[np.int64]
FLOPS = {Site(layer, kind): layer / 4 + (kind == "resid") / 8 for layer in (1, 2, 3, 4) for kind in ("ffn", "resid")}
SEARCH = SearchSettings(etas=(0.3, 0.6, 0.9), max_share=0.3, strengths=(0.1, 1, 10), l1=(0.02,), head="linear")
TASKS = {"classes": LabelSpace(("a", "b", "c")), "lists": LabelSpace(("a", "b", "c"), multilabel=True)}


@dataclass
class Project:
    """Activations of four layers under two poolings, targets, folds, rows that no fold holds, and the probes of it."""

    label_space: LabelSpace
    activations: dict[FeatureColumn, Floats]
    y: Targets
    folds: Sequence[Fold]
    test: Rows
    probes: list[Probe]

    @property
    def data(self) -> TrainingData:
        return TrainingData(self.y, tuple(self.folds), self.label_space, "accuracy")

    def read(self, selection: Selection, rows: Rows) -> Floats:
        return np.concatenate([self.activations[c][rows][:, n] for c, n in selection.neurons.items()], axis=1)

    def integrate(self, settings: SearchSettings = SEARCH, **given: Any) -> TrainingResult:
        return integrate(self.probes, self.read, self.data, **{"settings": settings, "compute": FLOPS, **given})

    def search(
        self, settings: SearchSettings = SEARCH, kind: str = "none", group: ProcessGroup | None = None
    ) -> Search:
        matrix = FeatureMatrix(self.read, replace(self.data, class_weights=kind), group or ProcessGroup())
        return Search(matrix, self.probes, settings, FLOPS)

    def refit(
        self, selection: Selection, probes: list[Probe], scaled_on: Rows, train: Rows, rows: Rows, strength: float
    ) -> Floats:
        """Logits of scikit-learn's regressions on a selection, with the scaler of some rows and the fit of others."""
        pool, floor = self.y[labelled_rows(self.folds)], None
        if len(self.folds) == 1:
            answers: list[Any] = [[False] * 3, [True] * 3] if self.label_space.multilabel else [0, 1, 2]
            floor = max(score("accuracy", pool, np.array([answer] * len(pool))) for answer in answers)
        scales = align(selection, {p.column: p for p in probes}, floor).astype(np.float64)
        raw = self.read(selection, np.arange(len(self.y))).astype(np.float64)
        X = (raw - raw[scaled_on].mean(0)) / raw[scaled_on].std(0) * scales / np.linalg.norm(scales)
        model = LogisticRegression(C=strength, tol=1e-7, max_iter=10000)
        if not self.label_space.multilabel:
            return model.fit(X[train], self.y[train]).decision_function(X[rows])
        return np.stack([model.fit(X[train], has).decision_function(X[rows]) for has in self.y[train].T], axis=1)


def project(seed: int = 0, *, signal: float = 0.8, kind: str = "classes", n: int = 360, folds: int = 1) -> Project:
    """Each layer shows the classes through three of its twelve neurons, at another scale than the next."""
    draw, label_space = np.random.default_rng(seed), TASKS[kind]
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
    train, valid, test = order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :]
    parts = (Fold(train, valid),) if folds == 1 else make_folds(label_space, y, train, valid, seed)[:folds]
    given = ProbeSettings(penalties=5)
    probes = fit_probes(activations, TrainingData(y, tuple(parts), label_space, "accuracy"), given)
    return Project(label_space, activations, y, parts, test, probes)


@pytest.fixture(scope="module", params=["classes", "lists", "three folds"])
def subject(request: pytest.FixtureRequest) -> Project:
    return project(folds=3) if request.param == "three folds" else project(kind=request.param)


@pytest.mark.parametrize("folds", [1, 3])
def test_test_rows_change_nothing(folds: int) -> None:
    """Whatever the test rows hold, NaN included, the choice and the head are the same bit for bit."""
    subject = project(folds=folds)
    settings = SEARCH.model_copy(update={"head": "auto"})
    before = subject.integrate(settings)
    for values in subject.activations.values():
        values[subject.test] = np.nan
    subject.y[subject.test] = 77
    after = subject.integrate(settings)
    assert after.summary() == before.summary()
    for name, mine in after.choices.items():
        assert mine.selection.rows() == before.choices[name].selection.rows()
        np.testing.assert_array_equal(
            mine.head.slopes(mine.standardizer.mean), before.choices[name].head.slopes(mine.standardizer.mean)
        )


def test_validation_rows_choose() -> None:
    """With other validation labels the scores are others: those rows judge; the training rows fit as before."""
    subject = project()
    before = {(c.depth, c.eta, c.part, c.penalty): c for c in subject.search().run()}
    subject.y[subject.folds[0].valid] = (subject.y[subject.folds[0].valid] + 1) % 3
    after = {(c.depth, c.eta, c.part, c.penalty): c for c in subject.search().run()}
    assert max(c.valid_score for c in after.values()) < 0.5 < max(c.valid_score for c in before.values())
    for key in before.keys() & after.keys():
        np.testing.assert_allclose(after[key].held_out[0], before[key].held_out[0], atol=0.1)


def test_every_candidate_equals_an_independent_refit(subject: Project) -> None:
    """Each scores what scikit-learn scores from raw activations; its neurons, depth and compute are counted right."""
    tried = subject.search().run()
    assert len(tried) > 15
    for candidate in tried:
        sizes, differences, scores = [], [], []
        for at, fold in enumerate(subject.folds):
            mine = [p.for_fold(at) for p in subject.probes]
            top = largest_eta(mine, int(96 * SEARCH.max_share))  # of each fold, which may be less
            selection = select(mine, min(candidate.eta, top)).part(candidate.depth, candidate.part)
            sizes.append(len(selection))
            found = subject.label_space.predict(candidate.held_out[at])
            scores.append(score("accuracy", subject.y[fold.valid], found))
            if candidate.penalty.l1:
                continue
            strength = candidate.penalty.strength
            logits = subject.refit(selection, mine, fold.train, fold.train, fold.valid, strength)
            differences.append(np.mean(found != subject.label_space.predict(logits)))
        assert candidate.valid_score == pytest.approx(np.mean(scores))
        if len(scores) > 1:
            assert candidate.resampled == tuple(scores)
        else:
            y = subject.y[subject.folds[0].valid]
            without = [score("accuracy", y[rows], found[rows]) for rows in jackknife_rows(len(y))]
            assert candidate.resampled == tuple(without)
        assert max(differences, default=0) < 0.04, "a looser tolerance moves what lies on the border"
        if not candidate.penalty.l1:
            assert candidate.neurons == round(np.mean(sizes))
        assert candidate.compute == candidate.depth / 4


def test_all_that_is_promised_is_tried(subject: Project) -> None:
    """Every eta and strength at full depth, each pooling, every depth, and the L1 part on the best."""
    tried = subject.search().run()
    etas = {c.eta for c in tried}
    grid = {(c.eta, c.penalty.strength) for c in tried if c.depth == 4 and not c.part and not c.penalty.l1}
    assert grid >= {(eta, strength) for eta in etas for strength in SEARCH.strengths}
    assert {c.part for c in tried} == {(), ("max",), ("mean",)}
    assert {c.depth for c in tried if not c.part} == {1, 2, 3, 4}
    [sparse] = {(c.eta, c.depth, c.part, c.penalty.strength) for c in tried if c.penalty.l1}
    best = max(c.valid_score for c in tried if not c.penalty.l1)
    assert sparse in {
        (c.eta, c.depth, c.part, c.penalty.strength) for c in tried if not c.penalty.l1 and c.valid_score == best
    }


def test_every_depth_is_on_the_frontier(subject: Project) -> None:
    """Shallow first, each the best of its depth; choices and summary agree with the candidates."""
    found = subject.integrate()
    tried = subject.search().run()
    assert found.tried == len(tried)
    assert [point.depth for point in found.frontier] == [1, 2, 3, 4]
    assert found.frontier == best_per_depth(tried)
    for point in found.frontier:
        assert point.valid_score == max(c.valid_score for c in tried if c.depth == point.depth)
    chosen = choose_candidates(tried, SEARCH, subject.folds)
    assert set(found.choices) == set(chosen) == {"accuracy", "balanced", "cheapest"}
    for name, candidate in chosen.items():
        summary = found.choices[name].summary
        assert {key: getattr(summary, key) for key in ("depth", "eta", "strength", "l1", "valid_score")} == {
            key: getattr(candidate.summary(), key) for key in ("depth", "eta", "strength", "l1", "valid_score")
        }
        assert summary.neurons == len(found.choices[name].selection)
        assert found.choices[name].selection.depth <= candidate.depth
    assert found.summary().frontier == tuple(point.summary() for point in found.frontier)


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_max_share_is_respected(subject: Project, share: float) -> None:
    """By every candidate and every final selection: no more than that part of all 96 neurons, and nearly as many."""
    settings = SEARCH.model_copy(update={"max_share": share, "strengths": (1,), "etas": (0.3, 0.9)})
    tried = subject.search(settings).run()
    assert 96 * share * 0.8 < max(c.neurons for c in tried) <= int(96 * share)
    for fitted in subject.integrate(settings).choices.values():
        assert len(fitted.selection) <= int(96 * share)


def test_the_final_head_is_fitted_on_all_labelled_rows(subject: Project) -> None:
    """Training and validation rows together, standardised as the probes were, and cooled by the temperature."""
    found = subject.integrate().choices["accuracy"]
    summary, rows = found.summary, labelled_rows(subject.folds)
    if summary.l1:
        found = subject.integrate(SEARCH.model_copy(update={"l1": ()})).choices["accuracy"]
        summary = found.summary
    mean = {p.column: p.standardizer.mean for p in subject.probes}
    assert found.standardizer.mean.tolist() == [mean[column][neuron] for column, neuron, _ in found.selection.rows()]
    raw = subject.read(found.selection, subject.test)
    by_hand = (raw.astype(np.float64) - found.standardizer.mean) / found.standardizer.scale
    np.testing.assert_allclose(found.standardizer.transform(raw), by_hand, atol=1e-4)
    scaled_on = rows if len(subject.folds) > 1 else subject.folds[0].train
    logits = subject.refit(found.selection, subject.probes, scaled_on, rows, subject.test, summary.strength)
    squash = expit if subject.label_space.multilabel else lambda values: softmax(values, axis=1)
    np.testing.assert_allclose(squash(found.logits(raw)), squash(logits / summary.temperature), atol=0.05)


def test_the_temperature_is_chosen_on_held_out_logits(subject: Project) -> None:
    """The summary of a choice are those of its held-out logits over the temperature, recomputed here."""
    found = subject.integrate()
    candidate = choose_candidates(subject.search().run(), SEARCH, subject.folds)["accuracy"]
    logits = np.concatenate(candidate.held_out).astype(np.float64)
    y = np.concatenate([subject.y[fold.valid] for fold in subject.folds])
    has = subject.label_space.indicator(y)

    def loss(t: float) -> float:
        if subject.label_space.multilabel:
            return float(np.logaddexp(0, np.where(has, -logits, logits) / t).sum(1).mean())
        return float((np.logaddexp.reduce(logits / t, axis=1) - (logits / t)[has]).mean())

    grid = np.geomspace(0.2, 5, 2001)
    summary = found.choices["accuracy"].summary
    assert summary.temperature == pytest.approx(grid[int(np.argmin([loss(t) for t in grid]))], rel=0.01)
    assert summary.valid_log_loss == pytest.approx(loss(summary.temperature), abs=2e-4)
    assert summary.valid_log_loss <= loss(1.0) + 1e-4


def test_an_l1_part_takes_neurons_away() -> None:
    """A choice with an L1 part keeps only the neurons that have a weight, and the head fits the selection."""
    subject = project()
    settings = SEARCH.model_copy(update={"l1": (0.3, 0.5)})
    tried = [c for c in subject.search(settings).run() if c.penalty.l1]
    assert [c.penalty.l1 for c in tried] == [0.3, 0.5]
    selection = select(subject.probes, tried[0].eta).part(tried[0].depth, tried[0].part)
    assert len(selection) > tried[0].neurons > tried[1].neurons > 0
    from spin.integrate.integrate import _CandidateFitter

    found = _CandidateFitter(subject.search(settings), CascadeSettings()).fit(tried[1])
    assert 0 < len(found.selection) < len(selection)
    assert found.head.coef.shape == (3, len(found.selection))  # type: ignore[union-attr]
    assert found.head.coef.any(0).all()  # type: ignore[union-attr]
    assert len(found.standardizer.mean) == len(found.standardizer.scale) == len(found.selection)
    raw = subject.read(found.selection, subject.test)
    assert score("accuracy", subject.y[subject.test], found.logits(raw).argmax(1)) > 0.5


def test_exits_are_judged_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold's exits read what the L1 part of its full depth left, by a ridge, and cost all that runs up to them."""
    subject, fits, costs = project(), [], []
    fit, price = FoldSearch.fit, spin.integrate.integrate.choose_exit_thresholds

    def spy(self: FoldSearch, part: Selection, penalties: Sequence[Penalty]) -> Any:
        found = fit(self, part, penalties)
        fits.append((part, penalties[0], found[0][0]))
        return found

    monkeypatch.setattr(FoldSearch, "fit", spy)
    monkeypatch.setattr(
        spin.integrate.integrate, "choose_exit_thresholds", lambda *a, **k: costs.extend(k["costs"]) or price(*a, **k)
    )
    settings = SEARCH.model_copy(update={"l1": (0.3,)})
    candidate = next(c for c in subject.search(settings).run() if c.penalty.l1 and c.depth == 4)
    fits.clear()
    cascade = CascadeSettings(depths=(0.25, 0.5))
    spin.integrate.integrate._CandidateFitter(subject.search(settings), cascade).fit(candidate)
    (whole, _, head), *exits = fits
    used = whole.keep(head.coef.any(0))
    assert len(used) < len(whole)
    assert [part.rows() for part, _, _ in exits] == [used.part(depth).rows() for depth in (1, 2)]
    assert [penalty for _, penalty, _ in exits] == [Penalty(candidate.penalty.strength)] * 2
    assert costs == [1 / 4 + 1 / 8, 2 / 4 + 1 / 8, candidate.compute]


def crossed(seed: int = 0, n: int = 900) -> Project:
    """Two classes told apart by the sign of a product of two neurons, which a straight head cannot tell."""
    draw, label_space = np.random.default_rng(seed), LabelSpace(("a", "b"))
    column = FeatureColumn.parse("ffn.01.mean")
    X = draw.normal(size=(n, 6)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] + 0.3 * X[:, 2] > 0).astype(np.int64)
    rows = np.arange(n)
    folds = (Fold(rows[: n // 2], rows[n // 2 : 3 * n // 4]),)
    coef = np.ones((1, 6), np.float32)
    probe = Probe(column, coef, coef[:, 0], Standardizer(np.zeros(6, np.float32), coef[0]), 0.1, 1.0, 0.0, 0.9)
    return Project(label_space, {column: X}, y, folds, rows[3 * n // 4 :], [probe])


def test_auto_bends_only_where_a_paired_test_says_so() -> None:
    """A product of neurons makes it bend and is learnt; where a straight head suffices it stays straight."""
    settings = SEARCH.model_copy(update={"head": "auto", "max_share": 1, "etas": (1.0,)})

    def of(subject: Project, **changed: Any) -> FittedClassifier:
        return subject.integrate(settings.model_copy(update=changed)).choices["accuracy"]

    subject, straight = crossed(), project(1)
    bent, plain = of(subject), of(straight)
    assert isinstance(bent.head, MlpHead)
    assert bent.summary.head == "mlp"
    assert bent.summary.mlp_chance < 0.05
    right = bent.logits(subject.read(bent.selection, subject.test)).argmax(1) == subject.y[subject.test]
    assert right.mean() > 0.8
    assert bent.summary.valid_score > 0.8
    assert plain.summary.head == "linear"
    assert plain.summary.mlp_chance >= 0.05
    forced, forbidden = of(straight, head="mlp"), of(subject, head="linear")
    assert (forced.summary.head, forbidden.summary.head) == ("mlp", "linear")
    assert forbidden.summary.valid_score < 0.7
    assert forbidden.summary.mlp_chance is None


def test_no_neuron_at_all_is_said_in_words() -> None:
    """When no probe kept a neuron there is nothing to integrate."""
    subject = project()
    subject.probes = [replace(p, coef=p.coef * 0) for p in subject.probes]
    with pytest.raises(UserError, match="no probe kept a neuron"):
        subject.integrate()


def test_a_silent_layer_is_no_depth() -> None:
    """Where a layer's probes kept nothing, the frontier goes on without it."""
    subject = project()
    silent = [replace(p, coef=p.coef * 0) if p.column.site.layer == 2 else p for p in subject.probes]
    found = replace(subject, probes=silent).integrate()
    assert [point.depth for point in found.frontier] == [1, 3, 4]


@pytest.mark.parametrize("folds", [1, 3])
def test_progress_counts_the_groups(folds: int) -> None:
    """Every group of heads is told once a fold."""
    subject, told = project(folds=folds), []
    subject.integrate(progress=told.append)
    groups = {(c.eta, c.depth, c.part, bool(c.penalty.l1)) for c in subject.search().run()}
    assert told == [1] * (folds * len(groups))


def test_the_order_of_the_search_is_the_same_everywhere() -> None:
    """Depth by depth, all columns before the best part: members of a team whose sets are ordered otherwise agree."""
    subject = project()
    for column, values in subject.activations.items():
        if column.pooling == "max":  # says on the validation rows the opposite of what it taught
            values[subject.folds[0].valid] *= -1
    subject.probes = [replace(p, valid_score=0.8) if p.column.pooling == "max" else p for p in subject.probes]
    tried: list[Candidate] = subject.search().run()
    seen = list(dict.fromkeys((c.depth, c.part) for c in tried if not c.penalty.l1 and c.depth < 4))
    assert len(seen) == 6, "or there is no order to see"
    assert seen == sorted(seen, key=lambda key: (key[0], bool(key[1])))


# Weights of rows


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_weights_of_rows_equal_a_plain_loop(kind: str) -> None:
    """Every class alike, in a list every side of every class; each column sums to 1."""
    draw = np.random.default_rng(0)
    y, lists = draw.choice(3, 50, p=[0.7, 0.2, 0.1]), draw.random((50, 3)) < [0.7, 0.3, 0.1]
    found = row_weights(TASKS["classes"].indicator(y), kind, TASKS["classes"])
    counts = np.bincount(y)
    expected = [1 / 50 if kind == "none" else 1 / (3 * counts[k]) for k in y]
    np.testing.assert_allclose(found, np.array(expected)[:, None], rtol=1e-5)
    found = row_weights(lists, kind, TASKS["lists"])
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
    if kind == "balanced":
        assert found.shape == (50, 3)
        for k in range(3):
            side = [1 / (2 * (lists[:, k] == has).sum()) for has in lists[:, k]]
            np.testing.assert_allclose(found[:, k], side, rtol=1e-5)
    absent = np.array([[True, False], [True, False]])
    np.testing.assert_allclose(row_weights(absent, kind, LabelSpace(("a", "b"))).sum(), 1)


def test_balanced_weights_reach_the_head() -> None:
    """With every class alike the rare ones are found more often."""
    subject = project(signal=0.6)
    rare = np.flatnonzero((subject.y == 2) & (np.arange(360) % 4 > 0))
    left = np.setdiff1d(np.arange(360), rare)
    train, valid = (np.intersect1d(rows, left) for rows in (subject.folds[0].train, subject.folds[0].valid))
    subject = replace(subject, folds=[Fold(train, valid)])
    found = {}
    for kind in ("none", "balanced"):
        data = replace(subject.data, class_weights=kind)
        result = integrate(subject.probes, subject.read, data, settings=SEARCH, compute=FLOPS)
        fitted = result.choices["accuracy"]
        logits = fitted.logits(subject.read(fitted.selection, subject.test))
        found[kind] = (logits.argmax(1) == 2).sum()
    assert found["balanced"] > found["none"]
