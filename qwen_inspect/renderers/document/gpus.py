"""`gpus`: the table of cards, with the source of each figure."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.fit import Gpu
from ...units import UNKNOWN, size
from ..blocks import Block, Heading, Items, Paragraph, Table
from . import View


def blocks(gpus: Sequence[Gpu], say: Language, view: View) -> Sequence[Block]:
    names = ("gpu", "gpu_kind", "nominal", "reported", "usable", "capability", "bf16", "fp8", "aliases")
    return [
        Heading(say("heading_gpus"), 1),
        Paragraph(say("gpus_intro")),
        Table(
            [say(f"column_{name}") for name in names],
            [_row(gpu, say) for gpu in gpus],
            "llrrrcccl",
            expendable=((8,), (3,), (1,)),
        ),
        *_sources_of(gpus, say, view),
    ]


def _sources_of(gpus: Sequence[Gpu], say: Language, view: View) -> list[Block]:
    if view.brief:
        return [Paragraph(say("gpus_sources_hidden"))]
    return [Heading(say("heading_sources")), Items([_sources(gpu, say) for gpu in gpus])]


def _row(gpu: Gpu, say: Language) -> list[str]:
    figures = {name: figure.text for name, figure in gpu.figures}
    return [
        gpu.name,
        say(f"gpu_kind_{gpu.kind}"),
        size(gpu.memory_bytes),
        size(gpu.reported_bytes),
        size(gpu.usable_bytes),
        figures.get("compute_capability", UNKNOWN),
        *(_mark(gpu.supports(dtype), say) for dtype in ("bfloat16", "fp8")),
        ", ".join(gpu.aliases),
    ]


def _mark(value: bool | None, say: Language) -> str:
    return UNKNOWN if value is None else say("yes" if value else "no")


def _sources(gpu: Gpu, say: Language) -> str:
    sources = (
        say("gpu_source", figure=say(f"gpu_figure_{name}"), text=figure.text, source=figure.source)
        for name, figure in gpu.figures
    )
    return f"{gpu.name}: {'; '.join(sources)}"
