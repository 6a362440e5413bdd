"""MLPs of routed experts beside shared ones, after a few dense layers: DeepSeek's form, which many families have.

Source: DeepSeekMoE (arXiv 2401.06066); transformers 5.23, DeepseekV3MoE.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .decoders import Decoder
from .outline import experts
from .reading import MOST_EXPERTS, check_layer_types, integer

SCORE_BIAS = "e_score_correction_bias"  # a buffer that files hold
EXPERTS = ("gate_proj", "up_proj", "down_proj")  # an expert's matrices in files


def router(
    name: str, class_name: str, count: int, hidden: int, dtype: DType, *, score_bias: DType | None = None
) -> Module:
    """Scores of `count` experts, and with `score_bias`, its dtype, a bias that balances their load (arXiv 2408.15664)."""
    biases = () if score_bias is None else (Tensor(SCORE_BIAS, (count,), score_bias),)
    return Module(name=name, class_name=class_name, tensors=(Tensor("weight", (count, hidden), dtype),), buffers=biases)


def mixture(decoder: Decoder, *, score_bias: DType | None, class_name: str = "MoE", bias: bool = False) -> Module:
    """Routed experts, their router and the shared experts, which are one MLP of their joint width.

    score_bias: as of `router`. bias: of the shared experts.
    """
    prefix, text, hidden, dtype = decoder.prefix, decoder.text, decoder.hidden, decoder.dtype
    count, width = integer(text, "n_routed_experts"), integer(text, "moe_intermediate_size")
    shared = width * integer(text, "n_shared_experts", at_least=0)
    return Module(
        name="mlp",
        class_name=prefix + class_name,
        children=(
            experts("experts", f"{prefix}Experts", count, hidden, width, text["hidden_act"], dtype),
            router("gate", f"{prefix}TopkRouter", count, hidden, dtype, score_bias=score_bias),
            decoder.mlp("shared_experts", width=shared, bias=bias),
        ),
    )


def read_sparse_layers(text: Mapping[str, Any], layers: int, experts: int, *, dense_first: str | None) -> list[bool]:
    """Whether each layer has experts: by `mlp_layer_types`, else all but the first few, as many as the key `dense_first` says."""
    if layers * experts > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=layers, experts=experts, most=MOST_EXPERTS)
    types = text.get("mlp_layer_types")
    if types is None:
        dense = 1 if dense_first is None else integer(text, dense_first, at_least=0)
        return [index >= dense for index in range(layers)]
    check_layer_types(types, layers, kinds=("dense", "sparse"), key="mlp_layer_types")
    return [kind == "sparse" for kind in types]
