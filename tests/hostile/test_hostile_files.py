"""Files that were made to harm are quarantined by name, and all others are taken in."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin.settings import DataSettings
from tests.hostile.hostile_file import HostileFile
from tests.hostile.hostile_files import write_hostile_files
from tests.hostile.intake_run import Taken, take_folder, write_good_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def judge(file: HostileFile, taken: Taken) -> str | None:
    """Describe what was made of a file if it is not what is expected."""
    name = file.name.encode(errors="backslashreplace").decode()  # as reasons show a name that is not UTF-8
    reason, dead = taken.reasons.get(name), taken.dead.get(name, [])
    if file.expected == "bad":
        return None if reason else f"expected a bad file, found {taken.rows.get(name)} rows"
    if file.expected == "any":
        return None if reason or name in taken.rows else "neither quarantined nor taken"
    if reason is not None:
        return f"expected a good file, found {reason}"
    if not taken.rows.get(name) and not file.empty:
        return "no row was taken"
    if taken.rows.get(name, 0) != taken.spooled.get(name, 0):
        return f"{taken.rows.get(name)} rows were read and {taken.spooled.get(name)} saved"
    if file.expected == "good":
        return f"expected no dead letters, found {dead}" if dead else None
    missing = file.reason is not None and file.reason not in dead
    return f"expected dead letters {file.reason or ''}, found {sorted(set(dead))}" if missing or not dead else None


def test_half_a_character_as_the_name_of_a_kept_column_harms_nothing(tmp_path: Path) -> None:
    write_good_files(tmp_path)
    (tmp_path / "half.jsonl").write_text('{"id": "a", "text": "some text", "\\ud800": 1}\n')
    taken = take_folder(tmp_path, DataSettings(train="unused", keep={"\ud800": "string"}))
    assert taken.good_files_harmed() == {}
    assert "half.jsonl" in taken.reasons or taken.rows["half.jsonl"] == 1


def test_a_folder_of_hostile_files_is_taken_in(tmp_path: Path) -> None:
    files = write_hostile_files(tmp_path)
    write_good_files(tmp_path)
    taken = take_folder(tmp_path)
    assert taken.good_files_harmed() == {}
    assert {name: each for name, file in files.items() if (each := judge(file, taken))} == {}
