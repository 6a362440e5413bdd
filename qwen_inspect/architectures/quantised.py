"""Reads `quantization_config` into `Quantisation`.

Source: transformers 5.23, utils/quantization_config.py and quantizers/; compressed-tensors 0.20, quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..checkpoint import DTYPE_OF_TORCH_NAME, DType
from ..declarations import KEY
from ..errors import MalformedError, UnsupportedError
from ..results.quantisation import (
    Awq,
    Bnb4,
    BnbInt8,
    Fp8,
    Gptq,
    Mlx,
    ModelOptFp8,
    ModelOptNvfp4,
    Mxfp4Experts,
    Quantisation,
    Scheme,
    SchemeGroup,
)
from ..standard import compiled, re
from ..typed import Any
from ..values import replace
from .quantised_modules import HEAD, SHARED_GATE, every_module, is_literal, rule_tests, skipped_by
from .quantised_values import is_block, read_bits, read_group_size, read_names, require_choice, require_few
from .reading import flag, integer, shown

FAMILY = "family of the model"  # carries model_type; no configuration has this key

LAYER = compiled(r"layers\\?\.\d+(?=\\?\.|\*|$)")

# No digits, sets, counted repeats or `+`; a dot alone stands for one character, so never two in a row: numbers differ in length.
PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_:*?$^()|-.")  # of ANY_EXPERT without digits
ANY_EXPERT = compiled(r"(?:\.\*|\\\.|\.(?![.*+?{()|])|[A-Za-z_:*?$^()|-]|(?<=[A-Za-z_])\d+)*")


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
    if text.isidentifier() and text.isascii():
        return True
    plain = text.replace("\\.", "-")
    if PLAIN.issuperset(plain):
        *parts, last = plain.split(".")[1:] or [""]
        return all(part and part[0] not in "?()|" for part in parts) and last[:1] not in ("?", "(", ")", "|")
    return ANY_EXPERT.fullmatch(LAYER.sub("layers", text)) is not None


def _awq(declared: Mapping[str, Any]) -> Quantisation:
    """AutoAWQ's own quant_config.json has other keys for bits and group size. Source: vLLM 0.19, AWQConfig.from_config."""
    for key, old in (("bits", "w_bit"), ("group_size", "q_group_size")):
        if key not in declared and old in declared:
            declared = {**declared, key: declared[old]}
    layout = declared.get("version", declared.get("format", "gemm"))
    require_choice("version", layout, ("gemm", "GEMM"))
    scheme = Awq(bits=read_bits(declared, (4, 8)), group_size=read_group_size(declared))
    return _single("awq", scheme, [HEAD, *read_names(declared, "modules_to_not_convert")])


def _gptq(declared: Mapping[str, Any]) -> Quantisation:
    require_choice(
        "checkpoint_format", declared.get("checkpoint_format", declared.get("format", "gptq")), ("gptq", "gptq_v2")
    )
    require_choice("pack_dtype", declared.get("pack_dtype", "int32"), ("int32",))
    if declared.get("is_marlin_format"):
        raise UnsupportedError("quantised_option_unsupported", key="is_marlin_format", found="true", known="–")
    scheme = Gptq(bits=read_bits(declared, GPTQ_BITS), group_size=read_group_size(declared))
    skipped = [] if flag(declared, "lm_head", default=False) else [HEAD]
    # Of a decoder's linear layers only the shared expert's gate is left out. Source: GPTQModel, Qwen2MoeQModel.module_tree.
    skips = skipped_by([*skipped, *read_names(declared, "modules_to_not_convert"), SHARED_GATE])
    groups = (*_dynamic(declared), SchemeGroup(takes=every_module, scheme=scheme))
    return Quantisation(method="gptq", groups=groups, skips=skips)


def _dynamic(declared: Mapping[str, Any]) -> Iterator[SchemeGroup]:
    """GPTQModel's rules by module; the first match wins. "-:" excludes the module, others change its bits.

    A plain name means that module; anything else is a regular expression matched from the name's start.
    Source: GPTQModel 7.7, quantization/config.py, _resolve_dynamic_override
    """
    rules = declared.get("dynamic") or {}
    if not isinstance(rules, Mapping):
        raise MalformedError("quantised_overrides", key="dynamic", found=shown(rules))
    require_few(rules, "dynamic")
    names = [rule[2:] if rule[:2] in ("-:", "+:") else rule for rule in rules]
    tests = rule_tests(([name], []) if is_literal(name) else ([], [name]) for name in names)
    for (rule, changes), takes in zip(rules.items(), tests, strict=True):
        if rule.startswith("-:"):
            yield SchemeGroup(takes=takes, scheme=None)
            continue
        if not isinstance(changes, Mapping):
            raise MalformedError("quantised_overrides", key="dynamic", found=shown(changes))
        own = {**declared, **changes}
        yield SchemeGroup(takes=takes, scheme=Gptq(bits=read_bits(own, GPTQ_BITS), group_size=read_group_size(own)))


def _mlx(declared: Mapping[str, Any]) -> Quantisation:
    """mlx-lm quantises linear layers, embeddings and routers; layers with other settings are listed by name.

    Source: mlx-lm 0.32, utils.quantize_model and load_model
    """

    def scheme(part: Mapping[str, Any]) -> Scheme:
        mode = part.get("mode", "affine")
        require_choice("mode", mode, tuple(MLX_DEFAULTS))
        size, bits = MLX_DEFAULTS[mode]
        part = {"model_type": "mlx", "group_size": size, "bits": bits, **part}
        chosen = integer(part, "group_size", at_most=1 << 16)
        return Mlx(bits=read_bits(part, (2, 3, 4, 5, 6, 8)), group_size=chosen, mode=mode)

    own: dict[str, Scheme | None] = {}
    for name, part in declared.items():
        if isinstance(part, Mapping):
            own[name] = scheme(part)
        elif part is False:
            own[name] = None
    return Quantisation(
        method="mlx",
        named=own,
        groups=(SchemeGroup(takes=every_module, scheme=scheme(declared)),),
        skips=skipped_by([]),
        every_matrix=True,
    )


def _fp8(declared: Mapping[str, Any]) -> Quantisation:
    require_choice("fmt", declared.get("fmt", "e4m3"), ("e4m3", "float8_e4m3fn"))
    # scale_fmt is how scales are rounded; their stored dtype follows from the files or the family.
    require_choice("scale_fmt", declared.get("scale_fmt") or "float", ("float", "ue8m0"))
    activation = declared.get("activation_scheme", "dynamic")
    require_choice("activation_scheme", activation, ("dynamic", "static"))
    block = declared.get("weight_block_size", (128, 128))
    if block is not None and not is_block(block):
        raise MalformedError("quantised_block", found=shown(block))
    scheme = Fp8(
        block=None if block is None else (block[0], block[1]),
        scale_dtype=_fp8_scale_dtype(declared, block),
        static_inputs=activation == "static",
    )
    return _single("fp8", scheme, [HEAD, *read_names(declared, "modules_to_not_convert")])


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
        require_choice("bnb_4bit_quant_type", kind, ("nf4", "fp4"))
        storage = declared.get("bnb_4bit_quant_storage") or "uint8"
        require_choice("bnb_4bit_quant_storage", storage, ("uint8", "int8", "float16", "bfloat16", "float32"))
        double = flag(declared, "bnb_4bit_use_double_quant", default=False)
        scheme = Bnb4(kind=kind, double=double, storage=DTYPE_OF_TORCH_NAME[storage])
    skipped = declared.get("llm_int8_skip_modules")
    # Source: HfQuantizer.get_modules_to_not_convert: the head is skipped only without such a list.
    names = [HEAD] if skipped is None else read_names(declared, "llm_int8_skip_modules")
    return _single("bitsandbytes", scheme, names)


def _mxfp4(declared: Mapping[str, Any]) -> Quantisation:
    return _single("mxfp4", Mxfp4Experts(), read_names(declared, "modules_to_not_convert"))


def _modelopt(declared: Mapping[str, Any]) -> Quantisation:
    """Source: NVIDIA ModelOpt 0.33, export/convert_hf_config.py: `quant_algo` and `ignore` beside config_groups."""
    inner = declared.get("quantization", declared)
    if not isinstance(inner, Mapping):
        raise MalformedError("quantised_not_object", found=shown(inner))
    require_choice("quant_algo", inner.get("quant_algo"), tuple(MODELOPT))
    names = [*read_names(inner, "ignore"), *read_names(inner, "exclude_modules")]
    # Wildcards as in fnmatch: `model.layers.0*` matches any continuation.
    patterns = ["re:" + re.escape(name).replace(r"\*", ".*") + "$" if "*" in name else name for name in names]
    return _single("modelopt", MODELOPT[str(inner["quant_algo"])], patterns)


GPTQ_BITS = (2, 3, 4, 8)

MODELOPT: Mapping[str, Scheme] = {"NVFP4": ModelOptNvfp4(), "FP8": ModelOptFp8()}

# Default (group size, bits) of each mode. Source: mlx-lm 0.32, utils.quantize_model
MLX_DEFAULTS: Mapping[str, tuple[int, int]] = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}


def _compressed_tensors(declared: Mapping[str, Any]) -> Quantisation:
    from .compressed_tensors import read_compressed_tensors

    return read_compressed_tensors(declared)


def _auto_round(declared: Mapping[str, Any]) -> Quantisation:
    from .auto_round import read_auto_round

    return read_auto_round(declared)


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


def _single(method: str, scheme: Scheme, skipped: Sequence[str]) -> Quantisation:
    return Quantisation(
        method=method, groups=(SchemeGroup(takes=every_module, scheme=scheme),), skips=skipped_by(skipped)
    )
