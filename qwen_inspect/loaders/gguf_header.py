"""The header of a GGUF file: metadata and the tensors' names, shapes, types and offsets. No tensor data is read.

The tokenizer's arrays take most of a header; they are skipped.
Source: ggml, docs/gguf.md and src/gguf.cpp (`gguf_init_from_file_impl`), with the same rules: tensors tile the data.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from ..checkpoint import BLOCK_FORMATS, BlockFormat, DType, ModelRef, Tensor
from ..errors import MalformedError, NotFoundError, QwenInspectError, UnsupportedError, UsageError
from ..typed import Any
from ..values import dataclass

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1, of August 2023, counted in 32 bits
# A header with 262,144 tokens takes 15 MB; DeepSeek-V3 has 1,025 tensors. Far larger headers are damaged or hostile.
LONGEST_HEADER_BYTES = 100_000_000
MOST_TENSORS, MOST_KEYS = 65_536, 65_536
MOST_KEPT_BYTES = 4_000_000  # of metadata without the tokenizer's; keys, texts and lists
MOST_SIDES = 4  # ggml, GGML_MAX_DIMS
LONGEST_NAME_BYTES = 1 << 16
LONGEST_TEXT_BYTES = 1 << 16  # longer ones (chat templates) are skipped
RUN, SHORT_RUN, LONGEST_SHORT_BYTES, USUAL_BYTES = 128, 8, 32, 7
LONGEST_ARRAY = 10_000  # longest list that is read: one value per layer
LARGEST = 1 << 62
DEFAULT_ALIGNMENT = 32
FIRST_BYTES, MORE_BYTES = 1 << 16, 1 << 22
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# ggml_type -> format. Source: ggml.h, enum ggml_type; gguf 0.19, GGMLQuantizationType. 4, 5, 31 to 33 and 36 to 38 were removed.
TYPES: Mapping[int, DType | BlockFormat] = {
    0: DType.F32,
    1: DType.F16,
    24: DType.I8,
    25: DType.I16,
    26: DType.I32,
    27: DType.I64,
    28: DType.F64,
    30: DType.BF16,
    **{
        number: BLOCK_FORMATS[name]
        for number, name in {
            2: "Q4_0",
            3: "Q4_1",
            6: "Q5_0",
            7: "Q5_1",
            8: "Q8_0",
            9: "Q8_1",
            10: "Q2_K",
            11: "Q3_K",
            12: "Q4_K",
            13: "Q5_K",
            14: "Q6_K",
            15: "Q8_K",
            16: "IQ2_XXS",
            17: "IQ2_XS",
            18: "IQ3_XXS",
            19: "IQ1_S",
            20: "IQ4_NL",
            21: "IQ3_S",
            22: "IQ2_S",
            23: "IQ4_XS",
            29: "IQ1_M",
            34: "TQ1_0",
            35: "TQ2_0",
            39: "MXFP4",
            40: "NVFP4",
            41: "Q1_0",
        }.items()
    },
}

# Metadata's types: a struct letter for numbers. Source: ggml, docs/gguf.md, gguf_metadata_value_type.
NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
TEXT, LIST = 8, 9
More = Callable[[int, int], bytes]  # bytes [start, stop) of the file, fewer where it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """metadata: numbers, strings and short lists of numbers. content: the header's bytes.

    A key without a dot is left out: GGUF has none, and a configuration's keys have no other form.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    content: bytearray


def read_header(more: More, *, file: str, file_bytes: int) -> GgufHeader:
    """The header of a file of `file_bytes` bytes; `more` reads any range of it. `file` names it in errors."""
    return _Reader(more, file, file_bytes).header()


class _Reader:
    """Parses a header front to back, and reads more of the file as needed."""

    def __init__(self, more: More, file: str, file_bytes: int) -> None:
        self._more, self._file, self._file_bytes = more, file, file_bytes
        self._content = bytearray()
        self._at = 0
        self._order = "<"

    def header(self) -> GgufHeader:
        if self._bytes(4) != MAGIC:
            raise MalformedError("gguf_magic", file=self._file)
        version = self._version()
        if version not in VERSIONS:
            raise UnsupportedError("gguf_version", file=self._file, found=version)
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise MalformedError("gguf_counts", file=self._file, tensors=tensors, keys=keys)
        metadata = self._metadata(keys)
        placed = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise MalformedError("gguf_alignment", file=self._file, found=alignment)
        self._check_tiling(placed, alignment)
        return GgufHeader(
            metadata=metadata,
            tensors=tuple(tensor for tensor, _ in placed),
            content=self._content_read(),
        )

    def _version(self) -> int:
        """The version; its byte order is the byte order of the whole file."""
        version: int = self._number("I")
        if version & 0xFFFF:
            return version
        self._order = ">"
        return int.from_bytes(version.to_bytes(4, "little"), "big")

    def _metadata(self, keys: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        kept_bytes = 0
        for _ in range(keys):
            begin = self._at
            key = self._text(LONGEST_NAME_BYTES, "key")
            if key in metadata:
                raise MalformedError("gguf_duplicate", file=self._file, name=key)
            value_begin = self._at
            metadata[key] = self._value(key, self._number("I"))
            kept_bytes += (value_begin if metadata[key] is None else self._at) - begin
            if kept_bytes > MOST_KEPT_BYTES:
                raise MalformedError("gguf_metadata_over_cap", file=self._file, cap=MOST_KEPT_BYTES)
        return {key: value for key, value in metadata.items() if value is not None and "." in key}

    def _value(self, key: str, kind: int) -> Any:
        """A value, or None if it was skipped."""
        if letter := NUMBERS.get(kind):
            return self._finite(key, [self._number(letter)])[0]
        if kind == TEXT:
            return self._short_text()
        if kind == LIST:
            return self._list(key)
        raise MalformedError("gguf_value_type", file=self._file, key=key, found=kind)

    def _list(self, key: str) -> list[Any] | None:
        kind, count = self._number("I"), self._number("Q")
        if letter := NUMBERS.get(kind):
            width = struct.calcsize(f"<{letter}")
            if count > LONGEST_ARRAY or key.startswith("tokenizer."):
                self._step(count * width)
                return None
            return self._finite(key, list(struct.unpack(f"{self._order}{count}{letter}", self._bytes(count * width))))
        if kind == TEXT:
            self._step_over_texts(count)
            return None
        raise MalformedError(
            "gguf_value_type", file=self._file, key=key, found=kind
        )  # lists of lists were never written

    def _finite(self, key: str, values: list[Any]) -> list[Any]:
        """`values`; MalformedError if one is infinite or NaN."""
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise MalformedError("gguf_not_finite", file=self._file, key=key)
        return values

    def _tensor(self) -> tuple[Tensor, int]:
        name = self._text(LONGEST_NAME_BYTES, "tensor")
        count = self._number("I")
        if count > MOST_SIDES:
            raise MalformedError("gguf_sides", file=self._file, tensor=name, found=count)
        *sides, kind, offset = struct.unpack(f"{self._order}{count}QIQ", self._bytes(8 * count + 12))
        while len(sides) > 1 and sides[-1] == 1:  # ggml_n_dims: trailing sides of 1 are none
            sides.pop()
        elements = 1
        for side in sides:
            elements *= side
            if elements >= LARGEST:
                raise MalformedError("gguf_shape", file=self._file, tensor=name, shape=sides)
        dtype = TYPES.get(kind)
        if dtype is None:
            raise UnsupportedError("gguf_tensor_type", file=self._file, tensor=name, found=kind)
        block = dtype.block_elements if isinstance(dtype, BlockFormat) else 1
        if (sides[0] if sides else 1) % block:
            raise MalformedError(
                "gguf_blocks", file=self._file, tensor=name, row=sides[0] if sides else 1, type=str(dtype), block=block
            )
        return Tensor(name, tuple(reversed(sides)), dtype, self._file), offset

    def _check_tiling(self, placed: Sequence[tuple[Tensor, int]], alignment: int) -> None:
        """Checks that each tensor begins at the aligned end of the previous, and that the last ends within the file."""
        if len({tensor.name for tensor, _ in placed}) != len(placed):
            seen: set[str] = set()
            name = next(tensor.name for tensor, _ in placed if tensor.name in seen or seen.add(tensor.name))  # type: ignore[func-returns-value]
            raise MalformedError("gguf_duplicate", file=self._file, name=name)
        begin = _aligned(self._at, alignment)
        end = expected = 0
        for tensor, offset in placed:
            if offset != expected:
                raise MalformedError(
                    "gguf_not_tiled", file=self._file, tensor=tensor.name, found=offset, expected=expected
                )
            end = offset + tensor.size_bytes
            expected = _aligned(end, alignment)
        if placed and begin + end > self._file_bytes:
            raise MalformedError("gguf_truncated", file=self._file, expected=begin + end, found=self._file_bytes)

    # --- bytes

    def _content_read(self) -> bytearray:
        del self._content[self._at :]
        return self._content

    def _number(self, letter: str) -> Any:
        form = self._order + letter
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _text(self, longest: int, what: str) -> str:
        length = self._number("Q")
        if length > longest:
            raise MalformedError("gguf_text_too_long", file=self._file, what=what, found=length, most=longest)
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedError("gguf_not_utf8", file=self._file, what=what) from None

    def _short_text(self) -> str | None:
        length = self._number("Q")
        if length > LONGEST_TEXT_BYTES:
            self._step(length)
            return None
        return self._bytes(length).decode("utf-8", "backslashreplace")

    def _step_over_texts(self, count: int) -> None:
        """Skips `count` strings by reading their lengths: only a length says where the next string begins."""
        if count * 8 > self._file_bytes:
            raise self._cut_off(count * 8)
        while count >= RUN and self._order == "<":
            self._step_over_run(RUN)
            count -= RUN
        self._step_over_each(count)

    def _step_over_run(self, count: int) -> None:
        """A run that holds a long string, or the end of what is read, is skipped in shorter ones, then string by string."""
        if (run := _short_texts(count).match(self._content, self._at)) is not None:
            self._at = run.end()
        elif count > SHORT_RUN:
            for _ in range(count // SHORT_RUN):
                self._step_over_run(SHORT_RUN)
        else:
            self._step_over_each(count)

    def _step_over_each(self, count: int) -> None:
        unpack = struct.Struct(self._order + "Q").unpack_from
        content, at = self._content, self._at
        while count:
            try:
                (length,) = unpack(content, at)
            except struct.error:
                self._at = at
                self._need(8)
                continue
            at += 8 + length
            if at > min(self._file_bytes, LONGEST_HEADER_BYTES):
                raise self._cut_off(at)
            count -= 1
        self._at = at
        self._need(0)

    def _step(self, count: int) -> None:
        self._at += count
        self._need(0)

    def _bytes(self, count: int) -> bytes:
        self._need(count)
        begin, self._at = self._at, self._at + count
        return bytes(self._content[begin : self._at])

    def _need(self, count: int) -> None:
        """Reads on until the content holds `count` bytes from the current position."""
        end = self._at + count
        while len(self._content) < end:
            if end > min(self._file_bytes, LONGEST_HEADER_BYTES):
                raise self._cut_off(end)
            have = len(self._content)
            stop = min(max(end, have + (MORE_BYTES if have else FIRST_BYTES)), self._file_bytes, LONGEST_HEADER_BYTES)
            chunk = self._more(have, stop)
            if not chunk:
                raise self._cut_off(end)
            self._content += chunk[: stop - have]

    def _cut_off(self, end: int) -> QwenInspectError:
        if end > LONGEST_HEADER_BYTES <= self._file_bytes:
            return MalformedError("gguf_header_over_cap", file=self._file, cap=LONGEST_HEADER_BYTES)
        return MalformedError("gguf_header_truncated", file=self._file, found=self._file_bytes)


@cache
def _short_texts(count: int) -> re.Pattern[bytes]:
    """`count` strings of up to LONGEST_SHORT_BYTES, each behind its length: what vocabularies hold, skipped without a loop here.

    The usual lengths of tokens and merges come first, which are tried one after another.
    """
    lengths = sorted(range(1, LONGEST_SHORT_BYTES + 1), key=lambda length: abs(length - USUAL_BYTES))
    each = b"|".join(rb"\x%02x\0\0\0\0\0\0\0.{%d}" % (length, length) for length in (*lengths, 0))
    return re.compile(rb"(?:%s){%d}" % (each, count), re.DOTALL)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


# --- several files --------------------------------------------------------------------------------------------------


def choose(names: Iterable[str], ref: ModelRef) -> tuple[str, ...]:
    """The files of one model among the GGUF files `names`: a single file, or all parts of a split file in order.

    `ref.file` is a file's name, or a quantisation such as "Q4_K_M". Raises UsageError, with the names, if several match;
    NotFoundError if none matches or parts of a split file are missing.
    """
    wanted, models = ref.file, parts_by_model(names)
    if wanted is None:
        chosen = [name for name in models if not _is_beside(name)] or list(models)
    else:
        chosen = [name for name in models if name == wanted or wanted in models[name]]
        chosen = chosen or [name for name in models if _is_quantisation(name, wanted)]
    shown = ", ".join(sorted(models)[:40]) or "–"
    if not chosen:
        raise NotFoundError("gguf_none", model=ref.id, wanted=wanted or "*.gguf", names=shown)
    if len(chosen) > 1:
        raise UsageError("gguf_several", model=ref.id, example=ref.of_file(models[chosen[0]][0]), names=shown)
    parts = models[chosen[0]]
    match = SPLIT.fullmatch(parts[0])
    count = int(match["count"]) if match else 1
    if len(parts) != count:
        raise NotFoundError("gguf_parts_missing", file=chosen[0], missing=count - len(parts), parts=count)
    return tuple(parts)


def parts_by_model(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each model; a split file is called by its name without numbers."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        match = SPLIT.fullmatch(name)
        models.setdefault(f"{match['stem']}.gguf" if match else name, []).append(name)
    return models


def _is_beside(name: str) -> bool:
    """Whether it is a vision projector, which llama.cpp loads beside a language model."""
    return name.rpartition("/")[2].startswith("mmproj")


def models_by_size(sizes: Mapping[str, int | None]) -> tuple[tuple[str, int], ...]:
    """The first file and the bytes of each model among GGUF files of these sizes, the smallest first. Matrices are left out."""
    models = [parts for name, parts in parts_by_model(sizes).items() if not (_is_beside(name) or "imatrix" in name)]
    return tuple(
        sorted(((parts[0], sum(sizes[part] or 0 for part in parts)) for parts in models), key=lambda model: model[1])
    )


def _is_quantisation(name: str, wanted: str) -> bool:
    """Whether a file's name ends in the quantisation `wanted`: `Qwen3-8B-Q4_K_M.gguf`, `qwen.q4_k_m.gguf`."""
    base, wanted = name.removesuffix(".gguf").lower(), wanted.lower()
    return base == wanted or base.endswith((f"-{wanted}", f".{wanted}", f"_{wanted}"))


def merged(headers: Sequence[GgufHeader], *, file: str) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    """Metadata and tensors of a model in one or more files; the first file's metadata describes the whole model."""
    metadata = headers[0].metadata
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    stated = metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors) or metadata.get("split.count", len(headers)) not in (0, len(headers)):
        raise MalformedError("gguf_split", file=file, expected=stated, found=len(tensors))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedError("gguf_duplicate", file=file, name="–")
    return metadata, tensors
