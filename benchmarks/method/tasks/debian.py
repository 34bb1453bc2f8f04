"""The task `debian`: descriptions of Debian packages, classified by the section of the archive.

Texts are the short and the long description; the name of a package, which often names its section, is not among them.
A section counts if it has at least 100 packages of at least 50 sources in the areas main, contrib and non-free.
There are 48, and the largest has sixty times the packages of the smallest. Packages that are built from one source,
which often share a paragraph, are never divided between training and test: the figures are those for packages of new
sources. (So `tasks`, which has two sources, could not be learned.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.method.corpora import Documents
from benchmarks.method.tasks.package_index import Package, read_packages
from benchmarks.method.tasks.task import MANY_CLASSES, ON_TWEETS, Size, Task

LEAST_PACKAGES, LEAST_SOURCES = 100, 50
"""of a section; smaller sections are left out"""


def read(folder: Path) -> Documents:
    """The descriptions and sections in Debian's indices, which are downloaded into the folder."""
    return documents_by_section(*read_packages(folder))


def documents_by_section(
    packages: Sequence[Package], origin: str = "", least: int = LEAST_PACKAGES, least_sources: int = LEAST_SOURCES
) -> Documents:
    """The description of each package with its section, without sections of fewer packages or sources than `least`."""
    counts = Counter(package.section for package in packages)
    sources = Counter(section for section, _ in {(package.section, package.source) for package in packages})
    large = {section for section in counts if counts[section] >= least and sources[section] >= least_sources}
    kept = [package for package in packages if package.section in large]
    return Documents([p.description for p in kept], [p.section for p in kept], origin, [p.source for p in kept])


DEBIAN = Task(
    name="debian",
    subject="Debian packages",
    read=read,
    # Large sources find no room on small sides, so that these stay 1 % below their sizes: 5,000 labels have to be left,
    # since training would cross-validate fewer, for five times the time. Estimated minutes of two processors, from rows
    # timed on parts of the data: 33 for all labels (790 s per draw, 440 of SPIN), 14 for 16 per class
    # (760 s per draw), 15 for the decoder (350 s per draw), and 5 to extract: 67 together.
    encoder=Size(20_000, 4120, 1030, 6000),
    decoder=Size(2500, 320, 80, 1500, classes=5),
    quick=(Size(1400, 840, 210, 350, classes=5), Size(1120, 800, 200, 120, 64, classes=5)),
    few={16: 2},
    left_out={**ON_TWEETS, **MANY_CLASSES},
    heading="The method on Debian packages",
    about=(
        "The short and the long description of each package in Debian's indices, classified by its section. A section "
        "counts if it has at least 100 packages of 50 sources; where labels are few, a class that has fewer documents "
        "to learn from gives all of them. SmolLM2 has the 5 largest sections alone. Packages of one source are never "
        "divided between training and test."
    ),
)
