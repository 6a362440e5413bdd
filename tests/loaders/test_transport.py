"""The requests themselves: proxies, certificates, kept connections; addresses, tokens and caches as in the hubs' clients."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwen_inspect.errors import AccessError
from qwen_inspect.loaders import transport
from qwen_inspect.loaders.huggingface import HuggingFace
from qwen_inspect.loaders.modelscope import ModelScope
from qwen_inspect.loaders.transfer import Answer, Deadline, Unreachable
from qwen_inspect.loaders.transport import Transport

from ..hub.proxies import Proxy
from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer

CONFIG = b'{"model_type": "qwen3"}' * 1000
REPOS = [HubRepo("org/model", {"config.json": CONFIG, "model.safetensors": HubFile(b"head", total_bytes=1_000_000)})]
PATH = "/org/model/resolve/main/config.json"
OWN_VARIABLES = ("HF_", "HUGGING", "MODELSCOPE_", "XDG_", "SSL_", "REQUESTS_", "CURL_")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(OWN_VARIABLES) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    transport._certificates.cache_clear()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(REPOS) as server:
        yield server


def got(url: str, through: Transport | None = None, **headers: str) -> Answer:
    through = through or Transport(url, own={})
    return through.get(url, headers=headers, limit=1_000_000, deadline=Deadline.after(5))


# --- addresses, tokens and caches: held against the clients themselves


def constants_of_client() -> ModuleType:
    """huggingface_hub's constants as a new process would read them now."""
    spec = importlib.util.find_spec("huggingface_hub.constants")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_endpoint_cache_and_token_are_those_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    choices: Mapping[str, list[str]] = {
        "HF_ENDPOINT": ["https://hf-mirror.com", "http://127.0.0.1:8000/", "https://mirror.example/hf//"],
        "XDG_CACHE_HOME": [str(tmp_path / "xdg")],
        "HF_HOME": [str(tmp_path / "home"), "~/own", "$BELOW/home"],
        "HUGGINGFACE_HUB_CACHE": [str(tmp_path / "older"), "~/older"],
        "HF_HUB_CACHE": [str(tmp_path / "cache"), "$BELOW/cache"],
        "HF_TOKEN_PATH": [str(tmp_path / "named"), "~/named"],
        "HF_TOKEN": ["hf_variable", " hf_spaces\r\n", "  "],
        "HUGGING_FACE_HUB_TOKEN": ["hf_older"],
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": ["1", "true", "0", "no"],
    }
    monkeypatch.setenv("BELOW", str(tmp_path / "below"))
    places = [".cache/huggingface", "xdg/huggingface", "home", "own", "below/home"]
    for place in [*(f"{place}/token" for place in places), "named"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"hf_of_{place.replace('/', '_')}\n")
    drawn = random.Random(0)
    seen: set[str | None] = set()
    for _ in range(300):
        for name, values in choices.items():
            if drawn.random() < 0.3:
                monkeypatch.setenv(name, drawn.choice(values))
            else:
                monkeypatch.delenv(name, raising=False)
        client = constants_of_client()
        for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            monkeypatch.setattr(huggingface_hub.constants, name, getattr(client, name))
        mine = HuggingFace()
        assert mine.endpoint == client.ENDPOINT
        assert str(mine._cache) == client.HF_HUB_CACHE
        assert str(mine._token_file) == client.HF_TOKEN_PATH
        token = build_hf_headers().get("authorization")
        seen.add(token)
        assert mine._credentials.get("Authorization") == token
        theirs = hf_hub_url("org/name", "a b/c#d.json", revision="refs/pr/1", endpoint=mine.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co")
        assert mine.file_url("org/name", "refs/pr/1", "a b/c#d.json") == theirs
    assert len(seen) >= 9  # without a token, from each variable, from each file


@pytest.mark.parametrize(("days", "exchanged"), [(0.5, True), (2, False)])
def test_a_login_in_its_last_day_is_left_to_the_client_as_it_would_exchange_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, days: float, exchanged: bool
) -> None:
    import huggingface_hub

    folder = tmp_path / ".cache" / "huggingface"
    folder.mkdir(parents=True)
    (folder / "token").write_text("hf_login")
    ends = int(time.time() + days * 24 * 3600)
    (folder / "stored_tokens").write_text(f"[me]\nhf_token = hf_login\nrefresh_token = r%s\nexpires_at = {ends}\n")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_new")
    expected = "hf_new" if exchanged else "hf_login"
    assert HuggingFace()._credentials == {"Authorization": f"Bearer {expected}"}


@pytest.mark.filterwarnings("ignore:.*MODELSCOPE_DOMAIN:FutureWarning")
def test_endpoint_cache_and_token_are_those_of_modelscope_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from modelscope_hub.config import HubConfig

    choices: Mapping[str, list[str]] = {
        "MODELSCOPE_ENDPOINT": ["HTTPS://y.example/", "modelscope.ai", "http://127.0.0.1:80", " "],
        "MODELSCOPE_DOMAIN": ["x.example", "https://x.example/", " "],
        "MODELSCOPE_CACHE": [str(tmp_path / "cache"), "~/cache", str(tmp_path / "a" / ".." / "b")],
        "MODELSCOPE_HOME": [str(tmp_path / "home"), "~/none"],
        "MODELSCOPE_API_TOKEN": ["ms_variable", ""],
    }
    HubConfig().save_token("ms_of_login")  # ~/.modelscope
    HubConfig(config_dir=tmp_path / "home", endpoint="modelscope.cn").save_token("ms_of_home")
    drawn = random.Random(0)
    seen: set[str | None] = set()
    for _ in range(200):
        for name, values in choices.items():
            if drawn.random() < 0.4:
                monkeypatch.setenv(name, drawn.choice(values))
            else:
                monkeypatch.delenv(name, raising=False)
        mine, theirs = ModelScope(), HubConfig()
        assert (mine.endpoint, mine._cache) == (theirs.endpoint, theirs.cache_dir)
        assert mine._token == (theirs.token or None)
        seen.add(mine._token)
    assert seen == {None, "ms_variable", "ms_of_login", "ms_of_home"}


def test_a_stored_login_ends_and_its_file_can_call_nothing(tmp_path: Path) -> None:
    from modelscope_hub.config import HubConfig

    config = HubConfig()
    config.save_token("ms_of_login")
    jar = config.load_cookies()
    for cookie in jar:
        cookie.expires = int(time.time()) - 1
    config.save_cookies(jar)
    assert (HubConfig().token, ModelScope()._token) == (None, None)

    class Caller:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "called"),)

    file = tmp_path / ".modelscope" / "credentials" / "cookies"
    for content in (pickle.dumps(Caller()), pickle.dumps({"_cookies": 1}), b"", b"\x80\x05.", os.urandom(100)):
        file.write_bytes(content)
        assert ModelScope()._token is None
    assert not (tmp_path / "called").exists()


def test_a_token_that_no_header_can_hold_is_never_sent(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    for name, value in hub.environment(Path.home()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_\u00e4")
    with pytest.raises(AccessError, match="MODELSCOPE_API_TOKEN"):
        ModelScope().get(hub.endpoint + PATH, headers={}, limit=10, deadline=Deadline.after(1))
    assert hub.requests == []


def test_listings_are_asked_for_under_the_clients_own_addresses(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer, tmp_path: Path
) -> None:
    import huggingface_hub.constants
    from modelscope_hub import HubApi

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name, value in hub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    client = huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)
    client.model_info("org/model", files_metadata=True)
    HubApi().list_repo_files("org/model", "model")
    theirs = [request.target for request in hub.requests]
    assert theirs[0] == HuggingFace().listing_url("org/model", "main").removeprefix(hub.endpoint)
    mine = ModelScope().listing_url("org/model", "master").removeprefix(hub.endpoint)
    assert mine.partition("?")[0] in [target.partition("?")[0] for target in theirs[1:]]


def test_the_requester_can_be_named(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_USER_AGENT_ORIGIN", "a-space")
    HuggingFace().get(hub.endpoint + PATH, headers={}, limit=10, deadline=Deadline.after(1))
    (request,) = hub.requests
    assert request.headers["user-agent"].startswith("qwen-inspect/")
    assert request.headers["user-agent"].endswith("; origin/a-space")


# --- connections


def test_connections_are_kept_and_closed_ones_replaced(hub: HubServer) -> None:
    through = Transport(hub.endpoint, own={})
    for _ in range(3):
        assert got(hub.endpoint + PATH, through).body == CONFIG
    assert {request.connection for request in hub.requests} == {1}
    hub.fail("*", close=True, times=1)  # as a server does with one that was idle for too long
    assert got(hub.endpoint + PATH, through).body == CONFIG
    assert [request.connection for request in hub.requests][3:] == [1, 2]


def test_what_comes_in_part_or_packed_comes_whole(hub: HubServer) -> None:
    hub.fail("*", compress=True, times=1)
    packed = got(hub.endpoint + PATH)
    assert (packed.body, packed.headers["content-encoding"]) == (CONFIG, "gzip")
    hub.fail("*", truncate_after=10, times=1)
    with pytest.raises(Unreachable, match="ended early"):
        got(hub.endpoint + PATH)
    hub.fail("*", drop_headers=("Content-Length",), times=1)
    assert got(hub.endpoint + PATH).body == CONFIG
    assert got(hub.endpoint + PATH, Range="bytes=5-9").body == CONFIG[5:10]


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "127.0.0.1/x", "http://", "http://127.0.0.1:port/x", "http://[::1/"]
)
def test_an_address_that_is_none_is_no_network_to_wait_for(url: str) -> None:
    with pytest.raises(Unreachable) as refused:
        got(url, Transport("http://127.0.0.1", own={}))
    assert refused.value.final


@pytest.mark.parametrize(
    ("endpoint", "url", "sent"),
    [
        ("https://hub.example", "https://hub.example:443/x", True),
        ("https://hub.example/below", "https://HUB.example/x", True),
        ("http://hub.example", "https://hub.example/x", True),  # the same host, now with TLS
        ("https://hub.example", "http://hub.example/x", False),
        ("https://hub.example", "https://hub.example:8443/x", False),
        ("https://hub.example", "https://cdn.hub.example/x", False),
        ("https://hub.example", "https://hub.example@evil.example/x", False),
        ("http://hub.example:8000", "https://hub.example/x", False),
    ],
)
def test_a_token_is_for_the_endpoints_origin_alone(endpoint: str, url: str, sent: bool) -> None:
    own = {"Authorization": "Bearer t"}
    assert Transport(endpoint, own=own)._own_headers(url) == (own if sent else {})


# --- proxies and certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of hub.example, with its key in the same file."""
    folder = tmp_path_factory.mktemp("certificate")
    asked = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=hub.example"
    parts = [folder / "key.pem", folder / "certificate.pem"]
    names = ["-addext", "subjectAltName=DNS:hub.example", "-keyout", str(parts[0]), "-out", str(parts[1])]
    subprocess.run([*asked.split(), *names], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    return both


@pytest.fixture
def secure_hub(certificate: Path) -> Iterator[HubServer]:
    """A hub of https://hub.example, a name that only a proxy can look up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = HubServer(REPOS)
    origin = server.origins[0]
    origin.socket = context.wrap_socket(origin.socket, server_side=True, do_handshake_on_connect=False)
    server.endpoint = f"https://hub.example:{origin.server_port}"
    with server:
        yield server


def basic(credentials: str) -> str:
    return f"Basic {b64encode(credentials.encode()).decode()}"


@pytest.mark.parametrize(
    ("scheme", "variable"), [("", "REQUESTS_CA_BUNDLE"), ("http://", "SSL_CERT_FILE"), ("socks5h://", "CURL_CA_BUNDLE")]
)
def test_a_hub_behind_a_proxy_is_reached_with_its_certificate_and_its_name(
    monkeypatch: pytest.MonkeyPatch, secure_hub: HubServer, certificate: Path, variable: str, scheme: str
) -> None:
    with Proxy(at={"hub.example": "127.0.0.1"}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", scheme + proxy.address)
        with pytest.raises(Unreachable, match="certificate") as refused:
            got(secure_hub.endpoint + PATH)
        assert refused.value.final
        monkeypatch.setenv(variable, str(certificate))
        transport._certificates.cache_clear()
        through = Transport(secure_hub.endpoint, own={})
        for _ in range(2):
            assert got(secure_hub.endpoint + PATH, through).body == CONFIG
        assert proxy.asked == [(secure_hub.endpoint.removeprefix("https://"), "")] * 2  # one connection each time
    assert secure_hub.requests[0].headers["host"] == secure_hub.endpoint.removeprefix("https://")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_is_given_its_password_and_the_hub_is_not(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer, scheme: str
) -> None:
    expected = "me:p@ss" if scheme == "socks5" else basic("me:p@ss")
    url = hub.endpoint.replace("127.0.0.1", "hub.example")
    with Proxy(at={"hub.example": "127.0.0.1"}, password=expected) as proxy:
        monkeypatch.setenv("all_proxy", f"{scheme}://me:p%40ss@{proxy.address}")
        assert got(url + PATH).body == CONFIG
        assert proxy.asked == [(url.removeprefix("http://"), expected)]
        (request,) = hub.requests
        assert "p@ss" not in str(request.headers)
        assert "proxy-authorization" not in request.headers
        monkeypatch.setenv("all_proxy", f"{scheme}://me:wrong@{proxy.address}")
        with pytest.raises(Unreachable, match=r"407 Proxy Auth|refuses the name or the password") as refused:
            got(url + PATH)
        assert refused.value.final


def test_no_proxy_names_hosts_that_are_asked_directly(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
        assert got(hub.endpoint + PATH).body == CONFIG
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("scheme", "reason"), [("https", "https:// is not supported"), ("socks4", "socks4:// is not supported")]
)
def test_a_kind_of_proxy_that_is_not_supported_is_named(
    monkeypatch: pytest.MonkeyPatch, scheme: str, reason: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:9")
    with pytest.raises(Unreachable, match=reason) as refused:
        got("https://hub.example/x")
    assert refused.value.final


def test_a_socks_proxy_that_cannot_reach_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(at={"hub.example": "127.0.0.1"}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5://{proxy.address}")
        with pytest.raises(Unreachable, match="reply 4 of RFC 1928"):
            got("http://hub.example:9/x")
