"""Runs with images from traces of a few layers of the tower and of the decoder, event by event equal to traces of all layers."""

from __future__ import annotations

from collections.abc import Mapping

from ...results.model import Report
from ...results.timeline import Timeline
from ...typed import Any
from ...values import replace
from ..traces.kept_trace import Point
from ..traces.segments import fixed
from .composition import composed_of
from .stacks import around, fewest_layers, first_layers, kinds_of_decoder, stack_of, tower_of


def traced_in_few_layers(report: Report, config: Mapping[str, Any], request: Any, point: Point) -> Timeline | None:
    """The run of a prompt with images, not training; None if its layers are too few or too unlike to be traced in part.

    request: the whole model's `TraceRequest`.
    """
    from ...tracing.towers import kinds_of_tower
    from ...tracing.trace import settings_of_layers, trace

    listed, seeing = settings_of_layers(config), kinds_of_tower(config)
    designed = report.spec.layers or listed
    decoder, tower = stack_of(report.tree, len(listed)), tower_of(report.tree, len(seeing))
    layers = kept = None
    if decoder is not None and len(designed) == len(listed):
        layers = first_layers(around(kinds_of_decoder(list(zip(listed, designed, strict=True)), config)))
    if tower is not None:
        kept = fewest_layers(seeing)
    if layers is None and kept is None:
        return None
    few = fixed(trace(report.spec, config, replace(request, layers=layers, tower_layers=kept)))
    if kept is not None and tower is not None:
        few = composed_of(few, around([seeing[layer] for layer in kept]), around(seeing), tower)
    if layers is not None and decoder is not None:
        kinds = kinds_of_decoder(list(zip(listed, designed, strict=True)), config)
        few = composed_of(few, around(kinds[:layers]), around(kinds), decoder)
    return few.at(point)
