"""DeepSeek-V4's caches: the last tokens, cells for 4 or 128 tokens, and the states that such cells are made of.

Source: llama.cpp b11549, src/llama-kv-cache-dsv4.cpp.
"""

from __future__ import annotations

from ...architectures.gguf_hparams import GgufHyperparameters
from ...values import dataclass

FEW, MANY = 4, 128  # tokens of a compressed cell
CELLS_MULTIPLE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedCells:
    """One kind of compressed cells. overlaps: a cell is made of the tokens before its own, too; indexes: it is an index's."""

    ratio: int
    length: int
    overlaps: bool
    indexes: bool = False

    def cells(self, cells: int) -> int:
        """Of one sequence with `cells` tokens."""
        count = max(-(-cells // self.ratio), 1)
        return -(-count // CELLS_MULTIPLE) * CELLS_MULTIPLE

    @property
    def state_rows(self) -> int:
        """Tokens that are kept until a cell is whole."""
        return self.ratio * (2 if self.overlaps else 1)

    @property
    def state_width(self) -> int:
        return self.length * (2 if self.overlaps else 1)


def kinds(read: GgufHyperparameters) -> tuple[CompressedCells, CompressedCells, CompressedCells]:
    """Cells of few and of many tokens, and those of the index."""
    return (
        CompressedCells(ratio=FEW, length=read.key_length, overlaps=True),
        CompressedCells(ratio=MANY, length=read.key_length, overlaps=False),
        CompressedCells(ratio=FEW, length=read.indexer.key_length, overlaps=True, indexes=True),
    )


def layers_of(read: GgufHyperparameters, kind: CompressedCells) -> list[int]:
    return [layer for layer, ratio in enumerate(read.compress_ratios) if ratio == kind.ratio]
