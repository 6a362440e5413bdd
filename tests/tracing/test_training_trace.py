"""The trace of adapters' training against the truth: small random models really trained on CPU with PEFT, under the profiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType
from qwen_inspect.results.quantisation import Bnb4
from qwen_inspect.results.timeline import ADAPTER, Allocate, Free, Timeline
from qwen_inspect.tracing.adapting import Adapters, FourBits
from qwen_inspect.tracing.optimizers import optimizer_of

from ..support.families import FAMILIES
from ..support.following import Run, follow, profiled
from ..support.real_runs import PROMPT, real_model, traced
from ..support.real_training import STEP_COUNTER_BYTES, on_cpu
from ..support.small_models import small_config

STEPS = 2
RANK = 4


def steps(model: Any, optimizer: str, batch: int, accumulate: int, autocast: str | None = None) -> Callable[[], object]:
    """What is to be profiled: a loop as users write it, each loss let go with its graph once it is used."""
    import torch

    def run() -> object:
        chosen = optimizer_of(optimizer, model)
        for _ in range(STEPS):
            for _ in range(accumulate):
                input_ids = torch.zeros(batch, PROMPT, dtype=torch.int64)
                labels = torch.zeros_like(input_ids)
                with nullcontext() if autocast is None else torch.autocast("cpu", dtype=getattr(torch, autocast)):
                    loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
                if accumulate > 1:
                    loss = loss / accumulate
                loss.backward()
                loss = loss.detach()
            if chosen is not None:
                chosen.step()
                chosen.zero_grad()
        return loss, chosen

    return run


def checkpoint(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def adapted(model: Any, adapters: Adapters) -> Any:
    import peft

    chosen = "all-linear" if adapters.targets == ("all-linear",) else list(adapters.targets) or None
    config = peft.LoraConfig(
        r=adapters.rank,
        target_modules=chosen,
        target_parameters=list(adapters.parameters) or None,
        modules_to_save=list(adapters.saved) or None,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        use_dora=adapters.dora,
        use_rslora=adapters.stabilised,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config).train()


def assert_followed(
    model: Any, timeline: Timeline, optimizer: str, batch: int, accumulate: int, autocast: str | None = None
) -> None:
    """Every request, in its order, with as many bytes alive; what is left over are AdamW's counters, on the host."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    left = follow(
        profiled(steps(model, optimizer, batch, accumulate, autocast)), on_cpu(timeline), Run({}, {}, {})
    ).scratch
    counted = len(trained) if optimizer in ("adamw_foreach", "adamw_for_loop") else 0
    assert [change.size_bytes for change in left.values()] == [STEP_COUNTER_BYTES] * counted
    load = timeline.events[: timeline.stages[1].first_event]
    adapters = [event.size_bytes for event in load if isinstance(event, Allocate) and event.operator == ADAPTER]
    assert adapters == [parameter.numel() * parameter.element_size() for parameter in trained]


EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@pytest.mark.parametrize(
    ("family", "adapters", "optimizer", "batch", "accumulate", "checkpointing"),
    [
        ("qwen3", {"targets": ("all-linear",)}, "adamw_for_loop", 2, 2, False),
        ("qwen3", {"targets": ("all-linear",), "dora": True}, "adamw_fused", 2, 1, False),
        ("qwen2", {"targets": ("embed_tokens", "down_proj"), "saved": ("lm_head",)}, "sgd", 1, 1, True),
        ("qwen3", {"targets": ("q_proj",), "saved": ("lm_head", "norm")}, "adamw_foreach", 1, 1, False),
        ("qwen3_moe", {"targets": (), "parameters": EXPERTS}, "adamw_fused", 2, 1, False),
        ("qwen3_moe", {"targets": ("q_proj", "v_proj"), "parameters": EXPERTS}, "adamw_foreach", 1, 2, True),
        ("qwen3_moe", {"targets": (), "parameters": EXPERTS, "alpha": RANK}, "sgd", 2, 1, False),
        ("qwen3_moe", {"targets": (), "parameters": EXPERTS, "alpha": 2, "stabilised": True}, "sgd", 2, 1, False),
        ("qwen3", {"targets": ("all-linear",), "dropout": 0.1}, "sgd", 2, 1, False),
        ("qwen3", {"targets": ("q_proj",), "dropout": 0.1, "dora": True}, "sgd", 1, 1, True),
        pytest.param("qwen3_moe", {"targets": ("all-linear",)}, "none", 1, 3, False, marks=pytest.mark.exhaustive),
    ],
    ids=[
        *("linear", "dora", "embedding and a copy", "copies of tied modules", "experts", "experts checkpointed"),
        *("a scale of 1", "a stabilised scale of 1", "dropout", "dropout checkpointed", "fused names"),
    ],
)  # fmt: skip
def test_training_adapters_takes_what_the_trace_says(
    family: str, adapters: dict[str, Any], optimizer: str, batch: int, accumulate: int, checkpointing: bool
) -> None:
    """The real model under a real PeftModel: what lives after each request, and so the peak and the end, to the byte. Dropout is
    another on CUDA."""
    model = real_model(FAMILIES[family])
    if checkpointing:
        checkpoint(model)
    lora = Adapters(rank=RANK, **adapters)
    timeline = traced(
        FAMILIES[family],
        device="cpu" if lora.dropout else "cuda",
        mode="train",
        batch=batch,
        prompt_tokens=PROMPT,
        steps=STEPS,
        optimizer=optimizer,
        checkpointing=checkpointing,
        accumulate=accumulate,
        lora=lora,
    )
    assert_followed(adapted(model, lora), timeline, optimizer, batch, accumulate)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulating_gradients_of_all_parameters_takes_what_the_trace_says(accumulate: int) -> None:
    config = FAMILIES["qwen2"]
    model = real_model(config).train()
    timeline = traced(config, mode="train", prompt_tokens=PROMPT, steps=STEPS, accumulate=accumulate)
    left = follow(profiled(steps(model, "adamw_foreach", 1, accumulate)), on_cpu(timeline), Run({}, {}, {})).scratch
    assert [change.size_bytes for change in left.values()] == [STEP_COUNTER_BYTES] * len(list(model.parameters()))


def in_four_bits(config: Mapping[str, Any], directory: Path, *, double: bool, dtype: str | None) -> Any:
    """The real model as transformers and bitsandbytes quantise it on CPU. dtype: what it computes in, None for the default."""
    import torch
    import transformers

    real_model(config).save_pretrained(directory)
    options = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=options, dtype=torch.bfloat16, device_map="cpu"
    )


@pytest.mark.parametrize(
    ("family", "double", "checkpointing", "accumulate", "dtype", "autocast", "added"),
    [
        ("qwen3", True, True, 1, "bfloat16", None, {"saved": ("lm_head",)}),
        ("qwen2", True, False, 2, "bfloat16", None, {}),
        ("qwen2", False, False, 1, None, None, {}),
        ("qwen3", True, False, 1, "bfloat16", None, {"dora": True}),
        pytest.param("qwen3", False, False, 1, "bfloat16", None, {}, marks=pytest.mark.exhaustive),
        pytest.param("qwen2", False, True, 1, "bfloat16", None, {}, marks=pytest.mark.exhaustive),
        pytest.param("qwen3", True, True, 1, "bfloat16", "bfloat16", {}, marks=pytest.mark.exhaustive),
    ],
)
def test_training_beside_four_bits_takes_what_the_trace_says(
    family: str,
    double: bool,
    checkpointing: bool,
    accumulate: int,
    dtype: str | None,
    autocast: str | None,
    added: Mapping[str, Any],
    tmp_path: Path,
) -> None:
    """bitsandbytes' own kernels on CPU, in float32 where no dtype to compute in is named (transformers 5.23). As many KV heads as
    query heads: prepared so the model attends in float32, for which CUDA's fused attention, unlike CPU's, has no GQA."""
    import peft

    config = {**FAMILIES[family], "num_key_value_heads": FAMILIES[family]["num_attention_heads"]}
    model = in_four_bits(config, tmp_path, double=double, dtype=dtype)
    modules = frozenset(name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit")
    assert len(modules) == 14
    model = peft.prepare_model_for_kbit_training(model, checkpointing, {"use_reentrant": False})
    held = {name: one.untyped_storage().nbytes() for name, one in model.named_parameters()}
    timeline = traced(
        config,
        mode="train",
        batch=2,
        prompt_tokens=PROMPT,
        steps=STEPS,
        checkpointing=checkpointing,
        accumulate=accumulate,
        autocast=autocast,
        device="cuda" if autocast is None else "cpu",  # whose lists of operators are others
        lora=Adapters(
            rank=RANK,
            targets=("all-linear",),
            **added,
            base=FourBits(
                scheme=Bnb4(kind="nf4", double=double, storage=DType.U8), modules=modules, dtype=dtype or "float32"
            ),
        ),
    )
    load = timeline.events[: timeline.stages[1].first_event]
    weights = sum(event.size_bytes for event in load if isinstance(event, Allocate) and event.operator == "parameter")
    assert weights == sum(held.values()) + sum(beside(model.get_submodule(name).weight.quant_state) for name in modules)
    assert_followed(
        adapted(model, Adapters(rank=RANK, targets=("all-linear",), **added)),
        timeline,
        "adamw_foreach",
        2,
        accumulate,
        autocast,
    )


def beside(state: Any) -> int:
    """Bytes of the tensors that a 4-bit weight is read with."""
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(int(one.untyped_storage().nbytes()) for one in tensors)


def test_an_8_bit_optimizer_takes_its_tables_and_states_with_its_first_step() -> None:
    timeline = traced(
        FAMILIES["qwen3"],
        mode="train",
        prompt_tokens=PROMPT,
        steps=STEPS,
        optimizer="adamw_8bit",
        lora=Adapters(rank=64, targets=("q_proj",)),
    )
    bounds = {stage.name: stage.first_event for stage in reversed(timeline.stages)}
    freed = {event.id for event in timeline.events if isinstance(event, Free)}
    first = timeline.events[bounds["optimizer"] : bounds["optimizer"] + 100]
    made = [event.size_bytes for event in first if isinstance(event, Allocate) and event.module == "optimizer"]
    # Two tables of 256 values; then for A and B (64 x 64 each) of two layers two times 4,096 codes and 16 scales.
    assert made == [1024, 1024, *[4096, 4096, 64, 64] * 4]
    assert not {event.id for event in first if isinstance(event, Allocate) and event.module == "optimizer"} & freed


def test_dropout_keeps_a_byte_for_each_number_on_cuda() -> None:
    """Its mask, before its output; on CPU a factor as wide as its input, which `test_training_adapters_takes_what_the_trace_says`
    follows. Source: torch 2.13, aten/src/ATen/native/Dropout.cpp and cuda/Dropout.cu, dropout_cuda
    """
    config = {**small_config("gpt2"), "architectures": ["GPT2LMHeadModel"]}
    numbers = PROMPT * config["n_embd"]
    dropped = [2 * numbers] * 3  # the factor or mask, the output and its gradient, in bfloat16

    def taken(device: str) -> list[list[int]]:
        timeline = traced(config, mode="train", prompt_tokens=PROMPT, optimizer="sgd", device=device)
        requests = [event for event in timeline.events if isinstance(event, Allocate) and "drop" in event.module]
        by_module: dict[str, list[int]] = {}
        for request in requests:
            by_module.setdefault(request.module, []).append(request.size_bytes)
        return [*by_module.values()]

    modules = 1 + 2 * config["n_layer"]
    assert taken("cpu") == [dropped] * modules
    assert taken("cuda") == [[numbers, *dropped[1:]]] * modules
