"""All poolings. A new one is a class in a file of this folder, and an instance in `POOLINGS`."""

from __future__ import annotations

from spin.errors import UserError
from spin.poolings.end_token import FirstToken, LastToken
from spin.poolings.maximum import Maximum
from spin.poolings.mean import Mean
from spin.poolings.pooling import Pooling

POOLINGS: tuple[Pooling, ...] = (Mean(), Maximum(), FirstToken(), LastToken())
"""in the order of the rows of an explanation"""


def find_pooling(name: str) -> Pooling:
    """The pooling of a name. Raises UserError if there is none."""
    for pooling in POOLINGS:
        if pooling.name == name:
            return pooling
    raise UserError(f"pooling '{name}': expected some of {', '.join(each.name for each in POOLINGS)}")
