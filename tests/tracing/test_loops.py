"""Training loops against the truth: transformers' real Trainer, accelerate's and a plain loop, on CPU, under the profiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from qwen_inspect.results.timeline import FLASH_SCRATCH, Allocate, Free, living
from qwen_inspect.results.training import LoopName, loop_of

from ..support.families import FAMILIES
from ..support.following import Run, follow, profiled
from ..support.real_runs import PROMPT, real_model, traced
from ..support.real_training import STEP_COUNTER_BYTES, is_of_loop, on_cpu

STEPS, BATCH = 2, 2
FLOAT32 = {"dtype": "float32", "torch_dtype": "float32"}


def micro_batch(*_: object) -> dict[str, Any]:
    import torch

    input_ids = torch.zeros(BATCH, PROMPT, dtype=torch.int64)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": torch.zeros_like(input_ids),
    }


def packed_micro_batch(sequences: int) -> dict[str, Any]:
    from ..support.distributed_runs import packed

    return packed(BATCH * PROMPT, sequences)


class OnHost:
    """A micro-batch that takes memory once it is moved to the device: the loader has one more of them on the host."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self.make = make

    def to(self, *_: object, **__: object) -> dict[str, Any]:
        return self.make()


def trainer(
    model: Any,
    folder: Path,
    accumulate: int,
    make: Callable[[], dict[str, Any]] = micro_batch,
    **options: Any,
) -> Callable[[], object]:
    """The real Trainer, which ends with its optimizer and its last micro-batches."""
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        max_steps=STEPS,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **options,
    )
    made = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"number": number} for number in range(STEPS * BATCH * accumulate)],
        data_collator=lambda _: OnHost(make),
    )
    made._get_train_sampler = lambda *_: None  # in order: shuffling takes memory of the host
    for callback in list(made.callback_handler.callbacks):
        made.remove_callback(callback)

    def run() -> object:
        made.train()
        return made

    return run


def by_accelerate(model: Any, accumulate: int, autocast: str | None) -> Callable[[], object]:
    import accelerate
    import torch

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    precision = {None: "no", "bfloat16": "bf16", "float16": "fp16"}[autocast]
    engine = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    prepared, optimizer = engine.prepare(model, optimizer)

    def run() -> object:
        for _ in range(STEPS * accumulate):
            batch = micro_batch()
            with engine.accumulate(prepared):
                outputs = prepared(**batch, use_cache=False)
                loss = outputs.loss
                engine.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        return outputs, loss, optimizer, batch

    return run


def plain(model: Any, accumulate: int, ema: bool = False) -> Callable[[], object]:
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)

    def run() -> object:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99)) if ema else None
        for _ in range(STEPS):
            for _ in range(accumulate):
                batch = micro_batch()
                outputs = model(**batch, use_cache=False)
                loss = outputs.loss
                if accumulate > 1:
                    loss = loss / accumulate
                loss.backward()
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(model)
            optimizer.zero_grad()
        return outputs, loss, optimizer, batch, averaged

    return run


def by_torchs_loss(model: Any, accumulate: int) -> Callable[[], object]:
    """A plain loop whose head and loss are torch's one function."""
    import torch
    from torch.nn.functional import linear_cross_entropy, pad

    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)

    def forward(labels: Any, **inputs: Any) -> SimpleNamespace:
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        labels = pad(labels, (0, 1), value=-100)
        target = labels[..., 1:].contiguous()
        options = torch.nn.LinearCrossEntropyOptions()
        states = hidden.view(-1, hidden.shape[-1])
        return SimpleNamespace(
            loss=linear_cross_entropy(states, model.lm_head.weight, target.view(-1), options=options)
        )

    def run() -> object:
        for _ in range(STEPS):
            for _ in range(accumulate):
                batch = micro_batch()
                outputs = forward(**batch)
                loss = outputs.loss
                loss = loss / accumulate
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return outputs, loss, optimizer, batch

    return run


def left_over(
    run: Callable[[], object],
    config: Mapping[str, Any],
    loop: LoopName,
    *,
    facts: Mapping[str, Any] = MappingProxyType({}),
    **workload: Any,
) -> list[int]:
    """Bytes of what the real run still has and the trace has not, after both were followed request by request."""
    workload = {"optimizer": "adamw_foreach", **workload}
    timeline = traced(
        config,
        mode="train",
        batch=BATCH,
        prompt_tokens=PROMPT,
        steps=STEPS,
        device="cpu",
        loop=loop_of(loop, **facts),
        **workload,
    )
    events = on_cpu(timeline)
    if loop in ("trainer", "sft"):  # which has returned, and with it what its loop named
        events += [Free(allocation.id) for allocation in living(events) if is_of_loop(allocation)]
    left = follow(profiled(run), events, Run({}, {}, {})).scratch
    return [change.size_bytes for change in left.values()]


@pytest.mark.parametrize(
    ("accumulate", "arguments", "workload", "counters"),
    [
        (2, {}, {"optimizer": "adamw_fused"}, 0),
        (1, {"bf16": True, "optim": "adamw_torch"}, {"autocast": "bfloat16", "optimizer": "adamw_for_loop"}, 24),
        pytest.param(
            *(1, {"gradient_checkpointing": True}, {"checkpointing": True, "optimizer": "adamw_fused"}, 0),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["accumulated", "autocast", "checkpointed"],
)
def test_trainer_takes_what_its_loop_says(
    accumulate: int, arguments: Mapping[str, Any], workload: Mapping[str, Any], counters: int, tmp_path: Path
) -> None:
    """With the optimizer that Trainer has by default; AdamW's other forms count steps of the 24 parameters on the host."""
    config = FAMILIES["qwen3"]
    run = trainer(real_model(config).train(), tmp_path, accumulate, **arguments)
    left = left_over(run, config, "trainer", accumulate=accumulate, **workload)
    assert left == [STEP_COUNTER_BYTES] * counters


@pytest.mark.parametrize(
    ("family", "facts", "accumulate"),
    [
        ("qwen3", {"packing": 3}, 2),
        pytest.param("qwen3", {"padding_free": True}, 1, marks=pytest.mark.exhaustive),
        pytest.param("qwen3 with a sliding window", {"packing": 2}, 1, marks=pytest.mark.exhaustive),
        pytest.param("qwen3_moe", {"packing": 2}, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_row_of_several_sequences_has_their_positions_and_a_mask(
    family: str, facts: Mapping[str, Any], accumulate: int, tmp_path: Path
) -> None:
    """TRL's row in the real Trainer: transformers sees the sequences in it, and SDPA attends with a mask."""
    config = FAMILIES[family]
    sequences = BATCH * facts.get("packing", 1)
    run = trainer(real_model(config).train(), tmp_path, accumulate, functools.partial(packed_micro_batch, sequences))
    facts = {"loss": "model", **facts}
    assert left_over(run, config, "sft", facts=facts, accumulate=accumulate, optimizer="adamw_fused") == []


def test_flash_attention_keeps_the_sequences_of_a_row_apart_in_blocks() -> None:
    """flash-attn 2.8.3, mha_varlen_bwd: 128 rows for each of 6 sequences of 96 tokens, 4 heads of 32 in float32."""
    requested = dict[str, set[int]]()
    for name, packing in (("rows", None), ("one row", 3)):
        timeline = traced(
            FAMILIES["qwen3"],
            mode="train",
            batch=BATCH,
            prompt_tokens=PROMPT,
            attention="flash_attention_2",
            loop=loop_of("sft", loss="model", packing=packing),
        )
        requested[name] = {
            event.size_bytes
            for event in timeline.events
            if isinstance(event, Allocate) and event.operator == FLASH_SCRATCH
        }
    assert requested["rows"] >= {4 * 96 * 4, 96 * 4 * 32 * 4}
    assert requested["one row"] >= {4 * 864 * 4, 864 * 4 * 32 * 4}


@pytest.mark.exhaustive
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_scales_the_gradients_of_float16(accumulate: int, tmp_path: Path) -> None:
    """accelerate refuses fp16=True on CPU, so its scaler and its autocast are set by hand; it finds no overflow, as assumed."""
    import torch

    class Scaler(torch.amp.GradScaler):  # type: ignore[misc]
        def _maybe_opt_step(self, optimizer: Any, *_: Any, **__: Any) -> None:
            optimizer.step()

    config = {**FAMILIES["qwen3"], "dtype": "float32", "torch_dtype": "float32"}
    run = trainer(real_model(config).train(), tmp_path, accumulate, bf16=True)
    made = inspect.getclosurevars(run).nonlocals["made"]
    made.accelerator.state._mixed_precision = "fp16"
    made.accelerator.scaler = Scaler("cpu", init_scale=1.0)
    assert left_over(run, config, "trainer", accumulate=accumulate, autocast="float16", optimizer="adamw_fused") == []


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_a_plain_loop_takes_what_it_says(accumulate: int) -> None:
    config = FAMILIES["qwen3"]
    model = real_model(config).train()
    left = left_over(plain(model, accumulate), config, "plain", accumulate=accumulate)
    assert left == [STEP_COUNTER_BYTES] * len(list(model.parameters()))


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_torchs_fused_loss_makes_both_gradients_in_the_forward_and_zeros_of_them_in_the_backward(tied: bool) -> None:
    """torch.nn.functional.linear_cross_entropy itself; in float32 its choices on CPU are those on CUDA."""
    config = {**FAMILIES["qwen3"], **FLOAT32, "vocab_size": 1000, "tie_word_embeddings": tied}
    model = real_model(config).train()
    left = left_over(by_torchs_loss(model, 2), config, "plain", facts={"loss": "torch"}, accumulate=2)
    assert left == [STEP_COUNTER_BYTES] * len(list(model.parameters()))


def test_a_moving_average_is_a_copy_that_torch_changes_in_place() -> None:
    """Beside its own counter, and the copies that it makes of numbers."""
    config = FAMILIES["qwen3"]
    model = real_model(config).train()
    left = left_over(plain(model, 1, ema=True), config, "plain", facts={"ema": True})
    assert sorted(left) == sorted([STEP_COUNTER_BYTES] * len(list(model.parameters())) + [8])


@pytest.mark.parametrize(
    ("accumulate", "autocast"), [(2, "bfloat16"), pytest.param(1, None, marks=pytest.mark.exhaustive)]
)
def test_accelerates_loop_takes_what_it_says(accumulate: int, autocast: str | None) -> None:
    config = FAMILIES["qwen3"]
    model = real_model(config).train()
    run = by_accelerate(model, accumulate, autocast)
    left = left_over(run, config, "accelerate", accumulate=accumulate, autocast=autocast)
    assert left == [STEP_COUNTER_BYTES] * len(list(model.parameters()))
