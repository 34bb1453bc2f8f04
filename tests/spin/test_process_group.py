"""A team of processes that each hold a share of the rows comes to what one process finds alone."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from scipy.special import expit

from spin.heads.linear_head import Penalty
from spin.integrate.fit_linear import Design, fit_linear
from spin.integrate.fit_mlp import fit_mlp
from spin.process_group import ProcessGroup
from spin.settings import SearchSettings
from tests.spin.integrate.test_fit_linear import make_design
from tests.spin.integrate.test_search import Project, build_project

QUICK = SearchSettings(etas=(0.6,), max_share=0.3, strengths=(0.3, 3), l1=(0.02,))
PENALTIES = [Penalty(0.1), Penalty(10.0), Penalty(1.0, 0.1)]
SECONDS = 150


def share(of: Design, group: ProcessGroup) -> Design:
    """One member's rows."""
    mine = slice(group.rank, None, group.size)
    return replace(of, X=of.X[mine], has=of.has[mine], weights=of.weights[mine], group=group)


def fits(group: ProcessGroup, subjects: dict[str, Project]) -> dict[str, Any]:
    """All that is fitted by a team, as far as one member knows it."""
    said: dict[str, Any] = {"count": share(make_design(3), group).count}
    said["sum"] = group.all_reduce(torch.tensor([1.0, group.rank])).tolist()
    said["agreed"] = group.broadcast(torch.tensor([group.rank + 7.0])).tolist()
    said["told"] = group.broadcast_object({"of": ("any", "kind"), "rank": group.rank})
    for name, exclusive in [("multinomial", True), ("sigmoids", False)]:
        of = make_design(3, exclusive=exclusive, weighted=True)
        heads = fit_linear(share(of, group), PENALTIES, tolerance=1e-5, max_checks=60)
        said[name] = np.stack([head.logits(of.X) for head in heads])
        head, steps = fit_mlp(heads[1], share(of, group), 3.0, seed=0, steps=40)
        said[f"{name}, bent"] = head.logits(of.X)
        judged, steps = fit_mlp(
            heads[1], share(of, group), 3.0, seed=0, steps=60, judge=lambda head, of=of: float(head.outer.std() > 0.05)
        )
        said[f"{name}, judged"] = judged.logits(of.X)
        said[f"{name}, steps"] = steps
    for name, subject in subjects.items():
        found = subject.integrate(
            QUICK.model_copy(update={"head": "mlp" if name == "lists" else "linear"}), group=group
        )
        choice = found.choices["accuracy"]
        said[f"{name}, facts"] = found.summary().model_dump(mode="json")
        said[f"{name}, logits"] = choice.logits(subject.read(choice.selection, subject.test))
    return said


def member(rank: int, size: int, folder: str, subjects: dict[str, Project]) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    assert ProcessGroup.joined() == ProcessGroup(0, 1), "it has joined none yet"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    assert ProcessGroup.joined() == ProcessGroup(rank, size)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(fits(ProcessGroup.joined(), subjects)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def subjects() -> dict[str, Project]:
    return {"lists": build_project(kind="multi-label"), "folds": build_project(folds=2)}


@pytest.fixture(scope="module")
def alone(subjects: dict[str, Project]) -> dict[str, Any]:
    return fits(ProcessGroup(), subjects)


@pytest.fixture(scope="module", params=[2, 3])
def together(
    request: pytest.FixtureRequest, subjects: dict[str, Project], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two members, then three, has found; three fit heads only."""
    folder, size = tmp_path_factory.mktemp("team"), request.param
    subjects = subjects if size == 2 else {}
    group = processes.spawn(member, (size, str(folder), subjects), nprocs=size, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not group.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"the team has not ended after {SECONDS} s")
    finally:
        for process in group.processes:
            process.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def test_members_sum_agree_and_listen(together: list[dict[str, Any]]) -> None:
    """Sums are over all, what is agreed is the first one's, objects too; rows are counted over the team."""
    size = len(together)
    for said in together:
        assert said["count"] == 240
        assert said["sum"] == [size, size * (size - 1) / 2]
        assert said["agreed"] == [7]
        assert said["told"] == {"of": ("any", "kind"), "rank": 0}


@pytest.mark.parametrize("name", ["multinomial", "sigmoids"])
def test_a_team_fits_the_head_of_one(together: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    """Linear heads at every penalty, and the hidden layer, also where a judge stops it; all members get the same."""
    for said in together:
        np.testing.assert_array_equal(said[name], together[0][name])
        np.testing.assert_allclose(said[name], alone[name], atol=1e-3)
        assert np.abs(said[name][:2] - alone[name][:2]).mean() < 1e-4
        np.testing.assert_allclose(said[f"{name}, bent"], alone[f"{name}, bent"], atol=2e-3)
        assert np.abs(alone[f"{name}, bent"] - alone[name][1]).max() > 0.1
        assert said[f"{name}, steps"] == alone[f"{name}, steps"]
        np.testing.assert_allclose(said[f"{name}, judged"], alone[f"{name}, judged"], atol=2e-3)


@pytest.mark.parametrize("together", [2], indirect=True)
@pytest.mark.parametrize("name", ["lists", "folds"])
def test_a_team_integrates_as_one(together: list[dict[str, Any]], alone: dict[str, Any], name: str) -> None:
    """The same search, choice and facts, and nearly the same logits on rows that none has seen."""
    expected = alone[f"{name}, facts"]
    for said in together:
        found = said[f"{name}, facts"]
        assert found == together[0][f"{name}, facts"]
        np.testing.assert_array_equal(said[f"{name}, logits"], together[0][f"{name}, logits"])
        assert found["tried"] == expected["tried"]
        for choice, facts in found["choices"].items():
            wanted = expected["choices"][choice]
            for key, value in facts.items():
                if key == "exits":
                    for own, other in zip(value, wanted[key], strict=True):
                        assert own == pytest.approx(other, abs=0.02)
                elif isinstance(value, float):
                    assert value == pytest.approx(wanted[key], abs=0.02), key
                else:
                    assert value == wanted[key], key
        probabilities = (expit(of[f"{name}, logits"]) for of in (said, alone))
        np.testing.assert_allclose(*probabilities, atol=0.02)


def test_a_process_by_itself_is_a_team_of_one() -> None:
    """It sums, agrees and listens to itself."""
    group = ProcessGroup.joined()
    assert group == ProcessGroup(0, 1)
    values = torch.tensor([2.0])
    assert group.all_reduce(values) is values
    assert group.broadcast(values) is values
    assert group.broadcast_object("word") == "word"
