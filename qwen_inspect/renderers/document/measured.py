"""`memory --device`: parameters and memory, predicted and measured, with the causes and the residual of each difference."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language, Message
from ...results.measurement import Difference, Measurement, Reading
from ...results.memory import MemoryReport
from ...units import count, percent, shares, signed, size
from ..blocks import Block, Fields, Heading, Items, Paragraph, Table
from .common import component_table, identity, notices
from .memory import alive_rows, run_fields
from .params import grouping, layer_breakdown, witness_table

# Always shown; other terms only if the prediction or the measurement is not zero.
ALWAYS = ("weights", "buffers", "steady_allocated", "peak_allocated")
# Operators whose kernels on CPU take scratch memory. Source: torch 2.13, aten/src/ATen/native/cpu/FlashAttentionKernel.cpp,
# cpu_flash_attention; aten/src/ATen/native/mkldnn/Matmul.cpp
CPU_KERNELS = {
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "product": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
}
SUMMARY = ("weights", "cache", "steady_allocated", "peak_allocated", "peak_reserved")


def measured_blocks(memory: MemoryReport, measured: Measurement, say: Language) -> list[Block]:
    report = memory.report
    return [
        Heading(say("heading_measured", name=report.ref.id, device=measured.device), 1),
        identity(report, say, device=measured.device),
        *notices(report, say),
        *([Paragraph(say("measured_partial", reason=say(measured.partial)))] if measured.partial else []),
        Heading(say("heading_results")),
        Heading(say("heading_results_parameters"), 3),
        witness_table(report, say),
        Heading(say("heading_results_memory"), 3),
        summary_table(memory.differences, say),
        Heading(say("heading_findings")),
        Items(findings(memory, measured, say)),
        Heading(say("heading_breakdown")),
        component_table(report, say),
        *layer_breakdown(report, say),
        Heading(say("heading_grouping")),
        *grouping(report, say),
        Heading(say("heading_run")),
        run_fields(memory, say),
        Fields(measured.versions),
        Heading(say("heading_terms_measured")),
        difference_table(memory.differences, say),
        *causes(memory.differences, say, device=measured.device),
        *([Paragraph(say(measured.parted))] if measured.parted else []),
        Heading(say("heading_stages")),
        stage_table(measured.readings, say),
        *driver_blocks(measured.readings, say),
        *_scratch(measured, say),
        Heading(say("heading_conclusions")),
        Items(conclusions(memory, measured, say), numbered=True),
        Heading(say("heading_assumptions")),
        Items([say(message) for message in memory.predicted.assumptions]),
    ]


def summary_table(differences: Sequence[Difference], say: Language) -> Table:
    """The main figures, with the difference in per cent of the prediction."""
    rows = [
        [
            say(f"term_{difference.term}"),
            size(difference.predicted),
            size(difference.measured),
            _signed(difference.difference),
            _share(difference),
        ]
        for difference in differences
        if difference.term in SUMMARY and _has_figures(difference)
    ]
    columns = [say(f"column_{name}") for name in ("term", "predicted", "measured", "difference_bytes", "difference")]
    return Table(columns, rows, "lrrrr")


def difference_table(differences: Sequence[Difference], say: Language) -> Table:
    rows = [
        [
            say(f"term_{difference.term}"),
            count(difference.predicted),
            count(difference.measured),
            _signed(difference.difference),
            _signed(None if difference.difference is None else difference.difference - (difference.residual or 0)),
            _signed(difference.residual),
        ]
        for difference in differences
        if _has_figures(difference)
    ]
    names = ("term", "predicted_bytes", "measured_bytes", "difference_bytes", "explained", "residual")
    return Table([say(f"column_{name}") for name in names], rows, "lrrrrr")


def causes(differences: Sequence[Difference], say: Language, *, device: str) -> list[Block]:
    """Each cause with its bytes. Skips steady_allocated: as a sum of terms, its causes are already listed."""
    rows = [
        [say(f"term_{difference.term}"), _reason(cause.message, say, device), signed(cause.size_bytes)]
        for difference in differences
        if difference.term != "steady_allocated"
        for cause in difference.causes
    ]
    if not rows:
        return [Paragraph(say("no_causes"))]
    columns = [say("column_term"), say("column_reason"), say("column_bytes")]
    return [Heading(say("heading_causes"), 3), Table(columns, rows, "llr")]


def _reason(message: Message, say: Language, device: str) -> str:
    """The cause; for a kernel's scratch on CPU, also why a GPU has none."""
    if device != "cpu" or message.key != "cause_scratch":
        return say(message)
    operator = str(message.values["operator"])
    kernel = next((name for name, names in CPU_KERNELS.items() if operator.startswith(names)), "other")
    return say("cause_scratch_cpu", why=Message(f"cpu_{kernel}"), **message.values)


def stage_table(readings: Sequence[Reading], say: Language) -> Table:
    rows = [
        [
            say(f"measured_stage_{reading.stage}"),
            "–" if reading.seconds is None else f"{reading.seconds:.3f}",
            size(reading.allocated),
            size(reading.peak_allocated),
            size(reading.peak_requested),
            size(reading.peak_reserved),
            size(reading.host_peak),
        ]
        for reading in readings
    ]
    names = ("stage", "seconds", "allocated_after", "peak_allocated", "peak_requested", "peak_reserved", "host_peak")
    return Table([say(f"column_{name}") for name in names], rows, "lrrrrrr")


def driver_blocks(readings: Sequence[Reading], say: Language) -> list[Block]:
    """Memory use as the driver reports it. Other processes' memory is shown but never counted as the model's."""
    driver_readings = [reading for reading in readings if reading.device_used is not None]
    if not driver_readings:
        return []
    rows = [
        [
            say(f"measured_stage_{reading.stage}"),
            size(reading.device_used),
            size(reading.device_total),
            size(reading.process_used),
            size(reading.others_used),
        ]
        for reading in driver_readings
    ]
    columns = [
        say(f"column_{name}") for name in ("stage", "device_used", "device_total", "process_used", "others_used")
    ]
    return [Heading(say("heading_driver")), Table(columns, rows, "lrrrr")]


def findings(memory: MemoryReport, measured: Measurement, say: Language) -> list[str]:
    """Sentences on whether parameter counts and memory terms agree."""
    report = memory.report
    counts = report.parameters
    sentences = [say("finding_parameters", parameters=counts.theory)]
    if counts.stored is not None:
        agree = all(check.agrees for check in report.checks)
        sentences.append(say("finding_stored_agree" if agree else "finding_stored_differ", stored=counts.stored))
    by_term = {difference.term: difference for difference in memory.differences}
    for term in ("weights", "steady_allocated", "peak_allocated"):
        difference = by_term[term]
        if difference.difference is None:
            continue
        key = "equal" if difference.difference == 0 else "explained" if difference.residual == 0 else "unexplained"
        values = {"term": say(f"term_{term}"), "difference": difference.difference, "residual": difference.residual}
        sentences.append(say(f"finding_memory_{key}", measured=size(difference.measured), **values))
    sentences.append(say("finding_kind", kind=report.attention.kind))
    return sentences


def conclusions(memory: MemoryReport, measured: Measurement, say: Language) -> list[str]:
    """Sentences computed from the measurement: the largest term, free device memory, decode speed, unexplained bytes."""
    footprint = measured.footprint
    shown = (
        footprint.peak if footprint.peak is not None and footprint.peak.activations is not None else footprint.steady
    )
    parts = {term: value for term, value in shown.bytes_by_term.items() if value is not None and value > 0}
    sentences = []
    if parts:
        total = sum(parts.values())
        largest = max(parts, key=lambda term: parts[term])
        share = percent(shares([parts[largest], total - parts[largest]])[0])
        sentences.append(say("conclusion_largest", term=say(f"term_{largest}"), size=size(parts[largest]), share=share))
    last = measured.readings[-1]
    per_token = memory.report.cache.bytes_per_token * memory.run.batch
    if last.device_used is not None and last.device_total is not None:
        free = last.device_total - last.device_used
        sentences.append(say("conclusion_room", free=size(free), total=size(last.device_total)))
        if memory.run.mode == "generate" and per_token:
            sentences.append(say("conclusion_tokens", tokens=free // per_token, bytes=per_token))
    elif memory.run.mode == "generate" and per_token:
        sentences.append(say("conclusion_per_token", bytes=per_token))
    seconds = {reading.stage: reading.seconds for reading in measured.readings}
    if memory.run.mode == "generate" and (decode_seconds := seconds.get("decode")) and memory.run.new_tokens > 1:
        rate = memory.run.batch * (memory.run.new_tokens - 1) / decode_seconds
        key = "conclusion_rate_profiled" if measured.device == "cpu" else "conclusion_rate"
        sentences.append(say(key, rate=f"{rate:.1f}"))
    unexplained = [difference for difference in memory.differences if difference.residual]
    if unexplained:
        worst = max(unexplained, key=lambda difference: abs(difference.residual or 0))
        sentences.append(say("conclusion_unexplained", term=say(f"term_{worst.term}"), bytes=worst.residual))
    elif not any(difference.difference for difference in memory.differences):
        sentences.append(say("conclusion_equal"))
    elif measured.device == "cpu":
        sentences += _cpu_conclusions(memory.differences, say)
    else:
        sentences.append(say("conclusion_explained"))
    return sentences


def _cpu_conclusions(differences: Sequence[Difference], say: Language) -> list[str]:
    """Why an explained difference is the CPU's own."""
    by_term = {difference.term: difference.difference for difference in differences}
    sentences = []
    if by_term["peak_allocated"]:
        sentences.append(say("conclusion_cpu", bytes=by_term["peak_allocated"]))
    sentences.append(say("conclusion_explained" if by_term["steady_allocated"] else "conclusion_cpu_end"))
    return sentences


def _scratch(measured: Measurement, say: Language) -> list[Block]:
    if not measured.scratch:
        return []
    columns = [say("column_operator"), say("column_storages"), say("column_bytes"), say("column_size")]
    return [
        Heading(say("heading_scratch")),
        Table(columns, [row[1:] for row in alive_rows(measured.scratch, say)], "lrrr"),
    ]


def _has_figures(difference: Difference) -> bool:
    return difference.term in ALWAYS or bool(difference.predicted) or bool(difference.measured)


def _signed(value: int | None) -> str:
    return "–" if value is None else signed(value)


def _share(difference: Difference) -> str:
    """The difference in per cent of the prediction, truncated to hundredths in integer arithmetic."""
    if difference.difference is None or not difference.predicted:
        return "–"
    hundredths = abs(difference.difference) * 10_000 // difference.predicted
    sign = "-" if difference.difference < 0 else "+" if difference.difference > 0 else ""
    return f"{sign}{percent(hundredths)}"
