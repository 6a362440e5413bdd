"""Headers of safetensors and GGUF files, read by their parsers; safetensors beside the library, GGUF files by commands too."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from qwen_inspect.checkpoint import DTYPE_OF_CODE
from qwen_inspect.loaders.gguf_header import NUMBERS, merged, read_header
from tests.support.safetensors_library import judged

from .mutation import SIZES, damaged, mutate
from .trial import Case, Verdict, command

# --- safetensors

CODES = sorted(DTYPE_OF_CODE)
NAMES = ("a", "model.layers.0.x.weight", "é", "\U0001f600", "x" * 50, "")
# Values of fields that headers have, right and wrong.
FIELDS: Sequence[Any] = (
    *(0, 1, 4, 8, -1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, 1.0, 0.5, -0.0),
    *(True, False, None, "", "F32", "F4", "F6_E2M3", "bf16", "F32\0", "\ud800", [], {}, [[]], [0], [0, 0], [0, 0, 0]),
    *({"F32": None}, ["F32", [], [0, 4]], [2**63, 0], [2**32, 2**32, 0], {"format": "pt"}),
)


def make_safetensors(random: Random) -> Case:
    header, end = _tensors(random)
    for _ in range(random.choice((0, 0, 1, 1, 1, 2))):
        mutate(header, random, odd=FIELDS, keys=("__metadata__", "shape", "more", "z"))
    separators = random.choice(((",", ":"), (", ", ": ")))
    text = json.dumps(header, ensure_ascii=random.random() < 0.5, separators=separators)
    content = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        content = damaged(content, random)
    if random.random() < 0.3:
        content += random.choice((b" " * (-len(content) % 8), b"\n", b"\0", b"  x"))
    if random.random() < 0.04:
        content = random.choice((b" ", b"\n", b"\t ")) + content
    length, data_bytes = len(content), end
    if random.random() < 0.04:
        length = random.choice((*SIZES, length + 1, max(length - 1, 0), length + 8, 25_000_000, 25_000_001))
    if random.random() < 0.04:
        data_bytes = max(0, end + random.choice((-1, 1, 8, -8)))
    whole = length.to_bytes(8, "little") + content + bytes(data_bytes)
    return Case(whole[: random.randrange(len(whole) + 1)] if random.random() < 0.03 else whole)


def _tensors(random: Random) -> tuple[dict[str, Any], int]:
    """A valid header, and the bytes of its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "k": "v"}} if random.random() < 0.6 else {}
    end = 0
    for index in range(random.randrange(7)):
        code, shape = random.choice(CODES), [random.choice((0, 1, 2, 4, 5)) for _ in range(random.randrange(4))]
        bits = DTYPE_OF_CODE[code].bits
        for side in shape:
            bits *= side
        begin, end = end, end + bits // 8
        header[f"{random.choice(NAMES)}{index}"] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    return header, end


def read_safetensors(case: Case, folder: Path) -> Verdict:
    return Verdict(*judged(case.content))


# --- GGUF

Metadata = list[tuple[str, int, Any]]
Tensors = list[tuple[str | bytes, list[int], int, int | None]]  # name, sides, type, offset if it is a wrong one
U32, F32, TEXT, LIST = 4, 6, 8, 9
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 30: (1, 2)}  # of a type: elements and bytes
ARCHITECTURES = ("qwen3", "qwen3", "qwen2", "qwen2moe", "qwen3moe", "llama")
KEYS = (
    *("general.architecture", "general.alignment", "general.file_type", "split.count", "split.tensors.count"),
    *("qwen3.expert_count", "qwen3.vocab_size", "qwen3.attention.sliding_window", "qwen3moe.expert_used_count"),
    *(
        "num_hidden_layers",
        "model_type",
        "quantization_config",
        "layer_types",
        "auto_map",
        "text_config",
        "torch_dtype",
    ),
)
VALUES: Sequence[tuple[int, Any]] = (
    *((U32, 0), (U32, 1), (U32, 3), (U32, 2**32 - 1), (10, 2**64 - 1), (11, -1), (5, -5), (0, 255), (7, True)),
    *((F32, 1e30), (F32, 0.5), (F32, float("nan")), (12, float("inf")), (12, 1e300), (12, -0.0)),
    *((TEXT, ""), (TEXT, "x"), (TEXT, "\x1b[31m<script>"), (TEXT, b"\xff"), (TEXT, "x" * 70_000)),
    *((LIST, (U32, [2, 2])), (LIST, (U32, [1] * 3)), (LIST, (F32, [0.5, 2.0])), (LIST, (TEXT, ["a", "b"]))),
    *((LIST, (U32, [])), (LIST, (LIST, [])), (LIST, (7, [True]))),
)


def _gguf(random: Random) -> tuple[Metadata, Tensors]:
    """What a small model's file holds."""
    name = random.choice(ARCHITECTURES)
    metadata: Metadata = [
        ("general.architecture", TEXT, name),
        ("general.name", TEXT, "m"),
        ("general.alignment", U32, 32),
    ]
    sizes = {"block_count": 2, "context_length": 128, "embedding_length": 32, "feed_forward_length": 64}
    sizes |= {f"attention.{key}": value for key, value in (("head_count", 4), ("head_count_kv", 2))}
    sizes |= {f"attention.{key}_length": 8 for key in ("key", "value")}
    if name.endswith("moe"):
        sizes |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}
    metadata += [(f"{name}.{key}", U32, value) for key, value in sizes.items()]
    metadata += [(f"{name}.attention.layer_norm_rms_epsilon", F32, 1e-6), (f"{name}.rope.freq_base", F32, 1e6)]
    metadata += [
        ("tokenizer.ggml.tokens", LIST, (TEXT, ["a", "b", "c"])),
        ("tokenizer.ggml.token_type", LIST, (5, [1] * 3)),
    ]
    tensors: Tensors = [("token_embd.weight", [32, 64], 8, None), ("output_norm.weight", [32], 0, None)]
    for layer in range(2):
        matrices = {"attn_q": [32, 32], "attn_k": [32, 16], "attn_v": [32, 16], "attn_output": [32, 32]}
        matrices |= {"ffn_gate": [32, 64], "ffn_up": [32, 64], "ffn_down": [64, 32]}
        vectors = {"attn_norm": [32], "ffn_norm": [32], "attn_q_norm": [8], "attn_k_norm": [8]}
        tensors += [(f"blk.{layer}.{part}.weight", sides, 2, None) for part, sides in matrices.items()]
        tensors += [(f"blk.{layer}.{part}.weight", sides, 0, None) for part, sides in vectors.items()]
    return metadata, tensors


def _changed(random: Random, metadata: Metadata, tensors: Tensors) -> None:
    at, place = random.randrange(len(tensors)), random.randrange(len(metadata))
    name, sides, kind, offset = tensors[at]
    match random.randrange(9):
        case 0:
            metadata.append((random.choice(KEYS), *random.choice(VALUES)))
        case 1 | 2:
            metadata[place] = (metadata[place][0], *random.choice(VALUES))
        case 3 if len(metadata) > 1:
            metadata.pop(place)
        case 4 if len(tensors) > 1:
            tensors.pop(at)
        case 5:
            sides = random.choice(
                ([random.choice(SIZES) for _ in range(random.randrange(6))], sides[::-1], [], [0], [1, *sides])
            )
        case 6:
            kind = random.choice((*range(45), 2**32 - 1))
        case 7:
            offset = random.choice((*SIZES, 32))
        case _:
            name = random.choice(("", "\n", "\x1b[31m", b"\xff", "x" * 65_537, "output.weight", "token_embd.weight"))
    if at < len(tensors):
        tensors[at] = (name, sides, kind, offset)


def _text(text: str | bytes, order: str) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack(f"{order}Q", len(encoded)) + encoded


def _value(kind: int, value: Any, order: str) -> bytes:
    if kind == TEXT:
        return _text(value, order)
    if kind == LIST:
        inner, values = value
        return struct.pack(f"{order}IQ", inner, len(values)) + b"".join(_value(inner, part, order) for part in values)
    return struct.pack(order + NUMBERS[kind], value)


def _written(
    metadata: Metadata, tensors: Tensors, order: str, version: int, counts: tuple[int, int]
) -> tuple[bytes, int]:
    """The header, and where its file ends."""
    content = b"GGUF" + struct.pack(f"{order}IQQ", version, *counts)
    for key, kind, value in metadata:
        content += _text(key, order) + struct.pack(f"{order}I", kind) + _value(kind, value, order)
    end = 0
    for name, sides, kind, offset in tensors:
        block, size = BLOCKS.get(kind, (1, 4))
        for side in sides:
            size *= side
        content += (
            _text(name, order) + struct.pack(f"{order}I", len(sides)) + struct.pack(f"{order}{len(sides)}Q", *sides)
        )
        content += struct.pack(f"{order}IQ", kind, (end if offset is None else offset) % 2**64)
        end += -(-(size // block) // 32) * 32
    return content, -(-len(content) // 32) * 32 + end


def make_gguf(random: Random) -> Case:
    """A header, and in `words` the size of its file."""
    metadata, tensors = _gguf(random)
    for _ in range(random.choice((0, 1, 1, 2))):
        _changed(random, metadata, tensors)
    counts = len(tensors), len(metadata)
    if random.random() < 0.05:
        counts = random.choice((0, 1, 10**6, 2**63)), random.choice((0, 1, 10**5, 10**5 + 1))
    version = random.choice((0, 1, 2, 4, 0x03000000)) if random.random() < 0.03 else 3
    content, end = _written(metadata, tensors, random.choice("<<<>"), version, counts)
    if random.random() < 0.4:
        content = damaged(content, random)
    size = random.choice((end, end, end, end + 100, end - 1, len(content), 10**10, 2**62))
    return Case(content, (str(max(size, len(content))),))


def read_gguf(case: Case, folder: Path) -> Verdict:
    """As a file that goes on with zeros up to its size."""

    def more(start: int, stop: int) -> bytes:
        zeros = min(stop, size) - max(start, len(case.content))
        return case.content[start:stop] + bytes(max(0, min(zeros, 1 << 17)))

    size = int(case.words[0])
    header = read_header(more, file="model.gguf", file_bytes=size)
    _, tensors = merged([header], file="model.gguf")
    return Verdict(0 * sum(tensor.size_bytes for tensor in tensors))


COMMANDS = (
    *(("params",), ("weights",), ("attention",), ("structure",), ("memory",), ("config", "--explain")),
    *(("params", "--format", "json"), ("fit", "--engine", "llama.cpp", "--gpu", "4090")),
)


def make_gguf_file(random: Random) -> Case:
    """A sound header of a model that may be odd, and the command that reads it."""
    metadata, tensors = _gguf(random)
    for _ in range(random.choice((1, 1, 2))):
        _changed(random, metadata, tensors)
    content, end = _written(metadata, tensors, "<", 3, (len(tensors), len(metadata)))
    name, *options = random.choice(COMMANDS)
    return Case(content, (name, str(end), *options))


def read_gguf_file(case: Case, folder: Path) -> Verdict:
    path, (name, end, *options) = folder / "model.gguf", case.words
    path.write_bytes(case.content)
    os.truncate(path, min(max(int(end), len(case.content)), 1 << 40))
    return command([name, str(path), *options])
