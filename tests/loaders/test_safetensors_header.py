"""The safetensors reader against the safetensors library: what it accepts reads the same, all else is refused in time."""

from __future__ import annotations

import io
import json
import os
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file as save_numpy

from qwen_inspect import MalformedError, QwenInspectError
from qwen_inspect.checkpoint import DTYPE_OF_CODE, DType, Tensor
from qwen_inspect.loaders.safetensors_header import LONGEST_HEADER_BYTES, read_header
from qwen_inspect.structure.inspect import inspect

from ..support.invoking import HOSTILE, LONGEST_LINE, Capture, refusal, write_bytes
from ..support.models import header_of
from ..support.safetensors_library import DIFFERENCES, Read, difference, read, read_by_library

PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SMALL = (
    Tensor("a", (2, 3), DType.F32),
    Tensor("b", (), DType.I64),
    Tensor("c", (0, 4), DType.BF16),
    Tensor("d", (4,), DType.F4),
)


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def written(entries: Mapping[str, Any], data_bytes: int = 8) -> bytes:
    return framed(json.dumps(entries).encode(), bytes(data_bytes))


def edited(**fields: object) -> bytes:
    """A file of one tensor, two floats, with some fields of its entry replaced."""
    return written({"a": {**PAIR, **fields}})


def two(first: Sequence[int], second: Sequence[int], data_bytes: int = 16) -> bytes:
    """Two tensors of two floats each, at these offsets."""
    return written({"a": {**PAIR, "data_offsets": first}, "b": {**PAIR, "data_offsets": second}}, data_bytes)


# --- what is refused -----------------------------------------------------------------------------------------------

VALID = written({"a": PAIR})
REFUSED: Mapping[str, bytes] = {
    "an empty file": b"",
    "a file of 7 bytes": b"\x02" + bytes(6),
    "a length and no header": (8).to_bytes(8, "little"),
    "an empty header": framed(b""),
    "a header cut short": VALID[:20],
    "a header longer than the file": (len(VALID) - 7).to_bytes(8, "little") + VALID[8:],
    "a length of 2^63": (1 << 63).to_bytes(8, "little") + VALID[8:],
    "a length of 2^64 - 1": b"\xff" * 8 + VALID[8:],
    "a length in the wrong byte order": len(VALID).to_bytes(8, "big") + VALID[8:],
    "a header that is not UTF-8": framed(VALID[8:-8].replace(b'"a"', b'"\xff"'), bytes(8)),
    "a surrogate in UTF-8": framed(VALID[8:-8].replace(b'"a"', b'"\xed\xa0\x80"'), bytes(8)),
    "a header in UTF-16": framed(VALID[8:-8].decode().encode("utf-16"), bytes(8)),
    "a header with a byte order mark": framed(b"\xef\xbb\xbf" + VALID[8:-8], bytes(8)),
    "a header that is not JSON": framed(b"{not json}"),
    "a header that ends early": framed(VALID[8:-9], bytes(8)),
    "a header with a second object": framed(VALID[8:-8] + b"{}", bytes(8)),
    "a header padded with NUL": framed(VALID[8:-8] + b"\0", bytes(8)),
    "an array": framed(b"[]"),
    "a string": framed(b'"a"'),
    "null": framed(b"null"),
    "a number": framed(b"1"),
    "deeply nested arrays": framed(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deeply nested objects": framed(b'{"a":' * 200_000 + b"0" + b"}" * 200_000),
    "unclosed brackets": framed(b'{"a":' + b"[" * 1_000_000),
    "a raw newline in a name": framed(VALID[8:-8].replace(b'"a"', b'"\n"'), bytes(8)),
    "a lone surrogate in a name": framed(VALID[8:-8].replace(b'"a"', b'"\\ud800"'), bytes(8)),
    "surrogates in the wrong order": framed(VALID[8:-8].replace(b'"a"', b'"\\udc00\\ud800"'), bytes(8)),
    "a field twice": framed(VALID[8:-8].replace(b'"dtype"', b'"dtype": "F32", "dtype"'), bytes(8)),
    "a tensor twice, once null": framed(b'{"a": null, ' + VALID[9:-8], bytes(8)),
    "a tensor twice, once empty": framed(
        VALID[8:-9] + b', "b": {}, "b": ' + json.dumps(PAIR).encode() + b"}", bytes(8)
    ),
    "a tensor twice, once escaped": framed(b'{"\\u0061": 1, ' + VALID[9:-8], bytes(8)),
    "metadata twice": framed(b'{"__metadata__":{},"__metadata__":{}}'),
    "an entry that is null": written({"a": None}),
    "an entry that is a number": written({"a": 8}),
    "an entry that is a string": written({"a": "F32"}),
    "an entry that is empty": written({"a": {}}),
    "no dtype": written({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "no shape": written({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "no offsets": written({"a": {"dtype": "F32", "shape": [2]}}),
    "a dtype that is null": edited(dtype=None),
    "a dtype that is a number": edited(dtype=32),
    "a dtype that is a list": edited(dtype=["F32"]),
    "a shape that is null": edited(shape=None),
    "a shape that is a number": edited(shape=2),
    "a shape that is a string": edited(shape="2"),
    "a negative dimension": edited(shape=[-2]),
    "two negative dimensions": edited(shape=[-1, -2]),
    "a dimension that is a float": edited(shape=[2.0]),
    "a dimension that is true": edited(shape=[2, True]),
    "a dimension that is a string": edited(shape=["2"]),
    "a dimension that is null": edited(shape=[None]),
    "a dimension that is a list": edited(shape=[[2]]),
    "a dimension of 2^63": edited(shape=[1 << 63]),
    "a dimension of 10^30": edited(shape=[10**30]),
    "a dimension of 5,000 digits": framed(VALID[8:-8].replace(b"[2]", b"[" + b"9" * 5_000 + b"]"), bytes(8)),
    "dimensions that overflow": edited(shape=[1 << 32, 1 << 32]),
    "dimensions that overflow to the right size": edited(shape=[(1 << 63) + 1, 2]),
    "elements whose bytes overflow": edited(shape=[1 << 62]),
    "a shape of too few elements": edited(shape=[1]),
    "a shape of too many elements": edited(shape=[3]),
    "a shape of no elements": edited(shape=[0]),
    "a dtype of another width": edited(dtype="F16"),
    "a shape that fills no whole byte": written({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1),
    "offsets that are null": edited(data_offsets=None),
    "offsets that are an object": edited(data_offsets={"0": 0, "1": 8}),
    "one offset": edited(data_offsets=[8]),
    "three offsets": edited(data_offsets=[0, 8, 8]),
    "a negative offset": edited(data_offsets=[-8, 0]),
    "an offset that is a float": edited(data_offsets=[0, 8.0]),
    "an offset that is false": edited(data_offsets=[False, 8]),
    "an offset that is a string": edited(data_offsets=["0", "8"]),
    "an offset of 2^64": edited(data_offsets=[0, 1 << 64]),
    "offsets that are reversed": edited(data_offsets=[8, 0]),
    "offsets beyond the file": written({"a": PAIR}, 4),
    "offsets far beyond the file": edited(shape=[1 << 40], data_offsets=[0, 1 << 42]),
    "data before the first tensor": edited(data_offsets=[8, 16]),
    "data after the last tensor": written({"a": PAIR}, 9),
    "data and no tensor": framed(b"{}", b"\0"),
    "tensors that overlap": two([0, 8], [4, 12], 12),
    "tensors in the same place": two([0, 8], [0, 8], 8),
    "a hole between tensors": two([0, 8], [12, 20], 20),
}
# A name of DIFFERENCES -> headers.
TOLERATED_BY_LIBRARY: Mapping[str, Sequence[bytes]] = {
    "white space before the header": [framed(space + VALID[8:-8], bytes(8)) for space in (b" ", b"\n")],
    "a name twice": [
        framed(VALID[8:-9] + b", " + VALID[9:-8], bytes(8)),
        framed(b'{"__metadata__":{"a":"1","a":"2"}}'),
        framed(VALID[8:-10] + b', "more": 1, "more": 2}}', bytes(8)),
    ],
    "an entry that is a list": [written({"a": ["F32", [2], [0, 8]]})],
    "a dtype that is an object": [edited(dtype={"F32": None})],
    "a dimension over 2^63 - 1 beside a 0": [
        written({"a": {"dtype": "F32", "shape": [0, side], "data_offsets": [0, 0]}}, 0)
        for side in (1 << 63, (1 << 64) - 1)
    ],
    "a header over 25 MB": [framed(VALID[8:-8].ljust(LONGEST_HEADER_BYTES + 1), bytes(8))],
}
TOLERATED = [content for contents in TOLERATED_BY_LIBRARY.values() for content in contents]


@pytest.mark.parametrize("content", [*REFUSED.values(), *TOLERATED[:-1]], ids=[*REFUSED, *map(str, TOLERATED[:-1])])
def test_a_damaged_file_is_malformed(content: bytes, tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "model.safetensors", content)
    assert "model.safetensors" in refusal(capsys, 6, "weights", path)
    refusal(capsys, 6, "weights", tmp_path)


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_the_library_refuses_it_too(content: bytes) -> None:
    assert read_by_library(content) is None


# In a field that nobody reads.
UNREADABLE = (
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 310, b'"\\ud800"', b'["\\udc00"]', b'{"\\ud800": 1}'),
    *(b"[" * 126 + b"]" * 126, b'{"":' * 126 + b"1" + b"}" * 126),
)
READABLE = (
    b"-0",
    b"-1",
    b"1e-999",
    b"9" * 308,
    b'"\\ud83d\\ude00"',
    b"[" * 125 + b"]" * 125,
    b'{"":' * 125 + b"1" + b"}" * 125,
)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_to_the_library_is_decided(name: str) -> None:
    assert {difference(content) for content in TOLERATED_BY_LIBRARY[name]} == {name}


@pytest.mark.parametrize(
    "content",
    [
        written({"__metadata__": {"format": 1}}, 0),
        *(written({"__metadata__": metadata}, 0) for metadata in ("pt", "", ["pt"], [], 0, False)),
        framed(b'{"__metadata__":{"format":"\\ud800"}}'),
        *(framed(VALID[8:-8].replace(b'"dtype"', b'"more": %s, "dtype"' % more), bytes(8)) for more in UNREADABLE),
        framed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
        written({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}}, 0),
    ],
    ids=lambda content: content[8:60].decode(),
)
def test_what_the_library_refuses_is_refused(content: bytes) -> None:
    assert read_by_library(content) is None
    with pytest.raises(MalformedError):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        written({"__metadata__": None}, 0),
        *(framed(VALID[8:-8].replace(b'"dtype"', b'"more": %s, "dtype"' % more), bytes(8)) for more in READABLE),
        # 2^64 - 2 elements, were it not for the 0.
        written({"a": {"dtype": "F32", "shape": [(1 << 63) - 1, 2, 0], "data_offsets": [0, 0]}}, 0),
    ],
    ids=lambda content: content[8:60].decode(),
)
def test_what_the_library_reads_is_read(content: bytes) -> None:
    assert read(content) == read_by_library(content) is not None


@pytest.mark.parametrize(
    "code", ["F31", "f32", "", "I4", "C128", "F8_E4M3FN", "float32", HOSTILE, "\ud800", "x" * 10_000]
)
def test_an_unknown_dtype_is_unsupported(code: str, tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "model.safetensors", edited(dtype=code))
    assert "model.safetensors" in refusal(capsys, 7, "weights", path)


@pytest.mark.parametrize("code", sorted(DTYPE_OF_CODE))
def test_every_dtype_of_the_library_is_known(code: str) -> None:
    size = DTYPE_OF_CODE[code].bits // 2
    content = written({"a": {"dtype": code, "shape": [4], "data_offsets": [0, size]}}, size)
    assert read(content) == read_by_library(content) == {"a": (code, (4,))}


def test_the_library_knows_no_further_dtype() -> None:
    with pytest.raises(SafetensorError, match="unknown variant") as refused:
        deserialize(edited(dtype="none such"))  # type: ignore[no-untyped-call]
    known = str(refused.value).partition("expected one of ")[2].split("`")[1::2]
    assert sorted(known) == sorted(DTYPE_OF_CODE)


def test_a_header_over_the_cap_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "model.safetensors", (LONGEST_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * LONGEST_HEADER_BYTES)
    assert "25,000,000" in refusal(capsys, 6, "weights", path)


def test_a_header_up_to_the_cap_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed(VALID[8:-8].ljust(LONGEST_HEADER_BYTES), bytes(8)))
    assert inspect(str(path), require_design=False).tensors == (Tensor("a", (2,), DType.F32, "model.safetensors"),)


@pytest.mark.parametrize("name", [HOSTILE, "{}", "%s", "层", "\udcff"])
@pytest.mark.parametrize("source", ["auto", "local"])
def test_a_damaged_file_of_any_name_is_named_in_one_line(
    source: str, name: str, tmp_path: Path, capsys: Capture
) -> None:
    path = write_bytes(tmp_path / f"{name}.safetensors", b"\0")
    assert "1 bytes" in refusal(capsys, 6, "weights", path, "--from", source)


@pytest.mark.parametrize("name", [HOSTILE, "x" * 100_000, "层" * 100_000])
@pytest.mark.parametrize("fields", [{"shape": [3]}, {"dtype": "F31"}, {"data_offsets": [8, 16]}, {"shape": None}])
def test_a_tensor_of_any_name_is_named_in_one_short_line(
    name: str, fields: Mapping[str, object], tmp_path: Path, capsys: Capture
) -> None:
    path = write_bytes(tmp_path / "model.safetensors", written({name: {**PAIR, **fields}}))
    refusal(capsys, 7 if "dtype" in fields else 6, "weights", path)


def test_a_shape_of_many_dimensions_is_told_in_one_short_line(tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "model.safetensors", edited(shape=[1] * 10_000))
    assert len(refusal(capsys, 6, "weights", path)) <= LONGEST_LINE


# --- time and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"t%d":0' % index for index in (*range(40_000), 39_999)) + b"}",
        json.dumps({"a": {**PAIR, "shape": [(1 << 63) - 1] * 50_000}}).encode(),
        json.dumps({"a": {**PAIR, "shape": [3] * 300_000}}).encode(),
        json.dumps({"a": {**PAIR, "data_offsets": [0] * 300_000}}).encode(),
        b'{"a":' + b"[" * 3_000_000,
        b'{"' + b"\\u0041" * 500_000,
        b'{"a":' + b"9" * 3_000_000,
        b"{" + b" " * 3_000_000,
    ],
    ids=lambda header: header[:40].decode(),
)
def test_a_hostile_header_is_refused_within_a_second(header: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(MalformedError):
        read(framed(header))
    assert time.perf_counter() - started < 1


def peak_bytes(content: bytes) -> int:
    """The most memory that refusing `content` takes, beside the content itself."""
    stream = io.BytesIO(content)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError):
            read_header(stream, file="model.safetensors", file_bytes=len(content))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [LONGEST_HEADER_BYTES, LONGEST_HEADER_BYTES + 1, 1 << 40, 1 << 63])
def test_a_length_that_lies_takes_no_memory(length: int) -> None:
    assert peak_bytes(length.to_bytes(8, "little") + b"{" * 100) < 200_000


@pytest.mark.parametrize("opening", [b"[", b'{"":', b"[[],", b'"'])
def test_nesting_takes_no_more_than_a_few_copies_of_the_header(opening: bytes) -> None:
    header = b'{"a":' + opening * (1_000_000 // len(opening))
    assert peak_bytes(framed(header)) < 8 * len(header)


@pytest.mark.parametrize("entry", [b'"%d":0', b'"%d":{}', b'"%d":[]', b'"%d":[0,0,0,0]', b'"%d":{"":{}}'])
def test_many_entries_take_memory_in_proportion(entry: bytes) -> None:
    header = b"{" + b",".join(entry % index for index in range(50_000)) + b"}"
    assert peak_bytes(framed(header)) < 64 * len(header)


def test_no_tensor_data_is_read() -> None:
    content = header_of(SMALL) + bytes(34)
    stream = io.BytesIO(content)
    read_header(stream, file="model.safetensors", file_bytes=len(content))
    assert stream.tell() == len(content) - 34


# --- fuzzing -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    difference(content)
    difference(framed(content))
    difference(framed(b"{" + content))


FILE = header_of(SMALL, {"format": "pt"}) + bytes(34)
HEADER_END = len(FILE) - 34


@settings(max_examples=500, deadline=None)
@given(flips=st.dictionaries(st.integers(0, HEADER_END - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_flipped_bytes_are_read_as_the_library_reads_them(flips: Mapping[int, int]) -> None:
    content = bytearray(FILE)
    for position, value in flips.items():
        content[position] = value
    difference(bytes(content))


@settings(max_examples=300, deadline=None)
@given(
    flips=st.dictionaries(
        st.integers(8, HEADER_END - 1), st.sampled_from(b'0123456789abcdBCDFIU_EM",:[]{} '), min_size=1, max_size=4
    )
)
def test_flipped_characters_are_read_as_the_library_reads_them(flips: Mapping[int, int]) -> None:
    content = bytearray(FILE)
    for position, value in flips.items():
        content[position] = value
    difference(bytes(content))


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, len(FILE)), end=st.integers(0, len(FILE)), inserted=st.binary(max_size=8))
def test_cut_and_grown_files_are_read_as_the_library_reads_them(start: int, end: int, inserted: bytes) -> None:
    difference(FILE[:start] + inserted + FILE[max(start, end) :])


SIZES = st.integers(0, 9) | st.sampled_from([-1, 12, 24, 34, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1])
ODD = st.none() | st.booleans() | st.floats() | st.text(max_size=3)
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "dtype": st.sampled_from([*sorted(DTYPE_OF_CODE), "F31"]) | ODD,
    "shape": st.lists(SIZES, max_size=5) | st.permutations([2, 3]) | st.lists(ODD, max_size=2) | ODD,
    "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.lists(SIZES | ODD, max_size=3) | ODD,
    "more": ODD | st.lists(ODD, max_size=2),
}
EDITS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda field: st.tuples(st.sampled_from("abcde"), st.just(field), VALUES[field])
)


@settings(max_examples=500, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=4), data_bytes=st.sampled_from([34, 34, 34, 0, 33, 58]))
@example(edits=[("a", "shape", [6])], data_bytes=34)
@example(edits=[("a", "shape", [3, 2]), ("b", "dtype", "C64")], data_bytes=34)
@example(edits=[("b", "shape", [8]), ("b", "dtype", "F8_E8M0")], data_bytes=34)
def test_edited_entries_are_read_as_the_library_reads_them(edits: list[tuple[str, str, Any]], data_bytes: int) -> None:
    entries: dict[str, dict[str, Any]] = json.loads(FILE[8:HEADER_END])
    for name, field, value in edits:
        entries.setdefault(name, {})[field] = value
    difference(written(entries, data_bytes))


# --- real files ----------------------------------------------------------------------------------------------------

NUMPY_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)
NAMES = st.text(max_size=12).filter(lambda name: name != "__metadata__")


def read_back(path: Path) -> Read:
    tensors = inspect(str(path), require_design=False).tensors or ()
    return {tensor.name: (tensor.dtype.code, tensor.shape) for tensor in tensors}


@settings(max_examples=100, deadline=None)
@given(
    saved=st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), SHAPES), max_size=6),
    # Empty metadata beside no tensor: safetensors 0.8 writes a file that it cannot read itself.
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
)
@example(saved={}, metadata=None)
@example(saved={"scalar": ("F32", ()), "empty": ("F64", (0,)), "five": ("I8", (1, 2, 3, 4, 2))}, metadata={"": ""})
@example(saved={HOSTILE: ("U8", (3,)), "": ("BOOL", (1,)), "\0": ("I64", (2,))}, metadata={HOSTILE: HOSTILE})
def test_what_numpy_saves_is_read_back(saved: Read, metadata: dict[str, str] | None) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        name: np.zeros(shape, NUMPY_DTYPES[code]) for name, (code, shape) in saved.items()
    }
    with TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        save_numpy(arrays, path, metadata)
        assert read_back(path) == saved
        report = inspect(str(path), require_design=False)
        assert sum(tensor.size_bytes for tensor in report.tensors or ()) == sum(
            array.nbytes for array in arrays.values()
        )
        with safe_open(path, "np") as opened:
            assert set(opened.keys()) == set(saved)


TORCH_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_what_torch_saves_is_read_back(name: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    shapes = [(), (0,), (7,), (2, 3), (4, 0, 2), (1, 2, 3, 1, 2)]
    path = tmp_path / "model.safetensors"
    save_file({str(shape): torch.zeros(shape, dtype=getattr(torch, name)) for shape in shapes}, path)
    assert read_back(path) == {str(shape): (TORCH_DTYPES[name], shape) for shape in shapes}
    assert {str(tensor.dtype) for tensor in inspect(str(path), require_design=False).tensors or ()} == {name}


def test_torchs_packed_float4_counts_two_elements_a_byte(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"packed": torch.zeros((3, 8), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, path)
    with safe_open(path, "pt") as opened:
        (shape,) = [tuple(opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118
    assert read_back(path) == {"packed": ("F4", shape)}
    (tensor,) = inspect(str(path), require_design=False).tensors or ()
    assert tensor.size_bytes == 24


def test_every_refusal_is_an_error_of_the_package() -> None:
    for content in (*REFUSED.values(), *TOLERATED):
        with pytest.raises(QwenInspectError):
            read(content)
