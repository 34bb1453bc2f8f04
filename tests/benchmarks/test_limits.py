"""The verdicts and the page of `make bench-limits`, on constructed figures; nothing is timed."""

from __future__ import annotations

import http.client
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.limits import (
    large_backbone,
    many_files,
    many_nights,
    overhead,
    recipe,
    scale,
    small_fits,
    solvers,
    training,
    versions,
)
from benchmarks.limits.delay_proxy import run_delay_proxy
from benchmarks.limits.large_backbone import LargeBackboneCost
from benchmarks.limits.many_files import FileCosts, NightCost
from benchmarks.limits.overhead import WAYS, Way
from benchmarks.limits.recipe import Race, Races
from benchmarks.limits.scale import WORKERS, Scale, _speed
from benchmarks.limits.small_fits import FitTime, SmallFits
from benchmarks.limits.solvers import (
    LIBLINEAR,
    SAGA,
    SKGLM,
    SPIN,
    Comparison,
    Solutions,
    Times,
    compare,
    draw_classes,
    solve_by_liblinear,
    solve_by_skglm,
    solve_by_spin,
)
from benchmarks.limits.training import TrainingCost
from benchmarks.limits.versions import OTHER, THIS
from benchmarks.section_page import write_page
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from spin.arrays import Floats
from spin.sites import FeatureColumn
from spin.sparsify.probe import class_weights
from spin.sparsify.solvers.l1_path import TOLERANCE, kkt_violation

Solver = Callable[[Floats, Floats, Floats], list[Callable[[], Solutions]]]

RACE = Race(FeatureColumn.parse("resid.06.mean"), 384, 20.0, 1.0, 2.0, 5e-4, [(0.1, 0.5, 0.4)], True)
ROUND = dict(zip(WAYS, (10.0, 10.5, 5.5, 6.0, 6.3), strict=True))
NIGHT = Scale(10, 1000.0, 0.02, {"driver": 700.0, "worker": 710.0}, {"driver": 450.0, "worker": 460.0}, 600)


COST = NightCost(
    name="small JSONL files",
    files=2000,
    input_bytes=10_000,
    documents=10_000,
    shards=10,
    input_requests=2000,
    input_read=10_500,
    lease_requests=30,
    other_requests=200,
    seconds=100.0,
    computing=20.0,
)


TRAINING = TrainingCost(
    name="tiny",
    documents=1000,
    seconds={"extract": 1.0, "probe": 2.0, "train": 3.0},
    peak={"driver": 900.0, "worker": 1000.0},
    own={"driver": 500.0, "worker": 600.0},
    stored=0.5,
    whole=1.0,
)
LARGE = {"documents": 10_000, "stored": 1.4, "whole": 10.0}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, 0),
        ({"peak": {"driver": 985.0, "worker": 1000.0}}, 0),
        ({"peak": {"driver": 995.0, "worker": 1000.0}}, 1),
        ({"peak": {"driver": 900.0, "worker": 6001.0}}, 2),
        ({"stored": 1.6}, 1),
    ],
)
def test_trainings_hold_if_memory_is_flat_and_small_and_few_features_are_stored(
    change: dict[str, Any], missed: int
) -> None:
    text, verdicts = training.section([TRAINING, replace(TRAINING, **{**LARGE, **change}), TRAINING])
    assert sum(not holds for holds, _ in verdicts) == missed
    assert "| tiny, 1,000 | 1 | 2 | 3 | 900 | 1,000 | 500 | 600 | 0.50 | 50% |" in text


@pytest.mark.parametrize(("seconds", "quickstart", "missed"), [(7.9, 149.0, 0), (8.1, 149.0, 1), (7.9, 151.0, 1)])
def test_a_small_fit_holds_if_its_median_round_is_fast(seconds: float, quickstart: float, missed: int) -> None:
    times = [FitTime(fit=fit, process=fit + 2, accuracy=0.75) for fit in (seconds, 1.0, 100.0)]
    text, verdicts = small_fits.section(SmallFits({"140 short texts, 2 classes": times}, quickstart))
    assert [holds for holds, _ in verdicts].count(False) == missed
    assert f"| {seconds} | {seconds}, 1.0, 100.0 | {seconds + 2:.1f} | 75.0 |" in text


def test_texts_of_small_fits_are_of_one_class_each() -> None:
    """As many of each class, in the same mixed order whatever the order in which they were found."""
    found = {name: [f"what the function {name} {n} of {n} returns" for n in range(40)] for name in ("a", "b")}
    found = {name: [*texts, texts[0], "a text of both of the classes", "too short"] for name, texts in found.items()}
    texts = small_fits.choose_texts(found, 30, trained=40)
    assert texts == small_fits.choose_texts({name: found[name][::-1] for name in ("b", "a")}, 30, trained=40)
    assert len(set(texts.texts)) == len(texts.labels) == 60
    assert [f"function {label} " in text for text, label in zip(texts.texts, texts.labels, strict=True)] == [True] * 60
    assert set(texts.labels[:40]) == set(texts.labels[40:]) == {"a", "b"}
    with pytest.raises(SystemExit, match="a: this Python has 40 such texts, expected at least 41"):
        small_fits.choose_texts(found, 41, trained=40)


@pytest.mark.parametrize(("wide", "holds"), [(40.0, True), (60.0, False)])
def test_the_cost_of_many_classes_is_that_of_all_columns(wide: float, holds: bool) -> None:
    """A narrow column may be above the limit, if all columns together are not."""
    by_width = {384: {3: [1.0] * 3, 100: [12.0] * 3}, 1536: {3: [5.0] * 3, 100: [wide] * 3}}
    text, [_, (shared, _)] = solvers.section(Comparison([TIMES], by_width, {384: 14, 1536: 12}))
    assert shared is holds
    assert f"| all 26 columns, extrapolated | 74 | {14 * 12 + 12 * wide:.0f} |" in text


@pytest.mark.parametrize(("peak", "holds"), [(5999.0, True), (6001.0, False)])
def test_a_large_backbone_holds_if_its_process_is_small(peak: float, holds: bool) -> None:
    """Seconds are extrapolated from the layers that were measured."""
    seconds, own = {"probes": 900.0, "heads": 90.0}, {"probes": 1.0, "heads": 1.0}
    cost = LargeBackboneCost(8, seconds, {"probes": peak, "heads": 1000.0}, own, 11.8)
    text, [verdict] = large_backbone.section(cost)
    assert verdict[0] is holds
    assert f"| probes | 900 | 1.0 | {peak:,.0f} | 1 |" in text


@pytest.mark.parametrize(
    ("change", "expected"), [({}, 3), ({"spin": 3.0}, 2), ({"shipped": 3.0}, 2), ({"reached": False}, 2)]
)
def test_probes_hold_if_they_are_ten_times_faster_at_the_same_objective(
    change: dict[str, float], expected: int
) -> None:
    """There are verdicts on the objective and on two speeds. The table extrapolates to all feature columns."""
    race = replace(RACE, **change)  # type: ignore[arg-type]
    text, verdicts = recipe.section(Races([race], {384: 14}))
    assert sum(holds for holds, _ in verdicts) == expected
    assert "| all 14, extrapolated | 280 |" in text


TIMES = Times(2000, 384, {SPIN: [1.0, 2.0, 1.0], SKGLM: [1.5, 5.0, 1.2], LIBLINEAR: [9.0] * 3, SAGA: [math.inf] * 3})


@pytest.mark.parametrize(
    ("change", "many", "expected"),
    [({}, 40.0, [True, True]), ({SKGLM: [0.9, 5.0, 1.0]}, 40.0, [False, True]), ({}, 60.0, [True, False])],
)
def test_a_solver_that_is_as_fast_and_classes_that_share_nothing_do_not_hold(
    change: dict[str, list[float]], many: float, expected: list[bool]
) -> None:
    """By the median of the ratios within the rounds. A solver without a certified path shows no seconds."""
    times = replace(TIMES, seconds=TIMES.seconds | change)
    by_width = {384: {3: [5.0, 5.0, 5.0], 100: [many, 49.0, many]}}
    text, verdicts = solvers.section(Comparison([TIMES, times], by_width, {384: 14}))
    assert [holds for holds, _ in verdicts] == expected
    assert "| 2,000 × 384 | 1.00 | 1.50 (1.5 ×) | 9.00 (9.0 ×) | – |" in text


@pytest.mark.parametrize(
    "solver", [solve_by_spin, solve_by_liblinear, pytest.param(solve_by_skglm, marks=pytest.mark.slow)]
)
def test_the_solvers_solve_the_same_problem(solver: Solver) -> None:
    """Their strictest paths meet the certificate and have the same objective."""
    if solver is solve_by_skglm:
        pytest.importorskip("skglm")
    draw = np.random.default_rng(0)
    X = draw.normal(size=(300, 12)).astype(np.float32)
    targets = draw_classes(X, 3)
    assert ((targets > 0).sum(0) == 1).all()
    weights, path = class_weights(targets, "none"), np.array([[0.05] * 3, [0.01] * 3])
    expected = list(solve_by_spin(X, targets, path)[0]())
    for lams, (coef, intercept), (w, b) in zip(
        path, solver(np.asfortranarray(X, np.float64), targets, path)[-1](), expected, strict=True
    ):
        assert kkt_violation(X, targets, weights, coef, intercept, lams) <= 1.01 * TOLERANCE
        np.testing.assert_allclose(X @ coef.T + intercept, X @ w.T + b, atol=0.01)


def test_a_solver_that_misses_the_certificate_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither has one that takes too long; a stricter tolerance is tried after a looser one."""
    X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    targets = draw_classes(X, 3)

    def inexact(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
        return [lambda: iter([(np.zeros((3, 6)), np.zeros(3))] * len(path))]

    def second(X: Floats, targets: Floats, path: Floats) -> list[Callable[[], Solutions]]:
        return inexact(X, targets, path) + solve_by_spin(X.astype(np.float32), targets, path)

    monkeypatch.setattr(solvers, "_SOLVERS", {SPIN: solve_by_spin, SKGLM: inexact, SAGA: second})
    times = compare(X, targets, rounds=2)
    assert times.seconds[SKGLM] == [math.inf] * 2
    assert max(times.seconds[SPIN] + times.seconds[SAGA]) < 60
    assert min(compare(X, targets, 1, limit=0.0).seconds.values()) == [math.inf]


@pytest.mark.parametrize(("way", "seconds", "missed"), [(1, 11.5, 1), (2, 7.0, 1), (4, 7.0, 1), (0, 10.0, 0)])
def test_the_cost_of_ray_is_the_median_of_the_ratios_within_rounds(way: int, seconds: float, missed: int) -> None:
    """One slow round in three does not change a verdict; two do."""
    slow: dict[Way, float] = {**ROUND, WAYS[way]: seconds}
    assert all(holds for holds, _ in overhead.section([ROUND, slow, ROUND])[1])
    assert sum(not holds for holds, _ in overhead.section([slow, slow, ROUND])[1]) == missed


def test_memory_that_grows_and_speed_that_falls_do_not_hold() -> None:
    """The verdicts on the driver's memory and on both speeds fail if they change by more than a tenth."""
    grown = replace(NIGHT, documents=1000, own={"driver": 500.0, "worker": 460.0}, per_s=850.0, whole_s=2.3)
    text, verdicts = scale.section([NIGHT, grown])
    assert [verdict.partition(":")[0] for holds, verdict in verdicts if not holds] == [
        "driver's own memory",
        "documents/s in shards",
        "documents/s overall",
    ]
    assert text.startswith("| documents |")


@pytest.mark.parametrize(("seconds", "holds"), [(10.4, True), (10.6, False)])
def test_a_version_may_take_a_twentieth_longer_than_the_other(seconds: float, holds: bool) -> None:
    """In the median of the rounds."""
    rounds = [{THIS: this, OTHER: 10.0} for this in (seconds, 5.0, 50.0)]
    assert [verdict for verdict, _ in versions.section(rounds)[1]] == [holds]


def test_a_part_that_is_measured_alone_replaces_its_section(tmp_path: Path) -> None:
    path = tmp_path / "limits.md"
    write_page(
        path, "Limits", "make bench-limits", {"One": ("first\n", [(True, "a"), (False, "b")]), "Two": ("second\n", [])}
    )
    assert path.read_text().count("**does not hold**: b.") == 1
    before = path.read_text().partition("## Two")[2]
    write_page(path, "Limits", "make bench-limits", {"One": ("third\n", [])})
    text = path.read_text()
    assert re.findall("^## .*|first|second|third|hold", text, re.M) == ["## One", "third", "## Two", "second"]
    assert text.partition("## Two")[2] == before


@pytest.mark.parametrize(
    ("night", "change", "missed"),
    [
        (0, {}, ""),
        (1, {"input_requests": 2001}, "1.00 requests per small file"),
        (1, {"other_requests": 241}, "8.1 further requests per shard"),
        (1, {"seconds": 141.0}, "2,000 small files take 121 s"),
        (2, {"input_read": 11_100}, "one CSV file: read 1.11 ×"),
        (3, {"input_read": 13_100}, "one Parquet file: read 1.31 ×"),
    ],
)
def test_requests_and_bytes_above_their_budgets_do_not_hold(night: int, change: dict[str, float], missed: str) -> None:
    """Requests that every night takes do not count for the shards."""
    base, csv, parquet = (
        replace(COST, name=name, files=1, other_requests=160)
        for name in ("one small file", "one CSV file", "one Parquet file")
    )
    costs = [base, COST, csv, parquet]
    costs[night] = replace(costs[night], **change)  # type: ignore[arg-type]
    text, verdicts = many_files.section(FileCosts(costs, 10_000, 9.0))
    assert [verdict[: len(missed)] for holds, verdict in verdicts if not holds] == [missed] * bool(missed)
    assert "| 2,000 × small JSONL files |" in text
    assert not many_files.section(FileCosts(costs, 10_000, 11.0))[1][-1][0]


def test_nights_of_a_full_output_are_compared_with_early_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_nights, "EARLY", 1)
    monkeypatch.setattr(many_nights, "_WINDOW", 1)
    monkeypatch.setattr(many_nights, "QUICK_NIGHTS", 3)
    early, late = many_nights.measure(tmp_path, quick=True)
    assert (early.number, late.number) == (2, 3)
    slower = replace(early, number=1_000, opened=1.4 * early.opened, published=1.6 * early.published)
    text, verdicts = many_nights.section([early, slower])
    assert verdicts == [
        (True, "opening an output takes 1.40 × as long at night 1,000"),
        (False, "publishing a night takes 1.60 × as long at night 1,000"),
    ]
    assert "| 1,000 |" in text


def test_the_speed_of_a_night_is_that_of_its_median_shard() -> None:
    """Shards that began before the first ended are left out, and a stalled shard counts once."""
    times = ((9.0, 9.0), (9.0, 9.5), (1.0, 10.0), (1.0, 11.0), (50.0, 61.0))
    shards = [ShardOutcome(ShardCounts(rows=100), {}, tries=1, seconds=s, ended=e) for s, e in times]
    assert _speed(shards) == WORKERS * 100


class EchoHandler(BaseHTTPRequestHandler):
    """Answers every request with a body of as many bytes as the last part of its path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytes(int(self.path.partition("?")[0].rpartition("/")[2]))
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_the_proxy_counts_and_delays_requests() -> None:
    """Several requests over one connection are counted one by one, with bodies that come in several pieces."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EchoHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        with run_delay_proxy(endpoint, "/spin/limits/in/", 0.03) as (delayed, proxy):
            client = http.client.HTTPConnection(delayed.removeprefix("http://"))
            began = time.monotonic()
            for method, path, body in (
                ("GET", "/spin/limits/in/0/500000", None),
                ("GET", "/spin/limits/in/0/7", None),
                ("PUT", "/spin/limits/out/9", bytes(400_000)),
                ("GET", "/spin/3?prefix=limits%2Fout%2F_leases%2Ftiny", None),
            ):
                client.request(method, path, body)
                assert len(client.getresponse().read()) == int(path.partition("?")[0].rpartition("/")[2])
            assert time.monotonic() - began >= 4 * 0.03
            client.close()
            traffic = proxy.traffic
        server.shutdown()
        thread.join()
    assert (traffic.input.requests, traffic.rest.requests) == ({"GET": 2}, {"PUT": 1})
    assert traffic.lease.requests == {"GET": 1}
    assert 500_007 < traffic.input.read < 501_000
    assert 400_000 < traffic.rest.written < 401_000
