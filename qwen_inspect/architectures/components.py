"""Which row of the statistics a module belongs to, by its name and class; and equal siblings as one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby

from ..spec import Module
from ..standard import re
from ..values import replace

# Components by the names of modules (first match wins): whole names, beginnings with * behind them, ends with * before them.
# Without a match a module is of its parent's component.
_NAMES_OF: Mapping[str, str] = {
    "vision": "visual vision* image* vit vpm multi_modal_projector mm_projector embed_vision connector aligner",
    "audio": "audio* speech* embed_audio sound*",
    "speech": "talker token2wav code2wav",
    "shared_expert": "shared_expert shared_experts shared_mlp shared_expert_gate",
    "experts": "experts",
    "router": "router gate",
    "linear_attention": "linear_attn mamba mixer ssm conv short_conv recurrent* temporal_block mlstm* slstm* kda",
    "attention": "*attn *attention",
    "mlp": "mlp feed_forward ffn ff fc fc0 fc1 fc2 fc3 fc4 fc5 fc6 fc7 fc8 fc9 block_sparse_moe moe dense* *mlp",
}
_WITHIN = {"attention": "_attn_"}  # anywhere in a name
_ROUTERS = ("Router", "Gate", "Gating", "TopK", "MoE", "Moe")  # anywhere in a class's name

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
    if inherited in ("vision", "audio", "speech", "shared_expert", "experts"):
        return inherited
    if (component := _component_named(name)) is not None:
        # A gate in an MLP without experts is one of the MLP's matrices, no router: transformers' routers are no plain
        # linear layers.
        plain = component == "router" and not any(mark in class_name for mark in _ROUTERS)
        return inherited if plain else component
    if "Norm" in class_name and inherited == "other":
        return "norm"
    if "Embedding" in class_name and inherited == "other":
        return "embedding"
    return "norm" if inherited == "other" and _is_norm(name) else inherited


def _is_norm(name: str) -> bool:
    if name == "norm" or name.endswith(("layernorm", "_norm")):
        return True
    return "ln_" in name and re.search(r"ln_\w+$", name) is not None


@cache
def _component_named(name: str) -> str | None:
    for component, whole, beginnings, ends in _patterns():
        within = component in _WITHIN and _WITHIN[component] in name
        if name in whole or name.startswith(beginnings) or name.endswith(ends) or within:
            return component
    return None


@cache
def _patterns() -> tuple[tuple[str, frozenset[str], tuple[str, ...], tuple[str, ...]], ...]:
    """_NAMES_OF: component, whole names, beginnings, ends."""
    return tuple(
        (
            component,
            frozenset(name for name in names.split() if "*" not in name),
            tuple(name[:-1] for name in names.split() if name.endswith("*")),
            tuple(name[1:] for name in names.split() if name.startswith("*")),
        )
        for component, names in _NAMES_OF.items()
    )


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
