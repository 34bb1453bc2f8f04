"""What a person sees when training ends."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import terminal

POINTS = [
    {"depth": depth, "compute": compute, "eta": 0.5, "neurons": 100 * depth, "valid_score": score, "strength": 1}
    for depth, compute, score in ((1, 0.1666, 0.61), (2, 0.3333, 0.702), (3, 0.5, 0.7049), (4, 1.0, 0.71))
]


def manifest(choose: str, **depths: int) -> dict[str, Any]:
    """A finished train stage whose choices read so many blocks."""
    facts = {
        name: {**POINTS[depth - 1], "l1": 0.03, "head": "mlp", "part": ["ffn"] * (depth == 2)}
        for name, depth in depths.items()
    }
    choice = {"choices": facts, "frontier": POINTS, "tried": 30}
    registered = {"model": "tiny", "version": "3"}
    return {"choice": choice, "choose": choose, "table": [], "registered": registered}


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words of each printed line, without the table's frame."""
    shown = capsys.readouterr().out.splitlines()
    return [line.translate(str.maketrans("│┃", "  ")).split() for line in shown]


def test_the_frontier_is_shown_by_depth_and_the_choices_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """Every depth once, compute of the whole, and each choice at the depth that it reads."""
    terminal.trained(manifest("balanced", accuracy=4, balanced=2, cheapest=2))
    shown = lines(capsys)
    assert ["1", "17", "%", "100", "0.50", "61.0"] in shown
    assert ["2", "33", "%", "200", "0.50", "70.2", "balanced,", "cheapest"] in shown
    assert ["3", "50", "%", "300", "0.50", "70.5"] in shown
    assert ["4", "100", "%", "400", "0.50", "71.0", "accuracy"] in shown
    for said in (
        "accuracy 71.0 on validation, 100 % of the compute, 400 neurons of 4 blocks",
        "balanced 70.2 on validation, 33 % of the compute, 200 neurons of 2 blocks (ffn only)",
    ):
        assert said.split() in shown
    assert shown[-1] == ["registered", "tiny", "version", "3", "as", "challenger"]


@pytest.mark.parametrize(("choose", "neurons", "depth"), [("accuracy", "400", "4"), ("cheapest", "100", "1")])
def test_a_stage_tells_of_the_choice_that_is_used(
    capsys: pytest.CaptureFixture[str], choose: str, neurons: str, depth: str
) -> None:
    made = manifest(choose, accuracy=4, balanced=2, cheapest=1)
    terminal.stage("train", made, 12.3, resumed=False)
    said = f"train {neurons} neurons of {depth} blocks, eta 0.50, mlp head, strength 1, L1 0.03 — 12 s"
    assert lines(capsys) == [said.split()]
