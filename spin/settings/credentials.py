"""Passwords and other credentials in locations: none may stand in a settings file, a message or a log."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

# Each search takes time in proportion to the text, however it was made: see `_search_up_to_at`.
_USER_PASSWORD = re.compile(r"://[^:/?#@\s]*:[^@]+@")
"""a password in a URI after the name of a user, with or without a slash in it"""
_PASSWORD_PARAMETER = re.compile(r"[?&]\w*pass(word|wd)?=", re.IGNORECASE)
_USER_PART = re.compile(r"://(?:[^/?#\s]*|[^:/?#@\s]*:[^@\s]*)@")
"""the part of a URI before @: the name of a user, a token, or a user and a password, which may hold a slash"""
_WORD = re.compile(r"\S+")
_KEY = r"""
    secret | (?:api|access|account|private|secret|session|subscription)[_-]?key(?:[_-]id)?
    | (?:access|auth|bearer|hf|hub|id|refresh|security|session|tracking)[_-]?token
"""
_NAME = rf"pass(?:word|wd|phrase) | signature | sig | credentials? | {_KEY}"
"""how the name of what is secret ends"""
_SECRET_PARAMETER = re.compile(rf"([?&][\w-]*(?:{_NAME} | pass | token)=)[^&\s'\"]*", re.IGNORECASE | re.VERBOSE)
"""a parameter of a URI named like a secret"""
# A name after a slash is a folder of a partitioned table, such as `/signature=v2/`.
_SECRET_VALUE = re.compile(
    rf"""
    (
        (?<![\w/-])(?:
            (?:[\w-]*(?:pass(?:word|wd|phrase)|secret) | (?:[\w-]*[_-])?(?:{_NAME}))
            (?: [ ]?=[ ]?["']? | ["']\s?:\s?["'] | ["'],\s?["'])        # as in a shell, JSON, or pairs
            | (?:[\w-]*pass(?:word|wd|phrase) | (?:[\w-]*[_-])?(?:{_KEY}))
            :[ ](?: ["'] | (?=[^\s&'",;]*(?:\d | [^\s&'",;][ ]*(?:$|[,;]))))  # as in YAML; other words are a sentence
        )
    )
    (?: (?<=")(?:[^"\\\n]|\\.)+ | (?<=')(?:[^'\\\n]|\\.)+ | (?<!["'])[^\s&'",;]+ )
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
"""what follows the name of a secret; between quotes it may hold blanks"""
_AUTHORIZATION = re.compile(
    r"(\bbearer\s|\bauthorization[\"']?\s?[:=]\s?[\"']?\w{1,20}\s)[\w.~+/=-]{8,}", re.IGNORECASE
)
_KNOWN_SECRET = re.compile(
    r"\b(?:A[KS]IA[A-Z0-9]{16}|hf_[A-Za-z0-9]{30,}|gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{22,})\b"
)
"""keys that their beginning tells: of AWS, Hugging Face and GitHub"""
_LITERAL = re.compile(r"(?=[\w.~+/=%-]*\d)[\w.~+/=%-]{8,}(?![\w.~+/=%(\[{-])")
"""a value that is no name in a program, a call, or a part of a template"""


def holds_password(text: str) -> bool:
    """Whether a text holds a URI with a password."""
    return _search_up_to_at(_USER_PASSWORD, text) or _PASSWORD_PARAMETER.search(text) is not None


def holds_user_part(text: str) -> bool:
    """Whether a text holds a URI with a part before @: the name of a user, or a token in its place."""
    return any(_search_up_to_at(_USER_PART, word) for word in text.split())


def mask_credentials(text: str) -> str:
    """A text for a message or a log, with asterisks for what may be a credential.

    In URIs that is everything before an @, since a token may stand in the place of the user, and parameters named like
    secrets; elsewhere what follows such a name (`api_key=`), bearer tokens, and keys of known forms.
    """
    if "://" in text and "@" in text:
        text = _WORD.sub(_mask_user_parts, text)
    text = _SECRET_VALUE.sub(r"\1***", _SECRET_PARAMETER.sub(r"\1***", text))
    return _KNOWN_SECRET.sub("***", _AUTHORIZATION.sub(r"\1***", text))


def holds_secret(line: str) -> bool:
    """Whether a line of a file holds what looks like a secret; code that passes one on by a name does not."""
    if _KNOWN_SECRET.search(line) is not None or _AUTHORIZATION.search(line) is not None:
        return True
    named = (found for pattern in (_SECRET_PARAMETER, _SECRET_VALUE) for found in pattern.finditer(line))
    return any(_LITERAL.match(found[0], len(found[1])) is not None for found in named)


def _search_up_to_at(pattern: re.Pattern[str], text: str) -> bool:
    """Whether a text holds a pattern that ends in @.

    Only what comes before the last @ is searched. So an attempt that reads on to an @ finds one, and succeeds; else
    each `://` of a text could be tried up to its end.
    """
    # guarded by test_masking_takes_time_in_proportion_to_the_text; broken by:
    #   return pattern.search(text) is not None
    return pattern.search(text, 0, text.rfind("@") + 1) is not None


def _mask_user_parts(word: re.Match[str]) -> str:
    """A word, without blanks, in which user parts are masked; as in `_search_up_to_at`."""
    end = word[0].rfind("@") + 1
    return _USER_PART.sub("://***@", word[0][:end]) + word[0][end:]


def without_password(uri: str) -> str:
    """The same URI. Raises ValueError for one with a password."""
    if holds_password(uri):
        raise ValueError(
            "a password stands in it; expected none: it comes from the environment "
            "(MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY)"
        )
    return uri


Uri = Annotated[str, AfterValidator(without_password)]
"""a location; it may hold the name of a user but no password"""
