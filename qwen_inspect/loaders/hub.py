"""What both hubs share: fetch listing and configuration in parallel, then each weight file's header by a ranged request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..checkpoint import DTYPE_OF_CODE, Checkpoint, HubCount, ModelRef, StoredFile, Tensor
from ..declarations import FILES, MODEL_DTYPES, declares_quantisation, names_dtype
from ..errors import MalformedError, NetworkError, NotFoundError, QwenInspectError
from ..language import Message
from ..typed import Any, Protocol
from ..values import dataclass, replace
from . import adapter, gguf_header, header_cache, hub_headers, local
from .strict_json import LONGEST_JSON_BYTES, parse_json
from .transfer import Answer, Deadline, fetch, fetch_span, in_parallel, is_safe_name

RECENT_SECONDS = 300.0
# The headers of Qwen3-235B-A22B's shards take up to 40,128 bytes, the header of Qwen3-0.6B's single file 35,552.
LONGEST_LISTING_BYTES = 20_000_000
LONGEST_CONFIG_BYTES = 10_000_000
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file of a repository. `key` is its content hash in the cache ("sha256-...", "git-..."), None if the hub gives none."""

    name: str
    size_bytes: int | None
    key: str | None

    @property
    def sha256(self) -> str | None:
        return self.key.removeprefix("sha256-") if self.key and self.key.startswith("sha256-") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit; `revision` goes into its file URLs. index: model.safetensors.index.json, if read.

    elements: the numbers in its safetensors files by dtype's code, if the hub counts them.
    left_out: the number of files whose names would leave the repository, or that no URL can hold.
    """

    revision: str
    files: tuple[ListedFile, ...]
    notices: tuple[Message, ...] = ()
    index: Mapping[str, Any] | None = None
    elements: Mapping[str, int] | None = None
    left_out: int = 0

    @property
    def remarks(self) -> tuple[Message, ...]:
        left_out = (Message("listing_left_out", files=self.left_out),) if self.left_out else ()
        return (*self.notices, *left_out)

    def file(self, name: str) -> ListedFile | None:
        return next((file for file in self.files if file.name == name), None)


class Hub(Protocol):
    """The parts that differ from hub to hub."""

    source: str
    endpoint: str
    shown_endpoint: str  # without a password
    default_revision: str

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer: ...
    def listing_url(self, model: str, revision: str) -> str: ...
    def read_listing(self, content: Any, model: str, revision: str) -> Listing: ...
    def file_url(self, model: str, revision: str, name: str) -> str: ...
    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError: ...
    def cached(self, model: str, revision: str) -> tuple[Path, str] | None: ...
    def notices(self) -> tuple[Message, ...]: ...
    def download(self, model: str, revision: str, files: Sequence[ListedFile], come: Callable[[int], None]) -> Path: ...


Look = tuple[Listing, Mapping[str, Any] | None]  # a repository's listing and its config.json


def look(hub: Hub, ref: ModelRef, deadline: Deadline) -> Look:
    """A repository's listing and configuration: the first answer, by which a hub has the model or not."""
    return _listing_and_config(hub, ref.id, ref.revision or hub.default_revision, deadline)


def load(
    hub: Hub, ref: ModelRef, first: Look, *, seconds: float, progress: Progress, headers: bool = True
) -> Checkpoint:
    """A hub's model without its weights, after the first answer. seconds: the deadline of all headers together.

    headers: read those of all files; else only if the hub does not count what is in them (see `HubCount`).
    """
    listing, config = first
    checkpoint = _checkpoint(hub, ref, listing, config, Deadline.after(seconds), progress, headers=headers)
    # Not before all has come: an earlier listing, of which all is kept, answers offline until then.
    for name in {ref.revision or hub.default_revision, listing.revision}:
        header_cache.write_listing(hub.source, hub.endpoint, ref.id, name, listing=_written(listing))
    return checkpoint


def load_recent(hub: Hub, ref: ModelRef, *, headers: bool = True) -> Checkpoint | None:
    """The checkpoint cached in the last `RECENT_SECONDS`, without a request: people run several commands on a model in a row."""
    revision = ref.revision or hub.default_revision
    age = header_cache.listing_age_seconds(hub.source, hub.endpoint, ref.id, revision)
    if age is None or age > RECENT_SECONDS:
        return None
    try:
        return load_kept(hub, ref, Message("from_recent", seconds=int(age)), headers=headers)
    except DamagedCacheError:
        return None


class DamagedCacheError(NotFoundError):
    """A part of what was kept of a model was damaged, and is dropped."""


def load_kept(hub: Hub, ref: ModelRef, notice: Message, *, headers: bool = True) -> Checkpoint | None:
    """The checkpoint from the cache of earlier runs, without a request; None if a part is missing.

    DamagedCacheError if a part is damaged.
    """
    revision = ref.revision or hub.default_revision
    is_listed = header_cache.listing_age_seconds(hub.source, hub.endpoint, ref.id, revision) is not None
    listing = kept_listing(hub, ref.id, revision)
    if listing is None and is_listed:
        raise DamagedCacheError("kept_damaged", id=ref.id)
    if listing is None:
        return None

    def are_kept(files: Sequence[ListedFile]) -> bool:
        if not all(hub_headers.is_kept(hub, ref.id, file) for file in files):
            return False
        if any(hub_headers.read_kept(hub, ref.id, file) is None for file in files):
            raise DamagedCacheError("kept_damaged", id=ref.id)
        return True

    needed = _needed(listing, ref)
    if not are_kept(needed if headers or not _is_counted(listing, needed) else needed[:1]):
        return None
    config = config_named(hub, ref.id, listing, Deadline.after(1))
    beside = _quantisation_file(listing, config)
    if beside is not None and not are_kept([beside]):
        return None
    if not are_kept(needed) and not are_kept(_files_of_count(listing, config)):
        return None
    checkpoint = _checkpoint(hub, ref, listing, config, Deadline.after(1), lambda done, total: None, headers=headers)
    return replace(checkpoint, notices=(*checkpoint.notices, notice))


def kept_listing(hub: Hub, model: str, revision: str) -> Listing | None:
    """The listing that an earlier run cached; None if there is none or it cannot be read."""
    kept = header_cache.read_listing(hub.source, hub.endpoint, model, revision)
    try:
        return _read_back(kept) if kept else None
    except (KeyError, TypeError, ValueError, MalformedError):
        return None


def _needed(listing: Listing, ref: ModelRef) -> list[ListedFile]:
    """The files that a checkpoint is read from: configuration and weights, of the model or of the adapter."""
    config = listing.file(local.CONFIG_NAME)
    if _is_gguf(listing, ref):
        return [*([] if config is None else [config]), *_gguf_files(listing, ref)]
    if config is not None:
        return [config, *weight_files(listing)]
    parts = (listing.file(adapter.CONFIG_NAME), listing.file(adapter.WEIGHTS_NAME))
    return [part for part in parts if part is not None] or list(weight_files(listing))


def fetch_listing(hub: Hub, model: str, revision: str, deadline: Deadline) -> Listing:
    answer = fetch(hub.get, hub.listing_url(model, revision), limit=LONGEST_LISTING_BYTES + 1, deadline=deadline)
    if not answer.ok:
        raise hub.refusal(answer, model=model, revision=revision, file=None)
    if len(answer.body) > LONGEST_LISTING_BYTES:
        raise MalformedError("json_over_cap", file="listing", cap=LONGEST_LISTING_BYTES)
    return hub.read_listing(parse_json(answer.body, file="listing"), model, revision)


def _listing_and_config(
    hub: Hub, model: str, revision: str, deadline: Deadline
) -> tuple[Listing, Mapping[str, Any] | None]:
    """Fetches both in parallel on a first visit. With a cached listing, the configuration may be cached too: listing first."""
    name = local.CONFIG_NAME
    if header_cache.read_listing(hub.source, hub.endpoint, model, revision) is not None:
        listing = fetch_listing(hub, model, revision, deadline)
        return listing, config_named(hub, model, listing, deadline)

    def ask_config() -> Answer:
        return fetch(hub.get, hub.file_url(model, revision, name), limit=LONGEST_CONFIG_BYTES + 1, deadline=deadline)

    jobs: list[Callable[[], Listing | Answer]] = [lambda: fetch_listing(hub, model, revision, deadline), ask_config]
    outcomes = in_parallel(jobs, deadline=deadline)
    listed, answer = outcomes.results
    if not isinstance(listed, Listing):
        if isinstance(answer, Answer) and answer.ok and _is_absent(outcomes.errors[0]):
            return _listing_of_a_mirror(hub, model, revision, deadline), _parsed_config(answer.body)
        raise outcomes.errors[0] or NetworkError("hub_no_answer", endpoint=hub.shown_endpoint)
    if isinstance(answer, Answer) and answer.ok and answer.commit in (None, listed.revision):
        config = _parsed_config(answer.body)
        _keep_config(hub, model, listed.file(name), answer.body)
        return listed, config
    return listed, config_named(hub, model, listed, deadline)


def _is_absent(error: BaseException | None) -> bool:
    """Whether the hub has no listing; it may still have the files, for mirrors often lack the API."""
    return isinstance(error, NotFoundError | NetworkError)


def _listing_of_a_mirror(hub: Hub, model: str, revision: str, deadline: Deadline) -> Listing:
    """The weight files by their standard names, for a mirror without a listing API."""
    answer = fetch(
        hub.get, hub.file_url(model, revision, local.INDEX_NAME), limit=LONGEST_JSON_BYTES + 1, deadline=deadline
    )
    names, index = [local.SINGLE_NAME], None
    if answer.ok:
        index = parse_json(answer.body, file=local.INDEX_NAME)
        names = list(local.read_index(index, file=local.INDEX_NAME))
    files = tuple(ListedFile(name=name, size_bytes=None, key=None) for name in names)
    return Listing(
        revision=answer.commit or revision, files=files, notices=(Message("mirror_no_listing"),), index=index
    )


def config_named(
    hub: Hub, model: str, listing: Listing, deadline: Deadline | None, *, name: str = local.CONFIG_NAME
) -> Mapping[str, Any] | None:
    """The JSON object in a file of the repository; None if it has no such file, or without a deadline, if none is kept here."""
    named = listing.file(name)
    if named is None:
        return None
    if (kept := hub_headers.read_kept(hub, model, named)) is not None:
        return _parsed_config(kept, name)
    if deadline is None:
        return None
    url = hub.file_url(model, listing.revision, named.name)
    answer = fetch(hub.get, url, limit=LONGEST_CONFIG_BYTES + 1, deadline=deadline)
    if not answer.ok:
        raise hub.refusal(answer, model=model, revision=listing.revision, file=named.name)
    config = _parsed_config(answer.body, name)
    _keep_config(hub, model, named, answer.body)
    return config


def _parsed_config(content: bytes, name: str = local.CONFIG_NAME) -> Mapping[str, Any]:
    if len(content) > LONGEST_CONFIG_BYTES:
        raise MalformedError("json_over_cap", file=name, cap=LONGEST_CONFIG_BYTES)
    return local.parse_config(parse_json(content, file=name), file=name)


def _keep_config(hub: Hub, model: str, named: ListedFile | None, content: bytes) -> None:
    if named and named.size_bytes in (None, len(content)):
        hub_headers.keep(hub, model, named, content)


def weight_files(listing: Listing) -> tuple[ListedFile, ...]:
    """The model's safetensors files: the single file, else the shards, else all in the top folder."""
    top = {file.name: file for file in listing.files if "/" not in file.name and file.name.endswith(".safetensors")}
    if single := top.get(local.SINGLE_NAME):
        return (single,)
    shards = {name: match for name in top if (match := SHARD.fullmatch(name)) and match["stem"] == "model"}
    if shards:
        return tuple(top[name] for name in sorted(shards))
    return tuple(file for name, file in sorted(top.items()) if name != "adapter_model.safetensors")


def missing_shards(files: Sequence[ListedFile]) -> list[str]:
    """The names of missing shards, by the count in the shards' names (-00001-of-00008)."""
    matches = [match for file in files if (match := SHARD.fullmatch(file.name))]
    if not matches or len(matches) != len(files):
        return []
    count = max(int(match["count"]) for match in matches)
    present = {int(match["number"]) for match in matches}
    if count > 100_000:
        raise MalformedError("listing_shard_count", file=files[0].name, found=count)
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1) if number not in present]


def _checkpoint(
    hub: Hub,
    ref: ModelRef,
    listing: Listing,
    config: Mapping[str, Any] | None,
    deadline: Deadline,
    progress: Progress,
    *,
    headers: bool,
) -> Checkpoint:
    if config is None and listing.file(adapter.CONFIG_NAME) and listing.file(adapter.WEIGHTS_NAME):
        return _adapter_checkpoint(hub, ref, listing, deadline)
    if _is_gguf(listing, ref):
        return _gguf_checkpoint(hub, ref, listing, deadline, progress)
    files = weight_files(listing)
    if missing := missing_shards(files):
        raise NotFoundError("hub_shards_missing", missing=len(missing), file=missing[0])
    notices = [*hub.notices(), *listing.remarks]
    if not files:
        notices.append(_no_weights(listing, config, ref))
    beside = _quantisation_file(listing, config)
    declared = None if beside is None else config_named(hub, ref.id, listing, deadline, name=beside.name)
    checkpoint = Checkpoint(
        ref=replace(ref, source=hub.source, revision=listing.revision),
        config=config,
        tensors=None,
        files=tuple(StoredFile(file.name, file.size_bytes or 0, file.sha256) for file in files),
        quantisation_file=None if beside is None or declared is None else (beside.name, declared),
        hub_count=HubCount(elements=listing.elements) if files and listing.elements is not None else None,
        notices=tuple(notices),
    )
    if not files:
        return checkpoint
    if not (headers or all(hub_headers.is_kept(hub, ref.id, file) for file in files)) and _is_counted(listing, files):
        count = _hub_count(hub, ref.id, listing, config, deadline)
        if count is not None:
            return replace(checkpoint, hub_count=count)
    read = hub_headers.read_all(hub, ref.id, listing, files, deadline, progress)
    tensors = tuple(tensor for _, file_tensors in read for tensor in file_tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedError("tensor_in_two_files", tensor=local.first_repeated(tensors))
    stored = tuple(StoredFile(file.name, size, file.sha256) for file, (size, _) in zip(files, read, strict=True))
    if listing.index is not None:
        notices += local.index_totals(listing.index, tensors, stored, file=local.INDEX_NAME)
    notices += _count_differs(hub, listing, tensors)
    return replace(checkpoint, tensors=tensors, files=stored, notices=tuple(notices))


# --- what a hub itself says of the tensors, so that no header need be read

INDEX_HEAD_BYTES = 4096  # transformers writes the index with sorted keys, so that its metadata comes first
TOTAL_SIZE = re.compile(rb'^\s*\{\s*"metadata"\s*:\s*\{[^{}]*"total_size"\s*:\s*(\d{1,18})(?:\.0)?\s*[,}]')


def _is_counted(listing: Listing, files: Sequence[ListedFile]) -> bool:
    """Whether the hub may say what several safetensors files hold: it counts them, or they have an index."""
    weights = [file for file in files if file.name.endswith(".safetensors")]
    known = listing.elements is not None or listing.file(local.INDEX_NAME) is not None
    return known and len(weights) > 1 and all(file.size_bytes is not None for file in weights)


def _files_of_count(listing: Listing, config: Mapping[str, Any] | None) -> list[ListedFile]:
    """The files that a hub's count needs: the index if the hub itself counts nothing, the first file if it decides the dtype."""
    index = listing.file(local.INDEX_NAME) if listing.elements is None else None
    first = None if config is None or names_dtype(config) else weight_files(listing)[0]
    return [file for file in (index, first) if file is not None]


def _hub_count(
    hub: Hub, model: str, listing: Listing, config: Mapping[str, Any] | None, deadline: Deadline
) -> HubCount | None:
    """The hub's count of the tensors in several files, in at most two requests; None if it has none that can be used."""
    elements, size_bytes = listing.elements, None
    first: tuple[Tensor, ...] = ()
    for file in _files_of_count(listing, config):
        if file.name == local.INDEX_NAME:
            size_bytes = _index_total(hub, model, listing, file, deadline)
        else:
            ((_, first),) = hub_headers.read_all(hub, model, listing, [file], deadline, lambda done, total: None)
    if elements is None and size_bytes is None:
        return None
    return HubCount(elements=elements, size_bytes=size_bytes, first=first)


def _index_total(hub: Hub, model: str, listing: Listing, index: ListedFile, deadline: Deadline) -> int | None:
    """`total_size` of the index, from its first bytes; None if it is not there."""
    head = hub_headers.read_kept(hub, model, index)
    if head is None:
        url = hub.file_url(model, listing.revision, index.name)
        try:
            _, span = fetch_span(hub.get, url, 0, INDEX_HEAD_BYTES, deadline=deadline, file=index.name)
        except NetworkError:
            return None
        if span is None:
            return None
        head = span.content
        hub_headers.keep(hub, model, index, head)
    match = TOTAL_SIZE.match(head)
    return int(match[1]) if match else None


def _count_differs(hub: Hub, listing: Listing, tensors: Sequence[Tensor]) -> tuple[Message, ...]:
    """A notice if the hub counts other numbers than the headers show. Packed formats are counted in several ways."""
    dtypes = {tensor.dtype for tensor in tensors}
    if listing.elements is None or not dtypes <= {*MODEL_DTYPES}:
        return ()
    stated, expected = sum(listing.elements.values()), sum(tensor.elements for tensor in tensors)
    if stated == expected:
        return ()
    return (Message("hub_count_differs", hub=Message(f"source_{hub.source}"), found=stated, expected=expected),)


def _quantisation_file(listing: Listing, config: Mapping[str, Any] | None) -> ListedFile | None:
    """The file that declares the quantisation, if config.json does not."""
    if config is None or declares_quantisation(config):
        return None
    return next((file for name in FILES if (file := listing.file(name)) is not None), None)


def _adapter_checkpoint(hub: Hub, ref: ModelRef, listing: Listing, deadline: Deadline) -> Checkpoint:
    """The adapter's own tensors; the caller loads its base model."""
    config = config_named(hub, ref.id, listing, deadline, name=adapter.CONFIG_NAME) or {}
    weights = listing.file(adapter.WEIGHTS_NAME)
    assert weights is not None
    ((size, tensors),) = hub_headers.read_all(hub, ref.id, listing, [weights], deadline, lambda done, total: None)
    return Checkpoint(
        ref=replace(ref, source=hub.source, revision=listing.revision),
        config=None,
        tensors=None,
        files=(StoredFile(weights.name, size, weights.sha256),),
        adapter=adapter.read_adapter(config, tensors),
        notices=(*hub.notices(), *listing.remarks),
    )


def _no_weights(listing: Listing, config: Mapping[str, Any] | None, ref: ModelRef) -> Message:
    """The notice for a repository without safetensors weights; NotFoundError if it holds no model at all."""
    names = [file.name for file in listing.files]
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return Message("gguf_beside", example=ref.of_file(gguf[0]))
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth")) and "/" not in name]:
        return Message("pickled_only", file=pickled[0])
    if config is None:
        raise NotFoundError("hub_no_model", model=ref.id)
    return Message("config_alone", path=ref.id)


def _is_gguf(listing: Listing, ref: ModelRef) -> bool:
    """Whether to read a GGUF file: the reference names a file, or the repository holds nothing else."""
    if ref.file is not None:
        return True
    return (
        listing.file(local.CONFIG_NAME) is None
        and not weight_files(listing)
        and any(file.name.endswith(".gguf") for file in listing.files)
    )


def _gguf_files(listing: Listing, ref: ModelRef) -> list[ListedFile]:
    by_name = {file.name: file for file in listing.files if file.name.endswith(".gguf")}
    return [by_name[name] for name in gguf_header.choose(by_name, ref)]


def _gguf_checkpoint(hub: Hub, ref: ModelRef, listing: Listing, deadline: Deadline, progress: Progress) -> Checkpoint:
    """A GGUF file's metadata and tensors, from its header alone."""
    files = _gguf_files(listing, ref)

    def job(file: ListedFile) -> Callable[[], tuple[int, gguf_header.GgufHeader]]:
        return lambda: hub_headers.read_gguf(hub, ref.id, listing.revision, file, deadline)

    outcomes = in_parallel([job(file) for file in files], deadline=deadline, progress=progress)
    for error in outcomes.errors:
        if error is not None:
            raise error
    read = [result for result in outcomes.results if result is not None]
    if len(read) < len(files):
        names = ", ".join(file.name for file in files[:5])
        raise NetworkError("hub_headers_missing", missing=len(files) - len(read), files=len(files), names=names)
    metadata, tensors = gguf_header.merged([header for _, header in read], file=files[0].name)
    return Checkpoint(
        ref=replace(ref, source=hub.source, revision=listing.revision),
        config=metadata,
        tensors=tensors,
        files=tuple(StoredFile(file.name, size) for file, (size, _) in zip(files, read, strict=True)),
        gguf=True,
        notices=(*hub.notices(), *listing.remarks),
    )


def _written(listing: Listing) -> dict[str, Any]:
    files = [[file.name, file.size_bytes, file.key] for file in listing.files]
    return {
        "revision": listing.revision,
        "files": files,
        "elements": listing.elements,
        "left_out": listing.left_out,
    }


def _read_back(kept: Mapping[str, Any]) -> Listing:
    """A cached listing, checked like one from the network."""
    files = tuple(
        ListedFile(name=name, size_bytes=size, key=key)
        for name, size, key in kept["files"]
        if is_safe_name(name) and (size is None or type(size) is int) and (key is None or header_cache.is_key(key))
    )
    return Listing(
        revision=str(kept["revision"]),
        files=files,
        elements=counted_elements(kept.get("elements")),
        left_out=int(kept.get("left_out", 0)),
    )


def counted_elements(stated: object) -> Mapping[str, int] | None:
    """A hub's numbers by dtype's code; None if it states none that can be used."""
    if not isinstance(stated, Mapping) or not stated:
        return None
    if not all(code in DTYPE_OF_CODE and type(count) is int and 0 <= count < 1 << 62 for code, count in stated.items()):
        return None
    return dict(stated)
