"""Training runs composed from the trace of a model's family, which has the segments of forward and backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..checkpoint import Tensor
from ..results.attention import AnyLayerAttention, LayerAttention
from ..results.memory import Run
from ..results.model import Report
from ..tracing.kernels import flash_rounded
from .family_file import SHIPPED, read
from .family_trace import loaded_of
from .kept_trace import Coefficients, KeptTrace, Point
from .optimizer_steps import COVERED, with_steps
from .outline import TOWERS, Outline, options_of, outline_of
from .training import trained_of
from .training_plan import Plan

LOOP = "gradients and logits dropped"  # the loop that the traces are of: `tracing.steps.train`
# What of a run is another workload, or another device's: the loop is the same.
CHOSEN = (
    "batch", "prompt_tokens", "new_tokens", "attention", "loader", "gpu", "allocator", "calibration", "optimizer", "accumulate",
    "checkpointing",
)  # fmt: skip
MICRO_BATCHES = 2  # the first, and one with gradients already there; later ones do the same as the second


def training_file(model_type: str) -> str:
    return f"{model_type}-training.json.gz"


def training_trace(report: Report, plan: Plan) -> KeptTrace | None:
    """The run with sizes that hold for all workloads of its regime, without torch; None if it is not covered."""
    run = plan.run
    outline = training_outline(report, plan)
    if outline is None or not _is_covered(report, run):
        return None
    config = report.config or {}
    family = read(SHIPPED / training_file(str(config.get("model_type"))))
    if family is None or family.loop != LOOP:
        return None
    options = {**options_of(config, family.defaults), **trained_options(plan)}
    composed = family.at(
        outline,
        run.attention,
        options,
        Point(run.batch, run.prompt_tokens, run.prompt_tokens),
        loaded_in(report, plan),
        schedule_of(run),
    )
    if composed is None:
        return None
    micro_batches = min(run.accumulate, MICRO_BATCHES)
    return with_steps(composed.trace, trained_by(report, plan), run.optimizer, backwards=micro_batches)


def loaded_in(report: Report, plan: Plan) -> tuple[tuple[Coefficients, str, str], ...]:
    """Size, module and operator of each tensor that is loaded, in the order of a trace."""
    return loaded_of(report.tree)


def trained_by(report: Report, plan: Plan) -> tuple[Tensor, ...]:
    """The trained parameters in the order of the model's."""
    return trained_of(report.tree, plan.run, plan.matrices)


def _is_covered(report: Report, run: Run) -> bool:
    """Whether the run is of the default loop, with options that traces are made for."""
    default = replace(Run(mode="train"), **{name: getattr(run, name) for name in CHOSEN})
    return run == default and run.optimizer in COVERED and run.attention == report.spec.kernel


def schedule_of(run: Run) -> str:
    """What of a run's options decides which regime it is of, before the workload does."""
    return ("checkpointed, " if run.checkpointing else "") + ("accumulated, " if run.accumulate > 1 else "")


def trained_options(plan: Plan) -> dict[str, Any]:
    """What is trained, and on what base."""
    return {}


def training_outline(report: Report, plan: Plan) -> Outline | None:
    if not report.settled or report.known.quantised is not None or _has_towers(report):
        return None
    attention = report.attention.by_config
    outline = outline_of(report.spec, report.tree, attention, report.cache, report.config or {})
    if outline is None:
        return None
    layers = (
        layer._replace(dimensions=(*layer.dimensions, *_rounded(reading)))
        for layer, reading in zip(outline.layers, attention, strict=True)
    )
    return replace(outline, layers=tuple(layers))


def _rounded(layer: AnyLayerAttention) -> tuple[int, ...]:
    """The width of heads in the scratch of attention's backward."""
    return (flash_rounded(layer.head_dim),) if isinstance(layer, LayerAttention) else ()


def _has_towers(report: Report) -> bool:
    """Whether some of the parameters get no gradient from a prompt of text."""
    return any(child.name in TOWERS for module in (report.tree, *report.tree.children) for child in module.children)
