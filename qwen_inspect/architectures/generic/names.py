"""The names of a built model's tensors in a release's files, as transformers maps them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...checkpoint import Tensor
from ...typed import Any
from .modules import state_of, tensor_of


def stored_forms(model: Any) -> dict[str, tuple[Tensor, ...]]:
    """The stored tensors of each of the model's tensors, as transformers would save them in the release's layout.

    Contains only forms with exactly as many elements as the model's tensor. Empty on failure, for the functions are internal.
    Source: transformers 5.23, core_model_loading.revert_weight_conversion and rename_source_key,
    conversion_mapping.get_model_conversion_mapping.
    """
    targets = {tensor.name: tensor for tensor in state_of(model)}
    state = {name: value for name, value in model.state_dict().items() if name in targets}
    try:
        from transformers.core_model_loading import revert_weight_conversion

        reverted = revert_weight_conversion(model, dict(state))
        stored = [tensor_of(name, value) for name, value in reverted.items()]
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError):
        return {}
    if all(tensor.name in targets for tensor in stored):
        return {}
    rename = renaming(model, stored)
    parts_by_target: dict[str, list[Tensor]] = {}
    for tensor in stored:
        target = tensor.name if tensor.name in targets else rename(tensor.name)
        parts_by_target.setdefault(target, []).append(tensor)
    return {
        name: tuple(parts)
        for name, parts in parts_by_target.items()
        if name in targets
        and [part.name for part in parts] != [name]
        and sum(part.elements for part in parts) == targets[name].elements
    }


def renaming(model: Any, stored: Sequence[Tensor]) -> Any:
    """A function from a stored name to the model's, as transformers' loader maps it; unmapped names stay."""
    if not stored:
        return lambda name: name
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = get_model_conversion_mapping(model) or []
    except (AttributeError, ImportError, LookupError, TypeError, ValueError):
        return lambda name: name
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def rename(name: str) -> str:
        try:
            return str(rename_source_key(name, renamings, converters, prefix, state)[0])
        except (AttributeError, LookupError, TypeError, ValueError, re.error):
            return name

    return rename
