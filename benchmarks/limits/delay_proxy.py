"""A proxy before an object store that delays every request and counts requests and bytes."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_CHUNK = 1 << 18


@dataclass
class Counts:
    """Requests and bytes of the objects under a prefix, and of all others."""

    requests: Counter[str] = field(default_factory=Counter)
    """by HTTP method"""
    read: int = 0
    """bytes of responses, with their headers"""
    written: int = 0
    """bytes of requests, with their headers"""


@dataclass
class Traffic:
    """What has passed the proxy."""

    input: Counts = field(default_factory=Counts)
    """of objects below the input prefix"""
    lease: Counts = field(default_factory=Counts)
    """of the lease, which its holder renews every few seconds, whatever it does"""
    rest: Counts = field(default_factory=Counts)
    """of everything else, listings included"""


class DelayProxy:
    """Forwards connections to an endpoint; a request waits before it goes on."""

    def __init__(self, endpoint: str, input_path: str, seconds: float) -> None:
        upstream = urlsplit(endpoint)
        self._host, self._port = upstream.hostname or "", upstream.port or 80
        self._input, self._seconds = input_path, seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self.traffic = Traffic()
        self.port = 0

    def reset(self) -> None:
        """Count from zero."""
        self.traffic = Traffic()

    async def listen(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2 * _CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port, limit=2 * _CHUNK)
        except OSError:
            writer.close()
            return
        answers = asyncio.ensure_future(connection.pump_answers(upstream_reader, writer))
        self._tasks.add(answers)
        answers.add_done_callback(self._tasks.discard)
        with suppress(ConnectionError):
            await connection.pump_requests(reader, upstream_writer, self._seconds)
        upstream_writer.close()

    def counts(self, target: str) -> Counts:
        """The counts that a request for a path with its query belongs to."""
        if target.startswith(self._input):
            return self.traffic.input
        return self.traffic.lease if "/_leases/" in target else self.traffic.rest


class _Connection:
    """A connection of a client, which sends one request after the other."""

    def __init__(self, proxy: DelayProxy) -> None:
        self._proxy = proxy
        self._counts = proxy.traffic.rest
        self._between = True

    async def pump_requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, seconds: float) -> None:
        """Forward what the client sends. What comes after an answer is a new request."""
        while data := await reader.read(_CHUNK):
            if self._between:
                self._between = False
                method, path, _ = data.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
                self._counts = self._proxy.counts(unquote(path))
                self._counts.requests[method] += 1
                await asyncio.sleep(seconds)
            self._counts.written += len(data)
            upstream.write(data)
            await upstream.drain()

    async def pump_answers(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what the server answers."""
        with suppress(ConnectionError):
            while data := await upstream.read(_CHUNK):
                self._between = True
                self._counts.read += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


async def _end_tasks() -> None:
    """Cancel the connections that are still open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def run_delay_proxy(endpoint: str, input_path: str, seconds: float) -> Iterator[tuple[str, DelayProxy]]:
    """Run a proxy within the context; its endpoint, and the proxy with its counts.

    `input_path` is the beginning of the paths of the requests that are counted as input: `/BUCKET/PREFIX/`.
    """
    proxy, loop = DelayProxy(endpoint, input_path, seconds), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="proxy")
    thread.start()
    server = asyncio.run_coroutine_threadsafe(proxy.listen(), loop).result()
    try:
        yield f"http://127.0.0.1:{proxy.port}", proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
