"""The requests that a night sends to an object store, from the calls that its code makes."""

from __future__ import annotations

from math import ceil

from pipelines.storage.request_counting import Traffic

_PAGE = 1000
"""keys that S3 lists or deletes in one request"""

_RENEWAL_SECONDS = 5.0
"""seconds between two renewals of a lease"""

# the requests of each method of Store, as s3fs sends them
_READ = Traffic(head=1, get=1)

_READ_RANGE = Traffic(get=1)

_WRITE = Traffic(put=1)

_ABSENT = Traffic(head=1, list=1)
"""an object is requested that does not exist"""

_LIST = Traffic(list=1)

_LIST_NOTHING = _LIST + _ABSENT

_CHECK = _READ + _LIST
"""a driver checks that it still holds the lease"""

TABLES = Traffic(list=22, get=44)
"""the four tables are opened: to create them, to claim, to plan and to commit"""

_BEGIN = _ABSENT * 6 + _LIST_NOTHING * 4 + _WRITE * 5 + _CHECK + _READ * 3
"""the lease is taken, the tables are created and claimed, a new run is planned, and nothing was ever forgotten"""

_END = _CHECK * 3 + _WRITE * 7 + _READ * 2 + _READ_RANGE * 3 + _LIST * 5
"""the records of the run are written, it is committed to four tables, its reports are written, its spool is deleted"""

_ATTEMPT = _WRITE + _WRITE
"""a task or a shard is begun and its outcome committed, without its files"""


def night_requests(
    shards: float,
    *,
    dead_shards: float,
    tasks: float,
    files: float,
    workers: int,
    seconds: float,
    partitions: int,
    drift: bool,
    samples: float,
) -> Traffic:
    """The requests of the first night of an output, without those that read and write documents.

    `files` is the number of input files, `tasks` the number of tasks of the intake, `dead_shards` the number of shards
    with dead letters, `seconds` the duration of the night. `partitions` of ids are compared, 0 where ids are trusted.
    `drift`: the model has a drift reference. `samples` is the number of shards with sampled documents, which are read
    only in a night that drifted. No request fails.
    """
    night = _BEGIN + TABLES + _LIST * _pages(files) + _WRITE * 2 + _READ * 2 * workers + _LIST_NOTHING * 3 + _END
    night += (_CHECK + _WRITE) * (seconds // _RENEWAL_SECONDS)
    night += _ATTEMPT * tasks
    night += (_ATTEMPT + _WRITE * 2 + _READ * drift) * shards + _WRITE * (dead_shards + samples)
    night += _LIST * (dead_shards > 0)  # their files are looked for before they are committed
    night += Traffic(delete=1) * _pages(2 * tasks + shards + samples)
    if not partitions:
        return night
    night += _LIST_NOTHING + _WRITE * tasks + _ATTEMPT * partitions
    return night + _READ_RANGE * (2 * tasks * partitions)


def _pages(keys: float) -> int:
    return max(1, ceil(keys / _PAGE))
