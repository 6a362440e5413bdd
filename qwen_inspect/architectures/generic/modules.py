"""Reads a built model's modules: sizes, the module tree with components, routed experts, tied names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...checkpoint import DTYPE_OF_TORCH_NAME, Tensor
from ...errors import UnsupportedError
from ...spec import ModelSpec, Module
from ...typed import Any
from ...values import replace
from ..components import claims_experts, component_of, each_experts_module, folded, routed_share
from ..reading import class_prefix_of, whole_dtype
from .configurations import layer_configurations, stated


def spec_of(config: Mapping[str, Any], model: Any) -> ModelSpec:
    """The spec of a built model, without layers; UnsupportedError for a model that reads no tokens."""
    text = model.config.get_text_config(decoder=True)
    table = _embedding(model)
    context = stated(text, "max_position_embeddings")
    positions = context - _skipped_positions(model) if type(context) is int else 0
    activation = stated(text, "hidden_act")
    head = _head(model)
    aliases = aliases_of(model)
    name = next((name for name, module in model.named_modules() if module is head), None)
    class_name = type(model).__name__
    return ModelSpec(
        family=str(config["model_type"]),
        class_name=class_name,
        class_prefix=class_prefix_of(class_name),
        vocab_size=table[0],
        hidden_size=table[1],
        context_tokens=positions if positions > 0 else None,
        tied_embeddings=f"{name}.weight" in aliases,
        dtype=whole_dtype(config),
        norm_eps=0.0,
        activation=activation if isinstance(activation, str) else "",
        pad_token_id=None,
        layers=(),
        kernel=_kernel(model),
        from_transformers=True,
    )


def _skipped_positions(model: Any) -> int:
    """Rows of the table of positions that no token has: up to the padding's, of which RoBERTa has one.

    Source: transformers 5.23, RobertaEmbeddings.create_position_ids_from_input_ids
    """
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    return 1 + max((padding for padding in paddings if padding is not None), default=-1)


def _kernel(model: Any) -> str:
    """The default attention of the decoder. Source: transformers 5.23, PreTrainedModel.get_correct_attn_implementation."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    part = (
        decoder if hasattr(decoder, "_supports_sdpa") else model
    )  # an encoder's `decoder` may be a matrix of its head
    return "sdpa" if getattr(part, "_supports_sdpa", False) else "eager"


def _embedding(model: Any) -> tuple[int, int]:
    """Shape of the token embedding, else of the largest embedding; UnsupportedError for a model without any."""
    import torch

    weight = getattr(_input_table(model), "weight", None)
    if weight is None or weight.dim() != 2:
        tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        weight = max(tables, key=lambda table: table.numel(), default=None)
    if weight is None:
        raise UnsupportedError("generic_no_embedding", class_name=type(model).__name__)
    return tuple(weight.shape)


def _head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def aliases_of(model: Any) -> dict[str, str]:
    """Name of each tied parameter -> name of the first parameter with the same storage."""
    owners: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = owners.setdefault(id(parameter), name)
        if owner != name:
            aliases[name] = owner
    return aliases


def tensor_of(name: str, value: Any) -> Tensor:
    """Name, shape and dtype of a torch tensor."""
    return Tensor(name, tuple(value.shape), DTYPE_OF_TORCH_NAME[str(value.dtype).removeprefix("torch.")])


def state_of(model: Any) -> list[Tensor]:
    """The tensors of `state_dict`: parameters (tied ones once), then persistent buffers."""
    persistent = model.state_dict(keep_vars=True)
    named = [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name in persistent),
    ]
    return [tensor_of(name, value) for name, value in named]


def tree_of(model: Any, config: Mapping[str, Any]) -> Module:
    """The module tree of `model`; equal numbered siblings in a row are folded."""
    text = model.config.get_text_config(decoder=True)
    table, head = _input_table(model), _head(model)
    aliases, experts = aliases_of(model), routed_share(partial(stated, text))

    def node(module: Any, name: str, path: str, component: str) -> Module:
        own = component_of(name, type(module).__name__, component, table=module is table, head=module is head)
        parameters = [(key, value) for key, value in module._parameters.items() if value is not None]
        full = {key: f"{path}.{key}" if path else key for key, _ in parameters}
        tensors = tuple(tensor_of(key, value) for key, value in parameters if full[key] not in aliases)
        buffers = tuple(tensor_of(key, value) for key, value in module._buffers.items() if value is not None)
        children = [
            node(child, key, f"{path}.{key}" if path else key, own)
            for key, child in module._modules.items()
            if child is not None
        ]
        arguments = module.extra_repr()
        shapes = [tensor.shape for tensor in tensors]
        per_expert = experts is not None and shapes and all(shape[:1] == experts[1:] for shape in shapes)
        return Module(
            name=name,
            class_name=type(module).__name__,
            arguments=arguments if "\n" not in arguments else "",
            tensors=tensors,
            buffers=buffers,
            tied_to=aliases.get(full.get("weight", "")),
            routed=experts if per_expert and own == "experts" else None,
            component=own,
            children=folded(children),
        )

    root = node(model, "", "", "other")
    return root if root.tensors else replace(root, component=None)


def _input_table(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def active_is_known(tree: Module, model: Any) -> bool:
    """Whether the active parameters can be counted: no experts, or all their tensors marked as routed."""
    text = model.config.get_text_config(decoder=True)
    if expert_modules := list(each_experts_module(tree)):
        return all(module.routed is not None for module in expert_modules)
    return not any(claims_experts(partial(stated, layer)) for layer in layer_configurations(text))
