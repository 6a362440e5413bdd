"""A proxy on the loopback interface: HTTP (whole URLs, and CONNECT) and SOCKS 5 on one port, with or without a password.

Source: RFC 9112, 3.2.2 and 9110, 9.3.6 (HTTP); RFC 1928 and 1929 (SOCKS 5).
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit


class Proxy(ThreadingTCPServer):
    """Answers in threads until the `with` block ends. `asked`: the host and port of each request, and the password with it."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, at: dict[str, str] | None = None, password: str = "") -> None:
        """at: the address of each name that only the proxy knows; others are looked up."""
        self.at, self.password = at or {}, password
        self.asked: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()

    def reached(self, host: str, port: int, credentials: str) -> socket.socket:
        self.asked.append((f"{host}:{port}", credentials))
        return socket.create_connection((self.at.get(host, host), port), 5)

    def handle_error(self, *_: object) -> None:
        """A client that hangs up may."""


class _Handler(StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x05":
            self._socks()
        else:
            self._http()

    def _http(self) -> None:
        method, url, version = self.rfile.readline().split()
        headers = {}
        while b":" in (line := self.rfile.readline()):
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        credentials = headers.pop(b"proxy-authorization", b"").decode()
        if credentials != self.server.password:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if method == b"CONNECT":
            host, _, port = url.decode().rpartition(":")
            through = self.server.reached(host, int(port), credentials)
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            parts = urlsplit(url.decode())
            through = self.server.reached(parts.hostname or "", parts.port or 80, credentials)
            path = parts._replace(scheme="", netloc="").geturl().encode()
            headers[b"connection"] = b"close"
            lines = [method + b" " + path + b" " + version, *(name + b": " + headers[name] for name in headers)]
            through.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        self._join(through)

    def _socks(self) -> None:
        method = 2 if self.server.password else 0
        _, count = self.rfile.read(2)
        offered = self.rfile.read(count)
        self.wfile.write(bytes([5, method if method in offered else 255]))
        if method not in offered:
            return
        credentials = ""
        if method:
            _, count = self.rfile.read(2)
            user = self.rfile.read(count).decode()
            credentials = f"{user}:{self.rfile.read(self.rfile.read(1)[0]).decode()}"
            self.wfile.write(bytes([1, credentials != self.server.password]))
            if credentials != self.server.password:
                return
        kind = self.rfile.read(4)[3]
        assert kind == 3, "the name itself"
        host = self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), "big")
        try:
            through = self.server.reached(host, port, credentials)
        except OSError:
            self.wfile.write(bytes([5, 4, 0, 1, 0, 0, 0, 0, 0, 0]))  # host unreachable
            return
        self.wfile.write(bytes([5, 0, 0, 1, 127, 0, 0, 1, 0, 0]))
        self._join(through)

    def _join(self, through: socket.socket) -> None:
        def answers() -> None:
            with suppress(OSError):  # either side may hang up
                while chunk := through.recv(65536):
                    self.connection.sendall(chunk)
                self.connection.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=answers, daemon=True).start()
        while chunk := self.rfile.read1(65536):
            through.sendall(chunk)
        through.shutdown(socket.SHUT_WR)
