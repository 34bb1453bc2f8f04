"""Explain a prediction: the words and neurons that led to it, and a page that shows them.

    python examples/explain.py [FOLDER] [--text TEXT] [--html FILE]

FOLDER is a saved classifier, such as the one of learn.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spin import SpinClassifier
from spin.pages.explanation_page import explanation_page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/example/model"))
    parser.add_argument("--text", default="the crew was lovely but we sat on the runway for hours")
    parser.add_argument("--html", type=Path, default=Path("runs/example/why.html"))
    options = parser.parse_args(arguments)

    explanation = SpinClassifier.load(options.folder).explain(options.text)
    label = explanation.classes.index(explanation.label)
    print(f"{explanation.label}, probability {explanation.probabilities[label]:.2f}")
    for index, contribution in enumerate(explanation.word_contributions[:, label]):
        print(f"{contribution:+7.2f}  {explanation.word(index)}")
    for neuron in explanation.top(5):
        print(f"{neuron.contribution:+7.2f}  {neuron.column}[{neuron.neuron}] on “{neuron.word}”")

    options.html.parent.mkdir(parents=True, exist_ok=True)
    options.html.write_text(explanation_page(explanation, {}, title=options.folder.name), encoding="utf-8")
    print(f"wrote {options.html}")


if __name__ == "__main__":
    main()
