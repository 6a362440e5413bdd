"""--limit-mm-per-prompt: which inputs a command allows, and so whether vLLM profiles and loads the tower for them.

Source: vLLM 0.33, config/multimodal.py (get_limit_per_prompt: many where a kind is not named); model_executor/models/
interfaces.py (_mark_tower_model: a tower is left out where each of its kinds is limited to 0).
"""

from __future__ import annotations

import json

from ...typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = "--limit-mm-per-prompt"
WITHOUT_VISION: Mapping[str, Any] = {"images": False, "without_towers": ("vision",)}
# Whose configuration does not name the token of a video.
WITH_VIDEOS = frozenset({"internvl", "internvl_chat", "gemma4"})


def read_limits(option: str, value: str) -> dict[str, str]:
    """As JSON, KIND=N with commas between, or behind the option with a dot. What is none of these is empty."""
    if option != LIMIT:
        kind, _, key = option.removeprefix(f"{LIMIT}.").partition(".")
        return {kind: value} if key in ("", "count") else {}
    try:
        limits = json.loads(value)
    except (ValueError, RecursionError):
        limits = dict(part.partition("=")[::2] for part in value.split(","))
    if not isinstance(limits, dict):
        return {}
    counts = {kind: limit.get("count") if isinstance(limit, dict) else limit for kind, limit in limits.items()}
    return {str(kind): str(count) for kind, count in counts.items()}


def takes_videos(config: Mapping[str, Any]) -> bool:
    return any(key.startswith("video_token") for key in config) or config.get("model_type") in WITH_VIDEOS
