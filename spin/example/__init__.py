"""Short reviews, each labelled good or bad, that ship with the package: to try it on, not to measure it by."""

from __future__ import annotations

import json
from importlib.resources import files

REVIEWS, BATCH = "reviews.jsonl", "batch.jsonl"
"""files in this folder: 200 reviews with id, text and label, and 20 others with id and text"""


def read_example(name: str) -> str:
    """The lines of one of the files, each a JSON object."""
    return (files("spin.example") / name).read_text(encoding="utf-8")


def load_reviews() -> tuple[list[str], list[str]]:
    """The texts of the labelled reviews, and the label of each."""
    rows = [json.loads(line) for line in read_example(REVIEWS).splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]
