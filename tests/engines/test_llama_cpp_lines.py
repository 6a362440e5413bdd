"""Lines as they stand in threads: what starts a program of llama.cpp, which it is, and the files that it takes of a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.engines.llama_cpp.commands.command import parse_command
from qwen_inspect.engines.llama_cpp.ggml.scheduler import HOST
from qwen_inspect.engines.llama_cpp.options import EXPERTS, LlamaCppOptions
from qwen_inspect.errors import UsageError
from qwen_inspect.loaders.llama_cpp_hub import model_in, projector_in

from ..hub.repos import HubFile, HubRepo
from ..hub.server import HubServer
from ..support.asking import ask_json
from ..support.llama_cpp_small import write_small
from ..support.llama_cpp_towers import write_tower

SERVED = parse_command("llama-server -m a.gguf -c 4096")


@pytest.mark.parametrize(
    "line",
    [
        "-m a.gguf -c 4096",
        "./build/bin/server -m a.gguf --ctx_size 4096",  # as it was called until 2024; underscores for hyphens
        "sudo nice -n 5 /opt/llama.cpp/build/bin/llama-server -m a.gguf -c 4096 2>&1 | tee server.log",
        "llama serve -m a.gguf -c 4096 > out.txt",
        "llama-server\u00a0\u00a0–m a.gguf —ctx-size “4096” # as a web page sets it",
        "export LLAMA_ARG_CTX_SIZE=4096; llama-server -m a.gguf",
        "LLAMA_ARG_CTX_SIZE=8192 LLAMA_ARG_MODEL=b.gguf llama-server -m a.gguf -c 4096",  # options override variables
        "docker run --gpus all -p 8080:8080 -v /srv/main:/models -e LLAMA_ARG_CTX_SIZE=4096 --name llama-server "
        "ghcr.io/ggml-org/llama.cpp:server-cuda -m a.gguf",
        "docker run ghcr.io/ggml-org/llama.cpp:full-cuda --server -m a.gguf -c 4096",
    ],
)
def test_what_starts_the_program_does_not_change_it(line: str) -> None:
    assert parse_command(line) == SERVED


@pytest.mark.parametrize(
    ("variables", "changed"),
    [
        ("LLAMA_ARG_N_GPU_LAYERS=12 LLAMA_ARG_CACHE_TYPE_K=q8_0", {"offloaded": 12, "key_type": "q8_0"}),
        ("LLAMA_ARG_NO_KV_OFFLOAD=1 LLAMA_ARG_UBATCH=1024", {"cache_on_cards": False, "micro_batch": 1024}),
        ("LLAMA_ARG_KV_OFFLOAD=0 LLAMA_ARG_N_PARALLEL=2", {"cache_on_cards": False, "sequences": 2}),
        ("LLAMA_ARG_FLASH_ATTN=off LLAMA_ARG_NO_MMAP=1", {"flash_attention": False, "memory_mapped": False}),
        ("LLAMA_ARG_CPU_MOE=true LLAMA_ARG_SWA_FULL=0", {"overrides": ((EXPERTS, HOST),)}),
    ],
)
def test_variables_set_options(variables: str, changed: dict[str, Any]) -> None:
    """Source: llama.cpp b11434, common/arg.cpp (set_env)."""
    expected = LlamaCppOptions(**{"context_tokens": 4096, **changed})
    assert parse_command(f"{variables} llama-server -m a.gguf -c 4096").options == expected


def test_a_variable_that_is_not_known_is_named() -> None:
    assert parse_command("LLAMA_ARG_FROBNICATE=1 llama-server -m a.gguf").ignored == ("--frobnicate",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llama-perplexity -f w.raw", {"context_tokens": 2048, "batch": 2048, "sequences": 4}),  # four chunks of 512
        ("llama-imatrix -c 4096", {"context_tokens": 4096, "batch": 2048, "sequences": 1}),
        ("llama-embedding -c 4096", {"batch": 4096, "sequences": 256, "unified": True, "embedding": True}),
        ("llama-batched-bench -npl 1,8,4", {"sequences": 8}),
        ("llama-server --gpt-oss-20b-default", {"context_tokens": 262_144, "sequences": 2, "micro_batch": 2048}),
    ],
)
def test_programs_have_sizes_of_their_own(line: str, expected: dict[str, Any]) -> None:
    """Source: llama.cpp 0c1e57098, tools/perplexity, tools/imatrix, tools/batched-bench and examples/embedding; arg.cpp."""
    options = parse_command(line).options
    assert {name: getattr(options, name) for name in expected} == expected


def test_the_largest_test_of_llama_bench_counts() -> None:
    """Contexts of 512 and 4,096 tokens behind 8,192 are tried, and one of 2,048 + 256. Source: llama-bench.cpp."""
    line = "llama-bench -m a.gguf -p 512,1024-4096*2 -n 0 -pg 2048,256 -d 0,8192 -r 3 -ub 512,1024 -ts 3/1 -fa 1 -nkvo 1 -mmp 0"
    assert parse_command(f"{line} -ot 'ffn_up=CPU;ffn_gate=CPU' -o json").options == LlamaCppOptions(
        program="llama-bench",
        context_tokens=12_288,
        micro_batch=1024,
        split=(3.0, 1.0),
        cache_on_cards=False,
        memory_mapped=False,
        overrides=(("ffn_up", HOST), ("ffn_gate", HOST)),
        fits=False,
    )
    assert parse_command("llama-bench").options.context_tokens == 512
    with pytest.raises(UsageError, match="-ngl 10,20"):
        parse_command("llama-bench -ngl 10,20")


def test_llama_cli_starts_a_server_of_a_sequence() -> None:
    """Source: llama.cpp 0c1e57098, tools/cli/cli-server.h. llama-completion reserves logits of every token."""
    assert parse_command("llama-cli").options.outputs == 1
    assert parse_command("llama-completion").options.outputs is None


def test_other_programs_are_named() -> None:
    command = parse_command("koboldcpp --model a.gguf --contextsize 4096")
    assert (command.unknown_program, command.ignored) == ("koboldcpp", ("--contextsize",))


def test_models_are_named_in_other_ways() -> None:
    def model(line: str) -> str | None:
        return parse_command(line).model

    url = "https://huggingface.co/Qwen/Qwen3-8B-GGUF/resolve/main/Qwen3-8B-Q8_0.gguf?download=true"
    assert model(f"llama-server -mu {url}") == "hf:Qwen/Qwen3-8B-GGUF:Qwen3-8B-Q8_0.gguf"
    assert model("llama-server --fim-qwen-7b-spec") == "hf:ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF"
    assert [file.path for file in parse_command("llama-cli --lora a.gguf,b.gguf").beside] == ["a.gguf", "b.gguf"]


FILES = (
    *("BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m-Q3_K_M.gguf", "m-Q8_0.gguf"),
    *("mmproj-m-BF16.gguf", "mmproj-m-F32.gguf", "mmproj-m-Q8_0.gguf", "mtp-m-Q4_K_M.gguf", "imatrix.gguf"),
)


@pytest.mark.parametrize(
    ("tag", "model", "projector"),
    [
        (None, "m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"),  # no Q4_K_M; of the projectors the one with as many bits
        ("bf16", "BF16/m-BF16-00001-of-00002.gguf", "mmproj-m-BF16.gguf"),
        ("Q3_K_M", "m-Q3_K_M.gguf", "mmproj-m-Q8_0.gguf"),
        ("Q6_K", None, None),
    ],
)
def test_a_repositorys_files_are_chosen_as_llama_cpp_does(
    tag: str | None, model: str | None, projector: str | None
) -> None:
    """Source: llama.cpp b11434, common/download.cpp."""
    assert model_in(FILES, tag) == model
    assert projector_in(FILES, model or "") == projector or model is None


def test_the_projector_of_a_repository_is_loaded_too(tmp_path: Path) -> None:
    """Unless --no-mmproj forbids it; the model is the tag's, else Q8_0 where there is no Q4_K_M."""
    files = {
        "m-Q8_0.gguf": HubFile(path=write_small(tmp_path / "m.gguf", "qwen3vl")),
        "mmproj-m-F16.gguf": HubFile(path=write_tower(tmp_path / "p.gguf", "qwen3vl_merger")),
    }
    with HubServer([HubRepo("org/seeing", files)]) as hub:

        def projectors(line: str) -> list[str]:
            command = ("--llama-cpp", f"{line} -c 512 -hf org/seeing", "--memory", "2GiB")
            answer = ask_json(hub, tmp_path, "fit", *command)
            assert any("m-Q8_0.gguf" in notice for notice in answer["assumptions"])
            return [one["device"] for one in answer["buffers"] if one["name"] == "projector"]

        assert projectors("llama-server") == ["CUDA0"]
        assert projectors("llama-server --no-mmproj") == []
