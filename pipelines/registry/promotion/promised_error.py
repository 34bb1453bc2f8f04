"""The abstention band by which a version keeps the error that `decision.max_error` promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.registry.versions import Registry
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.settings import Settings


def settle_promise(registry: Registry, number: str) -> tuple[Settings, str | None]:
    """The registry's settings with the abstention band of a version in place of `max_error`.

    Where its test documents prove no band there is none, and the reason is returned too.
    """
    settings = registry.settings
    if settings.decision.max_error is None:
        return settings, None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            registry.download(number, folder)
            decision, reason = TrainedClassifier.open(folder, settings).decision, None
        except UserError as error:
            decision, reason = settings.decision.without_promise(), str(error)
    return settings.model_copy(update={"decision": decision}), reason
