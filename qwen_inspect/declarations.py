"""Finds a checkpoint's dtype, quantisation and tying in every place where releases declare them.

`settled` writes all under transformers' own keys, so that only this module knows the other places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .checkpoint import Checkpoint, DType, Tensor
from .language import Message
from .typed import Any
from .values import replace

# Files beside config.json that declare the quantisation, and the method if their content names none.
# Source: vLLM 0.19, get_config_filenames of modelopt.py, gptq.py and awq.py in model_executor/layers/quantization; mlx-lm 0.32,
# utils.load_model, for the first.
FILES: Mapping[str, str] = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
KEY = "quantization_config"
# Other names of that key, and the method if the value names none.
# Source: mlx-lm 0.32, utils.quantize_model, which writes `quantization` and the same as `quantization_config`; vLLM 0.19,
# config/model.py, _parse_quant_hf_config, for `compression_config`
OTHER_KEYS: Mapping[str, str] = {"quantization": "mlx", "compression_config": "compressed-tensors"}
DECODERS = ("text_config", "llm_config", "language_config")
BESIDE_DECODER = r"re:(model\.)?(visual|vision_tower|vision_model|audio_tower|mm_projector|multi_modal_projector)\..*"
DTYPE_KEYS = ("dtype", "torch_dtype")
# The dtypes that a model can be built in. Source: transformers 5.23, modeling_utils.get_state_dict_dtype
MODEL_DTYPES = (DType.BF16, DType.F16, DType.F32, DType.F64)


# Types that tie the output layer unless they are told otherwise, with decoders that do not.
# Source: transformers 5.23, models/{internvl,mistral3}/configuration_*.py
TYING = ("internvl", "mistral3")
TIE = "tie_word_embeddings"


def declares_quantisation(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration itself declares a quantisation."""
    return config is not None and _declared(config) is not None


def names_dtype(config: Mapping[str, Any]) -> bool:
    """Whether a configuration itself names the model's dtype, so that no file's header decides it."""
    return any(config.get(key) is not None for key in DTYPE_KEYS)


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with dtype, quantisation and tying under transformers' own keys, and notices of where they came from."""
    if checkpoint.config is None or checkpoint.gguf:
        return checkpoint
    config, notices = dict(checkpoint.config), []
    declared = _declared(config)
    if declared is None and checkpoint.quantisation_file is not None:
        name, content = checkpoint.quantisation_file
        declared = name, _with_method(content, FILES[name])
    if declared is not None:
        place, value = declared
        if config.get(KEY) != value:
            config[KEY] = value
        if place != KEY:
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            notices.append(Message("quantisation_declared", place=place, method=str(method or "–")))
    if not names_dtype(config):
        first = checkpoint.hub_count.first if checkpoint.hub_count is not None else ()
        notices += _settle_dtype(config, checkpoint.tensors or first or None)
    if _holds_own_head(config, checkpoint.tensors or ()):
        config[TIE] = False
        notices.append(Message("own_head_in_files"))
    return replace(checkpoint, config=config, notices=(*checkpoint.notices, *notices))


def _holds_own_head(config: Mapping[str, Any], files: Sequence[Tensor]) -> bool:
    """Whether files hold an output layer that only the default of the whole's class would tie.

    transformers does not tie two that are both there and differ, as those of a decoder do that was trained untied.
    Source: transformers 5.23, PreTrainedModel.tie_weights
    """
    text = config.get("text_config")
    if config.get("model_type") not in TYING or TIE in config or not isinstance(text, Mapping) or text.get(TIE):
        return False
    stored = ("lm_head.", "embed_tokens.")
    return all(any(part in tensor.name for tensor in files) for part in stored)


def undeclared(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` that declares no quantisation."""
    removed = (KEY, *OTHER_KEYS)
    return {
        key: undeclared(value) if key in DECODERS and isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in removed
    }


def _declared(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The key that declares a quantisation, and its value with the method filled in; None if there is no declaration."""
    for prefix, part in (("", config), *((f"{key}.", config.get(key)) for key in DECODERS)):
        if not isinstance(part, Mapping):
            continue
        if part.get(KEY) is not None:
            value = part[KEY]
            value = _with_method(value, "mlx") if _is_mlx(value) else value
            return prefix + KEY, _of_decoder(value) if prefix else value
        for key, method in OTHER_KEYS.items():
            if part.get(key):  # null, false and an empty object declare nothing
                return prefix + key, _with_method(part[key], method)
    return None


def _of_decoder(value: Any) -> Any:
    """A declaration that stands in the decoder's configuration, with the other parts among what it leaves out.

    As released: Kimi-K2.5, whose tower has widths that do not fill the groups.
    """
    if not isinstance(value, Mapping) or value.get("quant_method") != "compressed-tensors":
        return value
    ignored = value.get("ignore")
    return {**value, "ignore": [*(ignored if isinstance(ignored, list) else ()), BESIDE_DECODER]}


def _is_mlx(value: object) -> bool:
    """Whether mlx-lm wrote `value`: group_size and bits without a method, and an entry for each layer that differs."""
    return (
        isinstance(value, Mapping)
        and "quant_method" not in value
        and {"group_size", "bits"} <= value.keys()
        and not any(str(key).startswith(("load_in_", "bnb_")) for key in value)
    )


def _with_method(value: Any, method: str) -> Any:
    """`value` with the method that its place implies, unless it names a method; a `quant_algo` implies modelopt."""
    if not isinstance(value, Mapping) or value.get("quant_method") is not None:
        return value
    inner = value.get("quantization")
    algorithm = value.get("quant_algo") or (inner.get("quant_algo") if isinstance(inner, Mapping) else None)
    return {"quant_method": "modelopt" if algorithm is not None else method, **value}


def _settle_dtype(config: dict[str, Any], tensors: Sequence[Tensor] | None) -> list[Message]:
    """Fills in `config["dtype"]` from the files' headers, as from_pretrained does. Returns the notice of that, or that the
    dtype is unknown.

    It is the dtype of the first floating-point tensor of the first file, both in the order of names; without one, float32.
    Source: transformers 5.23, modeling_utils._get_dtype
    """
    nested = _nested_dtype(config)
    if tensors is not None:
        first_file = min((tensor.file or "" for tensor in tensors), default="")
        floating = [tensor for tensor in tensors if (tensor.file or "") == first_file and tensor.dtype in MODEL_DTYPES]
        if floating:
            first = min(floating, key=lambda tensor: tensor.name)
            config["dtype"] = str(first.dtype)
            # No notice if the files confirm the nested dtype.
            return [] if nested == str(first.dtype) else [Message("dtype_of_files", dtype=first.dtype, name=first.name)]
    if nested is not None:
        return []
    return [Message("dtype_unknown")]


def _nested_dtype(config: Mapping[str, Any]) -> str | None:
    parts = (config.get(key) for key in DECODERS)
    names = (part.get(key) for part in parts if isinstance(part, Mapping) for key in DTYPE_KEYS)
    return next((name.removeprefix("torch.") for name in names if isinstance(name, str)), None)
