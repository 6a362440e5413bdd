"""Any other model_type that transformers knows: its class is built on the meta device, and what it is made of is read off.

The witness is transformers itself, not pure Python, so the torch extra is needed. Only classes that transformers ships are built;
nothing of a repository runs, nothing is fetched, and sizes are checked before transformers loops over them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

from ..checkpoint import DTYPE_OF_TORCH_NAME, Tensor
from ..errors import MalformedError, QwenInspectError, UnavailableError, UnsupportedError
from ..language import Message
from ..spec import ModelSpec, Module
from .reading import LARGEST_SIZE, read_dtype, shown

# No released model comes near these; transformers loops over such counts before it builds anything.
MOST_LAYERS, MOST_EXPERTS, MOST_MODULES, MOST_ENTRIES = 2_000, 8_192, 200_000, 10_000
MOST_POSITIONS = 1 << 28
DEEPEST = 20
COUNTS = re.compile(r"layer|block|depth|stage|expert|repeat|codebook|head|level|branch|stack")
LOADED_FROM = (
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
)  # what could make transformers fetch code
SPECIAL_NUMBERS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
# How configurations name the experts that one token takes. Source: transformers 5.23, models/*/configuration_*.py.
TAKEN_KEYS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")
EXPERTS_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "zero_expert_num",
)
# A module's part of the statistics by its own name, the first that fits; else its parent's.
COMPONENT_OF_NAME: tuple[tuple[str, str], ...] = (
    (r"visual|vision.*|image.*|vit|vpm|multi_modal_projector|mm_projector|embed_vision|connector|aligner", "vision"),
    (r"audio.*|speech.*|embed_audio|sound.*", "audio"),
    (r"shared_experts?|shared_mlp|shared_expert_gate", "shared_expert"),
    (r"experts", "experts"),
    (r"router|gate", "router"),
    (r"linear_attn|mamba|mixer|ssm|conv|short_conv|recurrent.*|temporal_block|mlstm.*|slstm.*|kda", "linear_attention"),
    (r".*attn|.*attention|.*_attn_.*", "attention"),
    (r"mlp|feed_forward|ffn|ff|fc\d?|block_sparse_moe|moe|dense.*|.*mlp", "mlp"),
)


def config_types() -> Any:
    """transformers' configurations by model_type; UnavailableError where it is not installed."""
    try:
        import torch  # noqa: F401  # the classes need it
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="torch") from None
    return CONFIG_MAPPING


def read_generic(config: Mapping[str, Any], families: Sequence[str], code: Path | None = None) -> Generic:
    """The model that `config` describes, built on meta.

    UnavailableError without torch; UnsupportedError for a model_type that the installed transformers does not know, for code of
    the repository's own unless `code` is its directory, and where transformers refuses the configuration; MalformedError for
    sizes that no model has.
    """
    model_type = config["model_type"]
    try:
        known = config_types()
    except UnavailableError as error:
        values = dict(error.message.values)
        raise UnavailableError("generic_extra_missing", found=shown(model_type), **values) from None
    if model_type not in known:
        if isinstance(own := config.get("auto_map"), Mapping):
            if code is None:
                raise UnsupportedError("generic_own_code", found=shown(model_type))
            check_sizes(config)
            return _of(_build_own(config, own, code), config)
        import transformers

        near = get_close_matches(model_type, [*families, *known], n=3, cutoff=0.5)
        raise UnsupportedError(
            "generic_unknown_model_type",
            found=shown(model_type),
            version=transformers.__version__,
            near=", ".join(near) or "–",
        )
    check_sizes(config)
    return _of(build_generic(config), config)


def _of(model: Any, config: Mapping[str, Any]) -> Generic:
    spec, tree = _spec(config, model), module_of(model, config)
    return Generic(model=model, spec=spec, tree=tree, aliases=_aliases(model), forms=_forms(model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic:
    """A model as transformers builds it, in the words of an `Architecture`.

    model: of transformers, on meta. aliases: names that share another parameter's storage, with its name. forms: the tensors
    under which the release's layout stores one of the model, where that is another than its own name.
    """

    model: Any
    spec: ModelSpec
    tree: Module
    aliases: Mapping[str, str]
    forms: Mapping[str, tuple[Tensor, ...]]

    def read_spec(self, config: Mapping[str, Any]) -> ModelSpec:
        return self.spec

    def module_tree(self, spec: ModelSpec) -> Module:
        return self.tree

    def stored_form(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self.forms.get(tensor.name, (tensor,))

    def prediction_layers(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        return ()  # which would be stored is not known: files that hold some name them

    @property
    def witness(self) -> Message:
        """That all figures come from transformers' class, and of which version."""
        import transformers

        return Message("generic_witness", class_name=self.spec.class_name, version=transformers.__version__)

    @property
    def persistent(self) -> tuple[Tensor, ...]:
        """Buffers that files hold, in their stored form."""
        state = self.model.state_dict(keep_vars=True)
        buffers = [_tensor(name, value) for name, value in self.model.named_buffers() if name in state]
        return tuple(part for buffer in buffers for part in self.stored_form(buffer))

    def active_is_known(self, tree: Module) -> bool:
        """Whether the parameters that a token uses can be told by the model's tree."""
        return active_is_known(tree, self.model)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Regular expressions of stored names that the class leaves unloaded.

        Source: transformers 5.23, PreTrainedModel._keys_to_ignore_on_load_unexpected.
        """
        return tuple(sorted(self.model._keys_to_ignore_on_load_unexpected or ()))

    def for_files(self, stored: Sequence[Tensor]) -> Generic:
        """The same with its stored form as these files have it, where transformers maps their names in another way too.

        Names of a target count only where all of them together hold as many elements as it. Source: as `_forms`.
        """
        targets = {tensor.name: tensor for tensor in _state(self.model)}
        usual = {part.name for name, tensor in targets.items() for part in self.forms.get(name, (tensor,))}
        others = [tensor for tensor in stored if tensor.name not in usual and tensor.name not in targets]
        rename = _renaming(self.model, others)
        found: dict[str, list[Tensor]] = {}
        for tensor in others:
            if (target := rename(tensor.name)) in targets:
                found.setdefault(target, []).append(tensor)
        present = {tensor.name for tensor in stored}
        forms = {
            name: tuple(replace(part, dtype=targets[name].dtype, file=None) for part in parts)
            for name, parts in found.items()
            if sum(part.elements for part in parts) == targets[name].elements
            and not any(part.name in present for part in self.stored_form(targets[name]))
        }
        return replace(self, forms={**self.forms, **forms})


# --- before transformers sees it -----------------------------------------------------------------------------------


def check_sizes(config: Mapping[str, Any]) -> None:
    """MalformedError for a number, a list or a nesting in `config` that no model has."""

    def check(key: str, value: object, depth: int) -> None:
        if depth > DEEPEST:
            raise MalformedError("generic_too_deep", most=DEEPEST)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                check(str(name), inner, depth + 1)
        elif isinstance(value, list):
            if len(value) > MOST_ENTRIES:
                raise MalformedError("generic_too_long", key=shown(key), found=len(value), most=MOST_ENTRIES)
            for inner in value:
                check(key, inner, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            most = _most(key)
            if abs(value) > most:
                raise MalformedError("config_out_of_range", key=shown(key), found=shown(value), least=-most, most=most)

    check("", dict(config), 0)


def _most(key: str) -> int:
    key = key.lower()
    if any(part in key for part in ("size", "dim", "rank", "token", "_id", "vocab")):
        return LARGEST_SIZE
    if "expert" in key or "head" in key:
        return MOST_EXPERTS
    if COUNTS.search(key):
        return MOST_LAYERS
    return MOST_POSITIONS if "position" in key else LARGEST_SIZE


def buildable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` without what could make transformers fetch code or weights: kernels' and repositories' names.

    Numbers that JSON has not are as transformers writes them. Source: transformers 5.23, PreTrainedConfig._decode_special_floats.
    """

    def kept(value: object) -> object:
        if isinstance(value, Mapping):
            special = SPECIAL_NUMBERS.get(str(value.get("__float__"))) if len(value) == 1 else None
            return buildable(value) if special is None else special
        return [kept(one) for one in value] if isinstance(value, list) else deepcopy(value)

    return {
        key: kept(value)
        for key, value in config.items()
        if not key.startswith("_") and key not in (*LOADED_FROM, "auto_map", "quantization_config")
    }


@contextmanager
def _guarded() -> Iterator[None]:
    """No hub is asked, no pretrained part is loaded, and no model has more modules than MOST_MODULES."""
    import transformers
    from huggingface_hub import constants
    from torch.nn.modules.module import register_module_module_registration_hook

    made = 0

    def count(module: Any, name: str, child: Any) -> None:
        nonlocal made
        made += 1
        if made > MOST_MODULES:
            raise MalformedError("generic_too_many_modules", most=MOST_MODULES)

    with ExitStack() as stack:
        stack.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
        constants.HF_HUB_OFFLINE = True
        stack.callback(transformers.logging.set_verbosity, transformers.logging.get_verbosity())
        transformers.logging.set_verbosity_error()
        stack.callback(register_module_module_registration_hook(count).remove)
        yield


def build_generic(config: Mapping[str, Any], *, dtype: str | None = None, device: str | None = "meta") -> Any:
    """The model of `config` in `dtype` (None: the configuration's) on `device`; UnsupportedError where transformers cannot."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    name = dtype or generic_dtype(config).torch_name
    try:
        with _guarded(), nullcontext() if device is None else torch.device(device):
            configuration = transformers.AutoConfig.for_model(**buildable(config))
            _check_layers(configuration)
            model_class = _class_of(configuration, config.get("architectures"))
            model = model_class._from_config(configuration, dtype=getattr(torch, name), attn_implementation="eager")
    except (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError, RuntimeError,
        StopIteration, StrictDataclassError, TypeError, ValueError,
    ) as error:  # fmt: skip
        lines = str(error).strip().splitlines()
        reason = " ".join(lines[-1 if isinstance(error, StrictDataclassError) else 0].split())[:300] if lines else ""
        raise UnsupportedError(
            "instantiate_failed", reason=reason or type(error).__name__, version=transformers.__version__
        ) from None
    return model.eval()


def _build_own(config: Mapping[str, Any], own: Mapping[str, Any], code: Path) -> Any:
    """The class that the repository in `code` defines, on meta: its code runs. Code of another repository does not."""
    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    found = [own.get(name) for name in ("AutoConfig", "AutoModelForCausalLM")]
    for name in found:
        if not isinstance(name, str) or "--" in name or not (code / f"{name.partition('.')[0]}.py").is_file():
            raise UnsupportedError("generic_own_code_elsewhere", found=shown(config["model_type"]), name=shown(name))
    try:
        with _guarded(), torch.device("meta"):
            config_class, model_class = (
                get_class_from_dynamic_module(name, str(code), local_files_only=True) for name in found
            )
            configuration = config_class.from_dict(buildable(config))
            model = model_class._from_config(configuration, dtype=getattr(torch, generic_dtype(config).torch_name))
    except QwenInspectError:
        raise
    except Exception as error:  # code of others raises anything
        lines = str(error).strip().splitlines()
        reason = lines[0][:300] if lines else type(error).__name__
        raise UnsupportedError("instantiate_failed", reason=reason, version=transformers.__version__) from None
    return model.eval()


def generic_dtype(config: Mapping[str, Any]) -> Any:
    """The parameters' dtype: on top, else the decoder's where the model is composite, else torch's default."""
    nested: Mapping[str, Any] = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), {}
    )
    keys = ("dtype", "torch_dtype")
    found = next((part for part in (config, nested) if any(part.get(key) is not None for key in keys)), config)
    return read_dtype(found)


def _check_layers(configuration: Any) -> None:
    """UnsupportedError for kinds of layers that this transformers has no cache for, and heads that do not divide evenly."""
    text = configuration.get_text_config(decoder=True)
    heads, kv_heads = (getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if type(heads) is int and type(kv_heads) is int and kv_heads > 0 and heads % kv_heads:
        raise MalformedError("config_heads_do_not_divide", query_heads=heads, kv_heads=kv_heads)
    types, layers = getattr(text, "layer_types", None), getattr(text, "num_hidden_layers", None)
    if isinstance(types, list) and type(layers) is int and len(types) < layers:
        raise MalformedError("config_layer_types", layers=layers, found=len(types))


def _class_of(configuration: Any, architectures: object) -> Any:
    """The class that `architectures` names where it is one of transformers' own for this configuration, else the usual one.

    The fallback is AutoModelForMultimodalLM, which knows composites that AutoModelForCausalLM would cut down, then that.
    """
    import transformers

    name = architectures[0] if isinstance(architectures, list) and architectures else None
    named = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel):
        if not isinstance(configuration, getattr(named, "config_class", None) or ()):
            raise UnsupportedError("generic_class_of_other", name=name, found=configuration.model_type)
        return named
    for auto in (transformers.AutoModelForMultimodalLM, transformers.AutoModelForCausalLM):
        if type(configuration) in auto._model_mapping:
            found = auto._model_mapping[type(configuration)]
            return found[0] if isinstance(found, (tuple, list)) else found
    raise UnsupportedError("generic_no_language_model", found=configuration.model_type, name=shown(name))


# --- what it is made of --------------------------------------------------------------------------------------------


def _spec(config: Mapping[str, Any], model: Any) -> ModelSpec:
    text = model.config.get_text_config(decoder=True)
    table = _embedding(model)
    context = getattr(text, "max_position_embeddings", None)
    activation = getattr(text, "hidden_act", None)
    head = _head(model)
    aliases = _aliases(model)
    name = next((name for name, module in model.named_modules() if module is head), None)
    class_name = type(model).__name__
    return ModelSpec(
        family=str(config["model_type"]),
        class_name=class_name,
        class_prefix=re.sub(r"(For[A-Z]\w*|LMHead\w*|Model|LM)$", "", class_name) or class_name,
        vocab_size=table[0],
        hidden_size=table[1],
        context_tokens=context if type(context) is int and context > 0 else None,
        tied_embeddings=f"{name}.weight" in aliases,
        dtype=generic_dtype(config),
        norm_eps=0.0,
        activation=activation if isinstance(activation, str) else "",
        pad_token_id=None,
        layers=(),
    )


def _embedding(model: Any) -> tuple[int, int]:
    """Rows and columns of the table of tokens; UnsupportedError for a model that reads none."""
    import torch

    with_table = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        table = None
    weight = getattr(table, "weight", None)
    if weight is None or weight.dim() != 2:
        weight = max((one.weight for one in with_table), key=lambda one: one.numel(), default=None)
    if weight is None:
        raise UnsupportedError("generic_no_embedding", class_name=type(model).__name__)
    return tuple(weight.shape)


def _head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _aliases(model: Any) -> dict[str, str]:
    owners: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = owners.setdefault(id(parameter), name)
        if owner != name:
            aliases[name] = owner
    return aliases


def _tensor(name: str, value: Any) -> Tensor:
    return Tensor(name, tuple(value.shape), DTYPE_OF_TORCH_NAME[str(value.dtype).removeprefix("torch.")])


def _state(model: Any) -> list[Tensor]:
    """What `state_dict` holds, tied parameters once: parameters, then persistent buffers."""
    persistent = model.state_dict(keep_vars=True)
    named = [*model.named_parameters(), *((name, one) for name, one in model.named_buffers() if name in persistent)]
    return [_tensor(name, value) for name, value in named]


def module_of(model: Any, config: Mapping[str, Any]) -> Module:
    """The tree of `model`, equal neighbours with running numbers folded."""
    text = model.config.get_text_config(decoder=True)
    table, head = _input_table(model), _head(model)
    aliases, experts = _aliases(model), _routed(text)

    def node(module: Any, name: str, path: str, component: str) -> Module:
        own = _component(module, name, component, table, head)
        parameters = [(key, one) for key, one in module._parameters.items() if one is not None]
        full = {key: f"{path}.{key}" if path else key for key, _ in parameters}
        tensors = tuple(_tensor(key, one) for key, one in parameters if full[key] not in aliases)
        buffers = tuple(_tensor(key, one) for key, one in module._buffers.items() if one is not None)
        children = [
            node(child, key, f"{path}.{key}" if path else key, own)
            for key, child in module._modules.items()
            if child is not None
        ]
        arguments = module.extra_repr()
        shapes = [tensor.shape for tensor in tensors]
        taken = experts is not None and shapes and all(shape[:1] == experts[1:] for shape in shapes)
        return Module(
            name=name,
            class_name=type(module).__name__,
            arguments=arguments if "\n" not in arguments else "",
            tensors=tensors,
            buffers=buffers,
            tied_to=aliases.get(full.get("weight", "")),
            routed=experts if taken and own == "experts" else None,
            component=own,
            children=tuple(_folded(children)),
        )

    return replace(node(model, "", "", "other"), component=None)


def _folded(children: Sequence[Module]) -> Iterator[Module]:
    for numbered, run in groupby(children, key=lambda one: one.name.isdecimal()):
        if not numbered:
            yield from run
            continue
        for _, alike in groupby(run, key=lambda one: replace(one, name="")):
            several = list(alike)
            first = int(several[0].name)
            if [one.name for one in several] == [str(first + index) for index in range(len(several))]:
                yield replace(several[0], repeats=len(several))
            else:
                yield from several


def _input_table(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _component(module: Any, name: str, inherited: str, table: Any, head: Any) -> str:
    """By what the module is, else by its name, else its parent's; towers keep what is in them."""
    if module is table:
        return "embedding"
    if module is head:
        return "lm_head"
    if inherited in ("vision", "audio", "shared_expert", "experts"):
        return inherited
    for pattern, component in COMPONENT_OF_NAME:
        if re.fullmatch(pattern, name):
            # A gate within an MLP is one of its matrices, unless what it belongs to has experts.
            plain = component == "router" and not _has_experts(module)
            return inherited if plain else component
    class_name = type(module).__name__
    if "Norm" in class_name and inherited == "other":
        return "norm"
    if "Embedding" in class_name and inherited == "other":
        return "embedding"
    return "norm" if re.search(r"(layer_?norm|^norm|_norm|ln_\w+)$", name) and inherited == "other" else inherited


def _has_experts(gate: Any) -> bool:
    """Whether a module called gate or router is one that chooses experts: transformers' routers are no plain linear layers."""
    return bool(re.search(r"Router|Gate|Gating|TopK|MoE|Moe", type(gate).__name__))


def _routed(text: Any) -> tuple[int, int] | None:
    """(experts a token takes, experts) where the configuration states both plainly; None otherwise."""
    experts = {value for key in EXPERTS_KEYS[:-1] if type(value := getattr(text, key, None)) is int and value > 0}
    taken = {value for key in TAKEN_KEYS if type(value := getattr(text, key, None)) is int and value > 0}
    if len(experts) != 1 or len(taken) != 1 or getattr(text, "zero_expert_num", None):
        return None
    chosen, several = taken.pop(), experts.pop()
    return (chosen, several) if chosen <= several else None


def active_is_known(tree: Module, model: Any) -> bool:
    """Whether the parameters that a token uses can be told: there are no experts, or all their tensors are marked as routed."""
    text = model.config.get_text_config(decoder=True)
    claimed = any(type(value := getattr(text, key, None)) is int and value > 1 for key in EXPERTS_KEYS)

    def experts(module: Module) -> Iterator[Module]:
        if module.component == "experts" and module.tensors:
            yield module
        for child in module.children:
            yield from experts(child)

    found = list(experts(tree))
    if not found:
        return not claimed
    return all(module.routed is not None for module in found)


# --- names on disk -------------------------------------------------------------------------------------------------


def _forms(model: Any) -> dict[str, tuple[Tensor, ...]]:
    """The stored tensors of each of the model's, as transformers would save it in the release's layout.

    Only where they hold exactly as many elements. Source: transformers 5.23, core_model_loading.revert_weight_conversion and
    rename_source_key, conversion_mapping.get_model_conversion_mapping: internal, so that a failure leaves the model's own names.
    """
    targets = {tensor.name: tensor for tensor in _state(model)}
    state = {name: value for name, value in model.state_dict().items() if name in targets}
    try:
        from transformers.core_model_loading import revert_weight_conversion

        reverted = revert_weight_conversion(model, dict(state))
        stored = [_tensor(name, value) for name, value in reverted.items()]
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError):
        return {}
    if all(tensor.name in targets for tensor in stored):
        return {}
    rename = _renaming(model, stored)
    found: dict[str, list[Tensor]] = {}
    for tensor in stored:
        target = tensor.name if tensor.name in targets else rename(tensor.name)
        found.setdefault(target, []).append(tensor)
    return {
        name: tuple(parts)
        for name, parts in found.items()
        if name in targets
        and [part.name for part in parts] != [name]
        and sum(part.elements for part in parts) == targets[name].elements
    }


def _renaming(model: Any, stored: Sequence[Tensor]) -> Any:
    """The function from a stored name to the model's, as transformers' loader maps it; the name itself where it does not."""
    if not stored:
        return lambda name: name
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = get_model_conversion_mapping(model) or []
    except (AttributeError, ImportError, LookupError, TypeError, ValueError):
        return lambda name: name
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def rename(name: str) -> str:
        try:
            return str(rename_source_key(name, renamings, converters, prefix, state)[0])
        except (AttributeError, LookupError, TypeError, ValueError, re.error):
            return name

    return rename
