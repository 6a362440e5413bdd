"""One GET over http.client: redirects, proxies, certificates, and connections that stay open for the next request.

Each operation of a socket ends by the deadline of its request, so that no server can hold a request open by sending slowly.

Why no other library: `import urllib3` takes 52 ms and httpx 62 ms where Python itself starts in 20 ms, http.client 17 ms.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from functools import cache
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from .. import __version__
from ..errors import UsageError
from ..typed import TYPE_CHECKING, Any
from ..values import replace
from .regular import open_regular
from .showing import keep_url_secret, reason, shown_url
from .transfer import CONNECT_SECONDS, Answer, Deadline, Unreachable, in_parallel

if TYPE_CHECKING:
    import socket
    import ssl
    from http.client import HTTPConnection, HTTPResponse

USER_AGENT = f"qwen-inspect/{__version__}; python/{'.'.join(map(str, sys.version_info[:3]))}"
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 10
CHUNK_BYTES = 64 * 1024
PORTS = {"http": 80, "https": 443}
URL_SAFE = "!#$%&'()*+,/:;=?@[]~"  # what a redirect's URL keeps as it is: RFC 3986's reserved characters, and % itself
GZIP_WINDOW = 31  # zlib's wbits for gzip


class Transport:
    """The connections to a hub. `own`: headers for the origin of `endpoint` alone, such as a token.

    UsageError for an endpoint that is more than scheme, host and path: with `?`, each address below it would mean another.
    """

    def __init__(self, endpoint: str, *, own: Mapping[str, str], agent: str = USER_AGENT) -> None:
        if not _is_endpoint(endpoint):
            raise UsageError("hub_bad_endpoint", endpoint=shown_url(endpoint))
        self._endpoint, self._own, self._agent = endpoint, own, agent
        self._idle: dict[tuple[str, str], list[HTTPConnection]] = {}

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer:
        """One GET, redirects followed; see `transfer.Get`."""
        commit = None
        for _ in range(MOST_REDIRECTS + 1):
            try:
                sent = {"User-Agent": self._agent, "Accept-Encoding": "gzip", **headers, **self._own_headers(url)}
                answer = self._exchange(urlsplit(url), sent, limit=limit, deadline=deadline)
                commit = commit or answer.headers.get("x-repo-commit")
                target = answer.headers.get("location")
                if answer.status not in REDIRECTS or not target:
                    return replace(answer, commit=commit)
                url = urljoin(url, quote(target, safe=URL_SAFE))
            except ValueError as error:  # a URL or a header that HTTP cannot hold
                raise Unreachable(reason(error), final=True) from None
        raise Unreachable("redirected without end", final=True)

    def _own_headers(self, url: str) -> Mapping[str, str]:
        """`own` for the endpoint's origin: scheme, host and port. http may become https, as in httpx and requests."""
        origin, endpoint = _origin(urlsplit(url)), _origin(urlsplit(self._endpoint))
        upgraded = endpoint[0] == "http" and endpoint[2] == 80 and origin == ("https", endpoint[1], 443)
        return self._own if origin == endpoint or upgraded else {}

    def _exchange(self, url: SplitResult, headers: Mapping[str, str], *, limit: int, deadline: Deadline) -> Answer:
        from http.client import HTTPException

        if url.scheme not in PORTS or not url.hostname:
            raise Unreachable("the address does not begin with http:// or https://", final=True)
        proxy = _proxy(url)
        target = quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe=URL_SAFE)
        headers = {**headers, **_basic("Authorization", url)}
        if proxy is not None and url.scheme == "http" and not _is_socks(proxy):
            target = f"http://{_host(url)}{target}"
            headers |= _basic("Proxy-Authorization", proxy)
        idle = self._idle.setdefault((url.scheme, url.netloc), [])
        while True:
            try:
                connection, kept = idle.pop(), True
            except IndexError:
                connection, kept = _connected(url, proxy, deadline), False
            stream: Any = connection.sock
            stream.deadline = deadline
            try:
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                if response.status == 407:
                    raise Unreachable("407 Proxy Authentication Required", final=True)
                most = CHUNK_BYTES if response.status in REDIRECTS else limit
                body = _body(response, limit=most)
            except Unreachable:
                connection.close()
                raise
            except (OSError, HTTPException, ValueError) as error:
                connection.close()
                if kept and isinstance(error, ConnectionError):
                    continue  # the server had closed it in the meantime
                raise Unreachable(reason(error), final=isinstance(error, ValueError)) from None
            if (response.isclosed() or response.length == 0) and not response.will_close:
                response.close()
                idle.append(connection)
            else:
                connection.close()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=answered, body=body)


class _Stream:
    """A socket as http.client uses one. Every operation ends by `deadline`, which each request sets anew."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.socket, self.deadline = sock, deadline

    def limit(self) -> None:
        """Gives the socket's next operation what is left of the time."""
        if self.deadline.passed:
            raise Unreachable("timed out")
        self.socket.settimeout(self.deadline.remaining)

    def sendall(self, content: bytes) -> None:
        self.limit()
        self.socket.sendall(content)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        self.socket.close()


class _Incoming(io.RawIOBase):
    """What comes in. Holds the socket open until it is closed itself, as `socket.makefile` does."""

    def __init__(self, stream: _Stream) -> None:
        self._stream, self._file = stream, stream.socket.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._stream.limit()
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _connected(url: SplitResult, proxy: SplitResult | None, deadline: Deadline) -> HTTPConnection:
    """A new connection, through the proxy if there is one, with TLS for https."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    host, port, secure = url.hostname or "", url.port or PORTS[url.scheme], url.scheme == "https"
    if proxy is None:
        at = (host, port)
    elif _is_socks(proxy):
        at = (proxy.hostname or "", proxy.port or 1080)
    elif proxy.scheme == "http":
        at = (proxy.hostname or "", proxy.port or PORTS["http"])
    else:
        raise Unreachable(f"a proxy of {proxy.scheme}:// is not supported; most answer to http://", final=True)
    stream: Any = None
    try:
        stream = _Stream(_socket(at, _soon(deadline)), _soon(deadline))
        if proxy is not None and _is_socks(proxy):
            _ask_socks(stream, proxy, host, port)
        elif proxy is not None and secure:
            _ask_tunnel(stream, proxy, host, port)
        if not secure:
            connection = HTTPConnection(host, port)
        else:
            stream.limit()
            stream.socket = _certificates().wrap_socket(stream.socket, server_hostname=host)
            connection = HTTPSConnection(host, port, context=_certificates())
    except BaseException as error:
        if stream is not None:
            stream.close()
        if isinstance(error, OSError | HTTPException | ValueError | Unreachable):
            raise Unreachable(reason(error), final=True) from None
        raise
    connection.sock = stream
    return connection


def _soon(deadline: Deadline) -> Deadline:
    return Deadline.after(min(CONNECT_SECONDS, deadline.remaining))


def _socket(at: tuple[str, int], deadline: Deadline) -> socket.socket:
    """A socket to a host and port. On a thread of its own, because looking up a name takes what time the system likes."""
    import socket

    def connect() -> socket.socket:
        return socket.create_connection(at, CONNECT_SECONDS)

    (sock,) = in_parallel([connect], deadline=deadline).results
    if sock is None:
        raise Unreachable("timed out")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _body(response: HTTPResponse, *, limit: int) -> bytes:
    """At most `limit` bytes of the body, unpacked; Unreachable if it ends before its announced length."""
    import zlib

    unpacked = None
    if response.headers.get("Content-Encoding") == "gzip":
        unpacked = zlib.decompressobj(GZIP_WINDOW)
    body = bytearray()
    while len(body) < limit:
        chunk = response.read1(CHUNK_BYTES if unpacked else min(CHUNK_BYTES, limit - len(body)))
        if not chunk:
            if response.length or (unpacked and not unpacked.eof):
                raise Unreachable("the answer ended early")
            break
        try:
            body += unpacked.decompress(chunk, limit - len(body)) if unpacked else chunk
        except zlib.error as error:
            raise Unreachable(reason(error)) from None
    return bytes(body)


@cache
def _certificates() -> ssl.SSLContext:
    """Whom TLS trusts: the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads; those of
    REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE besides; certifi's where the system keeps none, as on Windows and some Macs."""
    import ssl

    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name, "")
        if os.path.exists(path) and not os.path.isdir(path):
            open_regular(path).close()  # OpenSSL would wait for a pipe
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle is not None:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not (paths.capath and os.listdir(paths.capath)):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy of a URL, by the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, or by the system's settings."""
    names = {name.lower() for name in os.environ if name.lower().endswith("_proxy")} - {"no_proxy"}
    if not names and sys.platform not in ("darwin", "win32"):
        return None  # without urllib.request, whose import takes 7 ms
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(_host(url)):
        return None
    keep_url_secret(proxy if "://" in proxy else f"http://{proxy}")
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _is_socks(proxy: SplitResult) -> bool:
    return proxy.scheme in ("socks", "socks5", "socks5h")


def _ask_tunnel(stream: _Stream, proxy: SplitResult, host: str, port: int) -> None:
    """Has an HTTP proxy connect to the host. Source: RFC 9110, 9.3.6."""
    from http.client import HTTPResponse, responses

    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not at.isprintable() or " " in at:
        raise Unreachable("no name of a host")
    headers = {"Host": at, "User-Agent": USER_AGENT, **_basic("Proxy-Authorization", proxy)}
    lines = [f"CONNECT {at} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    stream.sendall("\r\n".join(lines).encode("ascii"))
    answer = HTTPResponse(stream, method="CONNECT")  # type: ignore[arg-type]  # it calls makefile alone
    try:
        answer.begin()
    finally:
        answer.close()
    if answer.status != 200:
        raise OSError(f"the proxy answered {answer.status} {responses.get(answer.status, '')}".rstrip())


def _ask_socks(stream: _Stream, proxy: SplitResult, host: str, port: int) -> None:
    """Has a SOCKS 5 proxy connect to the host, whose name it looks up: where names are forged, it alone knows the address.

    Source: RFC 1928 (SOCKS 5), RFC 1929 (its name and password).
    """
    user, password, name = (unquote(part or "").encode() for part in (proxy.username, proxy.password, host))
    method = 2 if user else 0  # name and password, or nothing
    with stream.makefile() as answers:
        stream.sendall(bytes([5, 1, method]))
        if answers.read(2) != bytes([5, method]):
            raise Unreachable(
                f"the SOCKS 5 proxy does not take {'a password' if user else 'anyone without a password'}", final=True
            )
        if user:
            stream.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
            if answers.read(2)[1:] != b"\0":
                raise Unreachable("the SOCKS proxy refuses the name or the password", final=True)
        stream.sendall(bytes([5, 1, 0, 3, len(name)]) + name + port.to_bytes(2, "big"))
        _, status, _, kind = (*answers.read(4), *b"\xff" * 4)[:4]
        if status != 0:
            raise Unreachable(f"the SOCKS proxy cannot reach the host (reply {status} of RFC 1928)", final=True)
        answers.read(
            ((answers.read(1) or b"\0")[0] if kind == 3 else 16 if kind == 4 else 4) + 2
        )  # its own address and port


def _basic(header: str, url: SplitResult) -> dict[str, str]:
    """The header of a name and password that stand in a URL."""
    if url.username is None:
        return {}
    from base64 import b64encode

    named = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {header: f"Basic {b64encode(named.encode()).decode()}"}


def _is_endpoint(url: str) -> bool:
    """Whether a URL is a scheme of ours, a host that can be asked, and at most a path."""
    try:
        parts = urlsplit(url)
        return parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0 and not set("?#\\").intersection(url)
    except ValueError:
        return False


def _host(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or PORTS.get(url.scheme)
