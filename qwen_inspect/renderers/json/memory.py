"""`memory` -> JSON: the run, its predicted and measured memory, and the bytes per rank or device."""

from __future__ import annotations

from ...language import Language
from ...results.memory import MemoryReport, Optimizer, Run
from ...results.training import KeptLogits, LoopName, Loss
from ...typed import TYPE_CHECKING
from .colocated import GrpoJSON, colocated_content
from .common import OfModelJSON, model_content
from .footprint import PredictedJSON, footprint_content, workload_content
from .measured import DifferenceJSON, MeasuredJSON, difference_content, measured_content
from .media import MediaJSON, media_content
from .params import ModulesJSON, modules_content
from .ranks import (
    DeviceMapJSON,
    RankJSON,
    RanksWorkloadJSON,
    degrees_content,
    device_map_content,
    rank_content,
)
from .speed import SpeedJSON, speed_content
from .values import Count, Positive, Share, TypedDict

if TYPE_CHECKING:
    from ...results.measurement import Calibration
    from ...results.training import Training


class TrainingJSON(TypedDict):
    """The trained parameters of a training run."""

    lora_rank: Positive | None
    lora_targets: list[str] | None
    lora_parameters: list[str] | None
    modules_to_save: list[str] | None
    lora_alpha: Positive | None
    lora_dropout: float | None
    dora: bool
    rslora: bool
    trained: str
    """The regular expression of --trained; "" for all parameters."""
    frozen: str
    """The regular expression of --freeze; "" for none."""
    optimizer: Optimizer
    checkpointing: bool
    accumulate: Positive
    """Micro-batches in a step."""
    loop: LoopName | None
    """Whose training loop; null for one that holds nothing it need not."""
    keep_gradients: bool
    """Whether gradients are zeroed in place after a step instead of dropped."""
    keep_logits: KeptLogits
    """How long the forward's outputs live: "no" (until it returns), the end of its "backward", or a whole "step" more."""
    clip: bool
    """Whether gradients are clipped."""
    loss: Loss
    """Whose loss: that of the model's class, or one that makes no logits of all tokens."""
    ema: bool
    """Whether a moving average of all weights is kept, which is counted with the optimizer."""
    completion_tokens: Positive | None
    """Tokens with labels at the end of each sequence; null for all."""
    sequences_in_row: Positive | None
    """Sequences of a micro-batch's one row (packing, padding-free); null if each is a row of its own."""
    trainable_parameters: Count
    base_parameters: Count
    all_parameters: Count
    """As counted by PEFT's print_trainable_parameters."""
    share: Share
    """Of all parameters."""
    trained_bytes: Count
    frozen_bytes: Count
    modules: list[ModulesJSON]


class CalibrationJSON(TypedDict):
    """Measured memory of the card that does not depend on the model."""

    gpu: str
    driver: str
    torch: str
    transformers: str
    date: str
    context_bytes: Count
    workspace_bytes: Count


class PredictionJSON(TypedDict):
    """A run, and its predicted memory."""

    workload: RanksWorkloadJSON
    predicted: PredictedJSON


class MemoryJSON(OfModelJSON, PredictionJSON):
    """`memory`."""

    media: MediaJSON | None
    """The images and videos of the prompt; null without any."""
    training: TrainingJSON | None
    measured: MeasuredJSON | None
    ranks: list[RankJSON] | None
    rank_assumptions: list[str]
    device_map: DeviceMapJSON | None
    grpo: GrpoJSON | None
    speed: SpeedJSON | None
    """The bounds of its speed; null without --speed."""
    calibration: CalibrationJSON | None
    differences: list[DifferenceJSON]


def content(memory: MemoryReport, say: Language) -> MemoryJSON:
    run, prediction = memory.run, prediction_content(memory, say)
    return {
        "model": model_content(memory.report, say),
        "workload": prediction["workload"],
        "media": media_content(memory.report.media),
        "training": None if memory.training is None else _training(memory.training, run),
        "predicted": prediction["predicted"],
        "measured": None if memory.measured is None else measured_content(memory.measured, run, say),
        "ranks": None if memory.ranks is None else [rank_content(rank) for rank in memory.ranks.ranks],
        "rank_assumptions": [] if memory.ranks is None else [say(message) for message in memory.ranks.assumptions],
        "speed": None if memory.speed is None else speed_content(memory.speed),
        "grpo": None if memory.colocated is None else colocated_content(memory.colocated, say),
        "device_map": None if memory.device_map is None else device_map_content(memory.device_map, say),
        "calibration": None if run.calibration is None else _calibration(run.calibration),
        "differences": [difference_content(difference, say) for difference in memory.differences],
    }


def prediction_content(memory: MemoryReport, say: Language) -> PredictionJSON:
    return {
        "workload": {
            **workload_content(memory.run),
            "dtype": str(memory.report.spec.dtype) if memory.report.design else None,
            "cache_dtype": memory.report.cache.dtype if memory.report.settled else None,
            **degrees_content(memory.ranks),
        },
        "predicted": footprint_content(memory.predicted, memory.run, say),
    }


def _training(training: Training, run: Run) -> TrainingJSON:
    return {
        "lora_rank": run.lora_rank,
        "lora_targets": None if run.lora_rank is None else list(run.lora_targets),
        "lora_parameters": None if run.lora_rank is None else list(run.lora_parameters),
        "modules_to_save": None if run.lora_rank is None else list(run.saved_modules),
        "lora_alpha": None if run.lora_rank is None else run.lora_alpha,
        "lora_dropout": None if run.lora_rank is None else run.lora_dropout,
        "dora": run.dora,
        "rslora": run.rslora,
        "trained": run.trained,
        "frozen": run.frozen,
        "optimizer": run.optimizer,
        "checkpointing": bool(run.checkpointing),
        "accumulate": run.accumulate,
        "loop": run.loop.name,
        "keep_gradients": run.loop.keep_gradients,
        "keep_logits": run.loop.keep_logits,
        "clip": run.loop.clip,
        "loss": run.loop.loss,
        "ema": run.loop.ema,
        "completion_tokens": run.loop.completion_tokens,
        "sequences_in_row": run.loop.in_one_row(run.batch),
        "trainable_parameters": training.trainable,
        "base_parameters": training.base_parameters,
        "all_parameters": training.all_parameters,
        "share": training.share,
        "trained_bytes": training.trained_bytes,
        "frozen_bytes": training.frozen_bytes,
        "modules": [modules_content(modules) for modules in training.modules],
    }


def _calibration(calibration: Calibration) -> CalibrationJSON:
    return {
        "gpu": calibration.gpu,
        "driver": calibration.driver,
        "torch": calibration.torch,
        "transformers": calibration.transformers,
        "date": calibration.date,
        "context_bytes": calibration.context_bytes,
        "workspace_bytes": calibration.workspace_bytes,
    }
