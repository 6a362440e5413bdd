"""What is kept of hubs' files: no server answers for another's repository, and damage is dropped and fetched again."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_inspect.errors import NotFoundError
from qwen_inspect.loaders import header_cache
from qwen_inspect.loaders.resolve import Access, load, resolve

from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer, safetensors_file
from ..support.asking import SOURCES, ask, refused

CONFIG = b'{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 256}'
WEIGHTS = safetensors_file({"true": ("F32", (4,))})
OTHER_CONFIG = CONFIG.replace(b"256", b"666")
OTHER_WEIGHTS = safetensors_file({"lies": ("F32", (4,))})


def repo(name: str, config: HubFile | bytes = CONFIG, weights: HubFile = WEIGHTS, quantised: bool = False) -> HubRepo:
    beside = {"hf_quant_config.json": CONFIG} if quantised else {}
    return HubRepo(name, {"config.json": config, "model.safetensors": weights, **beside})


def claiming(content: HubFile, true: HubFile) -> HubFile:
    """A file that is listed with the hashes of another of the same size."""
    assert content.size == true.size
    content.__dict__.update(git_oid=true.git_oid, sha256=true.sha256)
    return content


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in os.environ:
        if name.startswith(("HF_", "MODELSCOPE_", "XDG_", "QWEN_")):
            monkeypatch.delenv(name)
    liar = repo("org/liar", claiming(HubFile(OTHER_CONFIG), HubFile(CONFIG)), claiming(OTHER_WEIGHTS, WEIGHTS))
    with HubServer([repo("org/model"), repo("org/quantised", quantised=True), liar]) as server:
        for name, value in server.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / ".cache" / "qwen-inspect" / "objects"


def read(model: str, *, offline: bool = False) -> tuple[object, list[str]]:
    checkpoint = load(resolve(model), Access(offline=offline))
    assert checkpoint.config is not None
    return checkpoint.config["vocab_size"], [tensor.name for tensor in checkpoint.tensors or ()]


# --- whose answer it is


@pytest.mark.parametrize("source", SOURCES)
def test_a_repository_that_claims_anothers_hashes_does_not_answer_for_it(hub: HubServer, source: str) -> None:
    assert read(f"{source}:org/liar") == (666, ["lies"])
    assert read(f"{source}:org/model") == (256, ["true"])
    assert read(f"{source}:org/liar", offline=True) == (666, ["lies"])  # its own bytes, for itself alone
    assert read(f"{source}:org/model", offline=True) == (256, ["true"])


@pytest.mark.parametrize("source", SOURCES)
def test_a_mirror_does_not_answer_for_the_endpoint_that_it_mirrors(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    liar = hub.repos["org/liar"]
    with HubServer([HubRepo("org/model", liar.files, sha=hub.repos["org/model"].sha)]) as mirror:
        for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(variable, mirror.endpoint)
        assert read(f"{source}:org/model") == (666, ["lies"])
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, hub.endpoint)
    assert read(f"{source}:org/model") == (256, ["true"])


def test_one_hub_does_not_answer_for_the_other(hub: HubServer) -> None:
    read("hf:org/model")
    hub.forget()
    read("ms:org/model")
    assert any("model.safetensors" in request.target for request in hub.requests)


def test_bytes_are_kept_under_a_hash_if_they_are_what_it_names(hub: HubServer, objects: Path) -> None:
    """The digests are those of `git hash-object` and `sha256sum`."""
    for content, key in (
        (b"hello\n", "git-ce013625030ba8dba906f756967f9e9ca394464a"),
        (b"hello\n", "sha256-5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
    ):
        header_cache.write("a", key=key, content=content)
        assert [path.name for path in objects.iterdir()] == [key]
        assert header_cache.read("b", key=key) == content
        (objects / key).unlink()
        header_cache.write("a", key=key, content=content + b" ")
        assert header_cache.read("a", key=key) == content + b" "
        assert header_cache.read("b", key=key) is None
        for path in objects.iterdir():
            assert path.name.startswith("at-")
            path.unlink()


# --- damage

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "a bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "a bit of the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "zeros": lambda content: bytes(len(content)),
    "of a version without checksums": lambda content: content.partition(b"\n")[2],
}


def kept_files(objects: Path) -> list[Path]:
    return sorted([*objects.iterdir(), *(objects.parent / "listings").iterdir()])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_dropped_and_fetched_again(hub: HubServer, objects: Path, source: str, damage: str) -> None:
    model = f"{source}:org/quantised@{hub.repos['org/quantised'].sha if source == 'hf' else 'master'}"
    first = read(model)
    for path in kept_files(objects):
        whole = path.read_bytes()
        path.write_bytes(DAMAGES[damage](whole))
        with pytest.raises(
            NotFoundError, match=r"What an earlier run kept of org/quantised was damaged.*without --offline"
        ):
            read(model, offline=True)
        assert not path.exists()
        assert read(model) == first
        assert path.read_bytes() == whole
        assert read(model, offline=True) == first


def test_a_file_in_anothers_place_is_dropped(hub: HubServer, objects: Path) -> None:
    read("hf:org/model")
    (mine,) = objects.glob("at-*")
    read("ms:org/model")
    (other,) = (path for path in objects.glob("at-*") if path != mine)
    mine.write_bytes(other.read_bytes())
    hub.forget()
    assert read("hf:org/model") == (256, ["true"])
    assert any("model.safetensors" in request.target for request in hub.requests)


def test_a_pipe_in_place_of_a_kept_file_is_not_waited_for(hub: HubServer, objects: Path) -> None:
    first = read("hf:org/model")
    for path in kept_files(objects):
        path.unlink()
        os.mkfifo(path)
    assert read("hf:org/model") == first
    assert not any(path.is_fifo() for path in objects.iterdir())


def test_a_damaged_trace_or_design_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is kept of models is made again then; it was an error that blamed the model."""
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path))
    for write, kept in (
        (header_cache.write_trace, header_cache.read_trace),
        (header_cache.write_design, header_cache.read_design),
    ):
        content = gzip.compress(b"{}" * 100, mtime=0)
        for damage in DAMAGES.values():
            write("name", content)
            (path,) = (path for path in tmp_path.rglob("name"))
            assert kept("name") == content
            path.write_bytes(damage(path.read_bytes()))
            assert kept("name") is None
            assert not path.exists()


def test_a_command_says_that_what_it_kept_was_damaged(hub: HubServer, tmp_path: Path, objects: Path) -> None:
    read("hf:org/model")
    for path in objects.iterdir():
        path.write_bytes(b"\xff" * 20)
    refused(ask(hub, tmp_path, "weights", "hf:org/model", "--offline"), 3, "was damaged and is dropped", "--offline")
    assert ask(hub, tmp_path, "weights", "hf:org/model").code == 0
