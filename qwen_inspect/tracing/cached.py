"""The cache of a generic class: what transformers keeps in each layer, determined by running the class on meta.

Three prompts of different lengths and one decoded token run through the real class at full size, on tensors with shapes and no
storage. A result needs all runs to agree, in cache layers of the classes that transformers makes for this configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from ..architectures.generic.building import quiet
from ..architectures.generic.configurations import stated
from ..architectures.thinkers import thinker_of
from ..checkpoint import DType
from ..errors import UnsupportedError
from ..results.attention import (
    AnyLayerAttention,
    AttentionReport,
    EncoderLayerAttention,
    LayerAttention,
    OtherLayerAttention,
)
from ..results.cache import CacheKind, CacheLayer, CacheReport
from ..typed import Any
from ..values import dataclass, replace

NEAR_TOKENS = (5, 6)
SHORTEST_TOKENS = (2, 3)  # for windows shorter than in any released model
FAR_TOKENS, FARTHEST_TOKENS = 301, 8_192
SOURCE_TOKENS, LONGER_SOURCE_TOKENS = 7, 12
# The key of the length of an encoder's output where it is always the same. Source: transformers 5.23, WhisperEncoder.forward
FIXED_SOURCES = {"whisper": "max_source_positions"}
DEEPEST = 6
ANSWERS = (0, 1)
OBSERVED = "qwen_inspect_observed"  # an attention that only looks at its inputs
CACHE_NAMES = ("past_key_values", "cache_params")  # its name in outputs
# Attributes of cache layers that are counters, not cached tensors.
COUNTERS = ("_sliding_window_tensor", "cumulative_length")
# A layer's kind by transformers' class for it. Source: transformers 5.23, cache_utils.DYNAMIC_LAYER_TYPE_MAPPING.
KINDS: Mapping[str, CacheKind] = {
    "DynamicLayer": "full",
    "DynamicSlidingWindowLayer": "sliding",
    "DynamicIndexedLayer": "indexed",
    "LinearAttentionLayer": "recurrent",
    "LinearAttentionAndFullAttentionLayer": "hybrid",
    "LinearAttentionAndSlidingWindowAttentionLayer": "hybrid",
    "DummyLayer": "none",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that a layer keeps for one sequence: attribute name, shape, bytes."""

    name: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one layer keeps after a run: its class name, its window if it has one, its tensors, and those of cross-attention."""

    class_name: str
    window_tokens: int | None
    tensors: tuple[Kept, ...]
    of_source: tuple[Kept, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def kept_tokens(self, tokens: int) -> int:
        return tokens if self.window_tokens is None else min(tokens, self.window_tokens - 1)

    def named(self, name: str) -> tuple[Kept, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.name == name)


def found_cache(model: Any, dtype: DType) -> tuple[AttentionReport, CacheReport]:
    """Each layer's kind and cache, for a model on meta; UnsupportedError, with the reason, if the runs do not determine them."""
    model = thinker_of(model)
    text = model.config.get_text_config(decoder=True)
    types, layer_configs = _expected(text)
    windows = [
        value
        for layer in layer_configs
        for key in ("sliding_window", "attention_chunk_size")
        if type(value := stated(layer, key)) is int
    ]
    near = NEAR_TOKENS if min(windows, default=FAR_TOKENS) > NEAR_TOKENS[-1] else SHORTEST_TOKENS
    far = min(max([FAR_TOKENS, *(window + 37 for window in windows)]), FARTHEST_TOKENS)
    with quiet():
        try:
            runner = _runner(model, near[0])
        except UnsupportedError as error:
            if error.message.key == "generic_cache_none" and (encoder := _encoder_layers(model, near[0])):
                return _without_cache(encoder, dtype)
            raise
        if (
            runner.reads_source and len(set(types)) == 1
        ):  # configured for the encoder, whose layers may be more or fewer
            depth = len(runner.layers(near[0])[0])
            types, layer_configs = types[:1] * depth, layer_configs[:1] * depth
        shortest, decoded = runner.layers(near[0], then=1)
        runs = {near[0]: shortest, **{tokens: runner.layers(tokens)[0] for tokens in (near[1], far)}}
        source_bytes = _source_bytes(runner, near[0], (*runs.values(), decoded))
    if decoded != runs[near[1]]:
        raise UnsupportedError("generic_cache_decode")
    if not len(decoded) == len(types) == len(layer_configs):
        raise UnsupportedError("generic_cache_layers", found=len(decoded), expected=len(types))
    cache, attention = [], []
    for index, layers in enumerate(zip(*runs.values(), strict=True)):
        kept = dict(zip(runs, layers, strict=True))
        layer = _cache_layer(index, types[index], kept, layer_configs[index])
        if source_bytes:
            fixed_tokens = stated(model.config, FIXED_SOURCES.get(model.config.model_type, ""))
            layer = replace(layer, source_bytes_per_token=source_bytes[index], source_tokens=fixed_tokens)
        cache.append(layer)
        attention.append(_attention(layer, kept[near[1]], layer_configs[index]))
    report = AttentionReport(by_config=tuple(attention), by_shapes=None, findings=())
    return report, CacheReport(dtype=str(dtype), layers=tuple(cache))


def _without_cache(layers: Sequence[EncoderLayerAttention], dtype: DType) -> tuple[AttentionReport, CacheReport]:
    nothing = CacheLayer(index=0, kind="none", bytes_per_token=0, states_bytes=(), window_tokens=None)
    cache = CacheReport(dtype=str(dtype), layers=tuple(replace(nothing, index=layer.index) for layer in layers))
    return AttentionReport(by_config=tuple(layers), by_shapes=None, findings=()), cache


def _encoder_layers(model: Any, tokens: int) -> list[EncoderLayerAttention]:
    """Each layer's attention if all of them look at the tokens before and after each, as seen in a run; empty otherwise.

    Source: transformers 5.23, AttentionInterface; a window is told as by integrations/flash_attention, with the token itself.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    layers: list[EncoderLayerAttention] = []
    looks_back = []

    def observed(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
        looks_back.append(options.get("is_causal") or getattr(module, "is_causal", True) or key.shape[2] != tokens)
        window = options.get("sliding_window")
        layers.append(
            EncoderLayerAttention(
                index=len(layers),
                query_heads=query.shape[1],
                kv_heads=key.shape[1],
                head_dim=query.shape[3],
                window_tokens=2 * window - 1 if type(window) is int else None,
            )
        )
        return value.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[3])), None

    AttentionInterface.register(OBSERVED, observed)
    AttentionMaskInterface.register(OBSERVED, eager_mask)
    usual = model.config._attn_implementation
    try:
        model.set_attn_implementation(OBSERVED)
        with torch.no_grad(), torch.device("meta"), _answering(ANSWERS[0]):
            model(input_ids=torch.zeros((1, tokens), dtype=torch.long))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return []
    finally:
        model.set_attn_implementation(usual)
    depth = stated(model.config.get_text_config(encoder=True), "num_hidden_layers")
    return layers if len(layers) == depth and not any(looks_back) else []


def _source_bytes(runner: _Runner, tokens: int, runs: Sequence[tuple[KeptLayer, ...]]) -> tuple[int, ...]:
    """Bytes that each layer's cross-attention keeps for a position of the encoder's output; empty without an encoder.

    runs: with SOURCE_TOKENS positions each, after prompts of different lengths.
    """
    if not runner.reads_source:
        return ()
    (longer,) = replace(runner, source_tokens=LONGER_SOURCE_TOKENS).layers(tokens)
    sizes = []
    for index, layer in enumerate(longer):
        near, far = ({_source_size(layers[index]) for layers in some} for some in (runs, (longer,)))
        per_token, rest = divmod(far.pop(), LONGER_SOURCE_TOKENS)
        if rest or not layer.of_source or near != {per_token * SOURCE_TOKENS}:
            raise UnsupportedError("generic_cache_source", index=index)
        sizes.append(per_token)
    return tuple(sizes)


def _source_size(layer: KeptLayer) -> int:
    return sum(tensor.size_bytes for tensor in layer.of_source)


def _expected(text: Any) -> tuple[list[str], list[Any]]:
    """Each layer's type, by which transformers chooses its cache class, and each layer's configuration."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    try:
        types, _ = get_layer_types_and_kwargs(text)
        return list(types), list(text.per_layer_config)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError("generic_cache_no_forward", reason=_first_line(error)) from None


def _cache_layer(index: int, expected: str, kept: Mapping[int, KeptLayer], configuration: Any) -> CacheLayer:
    """Bytes per kept token and constant bytes, from runs of several lengths that must all agree."""
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING

    shortest, *others = kept
    first = kept[shortest]
    usual = DYNAMIC_LAYER_TYPE_MAPPING.get(expected)
    if first.class_name not in KINDS or usual is None or usual.__name__ != first.class_name:
        raise UnsupportedError("generic_cache_kind", index=index, found=first.class_name, expected=expected)
    if KINDS[first.class_name] != "none" and not first.tensors:  # only inputs other than text fill it
        raise UnsupportedError("generic_cache_empty", index=index)
    states = tuple(tensor.size_bytes for tensor in first.tensors if is_state(tensor.name))
    fixed, spread = sum(states), first.kept_tokens(others[0]) - first.kept_tokens(shortest)
    if spread <= 0:
        raise UnsupportedError("generic_cache_window", index=index, window=first.window_tokens)
    per_token = (kept[others[0]].size_bytes - first.size_bytes) // spread
    for tokens, layer in kept.items():
        if layer.size_bytes != fixed + per_token * layer.kept_tokens(tokens):
            raise UnsupportedError("generic_cache_not_linear", index=index, tokens=tokens, found=layer.size_bytes)
    return CacheLayer(
        index=index,
        kind=_kind(first, expected, configuration),
        bytes_per_token=per_token,
        states_bytes=states,
        window_tokens=first.window_tokens,
    )


def _kind(layer: KeptLayer, expected: str, configuration: Any) -> CacheKind:
    kind = KINDS[layer.class_name]
    if kind == "full" and (rank := stated(configuration, "kv_lora_rank")) is not None:
        compressed = [tensor.shape[1::2] for tensor in layer.named("keys")]
        return "latent" if compressed == [(1, rank)] else "full"
    if kind == "sliding" and expected == "chunked_attention":
        return "chunked"
    if kind == "recurrent" and not layer.named("recurrent_states"):
        return "convolution"
    if kind == "none" and stated(configuration, "num_kv_shared_layers"):
        return "shared"
    return kind


def _attention(layer: CacheLayer, kept: KeptLayer, configuration: Any) -> AnyLayerAttention:
    """KV heads and head_dim from the shapes of K and V; query heads from the configuration, if the KV heads divide them."""
    shapes = [tensor.shape for name in ("keys", "values") for tensor in kept.named(name)]
    query_heads = stated(configuration, "num_attention_heads")
    if layer.kind in ("full", "sliding", "chunked") and len(shapes) == 2 and shapes[0] == shapes[1]:
        _, kv_heads, _, head_dim = shapes[0]
        if type(query_heads) is int and query_heads > 0 and query_heads % kv_heads == 0:
            return LayerAttention(
                index=layer.index,
                query_heads=query_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                window_tokens=layer.window_tokens,
            )
    return OtherLayerAttention(index=layer.index, cache_kind=layer.kind, window_tokens=layer.window_tokens)


# --- runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Runner:
    """The whole model, or its decoder if the whole does not run on meta.

    earlier_tensors: ids of tensors that its modules held before the runs, besides parameters and buffers. answers: of each run,
    what it is told where it asks for a tensor's data, which meta tensors lack (None: it must not ask). source_tokens: positions
    of the encoder's output, if the model has one.
    """

    model: Any
    earlier_tensors: frozenset[int]
    answers: tuple[int | None, ...]
    source_tokens: int = SOURCE_TOKENS

    @property
    def reads_source(self) -> bool:
        return bool(stated(self.model.config, "is_encoder_decoder"))

    @property
    def _ids(self) -> str:
        return "decoder_input_ids" if self.reads_source else "input_ids"

    def _source(self) -> Mapping[str, Any]:
        """The encoder's output in place of its run, of which the cache depends on nothing but the length."""
        if not self.reads_source:
            return {}
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        width = self.model.get_encoder().config.hidden_size
        states = torch.empty((1, self.source_tokens, width), dtype=self.model.dtype)
        outputs = BaseModelOutput(last_hidden_state=states)
        for name in ("attention_mask", "router_logits"):  # what single classes' encoders give besides
            setattr(outputs, name, None)
        return {"encoder_outputs": outputs}

    def layers(self, tokens: int, *, then: int = 0) -> tuple[tuple[KeptLayer, ...], ...]:
        """What each layer keeps, whatever the data is: after a prompt of `tokens`, and after each of `then` decoded tokens."""
        kept = {self._layers(tokens, then, answer) for answer in self.answers}
        if len(kept) > 1:
            raise UnsupportedError("generic_cache_of_data")
        return kept.pop()

    def _layers(self, tokens: int, then: int, answer: int | None) -> tuple[tuple[KeptLayer, ...], ...]:
        name, cache = self.run(tokens, answer)
        kept = [self._kept(cache)]
        for _ in range(then):
            name, cache = self.run(1, answer, **{name: cache})
            kept.append(self._kept(cache))
        return tuple(kept)

    def _kept(self, cache: Any) -> tuple[KeptLayer, ...]:
        if any(id(tensor) not in self.earlier_tensors for tensor in _own_tensors(self.model)):
            raise UnsupportedError("generic_cache_outside")
        own, source = _layers_of(cache), []
        if self.reads_source:
            own, source = (_layers_of(getattr(cache, f"{name}_attention_cache", None)) for name in ("self", "cross"))
        whole = {_identity(tensor) for _, tensor in tensors_of(cache)}
        if not own or whole != {_identity(tensor) for layer in (*own, *source) for _, tensor in tensors_of(layer)}:
            raise UnsupportedError("generic_cache_class", found=type(cache).__name__)
        if not source:
            return tuple(_kept(layer) for layer in own)
        of_source = [_kept(layer).tensors for layer in source]
        return tuple(replace(_kept(layer), of_source=read) for layer, read in zip(own, of_source, strict=True))

    def run(self, tokens: int, answer: int | None, **cache: Any) -> tuple[str, Any]:
        """The cache after `tokens` more tokens, and its name in the outputs."""
        import torch

        try:
            with torch.no_grad(), torch.device("meta"), nullcontext() if answer is None else _answering(answer):
                ids = torch.zeros((1, tokens), dtype=torch.long)
                outputs = self.model(**self._source(), **{self._ids: ids}, use_cache=True, **cache)
        except (
            ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise UnsupportedError("generic_cache_no_forward", reason=_first_line(error)) from None
        for name in CACHE_NAMES:
            if (output_cache := getattr(outputs, name, None)) is not None:
                return name, output_cache
        raise UnsupportedError("generic_cache_none")


def _layers_of(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None)
    return layers if isinstance(layers, list) else []


def _runner(model: Any, tokens: int) -> _Runner:
    """A runner for `model`, or for its decoder if only that runs on meta. UnsupportedError if neither does.

    Asks for data are answered only if neither runs without.
    """
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # the others depend on which experts are chosen
    alone = hasattr(model, "get_decoder") and not stated(model.config, "is_encoder_decoder")
    decoder = model.get_decoder() if alone else None
    refusal: UnsupportedError | None = None
    for answers in ((None,), ANSWERS):
        for part in (model, decoder):
            if part is None:
                continue
            runner = _Runner(part, frozenset(map(id, _own_tensors(part))), answers)
            try:
                for answer in answers:
                    runner.run(tokens, answer)
            except UnsupportedError as error:
                refusal = refusal or error
            else:
                return runner
    assert refusal is not None  # the model itself was tried
    raise refusal


@contextmanager
def _answering(answer: int) -> Iterator[None]:
    """Within it, a meta tensor asked for its only element has `answer`, and one asked for its elements other than 0 has as many.

    A class asks, for example, which experts or tokens are chosen, or whether anything is padded.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    def places(mask: Any) -> Any:
        return mask.new_empty((min(answer, mask.numel()), mask.dim()), dtype=torch.long)

    class Answering(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator is aten._local_scalar_dense.default and args[0].is_meta:
                return torch.tensor(answer, dtype=args[0].dtype, device="cpu").item()
            if operator is aten.nonzero.default and args[0].is_meta:
                return places(args[0])
            if operator is aten.index.Tensor and args[0].is_meta:  # a mask stands for the places that it selects
                masks = (torch.bool, torch.uint8)
                indices = [
                    places(index).unbind(1) if index is not None and index.dtype in masks else (index,)
                    for index in args[1]
                ]
                args = (args[0], [part for parts in indices for part in parts])
            return operator(*args, **(kwargs or {}))

    with Answering():
        yield


def _own_tensors(model: Any) -> Iterator[Any]:
    """Tensors of modules besides parameters and buffers. One that a run adds is a state outside the cache; but for the
    frequencies of long contexts, which are the same for any run.

    Source: transformers 5.23, modeling_rope_utils.longrope_frequency_update.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and not name.endswith("long_inv_freq"):
                for _, tensor in tensors_of(value):
                    yield tensor


def _kept(layer: Any) -> KeptLayer:
    window = getattr(layer, "sliding_window", None)
    tensors: dict[tuple[int, ...], Kept] = {}
    for name, tensor in tensors_of(layer):
        # A tensor under two names counts once.
        tensors.setdefault(_identity(tensor), Kept(name, tuple(tensor.shape), tensor.numel() * tensor.dtype.itemsize))
    return KeptLayer(type(layer).__name__, window if type(window) is int else None, tuple(tensors.values()))


def _identity(tensor: Any) -> tuple[int, ...]:
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), *tensor.shape)


def is_state(name: str) -> bool:
    """Whether a cache's attribute of this name has a constant size. Source: transformers 5.23, LinearAttentionLayer."""
    return name.endswith("_states")


def tensors_of(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every non-empty tensor reachable from a cache, with its attribute name."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.numel():
            yield name, value
        return
    if depth > DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_of(inner, name or str(key), depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from tensors_of(inner, name, depth + 1)
    elif "cache_utils" in type(value).__module__ or "Cache" in type(value).__name__:
        for key, inner in vars(value).items():
            if key not in COUNTERS:
                yield from tensors_of(inner, key if not name or name == "layers" else name, depth + 1)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
