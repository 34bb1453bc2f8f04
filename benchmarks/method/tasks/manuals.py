"""The task `manuals`: manual pages of Debian packages, classified by the section of the manual.

The sections are commands (1), system calls (2), library functions (3), devices (4), file formats (5), miscellany (7),
administration (8) and the kernel (9). The packages are chosen so that each section has several of them, except the
kernel's, which only FreeBSD's manual has; that manual has system calls and devices as well. The texts do not name the
section: see `manual_page.clean`. They are long, and a backbone reads their first tokens only, while the rows with
words read all of them.

Pages that share half of their sequences of four words, a tenth of all, are never divided between training and test.
Pages of one package are: a few packages have most pages of some sections, and could not be divided in proportion. So
the figures are those for new pages of known packages.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.method.corpora import Documents
from benchmarks.method.groups import group_similar
from benchmarks.method.tasks.apt import PrivateApt
from benchmarks.method.tasks.manual_page import ManualPage, download_sources, render_page
from benchmarks.method.tasks.task import MANY_CLASSES, ON_TWEETS, Size, Task

PACKAGES = (
    "manpages", "manpages-dev", "perl-doc", "freebsd-manpages",
    # commands
    "alsa-utils", "coreutils", "debhelper", "devscripts", "dovecot-core", "gdal-bin", "git-man", "guestfs-tools",
    "lttng-tools", "mariadb-client", "nbdkit", "netpbm", "pcp", "procps", "util-linux", "x11-apps",
    # functions
    "libcurl4-doc", "libibverbs-dev", "libldap-dev", "libpcap0.8-dev", "libssl-doc", "libsystemd-dev", "libx11-doc",
    "ncurses-doc", "opengl-4-man-doc", "tcl8.6-doc", "tk8.6-doc",
    # formats and miscellany
    "cmake-data", "dpkg-dev", "inn2", "libfabric-dev", "libsane-common", "libvirt-clients", "openssl", "postfix",
    "samba-common-bin", "slapd", "slurm-client", "systemd",
    # administration
    "auditd", "bind9", "btrfs-progs", "cryptsetup-bin", "e2fsprogs", "exim4-base", "freeipmi-tools", "hylafax-server",
    "iproute2", "iptables", "lvm2", "nfs-common", "nut-server", "passwd", "quota", "samba", "xfsprogs",
)  # fmt: skip
LEAST_PAGES = 100
"""pages of a section; smaller sections, which is games, are left out"""


def read(folder: Path) -> Documents:
    """The pages of all packages, which are downloaded into the folder. Raises UserError without groff."""
    apt = PrivateApt(folder / "apt")
    apt.update()
    sources = download_sources(apt, folder, PACKAGES)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return documents_by_section(list(pool.map(render_page, sources)), apt.release())


def documents_by_section(pages: Sequence[ManualPage], origin: str = "", least: int = LEAST_PAGES) -> Documents:
    """The text of each page with its section, without sections of fewer than `least` pages and pages without text."""
    pages = [page for page in pages if page.text]
    counts = Counter(page.section for page in pages)
    kept = [page for page in pages if counts[page.section] >= least]
    texts = [page.text for page in kept]
    return Documents(texts, [page.section for page in kept], origin, group_similar(texts))


MANUALS = Task(
    name="manuals",
    subject="manual pages",
    read=read,
    # Estimated minutes of two processors, from rows timed on parts of the data: 28 for all labels (650 s per draw), 23
    # for 256 per class (550 s per draw, with cross-validation), 5 for 64 and 4 for 16, 16 for the decoder (380 s per
    # draw), and 8 to render and extract: 84 together.
    encoder=Size(8000, 4000, 1000, 2500, 512),
    decoder=Size(1600, 320, 80, 1000, classes=5),
    quick=(Size(1400, 840, 210, 350, classes=5), Size(1120, 800, 200, 120, 64, classes=5)),
    few={256: 5, 64: 2, 16: 5},
    left_out={**ON_TWEETS, **MANY_CLASSES},
    heading="The method on manual pages",
    about=(
        "Manual pages of Debian packages, classified by the section of the manual, which the texts do not name. Pages "
        "that share half of their sequences of four words are never divided; pages of one package are. "
        "MiniLM reads the first 512 tokens of a page, SmolLM2 256, of the 5 largest sections alone, and the rows with "
        "words all of it."
    ),
)
