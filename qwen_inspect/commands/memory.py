"""`memory`: predicted, or measured beside it; of one device, of ranks, or of several devices."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..arguments import SHARED_BY
from ..console import EXIT_INTERRUPTED, EXIT_UNAVAILABLE, complain, one_line, text_of, verdict, write, write_picture
from ..language import Language
from .options import access_of, check_options, inspected, is_capability, run_of

if TYPE_CHECKING:
    from ..results.memory import MemoryReport
    from ..results.model import Report
    from ..results.ranks import Parallelism

PLOT_POINTS = 1500  # more than a screen has columns


def run(options: argparse.Namespace, say: Language) -> int:
    from dataclasses import replace

    from ..renderers.document import View

    check_options(options)
    how = _parallelism(options)
    if not is_capability(options.gpu):
        from ..fitting.search import card_name

        options.gpu = card_name(options.gpu)
    report = inspected(options)
    shared = _over_devices(report, how, options)  # what cannot be is refused before anything is traced
    memory = replace(_memory(report, options, say), **shared)
    if options.format == "html":
        from ..predicting.predict import explored

        memory = explored(memory)
    write(text_of(options, memory, say, View(live=options.format == "html")), options, say)
    return _memory_verdict(memory, options, say)


def _memory(report: Report, options: argparse.Namespace, say: Language) -> MemoryReport:
    """The run's footprint as predicted and, with --device, as measured; and its picture, where one is asked for."""
    from ..errors import UsageError

    points = 0 if options.plot is None else PLOT_POINTS
    if options.device is None:
        for name in ("random_weights", "force", "snapshot"):
            if getattr(options, name):
                raise UsageError("needs_device", option="--" + name.replace("_", "-"))
        from ..predicting.predict import predict

        memory = predict(report, run_of(options), course_points=points)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would tell stderr when it starts and stops
        from pathlib import Path

        from ..measuring.measure import Request, measured

        if options.snapshot is not None and os.path.lexists(options.snapshot) and not options.overwrite:
            raise UsageError("output_exists", path=options.snapshot)
        request = Request(
            device=options.device,
            random_weights=options.random_weights,
            force=options.force,
            snapshot=None if options.snapshot is None else Path(options.snapshot),
            course_points=points,
        )
        memory = measured(report, run_of(options), request, access_of(options))
    if options.plot is not None:
        _draw_course(memory, options.plot, options, say)
    return memory


def _draw_course(memory: MemoryReport, path: str, options: argparse.Namespace, say: Language) -> None:
    from ..errors import UnavailableError
    from ..renderers.plot import memory_plot

    course = memory.predicted.course
    if course is None:
        without_torch = any(message.key == "assume_no_torch" for message in memory.predicted.assumptions)
        raise UnavailableError("plot_needs_torch" if without_torch else "plot_needs_trace")
    measured = None if memory.measured is None else memory.measured.footprint.course
    write_picture(memory_plot(memory, course, say, measured=measured), path, options, say)


def _parallelism(options: argparse.Namespace) -> Parallelism | None:
    """How several ranks share the model, None where none do; refuses options that contradict each other."""
    from ..errors import UsageError

    given = [f"--{name}" for name in SHARED_BY if getattr(options, name) is not None]
    if options.cache == "static" and (given or options.device_map is not None):
        raise UsageError("static_cache_shared", option=(given or ["--device-map"])[0])
    if options.zero_stage is not None and options.fsdp is None:
        raise UsageError("option_needs", option="--zero-stage", other="--fsdp")
    if options.device_memory is not None and options.device_map is None:
        raise UsageError("option_needs", option="--device-memory", other="--device-map")
    several = [*given, *(["--device-map"] if options.device_map is not None else [])]
    others = ("--device-map", options.device_map), ("--device", options.device)
    for other, value in others:
        if value is not None and several and several != [other]:
            raise UsageError("options_exclude", option=several[0], other=other)
    if not given:
        return None
    from ..results.ranks import Parallelism

    return Parallelism(
        tensor=options.tp or 1,
        pipeline=options.pp or 1,
        expert=options.ep or 1,
        fsdp=options.fsdp or 1,
        zero_stage=options.zero_stage or 3,
    )


def _over_devices(report: Report, how: Parallelism | None, options: argparse.Namespace) -> dict[str, Any]:
    """What each rank or device holds, as fields of a MemoryReport; nothing where none are asked for."""
    if how is None and options.device_map is None:
        return {}
    from ..sharing.ranks import device_map_report, ranks_report, with_peaks

    run = run_of(options)
    if how is not None:
        return {"ranks": with_peaks(ranks_report(report, run, how), report, run)}
    return {"device_map": device_map_report(report, run, options.device_memory)}


def _memory_verdict(memory: MemoryReport, options: argparse.Namespace, say: Language) -> int:
    """What was refused or ended early is the exit code, after all that could be told."""
    code = verdict(memory.report, options, say)
    if memory.refusal is not None:
        raise memory.refusal
    if memory.measured is not None and memory.measured.partial is not None:
        complain(one_line(say("measured_partial", reason=say(memory.measured.partial))))
        return EXIT_INTERRUPTED if memory.measured.partial.key == "partial_interrupted" else EXIT_UNAVAILABLE
    return code
