"""Models really loaded from their files and run on CPU: measured memory as predicted to the byte, each difference explained."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.limit import fraction_of
from qwen_inspect.architectures import architecture_of
from qwen_inspect.errors import UnavailableError, UnsupportedError
from qwen_inspect.language import Language
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.measuring.cuda import _alive_after, _between, _blocks, _cuda_changes, cuda_reading, with_workspaces
from qwen_inspect.measuring.device import check_capacity
from qwen_inspect.measuring.host import free_host_bytes
from qwen_inspect.measuring.matching import match
from qwen_inspect.measuring.measure import Request
from qwen_inspect.measuring.measure import measured as measure_run
from qwen_inspect.measuring.nvml import process_bytes
from qwen_inspect.measuring.run import loaded, measure
from qwen_inspect.predicting.allocation.on_device import on_device
from qwen_inspect.predicting.sources import timeline_of
from qwen_inspect.progress import reporting_to
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.document import View, document
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate, Change, Free, Record, Stage, Timeline
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.generic_models import RUN
from ..support.measured import measured
from ..support.models import run
from ..support.real_runs import real_model
from ..support.small_models import small_config

DOCUMENT = {  # the sections of a report on parameters and memory, in the documents' words
    "zh": ("实验结果总结", "参数量分析", "显存占用分析", "重要发现", "详细参数分解", "单层 Decoder 分析", "MHA、GQA", "各项显存",
           "差异原因", "各阶段", "结论与建议"),
    "en": ("Results", "Parameters", "Memory", "Findings", "Parameters by component", "MHA, GQA or MQA", "Memory by term",
           "Causes of the differences", "Stages of the run", "Conclusions"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the real files of a small random model of a family, written by transformers."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family.replace(" ", "_"))
            real_model(FAMILIES[family]).save_pretrained(folders[family], max_shard_size="100KB")
        return folders[family]

    return save


def test_a_measurement_says_what_it_is_doing(saved: Callable[[str], Path]) -> None:
    said: list[str] = []
    with reporting_to(lambda message: said.append("" if message is None else Language("en")(message))):
        measured(saved("qwen3"), prompt_tokens=40, new_tokens=3)
    assert [line for line in said if "tracing" not in line] == [
        "Starting PyTorch and transformers …",
        f"Loading {saved('qwen3')} onto cpu …",
        "Measuring: prefill (batch 1, 40 tokens) …",
        "Measuring: decoding token 2 of 3 …",
        "Measuring: decoding token 3 of 3 …",
        "",
    ]


MEASURED_FAMILIES = ("qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "qwen3 with a sliding window")
MEASURED_RUNS: tuple[dict[str, Any], ...] = (
    {"new_tokens": 1},
    {"new_tokens": 7, "batch": 3},
    {"mode": "forward", "batch": 2},
    {"mode": "train"},
    {"mode": "train", "optimizer": "adamw_fused", "checkpointing": True, "batch": 2},
    {"mode": "train", "optimizer": "none", "trained": "q_proj"},
)


def _measured_cases() -> Iterator[Any]:
    """Every family in every run; by default each run in two families, and each family in two runs at least."""
    for row, family in enumerate(MEASURED_FAMILIES):
        for column, options in enumerate(MEASURED_RUNS):
            few = (row - column) % len(MEASURED_FAMILIES) < 2
            marks = () if few else pytest.mark.exhaustive
            yield pytest.param(family, options, id=f"{family}-{options}", marks=marks)


@pytest.mark.parametrize(("family", "options"), list(_measured_cases()))
def test_every_byte_is_predicted_or_explained(
    saved: Callable[[str], Path], family: str, options: dict[str, Any]
) -> None:
    content = measured(saved(family), prompt_tokens=40, **options)
    found, predicted = content["measured"], content["predicted"]
    assert predicted["method"] == "trace"
    assert found["method"] == "measured"
    assert found["parted"] is found["partial"] is None
    differences = {one["term"]: one for one in content["differences"]}
    # What lives at the end is as predicted to the byte, but for the counters that AdamW keeps on the host.
    for term in ("weights", "buffers", "cache", "state", "gradients", "activations", "rounding", "workspace"):
        assert differences[term]["difference"] == 0, term
    counts = options.get("optimizer", "adamw_foreach") == "adamw_foreach" and options.get("mode") == "train"
    parameters = len(list(real_model(FAMILIES[family]).parameters()))
    assert differences["optimizer"]["difference"] == (4 * parameters if counts else 0)  # a float32 each
    assert {one["residual"] for one in differences.values()} <= {0, None}
    for one in differences.values():
        if one["difference"] is not None:
            assert one["difference"] == one["measured"] - one["predicted"]
            assert one["difference"] == sum(cause["bytes"] for cause in one["causes"]) + one["residual"]
    for moment in found["moments"].values():
        terms = [
            value for name, value in moment.items() if name not in ("stage", "allocated_bytes", "lower_bound_only")
        ]
        assert sum(terms) == moment["allocated_bytes"]
    assert found["peak_allocated_bytes"] == max(stage["peak_allocated_bytes"] for stage in found["stages"])


# Whose V is narrower than their Q, with and without an index's keys in the cache; whose routers stay in float32.
@pytest.mark.parametrize(
    "model_type",
    [
        "deepseek_v3",
        "glm_moe_dsa",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("ernie4_5_moe", "gemma4", "glm5_next", "lfm2", "llama4", "phi3")
        ),
    ],
)
def test_a_run_of_another_family_is_measured_as_predicted(model_type: str, tmp_path: Path) -> None:
    config = small_config(model_type, **RUN.get(model_type, {}))
    config["architectures"] = [architecture_of(config).spec.class_name]
    real_model(config).save_pretrained(tmp_path)
    content = measured(tmp_path, prompt_tokens=40, new_tokens=5)
    assert content["measured"]["parted"] is None
    assert {one["residual"] for one in content["differences"]} <= {0, None}


def test_a_run_that_transformers_cannot_make_is_refused(tmp_path: Path) -> None:
    """All four layers of this configuration are linear."""
    real_model(small_config("bailing_hybrid", architectures=["BailingHybridForCausalLM"])).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot run BailingHybridForCausalLM"):
        measured(tmp_path, prompt_tokens=40, new_tokens=5)


@pytest.mark.parametrize("options", [{"new_tokens": 3}, {"mode": "train", "optimizer": "sgd"}], ids=str)
def test_experts_in_float32_are_predicted(options: dict[str, Any], tmp_path: Path) -> None:
    """As many KV heads as query heads, for CUDA's fused attention, which is traced, has no GQA in float32, unlike CPU's."""
    config = FAMILIES["qwen3_moe"]
    real_model({**config, "num_key_value_heads": config["num_attention_heads"]}).save_pretrained(tmp_path)
    content = measured(tmp_path, dtype="float32", **options)
    assert content["predicted"]["method"] == "trace"
    assert content["measured"]["parted"] is None
    assert {one["residual"] for one in content["differences"]} <= {0, None}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3 with a sliding window", {"new_tokens": 7, "batch": 3}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("qwen3_5", {"new_tokens": 3, "batch": 2}),
                ("qwen3", {"new_tokens": 2, "batch": 1}),
                ("qwen3", {"mode": "forward", "batch": 2, "attention": "eager"}),
                ("qwen3", {"mode": "train", "batch": 2, "optimizer": "adamw_fused"}),
                ("qwen3_moe", {"mode": "train", "batch": 2, "optimizer": "adamw_fused"}),
            )
        ),
    ],
)
def test_a_padded_batch_is_measured_as_predicted(
    saved: Callable[[str], Path], family: str, options: dict[str, Any]
) -> None:
    """The mask that the caller holds is in both, 8 bytes a token, and every request of the trace is made."""
    content = measured(saved(family), prompt_tokens=40, padded=True, **options)
    assert content["workload"]["padded"] is True
    assert content["predicted"]["method"] == "trace"
    assert (content["measured"]["parted"], content["measured"]["partial"]) == (None, None)
    differences = {one["term"]: one for one in content["differences"]}
    for term in (
        "weights",
        "buffers",
        "cache",
        "state",
        "gradients",
        "optimizer",
        "activations",
        "rounding",
        "workspace",
    ):
        assert differences[term]["difference"] == 0, term
    assert {one["residual"] for one in differences.values()} <= {0, None}


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "train", "autocast": "float16"},
        {"new_tokens": 4, "autocast": "bfloat16"},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {
                    "mode": "train",
                    "autocast": "bfloat16",
                    "optimizer": "adamw_fused",
                    "checkpointing": True,
                    "batch": 2,
                },
                {"mode": "train", "autocast": "float16", "optimizer": "adamw_fused", "accumulate": 2},
                {"mode": "train", "autocast": "bfloat16", "lora_rank": 4},
                {"mode": "forward", "autocast": "float16", "batch": 2},
            )
        ),
    ],
    ids=str,
)
def test_a_run_under_autocast_is_measured_as_predicted(saved: Callable[[str], Path], options: dict[str, Any]) -> None:
    """By CPU's lists of operators. What CPU's kernels take of their own at the peak is told, and counters of AdamW."""
    content = measured(saved("qwen3"), prompt_tokens=40, dtype="float32", **options)
    assert content["workload"]["autocast"] == options["autocast"]
    assert content["measured"]["parted"] is content["measured"]["partial"] is None
    differences = {one["term"]: one["difference"] for one in content["differences"]}
    for term in ("weights", "buffers", "cache", "gradients", "activations", "rounding", "workspace"):
        assert differences[term] == 0, term
    assert {one["residual"] for one in content["differences"]} <= {0, None}


@pytest.mark.parametrize(
    ("options", "counters"),
    [
        ({"lora_targets": ("q_proj", "v_proj"), "accumulate": 3}, 8),  # A and B of two modules in two layers
        ({"lora_targets": ("o_proj",), "optimizer": "adamw_fused", "checkpointing": True}, 0),
    ],
)
def test_adapters_are_measured_as_predicted(
    saved: Callable[[str], Path], options: dict[str, Any], counters: int
) -> None:
    content = measured(saved("qwen3"), prompt_tokens=40, mode="train", lora_rank=4, **options)
    assert (content["measured"]["parted"], content["measured"]["partial"]) == (None, None)
    differences = {one["term"]: one["difference"] for one in content["differences"]}
    terms = ("weights", "adapters", "buffers", "gradients", "activations", "rounding", "workspace")
    assert {term: differences[term] for term in terms} == dict.fromkeys(terms, 0)
    assert differences["optimizer"] == 4 * counters
    assert {one["residual"] for one in content["differences"]} <= {0, None}
    assert content["measured"]["moments"]["peak"]["adapters_bytes"] == content["training"]["trained_bytes"] > 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_report_has_every_section(saved: Callable[[str], Path], language: str) -> None:
    shown = run("memory", saved("qwen3"), "--device", "cpu", "--context", "16", "--new-tokens", "2", "--lang", language)
    assert shown.code == 0, shown.err
    headings = re.findall("^=== (.*) ===$", shown.out, re.MULTILINE)
    below = iter(headings[1:])  # the title apart
    for section in DOCUMENT[language]:
        assert any(section in heading for heading in below), section  # each after the one before
    assert shown.err.count("\n") <= 1  # nothing of transformers' or the profiler's


def test_mha_is_not_told_that_it_is_grouped(tmp_path: Path) -> None:
    config = {**FAMILIES["qwen3"], "num_key_value_heads": 4}
    real_model(config).save_pretrained(tmp_path)
    workload = Run(mode="generate", batch=1, prompt_tokens=8, new_tokens=2, attention="sdpa", loader="warmup", gpu="")
    report = measure_run(inspect(str(tmp_path)), workload, Request(device="cpu"), Access())
    shown = markdown.render(document("memory", report, Language("en"), View()))
    assert "Multi-head attention (MHA)" in shown
    assert "Grouped-query" not in shown


def test_another_dtype_is_loaded_and_predicted(saved: Callable[[str], Path]) -> None:
    content = measured(saved("qwen2"), dtype="float32")
    plain = measured(saved("qwen2"))
    assert content["measured"]["weights_bytes"] == 2 * plain["measured"]["weights_bytes"]
    assert content["measured"]["steady_allocated_bytes"] == content["predicted"]["steady_allocated_bytes"]


def test_float32_with_gqa_is_fused_on_cpu(saved: Callable[[str], Path]) -> None:
    content = measured(saved("qwen3"), dtype="float32")
    assert content["measured"]["peak_allocated_bytes"] == content["predicted"]["peak_allocated_bytes"]


def test_random_weights_of_the_catalog_need_no_files(tmp_path: Path) -> None:
    config = {**FAMILIES["qwen3"], "hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = measured(tmp_path / "config.json", random_weights=True)
    assert content["measured"]["steady_allocated_bytes"] == content["predicted"]["steady_allocated_bytes"]
    refused = run("memory", "catalog:Qwen/Qwen3-0.6B", "--device", "cpu")
    assert refused.code == 3


def test_a_plot_has_the_measured_line(saved: Callable[[str], Path], tmp_path: Path) -> None:
    drawn = tmp_path / "run.svg"
    shown = run("memory", saved("qwen3"), "--device", "cpu", "--new-tokens", "3", "--lang", "en", "--plot", drawn)
    assert shown.code == 0, shown.err
    assert "measured" in drawn.read_text(encoding="utf-8").lower()


# --- what cannot be


def test_without_cuda_it_is_said_what_to_install(saved: Callable[[str], Path]) -> None:
    shown = run("memory", saved("qwen3"), "--device", "cuda", "--lang", "en")
    assert (shown.code, shown.out) == (8, "")
    assert "CUDA" in shown.err


def test_a_snapshot_is_of_cuda(saved: Callable[[str], Path], tmp_path: Path) -> None:
    shown = run("memory", saved("qwen3"), "--device", "cpu", "--snapshot", tmp_path / "s.pickle")
    assert shown.code == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--force",), ("--random-weights",), ("--snapshot", "x.pickle")])
def test_options_of_a_device_need_one(option: tuple[str, ...]) -> None:
    assert run("memory", *option).code == 2


def test_weights_that_cannot_fit_are_refused_with_the_sum() -> None:
    """Before any are fetched."""
    shown = run("memory", "catalog:Qwen/Qwen3-235B-A22B", "--device", "cpu", "--lang", "en")
    assert shown.code == 8
    assert "The weights alone" in shown.err
    # 235,093,634,560 parameters of 2 bytes are 437.9 GiB.
    needed, free, short = (float(number) for number in re.findall(r"([\d.]+) GiB", shown.err))
    assert needed > 437.8
    assert abs(needed - free - short) < 0.02


def test_a_run_that_cannot_fit_is_refused_with_the_sum() -> None:
    typed = ("--device", "cpu", "--random-weights", "--batch", "64", "--context", "40960", "--lang", "en")
    shown = run("memory", "catalog:Qwen/Qwen3-0.6B", *typed)
    assert shown.code == 8
    assert "The run needs" in shown.err
    needed, free, short = (float(number) for number in re.findall(r"([\d.]+) GiB", shown.err))
    assert needed > 280  # the cache alone: 4.375 GiB of a sequence
    assert abs(needed - free - short) < 0.02


def test_a_run_that_fits_exactly_is_not_refused() -> None:
    check_capacity(100, 100, "cuda:0")
    check_capacity(100, None, "cuda:0")
    with pytest.raises(UnavailableError):
        check_capacity(101, 100, "cuda:0")
    assert (free_host_bytes() or 0) > 1 << 20


LIMITED = """
import resource, sys
from qwen_inspect.cli import main
import torch, transformers, qwen_inspect.measuring.measure
from transformers import Qwen3ForCausalLM
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_ends_during_a_run_leaves_a_partial_report(saved: Callable[[str], Path], tmp_path: Path) -> None:
    before = set(Path("/tmp").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(600 << 20), "memory", str(saved("qwen3")), "--device", "cpu", "--context",
         "60000", "--attention", "eager", "--force", "--format", "json", "--lang", "en"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert "partial" in done.stderr
    content = json.loads(done.stdout)
    assert content["measured"]["partial"].startswith("memory ran out")
    assert content["predicted"]["peak_allocated_bytes"] > 600 << 20  # what it would have taken
    assert list(tmp_path.iterdir()) == []
    assert {path for path in set(Path("/tmp").iterdir()) - before if "qwen" in path.name} == set()


def test_an_interrupted_run_says_that_it_is_partial(saved: Callable[[str], Path], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_inspect", "memory", str(saved("qwen3")), "--device", "cpu", "--context", "64",
         "--new-tokens", "30000", "--format", "json", "--lang", "en"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        time.sleep(0.1)
    time.sleep(8)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    if out:  # the run had begun
        assert "interrupted" in json.loads(out)["measured"]["partial"]


# --- a record of CUDA's allocator, and what is held against it


# torch.cuda.memory._snapshot() of torch 2.13, as torch/cuda/memory.py describes its keys.
SNAPSHOT = {
    "device_traces": [
        [],
        [
            {"action": "segment_alloc", "addr": 0, "size": 2097152},
            {"action": "alloc", "addr": 0, "size": 100},
            {"action": "alloc", "addr": 512, "size": 24},
            {"action": "free_requested", "addr": 0, "size": 100},
            {"action": "free_completed", "addr": 0, "size": 100},
        ],
    ],
    "segments": [
        {
            "device": 1,
            "address": 4096,
            "blocks": [
                {"size": 512, "requested_size": 100, "state": "active_allocated"},
                {"size": 1024, "requested_size": 0, "state": "inactive"},
                {"size": 512, "requested_size": 512, "state": "active_allocated"},
            ],
        },
        {"device": 0, "address": 9, "blocks": [{"size": 9, "requested_size": 9, "state": "active_allocated"}]},
    ],
}


def test_cudas_history_is_read_as_requests() -> None:
    changes = _cuda_changes(SNAPSHOT, 1)
    assert changes == [Change(100, 0), Change(24, 512), Change(-100, 0)]
    assert _alive_after(changes) == {512: 24}


def test_what_was_not_recorded_is_told_by_the_blocks_that_are_alive() -> None:
    alive = _blocks(SNAPSHOT, 1)
    assert alive == {4096: 100, 4096 + 512 + 1024: 512}
    # The weights lie at 4096; a storage of 64 bytes is gone, one of 512 is new.
    assert _between({128: 64}, alive, {4096: 100}) == [Change(-64, 128), Change(512, 5632)]


def test_without_a_driver_no_process_is_told() -> None:
    assert process_bytes(0) == (None, None)


def test_figures_of_several_devices_are_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own answers are stood in for here, at its edge: there is no such device."""
    import torch

    stats = {
        index: {f"{name}_bytes.all.{when}": index * 100 + 7 for name in ("allocated", "requested", "reserved")
                for when in ("current", "peak")}
        for index in (1, 2)
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "memory_stats", stats.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1000 * index, 5000))
    reading = cuda_reading("load", (1, 2), seconds=0.5)
    assert (reading.allocated, reading.peak_reserved, reading.device_used, reading.device_total) == (
        314,
        314,
        7000,
        10000,
    )
    assert reading.process_used is reading.others_used is None  # no driver tells
    assert reading.seconds == 0.5


def timeline(*events: Allocate | Free) -> Timeline:
    load = (Allocate(0, 8, "model", "parameter"),)
    return Timeline(
        events=(*load, *events), stages=(Stage(name="load", first_event=0), Stage(name="prefill", first_event=1))
    )


def test_scratch_is_told_by_its_operator_and_the_trace_is_found_again() -> None:
    traced = timeline(Allocate(1, 64, "a", "aten.mm.default"), Allocate(2, 32, "b", "aten.add.Tensor"), Free(1))
    record = Record(
        changes=(
            Change(64, 1, ("aten::mm",)), Change(500, 2, ("aten::mm", "aten::empty")), Change(-500, 2),
            Change(32, 3, ("aten::add",)), Change(-64, 1),
        ),
        stages=(Stage(name="prefill", first_event=0),),
    )  # fmt: skip
    found = match(record, traced)
    assert found.missing == ()
    assert found.at_peak.size_bytes == found.peaks["prefill"] == 564
    assert found.at_peak.others == {"aten::mm": (1, 500)}
    assert [one.id for one in found.at_end.traced] == [2]
    assert found.ends == {"prefill": 32}


def test_the_first_request_that_was_never_made_is_named() -> None:
    traced = timeline(Allocate(1, 64, "a", "aten.mm.default"), Allocate(2, 32, "b", "aten.add.Tensor"))
    record = Record(changes=(Change(64, 1, ("aten::mm",)),), stages=(Stage(name="prefill", first_event=0),))
    (missing,) = match(record, traced).missing
    assert (missing.module, missing.size_bytes) == ("b", 32)


def test_the_gpu_script_writes_raw_results_a_table_and_recordings(tmp_path: Path) -> None:
    """On CPU, with small models: the commands, files and table of a GPU. One job of each kind, and one that is refused."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from benchmarks.gpu import measure\n"
        "measure.MEASURED = (measure.MEASURED[0], measure._memory(measure.SMALL, '--context 4 --dtype fp8', 1))\n"
        "measure.LIMITS, measure.RECORDED = measure.LIMITS[1:2], measure.RECORDED[7:8]\n"
        "sys.exit(measure.main())"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, "-o", str(tmp_path), "--try", "--record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["versions"]["device"] == "cpu"
    jobs = sorted(results["jobs"], key=lambda job: int(job["number"]))
    assert [(job["kind"], job["exit"]) for job in jobs] == [("memory", 0), ("memory", 7), ("limit", 0), ("record", 0)]
    table = (tmp_path / "results.md").read_text()
    assert f"{jobs[0]['report']['measured']['steady_allocated_bytes']:,}" in table
    assert "quantised" in table  # why the second was refused
    required, limit = (jobs[2]["report"][f"{name}_bytes"] for name in ("required", "limit"))
    assert required - limit == 2 << 20
    assert (jobs[3]["report"]["failed"], jobs[3]["report"]["off_by_bytes"]) == (None, None)
    assert not (tmp_path / "recordings").exists()  # of a CPU there is nothing to record
    refused = [sys.executable, "benchmarks/gpu/measure.py", "-o", str(tmp_path)]
    assert subprocess.run(refused, capture_output=True, check=False, cwd=root).returncode == 8


def test_a_fraction_of_a_card_is_exactly_the_limit() -> None:
    """torch takes the fraction times the card's bytes, and cuts off what is behind the point."""
    total = 85_017_624_576  # H100 80GB
    for limit in (1, 1_973_420_032, 62_110_063_616, total - 1):
        assert int(fraction_of(limit, total) * total) == limit


# --- a real card's record, and what is held against it

H100_RUN = Path(__file__).parents[1] / "recordings" / "llama-3.1-8b-4-layers.json.gz"
SDPA = "aten._scaled_dot_product_flash_attention.default"


def recorded(path: Path) -> Record:
    """A run of generate as `CudaRecorder` would tell of it: all of the prefill, what the steps after it leave, the last step."""
    run = json.loads(gzip.decompress(path.read_bytes()))
    first = {name: index for name, index, *_ in run["stages"]}
    begins, second = first["emptied"], first["before call 2"]
    last, ends = first[f"before call {run['options']['new']}"], first["generated"]

    def changes(begin: int, end: int) -> list[Change]:
        snapshot = {
            "device_traces": [
                [dict(zip(("action", "size", "addr"), row, strict=False)) for row in run["events"][begin:end]]
            ]
        }
        return _cuda_changes(snapshot, 0)

    prefill = changes(begins, second)
    steps = _between(_alive_after(prefill), _alive_after(changes(0, last)), _alive_after(changes(0, begins)))
    bounds = ("prefill", 0), ("decode", len(prefill)), ("decode", len(prefill) + len(steps))
    return Record(
        changes=(*prefill, *steps, *changes(last, ends)),
        stages=tuple(Stage(name=name, first_event=index) for name, index in bounds),
    )


def test_every_request_of_the_trace_was_made_on_an_h100(tmp_path: Path) -> None:
    """Llama 3.1 8B with 4 layers, 8,192 tokens and 8 more, recorded on an H100 with torch 2.11 and transformers 5.23.

    Attention there is cuDNN's, which without gradients makes no log-sum-exp: 8,192 tokens x 32 heads x 4 bytes.
    """
    run = json.loads(gzip.decompress(H100_RUN.read_bytes()))
    config = {**run["config"], "num_hidden_layers": run["options"]["layers"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    workload = Run(
        prompt_tokens=run["options"]["context"], new_tokens=run["options"]["new"], gpu="h100", loader="per-tensor"
    )
    made = on_device(timeline_of(inspect(str(tmp_path)), workload)[0], workload)
    made = _without_ids(
        made,
        {
            event.id
            for event in made.events
            if isinstance(event, Allocate) and event.operator == SDPA and event.size_bytes in (8192 * 32 * 4, 32 * 4)
        },
    )
    found = match(with_workspaces(recorded(H100_RUN), {run["workspace"]}), made)
    assert found.missing == ()
    assert found.at_peak.others == {"–": (2, 16)}  # numbers of 8 bytes, of which the trace knows nothing
    assert found.at_peak.size_of("workspace") == 33_554_432
    assert found.at_end.others == {}


def _without_ids(whole: Timeline, ids: set[int]) -> Timeline:
    kept = [index for index, event in enumerate(whole.events) if event.id not in ids]
    return Timeline(
        events=tuple(whole.events[index] for index in kept),
        stages=tuple(
            Stage(name=stage.name, first_event=sum(index < stage.first_event for index in kept))
            for stage in whole.stages
        ),
    )


def test_a_request_that_was_never_made_does_not_stop_the_search() -> None:
    names = "abcdef"
    traced = timeline(*(Allocate(at, 64 * at, name, "aten.mm.default") for at, name in enumerate(names, 1)))
    record = Record(
        changes=tuple(Change(64 * at, at) for at in (1, 2, 4, 5, 6)), stages=(Stage(name="prefill", first_event=0),)
    )
    found = match(record, traced)
    assert [request.module for request in found.missing] == ["c"]
    assert [request.module for request in found.at_end.traced] == ["a", "b", "d", "e", "f"]
    assert found.at_end.others == {}


def test_a_workspace_beyond_the_trace_is_no_scratch() -> None:
    """A thread that multiplies has a workspace of its own: autograd's second, where the trace may have only the first."""
    traced = timeline(Allocate(1, 64, "a", "aten.mm.default"), Allocate(2, 32, "", "workspace"))
    changes = (Change(32, 7), Change(-32, 7), Change(64, 1), Change(32, 7), Change(32, 8))
    record = Record(changes=changes, stages=(Stage(name="prefill", first_event=0),))
    named = with_workspaces(record, {7: 32, 8: 32})
    assert [change.operators for change in named.changes] == [(), (), (), ("workspace",), ("workspace",)]
    found = match(named, traced)
    assert found.missing == ()
    assert found.at_end.size_of("workspace") == 64


def test_no_token_of_the_prompt_stands_for_padding() -> None:
    """With a mask of tokens x tokens attention would take another kernel on a GPU, and the mask its own memory."""
    model = real_model({**FAMILIES["qwen3"], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2]})
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    workload = Run(prompt_tokens=5, new_tokens=2, batch=2)
    found = measure(model, workload, None, before=(loaded(model, None),))
    assert found.measurement.partial is None
    assert [given.get("attention_mask") for given in seen] == [None, None]
    assert seen[0]["input_ids"].unique().tolist() == [3]
