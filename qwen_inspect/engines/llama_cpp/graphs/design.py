"""How the architectures that are modelled here differ, and what a graph is reserved for.

Source: llama.cpp b11549, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....typed import Any, Literal
from ....values import dataclass
from ..builds import Build
from ..ggml.tensors import Type


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How an architecture's decoder differs from Llama's. Biases and extra norms are told by the file's tensors."""

    scaled_embedding: bool = False  # by a number
    scaled_rows: bool = False  # by a row of numbers for tokens, where inputs may be mixed
    unmixed: bool = False  # tokens and embeddings are never in one batch
    contiguous_tails: bool = False  # what a convolution keeps is made contiguous first
    gated_heads: bool = False  # a latent attention's gate has a number for each head
    normed_embedding: bool = False  # by an RMS norm without a weight
    scaled_query: bool = False
    gated_query: bool = False  # Q's matrix makes a gate for attention's result too
    normed_values: bool = False  # V has an RMS norm
    positions: int = 1  # of each token
    turns: bool = True  # whether RoPE turns Q and K
    turns_by_key: bool = False  # whether the file's key says that it does
    turns_windowed: bool = False  # in layers with windows, where the file has some
    turns_first: bool = False  # before Q and K are normalised
    unturned: int = 0  # every so many layers RoPE does not turn; 0: none
    capped_scores: bool = False
    chunked: bool = False  # Llama 4's attention and experts
    gating: str | None = "softmax"  # of experts; None: by the file's key
    gated_by_default: str = "softmax"  # where the file has no key
    normalised: bool | None = True  # the chosen experts' weights; None: by the file's key
    early_router: bool = False  # the router reads the layer's input
    divided_gate: bool = False  # the shared expert's gate is silu(x) / x
    halved_shared: bool = False  # the sum with the shared expert's result is
    dense_beside: bool = False  # experts are added to a dense block, whose sum is scaled
    clamps_at_once: bool = False  # a gated unit, where the file's key says that it does, in one node
    squared: bool = False  # ReLU is
    single: bool = False  # a layer has one part
    parallel: Literal["residual", "attention"] | None = None  # added first to a block with attention's input
    residual_first: bool = False  # in the sum after attention
    forward_last: bool = False  # in the sum after the feed-forward block
    norms_after: bool = False  # of the sums after attention and after the feed-forward block, as BERT's
    relative: Literal["encoder", "decoder"] | None = None  # T5's, with a bias by the distance of tokens
    cached: bool = True  # K and V lie in a cache
    logits: Literal["always", "unless_embedding", "never"] = "always"
    norms_apart: bool = False  # a layer's norm is expanded before the rest
    bare_norms: bool = False  # norms have no weights
    scaled_residual: bool = False  # whatever the file's keys say
    scaled_throughout: bool = False  # embedding and logits, as by the file's keys, which have defaults
    altup: bool = False  # Gemma 3n's four states
    rows_at: Literal["layer", "end", "norm"] = "layer"  # where output tokens' rows are taken
    rows_after_norm: bool = False  # of attention's result
    rows_of_sum: bool = False  # in the last layer after attention's sum with its input, not before
    keeps_state: bool = False  # of the last layer, for multi-token prediction, since b11549
    output_norm: str | None = "output_norm"
    scaled_output: bool = False  # before the output matrix
    scaled_logits: bool = False  # by the file's key
    never_flash: bool = False  # flash attention is turned off
    capped: bool = False  # logits are
    capped_by_key: bool = False  # logits are where the file's key says so
    since: int = 0  # the first build that is known here


RECENT = 10_000
GEMMA = Design(scaled_rows=True, scaled_query=True, capped_by_key=True, since=RECENT)
NEMOTRON = Design(
    gating="sigmoid", normalised=None, turns=False, single=True, squared=True, rows_at="norm", since=11_218
)
LFM2 = Design(
    gating=None,
    residual_first=True,
    forward_last=True,
    output_norm="token_embd_norm",
    logits="unless_embedding",
    since=11_218,
)
BERT: Mapping[str, Any] = {
    "norms_after": True,
    "cached": False,
    "logits": "never",
    "output_norm": None,
    "since": RECENT,
}
DESIGNS: Mapping[str, Design] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen3moe"), Design()),
    **dict.fromkeys(("granite", "granitemoe"), Design(scaled_logits=True)),
    **dict.fromkeys(
        (
            "apertus",
            "arcee",
            "arctic",
            "baichuan",
            "bitnet",
            "chatglm",
            "dbrx",
            "deci",
            "ernie4_5",
            "exaone",
            "glm4",
            "internlm2",
            "codeshell",
            "mellum",
            "olmo2",
            "orion",
            "pangu-embedded",
            "plamo3",
            "qwen",
            "seed_oss",
            "stablelm",
            "starcoder2",
            "xverse",
        ),
        Design(since=RECENT),
    ),
    **dict.fromkeys(("ernie4_5-moe", "grovemoe"), Design(since=RECENT)),
    **dict.fromkeys(("hunyuan-dense", "hunyuan-moe", "maincoder"), Design(turns_first=True, since=RECENT)),
    "hunyuan_vl": Design(positions=4, turns_first=True, since=RECENT),
    **dict.fromkeys(("deepseek", "olmoe"), Design(normalised=False, since=RECENT)),
    "qwen2vl": Design(positions=4),
    **dict.fromkeys(("qwen3vl", "qwen3vlmoe"), Design(positions=4, since=RECENT)),
    "qwen2moe": Design(divided_gate=True, normalised=False),
    **dict.fromkeys(("bloom", "gpt2", "jais", "mpt", "refact", "starcoder"), Design(turns=False, since=RECENT)),
    **dict.fromkeys(("command-r", "gptneox"), Design(parallel="residual", scaled_logits=True, since=RECENT)),
    "cohere2": Design(parallel="residual", scaled_logits=True, turns_windowed=True, since=RECENT),
    **dict.fromkeys(("falcon", "plamo"), Design(parallel="attention", since=RECENT)),
    "phi2": Design(parallel="attention", scaled_query=True, forward_last=True, since=RECENT),
    **dict.fromkeys(("jais2", "nemotron"), Design(squared=True, since=RECENT)),
    "minicpm": Design(scaled_throughout=True, scaled_residual=True, scaled_logits=True, since=RECENT),
    "minicpm3": Design(scaled_embedding=True, scaled_residual=True, scaled_output=True, since=11_218),
    "openelm": Design(residual_first=True, since=RECENT),
    "paddleocr": Design(positions=4, since=RECENT),
    "granite_swa": Design(scaled_logits=True, since=11_218),
    "laguna": Design(gating=None, normalised=None, since=11_218),
    "hy_v3": Design(gating=None, normalised=None, rows_at="norm", since=11_218),
    "step35": Design(gating=None, normalised=None, rows_at="end", since=11_218),
    "smallthinker": Design(gating=None, early_router=True, turns_windowed=True, since=RECENT),
    "cohere2moe": Design(
        parallel="residual",
        scaled_logits=True,
        turns_windowed=True,
        gating=None,
        normalised=None,
        halved_shared=True,
        rows_at="norm",
        since=11_218,
    ),
    "deepseek4": Design(gating=None, normalised=None, clamps_at_once=True, unmixed=True, since=11_218),
    "glm5-next": Design(
        turns=False, gating=None, gated_by_default="sigmoid", normalised=None, clamps_at_once=True, since=11_434
    ),
    "qwen4exp": Design(positions=4, gated_query=True, output_norm=None, contiguous_tails=True, since=11_434),
    "bailingmoe3": Design(gating=None, normalised=None, gated_heads=True, rows_at="norm", since=11_434),
    "hy_v4": Design(gating=None, normalised=None, clamps_at_once=True, since=11_434),
    "kimi-k3": Design(turns=False, gating=None, normalised=None, since=11_218),
    "kimi-linear": Design(turns=False, gating=None, norms_apart=True, since=11_218),
    "olmo": Design(bare_norms=True, since=RECENT),
    "exaone4": Design(turns_windowed=True, since=RECENT),
    "exaone-moe": Design(turns_windowed=True, gating=None, normalised=None, since=RECENT),
    "bailingmoe": Design(normalised=None, since=RECENT),
    "afmoe": Design(scaled_embedding=True, gating=None, normalised=None, unturned=4, since=RECENT),
    "mimo2": Design(gating="sigmoid", keeps_state=True, since=11_218),
    "smollm3": Design(unturned=4, since=RECENT),
    "gemma": Design(scaled_embedding=True, scaled_query=True),
    "gemma2": Design(scaled_embedding=True, scaled_query=True, capped=True, capped_scores=True, since=RECENT),
    "gemma3": GEMMA,
    "gemma3n": Design(scaled_rows=True, normed_values=True, capped=True, altup=True, since=11_434),
    "gemma4": Design(scaled_rows=True, normed_values=True, capped=True, since=11_549),
    "llama4": Design(chunked=True, gating="sigmoid", normalised=False, unturned=4, since=RECENT),
    **dict.fromkeys(("phi3", "phimoe"), Design(scaled_query=True, forward_last=True)),
    "gpt-oss": Design(gating="softmax_weight", normalised=False, rows_at="end", since=RECENT),
    **dict.fromkeys(
        ("bailingmoe2", "deepseek2", "deepseek2-ocr", "dots1", "glm4moe", "mistral4"),
        Design(gating=None, normalised=None, since=RECENT),
    ),
    **dict.fromkeys(("deepseek32", "glm-dsa"), Design(gating=None, normalised=None, since=11_218)),
    **dict.fromkeys(
        ("qwen35", "qwen35moe"), Design(positions=4, gated_query=True, norms_apart=True, rows_at="norm", since=11218)
    ),
    "qwen3next": Design(gated_query=True, norms_apart=True, rows_at="norm", since=11218),
    "granitehybrid": Design(turns_by_key=True, scaled_logits=True, since=11_218),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), NEMOTRON),
    **dict.fromkeys(("mamba", "mamba2"), Design(single=True, since=11_218)),
    "jamba": Design(normalised=False, turns=False, residual_first=True, forward_last=True, since=11_218),
    "falcon-h1": Design(rows_of_sum=True, since=11_218),
    "plamo2": Design(since=11_218),
    "lfm2": LFM2,
    "lfm2moe": LFM2,
    "minimax-m2": Design(gating=None, since=RECENT),
    "minimax-m3": Design(gating=None, normalised=None, since=11_434),
    "mistral3": Design(since=RECENT),
    "maple": Design(turns_windowed=True, clamps_at_once=True, since=11_434),
    "muse-glimmer": Design(
        normed_embedding=True,
        turns_windowed=True,
        rows_after_norm=True,
        scaled_logits=True,
        capped_by_key=True,
        since=11_434,
    ),
    "spark2_5": Design(since=11_434),
    "grok": Design(
        scaled_throughout=True,
        scaled_logits=True,
        capped_scores=True,
        capped_by_key=True,
        dense_beside=True,
        never_flash=True,
        since=RECENT,
    ),
    **dict.fromkeys(("arwkv7", "rwkv6", "rwkv6qwen2", "rwkv7"), Design(since=11_434)),
    "t5": Design(relative="decoder", output_norm="dec.output_norm", since=RECENT),
    "t5encoder": Design(relative="encoder", cached=False, logits="never", output_norm="enc.output_norm", since=RECENT),
    **dict.fromkeys(("dream", "llada", "rnd1"), Design(cached=False, since=RECENT)),
    "llada-moe": Design(cached=False, normalised=False, since=RECENT),
    **dict.fromkeys(("bert", "jina-bert-v2"), Design(turns=False, **BERT)),
    **dict.fromkeys(("jina-bert-v3", "nomic-bert", "nomic-bert-moe"), Design(normalised=False, **BERT)),
    **dict.fromkeys(("eurobert", "llama-embed", "modern-bert"), Design(cached=False, logits="never", since=RECENT)),
    "neo-bert": Design(cached=False, logits="never", output_norm="enc.output_norm", since=RECENT),
    "gemma-embedding": Design(scaled_rows=True, scaled_query=True, cached=False, logits="never", since=RECENT),
}
READS_EMBEDDING = frozenset({"bitnet"})  # whose output matrix is the embedding itself, not a copy of it
ALWAYS_COPIED = frozenset({"gemma3n", "gemma4"})  # whose output matrix is made first, on the embedding's device too
HAVE_ENCODER = frozenset({"t5", "t5encoder", "eagle3", "dflash"})  # llama_model_has_encoder
WITHOUT_OUTPUT = frozenset(
    ("bert", "eurobert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe")
)
LAYER_NORMS = frozenset(
    (
        *("bloom", "codeshell", "cohere2", "command-r", "dbrx", "falcon", "gpt2", "gptneox", "jais", "jais2", "mpt"),
        *("nemotron", "olmo", "orion", "phi2", "stablelm", "starcoder", "starcoder2"),
        *("bert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "nomic-bert", "nomic-bert-moe"),
        *("rwkv6", "rwkv7"),
    )
)
FEWEST_POSITIONS = 256  # that an empty cache counts: llama_kv_cache_msa_context::get_n_pos
POOLING = ("none", "mean", "cls", "last", "rank")  # by their numbers: llama_pooling_type
GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrt_softplus"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is reserved for. cells, window_cells: of one stream. outputs: rows of logits. streams: 1 if the cache is unified.

    drafted: tokens of a draft, after each of which a recurrent state is kept. fused_experts: -fmoe of ik_llama.cpp.
    attends_on_host: -nkvo. embeds: states are given, not logits alone; pooling: how, None: by the file.
    positions: that the cache holds.
    """

    tokens: int
    outputs: int
    sequences: int
    drafted: int
    cells: int
    window_cells: int
    streams: int
    flash_attention: bool
    key_type: Type
    value_type: Type
    build: Build
    fused_experts: bool = False
    attends_on_host: bool = False
    embeds: bool = False
    pooling: str | None = None
    positions: int = FEWEST_POSITIONS
