"""Random configurations of the same structure as a given one: every dimension another, every option the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import count
from random import Random
from typing import Any

from qwen_inspect.predicting.traces.class_rules import decoder_of
from qwen_inspect.predicting.traces.kept_trace import CHUNK_TOKENS, Point
from qwen_inspect.predicting.traces.outline import has_alibi
from qwen_inspect.predicting.traces.scans import FLASH_HEAD_DIM

# Keys that are a dimension on their own, each with the multiple that kernels or classes ask for.
SIZES = {
    "vocab_size": 1,
    "intermediate_size": 8,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "shared_intermediate_size": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "moe_shared_expert_intermediate_size": 8,
    "ffn_dim": 8,
    "hidden_dim": 8,
    "block_ff_dim": 8,
    "intermediate_size_mlp": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 1,
    "word_embed_proj_dim": 8,
    "ffn_hidden_size": 8,
    "n_inner": 8,
    "n_positions": 1,
    "moe_latent_size": 8,
    "laurel_rank": 8,
    "linear_head_dim": 8,
}
# Of state space layers: the names of each size in the classes.
HEADS = ("num_heads", "mamba_num_heads", "mamba_n_heads")
HEAD_DIM = ("mamba_head_dim", "mamba_d_head")  # and "head_dim" where the model has no other heads
GROUPS = ("n_groups", "mamba_n_groups")
STATE = ("state_size", "ssm_state_size", "mamba_d_state")
KERNEL = ("conv_kernel", "mamba_d_conv")
CHUNK = ("chunk_size", "mamba_chunk_size")
RANK = ("time_step_rank", "mamba_dt_rank")
EXPAND = ("expand", "mamba_expand")
STATE_SPACE = (*HEADS, *HEAD_DIM, *GROUPS, *STATE, *KERNEL, *CHUNK, *RANK, *EXPAND, "mamba_d_ssm")
ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta")
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "experts_per_token")


def sampled(config: Mapping[str, Any], random: Random) -> dict[str, Any]:
    whole = deepcopy(dict(config))
    text = decoder_of(whole)
    assert isinstance(text, dict)

    def some(least: int, most: int, multiple: int = 1) -> int:
        return random.randint(least, most) * multiple

    for key in ("image_token_id", "image_token_index"):
        if isinstance(whole.get(key), int) and whole[key] < text.get("vocab_size", 0):
            whole[key] = 1  # within the vocabulary still
    for key, multiple in SIZES.items():
        if isinstance(text.get(key), int) and text[key]:
            text[key] = some(11, 97, multiple) if multiple > 1 else some(301, 5_001)
    text.setdefault("pad_token_id", 0)  # some classes have one
    for part in (whole, text):
        if part.get("pad_token_id") is not None:
            part["pad_token_id"] = 0  # within the vocabulary
    if "num_attention_heads" in text:
        _heads(text, some)
    else:
        text["hidden_size"] = some(5, 29, 8)
    if any(key in text for key in STATE):
        _state_space(text, some)
    for key in WINDOWS:
        if isinstance(text.get(key), int) and text[key] > 1:
            text[key] = some(6, 50)
    for key in EXPERTS:
        if isinstance(text.get(key), int) and text[key] > 1:
            text[key] = some(10, 40) if text.get("n_group") in (None, 1) else text["n_group"] * some(3, 9)
    for key in PER_TOKEN:
        if isinstance(text.get(key), int) and text[key] > 1:
            text[key] = some(2, 9)
    if text.get("model_type") in ("opt", *ENCODERS):  # which have a row for each
        text["max_position_embeddings"] = some(301, 5_001)
    if text.get("model_type") in ENCODERS:
        if text.get("type_vocab_size", 1) > 1:
            text["type_vocab_size"] = some(2, 9)
        labels = 1 if len(text.get("id2label") or (0, 1)) == 1 else some(2, 9)
        text["id2label"] = {str(label): str(label) for label in range(labels)}
        text.pop("label2id", None)
    if isinstance(text.get("conv_L_cache"), int):
        text["conv_L_cache"] = some(2, 7)
    if isinstance(text.get("linear_num_heads"), int):
        text["linear_num_heads"], text["linear_conv_kernel_dim"] = some(2, 9), some(2, 7)
    if isinstance(text.get("linear_num_key_heads"), int):
        same = text["linear_num_key_heads"] == text["linear_num_value_heads"]
        text["linear_num_key_heads"] = some(2, 11)
        text["linear_num_value_heads"] = text["linear_num_key_heads"] * (1 if same else some(2, 5))
        text["linear_conv_kernel_dim"] = some(2, 7)
    return whole


def _heads(text: dict[str, Any], some: Any) -> None:
    """KV heads that divide the query heads; a head_dim of its own, or the hidden size divided by the heads, as in `text`."""
    heads = text["num_attention_heads"]
    kv_heads = text.get("num_key_value_heads") or text.get("num_kv_heads") or heads
    new = kv_heads if kv_heads == 1 else 2 ** some(1, 4) if has_alibi(text) else some(2, 9)
    if "kv_lora_rank" in text:  # RoPE turns the part that is not compressed
        text["num_attention_heads"] = text["num_key_value_heads"] = new
        text["hidden_size"] = new * some(5, 29, 8)
        text["qk_rope_head_dim"], text["v_head_dim"] = some(2, 8, 8), some(3, 16, 8)
        text["qk_nope_head_dim"] = text["v_head_dim"] + some(0, 4, 8)  # kernels take no wider values than keys
        if text.get("head_dim") is not None:
            text["head_dim"] = text["qk_rope_head_dim"]
        if "index_head_dim" in text:  # of which a part is turned too
            text["index_head_dim"], text["index_n_heads"] = text["qk_rope_head_dim"] + some(1, 9, 8), some(2, 9)
        return
    times = 1 if heads == kv_heads else some(2, 7)
    text["num_attention_heads"] = new * times
    if text.get("num_global_key_value_heads") is not None:  # of layers without a window
        text["num_global_key_value_heads"] = new if text["num_global_key_value_heads"] == kv_heads else times
        text["num_attention_heads"] *= some(1, 3)
    if isinstance(text.get("global_head_dim"), int):
        text["global_head_dim"] = some(3, 32, 8) if text["global_head_dim"] <= FLASH_HEAD_DIM else some(33, 64, 8)
    for key in ("num_key_value_heads", "num_kv_heads"):
        if text.get(key) is not None:
            text[key] = new
    before = text.get("head_dim") or text["hidden_size"] // heads
    share = turned_share(text)
    dims = (some(3, 32, 8) if before % 8 == 0 else some(3, 31, 8) + 4 for _ in count())
    head_dim = next(dim for dim in dims if int(dim * share) % 2 == 0)
    if isinstance(text.get("rotary_dim"), int):
        text["rotary_dim"] = head_dim if text["rotary_dim"] == before else 2 * some(1, head_dim // 2 - 1)
    if text.get("head_dim") is not None and "kv_lora_rank" not in text:
        text["head_dim"] = head_dim
        text["hidden_size"] = text["num_attention_heads"] * some(2, 9, 8)  # some classes want a whole number of heads
    else:
        text["hidden_size"] = text["num_attention_heads"] * head_dim
    for key in ("rope_parameters", "rope_scaling"):
        rope = text.get(key)
        half = int(head_dim * share) // 2
        if isinstance(rope, dict) and isinstance(rope.get("mrope_section"), list):
            rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
        if isinstance(rope, dict) and isinstance(rope.get("long_factor"), list):
            rope["short_factor"], rope["long_factor"] = [1.0] * half, [2.0] * half


def _state_space(text: dict[str, Any], some: Any) -> None:
    """Sizes of state space layers; where heads are as wide as the expanded hidden states, these follow from them."""

    def put(keys: Sequence[str], value: int) -> None:
        text.update({key: value for key in keys if key in text})

    put(STATE, some(2, 6, 8))
    put(KERNEL, some(2, 12))
    put(CHUNK, some(8, 60))
    put(RANK, some(3, 20))
    heads = next((text[key] for key in HEADS if key in text), None)
    if heads is None:  # Mamba 1
        return
    groups, expand = (next((text[key] for key in keys if key in text), 2) for keys in (GROUPS, EXPAND))
    bound = "mamba_n_heads" in text and text.get("mamba_d_ssm") is None  # to the width of the hidden states
    inner = expand * text["hidden_size"]
    new_groups = 1 if groups == 1 else some(2, 5)
    new_heads = new_groups * (1 if groups == heads else some(2, 9))
    head_dim = some(2, 9, 8)
    if bound:  # some divisor of theirs
        new_groups = 1 if groups == 1 else 2
        new_heads = next(count for count in range(inner // head_dim, inner) if inner % (count * new_groups) == 0)
        new_heads *= new_groups
        head_dim = inner // new_heads
    put(GROUPS, new_groups)
    put(HEADS, new_heads)
    put(HEAD_DIM if "num_attention_heads" in text else ("head_dim",), head_dim)
    if text.get("mamba_d_ssm") is not None:
        text["mamba_d_ssm"] = new_heads * head_dim
    if "num_attention_heads" not in text:
        text["hidden_size"] = new_heads * head_dim // expand


def turned_share(text: Mapping[str, Any]) -> float:
    """The part of a head that RoPE turns."""
    share = text.get("partial_rotary_factor")
    for key in ("rope_parameters", "rope_scaling"):
        rope = text.get(key)
        if isinstance(rope, dict) and rope.get("partial_rotary_factor") is not None:
            share = rope["partial_rotary_factor"]
    return 1.0 if share is None else float(share)


def sampled_point(thresholds: Sequence[tuple[str, int]], random: Random) -> Point:
    """A workload that decodes two tokens or more, as likely near a threshold as far from all."""
    near = [tokens + random.randint(-2, 2) for kind, tokens in thresholds if kind != "dynamic"]
    longest = 10 * CHUNK_TOKENS if any(kind == "chunks" for kind, _ in thresholds) else 90
    if any(kind == "turns" for kind, _ in thresholds):
        longest = 25
    for chunk in (tokens for kind, tokens in thresholds if kind == "chunk"):
        near.append(random.randint(2, 4) * chunk + random.randint(-2, 2))
        longest = 5 * chunk
    prompt = max(
        1, random.choice([*near, random.randint(1, 3), random.randint(1, longest), random.randint(1, longest)])
    )
    total = random.choice([*near, prompt + random.randint(2, 60)])
    return Point(random.choice([1, 2, 3, 5]), prompt, max(total, prompt + 2))
