"""A LoRA adapter and its base: the tensors it trains, a check against its file, and the size of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..architectures import StoredForm
from ..checkpoint import Adapter, DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..language import Message
from ..results.counts import Cause, Check, Unexplained
from ..results.lora import Lora, TrainedTensor
from ..results.stored import AdapterWeights, KeptModules
from ..spec import Module, each_module
from ..standard import re

PREFIX = "base_model.model."
# Whose weights are (experts, inputs, outputs). Source: transformers 5.23, use_experts_implementation(is_transposed=True)
TRANSPOSED_EXPERTS = ("GptOssExperts", "OpenAIPrivacyFilterExperts", "AriaExperts")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def trained_tensors(tree: Module, lora: Lora, form: StoredForm, stored: Sequence[Tensor]) -> tuple[TrainedTensor, ...]:
    """Every tensor that the adapter trains, under its name in adapter_model.safetensors.

    Source: PEFT 0.21, lora.layer (Linear, Embedding), get_peft_model_state_dict. Raises UnsupportedError for a target that is
    neither a linear module nor an embedding, MalformedError if no module is a target.
    """
    singly = any(".experts." in tensor.name for tensor in stored)
    modules = list(_modules(tree, form, singly=singly))
    copied = tuple(f"{name}." for name, _ in modules if name and lora.copies(name))
    trained = [
        tensor
        for name, module in modules
        for tensor in (_copies(name, module) if f"{name}.".startswith(copied) else _of_module(name, module, lora))
    ]
    if not any(tensor.role == "matrix" for tensor in trained):
        raise MalformedError("adapter_no_target")
    return tuple(trained)


def _modules(tree: Module, form: StoredForm, *, singly: bool) -> Iterator[tuple[str, Module]]:
    """(full name, module) of every module. singly: each expert of fused ones too, as a linear module of its own."""
    owners = {f"{prefix}.{tensor.name}": tensor for prefix, module in each_module(tree) for tensor in module.tensors}
    for prefix, module in each_module(tree):
        if module.tied_to is not None:
            weight = Tensor("weight", owners[module.tied_to].shape, owners[module.tied_to].dtype)
            yield prefix, Module(name=module.name, class_name=module.class_name, tensors=(weight, *module.tensors))
        else:
            yield prefix, module
        if singly and module.routed is not None:
            for tensor in module.tensors:
                for part in form(Tensor(f"{prefix}.{tensor.name}", tensor.shape, tensor.dtype)):
                    weight = Tensor("weight", part.shape, part.dtype)
                    yield part.name.removesuffix(".weight"), Module(name="", class_name="Linear", tensors=(weight,))


def _copies(name: str, module: Module) -> Iterator[TrainedTensor]:
    for tensor in module.tensors:
        yield TrainedTensor(Tensor(f"{PREFIX}{name}.{tensor.name}", tensor.shape, tensor.dtype), "copy", name)


def _of_module(name: str, module: Module, lora: Lora) -> Iterator[TrainedTensor]:
    is_target = bool(name) and lora.takes(name)
    if is_target:
        yield from _matrices(name, module, lora)
    parameters = [tensor for tensor in module.tensors if lora.takes_parameter(f"{name}.{tensor.name}")]
    for wrapped, tensor in zip(reversed(range(len(parameters))), parameters, strict=True):
        yield from _of_parameter(name, module.class_name, tensor, lora, inside=".base_layer" * wrapped)
    for tensor in module.tensors:
        if tensor.name == "bias" and (lora.bias == "all" or (lora.bias == "lora_only" and is_target)):
            suffix = "base_layer.bias" if is_target else "bias"
            yield TrainedTensor(Tensor(f"{PREFIX}{name}.{suffix}", tensor.shape, tensor.dtype), "bias", name)


def _of_parameter(name: str, class_name: str, tensor: Tensor, lora: Lora, *, inside: str) -> Iterator[TrainedTensor]:
    """A (rank x experts, inputs) and B (outputs, rank x experts) of a parameter (experts, outputs, inputs), or (outputs, inputs).

    inside: the wrapper of a module's first parameter is within those of the others. Source: PEFT 0.21, lora.layer.ParamWrapper
    """
    full_name = f"{name}.{tensor.name}"
    if len(tensor.shape) not in (2, 3):
        raise UnsupportedError("adapter_target", module=full_name, class_name=class_name)
    experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
    rows, columns = tensor.shape[-2:]
    if class_name in TRANSPOSED_EXPERTS and len(tensor.shape) == 3:
        rows, columns = columns, rows
    rank = lora.rank_of(full_name) * experts
    for suffix, shape in (("lora_A.weight", (rank, columns)), ("lora_B.weight", (rows, rank))):
        matrix = Tensor(f"{PREFIX}{name}{inside}.{suffix}", shape, DType.F32)
        yield TrainedTensor(matrix, "matrix", full_name)


def _matrices(name: str, module: Module, lora: Lora) -> Iterator[TrainedTensor]:
    """A (rank, inputs) and B (outputs, rank); for an embedding (tokens, width): A (rank, tokens) and B (width, rank)."""
    rank = lora.rank_of(name)
    weight = next((tensor for tensor in module.tensors if tensor.name == "weight"), None)
    linear, embedding = module.class_name == "Linear", module.class_name == "Embedding"
    if weight is None or not (linear or embedding):
        raise UnsupportedError("adapter_target", module=name, class_name=module.class_name)
    rows, columns = weight.shape

    def matrix(suffix: str, *shape: int) -> TrainedTensor:
        # PEFT keeps these in float32 even if the base has 16 bits. Source: PEFT 0.21, tuners_utils.cast_adapter_dtype.
        return TrainedTensor(Tensor(f"{PREFIX}{name}.{suffix}", shape, DType.F32), "matrix", name)

    if embedding:
        yield matrix("lora_embedding_A", rank, rows)
        yield matrix("lora_embedding_B", columns, rank)
        if lora.dora:
            yield matrix("lora_magnitude_vector", columns)
        return
    yield matrix("lora_A.weight", rank, columns)
    yield matrix("lora_B.weight", rows, rank)
    if lora.matrix_bias:
        yield matrix("lora_B.bias", rows)
    if lora.dora:
        yield matrix("lora_magnitude_vector", rows)


def against_adapter(trained: Sequence[TrainedTensor], stored: Sequence[Tensor]) -> Check:
    """Compares the tensors that the configuration trains with those in the adapter's file, by name and shape."""
    expected = {item.tensor.name: item.tensor for item in trained}
    by_name = {tensor.name: tensor for tensor in stored}
    copies = [
        tensor for name, tensor in by_name.items() if name not in expected and name.endswith(".base_layer.weight")
    ]
    causes = []
    if copies:  # PEFT saves a targeted embedding or head whole: save_embedding_layers="auto"
        parameters = sum(tensor.elements for tensor in copies)
        message = Message("cause_adapter_base_copy", tensors=len(copies), parameters=parameters)
        causes.append(Cause(name="adapter_base_copy", message=message, parameters=parameters, tensors=len(copies)))
    unexplained = [
        Unexplained(kind="missing", name=name, parameters=-tensor.elements, expected=str(tensor.shape))
        for name, tensor in expected.items()
        if name not in by_name
    ]
    for name, tensor in by_name.items():
        target = expected.get(name)
        if target is None and tensor not in copies:
            unexplained.append(
                Unexplained(kind="unexpected", name=name, parameters=tensor.elements, found=str(tensor.shape))
            )
        elif target is not None and target.shape != tensor.shape:
            difference = tensor.elements - target.elements
            expected_shape, shape = str(target.shape), str(tensor.shape)
            unexplained.append(
                Unexplained(kind="reshaped", name=name, parameters=difference, expected=expected_shape, found=shape)
            )
    return Check(
        left="adapter",
        right="adapter_stored",
        left_parameters=sum(item.tensor.elements for item in trained),
        right_parameters=sum(tensor.elements for tensor in stored),
        causes=tuple(causes),
        unexplained=tuple(unexplained),
    )


def adapter_weights(
    adapter: Adapter, tree: Module, trained: Sequence[TrainedTensor], lora: Lora, *, mergeable: bool
) -> AdapterWeights:
    """Sizes of an adapter and its base, unmerged and merged. Merging adds only copies of tied tensors.

    mergeable: whether the base is dense; merging into quantised weights gives another model.
    """
    modules = dict.fromkeys(item.module for item in trained if item.role == "matrix")
    ranks = sorted({lora.rank_of(module) for module in modules})
    scales = {
        lora.alpha_of(module) / (lora.rank_of(module) ** 0.5 if lora.rank_stabilised else lora.rank_of(module))
        for module in modules
    }
    tied = {name for name, module in each_module(tree) if module.tied_to is not None}
    untied_bytes = sum(item.tensor.size_bytes for item in trained if item.role == "copy" and item.module in tied)
    added = sum(item.tensor.size_bytes for item in trained if item.role != "bias")
    return AdapterWeights(
        kind=adapter.kind,
        base=adapter.base,
        ranks=tuple(ranks),
        scales=tuple(sorted(scales)),
        modules=tuple(folded(trained)),
        trainable=sum(item.tensor.elements for item in trained),
        base_parameters=tree.parameters,
        stored_bytes=sum(tensor.size_bytes for tensor in adapter.tensors),
        unmerged_bytes=tree.size_bytes + added,
        merged_bytes=tree.size_bytes + untied_bytes if mergeable else None,
    )


def folded(trained: Sequence[TrainedTensor]) -> Iterator[KeptModules]:
    """Trained parameters by module; layer numbers become `*`, so that all layers share a row."""
    members: dict[str, set[str]] = {}
    parameters: dict[str, int] = {}
    for item in trained:
        name = NUMBER.sub("*", item.module)
        members.setdefault(name, set()).add(item.module)
        parameters[name] = parameters.get(name, 0) + item.tensor.elements
    for name, modules in members.items():
        yield KeptModules(name=name, modules=len(modules), parameters=parameters[name])
