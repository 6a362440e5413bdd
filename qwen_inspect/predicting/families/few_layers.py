"""Runs with images from traces of a few layers of the tower and of the decoder, event by event equal to traces of all layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from ...results.model import Report
from ...results.timeline import Timeline
from ...spec import Module, each_module
from ...standard import re
from ...tracing.towers import ADDING
from ...typed import Any
from ...values import replace
from ..traces.kept_trace import Point
from ..traces.segments import fixed
from .composition import composed_of
from .shallow_training import TOWERS, stack_of

FEWEST = 4  # layers: first, two alike, last


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
        layers = first_layers(around(_kinds(list(zip(listed, designed, strict=True)), config)))
    if tower is not None:
        kept = fewest_layers(seeing)
    if layers is None and kept is None:
        return None
    few = fixed(trace(report.spec, config, replace(request, layers=layers, tower_layers=kept)))
    if kept is not None and tower is not None:
        few = composed_of(few, around([seeing[layer] for layer in kept]), around(seeing), tower)
    if layers is not None and decoder is not None:
        kinds = _kinds(list(zip(listed, designed, strict=True)), config)
        few = composed_of(few, around(kinds[:layers]), around(kinds), decoder)
    return few.at(point)


def _kinds(settings: Sequence[Hashable], config: Mapping[str, Any]) -> list[Hashable]:
    """The decoder's layers by what they do. The first may each add features of the tower.

    Source: transformers 5.23, modeling_qwen3_vl.Qwen3VLTextModel.forward
    """
    vision = config.get("vision_config") or {}
    adding = len(vision.get(ADDING) or ()) + 1  # the next one frees what the last of them made
    return [(setting, min(index, adding)) for index, setting in enumerate(settings)]


def around(kinds: Sequence[Hashable]) -> list[Hashable]:
    """Each layer's kind between those of its neighbours, None beyond either end: of a forward, all that its events depend on."""
    ends: list[Hashable] = [None, *kinds, None]
    return [tuple(ends[layer : layer + 3]) for layer in range(len(kinds))]


def fewest_layers(kinds: Sequence[Hashable]) -> tuple[int, ...] | None:
    """The numbers of a few layers that have all neighbours that occur, and two of them alike; None if all are needed."""
    needed, layers = set(around(kinds)), list(range(len(kinds)))
    place = 0
    while place < len(layers):
        fewer = [*layers[:place], *layers[place + 1 :]]
        if _stand_for_all(around([kinds[layer] for layer in fewer]), needed):
            layers = fewer
        else:
            place += 1
    return tuple(layers) if len(layers) < len(kinds) else None


def first_layers(surroundings: Sequence[Any]) -> int | None:
    """How many of the first layers stand for all, with the last as their last; None if all are needed."""
    needed = set(surroundings)
    for layers in range(FEWEST, len(surroundings)):
        first = [*surroundings[: layers - 1], (*surroundings[layers - 1][:2], None)]
        if _stand_for_all(first, needed):
            return layers
    return None


def _stand_for_all(surroundings: Sequence[Hashable], needed: set[Hashable]) -> bool:
    present = Counter(surroundings)
    return present.keys() == needed and max(present.values()) > 1


def tower_of(tree: Module, layers: int) -> str | None:
    """The name of the module that has the tower's layers, so many, named by their numbers; None if that is not clear."""
    names = (name.rpartition(".") for name, _ in each_module(tree))
    children = Counter(parent for parent, _, name in names if name.isdecimal())
    stacks = [name for name, count in children.items() if count == layers and re.search(TOWERS, name)]
    return stacks[0] if len(stacks) == 1 else None
