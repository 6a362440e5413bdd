"""The `quantization_config` of each scheme that --dtype names."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..typed import Any
from .quantised_modules import HEAD, SHARED_GATE
from .reading import whole_dtype

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
        chosen["bnb_4bit_compute_dtype"] = whole_dtype(config).torch_name
    if "group_size" in chosen:
        chosen["group_size"] = group_size or DEFAULT_GROUP_SIZE
    elif group_size is not None:
        raise UsageError("group_size_fixed", scheme=name)
    return chosen
