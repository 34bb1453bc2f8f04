"""The ids of forgotten documents as salted hashes, by which a document is recognised without its id being stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipelines.storage.object_store import Store
from spin.errors import UserError

FOLDER = "_forgotten"
"""folder of an output, or of the store of a training, with the hashes and the records of what was forgotten"""
_SALT = f"{FOLDER}/salt"
_HASHES = f"{FOLDER}/hashes"
_SALT_BYTES = 32
_BYTES = 16
"""of a hash: two of a billion ids have the same one with a probability of 1e-21"""


@dataclass(frozen=True)
class ForgottenIds:
    """Recognises the ids of forgotten documents.

    Whoever may read the hashes may read the salt, and can test whether an id that he guesses is among them.
    """

    salt: bytes = b""
    """key of the hashes"""
    hashes: frozenset[bytes] = frozenset()
    """BLAKE2b hashes of the ids"""

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.hashes)

    @classmethod
    def of(cls, ids: Collection[str]) -> ForgottenIds:
        """Ids that are stored nowhere."""
        salt = secrets.token_bytes(_SALT_BYTES)
        return cls(salt, frozenset(_hash(id, salt) for id in ids))

    def find(self, ids: Iterable[str | None]) -> list[int]:
        """The positions, ascending, of the ids that are forgotten."""
        if not self.hashes:
            return []
        return [at for at, id in enumerate(ids) if id is not None and _hash(id, self.salt) in self.hashes]


NOTHING_FORGOTTEN = ForgottenIds()


def read_forgotten(store: Store) -> ForgottenIds:
    """The ids that are forgotten in an output or in the store of a training; none where nothing was forgotten."""
    salt = store.read(_SALT)
    if salt is None:
        return NOTHING_FORGOTTEN
    # guarded by test_a_night_after_a_crash_leaves_the_documents_out; broken by:
    #   stored: list[bytes] = []
    stored = store.read_many(store.list(_HASHES)).values()
    return ForgottenIds(
        salt, frozenset(data[at : at + _BYTES] for data in stored for at in range(0, len(data), _BYTES))
    )


def add_forgotten(store: Store, ids: Collection[str]) -> ForgottenIds:
    """Store the hashes of ids, and return these ids alone. To add the same ids again changes nothing.

    On a disk, other users may read neither them nor the salt, by which they could test ids that they guess.
    """
    store = store.as_private()
    store.create(_SALT, secrets.token_bytes(_SALT_BYTES))
    salt = store.read(_SALT)
    if salt is None:
        raise UserError(f"{store.uri}/{_SALT} was deleted meanwhile; run the command again")
    hashes = frozenset(_hash(id, salt) for id in ids)
    data = b"".join(sorted(hashes))
    store.create(f"{_HASHES}/{hashlib.sha256(data).hexdigest()[:32]}.bin", data)
    return ForgottenIds(salt, hashes)


def _hash(id: str, salt: bytes) -> bytes:
    return hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=_BYTES, key=salt).digest()
