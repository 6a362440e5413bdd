"""A model's design, which follows from its configuration, and the report on a model."""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..values import dataclass, field, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..checkpoint import HubCount, ModelRef, Origin, Release, StoredFile, Tensor
    from ..errors import QwenInspectError
    from ..language import Message
    from ..spec import ModelSpec, Module
    from ..typed import Any, Protocol
    from .attention import AttentionReport
    from .cache import CacheReport, Workload
    from .counts import Check, Component, ParameterCounts
    from .generation import Generation
    from .media import Media
    from .stored import AdapterWeights, QuantisedWeights

    class Weights(Protocol):
        """The tensors of a model when loaded as stored, and the size of each."""

        def __iter__(self) -> Iterator[Tensor]: ...

        @property
        def sizes_bytes(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything that follows from a configuration of a known architecture.

    attention, cache: None if it is unknown what transformers caches; cache_refusal says why. quantised_by: the method, "gguf" for
    GGUF's formats; None for dense weights, as is `quantised`. weights: when loaded as stored; None if they are the tree's.
    unread: why the bytes of the weights are unknown: an unknown quantisation, or files that contradict the configuration. A
    command that needs what is missing raises cache_refusal or unread.
    """

    spec: ModelSpec
    tree: Module
    parameters: ParameterCounts
    components: tuple[Component, ...]
    checks: tuple[Check, ...]
    attention: AttentionReport | None
    cache: CacheReport | None
    quantised_by: str | None = None
    quantised: QuantisedWeights | None = None
    weights: Weights | None = None
    adapter: AdapterWeights | None = None
    cache_refusal: QwenInspectError | None = None
    unread: QwenInspectError | None = None

    @property
    def modules(self) -> Module:
        """The tree, for names, shapes and parameters: the bytes of quantised weights may be missing in it."""
        return self.tree

    @property
    def loaded_bytes(self) -> Sequence[int]:
        """The bytes of each tensor of the model when loaded as stored."""
        if self.weights is not None:
            return self.weights.sizes_bytes
        from ..spec import each_tensor

        return [tensor.size_bytes for tensor in each_tensor(self.tree)]


class PackedDesign(Design):
    """The design of a model with quantised weights: what depends on their bytes is worked out when first asked for."""

    __slots__ = ("_measured", "_unpacked")
    OF_BYTES = ("tree", "parameters", "components", "quantised", "weights")
    _measured: Callable[[], Design]
    _unpacked: Module

    @classmethod
    def of(cls, dense: Design, method: str, measured: Callable[[], Design]) -> PackedDesign:
        """`dense` except for its bytes, which are those of `measured`'s design."""
        design = cls.__new__(cls)
        for known in fields(dense):
            if known.name not in cls.OF_BYTES:
                object.__setattr__(design, known.name, getattr(dense, known.name))
        object.__setattr__(design, "quantised_by", method)
        object.__setattr__(design, "_measured", measured)
        object.__setattr__(design, "_unpacked", dense.tree)
        return design

    @property
    def modules(self) -> Module:
        return getattr(self, "_unpacked", None) or self.tree

    def __getattr__(self, name: str) -> Any:
        """Called for what is not set."""
        if name not in self.OF_BYTES:
            raise AttributeError(name)
        measured = self._measured()
        for other in self.OF_BYTES:
            object.__setattr__(self, other, getattr(measured, other))
        return object.__getattribute__(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A model's identity, what is stored, and its design (None if the architecture is unknown; notices say why).

    refusal: why there is no design; a command that needs one raises it. config: with dtype and quantisation under transformers'
    own keys, whatever file they came from; written: as in config.json. tensors: as stored, or predicted from a release's layout
    (tensors_origin "theory"); None if neither is known. hub_count: what the hub itself counts. served: as in `Checkpoint`.
    generation, media: None unless requested.
    """

    ref: ModelRef
    config: Mapping[str, Any] | None
    written: Mapping[str, Any] | None
    tensors: tuple[Tensor, ...] | None
    tensors_origin: Origin | None
    files: tuple[StoredFile, ...]
    release: Release | None
    workload: Workload
    notices: tuple[Message, ...]
    design: Design | None
    refusal: QwenInspectError | None = None
    hub_count: HubCount | None = None
    served: Mapping[str, int] = field(default_factory=dict)
    generation: Generation | None = None
    media: Media | None = None

    @property
    def known(self) -> Design:
        """The design; raises `refusal` if there is none."""
        if self.design is None:
            assert self.refusal is not None
            raise self.refusal
        return self.design

    @property
    def spec(self) -> ModelSpec:
        return self.known.spec

    @property
    def tree(self) -> Module:
        return self.known.tree

    @property
    def parameters(self) -> ParameterCounts:
        return self.known.parameters

    @property
    def components(self) -> tuple[Component, ...]:
        return self.known.components

    @property
    def checks(self) -> tuple[Check, ...]:
        return self.known.checks

    @property
    def settled(self) -> bool:
        """Whether the design, each layer's attention and its cache are known."""
        return self.design is not None and self.design.attention is not None and self.design.cache is not None

    @property
    def attention(self) -> AttentionReport:
        """Raises the refusal unless `settled`."""
        if self.known.attention is None:
            raise self._cache_refusal
        return self.known.attention

    @property
    def cache(self) -> CacheReport:
        """Raises the refusal unless `settled`."""
        if self.known.cache is None:
            raise self._cache_refusal
        return self.known.cache

    @property
    def _cache_refusal(self) -> QwenInspectError:
        assert self.known.cache_refusal is not None
        return self.known.cache_refusal

    @property
    def context_tokens(self) -> int | None:
        """The requested context, else the model's limit."""
        return self.workload.context_tokens or (self.design.spec.context_tokens if self.design else None)

    @property
    def cache_bytes(self) -> int | None:
        """The cache of the workload; None if a length that it depends on is unknown: the context's, or a source's."""
        cache, tokens = self.cache, self.context_tokens
        if tokens is None or (cache.source_bytes_per_token and cache.source_tokens is None):
            return None
        return cache.size_bytes(tokens=tokens, batch=self.workload.batch)
