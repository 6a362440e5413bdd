"""`structure --first-layer`: the first block as torch prints it, with comments that explain the sizes."""

from __future__ import annotations

from ...errors import UnsupportedError
from ...language import Language
from ...results.model import Report
from ...spec import FullAttention, GatedAttention, LinearAttention, ModelSpec, Module, SlidingAttention
from ..blocks import Code
from .common import layer_runs


def printed(module: Module, *, comments: dict[str, str] | None = None, path: str = "", indent: int = 0) -> list[str]:
    """The lines of `print(module)`. comments: module path -> comment to print before that module's line.

    Source: torch 2.13, nn.Module.__repr__ and nn.ModuleList.__repr__ (equal siblings folded).
    """
    space = "  " * indent
    name = f"({module.label}): " if module.name and (indent or path) else ""
    repeats = f"{module.repeats} x " if module.repeats > 1 else ""
    before = [f"{space}# {comments[path]}"] if comments and path in comments else []
    if not module.children:
        return [*before, f"{space}{name}{repeats}{module.class_name}({module.arguments})"]
    inner = [
        line
        for child in module.children
        for line in printed(child, comments=comments, path=f"{path}.{child.name}".lstrip("."), indent=indent + 1)
    ]
    return [*before, f"{space}{name}{repeats}{module.class_name}(", *inner, f"{space})"]


def first_layer(report: Report, say: Language) -> Code:
    if report.spec.built:
        raise UnsupportedError("generic_first_layer", class_name=report.spec.class_name)
    first = layer_runs(report.tree)[0]
    lines = printed(
        Module(name="", class_name=first.class_name, children=first.children), comments=_comments(report, say)
    )
    return Code("\n".join(lines), "python")


def _comments(report: Report, say: Language) -> dict[str, str]:
    """Module path -> comment for this model. Paths that the block lacks are ignored."""
    spec = report.spec
    return {
        **_attention_comments(spec, report.attention.by_config[0].kind, say),
        "mlp": say("first_mlp") if spec.activation in ("silu", "swish") else say("first_mlp_gated"),
        "mlp.gate": say("first_router"),
        "mlp.experts": say("first_experts"),
        "mlp.shared_expert": say("first_shared_expert"),
        "mlp.shared_expert_gate": say("first_shared_gate"),
        "input_layernorm": say("first_input_norm"),
        "post_attention_layernorm": say("first_post_norm"),
    }


def _attention_comments(spec: ModelSpec, kind: str, say: Language) -> dict[str, str]:
    match spec.layers[0].attention:
        case FullAttention() | SlidingAttention() | GatedAttention() as attention:
            values = {
                "query_heads": attention.query_heads,
                "kv_heads": attention.kv_heads,
                "head_dim": attention.head_dim,
                "query": attention.query_heads * attention.head_dim,
                "key_value": attention.kv_heads * attention.head_dim,
                "hidden": spec.hidden_size,
            }
            gated = isinstance(attention, GatedAttention)
            return {
                "self_attn": say("first_attention", kind=kind),
                "self_attn.q_proj": say("first_q_gated" if gated else "first_q", **values),
                "self_attn.k_proj": say("first_k", **values),
                "self_attn.v_proj": say("first_v", **values),
                "self_attn.o_proj": say("first_o", **values),
                "self_attn.q_norm": say("first_q_norm", **values),
                "self_attn.k_norm": say("first_k_norm", **values),
            }
        case LinearAttention() as state:
            values = {
                "key_heads": state.key_heads,
                "value_heads": state.value_heads,
                "key_dim": state.key_head_dim,
                "value_dim": state.value_head_dim,
                "channels": state.conv_channels,
                "kernel": state.conv_kernel,
                "values": state.value_heads * state.value_head_dim,
                "hidden": spec.hidden_size,
            }
            names = {
                "": "attention",
                ".conv1d": "conv",
                ".in_proj_qkvz": "qkvz",
                ".in_proj_ba": "ba",
                ".in_proj_qkv": "qkv",
                ".in_proj_z": "z",
                ".in_proj_b": "b",
                ".in_proj_a": "a",
                ".norm": "norm",
                ".out_proj": "output",
            }
            return {f"linear_attn{path}": say(f"first_linear_{name}", **values) for path, name in names.items()}
