"""`structure --prompt` on small real models with a real tokenizer, against `generate` called plainly on the same files."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.cli import main
from qwen_inspect.measuring.generation import generate
from qwen_inspect.results.generation import Generation

from ..support.families import TINY_QWEN2, TINY_QWEN3_MOE, saved_by_transformers
from ..support.models import TINY_QWEN3, run
from ..support.prepared import Finished
from ..support.schema import assert_keeps_to_the_schema
from ..support.weights import DOWN, change, spec_of

Capture = pytest.CaptureFixture[str]
SENTENCES = (
    "你好，我是通义千问。",
    "今天天气很好，我们去公园吧。",
    "Hello, I am a language model.",
    "The weather is fine today.",
)
PROMPT = "你好，我是"
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{{ '<|start|>assistant\n' }}"
)
VOCABULARY = 400
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    config["model_type"]: {**config, "vocab_size": VOCABULARY} for config in (TINY_QWEN2, TINY_QWEN3, TINY_QWEN3_MOE)
}
CONFIG = FAMILIES["qwen3"]
PREFIX = {"en": "error: ", "zh": "错误："}


def save_tokenizer(directory: Path, template: str | None = None) -> Any:
    """A byte-level BPE, trained on the sentences, saved as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", chat_template=template)
    tokenizer.save_pretrained(directory)
    return tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    directory = tmp_path_factory.mktemp(request.param)
    saved_by_transformers(directory, FAMILIES[request.param], max_shard_size="60KB")
    save_tokenizer(directory)
    return directory, FAMILIES[request.param]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen3")
    saved_by_transformers(directory, CONFIG)
    save_tokenizer(directory)
    return directory


@pytest.fixture
def directory(kept: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(kept, tmp_path / "model")


def answer(directory: Path, config: Mapping[str, Any] = CONFIG, **options: Any) -> Generation:
    return generate(directory, spec_of(config), PROMPT, **{"max_new_tokens": 12, **options})


def plain(directory: Path, token_ids: list[int], **options: Any) -> list[int]:
    """The new tokens of transformers' own greedy generation."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    inputs = torch.tensor([token_ids])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **options)
    new: list[int] = output[0, len(token_ids) :].tolist()
    return new


# --- what is generated


def test_the_text_is_what_transformers_generates(saved: tuple[Path, Mapping[str, Any]]) -> None:
    from transformers import AutoTokenizer

    directory, config = saved
    tokenizer = AutoTokenizer.from_pretrained(directory)
    token_ids = tokenizer(PROMPT)["input_ids"]
    found = answer(directory, config)
    new = plain(directory, token_ids, max_new_tokens=12)
    assert found.text == tokenizer.decode(new, skip_special_tokens=True)
    assert (found.prompt_tokens, found.new_tokens, found.ended_by) == (len(token_ids), 12, "limit")
    assert (found.device, found.dtype, found.chat_template) == ("cpu", "bfloat16", False)


def test_a_chat_template_takes_the_prompt_as_a_users_message(directory: Path) -> None:
    tokenizer = save_tokenizer(directory, TEMPLATE)
    token_ids = tokenizer(f"<|start|>user\n{PROMPT}<|end|>\n<|start|>assistant\n")["input_ids"]
    found = answer(directory)
    assert found.chat_template
    assert found.prompt_tokens == len(token_ids)
    assert found.text == tokenizer.decode(plain(directory, token_ids, max_new_tokens=12), skip_special_tokens=True)


@pytest.mark.parametrize("several", [False, True])
def test_an_end_token_ends_it(several: bool, directory: Path) -> None:
    from transformers import AutoTokenizer

    token_ids = AutoTokenizer.from_pretrained(directory)(PROMPT)["input_ids"]
    new = plain(directory, token_ids, max_new_tokens=12)
    end = new[4]
    settings = {"eos_token_id": [399, end] if several else end, "do_sample": True, "repetition_penalty": 9.0}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    found = answer(directory)
    assert (found.new_tokens, found.ended_by) == (new.index(end) + 1, "end_token")


def test_the_pieces_shown_make_the_text(directory: Path) -> None:
    pieces: list[str] = []
    found = answer(directory, show=pieces.append, max_new_tokens=40)
    assert len(pieces) > 2
    assert "".join(pieces) == found.text + "\n"


def test_prefill_and_decode_are_timed_apart_within_the_time_that_passed(directory: Path) -> None:
    began = time.perf_counter()
    found = answer(directory, max_new_tokens=20)
    passed = time.perf_counter() - began
    assert 0 < found.prefill_seconds < passed
    assert 0 < found.decode_seconds < passed
    assert found.prefill_seconds + found.decode_seconds < passed
    assert found.prefill_tokens_per_second == pytest.approx(found.prompt_tokens / found.prefill_seconds)
    assert found.decode_tokens_per_second == pytest.approx(19 / found.decode_seconds)
    assert answer(directory, max_new_tokens=1).decode_tokens_per_second is None


def test_the_peak_is_the_processs_own(directory: Path) -> None:
    found = answer(directory)
    resident = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    assert found.peak_resident_bytes is not None
    assert abs(found.peak_resident_bytes - resident) < 50_000_000
    assert (found.peak_allocated_bytes, found.peak_reserved_bytes) == (None, None)


def test_a_context_that_the_model_was_not_made_for_is_told(directory: Path) -> None:
    assert [notice.key for notice in answer(directory, max_new_tokens=600).notices] == ["context_beyond"]


# --- the command


def ask(capsys: Capture, *arguments: str | Path) -> Finished:
    code = main(["structure", *map(str, arguments)])
    shown = capsys.readouterr()
    return Finished(code, shown.out, shown.err)


def test_the_document_has_the_section_in_both_languages(kept: Path, capsys: Capture) -> None:
    text = answer(kept, max_new_tokens=8).text
    for language, words in {
        "en": (
            "=== Inference test ===",
            "Prompt: 你好，我是",
            "stopped at the limit asked for",
            "tokens/s",
            "Peak resident memory",
        ),
        "zh": ("=== 推理测试 ===", "提示词: 你好，我是", "达到设定的上限", "token/s", "常驻内存峰值"),
    }.items():
        shown = ask(capsys, kept, "--prompt", PROMPT, "--max-new-tokens", "8", "--lang", language)
        assert (shown.code, shown.err) == (0, "")
        for word in words:
            assert word in shown.out
        assert shown.out.index("===", 10) < shown.out.index(words[0])
        assert shown.out.rstrip().endswith(ask_safe(PROMPT + text))


def ask_safe(text: str) -> str:
    from qwen_inspect.renderers.terminal import safe

    return "\n".join(map(safe, text.splitlines())).rstrip()


def test_json_holds_it_by_the_schema_and_null_without_a_prompt(kept: Path, capsys: Capture) -> None:
    shown = ask(capsys, kept, "--prompt", PROMPT, "--max-new-tokens", "8", "--dtype", "float32", "--format", "json")
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    found = content["generation"]
    assert (found["prompt"], found["new_tokens"], found["dtype"]) == (PROMPT, 8, "float32")
    without = json.loads(ask(capsys, kept, "--format", "json").out)
    assert_keeps_to_the_schema(without)
    assert without["generation"] is None


def test_markdown_keeps_hostile_text_inside_its_fence(kept: Path, capsys: Capture) -> None:
    shown = ask(capsys, kept, "--prompt", "a\x1b[31m```\n# b", "--max-new-tokens", "2", "--format", "md")
    assert "\x1b" not in shown.out
    assert "````text\na\\x1b[31m```\n# b" in shown.out


def test_a_model_of_a_hub_is_fetched_and_runs(kept: Path, tmp_path: Path) -> None:
    from ..hub.repos import HubRepo
    from ..hub.server import HubServer
    from ..support.asking import variables

    expected = answer(kept, max_new_tokens=8).text
    with HubServer([HubRepo("org/model", {path.name: path for path in kept.iterdir()})]) as hub:
        for source in ("hf", "ms"):
            done = subprocess.run(
                [sys.executable, "-m", "qwen_inspect", "structure", f"{source}:org/model", "--prompt", PROMPT,
                 "--max-new-tokens", "8", "--format", "json", "-q"],
                env=variables(hub, tmp_path), capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["generation"]["text"] == expected


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_terminal_sees_the_text_as_it_comes_and_ctrl_c_ends_it(interrupted: bool, kept: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    tokens = "100000" if interrupted else "8"
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_inspect", "structure", str(kept), "--prompt", PROMPT, "--max-new-tokens", tokens],
        stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and select.select([ours], [], [], 100)[0]:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other side has closed
            break
        begun = b"Loading" in seen and seen.rpartition(b"\x1b[K")[2]  # what it does is shown before, and erased
        if interrupted and begun:
            process.send_signal(signal.SIGINT)
            interrupted = False
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    if tokens == "8":
        assert process.returncode == 0
        shown = seen.decode().rpartition("\x1b[K")[2].replace("\r\n", "\n")
        assert shown == "\n".join(map(ask_safe, answer(kept, max_new_tokens=8).text.split("\n"))) + "\n"
    else:
        assert (process.returncode, out) == (130, b"")
        assert seen.decode().splitlines()[-1].endswith("interrupted")
        assert list(tmp_path.iterdir()) == []


# --- what is refused


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "words"),
    [
        ("", ["--prompt", ""], 2, {"en": "holds no text", "zh": "没有内容"}),
        ("", ["--prompt", " \n"], 2, {"en": "holds no text", "zh": "没有内容"}),
        ("", ["--prompt", "\udcff"], 2, {"en": "not UTF-8", "zh": "不是 UTF-8"}),
        ("", ["--device", "cpu"], 2, {"en": "--device goes with --prompt", "zh": "--device 只能"}),
        ("", ["--max-new-tokens", "3"], 2, {"en": "--max-new-tokens goes with", "zh": "--max-new-tokens 只能"}),
        ("", ["--prompt", "x", "--max-new-tokens", "0"], 2, {"en": "0 is not a positive", "zh": "0 不是正整数"}),
        ("", ["--prompt", "x", "--device", "tpu"], 2, {"en": "tpu is not a device", "zh": "tpu 不是有效的设备"}),
        ("", ["--prompt", "x", "--device", "cuda"], 8, {"en": "without CUDA", "zh": "未编译 CUDA"}),
        ("no tokenizer", ["--prompt", "x"], 3, {"en": "looked for tokenizer.json", "zh": "已查找 tokenizer.json"}),
        ("bad tokenizer", ["--prompt", "x"], 6, {"en": "tokenizer in", "zh": "无法读取"}),
        ("bad template", ["--prompt", "x"], 6, {"en": "chat template fails", "zh": "对话模板无法处理"}),
        ("other tokenizer", ["--prompt", PROMPT], 6, {"en": "belongs to another model", "zh": "不属于同一模型"}),
        ("nan", ["--prompt", "x"], 6, {"en": f"NaN or infinity, {DOWN}", "zh": f"首个为 {DOWN}"}),
    ],
)
def test_bad_input_ends_with_one_line_and_its_code(
    spoil: str,
    arguments: list[str],
    code: int,
    words: Mapping[str, str],
    language: str,
    directory: Path,
    capsys: Capture,
) -> None:
    match spoil:
        case "no tokenizer":
            (directory / "tokenizer.json").unlink()
        case "bad tokenizer":
            (directory / "tokenizer.json").write_text('{"model": 3}')
        case "bad template":
            save_tokenizer(directory, "{{ raise_exception('only a system may speak') }}")
        case "other tokenizer":
            saved_by_transformers(directory, TINY_QWEN3)  # of 256 tokens
        case "nan":
            change(directory, lambda tensors: tensors[DOWN].view(-1)[7].fill_(float("nan")))
    try:
        shown = ask(capsys, directory, *arguments, "--lang", language)
    except SystemExit as ended:  # argparse
        shown = Finished(int(str(ended.code)), *capsys.readouterr())
    lines = [line for line in shown.err.splitlines() if line.startswith(PREFIX[language])]
    assert (shown.code, shown.out, len(lines)) == (code, "", 1), shown
    assert words[language] in lines[0]


def test_the_catalog_alone_cannot_run(tmp_path: Path) -> None:
    shown = run("structure", "catalog:Qwen/Qwen3-0.6B", "--prompt", PROMPT, cwd=tmp_path)
    assert (shown.code, shown.out) == (3, "")
    assert "name where they are: hf:Qwen/Qwen3-0.6B" in shown.err
