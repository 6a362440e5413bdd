"""One deadline for every byte of every request: a server that sends slowly, or without end, is left when the time is over."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.errors import NetworkError
from qwen_inspect.loaders.resolve import Access, load, resolve
from qwen_inspect.loaders.transfer import Deadline, Unreachable
from qwen_inspect.loaders.transport import Transport

from ..hub.server import HubRepo, HubServer, safetensors_file
from ..support.asking import SOURCES

FAULTS: dict[str, dict[str, Any]] = {
    "headers of 2 bytes a second": {"header_bytes_per_second": 2},
    "100 Continue without end": {"continues": True},
    "a body of 10 bytes a second": {"bytes_per_second": 10},
    "a body that stops": {"stall_after": 5},
    "silence": {"stall": True},
}
CONFIG = b'{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}'
SHARDS = {
    f"model-0000{number}-of-00002.safetensors": safetensors_file({f"t{number}": ("F32", (4,))}) for number in (1, 2)
}
REPOS = [
    HubRepo("org/quantised", {"config.json": CONFIG, "hf_quant_config.json": b"{}" * 20, **SHARDS}),
    HubRepo("org/indexed", {"config.json": CONFIG, "model.safetensors.index.json": b"{}" * 20, **SHARDS}),
    HubRepo("org/plain", {"config.json": CONFIG, **SHARDS}),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in os.environ:
        if name.startswith(("HF_", "MODELSCOPE_", "XDG_", "QWEN_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with HubServer(REPOS) as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def get(url: str, through: Transport | None = None) -> bytes:
    through = through or Transport("http://127.0.0.1", own={})
    return through.get(url, headers={}, limit=1000, deadline=Deadline.after(0.2)).body


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_ends_by_its_deadline_on_a_new_and_on_a_kept_connection(hub: HubServer, fault: str) -> None:
    url, through = f"{hub.endpoint}/org/indexed/resolve/main/config.json", Transport(hub.endpoint, own={})
    assert get(url, through) == CONFIG
    hub.fail("*", **FAULTS[fault])
    for connections in (1, 2):
        with within(2), pytest.raises(Unreachable, match="timed out"):
            get(url, through)
        assert hub.connections == connections


def test_a_proxy_that_says_nothing_and_a_handshake_without_answer_end_by_the_deadline(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with within(2), pytest.raises(Unreachable, match="timed out"):
            get(f"https://{address}/")
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy")
        for scheme in ("http", "socks5"):
            monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://{address}")
            with within(2), pytest.raises(Unreachable, match="timed out"):
                get("https://hub.example/")


def test_a_name_that_is_looked_up_for_long_ends_by_the_deadline(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1))
    with within(2), pytest.raises(Unreachable, match="timed out"):
        get("http://hub.example/")


# The files that are asked for alone, after the listing: what declares the quantisation, and the index.
ALONE = {"hf:org/quantised": "*hf_quant_config*", "ms:org/indexed": "*index.json*"}


@pytest.mark.parametrize("model", ALONE)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_ends_by_the_deadline_whichever_request_is_slow(hub: HubServer, model: str, fault: str) -> None:
    hub.fail(ALONE[model], **FAULTS[fault])
    # 0.1 s to the first answer, three times that for the rest.
    with within(2), pytest.raises(NetworkError):
        load(resolve(model), Access(seconds=0.1, headers=False))


@pytest.mark.parametrize("source", SOURCES)
def test_a_second_visit_ends_by_the_same_deadline_where_its_configuration_is_slow(hub: HubServer, source: str) -> None:
    model = resolve(f"{source}:org/plain")
    load(model, Access())
    hub.repos["org/plain"] = HubRepo("org/plain", {"config.json": CONFIG + b" ", **SHARDS})
    for fault in FAULTS:
        hub.heal()
        hub.fail("*config.json*", **FAULTS[fault])
        with within(2):
            kept = load(model, Access(seconds=0.1, refresh=True))
        assert kept.notices[-1].key == "unreachable_kept"
