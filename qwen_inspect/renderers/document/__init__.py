"""Report -> blocks: each section is written once, for all formats and both languages. One module per command, named after it."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...standard import import_module
from ...typed import Any
from ...values import dataclass
from .. import answers
from ..blocks import Answer, Block


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How much of the report to show.

    depth: levels of the tree below the model (None: all). top: only so many of the largest tensors (None: all, and a ranking).
    live: include interactive blocks (treemap, sliders), which only an HTML page can show. brief: notes in short and no sources,
    for a terminal without --verbose. fold: equal layers folded in long lists, for a terminal without --expand.
    """

    expand: bool = False
    depth: int | None = None
    first_layer: bool = False
    explain: bool = False
    sort: str = "name"
    top: int | None = None
    live: bool = False
    brief: bool = False
    fold: bool = False


def document(command: str, subject: Any, say: Language, view: View) -> Sequence[Block]:
    """The blocks of `command`'s output, its answer first. subject: the value that the command computed, such as a Report."""
    blocks: Sequence[Block] = import_module(f"{__name__}.{command}").blocks(subject, say, view)
    return [Answer(answers.sentences(command, subject, say)), *blocks]
