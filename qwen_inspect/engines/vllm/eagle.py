"""EAGLE heads: Llama layers that read the model's hidden states, off their own configuration.

Source: vLLM 0.19.0, model_executor/models/llama_eagle.py and llama_eagle3.py, transformers_utils/configs/eagle.py and
speculators/algos.py; v1/spec_decode/eagle.py, _maybe_share_embeddings and _maybe_share_lm_head.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint import Checkpoint
from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.model import Report
from ...typed import Any
from .blocks import kv_heads_per_rank
from .drafter import ROUNDING_BYTES, Drafter
from .weights import VOCABULARY_MULTIPLE
from .widths import Widths

STATES = 3  # hidden states of the model's layers that EAGLE-3 concatenates
CLASSES = {
    False: ("LlamaForCausalLM", "EagleLlamaForCausalLM"),
    True: (
        *("LlamaForCausalLM", "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"),
        *("Eagle3Qwen2_5vlForCausalLM", "Eagle3Qwen3vlForCausalLM"),
    ),
}


def eagle_head(report: Report, head: Checkpoint, ranks: int, *, third: bool) -> Drafter:
    """An EAGLE head (third: of EAGLE-3) for `report`. Raises UnsupportedError for classes other than Llama's and packed heads.

    Of embedding and output layer, those that its files lack are the model's. vLLM also shares those that have equal values,
    which are not read here: a range.
    """
    config = _plain(head.config or {})
    hidden, inner, heads, vocabulary = _sizes(config, third)
    layers, kv_heads = config.get("num_hidden_layers", 1), config.get("num_key_value_heads") or heads
    head_dim, own_vocabulary = config.get("head_dim") or hidden // heads, config.get("draft_vocab_size") or vocabulary
    if heads % ranks or inner % ranks:
        raise UnsupportedError("vllm_not_divisible", name="num_attention_heads", size=heads, ranks=ranks)
    rows = head_dim * (heads // ranks + 2 * kv_heads_per_rank(kv_heads, ranks))
    bias = rows if config.get("attention_bias") else 0
    elements = layers * (hidden * (rows + head_dim * heads // ranks + 3 * inner // ranks + 2) + bias)
    if third:  # the first layer reads an embedding too; each has a norm of the hidden states
        read = STATES * (config.get("target_hidden_size") or hidden)
        elements += hidden * (read + rows + layers + 1) + (read if config.get("norm_before_fc") else 0)
    else:  # the first layer has no norm of its input
        elements += hidden * (2 * hidden - 1)
    number_bytes = report.spec.dtype.bits // 8
    least = elements * number_bytes + (8 * own_vocabulary if third else 0)  # and draft_id_to_target_id
    most = (
        least + ROUNDING_BYTES + (report.spec.context_tokens or 0) * head_dim * number_bytes
    )  # a rotary table of its own
    names = None if head.tensors is None else [tensor.name for tensor in head.tensors]
    for name, size in (("embed_tokens", vocabulary), ("lm_head", own_vocabulary)):
        padded = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        matrix = padded * hidden * number_bytes // ranks
        shared = names is not None and not any(name in stored for stored in names)
        shareable = (size, hidden) == (report.spec.vocab_size, report.spec.hidden_size)
        least += 0 if shared or shareable else matrix
        most += 0 if shared else matrix
    return Drafter(
        ranks=ranks,
        least_bytes=least,
        most_bytes=most,
        layers=tuple(
            LayerAttention(index=at, query_heads=heads, kv_heads=kv_heads, head_dim=head_dim, window_tokens=None)
            for at in range(layers)
        ),
        widths=Widths(
            hidden=hidden,
            vocabulary=vocabulary,
            up=2 * inner,
            down=inner,
            attention=head_dim * (heads + 2 * kv_heads),
            latent_values=0,
            experts=None,
            layers=layers,
        ),
        states=STATES if third else 0,
    )


def _plain(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """As a Llama's, of a configuration of the library speculators too."""
    if not isinstance(layer := config.get("transformer_layer_config"), Mapping):
        return config
    keys = ("draft_vocab_size", "target_hidden_size", "norm_before_fc")
    return {
        **layer,
        **{key: config[key] for key in keys if key in config},
        "architectures": ["Eagle3LlamaForCausalLM"],
    }


def _sizes(config: Mapping[str, Any], third: bool) -> tuple[int, int, int, int]:
    """Hidden size, width of the MLP, heads and vocabulary, all positive; the optional sizes may be absent."""
    names = config.get("architectures")
    name = str(names[0])[:80] if isinstance(names, list) and names else str(names)[:80]
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    optional = ("num_hidden_layers", "num_key_value_heads", "head_dim", "draft_vocab_size", "target_hidden_size")
    sizes = [config.get(key) for key in needed] + [config.get(key) or 1 for key in optional]
    plain = all(type(size) is int and 0 < size < 1 << 24 for size in sizes)
    windows = "sliding_attention" in (config.get("layer_types") or ())
    if name not in CLASSES[third] or "quantization_config" in config or not plain or windows:
        raise UnsupportedError("vllm_draft_kind", class_name=name)
    hidden, inner, heads, vocabulary = (int(config[key]) for key in needed)
    return hidden, inner, heads, vocabulary
