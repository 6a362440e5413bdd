"""Whether vLLM keeps layers of several kinds in groups ("hybrid KV cache manager"), unless a KV connector has none.

Source: config/vllm.py of 0.9.1 to 0.33.0 (disable_hybrid_kv_cache_manager); distributed/kv_transfer/kv_connector, subclasses of
SupportsHMA and MultiConnector.all_children_support_hma.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...errors import UnsupportedError, UsageError
from ...typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...results.serving import VllmEnvironment
    from .blocks import BlockPool
    from .releases import Release

NEVER_BEFORE, BY_CLASS = (0, 13), (0, 22)  # no choice before; from then on the connector's class decides
EVENTS_OFF, EVENTS_ON = (
    (0, 18),
    (0, 20),
)  # last version whose events turn groups off, first whose do not; between: not read
# The first version whose class of this name keeps groups; for NOT_READ, the version before was not read.
SINCE = {
    "NixlConnector": (0, 18),
    **dict.fromkeys(("MooncakeConnector", "SimpleCPUOffloadConnector"), (0, 20)),
    **dict.fromkeys(("DecodeBenchConnector", "MultiConnector", "OffloadingConnector"), (0, 21)),
    **dict.fromkeys(
        ("ExampleHiddenStatesConnector", "MooncakeStoreConnector", "NixlPullConnector", "NixlPushConnector"), (0, 22)
    ),
    "MoRIIOConnector": (0, 30),
    "HiSparseConnector": (0, 31),
}
NOT_READ = (0, 19)
WITHOUT_GROUPS = ("ExampleConnector", "FlexKVConnectorV1", "HF3FSKVConnector", "LMCacheConnectorV1", "P2pNcclConnector")


def parse_transfer(option: str, value: str) -> dict[str, Any]:
    """The object of --kv-transfer-config; raises UsageError for what is none."""
    try:
        config = json.loads(value)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UsageError("vllm_connector_config", option=option, found=value[:80])
    return config


def connectors_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The connectors of --kv-transfer-config, each of several's; raises UsageError for a configuration without one."""
    if config.get("kv_connector") != "MultiConnector":
        return (_name(config),)
    extra = config.get("kv_connector_extra_config")
    children = extra.get("connectors") if isinstance(extra, dict) else None
    if not isinstance(children, list) or not children or not all(isinstance(child, dict) for child in children):
        raise UsageError("vllm_connector_config", option="--kv-transfer-config", found=json.dumps(dict(config))[:80])
    return "MultiConnector", *(_name(child) for child in children)


def _name(config: Mapping[str, Any]) -> str:
    """A connector's class, with its module where it is not vLLM's own."""
    module, name = config.get("kv_connector_module_path"), config.get("kv_connector")
    if not isinstance(name, str) or not name:
        raise UsageError("vllm_connector_config", option="--kv-transfer-config", found=json.dumps(dict(config))[:80])
    return f"{str(module)[:80]}.{name[:80]}" if module else name[:80]


def keeps_groups(version: tuple[int, int], environment: VllmEnvironment) -> bool | None:
    """None: not known, of a connector whose class is not."""
    if environment.windows is False or (environment.events and version <= EVENTS_OFF):
        return False
    if environment.events and version < EVENTS_ON:
        return None
    if not environment.connectors:
        return True
    if version < BY_CLASS or environment.windows:
        return bool(environment.windows) and version >= NEVER_BEFORE
    kept = [_supports(name, version) for name in environment.connectors]
    return False if False in kept else None if None in kept else True


def _supports(name: str, version: tuple[int, int]) -> bool | None:
    if name in SINCE:
        return None if version == NOT_READ and SINCE[name] == (0, 20) else version >= SINCE[name]
    return False if name in WITHOUT_GROUPS else None


def check_connectors(release: Release, environment: VllmEnvironment) -> None:
    """Raises UnsupportedError for --no-disable-hybrid-kv-cache-manager with a connector that has none, as vLLM does at its start.

    Source: distributed/kv_transfer/kv_connector/factory.py, create_connector of 0.13 to 0.33.
    """
    if not environment.windows or release.version < NEVER_BEFORE:
        return
    without = [name for name in environment.connectors if _supports(name, release.version) is False]
    if without:
        raise UnsupportedError("vllm_connector_refused", found=", ".join(without), version=release.name)


def check_groups(pool: BlockPool, release: Release, environment: VllmEnvironment) -> None:
    """Raises UnsupportedError for layers of several kinds where groups are off and vLLM refuses them, or where that is not known.

    pool: with all groups. Layers with windows hold every token then; states beside attention make vLLM stop at its start.
    Source: v1/core/kv_cache_utils.py, unify_hybrid_kv_cache_specs.
    """
    states = {not group.shape for group in pool.groups}
    if len(states) == 1 and len({group.window_tokens for group in pool.groups}) == 1:
        return
    kept = keeps_groups(release.version, environment)
    if kept is None:
        found = ", ".join(environment.connectors) or "--kv-events-config"
        raise UnsupportedError("vllm_connector", found=found, version=release.name)
    if not kept and len(states) > 1:
        raise UnsupportedError("vllm_groups_off")
