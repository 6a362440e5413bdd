"""Files of two repositories compared, and the rows of the catalog."""

from __future__ import annotations

from ..typed import TYPE_CHECKING
from ..values import dataclass

if TYPE_CHECKING:
    from ..checkpoint import ModelRef, Release
    from .attention import AttentionReport
    from .model import Design


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair:
    """Files of the same name in two repositories, with the sizes and SHA-256 of the listings (None: not listed)."""

    name: str
    left_bytes: int | None
    right_bytes: int | None
    left_sha256: str | None
    right_sha256: str | None
    on_left: bool
    on_right: bool

    @property
    def same(self) -> bool | None:
        """Whether the two files are equal; None if the listings do not show it."""
        if not (self.on_left and self.on_right):
            return False
        if self.left_bytes is not None and self.right_bytes is not None and self.left_bytes != self.right_bytes:
            return False
        if self.left_sha256 is None or self.right_sha256 is None:
            return None
        return self.left_sha256 == self.right_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesComparison:
    """Two repositories' files by name. Only the weight files decide whether they are identical."""

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
        """True if all weight files have equal SHA-256; None if some have none listed, or there are no weight files."""
        verdicts = {pair.same for pair in self.weights}
        if False in verdicts:
            return False
        return True if verdicts == {True} else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A row of `models`: a release in the catalog and its design."""

    id: str
    design: Design
    release: Release | None

    @property
    def attention(self) -> AttentionReport:
        assert self.design.attention is not None  # the catalog has only described families
        return self.design.attention
