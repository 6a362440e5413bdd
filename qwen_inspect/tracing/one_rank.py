"""One rank of several, in one process: a real class cut by transformers' own code, with peers that are not there.

PyTorch's fake process group gives every collective its result's shape and no values, which is all that a trace needs. What ranks
say to each other beyond shapes cannot be traced so: where tokens go to whichever rank has their expert, sizes depend on values.
Sources: torch 2.13, torch/testing/_internal/distributed/fake_pg.py; transformers 5.23, distributed/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..results.ranks import Place
from ..results.timeline import GATHERED
from .kernels import replaced


@contextmanager
def standing_at(place: Place) -> Iterator[None]:
    """This process is that rank of a process group whose other ranks are made up. Not where a process group is already."""
    import torch.distributed as dist
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    from torch.testing._internal.distributed.fake_pg import FakeStore

    said_of_errors = sys.excepthook  # which a process group replaces
    dist.init_process_group("fake", store=FakeStore(), rank=place.rank, world_size=place.how.ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = said_of_errors
        _clear_sharding_prop_cache()  # shapes of this rank's parts


@contextmanager
def unloaded() -> Iterator[None]:
    """Models made here are on meta, with nothing tied yet, as `from_pretrained` makes them before it cuts and loads them."""
    import torch
    from transformers.initialization import no_tie_weights

    with torch.device("meta"), no_tie_weights():
        yield


def cut(model: Any, place: Place) -> Any:
    """A model on meta -> the rank's part of it, on meta, as `from_pretrained(distributed_config=...)` cuts it before it loads.

    The mesh is of CPUs though there may be GPUs here. Source: transformers 5.23, distributed/utils.initialize_distributed_mesh.
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
        *(init_device_mesh("cpu", tuple(one.values()), mesh_dim_names=tuple(one)) for one in (dense, experts))
    )
    model = model.maybe_distribute_model(model, degrees, mesh)
    if how.fsdp > 1 and how.zero_stage == 2:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(False, recurse=False)
    return model


def made_real(model: Any) -> None:
    """Parameters and buffers off meta, each rank's own part, tied ones tied again."""
    model.to_empty(device="cpu")
    model.tie_weights(recompute_mapping=False)


def local(tensor: Any) -> Any:
    """The part of it that this rank holds."""
    from torch.distributed.tensor import DTensor

    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def shared_types() -> tuple[type, ...]:
    """Tensors that stand for others: a rank's part of a larger one, and one that is still on its way."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor

    return DTensor, AsyncCollectiveTensor


@contextmanager
def gathering(
    named: Callable[[str, str], AbstractContextManager[None]], resize: Callable[[Any, int], None]
) -> Iterator[None]:
    """What FSDP does about whole weights is told: what it makes for them, and their storages that come and go.

    named: around what it makes, as an operator's, for a module; of a part that it fills up, "parameter". resize: called before a
    tensor's storage gets a size, 0 where it is given back; a storage is not made anew each time. Source: torch 2.13,
    torch/distributed/fsdp/_fully_shard, _fsdp_param.py and _fsdp_param_group.py.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    alloc, free = _fsdp_param.alloc_storage, _fsdp_param.free_storage

    def taken(tensor: Any) -> None:
        resize(tensor, tensor.numel() * tensor.itemsize)
        alloc(tensor)

    def given_back(tensor: Any) -> None:
        resize(tensor, 0)
        free(tensor)

    def under_name(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(group: Any, *arguments: Any, **options: Any) -> Any:
            with named(GATHERED, group._module_fqn or ""):
                return method(group, *arguments, **options)

        return run

    def filled_up(parameter: Any) -> None:
        with named("parameter", (parameter._param_fqn or "").rpartition(".")[0]):
            reset(parameter)

    reset = _fsdp_param.FSDPParam.reset_sharded_param
    group = _fsdp_param_group.FSDPParamGroup
    replacements: tuple[tuple[Any, str, Any], ...] = (
        (_fsdp_param, "alloc_storage", taken),
        (_fsdp_param_group, "alloc_storage", taken),
        (_fsdp_param, "free_storage", given_back),
        (_fsdp_param.FSDPParam, "reset_sharded_param", filled_up),
        (group, "unshard", under_name(group.unshard)),
        (group, "wait_for_unshard", under_name(group.wait_for_unshard)),
    )
    with replaced(replacements):
        yield


@contextmanager
def shapes_worked_out(unrecorded: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Tensors that DTensor makes without data, to learn an operator's shape, are not the run's.

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
def logits_told(model: Any, batch: int) -> Iterator[None]:
    """Stages of a pipeline that make no logits are told their shape by the last, in numbers, which here nobody sends.

    Source: transformers 5.23, distributed/pipeline_parallel.py, PipelineStage.broadcast_from_last.
    """
    import torch
    import torch.distributed as dist

    broadcast = dist.broadcast
    vocabulary = model.config.get_text_config(decoder=True).vocab_size

    def told(tensor: Any, *arguments: Any, **options: Any) -> Any:
        done = broadcast(tensor, *arguments, **options)
        if tensor.dtype == torch.int64 and tensor.shape == (3,):
            tensor.tolist = lambda: [batch, 1, vocabulary]
        return done

    with replaced(((dist, "broadcast", told),)):
        yield
