"""Models in the stores of other programs: Ollama's manifests and blobs, LM Studio's folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from qwen_inspect.engines.llama_cpp.commands.ollama import as_served
from qwen_inspect.errors import MalformedError, NotFoundError, QwenInspectError, UnsupportedError, UsageError
from qwen_inspect.loaders.ollama import LAYER, parse_name
from qwen_inspect.results.fit import Gpu
from qwen_inspect.results.serving import Serving
from qwen_inspect.structure.inspect import inspect

from ..support.gguf_files import QWEN3, write_model
from ..support.models import run

CARD = Gpu(name="card", kind="given", memory_bytes=24 << 30)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of Ollama's, and no setting of its server."""
    for name in [name for name in os.environ if name.startswith("OLLAMA_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "models"
    (folder / "blobs").mkdir(parents=True)
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def put(store: Path, content: bytes, kind: str) -> dict[str, Any]:
    """A blob under its SHA-256, and its layer in a manifest."""
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    return {"mediaType": f"{LAYER}{kind}", "digest": f"sha256:{digest}", "size": len(content)}


def put_manifest(
    store: Path, layers: Sequence[Mapping[str, Any]], name: str = "registry.ollama.ai/library/qwen3/8b"
) -> Path:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": list(layers)}))
    return path


def model(store: Path) -> dict[str, Any]:
    return put(store, write_model(store.parent / "qwen3.gguf", "qwen3", QWEN3).read_bytes(), "model")


def test_a_model_is_read_by_its_name(store: Path) -> None:
    params = put(
        store, json.dumps({"num_ctx": 256, "num_gpu": 2, "stop": ["<|im_end|>"], "top_p": 0.9}).encode(), "params"
    )
    layer = model(store)
    put_manifest(store, [layer, put(store, b"{{ .Prompt }}", "template"), params])
    report = inspect("ollama:qwen3:8b")
    assert (report.ref.source, report.ref.id, report.served) == ("ollama", "qwen3:8b", {"num_ctx": 256, "num_gpu": 2})
    assert report.checks[0].agrees
    assert report.files[0].sha256 == layer["digest"].removeprefix("sha256:")
    shown = json.loads(run("params", "ollama:qwen3:8b", "--format", "json").out)
    assert (shown["model"]["id"], shown["model"]["source"]) == ("qwen3:8b", "ollama")
    assert run("structure", "ollama:qwen3:8b", "--lang", "zh").code == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen3", ("registry.ollama.ai", "library", "qwen3", "latest")),
        ("qwen3:8b-q4_K_M", ("registry.ollama.ai", "library", "qwen3", "8b-q4_K_M")),
        ("someone/tuned:v1", ("registry.ollama.ai", "someone", "tuned", "v1")),
        ("hf.co/bartowski/Qwen3-8B-GGUF:Q4_K_M", ("hf.co", "bartowski", "Qwen3-8B-GGUF", "Q4_K_M")),
    ],
)
def test_names_are_filled_as_ollama_fills_them(name: str, parts: tuple[str, ...]) -> None:
    assert parse_name(name).parts == parts


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "..",
        "../../etc/passwd",
        "a/b/c/d",
        "a:b:c",
        "a b",
        "/etc",
        "a/../b",
        "qwen3:..",
        "-a",
        "a\0b",
        "x" * 200,
    ],
)
def test_a_name_cannot_leave_the_store(store: Path, name: str) -> None:
    with pytest.raises(UsageError):
        inspect(f"ollama:{name}")


def test_a_model_that_is_not_there_names_those_that_are(store: Path) -> None:
    put_manifest(store, [model(store)])
    put_manifest(store, [], "hf.co/bartowski/Other-GGUF/Q4_K_M")
    with pytest.raises(NotFoundError, match=r"hf\.co/bartowski/Other-GGUF:Q4_K_M, qwen3:8b"):
        inspect("ollama:llama3")


def test_damaged_stores_are_refused(store: Path) -> None:
    layer = model(store)
    cases: list[tuple[object, type[QwenInspectError]]] = [
        (b"not json", MalformedError),
        (b"[]", MalformedError),
        ({"layers": [{**layer, "digest": "sha256:../../../etc/passwd"}]}, MalformedError),
        ({"layers": [{**layer, "digest": 7}]}, MalformedError),
        ({"layers": [{**layer, "size": layer["size"] + 1}]}, MalformedError),
        ({"layers": [{**layer, "digest": f"sha256:{'0' * 64}"}]}, NotFoundError),
        ({"layers": [put(store, b"no model", "model")]}, QwenInspectError),
        ({"layers": [put(store, b"{}", "license")]}, UnsupportedError),
        ({"layers": [layer, put(store, b"[1]", "params")]}, MalformedError),
        ({"layers": [layer, put(store, b"{", "params")]}, MalformedError),
        ({"layers": [layer] * 2000}, MalformedError),
        (b" " * ((1 << 20) + 1), MalformedError),
    ]
    path = put_manifest(store, [])
    for content, error in cases:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(error):
            inspect("ollama:qwen3:8b")


def test_no_pipe_is_waited_for(store: Path) -> None:
    layer = model(store)
    path = put_manifest(store, [layer])
    blob = store / "blobs" / layer["digest"].replace(":", "-")
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(NotFoundError):
        inspect("ollama:qwen3:8b")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(NotFoundError):
        inspect("ollama:qwen3:8b")


@pytest.mark.parametrize(
    ("served", "environment", "expected"),
    [
        ({}, {}, (512, 1, None, "auto,auto")),  # Ollama's 32,768 for 24 GiB, but no longer than the model's limit
        ({"num_ctx": 256, "num_gpu": 1}, {"OLLAMA_CONTEXT_LENGTH": "128"}, (256, 1, 1, "auto,auto")),
        ({"num_gpu": -1}, {"OLLAMA_CONTEXT_LENGTH": '"128"'}, (128, 1, None, "auto,auto")),
        ({}, {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KV_CACHE_TYPE": "q8_0"}, (512, 4, None, "q8_0")),
        (
            {"num_batch": 64},
            {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
            (512, 1, None, "auto,auto"),
        ),
    ],
)
def test_a_request_is_as_ollama_serves_it(
    store: Path, served: Mapping[str, int], environment: Mapping[str, str], expected: tuple[Any, ...]
) -> None:
    put_manifest(store, [model(store), put(store, json.dumps(served).encode(), "params")])
    asked = Serving(engine="llama.cpp", cache_format="auto,auto")
    request, (notice, _) = as_served(asked, inspect("ollama:qwen3:8b"), CARD, environment)
    assert (request.context_tokens, request.batch, request.offloaded, request.cache_format) == expected
    assert notice.key == "assume_ollama"
    assert request.micro_batch == served.get("num_batch")
    assert request.flash_attention is (False if environment.get("OLLAMA_FLASH_ATTENTION") == "0" else None)


@pytest.mark.parametrize("setting", [{"OLLAMA_KV_CACHE_TYPE": "q3"}, {"OLLAMA_NUM_PARALLEL": "many"}])
def test_settings_that_ollama_does_not_have_are_refused(store: Path, setting: Mapping[str, str]) -> None:
    put_manifest(store, [model(store)])
    with pytest.raises(UsageError):
        as_served(Serving(engine="llama.cpp"), inspect("ollama:qwen3:8b"), CARD, setting)


def test_fit_takes_ollamas_settings(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_manifest(store, [model(store), put(store, b'{"num_ctx": 256}', "params")])
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "2")
    call = ("fit", "ollama:qwen3:8b", "--memory", "24GiB", "--format", "json")
    assert json.loads(run(*call).out)["llama_cpp"]["cells"] == 2 * 256
    assert run(*call, "--engine", "llama.cpp").out == run(*call).out
    assert json.loads(run(*call, "--engine", "transformers").out)["engine"] == "transformers"
    assert json.loads(run(*call, "--context", "512").out)["llama_cpp"]["cells"] == 2 * 512


def test_lm_studios_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"\.lmstudio/models/org/Tiny-GGUF"):
        inspect("lmstudio:org/Tiny-GGUF")
    for home in (tmp_path / ".cache" / "lm-studio", tmp_path / "elsewhere"):
        folder = home / "models" / "org" / "Tiny-GGUF"
        folder.mkdir(parents=True)
        write_model(folder / "Tiny-Q4_0.gguf", "qwen3", QWEN3)
        write_model(folder / "Tiny-Q8_0.gguf", "qwen3", QWEN3, gguf.GGMLQuantizationType.Q8_0)
        assert inspect("lmstudio:org/Tiny-GGUF:Q8_0").ref.id == "lmstudio:org/Tiny-GGUF"
        (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'elsewhere'}\n")
    with pytest.raises(UsageError, match=r"Tiny-Q4_0\.gguf"):
        inspect("lmstudio:org/Tiny-GGUF")
    for name in ("org", "../..", "org/..", "a/b/c", ""):
        with pytest.raises(UsageError):
            inspect(f"lmstudio:{name}")
