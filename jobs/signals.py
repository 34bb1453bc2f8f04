"""End a command in order on SIGTERM and SIGINT: what it holds is released, and its status is 128 and the signal."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

_log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The command was ended by a signal. It is no Exception, so nothing but the end of the command handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number
        """exit status of the command: 143 after SIGTERM, 130 after SIGINT"""

    def __str__(self) -> str:
        word = "interrupted" if self.status == 128 + signal.SIGINT else "terminated"
        return f"{word}; run it again to resume"


class StopOnSignals:
    """A context whose main thread raises Stopped at the first SIGTERM or SIGINT; later ones are ignored.

    Ignored, because a signal that is sent twice, to a process and to its group, must not break off what the first one
    makes the command put in order.
    """

    def __init__(self) -> None:
        self._stopped = False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Stopped):
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopped:
            return
        self._stopped = True
        threading.excepthook = _log_exception
        # guarded by test_a_signal_releases_what_a_command_holds; broken by:
        #   raise SystemExit(number)
        raise Stopped(number)


def _log_exception(failure: threading.ExceptHookArgs) -> None:
    """Log what a thread raises that works on what is being shut down; the one line of the command is the signal's."""
    if failure.exc_value is not None:
        _log.debug("a thread failed while the command ended", exc_info=failure.exc_value)
