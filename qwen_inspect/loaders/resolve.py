"""What the user typed -> a ModelRef, and a ModelRef -> a Checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from ..checkpoint import Adapter, Checkpoint, ModelRef
from ..errors import AccessError, NetworkError, NotFoundError, QwenInspectError, UnavailableError, UsageError
from ..language import Message
from . import catalog, local
from .hub import FIRST_ANSWER_SECONDS, Hub, Listing, Progress, fetch_listing, load_kept, load_recent
from .hub import load as load_from_hub
from .transfer import Deadline

DEFAULT_MODEL = "catalog:Qwen/Qwen3-0.6B"
# Each hub's prefix, its module and its class, in the order in which a bare name is looked for.
HUBS: Mapping[str, tuple[str, str]] = {"hf": ("huggingface", "HuggingFace"), "ms": ("modelscope", "ModelScope")}
FILE_SUFFIXES = (".json", ".safetensors", ".gguf")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How sources may be asked. seconds: until a hub's first answer. progress: told (done, all) as headers arrive, downloaded:
    the same for a download's bytes.

    refresh: ask a hub again even where the answer of a run of the last minutes was kept.
    """

    offline: bool = False
    refresh: bool = False
    partial: bool = False
    seconds: float = FIRST_ANSWER_SECONDS
    progress: Progress = lambda done, total: None
    downloaded: Progress = lambda done, total: None


def resolve(model: str, *, source: str = "auto", revision: str | None = None, file: str | None = None) -> ModelRef:
    """A path where `model` is or looks like one, else a hub's or the catalog's ORG/NAME.

    `hf:`, `ms:` and `catalog:` pin the source; `@REV` after a pinned name, or `revision`, names a hub's revision. A bare
    ORG/NAME has the source "auto". `:FILE` at the end of a hub's name, or `file`, names one of several GGUF files, by its name or
    by its quantisation (`:Q4_K_M`, as llama.cpp and Ollama have it).
    """
    if not model or "\0" in model:
        raise UsageError("model_empty")
    prefix, separator, rest = model.partition(":")
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
    path = Path(os.path.expanduser(model))
    if source == "local" or (source == "auto" and (os.path.exists(path) or _looks_like_path(model))):
        _refuse_revision(revision)
        if not os.path.exists(path):
            raise NotFoundError("path_missing", path=model)
        return ModelRef(source="local", id=model, path=path, file=file)
    if source == "catalog":
        _refuse_revision(revision)
        return ModelRef(source="catalog", id=model)
    model, file = _named_file(model, file)
    if not HUB_ID.fullmatch(model) or ".." in model or model.endswith(".git"):
        raise NotFoundError("not_a_model", id=model, nearest=catalog.nearest(model, catalog.entries()))
    if revision == "" or (revision is not None and (len(revision) > 200 or ".." in revision)):
        raise UsageError("revision_malformed", revision=revision)
    return ModelRef(source=source, id=model, revision=revision, file=file)


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


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model.endswith(FILE_SUFFIXES) or model.count("/") > 1


def load(ref: ModelRef, access: Access) -> Checkpoint:
    """Everything that can be read about `ref` without reading a tensor; for an adapter, its base model too."""
    checkpoint = _load(ref, access)
    return checkpoint if checkpoint.adapter is None else _with_base(checkpoint, checkpoint.adapter, access)


def _with_base(stored: Checkpoint, adapter: Adapter, access: Access) -> Checkpoint:
    """The base model that an adapter names, with the adapter; the adapter alone where its base cannot be read."""
    values = {"kind": adapter.kind, "base": adapter.base or "–", "rank": "–" if adapter.rank is None else adapter.rank}
    values |= {
        "parameters": adapter.parameters,
        "tensors": len(adapter.tensors),
        "targets": ", ".join(adapter.targets) or "–",
    }
    told = Message("adapter", **values)
    try:
        if adapter.base is None:
            raise NotFoundError("adapter_no_base")
        named = resolve(adapter.base, source="auto" if stored.ref.source == "local" else stored.ref.source)
        if named.source == "local" and stored.ref.source != "local":
            raise NotFoundError("adapter_no_base")  # a name from a hub must not read this machine's files
        base = _load(named, access)
    except QwenInspectError as error:
        return replace(stored, notices=(*stored.notices, told, Message("adapter_base_missing", reason=error.message)))
    notices = (*stored.notices, told, Message("adapter_base_shown", base=base.ref.id), *base.notices)
    return replace(base, ref=stored.ref, adapter=adapter, notices=notices)


def list_files(ref: ModelRef, access: Access) -> Listing:
    """A hub's listing of a model, in one request; a bare name is looked for on Hugging Face."""
    if ref.source in ("local", "catalog"):
        raise UsageError("compare_hubs_only", model=ref.id)
    if access.offline or told_offline():
        raise NetworkError("compare_offline")
    hub = hub_of(next(iter(HUBS)) if ref.source == "auto" else ref.source)
    return fetch_listing(hub, ref.id, ref.revision or hub.default_revision, Deadline.after(access.seconds))


def _load(ref: ModelRef, access: Access) -> Checkpoint:
    match ref.source:
        case "local":
            return local.load(ref, partial=access.partial)
        case "catalog":
            return catalog.load(ref)
        case "auto":
            return _load_named(ref, access, tuple(HUBS))
        case pinned:
            return _load_named(ref, access, (pinned,))


def hub_of(source: str) -> Hub:
    """A hub's module is imported when it is asked: their clients take 0.1 to 0.2 s."""
    module, name = HUBS[source]
    hub: Hub = getattr(import_module(f"{__package__}.{module}"), name)()
    return hub


def _load_named(ref: ModelRef, access: Access, sources: tuple[str, ...]) -> Checkpoint:
    """From the clients' caches, then from the hubs in turn, and where none can be reached, from the catalog."""
    hubs: list[Hub] = []
    refused: list[QwenInspectError] = []
    for source in sources:
        try:
            hubs.append(hub_of(source))
        except UnavailableError as error:
            if len(sources) == 1:
                raise
            refused.append(error)
    for hub in hubs:
        if (found := _from_client_cache(hub, ref, partial=False)) is not None:
            return found
    offline = access.offline or told_offline()
    for hub in hubs:
        if not offline:
            if not access.refresh and (recent := load_recent(hub, ref)) is not None:
                return recent
            try:
                return load_from_hub(hub, ref, seconds=access.seconds, progress=access.progress)
            except (NetworkError, NotFoundError) as error:
                refused.append(error)
        elif (kept := load_kept(hub, ref, Message("from_kept"))) is not None:
            return kept
    return _without_a_hub(ref, access, hubs, refused, offline=offline, pinned=len(sources) == 1)


def told_offline() -> bool:
    """Whether the hubs' own variables forbid the network. Source: huggingface_hub 2.4, constants.HF_HUB_OFFLINE."""
    told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told.upper() in ("1", "ON", "YES", "TRUE")


def _from_client_cache(hub: Hub, ref: ModelRef, *, partial: bool) -> Checkpoint | None:
    """The model from a hub client's cache; None where it is not there, or not whole unless `partial`."""
    found = hub.cached(ref.id, ref.revision or hub.default_revision)
    if found is None:
        return None
    folder, revision = found
    try:
        place = ModelRef(source=hub.source, id=ref.id, revision=revision, path=folder, file=ref.file)
        checkpoint = local.load(place, partial=partial)
    except NotFoundError:
        return None
    if checkpoint.tensors is None and checkpoint.adapter is None and not partial:
        return None
    notice = Message("from_client_cache", source=Message(f"source_{hub.source}"), revision=revision)
    others = tuple(message for message in checkpoint.notices if message.key != "config_alone")
    return replace(checkpoint, notices=(notice, *others))


def _without_a_hub(
    ref: ModelRef,
    access: Access,
    hubs: list[Hub],
    refused: list[QwenInspectError],
    *,
    offline: bool,
    pinned: bool,
) -> Checkpoint:
    """What is left: part of a model in a cache, the catalog's entry, or the plain reason."""
    unreachable = [error for error in refused if isinstance(error, NetworkError)]
    missing = [error for error in refused if isinstance(error, NotFoundError | AccessError)]
    if offline or access.partial:
        for hub in hubs:
            if (part := _from_client_cache(hub, ref, partial=True)) is not None:
                return part
    entries = catalog.entries()
    if not pinned and not missing and ref.id in entries and ref.revision is None:
        found = catalog.load(ModelRef(source="catalog", id=ref.id))
        why = Message("offline_catalog") if offline else Message("unreachable_catalog", reason=unreachable[0].message)
        return replace(found, notices=(why, *found.notices))
    if missing:
        raise missing[0]
    if unreachable:
        raise unreachable[0]
    if offline:
        raise NotFoundError("offline_pinned" if ref.id in entries else "offline_missing", id=ref.id)
    raise refused[0]
