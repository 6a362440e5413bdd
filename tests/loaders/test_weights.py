"""A model's files fetched by both hubs' real clients over real sockets: what comes, what never comes, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hub.repos import HubRepo
from ..hub.server import HubServer
from ..support.asking import SOURCES, TOKEN, Files, refused, variables
from ..support.families import saved_by_transformers
from ..support.models import TINY_QWEN3
from ..support.prepared import Finished

SHARD = "model-00001-of-"
ASKED = """
import sys
from pathlib import Path
from qwen_inspect.errors import QwenInspectError
from qwen_inspect.loaders.resolve import Access, load, resolve
from qwen_inspect.loaders.weights import weights_directory
come = []
access = Access(offline="offline" in sys.argv, downloaded=lambda done, total: come.append((done, total)))
try:
    ref = resolve(sys.argv[1]) if "unread" in sys.argv else load(resolve(sys.argv[1]), access).ref
    print(weights_directory(ref, access, with_code="code" in sys.argv))
    if come:
        print(*come[-1])
except QwenInspectError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A sharded qwen3 as transformers saves it, with all that repositories hold besides."""
    directory = tmp_path_factory.mktemp("model")
    saved_by_transformers(directory, TINY_QWEN3, max_shard_size="60KB")
    besides: dict[str, bytes] = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "merges.txt": b"",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# model",
        "LICENSE": b"Apache",
        "modeling_own.py": b"raise SystemExit('executed')",
        "pytorch_model.bin": b"never fetched",
        "onnx/config.json": b"{}",
    }
    return {**{path.name: path for path in directory.iterdir()}, **besides}


@pytest.fixture
def hub(files: Files) -> Iterator[HubServer]:
    repos = [
        HubRepo("org/model", files),
        HubRepo("org/gated", files, gated="manual", readers=frozenset({"hf_reader"})),
        HubRepo("org/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"never fetched"}),
        HubRepo("org/empty", {"config.json": files["config.json"]}),
    ]
    with HubServer(repos) as server:
        server.tokens.add(TOKEN)
        yield server


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", ASKED, *arguments]


def ask(hub: HubServer, home: Path, *arguments: str, **changes: str | None) -> Finished:
    environment = variables(hub, home, **changes)
    done = subprocess.run(command(*arguments), capture_output=True, env=environment, timeout=90, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return Finished(done.returncode, done.stdout, done.stderr)


def fetched(hub: HubServer, home: Path, *arguments: str, **changes: str | None) -> Path:
    shown = ask(hub, home, *arguments, **changes)
    assert (shown.code, shown.err) == (0, "")
    return Path(shown.out.splitlines()[0])


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


WANTED_BESIDES = {"tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja"}


@pytest.mark.parametrize("source", SOURCES)
def test_weights_and_what_runs_them_come_and_nothing_else(
    source: str, hub: HubServer, files: Files, tmp_path: Path
) -> None:
    directory = fetched(hub, tmp_path, f"{source}:org/model")
    saved = {name for name, file in files.items() if isinstance(file, Path)}
    assert len([name for name in saved if name.startswith("model-")]) > 2
    assert digests(directory) == {
        name: file.sha256 for name, file in hub.repos["org/model"].head.files.items() if name in saved | WANTED_BESIDES
    }
    assert "modeling_own.py" in digests(fetched(hub, tmp_path, f"{source}:org/model", "code"))


@pytest.mark.parametrize("source", SOURCES)
def test_the_clients_find_what_was_fetched_in_their_own_caches(source: str, hub: HubServer, tmp_path: Path) -> None:
    directory = fetched(hub, tmp_path, f"{source}:org/model")
    sha = hub.repos["org/model"].sha
    expected = {"hf": f"hf/hub/models--org--model/snapshots/{sha}", "ms": "ms/models/org--model/snapshots/master"}
    assert directory == tmp_path / expected[source]
    theirs = {
        "hf": f"from huggingface_hub import snapshot_download as get; print(get('org/model', revision={sha!r}, "
        "local_files_only=True, allow_patterns=['*.safetensors', 'config.json']))",
        "ms": "from modelscope_hub import HubApi; "
        "print(HubApi().download_repo('org/model', 'model', local_files_only=True))",
    }
    hub.forget()
    done = subprocess.run(
        [sys.executable, "-c", theirs[source]], capture_output=True, env=variables(hub, tmp_path), text=True
    )
    assert done.stdout.strip() == str(directory), done.stderr
    assert hub.requests == []


@pytest.mark.parametrize("source", SOURCES)
def test_progress_adds_up_to_the_bytes_of_the_files(source: str, hub: HubServer, tmp_path: Path) -> None:
    shown = ask(hub, tmp_path, f"{source}:org/model")
    directory, told = shown.out.splitlines()
    expected = sum(path.stat().st_size for path in Path(directory).iterdir() if path.is_file())
    assert told == f"{expected} {expected}"


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_there_is_not_asked_for_again_with_or_without_the_network(
    source: str, hub: HubServer, tmp_path: Path
) -> None:
    directory = fetched(hub, tmp_path, f"{source}:org/model")
    hub.forget()
    assert fetched(hub, tmp_path, f"{source}:org/model") == directory
    assert not [request for request in hub.requests if ".safetensors" in request.target]
    hub.forget()
    assert fetched(hub, tmp_path, f"{source}:org/model", "offline") == directory
    assert hub.requests == []
    hub.fail("*", close=True)
    assert fetched(hub, tmp_path, f"{source}:org/model") == directory


@pytest.mark.parametrize("source", SOURCES)
def test_offline_nothing_is_fetched(source: str, hub: HubServer, tmp_path: Path) -> None:
    refused(ask(hub, tmp_path, f"{source}:org/model", "offline", "unread"), 3, "without the network")
    assert hub.requests == []


def test_the_catalog_has_no_weights_and_says_where_they_are(hub: HubServer, tmp_path: Path) -> None:
    refused(ask(hub, tmp_path, "catalog:Qwen/Qwen3-0.6B"), 3, "hf:Qwen/Qwen3-0.6B", "ms:Qwen/Qwen3-0.6B")


def test_a_local_model_lies_where_it_lies(hub: HubServer, tiny_qwen3: Path, tmp_path: Path) -> None:
    assert fetched(hub, tmp_path, str(tiny_qwen3)) == tiny_qwen3
    assert fetched(hub, tmp_path, str(tiny_qwen3 / "model.safetensors")) == tiny_qwen3


def test_the_weights_are_those_of_the_commit_whose_headers_were_read(
    hub: HubServer, files: Files, tmp_path: Path
) -> None:
    fetched(hub, tmp_path / "first", "hf:org/model")
    read = hub.repos["org/model"]
    moved: Files = {**files, "config.json": b"{}"}
    hub.repos["org/model"] = HubRepo(
        "org/model", moved, sha=hashlib.sha1(b"next").hexdigest(), tags={"was": dict(read.files)}
    )
    tagged = hub.repos["org/model"].tagged["was"].sha
    directory = fetched(hub, tmp_path / "second", f"hf:org/model@{tagged}")
    assert directory.name == tagged
    assert json.loads((directory / "config.json").read_text())["model_type"] == "qwen3"


# --- what goes wrong


@pytest.mark.parametrize("source", SOURCES)
def test_pickles_alone_are_refused(source: str, hub: HubServer, tmp_path: Path) -> None:
    refused(ask(hub, tmp_path, f"{source}:org/pickled"), 7, "only as pickles (pytorch_model.bin)")
    refused(ask(hub, tmp_path, f"{source}:org/empty"), 3, "holds no weights")


@pytest.mark.parametrize(("source", "code"), [("hf", 4), ("ms", 4)])
def test_a_file_that_may_not_be_read_is_an_access_error(source: str, code: int, hub: HubServer, tmp_path: Path) -> None:
    fetched(hub, tmp_path / "before", f"{source}:org/model")
    hub.fail("*tokenizer.json*", status=403)
    shown = ask(hub, tmp_path, f"{source}:org/model")
    refused(shown, code, "org/model")


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_that_is_gone_is_named(source: str, hub: HubServer, tmp_path: Path) -> None:
    hub.fail("*tokenizer.json*", status=404, headers={"X-Error-Code": "EntryNotFound"})
    refused(ask(hub, tmp_path, f"{source}:org/model"), 3, "tokenizer.json")


# ModelScope's client asks again for half a minute.
@pytest.mark.parametrize("source", ["hf", pytest.param("ms", marks=pytest.mark.exhaustive)])
def test_a_hub_that_fails_meanwhile_is_a_network_error(source: str, hub: HubServer, tmp_path: Path) -> None:
    ref = "org/model" if source == "ms" else f"org/model@{hub.repos['org/model'].sha}"
    hub.fail("*tokenizer.json*", close=True)
    refused(ask(hub, tmp_path, f"{source}:{ref}"), 5, hub.endpoint)


def test_a_disk_that_cannot_be_written_is_named(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "hub").write_text("a file where the cache should be")
    refused(ask(hub, tmp_path, "hf:org/model"), 2, "cannot be kept in", str(tmp_path / "hf" / "hub"))
    (tmp_path / "ms").write_text("a file where the cache should be")
    refused(ask(hub, tmp_path, "ms:org/model"), 2, "cannot be kept in", str(tmp_path / "ms"))


def stopped(hub: HubServer, home: Path, source: str, number: int) -> int:
    """Starts a download whose weights come slowly, and sends it the signal once the first byte of a shard has come."""
    hub.fail(f"*{SHARD}*", bytes_per_second=20_000)
    hub.forget()
    process = subprocess.Popen(
        command(f"{source}:org/model"), env=variables(hub, home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for _ in range(600):
        began = [one for one in hub.requests if SHARD in one.target and one.method == "GET" and one.bytes_sent > 0]
        if any(not one.range or (one.range.startswith("bytes=0-") and one.range != "bytes=0-65535") for one in began):
            break
        time.sleep(0.05)
    started = time.monotonic()
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_download_that_was_stopped_never_looks_whole_and_is_taken_up_again(
    source: str, number: int, hub: HubServer, tmp_path: Path
) -> None:
    assert stopped(hub, tmp_path, source, number) == -number
    hub.faults.clear()
    refused(ask(hub, tmp_path, f"{source}:org/model", "offline"), 3)
    directory = fetched(hub, tmp_path, f"{source}:org/model")
    expected = hub.repos["org/model"].head.files
    assert all(digest == expected[name].sha256 for name, digest in digests(directory).items())
    assert not list(directory.glob("*.incomplete*"))
