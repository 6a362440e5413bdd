"""Bytes of each rank of a shared model: weights, cache, gradients and optimizer states.

Exact without running anything: each tensor is cut as the library cuts it, remainders and padding included.
Source: transformers 5.23, distributed/ (tensor_parallel, expert_parallel, pipeline_parallel, fsdp); torch 2.13,
distributed/fsdp/_fully_shard; for DeepSpeed's stages see deepspeed.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from ..architectures.patterns import selects
from ..checkpoint import BlockFormat, DType, Tensor
from ..errors import UnsupportedError, UsageError
from ..results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention
from ..results.cache import CacheLayer
from ..results.memory import Run
from ..results.ranks import Parallelism, Plans, RankBytes
from ..spec import Module, each_buffer, each_module, each_tensor
from ..values import dataclass, replace
from .adapters import check_adapters, rows_are_cut
from .deepspeed import check_deepspeed, deepspeed_bytes
from .four_bits import FourBitWeights
from .loops import check_optimizer, mixed_dtype, states_of

MOST_RANKS = 1024
COLUMNS = ("colwise", "colwise_gather_output", "colwise_rep")
ROWS = ("rowwise", "rowwise_split_input", "rowwise_rep")
# Styles that change the inputs and outputs of a module, not its parameters.
WHOLE = (
    "replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce", "sequence_parallel", "local_params",
    "moe_tp_experts", "moe_identity_expert", "ep_dispatch_experts",
)  # fmt: skip
# Projections that output keys. Source: transformers 5.23, distributed/tensor_parallel.get_kv_heads_per_rank.
KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")
KEPT = "keep_full_weight"
HEAD = "lm_head"
STEP_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A model to be shared: its modules, its plans, and each layer's attention and cache (None: unknown).

    tied: whether the output layer is the embedding. adapters: what PEFT adds, under the names of the modules that it is added to.
    four_bits: the weights of a base in 4 bits, in place of the tree's.
    """

    tree: Module
    plans: Plans
    tied: bool
    attention: tuple[AnyLayerAttention, ...] | None
    cache: tuple[CacheLayer, ...] | None
    adapters: tuple[Tensor, ...] = ()
    four_bits: FourBitWeights | None = None

    @property
    def own(self) -> Iterable[Tensor]:
        """The model's own parameters, tied ones once."""
        return each_tensor(self.tree) if self.four_bits is None else self.four_bits.sharded


def rank_bytes(model: Sharded, how: Parallelism, run: Run) -> tuple[RankBytes, ...]:
    """Bytes of each rank. Equal ranks are grouped, in the order of their first.

    With tensor, pipeline and expert parallelism all ranks see one batch; with FSDP each has its own `run.batch` sequences.
    Ranks are numbered as transformers' mesh (pipeline, fsdp, tensor). UsageError for degrees that contradict each other,
    UnsupportedError if transformers has no plan or cannot cut the model into so many parts.
    """
    check(model, how, run)
    stages = Stages.of(model, how.pipeline)
    groups = _parts(model, stages, how, run)
    gathered = _gathered(model, how, run)
    cache = [_shared_cache(model, how.tensor, run, stages.layers(stage)) for stage in range(how.pipeline)]
    buffers = [
        sum(buffer.size_bytes for buffer in each_buffer(model.tree) if stage in stages.holding(buffer.name))
        for stage in range(how.pipeline)
    ]
    ranks_by_bytes: dict[RankBytes, list[int]] = {}
    for rank in range(how.ranks):
        stage, place = divmod(rank, how.fsdp * how.tensor)
        share = _share(groups, how, stage, place, run)
        host = share.host
        if how.offload:  # source: torch 2.13, _fsdp_param.py, offload_to_cpu
            whole = {part: count for part, count in groups.items() if part.on_all}
            kept = _share(whole, how, stage, place, run)  # no parameters, so FSDP does not move them
            host = share.weights - kept.weights + share.adapters + share.gradients + share.optimizer
            share = kept
        keys_and_values, states = cache[stage]
        on_rank = RankBytes(
            ranks=(),
            layers=stages.layers(stage),
            experts=_experts_per_rank(groups, how),
            weights=share.weights,
            replicated=share.replicated,
            padding=share.padding,
            buffers=buffers[stage],
            cache=keys_and_values,
            state=states,
            gradients=share.gradients,
            optimizer=share.optimizer,
            gathered=gathered,
            adapters=share.adapters,
            host=host,
        )
        ranks_by_bytes.setdefault(on_rank, []).append(rank)
    return tuple(replace(on_rank, ranks=tuple(ranks)) for on_rank, ranks in ranks_by_bytes.items())


# --- what transformers refuses ---------------------------------------------------------------------------------------


def check(model: Sharded, how: Parallelism, run: Run) -> None:
    """Raises for what transformers refuses. Source: distributed/configuration_utils.py, mixin._resolve_parallel_plans."""
    if how.ranks > MOST_RANKS:
        raise UsageError("ranks_too_many", ranks=how.ranks, most=MOST_RANKS)
    if how.pipeline > 1 and max(how.tensor, how.expert, how.fsdp) > 1:
        option = "--tp" if how.tensor > 1 else "--ep" if how.expert > 1 else "--fsdp"
        raise UnsupportedError("ranks_with_pipeline", option=option)
    if how.expert % how.tensor and how.expert > 1:
        raise UsageError("ranks_ep_of_tp", ep=how.expert, tp=how.tensor)
    if how.fsdp * how.tensor % how.expert:
        raise UsageError("ranks_ep_of_ranks", ep=how.expert, ranks=how.fsdp * how.tensor)
    if run.mode == "train" and how.pipeline > 1:
        raise UnsupportedError("ranks_train_pipeline")
    if run.lora_rank is not None and (how.ranks not in (how.fsdp, how.tensor) or how.expert > 1):
        raise UnsupportedError("ranks_adapters")
    if how.offload and (how.ranks != how.fsdp or how.expert > 1 or how.by_deepspeed):
        raise UnsupportedError("ranks_offload")
    if how.offload and how.ranks == 1:
        raise UnsupportedError("ranks_offload_one")
    if how.by_deepspeed:
        check_deepspeed(how, run)
    if run.mode == "train":
        check_optimizer(how, run)
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
        if run.lora_rank is not None:
            rules = dict(model.plans.tensor)
            styles = {tensor.name: _style(tensor.name, rules) for tensor in model.own}
            check_adapters(model.adapters, styles, run)


def _check_tied(model: Sharded) -> None:
    """Raises if the plan cuts a tied head but not the embedding: transformers loads such a model, and its forward fails."""
    rules = dict(model.plans.tensor)
    if model.tied and HEAD in rules and not any(name.rpartition(".")[2] == "embed_tokens" for name in rules):
        raise UnsupportedError("ranks_tied_head", class_name=model.tree.class_name)


def _check_heads(model: Sharded, ranks: int) -> None:
    """Raises if the ranks do not divide the heads: transformers neither splits a head nor repeats one."""
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
    """The dimension that is cut. packed: how many matrices lie side by side in it, each cut separately."""

    dimension: int
    packed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that decides which part of a tensor a rank holds. stages: the pipeline stages that hold it.

    on_all: FSDP does not cut it. whole_gradient: an embedding cut by rows gets a gradient for all rows; not if it is tied to the
    output layer, whose gradients cover its own rows, nor with FSDP, which shards them. states: of the optimizer, in the
    parameter's dtype.
    """

    shape: tuple[int, ...]
    dtype: DType | BlockFormat
    cut: Cut | None
    by_expert: bool
    stages: tuple[int, ...]
    trained: bool
    whole_gradient: bool
    adapter: bool = False
    on_all: bool = False
    states: int = 0


def _parts(model: Sharded, stages: Stages, how: Parallelism, run: Run) -> Counter[Part]:
    """Kinds of tensors and how many tensors of each."""
    tensor_rules, expert_rules = dict(model.plans.tensor), dict(model.plans.expert)
    is_trained = selects(run.trained, run.frozen)
    trains = run.mode == "train" and run.lora_rank is None
    styles = {tensor.name: _style(tensor.name, tensor_rules) for tensor in model.own}
    widened = mixed_dtype(how, run) is not None
    by_engine = next((tensor.dtype for tensor in model.own), None) if how.by_deepspeed else None
    embedded = {name for name, module in each_module(model.tree) if module.class_name.endswith("Embedding")}
    own = (
        Part(
            shape=tensor.shape,
            dtype=DType.F32 if widened and trains and is_trained(tensor.name) else tensor.dtype,
            cut=cut_of(tensor, styles[tensor.name]),
            by_expert=_style(tensor.name, expert_rules) == "grouped_gemm",
            stages=stages.holding(tensor.name),
            trained=trains and is_trained(tensor.name),
            whole_gradient=styles[tensor.name] == "embedding_rowwise" and not model.tied,
            states=states_of(tensor, run.optimizer, embedded),
        )
        for tensor in model.own
    )
    added = (
        Part(
            shape=tensor.shape,
            dtype=DType.F32 if widened else by_engine or tensor.dtype,  # DeepSpeed casts all to one
            cut=Cut(dimension=0) if how.tensor > 1 and rows_are_cut(tensor) else None,
            by_expert=False,
            stages=stages.holding(tensor.name),
            trained=True,
            whole_gradient=False,
            adapter=True,
            states=states_of(tensor, run.optimizer, embedded),
        )
        for tensor in model.adapters
    )
    uncut = (
        Part(
            shape=tensor.shape,
            dtype=tensor.dtype,
            cut=None,
            by_expert=False,
            stages=(0,),
            trained=False,
            whole_gradient=False,
            on_all=True,
        )
        for tensor in (model.four_bits.whole if model.four_bits is not None else ())
    )
    return Counter((*own, *added, *uncut))


def _with_wildcards(name: str) -> str:
    return re.sub(r"\.\d+(\.|$)", r".*\1", name)


def _style(name: str, plan: Mapping[str, str]) -> str | None:
    """The rule for a parameter, else for its module. Source: distributed/parallel_utils._get_parameter_plan."""
    generic = _with_wildcards(name)
    return plan.get(generic, plan.get(generic.rpartition(".")[0]))


def cut_of(tensor: Tensor, style: str | None) -> Cut | None:
    """How a style cuts a parameter; None if every rank holds all of it. UnsupportedError for an unknown style.

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
    """How much of a dimension a rank gets: ceil(size / ranks) until none is left.

    Source: torch 2.13, Shard.local_shard_size_and_offset; torch.chunk.
    """
    largest = -(-size // ranks)
    return max(0, min(largest, size - largest * rank))


def _cut(shape: tuple[int, ...], cut: Cut, ranks: int, rank: int) -> tuple[int, ...]:
    """The shape of one rank's part. Source: distributed/sharding_utils.DtensorShardOperation."""
    size, each = shape[cut.dimension], -(-shape[cut.dimension] // cut.packed)
    sizes = [min(each, size - first) for first in range(0, size, each)]
    part = sum(chunk(matrix_size, ranks, rank) for matrix_size in sizes)
    return (*shape[: cut.dimension], part, *shape[cut.dimension + 1 :])


# --- one rank ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Bytes of one rank."""

    weights: int = 0
    replicated: int = 0
    padding: int = 0
    gradients: int = 0
    optimizer: int = 0
    adapters: int = 0
    host: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(**{name: getattr(self, name) + getattr(other, name) for name in Share.__slots__})

    def __mul__(self, count: int) -> Share:
        return Share(**{name: count * getattr(self, name) for name in Share.__slots__})


def _share(groups: Mapping[Part, int], how: Parallelism, stage: int, place: int, run: Run) -> Share:
    """Bytes of all tensors on the rank at `place` of a stage."""
    if how.by_deepspeed:
        kinds = ((part.shape, part.dtype, part.trained, count) for part, count in groups.items())
        return Share(**deepspeed_bytes(kinds, how, place, run))
    shares = (_share_of(part, how, place, run) * count for part, count in groups.items() if stage in part.stages)
    return sum(shares, Share())


def _share_of(part: Part, how: Parallelism, place: int, run: Run) -> Share:
    """Bytes of one tensor on a rank: first cut by its style, then by FSDP, which cuts rows and pads to equal parts."""
    shape, sharing, index = part.shape, how.fsdp, place // how.tensor
    is_cut = part.cut is not None
    if part.on_all:
        sharing = 1
    if part.by_expert and how.expert > 1:
        if shape[0] % how.expert:
            raise UnsupportedError("ranks_experts", experts=shape[0], ranks=how.expert)
        shape, is_cut = (shape[0] // how.expert, *shape[1:]), True
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
    copies = not part.adapter and (len(part.stages) > 1 or (how.tensor > 1 and not is_cut) or part.on_all)
    return Share(
        weights=0 if part.adapter else weights,
        padding=0 if part.adapter else padding,
        replicated=weights - padding if copies else 0,
        adapters=weights if part.adapter else 0,
        gradients=(_bytes(math.prod(part.shape), part.dtype) if whole else weights) if part.trained else 0,
        # States are not padded; fused AdamW also keeps its step counter on the device.
        optimizer=part.states * (weights - padding) + STEP_BYTES * (run.optimizer == "adamw_fused")
        if part.trained
        else 0,
    )


def _bytes(elements: int, dtype: DType | BlockFormat) -> int:
    return Tensor("", (elements,), dtype).size_bytes


def _experts_per_rank(groups: Iterable[Part], how: Parallelism) -> int | None:
    return next((part.shape[0] // how.expert for part in groups if part.by_expert and how.expert > 1), None)


# --- stages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The pipeline's stages: equally many layers each, the remainder on the last.

    The embedding is on the first stage (if tied, on the last too), norm and head on the last, all else on every stage.
    Source: distributed/pipeline_parallel.py, PipelineStage.layer_range_for_rank, apply_pipeline_parallelism
    """

    base: str
    count: int
    depth: int
    tied: bool

    @classmethod
    def of(cls, model: Sharded, count: int) -> Stages:
        base = model.plans.pipeline or ""
        layers = re.compile(rf"{re.escape(base)}\.layers\.(\d+)\.")
        matches = (layers.match(tensor.name) for tensor in model.own)
        depth = max((int(match[1]) + 1 for match in matches if match), default=0)
        return cls(base=base, count=count, depth=depth, tied=model.tied)

    def layers(self, stage: int) -> tuple[int, int] | None:
        """The first layer and the one after the last; None if there is only one stage."""
        if self.count == 1:
            return None
        each = self.depth // self.count
        return stage * each, self.depth if stage == self.count - 1 else (stage + 1) * each

    def holding(self, name: str) -> tuple[int, ...]:
        """The stages that hold a tensor."""
        last = self.count - 1
        if last == 0:
            return (0,)
        own = name.removeprefix(f"{self.base}.")
        if name.startswith(f"{HEAD}.") or (own != name and own.startswith("norm.")):
            return (last,)
        if own != name and own.startswith("embed_tokens."):
            return (0, last) if self.tied else (0,)
        if own != name and own.startswith("layers."):
            each = self.depth // self.count
            return (min(int(own.split(".")[1]) // each, last) if each else last,)
        return tuple(range(self.count))


# --- the cache -----------------------------------------------------------------------------------------------------


def _shared_cache(
    model: Sharded, ranks: int, run: Run, layers: tuple[int, int] | None
) -> tuple[int | None, int | None]:
    """Bytes (keys and values, states) of a stage's layers on one of `ranks` tensor-parallel ranks; None: unknown."""
    if run.mode == "train":
        return 0, 0
    if model.cache is None or model.attention is None:
        return None, None
    keys_and_values = states = 0
    own = slice(None) if layers is None else slice(*layers)
    for layer, attention in zip(model.cache[own], model.attention[own], strict=True):
        parts = _parts_of_cache(model.plans, attention, layer) if ranks > 1 else "whole"
        if parts is None or (parts == "heads" and layer.bytes_per_token % ranks):
            return None, None
        size = layer.size_bytes(run.cached_tokens) - layer.fixed_bytes
        keys_and_values += run.batch * (size // ranks if parts == "heads" else size)  # bytes of a token divide evenly
        states += run.batch * layer.fixed_bytes
    return keys_and_values, states


def _parts_of_cache(plans: Plans, attention: AnyLayerAttention, layer: CacheLayer) -> str | None:
    """ "heads" if ranks share them, "whole" if each rank keeps all, None if unknown.

    Linear attention gathers its projections, so every rank computes and keeps all states. MLA's latent comes from a projection
    that is whole on every rank.
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
    """The most bytes of whole weights that FSDP holds gathered at once; None without FSDP or combined with other parallelism.

    The plan's units are gathered and freed one by one, except kept units and parameters outside any unit. Backward prefetches
    one unit. In ZeRO stage 2 all stay gathered. Source: transformers 5.23, distributed/fsdp.py; torch 2.13,
    _fsdp_param_group.py (_backward_prefetch), _fsdp_param.py (init_all_gather_outputs: equal parts of all ranks).
    """
    if how.fsdp == 1 or how.ranks > how.fsdp or how.expert > 1:
        return None
    if how.by_deepspeed:
        return 0 if how.zero_stage < 3 else None
    units = _units(model, how.fsdp, mixed_dtype(how, run))
    if how.zero_stage == 2:
        return sum(units.values())
    root, kept = units.pop(None, 0), units.pop(KEPT, 0)
    sizes = list(units.values())
    if run.mode != "train":
        return root + kept + max(sizes, default=0)
    if model.tied:  # the embedding is among the kept, and its backward ends last
        return root + kept + max(_neighbours(sizes))
    return root + max(_neighbours([*sizes, kept]))


def _neighbours(sizes: Sequence[int]) -> Iterator[int]:
    """The sum of each two neighbours, and the largest alone."""
    yield max(sizes, default=0)
    yield from map(sum, pairwise(sizes))


def _units(model: Sharded, ranks: int, dtype: DType | None) -> dict[str | None, int]:
    """Bytes of each gathered FSDP unit, in module order. Keys: `KEPT` for units that stay gathered, `None` for no unit. dtype: in
    which they are gathered, if not their own.
    """
    plan = dict(model.plans.fsdp)
    embedding = next((name for name in plan if name.rpartition(".")[2] == "embed_tokens"), None)
    if model.tied and embedding is not None:  # FSDP wraps it once, by the output layer's rule
        plan[embedding] = plan.pop(HEAD, "")
    sizes: dict[str | None, int] = defaultdict(int)
    for tensor in (*model.own, *model.adapters):
        if not tensor.shape:
            raise UnsupportedError("ranks_scalar")
        rows = ranks * chunk(tensor.shape[0], ranks, 0)
        sizes[_unit(tensor.name, plan)] += _bytes(rows * math.prod(tensor.shape[1:]), dtype or tensor.dtype)
    return dict(sizes)


def _unit(name: str, plan: Mapping[str, str]) -> str | None:
    """The innermost enclosing module that has a rule."""
    module = name
    while module := module.rpartition(".")[0]:
        if style := plan.get(_with_wildcards(module)):
            return KEPT if style == KEPT else module
    return None
