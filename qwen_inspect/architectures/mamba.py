"""Mamba, Falcon-Mamba and Mamba-2: state space layers alone, whose states do not grow.

Source: transformers 5.23, models/{mamba,falcon_mamba,mamba2}; arXiv 2312.00752, 2410.05355, 2405.21060.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from .design import Architecture
from .outline import causal_lm, embedding, keeps_states, layer_list, norm, whole_dtype, with_defaults
from .reading import flag, integer, shown
from .recurrent import Mamba1, Mamba2, check_groups, mamba1_mixer, mamba2_mixer, time_step_rank

MAMBA1: Mapping[str, Any] = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "time_step_rank": "auto",
    "mixer_rms_eps": 1e-6,
    "tie_word_embeddings": True,
}
MAMBA2: Mapping[str, Any] = {
    **MAMBA1,
    "num_heads": 128,
    "head_dim": 64,
    "vocab_size": 32768,
    "hidden_size": 4096,
    "state_size": 128,
    "num_hidden_layers": 64,
    "n_groups": 8,
    "tie_word_embeddings": False,
}
PREFIXES: Mapping[str, str] = {"mamba": "Mamba", "falcon_mamba": "FalconMamba", "mamba2": "Mamba2"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    second = config["model_type"] == "mamba2"
    text, dtype = with_defaults(config, MAMBA2 if second else MAMBA1), whole_dtype(config)
    if "layer_types" in text:  # cannot be set
        raise UnsupportedError("config_key_unsupported", key="layer_types", found=shown(text["layer_types"]))
    prefix, eps = PREFIXES[config["model_type"]], text["layer_norm_epsilon"]
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers")
    mixer, states_bytes = (_second if second else _first)(text, prefix, dtype)
    arguments = {"mamba": f"{hidden}, eps={eps}", "falcon_mamba": f"({hidden},), eps={eps}", "mamba2": ""}
    shown_norm = arguments[config["model_type"]]
    layer = Module(
        name="0",
        class_name=f"{prefix}Block",
        children=(norm("norm", f"{prefix}RMSNorm", hidden, dtype, arguments=shown_norm), mixer),
    )
    model = Module(
        name="backbone",
        class_name=f"{prefix}Model",
        children=(
            embedding("embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_list("layers", [layer] * layers),
            norm("norm_f", f"{prefix}RMSNorm", hidden, dtype, arguments=shown_norm),
        ),
    )
    kept = [keeps_states(index, "recurrent", states_bytes) for index in range(layers)]
    return causal_lm(config, text, model, kept, table="embeddings", kernel="eager")


def _first(text: Mapping[str, Any], prefix: str, dtype: DType) -> tuple[Module, tuple[int, ...]]:
    hidden = integer(text, "hidden_size")
    inner = integer(text, "intermediate_size" if "intermediate_size" in text else "expand")
    sizes = Mamba1(
        inner=inner if "intermediate_size" in text else inner * hidden,
        state=integer(text, "state_size"),
        kernel=integer(text, "conv_kernel"),
        rank=integer(time_step_rank(text, "time_step_rank", hidden), "time_step_rank"),
    )
    norms = (
        [("dt_layernorm", sizes.inner), ("b_layernorm", sizes.state), ("c_layernorm", sizes.state)]
        if prefix == "FalconMamba"
        else []
    )
    mixer = mamba1_mixer(
        "mixer",
        f"{prefix}Mixer",
        hidden,
        sizes,
        text["hidden_act"],
        dtype,
        bias=flag(text, "use_bias", default=False),
        conv_bias=flag(text, "use_conv_bias", default=False),
        norms=tuple(
            Module(
                name=name,
                class_name="FalconMambaWeightlessRMSNorm",
                arguments=f"eps={text['mixer_rms_eps']}",
                buffers=(Tensor("weight", (width,), dtype),),
            )
            for name, width in norms
        ),
    )
    return mixer, sizes.states_bytes(dtype)


def _second(text: Mapping[str, Any], prefix: str, dtype: DType) -> tuple[Module, tuple[int, ...]]:
    hidden, bias = integer(text, "hidden_size"), flag(text, "use_bias", default=False)
    sizes = Mamba2(
        heads=integer(text, "num_heads"),
        head_dim=integer(text, "head_dim"),
        groups=integer(text, "n_groups"),
        state=integer(text, "state_size"),
        kernel=integer(text, "conv_kernel"),
    )
    check_groups(sizes, "n_groups")
    inner = hidden * integer(text, "expand")
    if sizes.inner != inner:  # Source: Mamba2Config.validate_architecture
        raise MalformedError(
            "config_out_of_range", key="num_heads x head_dim", found=sizes.inner, least=inner, most=inner
        )
    mixer = mamba2_mixer(
        "mixer",
        "Mamba2Mixer",
        hidden,
        sizes,
        text["hidden_act"],
        dtype,
        norm=Module(name="norm", class_name="MambaRMSNormGated", tensors=(Tensor("weight", (inner,), dtype),)),
        conv_bias=flag(text, "use_conv_bias", default=False),
        in_bias=bias,
        out_bias=bias,
    )
    return mixer, sizes.states_bytes(dtype)
