"""A model as stored: where it is, its configuration as written, its tensors as their headers state them.

Nothing here is interpreted: which tensors are tied, fused or packed is the architecture's and the analyzers' business.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from .language import Message

Origin = Literal["stored", "theory"]


class DType(Enum):
    """A number format: its code in safetensors headers, its width in bits, its name in torch.

    Source: safetensors 0.8, `Dtype` and its `bitsize`; torch 2.13 for the names.
    """

    BOOL = ("BOOL", 8, "bool")
    F4 = ("F4", 4, "float4_e2m1fn_x2")
    F6_E2M3 = ("F6_E2M3", 6, "float6_e2m3")
    F6_E3M2 = ("F6_E3M2", 6, "float6_e3m2")
    U8 = ("U8", 8, "uint8")
    I8 = ("I8", 8, "int8")
    F8_E5M2 = ("F8_E5M2", 8, "float8_e5m2")
    F8_E4M3 = ("F8_E4M3", 8, "float8_e4m3fn")
    F8_E8M0 = ("F8_E8M0", 8, "float8_e8m0fnu")
    F8_E5M2FNUZ = ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz")
    F8_E4M3FNUZ = ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz")
    I16 = ("I16", 16, "int16")
    U16 = ("U16", 16, "uint16")
    F16 = ("F16", 16, "float16")
    BF16 = ("BF16", 16, "bfloat16")
    I32 = ("I32", 32, "int32")
    U32 = ("U32", 32, "uint32")
    F32 = ("F32", 32, "float32")
    C64 = ("C64", 64, "complex64")
    F64 = ("F64", 64, "float64")
    I64 = ("I64", 64, "int64")
    U64 = ("U64", 64, "uint64")

    def __init__(self, code: str, bits: int, torch_name: str) -> None:
        self.code = code
        self.bits = bits
        self.torch_name = torch_name

    def __str__(self) -> str:
        return self.torch_name


DTYPE_OF_CODE: Mapping[str, DType] = {dtype.code: dtype for dtype in DType}
DTYPE_OF_TORCH_NAME: Mapping[str, DType] = {dtype.torch_name: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A number format of ggml that packs `block_elements` numbers of a row, with their scales, into `block_bytes` bytes."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def code(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


# Source: ggml, ggml-common.h (block_q4_0 and its like) and ggml.c, type_traits; gguf 0.19, GGML_QUANT_SIZES.
BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    name: BlockFormat(name, elements, size_bytes)
    for name, elements, size_bytes in (
        ("Q4_0", 32, 18),
        ("Q4_1", 32, 20),
        ("Q5_0", 32, 22),
        ("Q5_1", 32, 24),
        ("Q8_0", 32, 34),
        ("Q8_1", 32, 40),
        ("Q2_K", 256, 84),
        ("Q3_K", 256, 110),
        ("Q4_K", 256, 144),
        ("Q5_K", 256, 176),
        ("Q6_K", 256, 210),
        ("Q8_K", 256, 292),
        ("IQ2_XXS", 256, 66),
        ("IQ2_XS", 256, 74),
        ("IQ3_XXS", 256, 98),
        ("IQ1_S", 256, 50),
        ("IQ4_NL", 32, 18),
        ("IQ3_S", 256, 110),
        ("IQ2_S", 256, 82),
        ("IQ4_XS", 256, 136),
        ("IQ1_M", 256, 56),
        ("TQ1_0", 256, 54),
        ("TQ2_0", 256, 66),
        ("MXFP4", 32, 17),
        ("NVFP4", 64, 36),
        ("Q1_0", 128, 18),
    )
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array. For packed weights `elements` counts stored words, not the parameters that they hold.

    In a block format it counts the numbers, whatever their block holds beside.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType | BlockFormat
    file: str | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        if isinstance(self.dtype, BlockFormat):
            return (
                self.elements // self.dtype.block_elements * self.dtype.block_bytes
            )  # whole blocks: checked when read
        return self.elements * self.dtype.bits // 8  # sub-byte tensors are checked to fill whole bytes when read


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of weights, its size in bytes, and its SHA-256 where a hub told it (hashing gigabytes here would be no glance)."""

    name: str
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Where a model is: `source` is "local", "catalog" or a hub's, `id` what the user would type to get it again.

    file: the one of several GGUF files that is meant, by its name or by its quantisation.
    """

    source: str
    id: str
    revision: str | None = None
    path: Path | None = None
    file: str | None = None

    def of_file(self, name: str) -> str:
        """What the user would type, of any command, for one file of it."""
        if self.source == "local":
            return os.path.join(self.id, name)
        if self.source == "auto":
            return f"{self.id}:{name}"
        return f"{self.source}:{self.id}{f'@{self.revision}' if self.revision else ''}:{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Facts about a release's files beside the configuration. `decoder_only`: they hold the decoder without prefix or head.

    experts_fused: they hold experts as transformers fuses them, where the family's files else hold them singly; but for the
    prediction layer, whose they hold singly all the same.
    float32: ends of the names of tensors that they hold in float32 whatever the model's dtype.
    parameters, stored: published counts of unique parameters and of stored elements. source: where they come from.
    """

    parameters: int | None
    stored: int | None
    decoder_only: bool
    experts_fused: bool
    float32: tuple[str, ...]
    source: str | None
    config_source: str
    confidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Small matrices trained beside a base model: `base` is its name as written, `rank` and `targets` as configured.

    config: the raw mapping of adapter_config.json.
    """

    kind: str
    base: str | None
    rank: int | None
    targets: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    config: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything read about a model: `None` where there was nothing to read, never an empty stand-in.

    config: the raw mapping of config.json. tensors: as the headers state them. missing_files: shards that the index
    names and that are not there, with the tensors that they should hold. adapter: what is stored where the repository is
    one; the rest is then its base model's, as far as that could be read. gguf: whether the files are GGUF; `config` is then their
    metadata without the tokenizer's. quantisation_file: the name and content of a file beside config.json that says how the
    weights are quantised, where config.json does not (see `declarations.FILES`).
    """

    ref: ModelRef
    config: Mapping[str, Any] | None
    tensors: tuple[Tensor, ...] | None
    files: tuple[StoredFile, ...] = ()
    missing_files: Mapping[str, tuple[str, ...]] | None = None
    release: Release | None = None
    adapter: Adapter | None = None
    gguf: bool = False
    quantisation_file: tuple[str, Mapping[str, Any]] | None = None
    notices: tuple[Message, ...] = ()
