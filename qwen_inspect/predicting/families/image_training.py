"""Training with images without torch: composed from a family's run in a few layers of tower and decoder, as `image_trace` has it.

A variant is a structure, and what of it trains. An optimizer is no part of it: `traces.optimizer_steps` has its rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise, takewhile

from ...results.memory import Run
from ...results.model import Report
from ...results.timeline import Stage
from ...spec import each_tensor
from ...standard import re
from ...structure.adapters import PREFIX
from ...tracing.kernels import flash_rounded
from ...typed import Any
from ...values import replace
from ..allocation.workspaces import has_cudnn_attention
from ..traces.kept_trace import KeptTrace, Point
from ..traces.optimizer_steps import INPUTS, with_average, with_steps
from ..traces.outline import options_of
from ..traces.outline import regime_of as sides_of
from ..traces.segments import ANY_LAYER
from ..training import trained_of
from ..training_plan import Plan
from .composition import surroundings_of
from .family_trace import NotCovered
from .family_training import MICRO_BATCHES, drops_out, is_of_loop, loaded_in, schedule_of, training_outline
from .image_file import read
from .image_towers import tower_in
from .image_trace import Design, ImageTrace, ImageVariant, design_of, images_in, mask_of


def image_training_file(model_type: str) -> str:
    return f"{model_type}-training-images.json.gz"


def image_training_trace(report: Report, plan: Plan) -> KeptTrace | None:
    """The run of one workload with images, without torch; None if it is not covered."""
    run = plan.run
    if run.media is None or {run.loop.name, run.autocast} != {None} or not is_of_loop(report, run):
        return None
    config = report.config or {}
    family, tower = read(image_training_file(str(config.get("model_type")))), tower_in(config)
    if family is None or not tower.takes(report.spec.dtype) or not tower.sees(config, run.media):
        return None
    with suppress(NotCovered):
        design = trained_design(report, plan, family.vision_defaults)
        wanted = run.attention, design.structure, options_in(report, plan, design, family)
        for variant in family.variants:
            if (variant.kernel, variant.structure, variant.options) == wanted:
                with suppress(NotCovered):
                    return replace(composed(variant, report, plan, design), made_by=family.made_by)
    return None


def composed(variant: ImageVariant, report: Report, plan: Plan, design: Design) -> KeptTrace:
    """The run of a design with the variant's structure; NotCovered for other workloads than were learnt from."""
    run = plan.run
    assert run.media is not None
    few = variant.in_few_layers(design, run.media, point_of(run), trained_regime(run, design))
    # Gradients are told by the parameters' names, in which layers get their numbers as in the names of owners.
    few = replace(few, kept=(), owners=tuple((number, name.removeprefix(PREFIX)) for number, name in few.kept))
    whole = variant.whole(few, design, loaded_in(report, plan), surroundings=surroundings_of)
    prefix = PREFIX if plan.matrices else ""
    whole = replace(whole, kept=tuple((number, prefix + name) for number, name in whole.owners), owners=())
    whole = of_two_steps(whole)
    trained = trained_of(report.tree, run, plan.matrices)
    whole = with_steps(
        whole, trained, report.tree, run.optimizer, run.loop, backwards=min(run.accumulate, MICRO_BATCHES)
    )
    return with_average(whole, report.tree) if run.loop.ema else whole


def of_two_steps(trace: KeptTrace) -> KeptTrace:
    """A run of one step, without the optimizer's, twice. Each micro-batch drops what is left of the one before: its inputs when
    its own are made, labels last; what the model keeps, when that is made again; and its loss when its forward ends, which is
    before several are divided by their number. kept: gradients, by the parameters' names.
    """
    begin, made = trace.stages[1].first_event, len(trace.allocations)
    freed, gradients = {-1 - entry for entry in trace.order if entry < 0}, dict(trace.kept)
    bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
    forwards = [*pairwise(bounds[1:])][::2]
    first, stop = forwards[0]
    events = range(first, stop)
    made_first = (trace.order[index] for index in events)
    leading = len([*takewhile(lambda entry: entry >= 0 and trace.allocations[entry][1] == INPUTS, made_first)])
    of_last = trace.order[forwards[-1][0] :]
    left = [entry for entry in of_last if entry >= 0 and entry not in freed and entry not in gradients]
    inputs, others = left[:leading], left[leading:]
    if not inputs or not others or any(trace.allocations[entry][1] != INPUTS for entry in inputs):
        raise NotCovered
    *states, loss = others
    # By the number of the event in the first forward before which they are, what is dropped.
    drops: dict[int, list[int]] = {first + leading - 1: inputs[:-1], first + leading: inputs[-1:]}
    for state in states:
        again = _like(trace, state, events)
        drops[again + 1] = [*drops.get(again + 1, ()), state]
    drops[stop if len(forwards) == 1 else _like(trace, loss, events)] = [loss]
    moved = made - begin  # of what is made in a step; what is loaded is made once
    order, stages = [*trace.order], [*trace.stages]
    starts = {stage.first_event: stage.name for stage in trace.stages[1:]}
    for index in range(begin, len(trace.order)):
        order += [-1 - entry for entry in drops.get(index, ())]
        if index in starts:
            stages.append(Stage(name=starts[index], first_event=len(order)))
        entry = trace.order[index]
        number = entry if entry >= 0 else -1 - entry
        number += moved if number >= begin else 0
        order.append(number if entry >= 0 else -1 - number)
    sums = [(number, (outputs, inputs, vectors)) for number, outputs, inputs, vectors in trace.sums]
    return replace(
        trace,
        stages=tuple(stages),
        allocations=(*trace.allocations, *trace.allocations[begin:]),
        order=tuple(order),
        kept=(*trace.kept, *((number + moved, name) for number, name in trace.kept)),
        sums=(*trace.sums, *((number + moved, *summed) for number, summed in sums)),
    )


def _like(trace: KeptTrace, entry: int, events: Sequence[int]) -> int:
    """The last of these events that makes what `entry` is like; NotCovered for none."""
    module, operator = trace.allocations[entry][1:]
    for index in reversed(events):
        made = trace.order[index]
        if made >= 0 and trace.allocations[made][1:] == (module, operator):
            return index
    raise NotCovered


def point_of(run: Run) -> Point:
    return Point(run.batch, run.prompt_tokens, run.prompt_tokens)


def trained_design(report: Report, plan: Plan, defaults: Mapping[str, Any]) -> Design:
    """As `design_of`, with what matters in training alone: the width of the tower's heads in scratch of attention's backward."""
    outline = training_outline(report, plan)
    vision = tower_in(report.config or {}).settings(report.config or {}, defaults)
    if outline is None or plan.four_bits is not None or drops_out(vision):
        raise NotCovered
    design = design_of(report, outline, defaults)
    return design._replace(dimensions=(flash_rounded(design.tower_head_dim), *design.dimensions))


def trained_regime(run: Run, design: Design) -> str:
    """Whether layers are checkpointed, and there are several micro-batches; and the workload, as of a run without training."""
    assert run.media is not None
    sides = sides_of(design.thresholds, point_of(run), singles=0) if design.thresholds else ""
    mask = mask_of(run.media, point_of(run), design.known.masked, cudnn=has_cudnn_attention(run.gpu))
    return schedule_of(run) + ", ".join(filter(None, [images_in(run.media, point_of(run), design.known), sides, mask]))


def options_in(report: Report, plan: Plan, design: Design, family: ImageTrace) -> dict[str, Any]:
    """Of the classes, those that a design does not show; and what trains."""
    config = report.config or {}
    own = {**options_of(config, family.defaults), **tower_in(config).options(config, family.vision_defaults)}
    return {**own, **trained_options(report, plan, design)}


def trained_options(report: Report, plan: Plan, design: Design) -> dict[str, Any]:
    """The modules of one layer of each stack that have matrices; else the parameters that do not train, if there are some.

    NotCovered if they train in some layers alone.
    """
    numbered = re.compile(rf"(?<=^{re.escape(design.tower_stack)}\.)\d+|(?<=^{re.escape(design.decoder_stack)}\.)\d+")
    if plan.matrices:
        return {"lora": sorted({numbered.sub(ANY_LAYER, matrix.module) for matrix in plan.matrices})}
    trains = {tensor.name for tensor in trained_of(report.tree, plan.run, plan.matrices)}
    trained, frozen = set[str](), set[str]()
    for tensor in each_tensor(report.tree):
        (trained if tensor.name in trains else frozen).add(numbered.sub(ANY_LAYER, tensor.name))
    if trained & frozen:
        raise NotCovered
    return {"frozen": sorted(frozen)} if frozen else {}
