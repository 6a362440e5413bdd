"""`predict` as a demand, for any batch and prompt; fast if a trace of the model is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ...language import Message
from ...loaders import gpus
from ...predicting.allocation.workspaces import has_cudnn_attention, is_hopper
from ...predicting.explore import explore_trace
from ...predicting.families.family_trace import Composed, Loaded, loaded_of
from ...predicting.predict import explored_everywhere, predict
from ...predicting.quantised import scratch_of
from ...predicting.sources import chunk_of, family_trace, outline_in, traced_along, with_kernel
from ...predicting.totals import learnt_timeline
from ...predicting.traces.kept_trace import CHUNK_TOKENS, CHUNKS, ChunkedPoint, Point
from ...predicting.traces.outline import Outline, regime_of
from ...predicting.traces.token_loops import is_folded
from ...progress import purpose
from ...results.exploration import Exploration
from ...results.fit import Gpu, Requirement
from ...results.memory import LOADED_TERMS, Footprint, MemoryReport, Run, context_range
from ...results.model import Report
from ...spec import LinearAttention
from ...tracing.kernels import BIAS_ALIGNMENT
from ...values import replace
from ..interface import Demand
from .learnt_run import LearntRun
from .on_card import calibration_of, kernels_of, terms_of
from .traced_run import FoldedRun, TracedRun
from .trained_runs import TrainedRuns, sums_by

FEWEST_TOKENS = 300  # keeps the sampled lengths apart
FEWEST_CHUNKED_TOKENS = 8 * CHUNK_TOKENS  # a trace has the first 8 iterations of the loop over the chunks


class TransformersDemand(Demand):
    """A run's memory with transformers as `predict` computes it, for any batch and prompt.

    A context is the prompt's tokens, as in `memory`; new tokens are added to them. gpu: decides cuBLAS's workspace and which
    calibration is used.
    """

    def __init__(self, report: Report, run: Run, gpu: Gpu) -> None:
        gpu_name = gpu.name if gpu.kind != "given" else run.gpu
        self.report = report
        self.run = replace(with_kernel(run, report), gpu=gpu_name, calibration=calibration_of(gpu))
        self._predicted: dict[tuple[int, int], MemoryReport] = {}
        self._by_regime: dict[str, TracedRun | None] = {}
        self._explorations: dict[Run, Exploration | None] = {}
        self._reserved_on: dict[
            object, int | None
        ] = {}  # of the run as requested, by what its trace depends on of a card
        self._folded: dict[str, FoldedRun] = {}  # by regime
        self._trained = TrainedRuns(
            report, self.run, point_of=self._point_of, held_bytes=lambda *run: self.requirement(*run).held_bytes
        )
        limit = None if report.design is None else report.spec.context_tokens
        new_tokens = run.new_tokens if run.mode == "generate" else 0
        self.most_context_tokens = None if limit is None else max(0, limit - new_tokens)
        # At other lengths the mask is copied once more, so a longer context may need less memory.
        aligned = (
            (self.run.padded or self.run.packed)
            and self.run.attention == "sdpa"
            and not has_cudnn_attention(self.run.gpu)
        )
        self.context_step = BIAS_ALIGNMENT if aligned else 1

    def predicted(self, batch: int, context_tokens: int) -> MemoryReport:
        key = batch, context_tokens
        if key not in self._predicted:
            run = replace(self.run, batch=batch, prompt_tokens=context_tokens)
            self._predicted[key] = predict(self.report, run)
        return self._predicted[key]

    @cached_property
    def traced(self) -> TracedRun | None:
        """The kept trace of the model, if there is one for such a run."""
        memory = self.predicted(self.run.batch, self.run.prompt_tokens)
        exact = memory.predicted.method == "trace" and memory.predicted.peak_range is None
        exploration = explored_everywhere(memory, lambda *_: self._family) if exact else None
        if exploration is None:
            return None
        self._explorations[self.run] = exploration
        return TracedRun(exploration)

    @cached_property
    def _family(self) -> Composed | None:
        """The run as requested, composed from the trace of the model's family."""
        return family_trace(self.report, self.run, self._outline, self._loaded)

    @cached_property
    def _outline(self) -> Outline | None:
        return outline_in(self.report)

    @cached_property
    def _loaded(self) -> Loaded:
        return loaded_of(self.report.tree)

    def _composed(self, batch: int, context_tokens: int) -> TracedRun | None:
        """The run composed from the trace of the model's family, for all workloads of the same regime; None if there is none.

        With quantised weights whose kernels no trace shows, the low end of the range.
        """
        if self._outline is None or not self._may_compose:
            return None
        point = self._point(batch, context_tokens)
        name = self._regime(point)
        if name not in self._by_regime:
            run = replace(self.run, batch=batch, prompt_tokens=context_tokens)
            exploration = self._explored(run)
            self._by_regime[name] = None if exploration is None else self._traced_with_weights(exploration, [point])
        return self._by_regime[name]

    @property
    def _may_compose(self) -> bool:
        """Whether a composed run is what was predicted: exactly, or of quantised weights the low end of a range."""
        found, known = self._requested, self.report.design
        return found.method == "trace" and (known is None or known.quantised is None) is (found.peak_range is None)

    def _regime(self, point: Point) -> str:
        return "" if self._outline is None else regime_of(self._outline.thresholds, point)

    def _explored(self, run: Run) -> Exploration | None:
        """The run composed from its family's trace; None if there is none. That of the requested workload is kept."""
        if run in self._explorations:
            return self._explorations[run]
        is_requested = run.prompt_tokens == self.run.prompt_tokens and run.batch == self.run.batch
        composed = self._family if is_requested else family_trace(self.report, run, self._outline, self._loaded)
        exploration = None
        if composed is not None and is_folded(composed.trace):
            self._folded[self._regime(self._point_of(run))] = FoldedRun(composed.trace, run)
        elif composed is not None:
            exploration = explore_trace(composed.trace, run, self._point_of(run))
        if is_requested:
            self._explorations[run] = exploration
        return exploration

    def _traced_with_weights(self, exploration: Exploration, corners: Sequence[Point]) -> TracedRun:
        weights_bytes = None if self.report.known.quantised is None else self.report.known.loaded_bytes
        return TracedRun(exploration, corners, weights_bytes=weights_bytes)

    def total_like(self, other: TransformersDemand) -> Requirement:
        """The requirement as one term. other: of the same run on another card or with dense weights, whose trace serves for
        this one too, if it is composed."""
        run, quantised = self.run, self.report.known.quantised
        low, high = self.context_bytes
        is_same = kernels_of(run) == kernels_of(other.run)
        if is_same and self.report is other.report and quantised is None and run.mode != "train":
            required = other.requirement(run.batch, run.prompt_tokens)
            return replace(required, context_low_bytes=low, context_high_bytes=high)
        if run.mode == "train":
            trained = self._on_card_like(other)
            return trained or (self._trained_like(other) if is_same and self.report is other.report else self._required)
        if quantised is None or not is_same:  # a prediction replays it once, and no search is made of it
            return self._required
        is_composed = other.traced is not None or other._composed(run.batch, run.prompt_tokens) is not None
        exploration = other._explored(other.run) if is_composed else None
        if exploration is None:
            return self._required
        scratch_bytes = None
        if quantised is not None:
            fixed_bytes, token_bytes, _ = scratch_of(self.report, run)
            scratch_bytes = fixed_bytes + token_bytes * run.batch * run.prompt_tokens
        return Requirement(
            terms=(("reserved", self._traced_with_weights(exploration, ()).held_bytes(self._point_of(run))),),
            context_low_bytes=low,
            context_high_bytes=high,
            whole=quantised is None,
            more_bytes=scratch_bytes,
        )

    def least_like(self, other: TransformersDemand) -> int:
        """A lower bound of what the run as requested reserves, from a search of it on another card, if that was of the same
        kernels; else 0."""
        if self.report is other.report and other._learnt is not None:
            return other._learnt.least_bytes(self.run)
        if self.report is not other.report or kernels_of(self.run) != kernels_of(other.run):
            return 0
        traced = other._trained.at(self.run.batch, self.run.prompt_tokens) if self.run.mode == "train" else other.traced
        return 0 if traced is None else traced.least_bytes(self._point_of(self.run))

    def total(self, batch: int, context_tokens: int) -> Requirement:
        is_requested = (batch, context_tokens) == (self.run.batch, self.run.prompt_tokens)
        return (self._on_card_like(self) if is_requested else None) or self.requirement(batch, context_tokens)

    def _on_card_like(self, other: TransformersDemand) -> Requirement | None:
        """The requirement of a training run as requested, from the trace of the same run on another card; None without one."""
        learnt = other._learnt if self.report is other.report else None
        if learnt is None or (reserved := learnt.reserved_bytes(self.run)) is None:
            return None
        low, high = self.context_bytes
        return Requirement(terms=(("reserved", reserved),), context_low_bytes=low, context_high_bytes=high)

    @cached_property
    def _learnt(self) -> LearntRun | None:
        """The training run as requested, from its family's trace."""
        timeline = learnt_timeline(self.report, self.run) if self.run.mode == "train" else None
        return None if timeline is None else LearntRun(timeline, self.run, lambda: self._required.held_bytes)

    def _trained_like(self, other: TransformersDemand) -> Requirement:
        """The requirement of a training run with the same kernels on another card, which differs in the scratch of sums alone."""
        run = self.run
        if other.traced is not None or (trained := other._trained.at(run.batch, run.prompt_tokens)) is None:
            return self._required
        low, high = self.context_bytes
        held_bytes = trained.on_card(*sums_by(run.gpu)).held_bytes(self._point_of(run))
        return Requirement(terms=(("reserved", held_bytes),), context_low_bytes=low, context_high_bytes=high)

    @cached_property
    def _along_context(self) -> TracedRun | None:
        """The requested batch with any prompt, from traces of a few lengths: sizes are quadratic in the length.

        Linear attention pads the prompt to whole chunks, so it needs one more length, and many chunks: with few its events
        differ. None for training it, whose events differ with each length, and for unknown classes, which may have windows.
        """
        if self.report.known.spec.built or (self._is_chunked and self.run.mode == "train"):
            return None
        most = max(self.most_context_tokens or 0, FEWEST_TOKENS)
        lengths = [37, most // 2, most, most // 3]
        terms = [0, 1, 2]
        if self._is_chunked:
            lengths[:1] = [FEWEST_CHUNKED_TOKENS + 37, most // 4 + 5]
            terms.append(CHUNKS)
        step = self.context_step
        runs = [replace(self.run, prompt_tokens=tokens // step * step) for tokens in lengths]
        check = runs[-1] if self._is_chunked or self.run.prompt_tokens % step else self.run
        return self._line("context", runs, check, terms=terms)

    @cached_property
    def _along_batch(self) -> TracedRun | None:
        """The requested prompt with two sequences or more; a single sequence is spared some copies."""
        runs = [replace(self.run, batch=batch) for batch in (2, 64, 5)]
        return self._line("batch", runs, runs[0], terms=(0, 4))

    def _line(self, what: str, samples: Sequence[Run], check: Run, *, terms: Sequence[int]) -> TracedRun | None:
        """A run interpolated from a few traces; None unless it agrees with the prediction for the run `check`."""
        with purpose(Message("purpose_any", what=Message(f"purpose_any_{what}"), count=len(samples))):
            kept = traced_along(self.report, samples, terms, self._point_of)
        if kept is None:
            return None
        point = self._point_of(check)
        traced = TracedRun(explore_trace(kept, check, point), [point])
        agrees = traced.held_bytes(point) == self.requirement(check.batch, check.prompt_tokens).held_bytes
        return traced if agrees else None

    def _traced_at(self, batch: int, context_tokens: int) -> TracedRun | None:
        """A trace with symbolic sizes that covers such a run; None if there is none."""
        if self.traced is not None or self._requested.method != "trace":
            return self.traced
        if (composed := self._composed(batch, context_tokens)) is not None:
            return composed
        if self.run.mode == "train" and (trained := self._trained.at(batch, context_tokens)) is not None:
            return trained
        is_aligned = context_tokens % self.context_step == 0
        if batch == self.run.batch and is_aligned and not (self._is_chunked and context_tokens < FEWEST_CHUNKED_TOKENS):
            return self._along_context
        return self._along_batch if context_tokens == self.run.prompt_tokens and batch > 1 else None

    @property
    def _required(self) -> Requirement:
        """That of the run as requested."""
        return self.requirement(self.run.batch, self.run.prompt_tokens)

    @property
    def _requested(self) -> Footprint:
        """The prediction of the run as requested."""
        return self.predicted(self.run.batch, self.run.prompt_tokens).predicted

    @property
    def quick(self) -> bool:
        if self.traced is not None or self._requested.method == "formula":
            return True
        if self._is_chunked or (self._requested.peak_range is not None and self.report.known.spec.built):
            return False
        if self._may_compose and self._family is not None and not is_folded(self._family.trace):
            return True
        is_known = not self._trained.is_searched and self._has_trained
        return is_known or self._traced_at(self.run.batch, self.run.prompt_tokens) is not None

    @property
    def _has_trained(self) -> bool:
        """Whether a family's trace has the run as requested, a training run, with symbolic sizes."""
        run = self.run
        return run.mode == "train" and self._trained.may_have(run.batch, run.prompt_tokens) and self._learnt is not None

    @property
    def card_facts(self) -> tuple[object, ...]:
        """Everything about the card that a prediction depends on."""
        gpu, calibration = self.run.gpu, self.run.calibration
        of_sums = sums_by(gpu) if self.run.mode == "train" else None
        return is_hopper(gpu), gpus.supports(gpu, "fp8"), self.context_bytes, calibration, of_sums

    @property
    def context_bytes(self) -> tuple[int, int]:
        """The low and the high end of the bytes outside the allocator."""
        return context_range(self.run)

    def requirement(self, batch: int, context_tokens: int) -> Requirement:
        return self.requirement_of(self.predicted(batch, context_tokens).predicted)

    def requirement_of(self, footprint: Footprint) -> Requirement:
        """The peak and the context; without a peak, a lower bound from the run's end (`whole` is False)."""
        low, high = self.context_bytes
        return Requirement(
            terms=terms_of(footprint),
            context_low_bytes=low,
            context_high_bytes=high,
            whole=footprint.peak_reserved is not None,
            more_bytes=None if footprint.peak_range is None else footprint.peak_range.scratch_bytes,
        )

    def held_bytes(self, batch: int, context_tokens: int) -> int:
        if (known := self._predicted_bytes(batch, context_tokens)) is not None:
            return known
        traced = self._traced_at(batch, context_tokens) or self._folded_at(batch, context_tokens)
        if traced is None:
            return self.requirement(batch, context_tokens).held_bytes
        return traced.held_bytes(self._point(batch, context_tokens))

    def _predicted_bytes(self, batch: int, context_tokens: int) -> int | None:
        """`held_bytes` of a traced run that is predicted already; None of any other."""
        memory = self._predicted.get((batch, context_tokens))
        is_known = memory is not None and memory.predicted.method == "trace"
        return self.requirement(batch, context_tokens).held_bytes if is_known else None

    def _folded_at(self, batch: int, context_tokens: int) -> FoldedRun | None:
        """A folded run that covers this workload; None if there is none, or if the workload is predicted already."""
        if (batch, context_tokens) in self._predicted or self._requested.peak is None:
            return None
        return self._folded.get(self._regime(self._point(batch, context_tokens)))

    def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool | None:
        if self.kept_bytes > room_bytes:
            return False
        if (known := self._predicted_bytes(batch, context_tokens)) is not None and known > room_bytes:
            return False
        # A training run that fits is put together nevertheless: it tells at once which longer ones are far too long.
        if known is not None and self.run.mode != "train" and self.requirement(batch, context_tokens).whole:
            return True
        if self.least_bytes(batch, context_tokens) > room_bytes:
            return False
        traced = self._traced_at(batch, context_tokens) or self._folded_at(batch, context_tokens)
        if traced is None:
            required = self.requirement(batch, context_tokens)
            if required.held_bytes > room_bytes:
                return False
            return True if required.whole or self._requested.peak_reserved is None else None
        return traced.fits(self._point(batch, context_tokens), room_bytes)

    def least_bytes(self, batch: int, context_tokens: int) -> int:
        """From the kept trace, or from one of a training run with fewer chunks; else what is loaded plus the cache."""
        if self.traced is not None:
            return self.traced.least_bytes(self._point(batch, context_tokens))
        if (least := self._trained.least_bytes(batch, context_tokens)) is not None:
            return least
        moment, design = self._requested.steady, self.report.design
        cached = 0
        # Under autocast a cache may hold fewer bytes than in the model's dtype.
        cache_is_known = self.run.mode == "generate" and self.run.autocast is None
        if cache_is_known and design is not None and design.cache is not None:
            cached = design.cache.size_bytes(tokens=self._point(batch, context_tokens).total_tokens, batch=batch)
        return sum(getattr(moment, term) or 0 for term in LOADED_TERMS) + cached

    @cached_property
    def kept_bytes(self) -> int:
        """What a run of any batch and prompt has at its end: what is loaded, and of training what the optimizer keeps."""
        moment = self._requested.steady
        terms = (*LOADED_TERMS, "optimizer", "gradients") if self.run.mode == "train" else LOADED_TERMS
        return sum(getattr(moment, term) or 0 for term in terms)

    def passes(self, batch: int, context_tokens: int, capacity_bytes: int) -> bool | None:
        """Whether the run finishes within this capacity of the allocator, which releases cached segments when it must."""
        if self.kept_bytes > capacity_bytes and self._has_trained:
            return False
        traced = self._traced_at(batch, context_tokens)
        return None if traced is None else traced.passes(self._point(batch, context_tokens), capacity_bytes)

    def cache_tokens(self, batch: int, context_tokens: int) -> int | None:
        if self.run.mode != "generate":
            return None
        return batch * replace(self.run, prompt_tokens=context_tokens).cached_tokens

    @cached_property
    def _is_chunked(self) -> bool:
        design = self.report.design
        return design is not None and any(isinstance(layer.attention, LinearAttention) for layer in design.spec.layers)

    def _point(self, batch: int, context_tokens: int) -> Point:
        return self._point_of(replace(self.run, batch=batch, prompt_tokens=context_tokens))

    @cached_property
    def _chunk_tokens(self) -> int | None:
        """Tokens of the chunks to which the model pads a prompt, if it does."""
        return CHUNK_TOKENS if self._is_chunked else chunk_of(self._outline)

    def _point_of(self, run: Run) -> Point:
        point = Point(run.batch, run.prompt_tokens, run.cached_tokens)
        return point if self._chunk_tokens is None else ChunkedPoint.of(point, self._chunk_tokens)
