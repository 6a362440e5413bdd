"""What of a card a run's prediction depends on, and the terms of what it requires there."""

from __future__ import annotations

from ...loaders import calibration
from ...predicting.allocation.workspaces import has_cudnn_attention, workspace_of
from ...predicting.sources import installed
from ...results.fit import Gpu
from ...results.measurement import Calibration
from ...results.memory import Footprint, Run


def kernels_of(run: Run) -> tuple[object, ...]:
    """What of a run's card its requests depend on, outside of training."""
    return workspace_of(run), has_cudnn_attention(run.gpu)


def terms_of(footprint: Footprint) -> tuple[tuple[str, int], ...]:
    """The terms of the peak (at least) and what is only reserved; without a peak, the terms of the run's end."""
    peak_range = footprint.peak_range
    reserved = footprint.peak_reserved if peak_range is None else peak_range.low_reserved_bytes
    terms = [(term, size_bytes) for term, size_bytes in footprint.peak_at_least.bytes_by_term.items() if size_bytes]
    if reserved is not None:
        terms.append(("reserved_only", reserved - sum(size_bytes for _, size_bytes in terms)))
    return tuple(terms)


def calibration_of(gpu: Gpu) -> Calibration | None:
    """This card's calibration, measured on this machine with the installed libraries; None if there is none."""
    calibrations = (calibration.find(name, installed()) for name in (*gpu.device_names, gpu.name))
    return next((measured for measured in calibrations if measured is not None), None)
