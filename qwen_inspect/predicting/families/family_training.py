"""Training runs composed from the trace of a model's family, which has the segments of forward and backward."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby

from ...checkpoint import DType, Tensor
from ...errors import QwenInspectError, UnsupportedError
from ...results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention
from ...results.lora import TrainedTensor
from ...results.memory import Run
from ...results.model import Report
from ...results.timeline import ADAPTER
from ...results.training import LOOPS
from ...spec import each_buffer, each_module, each_tensor
from ...structure.adapters import PREFIX
from ...tracing.kernels import flash_rounded
from ...typed import Any
from ...values import replace
from ..allocation.on_device import BUFFER, PARAMETER
from ..traces.class_rules import decoder_of
from ..traces.kept_trace import CHUNK_TOKENS, Coefficients, KeptTrace, Point, fixed_size
from ..traces.optimizer_steps import COVERED, with_average, with_steps
from ..traces.outline import TOWERS, Outline, Part, options_of, outline_of
from ..traces.segments import ANY_LAYER, LAYER
from ..traces.training_turns import FEWEST_CHUNKS, is_chunked, turns_of_any, with_chunks
from ..training import trained_of
from ..training_plan import Plan, plan_of
from .family_file import read
from .family_trace import halves_of

LOOP = "gradients and logits dropped"  # the loop that the traces are of: `tracing.steps.train`
# What of a run is another workload, or another device's: the loop is the same.
CHOSEN = (
    "batch", "prompt_tokens", "new_tokens", "attention", "loader", "gpu", "allocator", "calibration", "optimizer", "accumulate",
    "checkpointing", "lora_rank", "lora_targets", "lora_alpha",
)  # fmt: skip
CHOSEN_WITH_IMAGES = ("media", "trained", "frozen")
# What belongs to a weight that bitsandbytes packed, in the order of a trace; nested scales have an offset on the device.
PACKED_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "nested_absmax.offset")
DROPOUT = re.compile(r"drop(out)?(_|$)|jitter")  # keys of configurations
MICRO_BATCHES = 2  # the first, and one with gradients already there; later ones do the same as the second


def training_file(model_type: str) -> str:
    return f"{model_type}-training.json.gz"


def training_trace(report: Report, plan: Plan) -> KeptTrace | None:
    """The run with sizes that hold for all workloads of its regime, without torch; None if it is not covered."""
    whole = training_trace_of_any(report, plan)
    if whole is None or not is_chunked(report):
        return whole
    with suppress(UnsupportedError):
        return with_chunks(whole, plan.run.prompt_tokens, turns_of_any(plan.run.prompt_tokens))
    return None


def training_trace_of_any(report: Report, plan: Plan) -> KeptTrace | None:
    """The same, but for the turns of loops over chunks, of which it has `turns_of_any`."""
    run = plan.run
    outline = training_outline(report, plan)
    if outline is None or run.media is not None or not is_of_loop(report, run):
        return None
    config = report.config or {}
    family = read(training_file(str(config.get("model_type"))))
    if family is None or family.loop != LOOP:
        return None
    options = {**options_of(config, family.defaults), **trained_options(plan)}
    if not any(family.variants_for(outline, run.attention, options)):
        return None
    composed = family.at(
        outline,
        run.attention,
        options,
        Point(run.batch, run.prompt_tokens, run.prompt_tokens),
        loaded_in(report, plan),
        schedule_of(run),
        halves_of(report, run.device),
    )
    if composed is None:
        return None
    micro_batches = min(run.accumulate, MICRO_BATCHES)
    whole = with_steps(
        composed.trace, trained_by(report, plan), report.tree, run.optimizer, run.loop, backwards=micro_batches
    )
    whole = replace(whole, cast=plan.four_bits is not None and report.spec.dtype is not DType.F32)
    return with_average(whole, report.tree) if run.loop.ema else whole


def loaded_in(report: Report, plan: Plan) -> tuple[tuple[Coefficients, str, str], ...]:
    """Size, module and operator of each tensor that is loaded, in the order of a trace: parameters, each adapted module's
    matrices behind its own, then buffers, then what belongs to packed weights.
    """
    loaded = {tensor.name: tensor.size_bytes for tensor in plan.weights}
    if plan.four_bits is not None:  # biases stay in float32 until the first forward
        biases = {f"{module}.bias" for module in plan.four_bits.modules}
        loaded |= {tensor.name: 4 * tensor.elements for tensor in plan.weights if tensor.name in biases}
    matrices: dict[str, list[TrainedTensor]] = {}
    for matrix in plan.matrices:
        module = matrix.module.rpartition(".")[0] if matrix.module in loaded else matrix.module
        matrices.setdefault(module, []).append(matrix)
    # A module's own, within a wrapper around another for each of its parameters, or one for the module.
    own = {
        module: module + len({matrix.module for matrix in of_it}) * ".base_layer" for module, of_it in matrices.items()
    }
    rows: list[tuple[int, str, str]] = []
    for module, tensors in groupby(each_tensor(report.tree), key=lambda tensor: tensor.name.rpartition(".")[0]):
        owner = own.get(module, module) or report.tree.class_name
        rows += [(loaded[tensor.name], owner, PARAMETER) for tensor in tensors]
        for matrix in matrices.get(module, ()):
            name = matrix.tensor.name.removeprefix(PREFIX).removesuffix(".weight")
            rows.append((matrix.tensor.size_bytes, f"{name}.default", ADAPTER))
    for buffer in each_buffer(report.tree):
        module = buffer.name.rpartition(".")[0]
        rows.append((buffer.size_bytes, own.get(module, module) or report.tree.class_name, BUFFER))
    for module, _ in each_module(report.tree):
        names = (f"{module}.weight.{part}" for part in PACKED_PARTS)
        rows += [(loaded[name], own.get(module, module), PARAMETER) for name in names if name in loaded]
    return tuple((fixed_size(size_bytes), owner, operator) for size_bytes, owner, operator in rows if size_bytes)


def trained_by(report: Report, plan: Plan) -> tuple[Tensor, ...]:
    """The trained parameters that get gradients of a prompt of text, in the order of the model's."""
    trained = trained_of(report.tree, plan.run, plan.matrices)
    return tuple(tensor for tensor in trained if TOWERS.isdisjoint(tensor.name.split(".")))


def learnt_training(report: Report, plan: Plan) -> KeptTrace | None:
    """The run of a prompt of text or with images, without torch; None if no family's trace has it."""
    if plan.run.media is None:
        return training_trace(report, plan)
    from .image_training import image_training_trace

    return image_training_trace(report, plan)


def is_covered(report: Report, run: Run) -> bool:
    """Whether a family's trace has the run."""
    try:
        return learnt_training(report, plan_of(report, run)) is not None
    except QwenInspectError:
        return False


def is_of_loop(report: Report, run: Run) -> bool:
    """Whether the run is of the default loop or Trainer's, with options that traces are made for; with images, also with frozen
    parameters."""
    chosen = CHOSEN if run.media is None else (*CHOSEN, *CHOSEN_WITH_IMAGES)
    default = replace(Run(mode="train"), **{name: getattr(run, name) for name in chosen})
    loop = replace(run.loop, ema=False, clip=LOOPS[run.loop.name].clip)  # of which an optimizer's step alone has more
    known = run.loop.name in (None, "trainer") and loop == LOOPS[run.loop.name] and run.autocast in (None, "bfloat16")
    whole = replace(run, loop=default.loop, autocast=None)
    return known and whole == default and run.optimizer in COVERED and run.attention == report.spec.kernel


def schedule_of(run: Run) -> str:
    """What of a run's options decides which regime it is of, before the workload does."""
    return ("checkpointed, " if run.checkpointing else "") + ("accumulated, " if run.accumulate > 1 else "")


def trained_options(plan: Plan) -> dict[str, Any]:
    """In whose loop what is trained, and on what base: the modules of one layer that have matrices, or that are packed."""
    facts = {"loop": plan.run.loop.name, "autocast": plan.run.autocast}
    options: dict[str, Any] = {name: fact for name, fact in facts.items() if fact is not None}
    if plan.matrices:
        options["lora"] = _of_any_layer(matrix.module for matrix in plan.matrices)
        # The scale is a factor of a sum over stacked experts, whose gradients are multiplied by no factor of 1.
        # Source: PEFT 0.21, lora/layer.py, _LoraFactorsProxy; torch 2.13, FunctionsManual.cpp, maybe_multiply
        parameters = {tensor.name for tensor in plan.weights}
        if not parameters.isdisjoint({matrix.module for matrix in plan.matrices}):
            options["scaled"] = plan.run.lora_alpha != plan.run.lora_rank
    if (base := plan.four_bits) is not None:
        scheme = base.scheme
        options["base"] = [scheme.kind, scheme.double, str(scheme.storage), base.dtype, *_of_any_layer(base.modules)]
    return options


def _of_any_layer(modules: Iterable[str]) -> list[str]:
    """Those of a tower make no difference to a prompt of text."""
    of_text = (module for module in modules if TOWERS.isdisjoint(module.split(".")))
    return sorted({re.sub(LAYER, ANY_LAYER, module, count=1) for module in of_text})


def training_outline(report: Report, plan: Plan) -> Outline | None:
    """The design with what matters in training alone: whether the head is tied, LoRA's rank, heads as wide as scratch has them.

    None for models that drop out at random.
    """
    packed = report.known.quantised is not None and plan.four_bits is None
    if not report.settled or packed or drops_out(decoder_of(report.config or {})):
        return None
    attention = report.attention.by_config
    outline = outline_of(report.spec, report.tree, attention, report.cache, report.config or {})
    if outline is None:
        return None
    repeats = plan.four_bits is not None or report.spec.kernel == "eager"
    layers = (
        layer._replace(dimensions=(*layer.dimensions, *_of_scratch(reading, repeats=repeats)))
        for layer, reading in zip(outline.layers, attention, strict=True)
    )
    rank = () if plan.run.lora_rank is None else (plan.run.lora_rank,)
    # A frozen head gets no gradient, whether it is tied or not.
    tied = not plan.matrices and any(module.tied_to is not None for _, module in each_module(report.tree))
    outside = Part(outline.outside.structure + (" tied" if tied else ""), (*rank, *outline.outside.dimensions))
    return replace(
        outline, outside=outside, layers=tuple(layers), thresholds=tuple(_thresholds(outline, report.spec.kernel))
    )


def _thresholds(outline: Outline, kernel: str) -> Iterator[tuple[str, int]]:
    """Those that matter in training: from a window's length on there is a mask, which without a fused kernel there always is."""
    for kind, tokens in outline.thresholds:
        if kind == "chunks":  # what is padded to whole chunks is sliced
            yield from (("whole", CHUNK_TOKENS), ("loop", FEWEST_CHUNKS), ("kernel", tokens))
        elif kind != "window":
            yield kind, tokens
        elif kernel != "eager":
            yield "mask", tokens


def drops_out(part: Mapping[str, Any]) -> bool:
    """Whether this part of a configuration drops out at random."""
    return any(value for key, value in part.items() if DROPOUT.search(key))


def _of_scratch(layer: AnyLayerAttention, *, repeats: bool) -> tuple[int, ...]:
    """The width of heads in the scratch of attention's backward; and how many query heads share a KV head, if that is repeated
    for each of them: in float32, beside a 4-bit base; with the mask of a window; and without a fused kernel. Of linear attention
    how many value heads share a key head, over which the backward sums.

    Source: transformers 5.23, integrations/sdpa_attention.py, use_gqa_in_sdpa; modeling_gemma2.py, eager_attention_forward;
    modeling_qwen3_5.py, torch_chunk_gated_delta_rule
    """
    if isinstance(layer, LinearLayerAttention) and layer.value_heads != layer.key_heads:
        return (layer.value_heads // layer.key_heads,)
    if not isinstance(layer, LayerAttention):
        return ()
    repeats = repeats or layer.window_tokens is not None
    return (flash_rounded(layer.head_dim), *([layer.query_heads // layer.kv_heads] if repeats else []))
