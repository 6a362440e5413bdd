"""Answers that no hub should give: each is an error of the network, or left out, and never a traceback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qwen_inspect.errors import NetworkError
from qwen_inspect.language import Language
from qwen_inspect.loaders.showing import reason
from qwen_inspect.loaders.transfer import Answer, Deadline, Unreachable, fetch, is_safe_name, rate_limited
from qwen_inspect.loaders.transport import Transport


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Sends the same bytes to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def redirect(target: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n"


def chunks(content: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + content


@pytest.mark.parametrize(
    "answer",
    [
        redirect(b"http://["),
        redirect(b"http://127.0.0.1:99999/"),
        redirect(b"http://127.0.0.1:-5/"),
        redirect(b"/\xff"),
        redirect(b"http://" + b"a" * 300 + b"/"),
        redirect(b"ftp://127.0.0.1/"),
        chunks(b"-5\r\nabc\r\n0\r\n\r\n"),
        chunks(b"zz\r\nabc"),
        b"\xff" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/9.9 -20 OK\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_http_or_leads_nowhere_is_no_answer(answer: bytes) -> None:
    with server(answer) as endpoint, pytest.raises(Unreachable):
        Transport(endpoint, own={}).get(endpoint, headers={}, limit=1_000, deadline=Deadline.after(5))


def answered(status: int, headers: dict[str, str], body: bytes) -> Answer:
    def get(url: str, **_: object) -> Answer:
        return Answer(status=status, headers=headers, body=body)

    return fetch(get, "http://user:word@host/api?token=x", limit=1_000, deadline=Deadline.after(0.1))


def test_a_login_page_is_named_as_one() -> None:
    with pytest.raises(NetworkError) as caught:
        answered(200, {"content-type": "text/html; charset=utf-8"}, b"\n<!doctype html><form>")
    assert "http://host answered with a web page" in Language("en")(caught.value.message)
    assert answered(200, {"content-type": "text/html"}, b"{}").body == b"{}"
    assert answered(404, {"content-type": "text/html"}, b"<html>").status == 404


def test_a_wait_is_said_if_the_hub_says_it() -> None:
    waits = [
        rate_limited(Answer(status=429, headers=headers, body=b""), "http://host")
        for headers in ({"retry-after": "60"}, {"retry-after": "soon"}, {})
    ]
    assert [wait.message.key for wait in waits] == [
        "hub_rate_limited",
        "hub_rate_limited_open",
        "hub_rate_limited_open",
    ]
    assert "60 s" in str(waits[0])


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a/b.json", True), ("层.json", True), ("a..b", True)]
    + [(name, False) for name in ("", "/a", "..", "a/../b", "a\\b", "a\0", "\ud800", 7, None)],
)
def test_a_listed_name_stays_in_its_repository(name: object, safe: bool) -> None:
    assert is_safe_name(name) is safe


@pytest.mark.parametrize("part", ["a", "/", "/?", "http://", "a.-+", "? /"])
def test_a_servers_longest_line_is_shown_without_delay(part: str) -> None:
    start = time.process_time()
    assert len(reason(ValueError(part * (65_536 // len(part))))) <= 200
    assert time.process_time() - start < 1
