"""The decoder that most families vary: q, k, v and o, a gated MLP, norms, a rotary table; each family states what differs.

Source: transformers 5.23, models/llama, of which the families' modules are copies with changes (modular_*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import DType
from ..errors import UnsupportedError
from ..results.cache import CacheKind
from ..spec import Module
from ..typed import Any
from ..values import dataclass
from .blocks import linear, rotary
from .design import KeptLayer
from .outline import (
    activation,
    embedding,
    gated_mlp,
    keeps_heads,
    layer_list,
    norm,
    read_heads,
    read_padding,
    read_rope,
    rotary_dim,
)
from .reading import MOST_LAYERS, check_layer_types, integer, read_head_dim, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The sizes that a decoder's modules share, and the modules by their usual names.

    prefix: of the classes' names. eps: of the norms, as it is printed. norm_dtype: of their weights, as the others' if None.
    """

    prefix: str
    text: Mapping[str, Any]
    dtype: DType
    hidden: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    eps: object
    norm_dtype: DType | None = None

    def norm(self, name: str, width: int | None = None) -> Module:
        """Of `width` channels, `hidden` if None."""
        width = self.hidden if width is None else width
        return norm(name, f"{self.prefix}RMSNorm", width, self.norm_dtype or self.dtype, eps=self.eps)

    def attention(
        self, *norms: Module, bias: bool = False, output_bias: bool | None = None, output: str = "o_proj"
    ) -> Module:
        """q_proj, k_proj, v_proj and `output`, then `norms`; output_bias: as `bias` if None."""
        hidden, dtype = self.hidden, self.dtype
        rows, columns = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        return Module(
            name="self_attn",
            class_name=f"{self.prefix}Attention",
            children=(
                linear("q_proj", hidden, rows, dtype, bias=bias),
                linear("k_proj", hidden, columns, dtype, bias=bias),
                linear("v_proj", hidden, columns, dtype, bias=bias),
                linear(output, rows, hidden, dtype, bias=bias if output_bias is None else output_bias),
                *norms,
            ),
        )

    def mlp(
        self, name: str = "mlp", class_name: str = "MLP", *, bias: bool = False, width: int | None = None
    ) -> Module:
        width = integer(self.text, "intermediate_size") if width is None else width
        act = self.text["hidden_act"]
        return gated_mlp(name, self.prefix + class_name, self.hidden, width, act, self.dtype, bias=bias)

    def joint_mlp(self) -> Module:
        """Gate and up as one matrix. Source: Phi3MLP."""
        width = integer(self.text, "intermediate_size")
        return Module(
            name="mlp",
            class_name=f"{self.prefix}MLP",
            children=(
                linear("gate_up_proj", self.hidden, 2 * width, self.dtype),
                linear("down_proj", width, self.hidden, self.dtype),
                activation("activation_fn", self.text["hidden_act"]),
            ),
        )

    def layer(self, *children: Module) -> Module:
        return Module(name="0", class_name=f"{self.prefix}DecoderLayer", children=children)

    def prenorm_layer(self, attention: Module, mlp: Module) -> Module:
        """The usual order: attention, MLP, and the norm before each."""
        return self.layer(attention, mlp, self.norm("input_layernorm"), self.norm("post_attention_layernorm"))

    def table(self) -> Module:
        rows, padding = integer(self.text, "vocab_size"), read_padding(self.text)
        return embedding("embed_tokens", rows, self.hidden, self.dtype, padding=padding)

    def model(
        self, layer: Module | Sequence[Module], *, last_norm: Module | None = None, rotary_table: Module | None = None
    ) -> Module:
        """Table, layers, norm, rotary table. layer: of all layers, or of each."""
        layers = [layer] * self.layers if isinstance(layer, Module) else layer
        return Module(
            name="model",
            class_name=f"{self.prefix}Model",
            children=(
                self.table(),
                layer_list("layers", layers),
                last_norm or self.norm("norm"),
                rotary_table or self.rotary(),
            ),
        )

    def rotary(self, *, partial: bool = False) -> Module:
        """partial: whether the class can turn a part of each head; others fail if `partial_rotary_factor` says so."""
        dim = rotary_dim(self.text, self.head_dim, partial=partial)
        if dim != self.head_dim and not partial:
            raise UnsupportedError(
                "config_key_unsupported", key="partial_rotary_factor", found=shown(dim / self.head_dim)
            )
        return rotary("rotary_emb", f"{self.prefix}RotaryEmbedding", dim)

    def kept(self, spans: Sequence[tuple[CacheKind, int | None]]) -> list[KeptLayer]:
        """What the layers keep. spans: of `read_spans`."""
        return [
            keeps_heads(index, self.query_heads, self.kv_heads, self.head_dim, self.dtype, kind=kind, window=window)
            for index, (kind, window) in enumerate(spans)
        ]


def read_decoder(
    text: Mapping[str, Any], dtype: DType, prefix: str, *, eps: str = "rms_norm_eps", null_head_dim: bool = False
) -> Decoder:
    """The sizes by their usual keys. eps: the key of the norms' epsilon. null_head_dim: whether a null means that the heads
    share `hidden_size`, as a missing key does; the other classes fail on it.
    """
    query_heads, kv_heads = read_heads(text)
    if "head_dim" in text and not null_head_dim:
        integer(text, "head_dim")
    return Decoder(
        prefix=prefix,
        text=text,
        dtype=dtype,
        hidden=integer(text, "hidden_size"),
        layers=integer(text, "num_hidden_layers", at_most=MOST_LAYERS),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=read_head_dim(text),
        eps=text[eps],
    )


def with_layer_types(text: Mapping[str, Any], is_full: Callable[[int], bool]) -> dict[str, Any]:
    """`text` with `layer_types`, if it has none: full attention where `is_full` says so, sliding elsewhere. The classes that have
    such a pattern know no other types.
    """
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    types = text.get("layer_types")
    if types is None:
        types = ["full_attention" if is_full(index) else "sliding_attention" for index in range(layers)]
    check_layer_types(types, layers, kinds=("full_attention", "sliding_attention"))
    return {**text, "layer_types": types}


def check_query_scaling(text: Mapping[str, Any]) -> None:
    """Raises UnsupportedError if RoPE's parameters lack those by which Ministral 3 and Mistral 4 scale late queries.

    Source: transformers 5.23, Ministral3Attention.forward, and standardize_rope_params, which adds the length to some types.
    """
    kind, rope = read_rope(text)
    has_length = "original_max_position_embeddings" in rope or kind in ("llama3", "yarn", "longrope")
    if not has_length or rope.get("llama_4_scaling_beta") is None:
        raise UnsupportedError("config_key_unsupported", key="rope_parameters", found=shown(rope))
