"""`structure`: parameters, layers and weights; attention; KV cache."""

from __future__ import annotations

from ...language import Language
from ...results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ...results.model import Report
from ...units import count, short_count, size
from ..document.common import layer_runs
from . import within

MOST_KINDS = 3  # of layers; a sentence names no more


def sentences(report: Report, say: Language) -> list[str]:
    return [
        say(
            "answer_structure",
            name=report.ref.id,
            parameters=parameters(report, say),
            layers=sum(run.repeats for run in layer_runs(report.tree)),
            weights=weights(report, say),
        ),
        *adapter(report, say),
        *attention(report, say),
        *_generated(report, say),
    ]


def parameters(report: Report, say: Language) -> str:
    """The parameters, by theory if the files cannot be read as this model, and those active for one token if not all are."""
    counts = report.parameters
    if counts.unique is None:
        text = say("answer_parameters_theory", parameters=counts.theory, short=short_count(counts.theory))
    else:
        text = say("answer_parameters", parameters=counts.unique, short=short_count(counts.unique))
    if counts.active in (None, counts.theory):
        return text
    return say("answer_active", parameters=text, active=short_count(counts.active))


def weights(report: Report, say: Language) -> str:
    """The bytes of the weights and their number format."""
    if report.known.unread is not None:
        return say("answer_weights_unknown")
    quantised, dtype = report.known.quantised, str(report.spec.dtype)
    if quantised is not None:
        bits = f"{quantised.bits_per_parameter:.2f}"
        return say("answer_weights_quantised", size=size(quantised.total_bytes), method=quantised.method, bits=bits)
    return say("answer_weights", size=size(report.tree.size_bytes), dtype=dtype)


def adapter(report: Report, say: Language) -> list[str]:
    """An adapter's trainable parameters; empty without an adapter."""
    lora = report.known.adapter
    if lora is None:
        return []
    share, ranks = f"{lora.share:.4%}", ", ".join(map(str, lora.ranks))
    return [say("answer_adapter", ranks=ranks, parameters=lora.trainable, share=share)]


def attention(report: Report, say: Language) -> list[str]:
    """The layers' attention, and their cache for one token and at the context; if they are not known, the reason."""
    if not report.settled:
        assert report.known.cache_refusal is not None
        return [say("answer_not_known", reason=within(say(report.known.cache_refusal.message)))]
    return [say("answer_attention", kinds=kinds(report, say)), cache(report, say)]


def kinds(report: Report, say: Language) -> str:
    """The kinds of layers, with their number if there are several kinds."""
    layers_of: dict[str, int] = {}
    for layer in report.attention.layers:
        name = _kind(layer, say)
        layers_of[name] = layers_of.get(name, 0) + 1
    if len(layers_of) == 1:
        return next(iter(layers_of))
    shown = [say("answer_layers_of", layers=layers, kind=kind) for kind, layers in [*layers_of.items()][:MOST_KINDS]]
    return say("semicolon").join([*shown, *(["…"] if len(layers_of) > MOST_KINDS else [])])


def _kind(layer: AnyLayerAttention, say: Language) -> str:
    match layer:
        case LayerAttention():
            kind = layer.kind
            if layer.window_tokens is not None:
                kind = say("kind_within_window", kind=kind, window=layer.window_tokens)
            heads = {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "head_dim": layer.head_dim}
            return say("answer_heads", kind=kind, **heads)
        case LinearLayerAttention():
            return say("kind_linear")
        case EncoderLayerAttention():
            kind = say("kind_both_ways", kind=layer.kind)
            if layer.window_tokens is not None:
                kind = say("kind_within_window", kind=kind, window=layer.window_tokens)
            heads = {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "head_dim": layer.head_dim}
            return say("answer_heads", kind=kind, **heads)
        case OtherLayerAttention(cache_kind=cache_kind):
            return say(f"kind_{cache_kind}")


def cache(report: Report, say: Language) -> str:
    """The cache for one token of one sequence, any state of constant size, and the cache at the context."""
    cache, batch, tokens = report.cache, report.workload.batch, report.context_tokens
    if cache.keeps_nothing:
        return say("answer_no_cache")
    parts = [say("answer_cache_token", size=size(cache.bytes_per_token))]
    if cache.fixed_bytes:
        parts.append(say("answer_cache_state", size=size(cache.fixed_bytes)))
    if cache.source_bytes_per_token:
        parts.append(say("answer_cache_source", size=size(cache.source_bytes_per_token)))
    if (total := report.cache_bytes) is not None:
        at = "answer_cache_at" if batch == 1 else "answer_cache_at_batch"
        text = say(at, size=size(total), tokens=tokens, batch=batch)
        source = cache.source_tokens
        parts.append(text if source is None else say("answer_cache_and_source", text=text, source=source))
    elif cache.source_bytes_per_token and cache.source_tokens is None:
        parts.append(say("answer_cache_no_source"))
    return say("answer_cache", parts=say("comma").join(parts), dtype=cache.dtype)


def _generated(report: Report, say: Language) -> list[str]:
    generation = report.generation
    if generation is None:
        return []
    rate = generation.decode_tokens_per_second
    speed = count(None) if rate is None else f"{rate:,.2f}"
    return [say("answer_generated", tokens=generation.new_tokens, device=generation.device, rate=speed)]
