"""How quantised weights are stored: the kinds of scheme, as nouns. `structure.packing` has their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..checkpoint import DType, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """Integers packed along the output features, one scale and one zero for each group of input features (None: one group)."""

    bits: int
    group_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """Integers packed along the input features; each input feature names its group, unless files go without (`indexed`)."""

    bits: int
    group_size: int | None
    indexed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8:
    """8-bit floats with a scale for each block of (output, input) features, or one for the matrix where `block` is None."""

    block: tuple[int, int] | None
    scale_dtype: DType
    static_inputs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BnbInt8:
    """bitsandbytes' LLM.int8(): 8-bit integers with one scale for each output feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bnb4:
    """bitsandbytes' 4 bits, `kind` "nf4" or "fp4": blocks of 64 numbers, whose scales are quantised again where `double`."""

    kind: str
    double: bool
    storage: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedIntegers:
    """compressed-tensors, "pack-quantized": integers packed along the input features. ordered: with the groups' order stored."""

    bits: int
    group_size: int | None
    symmetric: bool
    ordered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedNumbers:
    """compressed-tensors, one number a byte: `scaled` says what shares a scale: a block of (output, input) features.

    A side of None is the whole side: (None, None) the matrix, (1, None) an output feature, (1, 32) 32 numbers of a row.
    """

    dtype: DType
    scaled: tuple[int | None, int | None]
    scale_dtype: DType | None
    symmetric: bool
    static_inputs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedFp4:
    """compressed-tensors' 4-bit floats, two a byte: "nvfp4-pack-quantized" (groups of 16) and "mxfp4-pack-quantized" (of 32)."""

    group_size: int
    scale_dtype: DType
    two_level: bool
    static_inputs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptNvfp4:
    """NVIDIA ModelOpt's NVFP4: two 4-bit floats a byte, an 8-bit scale for 16 of them, a 32-bit scale for the matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptFp8:
    """NVIDIA ModelOpt's FP8: 8-bit floats with one scale for the matrix, and one for its inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlx:
    """MLX: numbers packed along the input features into 32-bit words, a scale for each group of them.

    mode "affine": a bias for each group too, both in the model's dtype; "mxfp4", "mxfp8", "nvfp4": 8-bit scales alone.
    """

    bits: int
    group_size: int
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Experts:
    """gpt-oss: fused experts alone, as blocks of 32 4-bit floats with an 8-bit exponent each (OCP MX specification 1.0)."""


Scheme = (
    Awq
    | Gptq
    | Fp8
    | BnbInt8
    | Bnb4
    | CompressedIntegers
    | CompressedNumbers
    | CompressedFp4
    | ModelOptFp8
    | ModelOptNvfp4
    | Mlx
    | Mxfp4Experts
)
ModuleTest = Callable[[str], bool]  # of a module's full name


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeGroup:
    """A scheme, and which linear modules' names it takes; `scheme` is None for a group that stays as it is."""

    takes: ModuleTest
    scheme: Scheme | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """What a configuration says: `method` is its quant_method; the first group that takes a module decides, unless skipped.

    named: what is said of single modules by their full names, which decides before any group (None: left as it is).
    every_matrix: embeddings and routers are quantised too, not linear modules alone.
    """

    method: str
    groups: tuple[SchemeGroup, ...]
    skips: ModuleTest
    named: Mapping[str, Scheme | None] = field(default_factory=dict)
    every_matrix: bool = False

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that some module may have, each once: those of the groups last, which are of most modules."""
        found = (*self.named.values(), *(group.scheme for group in self.groups))
        return tuple(scheme for scheme in dict.fromkeys(found) if scheme is not None)

    def scheme_of(self, *names: str) -> Scheme | None:
        """The scheme of a linear module by its full name; None where it stays as it is.

        names: in files and as transformers builds it, where these differ: configurations are written with either.
        """
        if any(self.skips(name) for name in names):
            return None
        for name in names:
            if name in self.named:
                return self.named[name]
        return next((group.scheme for group in self.groups if any(group.takes(name) for name in names)), None)


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor of a quantised matrix.

    role: "packed" (the numbers), "plain" (the same in another dtype), "scales", "zeros", "group_index", "tables" (the values
    that codes stand for) or "notes" (how to read the rest). optional: files may leave it out. any_length: a text whose length
    no formula gives.
    """

    tensor: Tensor
    role: str
    optional: bool = False
    any_length: bool = False
