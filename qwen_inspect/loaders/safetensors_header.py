"""The header of a safetensors file: 8 bytes of length, then JSON. No tensor data is read.

A header that the safetensors library would refuse is refused here, with the same rules: tensors tile the data without
holes or overlaps. Source: safetensors 0.8, tensor.rs (`SafeTensors::read_metadata`, `Metadata::validate`).
"""

from __future__ import annotations

import json
import re
import sys

from ..checkpoint import DTYPE_OF_CODE, Tensor
from ..errors import MalformedError, QwenInspectError, UnsupportedError
from ..typed import Any, BinaryIO
from .strict_json import check_amount, finite, no_number

# huggingface_hub 2.4 refuses longer headers (constants.SAFETENSORS_MAX_HEADER_LENGTH); 36,945 tensors take 4.6 MB.
LONGEST_HEADER_BYTES = 25_000_000
LENGTH_BYTES = 8
LARGEST = 1 << 63  # above every offset and every dimension
LARGEST_PRODUCT = 1 << 64  # of dimensions, one of which may be 0: the library's usize
MOST_NESTED = 127  # objects and arrays within each other. Source: serde_json 1.0, de.rs (its limit of recursion)
FIELDS = 3  # of an entry
MINUS_ZERO = re.compile(r"[\[,:\s]-0(?![0-9.eE])")


def read_header(stream: BinaryIO, *, file: str, file_bytes: int) -> tuple[Tensor, ...]:
    """The tensors of a file of `file_bytes` bytes; reads only the header. `file` names it in errors."""
    header_bytes = header_length(stream.read(LENGTH_BYTES), file=file, file_bytes=file_bytes)
    header = stream.read(header_bytes)
    return parse_header(header, file=file, data_bytes=file_bytes - LENGTH_BYTES - header_bytes)


def header_length(prefix: bytes, *, file: str, file_bytes: int) -> int:
    """The header length stated by the first 8 bytes; MalformedError if it is over the cap or exceeds the file."""
    if len(prefix) < LENGTH_BYTES:
        raise MalformedError("safetensors_too_short", file=file, found=len(prefix))
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > LONGEST_HEADER_BYTES:
        raise MalformedError("safetensors_header_over_cap", file=file, found=length, cap=LONGEST_HEADER_BYTES)
    if length > file_bytes - LENGTH_BYTES:
        raise MalformedError(
            "safetensors_header_truncated", file=file, found=file_bytes - LENGTH_BYTES, expected=length
        )
    return length


def parse_header(header: bytes, *, file: str, data_bytes: int) -> tuple[Tensor, ...]:
    """The tensors that `header` describes, in the order it lists them, checked to tile exactly `data_bytes` bytes."""
    entries = _entries(header, file)
    placed = []
    for name, entry in entries.items():
        try:
            begin, end = entry["data_offsets"]
            dtype, sides = DTYPE_OF_CODE[entry["dtype"]], entry["shape"]
            elements = _elements(sides)
        except (KeyError, TypeError, ValueError):
            raise _bad_entry(name, entry, file) from None
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < LARGEST:
            raise _bad_entry(name, entry, file)
        if (end - begin) * 8 != elements * dtype.bits:
            raise MalformedError(
                "safetensors_shape_mismatch",
                file=file,
                tensor=name,
                shape=sides,
                dtype=dtype.code,
                found=end - begin,
            )
        placed.append((begin, end, Tensor(name, tuple(sides), dtype, file)))
    end_of_last = 0
    for begin, end, tensor in sorted(placed, key=lambda item: item[:2]):
        if begin != end_of_last:
            raise MalformedError(
                "safetensors_not_tiled", file=file, tensor=tensor.name, found=begin, expected=end_of_last
            )
        end_of_last = end
    if end_of_last != data_bytes:
        raise MalformedError("safetensors_data_size", file=file, expected=end_of_last, found=data_bytes)
    return tuple(tensor for _, _, tensor in placed)


def _elements(sides: Any) -> int:
    """The elements of a shape, at most LARGEST_PRODUCT: it stops there, for 50,000 dimensions would take seconds.

    Raises TypeError or ValueError if `sides` is no list of sizes.
    """
    if type(sides) is not list:
        raise TypeError(sides)
    product = 1
    for side in sides:
        if type(side) is not int or not 0 <= side < LARGEST:
            raise ValueError(side)
        product *= side
        if product >= LARGEST_PRODUCT:
            return LARGEST_PRODUCT
    return product


def _entries(header: bytes, file: str) -> dict[str, Any]:
    """The header's entries without `__metadata__`, which must map strings to strings."""
    if not header.startswith(b"{"):
        raise MalformedError("safetensors_not_json", file=file)
    check_amount(header, file=file)
    try:
        text = header.decode("utf-8")
        hooks: dict[str, Any] = {"parse_constant": no_number, "parse_float": finite}
        hooks["object_pairs_hook"] = lambda pairs: _unique(pairs, file)
        if "-0" in text and MINUS_ZERO.search(text):  # perhaps inside a name: the slow parser decides
            hooks["parse_int"] = _size
        entries: dict[str, Any] = json.loads(text, **hooks)
        for entry in entries.values():
            if isinstance(entry, dict) and len(entry) > FIELDS:
                _check_values(entry, 2)
    except UnicodeDecodeError:
        raise MalformedError("safetensors_not_utf8", file=file) from None
    except (ValueError, RecursionError):  # not JSON, an integer of more than 4,300 digits, or nested beyond reason
        raise MalformedError("safetensors_not_json", file=file) from None
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("safetensors_metadata", file=file)
    try:
        "".join([*entries, *metadata, *metadata.values()]).encode()
    except UnicodeEncodeError:
        raise MalformedError("safetensors_name_surrogate", file=file) from None
    return entries


def _size(text: str) -> int | float:
    """An integer; -0 is a float, as to the library, and no size."""
    return -0.0 if text == "-0" else int(text)


def _check_values(value: Any, level: int) -> None:
    """ValueError for what the library refuses even in a field that it does not read."""
    if isinstance(value, str):
        value.encode()  # lone surrogates
    elif isinstance(value, int):
        if abs(value) > sys.float_info.max:
            raise ValueError(value)
    elif isinstance(value, dict | list):
        if level > MOST_NESTED:
            raise ValueError(level)
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(part, level + 1)


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise MalformedError("safetensors_duplicate", file=file, tensor=name)
            seen.add(name)
    return unique


def _bad_entry(name: str, entry: Any, file: str) -> QwenInspectError:
    """The error for the first of an entry's three fields that is invalid."""

    def is_size(value: object) -> bool:
        return type(value) is int and 0 <= value < LARGEST

    fields = entry if isinstance(entry, dict) else {}
    offsets, shape, code = fields.get("data_offsets"), fields.get("shape"), fields.get("dtype")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)) or offsets[0] > offsets[1]:
        return MalformedError("safetensors_bad_entry", file=file, tensor=name, field="data_offsets")
    if not isinstance(shape, list) or not all(map(is_size, shape)):
        return MalformedError("safetensors_bad_entry", file=file, tensor=name, field="shape")
    if isinstance(code, str):
        return UnsupportedError("safetensors_unknown_dtype", file=file, tensor=name, found=code)
    return MalformedError("safetensors_bad_entry", file=file, tensor=name, field="dtype")
