"""What each rank holds of a model that several share: weights, cache, gradients and the optimizer's states, in bytes.

Nothing is run and nothing approximated: each tensor is cut as the library cuts it, remainders and padding included.
Source: transformers 5.23, distributed/ (tensor_parallel, expert_parallel, pipeline_parallel, fsdp); torch 2.13,
distributed/fsdp/_fully_shard; for ZeRO's stage 1 DeepSpeed, runtime/zero/stage_1_and_2.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..checkpoint import BlockFormat, DType, Tensor
from ..errors import UnsupportedError, UsageError
from ..results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention
from ..results.cache import CacheLayer
from ..results.memory import Run
from ..results.ranks import Parallelism, Plans, RankBytes
from ..spec import Module, each_buffer, each_tensor

MOST_RANKS = 1024
COLUMNS = ("colwise", "colwise_gather_output", "colwise_rep")
ROWS = ("rowwise", "rowwise_split_input", "rowwise_rep")
# Styles that change what a module does with its inputs and outputs, not its parameters.
WHOLE = (
    "replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce", "sequence_parallel", "local_params",
    "moe_tp_experts", "moe_identity_expert", "ep_dispatch_experts",
)  # fmt: skip
# Projections whose output holds the keys. Source: transformers 5.23, distributed/tensor_parallel.get_kv_heads_per_rank.
KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")
KEPT = "keep_full_weight"
HEAD = "lm_head"
# Numbers that an optimizer keeps of each parameter, in the parameter's dtype. Source: torch 2.13, optim/adam.py, optim/sgd.py.
STATES = {"adamw_foreach": 2, "adamw_fused": 2, "adamw_for_loop": 2, "sgd": 0, "none": 0}
STEP_BYTES = 4
# Optimizers that can step where some parameters are cut and others whole, as under a tensor-parallel plan alone: a kernel for all
# of them together refuses the mixture. Source: torch 2.13, distributed/tensor/_dispatch.py, try_replicate_spec_for_scalar_tensor.
PARAMETER_BY_PARAMETER = ("adamw_for_loop", "none")
# DeepSpeed aligns its flat buffer to this many elements for each rank (nccl_start_alignment_factor).
ZERO_ALIGNMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A model to be shared: its modules, its plans, and each layer's attention and cache (None where that is not settled).

    tied: whether its output layer is its embedding.
    """

    tree: Module
    plans: Plans
    tied: bool
    attention: tuple[AnyLayerAttention, ...] | None
    cache: tuple[CacheLayer, ...] | None


def rank_bytes(model: Sharded, how: Parallelism, run: Run) -> tuple[RankBytes, ...]:
    """Each rank's bytes, ranks alike together, in the order of their first.

    With tensor, pipeline and expert parallelism all ranks see one batch, with FSDP each has `run.batch` sequences of its own.
    Ranks are numbered as transformers' mesh (pipeline, fsdp, tensor). UsageError for degrees that contradict each other,
    UnsupportedError where transformers has no plan or cannot cut the model into so many parts.
    """
    check(model, how, run)
    stages = Stages.of(model, how.pipeline)
    groups = _parts(model, stages, run)
    gathered = _gathered(model, how, run)
    cache = [_shared_cache(model, how.tensor, run, stages.layers(stage)) for stage in range(how.pipeline)]
    buffers = [
        sum(one.size_bytes for one in each_buffer(model.tree) if stage in stages.holding(one.name))
        for stage in range(how.pipeline)
    ]
    found: dict[RankBytes, list[int]] = {}
    for rank in range(how.ranks):
        stage, place = divmod(rank, how.fsdp * how.tensor)
        held = _held(groups, how, stage, place, run)
        kept, states = cache[stage]
        alike = RankBytes(
            ranks=(),
            layers=stages.layers(stage),
            experts=_experts_per_rank(groups, how),
            weights=held.weights,
            replicated=held.replicated,
            padding=held.padding,
            buffers=buffers[stage],
            cache=kept,
            state=states,
            gradients=held.gradients,
            optimizer=held.optimizer,
            gathered=gathered,
        )
        found.setdefault(alike, []).append(rank)
    return tuple(replace(alike, ranks=tuple(ranks)) for alike, ranks in found.items())


# --- what can be done at all -----------------------------------------------------------------------------------------


def check(model: Sharded, how: Parallelism, run: Run) -> None:
    """Refuses what transformers refuses. Source: distributed/configuration_utils.py, mixin._resolve_parallel_plans."""
    if how.ranks > MOST_RANKS:
        raise UsageError("ranks_too_many", ranks=how.ranks, most=MOST_RANKS)
    if how.pipeline > 1 and (others := [name for name in ("tensor", "expert", "fsdp") if getattr(how, name) > 1]):
        raise UnsupportedError(
            "ranks_with_pipeline", option={"tensor": "--tp", "expert": "--ep", "fsdp": "--fsdp"}[others[0]]
        )
    if how.expert % how.tensor and how.expert > 1:
        raise UsageError("ranks_ep_of_tp", ep=how.expert, tp=how.tensor)
    if how.fsdp * how.tensor % how.expert:
        raise UsageError("ranks_ep_of_ranks", ep=how.expert, ranks=how.fsdp * how.tensor)
    if run.mode == "train" and how.pipeline > 1:
        raise UnsupportedError("ranks_train_pipeline")
    if run.mode == "train" and run.lora_rank is not None:
        raise UnsupportedError("ranks_adapters")
    if run.optimizer not in STATES:
        raise UnsupportedError("ranks_optimizer", optimizer=run.optimizer)
    if run.mode == "train" and how.tensor > 1 and how.fsdp == 1 and run.optimizer not in PARAMETER_BY_PARAMETER:
        raise UnsupportedError("ranks_train_mixed", optimizer=run.optimizer)
    if how.tensor > 1 and not model.plans.tensor:
        raise UnsupportedError("ranks_no_plan", class_name=model.tree.class_name, option="--tp")
    if how.expert > 1 and not model.plans.expert:
        raise UnsupportedError("ranks_no_plan", class_name=model.tree.class_name, option="--ep")
    if how.pipeline > 1 and model.plans.pipeline is None:
        raise UnsupportedError("ranks_no_pipeline", class_name=model.tree.class_name)
    if how.pipeline > 1 and how.pipeline > (depth := Stages.of(model, how.pipeline).depth):
        raise UnsupportedError("ranks_empty_stages", stages=how.pipeline, layers=depth)
    if how.tensor > 1:
        _check_tied(model)
        _check_heads(model, how.tensor)


def _check_tied(model: Sharded) -> None:
    """A head is cut by its rule, and then is the embedding, which has none: transformers loads that, and its forward fails."""
    rules = dict(model.plans.tensor)
    if model.tied and HEAD in rules and not any(name.rpartition(".")[2] == "embed_tokens" for name in rules):
        raise UnsupportedError("ranks_tied_head", class_name=model.tree.class_name)


def _check_heads(model: Sharded, ranks: int) -> None:
    """Heads are cut where the projections of keys are: a part of a head cannot be attended to, and transformers repeats none."""
    if not _keys_are_cut(model.plans):
        return
    for layer in model.attention or ():
        if isinstance(layer, LayerAttention):
            for heads, key in ((layer.kv_heads, "ranks_kv_heads"), (layer.query_heads, "ranks_query_heads")):
                if heads % ranks:
                    raise UnsupportedError(key, heads=heads, ranks=ranks)


def _keys_are_cut(plans: Plans) -> bool:
    return any(name.rpartition(".")[2] in KEY_PROJECTIONS and style == "colwise" for name, style in plans.tensor)


# --- how a tensor is cut -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The dimension that is cut, and how many matrices lie side by side there, each cut on its own."""

    dimension: int
    packed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that decides which part of a tensor a rank holds. stages: of the pipeline that hold it.

    whole_gradient: a table of which ranks have some rows gets a gradient for all of them; not one that is the output layer too,
    whose gradients are of its rows, nor with FSDP, which shares them out.
    """

    shape: tuple[int, ...]
    dtype: DType | BlockFormat
    cut: Cut | None
    by_expert: bool
    stages: tuple[int, ...]
    trained: bool
    whole_gradient: bool


def _parts(model: Sharded, stages: Stages, run: Run) -> Counter[Part]:
    """Every kind of tensor and how many there are of it."""
    tensor_rules, expert_rules = dict(model.plans.tensor), dict(model.plans.expert)
    styles = {tensor.name: _style(tensor.name, tensor_rules) for tensor in each_tensor(model.tree)}
    return Counter(
        Part(
            shape=tensor.shape,
            dtype=tensor.dtype,
            cut=cut_of(tensor, styles[tensor.name]),
            by_expert=_style(tensor.name, expert_rules) == "grouped_gemm",
            stages=stages.holding(tensor.name),
            trained=run.mode == "train" and re.search(run.trained, tensor.name) is not None,
            whole_gradient=styles[tensor.name] == "embedding_rowwise" and not model.tied,
        )
        for tensor in each_tensor(model.tree)
    )


def _with_wildcards(name: str) -> str:
    return re.sub(r"\.\d+(\.|$)", r".*\1", name)


def _style(name: str, plan: Mapping[str, str]) -> str | None:
    """The rule of a parameter, else that of its module. Source: distributed/parallel_utils._get_parameter_plan."""
    generic = _with_wildcards(name)
    return plan.get(generic, plan.get(generic.rpartition(".")[0]))


def cut_of(tensor: Tensor, style: str | None) -> Cut | None:
    """Where a style cuts a parameter, None where every rank holds all of it; UnsupportedError for a style that is not known.

    Source: `shard_param` of the styles in distributed/tensor_parallel.py.
    """
    dimensions = len(tensor.shape)
    if style in COLUMNS:
        return Cut(dimension=max(dimensions - 2, 0))
    if style in ROWS:
        return None if tensor.name.endswith(".bias") else Cut(dimension=dimensions - 1)
    if style in ("embedding_rowwise", "embedding_colwise"):
        return Cut(dimension=0 if style == "embedding_rowwise" else 1)
    if style == "packed_colwise":
        return Cut(dimension=0) if dimensions == 1 else Cut(dimension=dimensions - 2, packed=2)
    if style == "packed_rowwise":
        return None if dimensions == 1 else Cut(dimension=dimensions - 1, packed=2)
    if style is None or style in WHOLE:
        return None
    raise UnsupportedError("ranks_style", style=style)


def chunk(size: int, ranks: int, rank: int) -> int:
    """The part of a dimension that a rank gets: as many as the first for all, until there are no more.

    Source: torch 2.13, Shard.local_shard_size_and_offset; torch.chunk.
    """
    largest = -(-size // ranks)
    return max(0, min(largest, size - largest * rank))


def _cut(shape: tuple[int, ...], cut: Cut, ranks: int, rank: int) -> tuple[int, ...]:
    """The shape of one rank's part. Source: distributed/sharding_utils.DtensorShardOperation."""
    size, each = shape[cut.dimension], -(-shape[cut.dimension] // cut.packed)
    sizes = [min(each, size - first) for first in range(0, size, each)]
    part = sum(chunk(one, ranks, rank) for one in sizes)
    return (*shape[: cut.dimension], part, *shape[cut.dimension + 1 :])


# --- one rank ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    weights: int = 0
    replicated: int = 0
    padding: int = 0
    gradients: int = 0
    optimizer: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(**{name: getattr(self, name) + getattr(other, name) for name in Held.__slots__})

    def __mul__(self, several: int) -> Held:
        return Held(**{name: several * getattr(self, name) for name in Held.__slots__})


def _held(groups: Mapping[Part, int], how: Parallelism, stage: int, place: int, run: Run) -> Held:
    """What the rank at `place` of a stage holds of all tensors."""
    if how.fsdp > 1 and how.zero_stage == 1:
        return _held_whole(groups, how, run)
    parts = (_held_of(part, how, place, run) * several for part, several in groups.items() if stage in part.stages)
    return sum(parts, Held())


def _held_of(part: Part, how: Parallelism, place: int, run: Run) -> Held:
    """What a rank holds of one tensor: its part of each cut, then of FSDP's, which cuts rows and fills up to equal parts."""
    shape, sharing, index = part.shape, how.fsdp, place // how.tensor
    alone = part.cut is not None
    if part.by_expert and how.expert > 1:
        if shape[0] % how.expert:
            raise UnsupportedError("ranks_experts", experts=shape[0], ranks=how.expert)
        shape, alone = (shape[0] // how.expert, *shape[1:]), True
        sharing, index = how.fsdp * how.tensor // how.expert, place // how.expert
    elif part.cut is not None and how.tensor > 1:
        shape = _cut(shape, part.cut, how.tensor, place % how.tensor)
    elements = stored = math.prod(shape)
    if sharing > 1:
        if not shape:
            raise UnsupportedError("ranks_scalar")
        row = math.prod(shape[1:])
        elements, stored = chunk(shape[0], sharing, index) * row, chunk(shape[0], sharing, 0) * row
    weights = _bytes(stored, part.dtype)
    padding = weights - _bytes(elements, part.dtype)
    whole = part.whole_gradient and how.tensor > 1 and how.fsdp == 1
    copies = len(part.stages) > 1 or (how.tensor > 1 and not alone)
    return Held(
        weights=weights,
        padding=padding,
        replicated=weights - padding if copies else 0,
        gradients=(_bytes(math.prod(part.shape), part.dtype) if whole else weights) if part.trained else 0,
        # Like the rows, without padding; the fused one counts its steps on the device too.
        optimizer=STATES[run.optimizer] * (weights - padding) + STEP_BYTES * (run.optimizer == "adamw_fused")
        if part.trained
        else 0,
    )


def _held_whole(groups: Mapping[Part, int], how: Parallelism, run: Run) -> Held:
    """ZeRO's stage 1: weights and gradients whole in one flat buffer, AdamW's two numbers and a float32 copy shared out.

    Source: DeepSpeed, stage_1_and_2.py: flatten_dense_tensors_aligned, single_partition_of_fp32_groups.
    """
    whole = sum(several * _bytes(math.prod(part.shape), part.dtype) for part, several in groups.items())
    trained = [(part, several) for part, several in groups.items() if part.trained]
    elements = sum(several * math.prod(part.shape) for part, several in trained)
    alignment = ZERO_ALIGNMENT * how.fsdp
    filled = -(-elements // alignment) * alignment
    padding = _bytes(filled - elements, trained[0][0].dtype) if trained else 0
    return Held(
        weights=whole + padding,
        padding=padding,
        replicated=whole,
        gradients=sum(several * _bytes(math.prod(part.shape), part.dtype) for part, several in trained),
        optimizer=(1 + STATES[run.optimizer]) * _bytes(filled // how.fsdp, DType.F32) if run.optimizer != "none" else 0,
    )


def _bytes(elements: int, dtype: DType | BlockFormat) -> int:
    return Tensor("", (elements,), dtype).size_bytes


def _experts_per_rank(groups: Iterable[Part], how: Parallelism) -> int | None:
    return next((part.shape[0] // how.expert for part in groups if part.by_expert and how.expert > 1), None)


# --- stages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The pipeline's stages: each as many layers as the next, the last also the remainder.

    Source: distributed/pipeline_parallel.py, PipelineStage.layer_range_for_rank, apply_pipeline_parallelism: the embedding on the
    first (tied, on the last too), norm and head on the last, all else on every stage.
    """

    base: str
    several: int
    depth: int
    tied: bool

    @classmethod
    def of(cls, model: Sharded, several: int) -> Stages:
        base = model.plans.pipeline or ""
        layers = re.compile(rf"{re.escape(base)}\.layers\.(\d+)\.")
        found = (layers.match(tensor.name) for tensor in each_tensor(model.tree))
        depth = max((int(one[1]) + 1 for one in found if one), default=0)
        return cls(base=base, several=several, depth=depth, tied=model.tied)

    def layers(self, stage: int) -> tuple[int, int] | None:
        """The first and the one after the last; None where one stage has all."""
        if self.several == 1:
            return None
        each = self.depth // self.several
        return stage * each, self.depth if stage == self.several - 1 else (stage + 1) * each

    def holding(self, name: str) -> tuple[int, ...]:
        """The stages that hold a tensor."""
        last = self.several - 1
        if last == 0:
            return (0,)
        own = name.removeprefix(f"{self.base}.")
        if name.startswith(f"{HEAD}.") or (own != name and own.startswith("norm.")):
            return (last,)
        if own != name and own.startswith("embed_tokens."):
            return (0, last) if self.tied else (0,)
        if own != name and own.startswith("layers."):
            each = self.depth // self.several
            return (min(int(own.split(".")[1]) // each, last) if each else last,)
        return tuple(range(self.several))


# --- the cache -----------------------------------------------------------------------------------------------------


def _shared_cache(
    model: Sharded, ranks: int, run: Run, layers: tuple[int, int] | None
) -> tuple[int | None, int | None]:
    """(keys and values, states) of a stage's layers on one of `ranks` tensor-parallel ranks; None where that is not known."""
    if run.mode == "train":
        return 0, 0
    if model.cache is None or model.attention is None:
        return None, None
    kept = states = 0
    own = slice(None) if layers is None else slice(*layers)
    for layer, attention in zip(model.cache[own], model.attention[own], strict=True):
        parts = _parts_of_cache(model.plans, attention, layer) if ranks > 1 else "whole"
        if parts is None or (parts == "heads" and layer.bytes_per_token % ranks):
            return None, None
        size = layer.size_bytes(run.cached_tokens) - layer.fixed_bytes
        kept += run.batch * (size // ranks if parts == "heads" else size)  # bytes of a token divide evenly
        states += run.batch * layer.fixed_bytes
    return kept, states


def _parts_of_cache(plans: Plans, attention: AnyLayerAttention, layer: CacheLayer) -> str | None:
    """ "heads" where ranks share them, "whole" where each keeps all, None where it is not known.

    Linear attention gathers its projections again, so that every rank computes, and keeps, all states; what MLA compresses comes
    from a projection that is on every rank.
    """
    if isinstance(attention, LayerAttention):
        return "heads" if _keys_are_cut(plans) else "whole"
    if isinstance(attention, LinearLayerAttention):
        cut = any(".linear_attn." in name and style in ("colwise", *ROWS) for name, style in plans.tensor)
        return None if cut else "whole"
    compressed = layer.kind == "latent" and not any(
        "kv_a_proj" in name and style in COLUMNS for name, style in plans.tensor
    )
    return "whole" if compressed or layer.kind == "none" else None


# --- what FSDP gathers ---------------------------------------------------------------------------------------------


def _gathered(model: Sharded, how: Parallelism, run: Run) -> int | None:
    """The most bytes of whole weights that FSDP has put together at once; None without it, or beside other ways to share.

    The units of the plan are gathered one by one and dropped again, but for those that the plan keeps and the model's own rest.
    A backward gathers one unit ahead. In stage 2 all stay. Source: transformers 5.23, distributed/fsdp.py; torch 2.13,
    _fsdp_param_group.py (_backward_prefetch), _fsdp_param.py (init_all_gather_outputs: equal parts of all ranks).
    """
    if how.fsdp == 1 or how.ranks > how.fsdp or how.expert > 1:
        return None
    if how.zero_stage == 1:
        return 0
    units = _units(model, how.fsdp)
    if how.zero_stage == 2:
        return sum(units.values())
    rest, tail = units.pop(None, 0), units.pop(KEPT, 0)
    sizes = list(units.values())
    if run.mode != "train":
        return rest + tail + max(sizes, default=0)
    if model.tied:  # the embedding is in the tail, whose backward ends last
        return rest + tail + max(_neighbours(sizes))
    return rest + max(_neighbours([*sizes, tail]))


def _neighbours(sizes: Sequence[int]) -> Iterator[int]:
    """What each two neighbours take together, or one alone."""
    yield max(sizes, default=0)
    yield from map(sum, pairwise(sizes))


def _units(model: Sharded, ranks: int) -> dict[str | None, int]:
    """Bytes of each unit put together, in the model's order; KEPT: those that are kept, None: what is in no unit."""
    plan = dict(model.plans.fsdp)
    embedding = next((name for name in plan if name.rpartition(".")[2] == "embed_tokens"), None)
    if model.tied and embedding is not None:  # wrapped once, as the output layer would be
        plan[embedding] = plan.pop(HEAD, "")
    sizes: dict[str | None, int] = defaultdict(int)
    for tensor in each_tensor(model.tree):
        if not tensor.shape:
            raise UnsupportedError("ranks_scalar")
        rows = ranks * chunk(tensor.shape[0], ranks, 0)
        sizes[_unit(tensor.name, plan)] += _bytes(rows * math.prod(tensor.shape[1:]), tensor.dtype)
    return dict(sizes)


def _unit(name: str, plan: Mapping[str, str]) -> str | None:
    """The innermost module with a rule that a tensor lies in."""
    module = name
    while module := module.rpartition(".")[0]:
        if style := plan.get(_with_wildcards(module)):
            return KEPT if style == KEPT else module
    return None
