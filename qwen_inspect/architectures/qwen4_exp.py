"""Qwen3.8-Flash-Next: several residual streams, linear attention, attention over tokens that an index selects, and tables of
hashed n-grams; behind a vision tower, or that decoder alone.

Source: transformers 5.23, models/qwen4_exp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..spec import GatedAttention, LinearAttention, ModelSpec, Module, MoeMlp
from ..typed import Any
from ..values import replace
from .blocks import (
    experts_stored_singly,
    linear_attention,
    rms_norm,
    rotary,
    softmax_attention,
    sparse_block_with_shared_expert,
)
from .design import Architecture, KeptLayer, StoredForm
from .outline import (
    causal_lm,
    embedding,
    keeps_states,
    layer_list,
    linear,
    read_padding,
    rotary_dim,
    whole_dtype,
    with_defaults,
)
from .reading import (
    MOST_LAYERS,
    check_layer_types,
    hybrid_attentions,
    integer,
    part,
    read_activation,
    shown,
    sparse_mlps,
)
from .sizes import check_sizes
from .vision import QWEN3_SIZES, qwen3_tower, read_vision

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "head_dim": 256,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "layer_types": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "hc_count": 4,
    "hc_lowrank": 320,
    "ple_layer_ids": None,
    "ple_embed_dim": None,
    "ple_conv_kernel_size": 4,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20_000_000,
    "make_ngram_vocab_size_divisible_by": 128,
    "split_ngram_parts": 512,
    "output_gate_type": None,
}
TYPES = ("linear_attention", "indexed_attention")
MOST_NGRAM_HEADS = 4_096  # of all layers; the release has 16
MOST_PIECES = 1 << 16  # of all tables; the release has 128
BUFFERS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")


def architecture(config: Mapping[str, Any]) -> Architecture:
    alone = config["model_type"] == "qwen4_exp_text"
    check_sizes(config)
    nested = config if alone else part(config, "text_config", model_types=("qwen4_exp_text",))
    text, dtype = with_defaults(nested, DEFAULTS), whole_dtype(config)
    if not alone:  # the top's flag counts
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    if "num_local_experts" in text:
        raise UnsupportedError(
            "config_key_unsupported", key="num_local_experts", found=shown(text["num_local_experts"])
        )
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    types, spec = _types(text, layers), _spec(text, dtype)
    tables = _table_layers(text, types)
    full, state = _attentions(text)
    decoder = _decoder(text, spec, types, tables, full, state, name="model" if alone else "language_model")
    model = decoder
    if not alone:
        tower = qwen3_tower(read_vision(config, sizes=QWEN3_SIZES), replace(spec, class_prefix="Qwen4Exp"))
        model = Module(name="model", class_name="Qwen4ExpModel", children=(tower, decoder))
    return causal_lm(
        config,
        text,
        model,
        _kept(text, dtype, types, tables, full, state),
        table="embed_tokens" if alone else "language_model.embed_tokens",
        routed=(integer(text, "num_experts_per_tok"), integer(text, "num_experts")),
        persistent=BUFFERS,
        stored_form=stored_in_shards(integer(text, "split_ngram_parts", at_most=MOST_PIECES // max(1, len(tables)))),
        unloaded=("^mtp.*", "^model.visual.*") if alone else ("^mtp.*",),
    )


def _types(text: Mapping[str, Any], layers: int) -> list[str]:
    """Each layer's type; `full_attention`, as the release writes it, is attention with an index."""
    types = text["layer_types"]
    if types is None:
        interval = integer({"full_attention_interval": 4, **text}, "full_attention_interval")
        types = [TYPES[(index + 1) % interval == 0] for index in range(layers)]
    if isinstance(types, list):
        older = ("full_attention", "qwen_sparse_attention")
        types = ["indexed_attention" if kind in older else kind for kind in types]
    check_layer_types(types, layers, kinds=TYPES)
    if "indexed_attention" not in types:
        raise UnsupportedError("config_all_linear")
    return list(types)


def _spec(text: Mapping[str, Any], dtype: DType) -> ModelSpec:
    """What the blocks that this decoder shares with Qwen3.5 need to know."""
    gate = text["output_gate_type"] or text["hidden_act"]
    if gate not in ("sigmoid", "silu"):
        raise UnsupportedError("config_key_unsupported", key="output_gate_type", found=shown(gate))
    return ModelSpec(
        family="qwen4_exp",
        class_name="",
        class_prefix="Qwen4ExpText",
        vocab_size=integer(text, "vocab_size"),
        hidden_size=integer(text, "hidden_size"),
        context_tokens=None,
        tied_embeddings=False,
        dtype=dtype,
        norm_eps=text["rms_norm_eps"],
        activation=read_activation(text, default="silu"),
        pad_token_id=None,
        layers=(),
    )


def _attentions(text: Mapping[str, Any]) -> tuple[GatedAttention, LinearAttention]:
    both = {**text, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}
    full, state = hybrid_attentions({"partial_rotary_factor": 1.0, **both}, fused_projections=False)(2)
    assert isinstance(full, GatedAttention)
    assert isinstance(state, LinearAttention)
    return full, state


def _table_layers(text: Mapping[str, Any], types: list[str]) -> list[int]:
    """Indexes of the layers that have a table of n-grams, checked as Qwen4ExpTextConfig.validate_architecture does."""
    ids = text["ple_layer_ids"] or []
    if not isinstance(ids, list) or not all(
        type(layer) is int and 1 <= layer <= len(types) and types[layer - 1] == "linear_attention" for layer in ids
    ):
        raise UnsupportedError("config_key_unsupported", key="ple_layer_ids", found=shown(ids))
    if ids and text["eos_token_id"] in (None, []):
        raise UnsupportedError("config_key_unsupported", key="eos_token_id", found=shown(text["eos_token_id"]))
    if "number_of_conv_states" in text:
        integer(text, "number_of_conv_states", at_least=3 if ids else 1)
    return sorted({layer - 1 for layer in ids})


def _decoder(
    text: Mapping[str, Any],
    spec: ModelSpec,
    types: list[str],
    tables: list[int],
    full: GatedAttention,
    state: LinearAttention,
    *,
    name: str,
) -> Module:
    attention = {"linear_attention": linear_attention(state, spec), "indexed_attention": _indexed(text, spec, full)}
    sizes = {**text, "num_hidden_layers": 1, "decoder_sparse_step": 1, "mlp_only_layers": []}
    (mlp,) = sparse_mlps(
        sizes, experts_key="num_experts", shared_size=integer(text, "shared_expert_intermediate_size")
    )(1)
    assert isinstance(mlp, MoeMlp)
    sparse = Module(
        name="mlp",
        class_name="Qwen4ExpTextSparseMoeBlock",
        children=sparse_block_with_shared_expert(mlp, spec),
    )
    residuals = [_residual(place, text, spec) for place in ("attn_hyper_connection", "mlp_hyper_connection")]
    layers = [
        Module(
            name="0",
            class_name="Qwen4ExpTextDecoderLayer",
            children=(
                attention[kind],
                sparse,
                *((_table(text, spec, tables.index(index)),) if index in tables else ()),
                *residuals,
            ),
        )
        for index, kind in enumerate(types)
    ]
    turned = rotary_dim(text, full.head_dim, partial=True)
    if turned > integer(text, "indexer_head_dim"):
        raise UnsupportedError("config_key_unsupported", key="indexer_head_dim", found=shown(text["indexer_head_dim"]))
    return Module(
        name=name,
        class_name="Qwen4ExpTextModel",
        children=(
            embedding("embed_tokens", spec.vocab_size, spec.hidden_size, spec.dtype, padding=read_padding(text)),
            layer_list("layers", layers),
            rotary("rotary_emb", "Qwen4ExpTextRotaryEmbedding", turned),
            _residual("hyper_connection_mixer", text, spec, injects=False),
        ),
    )


def _residual(name: str, text: Mapping[str, Any], spec: ModelSpec, *, injects: bool = True) -> Module:
    """Mixes the residual streams into a block's input. injects: and its output back into them."""
    streams = integer(text, "hc_count", at_least=2)
    width, rank, dtype = streams * spec.hidden_size, integer(text, "hc_lowrank"), spec.dtype
    return Module(
        name=name,
        class_name="Qwen4ExpTextGatedResidual",
        children=(
            rms_norm("hc_norm", width, spec),
            linear("input_mix_weight_down", width, rank, dtype),
            linear("input_mix_weight_up", rank, width, dtype),
            *((linear("block_inject_weight", width, streams, dtype),) if injects else ()),
        ),
    )


def _indexed(text: Mapping[str, Any], spec: ModelSpec, full: GatedAttention) -> Module:
    """Gated attention over the tokens that an index of averaged keys selects."""
    dim, heads = integer(text, "indexer_head_dim"), integer(text, "indexer_n_heads")
    keys = integer(text, "indexer_kv_heads", at_most=1)
    if integer(text, "indexer_budget") % integer(text, "indexer_compress_ratio"):
        raise UnsupportedError("config_key_unsupported", key="indexer_budget", found=shown(text["indexer_budget"]))
    indexer = Module(
        name="indexer",
        class_name="Qwen4ExpTextQSAIndexer",
        children=(
            linear("index_qk_proj", spec.hidden_size, (heads + keys) * dim, spec.dtype),
            rms_norm("q_layernorm", dim, spec),
            rms_norm("k_layernorm", dim, spec),
        ),
    )
    attention = softmax_attention(full, spec, query_parts=2, qk_norm=True)
    return replace(attention, children=(*attention.children, indexer))


def _table(text: Mapping[str, Any], spec: ModelSpec, index: int) -> Module:
    """The `index`th table of n-grams: each head hashes them into a prime number of rows; and what makes streams of it."""
    size, hidden, dtype = integer(text, "ngram_size", at_least=2), spec.hidden_size, spec.dtype
    heads = (size - 1) * integer(text, "heads_per_ngram")
    width = hidden if text["ple_embed_dim"] is None else integer(text, "ple_embed_dim")
    if width % heads or (index + 1) * heads > MOST_NGRAM_HEADS:
        raise UnsupportedError("config_key_unsupported", key="heads_per_ngram", found=shown(text["heads_per_ngram"]))
    first = index * heads
    rows = sum(islice(primes_from(integer(text, "ngram_vocab_size_base")), first, first + heads))
    multiple = integer(text, "make_ngram_vocab_size_divisible_by")
    streams = hidden * integer(text, "hc_count")
    kernel = integer(text, "ple_conv_kernel_size", at_least=2)
    table = Module(
        name="ple_embedding",
        class_name="Qwen4ExpTextNGramEmbedding",
        buffers=tuple(
            Tensor(name, (length,), DType.I64) for name, length in zip(BUFFERS, (size, heads, heads), strict=True)
        ),
        children=(embedding("ngram_embedding", -(-rows // multiple) * multiple, width // heads, dtype),),
    )
    convolution = Module(
        name="conv1d",
        class_name="Conv1d",
        arguments=f"{streams}, {streams}, kernel_size=({kernel},), stride=(1,), dilation=({size},), groups={streams}, "
        "bias=False",
        tensors=(Tensor("weight", (streams, 1, kernel), dtype),),
    )
    return Module(
        name="ple",
        class_name="Qwen4ExpTextPLELayer",
        children=(
            table,
            linear("key_proj", width, streams, dtype),
            linear("value_proj", width, hidden, dtype),
            *(rms_norm(name, streams, spec) for name in ("norm_key", "norm_query", "norm_conv")),
            convolution,
        ),
    )


def primes_from(start: int) -> Iterator[int]:
    """The primes of at least `start`, in order."""
    number = start
    while True:
        if _is_prime(number):
            yield number
        number += 1


def _is_prime(number: int) -> bool:
    """By Miller-Rabin, whose bases 2, 3, 5 and 7 decide every number below 3,215,031,751 (Jaeschke 1993)."""
    bases = (2, 3, 5, 7)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    powers = (pow(base, odd, number) for base in bases)
    return all(
        power == 1 or any(pow(power, 1 << step, number) == number - 1 for step in range(twos)) for power in powers
    )


def _kept(
    text: Mapping[str, Any],
    dtype: DType,
    types: list[str],
    tables: list[int],
    full: GatedAttention,
    state: LinearAttention,
) -> list[KeptLayer]:
    """Linear layers: the state and the convolutions' last inputs, beside a table its n-grams' last tokens too (int64). Indexed
    layers: K, V and the index's keys; the first of them also every token's three positions (int64).

    Source: Qwen4ExpTextModel.forward, Qwen4ExpTextPLELayer, DynamicIndexedLayer.
    """
    size, width = dtype.bits // 8, integer(text, "hidden_size") * integer(text, "hc_count")
    states = (
        state.conv_channels * state.conv_kernel * size,
        4 * state.value_heads * state.key_head_dim * state.value_head_dim,
    )
    grams = integer(text, "ngram_size")
    columns = (integer(text, "ple_conv_kernel_size") - 1) * grams
    with_table = (states[0], width * columns * size, 8 * (grams - 1), states[1])
    per_token = (2 * full.kv_heads * full.head_dim + integer(text, "indexer_head_dim")) * size
    first = types.index("indexed_attention")

    def layer(index: int, kind: str) -> KeptLayer:
        if kind == "linear_attention":
            return keeps_states(index, "recurrent", with_table if index in tables else states)
        return keeps_states(index, "indexed", (), per_token=per_token + (24 if index == first else 0))

    return [layer(index, kind) for index, kind in enumerate(types)]


def stored_in_shards(shards: int) -> StoredForm:
    """Each expert alone, and each table in `shards` pieces of rows.

    Source: transformers 5.23, conversion_mapping ("qwen4_exp_text": Concatenate), torch.chunk.
    """

    def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
        if not tensor.name.endswith(".ngram_embedding.weight"):
            return experts_stored_singly(tensor)
        rows, width = tensor.shape
        stem, most = tensor.name.removesuffix("weight"), -(-rows // shards)
        starts = range(0, rows, most)
        return tuple(
            [
                Tensor(f"{stem}shard_{index}.weight", (min(most, rows - start), width), tensor.dtype)
                for index, start in enumerate(starts)
            ]
        )

    return stored_form
