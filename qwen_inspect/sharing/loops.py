"""Training loops and optimizers on several ranks: which of them run there, and in what dtypes.

What is refused here fails in the libraries themselves, or was not run. Run on 2 processes (gloo): torch 2.13, transformers 5.23,
accelerate 1.15, bitsandbytes 0.50.
"""

from __future__ import annotations

from collections.abc import Collection

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..results.memory import Run
from ..results.ranks import Parallelism
from ..tracing.optimizers import OF_BITSANDBYTES, is_hidden_matrix
from .deepspeed import STATES

# Optimizers that can step on a mixture of cut and whole parameters, as under a tensor-parallel plan alone: foreach and fused
# kernels refuse it. Source: torch 2.13, distributed/tensor/_dispatch.py, try_replicate_spec_for_scalar_tensor.
PARAMETER_BY_PARAMETER = ("adamw_for_loop", "none")
# Of the parameter's own size and dtype. Source: torch 2.13, optim/sgd.py, _muon.py
OTHER_STATES = {"sgd_momentum": 1, "muon": 1}


def check_loop(how: Parallelism, run: Run, *, tied: bool) -> None:
    """UnsupportedError for a loop that fails on several ranks, or of which is not known what it takes there.

    tied: whether the head is the embedding.
    """
    loop = run.loop
    if run.transformers is not None:
        raise UnsupportedError("ranks_transformers")
    if loop.ema:
        raise UnsupportedError("ranks_ema")
    _check_loss(how, run, tied=tied)
    if run.autocast is not None:
        if how.by_deepspeed:
            raise UnsupportedError("ranks_deepspeed_autocast", dtype=run.autocast)
        if run.mode != "train":
            raise UnsupportedError("ranks_autocast")
        if run.autocast == "float16" and how.tensor > 1:
            raise UnsupportedError("ranks_scaler")
    if loop.accelerated and not how.by_deepspeed and (how.ranks not in (how.fsdp, how.tensor) or how.expert > 1):
        raise UnsupportedError("ranks_loop_mesh", loop=loop.name)
    if how.tensor > 1 and run.lora_rank is not None and (loop.name is not None or run.autocast is not None):
        raise UnsupportedError("ranks_adapters_loop")
    if how.tensor > 1 and loop.name == "accelerate":
        raise UnsupportedError("ranks_loop_tensor", loop=loop.name)
    if how.tensor > 1 and loop.clip and not loop.by_trainer:
        raise UnsupportedError("ranks_clip")


def _check_loss(how: Parallelism, run: Run, *, tied: bool) -> None:
    """UnsupportedError for a loss that reads the head's weight where FSDP2 or a plan leaves it cut; TRL's gathers it.

    Sources: TRL 1.16, trainer/utils.py, add_fused_lm_head; unsloth_zoo 2026.10.9, unsloth_fsdp_unshard; liger-kernel 0.8.5,
    transformers/model/qwen3.py, lce_forward
    """
    loss = run.loop.loss
    if loss == "model":
        return
    if how.by_deepspeed or how.expert > 1 or (how.tensor > 1 and (how.fsdp > 1 or not run.loop.by_trainer)):
        raise UnsupportedError("ranks_loss", loss=loss)
    if how.tensor > 1 and loss != "trl":
        raise UnsupportedError("ranks_loss_tensor", loss=loss)
    if loss in ("liger", "torch") and run.lora_rank is not None and run.loop.accelerated and not tied:
        raise UnsupportedError("ranks_loss_adapters", loss=loss)


def check_optimizer(how: Parallelism, run: Run) -> None:
    """UnsupportedError for an optimizer that fails on shards, or of which is not known what it keeps."""
    optimizer = run.optimizer
    if how.by_deepspeed:
        if optimizer not in STATES:
            raise UnsupportedError("ranks_optimizer", optimizer=optimizer)
        return
    if optimizer in OF_BITSANDBYTES:
        raise UnsupportedError("ranks_optimizer_bitsandbytes", optimizer=optimizer)
    if optimizer == "adafactor":
        raise UnsupportedError("ranks_optimizer_adafactor")
    by_mesh = run.loop.by_trainer and optimizer != "muon"
    if how.tensor > 1 and how.fsdp == 1 and optimizer not in PARAMETER_BY_PARAMETER and not by_mesh:
        raise UnsupportedError("ranks_train_mixed", optimizer=optimizer)


def states_of(tensor: Tensor, optimizer: str, embedded: Collection[str]) -> int:
    """How many states of its own size an optimizer keeps for a parameter. embedded: the names of embeddings."""
    module = tensor.name.rpartition(".")[0]
    if optimizer == "muon" and not is_hidden_matrix(tensor.name, len(tensor.shape), module in embedded):
        return STATES["adamw_foreach"]
    return (STATES | OTHER_STATES).get(optimizer, 0)


def mixed_dtype(how: Parallelism, run: Run) -> DType | None:
    """The dtype in which accelerate's FSDP2 gathers weights, computes and reduces gradients; trained parameters are then float32.

    None without mixed precision. Source: accelerate 1.15, utils/fsdp_utils.py, fsdp2_prepare_model
    """
    if run.mode != "train" or how.by_deepspeed or how.fsdp == 1 or not run.loop.accelerated or run.autocast is None:
        return None
    return {"bfloat16": DType.BF16, "float16": DType.F16}[run.autocast]
