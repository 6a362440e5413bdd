"""Reads `quantization_config` into `Quantisation`, and holds the configuration of each scheme that --dtype names.

Source: transformers 5.23, utils/quantization_config.py and quantizers/; compressed-tensors 0.20, quantization/quant_args.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType
from ..declarations import KEY
from ..errors import MalformedError, UnsupportedError, UsageError
from ..results.quantisation import (
    Awq,
    Bnb4,
    BnbInt8,
    CompressedFp4,
    CompressedIntegers,
    CompressedNumbers,
    Fp8,
    Gptq,
    Mlx,
    ModelOptFp8,
    ModelOptNvfp4,
    ModuleTest,
    Mxfp4Experts,
    Quantisation,
    Scheme,
    SchemeGroup,
)
from .pattern_syntax import ANYTHING, Node, Position
from .patterns import first_match
from .reading import flag, integer, optional_integer, read_dtype, shown

FAMILY = "family of the model"  # carries model_type; no configuration has this key
HEAD, SHARED_GATE = "lm_head", "shared_expert_gate"
MOST_PATTERNS = 100_000
MOST_RULES = 1_000
LITERAL = re.compile(r"[\w.\-]+")
LAYER = re.compile(r"layers\\?\.\d+(?=\\?\.|\*|$)")
# No digits, sets, counted repeats or `+`; a dot alone stands for one character, so never two in a row: numbers differ in length.
ANY_EXPERT = re.compile(r"(?:\.\*|\\\.|\.(?![.*+?{()|])|[A-Za-z_:*?$^()|-]|(?<=[A-Za-z_])\d+)*")


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """The quantisation that `quantization_config` declares, None without that key.

    Raises UnsupportedError for an unknown method or layout, MalformedError for values without meaning.
    """
    declared = config.get(KEY)
    if declared is None:
        return None
    if not isinstance(declared, Mapping):
        raise MalformedError("quantised_not_object", found=shown(declared))
    method = declared.get("quant_method")
    if method is None and ("load_in_4bit" in declared or "load_in_8bit" in declared):
        method = "bitsandbytes"  # files older than transformers 4.34 do not name it
    if method == "intel/auto-round":
        method = "auto-round"  # written by its versions before 0.3
    if not isinstance(method, str) or method not in METHODS:
        raise UnsupportedError("quantised_unsupported", found=shown(method), known=", ".join(METHODS))
    # Errors show `model_type`: here, the method.
    quantisation = METHODS[method]({**declared, "model_type": method, FAMILY: config.get("model_type")})
    return replace(quantisation, experts_alike=all(map(_numbers_no_expert, _texts(declared))))


def _texts(value: object) -> Iterator[str]:
    """Every key and text of a declaration, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _numbers_no_expert(text: str) -> bool:
    """Whether a name or pattern holds for all of a layer's experts or for none, whatever their numbers."""
    return ANY_EXPERT.fullmatch(LAYER.sub("layers", text)) is not None


# --- one function per method -----------------------------------------------------------------------------------------


def _awq(declared: Mapping[str, Any]) -> Quantisation:
    """AutoAWQ's own quant_config.json has other keys for bits and group size. Source: vLLM 0.19, AWQConfig.from_config."""
    for key, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if key not in declared and old in declared:
            declared = {**declared, key: declared[old]}
    layout = declared.get("version", declared.get("format", "gemm"))
    _require("version", layout, ("gemm", "GEMM"))
    scheme = Awq(bits=_bits(declared, (4, 8)), group_size=_group_size(declared))
    return _single("awq", scheme, [HEAD, *_names(declared, "modules_to_not_convert")])


def _gptq(declared: Mapping[str, Any]) -> Quantisation:
    _require(
        "checkpoint_format", declared.get("checkpoint_format", declared.get("format", "gptq")), ("gptq", "gptq_v2")
    )
    _require("pack_dtype", declared.get("pack_dtype", "int32"), ("int32",))
    if declared.get("is_marlin_format"):
        raise UnsupportedError("quantised_option_unsupported", key="is_marlin_format", found="true", known="–")
    scheme = Gptq(bits=_bits(declared, GPTQ_BITS), group_size=_group_size(declared))
    skipped = [] if flag(declared, "lm_head", default=False) else [HEAD]
    # Of a decoder's linear layers only the shared expert's gate is left out. Source: GPTQModel, Qwen2MoeQModel.module_tree.
    skips = _skipped([*skipped, *_names(declared, "modules_to_not_convert"), SHARED_GATE])
    groups = (*_dynamic(declared), SchemeGroup(takes=_always, scheme=scheme))
    return Quantisation(method="gptq", groups=groups, skips=skips)


def _dynamic(declared: Mapping[str, Any]) -> Iterator[SchemeGroup]:
    """GPTQModel's rules by module; the first match wins. "-:" excludes the module, others change its bits.

    A plain name means that module; anything else is a regular expression matched from the name's start.
    Source: GPTQModel 7.7, quantization/config.py, _resolve_dynamic_override
    """
    rules = declared.get("dynamic") or {}
    if not isinstance(rules, Mapping):
        raise MalformedError("quantised_overrides", key="dynamic", found=shown(rules))
    _few(rules, "dynamic")
    names = [rule[2:] if rule[:2] in ("-:", "+:") else rule for rule in rules]
    tests = _rules(([name], []) if LITERAL.fullmatch(name) else ([], [name]) for name in names)
    for (rule, changes), takes in zip(rules.items(), tests, strict=True):
        if rule.startswith("-:"):
            yield SchemeGroup(takes=takes, scheme=None)
            continue
        if not isinstance(changes, Mapping):
            raise MalformedError("quantised_overrides", key="dynamic", found=shown(changes))
        own = {**declared, **changes}
        yield SchemeGroup(takes=takes, scheme=Gptq(bits=_bits(own, GPTQ_BITS), group_size=_group_size(own)))


def _auto_round(declared: Mapping[str, Any]) -> Quantisation:
    """AutoRound packs like GPTQ (without g_idx) or like AWQ; a module with bits above 8 stays unquantised.

    Linear layers outside the blocks, such as the head, are quantised only if `extra_config` names them.
    Source: auto-round 0.16, inference/convert_model.py, get_layer_config and convert_hf_model; auto_round_extension/torch,
    qlinear_torch.QuantLinear
    """
    packing = (
        str(declared.get("packing_format", "auto_round:auto_gptq")).removeprefix("auto_round:").removeprefix("auto_")
    )
    _require("packing_format", packing, ("gptq", "awq", "auto"))
    _require("data_type", declared.get("data_type", "int"), ("int",))

    def scheme(part: Mapping[str, Any]) -> Scheme | None:
        if type(part.get("bits")) is int and part["bits"] > 8:
            return None
        size = _group_size(part)
        if packing == "awq":
            return Awq(bits=_bits(part, (4,)), group_size=size)
        return Gptq(bits=_bits(part, (2, 3, 4, 8)), group_size=size, indexed=False)

    overrides = declared.get("extra_config") or {}
    if not isinstance(overrides, Mapping) or len(overrides) > MOST_PATTERNS:
        raise MalformedError("quantised_overrides", key="extra_config", found=shown(overrides))
    if not all(isinstance(part, Mapping) for part in overrides.values()):
        raise MalformedError("quantised_overrides", key="extra_config", found=shown(overrides))
    by_name = {name: scheme({**declared, **part}) for name, part in overrides.items() if part}
    named = {name: own for name, own in by_name.items() if LITERAL.fullmatch(name)}
    patterns = {name: own for name, own in by_name.items() if name not in named}
    _few(patterns, "extra_config")
    tests = _rules((([], [name]) for name in patterns), before=ANYTHING)
    groups = [SchemeGroup(takes=takes, scheme=own) for takes, own in zip(tests, patterns.values(), strict=True)]
    return Quantisation(
        method="auto-round",
        named=named,
        groups=(*groups, SchemeGroup(takes=_in_blocks(declared), scheme=scheme(declared))),
        skips=_skipped(_names(declared, "modules_to_not_convert")),
    )


def _few(rules: Mapping[str, Any], key: str) -> None:
    """Raises UnsupportedError for more than MOST_RULES rules, each of which is matched with each module."""
    if len(rules) > MOST_RULES:
        raise UnsupportedError("quantised_rules", key=key, found=len(rules), most=MOST_RULES)


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


def _mlx(declared: Mapping[str, Any]) -> Quantisation:
    """mlx-lm quantises linear layers, embeddings and routers; layers with other settings are listed by name.

    Source: mlx-lm 0.32, utils.quantize_model and load_model
    """

    def scheme(part: Mapping[str, Any]) -> Scheme:
        mode = part.get("mode", "affine")
        _require("mode", mode, tuple(MLX_DEFAULTS))
        size, bits = MLX_DEFAULTS[mode]
        part = {"model_type": "mlx", "group_size": size, "bits": bits, **part}
        chosen = integer(part, "group_size", at_most=1 << 16)
        return Mlx(bits=_bits(part, (2, 3, 4, 5, 6, 8)), group_size=chosen, mode=mode)

    own: dict[str, Scheme | None] = {}
    for name, part in declared.items():
        if isinstance(part, Mapping):
            own[name] = scheme(part)
        elif part is False:
            own[name] = None
    return Quantisation(
        method="mlx",
        named=own,
        groups=(SchemeGroup(takes=_always, scheme=scheme(declared)),),
        skips=_skipped([]),
        every_matrix=True,
    )


def _fp8(declared: Mapping[str, Any]) -> Quantisation:
    _require("fmt", declared.get("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    # scale_fmt is how scales are rounded; their stored dtype follows from the files or the family.
    _require("scale_fmt", declared.get("scale_fmt") or "float", ("float", "ue8m0"))
    activation = declared.get("activation_scheme", "dynamic")
    _require("activation_scheme", activation, ("dynamic", "static"))
    block = declared.get("weight_block_size", (128, 128))
    if block is not None and not _is_block(block):
        raise MalformedError("quantised_block", found=shown(block))
    scheme = Fp8(
        block=None if block is None else (block[0], block[1]),
        scale_dtype=_fp8_scale_dtype(declared, block),
        static_inputs=activation == "static",
    )
    return _single("fp8", scheme, [HEAD, *_names(declared, "modules_to_not_convert")])


def _fp8_scale_dtype(declared: Mapping[str, Any], block: object) -> DType:
    """The stored dtype of the scales, for a model without files.

    Source: README_WEIGHTS.md of DeepSeek-V3; the published bytes of Qwen3-0.6B-FP8 for others in blocks; transformers 5.23,
    integrations/finegrained_fp8.py, for exponents of 8 bits (ue8m0)
    """
    if block is None or str(declared[FAMILY]).startswith("deepseek"):
        return DType.F32
    return DType.F8_E8M0 if declared.get("scale_fmt") == "ue8m0" else DType.BF16


def _bitsandbytes(declared: Mapping[str, Any]) -> Quantisation:
    four, eight = flag(declared, "load_in_4bit", default=False), flag(declared, "load_in_8bit", default=False)
    if four == eight:
        raise MalformedError("quantised_bnb_bits")
    scheme: Scheme = BnbInt8()
    if four:
        kind = declared.get("bnb_4bit_quant_type", "fp4")
        _require("bnb_4bit_quant_type", kind, ("nf4", "fp4"))
        storage = declared.get("bnb_4bit_quant_storage") or "uint8"
        _require("bnb_4bit_quant_storage", storage, ("uint8", "int8", "float16", "bfloat16", "float32"))
        double = flag(declared, "bnb_4bit_use_double_quant", default=False)
        scheme = Bnb4(kind=kind, double=double, storage=DTYPE_OF_TORCH_NAME[storage])
    skipped = declared.get("llm_int8_skip_modules")
    # Source: HfQuantizer.get_modules_to_not_convert: the head is skipped only without such a list.
    names = [HEAD] if skipped is None else _names(declared, "llm_int8_skip_modules")
    return _single("bitsandbytes", scheme, names)


def _mxfp4(declared: Mapping[str, Any]) -> Quantisation:
    return _single("mxfp4", Mxfp4Experts(), _names(declared, "modules_to_not_convert"))


def _modelopt(declared: Mapping[str, Any]) -> Quantisation:
    """Source: NVIDIA ModelOpt 0.33, export/convert_hf_config.py: `quant_algo` and `ignore` beside config_groups."""
    inner = declared.get("quantization", declared)
    if not isinstance(inner, Mapping):
        raise MalformedError("quantised_not_object", found=shown(inner))
    _require("quant_algo", inner.get("quant_algo"), tuple(MODELOPT))
    names = [*_names(inner, "ignore"), *_names(inner, "exclude_modules")]
    # Wildcards as in fnmatch: `model.layers.0*` matches any continuation.
    patterns = ["re:" + re.escape(name).replace(r"\*", ".*") + "$" if "*" in name else name for name in names]
    return _single("modelopt", MODELOPT[str(inner["quant_algo"])], patterns)


def _compressed_tensors(declared: Mapping[str, Any]) -> Quantisation:
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
    _few(groups, "config_groups")
    schemes = [_compressed_scheme(group, declared.get("format")) for group in groups.values()]
    targets_by_group = [_names(group, "targets") for group in groups.values()]
    tests = _rules(_anchored(targets) for targets in targets_by_group)
    (skips,) = _rules([_anchored(_names(declared, "ignore"))])
    return Quantisation(
        method="compressed-tensors",
        groups=tuple(
            SchemeGroup(takes=_always if "Linear" in targets else takes, scheme=scheme)  # a class: every linear module
            for targets, takes, scheme in zip(targets_by_group, tests, schemes, strict=True)
        ),
        skips=skips,
    )


def _compressed_scheme(group: Mapping[str, Any], shared_format: object) -> Scheme:
    layout = group.get("format") or shared_format
    _require("format", layout, tuple(COMPRESSED))
    weights, inputs = group.get("weights"), group.get("input_activations") or {}
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping):
        raise MalformedError("quantised_groups", found=shown(weights))
    static = bool(inputs) and inputs.get("dynamic", False) is not True
    weights = {**weights, "model_type": "compressed-tensors"}
    return COMPRESSED[str(layout)](weights, static)


def _compressed_integers(weights: Mapping[str, Any], static: bool) -> Scheme:
    ordered = weights.get("actorder")
    _require("actorder", ordered, (None, False, True, "group", "weight", "static", "dynamic"))
    return CompressedIntegers(
        bits=_bits(weights, (2, 3, 4, 5, 6, 7, 8), key="num_bits"),
        group_size=_group_size(weights) if weights.get("strategy", "group") == "group" else None,
        symmetric=flag(weights, "symmetric", default=True),
        ordered=ordered in (True, "group", "dynamic"),
    )


def _compressed_numbers(weights: Mapping[str, Any], static: bool) -> Scheme:
    kind, strategy = weights.get("type", "int"), weights.get("strategy", "tensor")
    _require("type", kind, ("int", "float"))
    scaled = _scaled(weights, strategy)
    # With quantised inputs, even four-bit integers take a byte each.
    _bits(weights, (8,) if kind == "float" else (2, 3, 4, 5, 6, 7, 8), key="num_bits")
    return CompressedNumbers(
        dtype=DType.F8_E4M3 if kind == "float" else DType.I8,
        scaled=scaled,
        scale_dtype=_scale_dtype(weights),
        symmetric=flag(weights, "symmetric", default=True),
        static_inputs=static,
    )


def _scaled(weights: Mapping[str, Any], strategy: object) -> tuple[int | None, int | None]:
    _require("strategy", strategy, ("tensor", "channel", "group", "block"))
    if strategy == "block":
        block = weights.get("block_structure")
        if not _is_block(block):
            raise MalformedError("quantised_block", found=shown(block))
        return int(block[0]), int(block[1])  # type: ignore[index]
    if strategy == "group":
        return 1, _group_size(weights)
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


GPTQ_BITS = (2, 3, 4, 8)
MODELOPT: Mapping[str, Scheme] = {"NVFP4": ModelOptNvfp4(), "FP8": ModelOptFp8()}
# Default (group size, bits) of each mode. Source: mlx-lm 0.32, utils.quantize_model
MLX_DEFAULTS: Mapping[str, tuple[int, int]] = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
COMPRESSED: Mapping[str, Callable[[Mapping[str, Any], bool], Scheme]] = {
    "pack-quantized": _compressed_integers,
    "int-quantized": _compressed_numbers,
    "float-quantized": _compressed_numbers,
    "naive-quantized": _compressed_numbers,
    "mxfp8-quantized": _compressed_numbers,
    "nvfp4-pack-quantized": _compressed_fp4,
    "mxfp4-pack-quantized": _compressed_fp4,
}
METHODS: Mapping[str, Callable[[Mapping[str, Any]], Quantisation]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "auto-round": _auto_round,
    "mlx": _mlx,
}


# --- values --------------------------------------------------------------------------------------------------------


def _require(key: str, value: object, choices: Sequence[object]) -> None:
    """Raises UnsupportedError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise UnsupportedError("quantised_option_unsupported", key=key, found=shown(value), known=names)


def _bits(declared: Mapping[str, Any], choices: tuple[int, ...], *, key: str = "bits") -> int:
    bits = integer(declared, key, at_most=64)
    _require(key, bits, choices)
    return bits


def _group_size(declared: Mapping[str, Any]) -> int | None:
    """`group_size`; None for -1 or null: all input features share a group."""
    if declared.get("group_size") == -1:
        return None
    return optional_integer(declared, "group_size", at_least=1)


def _scale_dtype(weights: Mapping[str, Any]) -> DType | None:
    name = weights.get("scale_dtype")
    if name is None:
        return None
    choices = ("torch.uint8", "torch.float8_e4m3fn", "torch.bfloat16", "torch.float16", "torch.float32")
    _require("scale_dtype", name, choices)
    return DTYPE_OF_TORCH_NAME[str(name).removeprefix("torch.")]


def _is_block(block: object) -> bool:
    return (
        isinstance(block, Sequence)
        and len(block) == 2
        and all(type(side) is int and 0 < side < 1 << 20 for side in block)
    )


# --- which modules -------------------------------------------------------------------------------------------------


def _single(method: str, scheme: Scheme, skipped: Sequence[str]) -> Quantisation:
    return Quantisation(method=method, groups=(SchemeGroup(takes=_always, scheme=scheme),), skips=_skipped(skipped))


def _always(module: str) -> bool:
    return True


def _names(declared: Mapping[str, Any], key: str) -> list[str]:
    names = declared.get(key)
    if names is None:
        return []
    if not isinstance(names, list) or len(names) > MOST_PATTERNS or not all(isinstance(name, str) for name in names):
        raise MalformedError("quantised_names", key=key, found=shown(names))
    return names


def _skipped(names: Sequence[str]) -> ModuleTest:
    """A test for skipped modules by transformers' rule.

    A name or pattern must match from the start of a module's name up to a dot or the end, or a name must be its end.

    Source: transformers 5.23, quantizers_utils.should_convert_module.
    """
    named = frozenset(name for name in names if LITERAL.fullmatch(name))
    ends = tuple(named)
    patterns = [name.removeprefix("re:") for name in names if name not in named]
    first = first_match(patterns, after=Position("module edge"))

    def test(module: str) -> bool:
        return module.endswith(ends) or not named.isdisjoint(_ancestors(module)) or first(module) is not None

    return test


def _anchored(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names, patterns) by compressed-tensors' rule: the whole name, or a pattern after "re:" matched from its start.

    Source: compressed-tensors 0.20, utils/match.py, match_name.
    """
    plain = [name for name in names if not name.startswith("re:")]
    return plain, [name.removeprefix("re:") for name in names if name.startswith("re:")]


def _rules(rules: Iterable[tuple[Sequence[str], Sequence[str]]], *, before: Node | None = None) -> list[ModuleTest]:
    """A test for each rule of (names, patterns); where several take a module, only the first one's is sure to be true.

    The patterns of all rules are matched at once, each from a name's start, after `before`.
    """
    named: list[frozenset[str]] = []
    owners: list[int] = []
    patterns: list[str] = []
    for number, (names, own_patterns) in enumerate(rules):
        named.append(frozenset(names))
        patterns += own_patterns
        owners += [number] * len(own_patterns)
    first = lru_cache(maxsize=4)(first_match(patterns, before=before))

    def test(number: int) -> ModuleTest:
        def takes(module: str) -> bool:
            index = first(module)
            return module in named[number] or (index is not None and owners[index] == number)

        return takes

    return [test(number) for number in range(len(named))]


def _ancestors(module: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


# --- schemes by name ------------------------------------------------------------------------------------------------

DEFAULT_GROUP_SIZE = 128
# Unquantised in Qwen's own releases: the shared expert's gate, the vision tower, linear attention's step and decay.
# Source: layout of Qwen3.6-35B-A3B-FP8; its published bytes follow from it.
UNQUANTISED = [SHARED_GATE, "model.visual", "in_proj_a", "in_proj_b", "in_proj_ba"]
# Values of `--dtype` besides torch's dtypes. A "group_size" of None is filled in.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "awq-int4": {"quant_method": "awq", "bits": 4, "group_size": None, "modules_to_not_convert": UNQUANTISED},
    "gptq-int4": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": None,
        "sym": True,
        "modules_to_not_convert": UNQUANTISED,
    },
    "gptq-int8": {
        "quant_method": "gptq",
        "bits": 8,
        "group_size": None,
        "sym": True,
        "modules_to_not_convert": UNQUANTISED,
    },
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": UNQUANTISED},
    "bnb-int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bnb-nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bnb-fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bnb-nf4-double": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [HEAD, *UNQUANTISED]},
}


# Unquantised in Qwen's own GPTQ releases of hybrids: all attention, linear or not, and the shared expert.
# Source: quantization_config of Qwen3.5-35B-A3B-GPTQ-Int4
GPTQ_HYBRID: Mapping[str, Any] = {
    "lm_head": {},
    "model.language_model.embed_tokens": {},
    "-:.*attn.*": {},
    "-:.*shared_expert.*": {},
    "-:.*mtp.*": {},
    "-:.*visual.*": {},
}


def preset(name: str, group_size: int | None, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `quantization_config` of the scheme `name` (a key of PRESETS) for the model of `config`, as Qwen would publish it.

    UsageError for a `group_size` if the scheme's groups have a fixed size.
    """
    chosen = dict(PRESETS[name])
    if chosen["quant_method"] == "gptq" and str(config.get("model_type")).startswith("qwen3_5"):
        chosen = {
            **{key: value for key, value in chosen.items() if key != "modules_to_not_convert"},
            "dynamic": GPTQ_HYBRID,
        }
    if chosen.get("load_in_4bit"):
        # The usual choice, the model's dtype; BitsAndBytesConfig's default is float32.
        chosen["bnb_4bit_compute_dtype"] = read_dtype(config).torch_name
    if "group_size" in chosen:
        chosen["group_size"] = group_size or DEFAULT_GROUP_SIZE
    elif group_size is not None:
        raise UsageError("group_size_fixed", scheme=name)
    return chosen
