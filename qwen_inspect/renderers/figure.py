"""The architecture figure, in the style of papers, drawn only from `ModelSpec` and the module tree's counts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby

from ..language import Language
from ..results.model import Report
from ..spec import (
    Attention,
    Layer,
    Mlp,
    ModelSpec,
    Module,
    Vision,
)
from ..typed import Generic, TypeVar
from ..units import count, short_count
from ..values import dataclass, replace
from .layout import SMALL, Part, box, frame, label, listed, panel, residual, stack, with_edge
from .sublayers import child_of, norm_box, shape, sublayer
from .svg import fitted, picture, text, wrapped

WIDTH = 800.0  # a README's column; wider only if the numbers need it
MARGIN = 16.0
NARROW_MARGIN = 8.0
BETWEEN = 20.0
LEFT_SHARE = 0.47
TITLE_SIZE = 18
MOST_FRAMES, MOST_PANELS = 6, 8
LONGEST_PERIOD = 8  # in runs of equal layers; no released pattern has more than two
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Repeated(Generic[Item]):
    """`runs` repeated `times` times in a row. Each run of equal items: (item, first index, length)."""

    times: int
    runs: tuple[tuple[Item, int, int], ...]


def architecture_figure(report: Report, say: Language, *, in_a_column: bool = False) -> str:
    """SVG of the model, from token ids at the bottom to logits at the top, with a panel for each kind of sublayer beside it.

    in_a_column: as narrow as it can be drawn, with the panels below the model.
    """
    spec = report.spec
    if spec.built:
        return _of_modules(report, say, in_a_column=in_a_column)
    panels, tags = _panels(report, say)
    left = _model(report, say, tags)
    if spec.vision is not None:
        tower = _named(report.tree, "visual")
        assert tower is not None
        panels.append(panel(_tower(spec.vision, tower, say), say("figure_vision"), tag="V"))
    if in_a_column:
        return _drawn(report, say, 0, listed(left, *panels), say("figure_note"), margin=NARROW_MARGIN)
    right = listed(*panels)
    room = WIDTH - 2 * MARGIN - BETWEEN
    left_width = max(left.width, min(room * LEFT_SHARE, room - right.width))
    right_width = max(right.width, room - left_width)
    height = max(left.height, right.height)

    def draw(x: float, y: float, _width: float) -> Iterator[str]:
        yield from left.draw(x, y + (height - left.height) / 2, left_width)
        yield from right.draw(x + left_width + BETWEEN, y + (height - right.height) / 2, right_width)

    whole = Part(width=left_width + BETWEEN + right_width, height=height, draw=draw)
    return _drawn(report, say, 0, whole, say("figure_note"))


def _of_modules(report: Report, say: Language, *, in_a_column: bool) -> str:
    """SVG of a class without a ModelSpec family: its modules in registration order, equal layers folded."""
    parts = [label(f"{say('figure_tokens')} [B, L]"), *_modules(report.tree, say), label(say("figure_logits"))]
    drawn = stack(*parts)
    if in_a_column:
        return _drawn(report, say, 0, drawn, say("generic_no_figure"), margin=NARROW_MARGIN)
    width = max(WIDTH, drawn.width + 2 * MARGIN)
    whole = replace(drawn, width=max(drawn.width, width / 2))
    return _drawn(report, say, width, whole, say("generic_no_figure"))


def _drawn(report: Report, say: Language, width: float, whole: Part, note: str, *, margin: float = MARGIN) -> str:
    """The picture, at least `width` wide: the model's name, what it is, `note`, and `whole` below them in the middle."""
    width = max(width, whole.width + 2 * margin)
    room = width - 2 * margin
    captions = [line for caption in (_caption(report, say), note) for line in wrapped(caption, room, SMALL)]
    top = margin + TITLE_SIZE + 10 + 17 * len(captions) + 8
    return picture(
        width,
        top + whole.height + margin,
        text(
            fitted(report.ref.id, room, TITLE_SIZE, bold=True),
            margin,
            margin + TITLE_SIZE - 3,
            size=TITLE_SIZE,
            bold=True,
        ),
        *(
            text(line, margin, margin + TITLE_SIZE + 17 * index, size=SMALL, colour="muted")
            for index, line in enumerate(captions, 1)
        ),
        *whole.draw((width - whole.width) / 2, top, whole.width),
        title=f"{report.ref.id}. {report.spec.class_name}",
    )


def _modules(module: Module, say: Language) -> Iterator[Part]:
    """A box per module that has parameters or is tied, a frame per run of layers in a ModuleList; containers are expanded."""
    for child in module.children:
        if not child.parameters and child.tied_to is None:
            continue
        if child.class_name == "ModuleList":
            runs = [run for run in child.children if run.parameters]
            for run in runs[:MOST_FRAMES]:
                inner = [_module_box(part, say) for part in run.children if part.parameters] or [_module_box(run, say)]
                each = say("figure_block_parameters", parameters=short_count(_each(run)))
                where = _span(int(run.name), run.repeats, say) if run.name.isdecimal() else run.name
                note = say("comma").join([where, each])
                yield frame(stack(*inner), say("figure_block", times=run.repeats), note=note)
            if len(runs) > MOST_FRAMES:
                left = sum(run.repeats for run in runs[MOST_FRAMES:])
                yield box(say("figure_more_layers", layers=count(left)), "panel")
        elif child.component == "other" and child.children:
            yield from _modules(child, say)
        else:
            yield _module_box(child, say)


COLOURS = {"embedding": "embedding_fill", "norm": "norm_fill", "lm_head": "head_fill", "vision": "head_fill"}


def _module_box(module: Module, say: Language) -> Part:
    facts = [say("figure_tied")] if module.tied_to else [fitted(module.class_name, WIDTH / 2, SMALL)]
    colour = COLOURS.get(module.component or "", "block")
    shown = short_count(module.parameters) if module.parameters else ""
    return box(fitted(module.name, WIDTH / 3, SMALL), colour, count=shown, facts=facts)


def _caption(report: Report, say: Language) -> str:
    spec, counts = report.spec, report.parameters
    facts = [
        fitted(spec.class_name, WIDTH / 3, SMALL),
        say("figure_parameters", parameters=short_count(counts.theory)),
        *(
            [say("figure_active_both", parameters=short_count(active), non_embedding=short_count(bare))]
            if (active := counts.active) not in (None, counts.theory) and (bare := counts.active_non_embedding)
            else []
        ),
        *([say("figure_layer_count", layers=count(len(spec.layers)))] if spec.layers else []),
        *([say("figure_context", tokens=count(spec.context_tokens))] if spec.context_tokens else []),
        str(spec.dtype),
        *([fitted(quantised.method, WIDTH / 8, SMALL)] if (quantised := report.known.quantised) else []),
    ]
    return say("comma").join(facts)


# --- the model from end to end


def _model(report: Report, say: Language, tags: Sequence[tuple[object, str]]) -> Part:
    spec, tree = report.spec, report.tree
    hidden = shape(spec.hidden_size)
    embedding, norm = _named(tree, "embed_tokens"), _named(tree, "norm")
    assert embedding is not None
    facts = [f"{count(spec.vocab_size)} × {count(spec.hidden_size)}"]
    if spec.vision is not None:
        facts.append(say("figure_visual_tokens"))
    table = box(say("figure_embedding"), "embedding_fill", count=short_count(embedding.parameters), facts=facts)
    parts = [label(f"{say('figure_tokens')} [B, L]"), with_edge(table, hidden), *_frames(report, say, tags)]
    if norm is not None:
        parts.append(with_edge(norm_box(norm, spec), hidden))
    head = _named(tree, "lm_head")
    if head is None:
        return stack(*parts, label(say("figure_hidden")))
    facts = [f"{count(spec.hidden_size)} → {count(spec.vocab_size)}"]
    if head.tied_to is not None:
        facts.append(say("figure_tied"))
    top = box(
        say("figure_head"), "head_fill", count=short_count(head.parameters) if head.parameters else "", facts=facts
    )
    return stack(*parts, with_edge(top, shape(spec.vocab_size)), label(say("figure_logits")))


def _tower(vision: Vision, module: Module, say: Language) -> Part:
    """The vision tower, from pixels to the visual tokens inserted among text tokens."""
    side, merged = count(vision.patch_size), vision.merge_size**2
    facts = [
        say("figure_tower", layers=count(vision.layers), width=count(vision.hidden_size)),
        say("figure_patches", side=side, merged=count(merged)),
        *([say("figure_deepstack", mergers=count(vision.deepstack))] if vision.deepstack else []),
    ]
    tower = box(say("figure_vision"), "head_fill", count=short_count(module.parameters), facts=facts)
    return stack(label(say("figure_pixels")), tower, label(say("figure_visual_tokens")))


def _frames(report: Report, say: Language, tags: Sequence[tuple[object, str]]) -> Iterator[Part]:
    """A frame per run of equal layers, and an outer frame around a repeating pattern of runs."""
    modules = list(_each_layer(report.tree))
    groups = folded(report.spec.layers)

    def one_run(layer: Layer, first: int, times: int, *, of_many: bool) -> Part:
        each = say("figure_block_parameters", parameters=short_count(_each(modules[first])))
        where = [_span(first, times, say)] if len(groups) > 1 and not of_many else []
        return frame(
            _layer(layer, modules[first], report.spec, say, tags),
            say("figure_block", times=times),
            note=say("comma").join([*where, each]),
            colour="block" if of_many else "panel",
        )

    for group in groups[:MOST_FRAMES]:
        frames = [one_run(*run, of_many=group.times > 1) for run in group.runs]
        if group.times == 1:
            yield from frames
        else:
            layers = group.times * sum(times for _, _, times in group.runs)
            yield frame(stack(*frames), f"{group.times} ×", note=_span(group.runs[0][1], layers, say))
    if len(groups) > MOST_FRAMES:
        left = sum(group.times * sum(run[2] for run in group.runs) for group in groups[MOST_FRAMES:])
        yield box(say("figure_more_layers", layers=count(left)), "panel")


def _span(first: int, layers: int, say: Language) -> str:
    return say("figure_span", span=str(first) if layers == 1 else f"{first}-{first + layers - 1}")


def folded(items: Sequence[Item]) -> list[Repeated[Item]]:
    """Runs of equal items, with repeating patterns of runs folded: a a b a a b c -> 2 times (2 a, 1 b), 1 c."""
    runs, index = [], 0
    for item, group in groupby(items):
        times = len(list(group))
        runs.append((item, index, times))
        index += times
    kinds = [(item, times) for item, _, times in runs]
    groups, at = [], 0
    while at < len(runs):
        period, times = max(_periods(kinds, at), key=lambda pattern: (pattern[1] > 1) * pattern[0] * pattern[1])
        groups.append(Repeated(times, tuple(runs[at : at + period])))
        at += period * times
    return groups


def _periods(kinds: Sequence[object], at: int) -> Iterator[tuple[int, int]]:
    """(length, repetitions) of each pattern that begins at `at`."""
    yield 1, 1
    for period in range(2, min(LONGEST_PERIOD, (len(kinds) - at) // 2) + 1):
        times = 1
        while kinds[at + times * period : at + (times + 1) * period] == kinds[at : at + period]:
            times += 1
        yield period, times


def _layer(layer: Layer, module: Module, spec: ModelSpec, say: Language, tags: Sequence[tuple[object, str]]) -> Part:
    """Norm, sublayer and residual sum, for attention and MLP. Pre-norm: Xiong et al. 2020."""
    halves = []
    norms = {child.name: child for child in module.children}
    for kind, child, norm in (
        (layer.attention, _attention_module(module), norms["input_layernorm"]),
        (layer.mlp, child_of(module, "mlp"), norms["post_attention_layernorm"]),
    ):
        shown = sublayer(kind, child, spec, say)
        tag = next(tag for tagged, tag in tags if tagged == kind)
        inner = box(shown.name, shown.colour, count=short_count(child.parameters), facts=shown.facts, tag=tag)
        halves.append(residual(stack(norm_box(norm, spec), inner)))
    return stack(*halves)


# --- the halves of a layer


def _panels(report: Report, say: Language) -> tuple[list[Part], list[tuple[object, str]]]:
    """A panel per distinct sublayer, attention first, each in order of first use; and (sublayer, number) pairs."""
    modules = list(_each_layer(report.tree))
    firsts: dict[Attention | Mlp, Module] = {}
    for layer, module in zip(report.spec.layers, modules, strict=True):
        firsts.setdefault(layer.attention, _attention_module(module))
        firsts.setdefault(layer.mlp, child_of(module, "mlp"))
    kinds = [
        *(first for first in firsts if not isinstance(first, Mlp)),
        *(first for first in firsts if isinstance(first, Mlp)),
    ]
    numbered = [(kind, str(number)) for number, kind in enumerate(kinds, 1)]
    panels = [
        panel(shown.detail, shown.name, tag=number)
        for kind, number in numbered[:MOST_PANELS]
        for shown in [sublayer(kind, firsts[kind], report.spec, say)]
    ]
    if len(kinds) > MOST_PANELS:
        panels.append(box(say("figure_more_kinds", kinds=count(len(kinds) - MOST_PANELS)), "panel"))
    return panels, list(numbered)


# --- the module tree


def _named(module: Module, name: str) -> Module | None:
    """The child `name` of the model, else of its decoder; None if neither has it."""
    inside = next((child for child in module.children if child.name in ("model", "language_model")), None)
    return next((child for child in module.children if child.name == name), None) or (inside and _named(inside, name))


def _each_layer(tree: Module) -> Iterator[Module]:
    layers = _named(tree, "layers")
    assert layers is not None
    for run in layers.children:
        yield from [run] * run.repeats


def _each(module: Module) -> int:
    return module.parameters // module.repeats  # exact: repeats are equal


def _attention_module(layer: Module) -> Module:
    return next(child for child in layer.children if child.name.endswith("attn"))
