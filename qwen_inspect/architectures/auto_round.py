"""Reads the `quantization_config` of AutoRound."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MalformedError
from ..results.quantisation import Awq, Gptq, ModuleTest, Quantisation, Scheme, SchemeGroup
from ..typed import Any
from .pattern_syntax import ANYTHING
from .quantised_modules import is_literal, rule_tests, skipped_by
from .quantised_values import MOST_PATTERNS, read_bits, read_group_size, read_names, require_choice, require_few
from .reading import shown


def read_auto_round(declared: Mapping[str, Any]) -> Quantisation:
    """AutoRound packs like GPTQ (without g_idx) or like AWQ; a module with bits above 8 stays unquantised.

    Linear layers outside the blocks, such as the head, are quantised only if `extra_config` names them.
    Source: auto-round 0.16, inference/convert_model.py, get_layer_config and convert_hf_model; auto_round_extension/torch,
    qlinear_torch.QuantLinear
    """
    packing = (
        str(declared.get("packing_format", "auto_round:auto_gptq")).removeprefix("auto_round:").removeprefix("auto_")
    )
    require_choice("packing_format", packing, ("gptq", "awq", "auto"))
    require_choice("data_type", declared.get("data_type", "int"), ("int",))

    def scheme(part: Mapping[str, Any]) -> Scheme | None:
        if type(part.get("bits")) is int and part["bits"] > 8:
            return None
        size = read_group_size(part)
        if packing == "awq":
            return Awq(bits=read_bits(part, (4,)), group_size=size)
        return Gptq(bits=read_bits(part, (2, 3, 4, 8)), group_size=size, indexed=False)

    overrides = declared.get("extra_config") or {}
    if not isinstance(overrides, Mapping) or len(overrides) > MOST_PATTERNS:
        raise MalformedError("quantised_overrides", key="extra_config", found=shown(overrides))
    if not all(isinstance(part, Mapping) for part in overrides.values()):
        raise MalformedError("quantised_overrides", key="extra_config", found=shown(overrides))
    by_name = {name: scheme({**declared, **part}) for name, part in overrides.items() if part}
    named = {name: own for name, own in by_name.items() if is_literal(name)}
    patterns = {name: own for name, own in by_name.items() if name not in named}
    require_few(patterns, "extra_config")
    tests = rule_tests((([], [name]) for name in patterns), before=ANYTHING)
    groups = [SchemeGroup(takes=takes, scheme=own) for takes, own in zip(tests, patterns.values(), strict=True)]
    return Quantisation(
        method="auto-round",
        named=named,
        groups=(*groups, SchemeGroup(takes=_in_blocks(declared), scheme=scheme(declared))),
        skips=skipped_by(read_names(declared, "modules_to_not_convert")),
    )


def _in_blocks(declared: Mapping[str, Any]) -> ModuleTest:
    """A test for the blocks that AutoRound quantises: the named ones, else every numbered layer."""
    blocks = declared.get("block_name_to_quantize", declared.get("to_quant_block_names"))
    names = blocks.split(",") if isinstance(blocks, str) else blocks
    if names is None:
        return lambda module: any(part.isdecimal() for part in module.split("."))
    flat = (
        [name for part in names for name in (part if isinstance(part, list) else [part])]
        if isinstance(names, list)
        else []
    )
    if not flat or not all(isinstance(name, str) for name in flat):
        raise MalformedError("quantised_names", key="block_name_to_quantize", found=shown(blocks))
    starts = tuple(name.strip() for name in flat)
    return lambda module: module.startswith(starts)
