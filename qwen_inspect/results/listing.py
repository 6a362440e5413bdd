"""Repositories' files side by side, and the catalog's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoint import ModelRef, Release
    from .attention import AttentionReport
    from .model import Design


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair:
    """A file by its name in two repositories: sizes and SHA-256 as their listings tell, None where they do not."""

    name: str
    left_bytes: int | None
    right_bytes: int | None
    left_sha256: str | None
    right_sha256: str | None
    on_left: bool
    on_right: bool

    @property
    def same(self) -> bool | None:
        """Whether the two are the same file; None where that is not told."""
        if not (self.on_left and self.on_right):
            return False
        if self.left_bytes is not None and self.right_bytes is not None and self.left_bytes != self.right_bytes:
            return False
        if self.left_sha256 is None or self.right_sha256 is None:
            return None
        return self.left_sha256 == self.right_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesComparison:
    """Two repositories' files by name. The weights decide whether they hold the same model."""

    left: ModelRef
    right: ModelRef
    pairs: tuple[FilePair, ...]

    @property
    def weights(self) -> tuple[FilePair, ...]:
        return tuple(
            pair for pair in self.pairs if pair.name.endswith((".safetensors", ".gguf", ".bin", ".pt", ".pth"))
        )

    @property
    def identical(self) -> bool | None:
        """True where every file of weights is the same by SHA-256, None where some are not told, or there are none."""
        verdicts = {pair.same for pair in self.weights}
        if False in verdicts:
            return False
        return True if verdicts == {True} else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A row of `models`: what the catalog says of one release, and what follows from it."""

    id: str
    design: Design
    release: Release | None

    @property
    def attention(self) -> AttentionReport:
        assert self.design.attention is not None  # the catalog holds families that are described here
        return self.design.attention
