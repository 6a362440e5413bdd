"""The stacks of layers of a model, which of their layers are alike, and a few layers that stand for all of a stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from ...architectures.thinkers import THINKER, thinker_config
from ...spec import Module, each_module
from ...standard import re
from ...tracing.towers import ADDING
from ...typed import Any

TOWERS = r"\b(visual|vision|audio|encoder)"
FEWEST = 4  # layers: first, two alike, last


def stack_of(tree: Module, layers: int) -> str | None:
    """The name of the module that has the decoder's layers, so many, named by their numbers; None if that is not clear."""
    stacks = [name for name in _stacks(tree, layers) if not re.search(TOWERS, name)]
    outermost = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    return outermost[0] if len(outermost) == 1 else None


def kinds_of_decoder(settings: Sequence[Hashable], config: Mapping[str, Any]) -> list[Hashable]:
    """The decoder's layers by what they do. The first may each add features of the tower.

    Source: transformers 5.23, modeling_qwen3_vl.Qwen3VLTextModel.forward
    """
    vision = thinker_config(config).get("vision_config") or {}
    adding = len(vision.get(ADDING) or ()) + 1  # the next one frees what the last of them made
    return [(setting, min(index, adding)) for index, setting in enumerate(settings)]


def around(kinds: Sequence[Hashable]) -> list[Hashable]:
    """Each layer's kind between those of its neighbours, None beyond either end: of a forward, all that its events depend on."""
    ends: list[Hashable] = [None, *kinds, None]
    return [tuple(ends[layer : layer + 3]) for layer in range(len(kinds))]


def fewest_layers(
    kinds: Sequence[Hashable], surroundings: Callable[[Sequence[Hashable]], Sequence[Hashable]] = around
) -> tuple[int, ...] | None:
    """The numbers of a few layers that have all surroundings that occur, and two of them alike; None if all are needed."""
    needed, layers = set(surroundings(kinds)), list(range(len(kinds)))
    place = 0
    while place < len(layers):
        fewer = [*layers[:place], *layers[place + 1 :]]
        if _stand_for_all(surroundings([kinds[layer] for layer in fewer]), needed):
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
    stacks = [name for name in _stacks(tree, layers) if re.search(TOWERS, name)]
    return stacks[0] if len(stacks) == 1 else None


def _stacks(tree: Module, layers: int) -> list[str]:
    """The modules that have so many layers, named by their numbers, in the part that reads the prompt."""
    names = (name.rpartition(".") for name, _ in each_module(tree))
    children = Counter(parent for parent, _, name in names if name.isdecimal())
    part = f"{THINKER}." if any(child.name == THINKER for child in tree.children) else ""
    return [name for name, count in children.items() if count == layers and name.startswith(part)]
