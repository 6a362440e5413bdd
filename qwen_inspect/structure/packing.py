"""Quantised weights: every stored tensor, from the modules and the configuration's schemes, and the total size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from itertools import groupby

from ..architectures import StoredForm
from ..checkpoint import BlockFormat, DType, Tensor
from ..declarations import MODEL_DTYPES
from ..errors import MalformedError
from ..language import Message
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
    Quantisation,
    Scheme,
)
from ..results.stored import KeptModules, QuantisedWeights
from ..spec import Module, each_module, each_tensor
from ..values import dataclass
from .experts import EXPERT, EXPERTS

WORD_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a model's weights are stored. Keys are names in files of the dense model.

    parts: the stored tensors of each quantised matrix. dense: those matrices before quantisation. kept: unquantised linear
    modules and their matrices. form: what files of the dense model hold for a tensor of the tree. experts: where no file tells
    experts apart, the first one's matrices stand for all: how many each stands for. fused: a loaded model holds a layer's
    experts in one tensor.
    """

    parts: Mapping[str, tuple[Part, ...]]
    dense: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    form: StoredForm
    experts: Mapping[str, int] = field(default_factory=dict)
    fused: bool = False

    def stored_form(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The stored tensors of one tensor of the tree."""
        return tuple(stored for dense in self.form(tensor) for stored, _ in self._stored(dense))

    def loaded(self, tensor: Tensor) -> Iterator[Tensor]:
        """The tensors that a loaded model holds: `stored_form` without the notes, which only a loader reads."""
        matrices = self._each_kind(tensor)
        held = [[(stored, role) for stored, role in self._stored(matrix) if role != "notes"] for matrix in matrices]
        alike = {tuple((stored.shape, stored.dtype, role) for stored, role in parts) for parts in held}
        if not self.fused or len(tensor.shape) != 3 or len(alike) != 1 or matrices[0].name == tensor.name:
            yield from (
                stored for dense in self.form(tensor) for stored, role in self._stored(dense) if role != "notes"
            )
            return
        for stored, _ in held[0]:
            count = tensor.elements // matrices[0].elements
            yield Tensor(tensor.name + stored.name.removeprefix(matrices[0].name), (count, *stored.shape), stored.dtype)

    def loaded_bytes(self, tensor: Tensor) -> list[int]:
        """The bytes of each of `loaded`; experts that no file tells apart are as large as the first."""
        matrices = self._each_kind(tensor)
        sizes = [[part.size_bytes for part, role in self._stored(matrix) if role != "notes"] for matrix in matrices]
        are_alike = all(size == sizes[0] for size in sizes)  # so that their order does not matter
        if self.fused or not are_alike or not all(matrix.name in self.experts for matrix in matrices):
            return [part.size_bytes for part in self.loaded(tensor)]
        return sizes[0] * (len(matrices) * tensor.shape[0])

    def _each_kind(self, tensor: Tensor) -> Sequence[Tensor]:
        """The matrices that files of the dense model hold for a tensor; those of one expert if they stand for all."""
        if len(tensor.shape) == 3:
            first = self.form(replace(tensor, shape=(1, *tensor.shape[1:])))
            if all(matrix.name in self.experts for matrix in first):
                return first
        return self.form(tensor)

    def _stored(self, dense: Tensor) -> Sequence[tuple[Tensor, str]]:
        """The tensors that files hold for one of the dense model's, and their roles; "" for one that is not quantised."""
        if dense.name in self.parts:
            return [(part.tensor, part.role) for part in self.parts[dense.name]]
        first = EXPERT.sub(f"{EXPERTS}0.", dense.name)
        if first not in self.experts or first not in self.parts:
            return [(dense, "")]
        before, after = first.removesuffix("weight"), dense.name.removesuffix("weight")
        return [
            (replace(part.tensor, name=after + part.tensor.name.removeprefix(before)), part.role)
            for part in self.parts[first]
        ]

    def quantises(self, tensor: Tensor) -> bool:
        """Whether any matrix of a tensor of the tree is stored in parts."""
        return any(matrix.name in self.parts for matrix in self._each_kind(tensor))

    def quantised(self) -> Iterator[tuple[Tensor, tuple[Part, ...], int]]:
        """(matrix, its parts, how many matrices it stands for) of each quantised matrix."""
        return ((matrix, self.parts[name], self.experts.get(name, 1)) for name, matrix in self.dense.items())


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The tensors of a loaded model, made anew each time they are asked for: a mixture of experts has hundreds of thousands."""

    tree: Module
    packing: Packing

    def __iter__(self) -> Iterator[Tensor]:
        return (part for tensor in each_tensor(self.tree) for part in self.packing.loaded(tensor))


def pack(tree: Module, quantisation: Quantisation, form: StoredForm, stored: Sequence[Tensor] | None) -> Packing:
    """Which matrices are quantised, and the tensors that store them.

    By the configuration; if files were read, they decide which modules are quantised. Raises MalformedError if a matrix does not
    divide into the scheme's groups, or if a stored tensor has not the scheme's shape.
    """
    by_name = None if stored is None else {tensor.name: tensor for tensor in stored}
    if quantisation.method == "mlx":
        form = _mlx_experts(form)
    if by_name is not None:
        form = _or_as_built(form, by_name)
    parts: dict[str, tuple[Part, ...]] = {}
    dense, kept = {}, {}
    experts: dict[str, int] = {}
    together = quantisation.experts_alike and by_name is None
    for matrix, built, linear, times in _matrices(tree, form, every=quantisation.every_matrix, together=together):
        module = matrix.name.removesuffix(".weight")
        if times > 1:
            experts[matrix.name] = times
        scheme = quantisation.scheme_of(*{module, built}) if linear or _takes_experts(quantisation) else None
        packed = None if scheme is None else _packed(matrix, scheme)
        if by_name is not None:
            packed = _as_in_files(matrix, packed, quantisation, by_name)
        if packed is None:
            kept[module] = matrix
        else:
            parts[matrix.name], dense[matrix.name] = packed, matrix
    return Packing(parts=parts, dense=dense, kept=kept, form=form, experts=experts, fused=_fuses(quantisation))


def _fuses(quantisation: Quantisation) -> bool:
    """Whether a layer's experts are loaded as one tensor, as in the dense model; GPTQModel and AutoAWQ keep modules of their own.

    Source: transformers 5.23, integrations/finegrained_fp8.FP8Experts; GPTQModel 7.7, Qwen3MoeQModel.module_tree
    """
    return quantisation.method not in ("gptq", "awq", "auto-round")


def _or_as_built(form: StoredForm, by_name: Mapping[str, Tensor]) -> StoredForm:
    """`form`, except for tensors stored as transformers builds them, mostly fused experts, which few libraries quantise."""

    def chosen(tensor: Tensor) -> tuple[Tensor, ...]:
        stored = by_name.get(tensor.name)
        return form(tensor) if stored is None or stored.shape != tensor.shape else (tensor,)

    return chosen


def as_stored(tree: Module, form: StoredForm, stored: Sequence[Tensor]) -> Packing:
    """Every tensor in its stored format: a GGUF file chooses one for each tensor."""
    by_name = {tensor.name: tensor for tensor in stored}
    parts: dict[str, tuple[Part, ...]] = {}
    dense, kept = {}, {}
    for tensor in each_tensor(tree):
        for expected in form(tensor):
            actual = by_name.get(expected.name)
            if actual is None or actual.shape != expected.shape:
                continue  # the check against the files reports it
            if isinstance(actual.dtype, BlockFormat):
                parts[expected.name], dense[expected.name] = (Part(actual, "packed"),), expected
            elif actual.dtype in MODEL_DTYPES:
                parts[expected.name] = (Part(actual, "plain"),)
                if len(expected.shape) > 1:
                    kept[expected.name.removesuffix(".weight")] = expected
    return Packing(parts=parts, dense=dense, kept=kept, form=form)


def _mlx_experts(form: StoredForm) -> StoredForm:
    """`form`, with fused experts as mlx-lm stores them: three stacks (experts, output features, input features) a layer.

    Source: mlx-lm 0.32, models/switch_layers.SwitchGLU; models/qwen3_moe.Model.sanitize
    """

    def stacked(tensor: Tensor) -> tuple[Tensor, ...]:
        layer, experts, name = tensor.name.rpartition(".experts.")
        if not experts or len(tensor.shape) != 3:
            return form(tensor)
        count, rows, columns = tensor.shape
        stack = f"{layer}.switch_mlp"
        if name == "gate_up_proj":
            half = (count, rows // 2, columns)
            return tuple(replace(tensor, name=f"{stack}.{part}_proj.weight", shape=half) for part in ("gate", "up"))
        return (replace(tensor, name=f"{stack}.{name}.weight"),) if name == "down_proj" else form(tensor)

    return stacked


def _matrices(
    tree: Module, form: StoredForm, *, every: bool, together: bool
) -> Iterator[tuple[Tensor, str, bool, int]]:
    """(matrix, module, is linear, how many it stands for) for every matrix that a scheme could quantise.

    matrix: as files of the dense model name it. module: transformers' name of its module, or of the fused experts. every:
    treat embeddings and routers as linear modules too. together: the first expert's matrices stand for a layer's.
    """
    for prefix, module in each_module(tree):
        linear = module.class_name == "Linear" or (every and _is_matrix(module))
        if not linear and module.routed is None:
            continue
        for tensor in module.tensors:
            if len(tensor.shape) < 2 or tensor.name.endswith("bias"):
                continue
            full = Tensor(f"{prefix}.{tensor.name}", tensor.shape, tensor.dtype)
            count, *sides = tensor.shape
            first = form(replace(full, shape=(1, *sides))) if together and len(sides) == 2 else ()
            if first and all(EXPERT.search(matrix.name) for matrix in first):
                yield from ((matrix, prefix, linear, count) for matrix in first)
            else:
                yield from ((matrix, prefix, linear, 1) for matrix in form(full))


def _is_matrix(module: Module) -> bool:
    return len(module.tensors) == 1 and module.tensors[0].name == "weight" and len(module.tensors[0].shape) == 2


def _takes_experts(quantisation: Quantisation) -> bool:
    """bitsandbytes replaces only `nn.Linear`, so not fused experts. Source: replace_with_bnb_linear."""
    return quantisation.method != "bitsandbytes"


def _as_in_files(
    matrix: Tensor,
    packed: tuple[Part, ...] | None,
    quantisation: Quantisation,
    by_name: Mapping[str, Tensor],
) -> tuple[Part, ...] | None:
    """The parts as stored: None if the files hold the matrix dense; `packed`, as configured, if they hold neither."""
    dense = by_name.get(matrix.name)
    if dense is not None and dense.dtype in MODEL_DTYPES and dense.shape == matrix.shape:
        return None
    if packed is None:
        packed = _packed_despite_configuration(matrix, quantisation, by_name)
        if packed is None:
            return None
    parts = []
    for part in packed:
        tensor = by_name.get(part.tensor.name)
        if tensor is None and part.optional:
            continue
        if tensor is None:
            parts.append(part)
            continue
        fits = tensor.shape == part.tensor.shape or (part.any_length and len(tensor.shape) == 1)
        if not fits or (part.role == "packed" and tensor.size_bytes != part.tensor.size_bytes):
            raise MalformedError(
                "quantised_shape",
                tensor=tensor.name,
                found=f"{tensor.shape} {tensor.dtype}",
                expected=f"{part.tensor.shape} {part.tensor.dtype}",
                method=quantisation.method,
            )
        parts.append(replace(part, tensor=tensor))  # with its stored dtype: scales come in several
    return tuple(parts)


def _packed_despite_configuration(
    matrix: Tensor, quantisation: Quantisation, by_name: Mapping[str, Tensor]
) -> tuple[Part, ...] | None:
    """The parts of a matrix that the configuration skips, if the files hold it packed all the same."""
    module = matrix.name.removesuffix(".weight")
    marks = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB", "weight.absmax", "scales")
    if not any(f"{module}.{mark}" in by_name for mark in marks):
        return None
    schemes = (scheme for scheme in reversed(quantisation.schemes) if not isinstance(scheme, Mxfp4Experts))
    return next((packed for scheme in schemes if (packed := _packed(matrix, scheme)) is not None), None)


# --- the parts of one matrix -----------------------------------------------------------------------------------------


def _packed(matrix: Tensor, scheme: Scheme) -> tuple[Part, ...] | None:
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
            return (Part(replace(matrix, dtype=DType.F8_E4M3), "packed"), Part(scale, "scales"), *inputs)
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


# --- totals --------------------------------------------------------------------------------------------------------


def packed_tree(tree: Module, packing: Packing) -> Module:
    """The tree with stored bytes of its quantised tensors; equal siblings are folded again."""
    return _packed_module(tree, "", packing)


def _packed_module(module: Module, prefix: str, packing: Packing) -> Module:
    packed_bytes = None
    full = [replace(tensor, name=f"{prefix}.{tensor.name}") for tensor in module.tensors]
    if any(packing.quantises(tensor) for tensor in full):
        packed_bytes = sum(size_bytes for tensor in full for size_bytes in packing.loaded_bytes(tensor))
    children = []
    for child in module.children:
        siblings = [
            replace(child, name=child.name if child.repeats == 1 else str(int(child.name) + index), repeats=1)
            for index in range(child.repeats)
        ]
        packed = [
            _packed_module(sibling, f"{prefix}.{sibling.name}" if prefix else sibling.name, packing)
            for sibling in siblings
        ]
        for _, run in groupby(packed, key=lambda sibling: replace(sibling, name="")):
            equal = list(run)
            children.append(replace(equal[0], repeats=len(equal)))
    return replace(module, packed_bytes=packed_bytes, children=tuple(children))


def weights_of(tree: Module, packed: Module, quantisation: Quantisation, packing: Packing) -> QuantisedWeights:
    """Quantised parameters, bytes of these and of the rest, and the unquantised linear modules.

    packed: the result of `packed_tree`.
    """
    schemes = tuple(dict.fromkeys(map(describe, quantisation.schemes)))
    return _weights(tree, packed, packing, quantisation.method, schemes)


def weights_as_stored(tree: Module, packed: Module, packing: Packing) -> QuantisedWeights:
    """The same for a GGUF file, whose schemes are the formats of its tensors."""
    formats: dict[str, tuple[int, int]] = {}
    for name, dense in packing.dense.items():
        (part,) = packing.parts[name]
        tensors, parameters = formats.get(str(part.tensor.dtype), (0, 0))
        formats[str(part.tensor.dtype)] = tensors + 1, parameters + dense.elements
    schemes = tuple(
        Message("scheme_ggml", format=name, tensors=tensors, parameters=parameters)
        for name, (tensors, parameters) in sorted(formats.items(), key=lambda item: -item[1][1])
    )
    return _weights(tree, packed, packing, "gguf", schemes)


def _weights(
    tree: Module, packed: Module, packing: Packing, method: str, schemes: tuple[Message, ...]
) -> QuantisedWeights:
    quantised = list(packing.quantised())
    parameters = sum(matrix.elements * times for matrix, _, times in quantised)
    size_bytes, loaded_bytes = 0, 0
    for _, parts, times in quantised:
        size_bytes += times * sum(part.tensor.size_bytes for part in parts)
        loaded_bytes += times * sum(part.tensor.size_bytes for part in parts if part.role != "notes")
    return QuantisedWeights(
        method=method,
        schemes=schemes,
        matrices=sum(times for _, _, times in quantised),
        parameters=parameters,
        size_bytes=size_bytes,
        other_parameters=tree.parameters - parameters,
        other_bytes=packed.size_bytes - loaded_bytes,
        kept=tuple(_kept(packing)),
        largest_parameters=max(_together(packing).values(), default=0),
        widths=(_widest(packing.dense, experts=False), _widest(packing.dense, experts=True)),
    )


def _together(packing: Packing) -> Counter[str]:
    """Parameters of each quantised matrix; a layer's experts count as one, as transformers fuses them."""
    parameters: Counter[str] = Counter()
    for matrix, _, times in packing.quantised():
        before, experts, _ = matrix.name.partition(EXPERTS)
        parameters[before + experts if experts else matrix.name] += matrix.elements * times
    return parameters


def _widest(dense: Mapping[str, Tensor], *, experts: bool) -> int:
    """The largest sum of inputs and outputs of a matrix."""
    return max((sum(matrix.shape[-2:]) for name, matrix in dense.items() if (EXPERTS in name) is experts), default=0)


def _kept(packing: Packing) -> Iterator[KeptModules]:
    """Unquantised linear modules; layer numbers become `*`, so that all layers share a row: `model.layers.*.mlp.gate`."""
    counts: dict[str, tuple[int, int]] = {}
    for name, matrix in packing.kept.items():
        folded = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        modules, parameters = counts.get(folded, (0, 0))
        times = packing.experts.get(matrix.name, 1)
        counts[folded] = modules + times, parameters + matrix.elements * times
    for name, (modules, parameters) in counts.items():
        yield KeptModules(name=name, modules=modules, parameters=parameters)


def describe(scheme: Scheme) -> Message:
    """A scheme as a phrase."""

    def group(size: int | None) -> Message:
        return Message("group_row") if size is None else Message("group_of", size=size)

    match scheme:
        case Awq(bits=bits, group_size=size) | Gptq(bits=bits, group_size=size):
            return Message("scheme_zeros", bits=bits, group=group(size))
        case Fp8(block=None):
            return Message("scheme_fp8_tensor")
        case Fp8(block=(rows, columns)):
            return Message("scheme_fp8", rows=rows, columns=columns)
        case BnbInt8():
            return Message("scheme_bnb8")
        case Bnb4(kind=kind, double=double):
            return Message("scheme_bnb4_double" if double else "scheme_bnb4", kind=kind.upper())
        case CompressedIntegers(bits=bits, group_size=size, symmetric=symmetric):
            return Message("scheme_symmetric" if symmetric else "scheme_zeros", bits=bits, group=group(size))
        case CompressedNumbers(dtype=dtype):
            return Message("scheme_numbers", dtype=str(dtype))
        case CompressedFp4(group_size=size):
            return Message("scheme_fp4", size=size)
        case ModelOptFp8():
            return Message("scheme_fp8_tensor")
        case ModelOptNvfp4():
            return Message("scheme_fp4", size=16)
        case Mlx(bits=bits, group_size=size, mode="affine"):
            return Message("scheme_zeros", bits=bits, group=group(size))
        case Mlx(bits=bits, group_size=size, mode=mode):
            return Message("scheme_mlx", bits=bits, mode=mode, group=group(size))
        case Mxfp4Experts():
            return Message("scheme_mxfp4")
    raise AssertionError(scheme)  # mypy: an Fp8's block is None or a pair
