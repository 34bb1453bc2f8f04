"""A group of processes that each hold a share of the rows fits the same classifier as a single process."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from scipy.special import expit

from spin.fitted.candidate import Subset
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.integrate.fit_linear import fit_linear
from spin.integrate.fit_network import fit_network
from spin.integrate.head_fitter import refit
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, SearchSettings
from spin.sites import BY_WORDS
from tests.spin.integrate.test_fit_linear import make_design, matrix
from tests.spin.integrate.test_leakage import make_attack
from tests.spin.integrate.test_search import Project, build_project, make_words

pytestmark = pytest.mark.slow

QUICK = SearchSettings(etas=(0.6,), max_share=0.3, strengths=(0.3, 3))
STRENGTHS = (0.1, 1.0, 10.0)
CAP = 0.2
"""a share of words that the neurons of no choice exceed; without a cap they do"""
TIMEOUT_S = 150


def take_share(whole: Design, group: ProcessGroup) -> Design:
    """Return the rows of one member."""
    rows = slice(group.rank, None, group.size)
    return replace(
        whole,
        features=FeatureRows(matrix(whole)[rows]),
        has=whole.has[rows],
        weights=whole.weights[rows],
        group=group,
        positions=np.arange(len(whole.has))[rows],
    )


def fit_all(group: ProcessGroup, projects: dict[str, Project]) -> dict[str, Any]:
    """Communicate and fit as a member of the group; return the results that this member has."""
    results: dict[str, Any] = {"count": take_share(make_design(3), group).count}
    results["sum"] = group.all_reduce(torch.tensor([1.0, group.rank])).tolist()
    results["broadcast"] = group.broadcast(torch.tensor([group.rank + 7.0])).tolist()
    results["object"] = group.broadcast_object({"value": ("any", "kind"), "rank": group.rank})
    for name, exclusive in [("multinomial", True), ("sigmoids", False)]:
        whole = make_design(3, exclusive=exclusive, weighted=True)
        heads = fit_linear(take_share(whole, group), STRENGTHS, tolerance=1e-5, max_checks=60)
        results[name] = np.stack([head.logits(matrix(whole)) for head in heads])
        network, _ = fit_network(take_share(whole, group), 0, epochs=6)
        results[f"{name}, network"] = network.logits(matrix(whole))
        stopped, epochs = fit_network(take_share(whole, group), 0, judge=lambda head: float(head.outer.std() > 0.005))
        results[f"{name}, stopped early"] = stopped.logits(matrix(whole))
        results[f"{name}, epochs"] = epochs
    for name, project in projects.items():
        trained = project.integrate(
            QUICK.model_copy(update={"network": "auto" if name == "lists" else "off"}), group=group
        )
        choice = trained.choices["accuracy"]
        results[f"{name}, summary"] = trained.summary().model_dump(mode="json")
        results[f"{name}, logits"] = choice.logits(project.read(choice.selection, project.test))
        data = replace(project.data, not_sampled=np.sort(project.test))
        refitted = refit(trained, project.probes, project.read_blocks, data, group=group).choices["accuracy"]
        results[f"{name}, refitted"] = refitted.logits(project.read(choice.selection, project.test))
        results[f"{name}, exits"] = fit_exits(group, project)
    results |= choose_within_cap(group, projects["folds"])
    return results


def choose_within_cap(group: ProcessGroup, project: Project) -> dict[str, Any]:
    """The activations of a selection for the attacked documents, and the summary of a training under a cap."""
    attack, search = make_attack(project), project.search(QUICK, group=group)
    selection = search.select(Subset(0.6, 4))
    settings = QUICK.model_copy(update={"network": "off", "strengths": (1,), "max_leakage": CAP})
    return {
        "gathered": search.matrix.gather(search.cut, selection, attack.judged),
        "raw": project.read(selection, attack.judged),
        "capped": project.integrate(settings, attack=attack, group=group).summary(),
    }


def fit_exits(group: ProcessGroup, project: Project) -> list[tuple[int, float, np.ndarray]]:
    """Depth, threshold and coefficients of the exits of a classifier whose words show much."""
    cascade = CascadeSettings(max_loss=0.3, depths=(0.5,))
    settings = QUICK.model_copy(update={"network": "off", "words": "on", "strengths": (1,)})
    fitted = project.integrate(settings, words=make_words(project, 2.0), cascade=cascade, group=group)
    return [(exit.depth, exit.threshold, exit.head.coef) for exit in fitted.choices["accuracy"].exits]


def run_member(rank: int, size: int, folder: str, projects: dict[str, Project]) -> None:
    """Join the group as one process and pickle the results."""
    torch.set_num_threads(1)
    assert ProcessGroup.joined() == ProcessGroup(0, 1), "the process has joined no group yet"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    assert ProcessGroup.joined() == ProcessGroup(rank, size)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(fit_all(ProcessGroup.joined(), projects)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def projects() -> dict[str, Project]:
    """A multi-label project, and one that is cross-validated."""
    return {"lists": build_project(kind="multi-label"), "folds": build_project(folds=2)}


@pytest.fixture(scope="module")
def alone(projects: dict[str, Project]) -> dict[str, Any]:
    """The results of a single process."""
    return fit_all(ProcessGroup(), projects)


@pytest.fixture(scope="module")
def together(projects: dict[str, Project], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two members, forked from a process that has imported this module once for both."""
    folder, size = tmp_path_factory.mktemp("group"), 2
    get_context("forkserver").set_forkserver_preload([__name__])
    group = processes.start_processes(
        run_member, (size, str(folder), projects), nprocs=size, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not group.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the group has not ended after {TIMEOUT_S} s")
    finally:
        for process in group.processes:
            process.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def test_members_reduce_and_broadcast(together: list[dict[str, Any]]) -> None:
    """`all_reduce` sums over all members, broadcasts come from the first, and rows are counted over the group."""
    size = len(together)
    for results in together:
        assert results["count"] == 240
        assert results["sum"] == [size, size * (size - 1) / 2]
        assert results["broadcast"] == [7]
        assert results["object"] == {"value": ("any", "kind"), "rank": 0}


@pytest.mark.parametrize("name", ["multinomial", "sigmoids"])
def test_a_group_fits_the_heads_of_a_single_process(
    together: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    """Linear heads at every penalty and networks, stopped early or not, agree; members have exactly the same."""
    for results in together:
        np.testing.assert_array_equal(results[name], together[0][name])
        np.testing.assert_allclose(results[name], alone[name], atol=1e-3)
        assert np.abs(results[name][:2] - alone[name][:2]).mean() < 1e-4
        np.testing.assert_allclose(results[f"{name}, network"], alone[f"{name}, network"], atol=2e-3)
        assert alone[f"{name}, network"].std() > 0.1
        assert results[f"{name}, epochs"] == alone[f"{name}, epochs"]
        np.testing.assert_allclose(results[f"{name}, stopped early"], alone[f"{name}, stopped early"], atol=2e-3)


@pytest.mark.parametrize("name", ["lists", "folds"])
def test_a_group_chooses_the_classifier_of_a_single_process(
    together: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    """Search, choices and summaries agree, and the probabilities of test rows within 0.02, also after a refit."""
    expected = alone[f"{name}, summary"]
    for results in together:
        actual = results[f"{name}, summary"]
        assert actual == together[0][f"{name}, summary"]
        assert actual["tried"] == expected["tried"]
        for choice, summary in actual["choices"].items():
            expected_summary = expected["choices"][choice]
            for key, value in summary.items():
                if key == "exits":
                    for exit_, expected_exit in zip(value, expected_summary[key], strict=True):
                        assert exit_ == pytest.approx(expected_exit, abs=0.02)
                elif isinstance(value, float):
                    assert value == pytest.approx(expected_summary[key], abs=0.02), key
                else:
                    assert value == expected_summary[key], key
        for key in (f"{name}, logits", f"{name}, refitted"):
            np.testing.assert_array_equal(results[key], together[0][key])
            np.testing.assert_allclose(expit(results[key]), expit(alone[key]), atol=0.02)
        assert np.abs(alone[f"{name}, refitted"] - alone[f"{name}, logits"]).max() > 0.05, "it has seen further rows"


@pytest.mark.parametrize("name", ["lists", "folds"])
def test_a_group_lets_words_decide_the_documents_of_a_single_process(
    together: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    """The exit by words has the same calibration in all members, and its threshold is that of one process."""
    (depth, threshold, coef), *_ = alone[f"{name}, exits"]
    assert depth == BY_WORDS
    for results in together:
        of_group = results[f"{name}, exits"][0]
        assert of_group[:2] == (BY_WORDS, pytest.approx(threshold, abs=0.02))
        np.testing.assert_allclose(of_group[2], coef, rtol=1e-5)
        assert [exit[:2] for exit in results[f"{name}, exits"]] == [e[:2] for e in together[0][f"{name}, exits"]]


def test_a_group_attacks_the_documents_of_all_members(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """All members choose the same neurons within the cap as a single process, by the same leakage."""
    for results in together:
        np.testing.assert_array_equal(results["gathered"], results["raw"])
        assert results["capped"] == together[0]["capped"]
        for name, choice in results["capped"].choices.items():
            expected = alone["capped"].choices[name]
            assert (choice.leakage, choice.neurons, choice.eta) == (expected.leakage, expected.neurons, expected.eta)
            assert choice.leakage <= CAP < results["capped"].cap.uncapped[name].leakage


def test_a_process_outside_any_group_is_a_group_of_one() -> None:
    """`all_reduce` and the broadcasts return their argument."""
    group = ProcessGroup.joined()
    assert group == ProcessGroup(0, 1)
    values = torch.tensor([2.0])
    assert group.all_reduce(values) is values
    assert group.broadcast(values) is values
    assert group.broadcast_object("word") == "word"
