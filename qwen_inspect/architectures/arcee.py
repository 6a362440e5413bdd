"""AFM (Arcee), Apertus and Nemotron 3 and 4: Llama's decoder with an MLP of two matrices, without a gate.

Source: transformers 5.23, models/{arcee,apertus,nemotron}; Apertus (arXiv 2509.14233), Nemotron-4 (arXiv 2402.16819).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import Module
from ..typed import Any
from ..values import replace
from .decoders import Decoder, read_decoder
from .design import Architecture
from .outline import activation, causal_lm, check_width, layer_norm, linear, read_spans, whole_dtype, with_defaults
from .reading import flag, integer

_SHARED: Mapping[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "arcee": {
        **_SHARED,
        "vocab_size": 32000,
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "head_dim": None,
    },
    "apertus": {
        **_SHARED,
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 3,
    },
    "nemotron": {
        **_SHARED,
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "head_dim": None,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "pad_token_id": None,
        "partial_rotary_factor": 0.5,
    },
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    family = config["model_type"]
    text, dtype = with_defaults(config, DEFAULTS[family]), whole_dtype(config)
    if family == "apertus":
        decoder = read_decoder(text, dtype, "Apertus")
        model = _apertus(decoder)
    elif family == "arcee":
        check_width(text)
        decoder = read_decoder(text, dtype, "Arcee", null_head_dim=True)
        attention = decoder.attention(bias=flag(text, "attention_bias", default=False))
        model = decoder.model(decoder.prenorm_layer(attention, _mlp(decoder)))
    else:
        integer(text, "num_key_value_heads")  # a null fails
        decoder = read_decoder(text, dtype, "Nemotron", eps="norm_eps", null_head_dim=True)
        model = _nemotron(decoder)
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)), persistent=("beta", "eps"))


def _mlp(decoder: Decoder, act: Module | None = None, *, bias: bool | None = None) -> Module:
    hidden, width = decoder.hidden, integer(decoder.text, "intermediate_size")
    bias = flag(decoder.text, "mlp_bias", default=False) if bias is None else bias
    return Module(
        name="mlp",
        class_name=f"{decoder.prefix}MLP",
        children=(
            linear("up_proj", hidden, width, decoder.dtype, bias=bias),
            linear("down_proj", width, hidden, decoder.dtype, bias=bias),
            act or activation("act_fn", decoder.text["hidden_act"]),
        ),
    )


def _apertus(decoder: Decoder) -> Module:
    """Its activation has two parameters and two constants, which files hold too. Source: XIELUActivation."""
    act = Module(
        name="act_fn",
        class_name="XIELUActivation",
        tensors=tuple(Tensor(name, (1,), decoder.dtype) for name in ("alpha_p", "alpha_n")),
        buffers=tuple(Tensor(name, (), decoder.dtype) for name in ("beta", "eps")),
    )
    norms = (decoder.norm("q_norm", decoder.head_dim), decoder.norm("k_norm", decoder.head_dim))
    layer = decoder.layer(
        decoder.attention(*norms, bias=flag(decoder.text, "attention_bias", default=False)),
        _mlp(decoder, act if decoder.text["hidden_act"] == "xielu" else None, bias=False),
        decoder.norm("attention_layernorm"),
        decoder.norm("feedforward_layernorm"),
    )
    return decoder.model(layer)


def _nemotron(decoder: Decoder) -> Module:
    def norm(name: str) -> Module:
        one_plus = layer_norm(name, decoder.hidden, decoder.dtype, eps=decoder.eps)
        return replace(one_plus, class_name="NemotronLayerNorm1P")

    attention = decoder.attention(bias=flag(decoder.text, "attention_bias", default=False))
    layer = decoder.layer(attention, _mlp(decoder), norm("input_layernorm"), norm("post_attention_layernorm"))
    return decoder.model(layer, last_norm=norm("norm"), rotary_table=decoder.rotary(partial=True))
