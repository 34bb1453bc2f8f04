"""Debian's archive through apt, in a folder of its own: the lists and the cache of the machine are left as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spin.errors import UserError

SUITE = "trixie"
DEBIAN = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    f"http://deb.debian.org/debian {SUITE} main contrib non-free"
)
"""a line of sources.list; the keyring is that of the package debian-archive-keyring"""
_ARCHITECTURE = "amd64"
"""of every machine, so that all read the same indices"""
_CONFIGURATION = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures "{architecture}";
APT::Update::Error-Mode "any";
Acquire::GzipIndexes "false";
// apt started by root would else read as another user, which may not enter the folder
APT::Sandbox::User "";
// what the machine does after an update concerns its own lists
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
_LAST_LINES = 3


@dataclass(frozen=True)
class PrivateApt:
    """apt with its own sources, lists and cache under a folder. Needs no root; proxies are those of the machine."""

    folder: Path
    sources: str = DEBIAN
    """the lines of sources.list"""

    def update(self) -> None:
        """Download the indices, with English descriptions; those that an earlier call read from these sources are kept.

        Raises UserError if apt is missing or fails.
        """
        finished = self.folder / "updated"
        if finished.exists() and finished.read_text(encoding="utf-8") == self.sources:
            return
        self._run("update")
        finished.write_text(self.sources, encoding="utf-8")

    def indices(self, kind: str) -> list[Path]:
        """The downloaded indices of a kind, `Packages` or `Translations`, one per area of the archive."""
        output = self._run("indextargets", "--format", "$(FILENAME)", f"Created-By: {kind}")
        return [Path(line) for line in output.splitlines()]

    def release(self) -> str:
        """The name and version of the archive, such as `Debian 13.8`."""
        output = self._run("indextargets", "--format", "$(ORIGIN) $(VERSION)", "Created-By: Packages")
        return output.partition("\n")[0]

    def download(self, packages: Sequence[str]) -> list[Path]:
        """The .deb files of packages, in their order; those that an earlier call downloaded are kept.

        Raises UserError if the archive has no such package.
        """
        folder, begun = self.folder / "packages", self.folder / "packages/begun"
        begun.mkdir(parents=True, exist_ok=True)
        missing = [name for name in packages if not any(folder.glob(f"{name}_*.deb"))]
        if missing:
            self._run("download", *missing, folder=begun)
            for file in begun.glob("*.deb"):
                file.replace(folder / file.name)
        return [next(folder.glob(f"{name}_*.deb")) for name in packages]

    def _run(self, *arguments: str, folder: Path | None = None) -> str:
        """The output of apt-get."""
        if shutil.which("apt-get") is None:
            raise UserError("found no apt-get; the texts of this task are read through the apt of a Debian machine")
        command = ["apt-get", "--quiet", "-c", self._configure(), "-o", "Acquire::Languages=en", *arguments]
        environment = os.environ | {"LC_ALL": "C"}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            reasons = result.stderr.strip().splitlines()[-_LAST_LINES:]
            raise UserError(f"apt-get {arguments[0]} failed: {' '.join(reasons)}")
        return result.stdout

    def _configure(self) -> Path:
        """Write the files that apt wants to find, and return that of its configuration."""
        folder = self.folder.resolve()
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        (folder / "sources.list").write_text(f"{self.sources}\n", encoding="utf-8")
        configuration = folder / "apt.conf"
        text = _CONFIGURATION.format(folder=folder, architecture=_ARCHITECTURE)
        configuration.write_text(text, encoding="utf-8")
        return configuration


def unpack(package: Path, folder: Path) -> None:
    """Unpack the files of a .deb file into a folder, unless it exists."""
    if folder.exists():
        return
    begun = folder.with_name(f"{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--extract", str(package), str(begun)], check=True)
    begun.replace(folder)
