"""`smoke.sh` runs this in the image `cpu`: it trains on a tiny backbone and saves, or predicts from what was saved.

`python -m infra.images.smoke_model save|predict FOLDER`, in two containers, of which the second may write nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spin import SpinClassifier
from tests.support import tiny


def save(folder: Path) -> None:
    """Train on 200 texts that can be learned, and save the classifier beside its backbone."""
    rows = tiny.make_documents(200)
    backbone = tiny.save_bert(folder / "backbone")
    classifier = SpinClassifier(str(backbone)).fit([row["text"] for row in rows], [row["label"] for row in rows])
    classifier.save(folder / "classifier")


def predict(folder: Path) -> None:
    """Exit with a message unless most of 100 other texts get their labels."""
    rows = tiny.make_documents(100, seed=1)
    predicted = SpinClassifier.load(folder / "classifier").predict([row["text"] for row in rows])
    right = sum(label == row["label"] for label, row in zip(predicted, rows, strict=True))
    if right < 80:
        sys.exit(f"{right} of {len(rows)} labels from a saved folder are right; expected at least 80")
    print(f"{right} of {len(rows)} labels from a saved folder are right")


if __name__ == "__main__":
    {"save": save, "predict": predict}[sys.argv[1]](Path(sys.argv[2]))
