"""Encoders and embedding models: parameters, attention both ways, no cache, and the memory of a forward pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.results.attention import EncoderLayerAttention
from qwen_inspect.structure.inspect import inspect

from ..support.invoking import Capture, invoke
from ..support.models import run, write_config
from ..support.small_models import small_config

# The releases' config.json, without the keys that change no size.
BERT_BASE: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
BGE_M3: dict[str, Any] = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "vocab_size": 250002,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


@pytest.mark.parametrize(
    ("config", "parameters", "heads", "layers", "positions"),
    [(BERT_BASE, 109_482_240, 12, 12, 512), (BGE_M3, 567_754_752, 16, 24, 8192)],
    ids=["bert-base", "bge-m3"],
)
def test_an_encoders_parameters_are_the_published_ones_and_it_keeps_no_cache(
    config: dict[str, Any], parameters: int, heads: int, layers: int, positions: int, tmp_path: Path
) -> None:
    """BERT base: 110M (Devlin 2018), 109,482,240 in its files. BGE-M3: 568M (model card): XLM-R large's 559,890,432, and 7,680
    more positions of 1,024; of 8,194 rows tokens have 8,192 (model card)."""
    report = inspect(str(write_config(tmp_path, config)))
    assert report.parameters.theory == parameters
    assert {(layer.query_heads, layer.kv_heads, layer.head_dim) for layer in report.attention.both_ways} == {
        (heads, heads, 64)
    }
    assert len(report.attention.both_ways) == len(report.cache.layers) == layers
    assert report.spec.context_tokens == positions
    assert report.cache.keeps_nothing
    assert report.cache.size_bytes(tokens=512) == 0


def test_modernberts_local_layers_see_64_tokens_to_each_side(tmp_path: Path) -> None:
    """local_attention 128: half of it on both sides, and the token itself (transformers 5.23, modeling_modernbert)."""
    config = {**small_config("modernbert"), "local_attention": 128}
    layers = inspect(str(write_config(tmp_path, config))).attention.layers
    assert [layer.window_tokens for layer in layers if isinstance(layer, EncoderLayerAttention)] == [
        None,
        129,
        129,
        None,
    ]


def test_every_question_about_an_encoder_is_answered_or_refused_in_a_sentence(tmp_path: Path, capsys: Capture) -> None:
    path = write_config(tmp_path, {**small_config("bert"), "architectures": ["BertModel"]})
    shown = json.loads(invoke(capsys, "attention", path, "--context", "40", "--format", "json").out)
    assert (shown["kind"], shown["both_ways"], shown["query_heads"], shown["head_dim"]) == ("MHA", True, 4, 16)
    assert {layer["kind"] for layer in shown["cache"]["layers"]} == {"none"}
    assert shown["cache"]["engines"] == []
    for language, words in (("en", "No KV cache"), ("zh", "无 KV 缓存")):
        for command in ("attention", "structure"):
            assert words in invoke(capsys, command, path, "--lang", language).out
    assert invoke(capsys, "report", path, "-o", tmp_path / "reports", "--format", "html").code == 0
    fit = invoke(capsys, "fit", path, "--gpu", "H100", "--mode", "forward", "--context", "40", "--format", "json")
    assert (fit.code, json.loads(fit.out)["fits"]) == (0, True)
    for name, *options in (["memory"], ["fit", "--gpu", "H100"]):  # without --context: its 512 positions
        done = invoke(capsys, name, path, *options, "--lang", "en")
        assert (done.code, "one forward pass, batch 1, 512 tokens" in done.out) == (0, True)
    for name, *options in (["memory", "--mode", "generate"], ["fit", "--gpu", "H100", "--engine", "vllm"]):
        assert invoke(capsys, name, path, *options, "--context", "40").code == 7


def test_bert_needs_no_torch(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 tokens the logits of 30,522 words, in float32, are alive at the end."""
    monkeypatch.setitem(sys.modules, "torch", None)
    path = write_config(tmp_path, {**BERT_BASE, "architectures": ["BertForMaskedLM"]})
    predicted = json.loads(invoke(capsys, "memory", path, "--format", "json").out)["predicted"]
    assert (predicted["method"], predicted["weights_bytes"]) == ("trace", 109_514_298 * 4)
    assert predicted["moments"]["steady"]["activations_bytes"] == 512 * 30_522 * 4 + 512 * 8  # and the tokens
    assert invoke(capsys, "memory", path, "--mode", "generate").code == 7


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [pytest.param("bert", marks=pytest.mark.exhaustive), "modernbert"])
def test_the_memory_of_a_forward_is_predicted_request_by_request(model_type: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, small_config(model_type))
    options = ("--mode", "forward", "--context", "40", "--device", "cpu", "--random-weights", "--format", "json")
    content = json.loads(run("memory", path, *options).out)
    assert (content["measured"]["parted"], content["predicted"]["method"]) == (None, "trace")
    weights, *_, end = (entry for entry in content["differences"] if entry["term"] in ("weights", "steady_allocated"))
    assert weights["difference"] == end["difference"] == 0
    if model_type == "modernbert":  # BERT's biases make the CPU's products take scratch memory, which is named
        assert content["predicted"]["peak_allocated_bytes"] == content["measured"]["peak_allocated_bytes"]
