"""The roofline of a run on a card: no kernel can be faster than the memory is read and the products are computed.

Counted are matrix products and softmax attention, 2 operations for each multiplication and addition; weights and cache are read
once a step. Left out: embeddings' rows, norms, activations, scans of states, launches. So the time is a lower bound for kernels
that multiply in the matrices' numbers and sum in 32 bits, at the card's published clock.
Source: Williams, Waterman and Patterson, Roofline, CACM 52 (2009).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UnsupportedError
from ..loaders import gpus
from ..results.attention import LayerAttention, LinearLayerAttention
from ..results.gpu import Gpu
from ..results.media import Media
from ..results.memory import Run
from ..results.model import Report
from ..results.quantisation import (
    BnbInt8,
    CompressedFp4,
    CompressedNumbers,
    Fp8,
    ModelOptFp8,
    ModelOptNvfp4,
    Mxfp4Experts,
)
from ..results.speed import Speed, Step, StepName
from ..spec import Module
from ..values import dataclass, replace

OTHERS = ("vision", "audio", "embedding", "speech")  # what a step over text does not multiply with
WITHOUT_PRODUCTS = ("linear", "recurrent", "convolution", "none")  # layers without softmax attention
SIXTEEN_BITS = ("bfloat16", "float16")
EIGHT_BITS = (
    Fp8,
    ModelOptFp8,
    CompressedNumbers,
    BnbInt8,
)  # whose products can be computed in 8 bits, at twice the rate
FOUR_BITS = (CompressedFp4, ModelOptNvfp4, Mxfp4Experts)  # in 4 bits from Blackwell on, at four times the rate
BLACKWELL = (10, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of one module of the decoder, over its repeats. share: (experts a token takes, experts)."""

    elements: int
    size_bytes: int
    share: tuple[int, int] = (1, 1)
    is_head: bool = False


def speed_of(report: Report, run: Run, gpu_name: str) -> Speed:
    """On one card. Raises UnsupportedError for what no source or design tells, audio among it, and UsageError for no card."""
    gpu = gpus.find(gpu_name)
    if gpu.bandwidth is None:
        raise UnsupportedError("speed_no_bandwidth", name=gpu.name)
    attention = report.known.attention
    if attention is None or not report.settled or attention.both_ways or report.cache.source_bytes_per_token:
        raise UnsupportedError("speed_no_decoder")
    weights = tuple(_weights(report.tree, report))
    latent = _latent(report) is not None
    uncounted = [
        layer
        for layer in attention.layers
        if not isinstance(layer, (LayerAttention, LinearLayerAttention))
        and layer.span not in WITHOUT_PRODUCTS
        and not (layer.span == "latent" and latent)
    ]
    return Speed(
        gpu=gpu,
        sequences=run.batch,
        steps=tuple(_steps(report, run, gpu, weights)),
        mixture=any(part.share[0] < part.share[1] for part in weights),
        uncounted=len(uncounted),
    )


def _steps(report: Report, run: Run, gpu: Gpu, weights: tuple[Weights, ...]) -> Iterator[Step]:
    prompt = _step(report, run, gpu, weights, ("prompt", run.prompt_tokens, run.prompt_tokens))
    yield prompt if run.media is None else _seeing(prompt, report, run, run.media)
    if run.mode == "generate" and run.new_tokens > 1:
        yield _step(report, run, gpu, weights, ("first", 1, run.prompt_tokens + 1))
        yield _step(report, run, gpu, weights, ("last", 1, run.cached_tokens))


def _seeing(prompt: Step, report: Report, run: Run, media: Media) -> Step:
    """The prompt's step with that of the tower before it."""
    from .tower_speed import tower_work

    operations, weight_bytes = tower_work(report, media, run.batch)
    return replace(
        prompt,
        operations=prompt.operations + operations,
        weight_bytes=prompt.weight_bytes + weight_bytes,
        even_weight_bytes=prompt.even_weight_bytes + weight_bytes,
    )


def _step(report: Report, run: Run, gpu: Gpu, weights: tuple[Weights, ...], step: tuple[StepName, int, int]) -> Step:
    """step: its name, the new tokens of a sequence, and the tokens that the last of them sees."""
    name, new, context = step
    tokens = run.batch * new
    # `generate` asks for the logits of the last token alone. Source: transformers 5.23, GenerationMixin.generate (logits_to_keep)
    headed = tokens if run.mode == "forward" else run.batch
    products = sum(
        2 * (headed if part.is_head else tokens) * (part.elements * part.share[0] // part.share[1]) for part in weights
    )
    return Step(
        name=name,
        tokens=tokens,
        context_tokens=context,
        operations=products + run.batch * _attention_operations(report, new, context),
        weight_bytes=sum(part.size_bytes * part.share[0] // part.share[1] for part in weights),
        even_weight_bytes=sum(_even_bytes(part, tokens) for part in weights),
        cache_bytes=0 if name == "prompt" else report.cache.size_bytes(tokens=context, batch=run.batch),
        rate=_rate(report, run, gpu),
        bandwidth=gpu.bandwidth or 0,
    )


def _weights(module: Module, report: Report, component: str | None = None, repeats: int = 1) -> Iterator[Weights]:
    """The matrices that the decoder multiplies with; a tied head's are the embedding's."""
    component, repeats = module.component or component, repeats * module.repeats
    if component in OTHERS:
        return
    elements = repeats * sum(tensor.elements for tensor in module.tensors if len(tensor.shape) > 1)
    is_head = component == "lm_head"
    if module.tied_to is not None and is_head:
        spec = report.spec
        elements = spec.vocab_size * spec.hidden_size
        yield Weights(elements=elements, size_bytes=elements * spec.dtype.bits // 8, is_head=True)
    elif module.tensors:
        size_bytes, share = repeats * module.own_bytes, module.routed or (1, 1)
        yield Weights(elements=elements, size_bytes=size_bytes, share=share, is_head=is_head)
    for child in module.children:
        yield from _weights(child, report, component, repeats)


def _even_bytes(part: Weights, tokens: int) -> int:
    """Weights read by `tokens` tokens of which each chooses its experts at random."""
    chosen, experts = part.share
    return round(part.size_bytes * (1 - (1 - chosen / experts) ** tokens))


def _attention_operations(report: Report, new: int, context: int) -> int:
    """Q K^T and the product with V of one sequence, for each pair of a query and a key that the mask leaves."""
    operations = 0
    for layer in report.attention.layers:
        if isinstance(layer, LayerAttention):
            width, window = 2 * layer.query_heads * layer.head_dim, layer.window_tokens
        elif layer.span == "latent" and (latent := _latent(report)) is not None:
            width, window = latent
        else:
            continue
        operations += 2 * width * _pairs(new, context, window)
    return operations


def _latent(report: Report) -> tuple[int, int | None] | None:
    """Elements of all heads' queries and values in latent attention, and the keys that an index leaves; None if not stated."""
    config = report.config or {}
    text = {**config, **config.get("text_config", {})}
    sizes = [text.get(f"{part}_head_dim") for part in ("qk_nope", "qk_rope", "v")]
    heads, kept = text.get("num_attention_heads"), text.get("index_topk")
    known = [size for size in sizes if type(size) is int]
    if type(heads) is not int or len(known) < len(sizes):
        return None
    return heads * sum(known), kept if type(kept) is int and kept > 0 else None


def _pairs(new: int, context: int, window: int | None) -> int:
    """Keys that `new` tokens see, the last of them `context`, each one more than the one before but no more than a window."""
    first = context - new + 1
    whole = context if window is None else min(context, window)
    growing = max(0, whole - first + 1)
    return (first + whole) * growing // 2 + (new - growing) * whole


def _rate(report: Report, run: Run, gpu: Gpu) -> int | None:
    """Operations a second with the matrices' numbers, at best; None if no source gives it."""
    dtype = run.autocast or str(report.spec.dtype)
    if gpu.tensor_rate is None or dtype not in SIXTEEN_BITS or (dtype == "bfloat16" and not gpu.supports("bfloat16")):
        return None
    schemes = () if report.known.quantised is None else report.known.quantised.schemes
    is_blackwell = gpu.compute_capability is not None and gpu.compute_capability >= BLACKWELL
    if is_blackwell and any(isinstance(scheme, FOUR_BITS) for scheme in schemes):
        return 4 * gpu.tensor_rate
    return (2 if any(isinstance(scheme, EIGHT_BITS) for scheme in schemes) else 1) * gpu.tensor_rate
