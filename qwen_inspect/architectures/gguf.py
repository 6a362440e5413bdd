"""Turns GGUF metadata back into a configuration, and a module's tensor into the tensors of a GGUF file.

Source: llama.cpp, convert_hf_to_gguf.py (Qwen2Model, Qwen2MoeModel, Qwen3Model, Qwen3MoeModel) and src/llama-model.cpp;
gguf 0.19, constants.MODEL_TENSORS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import MalformedError, NoModelError, UnsupportedError
from ..standard import compiled
from ..typed import Any
from .reading import MOST_LAYERS, integer, shown

# general.architecture -> (model_type, class prefix). One line per family described here.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "qwen2": ("qwen2", "Qwen2"),
    "qwen2moe": ("qwen2_moe", "Qwen2Moe"),
    "qwen3": ("qwen3", "Qwen3"),
    "qwen3moe": ("qwen3_moe", "Qwen3Moe"),
}
# Configuration key -> GGUF key without its architecture prefix; below the line, keys of some architectures only.
KEYS: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    # ---
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "head_dim": "attention.key_length",
}
NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
IN_LAYER = compiled(r"model\.layers\.(\d+)\.(.+)")


def configuration(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> Mapping[str, Any]:
    """The configuration that the model's config.json would hold, and the metadata. The head is tied if it has no tensor.

    Raises UnsupportedError for an architecture that has no configuration here, MalformedError for metadata without meaning.
    """
    architecture = metadata["general.architecture"]
    if architecture not in FAMILIES:
        raise UnsupportedError("gguf_architecture", found=architecture, known=", ".join(FAMILIES))
    model_type, prefix = FAMILIES[architecture]
    stated = {
        key: metadata[f"{architecture}.{name}"] for key, name in KEYS.items() if f"{architecture}.{name}" in metadata
    }
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    layers = integer({**stated, "model_type": model_type}, "num_hidden_layers", at_most=MOST_LAYERS)
    for key, value in stated.items():
        if isinstance(value, list):
            stated[key] = _per_layer(key, value, layers)
    value_length = metadata.get(f"{architecture}.attention.value_length")
    if value_length is not None and value_length != stated.get("head_dim"):
        raise UnsupportedError("gguf_value_length", keys=shown(stated.get("head_dim")), values=shown(value_length))
    if "head_dim" not in stated:  # llama.cpp's default; transformers' would be 128 for Qwen3
        heads = stated.get("num_attention_heads")
        hidden = stated.get("hidden_size")
        if type(heads) is int and type(hidden) is int and heads > 0 and hidden % heads == 0:
            stated["head_dim"] = hidden // heads
    vocabulary = metadata.get(f"{architecture}.vocab_size", next(iter(shapes.get("token_embd.weight", ())), None))
    return {
        "architectures": [f"{prefix}ForCausalLM"],
        "model_type": model_type,
        **stated,
        **({} if vocabulary is None else {"vocab_size": vocabulary}),
        "tie_word_embeddings": "output.weight" not in shapes,
        # llama.cpp's default dtype of computation and cache.
        "torch_dtype": "float16",
        **metadata,  # and what --dtype asks for
    }


def own_configuration(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata of a file that is known by itself alone. Its model_type is no name of transformers'."""
    dotted = {key: value for key, value in metadata.items() if "." in key}  # which no key of a configuration has
    return {**dotted, "model_type": f"gguf/{metadata['general.architecture']}", "torch_dtype": "float16"}


def check_model(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """Raises NoModelError for a file that holds no model (an adapter, a projector), MalformedError without an architecture."""
    if (kind := metadata.get("general.type", "model")) != "model":
        raise _no_model(kind, metadata, tensors)
    if "quantization_config" in metadata:  # set by --dtype: no file has the key
        raise UnsupportedError("gguf_requantised")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise MalformedError("gguf_no_architecture", found=shown(architecture))


def _no_model(kind: object, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> NoModelError:
    """The error for a file whose general.type is not "model": an adapter, a projector, an importance matrix.

    Source: gguf 0.19, constants.GGUFType and Keys.Adapter; llama.cpp, convert_lora_to_gguf.py: NAME.lora_a is (rank, inputs).
    """
    if kind != "adapter" or metadata.get("adapter.type") != "lora":
        return NoModelError("gguf_no_model", found=shown(kind))
    ranks = sorted({tensor.shape[0] for tensor in tensors if tensor.name.endswith(".lora_a") and tensor.shape})
    alpha = metadata.get("adapter.lora.alpha")
    return NoModelError(
        "gguf_adapter",
        architecture=shown(metadata.get("general.architecture")).strip("'"),
        rank=", ".join(map(str, ranks)) or "–",
        alpha=f"{alpha:g}" if isinstance(alpha, int | float) else "–",
        tensors=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
    )


def _per_layer(key: str, values: list[Any], layers: int) -> Any:
    """A per-layer list as a single value if all are equal. Only KV heads may differ by layer."""
    if len(values) != layers:
        raise MalformedError("gguf_per_layer", key=key, found=len(values), layers=layers)
    if len(set(values)) == 1:
        return values[0]
    if key != "num_key_value_heads":
        raise UnsupportedError("gguf_layers_differ", key=key)
    return values


def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors as which a GGUF file stores a tensor of the model: fused experts as three stacked matrices."""
    layer = IN_LAYER.fullmatch(tensor.name)
    prefix, name = (f"blk.{layer[1]}.", layer[2]) if layer else ("", tensor.name)
    if name == "mlp.experts.gate_up_proj":
        count, doubled, hidden = tensor.shape
        shape = (count, doubled // 2, hidden)
        return tuple(Tensor(f"{prefix}ffn_{part}_exps.weight", shape, tensor.dtype) for part in ("gate", "up"))
    if name == "mlp.experts.down_proj":
        return (Tensor(f"{prefix}ffn_down_exps.weight", tensor.shape, tensor.dtype),)
    module, _, kind = name.rpartition(".")
    # The converter drops dimensions of 1.
    sides = tensor.shape[1:] if module == "mlp.shared_expert_gate" else tensor.shape
    return (Tensor(f"{prefix}{NAMES.get(module, module)}.{kind}", sides, tensor.dtype),)
