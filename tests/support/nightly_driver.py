"""The nightly job as a driver of histories: the product's own, with a step that labels texts by a rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.data import intake
from pipelines.nightly import classify, nights
from pipelines.nightly.command_result import CommandResult
from pipelines.nightly.forget.forget_nights import forget_in_output
from pipelines.nightly.night_models import RequestedModel
from pipelines.nightly.tables.night_records import lease_model
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.publication import claim_nights
from pipelines.nightly.tables.vacuum import models_of, plan_vacuum, run_vacuum
from pipelines.storage.object_store import Store
from spin.settings import parse_settings
from tests.support.fake_nights import FakeRegistry, use_fake_step
from tests.support.gates import gated_stores

RETRY_SECONDS = 20.0
LARGE = 120
"""bytes from which on the classify step reads a file itself, in place of 8 MB"""


@dataclass(frozen=True)
class Request:
    """What `spin classify` is asked for."""

    source: str
    model: str
    date: str
    incremental: bool = True
    restart: bool = False
    strict: bool = False
    """whether a single bad file fails the night with status 4"""
    others: tuple[str, ...] = ()
    """further models that the command classifies with"""

    @property
    def models(self) -> tuple[str, ...]:
        """All models of the command."""
        return self.model, *(other for other in self.others if other != self.model)


@contextmanager
def gated_nights() -> Iterator[None]:
    """Within the context, nights need no model, drivers stop at gates, and files of several documents are large."""
    with gated_stores(), pytest.MonkeyPatch.context() as patch:
        use_fake_step(patch)
        patch.setattr(intake, "SMALL", LARGE)
        yield


def restore(output: str, run: str) -> None:
    """Publish a run again."""
    nights.restore(output, run=run)


@dataclass(frozen=True)
class Deletion:
    """What `spin nights delete` is asked for."""

    before: str
    forget_files: bool


def delete(output: str, deletion: Deletion) -> None:
    """Delete nights of early dates."""
    nights.delete(output, before=deletion.before, forget_files=deletion.forget_files)


@dataclass(frozen=True)
class Forgetting:
    """What `spin forget` is asked for."""

    ids: frozenset[str]


def forget(output: str, forgetting: Forgetting) -> None:
    """Forget documents in an output."""
    forget_in_output(output, sorted(forgetting.ids))


def vacuum(output: str, later: timedelta) -> None:
    """Vacuum as if the clock were `later`."""
    tables = NightTables(Store(output, RETRY_SECONDS))
    with ExitStack() as stack:
        leases = {model: stack.enter_context(lease_model(tables.out, model)) for model in models_of(tables)}
        claims = {model: claim_nights(tables, model, lease) for model, lease in leases.items()}
        if claims:
            plan = plan_vacuum(tables, now=datetime.now(UTC) + later, age=timedelta(hours=24))
            run_vacuum(tables, plan, claims)


def run_request(output: str, request: Request) -> CommandResult:
    """Run `spin classify` for a request, without a model."""
    tree = {
        "backbone": {"model": "nowhere", "engine": "torch", "device": "cpu"},
        "data": {"train": "nowhere"},
        "store": "nowhere",
        "ray": {"workers": 0, "shard_documents": 2, "retry_seconds": RETRY_SECONDS},
        "classify": {"max_bad_files": 0 if request.strict else 1, "max_dead_fraction": 1},
    }
    nights = classify.classify_nights(
        parse_settings(tree),
        [RequestedModel(FakeRegistry(model)) for model in request.models],  # type: ignore[arg-type]
        request.source,
        output,
        night=request.date,
        incremental=request.incremental,
        restart=request.restart,
    )
    nights.raise_failures()
    return nights
