"""Training steps in the loops of `results.training`, shared by traces on fake tensors and runs on a device."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ..results.training import LOOPS, Loop
from ..typed import Any
from .autocast import autocast, clip, step


def train(
    model: Any,
    inputs_of: Callable[[], dict[str, Any]],
    stage: Callable[[str], None],
    *,
    optimizer: Any,
    scaler: Any,
    steps: int,
    accumulate: int,
    autocast_dtype: str | None,
    device: str,
    loop: Loop = LOOPS[None],
    average: Callable[[], object] = lambda: None,
) -> object:
    """Runs `steps` steps; returns what stays alive. No cache is used.

    inputs_of: makes a micro-batch, within the stage "forward". stage: called with "forward", "backward" and "optimizer" as each
    begins. optimizer: None to compute gradients only. scaler: for float16 under autocast, else None. average: makes the copy that
    a moving average of the weights is kept in. Source: transformers 5.23,
    trainer.py, _run_epoch, training_step and compute_loss; accelerate 1.15, accelerator.py
    """
    loss = outputs = norm = total = logged = ahead = batch = averaged = None
    counted: dict[str, Any] = {}
    for _ in range(steps):
        for number in range(accumulate):
            stage("forward")
            if loop.accelerated and accumulate > 1:
                _reduce_gradients(model, number == accumulate - 1)
            if loop.ema and averaged is None:
                averaged = average()
            if loop.by_trainer:
                if number == 0:  # the step's micro-batches, made while those of the step before are still there
                    total = _zero(model) if total is None else total
                    ahead, counted = _counted(model, [_labelled(model, inputs_of) for _ in range(accumulate)])
                inputs, labels = ahead[number]  # type: ignore[index]
            elif loop.name is not None:
                inputs, labels = batch = _labelled(model, inputs_of)
            else:
                inputs = inputs_of()
                labels = labels_of(model, inputs["input_ids"])
            if loop.keep_logits == "no" and not loop.accelerated:
                with autocast(autocast_dtype, device):
                    loss = model(**inputs, labels=labels, use_cache=False).loss
            else:
                outputs = _forward(model, {**inputs, "labels": labels, **counted}, loop, autocast_dtype, device)
                loss = outputs.loss
            if loop.accelerated:
                if counted:
                    loss = loss * 1 if loop.loss == "trl" else loss.mul_(1)  # by the number of devices
                if loop.keep_logits == "no":
                    outputs = None
                stage("backward")
                _accelerated_backward(loss, 1 if counted else accumulate, scaler)
            else:
                if accumulate > 1:
                    loss = loss / accumulate
                scaled = loss if scaler is None else scaler.scale(loss)
                stage("backward")
                scaled.backward()
                del scaled
            if loop.keep_logits == "backward":
                outputs = None
            loss = loss.detach()  # and its graph goes
            if total is not None:
                logged = loss
                _add(total, logged)
        if optimizer is not None:
            stage("optimizer")
            norm = None
            norm = clip(model, optimizer, scaler) if loop.clip else None
            step(optimizer, scaler)
            optimizer.zero_grad(set_to_none=not loop.keep_gradients)
    return loss, logged, outputs, norm, total, ahead, batch, optimizer, scaler, averaged


def train_by_engine(
    model: Any,
    inputs_of: Callable[[], dict[str, Any]],
    stage: Callable[[str], None],
    reduced: Callable[[], None],
    *,
    steps: int,
    accumulate: int,
    loop: Loop = LOOPS[None],
    last_alone: bool = True,
) -> object:
    """`train` with DeepSpeed's engine, without its optimizer: gradients go as the stage "optimizer" begins.

    reduced: called where the engine reduces the gradients of the step's last backward, or of every one. last_alone: which.

    The loop is `loss = engine(**inputs, labels=labels).loss; engine.backward(loss); engine.step()`, or one that names batch and
    outputs. Source: DeepSpeed 0.19.8, runtime/engine.py, DeepSpeedEngine.backward; runtime/fp16/loss_scaler.py, scale_loss
    """
    loss = outputs = batch = None
    for _ in range(steps):
        for number in range(accumulate):
            stage("forward")
            if loop.name is not None:
                inputs, labels = batch = _labelled(model, inputs_of)
            else:
                inputs = inputs_of()
                labels = labels_of(model, inputs["input_ids"])
            if loop.keep_logits == "no":
                loss = model(**inputs, labels=labels, use_cache=False).loss
            else:
                outputs = model(**inputs, labels=labels, use_cache=False)
                loss = outputs.loss
            stage("backward")
            last = number == accumulate - 1
            _backward_by_engine(loss, accumulate, reduced if last or not last_alone else lambda: None)
            if not last_alone:
                _drop_gradients(model)
            if loop.keep_logits == "backward":
                outputs = None
        stage("optimizer")
        _drop_gradients(model)
    return loss, outputs, batch


def _drop_gradients(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def _backward_by_engine(loss: Any, micro_batches: int, reduced: Callable[[], None]) -> object:
    divided = loss / micro_batches
    scaled = divided * 1.0
    scaled.backward()
    reduced()
    return divided


def _reduce_gradients(model: Any, reduced: bool) -> None:
    """Whether FSDP2 shards the gradients of the next backward, or keeps them whole until they are all summed up.

    Source: transformers 5.23, trainer.py, _run_epoch; accelerate 1.15, Accelerator.accumulate and no_sync
    """
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(reduced)


def _labelled(model: Any, inputs_of: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    inputs = inputs_of()
    return inputs, inputs.pop("labels") if "labels" in inputs else labels_of(model, inputs["input_ids"])


def _counted(model: Any, batches: list[tuple[dict[str, Any], Any]]) -> tuple[Any, dict[str, Any]]:
    """A step's micro-batches, and the number of their labels as an argument of the forward, which divides the loss by it; no
    argument for a class that does not take it.

    Source: transformers 5.23, trainer.py, _get_num_items_in_batch and __init__ (model_accepts_loss_kwargs)
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if not getattr(model, "accepts_loss_kwargs", any(one.kind is one.VAR_KEYWORD for one in parameters)):
        return batches, {}
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    shifted = LOSS_MAPPING.get(model.loss_type) is ForCausalLMLoss and not model.config.is_encoder_decoder
    labels = (labels[..., 1:] if shifted else labels for _, labels in batches)
    count = _of_all_ranks(sum(each.ne(-100).sum() for each in labels))
    return batches, {"num_items_in_batch": count / 1}


def _of_all_ranks(count: Any) -> Any:
    """The sum of a number on all ranks, if there are several.

    Source: transformers 5.23, trainer.py, _get_num_items_in_batch (average_tokens_across_devices)
    """
    import torch.distributed as dist

    return _gathered(count).sum() if dist.is_available() and dist.is_initialized() else count


def _gathered(number: Any) -> Any:
    """A number of each rank. Source: accelerate 1.15, utils/operations.py, _gpu_gather, as with NCCL"""
    import torch
    import torch.distributed as dist

    number = number.clone()[None]
    numbers = torch.empty(dist.get_world_size(), dtype=number.dtype, device=number.device)
    dist.all_gather_into_tensor(numbers, number)
    return numbers.view(-1)


def _zero(model: Any) -> Any:
    import torch

    return torch.tensor(0.0, device=next(model.parameters()).device)


def _add(total: Any, loss: Any) -> None:
    """Adds a loss to the sum that Trainer logs, after looking whether it is a number."""
    loss.isnan()
    loss.isinf()
    total += loss


def _forward(model: Any, batch: dict[str, Any], loop: Loop, autocast_dtype: str | None, device: str) -> Any:
    """The model's outputs; accelerate converts those that autocast makes to float32.

    Source: accelerate 1.15, utils/operations.py, convert_outputs_to_fp32
    """
    import torch

    count = batch.pop("num_items_in_batch", None) if loop.loss == "trl" else None
    with autocast(autocast_dtype, device):
        outputs = model(**batch, use_cache=False)
    if loop.loss == "trl":
        outputs.count = count
    if loop.accelerated and autocast_dtype is not None and torch.is_tensor(outputs.logits):
        outputs.logits = outputs.logits.float()
    return outputs


def _accelerated_backward(loss: Any, micro_batches: int, scaler: Any) -> None:
    """Source: accelerate 1.15, accelerator.py, Accelerator.backward"""
    loss = loss / micro_batches
    (loss if scaler is None else scaler.scale(loss)).backward()


def labels_of(model: Any, input_ids: Any) -> Any:
    """A label per token; for a sequence classifier one per sequence, a float if it has a single output.

    Source: transformers 5.23, loss/loss_utils.ForSequenceClassificationLoss
    """
    import torch

    if not type(model).__name__.endswith("ForSequenceClassification"):
        return torch.zeros_like(input_ids)
    dtype = torch.float32 if model.config.num_labels == 1 else torch.int64
    return torch.zeros(input_ids.shape[0], dtype=dtype, device=input_ids.device)
