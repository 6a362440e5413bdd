"""Faults of a hub, and what a command makes of each: on a first visit, on a second, and offline after it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer
from .asking import variables
from .invoking import captured, tensors_of
from .models import TINY_QWEN3, header_of

TOKENS = {"hf": "hf_secretsecretsecret", "ms": "ms_secretsecretsecret"}
MODEL = "org/model"
PARAMETERS = 78_208  # of TINY_QWEN3: the parameters of transformers' Qwen3ForCausalLM
VISITS = ("first visit", "second visit", "offline after")
PAGE = HubFile(b"<!doctype html><title>Log in</title>" * 40)


class HubFault(NamedTuple):
    """Which requests are spoiled, and how (`Fault`); the exit codes of the first and the second visit, and words of the first."""

    pattern: str
    how: Mapping[str, Any]
    codes: tuple[int, int]
    words: str  # a regular expression


HTML = {"Content-Type": "text/html; charset=utf-8"}
KEPT = (5, 0)  # the hub gives no answer: what an earlier visit kept is one
LATE = r"did not answer in time|timed out"
FAULTS: Mapping[str, HubFault] = {
    "closes the connection": HubFault("*", {"close": True}, KEPT, "without response"),
    "says nothing": HubFault("*", {"stall": True}, KEPT, LATE),
    "sends headers of 2 bytes a second": HubFault("*", {"header_bytes_per_second": 2}, KEPT, LATE),
    "sends 100 Continue without end": HubFault("*", {"continues": True}, KEPT, LATE),
    "sends 10 bytes a second": HubFault("*", {"bytes_per_second": 10}, KEPT, LATE),
    "stops within the body": HubFault("*", {"stall_after": 5}, KEPT, LATE),
    "cuts the body off": HubFault("*", {"truncate_after": 5}, KEPT, "ended early"),
    "says gzip and sends none": HubFault("*", {"headers": {"Content-Encoding": "gzip"}}, KEPT, "decompressing"),
    "redirects to itself": HubFault("*", {"location": "self"}, KEPT, "redirected without end"),
    "redirects to no address": HubFault("*", {"location": "http://[127.0.0.1:99999/"}, KEPT, "could not be reached"),
    "redirects to another host": HubFault("*", {"location": "http://OTHER/"}, (3, 3), "does not exist"),
    "sends 10 GB": HubFault(
        "*", {"status": 200, "body": HubFile(b"{", total_bytes=10_000_000_000)}, (6, 6), "20,000,000 bytes allowed"
    ),
    "sends a page for people": HubFault("*", {"status": 200, "body": PAGE, "headers": HTML}, KEPT, "a web page"),
    "sends no JSON": HubFault("*", {"status": 200, "body": PAGE}, (6, 6), "not JSON"),
    "sends another JSON": HubFault(
        "*", {"status": 200, "body": HubFile(b"[]")}, (6, 6), "other than a model's listing"
    ),
    "answers 401": HubFault("*", {"status": 401}, (4, 4), "log in again, or unset it"),
    "answers 403": HubFault("*", {"status": 403}, (4, 4), "refuses access"),
    "answers 404": HubFault("*", {"status": 404}, (3, 3), "does not exist"),
    "answers 407": HubFault("*", {"status": 407}, KEPT, "407 Proxy Authentication Required"),
    "answers 418": HubFault("*", {"status": 418}, KEPT, "status 418"),
    "answers 429": HubFault("*", {"status": 429}, KEPT, "does not say how long to wait"),
    "answers 429, wait an hour": HubFault("*", {"status": 429, "retry_after": "3600"}, KEPT, "3600 s"),
    "answers 500": HubFault("*", {"status": 500}, KEPT, "status 500"),
    "answers 503 with a page": HubFault("*", {"status": 503, "body": PAGE}, KEPT, "status 503"),
    "says nothing of a shard": HubFault("*-00002-*", {"stall": True}, KEPT, "1 of 2 files did not come in time"),
    "cuts a shard off": HubFault("*-00002-*", {"truncate_after": 5}, KEPT, "1 of 2 files did not come: .*ended early"),
    "answers 404 for a shard": HubFault("*-00002-*", {"status": 404}, (3, 3), "has no file model-00002"),
    "sends another range of a shard": HubFault(
        "*-00002-*",
        {"headers": {"Content-Range": "bytes 5-60/70"}},
        KEPT,
        "1 of 2 files did not come: .*from byte 5 instead of 0",
    ),
    "sends a page for a shard": HubFault(
        "*-00002-*", {"status": 200, "body": PAGE, "headers": HTML}, KEPT, "1 of 2 files did not come: .*a web page"
    ),
    "sends another file for a shard": HubFault("*-00002-*", {"status": 200, "body": PAGE}, (6, 6), "states a header"),
}


class Visit(NamedTuple):
    """What a command took and said. line: of an error, or the notice that says where an answer is from."""

    seconds: float
    requests: int
    code: int
    line: str


def release(vocabulary: int) -> HubRepo:
    """A model in two shards; another vocabulary changes its configuration and both of them."""
    config = {**TINY_QWEN3, "vocab_size": vocabulary}
    files: dict[str, HubFile | bytes | Path] = {"config.json": json.dumps(config).encode()}
    tensors = tensors_of(config)
    for number, part in enumerate((tensors[:9], tensors[9:]), 1):
        head = header_of(part, {"vocabulary": str(vocabulary)})
        data_bytes = sum(tensor.size_bytes for tensor in part)
        files[f"model-0000{number}-of-00002.safetensors"] = HubFile(head, total_bytes=len(head) + data_bytes)
    return HubRepo(MODEL, files, sha=f"{vocabulary:040}")


@dataclass
class Servers:
    """A hub and another host, to which it may send on."""

    hub: HubServer
    other: HubServer


def visits(source: str, fault: str, home: Path, *options: str) -> Iterator[Visit]:
    """VISITS in turn. Between the first and the second the model is read in a sound visit, and changes on the hub then."""
    with HubServer() as hub, HubServer() as other:
        hub.tokens |= {*TOKENS.values()}
        servers, spoiling = Servers(hub, other), FAULTS[fault]
        how = dict(spoiling.how)
        if "location" in how:
            how["location"] = how["location"].replace("http://OTHER", other.endpoint)
        hub.repos[MODEL] = release(256)
        hub.fail(spoiling.pattern, **how)
        yield _visit(servers, source, home, *options)
        hub.heal()
        assert _visit(servers, source, home, *options, "--refresh").code == 0
        hub.repos[MODEL] = release(320)
        hub.fail(spoiling.pattern, **how)
        yield _visit(servers, source, home, *options, "--refresh")
        yield _visit(servers, source, home, *options, "--offline")


def _visit(servers: Servers, source: str, home: Path, *options: str) -> Visit:
    environment = variables(servers.hub, home, HF_TOKEN=TOKENS["hf"], MODELSCOPE_API_TOKEN=TOKENS["ms"])
    servers.hub.forget()
    servers.other.forget()
    began = time.monotonic()
    with mock.patch.dict(os.environ, environment, clear=True):
        done = captured("params", f"{source}:{MODEL}", "--format", "json", *options)
    seconds = time.monotonic() - began
    _await_threads()
    _assert_no_token_went_astray(servers, source, home, done.out + done.err)
    if done.code == 0:
        content = json.loads(done.out)
        assert content["parameters"]["stored"] == content["parameters"]["theory"] == PARAMETERS
        line = content["model"]["notices"][-1]
    else:
        (line,) = [line.removeprefix("error: ") for line in done.err.splitlines() if line.startswith("error: ")]
    for server, name in ((servers.hub, "HUB"), (servers.other, "OTHER")):
        line = line.replace(server.endpoint, f"http://{name}")
    return Visit(seconds, len(servers.hub.requests) + len(servers.other.requests), done.code, line)


def _await_threads() -> None:
    """Waits for the requests that a command leaves behind, whose process would end here; they have their deadlines."""
    for thread in threading.enumerate():
        if thread.name.endswith(("(work)", "(ask)")):
            thread.join()


def _assert_no_token_went_astray(servers: Servers, source: str, home: Path, shown: str) -> None:
    """A token is sent to its own hub's origin alone; it is in no line that is printed and in no file that is written."""
    for request in (*servers.hub.requests, *servers.other.requests):
        sent = f"{request.target} {request.headers}"
        is_own = request in servers.hub.requests and request.origin == "main"
        assert is_own or "secretsecret" not in sent, request
        assert all(token not in sent for hub, token in TOKENS.items() if hub != source), request
    written = b"".join(path.read_bytes() + str(path).encode() for path in home.rglob("*") if path.is_file())
    assert "secretsecret" not in shown
    assert b"secretsecret" not in written
