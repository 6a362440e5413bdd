"""What each rank of a DeepSpeed run holds: ZeRO's stage 1, and stages 1 to 3 with the optimizer or the parameters on the host.

All parameters are one group, in 16 bits; numbers of the configuration are DeepSpeed's defaults.
Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py, stage3.py, parameter_offload.py, config.py; run on CPU with 1 to 4
processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..checkpoint import BlockFormat, DType, Tensor
from ..errors import UnsupportedError
from ..results.memory import Run
from ..results.ranks import Parallelism

# Numbers that an optimizer keeps for each parameter. Source: torch 2.13, optim/adam.py, optim/sgd.py.
STATES = {"adamw_foreach": 2, "adamw_fused": 2, "adamw_for_loop": 2, "sgd": 0, "none": 0}
STEP_BYTES = 4  # of fused AdamW, which counts its steps beside its states; of one tensor here
# DeepSpeed aligns its flat buffer to this many elements for each rank (nccl_start_alignment_factor).
ALIGNMENT = 2
# Defaults of config.py: elements of the buffer in which gradients are reduced, and of the largest parameter that stays gathered.
REDUCE_BUCKET = 5 * 10**8
PERSISTENT = 10**5
GROUP = 10**9  # elements of a rank that step at a time; sub_group_size

# A kind of tensor: shape, dtype, whether it is trained, and how many tensors there are.
Kind = tuple[tuple[int, ...], "DType | BlockFormat", bool, int]


def check_deepspeed(how: Parallelism, run: Run) -> None:
    """UnsupportedError for what is not known of DeepSpeed."""
    if how.ranks != how.fsdp or how.expert > 1:
        raise UnsupportedError("ranks_deepspeed_alone")
    if how.offload_params and how.zero_stage != 3:
        raise UnsupportedError("ranks_offload_params")
    if (how.deepspeed or how.offload_optimizer) and (run.mode != "train" or run.optimizer == "none"):
        raise UnsupportedError("ranks_offload_step")
    if how.offload_optimizer and how.zero_stage < 3 and run.accumulate > 1:
        raise UnsupportedError("ranks_offload_accumulate")
    if how.offload_params and (run.mode != "train" or run.optimizer == "none"):
        raise UnsupportedError("ranks_offload_step")
    if run.lora_rank is not None and (run.dora or run.lora_parameters or run.saved_modules):
        raise UnsupportedError("ranks_deepspeed_adapters")
    if how.offload_params and not how.offload_optimizer and run.optimizer == "adamw_fused":
        raise UnsupportedError("ranks_optimizer", optimizer=run.optimizer)


def deepspeed_bytes(
    kinds: Iterable[Kind],
    how: Parallelism,
    rank: int,
    run: Run,
    *,
    persistent: int = PERSISTENT,
    bucket: int = REDUCE_BUCKET,
) -> dict[str, int]:
    """The fields of a rank's `Share`. persistent: elements of the largest parameter that stays gathered; bucket: of the buffer
    for reducing gradients (both of stage 3). UnsupportedError in stages 2 and 3 unless all parameters have one 16-bit dtype.
    """
    kinds = tuple(kinds)
    if how.zero_stage == 1:
        return _stages_1_and_2(kinds, how, run)
    if {dtype for _, dtype, _, _ in kinds} not in ({DType.BF16}, {DType.F16}):
        raise UnsupportedError("ranks_deepspeed_dtype")
    return (
        _stages_1_and_2(kinds, how, run) if how.zero_stage == 2 else _stage_3(kinds, how, rank, run, persistent, bucket)
    )


def _stages_1_and_2(kinds: Sequence[Kind], how: Parallelism, run: Run) -> dict[str, int]:
    """Whole weights in one flat buffer; optimizer states and a float32 copy are shared out. Gradients are those at the end of the
    backward: whole in stage 1, in stage 2 shared out too, or on the host already.

    Source: stage_1_and_2.py, flatten_dense_tensors_aligned, single_partition_of_fp32_groups
    """
    whole = sum(count * _bytes(math.prod(shape), dtype) for shape, dtype, _, count in kinds)
    trained = [(shape, dtype, count) for shape, dtype, is_trained, count in kinds if is_trained]
    elements = sum(count * math.prod(shape) for shape, _, count in trained)
    alignment = ALIGNMENT * how.fsdp
    padded = -(-elements // alignment) * alignment
    padding = _bytes(padded - elements, trained[0][1]) if trained else 0
    optimizer = (1 + STATES[run.optimizer]) * _bytes(padded // how.fsdp, DType.F32) if run.optimizer != "none" else 0
    if run.optimizer == "adamw_fused" and trained and not how.offload_optimizer:
        optimizer += STEP_BYTES
    host = 0
    if how.offload_optimizer and trained:
        on_device, host = _offloaded(trained, padded // how.fsdp)
        optimizer, host = on_device, host + optimizer
    own = sum(count * _bytes(math.prod(shape), dtype) for shape, dtype, count in trained)
    adapters = own if run.lora_rank is not None else 0
    if how.zero_stage == 1:
        gradients = own
    else:
        gradients = _bytes(padded // how.fsdp, trained[0][1]) if trained and not how.offload_optimizer else 0
    return {
        "weights": whole - adapters + (0 if adapters else padding),
        "padding": 0 if adapters else padding,
        "replicated": whole - adapters,
        "adapters": adapters + padding if adapters else 0,
        "gradients": gradients,
        "optimizer": optimizer,
        "host": host,
    }


def _offloaded(trained: Sequence[tuple[tuple[int, ...], DType | BlockFormat, int]], elements: int) -> tuple[int, int]:
    """What an optimizer on the host takes on the card, and there beside its states and float32 copy of `elements` parameters:
    their gradients in float32 and in the weights' dtype the copy that goes back; on both sides a buffer for the largest gradient.

    Source: stage_1_and_2.py: lines 563-575 (param_buffer_of_bit16_for_cpu_offload_groups), 653-661
    (temp_grad_buffer_for_cpu_offload, temp_grad_buffer_for_gpu_offload), 932-947 (initialize_optimizer_states)
    """
    dtype = trained[0][1]
    largest = _bytes(max(math.prod(shape) for shape, _, _ in trained), dtype)
    return largest, largest + _bytes(elements, DType.F32) + _bytes(elements, dtype)


def _stage_3(
    kinds: Sequence[Kind], how: Parallelism, rank: int, run: Run, persistent: int, bucket: int
) -> dict[str, int]:
    """Each tensor is cut into equal parts, the last ones filled up; small tensors stay gathered too. Gradients: a rank's parts in
    16 bits, and on the card the buffer in which they are reduced.

    Source: stage3.py: lines 782-800 (ipg_buckets, grad_partitions_flat_buffer), 888-1018 (the parts of weights), 1081-1180
    (fp32_partitioned_groups_flat), 1301-1344 (gradients of an optimizer on the host); parameter_offload.py, lines 317-335
    """
    adapted = run.lora_rank is not None
    parts = [
        (-(-math.prod(shape) // how.fsdp), math.prod(shape), dtype, is_trained, count)
        for shape, dtype, is_trained, count in kinds
    ]
    part = sum(count * _bytes(elements, dtype) for elements, _, dtype, _, count in parts)
    gathered = [0, 0]  # of the model's own parameters, and of adapters
    if how.fsdp > 1 or how.offload_params:  # else views of the parts: partition_parameters.py, NoGatherHandle
        for elements, whole, dtype, is_trained, count in parts:
            if whole <= persistent:
                gathered[adapted and is_trained] += count * _bytes(how.fsdp * elements, dtype)
    real = sum(
        count * _bytes(max(0, min(elements, whole - rank * elements)), dtype)
        for elements, whole, dtype, is_trained, count in parts
        if not (adapted and is_trained)
    )
    trained = sum(count * elements for elements, _, _, is_trained, count in parts if is_trained)
    gradients, copies = _bytes(trained, kinds[0][1]), _bytes(trained, DType.F32)
    states = (1 + STATES[run.optimizer]) * copies
    if run.optimizer == "adamw_fused" and trained and not how.offload_optimizer:
        if (
            trained > GROUP
        ):  # it counts the steps of each group, of which there are more or fewer with the parameters' order
            raise UnsupportedError("ranks_optimizer", optimizer=run.optimizer)
        states += STEP_BYTES
    on_card = 0 if how.offload_params else part
    adapters = gradients if adapted and not how.offload_params else 0
    return {
        "weights": on_card - adapters + gathered[0],
        "padding": 0 if how.offload_params else part - (gradients if adapted else 0) - real,
        "replicated": gathered[0],
        "adapters": adapters + gathered[1],
        "gradients": _bytes(bucket, kinds[0][1]) + (0 if how.offload_optimizer else gradients),
        "optimizer": 0 if how.offload_optimizer else states,
        "host": part - on_card + (states + copies + gradients if how.offload_optimizer else 0),
    }


def _bytes(elements: int, dtype: DType | BlockFormat) -> int:
    return Tensor("", (elements,), dtype).size_bytes
