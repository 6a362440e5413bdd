"""Training runs of deep models from traces of their first few layers, equal to traces of the whole models."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedError
from ..results.memory import Run
from ..results.model import Report
from ..results.timeline import ADAPTER, Allocate, Timeline, living
from ..spec import Module, each_module
from .composition import compose, shallow_layers
from .kept_trace import KeptTrace, Point
from .on_device import PARAMETER
from .period import fixed
from .training import trained_of
from .training_plan import Plan, plan_of

TOWERS = re.compile(r"\b(visual|vision|audio|encoder)")
MOST_OF_ALL = 3, 4  # a shallow model of more of the layers spares too little


def composed_timeline(report: Report, run: Run, config: Mapping[str, Any], request: Any) -> Timeline | None:
    """The training run of the whole model, from a trace of its first layers; None if they do not stand for all.

    request: the `TraceRequest` of the whole model.
    """
    from ..tracing.trace import settings_of_layers, trace

    settings = settings_of_layers(config) if report.spec.built else report.spec.layers
    stack = stack_of(report.tree, len(settings))
    if stack is None:
        return None
    plan = plan_of(report, run)
    kinds = kinds_of(settings, stack, plan, report.tree)
    layers = shallow_layers(kinds)
    if layers is None or layers * MOST_OF_ALL[1] > len(kinds) * MOST_OF_ALL[0]:
        return None
    try:
        shallow = trace(report.spec, config, replace(request, layers=layers))
        timeline = compose(constant(shallow), kinds, layers, stack).at(Point(1, 1, 1))
    except UnsupportedError:
        return None
    return timeline if has_all(timeline, plan) else None


def stack_of(tree: Module, layers: int) -> str | None:
    """The name of the module that has the decoder's layers, so many, named by their numbers; None if that is not clear."""
    names = (name.rpartition(".") for name, _ in each_module(tree))
    children = Counter(parent for parent, _, name in names if name.isdecimal())
    stacks = [name for name, count in children.items() if count == layers and not TOWERS.search(name)]
    outermost = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    return outermost[0] if len(outermost) == 1 else None


def kinds_of(settings: Sequence[Hashable], stack: str, plan: Plan, tree: Module) -> list[Hashable]:
    """What decides the events of each layer: its settings and its tensors, trained or frozen."""
    trained = {tensor.name for tensor in trained_of(tree, plan.run, plan.matrices)}
    numbered = re.compile(rf"{re.escape(stack)}\.(\d+)\.(.+)")
    of_layer: dict[int, list[Hashable]] = defaultdict(list)
    for tensor in (*plan.weights, *(matrix.tensor for matrix in plan.matrices)):
        if match := numbered.fullmatch(tensor.name):
            of_layer[int(match[1])].append((match[2], tensor.shape, tensor.dtype, tensor.name in trained))
    return [(setting, *of_layer[layer]) for layer, setting in enumerate(settings)]


def constant(timeline: Timeline) -> KeptTrace:
    """A trace of one workload with constant sizes."""
    numbers: dict[int, int] = {}
    for event in timeline.events:
        if isinstance(event, Allocate):
            numbers[event.id] = len(numbers)
    return replace(
        fixed(timeline),
        sums=tuple(
            (numbers[output], (summed.outputs,), (summed.inputs,), summed.vector) for output, summed in timeline.sums
        ),
        cast=timeline.cast,
        owners=tuple((numbers[identity], module) for identity, module in timeline.owners),
    )


def has_all(timeline: Timeline, plan: Plan) -> bool:
    """Whether the run ends with the weights and the matrices of the plan."""
    loaded = {PARAMETER: Counter[int](), ADAPTER: Counter[int]()}
    for allocation in living(timeline.events):
        if allocation.operator in loaded:
            loaded[allocation.operator][allocation.size_bytes] += 1
    weights = Counter(tensor.size_bytes for tensor in plan.weights)
    matrices = Counter(matrix.tensor.size_bytes for matrix in plan.matrices)
    return loaded == {PARAMETER: weights, ADAPTER: matrices}
