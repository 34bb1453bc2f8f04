"""Solvers of the probes' problem at the same certificate: SPIN's, skglm's ProxNewton, liblinear and saga."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.limits.minilm import count_columns, extract_tweets
from benchmarks.section_page import Part, table
from spin.arrays import Floats
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import ProbeSettings
from spin.sites import FeatureColumn
from spin.sparsify.probe import class_weights, signs
from spin.sparsify.solvers.l1_path import TOLERANCE, LogisticPaths, kkt_violation

DESIGNS = tuple(
    tuple(map(FeatureColumn.parse, names))
    for names in (["resid.06.mean"], ["ffn.06.mean"], ["ffn.04.mean", "ffn.05.mean", "ffn.06.mean"])
)
"""the columns of each design, side by side: widths of 384, 1,536 and 4,608"""
ROUNDS = 3
LIMIT = 30.0
"""processor seconds after which a solver is stopped; it is not tried again on that design"""
SPIN, SKGLM, LIBLINEAR, SAGA = "SPIN", "skglm's ProxNewton", "liblinear", "saga"
FEW, MANY = 3, 100
"""classes of the comparison by classes"""
_DOCUMENTS = 16_000
"""documents of the larger designs, and of the comparison by classes"""
_EPOCHS = 1000
"""of saga for a penalty, at most"""
_INTERCEPT = 1e4
"""liblinear penalises the intercept like a feature of this size, which leaves 1e-4 of the penalty"""
_TOLERANCES = (1e-2, 1e-4, 1e-6)
"""of scikit-learn's solvers, tried from loose to strict; only the first that meets the certificate is timed"""
Solutions = Iterator[tuple[Floats, Floats]]
"""coef (K, p) and intercept (K,) for one penalty after another"""


@dataclass(frozen=True)
class Times:
    """Processor seconds of one thread for the paths of all classes on one design."""

    documents: int
    width: int
    seconds: Mapping[str, list[float]]
    """by solver, of each round; infinite for a solver that did not finish within `LIMIT`"""

    def ratio(self, solver: str) -> float:
        """The seconds of a solver by those of SPIN in the same round, in the median round."""
        return statistics.median(
            other / ours for other, ours in zip(self.seconds[solver], self.seconds[SPIN], strict=True)
        )


@dataclass(frozen=True)
class Comparison:
    """All solvers on all designs, and SPIN by number of classes."""

    designs: Sequence[Times]
    by_width: Mapping[int, Mapping[int, Sequence[float]]]
    """processor seconds of SPIN, of each round, by width and number of classes"""
    columns: Mapping[int, int]
    """number of feature columns of MiniLM by width"""

    def all_columns(self) -> dict[int, list[float]]:
        """Seconds of SPIN for all columns, of each round, by number of classes."""
        rounds = {K: zip(*(seconds[K] for seconds in self.by_width.values()), strict=True) for K in (FEW, MANY)}
        return {
            K: [sum(self.columns[width] * s for width, s in zip(self.by_width, times, strict=True)) for times in of_K]
            for K, of_K in rounds.items()
        }


def measure(folder: Path, *, quick: bool) -> Comparison:
    """Time the solvers on designs of MiniLM's columns, with one thread; nothing is written to the folder."""
    count, sizes, rounds = (400, (200,), 1) if quick else (_DOCUMENTS, (2_000, _DOCUMENTS), ROUNDS)
    features, labels = extract_tweets(count, list(dict.fromkeys(column for group in DESIGNS for column in group)))
    label_space = LabelSpace(tuple(sorted(set(labels))))
    targets = signs(label_space.indicator(label_space.index(labels)), label_space)
    times, by_width = [], {}
    with threadpool_limits(1):
        warm_up()
        for group in DESIGNS:
            values = np.concatenate([features[column] for column in group], axis=1)
            X = Standardizer.fit(values).transform(values)
            for documents in sizes:
                times.append(compare(X[:documents], targets[:, :documents], rounds))
                print(times[-1], flush=True)
            if len(group) == 1:
                by_width[X.shape[1]] = time_classes(X, rounds)
                print(by_width, flush=True)
    return Comparison(times, by_width, count_columns())


def section(measured: Comparison) -> Part:
    """Seconds per design and solver, and those of SPIN by number of classes."""
    designs, of_all = measured.designs, measured.all_columns()
    others = [name for name in designs[0].seconds if name != SPIN]
    rows = [[f"{d.documents:,} × {d.width:,}", *(_cell(d, name) for name in (SPIN, *others))] for d in designs]
    by_classes = [
        [f"{width:,}", *(f"{statistics.median(s):.2f}" for s in seconds.values()), f"{_times_few(seconds):.1f}"]
        for width, seconds in measured.by_width.items()
    ]
    total = f"all {sum(measured.columns.values())} columns, extrapolated"
    by_classes.append([total, *(f"{statistics.median(s):.0f}" for s in of_all.values()), f"{_times_few(of_all):.1f}"])
    text = [
        table(["documents × width", f"{SPIN}, s", *(f"{name}, s" for name in others)], rows),
        "Processor seconds of one thread for all classes of the tweets on MiniLM, along the penalties of the default "
        "settings on standardised activations; the median of the rounds, in which the solvers take turns, and the "
        "median ratio to SPIN within a round. The certificate of every solution of every solver is the same: the "
        f"optimality conditions are violated by at most {TOLERANCE:g} of the penalty. ProxNewton stops by it; "
        "liblinear and saga have other criteria, and the time is that of the loosest of the tolerances 1e-2, 1e-4 and "
        "1e-6 that meets it. All but liblinear start from the solution before. liblinear penalises the intercept, here "
        "by a ten-thousandth of a coefficient's penalty. SPIN reads float32, the others float64. "
        f"–: not certified within about {LIMIT:g} s.\n",
        table(["width", *(f"{K} classes, s" for K in (FEW, MANY)), "×"], by_classes),
        f"SPIN on {_DOCUMENTS:,} documents with classes that a random linear model draws, of unequal frequency. All "
        "columns: the time per width times the feature columns of MiniLM of that width.\n",
    ]
    closest, shared = min(d.ratio(name) for d in designs for name in others), _times_few(of_all)
    return "\n".join(text), [
        (closest > 1, f"every other solver takes at least {closest:.1f} × the time of SPIN, expected more than 1 ×"),
        (
            shared <= _MANY_COST,
            f"{MANY} classes take {shared:.1f} × the time of {FEW} over all columns, expected at most {_MANY_COST:g} ×",
        ),
    ]


_MANY_COST = 10.0
"""promise: the time of many classes by that of few"""


def _cell(design: Times, name: str) -> str:
    """The median seconds of a solver, and for others than SPIN their ratio to SPIN's."""
    median = statistics.median(design.seconds[name])
    if median == float("inf"):
        return "–"
    return f"{median:.2f}" if name == SPIN else f"{median:.2f} ({design.ratio(name):.1f} ×)"


def _times_few(seconds: Mapping[int, Sequence[float]]) -> float:
    """The time of many classes by that of few in the same round, in the median round."""
    return statistics.median(many / few for few, many in zip(seconds[FEW], seconds[MANY], strict=True))


def warm_up() -> None:
    """Compile what is compiled, before anything is timed."""
    X = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    compare(X, draw_classes(X, FEW), rounds=1)


def compare(X: Floats, targets: Floats, rounds: int, limit: float = LIMIT) -> Times:
    """Time all solvers on a standardised design (n, p) and targets (K, n); they take turns."""
    path = _default_path(X, targets)
    fortran = np.asfortranarray(X, np.float64)
    solvers = {name: solve(X if name == SPIN else fortran, targets, path) for name, solve in _SOLVERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    for number in range(rounds):
        for name in list(solvers) if number % 2 == 0 else list(solvers)[::-1]:
            beyond = np.inf in seconds[name]
            seconds[name].append(np.inf if beyond else _certified(solvers[name], X, targets, path, limit))
    return Times(*X.shape, seconds)


def time_classes(X: Floats, rounds: int) -> dict[int, list[float]]:
    """Processor seconds of SPIN by number of classes, of each round."""
    targets = {K: draw_classes(X, K) for K in (FEW, MANY)}
    solvers = {K: solve_by_spin(X, y, _default_path(X, y))[0] for K, y in targets.items()}
    seconds: dict[int, list[float]] = {K: [] for K in solvers}
    for _ in range(rounds):
        for K, solve in solvers.items():
            start = process_time()
            list(solve())
            seconds[K].append(process_time() - start)
    return seconds


def draw_classes(X: Floats, K: int) -> Floats:
    """Targets (K, n) of exclusive classes that a random linear model with noise draws, later ones more rarely."""
    draw = np.random.default_rng(0)
    logits = 3 * X @ draw.normal(size=(X.shape[1], K)) / X.shape[1] ** 0.5
    drawn = (logits - np.log(np.arange(K) + 3) + draw.gumbel(size=logits.shape)).argmax(1)
    return np.where(drawn == np.arange(K)[:, None], 1, -1).astype(np.float32)


def _default_path(X: Floats, targets: Floats) -> Floats:
    """The penalties (L, K) of the default settings."""
    settings = ProbeSettings()
    shares = settings.step ** np.arange(settings.penalties)
    return shares[:, None] * LogisticPaths(X, targets, class_weights(targets, "none")).lam_max


def _certified(solvers: list[Callable[[], Solutions]], X: Floats, targets: Floats, path: Floats, limit: float) -> float:
    """Seconds of the first solver, from loose to strict, that meets the certificate along the path; else infinity."""
    weights = class_weights(targets, "none")
    for solver in solvers:
        seconds, solutions, violation = 0.0, solver(), 0.0
        for lams in path:
            start = process_time()
            coef, intercept = next(solutions)
            seconds += process_time() - start
            violation = max(violation, kkt_violation(X, targets, weights, coef, intercept, lams))
            if violation > TOLERANCE * 1.01 or seconds > limit:  # float32 rounds the certificate
                break
        else:
            return seconds
        if seconds > limit:
            break
    return np.inf


def solve_by_spin(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
    """The path that `spin train` follows on a CPU."""

    def solve() -> Solutions:
        paths = LogisticPaths(X, targets, class_weights(targets, "none"))
        for lams in path:
            paths.solve(lams)
            yield paths.coef, paths.intercept

    return [solve]


def solve_by_skglm(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
    """Warm-started; its tolerance is the violation of the optimality conditions itself."""
    from skglm.datafits import Logistic
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton
    from skglm.utils.jit_compilation import compiled_clone

    datafit = compiled_clone(Logistic())

    def solve() -> Solutions:
        w, scores = np.zeros((len(targets), X.shape[1] + 1)), np.zeros(targets.shape)
        for lams in path:
            for k, lam in enumerate(lams):
                solver = ProxNewton(max_iter=100, tol=0.99 * TOLERANCE * lam)
                y = targets[k].astype(np.float64)
                w[k], *_ = solver._solve(X, y, datafit, compiled_clone(L1(lam)), w[k], scores[k])
            yield w[:, :-1].copy(), w[:, -1].copy()

    return [solve]


def solve_by_liblinear(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
    """Each penalty anew, for it takes no start."""
    options = {"solver": "liblinear", "intercept_scaling": _INTERCEPT, "max_iter": 10_000}
    return _by_scikit_learn(X, targets, path, options)


def solve_by_saga(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
    """Warm-started."""
    return _by_scikit_learn(X, targets, path, {"solver": "saga", "max_iter": _EPOCHS, "warm_start": True})


def _by_scikit_learn(
    X: Floats, targets: Floats, path: Floats, options: dict[str, object]
) -> list[Callable[[], Solutions]]:
    """A solver of scikit-learn by each of `_TOLERANCES`, since its own criterion is not the certificate."""
    rows = np.ascontiguousarray(X)

    def by_tolerance(tolerance: float) -> Callable[[], Solutions]:
        def solve() -> Solutions:
            models = [LogisticRegression(l1_ratio=1, tol=tolerance, random_state=0, **options) for _ in targets]
            for lams in path:
                for model, y, lam in zip(models, targets, lams, strict=True):
                    model.C = 1 / (lam * len(X))
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # a solution that has not converged is not certified
                        model.fit(rows, y)
                yield np.concatenate([m.coef_ for m in models]), np.concatenate([m.intercept_ for m in models])

        return solve

    return [by_tolerance(tolerance) for tolerance in _TOLERANCES]


_SOLVERS = {SPIN: solve_by_spin, SKGLM: solve_by_skglm, LIBLINEAR: solve_by_liblinear, SAGA: solve_by_saga}
