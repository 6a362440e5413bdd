"""`fit --llama-cpp`: commands as they are typed, cards together, and logs read back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.llama_cpp.commands.command import BesideFile, parse_command
from qwen_inspect.engines.llama_cpp.commands.logs import read_log
from qwen_inspect.engines.llama_cpp.options import LlamaCppOptions

from ..support.llama_cpp_files import COMMON, write_header
from ..support.llama_cpp_small import SMALL, write_small
from ..support.llama_cpp_towers import write_tower
from ..support.schema import assert_keeps_to_the_schema


def test_a_command_is_read_as_llama_cpp_reads_it() -> None:
    """Short, long and joined spellings, variables before the program, line ends, what is unknown and what allocates nothing."""
    command = parse_command(
        'CUDA_VISIBLE_DEVICES="0,1" ./build/bin/llama-server.exe --model /m/a.gguf --ctx-size=32768 -b 4096 -ub 1024 \\\n'
        "-ngl 99 -ctk q8_0 --cache-type-v q8_0 -fa on -np 2 -kvu --swa-full -nkvo -ts 3,1 -sm layer --n-cpu-moe 2 "
        "-ot 'blk\\.9\\.=CUDA1,exps=CPU' --no-mmap -t 16 --frobnicate 7 --mlock --mmproj p.gguf --temp 0.6 "
        "-lv 4 -fit off --no-display-prompt"
    )
    assert command.options == LlamaCppOptions(
        program="llama-server",
        context_tokens=32_768,
        batch=4096,
        micro_batch=1024,
        offloaded=99,
        key_type="q8_0",
        value_type="q8_0",
        sequences=2,
        unified=True,
        full_window=True,
        cache_on_cards=False,
        split=(3.0, 1.0),
        memory_mapped=False,
        fits=False,
        overrides=(
            (r"blk\.(0|1)\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
            (r"blk\.9\.", "CUDA1"),
            ("exps", "CPU"),
        ),
    )
    assert (command.model, command.ignored, command.beside, command.locked) == (
        "/m/a.gguf",
        ("--frobnicate",),
        (BesideFile(kind="projector", option="--mmproj", path="p.gguf"),),
        True,
    )
    for line_end in ("\\", "\\ ", "^\r", "`"):
        assert parse_command(f"llama-cli {line_end}\n -c 512 {line_end}").options.context_tokens == 512
    assert parse_command("llama-cli -hf ggml-org/gemma-3-4b-it-GGUF").model == "hf:ggml-org/gemma-3-4b-it-GGUF"
    assert parse_command("llama-cli -hf Qwen/Qwen3-8B-GGUF:Q8_0 -ngl all").model == "hf:Qwen/Qwen3-8B-GGUF:Q8_0"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "small.gguf", "qwen3")


@pytest.mark.parametrize(
    ("command", "further", "said"),
    [
        ("llama-server -c many", [], "-c takes a number, found 'many'"),
        ("llama-server -c", [], "-c needs a value"),
        ("llama-server -ot 'exps", [], "quotation mark"),
        ("", [], "is empty"),
        ("llama-server --cpu-moe --n-cpu-moe 3", [], "--cpu-moe and --n-cpu-moe contradict"),
        ("llama-server -ctv q8_0 -fa off", [], "refuses V in q8_0 without flash attention"),
        ("llama-server -ts 1,1", ["--gpu", "RTX 4090"], "2 shares for 1 cards"),
        ("llama-server -ot exps=CUDA1", ["--gpu", "RTX 4090"], "known are CUDA0, CPU"),
        ("llama-server -ot '(a)\\1=CPU'", ["--gpu", "RTX 4090"], "bounded time"),
        ("llama-server -ot exps", [], "PATTERN=DEVICE"),
        ("llama-server --spec-type mtp", [], "--spec-type takes none, draft-simple, draft-mtp"),
        ("llama-server -np 0", [], "refuses -np 0"),
        ("llama-server -fit maybe", [], "-fit takes on, off"),
        ("llama-server -sm column", [], "none, layer, row or tensor"),
        ("llama-server -sm row", ["--gpu", "RTX 4090"], "refuses -sm row"),
        ("llama-server -sm none -mg 1", ["--gpu", "RTX 4090"], "-mg 1 names no card"),
        ("llama-server", ["--context", "4k"], "--context belongs into the command"),
        ("llama-server", ["--tp", "2"], "--tp is an option of vllm"),
        ("llama-server", ["--engine", "vllm"], "--llama-cpp is an option of llama.cpp"),
        ("llama-server", ["--log", "/no/such"], "No such file"),
    ],
)
def test_what_contradicts_itself_is_said_by_one_sentence(
    small: Path, command: str, further: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(small), "--lang", "en", "--llama-cpp", command, *further]) == 2
    assert said in capsys.readouterr().err


def answer(capsys: pytest.CaptureFixture[str], *asked: str) -> tuple[int, dict[str, Any]]:
    code = main(["fit", "--lang", "en", "--format", "json", *asked])
    return code, json.loads(capsys.readouterr().out)


def test_unequal_cards_and_the_host_answer_together(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-m names the model. An unknown option is named; what fits leaves 1 GiB."""
    command = f"llama-server -m {small} -c 8192 --frobnicate"
    cards = ("--gpu", "RTX 3090,RTX 3060 12GB", "--host-memory", "64GiB")
    code, found = answer(capsys, "--llama-cpp", command, *cards)
    assert (code, found["fits"], found["ignored_options"]) == (0, True, ["--frobnicate"])
    assert [device["device"] for device in found["devices"]] == ["CUDA0", "CUDA1", "CPU"]
    for device in found["devices"]:
        on_device = [one["bytes"] for one in found["buffers"] if _device(one["device"]) == device["device"]]
        assert device["required_bytes"] == sum(on_device)
    assert (found["max_context_tokens"], found["max_ngl"], found["min_n_cpu_moe"]) == (32_768, 4, None)
    assert_keeps_to_the_schema(found)
    code, found = answer(capsys, "--llama-cpp", command, "--gpu", "RTX 3090", "--host-memory", "1MiB")
    assert (code, found["fits"]) == (1, False)


def test_a_dense_model_is_quantised_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """17.28 GiB is the size that ik_llama.cpp 8337e4cd printed of the published file."""
    asked = ("catalog:Qwen/Qwen3-30B-A3B", "--quant", "Q4_K_M", "--gpu", "RTX 3090")
    _, found = answer(capsys, *asked, "--llama-cpp", "llama-server -ngl 99")
    files = [one["bytes"] for one in found["buffers"] if one["name"] == "weights"]
    assert f"{sum(files) / 2**30:.2f}" == "17.28"


def _device(name: str) -> str:
    return name if name in ("CUDA0", "CUDA1") else "CPU"


@pytest.mark.parametrize(
    ("key", "option", "further"),
    [("max_context_tokens", "-c", 256), ("max_ngl", "-ngl", 1), ("min_n_cpu_moe", "-ncmoe", -1)],
)
def test_the_best_answers_fit_and_further_ones_do_not(
    tmp_path: Path, key: str, option: str, further: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for again by themselves, on a card that not all of a mixture fits."""
    path = write_small(tmp_path / "model.gguf", "qwen3moe")
    command = f"llama-completion -m {path} -ub 64 -c 4096"
    memory = ("--memory", "1040MiB")
    best = answer(capsys, "--llama-cpp", command, *memory)[1][key]
    for value, fits in ((best, True), (best + further, None)):
        _, again = answer(capsys, "--llama-cpp", f"{command} {option} {value}", *memory)
        assert again["devices"][0]["fits"] is fits


def test_a_projector_is_counted_by_its_weights(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here the model's own file stands for one: its tensors' bytes as the gguf package reads them."""
    command = f"llama-server -m {small} -c 4096 --mmproj {small}"
    _, found = answer(capsys, "--llama-cpp", command, "--gpu", "RTX 4090")
    (projector,) = (one for one in found["buffers"] if one["name"] == "projector")
    weights = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(small).tensors)
    assert (projector["bytes"], projector["low_bytes"], found["fits"]) == (None, weights, None)


def test_a_draft_model_has_buffers_of_its_own(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as the model's context, a row of logits each sequence: 3 layers x 4,096 cells x 128 numbers, K in 34 bytes for 32
    numbers, padded to 512, and V in 2 bytes; 2 rows of 8,000 logits in 4 bytes. The model has rows for drafts of 5 tokens: 2 x 6.
    """
    draft = f"-md {small} --spec-type draft-simple --spec-draft-n-max 5 -ngld 99 -ctkd q8_0"
    command = f"llama-server -m {small} -c 8192 -np 2 -ngl 99 {draft}"
    _, found = answer(capsys, "--llama-cpp", command, "--gpu", "RTX 4090")
    assert_keeps_to_the_schema(found)
    drafts = {(one["name"], one["device"]): one["bytes"] for one in found["buffers"] if one["context"] == "draft"}
    assert drafts["cache", "CUDA0"] == 2 * (3 * 4096 * 128 // 32 * 34 + 3 * 4096 * 128 * 2) + 3 * 512
    assert drafts["output", "CUDA_Host"] == 2 * 8000 * 4
    own = {(one["name"], one["device"]): one["bytes"] for one in found["buffers"] if one["context"] == "model"}
    assert own["weights", "CUDA0"] == drafts["weights", "CUDA0"]
    assert found["fits"]
    assert found["max_context_tokens"] == 2 * 32_768
    (total, _) = found["devices"]
    assert total["required_bytes"] == sum(one["bytes"] for one in found["buffers"] if one["device"] == "CUDA0")


def test_logs_of_all_times_are_read() -> None:
    """Lines of logs in ggml-org/llama.cpp pull requests 6122 and 23792 and issue 27680, and ik_llama.cpp pull request 237."""
    log = read_log(
        "main: build = 3772 (5236c98b)\n"
        "llm_load_tensors:        CPU buffer size =  1640.62 MiB\n"
        "llama_new_context_with_model: fused_moe  = 1\n"
        "llama_kv_cache_init:      CUDA0 KV buffer size =  1536.00 MiB\n"
        "llama_new_context_with_model: KV self size  = 5120.00 MiB, K (f16): 2560.00 MiB, V (f16): 2560.00 MiB\n"
        "\x1b[34m1.14.608.918\x1b[0m \x1b[32mI \x1b[0mllama_context:  CUDA_Host  output buffer size =     0.49 MiB\n"
        "[53871] 0.09.036.819 I llama_memory_recurrent:     Meta() RS buffer size =   124.69 MiB\n"
        "llama_new_context_with_model:     CUDA10 compute buffer size =  5718.01 MiB\n"
    )
    assert (log.build, log.commit, log.fork) == ("b3772", "5236c98b", True)
    assert log.printed() == (
        ("weights", "CPU", 164_062),
        ("cache", "CUDA0", 153_600),
        ("output", "CUDA_Host", 49),
        ("state", "Meta", 12_469),
        ("compute", "CUDA10", 571_801),
    )


LOG = """build: 5300 (36667c8e) with cc for x86_64-linux-gnu
load_tensors:        CUDA0 model buffer size =     {weights} MiB
llama_context:  CUDA_Host  output buffer size =     0.03 MiB
llama_kv_cache_unified:      CUDA0 KV buffer size =    6.00 MiB
llama_context:      CUDA0 compute buffer size =   17.64 MiB
llama_context:  CUDA_Host compute buffer size =   99.00 MiB
"""


def test_a_log_is_set_beside_the_prediction(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three layers of K and V: 2 x 2 heads x 64 numbers x 4,096 cells x 2 bytes are 6.00 MiB. What differs is named."""
    path = tmp_path / "log.txt"
    path.write_text(LOG.format(weights="9.31"), encoding="utf-8")
    asked = (
        "--llama-cpp",
        f"llama-cli -m {small} -c 4096 -ngl 99 -fa --no-mmap",
        "--memory",
        "24GiB",
        "--log",
        str(path),
    )
    code, found = answer(capsys, *asked)
    assert (code, found["engine_version"], found["build_is_known"]) == (1, "36667c8e", True)
    lines = {(line["name"], line["device"]): line for line in found["log"]}
    assert lines["cache", "CUDA0"]["agrees"]
    assert lines["output", "CUDA_Host"]["agrees"]
    assert lines["compute", "CUDA_Host"] == {
        "name": "compute",
        "device": "CUDA_Host",
        "printed_mib": "99.00",
        "agrees": False,
        "predicted_bytes": lines["compute", "CUDA_Host"]["predicted_bytes"],
    }
    assert lines["weights", "CUDA_Host"]["printed_mib"] is None  # the embedding, which this log lacks
    fused = LOG + "llama_new_context_with_model: fused_moe  = 1\n"
    for text, number, nearest in (
        (LOG, 8000, "b10178"),
        (LOG, 12_345, "b11549"),
        (fused, 4000, "ik_llama.cpp 5236c98b"),
    ):
        path.write_text(
            text.replace("5300 (36667c8e)", f"{number} (0123456789)").format(weights="9.31"), encoding="utf-8"
        )
        _, found = answer(capsys, *asked)
        assert (found["build_is_known"], found["engine_version"]) == (False, nearest)
        assert any(f"b{number}" in notice and nearest in notice for notice in found["assumptions"])
        computing = [one for one in found["buffers"] if one["name"] == "compute"]
        assert all(one["bytes"] is None and one["low_bytes"] <= one["high_bytes"] for one in computing)
        assert (
            next(line for line in found["log"] if line["printed_mib"] == "99.00")["agrees"] is False
        )  # no build has it
    path.write_text(LOG.replace("5300 (36667c8e)", "8000 (0123456789)").format(weights="9.31"), encoding="utf-8")
    _, found = answer(capsys, *asked)
    compute = [one for one in found["buffers"] if one["name"] == "compute"]
    assert all(one["bytes"] is None and one["low_bytes"] <= one["high_bytes"] for one in compute)
    assert any(one["low_bytes"] < one["high_bytes"] for one in compute)


def test_what_a_command_leaves_open_is_as_its_log_prints_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """n_ctx and the layers on the card, which --fit may have chosen; a first load, to measure, does not count."""
    path = tmp_path / "log.txt"
    lines = LOG.splitlines()
    sizes = ["load_tensors: offloaded {}/4 layers to GPU", "llama_context: n_ctx         = {}"]
    loads = [
        line.format(value)
        for tokens, layers in ((32_768, 4), (8192, 2))
        for line, value in zip(sizes, (layers, tokens), strict=True)
    ]
    path.write_text(
        "\n".join(
            [
                lines[0].replace("5300 (36667c8e)", "11549"),
                loads[0],
                lines[1],
                loads[1],
                *lines[2:],
                *loads[2:],
                *lines[2:],
            ]
        ),
        encoding="utf-8",
    )
    command = ("--memory", "24GiB", "--log", str(path), "--llama-cpp")
    _, found = answer(capsys, *command, f"llama-server -m {small}")
    assert (found["workload"]["context_tokens"], found["workload"]["ngl"]) == (8192, 2)
    _, found = answer(capsys, *command, f"llama-server -m {small} -c 512 -ngl 3")
    assert (found["workload"]["context_tokens"], found["workload"]["ngl"]) == (512, 3)


def test_devices_are_used_in_the_order_given(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As -dev lists them, the draft's as -devd; ROCm's and Vulkan's names mean cards too."""
    command = f"llama-server -m {small} -c 4096 -md {small} --spec-type draft-simple -ngl 99 -ngld 99"
    cards = ("--gpu", "RTX 4090,RTX 4090")

    def devices(options: str, context: str) -> list[str]:
        _, found = answer(capsys, "--llama-cpp", f"{command} {options}", *cards)
        shown = (one["device"] for one in found["buffers"] if (one["name"], one["context"]) == ("cache", context))
        return [*shown]

    assert devices("-dev CUDA1", "model") == devices("-dev CUDA1", "draft") == ["CUDA1"]
    assert devices("-dev CUDA1 -devd CUDA0", "draft") == ["CUDA0"]
    assert devices("-dev none -devd ROCm1", "model") == ["CPU"]
    assert devices("-dev Vulkan1,Vulkan0 -ts 1,0", "model") == ["CUDA1"]
    _, vulkan = answer(capsys, "--llama-cpp", f"llama-cli -m {small} -c 512 -ot 'ffn=Vulkan0'", *cards)
    assert any("Vulkan" in notice for notice in vulkan["assumptions"])
    assert main(["fit", "--llama-cpp", f"llama-cli -m {small} -c 512 -dev CUDA2", *cards]) == 2
    assert "-dev names the device CUDA2" in capsys.readouterr().err


def test_a_draft_of_a_hub_is_named_as_such() -> None:
    command = parse_command("llama-server -hf ggml-org/Qwen3-8B-GGUF -hfd ggml-org/Qwen3-0.6B-GGUF:Q8_0 -mmdev none")
    assert command.beside == (BesideFile(kind="draft", option="-hfd", path="hf:ggml-org/Qwen3-0.6B-GGUF:Q8_0"),)
    assert (command.projector_on_card, command.ignored) == (False, ())


def test_the_largest_quantisation_fits_and_the_next_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Of llama-quantize's, with a configuration alone: both are asked for again by name."""
    asked = ("catalog:Qwen/Qwen3-0.6B", "--llama-cpp", "llama-server -c 4096", "--memory", "2100MiB")
    assert main(["fit", "--lang", "en", "--format", "json", *asked, "--quant", "largest"]) == 0
    form = r"(\w+) \(([\d,]+) bytes\) is the largest of \d+ quantisations that fits; (\w+) \("
    shown = capsys.readouterr()
    match = re.search(form, shown.err)
    assert match is not None
    fitting, size, further = match.groups()
    assert json.loads(shown.out)["quantisation"] == {"name": fitting, "bytes": int(size.replace(",", ""))}
    for scheme, fits in ((fitting, True), (further, None)):
        main(["fit", "--lang", "en", "--format", "json", *asked, "--quant", scheme])
        shown = capsys.readouterr()
        assert json.loads(shown.out)["fits"] is fits
        assert scheme != fitting or size in shown.err


def test_the_largest_file_of_a_folder_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three files of one model; the projector beside them is none. With too little memory the smallest is shown."""
    layers, keys, tensors = SMALL["llama"]
    for kind in ("Q4_0", "Q8_0", "F16"):
        stored = [(name, shape, kind if old == "F16" else old) for name, shape, old in tensors()]
        write_header(tmp_path / f"m-{kind}.gguf", "llama", {**COMMON, "block_count": layers, **keys}, stored)
    write_tower(tmp_path / "mmproj-m.gguf", "gemma3")
    _, whole = answer(capsys, "--llama-cpp", f"llama-server -c 512 -m {tmp_path}/m-F16.gguf", "--memory", "2GiB")
    less = f"{(whole['devices'][0]['required_bytes'] + 2**30) // 2**20}MiB"
    for memory, name, fits in (("1200MiB", "F16", True), (less, "Q8_0", True), ("10MiB", "Q4_0", None)):
        command = (str(tmp_path), "--llama-cpp", "llama-server -c 512", "--quant", "largest", "--memory", memory)
        main(["fit", "--lang", "en", "--format", "json", *command])
        shown = capsys.readouterr()
        assert f"m-{name}.gguf" in shown.err, memory
        found = json.loads(shown.out)
        assert found["fits"] is fits
        file = tmp_path / f"m-{name}.gguf"
        assert found["quantisation"] == {"name": str(file), "bytes": file.stat().st_size}
    single = (str(tmp_path / "m-F16.gguf"), "--llama-cpp", "llama-server", "--quant", "largest")
    assert main(["fit", *single, "--memory", "1GiB"]) == 2
    assert main(["fit", *single]) == 2
