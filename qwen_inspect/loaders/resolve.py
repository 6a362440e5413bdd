"""What the user typed -> a ModelRef, and a ModelRef -> a Checkpoint."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Checkpoint, ModelRef
from ..errors import NotFoundError, UsageError
from . import catalog, local

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
SOURCES = ("auto", "local", "catalog")
FILE_SUFFIXES = (".json", ".safetensors", ".gguf")


def resolve(model: str, *, source: str = "auto", revision: str | None = None) -> ModelRef:
    """A path where `model` is or looks like one, else a name in the catalog. `catalog:ORG/NAME` pins the source."""
    if not model or "\0" in model:
        raise UsageError("model_empty")
    if revision is not None:
        raise UsageError("revision_without_hub", revision=revision)
    prefix, separator, rest = model.partition(":")
    if separator and prefix in ("catalog",):
        if source not in ("auto", prefix):
            raise UsageError("source_contradiction", model=model, source=source)
        source, model = prefix, rest
    if source == "catalog":
        return ModelRef(source="catalog", id=model)
    path = Path(model).expanduser()
    if source == "local" or path.exists() or _looks_like_path(model):
        if not path.exists():
            raise NotFoundError("path_missing", path=model)
        return ModelRef(source="local", id=model, path=path)
    return ModelRef(source="catalog", id=model)


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model.endswith(FILE_SUFFIXES) or model.count("/") > 1


def load(ref: ModelRef, *, partial: bool = False) -> Checkpoint:
    """Everything that can be read about `ref` without reading a tensor."""
    if ref.source == "catalog":
        return catalog.load(ref)
    return local.load(ref, partial=partial)
