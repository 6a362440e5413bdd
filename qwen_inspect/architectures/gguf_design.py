"""The design of a GGUF file of any architecture: its modules are its tensors, its caches those of llama.cpp.

Nothing of it is predicted: counts are the file's own. Caches follow from the metadata, as `gguf_hparams` computes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..language import Message
from ..results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ..results.cache import CacheKind, CacheLayer
from ..spec import ModelSpec, Module
from ..typed import Any
from ..values import replace
from .design import Architecture, KeptLayer
from .gguf_hparams import GgufHyperparameters
from .gguf_keys import read_hyperparameters
from .gguf_rules import ATTENTION_INTERVAL, DECODERS, WITHOUT_CACHE

DTYPE = DType.F16  # llama.cpp's default for K and V
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
MOST_PARTS = 6  # of a tensor's name; what follows belongs to the last
# The component of a tensor, by what its name within the layer matches first. Source: gguf 0.19, constants.TENSOR_NAMES.
COMPONENTS: Sequence[tuple[str, re.Pattern[str]]] = tuple(
    (component, re.compile(pattern))
    for component, pattern in (
        ("embedding", r"(token_embd|per_layer_token_embd|position_embd|token_types|masked_embd_\w+)\."),
        ("lm_head", r"(output|cls(\.output)?)\.(weight|bias)"),
        ("router", r"ffn_gate_inp\.|exp_probs_b|ffn_gate_tid2eid"),
        ("shared_expert", r"\w*_shexp\."),
        ("experts", r"\w*_(ch)?exps\.|ffn_latent_"),
        ("norm", r"\w*norm\w*(\.|$)"),
        ("linear_attention", r"ssm_|shortconv\.|time_mix_"),
        ("attention", r"(cross_)?attn_|indexer"),
        ("mlp", r"ffn|channel_mix_"),
    )
)


def architecture(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> Architecture:
    """The model that a file holds. MalformedError for metadata that llama.cpp's architecture of that name cannot have."""
    name = str(metadata["general.architecture"])
    read: GgufHyperparameters | None = None
    try:
        read = read_hyperparameters(metadata, tensors)
    except MalformedError:
        if name in DECODERS | WITHOUT_CACHE:
            raise
    tree, routed = module_tree(tensors, read, name)
    kept = None if read is None or not read.cache_is_known else tuple(_layers(read))
    embedding = next((tensor.shape for tensor in tensors if tensor.name == "token_embd.weight"), ()) or (0,)
    return Architecture(
        spec=ModelSpec(
            family=name,
            class_name=name,
            class_prefix=name,
            vocab_size=(read.vocabulary if read else None) or embedding[0],
            hidden_size=read.embedding if read else embedding[-1],
            context_tokens=read.context_tokens if read else None,
            tied_embeddings=not any(tensor.name == "output.weight" for tensor in tensors),
            dtype=DTYPE,
            norm_eps=0.0,
            activation="",
            pad_token_id=None,
            layers=(),
            from_file=True,
        ),
        tree=tree,
        stored_form=lambda tensor: (tensor,),
        prediction_layers=(),
        tied={},
        active_is_known=routed and (read is None or not read.nextn_layers),
        kept=kept,
        cache_refusal=UnsupportedError("gguf_cache_unknown", found=name) if kept is None else None,
        notices=(Message("gguf_by_file", architecture=name),),
    )


# --- modules


def module_tree(tensors: Sequence[Tensor], read: GgufHyperparameters | None, name: str) -> tuple[Module, bool]:
    """The tensors by the dots in their names, and whether each expert's share of them is known. Equal layers are one node."""
    nested: dict[str, Any] = {}
    for tensor in tensors:
        *path, last = tensor.name.split(".", MOST_PARTS - 1)
        node = nested
        for part in path:
            inner = node.setdefault(f"{part}.", {})
            node = inner
        node[last] = Tensor(last, tensor.shape, DTYPE)
    routed: list[bool] = []
    children = tuple(_children(nested, "", read, routed))
    if "token_embd." in nested and "output." not in nested and name not in WITHOUT_CACHE:
        head = Module(name="output", class_name="Linear", tied_to="token_embd.weight", component="lm_head")
        children = (*children, head)
    own = tuple(entry for entry in nested.values() if isinstance(entry, Tensor))
    return Module(name="", class_name=name, tensors=own, component="other", children=children), all(routed)


def _children(
    nested: Mapping[str, Any], path: str, read: GgufHyperparameters | None, routed: list[bool]
) -> Iterator[Module]:
    modules = [
        _module(key[:-1], entry, f"{path}{key}", read, routed) for key, entry in nested.items() if key.endswith(".")
    ]
    before: Module | None = None
    for module in modules:
        if before is not None and _continues(before, module):
            before = replace(before, repeats=before.repeats + 1)
            continue
        if before is not None:
            yield before
        before = module
    if before is not None:
        yield before


def _continues(before: Module, module: Module) -> bool:
    """Whether the module is the next of equal siblings named by numbers."""
    if not (INDEX.fullmatch(before.name) and INDEX.fullmatch(module.name)):
        return False
    return (
        int(module.name) == int(before.name) + before.repeats
        and replace(module, name=before.name, repeats=before.repeats) == before
    )


def _module(
    name: str, nested: Mapping[str, Any], path: str, read: GgufHyperparameters | None, routed: list[bool]
) -> Module:
    own = tuple(entry for entry in nested.values() if isinstance(entry, Tensor))
    within = re.sub(r"^(enc\.|dec\.)?blk\.[0-9]+\.", "", path)
    component = _component(within + (own[0].name if own else ""))
    share = None
    if component == "experts" and read is not None and own:
        layer = re.match(r"blk\.([0-9]{1,4})\.", path)
        share = _share(own, int(layer[1]) if layer else 0, read)
        routed.append(share is not None)
    return Module(
        name=name,
        class_name=_class(within, own),
        tensors=own,
        routed=share,
        component=component,
        children=tuple(_children(nested, path, read, routed)),
    )


def _component(name: str) -> str:
    return next((component for component, pattern in COMPONENTS if pattern.match(name)), "other")


def _class(within: str, own: tuple[Tensor, ...]) -> str:
    if not own:
        return "ModuleList" if within == "blk." else "Layer"
    if "norm" in within:
        return "Norm"
    if "embd" in within:
        return "Embedding"
    weight = next((tensor for tensor in own if tensor.name == "weight"), None)
    sides = 0 if weight is None else len(weight.shape)
    return {2: "Linear", 3: "Experts"}.get(sides, "Parameter")


def _share(own: tuple[Tensor, ...], layer: int, read: GgufHyperparameters) -> tuple[int, int] | None:
    """(experts that a token uses, experts), if every tensor's first side counts them."""
    count, used = read.experts.count, read.experts.used
    if not count or layer >= len(used) or not 0 < used[layer] <= count:
        return None
    return (used[layer], count) if all(tensor.shape[:1] == (count,) for tensor in own) else None


# --- caches


def _layers(read: GgufHyperparameters) -> Iterator[KeptLayer]:
    """Each layer's attention, and what a sequence keeps of it: K and V in 16 bits, states in 32."""
    for index in range(read.all_layers):
        if index < read.layers or read.attends(index):
            attention = _attention(index, read)
            yield attention, _cache(attention, read)


def _attention(index: int, read: GgufHyperparameters) -> AnyLayerAttention:
    heads, kv_heads = read.heads[index], read.kv_heads[index]
    windowed = read.windowed[index]
    window = read.window if windowed else None
    key = read.key_length_swa if windowed else read.key_length
    value = read.value_length_swa if windowed else read.value_length
    if read.architecture in WITHOUT_CACHE:
        return EncoderLayerAttention(
            index=index, query_heads=heads, kv_heads=kv_heads, head_dim=key, window_tokens=window
        )
    attends, (rolling, state) = read.attends(index), read.state(index)
    plain = key == value and 0 < kv_heads <= heads and heads % kv_heads == 0 and not read.latent
    chunked = windowed and read.window_kind == "chunked"
    if attends and plain and not (chunked or rolling or state or any(read.index_cells(index))):
        return LayerAttention(index=index, query_heads=heads, kv_heads=kv_heads, head_dim=key, window_tokens=window)
    sizes = read.recurrence
    if not attends and read.architecture in ATTENTION_INTERVAL and sizes.group_count and sizes.time_step_rank:
        width, rest = divmod(sizes.inner_size, sizes.time_step_rank)
        if state and not rest and not read.history(index):
            return LinearLayerAttention(
                index=index,
                key_heads=sizes.group_count,
                value_heads=sizes.time_step_rank,
                key_head_dim=sizes.state_size,
                value_head_dim=width,
                conv_kernel=sizes.conv_kernel,
            )
    return OtherLayerAttention(index=index, cache_kind=_kind(index, read), window_tokens=window)


def _kind(index: int, read: GgufHyperparameters) -> CacheKind:
    rolling, state = read.state(index)
    if not read.attends(index):
        if rolling or state:
            return "recurrent" if state else "convolution"
        return "shared" if index >= read.with_cache else "none"
    if rolling or state:
        return "hybrid"
    if any(read.index_cells(index)):
        return "indexed"
    if read.latent:
        return "latent"
    if read.windowed[index]:
        return "chunked" if read.window_kind == "chunked" else "sliding"
    return "full"


def _cache(attention: AnyLayerAttention, read: GgufHyperparameters) -> CacheLayer:
    """Source: llama_kv_cache; llama_memory_recurrent, whose rows are float32."""
    index = attention.index
    cells = read.keys(index) + read.values(index) if read.attends(index) else 0
    states = (*read.state(index), read.history(index))
    return CacheLayer(
        index=index,
        kind=attention.span,
        bytes_per_token=(cells + sum(read.index_cells(index))) * DTYPE.bits // 8,
        states_bytes=tuple(elements * DType.F32.bits // 8 for elements in states if elements),
        window_tokens=read.window if cells and read.windowed[index] else None,
    )
