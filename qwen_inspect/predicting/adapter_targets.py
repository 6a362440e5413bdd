"""What PEFT adapts of a model for the targets of a run: its modules and its parameters, with their ranks.

transformers 5 fuses experts that were linear modules of their own. PEFT adapts the fused parameters where such modules are named,
and those of `gate_up_proj`, which was two modules, with twice the rank.
Source: PEFT 0.21, tuners_utils (check_target_module_exists, _maybe_include_all_linear_layers, _inject_parameters) and
transformers_weight_conversion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..architectures.lora import read_lora
from ..checkpoint import DType
from ..errors import UnsupportedError, UsageError
from ..results.lora import Lora, TrainedTensor
from ..results.memory import Run
from ..spec import ModelSpec, Module, each_module, each_tensor
from ..standard import re
from ..structure.adapters import trained_tensors
from ..values import dataclass, replace

ALL_LINEAR = "all-linear"
ROUTER = {"gate": "gate.weight"}
OF_MIXTRAL = {**ROUTER, "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
OF_QWEN = {**ROUTER, "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
# The model types that PEFT 0.21 converts, as transformers 5.23's conversion_mapping names them; qwen2_moe is not among them.
CONVERTED: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), OF_MIXTRAL),
    **dict.fromkeys(
        (
            *("afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe"),
            *("exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe"),
            *("longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text"),
            *("qwen3_omni_moe_thinker", "solar_open"),
        ),
        OF_QWEN,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """modules, parameters: ends of names. ranks: by end, of parameters whose rank is not the run's."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()


def lora_of_run(tree: Module, spec: ModelSpec, run: Run, model_type: str) -> Lora:
    """What a run's adapters change. UsageError for names that match nothing, UnsupportedError for unknown linear modules."""
    assert run.lora_rank is not None
    _check_names(tree, run)
    targets = targets_of(tree, spec, run, CONVERTED.get(model_type, {}))
    return read_lora(
        {
            "peft_type": "LORA",
            "r": run.lora_rank,
            "target_modules": list(targets.modules),
            "target_parameters": list(targets.parameters),
            "rank_pattern": {rf".*\.{re.escape(end)}": rank for end, rank in targets.ranks},
            "modules_to_save": list(run.saved_modules),
            "use_dora": run.dora,
        }
    )


def targets_of(tree: Module, spec: ModelSpec, run: Run, converted: Mapping[str, str]) -> Targets:
    """The modules and parameters of a run. converted: a parameter for each name of a module that transformers fused."""
    assert run.lora_rank is not None
    whole = run.lora_targets == (ALL_LINEAR,)
    names = _linear_modules(tree, spec) if whole else run.lora_targets
    if whole and converted:
        names = tuple(dict.fromkeys((*(name.rpartition(".")[2] for name in names), *converted)))
    fused: dict[str, set[str]] = {}
    modules = []
    for name in names:
        end = name.rpartition(".")[2]
        if end in converted:
            fused.setdefault(converted[end], set()).add(end)
        else:
            modules.append(name)
    for parameter, ends in fused.items():
        needed = {end for end, other in converted.items() if other == parameter}
        if ends != needed:
            missing = ", ".join(sorted(needed - ends))
            raise UsageError(
                "lora_fused_together", targets=", ".join(sorted(ends)), missing=missing, parameter=parameter
            )
    if not whole:
        _check_modules(tree, modules)
    ranks = tuple((parameter, run.lora_rank * len(ends)) for parameter, ends in fused.items() if len(ends) > 1)
    return Targets(modules=tuple(modules), parameters=(*run.lora_parameters, *fused), ranks=ranks)


def _linear_modules(tree: Module, spec: ModelSpec) -> tuple[str, ...]:
    """Every linear module but the head."""
    modules = {name: module for name, module in each_module(tree) if name}
    for name, module in modules.items():
        if module.class_name.endswith(("Linear", "Conv1D")) and module.class_name != "Linear":
            raise UnsupportedError("lora_linear_kind", module=name, class_name=module.class_name)
    return tuple(
        name for name, module in modules.items() if module.class_name == "Linear" and not _is_head(name, module, spec)
    )


def _is_head(name: str, module: Module, spec: ModelSpec) -> bool:
    """Whether transformers' get_output_embeddings returns this module: outside the decoder, one row per vocabulary entry."""
    rows = next((tensor.shape[0] for tensor in module.tensors if tensor.name == "weight"), None)
    return "." not in name and (module.tied_to is not None or rows == spec.vocab_size)


def _check_names(tree: Module, run: Run) -> None:
    if run.dora and run.lora_parameters:
        raise UsageError("lora_dora_parameters")
    names = [tensor.name for tensor in each_tensor(tree)]
    for end in run.lora_parameters:
        if not _ends_with(names, end):
            fused = dict.fromkeys(name.rpartition(".")[2] for name, shape in _stacks(tree) if len(shape) == 3)
            known = ", ".join(fused) or "–"
            raise UsageError("lora_no_parameter", target=end, known=known)
    _check_modules(tree, run.saved_modules)


def _check_modules(tree: Module, ends: Iterable[str]) -> None:
    modules = {name: module for name, module in each_module(tree) if name}
    for end in ends:
        if not _ends_with(modules, end):
            linear = dict.fromkeys(
                name.rpartition(".")[2] for name, module in modules.items() if module.class_name == "Linear"
            )
            raise UsageError("lora_no_module", target=end, known=", ".join(linear))


def _stacks(tree: Module) -> Iterable[tuple[str, tuple[int, ...]]]:
    return ((tensor.name, tensor.shape) for tensor in each_tensor(tree))


def _ends_with(names: Collection[str], end: str) -> bool:
    return any(f".{name}".endswith(f".{end}") for name in names)


def matrices_of(tree: Module, lora: Lora, dtype: DType, *, prepared: bool = False) -> tuple[TrainedTensor, ...]:
    """What PEFT adds to a model of `dtype`: matrices in float32, or in float64 if the model is; copies of modules in their own
    dtype, float32 in a 4-bit base that is `prepared` for training.
    """

    def dtype_of(trained: TrainedTensor) -> DType | None:
        if trained.role == "copy":
            return DType.F32 if prepared else None
        return dtype if dtype is DType.F64 else None

    added = trained_tensors(tree, lora, lambda tensor: (tensor,), ())
    return tuple(
        trained
        if (other := dtype_of(trained)) is None
        else replace(trained, tensor=replace(trained.tensor, dtype=other))
        for trained in added
    )
