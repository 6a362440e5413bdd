"""One rank of several in a single process: a real class sharded by transformers' own code, with PyTorch's fake process group.

The fake process group gives every collective a result of the right shape without values, which is enough for a trace. Not
traceable: communication whose sizes depend on values, such as sending tokens to the rank of their expert.
Sources: torch 2.13, torch/testing/_internal/distributed/fake_pg.py; transformers 5.23, distributed/.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ..results.ranks import Place
from ..results.timeline import GATHERED
from ..typed import Any
from .kernels import replaced


@contextmanager
def standing_at(place: Place) -> Iterator[None]:
    """Makes this process the rank of a fake process group. No other process group may exist."""
    import torch.distributed as dist
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    from torch.testing._internal.distributed.fake_pg import FakeStore

    excepthook = sys.excepthook  # init_process_group replaces it
    dist.init_process_group("fake", store=FakeStore(), rank=place.rank, world_size=place.how.ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = excepthook
        _clear_sharding_prop_cache()  # it holds shapes of this rank's shards


@contextmanager
def unloaded() -> Iterator[None]:
    """Builds models on meta without tied weights, as `from_pretrained` does before it shards and loads them."""
    import torch
    from transformers.initialization import no_tie_weights

    with torch.device("meta"), no_tie_weights():
        yield


def cut(model: Any, place: Place) -> Any:
    """The rank's shard of a model on meta, on meta, as `from_pretrained(distributed_config=...)` makes it before loading.

    The mesh is of CPUs even if there are GPUs. Source: transformers 5.23, distributed/utils.initialize_distributed_mesh.
    """
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import FSDPModule
    from transformers.distributed import DistributedConfig
    from transformers.distributed.utils import TransformersDeviceMesh

    how = place.how
    degrees = DistributedConfig(tp_size=how.tensor, pp_size=how.pipeline, ep_size=how.expert, fsdp_size=how.fsdp)
    dense = {"pp": how.pipeline, "dp_replicate": 1, "fsdp": how.fsdp, "tp": how.tensor}
    experts = {"pp": how.pipeline, "dp_replicate": 1, "efsdp": degrees.efsdp_size, "ep": how.expert}
    mesh = TransformersDeviceMesh(
        *(init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes)) for axes in (dense, experts))
    )
    model = model.maybe_distribute_model(model, degrees, mesh)
    if how.fsdp > 1 and how.zero_stage == 2:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(False, recurse=False)
    return model


def cut_by_accelerate(model: Any, place: Place, *, dtype: str | None, by_peft: bool) -> Any:
    """The rank's shard of a model on meta, by FSDP2 as accelerate's own code applies it. dtype: of its mixed precision, in which
    trained parameters are sharded in float32, computed with and reduced in `dtype`, without autocast. by_peft: whether a
    PeftModel is around the model, in which accelerate does not find the last norm: it is then in no unit with the head.

    Source: accelerate 1.15, utils/fsdp_utils.py, fsdp2_prepare_model; accelerator.py, _prepare_fsdp2
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, fsdp_utils
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed import init_device_mesh

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=place.how.zero_stage == 3,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=dtype and dtype.replace("bfloat", "bf").replace("float", "fp"),
    )
    accelerator = types.SimpleNamespace(
        state=types.SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh("cpu", (place.how.fsdp,), mesh_dim_names=("fsdp",)),
        parallelism_config=types.SimpleNamespace(fsdp_dim_names=("fsdp",)),
        mixed_precision=dtype or "no",
        is_main_process=False,
        device="cpu",
    )
    # It takes a state dict, which a rank that loads its own weights does not use, and for which 4-bit weights would need data.
    find_norm = (lambda _: None) if by_peft else fsdp_utils._find_final_norm
    replacements: list[tuple[Any, str, Any]] = [
        (type(model), "state_dict", lambda *_, **__: {}),
        (fsdp_utils, "_find_final_norm", find_norm),
    ]
    with replaced(replacements):
        return fsdp2_prepare_model(accelerator, model)


def materialise(model: Any) -> None:
    """Moves this rank's shards of parameters and buffers off meta and ties weights again."""
    model.to_empty(device="cpu")
    model.tie_weights(recompute_mapping=False)


def local(tensor: Any) -> Any:
    """This rank's shard of a DTensor; any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def unsharded_type(module: Any) -> type:
    """The class that a module had before FSDP2 mixed its own in. Source: torch 2.13, _fully_shard.py, fully_shard"""
    from torch.distributed.fsdp import FSDPModule

    return type(module).__bases__[1] if isinstance(module, FSDPModule) else type(module)


def unshard(module: Any) -> None:
    """Gathers the weights of a unit whose forward is not called. Source: unsloth_zoo 2026.10.9, unsloth_fsdp_unshard"""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.unshard()


def whole_weight(weight: Any) -> Any:
    """A weight that is gathered if it is still sharded. Source: TRL 1.16, trainer/utils.py, add_fused_lm_head"""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def by_mesh(tensors: Iterable[Any]) -> list[list[Any]]:
    """DTensors grouped by their mesh, and other tensors, which have none: kernels of many tensors take one kind."""
    groups: dict[Any, list[Any]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(groups.values())


def shared_types() -> tuple[type, ...]:
    """Tensor classes that wrap other tensors: shards of a DTensor, and results of collectives still in flight."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor

    return DTensor, AsyncCollectiveTensor


@contextmanager
def gathering(
    named: Callable[[str, str], AbstractContextManager[None]], resize: Callable[[Any, int], None]
) -> Iterator[None]:
    """Reports FSDP's unsharded weights: their allocations, and the storages that it resizes.

    named: context around FSDP's allocations, called with operator and module; for padded shards the operator is "parameter".
    resize: called before FSDP resizes a tensor's storage, with 0 to free it; FSDP reuses storages instead of making new ones.
    Source: torch 2.13, torch/distributed/fsdp/_fully_shard, _fsdp_param.py and _fsdp_param_group.py.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    alloc, free = _fsdp_param.alloc_storage, _fsdp_param.free_storage

    def allocate(tensor: Any) -> None:
        resize(tensor, tensor.numel() * tensor.itemsize)
        alloc(tensor)

    def release(tensor: Any) -> None:
        resize(tensor, 0)
        free(tensor)

    def under_name(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(group: Any, *arguments: Any, **options: Any) -> Any:
            with named(GATHERED, group._module_fqn or ""):
                return method(group, *arguments, **options)

        return run

    def reset_padded(parameter: Any) -> None:
        with named("parameter", (parameter._param_fqn or "").rpartition(".")[0]):
            reset(parameter)

    reset = _fsdp_param.FSDPParam.reset_sharded_param
    group = _fsdp_param_group.FSDPParamGroup
    replacements: tuple[tuple[Any, str, Any], ...] = (
        (_fsdp_param, "alloc_storage", allocate),
        (_fsdp_param_group, "alloc_storage", allocate),
        (_fsdp_param, "free_storage", release),
        (_fsdp_param.FSDPParam, "reset_sharded_param", reset_padded),
        (group, "unshard", under_name(group.unshard)),
        (group, "wait_for_unshard", under_name(group.wait_for_unshard)),
    )
    with replaced(replacements):
        yield


@contextmanager
def shapes_worked_out(unrecorded: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Keeps the tensors with which DTensor infers an operator's output shape out of the record.

    Source: torch 2.13, torch/distributed/tensor/_sharding_prop.py.
    """
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    propagate = getattr(ShardingPropagator, name)

    def run(*arguments: Any, **options: Any) -> Any:
        with unrecorded():
            return propagate(*arguments, **options)

    with replaced(((ShardingPropagator, name, run),)):
        yield


@contextmanager
def logits_shape_known(model: Any, batch: int) -> Iterator[None]:
    """Supplies the logits' shape, which the last pipeline stage would broadcast to the others as numbers.

    Source: transformers 5.23, distributed/pipeline_parallel.py, PipelineStage.broadcast_from_last.
    """
    import torch
    import torch.distributed as dist

    broadcast = dist.broadcast
    vocabulary = model.config.get_text_config(decoder=True).vocab_size

    def broadcast_shape(tensor: Any, *arguments: Any, **options: Any) -> Any:
        work = broadcast(tensor, *arguments, **options)
        if tensor.dtype == torch.int64 and tensor.shape == (3,):
            tensor.tolist = lambda: [batch, 1, vocabulary]
        return work

    with replaced(((dist, "broadcast", broadcast_shape),)):
        yield
