"""`spin predict` classifies single texts by a saved classifier, in lines and as JSON."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from spin import SpinClassifier
from tests.support.command_line import CallSpin

TEXTS = ("the crew was lovely and warm", "the film was  awful")


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, call_spin: CallSpin) -> CallSpin:
    """A function that runs `spin predict` with words and lines of input; returns status, output and errors."""

    def run(*words: str, lines: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return call_spin("predict", *words)

    return run


def test_each_text_is_a_line_with_label_and_probability(predict: CallSpin, saved: Path) -> None:
    """Texts come from options or from standard input."""
    spin = SpinClassifier.load(saved)
    good, bad = (f"{score:.2f}" for score in spin.predict_proba(TEXTS).max(axis=1))
    expected = f"good {good}  {TEXTS[0]}\nbad  {bad}  the film was awful\n"
    given = predict(str(saved), "--text", TEXTS[0], "--text", TEXTS[1])
    assert given[:2] == (0, expected)
    assert predict(str(saved), lines="\n".join(["", *TEXTS]))[:2] == (0, expected)


def test_json_has_the_probability_of_every_class(predict: CallSpin, saved: Path) -> None:
    status, out, _ = predict(str(saved), "--text", TEXTS[0], "--json")
    [entry] = json.loads(out)
    assert (status, entry["text"], entry["label"]) == (0, TEXTS[0], "good")
    assert entry["scores"]["good"] == entry["score"]
    assert sum(entry["scores"].values()) == pytest.approx(1)


def test_what_cannot_be_classified_is_refused(predict: CallSpin, saved: Path) -> None:
    """No text, an option that a saved classifier has no use for, and a name of nothing: status 2 and one line."""
    for words, message in (
        ([str(saved)], "found no text to classify; expected --text, or lines on standard input"),
        ([str(saved), "--text", "fine", "--model", "models:/a/1"], "--model models:/a/1 is for registered models"),
        (["nothing.yaml", "--text", "fine"], "no settings file at nothing.yaml; `spin init nothing.yaml` writes one"),
    ):
        status, out, error = predict(*words)
        assert (status, out) == (2, "")
        assert message in error
