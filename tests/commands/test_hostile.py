"""Files, variables and signals that ended in a traceback or took minutes and gigabytes, each in its smallest form."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect import MalformedError
from qwen_inspect.loaders.gguf_header import read_header

from ..support.invoking import Capture, invoke, refusal, write_bytes
from ..support.models import TINY_QWEN3, write_config

TINY_QWEN3_NEXT = {
    **TINY_QWEN3,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def with_text(config: Mapping[str, Any], more: str) -> bytes:
    """`config` with what json.dumps would not write."""
    return f"{json.dumps(config)[:-1]},{more}}}".encode()


# --- numbers


@pytest.mark.parametrize("number", ["1e308", "9" * 4_300, "1" + "0" * 400])
def test_a_factor_past_every_model_is_refused(number: str, tmp_path: Path, capsys: Capture) -> None:
    write_bytes(tmp_path / "config.json", with_text(TINY_QWEN3_NEXT, f'"partial_rotary_factor":{number}'))
    assert "partial_rotary_factor" in refusal(capsys, 6, "params", tmp_path)


@pytest.mark.parametrize("changed", [{"lora_alpha": 10**400}, {"alpha_pattern": {"q_proj": 10**400}}, {"r": 10**400}])
def test_an_adapters_number_past_every_adapter_is_refused(
    changed: Mapping[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path / "base", TINY_QWEN3)
    config = {**ADAPTER, **changed, "base_model_name_or_path": str(tmp_path / "base")}
    write_bytes(tmp_path / "adapter_config.json", json.dumps(config).encode())
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    write_bytes(tmp_path / "adapter_model.safetensors", struct.pack("<Q", len(header)) + header + bytes(4))
    assert "an integer of 1329 bits" in refusal(capsys, 6, "params", tmp_path)


# --- JSON


@pytest.mark.parametrize("depth", [65, 972])
def test_nesting_that_no_model_has_is_refused_whoever_walks_through_it(
    depth: int, tmp_path: Path, capsys: Capture
) -> None:
    write_bytes(tmp_path / "config.json", with_text(TINY_QWEN3, f'"x":{"[" * depth}{"]" * depth}'))
    for command in (["compare", "catalog:Qwen/Qwen3-8B"], ["config"], ["memory"]):
        assert "nested too deeply" in refusal(capsys, 6, *command, tmp_path)


@pytest.mark.parametrize("values", ["[],", "1,", "{},", '"é",'])
def test_more_values_than_any_model_has_are_not_parsed(values: str, tmp_path: Path, capsys: Capture) -> None:
    write_bytes(tmp_path / "config.json", with_text(TINY_QWEN3, f'"x":[{values * 600_000}1]'))
    assert "600,000 values" in refusal(capsys, 6, "params", tmp_path)


def test_text_that_takes_four_times_its_bytes_has_a_lower_cap(tmp_path: Path, capsys: Capture) -> None:
    write_bytes(tmp_path / "config.json", with_text(TINY_QWEN3, f'"x":"{"a" * 10_000_000}😀"'))
    assert "10,000,000 bytes" in refusal(capsys, 6, "params", tmp_path)


# --- weights


@pytest.mark.parametrize("shape", ["[],", "1,"])
def test_a_safetensors_header_of_more_values_than_any_model_has_is_refused(
    shape: str, tmp_path: Path, capsys: Capture
) -> None:
    header = b'{"a":{"dtype":"F32","shape":[%s1],"data_offsets":[0,4]}}' % (shape.encode() * 600_000)
    write_bytes(tmp_path / "model.safetensors", struct.pack("<Q", len(header)) + header + bytes(4))
    assert "600,000 values" in refusal(capsys, 6, "weights", tmp_path)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(tensors: int, keys: int, *parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(parts)


QWEN3_OF_ONE_LAYER = (
    *(text(b"general.architecture"), struct.pack("<I", 8), text(b"qwen3")),
    *(text(b"qwen3.block_count"), struct.pack("<II", 4, 1)),
)
NUMBERS = struct.pack("<IIQ", 9, 6, 10_000) + bytes(4 * 10_000)  # a list of 10,000 floats


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gguf(1, 2, *QWEN3_OF_ONE_LAYER, text(b"token_embd.weight"), bytes(16), bytes(64)), "num_attention_heads"),
        (gguf(0, 1, text(b"t"), struct.pack("<IIQQ", 9, 8, 3, (1 << 63) - 40)), "ends within its header"),
        (gguf(0, 1, text(b"t"), struct.pack("<IQ", 8, (1 << 63) - 40)), "ends within its header"),
        (gguf(65_537, 0), "65,537 tensors"),
        (gguf(0, 101, *(text(b"%d" % key) + NUMBERS for key in range(101))), "4,000,000 bytes"),
    ],
    ids=["scalar in place of a matrix", "long text in a list", "long text", "many tensors", "many lists"],
)
def test_a_gguf_header_that_no_model_has_is_refused(content: bytes, said: str, tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "model.gguf", content)
    assert said in refusal(capsys, 6, "params", path)


def test_a_gguf_text_past_what_a_machine_can_address_is_refused() -> None:
    content = gguf(0, 1, text(b"t"), struct.pack("<IIQQ", 9, 8, 3, (1 << 63) - 40))
    with pytest.raises(MalformedError) as caught:  # the size of a sparse file, or of a hub's Content-Range
        read_header(lambda start, stop: content[start:stop], file="model.gguf", file_bytes=(1 << 63) - 1)
    assert caught.value.message.key == "gguf_header_over_cap"


def test_gguf_metadata_names_no_key_of_the_configuration() -> None:
    content = gguf(
        0,
        4,
        *QWEN3_OF_ONE_LAYER,
        *(text(b"num_hidden_layers"), struct.pack("<II", 4, 7)),
        *(text(b"quantization_config"), struct.pack("<II", 4, 7)),
    )
    header = read_header(lambda start, stop: content[start:stop], file="model.gguf", file_bytes=len(content))
    assert header.metadata == {"general.architecture": "qwen3", "qwen3.block_count": 1}


# --- amounts

TINY_QWEN3_MOE = {
    **TINY_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**TINY_QWEN3, "num_hidden_layers": 401}, "expected 1 to 400"),
        ({**TINY_QWEN3_MOE, "num_hidden_layers": 2, "num_experts": 32_769}, "65,536"),
    ],
)
def test_layers_and_experts_past_every_model_are_refused(
    config: Mapping[str, Any], said: str, tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, config)
    for command in (["memory"], ["fit", "--gpu", "4090", "--engine", "vllm"]):
        assert said in refusal(capsys, 6, *command, tmp_path)


def most_tensors() -> bytes:
    entries = (f'"{index}":{{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}' for index in range(74_900))
    header = f"{{{','.join(entries)}}}".encode()
    return struct.pack("<Q", len(header)) + header


MOST: Mapping[str, tuple[Sequence[str], Mapping[str, Callable[[], bytes]]]] = {
    "values": (["params"], {"config.json": lambda: with_text(TINY_QWEN3, f'"x":[{"[]," * 299_900}1]')}),
    "texts": (["params"], {"config.json": lambda: with_text(TINY_QWEN3, f'"x":["{"é" * 4_900_000}"]')}),
    "tensors": (["params"], {"model.safetensors": most_tensors, "config.json": lambda: with_text(TINY_QWEN3, '"x":0')}),
    "layers": (["memory"], {"config.json": lambda: json.dumps({**TINY_QWEN3, "num_hidden_layers": 400}).encode()}),
    "experts": (
        ["fit", "--gpu", "4090", "--engine", "vllm"],
        {"config.json": lambda: json.dumps({**TINY_QWEN3_MOE, "num_hidden_layers": 8, "num_experts": 8_192}).encode()},
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", MOST)
def test_the_most_that_is_read_takes_at_most_10_seconds_and_300_mb(what: str, tmp_path: Path) -> None:
    words, files = MOST[what]
    for name, content in files.items():
        write_bytes(tmp_path / name, content())
    program = """
import contextlib, io, re, resource, sys
from qwen_inspect.cli import main
with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
    code = main()
used = resource.getrusage(resource.RUSAGE_SELF)
most = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]  # ru_maxrss counts what the parent had
print(code, used.ru_utime + used.ru_stime, most)
"""
    command = [sys.executable, "-c", program, *words, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, seconds, kilobytes = map(float, done.stdout.split())
    assert code in (0, 1)  # 1: tensors that the configuration does not explain
    assert seconds < 10
    assert kilobytes * 1024 < 300_000_000


# --- the command


def test_a_pattern_that_cannot_be_matched_is_refused(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    for pattern in ("(" * 900 + ")" * 900, "x{99999999999}", "("):
        assert "--trained" in refusal(capsys, 2, "memory", tmp_path, "--mode", "train", "--trained", pattern)


def test_a_context_past_every_device_is_refused_in_a_line(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    words = ("--context", "999999999999m", "--beyond-limit", "--gpu", "4090")
    assert "past what any device can address" in refusal(capsys, 2, "fit", tmp_path, *words)


def test_a_link_that_loops_is_not_asked_of_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to("name")
    monkeypatch.chdir(tmp_path)
    assert "org/name" in refusal(capsys, 3, "params", "org/name")


def test_a_revision_that_no_hub_can_have_is_refused(capsys: Capture) -> None:
    assert "no name of a revision" in refusal(capsys, 2, "params", "hf:a/b", "--revision", "\udcff")


def test_a_measurement_whose_versions_are_a_list_is_refused(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    answer = {"command": "memory", "model": {}, "workload": {}, "measured": {"versions": []}, "differences": []}
    path = write_bytes(tmp_path / "measured.json", json.dumps(answer).encode())
    assert "at versions" in refusal(capsys, 6, "report", tmp_path, "--measured", path)


def test_a_user_without_a_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name in ("HOME", "QWEN_INSPECT_CACHE", "XDG_CACHE_HOME", "MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.chdir(tmp_path)
    assert invoke(capsys, "memory", "catalog:Qwen/Qwen3-0.6B").code == 0
    for source in ("hf", "ms"):
        assert invoke(capsys, "params", f"{source}:org/name", "--offline").code == 3
    assert os.listdir(tmp_path) == []


INTERRUPTED = {
    "during the import": """
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "qwen_inspect.cli":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
""",
    "in the command": """
import qwen_inspect.cli
qwen_inspect.cli.parsed = lambda words, say: signal.raise_signal(signal.SIGINT)
""",
    "after the end": """
import atexit, qwen_inspect.cli
qwen_inspect.cli.main = lambda: 0
sys.modules["torch"] = sys  # whose threads the interpreter would end
atexit.register(signal.raise_signal, signal.SIGINT)
""",
}


@pytest.mark.parametrize("moment", INTERRUPTED)
def test_an_interrupt_is_quiet_at_any_moment(moment: str) -> None:
    program = f"import signal, sys\n{INTERRUPTED[moment]}\nfrom qwen_inspect.__main__ import script\nscript()"
    done = subprocess.run([sys.executable, "-c", program, "schema"], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (moment == "in the command")
