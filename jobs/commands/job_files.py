"""Choose the files that `spin submit` sends: an allow-list, without links out of the folder and without credentials.

Both the names and the contents of files are looked at; files from which a backbone is loaded hold no text of people.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from jobs.commands.secret_scanner import find_secrets
from spin.backbone.digest import list_model_files
from spin.errors import UserError
from spin.settings import BackboneSettings

_CREDENTIALS = re.compile(
    r"""
    \.env(\..*)? | .*\.env | \.envrc                                           # variables of the environment
    | \.aws | \.azure | \.boto | \.databrickscfg | \.s3cfg | gcloud            # clouds
    | \.docker | \.dockercfg | \.kube | kubeconfig.*                           # clusters
    | \.git-credentials | \.htpasswd | [._]netrc | \.npmrc | \.pypirc          # servers
    | \.my\.cnf | \.pgpass | mlflow\.db.*                                      # databases; mlflow.db is a registry
    | \.gnupg | \.ssh | id_(dsa|ecdsa|ed25519|rsa).*                           # keys
    | .*\.(gpg|jks|kdbx|key|keystore|p12|pem|pfx|ppk)
    | \.secrets | \.vault-token | .*credentials(\..*)? | secrets?(\..*)?       # secrets by name
    | service[-_]account.*\.json | token(\.txt)?
    """,
    re.VERBOSE | re.DOTALL,
)
"""names of files and folders that usually hold credentials, in lower case"""
_LEFT_OUT = frozenset({".git", ".gitignore", ".rayignore", ".venv", "venv", "__pycache__"})
"""names that are never sent: Ray leaves out these folders, and what these lists name"""
_SHOWN = 5
"""number of refused files that a message names"""


def collect_files(settings: str, include: Sequence[str], backbone: BackboneSettings) -> dict[str, Path]:
    """The files that are sent, by their path in the working directory; values are the files that links lead to.

    These are the settings file, the files, folders and globs in `include`, and those files of a backbone given by a
    relative path from which a model is loaded. Raises UserError for a path out of the working directory, also by a
    link, for a name that looks like a credential, for a text that holds one, and for an entry of `include` that names
    nothing.
    """
    named = [Path(settings), *(name for entry in include for name in _included(entry))]
    chosen, loaded = _plain_files(named), _plain_files(_backbone_files(backbone))
    _refuse_credentials(chosen | loaded)
    _refuse_secrets({name: file for name, file in chosen.items() if name not in loaded})
    return chosen | loaded


def _plain_files(names: Iterable[Path]) -> dict[str, Path]:
    """The files that paths lead to, by path."""
    return {os.path.normpath(name): _plain_file(name) for name in names}


def _backbone_files(backbone: BackboneSettings) -> Iterable[Path]:
    """The files of a backbone in the working directory; nodes find every other one by themselves."""
    path = Path(backbone.model)
    if backbone.model.startswith("package:") or path.is_absolute():
        return []
    outward = path.parts[:1] == ("..",)
    if not path.exists() and not outward:
        return []
    if outward or not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise UserError(
            f"backbone.model is '{backbone.model}', which leads out of the working directory; expected a folder in it, "
            "an absolute path that all nodes share, or the id of a model on the hub"
        )
    return list_model_files(path, include_code=backbone.trust_remote_code) if path.is_dir() else [path]


def _included(entry: str) -> list[Path]:
    """The files that an entry of `--include` names."""
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise UserError(f"--include {entry}: expected a file, a folder or a glob inside the working directory")
    matches = [entry] if os.path.lexists(entry) else sorted(glob.glob(entry, recursive=True))
    paths = [Path(match) for match in matches if not _LEFT_OUT.intersection(Path(match).parts)]
    files = [file for path in paths for file in _walk(path)]
    if not files:
        raise UserError(
            f"--include {entry}: names no file that is sent; expected a file, a folder or a glob of this folder"
        )
    return files


def _walk(path: Path) -> Iterator[Path]:
    """A file, or all files below a folder."""
    if not _target(path).is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise UserError(
                    f"{Path(folder) / name} is a link to a folder, which is not followed; include the folder"
                )
        yield from (Path(folder) / name for name in sorted(files) if name not in _LEFT_OUT)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}; include what can be")


def _target(path: Path) -> Path:
    """The file or folder that a path leads to. Raises UserError if that is not in the working directory."""
    target = path.resolve()
    if not target.is_relative_to(Path.cwd().resolve()):
        raise UserError(
            f"{path} leads out of the working directory, to {target}; it is not sent: put a copy in its place"
        )
    return target


def _plain_file(path: Path) -> Path:
    """The file that a path leads to. Raises UserError if it is not a file in the working directory."""
    file = _target(path)
    if not file.is_file():
        raise UserError(f"{path} is not a file that can be sent; expected a plain file")
    return file


def _refuse_credentials(files: dict[str, Path]) -> None:
    """Raise UserError that names the files with refused names; the target of a link counts as the link does."""
    root = Path.cwd().resolve()
    refused = [
        name
        for name, file in files.items()
        if any(map(looks_like_credential, {*Path(name).parts, *file.relative_to(root).parts}))
    ]
    if refused:
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise UserError(
            f"{', '.join(refused[:_SHOWN])}{more}: looks like a credential, which everybody who sees the cluster could "
            "read; jobs use those of their nodes: name what to send more narrowly with --include, or rename the file"
        )


def _refuse_secrets(files: dict[str, Path]) -> None:
    """Raise UserError that names the files that hold a secret, and where."""
    found = [f"{name} {secret}" for name, secret in find_secrets(files).items()]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(
            f"{'; '.join(found[:_SHOWN])}{more}: looks like a secret, which everybody who sees the cluster could read; "
            "jobs use those of their nodes: take it out, or if it is none, end its line with "
            "`# pragma: allowlist secret`"
        )


def looks_like_credential(name: str) -> bool:
    """Whether a file or folder of this name usually holds credentials."""
    return _CREDENTIALS.fullmatch(name.casefold()) is not None
