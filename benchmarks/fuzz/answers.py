"""What a hub answers, as bytes of HTTP: a listing, damaged in its JSON, its headers or its chunks."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from qwen_inspect.loaders import transport
from qwen_inspect.loaders.hub import LONGEST_LISTING_BYTES, Hub, fetch_listing, missing_shards, weight_files
from qwen_inspect.loaders.named import hub_of
from qwen_inspect.loaders.transfer import Deadline

from .mutation import ODD, SIZES, damaged, mutate, written
from .trial import Case, Verdict

SECONDS = 0.2  # less than the first pause: nothing is asked twice
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
LISTINGS: Mapping[str, Any] = {
    "hf": {
        "sha": "a" * 40,
        "siblings": [
            {"rfilename": "config.json", "size": 700, "blobId": "b" * 40},
            *({"rfilename": name, "size": 10**9, "lfs": {"sha256": "c" * 64, "size": 10**9}} for name in SHARDS),
        ],
        "safetensors": {"parameters": {"BF16": 10**9, "F32": 5}, "total": 10**9 + 5},
    },
    "ms": {
        "Code": 200,
        "Data": {
            "Files": [
                {"Path": name, "Type": "blob", "Size": 10**9, "Sha256": "c" * 64, "IsLFS": True}
                for name in ("config.json", *SHARDS)
            ]
        },
    },
}
NAMES = (
    *("../x", "/x", "a\\b", "\ud800.safetensors", "a\n.safetensors", "\u202e.safetensors", "a/b/c.safetensors", ".."),
    *("model-00001-of-99999.safetensors", "model-00000-of-00000.safetensors", "model.gguf", "x" * 5_000),
)
LOCATIONS = (
    *("http://[", "http://h:99999/", "//h", "/\xff", "\xff\xfe", "https://", "ftp://h/x", "http://h/\r\nx: y", "?", ""),
    *("http://user:password@h/", "http://h:-1/", "http://h:0/", "x" * 70_000, "http://\u2028/", "file:///etc/passwd"),
)
HEADERS = (
    *("Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: x", "Content-Length: 5", "X"),
    *("Content-Encoding: gzip", "Content-Encoding: br", "Transfer-Encoding: chunked", "Transfer-Encoding: x", ": x"),
    *(
        "Retry-After: 0",
        "Retry-After: 99999999999",
        "Retry-After: x",
        "Set-Cookie: a=b",
        "X-Repo-Commit: ../..",
        "a: " + "x" * 70_000,
    ),
    *(
        "X-Error-Code: GatedRepo",
        "X-Error-Code: RevisionNotFound",
        "X-Error-Message: \x1b[31m",
        "Content-Range: bytes 5-9/3",
    ),
)
STATUSES = (
    *(200,) * 12,
    204,
    206,
    301,
    302,
    304,
    307,
    308,
    400,
    401,
    403,
    404,
    407,
    418,
    429,
    500,
    503,
    99,
    999,
    0,
    -1,
)


def make(random: Random) -> Case:
    """An answer, and in `words` the hub that gives it."""
    source = random.choice(("hf", "ms"))
    listing = json.loads(json.dumps(LISTINGS[source]))
    for _ in range(random.choice((0, 1, 1, 2))):
        mutate(listing, random, odd=(*ODD, *NAMES))
    body, headers = written(listing, random), []
    match random.randrange(6):
        case 0:
            body, headers = _chunked(body, random), ["Transfer-Encoding: chunked"]
        case 1:
            body = gzip.compress(body, 1)
            body = damaged(body, random) if random.random() < 0.5 else body
            headers = ["Content-Encoding: gzip", f"Content-Length: {len(body)}"]
        case 2:
            headers = ["Connection: close"]
        case _:
            headers = [f"Content-Length: {len(body)}"]
    status = random.choice(STATUSES)
    if 300 <= status < 400:
        headers.append(f"Location: {random.choice(LOCATIONS)}")
    if random.random() < 0.3:
        headers.insert(random.randrange(len(headers) + 1), random.choice(HEADERS))
    head = "\r\n".join([f"HTTP/1.1 {status} OK", *headers, "", ""]).encode("latin-1", "replace")
    head = damaged(head, random) if random.random() < 0.15 else head
    return Case(head + body, (source,))


def _chunked(body: bytes, random: Random) -> bytes:
    size = b"%x" % len(body)
    if random.random() < 0.5:
        size = random.choice((b"-5", b"", b"x", b"0", b"%x" % random.choice(SIZES), b"f" * 100, b"5;x=y", b"0x10"))
    return size + b"\r\n" + body + b"\r\n0\r\n\r\n"


def prepare(folder: Path) -> None:
    os.environ |= {"HF_ENDPOINT": "http://hub.example", "MODELSCOPE_ENDPOINT": "http://hub.example"}
    assert LONGEST_LISTING_BYTES > 1


def read(case: Case, folder: Path) -> Verdict:
    hub: Hub = hub_of(case.words[0])

    def connected(at: tuple[str, int], deadline: Deadline) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        theirs.send(case.content)  # what does not fit its buffer is cut off
        theirs.shutdown(socket.SHUT_WR)
        kept.append(theirs)
        return ours

    kept: list[socket.socket] = []
    try:
        with mock.patch.object(transport, "_socket", connected):
            listing = fetch_listing(hub, "org/model", hub.default_revision, Deadline.after(SECONDS))
        missing_shards(weight_files(listing))
    finally:
        for server in kept:
            server.close()
    return Verdict(0)
