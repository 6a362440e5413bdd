"""`compare`: models side by side, differences first; for two hubs, whether their files are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from ...checkpoint import Tensor
from ...language import Language
from ...results.compare import KINDS, Comparison, ConfigRow, FactRow, SideBySide, TensorChange, TensorChanges
from ...results.listing import FilePair, FilesComparison
from ...results.model import Report
from ...typed import TYPE_CHECKING
from ...units import count, signed, signed_size, size
from ..blocks import Block, Folded, Heading, Items, Paragraph, Shortened, Table
from . import View
from .common import count_cell, notices, reach
from .config import written

if TYPE_CHECKING:
    from ...results.fit import CardReach, ContextFit

MOST_CHANGES = 20
NAME_LENGTH = 28  # of a model, in the heading of its column


def blocks(comparison: Comparison, say: Language, view: View) -> Sequence[Block]:
    content: list[Block] = []
    if comparison.files is not None:
        content += _file_blocks(comparison.files, say)
    if comparison.notices:
        content += [Heading(say("heading_notices")), Items([say(message) for message in comparison.notices])]
    if comparison.models is not None:
        content += _side_by_side(comparison.models, say, view, level=2 if content else 1)
    return content


# --- side by side


def _side_by_side(sides: SideBySide, say: Language, view: View, *, level: int) -> Iterator[Block]:
    yield Heading(say("heading_side_by_side", models=len(sides.reports)), level)
    yield _model_table(sides, say)
    yield from _notices(sides, say)
    yield Paragraph(_run(sides, say))
    rows = [(row.same, _fact_cells(row, say)) for row in sides.facts]
    rows += [(row.same, _config_cells(row, say)) for row in sides.config]
    differing, unknown, equal = ([cells for same, cells in rows if same is verdict] for verdict in (False, None, True))
    yield Heading(say("heading_differences"))
    yield _row_table(differing, "≠", sides, say) if differing else Paragraph(say("compare_none_differ"))
    if unknown:
        yield Heading(say("heading_unknown"))
        yield _row_table(unknown, "?", sides, say)
    yield from _reach_blocks(sides, say)
    yield from _tensor_blocks(sides, say)
    if equal:
        yield Heading(say("heading_equal"))
        table = _row_table(equal, "=", sides, say)
        yield table if view.expand else Folded(say("compare_equal_rows", count=len(equal)), table)


def letter_of(index: int) -> str:
    """A to Z, then AA to AZ, ..."""
    first, last = divmod(index, len(ascii_uppercase))
    return (ascii_uppercase[first - 1] if first else "") + ascii_uppercase[last]


def _heads(sides: SideBySide) -> list[str]:
    """Column headings: each model's letter and the last part of its name."""
    names = [report.ref.id.rstrip("/").rpartition("/")[2] for report in sides.reports]
    short = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…" for name in names]
    letters = [letter_of(index) for index in range(len(short))]
    return [Shortened(f"{letter}: {name}", letter) for letter, name in zip(letters, short, strict=True)]


def _model_table(sides: SideBySide, say: Language) -> Table:
    origins = ["stored" if report.tensors is not None else "theory" for report in sides.reports]
    rows = [
        [
            letter_of(index),
            report.ref.id,
            say(f"source_{report.ref.source}"),
            report.ref.revision or "–",
            say(f"witness_{origin}") if report.tensors is not None or report.design is not None else "–",
        ]
        for index, (report, origin) in enumerate(zip(sides.reports, origins, strict=True))
    ]
    columns = ["", say("column_model"), say("field_source"), say("column_revision"), say("column_origin")]
    return Table(columns, rows, "lllll", expendable=((3,), (2,)))


def _notices(sides: SideBySide, say: Language) -> list[Block]:
    notes = [
        say("compare_note", letter=letter_of(index), note=note)
        for index, report in enumerate(sides.reports)
        for note in _notes(report, say)
    ]
    return [Heading(say("heading_notices")), Items(notes)] if notes else []


def _notes(report: Report, say: Language) -> list[str]:
    return [item for block in notices(report, say) if isinstance(block, Items) for item in block.items]


def _run(sides: SideBySide, say: Language) -> str:
    run = sides.run
    values = {
        "mode": say(f"mode_{run.mode}"),
        "batch": run.batch,
        "prompt": run.prompt_tokens,
        "attention": run.attention,
        "gpu": run.gpu,
    }
    if run.mode == "generate":
        return say("compare_run", new=run.new_tokens, **values)
    return say("compare_run_no_new", **values)


def _row_table(rows: Sequence[Sequence[str]], mark: str, sides: SideBySide, say: Language) -> Table:
    """Columns: mark, section, row, each model's value; for two models whose values differ, the difference too."""
    models = len(sides.reports)
    columns = ["", say("column_section"), say("column_row"), *_heads(sides)]
    if models == 2 and mark == "≠":
        columns.append(say("column_delta"))
    delta = ((len(columns) - 1,),) if len(columns) > 3 + models else ()
    return Table(
        columns,
        [[mark, *row[: len(columns) - 1]] for row in rows],
        f"lll{'r' * (len(columns) - 3)}",
        expendable=((0,), *delta, (1,)),
    )


def _config_cells(row: ConfigRow, say: Language) -> list[str]:
    cells = [written(value) if there else "–" for value, there in zip(row.values, row.present, strict=True)]
    return [say("section_config"), row.key, *cells, ""]


def _fact_cells(row: FactRow, say: Language) -> list[str]:
    name = say(f"component_{row.name}" if row.section == "components" else f"row_{row.name}")
    if row.layer_kind is not None:
        name = f"{say(f'layer_kind_{row.layer_kind}')}: {name}"
    return [say(f"section_{row.section}"), name, *_cells(row, say), _delta(row)]


def _cells(row: FactRow, say: Language) -> list[str]:
    bounds = row.at_least or (False,) * len(row.values)
    cells = [_cell(value, row, say) for value in row.values]
    return [say("at_least", value=cell) if bound else cell for cell, bound in zip(cells, bounds, strict=True)]


def _cell(value: int | str | None, row: FactRow, say: Language) -> str:
    match value:
        case None:
            return "–"
        case "":
            return say("none")
        case str():
            return say(f"method_{value}") if row.name == "method" else value
        case int():
            if row.unit == "bytes" and value >= 1024:
                return Shortened(f"{count(value)} ({size(value)})", size(value))
            return count_cell(value) if value >= 10**6 else count(value)


def _delta(row: FactRow) -> str:
    match row.values:
        case (int(left), int(right)):
            return signed(right - left)
    return ""


# --- what fits


def _reach_blocks(sides: SideBySide, say: Language) -> Iterator[Block]:
    """Each model on each card: bytes left at each context, and the largest context that fits."""
    cards_of_model = [(letter_of(index), cards) for index, cards in enumerate(sides.reaches) if cards is not None]
    if not cards_of_model:
        return
    contexts = [context.context_tokens for context in cards_of_model[0][1][0].contexts]
    heads = [say("column_context_of", tokens=tokens) for tokens in contexts]
    columns = [say("column_model"), say("column_gpu"), say("column_available"), *heads, say("column_max_context")]
    yield Heading(say("heading_compare_fits", batch=sides.run.batch))
    yield Paragraph(say("compare_fits_intro"))
    yield Table(
        columns,
        [[letter, *_reach_row(card, say)] for letter, cards in cards_of_model for card in cards],
        f"ll{'r' * (len(columns) - 2)}",
    )


def _reach_row(card: CardReach, say: Language) -> list[str]:
    return [
        card.gpu.name,
        size(card.available_bytes),
        *(_left_over(context, card, say) for context in card.contexts),
        reach(card.largest, say),
    ]


def _left_over(context: ContextFit, card: CardReach, say: Language) -> str:
    if context.required_bytes is None:
        return "–"
    margin = signed_size(card.available_bytes - context.required_bytes)
    return margin if context.fits is not None else say("reach_left_at_most", value=margin)


# --- tensors


def _tensor_blocks(sides: SideBySide, say: Language) -> Iterator[Block]:
    yield Heading(say("heading_tensor_changes"))
    changes_of_model = [(letter_of(index), changes) for index, changes in enumerate(sides.tensors, 1)]
    heads = _heads(sides)
    columns = [say("column_model"), *(say(f"change_{kind}") for kind in KINDS), say("column_equal")]
    rows = [
        [heads[index], *(["–"] * 5 if changes is None else _counts(changes))]
        for index, (_, changes) in enumerate(changes_of_model, 1)
    ]
    yield Table(columns, rows, "lrrrrr")
    yield Paragraph(say("compare_names_only"))
    for letter, changes in changes_of_model:
        if changes is None:
            yield Paragraph(say("compare_tensors_unknown", letter=letter))
        elif changes.changes:
            yield from _change_blocks(letter, changes, say)


def _counts(changes: TensorChanges) -> list[str]:
    return [*(count(changes.count(kind)) for kind in KINDS), count(changes.equal)]


def _change_blocks(letter: str, changes: TensorChanges, say: Language) -> Iterator[Block]:
    shown = _first_of_each_kind(changes)
    yield Heading(say("heading_changes_of", letter=letter), 3)
    yield from (Paragraph(say(note)) for note in changes.notes)
    columns = [say("column_change"), say("column_tensor"), say("column_before"), say("column_after", letter=letter)]
    rows = [
        [say(f"change_{change.kind}"), change.name, _written(change.before), _written(change.after)] for change in shown
    ]
    yield Table(columns, rows, "llll")
    if len(shown) < len(changes.changes):
        yield Paragraph(say("compare_first_changes", shown=len(shown), count=len(changes.changes)))


def _first_of_each_kind(changes: TensorChanges) -> list[TensorChange]:
    """Up to MOST_CHANGES changes, an equal share for each kind, so that no kind crowds out another."""
    most = MOST_CHANGES // len(KINDS)
    first_changes: list[TensorChange] = []
    for kind in KINDS:
        first_changes += [change for change in changes.changes if change.kind == kind][:most]
    return first_changes


def _written(tensor: Tensor | None) -> str:
    return "–" if tensor is None else f"{tensor.shape} {tensor.dtype}"


# --- files of two hubs


def _file_blocks(comparison: FilesComparison, say: Language) -> list[Block]:
    left, right = (f"{ref.source}:{ref.id}" for ref in (comparison.left, comparison.right))
    columns = [say("column_file"), f"{left} ({say('column_bytes')})", f"{right} ({say('column_bytes')})"]
    columns += [say("column_digest"), say("column_same")]
    return [
        Heading(say("heading_compare", left=left, right=right), 1),
        Table(columns, [_row(pair, left, right, say) for pair in comparison.pairs], "lrrll"),
        Heading(say("heading_verdict")),
        Paragraph(_verdict(comparison, say)),
    ]


def _row(pair: FilePair, left: str, right: str, say: Language) -> list[str]:
    if not pair.on_right:
        same = say("same_left", left=left)
    elif not pair.on_left:
        same = say("same_right", right=right)
    else:
        same = say({True: "same_yes", False: "same_no", None: "same_unknown"}[pair.same])
    digests = dict.fromkeys(digest[:12] for digest in (pair.left_sha256, pair.right_sha256) if digest)
    return [pair.name, count(pair.left_bytes), count(pair.right_bytes), " ≠ ".join(digests) or "–", same]


def _verdict(comparison: FilesComparison, say: Language) -> str:
    weights = comparison.weights
    match comparison.identical:
        case True:
            return say("compare_identical", files=len(weights))
        case False:
            return say("compare_different", files=sum(pair.same is False for pair in weights))
        case None:
            return say("compare_unknown", files=sum(pair.same is None for pair in weights))
