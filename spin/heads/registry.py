"""All kinds of heads. A new one is a class in a file of this folder, and its name in `HEADS`."""

from __future__ import annotations

from spin.errors import UserError
from spin.heads.head import Head
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead

HEADS: tuple[type[Head], ...] = (LinearHead, MlpHead)
"""the linear head first, with which the others are compared"""


def find_head(name: str) -> type[Head]:
    """The head of a name. Raises UserError if there is none."""
    for head in HEADS:
        if head.name == name:
            return head
    raise UserError(f"head '{name}': expected one of {', '.join(head.name for head in HEADS)}")


def other_heads(setting: str) -> list[type[Head]]:
    """The heads that a value of `search.head` lets validation compare with the linear one: for auto all of them.

    Raises UserError for a name that no head has.
    """
    _, *others = HEADS
    if setting not in ("auto", *(head.name for head in HEADS)):
        names = ", ".join(head.name for head in HEADS)
        raise UserError(f"search.head is '{setting}'; expected auto, or one of {names}")
    return [head for head in others if setting in ("auto", head.name)]
