"""Export a classifier to ONNX and answer requests with ONNX Runtime alone.

    python examples/export_and_serve.py [FOLDER] [--to FOLDER]

FOLDER is a saved classifier, such as the one of learn.py. A server needs the exported folder, onnxruntime, tokenizers
and numpy: `GraphClassifier` imports nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class GraphClassifier:
    """An exported classifier of one class per document."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the class of each text."""
        tokens = self.tokenizer.encode_batch(list(texts))
        ids = np.array([token.ids for token in tokens])
        mask = np.array([token.attention_mask for token in tokens])
        [scores] = self.session.run(["scores"], {"input_ids": ids, "attention_mask": mask})
        return [self.config["classes"][index] for index in (scores / self.config["thresholds"]).argmax(1)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/example/model"))
    parser.add_argument("--to", type=Path, default=Path("runs/example/exported"))
    options = parser.parse_args(arguments)

    from spin import SpinClassifier
    from spin.export import export

    spin = SpinClassifier.load(options.folder)
    export(spin, options.to, "onnx")
    texts = ["the crew was lovely", "we sat on the runway for hours"]
    answers = GraphClassifier(options.to).predict(texts)
    for text, graph, torch in zip(texts, answers, spin.predict(texts), strict=True):
        print(f"{text}: {graph} (PyTorch: {torch})")


if __name__ == "__main__":
    main()
