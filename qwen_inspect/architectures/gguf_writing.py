"""What llama.cpp's converter writes of a configuration: the metadata that decides bytes, and the tensors under GGUF names.

Source: llama.cpp 0c1e57098, conversion/ (TextModel.set_gguf_parameters and the classes' own; ModelBase.prepare_tensors) and
gguf-py/gguf/tensor_mapping.py. Towers go into a file of their own. Layers for multi-token prediction are written for the families
in `WITH_PREDICTION` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from ..checkpoint import BLOCK_FORMATS, BlockFormat, DType, Tensor
from ..errors import UnsupportedError
from ..results.attention import LayerAttention
from ..spec import Module, SoftmaxAttention, each_module, each_tensor
from ..typed import Any
from ..values import replace
from .design import Architecture, StoredForm
from .gguf import NAMES
from .gguf_metadata import LINEAR, written_keys
from .gguf_names import OTHER_NAMES, PREDICTION, WHOLE_NAMES
from .reading import MOST_LAYERS, integer

# model_type -> general.architecture.
ARCHITECTURES: Mapping[str, str] = {
    "arcee": "arcee",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_v32": "deepseek32",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "glm4": "glm4",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "gpt_oss": "gpt-oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitehybrid",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2moe",
    "llama": "llama",
    "llama4": "llama4",
    "llama4_text": "llama4",
    "mamba": "mamba",
    "falcon_mamba": "mamba",
    "glm_moe_dsa": "glm-dsa",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mistral3": "mistral3",
    "mixtral": "llama",
    "nemotron_h": "nemotron_h",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_audio": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
}
WITH_PREDICTION = LINEAR
WITH_FURTHER = (
    "deepseek_v32",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
)  # model types, whose files have such layers too
COLUMNS_FIRST = ("gpt-oss", "llama4")  # as transformers' classes hold experts
# Where the norm before the MLP has another name, this one follows attention.
NORM_AFTER_ATTENTION = (
    frozenset({"gemma2", "gemma3", "gemma4", "glm4moe", "gpt-oss", "olmo2", "exaone4", "seed_oss"}) | LINEAR
)
TOWERS = re.compile(
    r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|audio_tower|embed_audio|embed_vision)\."
)
DECODER = re.compile(r"(model\.)?language_model\.(model\.)?|^backbone\.")
EXPERTS = re.compile(r"^((block_sparse_moe|feed_forward)\.)?experts\.")
MAMBA = re.compile(r"^mamba\.")  # of Granite's hybrids
IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
IN_PREDICTION = re.compile(r"mtp\.layers\.(\d+)\.(.+)")
WIDE = (
    *("norm.weight", "norm_1.weight", "norm_2.weight", ".bias"),
    *("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight", "shortconv.conv.weight"),
    "indexer.proj.weight",
    *("ssm_a", "ssm_d"),
)


def as_converted(
    config: Mapping[str, Any], architecture: Architecture, dtype: DType, stored: Sequence[Tensor] = ()
) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    """The metadata and the tensors, matrices in `dtype`; experts that are MXFP4 stay so. stored: of the repository, if known.

    UnsupportedError for a family whose conversion is not known here.
    """
    model_type = str(config.get("model_type"))
    name = ARCHITECTURES.get(model_type)
    ahead = architecture.prediction_layers
    if name is None or (ahead and name not in WITH_PREDICTION):
        raise UnsupportedError("gguf_not_written", found=model_type, known=", ".join(ARCHITECTURES))
    if name == "nemotron_h" and config.get("num_experts_per_tok"):
        name = "nemotron_h_moe"
    nested = config.get("text_config")
    text = _with_class_defaults({**config, **nested} if isinstance(nested, Mapping) else config, architecture)
    try:
        metadata, tensors = _converted(name, text, architecture, dtype)
        if model_type in WITH_FURTHER and text.get("num_nextn_predict_layers"):
            return _with_prediction(name, metadata, tensors, text, {tensor.name for tensor in stored})
        return metadata, tensors
    except KeyError as error:  # a default of the class that the design does not tell
        raise UnsupportedError("gguf_key_not_stated", key=str(error.args[0])) from None


def _with_class_defaults(text: Mapping[str, Any], architecture: Architecture) -> Mapping[str, Any]:
    """`text` with what the class takes for keys that it lacks, as the converter has them from AutoConfig.

    UnsupportedError for such a key of a mixture of experts, which the design does not tell.
    """
    spec, read = architecture.spec, _first_softmax(architecture)
    known: dict[str, Any] = {"hidden_size": spec.hidden_size, "max_position_embeddings": spec.context_tokens}
    if isinstance(text.get("layers_block_type"), list):
        known["num_hidden_layers"] = len(text["layers_block_type"])
    elif text.get("num_hidden_layers") is None:
        names = (IN_LAYER.fullmatch(DECODER.sub("model.", tensor.name)) for tensor in each_tensor(architecture.tree))
        known["num_hidden_layers"] = max((int(match[1]) + 1 for match in names if match), default=None)
    if read is not None:
        known |= {"num_attention_heads": read.query_heads, "num_key_value_heads": read.kv_heads}
        if read.head_dim * read.query_heads != spec.hidden_size:
            known["head_dim"] = read.head_dim
    for path, module in each_module(architecture.tree):
        if TOWERS.match(path):
            continue
        used = next((text[key] for key in ("num_experts_per_tok", "top_k_experts", "moe_k") if text.get(key)), None)
        if module.routed is not None and used is None:
            raise UnsupportedError("gguf_key_not_stated", key="num_experts_per_tok")
        dense = module.name == "mlp" and all(child.name != "experts" for child in module.children)
        if dense and text.get("intermediate_size") is None:
            known["intermediate_size"] = _width(module)
    return {**text, **{key: value for key, value in known.items() if text.get(key) is None and value is not None}}


def _width(mlp: Module) -> int:
    """The intermediate size of a dense MLP; UnsupportedError if it has no matrix of the usual name."""
    for child in mlp.children:
        if child.name == "up_proj" and child.tensors:
            rows: int = child.tensors[0].shape[0]
            return rows
    raise UnsupportedError("gguf_key_not_stated", key="intermediate_size")


def _first_softmax(architecture: Architecture) -> LayerAttention | SoftmaxAttention | None:
    layers = architecture.spec.layers
    if layers:
        return architecture.spec.softmax
    return next((read for read, _ in architecture.kept or () if isinstance(read, LayerAttention)), None)


def _converted(
    name: str, text: Mapping[str, Any], architecture: Architecture, dtype: DType
) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    ahead = architecture.prediction_layers
    metadata: dict[str, Any] = {"general.architecture": name}
    keys = written_keys(name, text, architecture)
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    if ahead:
        keys |= {"block_count": layers + 1, "nextn_predict_layers": 1}
    metadata |= {f"{name}.{key}": value for key, value in keys.items()}
    ahead = tuple(replace(tensor, name=_ahead(tensor.name, layers)) for tensor in ahead)
    held = (*each_tensor(architecture.tree), *architecture.buffers, *ahead)
    tensors = [part for tensor in held for part in _written(tensor, name, text)]
    if name == "gemma4":  # conversion/gemma.py, Gemma4Model.generate_extra_tensors
        tensors.append(Tensor("rope_freqs.weight", (keys["attention.key_length"] // 2,), DType.F32))
    tensors += _rope_factors(name, text)
    packed = (text.get("quantization_config") or {}).get("quant_method") == "mxfp4"
    return metadata, tuple(Tensor(each.name, each.shape, _kind(each, dtype, packed)) for each in tensors)


def _kind(tensor: Tensor, dtype: DType, packed: bool) -> DType | BlockFormat:
    if len(tensor.shape) < 2 or tensor.name.endswith(WIDE):
        return DType.F32
    return BLOCK_FORMATS["MXFP4"] if packed and "_exps." in tensor.name else dtype


def _with_prediction(
    name: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor], text: Mapping[str, Any], stored: AbstractSet[str]
) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    """With GLM's layers for multi-token prediction, like the last one; an embedding and a head of their own if those are stored.

    Source: conversion/glm.py, Glm4MoeModel; src/models/glm4-moe.cpp (load_arch_tensors).
    """
    layers, ahead = text["num_hidden_layers"], text["num_nextn_predict_layers"]
    hidden, last = text["hidden_size"], f"blk.{layers - 1}."
    dtype = next(tensor.dtype for tensor in tensors if tensor.name == f"{last}attn_output.weight")
    further: list[Tensor] = []
    for layer in range(layers, layers + ahead):
        further += [
            replace(each, name=f"blk.{layer}.{each.name[len(last) :]}")
            for each in tensors
            if each.name.startswith(last)
        ]
        parts = {"eh_proj": (hidden, 2 * hidden)} | dict.fromkeys(("enorm", "hnorm", "shared_head_norm"), (hidden,))
        whole = {"embed_tokens": "embed_tokens", "shared_head.head": "shared_head_head"}
        for part, written in whole.items():
            if f"model.layers.{layer}.{part}.weight" in stored:
                parts[written] = (text["vocab_size"], hidden)
        further += [
            Tensor(f"blk.{layer}.nextn.{part}.weight", sides, DType.F32 if len(sides) == 1 else dtype)
            for part, sides in parts.items()
        ]
    keys = {f"{name}.block_count": layers + ahead, f"{name}.nextn_predict_layers": ahead}
    return {**metadata, **keys}, (*tensors, *further)


def _ahead(name: str, layers: int) -> str:
    """A tensor for multi-token prediction belongs to the layer behind the last. Source: conversion/qwen.py, _Qwen35MtpMixin."""
    if match := IN_PREDICTION.fullmatch(name):
        return f"model.layers.{layers + int(match[1])}.{match[2]}"
    return f"blk.{layers}.{PREDICTION[name]}" if name in PREDICTION else name


def stored_form_of(architecture: str, config: Mapping[str, Any]) -> StoredForm:
    """The tensors of a GGUF file of this architecture for a tensor of the model."""
    return lambda tensor: tuple(_written(tensor, architecture, config))


def _written(tensor: Tensor, architecture: str, text: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors as which a tensor of transformers' class is written; none of a tower."""
    if TOWERS.match(tensor.name):
        return
    if tensor.name.startswith("blk."):
        yield tensor
        return
    full = DECODER.sub("model.", tensor.name)
    layer = IN_LAYER.fullmatch(full)
    prefix, name = (f"blk.{layer[1]}.", layer[2]) if layer else ("", full)
    name = MAMBA.sub("mixer.", EXPERTS.sub("mlp.experts.", name))
    if name.startswith("mlp.experts.gate_up_proj"):
        yield from _gate_and_up(prefix, architecture, name, tensor)
        return
    if name.startswith("shared_mlp."):
        suffix = "_shexp" if text.get("num_local_experts") else ""
        for part, sides in _shared_parts(name, tensor.shape):
            yield Tensor(f"{prefix}ffn_{part}{suffix}.weight", sides, tensor.dtype)
        return
    if name == "self_attn.kv_b_proj.weight":
        heads, nope, values = (text[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
        rank = tensor.shape[1]
        yield Tensor(f"{prefix}attn_k_b.weight", (heads, rank, nope), tensor.dtype)
        yield Tensor(f"{prefix}attn_v_b.weight", (heads, values, rank), tensor.dtype)
        return
    if name == "linear_attn.in_proj_qkvz.weight":
        values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
        rows, hidden = tensor.shape
        yield Tensor(f"{prefix}attn_qkv.weight", (rows - values, hidden), tensor.dtype)
        yield Tensor(f"{prefix}attn_gate.weight", (values, hidden), tensor.dtype)
        return
    if name in WHOLE_NAMES:
        turned = architecture in COLUMNS_FIRST and len(tensor.shape) == 3
        sides = (tensor.shape[0], tensor.shape[2], tensor.shape[1]) if turned else tensor.shape
        if name in ("mixer.A_log", "mixer.D") and architecture != "mamba":
            sides = (*sides, 1)
        yield Tensor(prefix + WHOLE_NAMES[name], sides, tensor.dtype)
        return
    module, _, kind = name.rpartition(".")
    stored = OTHER_NAMES.get(module) or NAMES.get(module)
    if module == "post_attention_layernorm" and architecture in NORM_AFTER_ATTENTION:
        stored = "post_attention_norm"
    if stored is None:
        raise UnsupportedError("gguf_tensor_not_written", name=tensor.name)
    sides = tensor.shape[1:] if module == "mlp.shared_expert_gate" else tensor.shape
    if module == "mixer.norm":
        groups = text.get("n_groups") or text["mamba_n_groups"]
        sides = (groups, tensor.shape[0] // groups)
    if module in ("linear_attn.conv1d", "conv.conv", "mixer.conv1d") and kind == "weight":
        sides = (tensor.shape[0], tensor.shape[2])
    yield Tensor(f"{prefix}{stored}.{kind}", sides, tensor.dtype)


def _shared_parts(name: str, sides: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of Granite's shared block. Source: conversion/granite.py, GraniteMoeModel.modify_tensors."""
    if name == "shared_mlp.output_linear.weight":
        yield "down", sides
    else:
        yield from ((part, (sides[0] // 2, sides[1])) for part in ("gate", "up"))


def _gate_and_up(prefix: str, architecture: str, name: str, tensor: Tensor) -> Iterator[Tensor]:
    """The experts' gate and up: two tensors, but one for Gemma 4; gpt-oss has its columns first."""
    count, *sides = tensor.shape
    kind = "bias" if name.endswith("_bias") else "weight"
    if architecture == "gemma4":
        yield Tensor(f"{prefix}ffn_gate_up_exps.weight", tensor.shape, tensor.dtype)
        return
    if architecture in COLUMNS_FIRST:
        sides.reverse()
    for part in ("gate", "up"):
        yield Tensor(f"{prefix}ffn_{part}_exps.{kind}", (count, sides[0] // 2, *sides[1:]), tensor.dtype)


def _rope_factors(architecture: str, text: Mapping[str, Any]) -> Iterator[Tensor]:
    """RoPE's factors where the scaling has one for each pair of channels.

    Source: conversion/llama.py, LlamaModel.generate_extra_tensors; conversion/phi.py, Phi3MiniModel.generate_extra_tensors.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
    if kind not in ("llama3", "longrope"):
        return
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if kind == "llama3":
        yield Tensor("rope_freqs.weight", (head // 2,), DType.F32)
    if kind == "longrope" and architecture == "phi3":
        assert isinstance(rope, Mapping)
        for side in ("long", "short"):
            factors = rope.get(f"{side}_factor")
            if isinstance(factors, list):
                yield Tensor(f"rope_factors_{side}.weight", (len(factors),), DType.F32)
