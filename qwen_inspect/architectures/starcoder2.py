"""StarCoder2: LayerNorm, an MLP of two matrices, and biases.

Source: transformers 5.23, models/starcoder2; StarCoder 2 (arXiv 2402.19173).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import Module
from ..typed import Any
from .blocks import linear
from .decoders import read_decoder
from .design import Architecture
from .outline import activation, causal_lm, layer_norm, read_spans, whole_dtype, with_defaults
from .reading import flag, integer

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "pad_token_id": None,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(config, DEFAULTS)
    integer(text, "num_key_value_heads")  # no null
    decoder = read_decoder(text, whole_dtype(config), "Starcoder2", eps="norm_epsilon", null_head_dim=True)
    hidden, dtype, bias = decoder.hidden, decoder.dtype, flag(text, "use_bias", default=True)
    width = integer(text, "intermediate_size")
    mlp = Module(
        name="mlp",
        class_name="Starcoder2MLP",
        children=(
            linear("c_fc", hidden, width, dtype, bias=bias),
            linear("c_proj", width, hidden, dtype, bias=bias),
            activation("act", text["hidden_act"]),
        ),
    )
    norms = [
        layer_norm(name, hidden, dtype, eps=decoder.eps)
        for name in ("input_layernorm", "post_attention_layernorm", "norm")
    ]
    layer = decoder.layer(decoder.attention(bias=bias), mlp, *norms[:2])
    model = decoder.model(layer, last_norm=norms[2])
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)))
