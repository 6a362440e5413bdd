"""Which layers a tower has, and a configuration with a few of them.

Source: transformers 5.23, configuration_qwen2_5_vl.py, configuration_qwen3_vl.py (depth and lists of numbers of layers)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from ..architectures.thinkers import thinker_of
from ..typed import Any
from .configuring import configuration_of

DEPTHS = ("depth", "num_hidden_layers")  # by either name
FULL, ADDING = "fullatt_block_indexes", "deepstack_visual_indexes"  # lists of numbers of layers


def kinds_of_tower(config: Mapping[str, Any]) -> list[Hashable]:
    """What each layer of the tower does; empty for a tower whose layers are not told by its depth and the lists.

    A layer whose features the decoder adds is of its own kind. UnavailableError without torch.
    """
    vision = getattr(thinker_of(configuration_of(config)), "vision_config", None)
    depth = None if vision is None else getattr(vision, _depth(vision), None)
    if type(depth) is not int or vision is None:
        return []
    if any(isinstance(value, (list, tuple)) and len(value) == depth for value in vision.to_dict().values()):
        return []  # a setting for each layer, which is not known here
    full, adding = (list(getattr(vision, name, None) or ()) for name in (FULL, ADDING))
    return [(layer in full, adding.index(layer) if layer in adding else None) for layer in range(depth)]


def with_few_layers(configuration: Any, layers: Sequence[int]) -> None:
    """Leaves these layers of the tower of a whole model's configuration."""
    vision = thinker_of(configuration).vision_config
    setattr(vision, _depth(vision), len(layers))
    for name in (FULL, ADDING):
        if numbers := getattr(vision, name, None):
            setattr(vision, name, [place for place, layer in enumerate(layers) if layer in numbers])


def _depth(vision: Any) -> str:
    return next((name for name in DEPTHS if hasattr(vision, name)), DEPTHS[0])
