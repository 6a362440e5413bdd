"""Parses what the user typed into a ModelRef, and loads a ModelRef into a Checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..checkpoint import Adapter, Checkpoint, ModelRef
from ..errors import NotFoundError, QwenInspectError, UsageError
from ..language import Message
from ..typed import TYPE_CHECKING
from ..values import dataclass, replace
from . import catalog

if TYPE_CHECKING:
    from .hub import Progress

FIRST_ANSWER_SECONDS = 10.0
DEFAULT_MODEL = "catalog:Qwen/Qwen3-0.6B"
# Each hub's prefix, module and class, in the order in which a bare name is looked up.
HUBS: Mapping[str, tuple[str, str]] = {"hf": ("huggingface", "HuggingFace"), "ms": ("modelscope", "ModelScope")}
LOCAL_STORES = ("ollama", "lmstudio")
FILE_SUFFIXES = (".json", ".safetensors", ".gguf")
TO_LETTERS = str.maketrans("_.-", "aaa")
LONGEST_PART = 96  # of a hub's ORG/NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How sources may be read. seconds: the deadline of a hub's first answer.

    progress: called with (done, total) as headers arrive; downloaded: the same for a download's bytes.
    partial: accept a model with missing shards. refresh: ask a hub even if a run of the last minutes cached its answer.
    headers: read the header of every weight file on a hub; else only if the hub's own counts do not vouch for what the
    configuration implies, and of a single file.
    """

    offline: bool = False
    refresh: bool = False
    partial: bool = False
    headers: bool = True
    seconds: float = FIRST_ANSWER_SECONDS
    progress: Progress = lambda done, total: None
    downloaded: Progress = lambda done, total: None


def resolve(model: str, *, source: str = "auto", revision: str | None = None, file: str | None = None) -> ModelRef:
    """The reference that `model` means: a path, if it exists or looks like one, else ORG/NAME at a hub or in the catalog.

    `ollama:NAME[:TAG]` and `lmstudio:PUBLISHER/REPOSITORY` are in those programs' folders. `hf:`, `ms:` and `catalog:` pin the
    source; `@REV` after a pinned name, or `revision`, names a hub's revision. A bare ORG/NAME has the source "auto". `:FILE` at
    the end of a hub's name, or `file`, names one of several GGUF files, by name or by quantisation (`:Q4_K_M`, as in llama.cpp
    and Ollama).
    """
    if not model or "\0" in model:
        raise UsageError("model_empty")
    if "://" in model and not os.path.exists(model):
        from .showing import shown_url

        raise NotFoundError("not_a_model", id=shown_url(model), nearest="–")
    prefix, separator, rest = model.partition(":")
    if separator and prefix in LOCAL_STORES and not os.path.exists(model):
        return _in_store(prefix, rest, source=source, revision=revision, file=file)
    if separator and prefix in (*HUBS, "catalog"):
        if source not in ("auto", prefix):
            raise UsageError("source_contradiction", model=model, source=source)
        source, model = prefix, rest
        model, file = _named_file(model, file)
        name, separator, at = model.partition("@")
        if separator:
            if revision not in (None, at):
                raise UsageError("revision_contradiction", model=model, revision=revision)
            model, revision = name, at
    place = os.path.expanduser(model)
    if source == "local" or (source == "auto" and (os.path.lexists(place) or _looks_like_path(model))):
        from pathlib import Path

        _refuse_revision(revision)
        path = Path(place)
        if not os.path.exists(path):
            raise NotFoundError("path_missing", path=model)
        # "." and ".." are no names: the folder's own.
        name = model if path.name not in ("", os.pardir) else os.path.basename(os.path.abspath(path)) or model
        return ModelRef(source="local", id=name, path=path, file=file)
    if source == "catalog":
        _refuse_revision(revision)
        return ModelRef(source="catalog", id=model)
    model, file = _named_file(model, file)
    if not _is_hub_id(model) or ".." in model or model.endswith(".git"):
        raise NotFoundError("not_a_model", id=model, nearest=catalog.nearest(model, catalog.entries()))
    if revision == "" or (
        revision is not None and (len(revision) > 200 or ".." in revision or not revision.isprintable())
    ):
        raise UsageError("revision_malformed", revision=revision)
    return ModelRef(source=source, id=model, revision=revision, file=file)


def _in_store(store: str, model: str, *, source: str, revision: str | None, file: str | None) -> ModelRef:
    """A model that another program keeps on this machine."""
    if source != "auto":
        raise UsageError("source_contradiction", model=f"{store}:{model}", source=source)
    _refuse_revision(revision)
    if store == "ollama":
        return ModelRef(source="ollama", id=model)
    from .lm_studio import folder_of

    name, file = _named_file(model, file)
    return ModelRef(source="local", id=f"{store}:{name}", path=folder_of(name), file=file)


def _named_file(model: str, file: str | None) -> tuple[str, str | None]:
    """ORG/NAME:FILE -> ORG/NAME and FILE."""
    name, separator, named = model.partition(":")
    if not separator:
        return model, file
    if not named or file not in (None, named):
        raise UsageError("file_contradiction", model=model, file=file or "–")
    return name, named


def _refuse_revision(revision: str | None) -> None:
    if revision is not None:
        raise UsageError("revision_without_hub", revision=revision)


def _is_hub_id(name: str) -> bool:
    """Whether it is ORG/NAME, each of which begins with an ASCII letter or digit and has letters, digits, "_", "." and "-"."""
    parts = name.split("/")
    begun = all(part[:1].isascii() and part[:1].isalnum() and len(part) <= LONGEST_PART for part in parts)
    return len(parts) == 2 and begun and all(part.translate(TO_LETTERS).isalnum() for part in parts)


def _looks_like_path(model: str) -> bool:
    name, separator, _ = model.partition(":")
    if separator and _is_hub_id(name):  # ORG/NAME:FILE, whose FILE may look like a path
        return False
    return model.startswith(("/", "./", "../", "~")) or model.endswith(FILE_SUFFIXES) or model.count("/") > 1


def load(ref: ModelRef, access: Access) -> Checkpoint:
    """Everything that can be read about `ref` without reading a tensor; for an adapter, its base model too."""
    checkpoint = _load(ref, access)
    return checkpoint if checkpoint.adapter is None else _with_base(checkpoint, checkpoint.adapter, access)


def _with_base(stored: Checkpoint, adapter: Adapter, access: Access) -> Checkpoint:
    """The base model that an adapter names, with the adapter; the adapter alone if its base cannot be read."""
    values = {"kind": adapter.kind, "base": adapter.base or "–", "rank": "–" if adapter.rank is None else adapter.rank}
    values |= {
        "parameters": adapter.parameters,
        "tensors": len(adapter.tensors),
        "targets": ", ".join(adapter.targets) or "–",
    }
    summary = Message("adapter", **values)
    try:
        if adapter.base is None:
            raise NotFoundError("adapter_no_base")
        named = resolve(adapter.base, source="auto" if stored.ref.source == "local" else stored.ref.source)
        if named.source == "local" and stored.ref.source != "local":
            raise NotFoundError("adapter_no_base")  # an adapter from a hub must not read this machine's files
        base = _load(named, access)
    except QwenInspectError as error:
        return replace(
            stored, notices=(*stored.notices, summary, Message("adapter_base_missing", reason=error.message))
        )
    notices = (*stored.notices, summary, Message("adapter_base_shown", base=base.ref.id), *base.notices)
    return replace(base, ref=stored.ref, adapter=adapter, notices=notices)


def _load(ref: ModelRef, access: Access) -> Checkpoint:
    match ref.source:
        case "local":
            from . import local

            return local.load(ref, partial=access.partial)
        case "catalog":
            return catalog.load(ref)
        case "ollama":
            from . import ollama

            return ollama.load(ref)
        case source:
            from .named import load_named  # not needed for a catalog model

            return load_named(ref, access, tuple(HUBS) if source == "auto" else (source,))
