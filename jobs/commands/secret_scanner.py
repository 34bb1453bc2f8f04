"""Find secrets in what `spin submit` sends, by detect-secrets; it asks no server whether one is in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from spin.errors import UserError
from spin.settings import mask_credentials
from spin_neurons import install_command

_LARGEST = 1_000_000
"""bytes of the largest file that is read; larger ones are data or weights, of which names alone are looked at"""
_TOO_COARSE = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})
"""detectors that take digests, ids and addresses for secrets"""
_NAMES_A_VARIABLE = r"\w_env\b"
"""a setting that names the variable in which a key is, such as `key_env`"""


def find_secret(file: Path) -> str | None:
    """Where and of which kind the first secret in a text file is; None if none is found."""
    if file.stat().st_size > _LARGEST:
        return None
    with _scanner():
        from detect_secrets.core.scan import scan_file

        found = next(iter(scan_file(str(file))), None)
    return None if found is None else f"line {found.line_number}: {found.type}"


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
