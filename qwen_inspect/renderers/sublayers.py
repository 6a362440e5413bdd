"""The halves of a layer in the architecture figure: each kind of attention and MLP, as its box in the layer and its own panel.

A new kind needs one more arm in `_attention` or `_mlp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..language import Language
from ..spec import (
    Attention,
    DenseMlp,
    FullAttention,
    GatedAttention,
    LinearAttention,
    Mlp,
    ModelSpec,
    Module,
    MoeMlp,
    SlidingAttention,
    SoftmaxAttention,
    heads_kind,
)
from ..units import count, short_count
from ..values import dataclass
from .layout import SMALL, Part, beside, box, label, listed, stack, with_edge
from .svg import rectangle, text, text_width

MOST_HEADS_DRAWN = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Sublayer:
    """One half of a layer (attention or MLP): its name, short facts, and its panel's content."""

    name: str
    facts: tuple[str, ...]
    colour: str
    detail: Part


def sublayer(kind: Attention | Mlp, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
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
        box("x", "block", count=shape(spec.hidden_size)),
        beside(*mixed, steps),
        box(
            say("figure_convolution"),
            "block",
            count=short_count(child_of(module, "conv1d").parameters),
            facts=[say("figure_convolved", channels=count(kind.conv_channels), kernel=count(kind.conv_kernel))],
        ),
        with_edge(box("S ← α·S + β·k·(v − kᵀS),  qᵀS", "attention_fill", facts=[state]), shape(values)),
        box("norm × SiLU(z)", "norm_fill", count=short_count(child_of(module, "norm").parameters)),
        box(
            "out_proj",
            "attention_fill",
            count=short_count(child_of(module, "out_proj").parameters),
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
        return box(name, "attention_fill", count=short_count(child_of(module, name).parameters), facts=facts)

    def rotated(name: str, letter: str, heads: int) -> Part:
        norm = f"{letter}_norm"
        norms = [norm_box(child_of(module, norm), spec)] if qk_norm else []
        return stack(projection(name, heads, gate=gated and letter == "q"), *norms, box(rope, "block"))

    flow = stack(
        box("x", "block", count=shape(spec.hidden_size)),
        beside(rotated("q_proj", "q", query), rotated("k_proj", "k", key_value), projection("v_proj", key_value)),
        with_edge(
            box(f"softmax(QKᵀ / √{count(dim)}) · V", "attention_fill", facts=[say("figure_causal"), *window]),
            shape(query * dim),
        ),
        *([box("× sigmoid(gate)", "block", count=shape(query * dim))] if gated else []),
        box(
            "o_proj",
            "attention_fill",
            count=short_count(child_of(module, "o_proj").parameters),
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
        counted = short_count(child_of(module, name).parameters)
        return box(name, "mlp_fill", count=counted, facts=[f"{count(into)} → {count(out)}"])

    hidden = spec.hidden_size
    return stack(
        box("x", "block", count=shape(hidden)),
        beside(projection("gate_proj", hidden, inner), projection("up_proj", hidden, inner)),
        with_edge(box(f"{spec.activation}(gate) × up", "mlp_fill"), shape(inner)),
        projection("down_proj", inner, hidden),
    )


def _experts(kind: MoeMlp, module: Module, spec: ModelSpec, say: Language) -> Sublayer:
    hidden = count(spec.hidden_size)
    selection = say("figure_experts", experts=count(kind.experts), taken=count(kind.experts_per_token))
    routed = stack(
        box(
            say("figure_router"),
            "experts_fill",
            count=short_count(child_of(module, "gate").parameters),
            facts=[f"{hidden} → {count(kind.experts)}", say("figure_top", taken=count(kind.experts_per_token))],
        ),
        box(
            say("figure_expert_count", experts=count(kind.experts)),
            "experts_fill",
            count=short_count(child_of(module, "experts").parameters),
            facts=[f"{hidden} → {count(kind.intermediate_size)} → {hidden}", f"{spec.activation}(gate) × up"],
            copies=3,
        ),
    )
    shared: list[Part] = []
    if kind.shared_intermediate_size is not None:
        expert = box(
            say("figure_shared_expert"),
            "mlp_fill",
            count=short_count(child_of(module, "shared_expert").parameters),
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
            box("x", "block", count=shape(spec.hidden_size)),
            beside(routed, *shared),
            box(say("figure_sum"), "block", count=shape(spec.hidden_size)),
        ),
    )


def norm_box(module: Module, spec: ModelSpec) -> Part:
    name = module.class_name.removeprefix(spec.class_prefix).removeprefix("Text")
    return box(name, "norm_fill", count=short_count(module.parameters))


def shape(width: int) -> str:
    return f"[B, L, {count(width)}]"


def child_of(module: Module, name: str) -> Module:
    return next(child for child in module.children if child.name == name)
