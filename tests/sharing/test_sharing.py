"""A model over several devices, without running it: plans as transformers has them, sums that hold, what is refused and said."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.errors import QwenInspectError, UnsupportedError
from qwen_inspect.predicting.footprint import formula_footprint
from qwen_inspect.results.memory import Autocast, Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.ranks import Parallelism, RankBytes
from qwen_inspect.results.training import loop_of
from qwen_inspect.sharing.deepspeed import deepspeed_bytes
from qwen_inspect.sharing.plans import built_plans, plans_of
from qwen_inspect.sharing.ranks import ranks_report, sharded
from qwen_inspect.sharing.shares import chunk, cut_of, rank_bytes
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.instantiate import build

from ..support.families import FAMILIES
from ..support.invoking import Capture, assert_is_one_error_line, invoke
from ..support.models import write_config
from ..support.schema import assert_keeps_to_the_schema
from ..support.shared_models import MODELS

# One release of each family and class, tied or not.
RELEASES = (
    "Qwen/Qwen1.5-0.5B", "Qwen/Qwen1.5-1.8B", "Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B", "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-35B-A3B",
)  # fmt: skip


def a_run(**changes: Any) -> Run:
    run = Run(mode="generate", batch=1, prompt_tokens=2048, new_tokens=128, attention="sdpa")
    return replace(run, **changes)


@cache
def release(name: str) -> Report:
    return inspect(name, source="catalog")


def found(name: str, how: Parallelism, **run: Any) -> tuple[RankBytes, ...]:
    return ranks_report(release(name), a_run(**run), how).ranks


def found_or_refused(name: str, how: Parallelism) -> tuple[RankBytes, ...] | str:
    """The ranks, or the key of the sentence that says why not."""
    try:
        return found(name, how)
    except UnsupportedError as error:
        return error.message.key


def each_rank(ranks: tuple[RankBytes, ...]) -> list[RankBytes]:
    return [one for one in ranks for _ in one.ranks]


# --- plans -----------------------------------------------------------------------------------------------------------


def assert_as_in_transformers(report: Report) -> None:
    model = build(report.spec, report.config or {}, device="meta")
    ours, theirs = plans_of(report.spec, report.tree), built_plans(model)
    names = {name for name, _ in model.named_modules()}
    assert dict(ours.tensor) == dict(theirs.tensor)
    assert dict(ours.expert) == dict(theirs.expert)
    assert ours.pipeline == theirs.pipeline
    # Of models that see, transformers also has rules for modules that are not there.
    assert dict(ours.fsdp) == {name: how for name, how in theirs.fsdp if name.replace("*", "0") in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    write_config(tmp_path, FAMILIES[family])
    assert_as_in_transformers(inspect(str(tmp_path)))


def test_every_style_that_transformers_has_is_known() -> None:
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    matrix = Tensor("weight", (8, 8), DType.BF16)
    for style in ALL_PARALLEL_STYLES:
        if style != "grouped_gemm":  # of expert parallelism
            cut_of(matrix, style)
    with pytest.raises(UnsupportedError) as caught:
        cut_of(matrix, "diagonal")
    assert caught.value.message.key == "ranks_style"


@settings(max_examples=200, deadline=None)
@given(size=st.integers(0, 200), ranks=st.integers(1, 40))
def test_parts_are_those_of_torch(size: int, ranks: int) -> None:
    from torch.distributed.tensor import Shard

    ours = [chunk(size, ranks, rank) for rank in range(ranks)]
    assert ours == [Shard.local_shard_size_and_offset(size, ranks, rank)[0] for rank in range(ranks)]
    assert sum(ours) == size


# --- sums --------------------------------------------------------------------------------------------------------------


def test_a_rank_of_qwen3_8b_on_four() -> None:
    (one,) = found("Qwen/Qwen3-8B", Parallelism(tensor=4))
    # 36 layers with two norms of 4,096 and two of 128, and the last norm: 308,224 of 8,190,735,360 parameters are on every rank.
    assert one.replicated == 2 * 308_224
    assert one.weights == 2 * ((8_190_735_360 - 308_224) // 4 + 308_224) == 4_095_830_016
    assert one.cache == 36 * 2 * (8 // 4) * 128 * 2 * (2048 + 127)
    assert one.ranks == (0, 1, 2, 3)


def test_the_states_of_linear_attention_are_on_every_rank_and_its_keys_are_not() -> None:
    one_device = release("Qwen/Qwen3-Next-80B-A3B-Instruct").cache
    (one,) = found("Qwen/Qwen3-Next-80B-A3B-Instruct", Parallelism(tensor=2))
    tokens = 2048 + 127
    assert one.state == one_device.fixed_bytes
    assert one.cache == (one_device.size_bytes(tokens=tokens) - one_device.fixed_bytes) // 2


@pytest.mark.parametrize("name", RELEASES)
def test_one_rank_holds_what_one_device_holds(name: str) -> None:
    (one,) = found(name, Parallelism())
    steady = formula_footprint(release(name).tree, release(name).cache, a_run()).steady
    assert (one.weights, one.buffers, one.replicated, one.padding) == (steady.weights, steady.buffers, 0, 0)
    assert (one.cache, one.state) == (steady.cache, steady.state)


@pytest.mark.parametrize("optimizer", ["adamw_foreach", "adamw_fused", "adamw_for_loop", "sgd", "none"])
def test_one_rank_trains_with_what_one_device_keeps(optimizer: str) -> None:
    (one,) = found("Qwen/Qwen3-8B", Parallelism(), mode="train", optimizer=optimizer)
    run = a_run(mode="train", optimizer=optimizer)
    steady = formula_footprint(release("Qwen/Qwen3-8B").tree, release("Qwen/Qwen3-8B").cache, run).steady
    assert (one.weights, one.optimizer) == (steady.weights, steady.optimizer)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(RELEASES), ranks=st.sampled_from([2, 3, 4, 8]), mode=st.sampled_from(["generate", "train"]))
def test_ranks_of_fsdp_hold_the_model_once(name: str, ranks: int, mode: str) -> None:
    whole = release(name).tree.size_bytes
    alike = found(name, Parallelism(fsdp=ranks), mode=mode)
    each = each_rank(alike)
    assert sum(one.weights - one.padding for one in each) == whole
    assert len({one.weights for one in each}) == 1  # padded to equal parts
    if mode == "train":
        assert sum(one.optimizer for one in each) == 2 * whole
        assert all(one.gradients == one.weights for one in each)
        (replicas,) = found(name, Parallelism(fsdp=ranks, zero_stage=1), mode=mode)
        assert replicas.weights - replicas.padding == replicas.gradients == whole
        # A float32 copy and two float32 numbers for each parameter, shared out.
        assert 0 <= ranks * replicas.optimizer - 12 * release(name).tree.parameters < 12 * 2 * ranks


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(RELEASES), ranks=st.sampled_from([2, 4, 8]), experts=st.booleans())
def test_ranks_hold_the_model_once_but_for_what_is_on_all(name: str, ranks: int, experts: bool) -> None:
    how = Parallelism(tensor=ranks, expert=ranks if experts else 1)
    alike = found_or_refused(name, how)
    if isinstance(alike, str):
        assert alike in ("ranks_kv_heads", "ranks_no_plan", "ranks_experts", "ranks_not_loaded", "ranks_tied_head")
        return
    each = each_rank(alike)
    copies = {one.replicated for one in each}
    assert len(copies) == 1
    assert sum(one.weights for one in each) == release(name).tree.size_bytes + (ranks - 1) * copies.pop()


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(RELEASES), stages=st.integers(2, 60))
def test_stages_hold_the_model_once_but_for_a_tied_embedding(name: str, stages: int) -> None:
    report = release(name)
    alike = found_or_refused(name, Parallelism(pipeline=stages))
    if isinstance(alike, str):
        assert alike == ("ranks_no_pipeline" if report.spec.vision is not None else "ranks_empty_stages")
        assert report.spec.vision is not None or stages > len(report.spec.layers)
        return
    each = each_rank(alike)
    table = report.spec.vocab_size * report.spec.hidden_size * 2 if report.spec.tied_embeddings else 0
    assert sum(one.weights for one in each) == report.tree.size_bytes + table
    tokens = 2048 + 127
    assert sum((one.cache or 0) + (one.state or 0) for one in each) == report.cache.size_bytes(tokens=tokens)
    assert [one.layers for one in each][-1] == (
        (stages - 1) * (len(report.spec.layers) // stages),
        len(report.spec.layers),
    )


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("way", ["tensor", "fsdp"])
def test_more_ranks_never_hold_more_each(name: str, way: str) -> None:
    largest = []
    for ranks in (1, 2, 4, 8, 16):
        how = Parallelism(tensor=ranks) if way == "tensor" else Parallelism(fsdp=ranks)
        alike = found_or_refused(name, how)
        if isinstance(alike, str):
            break
        largest.append(max(one.weights for one in alike))
    assert largest == sorted(largest, reverse=True)


@pytest.mark.parametrize(("ranks", "weights", "optimizer"), [(2, 460_472, 1_381_416), (4, 460_480, 690_720)])
def test_stage_1_is_deepspeeds(ranks: int, weights: int, optimizer: int, tmp_path: Path) -> None:
    """The figures are those of DeepSpeed 0.19.8, run on CPU: storages of parameters, AdamW's states and the float32 copy
    on each rank; all gradients, 460,472 bytes, at the end of the backward."""
    write_config(tmp_path, MODELS["qwen3"] | {"vocab_size": 133, "hidden_size": 63})
    (one,) = ranks_report(inspect(str(tmp_path)), a_run(mode="train"), Parallelism(fsdp=ranks, zero_stage=1)).ranks
    assert (one.weights, one.gradients, one.optimizer) == (weights, 460_472, optimizer)


def test_deepspeeds_optimizer_on_the_host_is_there_with_its_gradients_and_a_copy(tmp_path: Path) -> None:
    """As DeepSpeed 0.19.8 made them on CPU with 2 processes, of 115,118 parameters each: 460,472 B of float32 weights, as many of
    gradients, 920,944 of states, 230,236 of the copy, and 133 x 63 bfloat16 numbers on either side."""
    write_config(tmp_path, MODELS["qwen3"] | {"vocab_size": 133, "hidden_size": 63})
    how = Parallelism(fsdp=2, zero_stage=1, offload_optimizer=True)
    (one,) = ranks_report(inspect(str(tmp_path)), a_run(mode="train"), how).ranks
    assert (one.weights, one.gradients, one.optimizer) == (460_472, 460_472, 16_758)
    assert one.host == 460_472 + 460_472 + 920_944 + 230_236 + 16_758


@pytest.mark.parametrize(
    ("how", "held", "host"),
    [
        # Parts, bucket, float32 parts; on the host states, gradients in 32 and 16 bits: 57,566 parameters and more to fill up.
        (Parallelism(fsdp=2, offload_params=True), (1_728, 20_000 + 230_264, 460_528 + 921_056), 230_264),
        (
            Parallelism(fsdp=2, offload_params=True, offload_optimizer=True),
            (1_728, 20_000, 0),
            230_264 + 460_528 + 460_528 + 921_056 + 230_264,
        ),
        (
            Parallelism(fsdp=4, offload_params=True, offload_optimizer=True),
            (1_728, 20_000, 0),
            115_132 + 230_264 + 230_264 + 460_528 + 115_132,
        ),
        (
            Parallelism(fsdp=3, offload_optimizer=True),
            (1_746 + 153_504, 20_000, 0),
            307_008 + 307_008 + 614_016 + 153_504,
        ),
        (
            Parallelism(fsdp=2, zero_stage=2, offload_optimizer=True),
            (460_472, 0, 16_758),
            460_472 + 460_472 + 920_944 + 230_236 + 16_758,
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_deepspeeds_stages_2_and_3_have_weights_and_optimizer_on_either_side(
    how: Parallelism, held: tuple[int, int, int], host: int, tmp_path: Path
) -> None:
    """As DeepSpeed 0.19.8 made them on CPU with as many processes: bfloat16, AdamW, reduce_bucket_size 10,000 and
    stage3_param_persistence_threshold 1,000, under which 21 of 58 parameters are."""
    write_config(tmp_path, MODELS["qwen3"] | {"vocab_size": 133, "hidden_size": 63})
    tensors = [(tensor.shape, tensor.dtype, True, 1) for tensor in each_tensor(inspect(str(tmp_path)).tree)]
    found = deepspeed_bytes(tensors, how, 0, a_run(mode="train"), persistent=1000, bucket=10_000)
    assert (found["weights"], found["gradients"], found["optimizer"], found["host"]) == (*held, host)


def test_frozen_parameters_have_no_gradients_and_no_states() -> None:
    (one,) = found("Qwen/Qwen3-0.6B", Parallelism(fsdp=2), mode="train", trained=r"\.norm\.weight$")
    assert (one.gradients, one.optimizer) == (1024 * 2 // 2, 2 * 1024 * 2 // 2)
    (one,) = found("Qwen/Qwen3-0.6B", Parallelism(fsdp=2), mode="train", optimizer="none")
    assert one.gradients == one.weights
    assert one.optimizer == 0


def test_what_is_offloaded_is_in_the_hosts_memory() -> None:
    """596,049,920 bfloat16 parameters on 4 ranks: shards and gradients of 2 B, two states of 2 B each; all rows divide by 4."""
    (rank,) = found("Qwen/Qwen3-0.6B", Parallelism(fsdp=4, offload=True), mode="train", optimizer="adamw_foreach")
    assert (rank.weights, rank.gradients, rank.optimizer) == (0, 0, 0)
    assert rank.host == 596_049_920 * 8 // 4
    assert rank.total == rank.buffers


@pytest.mark.parametrize(
    ("storage", "autocast", "key"),
    [("uint8", None, "ranks_four_bits_storage"), ("float32", "bfloat16", "ranks_four_bits_autocast")],
)
def test_codes_that_ranks_cannot_share_are_refused(
    storage: str, autocast: Autocast | None, key: str, tmp_path: Path
) -> None:
    """accelerate leaves bytes whole; FSDP2's mixed precision casts what it gathers, codes too."""
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": storage}
    write_config(tmp_path, MODELS["qwen3"] | {"quantization_config": section | {"bnb_4bit_compute_dtype": "bfloat16"}})
    run = a_run(mode="train", lora_rank=8, autocast=autocast, loop=loop_of("trainer"))
    with pytest.raises(UnsupportedError) as caught:
        ranks_report(inspect(str(tmp_path)), run, Parallelism(fsdp=2))
    assert caught.value.message.key == key


def test_a_class_whose_cache_cannot_be_shared_with_certainty_has_an_unknown_one() -> None:
    model = sharded(release("Qwen/Qwen3-0.6B"))
    unsettled = replace(model, attention=None, cache=None)
    (one,) = rank_bytes(unsettled, Parallelism(tensor=2), a_run())
    assert one.cache is one.state is one.total is None


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--tp 0", 2),
        ("--pp -1", 2),
        ("--ep many", 2),
        ("--zero-stage 4 --fsdp 2", 2),
        ("--zero-stage 2", 2),
        ("--device-memory 8GiB", 2),
        ("--tp 2 --device-map auto", 2),
        ("--fsdp 2 --device cpu", 2),
        ("--device-map auto --device cpu", 2),
        ("--device-map auto --device-memory 8", 2),
        ("--device-map auto --device-memory gpu=8GiB", 2),
        ("--device-map auto --device-memory 8GiB,0=8GiB", 2),
        ("--device-map auto --mode train", 2),
        ("--tp 2 --mode train", 7),
        ("--pp 2 --mode train --optimizer adamw_for_loop", 7),
        ("--pp 32", 7),
        ("--mode train --trained (", 2),
        ("--fsdp 2 --mode train --trained (", 2),
        ("--tp 2 --lora 8", 2),
        ("--tp 2 --mode train --optimizer adamw_for_loop --lora 8", 7),
        ("--tp 2 --fsdp 2 --mode train --optimizer adamw_for_loop --lora 8 --lora-targets q_proj", 7),
        ("--tp 2 --mode train --optimizer adamw_for_loop --lora 8 --lora-targets q_proj --dora", 7),
        ("--fsdp 2 --mode train --optimizer adamw_8bit", 7),
        ("--fsdp 2 --mode train --optimizer adafactor", 7),
        ("--tp 2 --mode train --autocast float16", 7),
        ("--tp 2 --mode train --loss unsloth --loop trainer", 7),
        ("--fsdp 2 --zero-stage 1 --mode train --autocast bfloat16", 7),
        ("--fsdp 2 --tp 2 --mode train --loop trainer", 7),
        ("--tp 2 --mode train --optimizer adamw_for_loop --loop accelerate", 7),
        ("--tp 2 --mode train --optimizer adamw_for_loop --clip", 7),
        ("--tp 2 --mode train --optimizer adamw_for_loop --lora 8 --lora-targets q_proj --loop trainer", 7),
        ("--fsdp 2 --mode train --loop trainer --padding-free", 2),
        ("--fsdp 2 --mode train --transformers 4.57", 7),
        ("--offload", 2),
        ("--fsdp 1 --offload --mode train", 7),
        ("--fsdp 2 --zero-stage 1 --offload --mode train", 7),
        ("--offload-optimizer --mode train", 2),
        ("--deepspeed --mode train", 2),
        ("--fsdp 2 --deepspeed", 7),
        ("--fsdp 2 --offload-params --mode train --dtype float32", 7),
        ("--fsdp 2 --zero-stage 2 --offload-params --mode train", 7),
        ("--fsdp 2 --offload --offload-params --mode train", 7),
        ("--fsdp 2 --tp 2 --zero-stage 1 --mode train --optimizer adamw_for_loop", 7),
        ("--offload-params --mode train", 2),
        ("--fsdp 2 --zero-stage 1 --offload-optimizer", 7),
        ("--fsdp 2 --zero-stage 1 --offload-optimizer --mode train --accumulate 2", 7),
        ("--fsdp 4096", 2),
        ("--tp 2 --fsdp 2 --ep 3", 2),
        ("--pp 2 --tp 2", 7),
        ("--tp 16", 7),
        ("--ep 2", 7),
        ("--tp 2 --dtype awq-int4", 7),
        ("--fsdp 2 --dtype bnb-nf4", 7),
        ("--fsdp 2 --dtype bnb-nf4 --mode train --lora 8 --dora", 7),
        ("--tp 2 --dtype bnb-nf4 --mode train --lora 8 --optimizer adamw_for_loop", 7),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_cannot_be_is_refused_in_one_line(options: str, code: int, language: str, capsys: Capture) -> None:
    finished = invoke(
        capsys, "memory", "catalog:Qwen/Qwen3-0.6B", "-q", "--context", "64", "--lang", language, *options.split()
    )
    assert finished.code == code
    assert finished.out == ""
    assert_is_one_error_line(finished.err, language)


@pytest.mark.parametrize(
    ("options", "language"),
    [
        ("--tp 4", "en"),
        ("--pp 3", "zh"),
        ("--fsdp 8 --mode train", "en"),
        ("--fsdp 2 --zero-stage 1", "zh"),
        ("--tp 2 --fsdp 2", "en"),
        ("--device-map auto", "zh"),
    ],
)
def test_json_has_every_rank_and_keeps_to_the_schema(
    options: str, language: str, capsys: Capture, tmp_path: Path
) -> None:
    write_config(tmp_path, MODELS["qwen3"])
    chosen = ("--context", "16", "--new-tokens", "2", "-q", "--format", "json", "--lang", language)
    content = json.loads(invoke(capsys, "memory", tmp_path, *chosen, *options.split()).out)
    assert_keeps_to_the_schema(content)
    if "--device-map" in options:
        assert content["ranks"] is None
        assert (
            sum(one["weights_bytes"] for one in content["device_map"]["devices"])
            == content["predicted"]["weights_bytes"]
        )
        return
    workload = content["workload"]
    several = workload["tp"] * workload["pp"] * workload["fsdp"]
    assert sorted(rank for one in content["ranks"] for rank in one["ranks"]) == list(range(several))
    assert all(one["communication_bytes"] is None for one in content["ranks"])
    for one in content["ranks"]:
        if "--zero-stage" in options:  # DeepSpeed's, whose peaks are those of training
            assert one["peak"] is one["activation_bytes"] is one["peak_reserved_bytes"] is None
        else:
            assert one["activation_bytes"] == one["peak"]["activations_bytes"] > 0
            assert (one["peak_reserved_bytes"] is None) == (workload["fsdp"] > 1)
    assert workload["zero_stage"] == (None if workload["fsdp"] == 1 else 1 if "--zero-stage" in options else 3)


@pytest.mark.parametrize("form", ["table", "md", "html"])
@pytest.mark.parametrize(
    ("language", "words"), [("en", "On each rank (EP 4, FSDP 4, ZeRO 3)"), ("zh", "每个 rank 的占用（EP 4，")]
)
def test_every_format_shows_the_ranks(form: str, language: str, words: str, capsys: Capture) -> None:
    chosen = ("--fsdp", "4", "--ep", "4", "--format", form, "--lang", language, "-q")
    shown = invoke(capsys, "memory", "catalog:Qwen/Qwen3-30B-A3B", *chosen)
    assert shown.code == 0
    assert words in shown.out
    assert "32" in shown.out  # experts a layer


def without(packages: tuple[str, ...], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = (
        f"import sys\nfor name in {packages!r}:\n    sys.modules[name] = None\n"
        "from qwen_inspect.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_a_plain_install_knows_the_ranks_and_says_what_places_modules() -> None:
    torch = ("torch", "transformers", "numpy", "accelerate")
    shown = without(torch, "memory", "catalog:Qwen/Qwen3-30B-A3B", "--tp", "4", "--ep", "4", "--format", "json")
    (one,) = json.loads(shown.stdout)["ranks"]
    assert one["experts"] == 128 // 4
    refused = without(torch, "memory", "catalog:Qwen/Qwen3-8B", "--device-map", "auto", "--lang", "en")
    assert refused.returncode == 8
    assert "pip install" in refused.stderr


# --- a map of devices ----------------------------------------------------------------------------------------------


def test_layers_that_do_not_fit_lie_where_transformers_really_puts_them(tmp_path: Path, capsys: Capture) -> None:
    import torch
    from transformers import AutoConfig, Qwen3ForCausalLM

    config = {**MODELS["qwen3"], "num_hidden_layers": 8}
    Qwen3ForCausalLM._from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16).save_pretrained(
        tmp_path / "model"
    )
    limit = 400_000
    model = Qwen3ForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": limit}, offload_folder=str(tmp_path / "disk")
    )
    on_cpu = [one for one in (*model.parameters(), *model.buffers()) if one.device.type == "cpu"]
    chosen = ("--device-map", "auto", "--device-memory", f"cpu={limit}B", "--format", "json", "-q", "--context", "16")
    content = json.loads(invoke(capsys, "memory", tmp_path / "model", *chosen).out)
    cpu, disk = content["device_map"]["devices"]
    assert (cpu["device"], disk["device"]) == ("cpu", "disk")
    assert cpu["weights_bytes"] + cpu["buffers_bytes"] == sum(one.numel() * one.element_size() for one in on_cpu)
    assert cpu["weights_bytes"] <= limit
    assert cpu["weights_bytes"] + disk["weights_bytes"] == content["predicted"]["weights_bytes"]
    assert set(map(str, model.hf_device_map.values())) == {"cpu", "disk"}


def test_unequal_gpus_take_what_accelerate_gives_them(capsys: Capture) -> None:
    chosen = ("--device-map", "auto", "--device-memory", "8GiB,6GiB,cpu=64GiB", "--format", "json", "-q")
    content = json.loads(invoke(capsys, "memory", "catalog:Qwen/Qwen3-8B", *chosen).out)
    devices = content["device_map"]["devices"]
    assert [one["device"] for one in devices] == ["0", "1", "cpu"]
    assert [one["capacity_bytes"] for one in devices] == [8 << 30, 6 << 30, 64 << 30]
    assert all(one["weights_bytes"] <= one["capacity_bytes"] for one in devices)
    assert sum(one["weights_bytes"] for one in devices) == 2 * 8_190_735_360
    layer = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128)
    assert devices[1]["weights_bytes"] % layer == 0  # whole layers


def test_an_error_of_ranks_is_one_of_the_tools_own() -> None:
    with pytest.raises(QwenInspectError) as caught:
        found("Qwen/Qwen3-0.6B", Parallelism(tensor=16))
    assert "8 KV heads cannot be shared evenly by 16 ranks" in str(caught.value)
