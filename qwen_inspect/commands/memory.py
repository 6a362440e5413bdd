"""`memory`: a run's memory, predicted and, on request, measured; on one device, on ranks or over a device map."""

from __future__ import annotations

import os

from ..console import EXIT_UNAVAILABLE, complain, one_line
from ..errors import UnsupportedError, UsageError
from ..interrupts import EXIT_INTERRUPTED
from ..language import Language
from ..options import flag, given, media, model, output, prediction, values
from ..options.parser import Namespace, Parser
from ..typed import TYPE_CHECKING, Any
from ..units import parse_size

if TYPE_CHECKING:
    from ..results.media import Request
    from ..results.memory import MemoryReport, Run
    from ..results.model import Report

PLOT_POINTS = 1500  # more than a screen has columns
LONGEST_INDEX = 4  # digits of a device index
SHARED_BY = ("tp", "pp", "ep", "fsdp")


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    prediction.declare(command, say)
    prediction.declare_batch(command, say)
    media.declare(command, say)
    command.add_argument("--gpu", default=prediction.DEFAULT_CAPABILITY, metavar="NAME", help=say("help_gpu"))
    command.add_argument("--speed", action="store_true", help=say("help_speed"))
    command.add_argument("--plot", metavar="FILE", help=say("help_plot"))
    command.add_argument("--device", metavar="DEVICE", help=say("help_measure"))
    command.add_argument("--random-weights", action="store_true", help=say("help_random_weights"))
    command.add_argument("--force", action="store_true", help=say("help_force"))
    command.add_argument("--snapshot", metavar="FILE", help=say("help_snapshot"))
    for name in SHARED_BY:
        command.add_argument(flag(name), type=values.positive(say), metavar="N", help=say(f"help_ranks_{name}"))
    command.add_argument("--zero-stage", type=values.positive(say), choices=(1, 2, 3), help=say("help_zero_stage"))
    command.add_argument("--offload", action="store_true", help=say("help_offload"))
    command.add_argument("--deepspeed", action="store_true", help=say("help_deepspeed"))
    command.add_argument("--offload-optimizer", action="store_true", help=say("help_offload_optimizer"))
    command.add_argument("--offload-params", action="store_true", help=say("help_offload_params"))
    command.add_argument("--device-map", choices=("auto",), help=say("help_device_map"))
    _declare_rollouts(command, say)
    sizes = values.reader(_capacities, "usage_capacities", say)
    command.add_argument("--device-memory", type=sizes, metavar="SIZES", help=say("help_device_memory"))
    output.declare_document(command, say)


def _declare_rollouts(command: Parser, say: Language) -> None:
    """GRPO on one card."""
    add = command.add_argument
    add("--rollout", choices=("vllm", "transformers"), help=say("help_rollout"))
    add("--rollouts", type=values.positive(say), metavar="N", help=say("help_rollouts"))
    share = values.reader(values.parse_share, "usage_share", say)
    add("--utilization", type=share, metavar="SHARE", help=say("help_rollout_utilization"))
    add("--sleep", type=int, choices=(1, 2), help=say("help_sleep"))
    add("--reference", action="store_true", help=say("help_reference"))
    add("--reward", metavar="MODEL", help=say("help_reward"))


def run(options: Namespace, say: Language) -> int:
    """Shows what is known, then raises a refusal or returns the exit code of a measurement that ended early."""
    from ..values import replace

    output.check(options, picture=options.plot)
    _check_devices(options)
    prediction.say_dtype(options, say)
    run = prediction.run_of(options, gpu=_card(options.gpu))
    request = media.request_of(options)
    _check_media(request, run, options)
    report = media.with_media(prediction.inspected(options), request, options)
    run = prediction.with_media(prediction.as_the_model_runs(run, report, options), report, options)
    shared = _over_devices(report, run, options)  # first, so that a refusal comes before a slow trace
    speed = None
    if options.speed:
        from ..predicting.speed import speed_of

        speed = speed_of(report, run, options.gpu)
    memory = replace(
        _memory(report, run, options) if options.rollout is None else _grpo(report, run, options),
        speed=speed,
        **shared,
    )
    if options.plot is not None:
        _draw_course(memory, options, say)
    if options.format == "html" and request is None:
        from ..media.stops import image_stops
        from ..predicting.predict import explored

        memory = replace(explored(memory), images=image_stops(report, model.access_of(options)))
    output.show(memory, options, say)
    output.say_notices(memory.report, options, say)
    if memory.refusal is not None:
        raise memory.refusal
    if memory.measured is not None and memory.measured.partial is not None:
        complain(one_line(say("measured_partial", reason=say(memory.measured.partial))))
        return EXIT_INTERRUPTED if memory.measured.partial.key == "partial_interrupted" else EXIT_UNAVAILABLE
    return 0


def _check_devices(options: Namespace) -> None:
    """Raises UsageError for options that need another one or exclude each other."""
    for option, needed in (
        ("zero_stage", "fsdp"),
        ("offload", "fsdp"),
        ("deepspeed", "fsdp"),
        ("offload_optimizer", "fsdp"),
        ("offload_params", "fsdp"),
        ("device_memory", "device_map"),
    ):
        if given(options, option) and not given(options, needed):
            raise UsageError("option_needs", option=flag(option), other=flag(needed))
    sharing = given(options, *SHARED_BY, "device_map")
    _check_rollouts(options)
    _check_speed(options)
    if options.cache == "static" and sharing:
        raise UsageError("static_cache_shared", option=sharing[0])
    for excluded in given(options, "device_map", "device"):
        if sharing and sharing != [excluded]:
            raise UsageError("options_exclude", option=sharing[0], other=excluded)
    if options.device is None and (typed := given(options, "random_weights", "force", "snapshot")):
        raise UsageError("needs_device", option=typed[0])
    if options.device is not None and options.transformers is not None:
        raise UsageError("version_measured")
    if options.device is not None and options.loss not in (None, "model"):
        raise UsageError("loss_device", loss=options.loss)
    if options.device is not None and options.ema:
        raise UsageError("not_together", option="--ema", other="--device")
    if options.snapshot is not None and os.path.lexists(options.snapshot) and not options.overwrite:
        raise UsageError("output_exists", path=options.snapshot)


def _check_rollouts(options: Namespace) -> None:
    """Raises UsageError for options of GRPO without it, of vLLM without it, and for GRPO without training or a named card."""
    if options.rollout is None:
        if typed := given(options, "rollouts", "utilization", "sleep", "reference", "reward"):
            raise UsageError("option_needs", option=typed[0], other="--rollout")
        return
    if options.mode != "train":
        raise UsageError("option_needs", option="--rollout", other="--mode train")
    if excluded := given(options, *SHARED_BY, "device_map", "device"):
        raise UsageError("options_exclude", option="--rollout", other=excluded[0])
    if typed := [*given(options, "loss", "ema"), *(["--loop sft"] if options.loop == "sft" else [])]:
        raise UsageError("not_together", option="--rollout", other=typed[0])
    if options.rollout != "vllm" and (typed := given(options, "utilization", "sleep")):
        raise UsageError("option_needs", option=typed[0], other="--rollout vllm")
    if prediction.is_capability(options.gpu):
        raise UsageError("option_needs", option="--rollout", other="--gpu NAME")


def _check_speed(options: Namespace) -> None:
    """Raises UsageError for bounds of anything but one card that is named, or of audio."""
    if not options.speed:
        return
    if excluded := given(options, *SHARED_BY, "device_map", "device", "audio"):
        raise UsageError("options_exclude", option="--speed", other=excluded[0])
    if options.mode == "train":
        raise UsageError("options_exclude", option="--speed", other="--mode train")
    if prediction.is_capability(options.gpu):
        raise UsageError("option_needs", option="--speed", other="--gpu NAME")


def _grpo(report: Report, run: Run, options: Namespace) -> MemoryReport:
    """The report of training with TRL's chunked head, with the class's own loss if that is not known for it, and each phase of a
    step of GRPO.
    """
    from ..fitting.colocated import Rollouts, check_step, colocated, with_chunked_head
    from ..loaders import gpus
    from ..values import replace

    check_step(run, reference=options.reference)
    try:
        memory = _memory(report, with_chunked_head(run), options)
    except UnsupportedError as error:
        if error.message.key != "loss_class":
            raise
        memory = _memory(report, run, options)
    rollouts = Rollouts(
        engine=options.rollout,
        gpu=gpus.find(options.gpu),
        count=options.rollouts or options.batch,
        utilization=options.utilization,
        sleep=options.sleep or 0,
        reference=options.reference,
        reward=None if options.reward is None else _reward(options),
    )
    return replace(memory, colocated=colocated(memory, rollouts))


def _reward(options: Namespace) -> Report:
    """The reward model, of which no other option speaks."""
    from ..structure.inspect import inspect

    name, _ = model.named(options.reward, options)
    return inspect(name, source=options.source, access=model.access_of(options))


def _check_media(request: Request | None, run: Run, options: Namespace) -> None:
    """Raises UsageError for what is predicted for text alone."""
    if request is None:
        return
    if typed := given(options, *SHARED_BY, "device_map", "device"):
        raise UsageError("options_exclude", option=prediction.media_option(request), other=typed[0])
    prediction.check_media(request, run)


def _card(gpu: str) -> str:
    """The name under which a prediction looks up --gpu."""
    if prediction.is_capability(gpu):
        return gpu
    from ..fitting.search import card_name

    return card_name(gpu)


def _memory(report: Report, run: Run, options: Namespace) -> MemoryReport:
    """The run's footprint as predicted and, with --device, as measured."""
    points = 0 if options.plot is None else PLOT_POINTS
    if options.device is None:
        from ..predicting.predict import predict

        return predict(report, run, course_points=points)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler, which logs to stderr
    # OpenMP's threads sleep between two products instead of spinning: on a busy machine, 128 tokens of a model of 2 MB took 31 s
    # spinning and 4 s sleeping, and the bytes are the same. Source: OpenMP 5.2, section 21.7
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pathlib import Path

    from ..measuring.measure import Request, measured

    request = Request(
        device=options.device,
        random_weights=options.random_weights,
        force=options.force,
        snapshot=None if options.snapshot is None else Path(options.snapshot),
        course_points=points,
    )
    return measured(report, run, request, model.access_of(options))


def _draw_course(memory: MemoryReport, options: Namespace, say: Language) -> None:
    from ..errors import UnavailableError
    from ..renderers.plot import memory_plot

    course = memory.predicted.course
    if course is None:
        without_torch = any(message.key == "assume_no_torch" for message in memory.predicted.assumptions)
        raise UnavailableError("plot_needs_torch" if without_torch else "plot_needs_trace")
    measured = None if memory.measured is None else memory.measured.footprint.course
    output.write_picture(memory_plot(memory, course, say, measured=measured), options.plot, options, say)


def _over_devices(report: Report, run: Run, options: Namespace) -> dict[str, Any]:
    """Each rank's or device's share, as fields of a MemoryReport; empty if none were requested."""
    if options.device_map is not None:
        from ..sharing.ranks import device_map_report

        return {"device_map": device_map_report(report, run, options.device_memory)}
    if given(options, *SHARED_BY):
        from ..results.ranks import Parallelism
        from ..sharing.ranks import ranks_report, with_peaks

        how = Parallelism(
            tensor=options.tp or 1,
            pipeline=options.pp or 1,
            expert=options.ep or 1,
            fsdp=options.fsdp or 1,
            zero_stage=options.zero_stage or 3,
            offload=options.offload,
            deepspeed=options.deepspeed,
            offload_optimizer=options.offload_optimizer,
            offload_params=options.offload_params,
        )
        return {"ranks": with_peaks(ranks_report(report, run, how), report, run)}
    return {}


def _capacities(text: str) -> dict[str, int]:
    """Device -> bytes, from a text such as 24GiB,24GiB,cpu=64GiB; GPUs are numbered in order."""
    bytes_of: dict[str, int] = {}
    for item in text.split(","):
        name, _, typed = item.rpartition("=")
        device = name.strip() or str(sum(map(str.isdigit, bytes_of)))
        size_bytes = parse_size(typed.strip())
        is_device = device == "cpu" or (device.isdigit() and len(device) <= LONGEST_INDEX)
        if not size_bytes or not is_device or device in bytes_of:
            raise ValueError
        bytes_of[device] = size_bytes
    return bytes_of
