"""BERT, RoBERTa and XLM-RoBERTa: encoders, whose layers attend to the tokens before and after each and keep nothing.

Source: transformers 5.23, models/{bert,roberta,xlm_roberta}; BERT (arXiv 1810.04805), RoBERTa (arXiv 1907.11692).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
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
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer, read_class_name, shown

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "classifier_dropout": None,
    "tie_word_embeddings": True,
}
ROBERTA: Mapping[str, Any] = {"vocab_size": 50265, "pad_token_id": 1}
XLM_ROBERTA: Mapping[str, Any] = {"pad_token_id": 1}
# By model_type: the prefix of the classes, the name of the model in them, and defaults that are not BERT's.
TYPES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("Bert", "bert", {}),
    "roberta": ("Roberta", "roberta", ROBERTA),
    "xlm-roberta": ("XLMRoberta", "roberta", XLM_ROBERTA),
}
WORDS = "embeddings.word_embeddings"
OUTPUTS = ("lm_head.decoder", "cls.predictions.decoder")  # the output layers of RoBERTa and BERT
FORMER_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))  # of early files


def architecture(config: Mapping[str, Any]) -> Architecture:
    prefix, name, defaults = TYPES[config["model_type"]]
    text, dtype = with_defaults(config, {**DEFAULTS, **defaults}), whole_dtype(config)
    for key in ("is_decoder", "add_cross_attention"):
        if flag(text, key, default=False):
            raise UnsupportedError("config_key_unsupported", key=key, found="True")
    hidden, heads = integer(text, "hidden_size"), integer(text, "num_attention_heads")
    if hidden % heads:
        raise MalformedError("config_width_not_divisible", hidden=hidden, heads=heads)
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    class_name = read_class_name(config)
    model = Module(
        name=name,
        class_name=f"{prefix}Model",
        children=(
            _embeddings(prefix, text, dtype, numbered_from_padding=prefix != "Bert"),
            Module(
                name="encoder",
                class_name=f"{prefix}Encoder",
                children=(layer_list("layer", [_layer(prefix, text, dtype)] * layers),),
            ),
            *([_pooler(prefix, hidden, dtype)] if _is_pooled(prefix, class_name) else ()),
        ),
    )
    if prefix != "Bert":
        text["max_position_embeddings"] -= 1 + (
            read_padding(text) or 0
        )  # no token has the rows before and of the padding
    kept = [keeps_nothing_both_ways(index, heads, hidden // heads) for index in range(layers)]
    bare = class_name == model.class_name
    stated: dict[str, Any] = {
        "text": text,
        "built_name": built_name(name, ("embeddings.", "encoder.", "pooler."), bare=bare),
    }
    if bare:
        return outlined(config, replace(model, name=""), kept, table=WORDS, **stated)
    table, output = f"{name}.{WORDS}", OUTPUTS[prefix == "Bert"]
    head_first = prefix == "XLMRoberta"
    masked = class_name.endswith("MaskedLM")
    head = (_head(prefix, text, dtype),) if masked else _classifier(prefix, config, text, dtype)
    tree = Module(name="", class_name=class_name, children=(*head, model) if head_first else (model, *head))
    if not masked or not flag(text, "tie_word_embeddings", default=False):
        return outlined(config, tree, kept, table=table, head=output, **stated)
    tied, owner = (table, output) if head_first else (output, table)
    tree = _changed(tree, output, lambda layer: replace(layer, tensors=layer.tensors[:1]))  # its bias is the head's
    tree = _changed(tree, tied, lambda layer: replace(layer, tensors=(), tied_to=f"{owner}.weight"))
    whole = outlined(config, tree, kept, table=table, head=output, **stated)
    return replace(whole, tied={**whole.tied, f"{output}.bias": f"{output.rpartition('.')[0]}.bias"})


def _is_pooled(prefix: str, class_name: str) -> bool:
    return class_name.endswith("Model") or (prefix == "Bert" and class_name.endswith("SequenceClassification"))


def _norm(name: str, text: Mapping[str, Any], dtype: DType) -> Module:
    return layer_norm(name, integer(text, "hidden_size"), dtype, eps=text["layer_norm_eps"])


def _embeddings(prefix: str, text: Mapping[str, Any], dtype: DType, *, numbered_from_padding: bool) -> Module:
    """numbered_from_padding: RoBERTa's positions begin behind the padding's."""
    hidden, positions = integer(text, "hidden_size"), integer(text, "max_position_embeddings")
    padding = read_padding(text)
    if numbered_from_padding and (padding is None or padding + 1 >= positions):
        raise UnsupportedError("config_key_unsupported", key="pad_token_id", found=shown(text["pad_token_id"]))
    table = embedding(
        "position_embeddings", positions, hidden, dtype, padding=padding if numbered_from_padding else None
    )
    words = embedding("word_embeddings", integer(text, "vocab_size"), hidden, dtype, padding=padding)
    rest = (
        embedding("token_type_embeddings", integer(text, "type_vocab_size"), hidden, dtype),
        _norm("LayerNorm", text, dtype),
        dropout("dropout", text["hidden_dropout_prob"]),
    )
    return Module(
        name="embeddings",
        class_name=f"{prefix}Embeddings",
        buffers=tuple(Tensor(name, (1, positions), DType.I64) for name in ("position_ids", "token_type_ids")),
        children=(words, *rest, table) if numbered_from_padding else (words, table, *rest),
    )


def _layer(prefix: str, text: Mapping[str, Any], dtype: DType) -> Module:
    hidden, inner = integer(text, "hidden_size"), integer(text, "intermediate_size")

    def output(name: str, class_name: str, width: int) -> Module:
        return Module(
            name=name,
            class_name=f"{prefix}{class_name}",
            children=(
                linear("dense", width, hidden, dtype, bias=True),
                _norm("LayerNorm", text, dtype),
                dropout("dropout", text["hidden_dropout_prob"]),
            ),
        )

    attention = Module(
        name="self",
        class_name=f"{prefix}SelfAttention",
        children=(
            *(linear(name, hidden, hidden, dtype, bias=True) for name in ("query", "key", "value")),
            dropout("dropout", text["attention_probs_dropout_prob"]),
        ),
    )
    return Module(
        name="0",
        class_name=f"{prefix}Layer",
        children=(
            Module(
                name="attention",
                class_name=f"{prefix}Attention",
                children=(attention, output("output", "SelfOutput", hidden)),
            ),
            Module(
                name="intermediate",
                class_name=f"{prefix}Intermediate",
                children=(
                    linear("dense", hidden, inner, dtype, bias=True),
                    activation("intermediate_act_fn", text["hidden_act"]),
                ),
            ),
            output("output", "Output", inner),
        ),
    )


def _pooler(prefix: str, hidden: int, dtype: DType) -> Module:
    return Module(
        name="pooler",
        class_name=f"{prefix}Pooler",
        children=(linear("dense", hidden, hidden, dtype, bias=True), Module(name="activation", class_name="Tanh")),
    )


def _head(prefix: str, text: Mapping[str, Any], dtype: DType) -> Module:
    """The head that predicts masked tokens."""
    hidden, rows = integer(text, "hidden_size"), integer(text, "vocab_size")
    decoder = linear("decoder", hidden, rows, dtype, bias=True)
    bias = (Tensor("bias", (rows,), dtype),)
    dense = linear("dense", hidden, hidden, dtype, bias=True)
    if prefix != "Bert":
        children = (dense, _norm("layer_norm", text, dtype), decoder)
        return Module(name="lm_head", class_name=f"{prefix}LMHead", tensors=bias, children=children)
    transform = Module(
        name="transform",
        class_name="BertPredictionHeadTransform",
        children=(dense, activation("transform_act_fn", text["hidden_act"]), _norm("LayerNorm", text, dtype)),
    )
    predictions = Module(
        name="predictions", class_name="BertLMPredictionHead", tensors=bias, children=(transform, decoder)
    )
    return Module(name="cls", class_name="BertOnlyMLMHead", children=(predictions,))


def _changed(tree: Module, path: str, change: Callable[[Module], Module]) -> Module:
    """The tree with one of its modules changed."""
    name, _, rest = path.partition(".")
    return replace(
        tree,
        children=tuple(
            (_changed(child, rest, change) if rest else change(child)) if child.name == name else child
            for child in tree.children
        ),
    )


def _classifier(prefix: str, config: Mapping[str, Any], text: Mapping[str, Any], dtype: DType) -> Sequence[Module]:
    hidden, labels = integer(text, "hidden_size"), read_labels(config)
    share = text["hidden_dropout_prob"] if text["classifier_dropout"] is None else text["classifier_dropout"]
    if prefix == "Bert":
        return dropout("dropout", share), linear("classifier", hidden, labels, dtype, bias=True)
    children = (
        linear("dense", hidden, hidden, dtype, bias=True),
        dropout("dropout", share),
        linear("out_proj", hidden, labels, dtype, bias=True),
    )
    return (Module(name="classifier", class_name=f"{prefix}ClassificationHead", children=children),)


def read_labels(config: Mapping[str, Any]) -> int:
    """Classes of a classifier. Source: transformers 5.23, configuration_utils.PreTrainedConfig.num_labels"""
    names = config.get("id2label")
    if isinstance(names, Mapping):
        return len(names)
    return integer({"num_labels": config.get("num_labels") or 2}, "num_labels")


def built_name(name: str, parts: tuple[str, ...], *, bare: bool) -> Callable[[str], str]:
    """Files of a model with a head name the model that others are, and early ones call weights of norms gamma and beta.

    parts: how names in the model itself begin.

    Source: transformers 5.23, core_model_loading.rename_source_key and conversion_mapping (legacy)
    """

    def built(stored: str) -> str:
        for pattern, replacement in FORMER_NAMES:
            stored = re.sub(pattern, replacement, stored)
        if bare:
            return stored.removeprefix(f"{name}.")
        return f"{name}.{stored}" if stored.startswith(parts) else stored

    return built
