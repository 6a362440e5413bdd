"""Reading transformers' configuration objects, whose keys may differ from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def stated(configuration: Any, key: str) -> Any:
    """The value that a configuration has for all layers; None where it has none, or not one for all.

    Source: transformers 5.23, HeterogeneousConfigMixin, which raises where one of `per_layer_attributes` is read.
    """
    varying = getattr(configuration, "per_layer_attributes", None) or ()
    return None if key in varying else getattr(configuration, key, None)


def layer_configurations(decoder: Any) -> Sequence[Any]:
    """Each layer's configuration where they differ; else the decoder's, once for all."""
    return list(decoder.per_layer_config) if getattr(decoder, "per_layer_attributes", None) else [decoder]
