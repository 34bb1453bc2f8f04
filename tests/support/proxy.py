"""An HTTP proxy in front of the S3 server that injects faults of networks and busy servers."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

THROTTLED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FAILED = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
FAULTS = ("throttle", "error", "hang", "reset", "cut", "lost")
"""503, 500, no response, a response that breaks off halfway with a reset, one that ends halfway without any, a request
that is done but whose response is lost"""


class Proxy(ThreadingHTTPServer):
    """Forwards requests to an endpoint; `fault` chooses a fault, or none, by the request's number, method and path."""

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint).netloc
        self.fault: Callable[[int, str, str], str | None] = lambda number, method, path: None
        self.count = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: the tests make clients disconnect on purpose."""

    def next_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            self.count += 1
            return self.fault(self.count, method, path)


@contextmanager
def run_proxy(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy within the context."""
    with Proxy(endpoint) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        fault = self.server.next_fault(self.command, self.path)
        if fault in ("hang", "stall"):  # on a stall the body is not read either
            if fault == "hang":
                self._read_body()
            self.server.released.wait()
            self.close_connection = True
            return
        body = self._read_body()
        if fault in ("throttle", "error"):
            self._respond(503 if fault == "throttle" else 500, [], THROTTLED if fault == "throttle" else FAILED)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if fault == "lost" or (fault in ("reset", "cut") and not data):
            self._reset()
        elif fault == "cut":
            self._respond(response.status, response.getheaders(), data, cut=len(data) // 2)
            self.close_connection = True
        elif fault == "reset":
            self._respond(response.status, response.getheaders(), data, cut=len(data) // 2)
            self._reset()
        else:
            self._respond(response.status, response.getheaders(), data)

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _respond(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int | None = None) -> None:
        forwarded = [
            (name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "connection")
        ]
        if not any(name.lower() == "content-length" for name, _ in forwarded):
            forwarded.append(("Content-Length", str(len(data))))
        self.send_response_only(status)
        for name, value in forwarded:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:cut])
        self.wfile.flush()

    def _reset(self) -> None:
        """Close with an RST, as a machine that dies or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
