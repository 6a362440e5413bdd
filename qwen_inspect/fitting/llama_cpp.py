"""A command of llama.cpp on cards that work together: its buffers, whether they fit, and how far it could go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..engines.llama_cpp.buffers import GgufModel, Plan, flash_attention_is_possible
from ..engines.llama_cpp.builds import BUILDS, DEFAULT, FORK, FORK_MAY, Build, around
from ..engines.llama_cpp.cells import FITTING
from ..engines.llama_cpp.commands.command import Command
from ..engines.llama_cpp.commands.logs import Log, beside
from ..engines.llama_cpp.fit_params import FitParams
from ..engines.llama_cpp.ggml.repacking import REPACKED
from ..engines.llama_cpp.ggml.scheduler import HOST
from ..engines.llama_cpp.offload import gguf_source
from ..engines.llama_cpp.options import LlamaCppOptions
from ..engines.llama_cpp.reach import MARGIN_BYTES, NO_REACH, reach
from ..errors import UsageError
from ..language import Message
from ..loaders.resolve import Access
from ..results.fit import Gpu
from ..results.llama_cpp import Buffer, DeviceTotal, Fitted, LlamaCppReport
from ..results.model import Report
from ..units import MIB
from ..values import replace
from .llama_cpp_files import buffers_beside, model_of

CLOSE_BYTES = 64 * MIB  # more than what --fit measures differs by from what is allocated


def run_command(
    report: Report,
    command: Command,
    cards: Sequence[Gpu],
    *,
    host_bytes: int | None = None,
    log: Log | None = None,
    access: Access | None = None,
    tries_fit: bool = True,
) -> LlamaCppReport:
    """Raises UsageError for a command that llama.cpp refuses, UnsupportedError for a model that is not known here.

    tries_fit: whether to work out what --fit makes of a command that does not fit.
    """
    metadata, tensors = gguf_source(report)
    model = GgufModel(metadata, tuple(tensors))
    build, known = _build(log, command.options)
    if cards and log is not None and any(line[:2] == ("compute", HOST) for line in log.printed()):
        build = replace(build, blas=True)
    options = command.options
    by_default = build.flash_by_default and (not cards or flash_attention_is_possible(model.hyperparameters))
    if command.flash_attention is None and not by_default:
        options = replace(options, flash_attention=False)
    if log is not None:
        options = _as_logged(options, log, models=1 + any(file.kind == "draft" for file in command.beside))
    if len(options.split) > len(cards):
        raise UsageError("llama_cpp_shares", shares=len(options.split), cards=len(cards))
    room = [card.room_bytes for card in cards]
    drafts = [model_of(file.path, access) for file in command.beside if file.kind == "draft"]
    draft_model = next((draft for draft in drafts if draft is not None), None)
    adapters = {file.path: model_of(file.path, access) for file in command.beside if file.kind == "adapter"}
    known_adapters = [adapter for adapter in adapters.values() if adapter is not None]
    plan = Plan(model, options, room, build, draft_model=draft_model, adapters=known_adapters)
    further = [
        file
        for file in command.beside
        if (file.kind != "draft" or draft_model is None) and adapters.get(file.path) is None
    ]
    files = [buffers_beside(command, file, plan.cards, build, access) for file in further]
    beside_files = tuple(buffer for file_buffers, _ in files for buffer in file_buffers)
    own = plan.buffers()
    buffers = (*(own if known else _over_builds(plan, _candidates(log))), *beside_files)
    devices = _totals(buffers, cards, host_bytes)

    def judge(buffers: Iterable[Buffer]) -> bool:
        totals = _totals((*buffers, *beside_files), cards, host_bytes)
        return all(total.fits for total in totals if total.available_bytes is not None)

    return LlamaCppReport(
        report=report,
        program=options.program,
        build=build.name,
        build_is_known=known,
        context_tokens=plan.sizes.context_tokens,
        cells=plan.sizes.cells,
        sequences=plan.sizes.sequences,
        offloaded=plan.layers if options.offloaded is None else min(options.offloaded, plan.layers),
        layers=plan.layers,
        flash_attention=options.flash_attention,
        cache_types=(options.key_type, options.value_type),
        buffers=buffers,
        devices=devices,
        fitted=_fitted(plan, own, beside_files, cards, host_bytes) if tries_fit else None,
        reach=reach(plan, own, judge) if cards and all(map(_is_known, beside_files)) else NO_REACH,
        ignored=command.ignored,
        notices=(
            *_notices(command, [notice for _, notice in files], log, build, known),
            *_assumptions(plan, buffers),
        ),
        log=None if log is None else beside(buffers, log.printed(models=1 + (draft_model is not None))),
    )


def _fitted(
    plan: Plan, own: Sequence[Buffer], beside_files: Sequence[Buffer], cards: Sequence[Gpu], host_bytes: int | None
) -> Fitted | None:
    """None for a command that --fit leaves as it is or does not help, or whose graphs are not known. own: the plan's buffers."""
    options, build = plan.options, plan.build
    fits = options.fits and plan.cards and not build.fork and build.number >= FITTING
    if not fits or any(buffer.high_bytes is None for buffer in own):
        return None
    targets = options.fit_targets if len(options.fit_targets) > 1 else options.fit_targets * len(plan.cards)
    targets = (*targets, *[MARGIN_BYTES // MIB] * len(plan.cards))[: len(plan.cards)]
    taken = _by_card(plan, beside_files)
    margins = [target * MIB + bytes_ for target, bytes_ in zip(targets, taken, strict=True)]
    free = (plan.card_bytes[int(card.removeprefix("CUDA"))] for card in plan.cards)
    used = _by_card(plan, own)
    if all(bytes_ + margin + CLOSE_BYTES <= room for bytes_, margin, room in zip(used, margins, free, strict=True)):
        return None
    fitted = FitParams(plan, margins).fitted()
    if fitted == options:
        return None
    then = plan.with_options(fitted)
    devices = _totals((*then.buffers(), *beside_files), cards, host_bytes)
    if any(total.fits is False for total in devices):
        return None
    return Fitted(
        context_tokens=then.sizes.context_tokens,
        offloaded=plan.layers if fitted.offloaded is None else min(fitted.offloaded, plan.layers),
        split=tuple(map(int, fitted.split)),
        overrides=fitted.overrides,
        devices=devices,
    )


def _by_card(plan: Plan, buffers: Sequence[Buffer]) -> list[int]:
    return [sum(buffer.low_bytes for buffer in buffers if buffer.device == card) for card in plan.cards]


def _is_known(buffer: Buffer) -> bool:
    return buffer.size_bytes is not None


def _as_logged(options: LlamaCppOptions, log: Log, *, models: int) -> LlamaCppOptions:
    """What the command leaves open, and --fit may have chosen, as the log prints it."""
    context, layers = log.context_tokens(models=models), log.layers(models=models)
    if options.context_tokens is None and context:
        options = replace(options, context_tokens=context)
    if options.offloaded is None and layers is not None:
        options = replace(options, offloaded=layers)
    return options


def _build(log: Log | None, options: LlamaCppOptions) -> tuple[Build, bool]:
    """The build that a log names, if it is known; without a log the newest known, or the fork that has these options."""
    if options.fork or (log is not None and log.fork):
        if log is None or log.build is None:
            return FORK, True
        fork_number = int(log.build[1:])
        nearest = min((FORK_MAY, FORK), key=lambda build: abs(build.number - fork_number))
        return nearest, nearest.number == fork_number
    if log is None or (log.build is None and log.commit is None):
        return DEFAULT, True
    for build in BUILDS.values():
        if build.name == log.build or (
            log.commit and (build.name.startswith(log.commit) or log.commit.startswith(build.name))
        ):
            return build, True
    number = int(log.build[1:]) if log.build else 0
    return min(BUILDS.values(), key=lambda build: abs(build.number - number)), False


def _candidates(log: Log | None) -> Sequence[Build]:
    """The builds that one which is not known may be like."""
    if log is not None and log.fork:
        return FORK_MAY, FORK
    return around(None if log is None or log.build is None else int(log.build[1:]))


def _over_builds(plan: Plan, builds: Sequence[Build]) -> tuple[Buffer, ...]:
    """The buffers of a build that is not known: compute buffers between those of the known builds around it."""
    plans = [plan.built(build) for build in builds]
    if len(plans) > 2:  # not those before and after the build alone; some may not have had the architecture yet
        plans = [built for built in plans if built.graph_is_known] or plans
    ranges: Mapping[tuple[str, str], list[Buffer]] = defaultdict(list)
    for buffer in (buffer for plan in plans for buffer in plan.buffers()):
        if buffer.kind == "compute":
            ranges[buffer.context, buffer.device].append(buffer)
    compute = []
    for each in ranges.values():
        highs = [buffer.high_bytes for buffer in each]
        most = None if None in highs else max(high for high in highs if high is not None)
        least = min(buffer.low_bytes for buffer in each)
        compute.append(replace(each[0], size_bytes=None, least_bytes=least, most_bytes=most))
    return (*plans[0].stored(), *compute)


def _totals(buffers: Sequence[Buffer], cards: Sequence[Gpu], host_bytes: int | None) -> tuple[DeviceTotal, ...]:
    names: list[tuple[str, Gpu | None]] = [(f"CUDA{at}", card) for at, card in enumerate(cards)]
    totals = []
    for device, gpu in (*names, (HOST, None)):
        there = [buffer for buffer in buffers if (buffer.device == device if gpu else not _on_card(buffer))]
        low = sum(buffer.low_bytes for buffer in there)
        highs = [buffer.high_bytes for buffer in there]
        high = None if None in highs else sum(value for value in highs if value is not None)
        available = host_bytes if gpu is None else gpu.room_bytes
        totals.append(
            DeviceTotal(
                device=device,
                gpu=gpu,
                low_bytes=low,
                high_bytes=high,
                available_bytes=available,
                fits=_fits(low, high, available, 0 if gpu is None else MARGIN_BYTES),
            )
        )
    return tuple(totals)


def _on_card(buffer: Buffer) -> bool:
    return buffer.device.startswith("CUDA") and buffer.device != "CUDA_Host"


def _fits(low: int, high: int | None, available: int | None, margin: int) -> bool | None:
    """True with llama.cpp's own margin for the CUDA context and the kernels' memory, False without any."""
    if available is None:
        return None
    if low > available:
        return False
    return True if high is not None and high + margin <= available else None


def _assumptions(plan: Plan, buffers: Sequence[Buffer]) -> Iterator[Message]:
    yield Message("assume_llama_cpp_build", build=plan.build.name)
    if plan.drafts:
        yield Message("llama_cpp_draft_sampling")
    if plan.grows:
        yield Message("llama_cpp_grows")
    if any(buffer.device == REPACKED for buffer in buffers):
        yield Message("llama_cpp_repack")
    if plan.adapters:
        yield Message("llama_cpp_adapters")
    yield Message("assume_llama_cpp_margin")
    if any(one.kind == "compute" and one.size_bytes is None and one.most_bytes is None for one in buffers):
        yield Message("assume_llama_cpp_no_graph")


def _notices(command: Command, files: Sequence[Message], log: Log | None, build: Build, known: bool) -> list[Message]:
    notices = [Message("llama_cpp_ignored", options=", ".join(command.ignored))] if command.ignored else []
    if command.unknown_program is not None:
        notices.append(Message("llama_cpp_program", found=command.unknown_program[:80]))
    if command.model is not None and command.model.startswith("hf:"):
        notices.append(Message("llama_cpp_hub_file", file=command.model.rpartition(":")[2]))
    notices += files
    if not known and log is not None:
        notices.append(Message("llama_cpp_build_unknown", found=log.build or log.commit or "–", nearest=build.name))
    elif log is not None and log.build is None and log.commit is None:
        notices.append(Message("llama_cpp_build_unnamed", build=build.name))
    if command.backend not in (None, "CUDA", "ROCm"):
        notices.append(Message("llama_cpp_backend", backend=command.backend))
    if command.locked:
        notices.append(Message("llama_cpp_locked"))
    return notices
