"""A LoRA adapter as PEFT saves it: its configuration, its tensors and the name of its base model.

Source: PEFT, LoraConfig.save_pretrained (adapter_config.json, adapter_model.safetensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Adapter, Tensor
from ..errors import MalformedError
from ..typed import Any

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
HIGHEST_RANK = 1 << 20


def read_adapter(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> Adapter:
    """The adapter of a raw adapter_config.json and its file's tensors; `base` is None if the configuration names no base."""
    kind, base, rank = config.get("peft_type"), config.get("base_model_name_or_path"), config.get("r")
    targets = config.get("target_modules")
    if not isinstance(kind, str):
        raise MalformedError("adapter_no_type", file=CONFIG_NAME)
    if isinstance(targets, str):
        targets = [targets]
    named = [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
    return Adapter(
        kind=kind,
        base=base if isinstance(base, str) and base else None,
        rank=rank if type(rank) is int and 0 < rank <= HIGHEST_RANK else None,
        targets=tuple(sorted(named)),
        tensors=tuple(tensors),
        config=config,
    )
