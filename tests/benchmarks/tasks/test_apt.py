"""Debian's archive through apt, against an archive in a folder: nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from benchmarks.method.tasks import apt, package_index
from benchmarks.method.tasks.apt import PrivateApt, unpack
from benchmarks.method.tasks.package_index import read_packages
from spin.errors import UserError

CONTROL = """\
Package: atlas
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.org>
Section: contrib/games
Tag: role::program
Description: map of the world
Description-md5: 0123456789abcdef0123456789abcdef
"""

TRANSLATION = """\
Package: atlas
Description-md5: 0123456789abcdef0123456789abcdef
Description-en: map of the world
 Shows the whole
 world.
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of one package with one file, as apt finds it under a URI `file:`."""
    root = tmp_path_factory.mktemp("archive")
    content = root / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "usr/share").mkdir(parents=True)
    (content / "usr/share/map").write_text("here be dragons")
    (content / "DEBIAN/control").write_text(CONTROL)
    deb = root / "atlas_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", content, deb], check=True, capture_output=True)
    data = deb.read_bytes()
    file = f"Filename: {deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    suite = root / "dists/test"
    indices = {"main/binary-amd64/Packages": CONTROL + file, "main/i18n/Translation-en": TRANSLATION}
    lines = [
        "Origin: Tests",
        "Version: 1.2",
        "Suite: test",
        "Codename: test",
        "Architectures: amd64",
        "Components: main",
    ]
    lines += ["Date: Thu, 01 Jan 2026 00:00:00 UTC", "SHA256:"]
    for name, text in indices.items():
        (suite / name).parent.mkdir(parents=True)
        (suite / name).write_text(text)
        lines.append(f" {hashlib.sha256(text.encode()).hexdigest()} {len(text)} {name}")
    (suite / "Release").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def private_apt(archive: Path, tmp_path: Path) -> PrivateApt:
    """apt with the archive in a folder whose name has a space."""
    return PrivateApt(tmp_path / "a folder/apt", f"deb [trusted=yes] file:{archive} test main")


@pytest.mark.apt
def test_indices_and_packages_of_an_archive_are_read(private_apt: PrivateApt, tmp_path: Path) -> None:
    """A second call reads nothing anew."""
    private_apt.update()
    [packages], [translations] = (private_apt.indices(kind) for kind in ("Packages", "Translations"))
    assert "Section: contrib/games" in packages.read_text(encoding="utf-8")
    assert "Shows the whole" in translations.read_text(encoding="utf-8")
    assert private_apt.release() == "Tests 1.2"
    [deb] = private_apt.download(["atlas"])
    unpack(deb, tmp_path / "unpacked/atlas")
    assert (tmp_path / "unpacked/atlas/usr/share/map").read_text() == "here be dragons"
    before = os.stat(packages).st_mtime_ns, os.stat(deb).st_mtime_ns
    private_apt.update()
    assert private_apt.download(["atlas"]) == [deb]
    assert (os.stat(packages).st_mtime_ns, os.stat(deb).st_mtime_ns) == before
    with pytest.raises(UserError, match="apt-get download failed: .*Unable to locate package utopia"):
        private_apt.download(["atlas", "utopia"])


@pytest.mark.apt
def test_all_files_are_private_and_hooks_of_the_machine_do_not_run(
    private_apt: PrivateApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    configuration = tmp_path / "apt.conf"
    hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
    configuration.write_text("".join(f'APT::Update::{hook} {{ "touch {ran}"; }};\n' for hook in hooks))
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    private_apt.update()
    assert not ran.exists()
    found = [file for kind in ("Packages", "Translations") for file in private_apt.indices(kind)]
    assert all(file.is_relative_to(private_apt.folder) for file in found)


@pytest.mark.apt
def test_other_sources_are_read_anew(private_apt: PrivateApt, tmp_path: Path) -> None:
    private_apt.update()
    gone = PrivateApt(private_apt.folder, f"deb [trusted=yes] file:{tmp_path}/gone test main")
    with pytest.raises(UserError, match="apt-get update failed"):
        gone.update()


@pytest.mark.apt
def test_packages_are_those_of_the_indices(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = partial(PrivateApt, sources=f"deb [trusted=yes] file:{archive} test main")
    monkeypatch.setattr(package_index, "PrivateApt", local)
    [atlas], origin = read_packages(tmp_path)
    assert (atlas.name, atlas.section, atlas.tags) == ("atlas", "games", ("role::program",))
    assert atlas.description == "map of the world\nShows the whole world."
    assert origin == "Tests 1.2"


def test_without_apt_the_error_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="found no apt-get"):
        PrivateApt(tmp_path).update()


def test_an_interrupted_unpacking_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(apt.subprocess, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "atlas.deb", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
