"""A model as stored: its location, its configuration as written, its tensors as in the files' headers.

Nothing here is interpreted: tied, fused and packed tensors are resolved by the architecture and the analysis.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from .language import Message
from .standard import Enum
from .typed import TYPE_CHECKING, Any, Literal
from .values import dataclass, field

if TYPE_CHECKING:
    from pathlib import Path

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

    __hash__ = object.__hash__  # Enum's own is that of the name, computed in Python each time

    def __str__(self) -> str:
        return self.torch_name


DTYPE_OF_CODE: Mapping[str, DType] = {dtype.code: dtype for dtype in DType}
DTYPE_OF_TORCH_NAME: Mapping[str, DType] = {dtype.torch_name: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A ggml number format: blocks of `block_elements` numbers of a row, with their scales, in `block_bytes` bytes."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def code(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


# Source: ggml, ggml-common.h (block_q4_0 and others) and ggml.c, type_traits; gguf 0.19, GGML_QUANT_SIZES.
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
    """A named array. `elements` counts stored words of packed weights (not parameters), and the numbers of a block format
    (without scales)."""

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
            # Whole blocks: checked when read.
            return self.elements // self.dtype.block_elements * self.dtype.block_bytes
        return self.elements * self.dtype.bits // 8  # sub-byte tensors are checked to fill whole bytes when read


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A weight file with its size and, if a hub states it, its SHA-256 (hashing gigabytes locally would take too long)."""

    name: str
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCount:
    """What a hub itself says of the tensors in its weight files.

    elements: numbers by dtype's code, from Hugging Face's API. size_bytes: of all tensors, from the files' index, which is read
    only if the hub counts nothing. first: the tensors of the first file, if config.json names no dtype.
    """

    elements: Mapping[str, int] | None = None
    size_bytes: int | None = None
    first: tuple[Tensor, ...] = ()

    @property
    def total(self) -> int | None:
        return None if self.elements is None else sum(self.elements.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The location of a model. source: "local", "catalog", "ollama", a hub's ("hf", "ms") or "auto". id: what the user types for
    it.

    file: selects one of several GGUF files, by name or by quantisation.
    """

    source: str
    id: str
    revision: str | None = None
    path: Path | None = None
    file: str | None = None

    def of_file(self, name: str) -> str:
        """What the user types, in any command, for the file `name` of this model."""
        if self.source == "local":
            return os.path.join(self.path or self.id, name)
        if self.source == "auto":
            return f"{self.id}:{name}"
        return f"{self.source}:{self.id}{f'@{self.revision}' if self.revision else ''}:{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Facts about a release's files that the configuration lacks. decoder_only: they hold the decoder without prefix or head.

    experts_fused: they hold experts fused as in transformers, unlike other releases of the family; the prediction layer's
    experts are separate tensors all the same.
    float32: suffixes of the names of tensors that are float32 whatever the model's dtype.
    parameters, stored: published counts of unique parameters and of stored elements. source: their origin. kind: of the
    configuration's source: "file", "code", "listed" or "sibling". missing_keys: that config.json has and this copy of it lacks.
    """

    parameters: int | None
    stored: int | None
    decoder_only: bool
    experts_fused: bool
    float32: tuple[str, ...]
    source: str | None
    config_source: str
    kind: str
    confidence: str
    missing_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter. base: the base model's name as written; rank, targets: as configured.

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
    """Raw model files. `None` means absent.

    config: the raw mapping of config.json. tensors: as in the headers. missing_files: absent shards that the index names, with
    the tensors that they should hold. adapter: the adapter, if the repository is one; the other fields are then its base
    model's, if that could be read. gguf: whether the files are GGUF; `config` is then their metadata without the tokenizer's.
    quantisation_file: name and content of the file that declares the quantisation, if config.json does not (see
    `declarations.FILES`). served: parameters that a local server's store sets for every run, by their names there. hub_count:
    what the hub counts, if it does; without `tensors`, the headers of `files` were not read.
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
    hub_count: HubCount | None = None
    served: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[Message, ...] = ()
