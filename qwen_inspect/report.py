"""What was found about a model. Built whole by `pipeline`; what can be derived is a property. `None` means unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .checkpoint import ModelRef, Release, StoredFile, Tensor
from .errors import QwenInspectError
from .exploration import Exploration
from .language import Message
from .spec import ModelSpec, Module, heads_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by witness and by use.

    theory: predicted from the configuration, tied weights once. instantiated: what transformers builds. stored: elements
    in the files, tied copies included. stored_predicted: the same as the release's layout predicts it. unique: parameters
    in the files, tied copies once; by theory where no file was read. active: None where it cannot be told. buffers: elements that
    no training changes.
    """

    theory: int
    instantiated: int | None
    stored: int | None
    stored_predicted: int | None
    unique: int
    active: int | None
    embedding: int
    head: int
    buffers: int

    @property
    def non_embedding(self) -> int:
        """What model cards call so: without the input embedding and without an output layer of its own."""
        return self.theory - self.embedding - self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A row of the statistics. `share_basis_points`: hundredths of a per cent, which add up to 10,000 over all rows."""

    name: str
    parameters: int
    size_bytes: int
    share_basis_points: int
    tied_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A named reason why two witnesses differ: by how many parameters, in how many tensors (0 parameters: told, not counted)."""

    name: str
    message: Message
    parameters: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexplained:
    """A tensor that nothing accounts for. kind: "missing", "unexpected", "reshaped" or "retyped"."""

    kind: str
    name: str
    parameters: int
    expected: str | None = None
    found: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Two witnesses' counts, the causes of the difference, and the tensors that no cause accounts for."""

    left: str
    right: str
    left_parameters: int
    right_parameters: int
    causes: tuple[Cause, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()

    @property
    def difference(self) -> int:
        return self.right_parameters - self.left_parameters

    @property
    def residual(self) -> int:
        return self.difference - sum(cause.parameters for cause in self.causes)

    @property
    def agrees(self) -> bool:
        return self.residual == 0 and not self.unexplained


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAttention:
    """One layer's softmax attention: heads as counted, `window_tokens` None where it sees every earlier token.

    gated: q_proj has as many rows again, for a gate on the output.
    """

    index: int
    query_heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int | None
    gated: bool = False

    @property
    def kind(self) -> str:
        return heads_kind(self.query_heads, self.kv_heads)

    @property
    def span(self) -> str:
        """What it sees: "full" or "sliding"."""
        return "full" if self.window_tokens is None else "sliding"

    @property
    def heads(self) -> tuple[int, ...]:
        """All that makes one layer's attention equal to another's; 0 stands for no window."""
        return self.query_heads, self.kv_heads, self.head_dim, self.window_tokens or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayerAttention:
    """One layer's linear attention: as many heads as states, and how wide a key and a value of each is."""

    index: int
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int

    @property
    def kind(self) -> str:
        return "linear"

    @property
    def span(self) -> str:
        return "linear"

    @property
    def heads(self) -> tuple[int, ...]:
        """All that makes one layer's attention equal to another's."""
        return self.key_heads, self.value_heads, self.key_head_dim, self.value_head_dim, self.conv_kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherLayerAttention:
    """A layer known by what transformers caches of it alone. cache_kind: as `CacheLayer.kind`."""

    index: int
    cache_kind: str
    window_tokens: int | None

    @property
    def kind(self) -> str:
        return "MLA" if self.cache_kind == "latent" else self.cache_kind

    @property
    def span(self) -> str:
        return self.cache_kind

    @property
    def heads(self) -> tuple[int, ...]:
        """All that makes one layer's attention equal to another's, beside its kind; 0 stands for no window."""
        return (self.window_tokens or 0,)


AnyLayerAttention = LayerAttention | LinearLayerAttention | OtherLayerAttention
WITH_STATES, WITHOUT_CACHE = ("linear", "recurrent", "convolution", "hybrid"), ("shared", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionReport:
    """Each layer's attention by the configuration and, where files were read, by the shapes of the projections."""

    by_config: tuple[AnyLayerAttention, ...]
    by_shapes: tuple[AnyLayerAttention, ...] | None
    findings: tuple[Message, ...]

    @property
    def layers(self) -> tuple[AnyLayerAttention, ...]:
        """The shapes where they were read: they decide what the model does."""
        return self.by_shapes or self.by_config

    @property
    def softmax(self) -> tuple[LayerAttention, ...]:
        """The layers whose heads are known, each with keys and values; a model of a family that is described here has one."""
        return tuple(layer for layer in self.layers if isinstance(layer, LayerAttention))

    @property
    def linear(self) -> tuple[LinearLayerAttention, ...]:
        """The layers that keep a state of constant size."""
        return tuple(layer for layer in self.layers if isinstance(layer, LinearLayerAttention))

    @property
    def kind(self) -> str:
        """MHA, GQA or MQA; "mixed" where layers differ, "hybrid" where some of them are linear."""
        kinds = {layer.kind for layer in self.layers if layer.kind not in WITHOUT_CACHE} or {"none"}
        if self.linear or (len(kinds) > 1 and kinds & set(WITH_STATES)):
            return "hybrid"
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def pattern(self) -> tuple[tuple[str, int], ...] | None:
        """What each layer sees, as runs of the shortest stretch that repeats: (("linear", 3), ("full", 1)).

        None where all layers see alike, or no stretch repeats.
        """
        spans = [layer.span for layer in self.layers]
        for length in range(2, len(spans) // 2 + 1):
            if len(spans) % length == 0 and spans == spans[:length] * (len(spans) // length):
                return _run_lengths(spans[:length]) if len(set(spans)) > 1 else None
        return None


def _run_lengths(words: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((word, len(list(run))) for word, run in groupby(words))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What one layer keeps for one sequence: bytes for each token held, bytes whatever the length, the most tokens held.

    kind: "full", "sliding", "linear"; of a class known by its cache alone also "chunked", "latent" (MLA), "indexed" (with keys
    of an index), "recurrent", "convolution", "hybrid" (keys and values beside a state), "shared" (it reads another layer's) and
    "none". states_bytes: of linear attention, the convolution's inputs and the recurrent state.
    """

    index: int
    kind: str
    bytes_per_token: int
    states_bytes: tuple[int, ...]
    window_tokens: int | None

    @property
    def fixed_bytes(self) -> int:
        return sum(self.states_bytes)

    def size_bytes(self, tokens: int) -> int:
        """Bytes after `tokens` tokens of one sequence."""
        held = tokens if self.window_tokens is None else min(tokens, self.window_tokens - 1)
        return self.fixed_bytes + held * self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The KV cache as transformers' DynamicCache holds it, in `dtype`."""

    dtype: str
    layers: tuple[CacheLayer, ...]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds while no window is full."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def fixed_bytes(self) -> int:
        return sum(layer.fixed_bytes for layer in self.layers)

    def size_bytes(self, *, tokens: int, batch: int = 1) -> int:
        """Bytes for `batch` sequences of `tokens` tokens each."""
        return batch * sum(layer.size_bytes(tokens) for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCache:
    """What an engine reserves for the workload on one rank: None, with the reason, where that is not known here."""

    engine: str
    format: str
    size_bytes: int | None
    reason: Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the model is asked to do.

    batch: sequences at once. context_tokens: tokens in each (None: the model's own limit). cache_format: K's and V's number
    format ("auto": the model's dtype). ranks: tensor-parallel ranks of an engine that shares the cache among them.
    """

    batch: int = 1
    context_tokens: int | None = None
    cache_format: str = "auto"
    ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the allocator holds at one moment of a run, in bytes that add up: requested by use, and what rounding adds.

    activations: None where no trace tells them; `allocated` is then without them. All but the weights are None where the
    architecture is not known, and then so is what is allocated. total: what is allocated where it was read, not added up.
    """

    stage: str
    weights: int
    buffers: int | None = None
    cache: int | None = None
    state: int | None = None
    gradients: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    workspace: int | None = None
    rounding: int | None = None
    total: int | None = None

    @property
    def allocated(self) -> int | None:
        if self.total is not None:
            return self.total
        total = self.weights + (self.activations or 0)
        for term in (
            self.buffers,
            self.cache,
            self.state,
            self.gradients,
            self.optimizer,
            self.workspace,
            self.rounding,
        ):
            if term is None:
                return None
            total += term
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Storages alike that were alive at the peak: where they were made, by what, how many, and their bytes as requested."""

    component: str
    operator: str
    storages: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseStage:
    """A part of a run and the first of its points; it lasts to the next one's."""

    name: str
    first_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the allocator holds over a run, in bytes, at points in the order of its events.

    terms: what `allocated` is made of, in the order of stacking; for each point a value for each term. events: the event
    after which each point holds, rising. stages: in order, none without a point, the first at point 0.
    """

    stages: tuple[CourseStage, ...]
    terms: tuple[str, ...]
    events: tuple[int, ...]
    allocated: tuple[tuple[int, ...], ...]
    reserved: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """Allocated bytes at each point."""
        return tuple(map(sum, self.allocated))

    @property
    def spans(self) -> tuple[tuple[str, int, int], ...]:
        """Each stage's name, first point and the point after its last."""
        ends = [*(stage.first_point for stage in self.stages[1:]), len(self.events)]
        return tuple((stage.name, stage.first_point, end) for stage, end in zip(self.stages, ends, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A run's memory on a GPU. steady: at its end, with the cache full. context_bytes: outside the allocator,
    None where unmeasured.

    method: "trace", "formula", or "stored" where the architecture is not known. A formula knows no activations: its peak is None,
    and nothing stands in for it. course: the way there, for a plot; None where nobody asked for it.
    """

    method: str
    steady: Moment
    peak: Moment | None
    peak_reserved: int | None
    context_bytes: int | None
    alive: tuple[Alive, ...]
    assumptions: tuple[Message, ...]
    provenance: str
    course: Course | None = field(default=None, compare=False)

    @property
    def steady_allocated_bytes(self) -> int | None:
        return self.steady.allocated

    @property
    def peak_allocated_bytes(self) -> int | None:
        return None if self.peak is None else self.peak.allocated

    @property
    def peak_reserved_bytes(self) -> int | None:
        return self.peak_reserved

    @property
    def total_bytes(self) -> int | None:
        """Segments and context; None where the context was not measured."""
        return (
            None
            if self.peak_reserved is None or self.context_bytes is None
            else self.peak_reserved + self.context_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a card was measured to take besides the model: the context outside the allocator, and cuBLAS's workspace.

    date: of the measurement, ISO 8601. gpu, driver, torch, transformers: the key, for each of them changes the figures.
    """

    gpu: str
    driver: str
    torch: str
    transformers: str
    date: str
    context_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is to be run on the device, for a footprint. allocator: PYTORCH_CUDA_ALLOC_CONF's text.

    optimizer, checkpointing, trained (a regular expression on parameters' names): of training alone. cache_format: as in
    `Workload`. device: "cuda", or "cpu", whose allocator rounds nothing and keeps nothing.
    """

    mode: str = "generate"
    batch: int = 1
    prompt_tokens: int = 2048
    new_tokens: int = 128
    attention: str = "sdpa"
    loader: str = "warmup"
    gpu: str = "sm_80"
    allocator: str = ""
    optimizer: str = "adamw_foreach"
    checkpointing: bool = False
    trained: str = ""
    cache_format: str = "auto"
    device: str = "cuda"
    calibration: Calibration | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens of each sequence in the cache when it is fullest; the last new token is not fed back."""
        return self.prompt_tokens + (self.new_tokens - 1 if self.mode == "generate" else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a device told when a stage was over, in bytes; peaks are those of the stage. None where it does not tell.

    allocated, requested, reserved: the allocator's. device_used, device_total: the driver's, of all processes; process_used,
    others_used: of this process and of all others. host_peak: the largest resident set of the process so far.
    """

    stage: str
    seconds: float | None
    allocated: int
    peak_allocated: int
    host_peak: int
    requested: int | None = None
    peak_requested: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    device_used: int | None = None
    device_total: int | None = None
    process_used: int | None = None
    others_used: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A run that was really made. footprint: its terms, as far as they could be read.

    device: "cpu", or the card's name. versions: of libraries and driver. scratch: what was alive at the peak and is not in the
    trace, by operator. parted: where the run's allocations and the trace part. partial: why it ended early. course: for a plot.
    """

    device: str
    versions: tuple[tuple[str, str], ...]
    readings: tuple[Reading, ...]
    footprint: Footprint
    scratch: tuple[Alive, ...] = ()
    parted: Message | None = None
    partial: Message | None = None
    notices: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCause:
    """Why a measured figure is larger (or, where negative, smaller) than the predicted one, by how many bytes."""

    message: Message
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A term as predicted and as measured, None where unknown, and the named causes of what lies between."""

    term: str
    predicted: int | None
    measured: int | None
    causes: tuple[MemoryCause, ...] = ()

    @property
    def difference(self) -> int | None:
        return None if self.predicted is None or self.measured is None else self.measured - self.predicted

    @property
    def residual(self) -> int | None:
        """What no cause explains."""
        return None if self.difference is None else self.difference - sum(cause.size_bytes for cause in self.causes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """A model's footprint for a run, and the same as measured. refusal: why it is not the whole answer, where it is not.

    exploration: the run for any other workload, for a page; None where nobody asked for it, or where it is not known.
    """

    report: Report
    run: Run
    predicted: Footprint
    refusal: QwenInspectError | None = None
    measured: Measurement | None = None
    differences: tuple[Difference, ...] = ()
    exploration: Exploration | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModules:
    """Linear modules that a quantised model keeps as they are: one name for those of all layers."""

    name: str
    modules: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedWeights:
    """The quantised matrices of a model and all else, in parameters and in bytes as stored (tied copies once).

    method: the configuration's quant_method. schemes: each in a phrase. matrices: how many are quantised. kept: which of the
    linear modules are not.
    """

    method: str
    schemes: tuple[Message, ...]
    matrices: int
    parameters: int
    size_bytes: int
    other_parameters: int
    other_bytes: int
    kept: tuple[KeptModules, ...]

    @property
    def total_bytes(self) -> int:
        return self.size_bytes + self.other_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits that a quantised parameter takes, with its share of scales, zeros and indices."""
        return self.size_bytes * 8 / self.parameters if self.parameters else 0.0

    @property
    def bits_per_parameter(self) -> float:
        """Bits that a parameter of the whole model takes."""
        return self.total_bytes * 8 / (self.parameters + self.other_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """A low-rank adapter beside its base. ranks, scales (what B A is multiplied by): each one that occurs.

    modules: what it trains, one name for all layers. unmerged_bytes: base, copies of modules, and matrices as PEFT loads them
    (float32). merged_bytes: None where the base is quantised.
    """

    kind: str
    base: str | None
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    modules: tuple[KeptModules, ...]
    trainable: int
    base_parameters: int
    stored_bytes: int
    unmerged_bytes: int
    merged_bytes: int | None

    @property
    def share(self) -> float:
        """Of the base's parameters."""
        return self.trainable / self.base_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything that follows from a configuration of a known architecture.

    attention, cache: None where what transformers caches is not settled; cache_refusal says why, as an error that a command
    raises which needs them. quantised: None where it is not. weights: what a model loaded as stored holds of them, None where
    that is the tree's tensors.
    """

    spec: ModelSpec
    tree: Module
    parameters: ParameterCounts
    components: tuple[Component, ...]
    checks: tuple[Check, ...]
    attention: AttentionReport | None
    cache: CacheReport | None
    engines: tuple[EngineCache, ...]
    quantised: QuantisedWeights | None = None
    weights: tuple[Tensor, ...] | None = None
    adapter: AdapterWeights | None = None
    cache_refusal: QwenInspectError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A model's answer to a prompt, really computed. ended_by: "end_token", or "limit" of the tokens asked for.

    text: what is new. chat_template: whether the prompt was put into the tokenizer's, as a user's message. prefill_seconds: until
    the first new token was there; decode_seconds: from then to the last. peak_allocated, peak_reserved: of CUDA's allocator while
    generating. peak_resident: of the whole process since it began, on a CPU, with the libraries and the loading.
    """

    prompt: str
    chat_template: bool
    text: str
    prompt_tokens: int
    new_tokens: int
    ended_by: str
    device: str
    dtype: str
    prefill_seconds: float
    decode_seconds: float
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    peak_resident_bytes: int | None
    versions: str
    notices: tuple[Message, ...] = ()

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """None where the first new token was the only one."""
        return None if self.new_tokens == 1 else (self.new_tokens - 1) / self.decode_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A model's identity, what is stored, and its design (None where the architecture is unknown; notices say why).

    refusal: why there is no design, as an error that a command raises which needs one. tensors: as stored, or as a release's
    layout predicts them where `tensors_origin` is "theory"; None where neither is known. generation: None unless asked for.
    """

    ref: ModelRef
    config: Mapping[str, Any] | None
    tensors: tuple[Tensor, ...] | None
    tensors_origin: str | None
    files: tuple[StoredFile, ...]
    release: Release | None
    workload: Workload
    notices: tuple[Message, ...]
    design: Design | None
    refusal: QwenInspectError | None = None
    generation: Generation | None = None

    @property
    def known(self) -> Design:
        """The design, for the commands that need one; `pipeline` refuses models that have none before it comes to this."""
        assert self.design is not None
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
    def engines(self) -> tuple[EngineCache, ...]:
        return self.known.engines

    @property
    def context_tokens(self) -> int | None:
        """The context asked for, else the model's limit."""
        return self.workload.context_tokens or (self.design.spec.context_tokens if self.design else None)


TABLE_CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
TABLE_BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What `report` was asked for, in the user's words: kept beside a committed report, so that a check can ask again.

    context_tokens: a prompt's length to be among those predicted. form: "md", "html" or "json".
    """

    model: str
    source: str = "auto"
    revision: str | None = None
    context_tokens: int | None = None
    batch: int = 1
    new_tokens: int = 128
    instantiate: bool = False
    language: str = "en"
    form: str = "md"


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeReport:
    """All that `report` tells of a model. name: what its files are called. memory: one prediction for each prompt's length.

    config_sha256: of the configuration in its canonical form. tensors_sha256: of every stored tensor's name, dtype and shape;
    None where no file was read. built_by: the libraries that instantiated the model, None where it was not.
    """

    request: ReportRequest
    name: str
    report: Report
    memory: tuple[MemoryReport, ...]
    config_sha256: str
    tensors_sha256: str | None
    built_by: str | None = None

    @property
    def cache_points(self) -> list[tuple[int, int]]:
        """(context, batch) pairs to show the cache for: usual contexts up to the model's limit, the limit, what was asked for."""
        limit, asked = self.report.spec.context_tokens, self.request.context_tokens
        contexts = {tokens for tokens in TABLE_CONTEXTS if limit is None or tokens <= limit}
        contexts |= {tokens for tokens in (limit, asked) if tokens is not None}
        batches = sorted({*TABLE_BATCHES, self.request.batch})
        return [(tokens, batch) for tokens in sorted(contexts) for batch in batches]


Figure = int | float | str | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A figure of a committed report that is no longer what the tool finds. None: it was not there, or is unknown."""

    figure: str
    was: Figure
    now: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCheck:
    """A committed report held against what the tool finds now.

    problem: why it cannot be compared, or is not what the tool wrote. note: told, and no fault.
    """

    document: str
    drifts: tuple[Drift, ...] = ()
    problem: Message | None = None
    note: Message | None = None

    @property
    def agrees(self) -> bool:
        return self.problem is None and not self.drifts


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Something that CI asks of a model, in a sentence that says what was found."""

    message: Message
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair:
    """A file by its name in two repositories: sizes and SHA-256 as their listings tell, None where they do not."""

    name: str
    left_bytes: int | None
    right_bytes: int | None
    left_sha256: str | None
    right_sha256: str | None
    on_left: bool
    on_right: bool

    @property
    def same(self) -> bool | None:
        """Whether the two are the same file; None where that is not told."""
        if not (self.on_left and self.on_right):
            return False
        if self.left_bytes is not None and self.right_bytes is not None and self.left_bytes != self.right_bytes:
            return False
        if self.left_sha256 is None or self.right_sha256 is None:
            return None
        return self.left_sha256 == self.right_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesComparison:
    """Two repositories' files by name. The weights decide whether they hold the same model."""

    left: ModelRef
    right: ModelRef
    pairs: tuple[FilePair, ...]

    @property
    def weights(self) -> tuple[FilePair, ...]:
        return tuple(
            pair for pair in self.pairs if pair.name.endswith((".safetensors", ".gguf", ".bin", ".pt", ".pth"))
        )

    @property
    def identical(self) -> bool | None:
        """True where every file of weights is the same by SHA-256, None where some are not told, or there are none."""
        verdicts = {pair.same for pair in self.weights}
        if False in verdicts:
            return False
        return True if verdicts == {True} else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A row of `models`: what the catalog says of one release, and what follows from it."""

    id: str
    design: Design
    release: Release | None

    @property
    def attention(self) -> AttentionReport:
        assert self.design.attention is not None  # the catalog holds families that are described here
        return self.design.attention
