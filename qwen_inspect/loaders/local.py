"""Reads a directory, a config.json, a safetensors or a GGUF file into a Checkpoint, from the headers alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..checkpoint import Checkpoint, DType, ModelRef, StoredFile, Tensor
from ..declarations import FILES, declares_quantisation
from ..errors import MalformedError, NotFoundError, UnsupportedError
from ..language import Message
from ..typed import Any, BinaryIO
from ..values import replace
from . import adapter, gguf_header
from .regular import open_regular, read_regular
from .safetensors_header import LENGTH_BYTES, LONGEST_HEADER_BYTES, read_header
from .strict_json import LONGEST_JSON_BYTES, parse_json

CONFIG_NAME = "config.json"
# transformers looks for the single file first. Source: transformers 5.23, modeling_utils._get_resolved_checkpoint_files.
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def load(ref: ModelRef, *, partial: bool) -> Checkpoint:
    """Everything that can be read at `ref.path`. With `partial`, missing shards are recorded instead of refused."""
    assert ref.path is not None
    checkpoint = _load(ref, ref.path, partial=partial)
    directory = ref.path if os.path.isdir(ref.path) else ref.path.parent
    if checkpoint.config is None or checkpoint.gguf or declares_quantisation(checkpoint.config):
        return checkpoint
    name = next((name for name in FILES if os.path.isfile(directory / name)), None)
    return checkpoint if name is None else replace(checkpoint, quantisation_file=(name, read_config(directory / name)))


def _load(ref: ModelRef, path: Path, *, partial: bool) -> Checkpoint:
    if os.path.isdir(path):
        return _load_directory(ref, path, partial=partial)
    if not os.path.exists(path):
        raise NotFoundError("path_missing", path=ref.id)
    match _kind(path):
        case "gguf":
            parts = [path.name]
            if gguf_header.SPLIT.fullmatch(path.name):
                parts = [*gguf_header.choose(_with_suffix(_listed(path.parent, ref)), replace(ref, file=path.name))]
            return _load_gguf(ref, path.parent, parts)
        case "safetensors":
            return _load_file(ref, path)
        case "json":
            alone = Message("config_alone", path=ref.id)
            return Checkpoint(ref=ref, config=read_config(path), tensors=None, notices=(alone,))
        case _:
            raise UnsupportedError("path_kind_unknown", path=ref.id)


def _kind(path: Path) -> str | None:
    """The kind of a file: "gguf" by its first bytes (Ollama's blobs have no suffix), else by its suffix.

    A file with another suffix is "safetensors" if it begins with a plausible header length and a brace. None: unknown.
    """
    try:
        with open_regular(path) as stream:
            size, begin = os.fstat(stream.fileno()).st_size, stream.read(LENGTH_BYTES + 1)
    except OSError as error:
        raise NotFoundError("path_unreadable", path=str(path), reason=error.strerror) from None
    suffix = path.suffix.removeprefix(".")
    if begin.startswith(gguf_header.MAGIC):
        return "gguf"
    if suffix in ("gguf", "safetensors", "json"):
        return suffix
    header_bytes = int.from_bytes(begin[:LENGTH_BYTES], "little")
    fits = 0 < header_bytes <= min(size - LENGTH_BYTES, LONGEST_HEADER_BYTES)
    return "safetensors" if fits and begin.endswith(b"{") else None


def _with_suffix(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".gguf")]


def _gguf_names(directory: Path, names: Iterable[str]) -> list[str]:
    """The names of GGUF files: by suffix, or by their first bytes if none has the suffix."""
    return _with_suffix(names) or [name for name in names if _begins_as_gguf(directory / name)]


def _begins_as_gguf(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            return stream.read(len(gguf_header.MAGIC)) == gguf_header.MAGIC
    except OSError:  # a folder, a pipe, or no permission
        return False


def _load_directory(ref: ModelRef, directory: Path, *, partial: bool) -> Checkpoint:
    names = sorted(_listed(directory, ref))
    config = read_config(directory / CONFIG_NAME) if CONFIG_NAME in names else None
    weights = [name for name in names if name.endswith(".safetensors")]
    blocks = _with_suffix(names)
    if ref.file is not None or (config is None and not weights):
        blocks = _gguf_names(directory, names)
    if ref.file is not None or (blocks and config is None and not weights):
        return _load_gguf(ref, directory, gguf_header.choose(blocks, ref))
    if SINGLE_NAME in names:
        return _checkpoint(ref, config, directory, [SINGLE_NAME])
    if INDEX_NAME in names:
        return _load_sharded(ref, config, directory, partial=partial)
    if weights and not (config is None and adapter.CONFIG_NAME in names):
        return _checkpoint(ref, config, directory, weights, Message("no_index", files=len(weights)))
    if config is None and adapter.CONFIG_NAME in names:
        return _load_adapter(ref, directory)
    if config is None:
        raise NotFoundError("directory_empty" if not names else "directory_no_model", path=ref.id)
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    notice = Message("pickled_only", file=pickled[0]) if pickled else Message("config_alone", path=ref.id)
    if blocks:
        notice = Message("gguf_beside", example=ref.of_file(blocks[0]))
    return Checkpoint(ref=ref, config=config, tensors=None, notices=(notice,))


def _load_gguf(ref: ModelRef, directory: Path, names: Iterable[str]) -> Checkpoint:
    headers, files = [], []
    for name in names:
        try:
            with open_regular(directory / name) as stream:
                size = os.fstat(stream.fileno()).st_size
                headers.append(gguf_header.read_header(_reading(stream), file=name, file_bytes=size))
        except OSError as error:
            raise NotFoundError("path_unreadable", path=str(directory / name), reason=error.strerror) from None
        files.append(StoredFile(name, size))
    metadata, tensors = gguf_header.merged(headers, file=files[0].name)
    return Checkpoint(ref=ref, config=metadata, tensors=tensors, files=tuple(files), gguf=True)


def _reading(stream: BinaryIO) -> gguf_header.More:
    def more(start: int, stop: int) -> bytes:
        stream.seek(start)
        return stream.read(stop - start)

    return more


def _load_adapter(ref: ModelRef, directory: Path) -> Checkpoint:
    config = read_config(directory / adapter.CONFIG_NAME)
    stored = _checkpoint(ref, None, directory, [adapter.WEIGHTS_NAME])
    return replace(stored, tensors=None, adapter=adapter.read_adapter(config, stored.tensors or ()))


def _listed(directory: Path, ref: ModelRef) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        raise NotFoundError("path_unreadable", path=ref.id, reason=error.strerror) from None


def _load_file(ref: ModelRef, path: Path) -> Checkpoint:
    """A single weight file, with the config.json beside it if there is one."""
    beside = path.parent / CONFIG_NAME
    config = read_config(beside) if os.path.isfile(beside) else None
    return _checkpoint(ref, config, path.parent, [path.name])


def _load_sharded(ref: ModelRef, config: Mapping[str, Any] | None, directory: Path, *, partial: bool) -> Checkpoint:
    index = read_json(directory / INDEX_NAME)
    shards = read_index(index, file=INDEX_NAME)
    missing = {name: tensors for name, tensors in shards.items() if not os.path.isfile(directory / name)}
    if missing and not partial:
        raise NotFoundError("shards_missing", missing=len(missing), shards=len(shards), file=next(iter(missing)))
    present = [name for name in shards if name not in missing]
    notices = (Message("partial", missing=len(missing), shards=len(shards)),) if missing else ()
    checkpoint = _checkpoint(ref, config, directory, present, *notices, missing=missing)
    check_index(checkpoint.tensors or (), {name: shards[name] for name in present}, file=INDEX_NAME)
    totals = () if missing else index_totals(index, checkpoint.tensors or (), checkpoint.files, file=INDEX_NAME)
    return replace(checkpoint, notices=(*checkpoint.notices, *totals))


def _sha256_from_cache(path: Path) -> str | None:
    """The SHA-256 that huggingface_hub's cache names a weight file by; None for any other file.

    Source: huggingface_hub 2.4, file_download: a snapshot's file links to blobs/ETAG, which is the SHA-256 of a large file.
    """
    blob = Path(os.path.realpath(path))
    is_digest = blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
    return blob.name if is_digest else None


def _checkpoint(
    ref: ModelRef,
    config: Mapping[str, Any] | None,
    directory: Path,
    names: Iterable[str],
    *notices: Message,
    missing: Mapping[str, tuple[str, ...]] | None = None,
) -> Checkpoint:
    tensors: list[Tensor] = []
    files = []
    for name in names:
        try:
            with open_regular(directory / name) as stream:
                size = os.fstat(stream.fileno()).st_size
                tensors.extend(read_header(stream, file=name, file_bytes=size))
        except OSError as error:
            raise NotFoundError("path_unreadable", path=str(directory / name), reason=error.strerror) from None
        files.append(StoredFile(name, size, _sha256_from_cache(directory / name)))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedError("tensor_in_two_files", tensor=first_repeated(tensors))
    return Checkpoint(
        ref=ref,
        config=config,
        tensors=tuple(tensors),
        files=tuple(files),
        missing_files=missing or None,
        notices=notices,
    )


def first_repeated(tensors: Iterable[Tensor]) -> str:
    seen: set[str] = set()
    return next(tensor.name for tensor in tensors if tensor.name in seen or seen.add(tensor.name))  # type: ignore[func-returns-value]


def read_index(index: Any, *, file: str) -> dict[str, tuple[str, ...]]:
    """Each shard that an index names, with its tensors. MalformedError for a name that would leave the directory."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise MalformedError("index_malformed", file=file)
    shards: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        shards.setdefault(name, []).append(tensor)
    for name in shards:
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", "..") or not name.endswith(".safetensors"):
            raise MalformedError("index_path_outside", file=file, found=name)
    return {name: tuple(tensors) for name, tensors in sorted(shards.items())}


def check_index(tensors: Iterable[Tensor], shards: Mapping[str, tuple[str, ...]], *, file: str) -> None:
    """Raises MalformedError if a shard's header does not hold exactly the tensors that the index puts there."""
    stored: dict[str, set[str]] = {name: set() for name in shards}
    for tensor in tensors:
        stored[tensor.file or ""].add(tensor.name)
    for name, expected in shards.items():
        if absent := set(expected) - stored[name]:
            raise MalformedError("index_tensor_absent", file=file, shard=name, tensor=min(absent), count=len(absent))
        if extra := stored[name] - set(expected):
            raise MalformedError("index_tensor_extra", file=file, shard=name, tensor=min(extra), count=len(extra))


# Stored buffers: `num_parameters`, which transformers writes as total_parameters, does not count them.
BUFFERS = ("e_score_correction_bias", "expert_bias", "inv_freq", "running_mean", "running_var", "num_batches_tracked")
DENSE = (DType.BF16, DType.F16, DType.F32, DType.F64)


def index_totals(
    index: Mapping[str, Any], tensors: Sequence[Tensor], files: Sequence[StoredFile], *, file: str
) -> tuple[Message, ...]:
    """A notice for each total of an index that differs from the sum over the files' tensors; none if the index has no totals.

    Also accepted: a tied head that is stored but not counted, the size of the files with their headers, parameters without
    stored buffers. Not checked: total_parameters of packed weights and total_size of bitsandbytes, which vary by library.
    Source: transformers 5.23, modeling_utils.save_pretrained; huggingface_hub 2.4, split_state_dict_into_shards_factory.
    """
    metadata = index.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    copies = [tensor for tensor in tensors if tensor.name == "lm_head.weight"]
    size_bytes, elements = (sum(getattr(tensor, of) for tensor in tensors) for of in ("size_bytes", "elements"))
    buffers = sum(tensor.elements for tensor in tensors if tensor.name.endswith(BUFFERS))
    accepted = {
        "index_total_size": {size_bytes - uncounted for uncounted in (0, *(copy.size_bytes for copy in copies))}
        | {sum(stored_file.size_bytes for stored_file in files)},
        "index_total_parameters": {
            count - uncounted
            for count in (elements, elements - buffers)
            for uncounted in (0, *(copy.elements for copy in copies))
        },
    }
    unchecked = set()
    if any(tensor.dtype not in DENSE for tensor in tensors):
        unchecked.add("index_total_parameters")
    if any("bitsandbytes__" in tensor.name or tensor.name.endswith(".SCB") for tensor in tensors):
        unchecked.add("index_total_size")
    stated = {key: _positive(metadata.get(key.removeprefix("index_"))) for key in accepted.keys() - unchecked}
    return tuple(
        Message(key, file=file, found=stated[key], expected=expected)
        for key, expected in (("index_total_size", size_bytes), ("index_total_parameters", elements))
        if stated.get(key) is not None and stated[key] not in accepted[key]
    )


def _positive(value: object) -> int | None:
    """A total as a positive integer, else None: older indexes hold 0, and some hold a whole number as a float."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else None


def read_config(path: Path) -> Mapping[str, Any]:
    """config.json as written; MalformedError if it is no JSON object."""
    return parse_config(read_json(path), file=path.name)


def parse_config(config: Any, *, file: str) -> Mapping[str, Any]:
    if not isinstance(config, dict):
        raise MalformedError("json_not_object", file=file, found=type(config).__name__)
    return config


def read_json(path: Path) -> Any:
    try:
        content = read_regular(path, cap=LONGEST_JSON_BYTES)
    except OSError as error:
        raise NotFoundError("path_unreadable", path=str(path), reason=error.strerror) from None
    return parse_json(content, file=path.name)
