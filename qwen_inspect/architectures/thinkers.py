"""Models of which one part, the thinker, reads the prompt and answers it, and others turn the answer into speech.

The whole class has no forward: its `generate` calls the thinker's, and with generation_mode="text" nothing else.
Source: transformers 5.23, Qwen2_5OmniForConditionalGeneration and Qwen3OmniMoeForConditionalGeneration
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedError
from ..typed import Any

THINKER = "thinker"


def has_thinker(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get(f"{THINKER}_config"), Mapping)


def thinker_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the part that reads the prompt: the thinker's, else the model's own."""
    if not has_thinker(config):
        return config
    return {"model_type": f"{config.get('model_type')}_{THINKER}", **config[f"{THINKER}_config"]}


def refuse_whole(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError if a thinker is only a part of the model: for what is known of a thinker alone."""
    if has_thinker(config):
        raise UnsupportedError("thinker_alone", model_type=str(config.get("model_type")))


def thinker_of(model: Any) -> Any:
    """The part of transformers' model, or of its configuration, that reads the prompt."""
    return getattr(model, THINKER, None) or getattr(model, f"{THINKER}_config", None) or model
