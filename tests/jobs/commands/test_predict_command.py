"""`spin predict` classifies single texts by a saved classifier, in lines and as JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from spin import SpinClassifier
from spin.settings import BackboneSettings, ProbeSettings, SearchSettings
from tests.support import tiny

TEXTS = ("the crew was lovely and warm", "the film was  awful")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def saved(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved classifier with the classes good and bad."""
    rows = tiny.make_documents(120)
    backbone = BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu", engine="torch")
    search = SearchSettings(etas=(0.5,), strengths=(1.0,), l1=(), head="linear")
    probe = ProbeSettings(penalties=2, max_extra=0)
    spin = SpinClassifier(backbone, sites=["resid"], poolings=["mean"], search=search, probe=probe)
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    spin.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder)
    return folder


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `spin predict` with words and lines of input; returns status, output and errors."""

    def run(*words: str, lines: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spin", "predict", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, *capsys.readouterr()

    return run


def test_each_text_is_a_line_with_label_and_probability(predict: Run, saved: Path) -> None:
    """Texts come from options or from standard input."""
    spin = SpinClassifier.load(saved)
    good, bad = (f"{score:.2f}" for score in spin.predict_proba(TEXTS).max(axis=1))
    expected = f"good {good}  {TEXTS[0]}\nbad  {bad}  the film was awful\n"
    given = predict(str(saved), "--text", TEXTS[0], "--text", TEXTS[1])
    assert given[:2] == (0, expected)
    assert predict(str(saved), lines="\n".join(["", *TEXTS]))[:2] == (0, expected)


def test_json_has_the_probability_of_every_class(predict: Run, saved: Path) -> None:
    status, out, _ = predict(str(saved), "--text", TEXTS[0], "--json")
    [entry] = json.loads(out)
    assert (status, entry["text"], entry["label"]) == (0, TEXTS[0], "good")
    assert entry["scores"]["good"] == entry["score"]
    assert sum(entry["scores"].values()) == pytest.approx(1)


def test_what_cannot_be_classified_is_refused(predict: Run, saved: Path) -> None:
    """No text, an option that a saved classifier has no use for, and a name of nothing: status 2 and one line."""
    for words, message in (
        ([str(saved)], "found no text to classify; expected --text, or lines on standard input"),
        ([str(saved), "--text", "fine", "--model", "models:/a/1"], "--model models:/a/1 is for registered models"),
        (["nothing.yaml", "--text", "fine"], "no settings file at nothing.yaml; `spin init nothing.yaml` writes one"),
    ):
        status, out, error = predict(*words)
        assert (status, out) == (2, "")
        assert message in error
