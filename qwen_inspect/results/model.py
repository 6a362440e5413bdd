"""All that follows from a configuration, and all that was found about a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ..checkpoint import ModelRef, Origin, Release, StoredFile, Tensor
    from ..errors import QwenInspectError
    from ..language import Message
    from ..spec import ModelSpec, Module
    from .attention import AttentionReport
    from .cache import CacheReport, Workload
    from .counts import Check, Component, ParameterCounts
    from .generation import Generation
    from .stored import AdapterWeights, QuantisedWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything that follows from a configuration of a known architecture.

    attention, cache: None where what transformers caches is not settled; cache_refusal says why, as an error that a command
    raises which needs them. quantised: None where it is not. weights: what a model loaded as stored holds of them, None where
    that is the tree's tensors. unread: why the bytes of the weights are not known, though the design is: a quantisation that is
    not known, or files that contradict the configuration; an error that a command raises which needs them.
    """

    spec: ModelSpec
    tree: Module
    parameters: ParameterCounts
    components: tuple[Component, ...]
    checks: tuple[Check, ...]
    attention: AttentionReport | None
    cache: CacheReport | None
    quantised: QuantisedWeights | None = None
    weights: tuple[Tensor, ...] | None = None
    adapter: AdapterWeights | None = None
    cache_refusal: QwenInspectError | None = None
    unread: QwenInspectError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A model's identity, what is stored, and its design (None where the architecture is unknown; notices say why).

    refusal: why there is no design, as an error that a command raises which needs one. config: with dtype and quantisation under
    transformers' own keys, wherever they were read; written: as it stands in config.json. tensors: as stored, or as a release's
    layout predicts them where `tensors_origin` is "theory"; None where neither is known. generation: None unless asked for.
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
    generation: Generation | None = None

    @property
    def known(self) -> Design:
        """The design; raises the refusal where there is none."""
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
        """Whether the architecture is known, and what is cached for each layer."""
        return self.design is not None and self.design.attention is not None and self.design.cache is not None

    @property
    def attention(self) -> AttentionReport:
        """Raises the refusal where it is not settled."""
        if self.known.attention is None:
            raise self._cache_refusal
        return self.known.attention

    @property
    def cache(self) -> CacheReport:
        """Raises the refusal where it is not settled."""
        if self.known.cache is None:
            raise self._cache_refusal
        return self.known.cache

    @property
    def _cache_refusal(self) -> QwenInspectError:
        assert self.known.cache_refusal is not None
        return self.known.cache_refusal

    @property
    def context_tokens(self) -> int | None:
        """The context asked for, else the model's limit."""
        return self.workload.context_tokens or (self.design.spec.context_tokens if self.design else None)
