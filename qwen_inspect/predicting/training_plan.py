"""A model and a run that trains -> what is trained, and how the rest is held."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..architectures.lora import lora_of
from ..checkpoint import Tensor
from ..errors import UnsupportedError
from ..results.lora import TrainedTensor
from ..results.memory import Run
from ..results.model import Report
from ..results.training import Training
from ..spec import each_tensor
from ..tracing.adapting import FourBits
from .held import base_of
from .training import matrices_of, prepared, targets_of, training_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """run: as it was asked for, with whether activations are checkpointed. weights: the model's own, as training holds them.

    matrices: LoRA's; none where the model's own parameters train. four_bits: how bitsandbytes holds the base; None if dense.
    """

    run: Run
    training: Training
    weights: tuple[Tensor, ...]
    matrices: tuple[TrainedTensor, ...]
    four_bits: FourBits | None


def plan_of(report: Report, run: Run) -> Plan:
    """What a run trains. UsageError for targets that are none, UnsupportedError for weights that cannot be trained so."""
    four_bits = _four_bits(report, run)
    if run.checkpointing is None:
        run = replace(run, checkpointing=four_bits is not None)  # as PEFT has it
    weights = report.known.weights or tuple(each_tensor(report.tree))
    weights = weights if four_bits is None else prepared(weights)
    matrices: tuple[TrainedTensor, ...] = ()
    if run.lora_rank is not None:
        lora = lora_of(run.lora_rank, targets_of(report.tree, report.spec, run.lora_targets))
        matrices = matrices_of(report.tree, lora, report.spec.dtype)
    training = training_of(report.tree, run, matrices, weights)
    return Plan(run=run, training=training, weights=weights, matrices=matrices, four_bits=four_bits)


def _four_bits(report: Report, run: Run) -> FourBits | None:
    """How bitsandbytes holds a base of 4 bits; None of a dense one. UnsupportedError where such weights cannot be trained so."""
    found = report.known.quantised
    if found is None:
        return None
    if found.method == "gguf":
        raise UnsupportedError("memory_gguf_mode")
    base = base_of(report)
    if run.lora_rank is None or not isinstance(base, FourBits):
        raise UnsupportedError("memory_quantised_mode", method=found.method)
    return base
