"""The local folder of a model's weights, configuration and tokenizer; the hub's own client downloads what is missing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoint import ModelRef
from ..errors import NetworkError, NotFoundError, UnsupportedError
from . import header_cache
from .hub import (
    RECENT_SECONDS,
    Hub,
    ListedFile,
    Listing,
    Progress,
    fetch_listing,
    kept_listing,
    missing_shards,
    weight_files,
)
from .named import hub_of, offline_by_environment
from .resolve import Access
from .transfer import Deadline

# Files that transformers reads beside the weights: configurations, tokenizers of every kind, chat templates.
READ_SUFFIXES, READ_NAMES = (".json", ".jinja", ".model", ".tiktoken"), ("merges.txt", "vocab.txt")
CODE_SUFFIX, PICKLE_SUFFIXES = ".py", (".bin", ".pt", ".pth")


def weights_directory(ref: ModelRef, access: Access, *, with_code: bool = False) -> Path:
    """The folder that holds `ref`'s weights, configuration and tokenizer, as `load` resolved it (its revision is a commit).

    A path's own folder, else a complete folder in the client's cache, else what the client downloads: safetensors and the files
    needed to run them, never pickles, and code only `with_code`. NotFoundError for the catalog, which has no weights, and if
    nothing is cached while offline; the hubs' errors as in `load`.
    """
    if ref.source == "catalog":
        raise NotFoundError("weights_in_catalog", id=ref.id)
    if ref.source in ("local", "ollama"):
        assert ref.path is not None
        return ref.path if ref.path.is_dir() else ref.path.parent
    hub = hub_of(ref.source)
    revision = ref.revision or hub.default_revision
    cached = hub.cached(ref.id, revision)
    offline = access.offline or offline_by_environment()
    if cached is None and offline:
        raise NotFoundError("weights_offline", id=ref.id)
    listing = _listing(hub, ref.id, revision, None if cached is None else cached[0], access, offline=offline)
    needed = _needed(listing, ref.id, with_code=with_code)
    if cached is not None and all(_holds(cached[0], file) for file in needed):
        return cached[0]
    return hub.download(ref.id, listing.revision, needed, _adding_up(needed, access.downloaded))


def _listing(hub: Hub, model: str, revision: str, cached: Path | None, access: Access, *, offline: bool) -> Listing:
    """The repository's files: from a recent cached listing, else from the hub, else those in the client's cache."""
    age = header_cache.listing_age_seconds(hub.source, hub.endpoint, model, revision)
    if not offline and age is not None and age <= RECENT_SECONDS:
        kept = kept_listing(hub, model, revision)
        if kept is not None:
            return kept
    if not offline:
        try:
            return fetch_listing(hub, model, revision, Deadline.after(access.seconds))
        except NetworkError:
            if cached is None:
                raise
    assert cached is not None
    names = sorted(path.name for path in cached.iterdir() if path.is_file())
    return Listing(revision=revision, files=tuple(ListedFile(name=name, size_bytes=None, key=None) for name in names))


def _needed(listing: Listing, model: str, *, with_code: bool) -> tuple[ListedFile, ...]:
    """The files to download, weights last: an interrupted download then has the index that reveals missing shards."""
    weights = weight_files(listing)
    if missing := missing_shards(weights):
        raise NotFoundError("hub_shards_missing", missing=len(missing), file=missing[0])
    if not weights:
        pickled = next((file.name for file in listing.files if file.name.endswith(PICKLE_SUFFIXES)), None)
        if pickled is not None:
            raise UnsupportedError("load_pickled", path=model, file=pickled)
        raise NotFoundError("load_no_weights", path=model)
    suffixes = (*READ_SUFFIXES, CODE_SUFFIX) if with_code else READ_SUFFIXES
    others = [
        file
        for file in listing.files
        if "/" not in file.name and (file.name.endswith(suffixes) or file.name in READ_NAMES)
    ]
    return (*others, *weights)


def _holds(folder: Path, file: ListedFile) -> bool:
    try:
        size_bytes = (folder / file.name).stat().st_size
    except OSError:
        return False
    return file.size_bytes in (None, size_bytes)


def _adding_up(files: Sequence[ListedFile], report: Progress) -> Callable[[int], None]:
    """A callback for the client, safe from any thread: adds up the bytes and calls `report` with (bytes so far, total)."""
    total = sum(file.size_bytes or 0 for file in files)
    lock, done = threading.Lock(), 0

    def add(size_bytes: int) -> None:
        nonlocal done
        with lock:
            done += size_bytes
            report(done, total)

    return add
