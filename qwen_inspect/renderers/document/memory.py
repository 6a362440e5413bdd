"""`memory`: the predicted footprint by term, at the end of the run and at its peak, and the storages alive at the peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...language import Language
from ...predicting.allocation.uses import term_of
from ...results.memory import OF_SOME_RUNS, TERMS, Alive, Footprint, MemoryReport, Moment
from ...results.model import Report
from ...units import count, size
from ..blocks import Block, Fields, Heading, Items, Paragraph, Shortened, Table
from . import View
from .common import identity, notes, notices, prompt_label, shown_range, size_range
from .media import media_blocks, rules


def blocks(memory: MemoryReport, say: Language, view: View) -> Sequence[Block]:
    if memory.measured is not None:
        from .measured import measured_blocks

        return [*measured_blocks(memory, memory.measured, say), *(live_blocks(memory, say) if view.live else [])]
    footprint = memory.predicted
    content: list[Block] = [
        Heading(say("heading_memory", name=memory.report.ref.id), 1),
        identity(memory.report, say),
        *notices(memory.report, say),
        Heading(say("heading_run")),
        run_fields(memory, say),
        *media_blocks(memory.report, say),
        *training_blocks(memory, say),
        *_several_devices(memory, say),
        *_colocated(memory, say),
        *_speed(memory, say),
        Heading(say("heading_footprint" if _on_one_device(memory) else "heading_footprint_one")),
        *headline(footprint, say),
        term_table(footprint, say),
    ]
    if footprint.peak_range is not None:
        content.append(Paragraph(say(footprint.peak_range.source)))
    elif footprint.peak is None:
        content.append(Paragraph(say("no_peak_quantised" if _is_quantised(memory.report) else "no_peak")))
    else:
        content += [
            Heading(say("heading_alive", stage=say(f"stage_{footprint.peak.stage}"))),
            alive_table(footprint, say),
        ]
    content += [
        Heading(say("heading_assumptions")),
        *notes(footprint.assumptions, say, view),
    ]
    return [*content, *(live_blocks(memory, say) if view.live else [])]


def _on_one_device(memory: MemoryReport) -> bool:
    return memory.ranks is None and memory.device_map is None


def _several_devices(memory: MemoryReport, say: Language) -> list[Block]:
    if _on_one_device(memory):
        return []
    from .ranks import device_map_blocks, ranks_blocks

    return [
        *([] if memory.ranks is None else ranks_blocks(memory.ranks, say)),
        *([] if memory.device_map is None else device_map_blocks(memory.device_map, say)),
    ]


def _colocated(memory: MemoryReport, say: Language) -> list[Block]:
    if memory.colocated is None:
        return []
    from .colocated import colocated_blocks

    return colocated_blocks(memory.colocated, say)


def _speed(memory: MemoryReport, say: Language) -> list[Block]:
    if memory.speed is None:
        return []
    from .speed import speed_blocks

    return speed_blocks(memory.speed, say)


def live_blocks(memory: MemoryReport, say: Language) -> list[Block]:
    """HTML pages only: the memory explorer and the parameter treemap, each if its input is known."""
    from ..explorer import explorer
    from ..treemap import parameter_treemap

    content: list[Block] = []
    if memory.exploration is not None:
        same = memory.exploration.method == memory.predicted.method or memory.exploration.low is not None
        content += [
            Heading(say("heading_explore")),
            Paragraph(say("explore_intro" if same else "explore_intro_end")),
            explorer(memory, memory.exploration, say),
        ]
    if memory.images is not None:
        from ..images import images

        content += [
            Heading(say("heading_images")),
            Paragraph(say("images_intro")),
            images(memory, memory.images, say),
            Items([*rules(memory.images, say), say("images_peak", model=memory.report.ref.id)]),
        ]
    if memory.report.design is not None:
        content += [Heading(say("heading_treemap")), parameter_treemap(memory.report, say)]
    return content


def _is_quantised(report: Report) -> bool:
    return report.design is not None and report.design.quantised is not None


def run_fields(memory: MemoryReport, say: Language) -> Fields:
    run = memory.run
    return Fields(
        [
            (say("field_mode"), say(f"mode_{run.mode}")),
            (say("field_batch"), count(run.batch)),
            *([(say("field_accumulate"), say("micro_batches", count=run.accumulate))] if run.accumulate > 1 else []),
            (say(prompt_label(run)), count(run.prompt_tokens)),
            *([(say("field_new"), count(run.new_tokens))] if run.mode == "generate" else []),
            (say("field_kernel"), run.attention),
            *([(say("field_cache"), say("cache_static"))] if run.cache == "static" else []),
            *([(say("field_padding"), say("padded"))] if run.padded else []),
            *([(say("field_autocast"), run.autocast)] if run.autocast else []),
            *([(say("field_gpu"), run.gpu)] if run.device == "cuda" else []),
            (say("field_method"), f"{say(f'method_{memory.predicted.method}')} ({memory.predicted.provenance})"),
        ]
    )


def training_blocks(memory: MemoryReport, say: Language) -> list[Block]:
    """Trainable parameters, bytes of trained and frozen ones, and the adapted modules; empty if nothing is trained."""
    training, run = memory.training, memory.run
    if training is None:
        return []
    fields = [
        (
            say("field_trainable"),
            say(
                "trainable_among",
                parameters=training.trainable,
                all=training.all_parameters,
                share=f"{training.share:.4%}",
            ),
        ),
        (say("field_trained_bytes"), f"{count(training.trained_bytes)} ({size(training.trained_bytes)})"),
        (say("field_frozen_bytes"), f"{count(training.frozen_bytes)} ({size(training.frozen_bytes)})"),
        (say("field_optimizer"), run.optimizer),
        (say("field_checkpointing"), say("on" if run.checkpointing else "off")),
    ]
    if run.lora_rank is not None:
        fields.insert(0, (say("field_lora"), say(run.adapters_text)))
    content: list[Block] = [Heading(say("heading_training")), Fields(fields)]
    if training.adapters:
        rows = [[module.name, count(module.modules), count(module.parameters)] for module in training.modules]
        content.append(
            Table([say("column_trained_module"), say("column_modules"), say("column_parameters")], rows, "lrr")
        )
    return content


def headline(footprint: Footprint, say: Language) -> list[Block]:
    """A sentence with the memory that a card needs; empty for runs on the CPU or without a known peak."""
    if (peak := footprint.peak_range) is not None and peak.scratch_bytes is None:
        required = size(peak.low_reserved_bytes + footprint.context_ends[0])
        reserved, allocated = size(peak.low_reserved_bytes), size(peak.low.allocated)
        return [Paragraph(say("memory_required_least", required=required, reserved=reserved, allocated=allocated))]
    if footprint.required_bytes is None:
        return []
    required = size_range(*footprint.required_bytes, say)
    if peak is not None:
        reserved, allocated = size_range(*peak.reserved_bytes, say), size_range(*peak.allocated_bytes, say)
        return [Paragraph(say("memory_required_range", required=required, reserved=reserved, allocated=allocated))]
    reserved, allocated = size(footprint.peak_reserved), size(footprint.peak_allocated_bytes)
    return [Paragraph(say("memory_required", required=required, reserved=reserved, allocated=allocated))]


def term_table(footprint: Footprint, say: Language) -> Table:
    """The terms at the end and at the peak, their sum (allocated), reserved memory, and the memory that a card needs."""

    def cells(moment: Moment | None, term: str) -> list[str]:
        value: int | None = None if moment is None else getattr(moment, term)
        return [count(value), size(value)]

    def allocated(moment: Moment | None) -> list[str]:
        if moment is None:
            return ["–", "–"] if between is None else _range_cells(between.allocated_bytes, say)
        return [allocated_text(moment, shown, say) for shown in (count, size)]

    def reserved(value: int | None) -> list[str]:
        return ["", "", count(value), size(value)]

    steady, peak, between = footprint.steady, footprint.peak, footprint.peak_range
    rows = [[say(f"term_{term}"), *cells(steady, term), *cells(peak, term)] for term in terms_of(steady, peak)]
    rows.append([say("term_allocated"), *allocated(steady), *allocated(peak)])
    peak_bytes = None if peak is None else peak.allocated
    gap = None if peak_bytes is None or footprint.peak_reserved is None else footprint.peak_reserved - peak_bytes
    rows.append([say("term_reserved_only"), *reserved(gap)])
    reserved_cells = (
        reserved(footprint.peak_reserved)[2:] if between is None else _range_cells(between.reserved_bytes, say)
    )
    rows.append([say("term_reserved"), "", "", *reserved_cells])
    rows.append([say("term_context"), *reserved(footprint.context_bytes)])
    required = [[name, *reserved(size_bytes)] for name, size_bytes in required_rows(footprint, say)]
    at_end, at_peak = say("column_steady"), say("column_peak")
    unit = say("column_bytes")
    return Table(
        [say("column_term"), f"{at_end} ({unit})", at_end, f"{at_peak} ({unit})", at_peak],
        [*rows, *required],
        "lrrrr",
        totals=4 + len(required),
        expendable=((1, 3),),
    )


def _range_cells(ends: tuple[int, int | None], say: Language) -> list[str]:
    return [shown_range(*ends, shown, say) for shown in (count, size)]


def allocated_text(moment: Moment, shown: Callable[[int | None], str], say: Language) -> str:
    """The moment's allocated bytes, formatted by `shown`; "at least" if they are a lower bound."""
    text = shown(moment.allocated)
    return say("at_least", value=text) if moment.at_least else text


def required_rows(footprint: Footprint, say: Language) -> list[tuple[str, int]]:
    """(label, bytes) of the memory that a card needs, at each end of the CUDA context's range; empty without a known peak."""
    if footprint.peak_range is not None and footprint.required_bytes is not None:
        low, high = map(size, footprint.context_ends)
        names = [say("term_required_least", context=low), say("term_required_most", context=high)]
        return list(zip(names, footprint.required_bytes, strict=True))
    return list(zip(required_names(footprint, say), footprint.required_bytes or (), strict=False))


def required_names(footprint: Footprint, say: Language) -> list[str]:
    """Labels of the two ends; a single label if the CUDA context was measured."""
    if footprint.context_bytes is not None:
        return [say("term_required")]
    low, high = map(size, footprint.context_ends)
    return [say("term_required_low", context=low), say("term_required_high", context=high)]


def terms_of(*moments: Moment | None) -> list[str]:
    """The terms to show for these moments, in order; rare terms (OF_SOME_RUNS) only if not zero."""
    some = {term for term in OF_SOME_RUNS for moment in moments if moment is not None and getattr(moment, term)}
    return [term for term in TERMS if term not in OF_SOME_RUNS or term in some]


def alive_rows(alive: Sequence[Alive], say: Language) -> list[list[str]]:
    return [
        [
            Shortened(group.component, group.component.removeprefix("model."))
            if group.operator != "–" or group.component == "–"  # memory of no operator
            else say(f"term_{term_of(group.component)}"),
            Shortened(group.operator, group.operator.removeprefix("aten.").removesuffix(".default")),
            count(group.storages),
            count(group.size_bytes),
            size(group.size_bytes),
        ]
        for group in alive
    ]


def alive_table(footprint: Footprint, say: Language) -> Table:
    names = ("component", "operator", "storages", "bytes", "size")
    return Table(
        [say(f"column_{name}") for name in names], alive_rows(footprint.alive, say), "llrrr", expendable=((3,), (2,))
    )
