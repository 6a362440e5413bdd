"""Tokens and passwords: in no line printed and in no file written, whatever a hub, a proxy or a client's exception says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401 (reads its variables when it is first imported)
import pytest

from qwen_inspect.errors import AccessError, NotFoundError, QwenInspectError, UsageError
from qwen_inspect.loaders.huggingface import HuggingFace
from qwen_inspect.loaders.modelscope import ModelScope
from qwen_inspect.loaders.resolve import Access, load, resolve
from qwen_inspect.loaders.showing import keep_secret, reason, shown_url
from qwen_inspect.loaders.transfer import unreachable
from qwen_inspect.loaders.transport import Transport

from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer, safetensors_file
from ..support.asking import SOURCES, ask, refused

CONFIG = b'{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}'
REPOS = [HubRepo("org/model", {"config.json": CONFIG, "model.safetensors": safetensors_file({"t": ("F32", (4,))})})]
TOKENS = {"HF_TOKEN": "hf_secretsecretsecret", "MODELSCOPE_API_TOKEN": "ms_secretsecretsecret"}
TOKEN_OF = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}
ENDPOINT_OF = {"hf": "HF_ENDPOINT", "ms": "MODELSCOPE_ENDPOINT"}
UNSENDABLE = (
    "secretsecret\nsecretsecret",
    "secret\rsecretsecret",
    "secretsecret\u2028secretsecret",
    "secretsecret\u00e4",
    "secretsecret\x01",
)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(REPOS) as server:
        server.tokens |= {*TOKENS.values()}
        yield server


def files_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + str(path).encode() for path in folder.rglob("*") if path.is_file())


# --- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hub.example/api/models/a/b?token=s#s", "https://hub.example/api/models/a/b"),
        ("http://me:secret@hub.example:8080/x", "http://hub.example:8080/x"),
        ("http://me:sec@ret@hub.example", "http://hub.example"),
        ("http://me:sec/ret@hub.example/x", "http://…"),
        ("http://me:sec?ret@hub.example/x", "http://…"),
        ("http://me:sec#ret@hub.example/x", "http://…"),
        ("http://hub.example?token=s", "http://hub.example"),
        ("me:secret@proxy:3128", "proxy:3128"),
        ("http://[x", "http://[x"),
    ],
)
def test_of_a_url_scheme_host_and_path_are_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    if "://" not in url:
        return  # as a proxy may be written, and no client writes an address
    assert "secret" not in reason(OSError(f"Redirect response '302 Found' for url '{url}' at {url}, twice"))


@pytest.mark.parametrize("token", [*UNSENDABLE, "secret secret+/=%"])
def test_a_client_may_write_a_secret_as_it_likes(token: str) -> None:
    """As requests and http.client write a header that they refuse, and urllib3 an address that does not answer."""
    from urllib.parse import quote

    keep_secret(token)
    header = f"Bearer {token}"
    for text in (
        f"Invalid leading whitespace, reserved character(s), or return character(s) in header value: {header!r}",
        f"Invalid header value {header.encode('utf-8')!r}",
        f"the header {header} is none",
        f"HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /x?token={quote(token)} (Caused by",
    ):
        assert "secret" not in reason(ValueError(text))


def test_a_reason_keeps_what_is_no_secret() -> None:
    assert reason(OSError("[Errno 111] Connection refused\nwhile reading")) == "[Errno 111] Connection refused"
    assert reason(TimeoutError()) == "TimeoutError"
    assert reason(ValueError("https://hub.example/a/b: why? because")) == "https://hub.example/a/b: why? because"


# --- endpoints


@pytest.mark.parametrize(
    "end", ["?token=secretsecret", "/#secretsecret", "/x?secretsecret=1&a=b@c", ":99999", ":0", "0[x"]
)
def test_an_endpoint_that_is_more_than_scheme_host_and_path_is_refused(hub: HubServer, end: str) -> None:
    with pytest.raises(UsageError, match="is no endpoint of a hub") as refusal:
        Transport(hub.endpoint.rpartition(":")[0] + end, own={})
    assert "secretsecret" not in str(refusal.value)


@pytest.mark.parametrize("source", SOURCES)
def test_a_refused_endpoint_is_asked_nothing_and_kept_nowhere(hub: HubServer, tmp_path: Path, source: str) -> None:
    endpoint = f"{hub.endpoint}?token=secretsecret"
    shown = ask(hub, tmp_path, "config", f"{source}:org/model", **{ENDPOINT_OF[source]: endpoint})
    refused(shown, 2, f"{hub.endpoint} is no endpoint of a hub", ENDPOINT_OF[source])
    assert hub.requests == []
    assert b"secretsecret" not in files_below(tmp_path)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "fault",
    [
        None,
        {"status": 401}, {"status": 403}, {"status": 404}, {"status": 429, "retry_after": "60"}, {"status": 418},
        {"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}},
        {"status": 200, "body": HubFile(b"[]")}, {"close": True}, {"location": "self"}, {"truncate_after": 3},
        {"location": "http://127.0.0.1:99999/?secretsecret"}, {"location": "http://[secretsecret?"},
        {"location": "//secretsecret:secretsecret@127.0.0.1:1/"},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_that_a_hub_does_shows_what_is_in_its_endpoint_or_a_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, fault: Mapping[str, Any] | None
) -> None:
    """In this process, each request of a model: its listing, a file, and the listing of a revision."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith(("HF_", "MODELSCOPE_", "XDG_", "QWEN_")):
            monkeypatch.delenv(name)
    for name, value in {**hub.environment(tmp_path), **TOKENS}.items():
        monkeypatch.setenv(
            name, value.replace("127.0.0.1", "secretsecret:secretsecret@127.0.0.1") if value == hub.endpoint else value
        )
    for pattern in ("*", "*/resolve/*", "*/revision/*"):
        hub.heal()
        if fault is not None:
            hub.fail(pattern, **fault)
        for access in (Access(seconds=0.2), Access(seconds=0.2, refresh=True), Access(offline=True)):
            for model in ("org/model", "org/model@v1", "org/nowhere"):
                try:
                    said = str(load(resolve(f"{source}:{model}"), access).notices)
                except QwenInspectError as error:
                    said = f"{error} {error.message}"
                assert "secretsecret" not in said, said
    assert b"secretsecret" not in files_below(tmp_path)


# --- tokens


@pytest.mark.parametrize("token", UNSENDABLE)
def test_a_token_that_no_header_can_hold_is_refused_before_a_client_has_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    for name, value in {**hub.environment(tmp_path), "MODELSCOPE_API_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match="The token of MODELSCOPE_API_TOKEN is not valid"):
        ModelScope().download("org/model", "master", [], lambda size: None)
    assert hub.requests == []
    said = str(
        ModelScope()._download_refusal(ValueError(f"header value: {f'Bearer {token}'!r}"), "org/model", "master", "x")
    )
    assert "secret" not in said
    if "\n" not in token and "\r" not in token:  # which the client of Hugging Face takes out
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AccessError, match="The token of HF_TOKEN is not valid"):
            HuggingFace().download("org/model", "main", [], lambda size: None)


@pytest.mark.parametrize("source", SOURCES)
def test_a_command_prints_and_keeps_no_token(hub: HubServer, tmp_path: Path, source: str) -> None:
    for token, code in ((TOKENS[TOKEN_OF[source]], 0), ("secretsecret\u2028secretsecret", 4)):
        shown = ask(hub, tmp_path, "config", f"{source}:org/model", "--refresh", **{TOKEN_OF[source]: token})
        assert shown.code == code
        assert b"secretsecret" not in files_below(tmp_path)


def test_a_proxy_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for proxy in (
        "http://me:secretsecret@127.0.0.1:1",
        "me:secretsecret@127.0.0.1:1",
        "http://me:secret/secret@127.0.0.1:1",
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        said = str(unreachable("http://hub.example/x?secretsecret", "cannot connect"))
        assert "secret" not in said


@pytest.mark.parametrize(
    "model", ["https://me:secretsecret@hub.example/org/model?secretsecret", "hf:https://me:secretsecret@h/x"]
)
def test_an_address_in_place_of_a_model_is_shown_without_its_password(model: str) -> None:
    with pytest.raises(NotFoundError, match="neither a path nor ORG/NAME") as refusal:
        resolve(model)
    assert "secretsecret" not in str(refusal.value)
