"""Models with states: what is kept at a release's sizes, by numbers that do not come from here."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from qwen_inspect.architectures import Architecture, architecture_of
from qwen_inspect.architectures.qwen4_exp import primes_from
from qwen_inspect.errors import MalformedError, UnsupportedError
from qwen_inspect.spec import each_tensor

# Sizes of NVIDIA-Nemotron-3-Nano-30B-A3B's config.json, of which Nemotron 3.5 Lightning has the same.
NANO = {
    "model_type": "nemotron_h",
    "dtype": "bfloat16",
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "num_key_value_heads": 2,
}
# Sizes of Qwen3.8-Flash-Next's decoder; the classes' own defaults otherwise.
FLASH_NEXT = {
    "model_type": "qwen4_exp_text",
    "dtype": "bfloat16",
    "hidden_size": 2560,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "linear_num_value_heads": 48,
    "moe_intermediate_size": 640,
    "shared_expert_intermediate_size": 640,
    "ple_layer_ids": [2],
    "eos_token_id": 248044,
    "split_ngram_parts": 128,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 128,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}


def cache_bytes(architecture: Architecture, tokens: int) -> int:
    assert architecture.kept is not None
    return sum(layer.size_bytes(tokens) for _, layer in architecture.kept)


def test_a_hybrid_keeps_its_few_layers_of_attention_and_a_state_for_each_of_the_others() -> None:
    """Published: 31,577,937,344 parameters, and 2,944 biases of 23 routers (llama.cpp counts 31,577,940,288)."""
    nano = architecture_of(NANO)
    assert sum(tensor.elements for tensor in each_tensor(nano.tree)) == 31_577_937_344
    assert sum(buffer.elements for buffer in nano.buffers) == 2_944
    attention = 6 * 131_072 * (2 * 2 * 128 * 2)
    states = 23 * ((64 * 64 + 2 * 8 * 128) * 4 * 2 + 64 * 64 * 128 * 4)
    assert cache_bytes(nano, 131_072) == attention + states == 854_671_360  # 0.796 GiB


def test_a_table_of_ngrams_and_the_positions_of_an_index_are_counted_once() -> None:
    """Published: a table of 51.2 billion parameters. transformers keeps the positions in the first indexed layer alone."""
    flash = architecture_of(FLASH_NEXT)
    (table,) = [tensor for tensor in each_tensor(flash.tree) if "ngram_embedding" in tensor.name]
    assert table.elements == 320_001_536 * 160 == 51_200_245_760
    assert len(flash.stored_form(table)) == 128
    assert cache_bytes(flash, 262_144) - cache_bytes(flash, 262_143) == 12 * (2 * 2 * 256 + 128) * 2 + 3 * 8


@pytest.mark.parametrize(("tables", "most"), [([2], 65_536), ([2, 3], 32_768)])
def test_a_table_has_no_more_pieces_than_can_be_listed(tables: list[int], most: int) -> None:
    config = {**FLASH_NEXT, "ple_layer_ids": tables}
    architecture_of({**config, "split_ngram_parts": most})
    with pytest.raises(MalformedError, match="split_ngram_parts"):
        architecture_of({**config, "split_ngram_parts": most + 1})


def test_primes_are_those_from_a_number_on() -> None:
    assert list(islice(primes_from(1), 6)) == [2, 3, 5, 7, 11, 13]
    assert list(islice(primes_from(20_000_000), 3)) == [20_000_003, 20_000_023, 20_000_033]
    assert next(primes_from(25_326_001)) > 25_326_001  # a strong pseudoprime to 2, 3 and 5 (OEIS A014233)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hybrid_override_pattern": "MEM"}, "config_all_linear"),
        ({"hybrid_override_pattern": "M?*"}, "config_key_unsupported"),
        ({"n_groups": 7}, "config_key_unsupported"),
    ],
)
def test_what_transformers_cannot_run_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        architecture_of({**NANO, **changes})
    assert refused.value.message.key == key
