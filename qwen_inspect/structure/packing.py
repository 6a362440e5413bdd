"""Quantised weights: every stored tensor, from the modules and the configuration's schemes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from ..architectures import StoredForm
from ..checkpoint import BlockFormat, Tensor
from ..declarations import MODEL_DTYPES
from ..errors import MalformedError
from ..results.quantisation import Mxfp4Experts, Part, Quantisation
from ..spec import Module, each_module, each_tensor
from ..values import dataclass, field, replace
from .experts import first_experts_name, is_of_expert
from .matrix_parts import parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a model's weights are stored. Keys are names in files of the dense model.

    parts: the stored tensors of each quantised matrix. dense: those matrices before quantisation. kept: unquantised linear
    modules and their matrices. form: what files of the dense model hold for a tensor of the tree. experts: where no file tells
    experts apart, the first one's matrices stand for all: how many each stands for. fused: a loaded model holds a layer's
    experts in one tensor. known_bytes: of tensors of the tree, `loaded_bytes` by name.
    """

    parts: Mapping[str, tuple[Part, ...]]
    dense: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    form: StoredForm
    experts: Mapping[str, int] = field(default_factory=dict)
    fused: bool = False
    known_bytes: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)

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
        if (known := self.known_bytes.get(tensor.name)) is None:
            known = self.known_bytes[tensor.name] = self._loaded_bytes(tensor)
        return known

    def _loaded_bytes(self, tensor: Tensor) -> list[int]:
        matrices = self._each_kind(tensor)
        sizes = [[part.size_bytes for part, role in self._stored(matrix) if role != "notes"] for matrix in matrices]
        if len(tensor.shape) != 3 and (self.fused or not any(matrix.name in self.experts for matrix in matrices)):
            return [size for of_matrix in sizes for size in of_matrix]
        are_alike = bool(sizes) and all(size == sizes[0] for size in sizes)  # so that their order does not matter
        if self.fused or not are_alike or not all(matrix.name in self.experts for matrix in matrices):
            return [part.size_bytes for part in self.loaded(tensor)]
        return sizes[0] * (len(matrices) * tensor.shape[0])

    def _each_kind(self, tensor: Tensor) -> Sequence[Tensor]:
        """The matrices that files of the dense model hold for a tensor; those of one expert if they stand for all."""
        if len(tensor.shape) == 3:
            first = self.form(Tensor(tensor.name, (1, *tensor.shape[1:]), tensor.dtype, tensor.file))
            if all(matrix.name in self.experts for matrix in first):
                return first
        return self.form(tensor)

    def _stored(self, dense: Tensor) -> Sequence[tuple[Tensor, str]]:
        """The tensors that files hold for one of the dense model's, and their roles; "" for one that is not quantised."""
        if dense.name in self.parts:
            return [(part.tensor, part.role) for part in self.parts[dense.name]]
        first = first_experts_name(dense.name)
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


@dataclass(frozen=True)
class LoadedWeights:
    """The tensors of a loaded model, made anew each time they are asked for: a mixture of experts has hundreds of thousands."""

    tree: Module
    packing: Packing

    def __iter__(self) -> Iterator[Tensor]:
        return (part for tensor in each_tensor(self.tree) for part in self.packing.loaded(tensor))

    @cached_property
    def sizes_bytes(self) -> tuple[int, ...]:
        """The bytes of each."""
        return tuple(size for tensor in each_tensor(self.tree) for size in self.packing.loaded_bytes(tensor))


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
        packed = None if scheme is None else parts_of(matrix, scheme)
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
            first = form(Tensor(full.name, (1, *sides), full.dtype)) if together and len(sides) == 2 else ()
            if first and all(is_of_expert(matrix.name) for matrix in first):
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
    return next((packed for scheme in schemes if (packed := parts_of(matrix, scheme)) is not None), None)
