"""The documents that activate the neurons of a version most, without those that are forgotten."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.training.neurons import NEURONS, neurons_from_json, neurons_to_json
from spin.errors import UserError


def without_top_documents(content: bytes, forgotten: ForgottenIds) -> bytes | None:
    """The content of `neurons.json` without forgotten documents; None if it names none. Raises UserError if damaged."""
    try:
        rows = neurons_from_json(content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{NEURONS} is damaged or of another version ({error!r}); delete the version") from None
    named = [document.id for row in rows for document in row.top]
    gone = {named[at] for at in forgotten.find(named)}
    if not gone:
        return None
    return neurons_to_json([replace(row, top=tuple(each for each in row.top if each.id not in gone)) for row in rows])
