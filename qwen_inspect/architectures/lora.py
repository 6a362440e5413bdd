"""Reads adapter_config.json into `Lora`. Source: PEFT 0.21, LoraConfig and tuners_utils.check_target_module_exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import MalformedError, UnsupportedError
from ..results.lora import Lora
from ..results.memory import DEFAULT_ALPHA
from ..standard import re
from ..typed import Any
from .pattern_syntax import parse
from .patterns import first_match, fullmatch
from .reading import flag, integer, number, shown

MOST_NAMES = 100_000
HIGHEST_RANK = 1 << 20
PARENTS = parse(r"(.*\.)?")
LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
# Options that add or change tensors in ways not modelled here.
UNKNOWN_OPTIONS = (
    "layer_replication",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "ensure_weight_tying",
)


def read_lora(config: Mapping[str, Any]) -> Lora:
    """The LoRA that an adapter's configuration describes. UnsupportedError for other adapter types and unmodelled options."""
    if config.get("peft_type") != "LORA":
        raise UnsupportedError("adapter_kind", found=shown(config.get("peft_type")))
    config = {**config, "model_type": "adapter_config.json"}
    for key in UNKNOWN_OPTIONS:
        if config.get(key):
            raise UnsupportedError("adapter_option", key=key, found=shown(config[key]))
    rank = integer(config, "r", at_most=HIGHEST_RANK)
    bias = config.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        raise UnsupportedError("adapter_option", key="bias", found=shown(bias))
    alpha = number(config, "lora_alpha", default=DEFAULT_ALPHA)
    ranks = _by_pattern(config, "rank_pattern")
    for key in ranks:
        integer(ranks, key, at_most=HIGHEST_RANK)
    copied = tuple(_names(config, "modules_to_save"))
    return Lora(
        takes=_target_test(config, copied),
        takes_parameter=_ending_in(_names(config, "target_parameters")),
        copies=lambda module: bool(copied) and module.endswith(copied),
        rank_of=_value_of(ranks, rank),
        alpha_of=_value_of(_by_pattern(config, "alpha_pattern"), alpha),
        bias=bias,
        dora=flag(config, "use_dora", default=False),
        matrix_bias=flag(config, "lora_bias", default=False),
        rank_stabilised=flag(config, "use_rslora", default=False),
    )


def _names(config: Mapping[str, Any], key: str) -> list[str]:
    names = config.get(key)
    if names is None:
        return []
    if not isinstance(names, list) or len(names) > MOST_NAMES or not all(isinstance(name, str) for name in names):
        raise MalformedError("adapter_names", key=key, found=shown(names))
    return names


def _by_pattern(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value_by_pattern = config.get(key) or {}
    if not isinstance(value_by_pattern, dict) or len(value_by_pattern) > MOST_NAMES:
        raise MalformedError("adapter_names", key=key, found=shown(value_by_pattern))
    for name in value_by_pattern:
        number(value_by_pattern, name, default=0)
    return value_by_pattern


def _value_of(by_pattern: Mapping[str, Any], default: Any) -> Callable[[str], Any]:
    """Maps a module's name to the value of the first pattern matching its end. Source: PEFT 0.21, other.get_pattern_key."""
    first = first_match(by_pattern, before=PARENTS, after=parse("$"))
    values = list(by_pattern.values())
    return lambda module: default if (index := first(module)) is None else values[index]


def _target_test(config: Mapping[str, Any], copied: tuple[str, ...]) -> Callable[[str], bool]:
    """A test for `target_modules`: a pattern matches a module's whole name, a listed name its end."""
    excluded = _named(config, "exclude_modules")
    named = _named(config, "target_modules")
    if config.get("target_modules") is None and not config.get("target_parameters"):
        raise MalformedError("adapter_names", key="target_modules", found="null")
    layers = config.get("layers_to_transform")
    by_layer = _layer_test(config, layers) if layers not in (None, []) else None
    if isinstance(config["target_modules"], str):
        by_layer = None  # PEFT reads layers_to_transform only with a list of names

    def test(module: str) -> bool:
        if excluded(module) or any(f".{name}." in f".{module}." for name in copied):
            return False
        return named(module) and (by_layer is None or by_layer(module))

    return test


def _named(config: Mapping[str, Any], key: str) -> Callable[[str], bool]:
    value = config.get(key)
    if isinstance(value, str):
        if value == "all-linear":
            raise UnsupportedError("adapter_option", key=key, found=value)  # PEFT saves the resolved names instead
        return fullmatch(value)
    return _ending_in(_names(config, key))


def _ending_in(names: Sequence[str]) -> Callable[[str], bool]:
    whole, ends = frozenset(names), tuple(f".{name}" for name in names)
    return lambda name: name in whole or (bool(ends) and name.endswith(ends))


def _layer_test(config: Mapping[str, Any], layers: object) -> Callable[[str], bool]:
    wanted = layers if isinstance(layers, list) else [layers]
    if not all(type(layer) is int for layer in wanted):
        raise MalformedError("adapter_names", key="layers_to_transform", found=shown(layers))
    if config.get("layers_pattern"):
        raise UnsupportedError("adapter_option", key="layers_pattern", found=shown(config["layers_pattern"]))

    def test(module: str) -> bool:
        match = LAYER.match(module)
        return match is not None and int(match[1]) in wanted

    return test
