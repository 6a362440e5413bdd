"""DistilBERT: BERT with half of its layers, names of its own, and without types of tokens and pooler.

Source: transformers 5.23, models/distilbert; DistilBERT (arXiv 1910.01108).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .bert import built_name, read_labels
from .design import Architecture
from .outline import (
    activation,
    dropout,
    embedding,
    keeps_nothing_both_ways,
    layer_list,
    layer_norm,
    linear,
    outlined,
    read_padding,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer, read_class_name

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "seq_classif_dropout": 0.2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
ALIASES: Mapping[str, str] = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
EPS = 1e-12


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, DEFAULTS), ALIASES), whole_dtype(config)
    width, heads = integer(text, "dim"), integer(text, "n_heads")
    if width % heads:
        raise MalformedError("config_width_not_divisible", hidden=width, heads=heads)
    layers, rows = integer(text, "n_layers", at_most=MOST_LAYERS), integer(text, "vocab_size")
    class_name = read_class_name(config)
    bare = class_name == "DistilBertModel"
    model = Module(
        name="" if bare else "distilbert",
        class_name="DistilBertModel",
        children=(
            _embeddings(text, rows, width, dtype),
            Module(
                name="transformer",
                class_name="Transformer",
                children=(layer_list("layer", [_layer(text, width, dtype)] * layers),),
            ),
        ),
    )
    kept = [keeps_nothing_both_ways(index, heads, width // heads) for index in range(layers)]
    table = "embeddings.word_embeddings" if bare else "distilbert.embeddings.word_embeddings"
    tied = flag(text, "tie_word_embeddings", default=False)
    heads_of: Mapping[str, tuple[Module, ...]] = {
        "DistilBertForMaskedLM": (
            activation("activation", text["activation"]),
            model,
            linear("vocab_transform", width, width, dtype, bias=True),
            layer_norm("vocab_layer_norm", width, dtype, eps=EPS),
            linear("vocab_projector", width, rows, dtype, bias=True, tied_to=f"{table}.weight" if tied else None),
            Module(name="mlm_loss_fct", class_name="CrossEntropyLoss"),
        ),
        "DistilBertForSequenceClassification": (
            model,
            linear("pre_classifier", width, width, dtype, bias=True),
            linear("classifier", width, read_labels(config), dtype, bias=True),
            dropout("dropout", text["seq_classif_dropout"]),
        ),
    }
    tree = model if bare else Module(name="", class_name=class_name, children=heads_of[class_name])
    built = built_name("distilbert", ("embeddings.", "transformer."), bare=bare)
    return outlined(config, tree, kept, text=text, table=table, head="vocab_projector", built_name=built)


def _embeddings(text: Mapping[str, Any], rows: int, width: int, dtype: DType) -> Module:
    positions = integer(text, "max_position_embeddings")
    return Module(
        name="embeddings",
        class_name="Embeddings",
        buffers=(Tensor("position_ids", (1, positions), DType.I64),),
        children=(
            embedding("word_embeddings", rows, width, dtype, padding=read_padding(text)),
            embedding("position_embeddings", positions, width, dtype),
            layer_norm("LayerNorm", width, dtype, eps=EPS),
            dropout("dropout", text["dropout"]),
        ),
    )


def _layer(text: Mapping[str, Any], width: int, dtype: DType) -> Module:
    inner = integer(text, "hidden_dim")
    return Module(
        name="0",
        class_name="TransformerBlock",
        children=(
            Module(
                name="attention",
                class_name="DistilBertSelfAttention",
                children=(
                    *(linear(f"{name}_lin", width, width, dtype, bias=True) for name in ("q", "k", "v", "out")),
                    dropout("dropout", text["attention_dropout"]),
                ),
            ),
            layer_norm("sa_layer_norm", width, dtype, eps=EPS),
            Module(
                name="ffn",
                class_name="FFN",
                children=(
                    dropout("dropout", text["dropout"]),
                    linear("lin1", width, inner, dtype, bias=True),
                    linear("lin2", inner, width, dtype, bias=True),
                    activation("activation", text["activation"]),
                ),
            ),
            layer_norm("output_layer_norm", width, dtype, eps=EPS),
        ),
    )
