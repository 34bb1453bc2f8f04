"""All kinds of heads. A new one is a class in a file of this folder, and its name in `HEADS`."""

from __future__ import annotations

from spin.errors import UserError
from spin.heads.head import Head
from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead

HEADS: tuple[type[Head], ...] = (LinearHead, MlpHead)
"""the linear head first, which `search.head: auto` compares the others with"""


def find_head(name: str) -> type[Head]:
    """The head of a name. Raises UserError if there is none."""
    for head in HEADS:
        if head.name == name:
            return head
    raise UserError(f"head '{name}': expected one of {', '.join(head.name for head in HEADS)}")


def allowed_heads(setting: str) -> tuple[type[Head], ...]:
    """The heads that a value of `search.head` allows: all of them for auto. Raises UserError for an unknown name."""
    if setting != "auto" and setting not in [head.name for head in HEADS]:
        names = ", ".join(head.name for head in HEADS)
        raise UserError(f"search.head '{setting}': expected auto, or one of {names}")
    return HEADS if setting == "auto" else (find_head(setting),)
