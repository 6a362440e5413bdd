"""FSDP2's CPUOffloadPolicy on tensors that are all on one device: what would be in the host's memory is not recorded.

On the device are, beside what FSDP2 has there anyway, a copy of a group's own shards until their gather is under way. Reduced
gradients go to the host as soon as they are there, where those of further micro-batches are added and the optimizer steps.
Source: torch 2.13, torch/distributed/fsdp/_fully_shard, FSDPParam.all_gather_inputs, foreach_all_gather and foreach_reduce.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..typed import Any
from .kernels import replaced
from .one_rank import local
from .recorder import Recorder


@contextmanager
def offloaded(model: Any, recorder: Recorder) -> Iterator[None]:
    """Leaves shards, their gradients and the optimizer's step out of the record; records what a gather copies to the device."""
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    for module in model.modules():
        for group in module._get_fsdp_state()._fsdp_param_groups if isinstance(module, FSDPModule) else ():
            for parameter in group.fsdp_params:
                parameter.offload_to_cpu = True
    for parameter in model.parameters():
        recorder.leave_out(local(parameter))
    recorder.step_on_host = True
    inputs, reset, wrap = FSDPParam.all_gather_inputs.fget, FSDPParam.reset_sharded_param, FSDPParam.to_sharded_dtensor

    def copied_inputs(parameter: Any) -> Any:
        shard = parameter._sharded_param_data
        parameter._sharded_param_data = torch.ops.aten._to_copy.default(shard)
        try:
            return inputs(parameter)
        finally:
            parameter._sharded_param_data = shard

    def reset_on_host(parameter: Any) -> None:
        with recorder.paused():
            reset(parameter)
        recorder.leave_out(parameter._sharded_param_data)

    def wrap_on_host(parameter: Any, gradient: Any) -> Any:
        with recorder.paused():
            copy = torch.ops.aten._to_copy.default(gradient)
        recorder.leave_out(copy)
        return wrap(parameter, copy)

    with replaced(
        (
            (FSDPParam, "all_gather_inputs", property(copied_inputs)),
            (FSDPParam, "reset_sharded_param", reset_on_host),
            (FSDPParam, "to_sharded_dtensor", wrap_on_host),
        )
    ):
        yield
