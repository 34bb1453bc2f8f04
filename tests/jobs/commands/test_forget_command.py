"""`spin forget`: what it prints about an output, with and without changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.commands import forget_commands
from pipelines.forget import forget
from pipelines.forget.forget import Forgotten, ForgottenInRegistry
from pipelines.forget.training_store import ForgottenInStore
from pipelines.nightly.forget.forget_nights import ForgottenRows
from tests.support.command_line import run_spin

OUTPUT = ForgottenRows(
    output="s3://bucket/out",
    at="2026-03-01T00:00:00+00:00",
    by="ada",
    models=("tweets",),
    ids=2,
    rows={"predictions": 3, "dead_letters": 1},
    rewritten={"old": "new"},
    given_up=("2026-03-01-tweets-000001",),
    labels=1,
)
DONE = Forgotten((OUTPUT,), ForgottenInStore(emptied=True, texts=2), (ForgottenInRegistry("tweets", 1, ("1", "3"), 2),))


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_forgotten_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    calls = []

    def pretend(settings: object, ids: list[str], outputs: list[str], *, dry_run: bool) -> Forgotten:
        calls.append((ids, outputs, dry_run))
        return DONE

    monkeypatch.setattr(forget, "forget_documents", pretend)
    monkeypatch.setattr(forget_commands, "load_settings", lambda *_: None)
    (tmp_path / "ids.txt").write_text("a\nb\n", encoding="utf-8")
    words = ["forget", "settings.yaml", "--ids", str(tmp_path / "ids.txt"), "--output", "s3://bucket/out"]
    words += ["--dry-run"] if dry_run else []
    printed = run_spin(capsys, monkeypatch, *words)
    assert calls == [(["a", "b"], ["s3://bucket/out"], dry_run)]
    assert ("2 ids, nothing is changed" in printed) == dry_run
    assert "s3://bucket/out: 3 predictions, 1 dead letter of 1 night, 1 label" in printed
    assert "given up: 2026-03-01-tweets-000001" in printed
    deleted = "would be" if dry_run else "are"
    assert f"store: what a training has learned, and the features of 2 texts {deleted} deleted" in printed
    assert "model tweets: 1 document of the evaluation set, 2 logged reports, neurons of versions 1, 3" in printed
    assert json.loads(run_spin(capsys, monkeypatch, *words, "--json"))["store"]["emptied"]


def test_versions_that_cannot_be_read_are_an_error_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all else was done and printed."""
    found = Forgotten(
        (), ForgottenInStore(), (ForgottenInRegistry("tweets", unreadable={"2": "version 2 has lost its files"}),)
    )
    monkeypatch.setattr(forget, "forget_documents", lambda *_, **__: found)
    monkeypatch.setattr(forget_commands, "load_settings", lambda *_: None)
    (tmp_path / "ids.txt").write_text("a\n", encoding="utf-8")
    error = run_spin(capsys, monkeypatch, "forget", "settings.yaml", "--ids", str(tmp_path / "ids.txt"), status=2)
    assert "1 version could not be read, so it is not known what they name: version 2 has lost its files" in error
