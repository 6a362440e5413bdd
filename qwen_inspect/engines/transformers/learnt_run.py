"""A training run as requested from its family's trace, on any card: what it reserves there, not what that consists of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from ...predicting.allocation.workspaces import has_cudnn_attention
from ...predicting.totals import most_requested, reserved_on_card
from ...results.memory import Run
from ...results.timeline import Timeline
from ...tracing.scratch import sum_scratch
from .on_card import kernels_of
from .trained_runs import sums_by


class LearntRun:
    """run: the requested one, on its card. predicted_bytes: what the prediction of that reserves."""

    def __init__(self, timeline: Timeline, run: Run, predicted_bytes: Callable[[], int]) -> None:
        self._timeline, self._run, self._predicted_bytes = timeline, run, predicted_bytes
        self._reserved: dict[object, int | None] = {}  # by what the requests depend on of a card

    def reserved_bytes(self, run: Run) -> int | None:
        """On another card; None if that takes a prediction."""
        key = self._key(run)
        if key not in self._reserved:
            is_predicted = run is not self._run and key == self._key(self._run)
            self._reserved[key] = self._predicted_bytes() if is_predicted else reserved_on_card(self._timeline, run)
        return self._reserved[key]

    def least_bytes(self, run: Run) -> int:
        """A lower bound of it that costs nothing."""
        # cuDNN's attention has other scratch than the trace's.
        return self._reserved.get(self._key(run)) or (0 if has_cudnn_attention(run.gpu) else self._most_requested)

    @cached_property
    def _most_requested(self) -> int:
        return most_requested(self._timeline)

    def _key(self, run: Run) -> object:
        sums = [sum_scratch(summed, *sums_by(run.gpu)) for _, summed in self._timeline.sums]
        return *kernels_of(run), *sums
