"""Bad input ends with one line on stderr, the documented exit code, in both languages, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_inspect import MalformedError, UnsupportedError
from qwen_inspect.checkpoint import Checkpoint, DType, ModelRef, Tensor
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.strict_json import LONGEST_JSON_BYTES
from qwen_inspect.renderers import json as json_renderer
from qwen_inspect.renderers import markdown, terminal
from qwen_inspect.renderers.document import View, document
from qwen_inspect.structure.inspect import analyse, inspect

from ..support.invoking import (
    HOSTILE,
    LONGEST_LINE,
    Capture,
    as_root,
    assert_is_one_error_line,
    invoke,
    refusal,
    tensors_of,
    write_bytes,
)
from ..support.models import TINY_QWEN3, run, write_config, write_sparse

TINY_QWEN2 = {**TINY_QWEN3, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
TINY_QWEN3_MOE = {**TINY_QWEN3, **EXPERTS, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
TINY_QWEN2_MOE = {
    **TINY_QWEN2,
    **EXPERTS,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 48,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": TINY_QWEN2,
    "qwen2_moe": TINY_QWEN2_MOE,
    "qwen3": TINY_QWEN3,
    "qwen3_moe": TINY_QWEN3_MOE,
}
DENSE_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size")
EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
REQUIRED = [
    *((family, key) for family in ("qwen2", "qwen3") for key in (*DENSE_SIZES, "intermediate_size")),
    *((family, key) for family in ("qwen2_moe", "qwen3_moe") for key in (*DENSE_SIZES, *EXPERT_SIZES)),
    ("qwen2_moe", "shared_expert_intermediate_size"),
]
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


# --- names and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["structure", "config", "weights", "params", "attention"])
@pytest.mark.parametrize("name", ["missing", "missing/config.json", "missing.safetensors", "missing.gguf"])
def test_a_missing_path_is_not_found(command: str, name: str, tmp_path: Path, capsys: Capture) -> None:
    assert name in refusal(capsys, 3, command, tmp_path / name)


@pytest.mark.parametrize("source", ["auto", "local"])
def test_an_empty_directory_is_not_found(source: str, tmp_path: Path, capsys: Capture) -> None:
    assert "empty" in refusal(capsys, 3, "structure", tmp_path, "--from", source)


@pytest.mark.parametrize("name", ["notes.txt", "model.bin", "CONFIG.JSON"])
def test_a_directory_without_a_model_is_not_found(name: str, tmp_path: Path, capsys: Capture) -> None:
    write_bytes(tmp_path / name, b"{}")
    refusal(capsys, 3, "structure", tmp_path)


@pytest.mark.parametrize("name", ["some.txt", "pytorch_model.bin", "no_suffix"])
def test_another_kind_of_file_is_unsupported(name: str, tmp_path: Path, capsys: Capture) -> None:
    assert name in refusal(capsys, 7, "weights", write_bytes(tmp_path / name, b"PK\x03\x04 and more"))


def test_a_path_below_a_file_is_not_found(tmp_path: Path, capsys: Capture) -> None:
    refusal(capsys, 3, "structure", write_config(tmp_path, TINY_QWEN3) / "config.json")


@pytest.mark.parametrize("length", [300, 5_000])
@pytest.mark.parametrize("prefix", ["", "./", "/", "catalog:", "~/"])
def test_a_name_longer_than_any_file_systems_is_not_found(prefix: str, length: int, capsys: Capture) -> None:
    refusal(capsys, 3, "structure", prefix + "a" * length)


def test_an_unknown_users_home_is_not_found(capsys: Capture) -> None:
    assert "~no-such-user/model" in refusal(capsys, 3, "structure", "~no-such-user/model")


@pytest.mark.parametrize("name", ["loop", "loop.json", "loop.safetensors"])
def test_a_symlink_loop_is_not_found(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / name).symlink_to(tmp_path / name)
    refusal(capsys, 3, "structure", tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX])
def test_a_symlink_loop_inside_a_directory_is_not_found(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / name).symlink_to(tmp_path / name)
    assert name in refusal(capsys, 3, "structure", tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX])
def test_a_directory_in_place_of_a_file_is_not_read(name: str, tmp_path: Path, capsys: Capture) -> None:
    if name != "config.json":
        write_config(tmp_path, TINY_QWEN3)
    (tmp_path / name).mkdir()
    assert name in refusal(capsys, 3, "structure", tmp_path)


@pytest.mark.parametrize(
    ("pipe", "model"),
    [
        ("config.json", "."),
        ("config.json", "config.json"),
        ("model.safetensors", "."),
        ("model.safetensors", "model.safetensors"),
        (INDEX, "."),
    ],
)
def test_a_fifo_in_place_of_a_file_is_not_waited_for(pipe: str, model: str, tmp_path: Path) -> None:
    if pipe != "config.json":
        write_config(tmp_path, TINY_QWEN3)
    os.mkfifo(tmp_path / pipe)
    command = [sys.executable, "-m", "qwen_inspect", "structure", str(tmp_path / model), "--lang", "en"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert_is_one_error_line(done.stderr, "en")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_endless_device_in_place_of_a_file_is_refused(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    done = invoke(capsys, "weights", tmp_path, "--lang", "en")
    assert done.code in (3, 6)
    assert name in done.err
    assert_is_one_error_line(done.err, "en")


@as_root
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_unreadable_file_is_not_found(name: str, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    write_sparse(tmp_path / "model.safetensors", tensors_of(TINY_QWEN3))
    (tmp_path / name).chmod(0)
    assert name in refusal(capsys, 3, "structure", tmp_path)


@as_root
@pytest.mark.parametrize("below", [".", "config.json", "model"])
def test_what_lies_in_an_unreadable_directory_is_not_found(below: str, tmp_path: Path, capsys: Capture) -> None:
    directory = tmp_path / "closed"
    write_config(directory, TINY_QWEN3)
    directory.chmod(0)
    try:
        refusal(capsys, 3, "structure", directory / below)
    finally:
        directory.chmod(0o700)


def test_an_empty_name_is_a_usage_error(capsys: Capture) -> None:
    refusal(capsys, 2, "structure", "")


@pytest.mark.parametrize("name", ["\0", "Qwen/Qwen3-0.6B\0", "./\0/config.json", "catalog:\0"])
def test_a_name_with_a_nul_byte_is_a_usage_error(name: str, capsys: Capture) -> None:
    refusal(capsys, 2, "structure", name)


@pytest.mark.parametrize("name", ["qwen3-0.6", "catalog:Qwen/Qwen3-0.6", "catalog:Qwen3-0.7B", "Qwen/Qwen3-0.6"])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, capsys: Capture) -> None:
    assert "Qwen/Qwen3-0.6B" in refusal(capsys, 3, "structure", name, "--offline")


@pytest.mark.parametrize(
    "name", ["no/such", "such", "catalog:", "catalog:/", "hf:", "{}", "{0}", "%s", HOSTILE, "\ud800"]
)
def test_an_unknown_name_is_not_found(name: str, capsys: Capture) -> None:
    refusal(capsys, 3, "structure", name, "--offline")


def test_a_revision_needs_a_hub(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    assert "main" in refusal(capsys, 2, "structure", tmp_path, "--revision", "main")
    refusal(capsys, 2, "structure", tmp_path, "--from", "local", "--revision", "main")


def test_a_pinned_source_may_not_be_contradicted(capsys: Capture) -> None:
    refusal(capsys, 2, "structure", "catalog:Qwen/Qwen3-0.6B", "--from", "local")


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["structur"],
        ["structure", "--no-such-option"],
        ["structure", "--exp"],
        ["structure", "one", "two"],
        ["structure", "--format", "xml"],
        ["structure", "--lang", "fr"],
        ["structure", "--from", "nowhere"],
        ["structure", "--context"],
        *(["structure", "--context", value] for value in ("0", "-5", "abc", "1e3", "", "k", "1.5k", "１２", "9" * 13)),
        *(["attention", "--batch", value] for value in ("0", "-1", "1.5", "two", "", "1e3", ",", "9" * 19)),
        *(["structure", "--depth", value] for value in ("0", "-1", "all", "")),
        *(["weights", "--top", value] for value in ("0", "-1", "ten")),
        *(["params", "--expect-params", value] for value in ("0", "-1", "7B", "1.0")),
        ["weights", "--sort", "colour"],
        ["gpus", "4090"],
        ["structure", "--format", HOSTILE],
        ["structure", "--context", HOSTILE],
        [HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments).encode("unicode_escape").decode(),
)
def test_a_wrong_option_is_a_usage_error(arguments: Sequence[str], capsys: Capture) -> None:
    for language in LANGUAGES:
        done = invoke(capsys, "--lang", language, *arguments)
        assert (done.code, done.out) == (2, "")
        assert_is_one_error_line(done.err, language)


# --- config.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b"not json",
        b"{'model_type': 'qwen3'}",
        b'{"model_type": "qwen3",}',
        b"{}{}",
        b'\xef\xbb\xbf{"model_type": "qwen3"}',
        b'{"model_type": "qwen3\n"}',
        b"\0",
        b"\xff\xfe{\0}\0",
        b'{"model_type": "qwen3\xe9"}',
        b'{"model_type": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"0" + b"}" * 100_000,
        b'{"hidden_size": ' + b"9" * 5_000 + b"}",
        b"[]",
        b"[{}]",
        b'"qwen3"',
        b"1",
        b"true",
        b"null",
        b"NaN",
    ],
    ids=lambda content: repr(content[:24]),
)
@pytest.mark.parametrize("command", ["structure", "config", "weights"])
def test_a_configuration_that_is_no_json_object_is_malformed(
    command: str, content: bytes, tmp_path: Path, capsys: Capture
) -> None:
    write_bytes(tmp_path / "config.json", content)
    assert "config.json" in refusal(capsys, 6, command, tmp_path)


def test_a_configuration_over_the_cap_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    path = write_bytes(tmp_path / "config.json", b"{")
    os.truncate(path, 40 * LONGEST_JSON_BYTES)
    assert "larger" in refusal(capsys, 6, "config", tmp_path)


@pytest.mark.parametrize("form", ["table", "json"])
def test_nesting_is_refused_or_shown_whatever_its_depth(form: str, tmp_path: Path, capsys: Capture) -> None:
    for depth in (100, 500, *range(900, 1_000, 3), 2_000, 20_000):
        nested = json.dumps(TINY_QWEN3)[:-1] + ', "nested": ' + "[" * depth + "]" * depth + "}"
        write_bytes(tmp_path / "config.json", nested.encode())
        done = invoke(capsys, "config", tmp_path, "--format", form, "--lang", "en", "--quiet")
        assert done.code in (0, 6)
        if done.code == 6:
            assert_is_one_error_line(done.err, "en")


@pytest.mark.parametrize(("family", "key"), REQUIRED)
def test_a_key_that_the_family_needs_is_missed(family: str, key: str, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {name: value for name, value in FAMILIES[family].items() if name != key})
    assert key in refusal(capsys, 6, "structure", tmp_path)


NO_WHOLE_NUMBERS: Sequence[object] = (None, "64", "", True, False, 1.5, 64.0, [], [64], {})


@pytest.mark.parametrize(("family", "key"), REQUIRED)
def test_a_size_that_is_no_whole_number_is_malformed(family: str, key: str, tmp_path: Path, capsys: Capture) -> None:
    for value in NO_WHOLE_NUMBERS:
        if (key, value) != ("num_key_value_heads", None):  # null means as many as query heads
            write_config(tmp_path, {**FAMILIES[family], key: value})
            assert key in refusal(capsys, 6, "structure", tmp_path), repr(value)


@pytest.mark.parametrize(("family", "key"), REQUIRED)
def test_an_absurd_size_is_malformed(family: str, key: str, tmp_path: Path, capsys: Capture) -> None:
    for value in (0, -1, -(10**30), 1 << 32, 1 << 63, 1 << 64, 10**30, 10**4_000):
        if (key, value) != ("num_experts", 0):  # no experts makes every layer dense
            write_config(tmp_path, {**FAMILIES[family], key: value})
            assert key in refusal(capsys, 6, "structure", tmp_path), str(value)[:24]


def test_a_thousand_million_layers_are_malformed(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "num_hidden_layers": 10**9})
    assert "num_hidden_layers" in refusal(capsys, 6, "params", tmp_path)


@linux
def test_sizes_that_are_absurd_only_together_are_malformed(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3_MOE, "num_hidden_layers": 400, "num_experts": 1 << 16})
    write_sparse(tmp_path / "model.safetensors", [Tensor("model.norm.weight", (64,), DType.BF16)])
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from qwen_inspect.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", limited, "params", str(tmp_path), "--lang", "en"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert_is_one_error_line(done.stderr, "en")


def test_null_key_value_heads_are_as_many_as_the_query_heads(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "num_key_value_heads": None})
    attention = json.loads(invoke(capsys, "attention", tmp_path, "--format", "json").out)
    assert (attention["query_heads"], attention["kv_heads"], attention["kind"]) == (4, 4, "MHA")


def test_heads_that_do_not_divide_are_malformed(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "num_key_value_heads": 3})
    assert "num_key_value_heads" in refusal(capsys, 6, "attention", tmp_path)


@pytest.mark.parametrize("key", ["max_position_embeddings", "pad_token_id", "max_window_layers", "head_dim"])
@pytest.mark.parametrize("value", ["512", True, 1.5, -1, 10**30, []])
def test_an_optional_number_is_a_number_or_null(key: str, value: object, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    assert key in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "use_sliding_window"])
@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_a_flag_is_true_or_false(key: str, value: object, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    assert key in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize("value", [None, "1e-6", True, -1.0, []])
def test_the_norms_epsilon_is_a_number_not_below_0(value: object, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "rms_norm_eps": value})
    assert "rms_norm_eps" in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["rms_norm_eps", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_number_that_is_not_finite_is_malformed(key: str, value: str, tmp_path: Path, capsys: Capture) -> None:
    config = {name: known for name, known in TINY_QWEN3.items() if name != key}
    write_bytes(tmp_path / "config.json", f'{json.dumps(config)[:-1]}, "{key}": {value}}}'.encode())
    refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", None),
        ("model_type", 3),
        ("model_type", ["qwen3"]),
        ("architectures", "Qwen3ForCausalLM"),
        ("architectures", 1),
        ("architectures", [1]),
        ("architectures", [[]]),
        ("architectures", {"Qwen3ForCausalLM": 1}),
        ("torch_dtype", 16),
        ("torch_dtype", ["bfloat16"]),
        ("dtype", {"text": "bfloat16"}),
        ("layer_types", "full_attention"),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", 2),
    ],
)
def test_a_value_of_the_wrong_kind_is_malformed(key: str, value: object, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    assert key in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize("value", ["1", [None], ["1"], [1.5], {"1": 1}, 7])
def test_layers_without_experts_are_listed_by_number(value: object, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3_MOE, "mlp_only_layers": value})
    assert "mlp_only_layers" in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen"),
        ("model_type", ""),
        ("model_type", "../qwen3"),
        ("model_type", "blocks"),
        ("architectures", ["LlamaForCausalLM"]),
        ("architectures", ["", "Qwen3ForCausalLM"]),
        ("torch_dtype", "int4"),
        ("torch_dtype", ""),
        ("torch_dtype", "torch."),
        ("hidden_act", "softplus"),
        ("hidden_act", 5),
        ("hidden_act", ["silu"]),
        ("hidden_act", {"silu": 1}),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("layer_types", [["full_attention"], {}]),
    ],
)
def test_what_cannot_be_answered_exactly_is_unsupported(
    key: str, value: object, tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    for command in ("structure", "params", "attention"):
        refusal(capsys, 7, command, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("quantization_config", {"quant_method": "aqlm", "bits": 4}), ("quantization_config", {"quant_method": HOSTILE})],
)
def test_a_quantisation_that_is_not_known_refuses_only_what_needs_it(
    key: str, value: object, tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    for command in ("structure", "params", "attention"):
        done = invoke(capsys, command, tmp_path, "--lang", "en", "--format", "md")
        assert (done.code, "\x1b" in done.out + done.err) == (0, False)
        assert "The bytes of the weights are unknown: Quantisation method" in done.out
    refusal(capsys, 7, "memory", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "qwen"), ("model_type", HOSTILE)],
)
def test_weights_shows_what_is_stored_of_an_unsupported_model(
    key: str, value: object, tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: value})
    write_sparse(tmp_path / "model.safetensors", [Tensor("wte.weight", (5, 7), DType.I32)])
    refusal(capsys, 7, "structure", tmp_path)
    done = invoke(capsys, "weights", tmp_path, "--format", "json", "--lang", "en")
    assert done.code == 0
    assert len(done.err.splitlines()) == 1
    assert json.loads(done.out)["totals"] == {"tensors": 1, "elements": 35, "bytes": 140, "unique_parameters": None}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 3, 64, 1 << 16, 1 << 31, 10**30, 10**4_000])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([HOSTILE, "\ud800", "silu", "bfloat16", "sliding_attention", "qwen3_moe"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=4,
)
KEYS = sorted({key for config in FAMILIES.values() for key in config})
MORE_KEYS = ["layer_types", "mlp_only_layers", "sliding_window", "rope_scaling", "rope_parameters", "qkv_bias", HOSTILE]


@settings(max_examples=60, deadline=None)  # thousands in `make fuzz`
@given(
    config=st.sampled_from(sorted(FAMILIES)).map(FAMILIES.__getitem__),
    edits=st.dictionaries(st.sampled_from([*KEYS, *MORE_KEYS]), JSON_VALUES, max_size=3),
)
@example(config=TINY_QWEN3, edits={"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 0})
@example(config=TINY_QWEN3, edits={"rope_parameters": {"rope_theta": [HOSTILE]}})
def test_any_configuration_is_shown_or_refused(config: Mapping[str, Any], edits: Mapping[str, Any]) -> None:
    ref = ModelRef(source="local", id="model")
    try:
        report = analyse(Checkpoint(ref=ref, config={**config, **edits}, tensors=None))
    except (MalformedError, UnsupportedError):
        return
    for say in map(Language, LANGUAGES):
        for command in ("structure", "config", "params", "attention"):
            blocks = document(command, report, say, View(expand=True, explain=True))
            assert terminal.render(blocks)
            assert markdown.render(blocks)
            assert json.loads(json_renderer.render(command, report, say))["command"] == command


@pytest.mark.parametrize("key", ["model_type", "architectures", "hidden_act", "torch_dtype", "hidden_size"])
@pytest.mark.parametrize("text", [HOSTILE, "\ud800", "x" * 100_000, "{key}", "{0}", "%s"])
def test_a_hostile_value_is_named_in_one_short_line(key: str, text: str, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, key: [text] if key == "architectures" else text})
    for language in LANGUAGES:
        done = invoke(capsys, "structure", tmp_path, "--lang", language)
        assert done.code in (6, 7)
        assert_is_one_error_line(done.err.replace(text, ""), language)
        assert len(done.err) <= LONGEST_LINE


def test_many_layers_without_experts_are_looked_up_and_not_searched(tmp_path: Path, capsys: Capture) -> None:
    config = {**TINY_QWEN3_MOE, "num_hidden_layers": 400, "mlp_only_layers": list(range(10_000, 310_000))}
    write_config(tmp_path, config)
    started = time.perf_counter()
    assert invoke(capsys, "attention", tmp_path, "--format", "json").code == 0
    assert time.perf_counter() - started < 1.5


# --- shards and their index ----------------------------------------------------------------------------------------


def write_index(directory: Path, weight_map: object) -> None:
    write_bytes(directory / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}).encode())


def write_two_shards(directory: Path) -> dict[str, str]:
    """TINY_QWEN3 in two shards; the index's weight_map."""
    write_config(directory, TINY_QWEN3)
    tensors = tensors_of(TINY_QWEN3)
    halves = dict(zip(SHARDS, (tensors[:9], tensors[9:]), strict=True))
    for name, half in halves.items():
        write_sparse(directory / name, half)
    weight_map = {tensor.name: name for name, half in halves.items() for tensor in half}
    write_index(directory, weight_map)
    return weight_map


def test_two_shards_are_accounted_for(tmp_path: Path, capsys: Capture) -> None:
    write_two_shards(tmp_path)
    done = invoke(capsys, "params", tmp_path, "--format", "json")
    # embedding 256 x 64; each layer: q 64 x 64, k and v 32 x 64, o 64 x 64, three matrices of 96 x 64, norms 2 x 64 and
    # 2 x 16; norm 64
    assert json.loads(done.out)["parameters"]["stored"] == 16_384 + 2 * (12_288 + 18_432 + 160) + 64
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("command", ["structure", "config", "weights", "params", "attention"])
def test_a_missing_shard_is_not_found(command: str, tmp_path: Path, capsys: Capture) -> None:
    write_two_shards(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    line = refusal(capsys, 3, command, tmp_path)
    assert SHARDS[1] in line
    assert "--partial" in line


@pytest.mark.parametrize("gone", [SHARDS[:1], SHARDS[1:], SHARDS])
def test_partial_names_the_missing_shards_as_the_cause(gone: Sequence[str], tmp_path: Path, capsys: Capture) -> None:
    weight_map = write_two_shards(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    for command in ("structure", "weights", "attention", "config"):
        assert invoke(capsys, command, tmp_path, "--partial").code == 0
    done = invoke(capsys, "params", tmp_path, "--partial", "--format", "json", "--lang", "en")
    (check,) = json.loads(done.out)["checks"]
    causes = [cause for cause in check["causes"] if cause["name"] == "missing_shard"]
    assert sum(cause["parameters"] for cause in causes) == check["difference"] < 0
    assert sum(cause["tensors"] for cause in causes) == sum(name in gone for name in weight_map.values())
    assert (check["residual"], check["agrees"], check["unexplained"]) == (0, True, [])
    assert done.code == 0
    assert "shards are missing" in done.err


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
def test_what_is_no_regular_file_is_no_shard(kind: str, tmp_path: Path, capsys: Capture) -> None:
    write_two_shards(tmp_path)
    path = tmp_path / SHARDS[1]
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
    assert SHARDS[1] in refusal(capsys, 3, "structure", tmp_path)


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "\ud800.safetensors", "中" * 100 + ".safetensors"])
def test_a_shard_whose_name_no_file_can_have_is_missing(name: str, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    write_index(tmp_path, {tensor.name: name for tensor in tensors_of(TINY_QWEN3)})
    refusal(capsys, 3, "structure", tmp_path)
    assert invoke(capsys, "structure", tmp_path, "--partial").code == 0


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "model/../../outside.safetensors",
        "below/shard.safetensors",
        "..\\outside.safetensors",
        "a\\b.safetensors",
        "/outside.safetensors",
        "ABSOLUTE",
        "",
        ".",
        "..",
        "/",
        "model.bin",
        "model.safetensors\0",
        "\0.safetensors",
        f"{HOSTILE}/x.safetensors",
        HOSTILE,
        "/" * 100_000,
    ],
    ids=lambda name: name[:24].encode("unicode_escape").decode() or "empty",
)
def test_an_index_may_not_leave_the_directory(name: str, tmp_path: Path, capsys: Capture) -> None:
    directory = tmp_path / "model"
    write_config(directory, TINY_QWEN3)
    for outside in (tmp_path, directory / "below"):
        outside.mkdir(exist_ok=True)
        write_sparse(outside / "outside.safetensors", tensors_of(TINY_QWEN3))
    found = str(tmp_path / "outside.safetensors") if name == "ABSOLUTE" else name
    write_index(directory, {tensor.name: found for tensor in tensors_of(TINY_QWEN3)})
    assert INDEX in refusal(capsys, 6, "structure", directory)
    refusal(capsys, 6, "structure", directory, "--partial")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"metadata": {}}',
        b'{"weight_map": null}',
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": "model.safetensors"}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": ["model.safetensors"]}}',
        b'{"weight_map": {"a": {"b": "model.safetensors"}}}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_an_index_that_maps_no_tensors_to_files_is_malformed(content: bytes, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    write_bytes(tmp_path / INDEX, content)
    assert INDEX in refusal(capsys, 6, "structure", tmp_path)


def test_a_tensor_that_its_shard_lacks_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    weight_map = write_two_shards(tmp_path)
    write_index(tmp_path, {**weight_map, f"extra{HOSTILE}": SHARDS[0]})
    assert SHARDS[0] in refusal(capsys, 6, "structure", tmp_path)


def test_a_tensor_that_the_index_puts_elsewhere_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    weight_map = write_two_shards(tmp_path)
    moved = next(name for name, shard in weight_map.items() if shard == SHARDS[0])
    write_index(tmp_path, {**weight_map, moved: SHARDS[1]})
    assert moved in refusal(capsys, 6, "structure", tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_malformed(tmp_path: Path, capsys: Capture) -> None:
    weight_map = write_two_shards(tmp_path)
    left_out = next(name for name, shard in weight_map.items() if shard == SHARDS[1])
    write_index(tmp_path, {name: shard for name, shard in weight_map.items() if name != left_out})
    assert left_out in refusal(capsys, 6, "structure", tmp_path)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_files_is_malformed(indexed: bool, tmp_path: Path, capsys: Capture) -> None:
    write_two_shards(tmp_path)
    twice = Tensor("model.norm.weight", (64,), DType.BF16)
    write_sparse(tmp_path / SHARDS[0], [twice])
    write_sparse(tmp_path / SHARDS[1], [twice])
    if indexed:
        write_index(tmp_path, {"model.norm.weight": SHARDS[0], "model.embed_tokens.weight": SHARDS[1]})
    else:
        (tmp_path / INDEX).unlink()
    assert "model.norm.weight" in refusal(capsys, 6, "structure", tmp_path)


# --- pickles -------------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file where anything unpickles it."""

    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.fuse,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path, capsys: Capture) -> None:
    directory, fuse = tmp_path / "model", tmp_path / "exploded"
    write_config(directory, TINY_QWEN3)
    write_bytes(directory / name, pickle.dumps(Bomb(fuse)))
    for command in ("structure", "config", "params", "attention"):
        done = invoke(capsys, command, directory, "--format", "json", "--lang", "en")
        assert done.code == 0
        assert name in done.err
    refusal(capsys, 3, "weights", directory)
    assert inspect(str(directory)).parameters.stored is None
    assert not fuse.exists()
    pickle.loads((directory / name).read_bytes())
    assert fuse.exists(), "the bomb was no bomb"


# --- as a process --------------------------------------------------------------------------------------------------


def hostile_directories(root: Path) -> Iterable[tuple[Path, int]]:
    write_config(root / "unknown", {**TINY_QWEN3, "model_type": HOSTILE})
    yield root / "unknown", 7
    write_bytes(root / "garbage" / "model.safetensors", os.urandom(64))
    yield root / "garbage", 6
    write_bytes(root / "nested" / "config.json", b"[" * 1_000_000)
    yield root / "nested", 6
    (root / "empty").mkdir()
    yield root / "empty", 3


def test_no_bad_input_ends_in_a_traceback(tmp_path: Path) -> None:
    for directory, code in hostile_directories(tmp_path):
        done = run("structure", directory)
        assert (done.code, done.out) == (code, "")
        assert_is_one_error_line(done.err, "en")


@linux
def test_running_out_of_memory_is_said_in_one_line(tmp_path: Path) -> None:
    write_config(tmp_path, TINY_QWEN3)
    write_bytes(tmp_path / "config.json", b'{"a": "' + b"x" * 45_000_000 + b'"}')
    limited = (
        "import resource, sys; from qwen_inspect.cli import main; import qwen_inspect.structure.inspect\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (60 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size)); sys.exit(main())"
    )
    command = [sys.executable, "-c", limited, "config", str(tmp_path), "--lang", "en"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert_is_one_error_line(done.stderr, "en")
    assert "memory" in done.stderr
