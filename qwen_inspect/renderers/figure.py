"""The architecture figure, in the style of papers, drawn only from `ModelSpec` and the module tree's counts.

A new kind of attention or MLP needs one more arm in `_attention` or `_mlp`, which return its box in the layer and its detailed
panel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby

from ..language import Language
from ..results.model import Report
from ..spec import (
    Attention,
    DenseMlp,
    FullAttention,
    GatedAttention,
    Layer,
    LinearAttention,
    Mlp,
    ModelSpec,
    Module,
    MoeMlp,
    SlidingAttention,
    SoftmaxAttention,
    Vision,
    heads_kind,
)
from ..typed import Generic, TypeVar
from ..units import count, short_count
from ..values import dataclass, replace
from .layout import SMALL, Part, beside, box, frame, label, listed, panel, residual, stack, with_edge
from .svg import fitted, picture, rectangle, text, text_width, wrapped

WIDTH = 800.0  # a README's column; wider only if the numbers need it
MARGIN = 16.0
NARROW_MARGIN = 8.0
BETWEEN = 20.0
LEFT_SHARE = 0.47
TITLE_SIZE = 18
MOST_FRAMES, MOST_PANELS = 6, 8
MOST_HEADS_DRAWN = 96
LONGEST_PERIOD = 8  # in runs of equal layers; no released pattern has more than two
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sublayer:
    """One half of a layer (attention or MLP): its name, short facts, and its panel's content."""

    name: str
    facts: tuple[str, ...]
    colour: str
    detail: Part


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
    hidden = _shape(spec.hidden_size)
    embedding, norm = _named(tree, "embed_tokens"), _named(tree, "norm")
    assert embedding is not None
    facts = [f"{count(spec.vocab_size)} × {count(spec.hidden_size)}"]
    if spec.vision is not None:
        facts.append(say("figure_visual_tokens"))
    table = box(say("figure_embedding"), "embedding_fill", count=short_count(embedding.parameters), facts=facts)
    parts = [label(f"{say('figure_tokens')} [B, L]"), with_edge(table, hidden), *_frames(report, say, tags)]
    if norm is not None:
        parts.append(with_edge(_norm(norm, spec), hidden))
    head = _named(tree, "lm_head")
    if head is None:
        return stack(*parts, label(say("figure_hidden")))
    facts = [f"{count(spec.hidden_size)} → {count(spec.vocab_size)}"]
    if head.tied_to is not None:
        facts.append(say("figure_tied"))
    top = box(
        say("figure_head"), "head_fill", count=short_count(head.parameters) if head.parameters else "", facts=facts
    )
    return stack(*parts, with_edge(top, _shape(spec.vocab_size)), label(say("figure_logits")))


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
        (layer.mlp, _child(module, "mlp"), norms["post_attention_layernorm"]),
    ):
        shown = _sublayer(kind, child, spec, say)
        tag = next(tag for tagged, tag in tags if tagged == kind)
        inner = box(shown.name, shown.colour, count=short_count(child.parameters), facts=shown.facts, tag=tag)
        halves.append(residual(stack(_norm(norm, spec), inner)))
    return stack(*halves)


def _norm(module: Module, spec: ModelSpec) -> Part:
    name = module.class_name.removeprefix(spec.class_prefix).removeprefix("Text")
    return box(name, "norm_fill", count=short_count(module.parameters))


# --- the halves of a layer


def _panels(report: Report, say: Language) -> tuple[list[Part], list[tuple[object, str]]]:
    """A panel per distinct sublayer, attention first, each in order of first use; and (sublayer, number) pairs."""
    modules = list(_each_layer(report.tree))
    firsts: dict[Attention | Mlp, Module] = {}
    for layer, module in zip(report.spec.layers, modules, strict=True):
        firsts.setdefault(layer.attention, _attention_module(module))
        firsts.setdefault(layer.mlp, _child(module, "mlp"))
    kinds = [
        *(first for first in firsts if not isinstance(first, Mlp)),
        *(first for first in firsts if isinstance(first, Mlp)),
    ]
    numbered = [(kind, str(number)) for number, kind in enumerate(kinds, 1)]
    panels = [
        panel(shown.detail, shown.name, tag=number)
        for kind, number in numbered[:MOST_PANELS]
        for shown in [_sublayer(kind, firsts[kind], report.spec, say)]
    ]
    if len(kinds) > MOST_PANELS:
        panels.append(box(say("figure_more_kinds", kinds=count(len(kinds) - MOST_PANELS)), "panel"))
    return panels, list(numbered)


def _sublayer(kind: Attention | Mlp, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    return _mlp(kind, module, spec, say) if isinstance(kind, Mlp) else _attention(kind, module, spec, say)


def _attention(kind: Attention, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    match kind:
        case FullAttention() | SlidingAttention() | GatedAttention():
            return _softmax_attention(kind, module, spec, say)
        case LinearAttention():
            return _linear_attention(kind, module, spec, say)


def _linear_attention(kind: LinearAttention, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    """Gated DeltaNet: Yang et al. 2024 (arXiv 2412.06464)."""
    values = kind.value_heads * kind.value_head_dim

    def projection(*names: str, shown: str, out: int) -> Part:
        parameters = sum(child.parameters for child in module.children if child.name in names)
        facts = [f"{count(spec.hidden_size)} → {count(out)}"]
        return box(shown, "attention_fill", count=short_count(parameters), facts=facts)

    mixed = (
        [projection("in_proj_qkvz", shown="q, k, v, z", out=kind.conv_channels + values)]
        if kind.fused_projections
        else [
            projection("in_proj_qkv", shown="q, k, v", out=kind.conv_channels),
            projection("in_proj_z", shown="z", out=values),
        ]
    )
    steps = projection("in_proj_ba", "in_proj_b", "in_proj_a", shown="β, α", out=2 * kind.value_heads)
    state = say(
        "figure_state", heads=count(kind.value_heads), key=count(kind.key_head_dim), value=count(kind.value_head_dim)
    )
    flow = stack(
        box("x", "block", count=_shape(spec.hidden_size)),
        beside(*mixed, steps),
        box(
            say("figure_convolution"),
            "block",
            count=short_count(_child(module, "conv1d").parameters),
            facts=[say("figure_convolved", channels=count(kind.conv_channels), kernel=count(kind.conv_kernel))],
        ),
        with_edge(box("S ← α·S + β·k·(v − kᵀS),  qᵀS", "attention_fill", facts=[state]), _shape(values)),
        box("norm × SiLU(z)", "norm_fill", count=short_count(_child(module, "norm").parameters)),
        box(
            "out_proj",
            "attention_fill",
            count=short_count(_child(module, "out_proj").parameters),
            facts=[f"{count(values)} → {count(spec.hidden_size)}"],
        ),
    )
    heads = say("figure_linear_heads", keys=count(kind.key_heads), values=count(kind.value_heads))
    return Sublayer(name=say("figure_linear"), facts=(heads, state), colour="attention_fill", detail=flow)


def _softmax_attention(kind: SoftmaxAttention, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    query, key_value, dim = kind.query_heads, kind.kv_heads, kind.head_dim
    gated = isinstance(kind, GatedAttention)
    qk_norm = isinstance(kind, GatedAttention) or kind.qk_norm
    rope = f"RoPE {kind.rotary_dim} / {dim}" if isinstance(kind, GatedAttention) else "RoPE"  # rotated channels of all
    window = [say("figure_window", tokens=count(kind.window_tokens))] if isinstance(kind, SlidingAttention) else []

    def projection(name: str, heads: int, *, gate: bool = False) -> Part:
        shape = f"{count(spec.hidden_size)} → {count(heads * dim * (2 if gate else 1))}"
        bias = [say("figure_bias")] if kind.qkv_bias else []
        facts = [shape, f"{count(heads)} × {count(dim)}", *([say("figure_and_gate")] if gate else []), *bias]
        return box(name, "attention_fill", count=short_count(_child(module, name).parameters), facts=facts)

    def rotated(name: str, letter: str, heads: int) -> Part:
        norm = f"{letter}_norm"
        norms = [_norm(_child(module, norm), spec)] if qk_norm else []
        return stack(projection(name, heads, gate=gated and letter == "q"), *norms, box(rope, "block"))

    flow = stack(
        box("x", "block", count=_shape(spec.hidden_size)),
        beside(rotated("q_proj", "q", query), rotated("k_proj", "k", key_value), projection("v_proj", key_value)),
        with_edge(
            box(f"softmax(QKᵀ / √{count(dim)}) · V", "attention_fill", facts=[say("figure_causal"), *window]),
            _shape(query * dim),
        ),
        *([box("× sigmoid(gate)", "block", count=_shape(query * dim))] if gated else []),
        box(
            "o_proj",
            "attention_fill",
            count=short_count(_child(module, "o_proj").parameters),
            facts=[
                f"{count(query * dim)} → {count(spec.hidden_size)}",
                *([say("figure_bias")] if kind.output_bias else []),
            ],
        ),
    )
    name = say(f"figure_{heads_kind(query, key_value).lower()}")
    if window:
        name = say("figure_sliding", attention=name)
    heads = say("figure_heads", query=count(query), key_value=count(key_value), head_dim=count(dim))
    norms = [say("figure_qk_norm")] if qk_norm else []
    gates = [say("figure_gate")] if gated else []
    biases = [say("figure_qkv_bias")] if kind.qkv_bias else []
    return Sublayer(
        name=name,
        facts=(heads, *window, say("comma").join(["RoPE", *norms, *gates, *biases])),
        colour="attention_fill",
        detail=listed(flow, _head_map(query, key_value, say)),
    )


def _head_map(query: int, key_value: int, say: Language) -> Part:
    """Every query head above the KV head that it reads; above MOST_HEADS_DRAWN query heads, only a sentence."""
    group = query // key_value
    sentence = label(say("figure_group", key_value=count(key_value), group=count(group)))
    if query > MOST_HEADS_DRAWN:
        return sentence
    names = max(text_width(name, SMALL) for name in ("Q", "KV")) + 8

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        yield from sentence.draw(left, top, width)
        each = (width - names) / query
        for row, (name, heads, wide) in enumerate((("Q", query, each), ("KV", key_value, each * group))):
            y = top + 24 + 18 * row
            yield text(name, left, y + 11, size=SMALL, colour="muted")
            for head in range(heads):
                colour = ("weights", "activations")[(head if row else head // group) % 2]
                yield rectangle(left + names + head * wide, y, max(wide - 1.5, 0.5), 13, colour)

    return Part(width=max(sentence.width, names + 3 * query), height=24 + 18 + 13, draw=draw)


def _mlp(kind: Mlp, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    match kind:
        case DenseMlp(intermediate_size=inner):
            path = f"{count(spec.hidden_size)} → {count(inner)} → {count(spec.hidden_size)}"
            return Sublayer(
                name=say("figure_mlp" if spec.activation in ("silu", "swish") else "figure_mlp_gated"),
                facts=(path,),
                colour="mlp_fill",
                detail=_gated(inner, module, spec),
            )
        case MoeMlp():
            return _experts(kind, module, spec, say)


def _gated(inner: int, module: Module, spec: ModelSpec) -> Part:
    """down(act(gate(x)) * up(x)): Shazeer 2020."""

    def projection(name: str, into: int, out: int) -> Part:
        counted = short_count(_child(module, name).parameters)
        return box(name, "mlp_fill", count=counted, facts=[f"{count(into)} → {count(out)}"])

    hidden = spec.hidden_size
    return stack(
        box("x", "block", count=_shape(hidden)),
        beside(projection("gate_proj", hidden, inner), projection("up_proj", hidden, inner)),
        with_edge(box(f"{spec.activation}(gate) × up", "mlp_fill"), _shape(inner)),
        projection("down_proj", inner, hidden),
    )


def _experts(kind: MoeMlp, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    hidden = count(spec.hidden_size)
    selection = say("figure_experts", experts=count(kind.experts), taken=count(kind.experts_per_token))
    routed = stack(
        box(
            say("figure_router"),
            "experts_fill",
            count=short_count(_child(module, "gate").parameters),
            facts=[f"{hidden} → {count(kind.experts)}", say("figure_top", taken=count(kind.experts_per_token))],
        ),
        box(
            say("figure_expert_count", experts=count(kind.experts)),
            "experts_fill",
            count=short_count(_child(module, "experts").parameters),
            facts=[f"{hidden} → {count(kind.intermediate_size)} → {hidden}", f"{spec.activation}(gate) × up"],
            copies=3,
        ),
    )
    shared: list[Part] = []
    if kind.shared_intermediate_size is not None:
        expert = box(
            say("figure_shared_expert"),
            "mlp_fill",
            count=short_count(_child(module, "shared_expert").parameters),
            facts=[f"{hidden} → {count(kind.shared_intermediate_size)} → {hidden}", say("figure_shared_gate")],
        )
        shared.append(expert)
    return Sublayer(
        name=say("figure_moe"),
        facts=(
            selection,
            *([say("figure_and_shared")] if shared else []),
            say("figure_active", parameters=short_count(module.active_parameters)),
        ),
        colour="experts_fill",
        detail=stack(
            box("x", "block", count=_shape(spec.hidden_size)),
            beside(routed, *shared),
            box(say("figure_sum"), "block", count=_shape(spec.hidden_size)),
        ),
    )


# --- the module tree


def _shape(width: int) -> str:
    return f"[B, L, {count(width)}]"


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


def _child(module: Module, name: str) -> Module:
    return next(child for child in module.children if child.name == name)


def _attention_module(layer: Module) -> Module:
    return next(child for child in layer.children if child.name.endswith("attn"))
