"""Reads the `quantization_config` of compressed-tensors.

Source: compressed-tensors 0.20, quantization/quant_args.py and utils/match.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType
from ..errors import MalformedError, UnsupportedError
from ..results.quantisation import (
    CompressedFp4,
    CompressedIntegers,
    CompressedNumbers,
    Quantisation,
    Scheme,
    SchemeGroup,
)
from ..typed import Any
from .quantised_modules import every_module, rule_tests
from .quantised_values import is_block, read_bits, read_group_size, read_names, require_choice, require_few
from .reading import flag, integer, shown


def read_compressed_tensors(declared: Mapping[str, Any]) -> Quantisation:
    for key in ("sparsity_config", "transform_config"):
        if declared.get(key) and declared[key] != {"format": "dense"}:
            raise UnsupportedError("quantised_option_unsupported", key=key, found=shown(declared[key]), known="–")
    groups = declared.get("config_groups")
    if (
        not isinstance(groups, Mapping)
        or not groups
        or not all(isinstance(group, Mapping) for group in groups.values())
    ):
        raise MalformedError("quantised_groups", found=shown(groups))
    require_few(groups, "config_groups")
    schemes = [_compressed_scheme(group, declared.get("format")) for group in groups.values()]
    targets_by_group = [read_names(group, "targets") for group in groups.values()]
    tests = rule_tests(_anchored(targets) for targets in targets_by_group)
    (skips,) = rule_tests([_anchored(read_names(declared, "ignore"))])
    return Quantisation(
        method="compressed-tensors",
        groups=tuple(
            SchemeGroup(
                takes=every_module if "Linear" in targets else takes, scheme=scheme
            )  # a class: every linear module
            for targets, takes, scheme in zip(targets_by_group, tests, schemes, strict=True)
        ),
        skips=skips,
    )


def _compressed_scheme(group: Mapping[str, Any], shared_format: object) -> Scheme:
    layout = group.get("format") or shared_format
    require_choice("format", layout, tuple(COMPRESSED))
    weights, inputs = group.get("weights"), group.get("input_activations") or {}
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping):
        raise MalformedError("quantised_groups", found=shown(weights))
    static = bool(inputs) and inputs.get("dynamic", False) is not True
    weights = {**weights, "model_type": "compressed-tensors"}
    return COMPRESSED[str(layout)](weights, static)


def _compressed_integers(weights: Mapping[str, Any], static: bool) -> Scheme:
    ordered = weights.get("actorder")
    require_choice("actorder", ordered, (None, False, True, "group", "weight", "static", "dynamic"))
    return CompressedIntegers(
        bits=read_bits(weights, (2, 3, 4, 5, 6, 7, 8), key="num_bits"),
        group_size=read_group_size(weights) if weights.get("strategy", "group") == "group" else None,
        symmetric=flag(weights, "symmetric", default=True),
        ordered=ordered in (True, "group", "dynamic"),
    )


def _compressed_numbers(weights: Mapping[str, Any], static: bool) -> Scheme:
    kind, strategy = weights.get("type", "int"), weights.get("strategy", "tensor")
    require_choice("type", kind, ("int", "float"))
    scaled = _scaled(weights, strategy)
    # With quantised inputs, even four-bit integers take a byte each.
    read_bits(weights, (8,) if kind == "float" else (2, 3, 4, 5, 6, 7, 8), key="num_bits")
    return CompressedNumbers(
        dtype=DType.F8_E4M3 if kind == "float" else DType.I8,
        scaled=scaled,
        scale_dtype=_scale_dtype(weights),
        symmetric=flag(weights, "symmetric", default=True),
        static_inputs=static,
    )


def _scaled(weights: Mapping[str, Any], strategy: object) -> tuple[int | None, int | None]:
    require_choice("strategy", strategy, ("tensor", "channel", "group", "block"))
    if strategy == "block":
        block = weights.get("block_structure")
        if not is_block(block):
            raise MalformedError("quantised_block", found=shown(block))
        return int(block[0]), int(block[1])  # type: ignore[index]
    if strategy == "group":
        return 1, read_group_size(weights)
    return (1 if strategy == "channel" else None), None


def _compressed_fp4(weights: Mapping[str, Any], static: bool) -> Scheme:
    group = integer(weights, "group_size", at_least=2, at_most=1 << 16)
    two_level = weights.get("strategy") == "tensor_group"
    return CompressedFp4(
        group_size=group,
        scale_dtype=_scale_dtype(weights) or (DType.F8_E4M3 if two_level else DType.U8),
        two_level=two_level,
        static_inputs=static,
    )


COMPRESSED: Mapping[str, Callable[[Mapping[str, Any], bool], Scheme]] = {
    "pack-quantized": _compressed_integers,
    "int-quantized": _compressed_numbers,
    "float-quantized": _compressed_numbers,
    "naive-quantized": _compressed_numbers,
    "mxfp8-quantized": _compressed_numbers,
    "nvfp4-pack-quantized": _compressed_fp4,
    "mxfp4-pack-quantized": _compressed_fp4,
}


def _scale_dtype(weights: Mapping[str, Any]) -> DType | None:
    name = weights.get("scale_dtype")
    if name is None:
        return None
    choices = ("torch.uint8", "torch.float8_e4m3fn", "torch.bfloat16", "torch.float16", "torch.float32")
    require_choice("scale_dtype", name, choices)
    return DTYPE_OF_TORCH_NAME[str(name).removeprefix("torch.")]


def _anchored(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names, patterns) by compressed-tensors' rule: the whole name, or a pattern after "re:" matched from its start.

    Source: compressed-tensors 0.20, utils/match.py, match_name.
    """
    plain = [name for name in names if not name.startswith("re:")]
    return plain, [name.removeprefix("re:") for name in names if name.startswith("re:")]
