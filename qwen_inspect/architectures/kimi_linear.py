"""Kimi-Linear and Ling 3.0: several layers of delta attention, which keep a state of constant size, to each of latent attention.

Source: transformers 5.23, models/kimi_linear, bailing_hybrid; Kimi Linear (arXiv 2510.26692).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from ..values import dataclass, replace
from .blocks import linear
from .decoders import Decoder
from .design import Architecture, KeptLayer
from .latent import latent_attention, read_latent_heads
from .mixture import SCORE_BIAS, mixture, read_sparse_layers
from .outline import causal_lm, convolution, keeps_latent, keeps_states, norm, read_object, whole_dtype, with_defaults
from .reading import MOST_LAYERS, check_layer_types, integer
from .sparse import stored_by_expert

TYPES = ("linear_attention", "full_attention")
# Attributes by the other name that transformers reads; the second wins where a configuration has both.
ALIASES: Mapping[str, str] = {
    "max_position_embeddings": "model_max_length",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
KIMI: Mapping[str, Any] = {
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_shared_experts": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "num_experts_per_token": 8,
    "hidden_act": "silu",
    "model_max_length": 1048576,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 163839,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts": 256,
    "linear_head_dim": 128,
    "linear_num_heads": 32,
    "linear_conv_kernel_dim": 4,
    "first_k_dense_replace": 1,
}
BAILING: Mapping[str, Any] = {
    **{key: value for key, value in KIMI.items() if not key.startswith("linear_")},
    "vocab_size": 157184,
    "hidden_size": 2560,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 42,
    "first_k_dense_replace": 2,
    "model_max_length": 262144,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 156892,
    "num_experts": 512,
    "head_dim": 128,
    "short_conv_kernel_size": 4,
    "layer_group_size": 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSizes:
    """Of a layer of delta attention: heads, channels of each, tokens that its convolution sees."""

    heads: int
    head_dim: int
    kernel: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def architecture(config: Mapping[str, Any]) -> Architecture:
    kimi = config["model_type"] == "kimi_linear"
    text, dtype = _read_text(config, KIMI if kimi else BAILING), whole_dtype(config)
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    rope = integer(text, "qk_rope_head_dim")
    decoder = Decoder(
        prefix="KimiLinear" if kimi else "BailingHybrid",
        text=text,
        dtype=dtype,
        hidden=integer(text, "hidden_size"),
        layers=layers,
        query_heads=integer(text, "num_attention_heads"),
        kv_heads=read_latent_heads(text),
        head_dim=rope,
        eps=text["rms_norm_eps"],
    )
    sizes, types = (_kimi_sizes(text), _kimi_types(text, layers)) if kimi else _bailing(text, layers)
    sparse = read_sparse_layers(text, layers, integer(text, "num_experts"), dense_first="first_k_dense_replace")
    kinds = list(zip(types, sparse, strict=True))
    built = {kind: _layer(decoder, sizes, *kind) for kind in dict.fromkeys(kinds)}
    model = decoder.model([built[kind] for kind in kinds])
    if kimi:  # no layer turns its keys
        model = replace(model, children=model.children[:-1])
    rank = integer(text, "kv_lora_rank")
    kept: list[KeptLayer] = [
        keeps_latent(index, rank, rope, dtype)
        if kind == "full_attention"
        else keeps_states(index, "recurrent", delta_states(sizes, dtype))
        for index, kind in enumerate(types)
    ]
    return causal_lm(
        config,
        text,
        model,
        kept,
        ties=False,
        persistent=(SCORE_BIAS,),
        stored_form=_stored_kimi if kimi else _stored_bailing,
        unloaded=() if kimi else (r"model\.layers\.42\..*",),
    )


def _read_text(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: config[alias] for alias, key in ALIASES.items() if alias in config}
    rest = {key: value for key, value in config.items() if key not in ALIASES}
    text = with_defaults({**own, **rest}, defaults)
    # The shared blocks read these names.
    text |= {"n_routed_experts": text["num_experts"], "n_shared_experts": text["num_shared_experts"]}
    return {**text, "max_position_embeddings": text["model_max_length"]}


def _kimi_sizes(text: Mapping[str, Any]) -> DeltaSizes:
    """By `linear_attn_config`, as releases have it, else by keys of their own. Source: KimiLinearConfig.__post_init__."""
    nested = read_object(text, "linear_attn_config")
    names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    names["short_conv_kernel_size"] = "linear_conv_kernel_dim"
    both = {**text, **{key: nested[name] for name, key in names.items() if name in nested}}
    return DeltaSizes(
        heads=integer(both, "linear_num_heads"),
        head_dim=integer(both, "linear_head_dim"),
        kernel=integer(both, "linear_conv_kernel_dim"),
    )


def _kimi_types(text: Mapping[str, Any], layers: int) -> list[str]:
    nested, types = read_object(text, "linear_attn_config"), text.get("layer_types")
    if types is None and {"full_attn_layers", "kda_layers"} <= nested.keys():
        full, delta = nested["full_attn_layers"], nested["kda_layers"]  # counted from 1
        if (
            not isinstance(full, list)
            or not isinstance(delta, list)
            or sorted([*full, *delta]) != list(range(1, layers + 1))
        ):
            raise MalformedError("config_layer_types", key="layer_types", layers=layers, found="linear_attn_config")
        types = ["full_attention" if index + 1 in full else "linear_attention" for index in range(layers)]
    if types is None:
        types = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=TYPES)
    return list(types)


def _bailing(text: Mapping[str, Any], layers: int) -> tuple[DeltaSizes, list[str]]:
    """Source: BailingHybridConfig.__post_init__; keys that transformers wrote itself come last."""
    names = {
        "linear_num_heads": "num_attention_heads",
        "linear_head_dim": "head_dim",
        "linear_conv_kernel_dim": "short_conv_kernel_size",
    }
    heads, head_dim, kernel = (integer(text, key if key in text else other) for key, other in names.items())
    types = text.get("layer_types")
    if types is None:
        group = integer(text, "layer_group_size")
        types = ["linear_attention" if (index + 1) % group else "full_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=TYPES)
    return DeltaSizes(heads=heads, head_dim=head_dim, kernel=kernel), list(types)


def _layer(decoder: Decoder, sizes: DeltaSizes, kind: str, has_experts: bool) -> Module:
    prefix, text, dtype = decoder.prefix, decoder.text, decoder.dtype
    kimi = prefix == "KimiLinear"
    if kind == "linear_attention":
        attention = delta_attention(
            decoder, sizes, low_rank=kimi, heads_alone=not kimi, whole=None if kimi else DType.F32
        )
    elif kimi:
        attention = latent_attention(prefix, text, dtype)
    else:
        gate = linear("g_proj", decoder.hidden, decoder.query_heads, dtype)
        attention = latent_attention(prefix, {**text, "q_lora_rank": None}, dtype, extra=(gate,))
    mlp = mixture(decoder, score_bias=dtype if kimi else DType.F32) if has_experts else decoder.mlp()
    return decoder.prenorm_layer(attention, mlp)


def delta_attention(
    decoder: Decoder,
    sizes: DeltaSizes,
    *,
    class_name: str = "DeltaAttention",
    low_rank: bool,
    heads_alone: bool = True,
    whole: DType | None = None,
) -> Module:
    """Queries, keys and values through one convolution; gates that forget and that scale the output.

    low_rank: the gates are. heads_alone: A_log is (heads,), else (1, 1, heads, 1). whole: the dtype of the convolution and of
    what forgets, as the others' if None.
    """
    prefix, hidden, dtype, width = decoder.prefix, decoder.hidden, decoder.dtype, sizes.width
    decay = Tensor("A_log", (sizes.heads,) if heads_alone else (1, 1, sizes.heads, 1), whole or dtype)
    step = Tensor("dt_bias", (width,), whole or dtype)
    forget: tuple[Module, ...] = (linear("f_proj", hidden, width, dtype),)
    gate: tuple[Module, ...] = (linear("g_proj", hidden, width, dtype),)
    if low_rank:
        forget = (
            linear("f_a_proj", hidden, sizes.head_dim, dtype),
            linear("f_b_proj", sizes.head_dim, width, dtype),
        )
        gate = (
            linear("g_a_proj", hidden, sizes.head_dim, dtype),
            linear("g_b_proj", sizes.head_dim, width, dtype),
        )
    output = (
        norm("o_norm", f"{prefix}RMSNormGated", sizes.head_dim, dtype, arguments=""),
        linear("o_proj", width, hidden, dtype),
    )
    return Module(
        name="self_attn",
        class_name=prefix + class_name,
        children=(
            *(linear(name, hidden, width, dtype) for name in ("q_proj", "k_proj", "v_proj")),
            convolution("conv1d", 3 * width, sizes.kernel, whole or dtype, bias=False),
            Module(
                name="forget_gate",
                class_name=f"{prefix}ForgetGate",
                tensors=(step, decay) if low_rank else (decay, step),
                children=forget,
            ),
            linear("b_proj", hidden, sizes.heads, dtype),
            *((*gate, *output) if low_rank else (*output, *gate)),
        ),
    )


def delta_states(sizes: DeltaSizes, dtype: DType) -> tuple[int, int]:
    """Bytes of the convolution's last inputs, and of a float32 matrix (head_dim, head_dim) for each head.

    Source: transformers 5.23, LinearAttentionLayer.
    """
    return 3 * sizes.width * sizes.kernel * dtype.bits // 8, sizes.heads * sizes.head_dim**2 * 4


# --- names on disk. Source: transformers 5.23, conversion_mapping ("kimi_linear", "bailing_hybrid")

_kimi_experts = stored_by_expert("block_sparse_moe", ("w1", "w3", "w2"))
_bailing_experts = stored_by_expert("mlp", ("gate_proj", "up_proj", "down_proj"))
DENSE = (".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.down_proj.")


def stored_attention(tensor: Tensor, name: str) -> tuple[Tensor, ...]:
    """The convolutions of queries, keys and values singly."""
    if not name.endswith(".conv1d.weight"):
        return (replace(tensor, name=name),)
    stem, shape = name.removesuffix("conv1d.weight"), (tensor.shape[0] // 3, *tensor.shape[1:])
    return tuple(replace(tensor, name=f"{stem}{part}_conv1d.weight", shape=shape) for part in "qkv")


def _stored_kimi(tensor: Tensor) -> tuple[Tensor, ...]:
    if ".self_attn." in tensor.name:
        return stored_attention(tensor, tensor.name.replace(".forget_gate.", "."))
    return (tensor,) if any(part in tensor.name for part in DENSE) else _kimi_experts(tensor)


def _stored_bailing(tensor: Tensor) -> tuple[Tensor, ...]:
    name = tensor.name
    if ".self_attn." in name:
        name = name.replace(".forget_gate.", ".").replace(".self_attn.o_proj.", ".self_attn.dense.")
        return stored_attention(tensor, name.replace(".self_attn.", ".attention."))
    if name.endswith(f".{SCORE_BIAS}"):
        return (replace(tensor, name=name.replace(SCORE_BIAS, "expert_bias")),)
    if name == "model.embed_tokens.weight":
        return (replace(tensor, name="model.word_embeddings.weight"),)
    return _bailing_experts(tensor)
