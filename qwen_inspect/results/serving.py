"""A request to a serving engine, and what the engine reserves of a card: exact by its source, else ranges from logs."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..language import Message
from ..typed import Literal
from ..values import dataclass
from .cache import Workload
from .fit import CardAnswer, Gpu, Suggestion, deciding
from .llama_cpp import Buffer, ChosenQuantisation
from .model import Report

SpeculativeMethod = Literal["mtp", "eagle", "eagle3", "draft_model", "ngram", "ngram_gpu", "suffix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding in vLLM. tokens: proposed at once (None: as many as the release has layers for prediction).

    drafter: the draft model; head: the EAGLE head, as stored; None for methods without. ranks: of either (None: the model's).
    """

    method: SpeculativeMethod
    tokens: int | None
    drafter: Report | None = None
    head: Checkpoint | None = None
    ranks: int | None = None


WHOLE_PROMPTS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangOptions:
    """What a command of SGLang sets. chunk_tokens, graph_sequences: None for its defaults by card; graphs: CUDA graphs at all.

    chunk_tokens is WHOLE_PROMPTS where prompts are not cut; prefill_tokens: --max-prefill-tokens, which then stands for a chunk.
    running: --max-running-requests; total_tokens: --max-total-tokens; window_share: --swa-full-tokens-ratio; state_share:
    --mamba-full-memory-ratio; state_slots: --max-mamba-cache-size; radix: the cache of prefixes.
    """

    chunk_tokens: int | None = None
    prefill_tokens: int = 16_384
    graph_sequences: int | None = None
    graphs: bool = True
    running: int | None = None
    total_tokens: int | None = None
    page_tokens: int = 1
    window_share: float = 0.8
    state_share: float = 0.9
    state_slots: int | None = None
    radix: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLog:
    """What a log of vLLM printed that no source gives, of one card, version ("0.19"), class, vocabulary and number of ranks.

    non_torch_bytes, graphs_bytes, total_bytes: as printed, to rounding_bytes up and down; None where it was not printed.
    activation_beyond_bytes: of the peak, beyond the predicted range (below 0: short of it). log: the name of its file.
    """

    card: str
    version: str
    class_name: str
    vocabulary: int
    ranks: int
    pipeline_ranks: int
    eager: bool
    date: str
    log: str
    non_torch_bytes: int
    rounding_bytes: int
    activation_beyond_bytes: int
    graphs_bytes: int | None
    total_bytes: int | None

    @property
    def key(self) -> tuple[str, str, str, int, int, int, bool]:
        card, eager = self.card.casefold(), self.eager
        return card, self.version, self.class_name, self.vocabulary, self.ranks, self.pipeline_ranks, eager


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmEnvironment:
    """Variables, and an option, that change what vLLM's profile run takes or a sequence needs; None where one is not set.

    flashinfer: VLLM_USE_FLASHINFER_SAMPLER, or whether FlashInfer is installed where that decides. graphs:
    VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS. second_runner: VLLM_USE_V2_MODEL_RUNNER. asynchronous: --async-scheduling.
    windows: whether layers with windows hold those alone (--disable-hybrid-kv-cache-manager); chunks: so of attention in chunks,
    VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE. connectors: of --kv-transfer-config; events:
    whether there is a --kv-events-config.
    """

    flashinfer: bool | None = None
    graphs: bool | None = None
    second_runner: bool | None = None
    asynchronous: bool | None = None
    windows: bool | None = None
    chunks: bool | None = None
    connectors: tuple[str, ...] = ()
    events: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Workload):
    """A workload and the engine that serves it. A context is prompt and answer of a sequence.

    utilization: share of a card (None: the engine's default); kv_budget_bytes: a known budget instead. For vLLM: version (None:
    the engine's); step_tokens and sequences: the most tokens and sequences of a step (None: its server's defaults for the card);
    prefix_caching, which changes hybrid models alone (None: the version's default for them); pipeline_ranks and data_ranks;
    block_tokens, of a block of the cache; expert_parallel, whole experts on each rank; eager, without compiling and CUDA graphs;
    images, whether the encoder is profiled; without_towers, that a run without such inputs does not load; sleeps, sleep mode;
    offloaded_bytes, weights in the host's memory; lora_slots, for adapters of lora_rank at once; speculation, speculative
    decoding; logs, of earlier runs, of which those of a card count there; environment.
    For SGLang: sglang.
    For llama.cpp: offloaded, the layers of --ngl (None: all); flash_attention (None: where the card has a kernel); micro_batch
    (None: its default).
    """

    engine: str
    utilization: float | None = None
    kv_budget_bytes: int | None = None
    version: str | None = None
    step_tokens: int | None = None
    sequences: int | None = None
    prefix_caching: bool | None = None
    pipeline_ranks: int = 1
    data_ranks: int = 1
    block_tokens: int | None = None
    expert_parallel: bool = False
    eager: bool = False
    images: bool = True
    without_towers: tuple[Literal["vision", "audio"], ...] = ()
    sleeps: bool = False
    offloaded_bytes: int = 0
    lora_slots: int = 0
    lora_rank: int = 16
    speculation: Speculation | None = None
    logs: tuple[ServedLog, ...] = ()
    environment: VllmEnvironment = VllmEnvironment()
    sglang: SglangOptions | None = None
    offloaded: int | None = None
    flash_attention: bool | None = None
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """One term of what an engine takes of a card. most_bytes: equal to least_bytes if exact, None if no upper end is known.

    sources: where the range was published; empty for a formula.
    """

    name: str
    least_bytes: int
    most_bytes: int | None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """What an engine takes of a card, and the tokens of all sequences in its cache (None: unknown)."""

    terms: tuple[Reserved, ...]
    cache_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a KV budget of vLLM holds on each rank. tokens: as vLLM prints them. sequence_blocks: of the requested sequence.

    most_context_tokens: of a single sequence, ignoring the model's limit; None if windows make it unbounded.
    """

    budget_bytes: int
    blocks: int
    tokens: int
    sequence_blocks: int
    most_context_tokens: int | None

    @property
    def concurrency(self) -> float:
        """Sequences of the requested length that the blocks hold, as vLLM prints it."""
        return self.blocks / self.sequence_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Asleep:
    """What a sleeping vLLM keeps of a rank's card, and at level 1 of the host's memory for its weights."""

    least_bytes: int
    most_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmReserve(Reserve):
    """vLLM on one rank. least, most: what the cache budget holds at both ends of its range; equal if the budget was given.

    requested_bytes: `utilization` of the card; None, without terms, if the budget was given. block_bytes: over one group's
    layers. block_tokens: of an attention block. groups: groups of layers, which take separate blocks. asleep: None without sleep
    mode, and if the budget was given.
    """

    cache_format: str
    utilization: float | None
    requested_bytes: int | None
    block_bytes: int
    block_tokens: int
    groups: int
    least: Capacity
    most: Capacity
    asleep: Asleep | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppReserve(Reserve):
    """llama.cpp with `offloaded` of `layers` layers on the card; the output layer counts as one.

    cells: of all sequences, each padded. host_bytes: all buffers in the host's memory. most_offloaded: the most layers that fit.
    host_experts: the smallest --n-cpu-moe that fits; None without experts, if none suffices or compute buffers are not known.
    """

    offloaded: int
    layers: int
    cells: int
    cache_formats: tuple[str, str]
    buffers: tuple[Buffer, ...]
    host_bytes: int
    most_offloaded: int
    host_experts: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTerm:
    """A figure that a log printed and the predicted range. unit: "bytes", "blocks" or "tokens"."""

    name: str
    unit: Literal["bytes", "blocks", "tokens"]
    printed: int
    low: int
    high: int
    agrees: bool

    @property
    def difference(self) -> int:
        """What is printed less the nearest end of the range; 0 inside."""
        return self.printed - min(max(self.printed, self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One card's answer, and what the engine reserves of it. gpu: None if a budget was given instead of a card."""

    gpu: Gpu | None
    answer: CardAnswer
    reserve: Reserve

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        return self.answer.suggestions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingReport:
    """An engine serving one model, on each of one or more cards. context_tokens: requested, else the model's limit.

    log: a log beside the prediction of the deciding card; None without one.
    """

    report: Report
    serving: Serving
    version: str
    context_tokens: int
    cards: tuple[EngineCard, ...]
    assumptions: tuple[Message, ...]
    log: tuple[LogTerm, ...] | None = None
    quantisation: ChosenQuantisation | None = None

    @property
    def differs(self) -> bool:
        """Whether a log printed a figure outside of the range."""
        return self.log is not None and not all(term.agrees for term in self.log)

    @property
    def deciding(self) -> int:
        """The index of the card that decides for all."""
        return deciding([card.answer.high.fits for card in self.cards])

    @property
    def fits(self) -> bool | None:
        return self.cards[self.deciding].answer.high.fits
