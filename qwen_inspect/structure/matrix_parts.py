"""The tensors that store one quantised matrix, by the formulas of its scheme."""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoint import BlockFormat, DType, Tensor
from ..errors import MalformedError
from ..results.quantisation import (
    Awq,
    Bnb4,
    BnbInt8,
    CompressedFp4,
    CompressedIntegers,
    CompressedNumbers,
    Fp8,
    Gptq,
    Mlx,
    ModelOptFp8,
    ModelOptNvfp4,
    Mxfp4Experts,
    Part,
    Scheme,
)
from ..standard import json
from ..values import replace

WORD_BITS = 32


def parts_of(matrix: Tensor, scheme: Scheme) -> tuple[Part, ...] | None:
    """The tensors that store a matrix (..., output features, input features); None if the scheme does not quantise it."""
    *experts, rows, columns = matrix.shape
    module = matrix.name.removesuffix(".weight")
    if experts and not isinstance(scheme, Mxfp4Experts | Fp8 | Mlx):
        return None
    if not experts and isinstance(scheme, Mxfp4Experts):
        return None

    def part(
        name: str, shape: tuple[int, ...], dtype: DType | BlockFormat, role: str, *, optional: bool = False
    ) -> Part:
        return Part(Tensor(f"{module}.{name}", shape, dtype), role, optional)

    match scheme:
        case Awq(bits=bits, group_size=size):
            groups = _whole(matrix, columns, size or columns)
            words = _whole(matrix, rows * bits, WORD_BITS)
            return (
                part("qweight", (columns, words), DType.I32, "packed"),
                part("scales", (groups, rows), DType.F16, "scales"),
                part("qzeros", (groups, words), DType.I32, "zeros"),
            )
        case Gptq(bits=bits, group_size=size):
            groups = -(-columns // (size or columns))  # the last group may be shorter
            parts = [
                part("qweight", (_whole(matrix, columns * bits, WORD_BITS), rows), DType.I32, "packed"),
                part("scales", (groups, rows), DType.F16, "scales"),
                part("qzeros", (groups, _whole(matrix, rows * bits, WORD_BITS)), DType.I32, "zeros"),
            ]
            if scheme.indexed:
                parts.append(part("g_idx", (columns,), DType.I32, "group_index", optional=True))
            return tuple(parts)
        case Fp8(block=block, static_inputs=static):
            scales = () if block is None else (-(-rows // block[0]), -(-columns // block[1]))
            scale = Tensor(f"{matrix.name}_scale_inv", (*experts, *scales), scheme.scale_dtype)
            inputs = (part("activation_scale", (), DType.F32, "scales", optional=True),) if static else ()
            return (
                Part(Tensor(matrix.name, matrix.shape, DType.F8_E4M3, matrix.file), "packed"),
                Part(scale, "scales"),
                *inputs,
            )
        case BnbInt8():
            return (
                part("weight", (rows, columns), DType.I8, "packed"),
                part("SCB", (rows,), DType.F32, "scales"),
                part("weight_format", (), DType.U8, "notes", optional=True),
            )
        case Bnb4():
            return tuple(_bnb4(matrix, scheme))
        case CompressedIntegers(bits=bits, group_size=size):
            groups = _whole(matrix, columns, size or columns)
            parts = [
                part("weight_packed", (rows, -(-columns * bits // WORD_BITS)), DType.I32, "packed"),
                part("weight_scale", (rows, groups), matrix.dtype, "scales"),
                part("weight_shape", (2,), DType.I64, "notes"),
            ]
            if not scheme.symmetric:
                parts.append(part("weight_zero_point", (-(-rows * bits // WORD_BITS), groups), DType.I32, "zeros"))
            if scheme.ordered:
                parts.append(part("weight_g_idx", (columns,), DType.I32, "group_index", optional=True))
            return tuple(parts)
        case CompressedNumbers(dtype=dtype, scaled=scaled):
            whole = scaled == (None, None)
            shape = (1,) if whole else (-(-rows // (scaled[0] or rows)), -(-columns // (scaled[1] or columns)))
            parts = [
                part("weight", (rows, columns), dtype, "packed"),
                part("weight_scale", shape, scheme.scale_dtype or matrix.dtype, "scales"),
            ]
            if not scheme.symmetric:
                parts.append(part("weight_zero_point", shape, dtype, "zeros", optional=True))
            if scheme.static_inputs:
                parts.append(part("input_scale", (1,), matrix.dtype, "scales", optional=True))
            return tuple(parts)
        case CompressedFp4(group_size=size):
            parts = [
                part("weight_packed", (rows, _whole(matrix, columns, 2)), DType.U8, "packed"),
                part("weight_scale", (rows, _whole(matrix, columns, size)), scheme.scale_dtype, "scales"),
            ]
            if scheme.two_level:
                parts.append(part("weight_global_scale", (1,), DType.F32, "scales"))
            if scheme.static_inputs:
                parts.append(part("input_global_scale", (1,), DType.F32, "scales", optional=True))
            return tuple(parts)
        case ModelOptNvfp4():
            return (
                part("weight", (rows, _whole(matrix, columns, 2)), DType.U8, "packed"),
                part("weight_scale", (rows, _whole(matrix, columns, 16)), DType.F8_E4M3, "scales"),
                part("weight_scale_2", (), DType.F32, "scales"),
                part("input_scale", (), DType.F32, "scales", optional=True),
            )
        case ModelOptFp8():
            return (
                part("weight", (rows, columns), DType.F8_E4M3, "packed"),
                part("weight_scale", (), DType.F32, "scales"),
                part("input_scale", (), DType.F32, "scales", optional=True),
            )
        case Mlx(bits=bits, group_size=size, mode=mode):
            if columns % size:
                return None  # mlx-lm does not quantise such a matrix
            groups = columns // size
            words = _whole(matrix, columns * bits, WORD_BITS)
            scale_dtype = matrix.dtype if mode == "affine" else DType.U8
            parts = [
                part("weight", (*experts, rows, words), DType.U32, "packed"),
                part("scales", (*experts, rows, groups), scale_dtype, "scales"),
            ]
            if mode == "affine":
                parts.append(part("biases", (*experts, rows, groups), matrix.dtype, "zeros"))
            return tuple(parts)
        case Mxfp4Experts():
            # The module has (experts, inputs, outputs), the file (experts, outputs, inputs / 32, 16 bytes).
            blocks = (*experts, columns, _whole(matrix, rows, 32))
            packed = Tensor(f"{matrix.name}_blocks", (*blocks, 16), DType.U8)
            return (Part(packed, "packed"), Part(Tensor(f"{matrix.name}_scales", blocks, DType.U8), "scales"))


def _bnb4(matrix: Tensor, scheme: Bnb4) -> Iterator[Part]:
    """Codes, two a byte; a scale (absmax) for each block of 64; a table of the 16 values; metadata as JSON.

    Double quantisation: the scales are 8-bit codes with a scale for each block of 256. The JSON then holds their mean, so no
    formula gives its length. Source: bitsandbytes 0.50, functional.quantize_4bit and QuantState.as_dict.
    """

    def part(suffix: str, count: int, dtype: DType, role: str) -> Part:
        return Part(Tensor(f"{matrix.name}.{suffix}", (count,), dtype), role)

    blocks = -(-matrix.elements // 64)
    code_bytes = (matrix.elements + 1) // 2
    words = -(-code_bytes * 8 // scheme.storage.bits)
    yield Part(Tensor(matrix.name, (words, 1), scheme.storage), "packed")
    yield part("absmax", blocks, DType.U8 if scheme.double else DType.F32, "scales")
    if scheme.double:
        yield part("nested_absmax", -(-blocks // 256), DType.F32, "scales")
        yield part("nested_quant_map", 256, DType.F32, "tables")
    yield part("quant_map", 16, DType.F32, "tables")
    note = {"quant_type": scheme.kind, "blocksize": 64, "dtype": str(matrix.dtype), "shape": list(matrix.shape)}
    yield replace(
        part(f"quant_state.bitsandbytes__{scheme.kind}", len(json.dumps(note)), DType.U8, "notes"), any_length=True
    )


def _whole(matrix: Tensor, features: int, size: int) -> int:
    """`features` / `size`; MalformedError if there is a remainder."""
    if features % size:
        raise MalformedError("quantised_does_not_divide", tensor=matrix.name, features=features, size=size)
    return features // size
