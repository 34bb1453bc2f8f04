"""Bad input ends a command with an exit status and one line: what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.support import tiny
from tests.support.command_line import CallSpin

RunSpin = Callable[..., tuple[int, str]]


@pytest.fixture
def run_spin(settings_tree: dict[str, Any], tmp_path: Path, call_spin: CallSpin) -> RunSpin:
    """A function that runs `spin COMMAND settings.yaml …` and returns the exit status and standard error.

    `rows` become the training file; the other keywords replace sections of the settings.
    """

    def run(command: str, *options: str, rows: list[dict[str, Any]] | None = None, **changes: Any) -> tuple[int, str]:
        if rows is not None:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        tree = {**settings_tree, **changes}
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        status, _, error = call_spin(command, tmp_path / "settings.yaml", *options)
        return status, error

    return run


def read_error_line(error: str) -> str:
    """Return the error message, which must be the only line on standard error apart from lines of progress."""
    lines = [line for line in error.strip().splitlines() if not line.startswith(("progress: ", "engine: "))]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert "Traceback" not in error
    return lines[0]


def replace_values(rows: list[dict[str, Any]], index: int, **values: Any) -> list[dict[str, Any]]:
    """Return the rows with other values in the row at an index."""
    return [{**row, **values} if n == index else row for n, row in enumerate(rows)]


ROWS = tiny.make_documents(80)
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "no column with labels": (
        [{"id": r["id"], "text": r["text"]} for r in ROWS],
        {},
        "train.parquet has no column 'label'; it has id, text",
    ),
    "a bad row": (
        replace_values(ROWS, 7, text=" "),
        {},
        "train.parquet row 7 (from 0): the text (text) is empty",
    ),
    "one class": ([{**r, "label": "good"} for r in ROWS], {}, "one class only, 'good'; expected at least two"),
    "a class with one document": (replace_values(ROWS, 7, label="rare"), {}, "class 'rare' has 1 document"),
    "no such file": (ROWS, {"data": {"train": "/nowhere.csv"}}, "no data at"),
    "unknown setting": (ROWS, {"measure": "accuracy"}, "unknown setting 'measure'"),
    "no such site": (
        ROWS,
        {"sites": ["ffn.09"]},
        "the backbone has no 'ffn.09'; it has resid.00 to resid.03, ffn.01 to ffn.03",
    ),
    "no backbone": (
        ROWS,
        {"backbone": {"model": "/nowhere/model"}},
        "no directory /nowhere/model; expected a hub id, a directory",
    ),
}
"""rows, changes of the settings, and the message; the modules that refuse them are tested with many more"""


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_a_plan_is_written(case: str, run_spin: RunSpin, tmp_path: Path) -> None:
    """The command ends with status 2 and names the place of the mistake."""
    rows, changes, message = CASES[case]
    status, error = run_spin("extract", rows=rows, **changes)
    assert status == 2
    assert message in read_error_line(error)
    assert not (tmp_path / "store" / "features" / "plan.json").exists()


@pytest.mark.slow
def test_a_stage_names_the_stage_that_must_run_first(run_spin: RunSpin) -> None:
    """The command ends with status 2."""
    status, error = run_spin("probe", rows=ROWS)
    assert (status, "run `spin extract` first" in read_error_line(error)) == (2, True)


@pytest.mark.slow
def test_classify_without_a_champion_is_refused(run_spin: RunSpin, tmp_path: Path) -> None:
    """The command ends with status 2, names the command that makes a champion, and writes no output."""
    options = ("--input", str(tmp_path / "train.parquet"), "--output", str(tmp_path / "out"))
    status, error = run_spin("classify", *options, rows=ROWS)
    assert status == 2
    assert (
        "models:/tiny@champion does not exist; versions: none; `spin run` trains and registers one"
        in read_error_line(error)
    )
    assert not (tmp_path / "out").exists()


def test_an_activation_that_overflows_float16_names_its_site(run_spin: RunSpin, tmp_path: Path) -> None:
    """Column types are chosen from the first batch; here a later document exceeds the range of float16."""
    tokenizer = tiny.build_tokenizer(special=False)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    folder = tiny.save_backbone(tmp_path / "loud", config, tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors["wte.weight"][tokenizer.convert_tokens_to_ids("!")] *= 1e8
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [*tiny.make_documents(300), {"id": "loud", "text": "a film ! it was", "label": "good"}]
    status, error = run_spin("extract", rows=rows, backbone={"model": str(folder), "dtype": "float32", "device": "cpu"})
    assert status == 2
    assert "resid.00: a value of" in read_error_line(error)
    assert "does not fit its float16 column" in error
    store = Store(str(tmp_path / "store" / "features"))
    assert store.exists("plan.json")
    assert not store.exists("manifest.json")


@pytest.mark.slow
def test_a_store_that_another_run_uses_ends_with_status_3(run_spin: RunSpin, tmp_path: Path) -> None:
    """The message names the holder of the lease."""
    with Lease(Store(str(tmp_path / "store" / "features")), ttl=1.0) as lease:
        status, error = run_spin("extract", rows=ROWS)
    assert status == 3
    assert f"is held by {lease.holder}; wait until it ends" in read_error_line(error)


@pytest.mark.s3
def test_refused_s3_credentials_end_with_status_2(
    run_spin: RunSpin, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not contain the secret."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    status, error = run_spin("extract", rows=ROWS, store=f"{s3_server}/refused")
    assert status == 2
    assert "the store refuses the credentials" in read_error_line(error)
    assert "wrong-secret" not in error


@pytest.mark.slow
def test_an_unreachable_object_store_ends_with_status_5(run_spin: RunSpin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command can succeed later."""
    monkeypatch.setattr("pipelines.storage.filesystem._ATTEMPTS", 2)  # ten take half a minute
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    status, error = run_spin("extract", rows=ROWS, store="s3://bucket/prefix")
    assert status == 5
    assert "does not answer" in read_error_line(error)


def test_an_unreachable_registry_ends_with_status_5(run_spin: RunSpin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the registry and does not contain the password, which the environment holds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    status, error = run_spin("models", rows=ROWS, mlflow={"model": "tiny", "tracking_uri": "http://user@127.0.0.1:9"})
    assert status == 5
    assert "registry http://***@127.0.0.1:9" in read_error_line(error)
    assert "hunter2" not in error
