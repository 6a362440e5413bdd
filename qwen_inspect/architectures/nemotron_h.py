"""Nemotron-H and Nemotron 3: Mamba-2, attention, MLP or experts, one of them a layer.

Source: transformers 5.23, models/nemotron_h; Nemotron-H (arXiv 2504.03624), Nemotron 3 Nano (arXiv 2512.20848).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .design import Architecture, KeptLayer
from .outline import (
    activation,
    causal_lm,
    embedding,
    keeps_heads,
    keeps_nothing,
    keeps_states,
    layer_list,
    linear,
    norm,
    read_heads,
    whole_dtype,
    with_defaults,
)
from .reading import check_layer_types, flag, integer, optional_integer, shown
from .recurrent import Mamba2, check_groups, identity, mamba2_mixer, renamed_layer_types

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "layers_block_type": None,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "intermediate_size": 21504,
    "mlp_hidden_act": "relu2",
    "mlp_bias": False,
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "n_groups": 8,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "n_routed_experts": 8,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None,
    "num_experts_per_tok": 2,
    "use_bias": False,
    "layer_norm_epsilon": 1e-5,
}
# Another name of a key -> the key; the other name holds if both are there.
OTHER_NAMES: Mapping[str, str] = {
    "num_local_experts": "n_routed_experts",
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_conv_bias": "use_conv_bias",
}
PATTERN: Mapping[str, str] = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, DEFAULTS), whole_dtype(config)
    text |= {key: text[other] for other, key in OTHER_NAMES.items() if other in text}
    types = _types(text)
    hidden, eps = integer(text, "hidden_size"), text["layer_norm_epsilon"]
    mixers: Mapping[str, Any] = {
        "linear_attention": _recurrent,
        "full_attention": _attention,
        "moe": _sparse,
        "mlp": lambda text, dtype: _mlp("mixer", integer(text, "intermediate_size"), text, dtype),
    }
    built = {
        kind: Module(
            name="0",
            class_name="NemotronHBlock",
            children=(norm("norm", "NemotronHRMSNorm", hidden, dtype, eps=eps), mixers[kind](text, dtype)),
        )
        for kind in set(types)
    }
    model = Module(
        name="model",
        class_name="NemotronHModel",
        children=(
            embedding("embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_list("layers", [built[kind] for kind in types]),
            norm("norm_f", "NemotronHRMSNorm", hidden, dtype, eps=eps),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        [_kept(index, kind, text, dtype) for index, kind in enumerate(types)],
        table="embeddings",
        ties=False,
        routed=(integer(text, "num_experts_per_tok"), integer(text, "n_routed_experts")),
        persistent=("e_score_correction_bias",),
        stored_form=stored_form,
        unloaded=("mtp.*",),
    )


def _types(text: Mapping[str, Any]) -> list[str]:
    """Each layer's type: `layer_types`, else `layers_block_type`, else the letters of `hybrid_override_pattern`."""
    types = text["layer_types"] if "layer_types" in text else text["layers_block_type"]
    if types is None and "hybrid_override_pattern" in text:
        pattern = text["hybrid_override_pattern"]
        if not isinstance(pattern, str) or not set(pattern) <= set(PATTERN):
            raise UnsupportedError("config_key_unsupported", key="hybrid_override_pattern", found=shown(pattern))
        types = [PATTERN[letter] for letter in pattern]
    if types is None:
        types = ["linear_attention", "moe", "full_attention", "mlp"]
    types = renamed_layer_types(types)
    check_layer_types(types, len(types) if isinstance(types, list) else 1, kinds=tuple(PATTERN.values()))
    assert isinstance(types, list)
    if "full_attention" not in types:
        raise UnsupportedError("config_all_linear")
    return types


def _mamba(text: Mapping[str, Any]) -> Mamba2:
    sizes = Mamba2(
        heads=integer(text, "mamba_num_heads"),
        head_dim=integer(text, "mamba_head_dim"),
        groups=integer(text, "n_groups"),
        state=integer(text, "ssm_state_size"),
        kernel=integer(text, "conv_kernel"),
    )
    check_groups(sizes, "n_groups")
    return sizes


def _recurrent(text: Mapping[str, Any], dtype: DType) -> Module:
    sizes, bias = _mamba(text), flag(text, "use_bias", default=False)
    gated = Module(name="norm", class_name="NemotronHRMSNormGated", tensors=(Tensor("weight", (sizes.inner,), dtype),))
    return mamba2_mixer(
        "mixer",
        "NemotronHMamba2Mixer",
        integer(text, "hidden_size"),
        sizes,
        text["mamba_hidden_act"],
        dtype,
        norm=gated,
        conv_bias=flag(text, "use_conv_bias", default=False),
        in_bias=bias,
        out_bias=bias,
    )


def _attention(text: Mapping[str, Any], dtype: DType) -> Module:
    hidden, head_dim = integer(text, "hidden_size"), integer(text, "head_dim")
    query_heads, kv_heads = read_heads(text)
    return Module(
        name="mixer",
        class_name="NemotronHAttention",
        children=(
            linear("q_proj", hidden, query_heads * head_dim, dtype),
            linear("k_proj", hidden, kv_heads * head_dim, dtype),
            linear("v_proj", hidden, kv_heads * head_dim, dtype),
            linear("o_proj", query_heads * head_dim, hidden, dtype),
        ),
    )


def _mlp(name: str, width: int, text: Mapping[str, Any], dtype: DType) -> Module:
    hidden, bias = integer(text, "hidden_size"), flag(text, "mlp_bias", default=False)
    return Module(
        name=name,
        class_name="NemotronHMLP",
        children=(
            linear("up_proj", hidden, width, dtype, bias=bias),
            linear("down_proj", width, hidden, dtype, bias=bias),
            activation("act_fn", text["mlp_hidden_act"]),
        ),
    )


def _sparse(text: Mapping[str, Any], dtype: DType) -> Module:
    """Experts without a gate, which may read and write a space narrower than the hidden states; and a shared expert."""
    hidden, count = integer(text, "hidden_size"), integer(text, "n_routed_experts")
    latent, width = optional_integer(text, "moe_latent_size", at_least=1), integer(text, "moe_intermediate_size")
    inputs, bias = latent or hidden, flag(text, "mlp_bias", default=False)
    if integer(text, "num_experts_per_tok") > count:
        raise MalformedError(
            "config_out_of_range", key="num_experts_per_tok", found=text["num_experts_per_tok"], least=1, most=count
        )
    expert_stack = Module(
        name="experts",
        class_name="NemotronHExperts",
        tensors=(
            Tensor("up_proj", (count, width, inputs), dtype),
            Tensor("down_proj", (count, inputs, width), dtype),
        ),
        children=(activation("act_fn", text["mlp_hidden_act"]),),
    )
    router = Module(
        name="gate",
        class_name="NemotronHTopkRouter",
        tensors=(Tensor("weight", (count, hidden), dtype),),
        buffers=(Tensor("e_score_correction_bias", (count,), DType.F32),),
    )
    # A shared width of 0 or null is the width of the MLP layers. Source: NemotronHMLP.__init__.
    shared = optional_integer(text, "moe_shared_expert_intermediate_size") or integer(text, "intermediate_size")
    return Module(
        name="mixer",
        class_name="NemotronHMoE",
        children=(
            expert_stack,
            router,
            _mlp("shared_experts", shared, text, dtype),
            *(
                (
                    linear("fc1_latent_proj", hidden, latent, dtype, bias=bias),
                    linear("fc2_latent_proj", latent, hidden, dtype, bias=bias),
                )
                if latent
                else (identity("fc1_latent_proj"), identity("fc2_latent_proj"))
            ),
        ),
    )


def _kept(index: int, kind: str, text: Mapping[str, Any], dtype: DType) -> KeptLayer:
    if kind == "linear_attention":
        return keeps_states(index, "recurrent", _mamba(text).states_bytes(dtype))
    if kind == "full_attention":
        return keeps_heads(index, *read_heads(text), integer(text, "head_dim"), dtype)
    return keeps_nothing(index)


def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """`backbone.` for `model.`, and each expert alone. Source: transformers 5.23, conversion_mapping ("nemotron_h")."""
    name = tensor.name
    if name.startswith("model."):
        name = "backbone." + name.removeprefix("model.")
    block, _, projection = name.rpartition(".")
    if not block.endswith(".mixer.experts"):
        return (replace(tensor, name=name),)
    count, *shape = tensor.shape
    return tuple(
        [Tensor(f"{block}.{expert}.{projection}.weight", tuple(shape), tensor.dtype) for expert in range(count)]
    )
