"""Signatures of registered versions by OpenSSF model signing, with keys and without a network.

A version has one for its artifact, which nights read, and one for all that is logged. The name of each holds the digest
of the files that it is for. So new signatures lie beside the old ones before files are replaced, and one of them fits
whatever is there.
"""

from __future__ import annotations

import base64
import json
import logging
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipelines.registry.packaging import SPIN, file_digests, folder_digest
from spin.errors import UserError, describe_error
from spin_neurons import install_command

FOLDER = "signatures"
"""folder of a logged model, no part of its digest"""
Part = Literal["artifact", "model"]
PARTS: dict[Part, str] = {"artifact": SPIN, "model": ""}
"""what is signed by itself, with its folder in a logged model"""

T = TypeVar("T")
_log = logging.getLogger(__name__)


def sign_model(model: Path, folder: Path, private_key: str, public_key: str | None) -> None:
    """Write the signatures of a logged model into a new folder.

    Raises UserError for a key that cannot be used, and for a public key, if one is given, that does not belong to it.
    """
    _require_library()
    from model_signing import signing

    folder.mkdir()
    config = signing.Config().set_hashing_config(_every_file())
    config = _use_key("registry.sign", private_key, lambda: config.use_elliptic_key_signer(private_key=private_key))
    for part, place in PARTS.items():
        config.sign(model / place, folder / f"{part}-{folder_digest(model / place)}.sig")
    if public_key is not None and find_fault("artifact", model / SPIN, folder, public_key) is not None:
        raise UserError(
            f"registry.verify: {public_key} does not belong to {private_key}, by which registry.sign lets versions be "
            "signed; name the two files of one pair"
        )


def require_keys(private_key: str, public_key: str | None) -> None:
    """Sign a trial. Raises UserError where `sign_model` would."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / "model"
        (trial / SPIN).mkdir(parents=True)
        (trial / SPIN / "trial").touch()
        sign_model(trial, Path(scratch) / FOLDER, private_key, public_key)


def find_fault(part: Part, files: Path, folder: Path, public_key: str) -> str | None:
    """Why no signature in a folder by a key is for exactly these files, which names the first that differs, or None.

    Raises UserError for a key that cannot be used.
    """
    _require_library()
    from model_signing import verifying

    config = verifying.Config().set_hashing_config(_every_file())
    config = _use_key("registry.verify", public_key, lambda: config.use_elliptic_key_verifier(public_key=public_key))
    exact = folder / f"{part}-{folder_digest(files)}.sig"
    signatures = [exact] if exact.is_file() else sorted(folder.glob(f"{part}-*.sig"))
    if not signatures:
        return f"is not signed, expected a signature by the key of {public_key}"
    try:
        config.verify(files, signatures[-1])
    except Exception as error:  # whatever a file that somebody else may have written makes the library raise
        _log.debug("%s is not valid for %s", signatures[-1].name, files, exc_info=True)
        reason = describe_error(error).removeprefix("ValueError: ").rstrip(". ")
        if str(error).startswith("Signature mismatch"):
            reason = _name_altered(files, signatures[-1])
        return f"has no valid signature by the key of {public_key}: {reason}"
    return None


def _name_altered(files: Path, signature: Path) -> str:
    """The first of the files that a valid signature is not for, as the library does, but readable."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
    signed, found = {each["name"]: each["digest"] for each in resources}, file_digests(files)
    [name, *others] = sorted(name for name in signed.keys() | found.keys() if signed.get(name) != found.get(name))
    state = "is not signed" if name not in signed else "is missing" if name not in found else "is not as it was signed"
    return f"{name} {state}" + (f", and {len(others):,} more differ" if others else "")


def write_public_key(private_key: str, file: Path) -> None:
    """Write the public key that belongs to a private one to a file."""
    from cryptography.hazmat.primitives import serialization

    key = _use_key(
        "registry.sign",
        private_key,
        lambda: serialization.load_pem_private_key(Path(private_key).read_bytes(), password=None),
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    file.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def _every_file() -> Any:
    """The files that are hashed: all of a folder, also those of git, which are left out by default."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _use_key(setting: str, file: str, use: Callable[[], T]) -> T:
    try:
        return use()
    except Exception as error:  # a file that holds no key, another kind of key, or one with a password
        _log.debug("%s is no key", file, exc_info=True)
        raise UserError(
            f"{setting}: {file} cannot be used: {describe_error(error)}; expected a PEM file with a key on the curve "
            "P-256, P-384 or P-521, without a password"
        ) from None


def _require_library() -> None:
    if find_spec("model_signing") is None:
        raise UserError(
            f"registry.sign and registry.verify need model-signing, not installed here; run: {install_command('sign')}"
        )
