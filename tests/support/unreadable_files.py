"""Files that were opened and cannot be read, as those of a store that fails meanwhile."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import EndpointConnectionError

READ_ERRORS: Mapping[str, Exception] = {
    "an answer": EndpointConnectionError(endpoint_url="http://store"),
    "a disk": OSError(errno.EIO, "Input/output error"),
    "gone": FileNotFoundError(errno.ENOENT, "No such file or directory"),
}
"""errors that storage libraries raise while a file is read"""


class UnreadableFile(io.BytesIO):
    """A file of some bytes whose reading raises an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(bytes(1000))
        self.error = error

    def read(self, *_: Any) -> bytes:
        """Raise the error."""
        raise self.error
