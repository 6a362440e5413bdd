"""Hubs asked at once: which answer counts, how long a silent hub is waited for, and what is remembered of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer
from ..support.asking import ask, ask_json, refused, variables
from ..support.models import TINY_QWEN3

CONFIG = json.dumps(dict(TINY_QWEN3)).encode()
HUGGING_FACE = ("/api/models/*", "/org/*", "/Qwen/*")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(
        [HubRepo("org/model", {"config.json": CONFIG}), HubRepo("org/other", {"config.json": CONFIG})]
    ) as hub:
        yield hub


def remembered(home: Path) -> dict[str, float]:
    path = home / ".cache" / "qwen-inspect" / "unreachable.json"
    content: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}
    return content


def test_the_catalog_answers_for_silent_hubs_and_once_only_they_are_waited_for(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("*", stall=True)
    began = time.monotonic()
    shown = ask(hub, tmp_path, "structure", "Qwen/Qwen3-0.6B", "--timeout", "1")
    assert time.monotonic() - began < 1 + 1.5
    assert shown.code == 0
    assert f"the built-in catalog is used. {hub.endpoint} did not answer in time" in shown.out
    assert {request.path.startswith(("/api/v1/", "/models/")) for request in hub.requests} == {True, False}
    hub.forget()
    again = ask(hub, tmp_path, "compare", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
    assert (again.code, hub.requests) == (0, [])
    assert "was out of reach" in again.out
    assert "--refresh" in again.out
    ask(hub, tmp_path, "structure", "Qwen/Qwen3-0.6B", "--timeout", "1", "--refresh")
    assert hub.requests


def test_modelscope_answers_for_hugging_face_when_that_is_silent(hub: HubServer, tmp_path: Path) -> None:
    for pattern in HUGGING_FACE:
        hub.fail(pattern, stall=True)
    for model, words in (("org/model", "did not answer in time"), ("org/other", "was out of reach")):
        found = ask_json(hub, tmp_path, "config", model, "--timeout", "1")
        assert found["model"]["source"] == "ms"
        assert "Read from ModelScope. " in found["model"]["notices"][0]
        assert words in found["model"]["notices"][0]
    hub.heal()
    assert ask_json(hub, tmp_path, "config", "hf:org/model")["model"]["source"] == "hf"
    assert remembered(tmp_path) == {}  # an answer ends it
    found = ask_json(hub, tmp_path, "config", "org/other", "--refresh")
    assert (found["model"]["source"], found["model"]["notices"][0][:4]) == ("hf", "The ")  # its mirror's notice alone


def test_hugging_face_wins_where_it_answers_later(hub: HubServer, tmp_path: Path) -> None:
    for pattern in HUGGING_FACE:
        hub.fail(pattern, delay=0.5)
    assert ask_json(hub, tmp_path, "config", "org/model")["model"]["source"] == "hf"
    assert any(request.path.startswith("/api/v1/") for request in hub.requests)  # asked meanwhile


def test_an_earlier_run_answers_for_a_hub_that_is_silent(hub: HubServer, tmp_path: Path) -> None:
    first = ask_json(hub, tmp_path, "config", "hf:org/model")
    hub.fail("*", stall=True)
    again = ask_json(hub, tmp_path, "config", "hf:org/model", "--refresh", "--timeout", "1")
    assert again["config"] == first["config"]
    assert any("what an earlier run kept is used" in notice for notice in again["model"]["notices"])


def test_a_refusal_is_not_remembered_and_a_missing_connection_says_what_helps(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("*", status=429, retry_after="3600", body=HubFile(b"{}"))
    refused(ask(hub, tmp_path, "config", "org/model"), 5, "limits the rate")
    assert remembered(tmp_path) == {}
    hub.heal()
    hub.fail("*", close=True)
    shown = ask(hub, tmp_path, "config", "org/model", "--timeout", "1")
    refused(shown, 5, hub.endpoint, "HF_ENDPOINT=https://", "ms:org/model", "--offline")
    assert sorted(remembered(tmp_path)) == [f"{source} {hub.endpoint}" for source in ("hf", "ms")]


def test_a_terminal_shows_who_is_asked_and_what_has_come(hub: HubServer, tmp_path: Path) -> None:
    import pexpect

    hub.latency = 0.7
    command = ["-m", "qwen_inspect", "config", "org/model"]
    child = pexpect.spawn(sys.executable, command, env=variables(hub, tmp_path, TERM="xterm"), encoding="utf-8")
    shown = child.read()
    asked = "Asking Hugging Face and ModelScope for org/model …"
    assert asked in shown
    assert shown.rindex("\r\x1b[K") > shown.rindex(asked)
    assert "Asking" not in ask(hub, tmp_path / "piped", "config", "org/other").err
