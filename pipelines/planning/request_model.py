"""The requests that a night makes of an object store, from the calls that its code makes."""

from __future__ import annotations

from math import ceil

from pipelines.storage.request_counting import Traffic

_PAGE = 1000
"""keys that S3 lists, or deletes, in one request"""

_BEAT = 5.0
"""seconds from one renewal of a lease to the next"""

# calls of a Store as s3fs makes them
_READ = Traffic(head=1, get=1)

_READ_RANGE = Traffic(get=1)

_WRITE = Traffic(put=1)

_ABSENT = Traffic(head=1, list=1)
"""an object that is looked for where there is none"""

_LIST = Traffic(list=1)

_LIST_NOTHING = _LIST + _ABSENT

_COPY = Traffic(list=2, head=1, put=1)

_DELETE = Traffic(list=1, delete=1) + _ABSENT

_DELETE_NOTHING = _LIST_NOTHING + _ABSENT * 2

_CHECK = _READ + _LIST
"""that a lease still holds"""

_STEP = _CHECK + _WRITE
"""of publishing"""

_BEGIN = _LIST_NOTHING + _WRITE + _CHECK + _ABSENT * 3 + _CHECK + _DELETE_NOTHING * 2 + _LIST_NOTHING + _WRITE * 2
"""a lease, then a plan where there is none"""

_END = _ABSENT + _WRITE + _ABSENT * 2 + _LIST_NOTHING * 3 + _STEP * 6 + (_CHECK + _DELETE) * 3 + _CHECK * 3 + _STEP
"""the manifest, where its parts will lie, the reports, `latest`, the folders of work, the lease"""

_PART = _WRITE + _ABSENT + _CHECK + _COPY
"""a file that is published, from its first key to its last"""

_ATTEMPT = _ABSENT + _WRITE + _WRITE + _CHECK
"""a shard begun and its outcome committed, beside its files"""


def night_requests(
    shards: float, *, dead_shards: float, files: float, workers: int, seconds: float, partitions: int, drift: bool
) -> Traffic:
    """The requests of a first night in an output, whose input is a folder of so many files, but for reading these.

    `dead_shards` have dead letters; `partitions` of ids are looked through, none where ids are trusted; `drift` is
    measured where the model holds a reference. Nothing fails and is tried again.
    """
    night = _BEGIN + _ABSENT + _WRITE * 2 + _LIST_NOTHING + _READ * 2 * workers + _CHECK + _END
    night += (_LIST * (2 * _pages(files)) + Traffic(head=files)) * 2  # listed when planned, and again at the end
    night += (_CHECK + _WRITE) * (seconds // _BEAT)
    night += (_ATTEMPT + _WRITE + _PART + _READ * drift) * shards + _PART * dead_shards
    night += _DELETE_NOTHING  # of a shadow
    night += _more_keys(3 * shards + dead_shards) + _more_keys(shards)
    if not partitions:
        return night + _DELETE_NOTHING * 2
    night += (_LIST_NOTHING + _DELETE) * 2 + (_ATTEMPT + _WRITE) * shards + _ATTEMPT * partitions
    night += _READ_RANGE * (2 * shards * partitions)
    return night + _more_keys(3 * shards) + _more_keys(2 * partitions)


def _pages(keys: float) -> int:
    return max(1, ceil(keys / _PAGE))


def _more_keys(keys: float) -> Traffic:
    """What a folder of work takes to be deleted beyond its first thousand keys."""
    return Traffic(list=1, delete=1) * (_pages(keys) - 1)
