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

_COPY = Traffic(list=2, head=1, put=1)

_DELETE = Traffic(list=1, delete=1) + _ABSENT

_DELETE_NOTHING = _LIST_NOTHING + _ABSENT * 2

_CHECK = _READ + _LIST
"""a driver checks that it still holds the lease"""

_STEP = _CHECK + _WRITE
"""one step of publishing"""

_BEGIN = _LIST_NOTHING + _WRITE + _CHECK + _ABSENT * 3 + _CHECK + _DELETE_NOTHING * 2 + _LIST_NOTHING + _WRITE * 2
"""the lease is taken and a new plan is written"""

_END = _ABSENT + _WRITE + _ABSENT * 2 + _LIST_NOTHING * 3 + _STEP * 6 + (_CHECK + _DELETE) * 3 + _CHECK * 3 + _STEP
"""manifest, location of its parts, reports and `latest` are written; working folders and the lease are deleted"""

_PART = _WRITE + _ABSENT + _CHECK + _COPY
"""a file is written and then published under its final key"""

_ATTEMPT = _WRITE + _WRITE
"""a shard is begun and its outcome committed, without its files"""


def night_requests(
    shards: float, *, dead_shards: float, files: float, workers: int, seconds: float, partitions: int, drift: bool
) -> Traffic:
    """The requests of the first night of an output from an input folder, without those that read the input files.

    `files` is the number of input files, `dead_shards` the number of shards with dead letters, `seconds` the duration
    of the night. `partitions` of ids are compared, 0 where ids are trusted. `drift`: the model has a drift reference.
    No request fails.
    """
    night = _BEGIN + _ABSENT + _WRITE * 2 + _LIST_NOTHING + _READ * 2 * workers + _CHECK + _END
    night += _LIST * _pages(files) * 2  # listed for the plan, and again at the end
    night += (_CHECK + _WRITE) * (seconds // _RENEWAL_SECONDS)
    night += (_ATTEMPT + _WRITE + _PART + _READ * drift) * shards + _PART * dead_shards
    night += _DELETE_NOTHING  # the shadow's folder
    night += _more_keys(3 * shards + dead_shards) + _more_keys(shards)
    if not partitions:
        return night + _DELETE_NOTHING * 2
    night += (_LIST_NOTHING + _DELETE) * 2 + (_ATTEMPT + _WRITE) * shards + _ATTEMPT * partitions
    night += _READ_RANGE * (2 * shards * partitions) + _LIST * (_pages(2 * shards) * partitions)
    return night + _more_keys(3 * shards) + _more_keys(2 * partitions)


def _pages(keys: float) -> int:
    return max(1, ceil(keys / _PAGE))


def _more_keys(keys: float) -> Traffic:
    """The further requests that delete a working folder of more than a thousand keys."""
    return Traffic(list=1, delete=1) * (_pages(keys) - 1)
