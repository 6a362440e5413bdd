"""Loads ORG/NAME: from the clients' caches, else from the hubs, else, if none answers, from an earlier run or the catalog."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..checkpoint import Checkpoint, ModelRef
from ..errors import AccessError, NetworkError, NotFoundError, QwenInspectError, UsageError
from ..language import Message
from ..progress import working
from ..standard import import_module
from ..values import dataclass, replace
from . import asking, catalog, local
from .hub import DamagedCacheError, Hub, Listing, Look, fetch_listing, load_kept, load_recent, look
from .hub import load as load_from_hub
from .resolve import HUBS, Access
from .transfer import Deadline, in_parallel

PATIENCE_SECONDS = 3.0  # for a hub's first answer, once something else has the model


def list_files(refs: Sequence[ModelRef], access: Access) -> list[Listing]:
    """Hubs' listings of models, in one request each, at once; a bare name is looked up on Hugging Face."""
    for ref in refs:
        if ref.source in ("local", "catalog", "ollama"):
            raise UsageError("compare_hubs_only", model=ref.id)
    if access.offline or offline_by_environment():
        raise NetworkError("compare_offline")
    hubs = [hub_of(next(iter(HUBS)) if ref.source == "auto" else ref.source) for ref in refs]
    deadline = Deadline.after(access.seconds)

    def job(hub: Hub, ref: ModelRef) -> Callable[[], Listing]:
        return lambda: fetch_listing(hub, ref.id, ref.revision or hub.default_revision, deadline)

    names = [Message(f"source_{hub.source}") for hub in hubs]
    with working("working_ask_both", hub=names[0], other=names[-1], model=refs[0].id):
        outcomes = in_parallel([job(hub, ref) for hub, ref in zip(hubs, refs, strict=True)], deadline=deadline)
    listings = []
    for hub, listing, error in zip(hubs, outcomes.results, outcomes.errors, strict=True):
        if listing is None:
            raise error or NetworkError("hub_no_answer", endpoint=hub.shown_endpoint)
        listings.append(listing)
    return listings


def hub_of(source: str) -> Hub:
    """The hub called `source`. Its module is imported here, on first use."""
    module, name = HUBS[source]
    hub: Hub = getattr(import_module(f"{__package__}.{module}"), name)()
    return hub


def load_named(ref: ModelRef, access: Access, sources: tuple[str, ...]) -> Checkpoint:
    """From the clients' caches, else from the first of the hubs that has it, else, if none answers, from what is kept here.

    The hubs are asked at once; of two that have the model the first wins. Once there is something else to show (a later hub's
    answer, an earlier run's, the catalog's entry), a hub gets `PATIENCE_SECONDS` to answer; if it was out of reach in the last
    minutes, it is not asked.
    """
    hubs = tuple(map(hub_of, sources))
    for hub in hubs:
        if (cached := _from_client_cache(hub, ref, partial=False)) is not None:
            return cached
    request = _Request(ref=ref, access=access, hubs=hubs, pinned=len(hubs) == 1, refused={})
    if access.offline or offline_by_environment():
        return _offline(request)
    return _from_hubs(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A name and the hubs to ask. refused: why a hub gave no model, by source. pinned: the user named the hub."""

    ref: ModelRef
    access: Access
    hubs: tuple[Hub, ...]
    pinned: bool
    refused: dict[str, QwenInspectError]


def _from_hubs(request: _Request) -> Checkpoint:
    """The model from a hub, else from what is kept here. Hubs that were out of reach are asked only if nothing else has it."""
    ref, access, refused = request.ref, request.access, request.refused
    silent_since: dict[str, float] = {}
    if not access.refresh:
        ages = {hub.source: asking.remembered_seconds(hub) for hub in request.hubs}
        silent_since = {source: age for source, age in ages.items() if age is not None}
    for source, age in silent_since.items():
        refused[source] = NetworkError("hub_not_asked", source=Message(f"source_{source}"), seconds=int(age))
    for hubs in (
        tuple(hub for hub in request.hubs if hub.source not in silent_since),
        tuple(hub for hub in request.hubs if hub.source in silent_since),
    ):
        while hubs:
            if not access.refresh and (recent := load_recent(hubs[0], ref, headers=access.headers)) is not None:
                return recent
            hub, said = _asked(request, hubs)
            if hub is None or said is None:
                break
            if isinstance(said, QwenInspectError):
                raise said
            if isinstance(said, Checkpoint):
                return _in_place_of(said, request, hub)
            try:
                with working("working_read", model=ref.id, hub=Message(f"source_{hub.source}")):
                    checkpoint = load_from_hub(
                        hub, ref, said, seconds=3 * access.seconds, progress=access.progress, headers=access.headers
                    )
            except (NetworkError, NotFoundError) as error:
                refused[hub.source] = error
                hubs = hubs[hubs.index(hub) + 1 :]
                continue
            return _in_place_of(checkpoint, request, hub)
        if (kept := _kept_here(request)) is not None:
            return kept
    raise _refusal(request)


def _asked(request: _Request, hubs: tuple[Hub, ...]) -> tuple[Hub | None, asking.Said | None]:
    """The hub to read and what it said; None if no hub has the model, or none answers in time. Notes why in `refused`."""
    seconds, refused = request.access.seconds, request.refused

    def ask(hub: Hub) -> Checkpoint | Look:
        recent = None if request.access.refresh else load_recent(hub, request.ref, headers=request.access.headers)
        return recent or look(hub, request.ref, Deadline.after(seconds))

    asked = asking.Asking(hubs, ask)
    whole = Deadline.after(seconds + asking.HEAD_START_SECONDS)
    names = [Message(f"source_{hub.source}") for hub in hubs]
    asked_for = {"model": request.ref.id, "hub": names[0], "other": names[-1]}
    with working("working_ask" if len(hubs) == 1 else "working_ask_both", **asked_for):
        hub = asked.first(Deadline.after(min(PATIENCE_SECONDS, seconds)))
        if hub is None and not all(hub.source in asked.refused for hub in hubs):
            later = next((hub for hub in hubs if hub.source in asked.answers), None)
            if later is None and _kept_here(request) is None:
                hub = asked.first(whole)
                later = next((hub for hub in hubs if hub.source in asked.answers), None)
            hub = hub or later
    for other in hubs:
        if asked.silent(other) and (hub is None or hubs.index(other) < hubs.index(hub)):
            asking.remember(other)
            refused[other.source] = NetworkError("hub_no_answer", endpoint=other.shown_endpoint)
    refused |= asked.refused
    return hub, None if hub is None else asked.answers[hub.source]


def _in_place_of(checkpoint: Checkpoint, request: _Request, hub: Hub) -> Checkpoint:
    """The checkpoint, with a notice if an earlier hub, which wins where both have a model, could not be asked."""
    for earlier in request.hubs[: request.hubs.index(hub)]:
        error = request.refused.get(earlier.source)
        if isinstance(error, NetworkError):
            notice = Message("hub_instead", hub=Message(f"source_{hub.source}"), reason=error.message)
            return replace(checkpoint, notices=(notice, *checkpoint.notices))
    return checkpoint


def _kept_here(request: _Request) -> Checkpoint | None:
    """What can be shown without a hub: an earlier run's answer, part of a client's cache, the catalog's entry.

    Not if a hub before which no other was out of reach said that there is no such model.
    """
    first = next((request.refused.get(hub.source) for hub in request.hubs), None)
    if isinstance(first, NotFoundError | AccessError):
        return None
    reasons = [error.message for error in request.refused.values() if isinstance(error, NetworkError)]
    reason = reasons[0] if reasons else Message("hub_no_answer", endpoint=request.hubs[0].shown_endpoint)
    for hub in request.hubs:
        notice, headers = Message("unreachable_kept", reason=reason), request.access.headers
        with suppress(DamagedCacheError):
            if (kept := load_kept(hub, request.ref, notice, headers=headers)) is not None:
                return kept
    if request.access.partial and (part := _partly_cached(request)) is not None:
        return part
    return _from_catalog(request, Message("unreachable_catalog", reason=reason))


def _partly_cached(request: _Request) -> Checkpoint | None:
    parts = (_from_client_cache(hub, request.ref, partial=True) for hub in request.hubs)
    return next((part for part in parts if part is not None), None)


def _from_catalog(request: _Request, why: Message) -> Checkpoint | None:
    """The catalog's entry for a bare name without a revision."""
    ref = request.ref
    if request.pinned or ref.revision is not None or ref.id not in catalog.entries():
        return None
    checkpoint = catalog.load(ModelRef(source="catalog", id=ref.id))
    return replace(checkpoint, notices=(why, *checkpoint.notices))


def _offline(request: _Request) -> Checkpoint:
    """Without a network: what an earlier run kept, else part of a client's cache, else the catalog's entry."""
    damaged = None
    for hub in request.hubs:
        try:
            kept = load_kept(hub, request.ref, Message("from_kept"), headers=request.access.headers)
        except DamagedCacheError as error:
            damaged = error
        else:
            if kept is not None:
                return kept
    checkpoint = _partly_cached(request) or _from_catalog(request, Message("offline_catalog"))
    if checkpoint is not None:
        return checkpoint
    if damaged is not None:
        raise damaged
    known = request.ref.id in catalog.entries()
    raise NotFoundError("offline_pinned" if known else "offline_missing", id=request.ref.id)


def _refusal(request: _Request) -> QwenInspectError:
    """The error to raise: the first hub's; if it could not be reached, with what may help."""
    error = next(request.refused[hub.source] for hub in request.hubs if hub.source in request.refused)
    if not asking.is_no_answer(error):
        return error
    hint = "help_unreachable" if not request.pinned else f"help_unreachable_{request.hubs[0].source}"
    return NetworkError("hub_unreachable_help", reason=error.message, hint=Message(hint, id=request.ref.id))


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
