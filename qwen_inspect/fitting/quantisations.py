"""Which quantisation of a model is the largest that fits: of a repository's or folder's GGUF files, or of llama-quantize's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..bisection import largest
from ..checkpoint import ModelRef
from ..language import Message
from ..loaders.gguf_header import models_by_size
from ..loaders.resolve import Access
from ..results.llama_cpp import ChosenQuantisation, LlamaCppReport
from ..results.model import Report
from ..results.serving import ServingReport
from ..structure.gguf_conversion import as_gguf, bytes_by_scheme
from ..typed import TypeVar
from ..values import replace

Answer = TypeVar("Answer", bound=LlamaCppReport | ServingReport)


def stored_quantisations(ref: ModelRef, access: Access) -> tuple[tuple[str, int], ...]:
    """What to type for each model among a repository's or folder's GGUF files, and its bytes, the smallest first."""
    if ref.source == "local":
        with os.scandir(ref.path or ref.id) as entries:
            sizes: dict[str, int | None] = {entry.name: entry.stat().st_size for entry in entries}
    else:
        from ..loaders.named import list_files

        (listing,) = list_files([ref], access)
        sizes = {file.name: file.size_bytes for file in listing.files}
    sizes = {name: size_bytes for name, size_bytes in sizes.items() if name.endswith(".gguf")}
    return tuple((ref.of_file(name), size_bytes) for name, size_bytes in models_by_size(sizes))


def largest_stored(
    sizes: Sequence[tuple[str, int]], read: Callable[[str], Report], answer: Callable[[Report], Answer]
) -> Answer:
    """The answer for the largest of a repository's files that fits; for the smallest if none does."""
    return _largest(sizes, read, answer)


def largest_scheme(report: Report, answer: Callable[[Report], Answer]) -> Answer:
    """The answer for the largest of llama-quantize's quantisations that fits; for the smallest if none does."""
    return _largest(bytes_by_scheme(report), lambda scheme: as_gguf(report, scheme), answer)


def _largest(
    sizes: Sequence[tuple[str, int]], read: Callable[[str], Report], answer: Callable[[Report], Answer]
) -> Answer:
    answers: dict[int, Answer] = {}

    def fits(count: int) -> bool:
        """Whether the quantisation with this number fits, the smallest being 1."""
        answers[count] = answer(read(sizes[count - 1][0]))
        return answers[count].fits is True

    count = largest(fits, len(sizes))
    name, size_bytes = sizes[max(count, 1) - 1]
    values = {"name": name, "size": size_bytes, "count": len(sizes)}
    notice = Message("quant_largest" if count else "quant_none", **values)
    if 0 < count < len(sizes):
        further, further_bytes = sizes[count]
        notice = Message("quant_largest_but", further=further, further_size=further_bytes, **values)
    chosen = answers.get(max(count, 1)) or answer(read(name))
    return replace(
        chosen,
        report=replace(chosen.report, notices=(*chosen.report.notices, notice)),
        quantisation=ChosenQuantisation(name=name, size_bytes=size_bytes),
    )
