"""Leases that end while their holder believes to hold them."""

from __future__ import annotations

from pipelines.nightly.tables.night_records import lease_model
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store


class NeverOvertaken(Lease):
    """The lease of a command that no other one takes over."""

    def __init__(self) -> None:
        pass

    def check(self, *, max_age: float = 0.0) -> None:
        pass


def hold_model(out: Store, model: str) -> Lease:
    """The lease of a driver at work on a model; a second one finds within two seconds, not six, that it is alive."""
    return Lease(lease_model(out, model).store, ttl=6)


def expire_lease(store: Store) -> None:
    """Mark the lease on a store as ended, as if its holder had been silent for too long."""
    [key] = [key for key in store.list("_lease") if key.startswith("_lease/")]
    store.write_json(key, store.read_json(key) | {"ended": True})
