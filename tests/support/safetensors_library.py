"""Headers read by us and by the safetensors library, and the differences between the two, each decided (docs/security.md)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors import SafetensorError, deserialize

from qwen_inspect.errors import MalformedError, UnsupportedError
from qwen_inspect.loaders.safetensors_header import LONGEST_HEADER_BYTES, read_header

Read = dict[str, tuple[str, tuple[int, ...]]]
LARGEST_SIZE = (1 << 63) - 1  # of torch's and numpy's dimensions


def read(content: bytes) -> Read:
    tensors = read_header(io.BytesIO(content), file="model.safetensors", file_bytes=len(content))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: (tensor.dtype.code, tensor.shape) for tensor in tensors}


def read_by_library(content: bytes) -> Read | None:
    """What the safetensors library reads; None where it refuses."""
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries}


def difference(content: bytes) -> str | None:
    """Why the library reads a file that we refuse; None if both read the same or both refuse. Anything else is a fault."""
    return judged(content)[1]


def judged(content: bytes) -> tuple[int, str | None]:
    """The exit code of our answer, and its difference to the library's."""
    code = 0
    try:
        ours: Read | None = read(content)
    except (MalformedError, UnsupportedError) as error:
        ours, code = None, error.exit_code
    theirs = read_by_library(content)
    if ours == theirs:
        return code, None
    assert ours is None, "read here, and not by the library"
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    name = next((name for name, applies in DIFFERENCES.items() if applies(header)), None)
    assert name is not None, "refused here, read by the library"
    return code, name


def _entries(header: bytes) -> list[Any]:
    entries: dict[str, Any] = json.loads(header)
    return list(entries.values())


def _says_twice(header: bytes) -> bool:
    def is_twice(pairs: list[tuple[str, Any]]) -> bool:
        return len(dict(pairs)) != len(pairs) or any(value is True for _, value in pairs)

    return json.loads(header, object_pairs_hook=is_twice, parse_constant=str) is True


def _fields(header: bytes, field: str) -> list[Any]:
    return [entry.get(field) for entry in _entries(header) if isinstance(entry, dict)]


# Of headers that the library reads and we refuse.
DIFFERENCES: Mapping[str, Callable[[bytes], bool]] = {
    "a header over 25 MB": lambda header: len(header) > LONGEST_HEADER_BYTES,
    "white space before the header": lambda header: header[:1].isspace(),
    "a name twice": _says_twice,
    "an entry that is a list": lambda header: any(isinstance(entry, list) for entry in _entries(header)),
    "a dtype that is an object": lambda header: any(isinstance(dtype, dict) for dtype in _fields(header, "dtype")),
    "a dimension over 2^63 - 1 beside a 0": lambda header: any(
        isinstance(side, int) and side > LARGEST_SIZE for sides in _fields(header, "shape") for side in sides or ()
    ),
}
