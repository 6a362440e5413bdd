"""Training runs of one model with any batch and prompt, each kind of them put together once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import UnsupportedError
from ...loaders import gpus
from ...predicting.allocation.turned_streams import TurnedStreams
from ...predicting.explore import TrainingExplored
from ...predicting.sources import training_of_any
from ...predicting.traces.kept_trace import CHUNK_TOKENS, Point
from ...predicting.traces.training_turns import is_chunked
from ...results.memory import Run
from ...results.model import Report
from ...tracing.scratch import ANY_MULTIPROCESSORS
from ...typed import NamedTuple
from ...values import replace
from .traced_run import TrainedRun


class Kind(NamedTuple):
    """What decides a run's events, but for the turns of loops over chunks. above: as `same_events_above`."""

    above: int
    several: bool
    whole_chunks: bool


class TrainedRuns:
    """held_bytes: of the prediction of a run with such a batch and prompt."""

    def __init__(
        self,
        report: Report,
        run: Run,
        *,
        point_of: Callable[[Run], Point],
        held_bytes: Callable[[int, int], int],
    ) -> None:
        self._report, self._run, self._chunked = report, run, is_chunked(report)
        self._point_of, self._held_bytes = point_of, held_bytes
        self._kinds: dict[Kind, TrainingExplored | None] = {}
        self._turned: dict[Kind, tuple[TrainedRun, TurnedStreams]] = {}
        self._known: set[Kind] = set()  # those that are held against no prediction
        self._runs: dict[tuple[Kind, int], TrainedRun | None] = {}  # by chunks too

    def at(self, batch: int, tokens: int) -> TrainedRun | None:
        """The training run of one sequence or of several; None unless it agrees with a prediction or is of a family's trace."""
        from ...predicting.families.shallow_training import same_events_above  # of training alone

        run = replace(self._run, batch=batch, prompt_tokens=tokens)
        above = same_events_above(self._report, run)
        if above is None or run.device != "cuda":
            return None
        kind = Kind(above, batch > 1, self._chunked and tokens % CHUNK_TOKENS == 0)
        key = kind, self._chunks(tokens)
        if key not in self._runs:
            self._runs[key] = self._put_together(run, kind)
        return self._runs[key]

    @property
    def is_searched(self) -> bool:
        """Whether any run was put together yet."""
        return bool(self._runs)

    def may_have(self, batch: int, tokens: int) -> bool:
        """Whether `at` has such a run, if a family's trace has it; not for one with loops over chunks, which may be irregular."""
        from ...predicting.families.shallow_training import same_events_above

        run = replace(self._run, batch=batch, prompt_tokens=tokens)
        return not self._chunked and run.device == "cuda" and same_events_above(self._report, run) is not None

    def least_bytes(self, batch: int, tokens: int) -> int | None:
        """A lower bound from a run with fewer chunks, so that none is put together for a context that is far too long; None
        without one."""
        if not self._chunked:
            return None
        point, chunks = self._point_of(replace(self._run, batch=batch, prompt_tokens=tokens)), self._chunks(tokens)
        alike = (
            run for (kind, turns), run in self._runs.items() if run and kind.several == (batch > 1) and turns <= chunks
        )
        return max((run.least_bytes(point) for run in alike), default=None)

    def _chunks(self, tokens: int) -> int:
        """Of a prompt, over which linear attention's loop runs."""
        return -(-tokens // CHUNK_TOKENS) if self._chunked else 0

    def _put_together(self, run: Run, kind: Kind) -> TrainedRun | None:
        """The first one of a kind may be held against its prediction; others differ from it in the turns of loops alone."""
        point, is_first = self._point_of(run), kind not in self._kinds
        if is_first:
            self._kinds[kind] = self._explored(run, kind)
        if (explored := self._kinds[kind]) is None:
            return None
        missing = explored.missing(run.prompt_tokens)
        try:
            if not missing:
                trained = self._as_explored(explored, [point])
            else:
                first, streams = self._turned_of(kind, explored)
                trained = first.turned(streams, missing, point)
        except UnsupportedError:
            return None
        if (
            is_first
            and kind not in self._known
            and trained.held_bytes(point) != self._held_bytes(run.batch, run.prompt_tokens)
        ):
            self._kinds[kind] = None
        return trained if self._kinds[kind] is not None else None

    def _as_explored(self, explored: TrainingExplored, corners: Sequence[Point]) -> TrainedRun:
        multiprocessors, threads = sums_by(self._run.gpu)
        return TrainedRun(explored.exploration, corners, multiprocessors=multiprocessors, threads=threads)

    def _turned_of(self, kind: Kind, explored: TrainingExplored) -> tuple[TrainedRun, TurnedStreams]:
        """The run with the turns of its trace, and its requests with any number of turns."""
        if kind not in self._turned:
            first = self._as_explored(explored, ())
            self._turned[kind] = first, first.streams(explored.loops)
        return self._turned[kind]

    def _explored(self, run: Run, kind: Kind) -> TrainingExplored | None:
        if (kept := training_of_any(self._report, run)) is None:
            return None
        requested = run.batch, run.prompt_tokens
        if kept.learnt and requested != (self._run.batch, self._run.prompt_tokens):
            self._known.add(kind)
        return TrainingExplored(kept.trace, kept.run, turns=kept.turns)


def sums_by(gpu: str) -> tuple[int, int]:
    """The card's multiprocessors, and for how many threads each has room, which decide the scratch of sums over rows."""
    return gpus.multiprocessors(gpu) or ANY_MULTIPROCESSORS, gpus.threads_per_multiprocessor(gpu)
