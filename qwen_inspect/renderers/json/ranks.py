"""Bytes per rank or device -> JSON."""

from __future__ import annotations

from ...language import Language
from ...typed import TYPE_CHECKING, Annotated
from .footprint import MomentJSON, RunJSON, moment_content
from .values import Count, Keywords, Positive, TypedDict

if TYPE_CHECKING:
    from ...results.ranks import DeviceMapReport, RankBytes, RanksReport


class DegreesJSON(TypedDict):
    tp: Positive
    """The degree of tensor parallelism; `pp`, `ep` and `fsdp` are the other degrees, 1 if not used."""
    pp: Positive
    ep: Positive
    fsdp: Positive
    zero_stage: Annotated[int, Keywords(enum=[1, 2, 3])] | None
    offload: bool
    """Whether FSDP2's CPUOffloadPolicy keeps shards, gradients and optimizer states in the host's memory."""
    deepspeed: bool
    """Whether DeepSpeed shares the model out: always in stage 1, and where it offloads."""
    offload_optimizer: bool
    """Whether DeepSpeed keeps optimizer states in the host's memory."""
    offload_params: bool
    """Whether DeepSpeed keeps each rank's part of the weights in the host's memory."""


class RanksWorkloadJSON(RunJSON, DegreesJSON):
    """A run, and its parallelism."""

    dtype: str | None
    cache_dtype: str | None


class RankJSON(TypedDict):
    """The bytes that each of `ranks` (all equal) holds at the end of the run."""

    ranks: Annotated[list[Count], Keywords(minItems=1)]
    layers: Annotated[list[Count], Keywords(minItems=2, maxItems=2)] | None
    """The first layer of its stage, and the first after it; null with a single stage."""
    experts: Count | None
    """Per layer, with expert parallelism."""
    weights_bytes: Count
    """Including `padding_bytes`; `replicated_bytes` of them are on other ranks too."""
    replicated_bytes: Count
    padding_bytes: Count
    adapters_bytes: Count
    """LoRA's matrices, which are not among the weights."""
    buffers_bytes: Count
    cache_bytes: Count | None
    state_bytes: Count | None
    gradients_bytes: Count
    optimizer_bytes: Count
    gathered_bytes: Count | None
    """Full weights that FSDP gathers temporarily."""
    host_bytes: Count
    """In the host's memory, with --offload, --offload-optimizer or --offload-params."""
    activation_bytes: Count | None
    communication_bytes: None
    total_bytes: Count | None
    """Without temporary memory: gathered weights, activations, workspace, communication."""
    peak: MomentJSON | None
    peak_reserved_bytes: Count | None


class PlacedDeviceJSON(TypedDict):
    """The modules that accelerate places on one device."""

    device: str
    capacity_bytes: Count | None
    """null if no limit was set."""
    modules: list[str]
    weights_bytes: Count
    buffers_bytes: Count


class DeviceMapJSON(TypedDict):
    """The model's placement with device_map="auto"."""

    devices: list[PlacedDeviceJSON]
    provenance: str
    assumptions: list[str]


def degrees_content(ranks: RanksReport | None) -> DegreesJSON:
    how = None if ranks is None else ranks.parallelism
    return {
        "tp": how.tensor if how else 1,
        "pp": how.pipeline if how else 1,
        "ep": how.expert if how else 1,
        "fsdp": how.fsdp if how else 1,
        "zero_stage": how.zero_stage if how and (how.fsdp > 1 or how.by_deepspeed) else None,
        "offload": how is not None and how.offload,
        "deepspeed": how is not None and how.by_deepspeed,
        "offload_optimizer": how is not None and how.offload_optimizer,
        "offload_params": how is not None and how.offload_params,
    }


def rank_content(rank: RankBytes) -> RankJSON:
    return {
        "ranks": list(rank.ranks),
        "layers": None if rank.layers is None else list(rank.layers),
        "experts": rank.experts,
        "weights_bytes": rank.weights,
        "replicated_bytes": rank.replicated,
        "padding_bytes": rank.padding,
        "adapters_bytes": rank.adapters,
        "buffers_bytes": rank.buffers,
        "cache_bytes": rank.cache,
        "state_bytes": rank.state,
        "gradients_bytes": rank.gradients,
        "optimizer_bytes": rank.optimizer,
        "gathered_bytes": rank.gathered,
        "host_bytes": rank.host,
        "activation_bytes": None if rank.peak is None else rank.peak.activations,
        "communication_bytes": None,
        "total_bytes": rank.total,
        "peak": None if rank.peak is None else moment_content(rank.peak),
        "peak_reserved_bytes": rank.peak_reserved,
    }


def device_map_content(device_map: DeviceMapReport, say: Language) -> DeviceMapJSON:
    return {
        "devices": [
            {
                "device": placed.device,
                "capacity_bytes": placed.capacity_bytes,
                "modules": list(placed.modules),
                "weights_bytes": placed.weights,
                "buffers_bytes": placed.buffers,
            }
            for placed in device_map.devices
        ],
        "provenance": device_map.made_by,
        "assumptions": [say(message) for message in device_map.assumptions],
    }
