"""What each of several ranks or devices holds -> JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...language import Language
from ...results.ranks import RANK_TERMS
from .footprint import moment_content

if TYPE_CHECKING:
    from ...results.ranks import DeviceMapReport, RankBytes, RanksReport


def degrees_content(ranks: RanksReport | None) -> dict[str, Any]:
    how = None if ranks is None else ranks.parallelism
    return {
        "tp": how.tensor if how else 1,
        "pp": how.pipeline if how else 1,
        "ep": how.expert if how else 1,
        "fsdp": how.fsdp if how else 1,
        "zero_stage": how.zero_stage if how and how.fsdp > 1 else None,
    }


def rank_content(one: RankBytes) -> dict[str, Any]:
    return {
        "ranks": list(one.ranks),
        "layers": None if one.layers is None else list(one.layers),
        "experts": one.experts,
        **{f"{term}_bytes": getattr(one, term) for term in RANK_TERMS},
        "activation_bytes": None if one.peak is None else one.peak.activations,
        "communication_bytes": None,
        "total_bytes": one.total,
        "peak": None if one.peak is None else moment_content(one.peak),
        "peak_reserved_bytes": one.peak_reserved,
    }


def device_map_content(found: DeviceMapReport, say: Language) -> dict[str, Any]:
    return {
        "devices": [
            {
                "device": one.device,
                "capacity_bytes": one.capacity_bytes,
                "modules": list(one.modules),
                "weights_bytes": one.weights,
                "buffers_bytes": one.buffers,
            }
            for one in found.devices
        ],
        "provenance": found.made_by,
        "assumptions": [say(message) for message in found.assumptions],
    }
