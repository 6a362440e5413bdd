"""MLPs whose experts are all that there is: a router over stacked experts, as in Mixtral.

Source: Mixtral of Experts (arXiv 2401.04088); transformers 5.23, MixtralSparseMoeBlock.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .decoders import Decoder
from .design import StoredForm
from .outline import experts
from .reading import MOST_EXPERTS, integer


def read_routed(text: Mapping[str, Any], key: str, *, layers: int) -> tuple[int, int]:
    """(experts per token, experts); the second by the key `key`."""
    count = integer(text, key)
    if layers * count > MOST_EXPERTS:
        raise MalformedError("config_too_many_experts", layers=layers, experts=count, most=MOST_EXPERTS)
    return integer(text, "num_experts_per_tok", at_most=count), count


def sparse_block(decoder: Decoder, count: int, *, name: str, class_name: str, router: str = "gate") -> Module:
    """The router of `count` experts, then the experts."""
    text, prefix, hidden, dtype = decoder.text, decoder.prefix, decoder.hidden, decoder.dtype
    width, act = integer(text, "intermediate_size"), text["hidden_act"]
    return Module(
        name=name,
        class_name=prefix + class_name,
        children=(
            Module(
                name=router,
                class_name=f"{prefix}TopKRouter",
                tensors=(Tensor("weight", (count, hidden), dtype),),
            ),
            experts("experts", f"{prefix}Experts", count, hidden, width, act, dtype),
        ),
    )


def stored_by_expert(block: str, matrices: tuple[str, str, str], *, built: str = "mlp") -> StoredForm:
    """Files hold `built` as `block`, and each expert's matrices singly, named `matrices`: gate, up, down; of all experts the
    gates before the ups.

    Source: transformers 5.23, conversion_mapping ("mixtral", "qwen2_moe": MergeModulelist, Concatenate).
    """
    gate, up, down = matrices

    def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
        layer, _, rest = tensor.name.partition(f".{built}.")
        if rest not in ("experts.gate_up_proj", "experts.down_proj"):
            return (Tensor(f"{layer}.{block}.{rest}", tensor.shape, tensor.dtype),) if rest else (tensor,)
        count, rows, columns = tensor.shape
        names, shape = ([down], (rows, columns)) if rest.endswith("down_proj") else ([gate, up], (rows // 2, columns))
        stems = [f"{layer}.{block}.experts.{expert}." for expert in range(count)]
        return tuple([Tensor(f"{stem}{name}.weight", shape, tensor.dtype) for name in names for stem in stems])

    return stored_form
