"""Which row of the statistics a module belongs to, by its name and class; and equal siblings as one node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from ..spec import Module
from ..values import replace

# A module's component by its own name (first match wins); without a match, its parent's.
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

# Configuration keys of the experts per token, and of the experts. Source: transformers 5.23, models/*/configuration_*.py.
EXPERTS_PER_TOKEN_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
    "moe_top_k",
)
EXPERTS_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "zero_expert_num",
)


def routed_share(value_of: Callable[[str], object]) -> tuple[int, int] | None:
    """(experts per token, experts) if the configuration states one value of each; None otherwise.

    value_of: the value of a configuration's key, None if it lacks the key.
    """
    experts = {value for key in EXPERTS_KEYS[:-1] if type(value := value_of(key)) is int and value > 0}
    per_token = {value for key in EXPERTS_PER_TOKEN_KEYS if type(value := value_of(key)) is int and value > 0}
    if len(experts) != 1 or len(per_token) != 1 or value_of("zero_expert_num"):
        return None
    chosen, total = per_token.pop(), experts.pop()
    return (chosen, total) if chosen <= total else None


def claims_experts(value_of: Callable[[str], object]) -> bool:
    """Whether the configuration states more than one expert."""
    return any(type(value := value_of(key)) is int and value > 1 for key in EXPERTS_KEYS)


def each_experts_module(module: Module) -> Iterator[Module]:
    """Every module that owns tensors of experts."""
    if module.component == "experts" and module.tensors:
        yield module
    for child in module.children:
        yield from each_experts_module(child)


def component_of(name: str, class_name: str, inherited: str, *, table: bool, head: bool) -> str:
    """The component by the module's role, else its name, else its parent's; all parts of a tower belong to the tower.

    table, head: whether it is the token embedding or the output layer.
    """
    if table:
        return "embedding"
    if head:
        return "lm_head"
    if inherited in ("vision", "audio", "shared_expert", "experts"):
        return inherited
    for pattern, component in COMPONENT_OF_NAME:
        if re.fullmatch(pattern, name):
            # A gate in an MLP without experts is one of the MLP's matrices, no router: transformers' routers are no plain
            # linear layers.
            plain = component == "router" and not re.search(r"Router|Gate|Gating|TopK|MoE|Moe", class_name)
            return inherited if plain else component
    if "Norm" in class_name and inherited == "other":
        return "norm"
    if "Embedding" in class_name and inherited == "other":
        return "embedding"
    return "norm" if re.search(r"(layer_?norm|^norm|_norm|ln_\w+)$", name) and inherited == "other" else inherited


def folded(children: Sequence[Module]) -> tuple[Module, ...]:
    """Equal numbered siblings in a row as one node."""
    return tuple(_folded(children))


def _folded(children: Sequence[Module]) -> Iterator[Module]:
    for numbered, run in groupby(children, key=lambda child: child.name.isdecimal()):
        if not numbered:
            yield from run
            continue
        for _, alike in groupby(run, key=lambda child: replace(child, name="")):
            equal = list(alike)
            first = int(equal[0].name)
            if [child.name for child in equal] == [str(first + index) for index in range(len(equal))]:
                yield replace(equal[0], repeats=len(equal))
            else:
                yield from equal
