"""Reads a model from Ollama's store, by its name: a manifest that names blobs by their SHA-256. Nothing is written or pulled.

Source: ollama, types/model/name.go (names), manifest/paths.go (folders), docs/faq.mdx (OLLAMA_MODELS and the default folders).
A blob's size is held to its manifest; its content is not hashed, which would read all of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint import Checkpoint, ModelRef
from ..errors import MalformedError, NotFoundError, UnsupportedError, UsageError
from ..language import Message
from ..typed import Any
from ..values import dataclass, replace
from . import local
from .regular import read_regular
from .strict_json import parse_json

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
LAYER = "application/vnd.ollama.image."
LARGEST_MANIFEST_BYTES = 1 << 20
MOST_LAYERS = 1000
INSTALLED = Path("/usr/share/ollama/.ollama/models")  # of the service that the Linux installer sets up
LARGEST_PARAMETER = 1 << 31


@dataclass(frozen=True, slots=True)
class Name:
    """[host/][namespace/]model[:tag], filled with Ollama's defaults."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def parts(self) -> tuple[str, str, str, str]:
        return self.host, self.namespace, self.model, self.tag


def parse_name(text: str) -> Name:
    """The model that `text` names; UsageError for what is no name of Ollama's."""
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        path, tag = text, TAG
    parts = path.split("/")
    filled = [HOST, NAMESPACE][: max(3 - len(parts), 0)] + parts
    if len(parts) > 3 or not all(PART.fullmatch(part) and ".." not in part for part in (*filled, tag)):
        raise UsageError("ollama_name", name=text)
    return Name(filled[0], filled[1], filled[2], tag)


def folders() -> tuple[Path, ...]:
    """Where Ollama may keep models: OLLAMA_MODELS alone if it is set, else the user's folder and the service's."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return (Path(os.path.expanduser(chosen)),)
    return Path.home() / ".ollama" / "models", INSTALLED


def load(ref: ModelRef) -> Checkpoint:
    """The model's GGUF blob, with the parameters that its manifest sets for every run (num_ctx, num_gpu).

    NotFoundError for a name that is in no store, MalformedError for a manifest without meaning or a blob of another size.
    """
    name = parse_name(ref.id)
    store = next((folder for folder in folders() if os.path.isfile(_manifest(folder, name))), None)
    if store is None:
        listed = ", ".join(sorted({known for folder in folders() for known in _names(folder)})[:20])
        raise NotFoundError("ollama_missing", name=ref.id, folders=", ".join(map(str, folders())), known=listed or "–")
    layers = tuple(_layers(_json(_manifest(store, name)), ref.id))
    models = [layer for layer in layers if layer.kind == "model"]
    if not models:
        raise UnsupportedError("ollama_no_model", name=ref.id)
    blob = _blob(store, models[0], ref.id)
    checkpoint = local.load(replace(ref, path=blob, file=None), partial=False)
    if not checkpoint.gguf:
        raise UnsupportedError("ollama_not_gguf", name=ref.id, file=blob.name)
    if checkpoint.files[0].size_bytes != models[0].size_bytes:
        found = checkpoint.files[0].size_bytes
        raise MalformedError("ollama_size", file=blob.name, found=found, expected=models[0].size_bytes)
    beside = [layer for layer in layers if layer.kind in ("projector", "adapter")]
    notices = tuple(Message("ollama_beside", kind=layer.kind, size=layer.size_bytes) for layer in beside)
    parameters = _parameters(store, layers, ref.id)
    return replace(
        checkpoint,
        ref=replace(ref, path=blob),
        files=(replace(checkpoint.files[0], sha256=models[0].digest),),
        served=parameters,
        notices=(*checkpoint.notices, *notices),
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    digest: str
    size_bytes: int


def _manifest(folder: Path, name: Name) -> Path:
    return folder.joinpath("manifests", *name.parts)


def _names(folder: Path) -> Iterator[str]:
    """What the user types for the models of a store."""
    root = folder / "manifests"
    try:
        for found in root.glob("*/*/*/*"):
            host, namespace, model, tag = found.relative_to(root).parts
            yield (
                "/".join(part for part in (*(() if host == HOST else (host,)), namespace, model)).removeprefix(
                    f"{NAMESPACE}/"
                )
                + f":{tag}"
            )
    except OSError:
        return


def _json(path: Path) -> Any:
    try:
        content = read_regular(path, cap=LARGEST_MANIFEST_BYTES)
    except OSError as error:
        raise NotFoundError("path_unreadable", path=str(path), reason=error.strerror) from None
    if len(content) > LARGEST_MANIFEST_BYTES:
        raise MalformedError("json_over_cap", file=path.name, cap=LARGEST_MANIFEST_BYTES)
    return parse_json(content, file=path.name)


def _layers(manifest: Any, name: str) -> Iterator[_Layer]:
    listed = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(listed, list) or len(listed) > MOST_LAYERS:
        raise MalformedError("ollama_manifest", name=name)
    for layer in listed:
        entry: Mapping[str, Any] = layer if isinstance(layer, dict) else {}
        kind, digest, size = (entry.get(key) for key in ("mediaType", "digest", "size"))
        match = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if not isinstance(kind, str) or match is None or type(size) is not int or size < 0:
            raise MalformedError("ollama_manifest", name=name)
        yield _Layer(kind.removeprefix(LAYER), match[1], size)


def _blob(store: Path, layer: _Layer, name: str) -> Path:
    path = store / "blobs" / f"sha256-{layer.digest}"
    if not os.path.isfile(path):
        raise NotFoundError("ollama_blob", name=name, file=str(path))
    return path


def _parameters(store: Path, layers: tuple[_Layer, ...], name: str) -> Mapping[str, int]:
    """The whole numbers among the parameters of a Modelfile; others (temperature, stop) decide no bytes."""
    params = next((layer for layer in layers if layer.kind == "params"), None)
    if params is None:
        return {}
    content = _json(_blob(store, params, name))
    if not isinstance(content, dict):
        raise MalformedError("ollama_manifest", name=name)
    return {
        key: value
        for key, value in content.items()
        if key in ("num_ctx", "num_gpu", "num_batch") and type(value) is int and -1 <= value <= LARGEST_PARAMETER
    }
