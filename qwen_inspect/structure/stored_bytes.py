"""The size of quantised weights: their tree in stored bytes, and totals by scheme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby

from ..checkpoint import Tensor
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
    Quantisation,
    Scheme,
)
from ..results.stored import KeptModules, QuantisedWeights
from ..spec import Module
from ..values import replace
from .experts import EXPERTS
from .packing import Packing


def packed_tree(tree: Module, packing: Packing) -> Module:
    """The tree with stored bytes of its quantised tensors; equal siblings are folded again."""
    return _packed_module(tree, "", packing)


def _packed_module(module: Module, prefix: str, packing: Packing) -> Module:
    packed_bytes = _packed_bytes(module, prefix, packing)
    if packed_bytes is None and not module.children:
        return module
    children = []
    for child in module.children:
        if child.repeats == 1:
            children.append(_packed_module(child, f"{prefix}.{child.name}" if prefix else child.name, packing))
            continue
        names = [str(int(child.name) + index) for index in range(child.repeats)]
        sizes = [[*_each_packed_bytes(child, f"{prefix}.{name}" if prefix else name, packing)] for name in names]
        for _, run in groupby(zip(sizes, names, strict=True), key=lambda sibling: sibling[0]):
            equal = [name for _, name in run]
            alike = _packed_module(child, f"{prefix}.{equal[0]}" if prefix else equal[0], packing)
            children.append(replace(alike, name=equal[0], repeats=len(equal)))
    return replace(module, packed_bytes=packed_bytes, children=tuple(children))


def _each_packed_bytes(module: Module, prefix: str, packing: Packing) -> Iterator[int | None]:
    """`_packed_bytes` of the module and of all below it, which tell equal siblings."""
    yield _packed_bytes(module, prefix, packing)
    for child in module.children:
        for index in range(child.repeats):
            name = child.name if child.repeats == 1 else str(int(child.name) + index)
            yield from _each_packed_bytes(child, f"{prefix}.{name}" if prefix else name, packing)


def _packed_bytes(module: Module, prefix: str, packing: Packing) -> int | None:
    """Bytes of the module's own tensors as stored; None if none of them is quantised."""
    full = [Tensor(f"{prefix}.{tensor.name}", tensor.shape, tensor.dtype, tensor.file) for tensor in module.tensors]
    if not any(packing.quantises(tensor) for tensor in full):
        return None
    return sum(size_bytes for tensor in full for size_bytes in packing.loaded_bytes(tensor))


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
