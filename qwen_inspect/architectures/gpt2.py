"""GPT-2. Source: transformers 5.23, models/gpt2."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from .design import Architecture
from .even_heads import keeps_every_head, read_even_heads
from .outline import (
    activation,
    causal_lm,
    dropout,
    embedding,
    layer_list,
    layer_norm,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer, optional_integer

GPT2: Mapping[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

GPT2_ALIASES: Mapping[str, str] = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, GPT2), GPT2_ALIASES), whole_dtype(config)
    if flag(text, "add_cross_attention", default=False):
        raise UnsupportedError("config_key_unsupported", key="add_cross_attention", found="True")
    hidden, eps = integer(text, "n_embd"), text["layer_norm_epsilon"]
    layers = integer(text, "n_layer", at_most=MOST_LAYERS)
    heads, head_dim = read_even_heads(text, hidden, "n_head")
    inner = optional_integer(text, "n_inner", at_least=1) or 4 * hidden
    residual = text["resid_pdrop"]
    block = Module(
        name="0",
        class_name="GPT2Block",
        children=(
            layer_norm("ln_1", hidden, dtype, eps=eps),
            Module(
                name="attn",
                class_name="GPT2Attention",
                children=(
                    _transposed("c_attn", hidden, 3 * hidden, dtype),
                    _transposed("c_proj", hidden, hidden, dtype),
                    dropout("attn_dropout", text["attn_pdrop"]),
                    dropout("resid_dropout", residual),
                ),
            ),
            layer_norm("ln_2", hidden, dtype, eps=eps),
            Module(
                name="mlp",
                class_name="GPT2MLP",
                children=(
                    _transposed("c_fc", hidden, inner, dtype),
                    _transposed("c_proj", inner, hidden, dtype),
                    activation("act", text["activation_function"]),
                    dropout("dropout", residual),
                ),
            ),
        ),
    )
    model = Module(
        name="transformer",
        class_name="GPT2Model",
        children=(
            embedding("wte", integer(text, "vocab_size"), hidden, dtype),
            embedding("wpe", integer(text, "n_positions"), hidden, dtype),
            dropout("drop", text["embd_pdrop"]),
            layer_list("h", [block] * layers),
            layer_norm("ln_f", hidden, dtype, eps=eps),
        ),
    )
    text["max_position_embeddings"] = text["n_positions"]
    kept = keeps_every_head(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="wte", unloaded=("attn.bias", "crossattention.bias"))


def _transposed(name: str, inputs: int, outputs: int, dtype: DType) -> Module:
    """transformers' own `Conv1D`: a linear layer whose weight is (inputs, outputs), with a bias."""
    weight, bias = Tensor("weight", (inputs, outputs), dtype), Tensor("bias", (outputs,), dtype)
    return Module(name=name, class_name="Conv1D", tensors=(weight, bias))
