"""Plans a training run: which tensors train, and in what form the other weights are in memory."""

from __future__ import annotations

from ..checkpoint import Tensor
from ..errors import UnsupportedError, UsageError
from ..results.lora import TrainedTensor
from ..results.memory import Run
from ..results.model import Report
from ..results.training import Training
from ..spec import each_tensor
from ..tracing.adapting import FourBits
from ..values import dataclass, replace
from .adapter_targets import lora_of_run, matrices_of
from .quantised import base_of
from .training import prepared, trained_of, training_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """run: the requested run, with `checkpointing` resolved. weights: the model's own, as they are in memory during training.

    matrices: LoRA's; none if the model's own parameters train. four_bits: bitsandbytes' layout of the base; None if dense.
    """

    run: Run
    training: Training
    weights: tuple[Tensor, ...]
    matrices: tuple[TrainedTensor, ...]
    four_bits: FourBits | None


def plan_of(report: Report, run: Run) -> Plan:
    """What a run trains. UsageError for invalid targets, UnsupportedError for weights that cannot be trained this way."""
    four_bits = _four_bits(report, run)
    if run.checkpointing is None:
        run = replace(run, checkpointing=four_bits is not None)  # PEFT's default
    weights = tuple(report.known.weights or each_tensor(report.tree))
    weights = weights if four_bits is None else prepared(weights, four_bits, run)
    matrices: tuple[TrainedTensor, ...] = ()
    if run.lora_rank is not None:
        model_type = str((report.config or {}).get("model_type"))
        lora = lora_of_run(report.tree, report.spec, run, model_type)
        matrices = matrices_of(report.tree, lora, report.spec.dtype, prepared=four_bits is not None)
    elif not trained_of(report.tree, run, matrices):
        if run.frozen:
            raise UsageError("trace_all_frozen", pattern=run.frozen)
        raise UsageError("trace_none_trained", pattern=run.trained)
    training = training_of(report.tree, run, matrices, weights)
    return Plan(run=run, training=training, weights=weights, matrices=matrices, four_bits=four_bits)


def _four_bits(report: Report, run: Run) -> FourBits | None:
    """bitsandbytes' layout of a 4-bit base; None if dense. UnsupportedError for other quantised weights, or without LoRA."""
    quantised = report.known.quantised
    if quantised is None:
        return None
    if quantised.method == "gguf":
        raise UnsupportedError("memory_gguf_mode")
    base = base_of(report)
    if run.lora_rank is None or not isinstance(base, FourBits):
        raise UnsupportedError("memory_quantised_mode", method=quantised.method)
    return base
