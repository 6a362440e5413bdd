"""What the two hubs hold: files (real, or a header and a hole), commits and repositories."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

CHUNK_BYTES = 64 * 1024
HASHED_BYTES_MAX = 64 * 1024**2  # Larger files get a stand-in digest, so they must never be downloaded whole.
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".onnx", "tokenizer.json")
DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "BOOL": 1}


@dataclass(frozen=True)
class HubFile:
    """One file: `content`, or what lies at `path` (sparse or not), then zeros up to `total_bytes`, stored nowhere."""

    content: bytes = b""
    path: Path | None = None
    total_bytes: int | None = None
    listed_bytes: int | None = None  # the size that listings claim, where it should differ from the truth
    lfs: bool | None = None  # None: by the name's suffix, as .gitattributes does

    @cached_property
    def stored_bytes(self) -> int:
        return self.path.stat().st_size if self.path else len(self.content)

    @property
    def size(self) -> int:
        return self.stored_bytes if self.total_bytes is None else self.total_bytes

    @property
    def listed(self) -> int:
        return self.size if self.listed_bytes is None else self.listed_bytes

    @cached_property
    def sha256(self) -> str:
        if self.size <= HASHED_BYTES_MAX:
            return hashlib.sha256(self.read(0, self.size)).hexdigest()
        return hashlib.sha256(b"stand-in" + self.read(0, 1024**2) + str(self.size).encode()).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        pointer = b"oid sha256:" + self.sha256.encode()
        stored = self.read(0, self.size) if self.size <= 1024**2 else pointer
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def is_lfs(self, name: str) -> bool:
        return name.endswith(LFS_SUFFIXES) if self.lfs is None else self.lfs

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self.chunks(start, stop))

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes in [start, stop), lazily, so that a 10 GB hole costs one buffer."""
        stop = min(stop, self.size)
        for offset in range(start, stop, CHUNK_BYTES):
            end = min(offset + CHUNK_BYTES, stop)
            stored = self.content[offset:end]
            if self.path and offset < self.stored_bytes:
                with self.path.open("rb") as stream:
                    stream.seek(offset)
                    stored = stream.read(end - offset)
            yield stored.ljust(end - offset, b"\0")

    def safetensors_header(self) -> dict[str, Any]:
        """The header's entries, or nothing where there is no such header: live hubs do not index a broken file."""
        length = int.from_bytes(self.read(0, 8), "little")
        return parsed_object(self.read(8, 8 + length)) if length <= self.stored_bytes else {}


FileLike = HubFile | bytes | Path


def safetensors_file(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> HubFile:
    """A valid safetensors file of (dtype, shape) tensors, whose data is one hole."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # safetensors pads with spaces to 8 bytes
    return HubFile(len(header).to_bytes(8, "little") + header, total_bytes=8 + len(header) + end)


@dataclass(frozen=True)
class Commit:
    sha: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, sha: str, files: Mapping[str, FileLike]) -> Commit:
        wrapped = {name: HubFile(path=file) if isinstance(file, Path) else file for name, file in files.items()}
        return cls(sha, {name: HubFile(file) if isinstance(file, bytes) else file for name, file in wrapped.items()})

    @cached_property
    def safetensors(self) -> dict[str, Any] | None:
        """{"parameters": {dtype: count}, "total": count} as the hub counts: stored tensors, tied copies included."""
        headers = (file.safetensors_header() for name, file in self.files.items() if name.endswith(".safetensors"))
        counts: dict[str, int] = {}
        try:
            for entry in (value for header in headers for name, value in header.items() if name != "__metadata__"):
                counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + math.prod(entry["shape"])
        except (KeyError, TypeError):
            return None  # A test's malformed header: the hub has no figures for it.
        return {"parameters": counts, "total": sum(counts.values())} if counts else None


@dataclass
class HubRepo:
    """One model repository, the same on both hubs: `main` on Hugging Face is `master` on ModelScope."""

    id: str
    files: Mapping[str, FileLike]
    sha: str = ""
    tags: Mapping[str, Mapping[str, FileLike]] = field(default_factory=dict)  # other revisions, with their own files
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    readers: frozenset[str] = frozenset()  # the tokens that may read a private or gated repository
    extra_listing: tuple[str, ...] = ()  # names that listings show and no file backs, e.g. "../outside.json"
    extra_info: Mapping[str, Any] = field(default_factory=dict)  # more keys of /api/models/{id}, e.g. {"gguf": {...}}

    def __post_init__(self) -> None:
        self.sha = self.sha or hashlib.sha1(self.id.encode()).hexdigest()
        self.head = Commit.of(self.sha, self.files)
        shas = {tag: hashlib.sha1(f"{self.id}@{tag}".encode()).hexdigest() for tag in self.tags}
        self.tagged = {tag: Commit.of(shas[tag], files) for tag, files in self.tags.items()}

    def at(self, revision: str, *, branch: str) -> Commit | None:
        """The commit that a branch, a tag or a full sha names."""
        names = {branch: self.head, self.sha: self.head, **self.tagged}
        return names.get(revision) or next((c for c in self.tagged.values() if c.sha == revision), None)

    def listing(self, commit: Commit) -> Iterator[tuple[str, HubFile | None]]:
        """Every file, then every folder (None)."""
        files = {**commit.files, **dict.fromkeys(self.extra_listing, HubFile())}
        yield from files.items()
        parts = [name.split("/") for name in commit.files]
        folders = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names))}
        yield from ((folder, None) for folder in sorted(folders))


def parsed_object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` holds, or an empty one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
