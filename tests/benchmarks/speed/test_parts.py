"""Trained parts on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import parts
from benchmarks.speed.parts import Parts


def test_a_part_is_trained_once(tmp_path: Path) -> None:
    """Also by another run; one whose training failed is trained anew."""
    trained: list[str] = []

    def train(folder: Path) -> None:
        trained.append(folder.name)
        (folder / "weights").write_text("1")
        if len(trained) == 1:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Parts(tmp_path, 1).get("head", train)
    for _ in range(2):
        assert [file.name for file in Parts(tmp_path, 1).get("head", train).iterdir()] == ["weights"]
    assert len(trained) == 2


def test_parts_of_other_inputs_or_sources_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Parts(tmp_path, {"documents": 1}).get("head", lambda folder: None)
    assert first.exists()
    second = Parts(tmp_path, {"documents": 2}).get("head", lambda folder: None)
    assert (first.exists(), second.exists()) == (False, True)
    monkeypatch.setattr(parts, "source_digest", lambda: "edited")
    assert Parts(tmp_path, {"documents": 2}).folder != second.parent
    assert not second.exists()
