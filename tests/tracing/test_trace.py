"""The trace against the truth: small random models really run on CPU, where the profiler records every allocation."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest

from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.results.timeline import CUDA_SCRATCH, FLASH_SCRATCH, SOFTMAX_SCRATCH, Allocate, Free, Timeline
from qwen_inspect.tracing.kernels import ACTIVATION_GRADIENTS, FLASH_ATTENTION_2

from ..support.families import FAMILIES, TINY_QWEN3_MOE
from ..support.following import Change, Run, follow, mark, profiled
from ..support.models import TINY_QWEN3
from ..support.real_runs import PROMPT, after_load, real_model, traced
from ..support.small_models import small_config

HYBRIDS = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text")
SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def requests(timeline: Timeline) -> list[Allocate]:
    return [event for event in after_load(timeline) if isinstance(event, Allocate)]


# --- the truth


def inputs(batch: int, *, padded: bool) -> dict[str, Any]:
    """With all sequences but the first padded on the left, each further than the one before."""
    import torch

    input_ids = torch.zeros(batch, PROMPT, dtype=torch.int64)
    if not padded:
        return {"input_ids": input_ids}
    attention_mask = torch.ones_like(input_ids)
    for row in range(1, batch):
        attention_mask[row, :row].zero_()
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def generating(model: Any, batch: int, new_tokens: int, *, padded: bool = False) -> Callable[[], object]:
    def run() -> object:
        given = inputs(batch, padded=padded)
        return given, model.generate(
            **given, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, eos_token_id=None
        )

    return run


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "family", ["qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "qwen3 with a sliding window", *HYBRIDS, *SEEING]
)
@pytest.mark.parametrize("new_tokens", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_generate_takes_what_the_trace_says(family: str, batch: int, new_tokens: int) -> None:
    """The real `generate`, request by request. The first new token is a prefill, the second one a step of decoding."""
    config = FAMILIES[family]
    changes = profiled(generating(real_model(config).eval(), batch, new_tokens))
    timeline = traced(config, mode="generate", batch=batch, prompt_tokens=PROMPT, new_tokens=new_tokens, device="cpu")
    assert follow(changes, after_load(timeline), Run({}, {}, {})).scratch == {}


@pytest.mark.parametrize("tokens", [64, PROMPT, 40])
def test_frequencies_by_the_length_of_a_sequence_take_what_the_trace_says(tokens: int) -> None:
    """Dynamic RoPE, of a prompt and a step within the length that the model was trained with, or beyond it from the step or the
    prompt on: in each such forward all frequencies are made again.
    """
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = {**FAMILIES["qwen2"], "rope_parameters": rope, "max_position_embeddings": tokens}
    changes = profiled(generating(real_model(config).eval(), 2, 2))
    timeline = traced(config, mode="generate", batch=2, prompt_tokens=PROMPT, new_tokens=2, device="cpu")
    assert follow(changes, after_load(timeline), Run({}, {}, {})).scratch == {}
    inverses = [request for request in requests(timeline) if request.operator == "aten.reciprocal.default"]
    assert len(inverses) == {64: 0, PROMPT: 1, 40: 2}[tokens]


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("qwen3 with a sliding window", "sdpa"),
        ("qwen3_5", "sdpa"),
        *(
            pytest.param(family, "sdpa", marks=pytest.mark.slow)
            for family in ("qwen2", "qwen3_moe", "qwen3_next", *SEEING)
        ),
        *(
            pytest.param(family, "eager", marks=pytest.mark.slow)
            for family in ("qwen3 with a sliding window", "qwen3_5")
        ),
    ],
)
def test_a_padded_batch_takes_what_the_trace_says(family: str, attention: str) -> None:
    """With its mask in every attention, two of them where there are windows; linear attention masks what is padding."""
    config = FAMILIES[family]
    changes = profiled(generating(real_model(config, attention).eval(), 4, 2, padded=True))
    workload = {"mode": "generate", "batch": 4, "prompt_tokens": PROMPT, "new_tokens": 2, "attention": attention}
    timeline = traced(config, **workload, padded=True, device="cpu")
    assert follow(changes, after_load(timeline), Run({}, {}, {})).scratch == {}
    masks = {request.size_bytes for request in requests(timeline) if request.operator == "aten.bitwise_and.Tensor"}
    assert 4 * PROMPT * PROMPT in masks  # a byte for each pair of tokens of each sequence


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_training_on_a_padded_batch_takes_what_the_trace_says(attention: str) -> None:
    config = FAMILIES["qwen3"]
    changes = profiled(training(real_model(config, attention).train(), 4, 1, "fused", padded=True))
    workload = {"mode": "train", "batch": 4, "prompt_tokens": PROMPT, "optimizer": "adamw_fused", "padded": True}
    timeline = traced(config, **workload, attention=attention, device="cpu")
    scratch = {request.id for request in requests(timeline) if request.operator in CUDA_SCRATCH}
    events = [event for event in after_load(timeline) if event.id not in scratch]
    assert follow(changes, events, Run({}, {}, {})).scratch == {}


def test_a_masked_call_on_cuda_is_memory_efficient_attention_or_cudnns() -> None:
    """Sizes by hand, 2 sequences of 50 tokens in bfloat16, 4 heads of 16 and of 136 numbers.

    Sources: torch 2.13, attention.cpp, preprocess_mask, and kernel_forward.h, kNeedsOutputAccumulatorBuffer
    """

    def sizes(head_dim: int, **workload: Any) -> dict[str, list[int]]:
        timeline = traced(
            {**TINY_QWEN3, "head_dim": head_dim},
            mode="forward",
            batch=2,
            prompt_tokens=50,
            layers=1,
            padded=True,
            **workload,
        )
        found: dict[str, list[int]] = {}
        for request in requests(timeline):
            if request.module.endswith("self_attn"):
                found.setdefault(request.operator.split(".")[1], []).append(request.size_bytes)
        return found

    efficient, flash = "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"
    here = sizes(16)
    assert here["where"] == [2 * 50 * 50 * 2]
    assert here["constant_pad_nd"] == [2 * 50 * 56 * 2]
    assert here[efficient] == [2 * 50 * 4 * 16 * 2]
    assert flash not in here
    assert sizes(136)[efficient] == [2 * 50 * 4 * 136 * 2, 2 * 50 * 4 * 136 * 4]
    hopper = sizes(16, cudnn=True)
    assert "constant_pad_nd" not in hopper
    assert hopper[flash] == [2 * 50 * 4 * 16 * 2, 2 * 4 * 50 * 4]  # the second, the log-sum-exp, is taken out for cuDNN
    host = sizes(16, device="cpu")
    assert (host["where"], efficient in host) == ([2 * 50 * 50 * 2], False)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.exhaustive), 4])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe", "qwen3 with a sliding window", *HYBRIDS, *SEEING])
def test_the_last_step_of_decoding_is_that_of_a_run_that_got_there(family: str, batch: int) -> None:
    config = FAMILIES[family]
    model = real_model(config).eval()
    model.register_forward_pre_hook(mark)
    changes = profiled(generating(model, batch, 7))
    timeline = traced(config, mode="generate", batch=batch, prompt_tokens=PROMPT, new_tokens=7, device="cpu")

    last = max(index for index, change in enumerate(changes) if not change.size_bytes)
    real: dict[int, Change] = {}
    for change in changes[:last]:
        if change.size_bytes > 0:
            real[change.address] = change
        else:
            real.pop(change.address, None)
    events = after_load(timeline)
    start = max(
        index
        for index, event in enumerate(events)
        if isinstance(event, Allocate) and event.operator == "aten.embedding.default"
    )
    alive: dict[int, Allocate] = {}
    for event in events[:start]:
        if isinstance(event, Allocate):
            alive[event.id] = event
        else:
            del alive[event.id]
    assert sorted(change.size_bytes for change in real.values()) == sorted(one.size_bytes for one in alive.values())
    assert follow(changes[last:], events[start:], Run(real, {}, alive)).scratch == {}


def training(model: Any, batch: int, steps: int, optimizer: str, *, padded: bool = False) -> Callable[[], object]:
    import torch

    def run() -> object:
        adamw = torch.optim.AdamW(model.parameters(), **{optimizer: True})
        for _ in range(steps):
            given = inputs(batch, padded=padded)
            labels = torch.zeros_like(given["input_ids"])
            loss = model(**given, labels=labels, use_cache=False).loss
            loss.backward()
            adamw.step()
            adamw.zero_grad()
        return loss, adamw

    return run


@pytest.mark.parametrize(
    ("family", "batch", "steps", "optimizer"),
    [
        ("qwen2", 1, 1, "foreach"),
        ("qwen2", 4, 2, "foreach"),
        ("qwen3", 1, 2, "fused"),
        ("qwen3", 4, 1, "foreach"),
        ("qwen3_moe", 1, 1, "foreach"),
        ("qwen3_moe", 4, 2, "fused"),
        ("qwen2_moe", 4, 1, "foreach"),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_training_takes_what_the_trace_says(
    family: str, batch: int, steps: int, optimizer: str, checkpointing: bool
) -> None:
    config = FAMILIES[family]
    model = real_model(config).train()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    changes = profiled(training(model, batch, steps, optimizer))
    timeline = traced(
        config,
        mode="train",
        batch=batch,
        prompt_tokens=PROMPT,
        steps=steps,
        optimizer=f"adamw_{optimizer}",
        checkpointing=checkpointing,
    )
    # CUDA's kernels take scratch of their own, which is in the trace and not in a run on CPU.
    scratch = {request.id for request in requests(timeline) if request.operator in CUDA_SCRATCH}
    events = [event for event in after_load(timeline) if event.id not in scratch]
    left = list(follow(changes, events, Run({}, {}, {})).scratch.values())
    # On the host, and so not in the trace: AdamW's step counters, a float32 for each parameter.
    assert [change.size_bytes for change in left] == [4] * (len(left) if optimizer == "foreach" else 0)
    assert len(left) == (len(list(model.parameters())) if optimizer == "foreach" else 0)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen3_5", "bfloat16"),
        *(
            pytest.param(family, dtype, marks=pytest.mark.exhaustive)
            for family, dtype in (
                ("qwen3_5", "float32"),
                ("qwen3_next", "bfloat16"),
                ("qwen3_next", "float32"),
                ("qwen3_5_moe", "bfloat16"),
            )
        ),
    ],
)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.exhaustive), 4])
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_training_of_hybrids_takes_what_the_trace_says(
    family: str, dtype: str, batch: int, checkpointing: bool
) -> None:
    """The convolution's gradient copies an input whose tokens lie side by side; the decay's gradient keeps its own layout."""
    given = dict(FAMILIES[family])
    place = given | {"text_config": {**given["text_config"], "dtype": dtype}} if "text_config" in given else given
    config = {**place, "dtype": dtype, **({"torch_dtype": dtype} if "torch_dtype" in given else {})}
    model = real_model(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    changes = profiled(training(model, batch, 1, "fused"))
    workload = {"batch": batch, "prompt_tokens": PROMPT, "optimizer": "adamw_fused", "checkpointing": checkpointing}
    timeline = traced(config, mode="train", device="cpu", **workload)
    scratch = {request.id for request in requests(timeline) if request.operator in CUDA_SCRATCH}
    events = [event for event in after_load(timeline) if event.id not in scratch]
    assert follow(changes, events, Run({}, {}, {})).scratch == {}


@pytest.mark.parametrize("name", ACTIVATION_GRADIENTS)
def test_gradients_of_activations_are_laid_out_as_their_operands(name: str) -> None:
    """Of real tensors; a product's layout stands for theirs in a trace."""
    import torch

    rows = torch.rand(4, 48, 8)
    tensors = [
        torch.rand(4, 4, 48).transpose(1, 2),
        torch.rand(4, 48, 4),
        rows[..., :4],
        rows[:, :, :1].expand(4, 48, 4),
    ]
    others = {
        "elu_backward": (1.0, 1.0, 1.0, False),
        "hardtanh_backward": (-1.0, 1.0),
        "softplus_backward": (1.0, 20.0),
    }
    gradient_of = getattr(torch.ops.aten, name)
    for gradient, inputs in product(tensors, repeat=2):
        arguments = [gradient, *others.get(name, ())]
        arguments.insert(ACTIVATION_GRADIENTS[name], inputs)
        assert gradient_of(*arguments).stride() == (gradient * inputs).stride()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_forward_keeps_all_logits(attention: str) -> None:
    import torch

    model = real_model(TINY_QWEN3, attention).eval()

    def run() -> object:
        input_ids = torch.zeros(2, PROMPT, dtype=torch.int64)
        with torch.no_grad():
            return input_ids, model(input_ids=input_ids)

    timeline = traced(TINY_QWEN3, mode="forward", batch=2, prompt_tokens=PROMPT, attention=attention)
    left = follow(profiled(run), after_load(timeline), Run({}, {}, {}))
    assert left.scratch == {}
    assert 2 * PROMPT * 256 * 2 in {
        request.size_bytes for request in left.traced.values()
    }  # tokens x vocabulary x bf16


# --- what a timeline is


WORKLOADS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"mode": "generate", "new_tokens": 9},
    "forward": {"mode": "forward"},
    "train": {"mode": "train", "steps": 2},
    "checkpointed": {"mode": "train", "checkpointing": True, "optimizer": "adamw_fused"},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_event_is_in_order_and_has_an_origin(name: str, attention: str) -> None:
    timeline = traced(TINY_QWEN3_MOE, prompt_tokens=PROMPT, attention=attention, **WORKLOADS[name])
    alive: set[int] = set()
    seen: set[int] = set()
    for event in timeline.events:
        if isinstance(event, Free):
            alive.remove(event.id)
            continue
        assert event.id not in seen
        seen.add(event.id)
        alive.add(event.id)
        assert event.size_bytes > 0
        assert event.operator
        assert event.module
    modules = {name for name, _ in real_model(TINY_QWEN3_MOE).named_modules() if name}
    outside = {event.module for event in requests(timeline)} - modules
    assert outside <= {"Qwen3MoeForCausalLM", "inputs", "generate", "backward", "optimizer"}
    # The loss's own gradient is of no module; that of an operator in place, as in the router, is its module's.
    assert {event.operator for event in requests(timeline) if event.module == "backward"} <= {"aten.ones_like.default"}
    assert [stage.first_event for stage in timeline.stages] == sorted(stage.first_event for stage in timeline.stages)


@pytest.mark.parametrize("name", WORKLOADS)
def test_equal_requests_give_equal_timelines(name: str) -> None:
    first, second = (traced(TINY_QWEN3_MOE, prompt_tokens=PROMPT, **WORKLOADS[name]) for _ in range(2))
    assert first == second


def test_the_load_stage_is_every_parameter_and_buffer_once() -> None:
    model = real_model(TINY_QWEN3)
    timeline = traced(TINY_QWEN3, mode="generate", prompt_tokens=4)
    assert [stage.name for stage in timeline.stages] == ["load", "prefill"]
    load = timeline.events[: timeline.stages[1].first_event]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [(event.module, event.size_bytes) for event in load if isinstance(event, Allocate)] == [
        (name.rpartition(".")[0], tensor.untyped_storage().nbytes()) for name, tensor in tensors
    ]
    assert not {event.id for event in load} & {event.id for event in timeline.events if isinstance(event, Free)}


def test_stages_follow_the_run() -> None:
    def stages(**workload: Any) -> list[str]:
        return [stage.name for stage in traced(TINY_QWEN3, prompt_tokens=4, **workload).stages]

    step = ["forward", "backward", "optimizer"]
    assert stages(mode="generate", new_tokens=2) == ["load", "prefill", "decode"]
    assert stages(mode="train", steps=2) == ["load", *step, *step]
    assert stages(mode="train", optimizer="none") == ["load", "forward", "backward"]


def test_fewer_layers_are_the_first_ones() -> None:
    timeline = traced(FAMILIES["qwen3 with a sliding window"], mode="forward", prompt_tokens=PROMPT, layers=1)
    assert {event.module.split(".")[2] for event in requests(timeline) if ".layers." in event.module} == {"0"}


def test_only_what_trains_has_gradients_and_states() -> None:
    timeline = traced(TINY_QWEN3, mode="train", prompt_tokens=PROMPT, trained=r"\.q_proj\.")
    states = [request for request in requests(timeline) if request.operator == "aten.zeros_like.default"]
    # Two for each of two layers, of 64 x 64 parameters in bfloat16.
    assert [state.size_bytes for state in states if state.module == "optimizer"] == [8192] * 4


# --- kernels


def of_attention(timeline: Timeline, name: str = "model.layers.0.self_attn") -> list[tuple[str, int]]:
    return [(request.operator, request.size_bytes) for request in requests(timeline) if request.module == name]


def test_kv_heads_are_repeated_where_cuda_would() -> None:
    """Without a mask CUDA's kernels take GQA; with the mask of a sliding window transformers repeats K and V."""
    repeated = 4 * PROMPT * 16 * 2  # heads x tokens x head_dim x bf16

    def copies(family: str, layer: int) -> int:
        timeline = traced(FAMILIES[family], mode="generate", prompt_tokens=PROMPT)
        found = of_attention(timeline, f"model.layers.{layer}.self_attn")
        return found.count(("aten.clone.default", repeated))

    assert copies("qwen3", 0) == 0
    assert copies("qwen3 with a sliding window", 0) == 0
    assert copies("qwen3 with a sliding window", 1) == 2


def test_the_decision_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    expected = traced(TINY_QWEN3, mode="generate", prompt_tokens=PROMPT)
    monkeypatch.setattr(sdpa_attention, "_is_torch_mps_available", True)
    monkeypatch.setattr(sdpa_attention, "_is_torch_greater_or_equal_than_2_13", False)
    assert traced(TINY_QWEN3, mode="generate", prompt_tokens=PROMPT) == expected


def test_the_run_does_not_depend_on_what_the_process_compiled_before() -> None:
    """torch._dynamo ends the checks of distributions, of which Gemma 3n's sparse MLP makes one in each layer."""
    import torch

    config = small_config("gemma3n_text", num_kv_shared_layers=0, activation_sparsity_pattern=[0.9] * 4)
    expected = traced(config, mode="forward", prompt_tokens=PROMPT)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        assert traced(config, mode="forward", prompt_tokens=PROMPT) == expected
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_sdpa_is_fused() -> None:
    """Output and log-sum-exp, and no scores of tokens x tokens."""
    found = of_attention(traced(TINY_QWEN3, mode="generate", prompt_tokens=PROMPT))
    fused = "aten._scaled_dot_product_flash_attention.default"
    assert [size for operator, size in found if operator == fused] == [PROMPT * 4 * 16 * 2, PROMPT * 4 * 4]


def test_float32_with_gqa_takes_the_math_path_of_cuda() -> None:
    config = {**TINY_QWEN3, "torch_dtype": "float32"}
    found = of_attention(traced(config, mode="generate", prompt_tokens=PROMPT))
    scores = 4 * PROMPT * PROMPT
    # The mask is added to the scores where they are; which of them are masked and which rows wholly, in a byte each, and a zero.
    softmax = ("aten._safe_softmax.default", SOFTMAX_SCRATCH)
    assert [size for operator, size in found if operator in softmax] == [4 * scores, scores, 4 * PROMPT, 4]
    assert ("aten.bmm.default", 4 * scores) in found
    assert ("aten.add.Tensor", 4 * scores) not in found


def test_flash_attention_2_allocates_what_its_kernel_does() -> None:
    inference = of_attention(traced(TINY_QWEN3, mode="forward", prompt_tokens=PROMPT, attention="flash_attention_2"))
    output, log_sum_exp, random_state = PROMPT * 4 * 16 * 2, 4 * PROMPT * 4, 2 * 8
    assert [size for operator, size in inference if operator == FLASH_ATTENTION_2] == [
        output, log_sum_exp, random_state,
    ]  # fmt: skip
    training = of_attention(traced(TINY_QWEN3, mode="train", prompt_tokens=PROMPT, attention="flash_attention_2"))
    key = PROMPT * 2 * 16 * 2
    assert [size for operator, size in training if operator == FLASH_ATTENTION_2] == [
        output, log_sum_exp, random_state, output, key, key,
    ]  # fmt: skip
    # Row sums and the query's gradient in float32, its 16 dimensions rounded up to 32; K's and V's for every query head.
    assert [size for operator, size in training if operator == FLASH_SCRATCH] == [
        log_sum_exp, PROMPT * 4 * 32 * 4, output, output,
    ]  # fmt: skip


def test_flash_attention_2_before_4_48_repeats_kv_heads() -> None:
    now, before = (
        of_attention(traced(TINY_QWEN3, mode="forward", prompt_tokens=PROMPT, attention=attention))
        for attention in ("flash_attention_2", "flash_attention_2_repeated")
    )
    repeated = ("aten.clone.default", PROMPT * 4 * 16 * 2)
    assert (now.count(repeated), before.count(repeated)) == (0, 2)


def test_sdpa_has_the_backward_scratch_of_flash_attention_too() -> None:
    def scratch(attention: str) -> list[int]:
        found = of_attention(traced(TINY_QWEN3, mode="train", prompt_tokens=PROMPT, attention=attention))
        return [size for operator, size in found if operator == FLASH_SCRATCH]

    assert scratch("sdpa") == scratch("flash_attention_2") != []


def test_experts_run_grouped() -> None:
    operators = {request.operator for request in requests(traced(TINY_QWEN3_MOE, mode="forward", prompt_tokens=PROMPT))}
    assert "aten._grouped_mm.default" in operators


# --- what cannot be traced


@pytest.mark.parametrize(
    ("changed", "workload", "key"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {"mode": "forward"}, "trace_quantized"),
        ({"torch_dtype": "float32"}, {"mode": "forward", "attention": "flash_attention_2"}, "trace_flash_dtype"),
        ({"architectures": ["Qwen3Model"]}, {"mode": "generate"}, "trace_no_head"),
        ({"architectures": ["Qwen3Model"]}, {"mode": "train"}, "trace_no_head"),
        ({"return_dict": False}, {"mode": "forward"}, "trace_failed"),
    ],
)
def test_what_cannot_be_traced_is_said(changed: Mapping[str, Any], workload: Mapping[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        traced({**TINY_QWEN3, **changed}, prompt_tokens=PROMPT, **workload)
    assert raised.value.message.key == key
    assert str(raised.value)


@pytest.mark.parametrize(
    ("workload", "key"),
    [
        ({"mode": "forward", "prompt_tokens": 0}, "trace_count"),
        ({"mode": "forward", "prompt_tokens": 1, "batch": -1}, "trace_count"),
        ({"mode": "forward", "prompt_tokens": 1, "layers": 0}, "trace_count"),
        ({"mode": "train", "prompt_tokens": 1, "trained": "("}, "trace_pattern"),
        ({"mode": "train", "prompt_tokens": 1, "trained": "nothing"}, "trace_none_trained"),
    ],
)
def test_a_workload_that_is_none_is_refused(workload: Mapping[str, Any], key: str) -> None:
    with pytest.raises(UsageError) as raised:
        traced(TINY_QWEN3, **workload)
    assert raised.value.message.key == key


def test_nothing_is_left_behind_by_a_trace_that_fails() -> None:
    import torch
    from torch.utils._python_dispatch import _len_torch_dispatch_stack
    from transformers import masking_utils
    from transformers.integrations import moe
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def state() -> tuple[object, ...]:
        functions = (
            torch.nn.functional.scaled_dot_product_attention,
            masking_utils.find_packed_sequence_indices,
            moe._can_use_grouped_mm,
        )
        return _len_torch_dispatch_stack(), gc.isenabled(), functions, tuple(ALL_ATTENTION_FUNCTIONS)

    before = state()
    with pytest.raises(UnsupportedError):
        traced(
            {**TINY_QWEN3, "return_dict": False},
            mode="forward",
            prompt_tokens=PROMPT,
            attention="flash_attention_2",
        )
    assert state() == before
    assert torch.zeros(1).item() == 0


def test_without_torch_it_is_said_what_to_install() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from qwen_inspect.tracing.trace import TraceRequest, trace\n"
        "from qwen_inspect.errors import UnavailableError\n"
        "try:\n"
        "    trace(None, {}, TraceRequest(mode='forward', prompt_tokens=1))\n"
        "except UnavailableError as error:\n"
        "    print(error.message.key)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "extra_missing"


def test_what_transformers_says_of_a_configuration_is_not_printed() -> None:
    """Llama 4 Scout's frequencies are of one height, of which transformers warns each time that it reads them."""
    script = """
from qwen_inspect.loaders import catalog
from qwen_inspect.tracing.configuring import configuration_of
config = catalog.configuration("meta-llama/Llama-4-Scout-17B-16E-Instruct", catalog.entries())
print(configuration_of(config).get_text_config().num_hidden_layers)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("48\n", "")
