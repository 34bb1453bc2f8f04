"""Export a classifier to ONNX and answer requests with ONNX Runtime alone.

    python examples/export_and_serve.py [FOLDER] [--to FOLDER]

FOLDER is a saved classifier, such as the one of learn.py. A server needs the exported folder, onnxruntime, tokenizers,
numpy and, for a classifier that counts words, scikit-learn: `GraphClassifier` imports nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer

_INPUTS = ("ids", "attention_mask")


class GraphClassifier:
    """An exported classifier of one class per document."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        self.words = WordLogits(folder, self.config) if self.config["words"] else None

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the class of each text."""
        if self.config["long_texts"] == "windows":  # a run takes the windows of one text
            scores = np.concatenate([self._run([text], *self._encode_windows(text)) for text in texts])
        else:
            tokens = self.tokenizer.encode_batch(list(texts))
            scores = self._run(texts, *(np.array([getattr(t, name) for t in tokens]) for name in _INPUTS))
        return [self.config["classes"][index] for index in (scores / self.config["thresholds"]).argmax(1)]

    def _encode_windows(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and mask of the windows of a text; the mask is 2 where a window repeats the one before."""
        tokens = self.tokenizer.encode(text)
        windows = [tokens, *tokens.overflowing][: self.config["max_windows"]]
        ids, mask = (np.array([getattr(window, name) for window in windows]) for name in _INPUTS)
        for row, window in zip(mask[1:], windows[1:], strict=True):
            start = window.special_tokens_mask.index(0)
            row[start : start + self.config["window_overlap"]] = 2
        return ids, mask

    def _run(self, texts: Sequence[str], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.words is not None:
            inputs["words"] = self.words(texts)
        read = {graph_input.name: inputs[graph_input.name] for graph_input in self.session.get_inputs()}
        [scores] = self.session.run(["scores"], read)
        return np.asarray(scores)


class WordLogits:
    """The word regression of an exported classifier."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.weights = dict(np.load(folder / "words.npz"))
        self.characters_read = config["characters_read"]
        self.vectorizers = {}
        for unit, arguments in config["words"].items():
            terms = self.weights[f"{unit}.terms"].tobytes().decode().split("\n")
            vectorizer = TfidfVectorizer(vocabulary=terms, sublinear_tf=True, dtype=np.float32, **arguments)
            vectorizer.idf_ = self.weights[f"{unit}.idf"]
            self.vectorizers[unit] = vectorizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the logits of each text, one per class."""
        beginnings = [text[: self.characters_read] for text in texts]
        parts = [v.transform(beginnings if unit == "characters" else texts) for unit, v in self.vectorizers.items()]
        logits = hstack(parts) @ self.weights["coef"].T.astype(np.float32) + self.weights["intercept"]
        return logits.astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/example/model"))
    parser.add_argument("--to", type=Path, default=Path("runs/example/exported"))
    options = parser.parse_args(arguments)

    from spin import TrainedClassifier
    from spin.export import export

    spin = TrainedClassifier.load(options.folder)
    export(spin, options.to, "onnx")
    texts = ["the crew was lovely", "we sat on the runway for hours"]
    answers = GraphClassifier(options.to).predict(texts)
    for text, graph, torch in zip(texts, answers, spin.predict(texts), strict=True):
        print(f"{text}: {graph} (PyTorch: {torch})")


if __name__ == "__main__":
    main()
