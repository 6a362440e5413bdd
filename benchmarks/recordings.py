"""Runs that a GPU's allocator recorded: every request and every segment, in files of about a kilobyte (benchmarks/recorded).

A file is xz: a line of JSON (what ran, on what, and each stage's figures), then the run as varints (base 128, lowest first):
0: free segments are given back (`empty_cache`); 2 n + 1: a request of the n-th of `sizes`; 2 n + 2: the request that is
n-th from the latest of those alive is freed. Addresses of blocks are kept as a digest of each stage, those of segments whole.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "recorded"
# What a run is asked for; a file names what it was told.
# load: random | file (read with device_map; another process writes it). quant: nf4 | nf4double | int8, of a file. layers: so
# many only. cache: static. side: of the image. optimizer: foreach | fused | for_loop | sgd | adamw8bit.
OPTIONS: dict[str, Any] = {
    "context": 1024, "new": 8, "batch": 1, "optimizer": "foreach", "checkpointing": 0, "lora": 0, "layers": 0,
    "attention": "sdpa", "load": "random", "dtype": "bfloat16", "targets": "all-linear", "quant": "", "cache": "",
    "accumulate": 1, "side": 1024,
}  # fmt: skip
EMPTY = None  # in an order: `empty_cache`


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What came before `last`, the index of an entry of the order. Bytes; peaks are those of this stage.

    addresses: the digest of all its blocks' addresses. process: of this process, as NVML tells; None where it does not.
    """

    name: str
    last: int
    allocated: int
    allocated_peak: int
    reserved: int
    reserved_peak: int
    process: int | None
    addresses: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run of `model` (of so many `layers`, where `options` names them). versions: torch's, transformers', CUDA's, the driver's.

    order: n makes the n-th request, -1 - n frees it, EMPTY gives free segments back. requests: bytes of each. segments: address
    and bytes of each, in the order in which the driver gave them. workspaces: what cuBLAS's gave back in the end.
    """

    name: str
    model: str
    workload: Literal["generate", "padded", "image", "forward", "train", "autocast"]
    options: Mapping[str, Any]
    card: str
    versions: Mapping[str, str]
    workspaces: int
    order: tuple[int | None, ...]
    requests: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    stages: tuple[Stage, ...]


def digest(addresses: Iterable[int]) -> str:
    return sha256(b"".join(address.to_bytes(8, "little") for address in addresses)).hexdigest()[:16]


def each(card: str = "h100") -> Iterator[Recording]:
    """All recordings of one card, by name."""
    for path in sorted((FOLDER / card).glob("*.xz")):
        yield read(path)


def read(path: Path) -> Recording:
    header, _, content = lzma.decompress(path.read_bytes()).partition(b"\n")
    found = json.loads(header)
    sizes = found.pop("sizes")
    requests: list[int] = []
    alive: list[int] = []
    order: list[int | None] = []
    for number in _numbers(content):
        if number == 0:
            order.append(EMPTY)
        elif number % 2:
            alive.append(len(requests))
            order.append(len(requests))
            requests.append(sizes[number // 2])
        else:
            order.append(-1 - alive.pop(-(number // 2)))
    segments = tuple((address, size) for address, size in found.pop("segments"))
    stages = tuple(Stage(**stage) for stage in found.pop("stages"))
    found["options"] = OPTIONS | found["options"]
    return Recording(**found, order=tuple(order), requests=tuple(requests), segments=segments, stages=stages)


def pack(raw: Mapping[str, Any], *, model: str, driver: str) -> bytes:
    """The file of what benchmarks/gpu/record.py has noted."""
    sizes: dict[int, int] = {}
    alive: list[int] = []
    content = bytearray()
    segments, stages = [], []
    addresses: list[int] = []
    entries = 0
    ends = iter([*raw["stages"], None])
    stage = next(ends)
    before = ""
    for index, (action, size, address, _) in enumerate([*raw["events"], ("end", 0, 0, 0)]):
        while stage is not None and stage[1] == index:
            stages.append(_stage(stage, entries, digest(addresses)))
            addresses.clear()
            stage = next(ends)
        number = -1
        if action == "segment_alloc":
            segments.append((address, size))
        elif action == "segment_free" and before != action:
            number = 0
        elif action == "alloc":
            number = 2 * sizes.setdefault(size, len(sizes)) + 1
            alive.append(address)
            addresses.append(address)
        elif action == "free_completed":
            rank = next(rank for rank, other in enumerate(reversed(alive), 1) if other == address)
            del alive[-rank]
            number = 2 * rank
        if number >= 0:
            entries += 1
            content += _varint(number)
        before = action
    header = {
        "name": raw["name"],
        "model": model,
        "workload": raw["workload"],
        "options": raw["options"],
        "card": raw["device"],
        "versions": {**{name: raw[name] for name in ("torch", "transformers", "cuda")}, "driver": driver},
        "workspaces": raw["workspaces"],
        "sizes": list(sizes),
        "segments": segments,
        "stages": stages,
    }
    line = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    return lzma.compress(line + bytes(content), preset=9 | lzma.PRESET_EXTREME)


def pack_file(source: Path, target: Path, *, model: str, driver: str) -> None:
    """The same of a file that a recording was written to whole: JSON, gzipped."""
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        target.write_bytes(pack(json.load(stream), model=model, driver=driver))


def _stage(stage: Sequence[Any], last: int, addresses: str) -> dict[str, Any]:
    name, _, figures, process = stage[:4]
    return {
        "name": name,
        "last": last,
        "allocated": figures["allocated_bytes.all.current"],
        "allocated_peak": figures["allocated_bytes.all.peak"],
        "reserved": figures["reserved_bytes.all.current"],
        "reserved_peak": figures["reserved_bytes.all.peak"],
        "process": process if isinstance(process, int) else None,
        "addresses": addresses,
    }


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _numbers(content: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in content:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
