"""`fit --llama-cpp`: a command's buffers by device, what fits, how far it could go, and a log beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...language import Language
from ...results.llama_cpp import Buffer, DeviceTotal, LlamaCppReport, LogLine
from ...units import UNKNOWN, count, size
from ..answers import between
from ..blocks import Block, Fields, Heading, Items, Table
from .common import identity, notices


def blocks(report: LlamaCppReport, say: Language) -> Sequence[Block]:
    content: list[Block] = [
        Heading(say("heading_fit", name=report.report.ref.id), 1),
        identity(report.report, say),
        *notices(report.report, say),
        Heading(say("heading_run")),
        Fields([*_fields(report, say)]),
        Heading(say("heading_buffers")),
        buffer_table(report.buffers, say),
        Heading(say("heading_devices")),
        _device_table(report, say),
        Fields([*_reach_fields(report, say)]),
    ]
    if report.log is not None:
        content += [Heading(say("heading_log")), _log_table(report.log, say)]
    return [*content, Heading(say("heading_assumptions")), Items([say(notice) for notice in report.notices])]


def _fields(report: LlamaCppReport, say: Language) -> Iterator[tuple[str, str]]:
    yield say("field_engine"), f"llama.cpp {report.build} ({report.program})"
    yield say("field_sequence_tokens"), count(report.context_tokens)
    yield say("field_sequences"), count(report.sequences)
    yield say("field_cells"), count(report.cells)
    yield say("field_offloaded"), say("offloaded_of", value=report.offloaded, layers=report.layers)
    yield say("field_cache_dtype"), ", ".join(report.cache_types)
    yield say("field_flash_attention"), say("yes" if report.flash_attention else "no")


def buffer_table(buffers: Sequence[Buffer], say: Language) -> Table:
    rows = [[buffer.device, _named(buffer, say), count(buffer.size_bytes), mib(buffer, say)] for buffer in buffers]
    columns = [say("column_device"), say("column_buffer"), say("column_bytes"), say("column_size")]
    return Table(columns, rows, "llrr", expendable=((2,),))


def _named(buffer: Buffer, say: Language) -> str:
    name = say(f"buffer_{buffer.kind}")
    return name if buffer.context == "model" else say(f"buffer_of_{buffer.context}", buffer=name)


def mib(buffer: Buffer, say: Language) -> str:
    """As llama.cpp prints it, in MiB; a range if only that is known."""
    if buffer.size_bytes is not None:
        return f"{buffer.size_bytes / 2**20:,.2f} MiB"
    if buffer.most_bytes is not None:
        return between(buffer.low_bytes, buffer.most_bytes, say)
    return say("at_least", value=size(buffer.low_bytes)) if buffer.low_bytes else UNKNOWN


def _device_table(report: LlamaCppReport, say: Language) -> Table:
    rows = [
        [
            total.device if total.gpu is None else f"{total.device} ({total.gpu.name})",
            size(total.low_bytes) if total.high_bytes is not None else say("at_least", value=size(total.low_bytes)),
            size(total.available_bytes),
            _verdict(total, say),
        ]
        for total in report.devices
    ]
    return Table(
        [say("column_device"), say("column_required"), say("column_available"), say("column_fits")], rows, "lrrl"
    )


def _verdict(total: DeviceTotal, say: Language) -> str:
    if total.available_bytes is None:
        return UNKNOWN
    return say({True: "fits_yes", False: "fits_no", None: "llama_cpp_tight"}[total.fits])


def _reach_fields(report: LlamaCppReport, say: Language) -> Iterator[tuple[str, str]]:
    yield say("field_largest_context"), count(report.reach.context_tokens)
    yield say("field_largest_layers"), count(report.reach.offloaded)
    if report.fitted is not None:
        yield say("field_fitted"), report.fitted.options
    if report.reach.host_experts is not None:
        yield say("field_fewest_host_experts"), count(report.reach.host_experts)


def _log_table(lines: Sequence[LogLine], say: Language) -> Table:
    rows = [
        [
            line.device,
            say(f"buffer_{line.kind}"),
            UNKNOWN if line.printed is None else f"{line.printed // 100:,}.{line.printed % 100:02d} MiB",
            UNKNOWN if line.predicted_bytes is None else f"{line.predicted_bytes / 2**20:,.2f} MiB",
            {True: "✓", False: say("log_differs"), None: UNKNOWN}[line.agrees],
        ]
        for line in lines
    ]
    columns = ("column_device", "column_buffer", "column_printed", "column_predicted", "column_agrees")
    return Table([say(name) for name in columns], rows, "llrrl")
