"""Call a function again and again in a thread of its own, while other work goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context


@contextmanager
def repeat(function: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call a function every so many seconds while the context lasts, in a thread with the context's variables.

    The variables name the runs and the span of what the function logs. The thread keeps no process from ending.
    """
    ended = threading.Event()

    def call_until_ended() -> None:
        while not ended.wait(seconds):
            function()

    thread = threading.Thread(target=copy_context().run, args=(call_until_ended,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
