"""`memory`: what a card needs, of which terms, and which cards have it; with --device, the measured peak."""

from __future__ import annotations

from collections.abc import Iterator

from ...language import Language
from ...loaders import gpus
from ...results.memory import Footprint, MemoryReport, Moment, Run
from ...typed import TYPE_CHECKING
from ...units import count, seconds, signed, size
from . import between, cards, within

if TYPE_CHECKING:
    from ...results.colocated import Colocated
    from ...results.measurement import Measurement
    from ...results.ranks import DeviceMapReport, RankBytes, RanksReport
    from ...results.speed import Speed

# The terms that a sentence names, if they are not zero.
NAMED_TERMS = ("weights", "gathered", "adapters", "cache", "state", "gradients", "optimizer", "activations")


def sentences(memory: MemoryReport, say: Language) -> list[str]:
    if memory.measured is not None:
        return [*_measured(memory, memory.measured, say)]
    if memory.device_map is not None:
        return [_placed(memory.report.ref.id, memory.device_map, say)]
    if memory.ranks is not None:
        return _on_ranks(memory, memory.ranks, say)
    if memory.colocated is not None:
        return _in_turns(memory, memory.colocated, say)
    required = memory.predicted.required_ends
    content = [_needed(memory, say)]
    if (moment := _moment(memory.predicted)) is not None:
        between_ends = memory.predicted.peak_range
        reserved = memory.predicted.peak_reserved if between_ends is None else between_ends.low_reserved_bytes
        content.append(terms(moment, memory.predicted, reserved, say))
    if memory.run.device == "cuda" and required is not None:
        content += _on_cards(memory, required, say)
    if memory.speed is not None and (required is None or required[0] <= memory.speed.gpu.available_bytes):
        content.append(_fastest(memory.speed, say))
    return content


def _fastest(speed: Speed, say: Language) -> str:
    """The bounds of speed: of the prompt, and of what follows."""
    prompt, *decoding = speed.steps
    parts = [] if prompt.rate is None else [say("answer_first_token", time=seconds(prompt.seconds))]
    if decoding:
        parts.append(say("answer_tokens_a_second", rate=f"{speed.tokens_a_second(decoding[0]):,.0f}"))
    reached = say("comma").join(parts) if parts else say("answer_unknown")
    return say("answer_speed", gpu=speed.gpu.name, reached=reached)


def needed(footprint: Footprint, say: Language) -> str:
    """What a card must have: a range, a lower bound, or "not known"."""
    required = footprint.required_ends
    return say("answer_unknown") if required is None else between(*required, say)


def workload(run: Run, say: Language) -> str:
    """batch 1, prompt 2,048, 128 new tokens"""
    tokens = {"batch": run.batch, "prompt": run.prompt_tokens, "new": run.new_tokens}
    return say(f"answer_run_{run.mode}", **tokens)


def _needed(memory: MemoryReport, say: Language) -> str:
    footprint, run = memory.predicted, workload(memory.run, say)
    if memory.run.device == "cpu" and footprint.peak_allocated_bytes is not None:
        return say("answer_peak_on_cpu", name=memory.report.ref.id, size=size(footprint.peak_allocated_bytes), run=run)
    values = {"name": memory.report.ref.id, "run": run}
    if footprint.required_bytes is not None:
        return say("answer_needed", size=needed(footprint, say), **values)
    reason = _reason(memory, say)
    if footprint.required_ends is None:
        return say("answer_need_unknown", weights=size(footprint.steady.weights), reason=reason, **values)
    return say("answer_need_partly", size=needed(footprint, say), reason=reason, **values)


def _reason(memory: MemoryReport, say: Language) -> str:
    """Why the peak has no upper end."""
    footprint = memory.predicted
    if memory.refusal is not None:
        return within(say(memory.refusal.message))
    if footprint.peak_range is not None:
        return say("answer_compiled")
    without_torch = next((message for message in footprint.assumptions if message.key == "assume_no_torch"), None)
    return say("answer_no_trace") if without_torch is None else say("answer_no_torch", **without_torch.values)


def _moment(footprint: Footprint) -> Moment | None:
    """The moment whose terms the answer names: the peak, its lower bound, or the end; None if its sum is not known."""
    moment = footprint.peak_at_least
    return None if moment.allocated is None else moment


def terms(moment: Moment, footprint: Footprint, reserved: int | None, say: Language) -> str:
    """The largest terms of the moment and what comes on top in `reserved` and on a card: they add up to what is needed."""
    named = [
        f"{say(f'answer_term_{term}')} {size(size_bytes)}"
        for term in NAMED_TERMS
        if (size_bytes := getattr(moment, term))
    ]
    if moment.activations is None:
        named.append(f"{say('answer_term_activations')} {say('answer_unknown')}")
    if reserved is not None and moment.allocated is not None and reserved > moment.allocated:
        named.append(f"{say('answer_term_reserved_only')} {size(reserved - moment.allocated)}")
    if footprint.required_ends is not None:
        low, high = footprint.context_ends
        context = between(low, low if footprint.peak_range is not None else high, say)
        named.append(f"{say('answer_term_context')} {context}")
    at = "answer_terms"
    if footprint.peak_range is not None:
        at = "answer_terms_at_low_end"
    elif moment is footprint.steady:
        at = "answer_terms_at_end"
    return say(at, terms=say("comma").join(named))


def _on_cards(memory: MemoryReport, required: cards.Required, say: Language) -> list[str]:
    """Whether it fits the card that was named, else the common ones."""
    gpu = gpus.named(memory.run.gpu)
    if gpu is not None:
        return [cards.on_card(gpu, required, say)]
    common = gpus.common()
    quantised = None if memory.report.design is None else memory.report.design.quantised
    if quantised is not None and quantised.method == "fp8" and gpus.supports(memory.run.gpu, "fp8"):
        common = [card for card in common if card.supports("fp8")]  # the others hold the weights in bfloat16
    return cards.on_common(common, required, say)


def _in_turns(memory: MemoryReport, step: Colocated, say: Language) -> list[str]:
    fullest = step.fullest
    parts = ("policy", "cached", "reference", "reward", "engine_most", "context_most")
    named = [
        f"{say(f'column_grpo_{part}')} {size(size_bytes)}" for part in parts if (size_bytes := getattr(fullest, part))
    ]
    needed_bytes = between(*step.required, say)
    run = workload(memory.run, say)
    return [
        say(
            "answer_grpo",
            name=memory.report.ref.id,
            size=needed_bytes,
            run=run,
            phase=say(f"stage_grpo_{fullest.name}"),
        ),
        say("answer_grpo_terms", terms=say("comma").join(named)),
        cards.on_card(step.gpu, step.required, say),
    ]


# --- several devices


def _on_ranks(memory: MemoryReport, ranks: RanksReport, say: Language) -> list[str]:
    from ..document.ranks import described

    def least(rank: RankBytes) -> int:
        return rank.peak_reserved or (rank.peak.allocated if rank.peak is not None else rank.total) or rank.weights

    largest = max(ranks.ranks, key=least)
    required = least(largest) + memory.predicted.context_ends[0]
    content = [
        say(
            "answer_on_ranks",
            name=memory.report.ref.id,
            how=described(ranks.parallelism, say),
            ranks=ranks.parallelism.ranks,
            size=size(required),
            run=workload(memory.run, say),
        )
    ]
    if largest.peak is not None:
        content.append(terms(largest.peak, memory.predicted, largest.peak_reserved, say))
    return [*content, *_on_cards(memory, (required, None), say)]


def _placed(name: str, device_map: DeviceMapReport, say: Language) -> str:
    placed = [f"{device.device}: {size(device.weights + device.buffers)}" for device in device_map.devices]
    return say("answer_placed", name=name, devices=say("comma").join(placed))


# --- a measured run


def _measured(memory: MemoryReport, measured: Measurement, say: Language) -> Iterator[str]:
    if measured.partial is not None:
        yield say("answer_partial", reason=within(say(measured.partial)))
    of_term = {difference.term: difference for difference in memory.differences}
    for term in ("peak_allocated", "peak_reserved"):
        difference = of_term.get(term)
        if difference is None or difference.measured is None:
            continue
        how = "equal" if difference.difference == 0 else "explained" if difference.residual == 0 else "differs"
        if difference.difference is None:
            how = "unpredicted"
        yield say(
            f"answer_measured_{how}",
            name=memory.report.ref.id,
            term=say(f"term_{term}"),
            device=measured.device,
            measured=size(difference.measured),
            predicted=size(difference.predicted),
            difference=count(None) if difference.difference is None else signed(difference.difference),
            residual=count(None) if difference.residual is None else signed(difference.residual),
        )
    total = measured.footprint.total_bytes
    if total is not None:
        yield say("answer_measured_total", size=size(total), context=size(measured.footprint.context_bytes))
