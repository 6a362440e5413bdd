"""Runs a workload on a loaded model and reads the device's memory, by term from the run's own tensors.

The runs are those that `trace` records: greedy decoding to an exact number of tokens, one forward, or training steps as in
transformers' Trainer. A prompt repeats a single plain token, because memory does not depend on the tokens. There is no warm-up:
the prediction is for a process's first run, and an earlier one would leave segments in the allocator's cache and cuBLAS's
workspace at another address.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..architectures.generic.building import quiet
from ..architectures.patterns import selects
from ..errors import UnsupportedError, UsageError
from ..language import Message
from ..predicting.allocation.on_device import WORKSPACE
from ..predicting.allocation.uses import uses_of
from ..predicting.course import measured_course
from ..progress import stage
from ..results.measurement import Measurement, Reading
from ..results.memory import Alive, Footprint, Moment, Run
from ..results.timeline import Allocate, Timeline
from ..tracing.adapting import adapt, adapters_of, checkpoint, is_added
from ..tracing.autocast import autocast, scaler_of
from ..tracing.cached import CACHE_NAMES, is_state, tensors_of
from ..tracing.optimizers import optimizer_of
from ..tracing.steps import train
from ..typed import Any
from ..values import dataclass, replace
from .cuda import CudaRecorder, cuda_reading, free_workspaces, with_workspaces
from .device import Recorder
from .host import HostRecorder, resident_peak_bytes
from .loading import first_line
from .matching import Living, Match, match
from .nvml import driver_version

OPTIMIZER_STEPS = 2  # the optimizer's states exist from the second step on
OUT_OF_HOST_MEMORY = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBytes:
    """Bytes of storages that a run's result keeps alive, each counted once. step_counters: AdamW's, if on the device."""

    cache: int = 0
    state: int = 0
    gradients: int = 0
    optimizer: int = 0
    step_counters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement and what explains it: the match with the trace, and the bytes kept at the end.

    workspaces: bytes of each cuBLAS workspace at the end.
    """

    measurement: Measurement
    match: Match | None
    kept_bytes: KeptBytes | None
    workspaces: tuple[int, ...] = ()


def devices_of(model: Any) -> tuple[int, ...]:
    """The indices of the CUDA devices that hold parameters; empty for a model on the host."""
    return tuple(
        sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    )


def loaded(model: Any, seconds: float | None) -> Reading:
    """The reading after loading. On CPU it has only the weights' bytes, as nothing records the loading itself."""
    if indices := devices_of(model):
        return cuda_reading("load", indices, seconds=seconds)
    weights_bytes = _storage_bytes(model.parameters()) + _storage_bytes(model.buffers())
    return Reading(
        stage="load",
        seconds=seconds,
        allocated=weights_bytes,
        peak_allocated=weights_bytes,
        host_peak=resident_peak_bytes(),
    )


def measure(
    model: Any,
    run: Run,
    timeline: Timeline | None,
    *,
    before: tuple[Reading, ...],
    course_points: int = 0,
    snapshot: Path | None = None,
) -> Measured:
    """Makes `run` on the model's device. timeline: its trace, if there is one. before: earlier readings, the last after loading.
    course_points: if not 0, also the memory over time in about that many points. snapshot: path for CUDA's memory snapshot.
    """
    device, indices = next(model.parameters()).device, devices_of(model)
    weights, buffers = _storage_bytes(model.parameters()), _storage_bytes(model.buffers())
    adapters = _storage_bytes(tensor for name, tensor in model.named_parameters() if is_added(name))
    if indices:
        history = timeline is not None and len(indices) == 1
        recorder: Recorder = CudaRecorder(indices, steps=run.new_tokens - 1, history=history, snapshot=snapshot)
    else:
        recorder = HostRecorder(weights + buffers)
    result, partial = _attempt(recorder, model, run, device)
    kept_bytes = None if result is None else _kept_bytes(result, model, run)
    model.zero_grad(set_to_none=True)
    record = recorder.record()
    workspaces = free_workspaces(indices) if indices else {}
    if record is not None and workspaces:
        record = with_workspaces(record, workspaces)
    matched = match(record, timeline) if record is not None and timeline is not None and partial is None else None
    workspace = sum(workspaces.values())
    del result
    course = None
    if course_points and record is not None and record.changes:
        course = measured_course(record, before[-1].allocated, most_points=course_points)
    run_readings = recorder.readings() or before[-1:]  # empty if the run ended before its first stage
    measurement = _measurement(
        indices,
        before,
        recorder.readings(),
        steady=_parted_weights(_steady(run_readings[-1], weights, buffers, kept_bytes, workspace), adapters),
        peak=_parted_weights(_peak(run_readings, weights, buffers, workspace, matched, timeline), adapters),
        partial=partial,
    )
    if matched is not None:
        measurement = replace(measurement, scratch=tuple(_scratch(matched.at_peak)), parted=_parted(matched.missing))
    footprint = replace(measurement.footprint, course=course)
    return Measured(
        measurement=replace(measurement, footprint=footprint),
        match=matched,
        kept_bytes=kept_bytes,
        workspaces=tuple(workspaces.values()),
    )


def not_loaded(indices: tuple[int, ...], before: tuple[Reading, ...]) -> Measured:
    """The partial measurement if memory ran out while loading the weights."""
    if indices:
        reached = cuda_reading("load", indices)
    else:
        reached = Reading(stage="load", seconds=None, allocated=0, peak_allocated=0, host_peak=resident_peak_bytes())
    measurement = _measurement(
        indices,
        (*before, reached),
        (),
        steady=Moment(stage="load", weights=reached.allocated, total=reached.allocated),
        peak=Moment(stage="load", weights=reached.allocated, total=reached.peak_allocated),
        partial=Message("partial_not_loaded"),
    )
    return Measured(measurement=measurement, match=None, kept_bytes=None)


def _measurement(
    indices: tuple[int, ...],
    before: tuple[Reading, ...],
    during: tuple[Reading, ...],
    *,
    steady: Moment,
    peak: Moment,
    partial: Message | None,
) -> Measurement:
    """before, during: readings of loading and of the run; the peak is taken from the run if it has readings."""
    versions = tuple(_versions(cuda=bool(indices)))
    readings = (*before, *during)
    return Measurement(
        device=_device_name(indices),
        versions=versions,
        readings=readings,
        load_peak_bytes=before[-1].peak_allocated if indices else None,
        footprint=Footprint(
            method="measured",
            steady=steady,
            peak=peak,
            peak_reserved=max(
                (reading.peak_reserved for reading in during or readings if reading.peak_reserved is not None),
                default=None,
            ),
            context_bytes=_context_bytes(readings),
            alive=(),
            assumptions=(),
            provenance=", ".join(" ".join(pair) for pair in versions),
        ),
        partial=partial,
    )


def _scratch(living: Living) -> Iterator[Alive]:
    for operator, (storages, size) in living.others.items():
        yield Alive(component="–", operator=operator, storages=storages, size_bytes=size)


def _parted(missing: Sequence[Allocate]) -> Message | None:
    if not missing:
        return None
    first = missing[0]
    return Message("parted", module=first.module, operator=first.operator, bytes=first.size_bytes, count=len(missing))


# --- the runs


def _attempt(recorder: Recorder, model: Any, run: Run, device: Any) -> tuple[Any, Message | None]:
    """(result, None), or (None, reason) if memory ran out or the user interrupted the run."""
    import torch
    import transformers

    work = {"generate": _generate, "forward": _forward, "train": _train}[run.mode]
    around = None if run.mode == "train" else run.autocast  # training's backward runs outside autocast
    try:
        with _silent(), autocast(around, device.type):
            return recorder.run(lambda: work(model, run, recorder, device)), None
    except torch.OutOfMemoryError:
        return None, Message("partial_out_of_memory")
    except MemoryError:
        return None, Message("partial_out_of_memory")
    except KeyboardInterrupt:
        return None, Message("partial_interrupted")
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if OUT_OF_HOST_MEMORY.search(str(error)):
            return None, Message("partial_out_of_memory")
        name, version = type(model).__name__, transformers.__version__
        raise UnsupportedError(
            "run_failed", class_name=name, mode=run.mode, reason=first_line(error), version=version
        ) from None


def _inputs(model: Any, run: Run, device: Any) -> dict[str, Any]:
    """Tokens, and a padded batch's mask: every row but the first is left-padded, each a little more than the last (a single row
    by one token, as when a tokenizer pads to a multiple).
    """
    import torch

    input_ids = _prompt(model, run, device)
    if not run.padded and not (run.mode == "train" and run.loop.masked):
        return {"input_ids": input_ids}
    attention_mask = torch.ones_like(input_ids)
    if not run.padded:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    for row in range(min(1, run.batch - 1), run.batch):
        attention_mask[row, : run.prompt_tokens // 4 * row // run.batch + 1].fill_(0)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _prompt(model: Any, run: Run, device: Any) -> Any:
    """Plain-text token ids: the smallest id that the configuration does not use as a special token."""
    import torch

    named = {
        value
        for config in (model.config, model.config.get_text_config(decoder=True))
        for name, value in config.to_dict().items()
        if name.endswith(("token_id", "token_index"))
        for value in (value if isinstance(value, list) else [value])
    }
    plain = next(token for token in range(len(named) + 1) if token not in named)
    return torch.zeros(run.batch, run.prompt_tokens, dtype=torch.int64, device=device).fill_(plain)


def _enter(recorder: Recorder, name: str, run: Run) -> None:
    """Begins the stage `name` of a run, and announces it before anything of it is recorded."""
    stage("working_stage", stage=Message(f"stage_{name}"), batch=run.batch, tokens=run.prompt_tokens)
    recorder.stage(name)


def _generate(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    """Runs `generate` without a padding token: transformers then makes a mask of ones and frees it once the positions are known.

    A caller's mask stays alive until `generate` returns: 8 bytes a token, predicted and measured for a padded batch, and absent
    from both otherwise.
    Source: transformers 5.23, generation/utils.py, _prepare_attention_mask_for_generation and generate
    """
    from transformers import GenerationConfig

    if not model.can_generate():
        raise UsageError("measure_no_head")
    calls = 0

    def mark(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            stage("working_decode", token=calls, tokens=run.new_tokens)
            recorder.stage("decode")

    own, model.generation_config = (
        model.generation_config,
        GenerationConfig(
            max_new_tokens=run.new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            cache_implementation=run.cache if run.cache == "static" else None,
        ),
    )
    hook = model.register_forward_pre_hook(mark)
    try:
        _enter(recorder, "prefill", run)
        inputs = _inputs(model, run, device)
        return inputs, model.generate(**inputs)
    finally:
        hook.remove()
        model.generation_config = own


def _forward(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    import torch

    _enter(recorder, "forward", run)
    inputs = _inputs(model, run, device)
    with torch.no_grad():
        return inputs, model(**inputs)


def make_ready(model: Any, run: Run) -> None:
    """Prepares the model for training: checkpointing, adapters, trained and frozen parameters. Other runs need nothing."""
    if run.mode != "train":
        return
    if run.checkpointing:
        checkpoint(model)
    if (adapters := adapters_of(run)) is not None:
        with _silent():
            adapt(model, adapters)
        return
    is_trained = selects(run.trained, run.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))


def _train(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("trace_none_trained", pattern=run.trained)
    model.train()
    optimizer = optimizer_of(run.optimizer, model, run.loop)
    try:
        alive = train(
            model,
            lambda: _inputs(model, run, device),
            lambda name: _enter(recorder, name, run),
            optimizer=optimizer,
            scaler=scaler_of(run.autocast, device.type),
            steps=OPTIMIZER_STEPS,
            accumulate=run.accumulate,
            autocast_dtype=run.autocast,
            device=device.type,
            loop=run.loop,
        )
        return alive, optimizer
    finally:
        model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Silences warnings: transformers' concern a user's own calls, which these are not."""
    import warnings

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- what they hold


def _storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors' storages, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _kept_bytes(result: Any, model: Any, run: Run) -> KeptBytes:
    outcome = result[1]
    if run.mode == "train":
        states = [] if outcome is None else [pair for state in outcome.state.values() for pair in state.items()]
        device = next(model.parameters()).device
        here = [(name, tensor) for name, tensor in states if hasattr(tensor, "device") and tensor.device == device]
        # Fused AdamW counts steps on the device, so the trace has its counters.
        counters = [tensor for name, tensor in here if name == "step" and run.optimizer != "adamw_fused"]
        return KeptBytes(
            gradients=_storage_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
            optimizer=_storage_bytes(tensor for _, tensor in here) - _storage_bytes(counters),
            step_counters=_storage_bytes(counters),
        )
    kept = [pair for name in CACHE_NAMES for pair in tensors_of(getattr(outcome, name, None))]
    return KeptBytes(
        cache=_storage_bytes(tensor for name, tensor in kept if not is_state(name)),
        state=_storage_bytes(tensor for name, tensor in kept if is_state(name)),
    )


# --- the figures


def _parted_weights(moment: Moment, adapters: int) -> Moment:
    return replace(moment, weights=moment.weights - adapters, adapters=adapters)


def _steady(reading: Reading, weights: int, buffers: int, kept_bytes: KeptBytes | None, workspace: int) -> Moment:
    """The last reading, broken down by living tensors; the unattributed remainder counts as activations."""
    if kept_bytes is None:  # the run did not finish
        return Moment(stage=reading.stage, weights=weights, buffers=buffers, total=reading.allocated)
    rounding = 0 if reading.requested is None else reading.allocated - reading.requested
    optimizer = kept_bytes.optimizer + kept_bytes.step_counters
    accounted_bytes = (
        weights
        + buffers
        + kept_bytes.cache
        + kept_bytes.state
        + kept_bytes.gradients
        + optimizer
        + workspace
        + rounding
    )
    return Moment(
        stage=reading.stage,
        weights=weights,
        buffers=buffers,
        cache=kept_bytes.cache,
        state=kept_bytes.state,
        gradients=kept_bytes.gradients,
        optimizer=optimizer,
        activations=reading.allocated - accounted_bytes,
        workspace=workspace,
        rounding=rounding,
    )


def _peak(
    readings: Sequence[Reading],
    weights: int,
    buffers: int,
    workspace: int,
    matched: Match | None,
    timeline: Timeline | None,
) -> Moment:
    """The highest reading, by term if the run made every request of the trace."""
    highest = max(readings, key=lambda reading: reading.peak_allocated)
    moment = Moment(stage=highest.stage, weights=weights, buffers=buffers, total=highest.peak_allocated)
    if matched is None or timeline is None or matched.missing:
        return moment
    if workspace:  # those alive at the peak: each thread gets one at its first product
        workspace = matched.at_peak.size_of(WORKSPACE)
    uses = uses_of(timeline)
    by_use: Counter[str] = Counter()
    for request in matched.at_peak.traced:
        by_use[uses.get(request.id, "activation")] += request.size_bytes
    rounding = 0 if highest.peak_requested is None else highest.peak_allocated - highest.peak_requested
    kept = by_use["cache"] + by_use["state"] + by_use["gradients"] + by_use["optimizer"]
    return replace(
        moment,
        cache=by_use["cache"],
        state=by_use["state"],
        gradients=by_use["gradients"],
        optimizer=by_use["optimizer"],
        activations=highest.peak_allocated - weights - buffers - kept - workspace - rounding,
        workspace=workspace,
        rounding=rounding,
    )


def _context_bytes(readings: Sequence[Reading]) -> int | None:
    """This process's bytes according to the driver minus the allocator's segments; None if unknown."""
    last = readings[-1]
    if last.process_used is None or last.reserved is None:
        return None
    return last.process_used - last.reserved


def _device_name(indices: tuple[int, ...]) -> str:
    """The names of the cards; "cpu" if there is none."""
    if not indices:
        return "cpu"
    import torch

    return ", ".join(str(torch.cuda.get_device_name(index)) for index in indices)


def _versions(*, cuda: bool) -> Iterator[tuple[str, str]]:
    import torch
    import transformers

    yield "transformers", transformers.__version__
    yield "torch", torch.__version__
    if cuda:
        yield "CUDA", str(torch.version.cuda)
        if (driver := driver_version()) is not None:
            yield "driver", driver
