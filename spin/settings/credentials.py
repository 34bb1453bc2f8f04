"""Passwords and other credentials in locations: none may stand in a settings file, a message or a log."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_PASSWORD = re.compile(r"://[^:/?#@\s]*:[^@]+@|[?&]\w*pass(word|wd)?=", re.IGNORECASE)
"""a password in a URI: after the name of a user, with or without a slash in it, or as a parameter"""
_USER_PART = re.compile(r"://(?:[^/?#\s]*|[^:/?#@\s]*:[^@\s]*)@")
"""the part of a URI before @: the name of a user, a token, or a user and a password, which may hold a slash"""
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:pass(?:word|wd)?|token|secret|signature|credential)=)[^&\s'\"]*", re.IGNORECASE
)


def holds_password(text: str) -> bool:
    """Whether a text holds a URI with a password."""
    return _PASSWORD.search(text) is not None


def holds_user_part(text: str) -> bool:
    """Whether a text holds a URI with a part before @: the name of a user, or a token in its place."""
    return _USER_PART.search(text) is not None


def mask_credentials(text: str) -> str:
    """A text for a message or a log, with asterisks for what may be a credential in its URIs.

    That is everything before an @, since a token may stand in the place of the user, and parameters named like secrets.
    """
    return _SECRET_PARAMETER.sub(r"\1***", _USER_PART.sub("://***@", text))


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
