"""transformers' parallel plans of each family's class, as data, so that torch is not needed.

Source: transformers 5.23, `base_model_tp_plan`, `base_model_ep_plan` of models/*/configuration_*.py, `_tp_plan` and `_fsdp_plan`
of models/*/modeling_*.py, merged as distributed/mixin.py (init_parallel_plans) does.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..results.ranks import Plans
from ..spec import ModelSpec, Module, each_module
from ..typed import Any

# Rules of a decoder's layer.
HEADS = {f"self_attn.{name}_proj": "colwise" for name in "qkv"} | {"self_attn.o_proj": "rowwise"}
NORMS = {f"self_attn.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
MLP = {"mlp.gate_proj": "colwise", "mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
EXPERTS = {
    "mlp.experts.gate_up_proj": "packed_colwise",
    "mlp.experts.down_proj": "rowwise",
    "mlp.experts": "moe_tp_experts",
}
SHARED_EXPERT = {
    "mlp.shared_expert.gate_proj": "colwise",
    "mlp.shared_expert.up_proj": "colwise",
    "mlp.shared_expert.down_proj": "rowwise",
}
FUSED_LINEAR = {f"linear_attn.{name}": "colwise_gather_output" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj")}
LINEAR = {
    f"linear_attn.{name}": "colwise_gather_output"
    for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
}
TENSOR: Mapping[str, Mapping[str, str]] = {
    "qwen2": HEADS | MLP,
    "qwen2_moe": HEADS | EXPERTS | MLP,
    "qwen3": HEADS | NORMS | MLP,
    "qwen3_moe": HEADS | NORMS | EXPERTS | MLP,
    "qwen2_vl": HEADS | MLP,
    "qwen2_5_vl": HEADS | MLP,
    "qwen3_vl": {},  # its text configuration has none
    "qwen3_vl_moe": HEADS | MLP | EXPERTS,
    "qwen3_next": HEADS | NORMS | EXPERTS | SHARED_EXPERT | MLP | FUSED_LINEAR,
    "qwen3_5": HEADS | NORMS | MLP | LINEAR,
    "qwen3_5_moe": HEADS | NORMS | EXPERTS | SHARED_EXPERT | LINEAR,
}
WITH_EXPERTS = ("qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "qwen3_next", "qwen3_5_moe")
EXPERT = {
    "mlp.experts.gate_up_proj": "grouped_gemm",
    "mlp.experts.down_proj": "grouped_gemm",
    "mlp.experts": "ep_dispatch_experts",
}
# Vision-language classes whose FSDP plan has no rule for the output layer.
FSDP_WITHOUT_HEAD = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
HEAD = "lm_head"
# Families whose files transformers 5.23 cannot load onto ranks: it cuts experts that are stored transposed without transposing.
NOT_LOADED_BY_RANKS = ("qwen3_vl_moe",)


def plans_of(spec: ModelSpec, tree: Module) -> Plans:
    """The plans of a family's class with the module tree `tree`."""
    family = spec.family.removesuffix("_text")
    base = next(
        path for path, module in each_module(tree) if any(child.name == "embed_tokens" for child in module.children)
    )
    prefix = f"{base}." if base else ""

    def of_layers(rules: Mapping[str, str]) -> dict[str, str]:
        return {f"{prefix}layers.*.{name}": style for name, style in rules.items()}

    tensor, expert = of_layers(TENSOR[family]), of_layers(EXPERT if family in WITH_EXPERTS else {})
    if tensor:
        tensor[f"{prefix}embed_tokens"] = "embedding_rowwise"
    fsdp = {f"{prefix}embed_tokens": "free_full_weight", f"{prefix}layers.*": "free_full_weight"}
    fsdp[f"{prefix}norm"] = "keep_full_weight"
    if spec.headed:
        tensor[HEAD] = "colwise_gather_output"
        if spec.vision is None or family not in FSDP_WITHOUT_HEAD:
            fsdp[HEAD] = "keep_full_weight"
    return Plans(
        tensor=tuple(tensor.items()),
        expert=tuple(expert.items()),
        fsdp=tuple(fsdp.items()),
        # apply_pipeline_parallelism needs `layers` in the base model itself; a vision-language model has it one level deeper.
        pipeline=base if spec.headed and spec.vision is None else None,
    )


def built_plans(model: Any) -> Plans:
    """The plans of a model that transformers built.

    Pipeline stages need `embed_tokens`, `layers` and `norm` in the base model. Source: distributed/pipeline_parallel.py
    """
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    children = {} if base is None else dict(base.named_children())
    has_stages = {"embed_tokens", "layers", "norm"} <= set(children) and hasattr(model, HEAD)
    return Plans(
        tensor=tuple((getattr(model, "tp_plan", None) or {}).items()),
        expert=tuple((getattr(model, "ep_plan", None) or {}).items()),
        fsdp=tuple((getattr(model, "fsdp_plan", None) or {}).items()),
        pipeline=str(model.base_model_prefix) if has_stages else None,
    )
