"""The command line: arguments, environment, stdout and stderr, exit codes. The only module that prints or exits.

Everything else is imported when a command runs, so that `--help` costs no more than argparse.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from .arguments import (
    DEFAULT_MODEL,
    DEFAULT_PROMPT_TOKENS,
    ENGINE_OPTIONS,
    SHARED_BY,
    WrongArgumentError,
    language_choice,
    parser,
)
from .language import Language, language_of

if TYPE_CHECKING:
    from .engines import Serving
    from .fitting import Gpu
    from .loaders.resolve import Access
    from .ranks import Parallelism
    from .report.memory import MemoryReport, Run
    from .report.model import Report

LONGEST_LINE = 1000
WAITING = frozenset({"torch", "huggingface_hub", "modelscope_hub"})  # packages with threads, files and caches to close
PLOT_POINTS = 1500  # more than a screen has columns
EXIT_CHECK_FAILED, EXIT_USAGE, EXIT_MALFORMED, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 6, 8, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    say = Language(language_of(language_choice(words), os.environ))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by the caller
            # A name that the terminal's encoding cannot show is shown escaped.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    collecting = gc.isenabled()
    gc.disable()  # one short command whose data has no cycles: collecting would take a quarter of the time for 36,945 tensors
    try:
        return _run(parser(say, words).parse_args(words), say)
    except WrongArgumentError as error:
        _complain(say("error", message=_one_line(str(error))))
        return EXIT_USAGE
    except KeyboardInterrupt:
        _complain(say("interrupted"))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()  # the reader, `head` perhaps, has what it wanted
        return 0
    except MemoryError:
        _complain(say("error", message=say("out_of_memory")))
        return EXIT_MALFORMED
    finally:
        if collecting:
            gc.enable()


def script() -> NoReturn:
    """`main` for a shell. Leaves at once where nothing waits for the interpreter's end, whose taking apart of tens of thousands
    of objects would be a tenth of a short command's time."""
    code = main()
    if WAITING.isdisjoint(sys.modules):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(options: argparse.Namespace, say: Language) -> int:
    from .errors import QwenInspectError

    try:
        return _show(options, say)
    except QwenInspectError as error:
        _complain(say("error", message=_one_line(say(error.message))))
        return error.exit_code


def _show(options: argparse.Namespace, say: Language) -> int:
    from . import pipeline
    from .errors import UsageError
    from .renderers.document import View

    if options.command == "report":
        return _report(options, say)
    if options.output is not None and os.path.lexists(options.output) and not options.overwrite:
        raise UsageError("output_exists", path=options.output)
    plot = options.output if options.command == "diagram" else getattr(options, "plot", None)
    if plot is not None:
        _check_picture(plot, options)
    _check_prompt_options(options)
    serving = _serving(options) if options.command == "fit" else None
    cards = _cards(options) if options.command == "fit" else ()
    how = _parallelism(options) if options.command == "memory" else None
    if options.command == "models":
        subject: object = pipeline.models()
        report = None
    elif options.command == "gpus":
        from .loaders import gpus

        subject, report = gpus.table(), None
    elif options.command == "compare":
        return _compare(options, say)
    else:
        subject = report = pipeline.inspect(
            options.model,
            source=options.source,
            revision=options.revision,
            file=options.file,
            access=_access(options),
            require_design=options.command not in ("weights", "config", "memory", "fit")
            or getattr(options, "explain", False),
            predict_files=options.command in ("weights", "params"),
            instantiate=getattr(options, "instantiate", False),
            expected_parameters=getattr(options, "expect_params", None),
            batch=getattr(options, "batch", 1),
            context=getattr(options, "context", None),
            cache_format=getattr(options, "cache_dtype", "auto"),
            ranks=getattr(options, "tp", None) or 1,
            dtype=getattr(options, "dtype", None),
            group_size=getattr(options, "group_size", None),
            trust_remote_code=options.trust_remote_code,
        )
        if getattr(options, "prompt", None) is not None:
            subject = report = _with_generation(report, options)
        if options.command == "memory":
            from dataclasses import replace

            shared = _over_devices(report, how, options)  # what cannot be is refused before anything is traced
            memory = replace(_memory(report, options, say), **shared)
            if options.format == "html":
                from .prediction import explored

                memory = explored(memory)
            _write(_text(options, memory, say, View(live=options.format == "html")), options, say)
            return _memory_verdict(memory, options, say)
        if options.command == "fit":
            return (
                _fit(report, cards, options, say) if serving is None else _serve(report, serving, cards, options, say)
            )
        if options.command == "diagram":
            return _diagram(report, options, say)
        if options.command == "attention" and options.plot is not None:
            from .renderers.cache_plot import cache_plot

            _write_picture(cache_plot(report, say), options.plot, options, say)
    chosen = ("expand", "depth", "first_layer", "explain", "sort", "top")
    wanted = {name: getattr(options, name) for name in chosen if hasattr(options, name)}
    view = View(live=options.format == "html", **wanted)
    _write(_text(options, subject, say, view), options, say)
    return 0 if report is None else _verdict(report, options, say)


def _compare(options: argparse.Namespace, say: Language) -> int:
    """Fails where two hubs' listings were asked and do not prove the weights the same; that models differ is no failure."""
    from .errors import UsageError
    from .renderers.document import View
    from .side_by_side import compare

    if len(options.models) < 2:
        raise UsageError("compare_needs_two")
    # A name such as sm_90 says what is predicted for, and no memory that something could fit.
    cards = () if options.gpu is None or options.gpu.lower().startswith("sm_") else _cards(options)
    if cards:
        options.gpu = cards[0].name
    compared = compare(
        options.models,
        _run_of(options),
        access=_access(options),
        dtype=options.dtype,
        group_size=options.group_size,
        cards=cards,
    )
    _write(_text(options, compared, say, View(expand=options.expand)), options, say)
    return EXIT_CHECK_FAILED if compared.unproven else 0


def _memory(report: Report, options: argparse.Namespace, say: Language) -> MemoryReport:
    """The run's footprint as predicted and, with --device, as measured; and its picture, where one is asked for."""
    from .errors import UsageError

    points = 0 if options.plot is None else PLOT_POINTS
    if options.device is None:
        for name in ("random_weights", "force", "snapshot"):
            if getattr(options, name):
                raise UsageError("needs_device", option="--" + name.replace("_", "-"))
        from .prediction import predict

        memory = predict(report, _run_of(options), course_points=points)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would tell stderr when it starts and stops
        from pathlib import Path

        from .measurement import Request, measured

        if options.snapshot is not None and os.path.lexists(options.snapshot) and not options.overwrite:
            raise UsageError("output_exists", path=options.snapshot)
        request = Request(
            device=options.device,
            random_weights=options.random_weights,
            force=options.force,
            snapshot=None if options.snapshot is None else Path(options.snapshot),
            course_points=points,
        )
        memory = measured(report, _run_of(options), request, _access(options))
    if options.plot is not None:
        _draw_course(memory, options.plot, options, say)
    return memory


def _parallelism(options: argparse.Namespace) -> Parallelism | None:
    """How several ranks share the model, None where none do; refuses options that contradict each other."""
    from .errors import UsageError

    given = [f"--{name}" for name in SHARED_BY if getattr(options, name) is not None]
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
    from .ranks import Parallelism

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
    from .distribution import device_map_report, ranks_report

    if how is not None:
        return {"ranks": ranks_report(report, _run_of(options), how)}
    return {"device_map": device_map_report(report, _run_of(options), options.device_memory)}


def _memory_verdict(memory: MemoryReport, options: argparse.Namespace, say: Language) -> int:
    """What was refused or ended early is the exit code, after all that could be told."""
    code = _verdict(memory.report, options, say)
    if memory.refusal is not None:
        raise memory.refusal
    if memory.measured is not None and memory.measured.partial is not None:
        _complain(_one_line(say("measured_partial", reason=say(memory.measured.partial))))
        return EXIT_INTERRUPTED if memory.measured.partial.key == "partial_interrupted" else EXIT_UNAVAILABLE
    return code


def _cards(options: argparse.Namespace) -> Sequence[Gpu]:
    """The cards that are meant by --gpu or --memory; what stands for one where vLLM's budget is given."""
    if getattr(options, "kv_budget", None) is not None:
        from .serving import budget_card

        return (budget_card(options.kv_budget[1]),)
    from .answers import cards

    return cards(options.gpu, getattr(options, "memory", None))


def _fit(report: Report, cards: Sequence[Gpu], options: argparse.Namespace, say: Language) -> int:
    """1 where it does not fit one of the cards; what is refused is the exit code after all that could be told."""
    from .answers import fit
    from .renderers.document import View

    found = fit(report, _run_of(options), cards, beyond_limit=options.beyond_limit)
    _write(_text(options, found, say, View()), options, say)
    code = _verdict(found.report, options, say)
    if any(card.high.fits is False for card in found.cards):
        return EXIT_CHECK_FAILED
    if found.refusal is not None:
        raise found.refusal
    return code


def _serve(report: Report, serving: Serving, cards: Sequence[Gpu], options: argparse.Namespace, say: Language) -> int:
    """1 where it does not fit one of the cards."""
    from .renderers.document import View
    from .serving import serve

    found = serve(report, serving, cards, beyond_limit=options.beyond_limit)
    _write(_text(options, found, say, View()), options, say)
    code = _verdict(found.report, options, say)
    return EXIT_CHECK_FAILED if any(card.answer.high.fits is False for card in found.cards) else code


def _serving(options: argparse.Namespace) -> Serving | None:
    """What an engine is asked for, None for transformers. UsageError for options that are another engine's or contradict."""
    from .engines import Serving
    from .errors import UsageError

    for engine, names in ENGINE_OPTIONS.items():
        for name in names:
            if engine != options.engine and getattr(options, name) != options.not_given[name]:
                raise UsageError(
                    "engine_option", option=f"--{name.replace('_', '-')}", engine=engine, asked=options.engine
                )
    if options.engine == "transformers":
        return None
    if options.kv_budget is not None:
        for name in ("gpu", "memory", "utilization"):
            if getattr(options, name) is not None:
                raise UsageError("engine_budget_given", option=f"--{name}")
    if options.engine == "llama.cpp":
        if options.cache_dtype != "auto":
            raise UsageError("engine_cache_types")
        formats = options.cache_type_k, options.cache_type_v
    elif "," in options.cache_dtype:
        raise UsageError("engine_one_cache_dtype", found=options.cache_dtype)
    else:
        formats = options.cache_dtype, options.cache_dtype
    return Serving(
        engine=options.engine,
        batch=options.batch,
        context_tokens=options.context,
        cache_formats=formats,
        ranks=options.tp,
        utilization=options.utilization,
        kv_budget_bytes=None if options.kv_budget is None else options.kv_budget[1],
        step_tokens=options.max_num_batched_tokens,
        offloaded=options.ngl,
    )


def _diagram(report: Report, options: argparse.Namespace, say: Language) -> int:
    """The figure where -o says, or as SVG on stdout."""
    from .renderers.figure import architecture_figure

    svg = architecture_figure(report, say)
    if options.output is None:
        _print(svg)
    else:
        _write_picture(svg, options.output, options, say)
    return _verdict(report, options, say)


def _report(options: argparse.Namespace, say: Language) -> int:
    """The whole report written, shown or checked; 1 where a figure drifted or something expected does not hold."""
    from .errors import UsageError
    from .report.whole import ReportRequest
    from .reporting import Task, carry_out

    action = "update" if options.update else "check" if options.check else "overwrite" if options.overwrite else "write"
    if options.output is None and action in ("update", "check"):
        raise UsageError("report_needs_directory", option=f"--{action}")
    request = ReportRequest(
        model=options.model or DEFAULT_MODEL,
        source=options.source,
        revision=options.revision,
        context_tokens=options.context,
        batch=options.batch,
        new_tokens=options.new_tokens,
        instantiate=options.instantiate,
        measured=tuple(options.measured),
        language=say.code,
        form="md" if options.format == "github" else options.format,
    )
    task = Task(
        request=None if options.model is None and action in ("update", "check") else request,
        directory=options.output,
        action="show" if options.output is None else action,
        summary=options.format == "github",
        expected_parameters=options.expect_params,
        expected_attention=options.expect_attention,
        most_vram=options.max_vram,
    )
    outcome = carry_out(task, _access(options), say)
    if outcome.text:
        _print(outcome.text)
    for path in () if options.quiet else outcome.saved:
        _complain(_one_line(say("saved", path=path)))
    for message in outcome.failed:
        _complain(_one_line(say(message)))
    if outcome.agrees and outcome.refusal is not None:
        raise outcome.refusal
    return 0 if outcome.agrees else EXIT_CHECK_FAILED


def _check_picture(path: str, options: argparse.Namespace) -> None:
    """Refuses what cannot be written as a picture before anything is computed for it."""
    from .errors import UsageError

    if not path.lower().endswith((".svg", ".png")):
        raise UsageError("picture_suffix", path=path)
    if os.path.lexists(path) and not options.overwrite:
        raise UsageError("output_exists", path=path)


def _draw_course(memory: MemoryReport, path: str, options: argparse.Namespace, say: Language) -> None:
    from .errors import UnavailableError
    from .renderers.plot import memory_plot

    course = memory.predicted.course
    if course is None:
        raise UnavailableError("plot_needs_trace")
    measured = None if memory.measured is None else memory.measured.footprint.course
    _write_picture(memory_plot(memory, course, say, measured=measured), path, options, say)


def _write_picture(svg: str, path: str, options: argparse.Namespace, say: Language) -> None:
    """As SVG or as PNG, by the suffix; a PNG without its letters is not kept silent."""
    from .output import write_whole
    from .renderers.svg import lacks_glyphs, png

    as_png = path.lower().endswith(".png")
    write_whole(path, png(svg) if as_png else svg, overwrite=options.overwrite)
    if as_png and lacks_glyphs(svg):
        _complain(_one_line(say("lacks_glyphs", path=path)))
    if not options.quiet:
        _complain(_one_line(say("saved", path=path)))


PROMPT_OPTIONS = ("max_new_tokens", "device")


def _check_prompt_options(options: argparse.Namespace) -> None:
    """Before anything is asked of a hub: a prompt that is one, and nothing that goes with a prompt without it."""
    from .errors import UsageError

    if "prompt" not in options:
        return
    if options.prompt is not None:
        from .analyzers.generation import check_prompt

        check_prompt(options.prompt)
    elif given := next((name for name in PROMPT_OPTIONS if getattr(options, name)), None):
        raise UsageError("prompt_needed", option=f"--{given.replace('_', '-')}")


def _with_generation(report: Report, options: argparse.Namespace) -> Report:
    from . import pipeline

    gc.enable()  # no longer a short command: a model's modules do have cycles
    return pipeline.generate(
        report,
        options.prompt,
        max_new_tokens=options.max_new_tokens or 32,
        device=options.device or "cpu",
        trust_remote_code=options.trust_remote_code,
        access=_access(options),
        show=None if options.quiet or not _is_terminal(sys.stderr) else _show_text,
    )


def _show_text(text: str) -> None:
    """A piece of generated text, on a terminal, harmless: only its line breaks are sent as they are."""
    from .renderers.terminal import safe

    with contextlib.suppress(OSError):
        sys.stderr.write("\n".join(map(safe, text.split("\n"))))
        sys.stderr.flush()


def _run_of(options: argparse.Namespace) -> Run:
    from .report.memory import Run

    return Run(
        mode=options.mode,
        batch=options.batch,
        prompt_tokens=options.context or DEFAULT_PROMPT_TOKENS,
        new_tokens=options.new_tokens,
        attention=options.attention,
        loader=options.load,
        gpu=options.gpu or "sm_80",
        optimizer=options.optimizer,
        checkpointing=options.checkpointing,
        trained=options.trained,
        accumulate=options.accumulate,
        lora_rank=options.lora,
        lora_targets=_lora_targets(options),
        cache_format=options.cache_dtype,
        # The first of the two that is set, as torch 2.13 looks for them.
        allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF", ""),
    )


def _lora_targets(options: argparse.Namespace) -> tuple[str, ...]:
    from .errors import UsageError

    if options.lora_targets is None:
        return ("all-linear",)
    if options.lora is None:
        raise UsageError("lora_targets_alone")
    return tuple(name.strip() for name in options.lora_targets.split(","))


def _access(options: argparse.Namespace) -> Access:
    from .loaders.resolve import Access
    from .units import size

    return Access(
        offline=options.offline,
        refresh=options.refresh,
        partial=options.partial,
        seconds=options.timeout,
        progress=_progress(str, quiet=options.quiet),
        downloaded=_progress(size, quiet=options.quiet),
    )


def _progress(written: Callable[[int], str], *, quiet: bool) -> Callable[[int, int], None]:
    """Counts what arrives, on one line of a terminal that is erased at the end; nowhere else, nothing."""
    stream = sys.stderr  # a client may be kept from writing to it meanwhile
    if quiet or not _is_terminal(stream):
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if total > 1:
            stream.write(f"\r{written(done)}/{written(total)}\x1b[K" if done < total else "\r\x1b[K")
            stream.flush()

    return show


def _text(options: argparse.Namespace, subject: object, say: Language, view: object) -> str:
    if options.format == "json":
        from .renderers import json

        return json.render(options.command, subject, say)
    from .renderers.document import View, document

    assert isinstance(view, View)
    blocks = document(options.command, subject, say, view)
    if options.format == "md":
        from .renderers import markdown

        return markdown.render(blocks)
    if options.format == "html":
        from .renderers import html

        return html.render(blocks, say)
    from .renderers import terminal

    plain = (
        options.output is not None or options.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return terminal.render(blocks) if plain or not _is_terminal(sys.stdout) else terminal.render_in_colour(blocks)


def _write(text: str, options: argparse.Namespace, say: Language) -> None:
    if options.output is None:
        _print(text)
        return
    from .output import write_whole

    write_whole(options.output, text, overwrite=options.overwrite)
    if not options.quiet:
        _complain(_one_line(say("saved", path=options.output)))


def _print(text: str) -> None:
    from .errors import UsageError

    if sys.stdout is None:
        raise UsageError("output_unwritable", path="stdout", reason="closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence_stdout()
        raise UsageError("output_unwritable", path="stdout", reason=error.strerror) from None


def _silence_stdout() -> None:
    """Keeps Python from complaining when it flushes at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verdict(report: Report, options: argparse.Namespace, say: Language) -> int:
    """Notices to stderr where the reader does not see the document, and the exit code of the checks."""
    if not options.quiet and (
        options.output is not None or options.format in ("json", "svg") or not _is_terminal(sys.stdout)
    ):
        for notice in report.notices:
            _complain(_one_line(say(notice)))
    if options.verbose and report.release is not None:
        _complain(
            _one_line(say("catalog_sources", config=report.release.config_source, counts=report.release.source or "–"))
        )
    if options.command != "params":
        return 0
    claimed = options.expect_params
    if claimed is not None and claimed != report.parameters.theory:
        _complain(say("claim_failed", theory=report.parameters.theory, claimed=claimed))
        return EXIT_CHECK_FAILED
    if failed := [check for check in report.checks if not check.agrees]:
        _complain(say("check_failed", count=len(failed)))
        return EXIT_CHECK_FAILED
    return 0


def _one_line(text: str) -> str:
    """A sentence with hostile values written out and cut: one line, no control characters, no 100 KB name."""
    from .renderers.terminal import safe

    shown = safe(text[:LONGEST_LINE])
    return shown if len(text) <= LONGEST_LINE else f"{shown}…"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _complain(line: str) -> None:
    if sys.stderr is None:  # closed by the caller; print would turn to stdout
        return
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
