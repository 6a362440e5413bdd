"""A pasted command of vLLM and a log of it: what is read, what is refused, and the log beside the prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.vllm.command import parse_command
from qwen_inspect.engines.vllm.connectors import keeps_groups
from qwen_inspect.engines.vllm.log import read_log
from qwen_inspect.engines.vllm.releases import release
from qwen_inspect.errors import UsageError

from ..support.schema import assert_keeps_to_the_schema

Capture = pytest.CaptureFixture[str]
# Lines of a log of vLLM 0.19.0 (llm-d-planner, google-gemma-2-2b-it--h100-80gb--tp1pp1dp1--8192.log), and its parsed figures.
GEMMA = """\
(EngineCore pid=474) INFO 04-22 15:55:29 [v1/engine/core.py:105] Initializing a V1 LLM engine (v0.19.0) with config: model=
(EngineCore pid=474) DEBUG [v1/worker/gpu_worker.py:284] worker init memory snapshot: free_memory=78.68GiB, total_memory=79.19GiB
(EngineCore pid=474) INFO 04-22 15:55:45 [v1/worker/gpu_model_runner.py:4820] Model loading took 4.9 GiB memory and 13.81 seconds
(EngineCore pid=474) DEBUG Memory profiling takes 9.11 seconds. Total non KV cache memory: 8.76GiB; torch peak memory increase: \
3.62GiB; non-torch forward increase memory: 0.24GiB; weights memory: 4.9GiB.
(EngineCore pid=474) INFO Available KV cache memory: 66.47 GiB
(EngineCore pid=474) INFO GPU KV cache size: 670,160 tokens
(EngineCore pid=474) INFO Maximum concurrency for 8,192 tokens per request: 81.73x
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))  # where logs are kept


COMMAND = "vllm serve catalog:google/gemma-2-2b-it --max-model-len 8192 --gpu-memory-utilization 0.95"


def test_options_are_read_as_vllm_spells_them() -> None:
    command = parse_command(
        "HF_TOKEN=x docker run --gpus all -p 8000:8000 docker.io/vllm/vllm-openai:v0.11.2-x86_64 --model a/b -tp=2 "
        "--pipeline_parallel_size 2 --max-model-len 32K --max-num-seqs 64 --max-num-batched-tokens 16k --kv-cache-dtype "
        "fp8_e5m2 --block-size 32 --cpu-offload-gb 2.5 --enforce-eager -ep --dtype half --host 0.0.0.0 --trust-remote-code "
        "--limit-mm-per-prompt image=0,video=0 --hf-overrides '{}'"
    )
    serving = command.serving
    assert (command.model, command.dtype, command.automatic, command.ignored) == (
        "a/b",
        "float16",
        False,
        ("--hf-overrides",),
    )
    assert (serving.version, serving.ranks, serving.pipeline_ranks, serving.context_tokens) == ("0.11.2", 2, 2, 32_768)
    assert (serving.sequences, serving.step_tokens, serving.cache_format, serving.block_tokens) == (
        64,
        16_000,
        "fp8",
        32,
    )
    assert (serving.offloaded_bytes, serving.eager, serving.expert_parallel, serving.images) == (
        2_684_354_560,
        True,
        True,
        False,
    )
    assert parse_command("python -m vllm.entrypoints.openai.api_server --max-model-len auto").automatic


@pytest.mark.parametrize(
    ("limit", "config", "images", "ignored"),
    [
        ("--limit-mm-per-prompt.image 0", {"model_type": "gemma3"}, False, ()),
        ("--limit-mm-per-prompt '{\"image\": 0}'", {"video_token_id": 5}, True, ("--limit-mm-per-prompt",)),
        ("--limit-mm-per-prompt.image 0 --limit-mm-per-prompt.video=0", {"video_token_id": 5}, False, ()),
        ('--limit-mm-per-prompt \'{"image": 0, "video": {"count": 0}}\'', {"video_token_id": 5}, False, ()),
        ("--limit-mm-per-prompt.image.count 0", {}, False, ()),
        ("--limit-mm-per-prompt image=1", {}, True, ()),
        ("--limit-mm-per-prompt [0]", {}, True, ()),
        ("--language-model-only --limit-mm-per-prompt.image 0", {}, False, ()),
    ],
)
def test_a_tower_is_left_out_where_each_of_its_kinds_is_limited_to_none(
    limit: str, config: dict[str, Any], images: bool, ignored: tuple[str, ...]
) -> None:
    command = parse_command(f"vllm serve a/b {limit}").for_model(config, 8192)
    assert (command.serving.images, "vision" in command.serving.without_towers) == (images, not images)
    assert command.ignored == ignored


def test_a_model_that_names_no_limit_gets_2048_tokens() -> None:
    """As vLLM's own warning says."""
    command = parse_command("vllm serve a/b")
    assert command.for_model({}, None).serving.context_tokens == 2048
    assert command.for_model({}, 8192).serving.context_tokens is None
    assert parse_command("vllm serve a/b --max-model-len 99").for_model({}, None).serving.context_tokens == 99


def test_variables_that_change_where_sums_are_made_are_named_and_other_programs_of_vllm_refused() -> None:
    assert parse_command("VLLM_ALLREDUCE_USE_SYMM_MEM=0 vllm serve a/b -tp 2").ignored == (
        "VLLM_ALLREDUCE_USE_SYMM_MEM",
    )
    with pytest.raises(UsageError) as refused:
        parse_command("vllm bench serve --model a/b")
    assert refused.value.message.key == "vllm_command"


def test_a_quantisation_that_is_not_counted_is_named() -> None:
    """bitsandbytes packs weights while it loads them; AWQ's kernels take files that are packed already."""
    counted, of_files, packing = (
        parse_command(f"vllm serve a/b -q {method}") for method in ("fp8", "awq_marlin", "bitsandbytes")
    )
    assert (counted.dtype, counted.ignored) == ("fp8", ())
    assert (of_files.dtype, of_files.ignored) == (None, ())
    assert (packing.dtype, packing.ignored) == (None, ("--quantization bitsandbytes",))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "llama-server -m x",
            "vllm serve 'x",
            "vllm serve x -tp",
            "vllm serve x -tp 0",
            "vllm serve x --block-size y",
        ),
        # "serve" has one positional, nargs="?", a module none (entrypoints/openai/cli_args.py); argparse refuses the rest.
        *("vllm serve x y", "vllm serve x -tp 2 y", "vllm serve x --enforce-eager y", "vllm bench serve --model x"),
        "python -m vllm.entrypoints.openai.api_server x",
        *(f"vllm serve x --kv-transfer-config '{config}'" for config in ("x", "[]", "{}", '{"kv_role": "kv_both"}')),
        """vllm serve x --kv-transfer-config '{"kv_connector": "MultiConnector"}'""",
    ],
)
def test_a_command_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        parse_command(line)


def test_further_values_of_an_option_and_what_a_shell_keeps_are_no_stray_words() -> None:
    for line in (
        "vllm serve a/b --served-model-name c d -tp 2 --cudagraph-capture-sizes 1 2 4 > log 2>&1",
        "cd /srv && vllm serve a/b >>log -tp 2 2>/dev/null | tee x y",
        "vllm serve --model x a/b -tp 2 & disown",
        "vllm serve a/b --model x -tp 2; echo done",
    ):
        command = parse_command(line)
        assert (command.model, command.serving.ranks) == ("a/b", 2)


CONNECTOR = "--kv-transfer-config.kv_connector"
SEVERAL = (
    "--kv-transfer-config "
    """'{"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [%s]}}'"""
)


@pytest.mark.parametrize(
    ("version", "option", "kept"),
    [
        # config/vllm.py of each version; which classes subclass SupportsHMA in its distributed/kv_transfer/kv_connector.
        ("0.12.0", f"{CONNECTOR} NixlConnector --no-disable-hybrid-kv-cache-manager", False),
        ("0.14.0", f"{CONNECTOR} NixlConnector", False),
        ("0.18.0", f"{CONNECTOR} NixlConnector --no-disable-hybrid-kv-cache-manager", True),
        ("0.21.0", f"{CONNECTOR} OffloadingConnector", False),
        ("0.22.0", f"{CONNECTOR} OffloadingConnector", True),
        ("0.22.0", f"{CONNECTOR} LMCacheConnectorV1", False),
        ("0.29.0", f"{CONNECTOR} MoRIIOConnector", False),
        ("0.30.0", f"{CONNECTOR}=MoRIIOConnector", True),
        ("0.33.0", f"{CONNECTOR} NixlConnector --disable-hybrid-kv-cache-manager", False),
        ("0.33.0", f"{CONNECTOR} MyConnector", None),
        ("0.18.0", "--kv-events-config '{}'", False),  # any, up to 0.18; 0.20 does not ask
        ("0.19.0", "--kv-events-config '{}'", None),
        ("0.20.0", "--kv-events-config '{}'", True),
        ("0.33.0", f"{CONNECTOR} NixlConnector --kv-transfer-config.kv_connector_module_path mine", None),
        ("0.33.0", SEVERAL % '{"kv_connector": "NixlConnector"}, {"kv_connector": "OffloadingConnector"}', True),
        ("0.33.0", SEVERAL % '{"kv_connector": "NixlConnector"}, {"kv_connector": "FlexKVConnectorV1"}', False),
    ],
)
def test_a_connector_turns_groups_of_layers_off_by_version_and_class(
    version: str, option: str, kept: bool | None
) -> None:
    command = parse_command(f"vllm serve x {option}")
    assert keeps_groups(release(version).version, command.serving.environment) is kept
    transfers = "--kv-transfer-config" in option
    assert command.ignored == (("--kv-transfer-config",) if transfers else ())  # buffers of its own


def test_without_groups_windows_hold_every_token_and_states_are_refused(capsys: Capture) -> None:
    """Gemma 2 2B: 26 layers, of which 13 have windows of 4,096 tokens, with 4 KV heads of 256 numbers in 2 bytes."""

    def asked(model: str, option: str, version: str) -> list[str]:
        line = f"vllm serve catalog:{model} --max-model-len 8192 {option}"
        return ["fit", "--gpu", "H100", "--format", "json", "--lang", "en", "--vllm", line, "--engine-version", version]

    blocks = []
    for option in ("", f"{CONNECTOR} LMCacheConnectorV1"):
        assert main(asked("google/gemma-2-2b-it", option, "0.22.0")) == 0
        found = json.loads(capsys.readouterr().out)["vllm"]
        blocks.append((found["block_bytes"], found["low"]["sequence_blocks"]))
    layer_bytes = 16 * 2 * 4 * 256 * 2
    assert blocks[1] == (26 * layer_bytes, 8192 // 16)
    assert blocks[0][0] == 13 * layer_bytes
    hybrid = "Qwen/Qwen3.5-9B"
    assert main(asked(hybrid, f"{CONNECTOR} NixlConnector", "0.22.0")) == 0
    capsys.readouterr()
    for option, version, told in (
        (f"{CONNECTOR} NixlConnector", "0.21.0", "states beside attention"),
        ("--disable-hybrid-kv-cache-manager", "0.33.0", "states beside attention"),
        (f"{CONNECTOR} MyConnector", "0.33.0", "MyConnector"),
        (f"{CONNECTOR} LMCacheConnectorV1 --no-disable-hybrid-kv-cache-manager", "0.33.0", "LMCacheConnectorV1"),
        (f"{CONNECTOR} NixlConnector --no-disable-hybrid-kv-cache-manager", "0.14.0", "leave the option out"),
    ):
        assert main(asked(hybrid, option, version)) == 7
        assert told in capsys.readouterr().err
    assert main(asked("Qwen/Qwen3-8B", f"{CONNECTOR} MyConnector", "0.33.0")) == 0  # all layers alike


def test_a_command_takes_what_its_options_ask_for_and_no_option_twice(capsys: Capture) -> None:
    """Half the layers on the last rank of two, and half the heads: the blocks of V0025 and V0027 of the published logs."""
    asked = ["fit", "--gpu", "H100", "--lang", "en", "--format", "json", "--vllm"]
    for option, block_bytes in (("-pp 2", 2**20), ("-tp 2", 2**20), ("--block-size 32", 2**22)):
        main([*asked, f"vllm serve catalog:meta-llama/Llama-3.1-8B-Instruct --max-model-len 8192 {option}"])
        found = json.loads(capsys.readouterr().out)
        assert_keeps_to_the_schema(found)
        assert found["vllm"]["block_bytes"] == block_bytes
    assert main([*asked, COMMAND, "--tp", "2"]) == 2


def test_a_longest_sequence_is_found_for_auto(capsys: Capture) -> None:
    """40,960 tokens of Qwen3-8B take 5.63 GiB, of a card of 24 GiB with 5 for the cache."""
    code = main(
        [
            "fit",
            "--memory",
            "23GiB",
            "--format",
            "json",
            "--vllm",
            "vllm serve catalog:Qwen/Qwen3-8B --max-model-len auto",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert 20_000 < found["workload"]["context_tokens"] < 40_960
    assert found["workload"]["context_tokens"] == found["max_context_tokens"]


def test_a_log_is_set_beside_its_prediction(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "vllm.log").write_text(GEMMA)
    asked = ["fit", "--vllm", COMMAND, "--gpu", "H100", "--log", str(tmp_path / "vllm.log")]
    assert main([*asked, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    assert found["engine_version"] == "0.19.0"
    assert [(line["term"], line["agrees"]) for line in found["log"]] == [
        (name, True) for name in ("weights", "activation", "non_torch", "budget", "tokens")
    ]
    assert found["log"][-1]["printed"] == 670_160
    for language in ("en", "zh"):
        assert main([*asked, "--lang", language]) == 0
        assert "670,160" in capsys.readouterr().out


def test_a_log_that_differs_says_by_how_much_and_where(tmp_path: Path, capsys: Capture) -> None:
    """As if another gibibyte had been taken outside of PyTorch."""
    other = GEMMA.replace("increase memory: 0.24", "increase memory: 1.24").replace("66.47", "65.47")
    (tmp_path / "vllm.log").write_text(other.replace("670,160", "660,078"))
    code = main(
        [
            "fit",
            "--vllm",
            COMMAND,
            "--gpu",
            "H100",
            "--log",
            str(tmp_path / "vllm.log"),
            "--format",
            "json",
            "--lang",
            "en",
        ]
    )
    lines = {line["term"]: line for line in json.loads(capsys.readouterr().out)["log"]}
    assert code == 1
    assert [name for name, line in lines.items() if not line["agrees"]] == ["non_torch", "budget", "tokens"]
    assert abs(lines["non_torch"]["difference"] / 2**30 - 0.965) < 0.005  # above 0.275
    assert abs(lines["budget"]["difference"] / 2**30 + 0.95) < 0.01


def test_lines_of_other_versions_are_read() -> None:
    older = "INFO 08-01 vLLM API server version 0.9.2\nINFO Model loading took 15.2683 GiB and 3.1 seconds\n# GPU blocks: 8505\n"
    log = read_log(older)
    assert (log.version, log.printed) == ("0.9.2", {"weights": "15.2683", "blocks": "8505"})
    assert log.total_bytes is None


def test_an_empty_log_and_a_version_that_is_none_are_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.log").write_text("nothing\n")
    on = ["fit", "catalog:Qwen/Qwen3-0.6B", "--engine", "vllm", "--gpu", "H100"]
    assert main([*on, "--log", str(tmp_path / "empty.log")]) == 2
    assert main([*on, "--log", str(tmp_path / "none.log")]) == 2
    assert main([*on, "--engine-version", "latest"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_a_version_that_was_not_read_is_said_and_widens_the_range(capsys: Capture) -> None:
    """0.20 is the first that takes CUDA graphs off the budget, and 0.92 of the card (config/cache.py, envs.py)."""
    assert [release(name).utilization for name in ("0.19.0", "0.20.0", "v0.33.0")] == [0.9, 0.92, 0.92]
    widths = []
    for version in ("0.33.0", "0.36.0"):
        main(
            [
                "fit",
                "catalog:Qwen/Qwen3-8B",
                "--engine",
                "vllm",
                "--gpu",
                "H100",
                "--engine-version",
                version,
                "--format",
                "json",
            ]
        )
        found = json.loads(capsys.readouterr().out)
        assert "graphs" in [term["term"] for term in found["terms"]]
        widths.append(found["vllm"]["high"]["kv_budget_bytes"] - found["vllm"]["low"]["kv_budget_bytes"])
    assert widths[0] < widths[1]


def test_slots_of_adapters_are_an_a_and_a_b_for_every_matrix(capsys: Capture) -> None:
    """Llama-3.1-8B, 2 slots of rank 32 in bfloat16: q, k, v, o, gate, up and down of 32 layers (lora/layers of 0.19.0)."""
    line = "vllm serve catalog:meta-llama/Llama-3.1-8B-Instruct --max-loras 2 --max-lora-rank 32"
    sums = 2 * 4096 + 2 * (4096 + 1024) + 2 * 4096 + 3 * (4096 + 14_336)  # inputs and outputs
    for option, expected in (("--enable-lora", 2 * 32 * 32 * sums * 2), ("", None)):
        main(["fit", "--gpu", "H100", "--format", "json", "--vllm", f"{line} {option}"])
        terms = {term["term"]: term["least_bytes"] for term in json.loads(capsys.readouterr().out)["terms"]}
        assert terms.get("adapters") == expected


def test_asleep_it_keeps_its_weights_in_the_hosts_memory_and_no_cache(capsys: Capture) -> None:
    """Of a Qwen3-8B: 8,190,735,360 parameters and a rotary table of 40,960 positions; graphs stay unless it runs eagerly."""
    kept = []
    for option in ("", "--enforce-eager"):
        line = f"vllm serve catalog:Qwen/Qwen3-8B --enable-sleep-mode {option}"
        assert main(["fit", "--gpu", "H100", "--format", "json", "--vllm", line]) == 0
        kept.append(json.loads(capsys.readouterr().out)["vllm"]["asleep"])
    assert kept[0]["host_bytes"] == 2 * 8_190_735_360 + 40_960 * 128 * 2
    assert kept[0]["most_bytes"] < 4 * 2**30
    assert kept[0]["least_bytes"] - kept[1]["least_bytes"] == 64 * 2**30 // 100
    on = ["fit", "catalog:Qwen/Qwen3-8B", "--engine", "vllm", "--gpu", "H100"]
    for language, told in (("en", "Asleep"), ("zh", "休眠")):
        assert main([*on, "--enable-sleep-mode", "--lang", language]) == 0
        assert told in capsys.readouterr().out
