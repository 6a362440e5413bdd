"""Loads ORG/NAME: from the clients' caches, else from the hubs in turn, else, if none answers, from the catalog."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module

from ..checkpoint import Checkpoint, ModelRef
from ..errors import AccessError, NetworkError, NotFoundError, QwenInspectError, UnavailableError, UsageError
from ..language import Message
from . import catalog, local
from .hub import Hub, Listing, fetch_listing, load_kept, load_recent
from .hub import load as load_from_hub
from .resolve import HUBS, Access
from .transfer import Deadline


def list_files(ref: ModelRef, access: Access) -> Listing:
    """A hub's listing of a model, in one request; a bare name is looked up on Hugging Face."""
    if ref.source in ("local", "catalog"):
        raise UsageError("compare_hubs_only", model=ref.id)
    if access.offline or offline_by_environment():
        raise NetworkError("compare_offline")
    hub = hub_of(next(iter(HUBS)) if ref.source == "auto" else ref.source)
    return fetch_listing(hub, ref.id, ref.revision or hub.default_revision, Deadline.after(access.seconds))


def hub_of(source: str) -> Hub:
    """The hub called `source`. Its module is imported here, on first use: the clients take 0.1 to 0.2 s."""
    module, name = HUBS[source]
    hub: Hub = getattr(import_module(f"{__package__}.{module}"), name)()
    return hub


def load_named(ref: ModelRef, access: Access, sources: tuple[str, ...]) -> Checkpoint:
    """From the clients' caches, else from the hubs in turn, else, if none answers, from the catalog."""
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
        if (cached := _from_client_cache(hub, ref, partial=False)) is not None:
            return cached
    offline = access.offline or offline_by_environment()
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


def offline_by_environment() -> bool:
    """Whether the hubs' own variables forbid the network. Source: huggingface_hub 2.4, constants.HF_HUB_OFFLINE."""
    setting = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return setting.upper() in ("1", "ON", "YES", "TRUE")


def _from_client_cache(hub: Hub, ref: ModelRef, *, partial: bool) -> Checkpoint | None:
    """The model from a hub client's cache; None if it is not there, or is incomplete and not `partial`."""
    cached = hub.cached(ref.id, ref.revision or hub.default_revision)
    if cached is None:
        return None
    folder, revision = cached
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
    """Without a hub: a partly cached model, else the catalog's entry, else the error of the hubs."""
    unreachable = [error for error in refused if isinstance(error, NetworkError)]
    missing = [error for error in refused if isinstance(error, NotFoundError | AccessError)]
    if offline or access.partial:
        for hub in hubs:
            if (part := _from_client_cache(hub, ref, partial=True)) is not None:
                return part
    entries = catalog.entries()
    if not pinned and not missing and ref.id in entries and ref.revision is None:
        checkpoint = catalog.load(ModelRef(source="catalog", id=ref.id))
        why = Message("offline_catalog") if offline else Message("unreachable_catalog", reason=unreachable[0].message)
        return replace(checkpoint, notices=(why, *checkpoint.notices))
    if missing:
        raise missing[0]
    if unreachable:
        raise unreachable[0]
    if offline:
        raise NotFoundError("offline_pinned" if ref.id in entries else "offline_missing", id=ref.id)
    raise refused[0]
