"""The record of a file that was made to harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class HostileFile:
    """A file that was made to harm, and what the intake is to make of it."""

    name: str
    """path in the folder"""
    wrong: str
    """what is wrong with it, in a phrase"""
    expected: Literal["bad", "rows", "good", "any"]
    """bad: quarantined; rows: good, some rows are dead letters; good: no dead letters; any: nothing but its neighbours
    matter, where a lie may be noticed or not"""
    reason: str | None = None
    """that one dead letter must have, None if any will do"""
    content: bytes | None = field(default=None, repr=False)
    """None if it is a symbolic link"""
    empty: bool = False
    """whether it has no row"""


def bad(name: str, wrong: str, content: bytes) -> HostileFile:
    """A file that is to be quarantined."""
    return HostileFile(name, wrong, "bad", content=content)


def dead(name: str, wrong: str, content: bytes, reason: str | None = None) -> HostileFile:
    """A good file with rows that are to be dead letters."""
    return HostileFile(name, wrong, "rows", reason, content)


def good(name: str, wrong: str, content: bytes, *, empty: bool = False) -> HostileFile:
    """A file that only looks harmful."""
    return HostileFile(name, wrong, "good", content=content, empty=empty)


def harmless(name: str, wrong: str, content: bytes) -> HostileFile:
    """A file whose lie may be noticed or not."""
    return HostileFile(name, wrong, "any", content=content)
