"""Training steps as in transformers' Trainer, shared by traces on fake tensors and runs on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .autocast import autocast, step


def train(
    model: Any,
    inputs_of: Callable[[], Mapping[str, Any]],
    stage: Callable[[str], None],
    *,
    optimizer: Any,
    scaler: Any,
    steps: int,
    accumulate: int,
    autocast_dtype: str | None,
    device: str,
    before_step: Callable[[], None] = lambda: None,
) -> object:
    """Runs `steps` steps; returns what stays alive: the last loss, the optimizer and the scaler. No cache is used, logits are
    freed with the outputs, gradients are dropped after each step.

    inputs_of: makes a micro-batch, within the stage "forward". stage: called with "forward", "backward" and "optimizer" as each
    begins. optimizer: None to compute gradients only. scaler: for float16 under autocast, else None. Source: transformers 5.23,
    trainer.py, training_step and _inner_training_loop
    """
    loss = None
    for _ in range(steps):
        for _ in range(accumulate):
            stage("forward")
            inputs = inputs_of()
            labels = labels_of(model, inputs["input_ids"])
            with autocast(autocast_dtype, device):
                loss = model(**inputs, labels=labels, use_cache=False).loss
            if accumulate > 1:
                loss = loss / accumulate
            scaled = loss if scaler is None else scaler.scale(loss)
            stage("backward")
            scaled.backward()
            del scaled
            loss = loss.detach()  # and its graph goes
        if optimizer is not None:
            stage("optimizer")
            before_step()
            step(optimizer, scaler)
            optimizer.zero_grad()
    return loss, optimizer, scaler


def labels_of(model: Any, input_ids: Any) -> Any:
    """A label per token; for a sequence classifier one per sequence, a float if it has a single output.

    Source: transformers 5.23, loss/loss_utils.ForSequenceClassificationLoss
    """
    import torch

    if not type(model).__name__.endswith("ForSequenceClassification"):
        return torch.zeros_like(input_ids)
    dtype = torch.float32 if model.config.num_labels == 1 else torch.int64
    return torch.zeros(input_ids.shape[0], dtype=dtype, device=input_ids.device)
