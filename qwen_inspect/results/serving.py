"""What an inference engine is asked for and what it reserves of a card: exact where its source says, else ranges of logs."""

from __future__ import annotations

from dataclasses import dataclass

from ..language import Message
from .cache import Workload
from .fit import CardAnswer, Gpu, Suggestion, deciding
from .model import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Workload):
    """A workload to serve, each sequence's context being prompt and answer, and with what.

    utilization: of a card (the engine's default where None), or a known kv_budget_bytes. vLLM: step_tokens, the most of one step
    (where None, as its server takes them for the card); prefix_caching: of hybrid models, which vLLM 0.19 leaves off.
    llama.cpp: offloaded, as --ngl (all where None).
    """

    engine: str
    utilization: float | None = None
    kv_budget_bytes: int | None = None
    step_tokens: int | None = None
    prefix_caching: bool = False
    offloaded: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A part of what an engine takes of one card. most_bytes: the same where it is exact, None where no source gives an end.

    sources: where a range was published; none for a formula's figure.
    """

    name: str
    least_bytes: int
    most_bytes: int | None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """What an engine takes of a card, and the tokens that its cache holds of all sequences, where that is known."""

    terms: tuple[Reserved, ...]
    cache_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a KV budget of vLLM holds on each rank. tokens: as vLLM prints them. sequence_blocks: of the sequence asked for.

    most_context_tokens: of one sequence alone, whatever the model's limit; None where windows leave it without end.
    """

    budget_bytes: int
    blocks: int
    tokens: int
    sequence_blocks: int
    most_context_tokens: int | None

    @property
    def concurrency(self) -> float:
        """Sequences of the length asked for that the blocks hold, as vLLM prints it."""
        return self.blocks / self.sequence_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmReserve(Reserve):
    """vLLM on one rank: its budget, and what it holds at the lower and at the upper end; equal where it was given.

    requested_bytes: `utilization` of the card; None, and no terms, where the budget was given. block_bytes: over one group.
    block_tokens: of attention's blocks. groups: of layers, which take blocks each for themselves.
    """

    cache_format: str
    utilization: float | None
    requested_bytes: int | None
    block_bytes: int
    block_tokens: int
    groups: int
    least: Capacity
    most: Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppReserve(Reserve):
    """llama.cpp with `offloaded` of `layers` layers on the card, the output layer counted as one of them.

    cells: of all sequences, each padded. host_bytes: weights, cache and states that stay in the host's memory.
    most_offloaded: layers that fit at most, by what is known of them.
    """

    offloaded: int
    layers: int
    cells: int
    cache_formats: tuple[str, str]
    host_bytes: int
    most_offloaded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One card's answer, and what the engine reserves of it. gpu: None where vLLM's budget was given in place of a card."""

    gpu: Gpu | None
    answer: CardAnswer
    reserve: Reserve

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        return self.answer.suggestions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingReport:
    """A model served by an engine on one or more cards. context_tokens: that were asked for, or the model's limit."""

    report: Report
    serving: Serving
    version: str
    context_tokens: int
    cards: tuple[EngineCard, ...]
    assumptions: tuple[Message, ...]

    @property
    def deciding(self) -> int:
        """The index of the card that decides for all."""
        return deciding([card.answer.high.fits for card in self.cards])

    @property
    def fits(self) -> bool | None:
        return self.cards[self.deciding].answer.high.fits
