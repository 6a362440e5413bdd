"""Reads transformers' configuration objects, whose values may differ from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence

from ...typed import Any


def stated(configuration: Any, key: str) -> Any:
    """The value of `key` for all layers; None if it is absent or differs from layer to layer.

    Source: transformers 5.23, HeterogeneousConfigMixin, which raises on reading one of `per_layer_attributes`.
    """
    varying = getattr(configuration, "per_layer_attributes", None) or ()
    return None if key in varying else getattr(configuration, key, None)


def layer_configurations(decoder: Any) -> Sequence[Any]:
    """Each layer's configuration if they differ, else the decoder's alone."""
    return list(decoder.per_layer_config) if getattr(decoder, "per_layer_attributes", None) else [decoder]
