"""Quantisation schemes as types. `structure.matrix_parts` has their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..checkpoint import DType, Tensor
from ..values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """Integers packed along the output features, one scale and one zero for each group of input features (None: one group)."""

    bits: int
    group_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """Integers packed along the input features; each input feature names its group if `indexed`."""

    bits: int
    group_size: int | None
    indexed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8:
    """8-bit floats with a scale for each block of (output, input) features, or one for the matrix if `block` is None."""

    block: tuple[int, int] | None
    scale_dtype: DType
    static_inputs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BnbInt8:
    """bitsandbytes' LLM.int8(): 8-bit integers with one scale for each output feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bnb4:
    """bitsandbytes' 4 bits, `kind` "nf4" or "fp4": blocks of 64 numbers, whose scales are quantised again if `double`."""

    kind: str
    double: bool
    storage: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedIntegers:
    """compressed-tensors, "pack-quantized": integers packed along the input features. ordered: the groups' order is stored."""

    bits: int
    group_size: int | None
    symmetric: bool
    ordered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedNumbers:
    """compressed-tensors, one number a byte. scaled: the block of (output, input) features that shares a scale.

    None is the whole side: (None, None) the matrix, (1, None) an output feature, (1, 32) 32 numbers of a row.
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
    """A scheme and a test for the linear modules it applies to; `scheme` is None for modules that stay dense."""

    takes: ModuleTest
    scheme: Scheme | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A configuration's quantisation. method: its quant_method. The first group that takes a module decides, unless skipped.

    named: schemes of single modules by full name, which precede all groups (None: dense). every_matrix: embeddings and routers
    are quantised too, not only linear modules. experts_alike: no name or pattern can tell a layer's experts apart.
    """

    method: str
    groups: tuple[SchemeGroup, ...]
    skips: ModuleTest
    named: Mapping[str, Scheme | None] = field(default_factory=dict)
    every_matrix: bool = False
    experts_alike: bool = False

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The distinct schemes of all modules; those of the groups, which most modules have, come last."""
        schemes = (*self.named.values(), *(group.scheme for group in self.groups))
        return tuple(scheme for scheme in dict.fromkeys(schemes) if scheme is not None)

    def scheme_of(self, *names: str) -> Scheme | None:
        """The scheme of a linear module; None if it stays dense.

        names: its full name in files and in transformers, if they differ; configurations use either.
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

    role: "packed" (the numbers), "plain" (unpacked, in another dtype), "scales", "zeros", "group_index", "tables" (the values
    of the codes) or "notes" (metadata for a loader). optional: may be absent from the files. any_length: a text whose length no
    formula gives.
    """

    tensor: Tensor
    role: str
    optional: bool = False
    any_length: bool = False
