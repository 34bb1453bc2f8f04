"""Find secrets in what `spin submit` sends, by detect-secrets; it asks no server whether one is in use."""

from __future__ import annotations

import codecs
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from spin.errors import UserError
from spin.settings import holds_secret, mask_credentials
from spin_neurons import install_command

_LARGEST = 1_000_000
"""bytes of the largest file that is read; larger ones are data or weights, of which names alone are looked at"""
_THOROUGH = 4_000_000
"""bytes in all that detect-secrets reads, which takes several seconds per million"""
_TOO_COARSE = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})
"""detectors that take digests, ids and addresses for secrets"""
_NAMES_A_VARIABLE = r"\w_env\b"
"""a setting that names the variable in which a key is, such as `key_env`"""
_ALLOWED = "pragma: allowlist secret"

_log = logging.getLogger(__name__)


def find_secrets(files: Mapping[str, Path]) -> dict[str, str]:
    """Where and of which kind the first secret in each of some files is, by their names; other files are left out.

    A warning names how many files were searched by a few patterns alone, or not at all.
    """
    found, left, brief, unread = {}, _THOROUGH, 0, 0
    for name, file in sorted(files.items(), key=lambda pair: pair[1].stat().st_size):
        size = file.stat().st_size
        if size > _LARGEST:
            unread += 1
            continue
        left -= size
        brief += left < 0
        secret = find_secret(file, thorough=left >= 0)
        if secret is not None:
            found[name] = secret
    if brief or unread:
        _log.warning(
            "secrets: %d files were searched for keys and tokens of known forms alone, since all files together have "
            "more than %d MB, and %d files of more than %d MB were not searched",
            *(brief, _THOROUGH // 10**6, unread, _LARGEST // 10**6),
        )
    return {name: found[name] for name in files if name in found}


def find_secret(file: Path, *, thorough: bool = True) -> str | None:
    """Where and of which kind the first secret in a file is; None if none is found.

    Unless it is `thorough`, it finds what is named like a secret, and keys of known forms.
    """
    text = _decode(file.read_bytes())
    if thorough:
        with tempfile.TemporaryDirectory() as folder, _scanner():
            from detect_secrets.core.scan import scan_file

            # it leaves out, in silence, a file that is not UTF-8
            readable = Path(folder) / file.name
            readable.write_text(text, encoding="utf-8")
            found = next(iter(scan_file(str(readable))), None)
        if found is not None:
            return f"line {found.line_number}: {found.type}"
    for number, line in enumerate(text.split("\n"), start=1):
        if _ALLOWED not in line and holds_secret(line):
            return f"line {number}: Credential"
    return None


def _decode(data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 as its first bytes say; all else is replaced."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8", errors="replace").replace("\r\n", "\n")


def find_secret_variable(name: str, value: str) -> str | None:
    """The kind of secret that the value of a variable is; None if it does not look like one."""
    if mask_credentials(f"{name}={value}") != f"{name}={value}":
        return "Credential"
    with _scanner():
        from detect_secrets.core.scan import scan_line

        found = next(iter(scan_line(f'{name} = "{value}"')), None)
    return None if found is None else str(found.type)


@contextmanager
def _scanner() -> Iterator[None]:
    """Use all detectors but the coarse ones. A line with `pragma: allowlist secret` is left out.

    Raises UserError where detect-secrets is not installed.
    """
    if find_spec("detect_secrets") is None:
        raise UserError(f"spin submit needs detect-secrets, not installed here; run: {install_command('pipelines')}")
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.settings import transient_settings

    names = {kind.__name__ for kind in get_mapping_from_secret_type_to_class().values()} - _TOO_COARSE
    options = {"KeywordDetector": {"keyword_exclude": _NAMES_A_VARIABLE}}
    with transient_settings({"plugins_used": [{"name": name, **options.get(name, {})} for name in sorted(names)]}):
        yield
