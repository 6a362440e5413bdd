"""`report` -> JSON: the keys of `structure`, caches and memory by context, and saved measurements."""

from __future__ import annotations

from ...language import Language
from ...results.fit import CardLimits, Change, Saving
from ...results.memory import MemoryReport, Run
from ...results.whole import WholeReport
from ..document.conclusions import largest_term, sentences
from .common import OfModelJSON, model_content
from .fit import LargestBatchJSON, LargestContextJSON, NamedCardJSON, largest_batch, largest_context
from .measured import KeptMeasurementJSON, kept_content
from .memory import PredictionJSON, prediction_content
from .structure import DesignJSON, structure_content
from .values import Count, Positive, Sha256, TypedDict


class FileJSON(TypedDict):
    """A weight file; `sha256` is null if no hub states it."""

    name: str
    bytes: Count
    sha256: Sha256 | None


class ProvenanceJSON(TypedDict):
    """The inputs of the report."""

    config_sha256: Sha256
    """Of the configuration in its canonical form."""
    tensors_sha256: Sha256 | None
    """Of every stored tensor's name, dtype and shape; null if no file was read."""
    built_by: str | None
    """The libraries that instantiated the model."""
    files: list[FileJSON]


class CacheSizeJSON(TypedDict):
    """The cache of `batch` sequences of `context_tokens`."""

    context_tokens: Count
    batch: Count
    bytes: Count


class LargestTermJSON(TypedDict):
    """The largest term of a run: at the peak (if it is a range, at its low end), or at the run's end if the peak is unknown."""

    prompt_tokens: Positive
    batch: Positive
    term: str
    bytes: Count
    allocated_bytes: Count | None
    """Of the same moment, as far as it is known."""


class CardLimitsJSON(LargestContextJSON, LargestBatchJSON):
    """How far a run goes on a card: the largest context at `batch`, and the largest batch at `prompt_tokens`."""

    gpu: NamedCardJSON
    available_bytes: Count
    batch: Positive
    prompt_tokens: Positive


class SavingJSON(TypedDict):
    """What a change to the longest run saves of its cache or weights."""

    kind: Change
    change: str
    before_bytes: Count
    after_bytes: Count


class ConclusionsJSON(TypedDict):
    """What the report ends with."""

    sentences: list[str]
    mha_bytes_per_token: Count | None
    """The cache if every query head had a KV head of its own; null if the cache is unknown or not by heads."""
    largest: list[LargestTermJSON]
    """For each predicted run."""
    limits: list[CardLimitsJSON]
    """If they take traces of other lengths, which are slow, the longest predicted prompt that fits; `fit` finds the largest."""
    savings: list[SavingJSON]
    """The largest first."""


class ReportJSON(OfModelJSON, DesignJSON):
    """`report`."""

    provenance: ProvenanceJSON
    cache_by_context: list[CacheSizeJSON]
    memory: list[PredictionJSON]
    measured: list[KeptMeasurementJSON]
    conclusions: ConclusionsJSON


def content(whole: WholeReport, say: Language) -> ReportJSON:
    report = whole.report
    return {
        "model": model_content(report, say),
        "provenance": {
            "config_sha256": whole.config_sha256,
            "tensors_sha256": whole.tensors_sha256,
            "built_by": whole.built_by,
            "files": [{"name": file.name, "bytes": file.size_bytes, "sha256": file.sha256} for file in report.files],
        },
        **structure_content(report, say),
        "cache_by_context": [
            {
                "context_tokens": tokens,
                "batch": batch,
                "bytes": report.cache.size_bytes(tokens=tokens, batch=batch),
            }
            for tokens, batch in (whole.cache_points if report.settled else ())
        ],
        "memory": [prediction_content(memory, say) for memory in whole.memory],
        "measured": [kept_content(measurement, say) for measurement in whole.measured],
        "conclusions": _conclusions(whole, say),
    }


def _conclusions(whole: WholeReport, say: Language) -> ConclusionsJSON:
    as_mha, advice = whole.cache_as_mha if whole.report.settled else None, whole.advice
    return {
        "sentences": sentences(whole, say),
        "mha_bytes_per_token": None if as_mha is None else as_mha.bytes_per_token,
        "largest": [_largest(memory) for memory in whole.memory],
        "limits": [] if advice is None else [_limits(card, advice.run) for card in advice.limits],
        "savings": [] if advice is None else [_saving(saving, say) for saving in advice.savings],
    }


def _largest(memory: MemoryReport) -> LargestTermJSON:
    moment, term = largest_term(memory)
    return {
        "prompt_tokens": memory.run.prompt_tokens,
        "batch": memory.run.batch,
        "term": term,
        "bytes": moment.bytes_by_term[term] or 0,
        "allocated_bytes": moment.allocated,
    }


def _limits(card: CardLimits, run: Run) -> CardLimitsJSON:
    return {
        "gpu": {"name": card.gpu.name, "memory_bytes": card.gpu.memory_bytes},
        "available_bytes": card.available_bytes,
        "batch": run.batch,
        "prompt_tokens": run.prompt_tokens,
        **largest_context(card.context),
        **largest_batch(card.batch),
    }


def _saving(saving: Saving, say: Language) -> SavingJSON:
    return {
        "kind": saving.kind,
        "change": say(saving.change),
        "before_bytes": saving.before_bytes,
        "after_bytes": saving.after_bytes,
    }
