"""All kinds of heads. A new one is a class in a file of this folder, in `HEADS`, and its name in the settings."""

from __future__ import annotations

from spin.errors import UserError
from spin.heads.head import Head
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead

HEADS: tuple[type[Head], ...] = (LinearHead, MlpHead)
"""the linear head first, with which the others are compared; `spin.settings` has their names, in `HEAD_NAMES`"""


def find_head(name: str) -> type[Head]:
    """The head of a name. Raises UserError if there is none."""
    for head in HEADS:
        if head.name == name:
            return head
    raise UserError(f"head '{name}': expected one of {', '.join(head.name for head in HEADS)}")


def other_heads(setting: str) -> list[type[Head]]:
    """The heads that a value of `search.head` lets validation compare with the linear one: for auto all of them."""
    _, *others = HEADS
    return [head for head in others if setting in ("auto", head.name)]
