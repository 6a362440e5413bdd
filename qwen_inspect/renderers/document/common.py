"""Blocks that several commands share: the model's identity, notices, checks, components and ranges of equal layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from ...language import Language, Message
from ...results.counts import Check, ParameterCounts
from ...results.model import Report
from ...spec import Module
from ...standard import re
from ...typed import TYPE_CHECKING, Literal, TypeVar
from ...units import count, mib, percent, short_count, signed, size
from ...values import dataclass, replace
from ..blocks import Block, Fields, Heading, Items, Paragraph, Shortened, Table

if TYPE_CHECKING:
    from ...results.fit import Largest
    from ...results.memory import Run
    from . import View

MOST_UNEXPLAINED, MOST_KEPT, MOST_SPANS = 20, 8, 8
Item = TypeVar("Item")


def identity(report: Report, say: Language, *, device: str | None = None) -> Fields:
    rows = [(say("field_model"), report.ref.id)]
    if report.design is not None:
        rows.append((say("field_class"), report.spec.class_name))
    rows.append((say("field_source"), say(f"source_{report.ref.source}")))
    if report.design is not None:
        rows.append((say("field_dtype"), str(report.spec.dtype)))
    ran_on = report.generation.device if report.generation else device
    rows.append((say("field_device"), ran_on or say("device_none")))
    return Fields(rows)


def notices(report: Report, say: Language) -> list[Block]:
    """Notices of the loaders, and contradictions between shapes and configuration; empty if there are none."""
    messages = list(report.notices)
    if report.design is not None and report.design.attention is not None:
        messages += report.design.attention.findings
    if not messages:
        return []
    return [Heading(say("heading_notices")), Items([say(message) for message in messages])]


def component_table(report: Report, say: Language) -> Table:
    rows = [
        [
            say(f"component_{part.name}"),
            say("tied_to", owner=part.tied_to)
            if part.tied_to
            else f"{count(part.parameters)} ({mib(part.size_bytes)} MiB)",
            percent(part.share_basis_points),
        ]
        for part in report.components
    ]
    whole_bytes = report.tree.size_bytes if report.known.unread is None else None
    total = [say("total"), f"{count(report.tree.parameters)} ({mib(whole_bytes)} MiB)", percent(10_000)]
    return Table(
        [say("column_component"), say("column_parameters"), say("column_share")], [*rows, total], "lrr", totals=1
    )


PartName = Literal["vision", "audio", "embedding", "layers", "rest", "lm_head", "speech"]
BEHIND: tuple[PartName, ...] = ("lm_head", "speech")  # the layers
OUTSIDE: tuple[PartName, ...] = ("vision", "audio", "embedding", *BEHIND)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model by its place: "layers", "rest", or a component outside of the layers. layers: of "layers", else 0.

    share_basis_points: as in `Component`, and the component's own if the part is one.
    """

    name: PartName
    parameters: int
    share_basis_points: int
    layers: int = 0
    tied_to: str | None = None


def parts(report: Report) -> list[Part]:
    """The model's parts in order: towers, embedding, decoder layers, the rest, output layer, what speaks. Empty without layers.

    The layers' share is what the other shares leave of 10,000.
    """
    tree, runs = report.tree, layer_runs(report.tree)
    if not layers_path(tree):
        return []
    components = {part.name: part for part in report.components}
    outside = {
        name: Part(name, part.parameters, part.share_basis_points, tied_to=part.tied_to)
        for name in OUTSIDE
        if (part := components.get(name)) is not None
    }
    in_layers = sum(run.parameters for run in runs)
    rest = tree.parameters - in_layers - sum(part.parameters for part in outside.values())
    rest_share = rest * 10_000 // tree.parameters
    layers = Part(
        "layers",
        in_layers,
        10_000 - rest_share - sum(part.share_basis_points for part in outside.values()),
        layers=sum(run.repeats for run in runs),
    )
    last = [outside.pop(name) for name in BEHIND if name in outside]
    return [*outside.values(), layers, *([Part("rest", rest, rest_share)] if rest else []), *last]


def part_table(report: Report, say: Language) -> list[Block]:
    """The model's parts by their place, with the decoder layers as one; empty without layers."""
    rows = [
        [
            say("part_layers", layers=part.layers)
            if part.name == "layers"
            else say("part_rest" if part.name == "rest" else f"component_{part.name}"),
            say("tied_to", owner=part.tied_to) if part.tied_to else count(part.parameters),
            percent(part.share_basis_points),
        ]
        for part in parts(report)
    ]
    total = [say("total"), count(report.tree.parameters), percent(10_000)]
    columns = [say("column_place"), say("column_parameters"), say("column_share")]
    return [Table(columns, [*rows, total], "lrr", totals=1)] if rows else []


def unique_parameters(report: Report, say: Language) -> str:
    """The count from the files; if they cannot be read as this model, the theoretical count, labelled as such."""
    counts = report.parameters
    if counts.unique is None:
        return say("unique_by_theory", parameters=counts.theory, short=short_count(counts.theory))
    return f"{count(counts.unique)} ({short_count(counts.unique)})"


def active_rows(counts: ParameterCounts, say: Language) -> list[tuple[str, str]]:
    """Parameters active for one token, by both published conventions; empty if all are active."""
    if counts.active == counts.theory:
        return []
    if counts.active is None or counts.active_non_embedding is None:
        return [(say("field_active"), say("active_unknown"))]
    both = (("field_active", counts.active), ("field_active_non_embedding", counts.active_non_embedding))
    return [(say(name), f"{count(active)} ({short_count(active)})") for name, active in both]


def active_values(report: Report) -> dict[str, str]:
    """Short counts for a sentence on a mixture of experts: active, total, and active without embedding and head."""
    active, counts = report.tree.active_parameters, report.parameters
    bare = active - counts.embedding - counts.head
    return {"active": short_count(active), "total": short_count(counts.theory), "non_embedding": short_count(bare)}


def parameter_fields(report: Report, say: Language) -> Fields:
    counts = report.parameters
    rows = [(say("field_unique"), unique_parameters(report, say))]
    if counts.stored is not None:
        rows.append((say("field_stored"), say("stored_elements", elements=counts.stored)))
    elif counts.hub is not None:
        rows.append((say("field_stored"), say("stored_elements_hub", elements=counts.hub)))
    elif counts.stored_predicted is not None:
        rows.append((say("field_stored"), say("stored_elements_predicted", elements=counts.stored_predicted)))
    else:
        rows.append((say("field_stored"), say("stored_elements_unknown")))
    rows += active_rows(counts, say)
    rows.append((say("field_non_embedding"), f"{count(counts.non_embedding)} ({short_count(counts.non_embedding)})"))
    rows.append(
        (
            say("field_buffers"),
            say("buffer_elements_generic" if report.spec.built else "buffer_elements", elements=counts.buffers),
        )
    )
    return Fields([*rows, *quantisation_fields(report, say)])


def adapter_blocks(report: Report, say: Language) -> list[Block]:
    """An adapter's trained modules, and the memory of base and adapter; empty without an adapter."""
    adapter = report.known.adapter
    if adapter is None:
        return []
    ranks, scales = ", ".join(map(str, adapter.ranks)), ", ".join(f"{scale:g}" for scale in adapter.scales)
    rows = [[module.name, count(module.modules), count(module.parameters)] for module in adapter.modules]
    share = f"{adapter.share * 100:.4f}%"
    return [
        Heading(say("heading_adapter")),
        Fields(
            [
                (say("field_adapter"), f"{adapter.kind}, {adapter.base or '–'}"),
                (say("field_ranks"), ranks),
                (say("field_scales"), scales),
                (say("field_trainable"), say("trainable_of", parameters=adapter.trainable, share=share)),
                (say("field_adapter_stored"), f"{count(adapter.stored_bytes)} B"),
                (say("field_unmerged"), f"{count(adapter.unmerged_bytes)} B ({size(adapter.unmerged_bytes)})"),
                (say("field_merged"), f"{count(adapter.merged_bytes)} B ({size(adapter.merged_bytes)})"),
            ]
        ),
        Table(
            [say("column_trained_module"), say("column_modules"), say("column_parameters")],
            [*rows, [say("total"), "", count(adapter.trainable)]],
            "lrr",
            totals=1,
        ),
    ]


def quantisation_fields(report: Report, say: Language) -> list[tuple[str, str]]:
    """The quantisation's schemes and sizes; empty if the weights are not quantised."""
    quantised = report.known.quantised
    if quantised is None:
        return []
    schemes = "; ".join(say(scheme) for scheme in quantised.schemes)
    unquantised = [
        say("kept_modules", name=group.name, modules=group.modules, parameters=group.parameters)
        for group in quantised.kept[:MOST_KEPT]
    ]
    if len(quantised.kept) > MOST_KEPT:
        unquantised.append("…")
    return [
        (say("field_quantisation"), f"{quantised.method}: {schemes}"),
        (
            say("field_quantised"),
            say(
                "quantised_weights",
                parameters=quantised.parameters,
                matrices=quantised.matrices,
                bytes=quantised.size_bytes,
                bits=f"{quantised.bits_per_weight:.3f}",
            ),
        ),
        (
            say("field_not_quantised"),
            say("other_weights", parameters=quantised.other_parameters, bytes=quantised.other_bytes),
        ),
        (say("field_kept"), "; ".join(unquantised) or say("none")),
        (
            say("field_weights_total"),
            say("weights_total", bytes=quantised.total_bytes, bits=f"{quantised.bits_per_parameter:.3f}"),
        ),
    ]


def prompt_label(run: Run) -> str:
    """Key of the label for `run.prompt_tokens`: in training they are whole sequences, not prompts."""
    return "field_sequence" if run.mode == "train" else "field_prompt"


def about_both(say: Language, key: str, check: Check, **values: object) -> str:
    """A sentence about both witnesses of a check, with a space between Chinese and Latin words."""
    text = say(key, left=say(f"witness_{check.left}"), right=say(f"witness_{check.right}"), **values)
    return text if text.isascii() else re.sub("(?<=[\u4e00-\u9fff])(?=[A-Za-z])", " ", text)


def check_blocks(checks: Sequence[Check], say: Language) -> list[Block]:
    """For each pair of witnesses: both counts, each cause of their difference, and the unexplained residual."""
    return [block for check in checks for block in _check(check, say)]


def _check(check: Check, say: Language) -> list[Block]:
    left, right = say(f"witness_{check.left}"), say(f"witness_{check.right}")
    rows = [
        [left, count(check.left_parameters), ""],
        [right, count(check.right_parameters), ""],
        [say("difference"), signed(check.difference), ""],
        *([say(f"cause_name_{cause.name}"), signed(cause.parameters), say(cause.message)] for cause in check.causes),
        [say("residual"), signed(check.residual), say("agrees" if check.agrees else "disagrees")],
    ]
    columns = [say("column_witness"), say("column_parameters"), say("column_reason")]
    blocks: list[Block] = [
        Heading(about_both(say, "heading_check", check), 3),
        Table(columns, rows, "lrl", totals=1),
    ]
    if check.unexplained:
        shown = check.unexplained[:MOST_UNEXPLAINED]
        blocks.append(Paragraph(say("unexplained_tensors", count=len(check.unexplained), shown=len(shown))))
        blocks.append(
            Table(
                [
                    say("column_finding"),
                    say("column_tensor"),
                    say("column_expected"),
                    say("column_found"),
                    say("column_parameters"),
                ],
                [
                    [
                        say(f"finding_{item.kind}"),
                        item.name,
                        item.expected or "–",
                        item.found or "–",
                        signed(item.parameters),
                    ]
                    for item in shown
                ],
                "llllr",
            )
        )
    return blocks


def layer_runs(tree: Module) -> tuple[Module, ...]:
    """The decoder's layers, equal neighbours folded."""
    return _decoder_layers(tree)[1].children


def layers_path(tree: Module) -> str:
    """The full name of the decoder's list of layers."""
    return _decoder_layers(tree)[0]


def _decoder_layers(tree: Module) -> tuple[str, Module]:
    """(path, module) of the ModuleList with the most parameters; the whole tree if there is no ModuleList."""
    lists = [
        (path, module) for path, module in _each_distinct(tree) if module.class_name == "ModuleList" and module.children
    ]
    return max(lists, key=lambda entry: entry[1].parameters, default=("", tree))


def _each_distinct(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of every module, repeats folded; skips towers and what speaks."""
    yield path, module
    for child in module.children:
        if child.component not in ("vision", "audio", "speech"):
            yield from _each_distinct(child, f"{path}.{child.name}" if path else child.name)


def distinct_layers(tree: Module) -> list[tuple[str, Module]]:
    """(layer numbers, layer) for each distinct kind of decoder layer; its `repeats` counts all layers of that kind."""
    return distinct(layer_runs(tree))


def distinct(layers: Sequence[Module]) -> list[tuple[str, Module]]:
    """(labels, module) for each distinct set of children; `repeats` is summed over equal modules."""
    runs_of: dict[tuple[Module, ...], list[Module]] = {}
    for run in layers:
        runs_of.setdefault(run.children, []).append(run)
    return [
        (spans([run.label for run in equal]), replace(equal[0], repeats=sum(run.repeats for run in equal)))
        for equal in runs_of.values()
    ]


def spans(labels: Sequence[str]) -> str:
    """Ranges of layers, comma-separated; at most MOST_SPANS of them."""
    return ", ".join(labels[:MOST_SPANS]) + (", …" if len(labels) > MOST_SPANS else "")


def grouped(items: Sequence[Item], key: Callable[[Item], object]) -> list[tuple[str, list[int], Item]]:
    """(ranges, indices, first item) of each run of items with equal keys.

    With more than MOST_SPANS runs: of each distinct key.
    """
    indices_of: dict[object, list[int]] = {}
    runs_of_all = list(runs(items, key))
    for number, (first, last, item) in enumerate(runs_of_all):
        mark = (number if len(runs_of_all) <= MOST_SPANS else None, key(item))
        indices_of.setdefault(mark, []).extend(range(first, last + 1))
    rows = []
    for indices in indices_of.values():
        labels = [
            span(indices[a], indices[b]) for a, b, _ in runs(list(enumerate(indices)), lambda pair: pair[1] - pair[0])
        ]
        rows.append((spans(labels), indices, items[indices[0]]))
    return rows


def runs(items: Sequence[Item], key: Callable[[Item], object]) -> Iterator[tuple[int, int, Item]]:
    """(first index, last index, first item) of each run of items with equal keys."""
    index = 0
    for _, group in groupby(items, key=key):
        members = list(group)
        yield index, index + len(members) - 1, members[0]
        index += len(members)


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def reach(largest: Largest, say: Language) -> str:
    """A largest batch or context, with its limit if that is not memory."""
    if largest.value is None:
        return count(None) if largest.at_most is None else say("reach_at_most", value=largest.at_most)
    text = count(largest.value)
    return text if largest.bound == "memory" else say(f"reach_{largest.bound}", value=text)


def size_range(low_bytes: int, high_bytes: int | None, say: Language) -> str:
    """A range of sizes; a single size if both ends are equal; "at least" if there is no upper end."""
    return shown_range(low_bytes, high_bytes, size, say)


def shown_range(low: int, high: int | None, shown: Callable[[int | None], str], say: Language) -> str:
    """As `size_range`, with `shown` to format each end."""
    if high is None:
        return say("at_least", value=shown(low))
    return shown(low) if low == high else say("size_range", low=shown(low), high=shown(high))


def _first_sentence(text: str) -> str:
    """Without its stop; a text in several lines as a whole."""
    ends = [end for end in (text.find("。", 1), text.find(". ", 1)) if end > 0]
    first = text[: min(ends)] if ends else text
    return text if "\n" in first else first


def notes(messages: Sequence[Message], say: Language, view: View) -> list[Block]:
    """A list of sentences; where the view is brief the first of each, and that there is more."""
    sentences = [say(message) for message in messages]
    first = list(map(_first_sentence, sentences))
    if not view.brief or first == sentences:
        return [Items(sentences)]
    return [Items(first), Paragraph(say("notes_in_short"))]


def bytes_cell(size_bytes: int | None) -> str:
    """Exact bytes; on a narrow screen their size."""
    return Shortened(count(size_bytes), size(size_bytes))


def count_cell(number: int | None) -> str:
    """An exact count; on a narrow screen rounded."""
    return Shortened(count(number), short_count(number))
