"""Both hubs over real sockets, read by the tool and by the hubs' own clients, and every way that a hub can misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.structure.inspect import inspect

from ..hub.repos import HubFile
from ..hub.server import MIRROR_DROPS, HubRepo, HubServer, safetensors_file
from ..support.asking import SOURCES, TOKEN, Files, ask, ask_json, refused, variables
from ..support.models import TINY_QWEN3, header_of, write_sharded
from ..support.schema import assert_keeps_to_the_schema

CONFIG = json.dumps(dict(TINY_QWEN3)).encode()
BF16 = DType.BF16


def tensors_of(config: Mapping[str, Any]) -> list[Tensor]:
    from qwen_inspect.architectures import architecture_of
    from qwen_inspect.spec import each_tensor

    architecture = architecture_of(config)
    return list(each_tensor(architecture.tree))


def weights(tensors: list[Tensor], padding: str = "") -> HubFile:
    """A safetensors file of these tensors whose data is a hole; `padding` makes its header longer."""
    head = header_of(tensors, {"format": "pt", "padding": padding} if padding else {"format": "pt"})
    return HubFile(head, total_bytes=len(head) + sum(tensor.size_bytes for tensor in tensors))


# As a release that leaves every module as it is, so that the dense tensors are its files.
MODELOPT = json.dumps(
    {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["*"]}}
).encode()
TENSORS = tensors_of(TINY_QWEN3)
HALVES = (TENSORS[:9], TENSORS[9:])
SHARD_NAMES = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
SHARDS = {name: weights(half) for name, half in zip(SHARD_NAMES, HALVES, strict=True)}
PARAMETERS = sum(tensor.elements for tensor in TENSORS)


def adapter_files(base: str) -> Files:
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "target_modules": ["q_proj", "v_proj"]}
    # TINY_QWEN3: q_proj 64 -> 64, v_proj 64 -> 32, in two layers.
    matrices = [
        Tensor(f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{matrix}.weight", shape, BF16)
        for layer in (0, 1)
        for name, rows in (("q_proj", 64), ("v_proj", 32))
        for matrix, shape in (("A", (4, 64)), ("B", (rows, 4)))
    ]
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights(matrices)}


def repositories() -> list[HubRepo]:
    single: Files = {"config.json": CONFIG, "model.safetensors": weights(TENSORS)}
    return [
        HubRepo("org/single", single, tags={"v1": {**single, "config.json": CONFIG.replace(b"512", b"777")}}),
        HubRepo("org/sharded", {"config.json": CONFIG, **SHARDS}),
        HubRepo("org/long-header", {"config.json": CONFIG, "model.safetensors": weights(TENSORS, "x" * 200_000)}),
        HubRepo("org/gated", single, gated="manual", readers=frozenset({"hf_reader"})),
        HubRepo("org/private", single, private=True, readers=frozenset({"hf_reader"})),
        HubRepo("org/pickled", {"config.json": CONFIG, "pytorch_model.bin": b"never opened"}),
        HubRepo("org/gguf", {"model-Q4_K_M.gguf": b"GGUF"}),
        HubRepo("org/gap", {"config.json": CONFIG, SHARD_NAMES[1]: SHARDS[SHARD_NAMES[1]]}),
        HubRepo("org/adapter", adapter_files("org/single")),
        HubRepo("org/orphan", adapter_files("org/nowhere")),
        HubRepo("org/thief", adapter_files("/etc")),
        HubRepo("org/traversal", single, extra_listing=("../../outside.json",)),
        HubRepo(
            "org/quantised",
            {**single, "config.json": CONFIG[:-1] + b', "quantization_config": {"quant_method": "aqlm"}}'},
        ),
        HubRepo("org/modelopt", {**single, "hf_quant_config.json": MODELOPT}),
        HubRepo("org/empty", {"README.md": b"nothing"}),
        HubRepo("Qwen/Qwen3-0.6B", single),
    ]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(repositories()) as server:
        server.tokens.add(TOKEN)
        yield server


# --- what is read equals what the real clients read


CLIENTS = {
    "get_safetensors_metadata": """
        from huggingface_hub import get_safetensors_metadata
        found = get_safetensors_metadata({model!r})
        out = sorted([name, list(tensor.shape), tensor.dtype] for file in found.files_metadata.values()
                     for name, tensor in file.tensors.items())
    """,
    "AutoConfig": """
        from transformers import AutoConfig
        out = AutoConfig.from_pretrained({model!r}).to_dict()
    """,
    "modelscope": """
        from modelscope import AutoConfig
        out = AutoConfig.from_pretrained({model!r}).to_dict()
    """,
}


def client(hub: HubServer, home: Path, name: str, model: str) -> Any:
    """What a real client, unpatched and in a process of its own, reads from the same server."""
    import textwrap

    script = textwrap.dedent(CLIENTS[name]).format(model=model) + "\nimport json\nprint(json.dumps(out, default=str))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=variables(hub, home), timeout=120, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["org/single", "org/sharded", "org/long-header"])
def test_tensors_equal_those_of_huggingface_hub(hub: HubServer, tmp_path: Path, model: str) -> None:
    index = {
        "weight_map": {tensor.name: name for name, half in zip(SHARD_NAMES, HALVES, strict=True) for tensor in half}
    }
    if model == "org/sharded":  # the client needs the index, which the tool does not
        files: Files = {"config.json": CONFIG, "model.safetensors.index.json": json.dumps(index).encode(), **SHARDS}
        hub.repos[model] = HubRepo(model, files)
    expected = client(hub, tmp_path, "get_safetensors_metadata", model)
    code_of = {str(dtype): dtype.code for dtype in DType}
    for source in SOURCES:
        found = ask_json(hub, tmp_path, "weights", f"{source}:{model}")
        mine = sorted([one["name"], one["shape"], code_of[one["dtype"]]] for one in found["tensors"])
        assert mine == expected


@pytest.mark.parametrize(("name", "source"), [("AutoConfig", "hf"), ("modelscope", "ms")])
def test_the_configuration_is_the_one_that_the_auto_classes_read(
    hub: HubServer, tmp_path: Path, name: str, source: str
) -> None:
    theirs = client(hub, tmp_path, name, "org/single")
    mine = ask_json(hub, tmp_path / "other", "config", f"{source}:org/single")["config"]
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size", "model_type"):
        assert mine[key] == theirs[key] == TINY_QWEN3[key]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("command", ["structure", "params", "attention", "weights", "config"])
def test_every_command_works_on_hub_names(hub: HubServer, tmp_path: Path, command: str, source: str) -> None:
    found = ask_json(hub, tmp_path, command, f"{source}:org/sharded")
    assert found["model"]["source"] == source
    assert found["model"]["id"] == "org/sharded"
    assert found["model"]["revision"] == (hub.repos["org/sharded"].sha if source == "hf" else "master")


def test_a_hub_model_is_accounted_like_a_local_one(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        found = ask_json(hub, tmp_path, "params", f"{source}:org/sharded")
        assert found["parameters"]["stored"] == found["parameters"]["unique"] == PARAMETERS
        assert [check["residual"] for check in found["checks"]] == [0]


def test_a_bare_name_is_asked_of_hugging_face_then_of_modelscope(hub: HubServer, tmp_path: Path) -> None:
    assert ask_json(hub, tmp_path, "params", "org/single")["model"]["source"] == "hf"
    hub.fail("/api/models/*", status=404, headers={"X-Error-Code": "RepoNotFound"})
    hub.fail("/org/*", status=404, headers={"X-Error-Code": "RepoNotFound"})
    assert ask_json(hub, tmp_path, "params", "org/sharded")["model"]["source"] == "ms"
    assert ask_json(hub, tmp_path, "params", "org/sharded", "--from", "ms")["model"]["source"] == "ms"


@pytest.mark.parametrize("source", SOURCES)
def test_a_revision_is_honoured(hub: HubServer, tmp_path: Path, source: str) -> None:
    for arguments in ([f"{source}:org/single@v1"], [f"{source}:org/single", "--revision", "v1"]):
        found = ask_json(hub, tmp_path, "config", *arguments)
        assert found["config"]["max_position_embeddings"] == 777
    assert ask_json(hub, tmp_path, "config", f"{source}:org/single")["config"]["max_position_embeddings"] == 512


# --- how little is asked


def test_a_single_file_takes_three_requests_from_cold(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        hub.redirect_lfs = False
        hub.forget()
        ask_json(hub, tmp_path / source, "params", f"{source}:org/single")
        assert len(hub.requests) == 3
        assert hub.bytes_sent < 80_000


def test_a_design_takes_three_requests_and_tensors_one_for_each_shard(hub: HubServer, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    shards = write_sharded(large, "Qwen/Qwen3-235B-A22B")
    hub.repos["Qwen/Large"] = HubRepo("Qwen/Large", {path.name: path for path in large.iterdir()})
    hub.redirect_lfs = False
    for source in SOURCES:
        hub.forget()
        counts = ask_json(hub, tmp_path / source, "structure", f"{source}:Qwen/Large")["parameters"]
        # Qwen/Qwen3-235B-A22B: the total that Hugging Face counts. ModelScope counts nothing: the index's size is read.
        assert (counts["theory"], counts["stored"]) == (235_093_634_560, None)
        assert counts["hub"] == (235_093_634_560 if source == "hf" else None)
        assert len(hub.requests) == (2 if source == "hf" else 3)
        assert hub.bytes_sent < 60_000
        hub.forget()
        ask_json(hub, tmp_path / source, "memory", f"{source}:Qwen/Large")
        assert hub.requests == []
        found = ask_json(hub, tmp_path / source, "params", f"{source}:Qwen/Large")
        assert found["parameters"]["stored"] == 235_093_634_560
        assert shards <= len(hub.requests) <= shards + 2 == 120
        assert hub.bytes_sent <= 8_000_000
        assert hub.max_in_flight <= 32


def test_only_the_missing_tail_of_a_long_header_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        hub.forget()
        ask_json(hub, tmp_path / source, "params", f"{source}:org/long-header")
        ranges = [request.range for request in hub.requests if request.range and request.origin == "cdn"]
        length = len(weights(TENSORS, "x" * 200_000).content)
        assert ranges == ["bytes=0-65535", f"bytes=65536-{length - 1}"]


def test_a_second_run_asks_for_nothing_and_a_later_one_for_the_listing(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        first = ask_json(hub, tmp_path, "params", f"{source}:org/sharded")
        hub.forget()
        again = ask_json(hub, tmp_path, "params", f"{source}:org/sharded")
        assert hub.requests == []
        assert again["parameters"] == first["parameters"]
        assert any("no request was made" in notice for notice in again["model"]["notices"])
        ask_json(hub, tmp_path, "params", f"{source}:org/sharded", "--refresh")
        assert len(hub.requests) == 1
        for listing in (tmp_path / ".cache" / "qwen-inspect" / "listings").iterdir():
            os.utime(listing, (time.time() - 301, time.time() - 301))
        hub.forget()
        ask_json(hub, tmp_path, "params", f"{source}:org/sharded")
        assert len(hub.requests) == 1


def test_a_quantisation_beside_the_configuration_takes_one_request_and_is_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.redirect_lfs = False
    asking = ["--engine", "vllm", "--kv-budget", "1MiB", "--context", "16"]
    for source in SOURCES:
        hub.forget()
        first = ask_json(hub, tmp_path, "fit", f"{source}:org/modelopt", *asking)
        assert len(hub.requests) == 4
        assert any("declared in hf_quant_config.json (modelopt)" in notice for notice in first["model"]["notices"])
        # 2 layers of 2 x 2 x 16 numbers a token, of 8 bits: 512 blocks of 16 tokens.
        assert first["kv_cache_tokens"] == 8_192
        hub.forget()
        again = ask_json(hub, tmp_path, "fit", f"{source}:org/modelopt", *asking)
        assert (hub.requests, again["kv_cache_tokens"]) == ([], 8_192)
        (tmp_path / ".cache" / "qwen-inspect").rename(tmp_path / source)  # the other hub's files are the same


def test_a_new_commit_is_seen_and_only_its_new_files_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    ask_json(hub, tmp_path, "params", "hf:org/sharded")
    changed: Files = {"config.json": CONFIG, **SHARDS, SHARD_NAMES[0]: weights(HALVES[0], "changed")}
    hub.repos["org/sharded"] = HubRepo("org/sharded", changed, sha=hashlib.sha1(b"next").hexdigest())
    hub.forget()
    found = ask_json(hub, tmp_path, "params", "hf:org/sharded", "--refresh")
    assert found["model"]["revision"] == hashlib.sha1(b"next").hexdigest()
    assert sum(request.origin == "cdn" for request in hub.requests) == 1


def test_nothing_is_written_into_the_hubs_own_caches(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        ask_json(hub, tmp_path, "params", f"{source}:org/single")
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {(".cache", "qwen-inspect")}


# --- caches and offline


def test_a_model_in_hugging_faces_cache_is_read_from_there(hub: HubServer, tmp_path: Path) -> None:
    download = "from huggingface_hub import snapshot_download; snapshot_download('org/single')"
    subprocess.run([sys.executable, "-c", download], env=variables(hub, tmp_path), check=True, capture_output=True)
    hub.forget()
    found = ask_json(hub, tmp_path, "params", "org/single")
    assert hub.requests == []
    assert found["model"]["revision"] == hub.repos["org/single"].sha
    assert found["parameters"]["stored"] == PARAMETERS
    assert "cache" in found["model"]["notices"][0]


def test_a_report_names_a_files_sha_256_as_the_hub_and_its_cache_tell_it(hub: HubServer, tmp_path: Path) -> None:
    told = [ask_json(hub, tmp_path, "report", f"{source}:org/single")["provenance"]["files"] for source in SOURCES]
    download = "from huggingface_hub import snapshot_download; print(snapshot_download('org/single'))"
    done = subprocess.run(
        [sys.executable, "-c", download], env=variables(hub, tmp_path), check=True, capture_output=True
    )
    told.append(ask_json(hub, tmp_path, "report", "hf:org/single")["provenance"]["files"])
    (weights,) = Path(done.stdout.decode().strip()).glob("*.safetensors")
    content = weights.read_bytes()
    entry = {"name": weights.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert told == [[entry]] * 3


@pytest.mark.parametrize(
    "layout", ["models/org--single/snapshots/master", "models/org/single", "hub/models/org/single"]
)
def test_a_model_in_modelscopes_cache_is_read_from_all_three_layouts(
    hub: HubServer, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "ms" / layout
    folder.mkdir(parents=True)
    for name, file in hub.repos["org/single"].head.files.items():
        (folder / name).write_bytes(file.read(0, file.size))
    found = ask_json(hub, tmp_path, "params", "org/single")
    assert hub.requests == []
    assert found["model"]["source"] == "ms"
    assert found["parameters"]["stored"] == PARAMETERS


def test_modelscopes_own_download_is_found_where_it_puts_it(hub: HubServer, tmp_path: Path) -> None:
    download = (
        "from modelscope_hub import HubApi; api = HubApi(); [api.download_file('org/single', 'model', n) for n in "
    )
    download += "('config.json', 'model.safetensors')]"
    done = subprocess.run(
        [sys.executable, "-c", download], env=variables(hub, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    hub.forget()
    assert ask_json(hub, tmp_path, "params", "ms:org/single")["parameters"]["stored"] == PARAMETERS
    assert hub.requests == []


def test_offline_opens_no_socket(hub: HubServer, tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs):\n    raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from qwen_inspect.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for arguments, code in (
        (["params", "Qwen/Qwen3-8B", "--offline"], 0),
        (["params", "org/unknown", "--offline"], 3),
        (["params", "ms:org/unknown", "--offline"], 3),
        (["structure", "hf:Qwen/Qwen3-8B", "--offline"], 3),
        (["compare", "hf:Qwen/Qwen3-8B", "ms:Qwen/Qwen3-8B", "--offline"], 5),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, env=variables(hub, tmp_path), text=True
        )
        assert done.returncode == code, done.stderr
    assert hub.requests == []


def test_offline_uses_what_an_earlier_run_kept(hub: HubServer, tmp_path: Path) -> None:
    for model in ("hf:org/sharded", "ms:org/sharded", "hf:org/adapter"):
        first = ask_json(hub, tmp_path, "weights", model)
        hub.forget()
        again = ask_json(hub, tmp_path, "weights", model, "--offline")
        assert again["tensors"] == first["tensors"]
        assert hub.requests == []


def test_the_clients_own_offline_switch_is_honoured(hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, "params", "Qwen/Qwen3-8B", HF_HUB_OFFLINE="1")
    assert shown.code == 0
    assert "the built-in catalog is used" in shown.out
    assert hub.requests == []


def test_a_partial_cache_is_accounted_offline_with_what_is_missing(hub: HubServer, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--org--part" / "snapshots" / ("a" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    snapshot.mkdir(parents=True)
    weight_map = {tensor.name: name for name, half in zip(SHARD_NAMES, HALVES, strict=True) for tensor in half}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (snapshot / "config.json").write_bytes(CONFIG)
    first = SHARDS[SHARD_NAMES[0]]
    (snapshot / SHARD_NAMES[0]).write_bytes(first.read(0, first.size))
    found = ask_json(hub, tmp_path, "params", "hf:org/part", "--offline")
    assert [cause["name"] for cause in found["checks"][0]["causes"]] == ["missing_shard"]
    assert found["checks"][0]["residual"] == 0


def test_with_no_network_the_catalog_answers_within_two_seconds(hub: HubServer, tmp_path: Path) -> None:
    with socket.socket() as unused:  # a port that refuses
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    shown = ask(hub, tmp_path, "structure", "Qwen/Qwen3-0.6B", HF_ENDPOINT=nowhere, MODELSCOPE_ENDPOINT=nowhere)
    assert time.monotonic() - began < 2
    assert shown.code == 0
    assert "No hub could be reached, so the built-in catalog is used" in shown.out
    assert nowhere in shown.out
    refused(ask(hub, tmp_path, "structure", "hf:Qwen/Qwen3-0.6B", HF_ENDPOINT=nowhere), 5, nowhere)
    refused(ask(hub, tmp_path, "structure", "ms:Qwen/Qwen3-0.6B", MODELSCOPE_ENDPOINT=nowhere), 5, nowhere)


# --- what stands between


@pytest.mark.parametrize("source", SOURCES)
def test_a_proxy_that_does_not_work_is_named(hub: HubServer, tmp_path: Path, source: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://user:secretsecret@127.0.0.1:{unused.getsockname()[1]}"
        names = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": None, "no_proxy": None}
        shown = ask(hub, tmp_path, "params", f"{source}:org/single", "--timeout", "2", **names)
    refused(shown, 5, proxy.replace("user:secretsecret@", ""), "NO_PROXY")
    assert hub.requests == []


@pytest.mark.parametrize("source", SOURCES)
def test_a_certificate_that_is_not_trusted_is_told_from_other_failures(
    hub: HubServer, tmp_path: Path, source: str
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"https://127.0.0.1:{server.server_port}"
        names = {"HF_ENDPOINT": endpoint, "MODELSCOPE_ENDPOINT": endpoint}
        shown = ask(hub, tmp_path, "params", f"{source}:org/single", "--timeout", "3", **names)
    finally:
        server.shutdown()
    refused(shown, 5, "is not trusted", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


# --- what kind of repository it is


@pytest.mark.parametrize(
    ("model", "token", "code", "words"),
    [
        ("hf:org/gated", None, 4, ["gated", "hf auth login", "ms:org/gated"]),
        ("hf:org/gated", TOKEN, 4, ["gated", "may not read it", "ask for access"]),
        ("hf:org/private", None, 3, ["does not exist on Hugging Face, or is private", "log in"]),
        ("hf:org/private", TOKEN, 3, ["HF_TOKEN", "may not see it"]),
        ("hf:org/single", "hf_garbage", 4, ["HF_TOKEN is not valid", "unset it"]),
        ("hf:org/nowhere", None, 3, ["does not exist on Hugging Face"]),
        ("hf:org/single@nowhere", None, 3, ["no revision nowhere", "main"]),
        ("ms:org/nowhere", None, 3, ["does not exist on ModelScope"]),
        ("ms:org/single@nowhere", None, 3, ["no revision nowhere", "master"]),
        ("hf:org/gap", None, 3, ["lacks 1 of its shards", SHARD_NAMES[0]]),
        ("hf:org/gguf", None, 6, ["model-Q4_K_M.gguf", "within its header"]),
        ("hf:org/empty", None, 3, ["neither config.json nor safetensors"]),
        ("org", None, 3, ["neither a path nor ORG/NAME"]),
        ("hf:../../etc", None, 3, ["neither a path nor ORG/NAME"]),
        ("hf:org/single@../x", None, 2, ["no name of a revision"]),
    ],
)
def test_a_repository_that_cannot_be_read_says_why(
    hub: HubServer, tmp_path: Path, model: str, token: str | None, code: int, words: list[str]
) -> None:
    refused(ask(hub, tmp_path, "params", model, HF_TOKEN=token), code, *words)


@pytest.mark.parametrize("model", ["org/gated", "org/private"])
def test_a_readers_token_opens_gated_and_private_repositories(hub: HubServer, tmp_path: Path, model: str) -> None:
    assert ask_json(hub, tmp_path, "params", f"hf:{model}", HF_TOKEN="hf_reader")["parameters"]["stored"] == PARAMETERS


@pytest.mark.parametrize(
    ("made", "reason"),
    [("a file for HF_HOME", "Not a directory"), ("a directory", "Is a directory"), ("no mode", "denied")],
)
def test_a_token_that_is_there_and_cannot_be_read_is_an_error_as_to_the_library(
    hub: HubServer, tmp_path: Path, made: str, reason: str
) -> None:
    token, environment = tmp_path / "token", {"HF_TOKEN_PATH": str(tmp_path / "token")}
    if made == "a directory":
        token.mkdir()
    else:
        token.write_text("hf_reader")
    if made == "a file for HF_HOME":
        environment = {"HF_HOME": str(token)}
    if made == "no mode":
        token.chmod(0)
        if os.access(token, os.R_OK):
            pytest.skip("root reads every file")
    for language, words in (("en", "cannot be read"), ("zh", "无法读取")):
        shown = ask(hub, tmp_path, "params", "hf:org/single", "--lang", language, **environment)
        told = [line for line in shown.err.splitlines() if words in line and reason in line and str(token) in line]
        assert (shown.code, shown.out, len(told)) == (4, "", 1), shown
    with_none = {**environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    assert ask(hub, tmp_path, "params", "hf:org/single", **with_none).code == 0
    script = "from huggingface_hub import get_token; get_token()"
    library = subprocess.run(
        [sys.executable, "-c", script],
        env=variables(hub, tmp_path, **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert library.returncode == 1
    assert reason in library.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "hf_\u00e4".encode(), b"hf_\x01secretsecret"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(hub: HubServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    refused(
        ask(hub, tmp_path, "params", "hf:org/single", HF_TOKEN_PATH=str(tmp_path / "token")), 4, "token", "is not valid"
    )


def test_a_token_exchange_that_cannot_be_made_says_why(hub: HubServer, tmp_path: Path) -> None:
    refused(ask(hub, tmp_path, "params", "hf:org/single", HF_OIDC_RESOURCE="org/single"), 4, "HF_OIDC_ID_TOKEN")


def test_quantised_and_pickled_repositories_are_named(hub: HubServer, tmp_path: Path) -> None:
    found = ask_json(hub, tmp_path, "weights", "hf:org/quantised")
    assert found["totals"]["elements"] == PARAMETERS
    assert any("method 'aqlm' is not known" in notice for notice in found["model"]["notices"])
    shown = ask(hub, tmp_path, "params", "hf:org/quantised", "--format", "json")
    assert (shown.code, "error: Quantisation method 'aqlm' is not known" in shown.err) == (7, True)
    assert json.loads(shown.out)["parameters"]["theory"] == PARAMETERS
    pickled = ask_json(hub, tmp_path, "params", "hf:org/pickled")
    assert pickled["parameters"]["theory"] == PARAMETERS
    assert pickled["parameters"]["stored"] is None
    assert any("pickled (pytorch_model.bin)" in notice for notice in pickled["model"]["notices"])
    assert not [request for request in hub.requests if "pytorch_model" in request.target]


@pytest.mark.parametrize("source", SOURCES)
def test_an_adapter_is_accounted_with_its_base(hub: HubServer, tmp_path: Path, source: str) -> None:
    found = ask_json(hub, tmp_path, "params", f"{source}:org/adapter")
    assert found["model"]["id"] == "org/adapter"
    assert found["parameters"]["stored"] == PARAMETERS
    notice = next(notice for notice in found["model"]["notices"] if "LORA" in notice)
    assert "LORA adapter of org/single: 1,792 parameters in 8 tensors, rank 4, on q_proj, v_proj" in notice
    own = ask_json(hub, tmp_path, "weights", f"{source}:org/adapter")
    assert (own["totals"]["tensors"], own["totals"]["elements"]) == (8, 1_792)


def test_an_adapter_without_its_base_shows_its_own_tensors(hub: HubServer, tmp_path: Path) -> None:
    own = ask_json(hub, tmp_path, "weights", "hf:org/orphan")
    assert own["totals"]["elements"] == 1_792
    assert any("base model could not be read" in notice for notice in own["model"]["notices"])
    refused(ask(hub, tmp_path, "params", "hf:org/orphan"), 3, "base model is org/nowhere")


def test_an_adapter_from_a_hub_cannot_name_a_file_of_this_machine(hub: HubServer, tmp_path: Path) -> None:
    refused(ask(hub, tmp_path, "params", "hf:org/thief"), 3, "base model is /etc")


def test_a_mirror_is_named_and_may_leave_out_headers_and_the_listing(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("*", drop_headers=MIRROR_DROPS)
    found = ask_json(hub, tmp_path, "params", "hf:org/single")
    assert any("not the official one" in notice for notice in found["model"]["notices"])
    hub.heal()
    hub.fail("/api/*", status=404)
    bare = ask_json(hub, tmp_path / "other", "params", "hf:org/single")
    assert bare["parameters"]["stored"] == PARAMETERS
    assert any("gave no listing" in notice for notice in bare["model"]["notices"])


def test_an_index_that_a_mirror_gives_is_held_against_the_headers(hub: HubServer, tmp_path: Path) -> None:
    index = {
        "metadata": {"total_size": 12_345},
        "weight_map": {tensor.name: name for name, half in zip(SHARD_NAMES, HALVES, strict=True) for tensor in half},
    }
    files: Files = {"config.json": CONFIG, "model.safetensors.index.json": json.dumps(index).encode(), **SHARDS}
    hub.repos["org/sharded"] = HubRepo("org/sharded", files)
    hub.fail("/api/*", status=404)
    found = ask_json(hub, tmp_path, "params", "hf:org/sharded")
    assert found["parameters"]["stored"] == PARAMETERS
    (told,) = [notice for notice in found["model"]["notices"] if "total_size" in notice]
    assert "total_size 12,345; " in told
    assert f"{2 * PARAMETERS:,} bytes" in told  # in bfloat16


# --- faults of the network


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "retry_after": "0"},
        {"status": 503, "retry_after": "0"},
        {"status": 500},
        {"close": True},
        {"truncate_after": 10},
    ],
    ids=str,
)
def test_a_shard_that_fails_twice_and_then_works_works(
    hub: HubServer, tmp_path: Path, source: str, fault: dict[str, Any]
) -> None:
    hub.fail("*model-00002-*", times=2, **fault)
    assert ask_json(hub, tmp_path, "params", f"{source}:org/sharded")["parameters"]["stored"] == PARAMETERS


@pytest.mark.parametrize("source", SOURCES)
def test_retry_after_is_honoured(hub: HubServer, tmp_path: Path, source: str) -> None:
    hub.fail("*model-00002-*", status=429, retry_after="1", times=1)
    ask_json(hub, tmp_path, "params", f"{source}:org/sharded")
    tries = [
        request.started for request in hub.requests if "model-00002" in request.target and request.origin == "main"
    ]
    assert tries[1] - tries[0] >= 1


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_that_ignores_ranges_is_read_no_further_than_asked(
    hub: HubServer, tmp_path: Path, source: str
) -> None:
    head = header_of(TENSORS)
    endless = HubFile(head, total_bytes=10_000_000_000, listed_bytes=len(head) + sum(t.size_bytes for t in TENSORS))
    hub.repos["org/endless"] = HubRepo("org/endless", {"config.json": CONFIG, "model.safetensors": endless})
    hub.fail("*model.safetensors*", ignore_range=True)
    refused(ask(hub, tmp_path, "params", f"{source}:org/endless"), 6, "model.safetensors")
    assert hub.bytes_sent < 30_000_000  # what a kernel's buffers take, not 10 GB
    honest = ask_json(hub, tmp_path, "params", f"{source}:org/single")
    assert honest["parameters"]["stored"] == PARAMETERS
    long = ask_json(hub, tmp_path, "params", f"{source}:org/long-header")
    assert long["parameters"]["stored"] == PARAMETERS


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("status", [200, 206])
def test_ranges_are_proven_by_content_range_and_not_by_status(
    hub: HubServer, tmp_path: Path, source: str, status: int
) -> None:
    hub.fail("*model.safetensors*", partial_status=status)
    assert ask_json(hub, tmp_path, "params", f"{source}:org/long-header")["parameters"]["stored"] == PARAMETERS


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 25_000_001])
def test_an_absurd_header_length_is_refused(hub: HubServer, tmp_path: Path, source: str, length: int) -> None:
    content = HubFile(length.to_bytes(8, "little") + b"{}", total_bytes=100_000_000)
    hub.repos["org/absurd"] = HubRepo("org/absurd", {"config.json": CONFIG, "model.safetensors": content})
    refused(ask(hub, tmp_path, "params", f"{source}:org/absurd"), 6, f"{length:,}", "25,000,000")
    assert hub.bytes_sent < 2_000_000


@pytest.mark.parametrize("source", SOURCES)
def test_a_listed_name_that_leaves_the_repository_is_left_out(hub: HubServer, tmp_path: Path, source: str) -> None:
    for _ in ("first visit", "second visit"):
        shown = ask(hub, tmp_path, "params", f"{source}:org/traversal")
        assert (shown.code, "1 file(s) of the listing" in shown.out) == (0, True)
    assert not list(tmp_path.parent.rglob("outside.json"))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", 6),
        (b"{}", 6),
        (b"not json", 6),
        (b"\xff", 6),
        (b'{"sha": "../..", "siblings": []}', 6),
        (b"[" * 100_000, 6),
    ],
)
def test_a_listing_that_is_none_is_refused(hub: HubServer, tmp_path: Path, source: str, body: bytes, code: int) -> None:
    hub.fail("/api/*", status=200, body=HubFile(body))
    hub.fail("*config.json*", status=404)
    refused(ask(hub, tmp_path, "params", f"{source}:org/single"), code)


@pytest.mark.parametrize("source", SOURCES)
def test_a_size_that_the_listing_lies_about_is_refused(hub: HubServer, tmp_path: Path, source: str) -> None:
    true = weights(TENSORS)
    lying = HubFile(true.content, total_bytes=true.total_bytes, listed_bytes=true.size + 16)
    hub.repos["org/liar"] = HubRepo("org/liar", {"config.json": CONFIG, "model.safetensors": lying})
    refused(ask(hub, tmp_path, "params", f"{source}:org/liar"), 6, "model.safetensors")


def test_an_error_page_without_end_is_read_no_further_than_needed(hub: HubServer, tmp_path: Path) -> None:
    for source in SOURCES:
        hub.heal()
        hub.fail("*", status=404, body=HubFile(b"<html>", total_bytes=10_000_000_000))
        hub.forget()
        assert ask(hub, tmp_path, "params", f"{source}:org/single").code == 3
        assert hub.bytes_sent < 100_000_000


# --- tokens


def test_tokens_stay_with_their_hub_and_its_origin(hub: HubServer, tmp_path: Path) -> None:
    hub.tokens.add("ms_secretsecret")
    tokens: dict[str, str | None] = {"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": "ms_secretsecret"}
    for source, own, other in (("hf", TOKEN, "ms_secretsecret"), ("ms", "ms_secretsecret", TOKEN)):
        hub.forget()
        ask_json(hub, tmp_path / source, "params", f"{source}:org/sharded", **tokens)
        assert {request.bearer for request in hub.requests if request.origin == "main"} == {own}
        assert {request.bearer for request in hub.requests if request.origin == "cdn"} == {None}
        assert all(not request.cookies for request in hub.requests if request.origin == "cdn")
        assert not any(other in str(request.headers) for request in hub.requests)


def test_a_token_is_not_sent_to_another_port_of_the_same_host(tmp_path: Path) -> None:
    with HubServer(repositories(), cdn_host="127.0.0.1") as hub:
        hub.tokens |= {TOKEN, "ms_secretsecret"}
        for source in SOURCES:
            ask_json(
                hub,
                tmp_path / source,
                "params",
                f"{source}:org/sharded",
                HF_TOKEN=TOKEN,
                MODELSCOPE_API_TOKEN="ms_secretsecret",
            )
        for request in hub.requests:
            if request.origin == "cdn":
                assert request.bearer is None
                assert request.cookies == {}


def test_small_files_behind_a_relative_redirect_are_read(hub: HubServer, tmp_path: Path) -> None:
    hub.redirect_small_files = True
    assert ask_json(hub, tmp_path, "params", "hf:org/single", HF_TOKEN=TOKEN)["parameters"]["stored"] == PARAMETERS


# --- progress, identity


def test_progress_shows_on_a_terminal_and_nowhere_else(hub: HubServer, tmp_path: Path) -> None:
    import pexpect

    assert "1 of 2" not in ask(hub, tmp_path, "params", "hf:org/sharded").err
    hub.latency = 0.6  # what takes less than half a second is not shown
    environment = variables(hub, tmp_path / "fresh", TERM="xterm")
    child = pexpect.spawn(
        sys.executable, ["-m", "qwen_inspect", "params", "hf:org/sharded"], env=environment, encoding="utf-8"
    )
    assert "headers of the weight files: 1 of 2" in child.read()


def test_both_hubs_holding_the_same_files_is_proven_with_two_requests(hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, "compare", "hf:org/sharded", "ms:org/sharded")
    assert shown.code == 0
    assert "Both hold the same weights: 2 files, equal by SHA-256" in shown.out
    assert len(hub.requests) == 2


def test_different_files_are_named(hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, "compare", "hf:org/sharded", "ms:org/single", "--lang", "zh")
    assert shown.code == 1
    assert "仅在 hf:org/sharded 中" in shown.out
    found = json.loads(ask(hub, tmp_path, "compare", "hf:org/single", "ms:org/long-header", "--format", "json").out)
    assert found["identical"] is False
    assert {file["name"]: file["same"] for file in found["files"]}["model.safetensors"] is False
    assert found["side_by_side"]["models"][0]["source"] == "hf"


def test_models_that_differ_on_two_hubs_are_held_side_by_side(hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, "compare", "hf:org/single", "ms:org/long-header", "--format", "json")
    sides = json.loads(shown.out)["side_by_side"]
    assert shown.code == 1
    assert sides["tensors"][0]["base_origin"] == "stored"
    alike = json.loads(ask(hub, tmp_path, "compare", "hf:org/sharded", "ms:org/sharded", "--format", "json").out)
    assert (alike["identical"], alike["side_by_side"]) == (True, None)


def test_listings_decide_even_where_a_model_cannot_be_read(hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, "compare", "hf:org/single", "ms:org/empty", "--format", "json")
    found = json.loads(shown.out)
    assert (shown.code, found["identical"], found["side_by_side"]) == (1, False, None)
    assert "cannot be compared" in found["notices"][0]


def test_a_hub_model_is_held_against_any_other_source(hub: HubServer, tmp_path: Path) -> None:
    found = ask_json(hub, tmp_path, "compare", "catalog:Qwen/Qwen3-8B", "hf:org/single", "ms:org/sharded")
    assert [model["source"] for model in found["side_by_side"]["models"]] == ["catalog", "hf", "ms"]
    assert (found["identical"], found["files"]) == (None, None)
    values = {(row["section"], row["name"]): row["values"] for row in found["side_by_side"]["facts"]}
    assert values["parameters", "unique"] == [8_190_735_360, PARAMETERS, PARAMETERS]


def test_the_json_of_compare_validates(hub: HubServer, tmp_path: Path) -> None:

    for pair in (("hf:org/sharded", "ms:org/sharded"), ("hf:org/sharded", "ms:org/single")):
        assert_keeps_to_the_schema(json.loads(ask(hub, tmp_path, "compare", *pair, "--format", "json").out))


def test_the_library_reads_hubs_too(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in hub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert inspect("ms:org/single").parameters.stored == PARAMETERS
    assert safetensors_file({"w": ("F32", (2,))}).size > 8
