"""A workload really run on a loaded model, and what the device tells of it: the run's terms by their own tensors.

The runs are those that `trace` records: greedy decoding to an exact number of tokens, one forward, or training steps as
transformers' Trainer makes them. All tokens of a prompt are one, which stands for nothing else, for memory does not depend on
them. Nothing runs before: a process's first run is what is predicted, and an earlier one would leave segments in the allocator's
cache and cuBLAS's workspace at another place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..language import Message
from ..predicting.course import measured_course
from ..predicting.footprint import WORKSPACE, uses_of
from ..results.measurement import Measurement, Reading
from ..results.memory import Alive, Footprint, Moment, Run
from ..results.timeline import Allocate, Timeline
from ..tracing.adapting import Adapters, adapt, checkpoint, is_matrix, optimizer_of
from ..tracing.autocast import autocast, scaler_of
from ..tracing.steps import train
from .device import (
    CudaRecorder,
    HostRecorder,
    Recorder,
    cuda_reading,
    driver_version,
    free_workspaces,
    resident_peak_bytes,
    with_workspaces,
)
from .matching import Living, Match, match

OPTIMIZER_STEPS = 2  # the optimizer's states exist from the second step on
OUT_OF_HOST_MEMORY = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a run's result keeps alive, in bytes of storages, each once. step_counters: AdamW's, where they lie on the device."""

    cache: int = 0
    state: int = 0
    gradients: int = 0
    optimizer: int = 0
    step_counters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measurement, and what explains it: the run held against its trace, and what was held at its end.

    workspaces: bytes of each that cuBLAS then had.
    """

    measurement: Measurement
    match: Match | None
    held: Held | None
    workspaces: tuple[int, ...] = ()


def devices_of(model: Any) -> tuple[int, ...]:
    """The CUDA devices that hold a part of the model; none where it is on the host."""
    return tuple(
        sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    )


def loaded(model: Any, seconds: float | None) -> Reading:
    """The reading when the weights have come. On CPU it is theirs alone, for nothing records what loading them took."""
    if indices := devices_of(model):
        return cuda_reading("load", indices, seconds=seconds)
    held = _storage_bytes(model.parameters()) + _storage_bytes(model.buffers())
    return Reading(stage="load", seconds=seconds, allocated=held, peak_allocated=held, host_peak=resident_peak_bytes())


def measure(
    model: Any,
    run: Run,
    timeline: Timeline | None,
    *,
    before: tuple[Reading, ...],
    course_points: int = 0,
    snapshot: Path | None = None,
) -> Measured:
    """`run` on the device that `model` is on. timeline: its trace, None where there is none. before: readings made earlier,
    that of the loaded weights the last of them. course_points: also the way there, in about that many points. snapshot:
    where CUDA's memory snapshot is written.
    """
    device, indices = next(model.parameters()).device, devices_of(model)
    weights, buffers = _storage_bytes(model.parameters()), _storage_bytes(model.buffers())
    adapters = _storage_bytes(one for name, one in model.named_parameters() if is_matrix(name))
    if indices:
        history = timeline is not None and len(indices) == 1
        recorder: Recorder = CudaRecorder(indices, steps=run.new_tokens - 1, history=history, snapshot=snapshot)
    else:
        recorder = HostRecorder(weights + buffers)
    result, partial = _attempt(recorder, model, run, device)
    held = None if result is None else _held(result, model, run)
    model.zero_grad(set_to_none=True)
    record = recorder.record()
    workspaces = free_workspaces(indices) if indices else {}
    if record is not None and workspaces:
        record = with_workspaces(record, workspaces)
    found = match(record, timeline) if record is not None and timeline is not None and partial is None else None
    workspace = sum(workspaces.values())
    del result
    course = None
    if course_points and record is not None and record.changes:
        course = measured_course(record, before[-1].allocated, most_points=course_points)
    run_readings = recorder.readings() or before[-1:]  # none where it ended before it began
    measurement = _measurement(
        indices,
        before,
        recorder.readings(),
        steady=_parted_weights(_steady(run_readings[-1], weights, buffers, held, workspace), adapters),
        peak=_parted_weights(_peak(run_readings, weights, buffers, workspace, found, timeline), adapters),
        partial=partial,
    )
    if found is not None:
        measurement = replace(measurement, scratch=tuple(_scratch(found.at_peak)), parted=_parted(found.missing))
    footprint = replace(measurement.footprint, course=course)
    return Measured(
        measurement=replace(measurement, footprint=footprint),
        match=found,
        held=held,
        workspaces=tuple(workspaces.values()),
    )


def not_loaded(indices: tuple[int, ...], before: tuple[Reading, ...]) -> Measured:
    """What can be said where memory ended while the weights were loaded."""
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
    return Measured(measurement=measurement, match=None, held=None)


def _measurement(
    indices: tuple[int, ...],
    before: tuple[Reading, ...],
    during: tuple[Reading, ...],
    *,
    steady: Moment,
    peak: Moment,
    partial: Message | None,
) -> Measurement:
    """before, during: readings of the loading and of the run, whose peaks are not the loader's."""
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
    """The run's result; None, with the reason, where memory ended or the user ended it."""
    import torch

    work = {"generate": _generate, "forward": _forward, "train": _train}[run.mode]
    around = None if run.mode == "train" else run.autocast  # whose backward is outside
    try:
        with _silent(), autocast(around, device.type):
            return recorder.run(lambda: work(model, run, recorder, device)), None
    except torch.OutOfMemoryError:
        return None, Message("partial_out_of_memory")
    except MemoryError:
        return None, Message("partial_out_of_memory")
    except RuntimeError as error:
        if not OUT_OF_HOST_MEMORY.search(str(error)):
            raise
        return None, Message("partial_out_of_memory")
    except KeyboardInterrupt:
        return None, Message("partial_interrupted")


def _inputs(model: Any, run: Run, device: Any) -> dict[str, Any]:
    """Tokens, and of a padded batch the mask: all rows but the first are padded on the left, each a little further (one alone by
    one token, as a tokenizer pads it to a multiple).
    """
    import torch

    input_ids = _prompt(model, run, device)
    if not run.padded:
        return {"input_ids": input_ids}
    attention_mask = torch.ones_like(input_ids)
    for row in range(min(1, run.batch - 1), run.batch):
        attention_mask[row, : run.prompt_tokens // 4 * row // run.batch + 1].fill_(0)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _prompt(model: Any, run: Run, device: Any) -> Any:
    """Token ids that are nothing but text: the least that the configuration does not name, as padding or an image's place."""
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


def _generate(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    """Without a token for padding, so that transformers makes a mask of ones, which it lets go of when the positions are known.

    A mask that a caller gives stays alive until `generate` returns: 8 bytes a token, which are in both figures of a padded batch
    and in neither of another.
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
        recorder.stage("prefill")
        inputs = _inputs(model, run, device)
        return inputs, model.generate(**inputs)
    finally:
        hook.remove()
        model.generation_config = own


def _forward(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    import torch

    recorder.stage("forward")
    inputs = _inputs(model, run, device)
    with torch.no_grad():
        return inputs, model(**inputs)


def make_ready(model: Any, run: Run) -> None:
    """For training: what trains and what is frozen, adapters among it, and checkpointing. For other runs, nothing."""
    if run.mode != "train":
        return
    if run.checkpointing:
        checkpoint(model)
    if run.lora_rank is not None:
        with _silent():
            adapt(model, Adapters(rank=run.lora_rank, targets=run.lora_targets))
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(run.trained, name) is not None)


def _train(model: Any, run: Run, recorder: Recorder, device: Any) -> object:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("trace_none_trained", pattern=run.trained)
    model.train()
    try:
        return train(
            model,
            lambda: _inputs(model, run, device),
            recorder.stage,
            optimizer=optimizer_of(run.optimizer, trained),
            scaler=scaler_of(run.autocast, device.type),
            steps=OPTIMIZER_STEPS,
            accumulate=run.accumulate,
            autocast_dtype=run.autocast,
            device=device.type,
        )
    finally:
        model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """transformers' warnings are about a user's own calls, and these are not."""
    import warnings

    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


# --- what they hold


def _storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors' storages, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _held(result: Any, model: Any, run: Run) -> Held:
    outcome = result[1]
    if run.mode == "train":
        states = [] if outcome is None else [pair for state in outcome.state.values() for pair in state.items()]
        device = next(model.parameters()).device
        here = [(name, one) for name, one in states if hasattr(one, "device") and one.device == device]
        # Fused AdamW counts on the device, whatever it is, and so the trace has it.
        counters = [one for name, one in here if name == "step" and run.optimizer != "adamw_fused"]
        return Held(
            gradients=_storage_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
            optimizer=_storage_bytes(one for _, one in here) - _storage_bytes(counters),
            step_counters=_storage_bytes(counters),
        )
    layers = getattr(outcome.past_key_values, "layers", ())
    grown = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    states = [getattr(layer, name, None) or {} for layer in layers for name in ("conv_states", "recurrent_states")]
    return Held(
        cache=_storage_bytes(one for one in grown if one is not None),
        state=_storage_bytes(one for state in states for one in state.values() if one is not None),
    )


# --- the figures


def _parted_weights(moment: Moment, adapters: int) -> Moment:
    return replace(moment, weights=moment.weights - adapters, adapters=adapters)


def _steady(reading: Reading, weights: int, buffers: int, held: Held | None, workspace: int) -> Moment:
    """The last reading, taken apart by the tensors that are alive; what is no tensor's that we know is activations'."""
    if held is None:  # the run did not come to its end
        return Moment(stage=reading.stage, weights=weights, buffers=buffers, total=reading.allocated)
    rounding = 0 if reading.requested is None else reading.allocated - reading.requested
    optimizer = held.optimizer + held.step_counters
    known = weights + buffers + held.cache + held.state + held.gradients + optimizer + workspace + rounding
    return Moment(
        stage=reading.stage,
        weights=weights,
        buffers=buffers,
        cache=held.cache,
        state=held.state,
        gradients=held.gradients,
        optimizer=optimizer,
        activations=reading.allocated - known,
        workspace=workspace,
        rounding=rounding,
    )


def _peak(
    readings: Sequence[Reading],
    weights: int,
    buffers: int,
    workspace: int,
    found: Match | None,
    timeline: Timeline | None,
) -> Moment:
    """The highest reading; its terms are known where each request was found again in the trace."""
    highest = max(readings, key=lambda reading: reading.peak_allocated)
    moment = Moment(stage=highest.stage, weights=weights, buffers=buffers, total=highest.peak_allocated)
    if found is None or timeline is None or found.missing:
        return moment
    if workspace:  # those alive at that moment: a thread has its own from its first product on
        workspace = found.at_peak.size_of(WORKSPACE)
    uses = uses_of(timeline)
    by_use: Counter[str] = Counter()
    for request in found.at_peak.traced:
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
    """What the driver lays to this process beyond the allocator's segments; None where it does not tell."""
    last = readings[-1]
    if last.process_used is None or last.reserved is None:
        return None
    return last.process_used - last.reserved


def _device_name(indices: tuple[int, ...]) -> str:
    """The card's name, or each one's; "cpu" where there is none."""
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
