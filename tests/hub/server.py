"""A loopback stand-in for the Hugging Face Hub and ModelScope, with the faults that real networks have.

It answers unmodified clients over real sockets: huggingface_hub 2.4, transformers 5.23, modelscope 1.40.2 and
modelscope_hub 0.5.1. Both hubs share one origin (their paths do not collide); large files redirect to a second
origin, the CDN. What the hubs say is in `protocols`; how the wire misbehaves is here.

    with HubServer([HubRepo("org/model", {"config.json": b"{}"})]) as hub:
        hub.fail("*config.json*", status=503, retry_after="0", times=2)
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})
        assert [request.status for request in hub.requests] == [503, 503, 200]
"""

from __future__ import annotations

import gzip
import math
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Literal
from urllib.parse import unquote

from .protocols import Hub, Reply, Request, span
from .repos import CHUNK_BYTES, HubFile, HubRepo, safetensors_file

__all__ = ["MIRROR_DROPS", "Fault", "HubFile", "HubRepo", "HubServer", "Request", "safetensors_file"]

MIRROR_DROPS = ("X-Repo-Commit", "X-Linked-Size", "X-Linked-ETag", "Content-Length")  # for Fault.drop_headers


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with the requests that match."""

    pattern: str  # fnmatch, case-sensitive, over the decoded path?query, e.g. "*model-00002-*"
    method: str | None = None
    origin: Literal["main", "cdn"] | None = None
    times: int | None = None  # how many requests it spoils; None is all
    delay: float = 0.0  # seconds before the answer, beyond the server's own latency
    stall: bool = False  # never answers
    close: bool = False  # closes the connection without an answer
    status: int | None = None  # answers so, in place of the file or the API
    retry_after: str | None = None
    location: str | None = None  # redirects there; "self" redirects to the same URL, for ever
    body: HubFile = field(default_factory=HubFile)  # with `status`
    headers: Mapping[str, str] = field(default_factory=dict)  # added to the answer, replacing its own
    drop_headers: tuple[str, ...] = ()
    truncate_after: int | None = None  # announces the whole body, sends this many bytes of it, closes
    stall_after: int | None = None  # the same, then hangs
    bytes_per_second: int | None = None
    header_bytes_per_second: int | None = None  # the status line too
    continues: bool = False  # sends `100 Continue` without end
    ignore_range: bool = False  # 200 and the whole body
    partial_status: int | None = None  # for ranges, in place of 206 (Hugging Face) or 200 (ModelScope)
    compress: bool = False  # 200, gzip, no range, no Content-Length, where the client accepts gzip (hub PR #3778)

    def answer(self, request: Request) -> Reply | None:
        """The answer that takes the hub's place, if any."""
        if self.location:
            return Reply(self.status or 302, {"Location": request.target if self.location == "self" else self.location})
        if self.status:
            return Reply(self.status, {} if self.retry_after is None else {"Retry-After": self.retry_after}, self.body)
        return None


class HubServer(Hub):
    """Serves `repos` in both hubs' protocols until the `with` block ends; a bug in here raises there."""

    def __init__(self, repos: Iterable[HubRepo] = (), *, cdn_host: str = "localhost") -> None:
        """`cdn_host` differs from the endpoint's 127.0.0.1, since clients scope credentials and cookies by host."""
        super().__init__({repo.id: repo for repo in repos})
        self.latency = 0.0  # seconds before each answer
        self.connection_latency = 0.0  # seconds before each connection's first answer
        self.closing = threading.Event()
        self.connections = self.in_flight = self.max_in_flight = 0
        self.log: list[Request] = []
        self.faults: list[tuple[Fault, list[Request]]] = []  # with what each has spoiled
        self.sockets: set[socket.socket] = set()
        self.crashes: list[str] = []
        self.lock = threading.Lock()
        self.origins = _Origin(self, "main"), _Origin(self, "cdn")
        self.endpoint = f"http://127.0.0.1:{self.origins[0].server_port}"
        self.cdn_endpoint = f"http://{cdn_host}:{self.origins[1].server_port}"

    def __enter__(self) -> HubServer:
        for origin in self.origins:
            threading.Thread(target=origin.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.closing.set()
        for origin in self.origins:
            origin.shutdown()
            origin.server_close()
        with self.lock:
            for connection in self.sockets:
                _shut(connection)
        if self.crashes and error is None:
            raise RuntimeError("the fixture itself failed:\n" + "\n".join(self.crashes))

    @property
    def requests(self) -> list[Request]:
        """What was asked so far, in the order of arrival."""
        with self.lock:
            return list(self.log)

    @property
    def bytes_sent(self) -> int:
        return sum(request.bytes_sent for request in self.requests)

    def forget(self) -> None:
        """Empties the log."""
        with self.lock:
            self.log.clear()
            self.max_in_flight = self.in_flight

    def fail(self, pattern: str = "*", **fault: Any) -> None:
        """Adds a `Fault`. Of several that match a request, the earliest with strikes left decides."""
        with self.lock:
            self.faults.append((Fault(pattern=pattern, **fault), []))

    def heal(self) -> None:
        with self.lock:
            self.faults.clear()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that send both hubs' clients here, with caches, tokens and sessions under `home`."""
        return {
            "HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "MODELSCOPE_ENDPOINT": self.endpoint, "MODELSCOPE_CACHE": str(home / "ms"),
            "MODELSCOPE_HOME": str(home / "ms-home"),
        }  # fmt: skip

    def fault_for(self, request: Request) -> Fault:
        target = unquote(request.target)
        for fault, struck in self.faults:
            matches = fnmatchcase(target, fault.pattern) and fault.method in (None, request.method)
            if matches and fault.origin in (None, request.origin) and len(struck) < (fault.times or math.inf):
                struck.append(request)
                return fault
        return Fault(pattern="*")


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # The other side was faster.


class _Origin(ThreadingHTTPServer):
    """One port. Answers in threads, as many as clients open connections."""

    request_queue_size = 512  # 5 by default: a burst of 32 connections would wait a second for SYN retries.
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, name: Literal["main", "cdn"]) -> None:
        self.hub = hub
        self.name: Literal["main", "cdn"] = name
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks DNS for the host's name.
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, *_: object) -> None:
        self.hub.crashes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Otherwise headers and body, in two writes, cost a 40 ms delayed ACK.
    wbufsize = CHUNK_BYTES
    server: _Origin
    _headers_buffer: list[bytes]  # of the class above; typeshed lacks it

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: HubServer.requests is the log."""

    def handle(self) -> None:
        hub = self.server.hub
        with hub.lock:
            hub.sockets.add(self.connection)
            hub.connections += 1
            self.number = hub.connections
        try:
            hub.closing.wait(hub.connection_latency)
            super().handle()
        except (ConnectionError, ssl.SSLError):
            pass  # The client hung up, or does not trust the certificate, which is its right.
        finally:
            with hub.lock:
                hub.sockets.discard(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        except ConnectionError:
            pass  # What was left to flush has nowhere to go.

    def do_GET(self) -> None:
        hub = self.server.hub
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, self.path, headers, self.number, time.monotonic())
        with hub.lock:
            hub.log.append(request)
            hub.in_flight += 1
            hub.max_in_flight = max(hub.max_in_flight, hub.in_flight)
            fault = hub.fault_for(request)
        try:
            hub.closing.wait(None if fault.stall else hub.latency + fault.delay)
            while fault.continues and not hub.closing.is_set():
                self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if fault.stall or fault.close:
                self._hang_up()
            else:
                self._send(request, fault, fault.answer(request) or hub.answer(request))
                self.wfile.flush()
        finally:
            request.ended = time.monotonic()
            with hub.lock:
                hub.in_flight -= 1

    do_HEAD = do_POST = do_GET

    def _send(self, request: Request, fault: Fault, reply: Reply) -> None:
        status, headers, body, start, stop = reply.status, dict(reply.headers), reply.body, 0, reply.body.size
        dropped = {name.lower() for name in fault.drop_headers}
        if fault.compress and "gzip" in request.headers.get("accept-encoding", ""):
            body = HubFile(gzip.compress(body.read(0, stop)))
            stop = body.size
            headers["Content-Encoding"] = "gzip"
            dropped.add("content-length")
        elif request.range and reply.partial_status and request.method == "GET" and not fault.ignore_range:
            if asked := span(request.range, stop):
                headers["Content-Range"] = f"bytes {asked[0]}-{asked[1] - 1}/{stop}"
                status, (start, stop) = fault.partial_status or reply.partial_status, asked
            else:
                status, headers["Content-Range"], start = 416, f"bytes */{stop}", stop
        headers = {**headers, "Content-Length": str(stop - start), **fault.headers}
        if "content-length" in dropped:
            headers["Connection"] = "close"  # send_header obeys it, too.
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        if fault.header_bytes_per_second:
            self._send_slowly(fault.header_bytes_per_second)
        self.end_headers()
        if request.method != "HEAD":
            self._send_body(request, fault, body, start, stop)

    def _send_slowly(self, bytes_per_second: int) -> None:
        """The status line and the headers, of which `end_headers` then sends the end."""
        for byte in b"".join(self._headers_buffer):
            self.connection.sendall(bytes([byte]))
            if self.server.hub.closing.wait(1 / bytes_per_second):
                break
        self._headers_buffer = [b""]

    def _send_body(self, request: Request, fault: Fault, body: HubFile, start: int, stop: int) -> None:
        closing = self.server.hub.closing
        cut = min(limit for limit in (fault.truncate_after, fault.stall_after, stop - start) if limit is not None)
        step = max(1, fault.bytes_per_second // 10) if fault.bytes_per_second else CHUNK_BYTES
        for chunk in body.chunks(start, start + cut):
            for piece in (chunk[at : at + step] for at in range(0, len(chunk), step)):
                request.bytes_sent += len(piece)
                self.wfile.write(piece)
                if fault.bytes_per_second:
                    self.wfile.flush()
                    closing.wait(0.1)
        if cut < stop - start:
            self.wfile.flush()
            if fault.stall_after is not None:
                closing.wait()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        _shut(self.connection)
