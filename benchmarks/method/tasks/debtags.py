"""The task `debtags`: descriptions of Debian packages, with any number of tags for each.

The volunteers of debtags describe packages by tags in facets: `role::program`, `implemented-in::perl`,
`works-with::audio`. The classes are the tags that at least 2,000 packages have, whatever their facet, without the
placeholders `…::TODO`: 12 tags that say what a package is, what it is written in, and its interface. With fewer
packages per tag there would be hundreds of classes. All packages with a field `Tag` count, also the few whose
tags are all rarer. Not every package has all tags that would suit it; so a part of what counts as wrong is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.method.corpora import Documents
from benchmarks.method.tasks.package_index import Package, read_packages
from benchmarks.method.tasks.task import MANY_CLASSES, ON_TWEETS, Size, Task

LEAST_PACKAGES = 2000
"""packages of a tag; rarer tags are left out"""
_PLACEHOLDER = "TODO"


def read(folder: Path) -> Documents:
    """The descriptions and tags in Debian's indices, which are downloaded into the folder."""
    return documents_by_tag(*read_packages(folder))


def documents_by_tag(packages: Sequence[Package], origin: str = "", least: int = LEAST_PACKAGES) -> Documents:
    """The description of each package that has tags, with those of them that at least `least` packages have."""
    tagged = [package for package in packages if package.tags]
    counts = Counter(tag for package in tagged for tag in package.tags)
    classes = {tag for tag, count in counts.items() if count >= least and not tag.endswith(_PLACEHOLDER)}
    labels = [[tag for tag in package.tags if tag in classes] for package in tagged]
    return Documents([p.description for p in tagged], labels, origin, [p.source for p in tagged])


DEBTAGS = Task(
    name="debtags",
    subject="tags of Debian packages",
    read=read,
    multilabel=True,
    # Estimated minutes of two processors, from rows timed on parts of the data: 24 for all labels (580 s per draw), 18
    # for 256 per class, which are 1,400 labels (430 s per draw, with cross-validation), 9 for 64 and 7 for 16, 15 for
    # the decoder (350 s per draw), and 5 to extract: 78 together.
    encoder=Size(16_000, 4000, 1000, 6000),
    decoder=Size(2500, 320, 80, 1500, classes=5),
    quick=(Size(1400, 840, 210, 350, classes=5), Size(1120, 800, 200, 120, 64, classes=5)),
    few={256: 5, 64: 5, 16: 5},
    left_out={**ON_TWEETS, **MANY_CLASSES},
    heading="The method on tags of Debian packages",
    about=(
        "The short and the long description of each package in Debian's indices that has tags. Its classes are those "
        "of its tags that at least 2,000 packages have; it may have any number of them, or none. Accuracy is the share "
        "of packages whose set of classes is exactly right. Few labels are at least so many packages of each class; "
        "one package counts for all of its classes. SmolLM2 has the 5 most frequent tags alone. Volunteers gave the "
        "tags, and not all that would suit. Packages of one source are never divided between training and test."
    ),
)
