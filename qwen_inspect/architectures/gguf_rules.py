"""What llama.cpp itself knows of an architecture that its GGUF files do not say: windows, recurrent layers, latent attention.

Source: llama.cpp 0c1e57098, src/models/*.cpp (load_arch_hparams), src/llama-arch.cpp (LLM_ARCH_NAMES, llm_arch_is_recurrent,
llm_arch_is_hybrid), src/llama-model.cpp (create_memory).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Literal
from ..values import dataclass


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# llama.cpp's architectures without those for encoders alone, which keep no cache.
DECODERS = _names(
    """
    llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bloom stablelm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe qwen4exp phi2 phi3 phimoe plamo plamo2 plamo3
    codeshell orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 gemma4-assistant starcoder2 mamba mamba2
    maple jamba falcon-h1 xverse command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic deepseek
    deepseek2 deepseek2-ocr deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa glm5-next bitnet t5 t5encoder jais jais2
    nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe
    granitehybrid graniteswitch granite_swa chameleon plm bailingmoe bailingmoe2 bailingmoe3 dots1 dots3note arcee afmoe
    laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2 lfm2moe
    smallthinker seed_oss grovemoe apertus minimax-01 minimax-m2 minimax-m3 hrm_text cogvlm pangu-embedded mistral3
    mistral4 eagle3 dflash paddleocr mimo2 step35 spark2_5 llama-embed maincoder kimi-linear kimi-k3 talkie mellum
    nanbeige qwen3tts pockettts
    """
)
# create_memory gives these none: encoders and diffusion models, which read the whole text at once.
WITHOUT_CACHE = _names(
    """
    bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert wavtokenizer-dec modern-bert
    gemma-embedding dream llada llada-moe rnd1
    """
)
# Their attention sees all tokens, whatever the key says.
NOT_CAUSAL = _names("dream gemma-embedding llada llada-moe rnd1")
# Caches of a form of their own (compressed cells, another model's cells).
UNKNOWN_CACHE = frozenset({"deepseek4", "gemma4-assistant"})

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# Hybrids whose recurrent layers have no KV heads, are all but each n-th, or are all of them beside attention.
RECURRENT_WITHOUT_KV_HEADS = _names(
    """
    jamba granitehybrid plamo2 lfm2 lfm2moe nemotron_h nemotron_h_moe kimi-linear kimi-k3 bailingmoe3 glm5-next
    """
)
ATTENTION_INTERVAL: Mapping[str, int] = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
BESIDE_ATTENTION = frozenset({"falcon-h1"})
# create_memory filters no layer: those for MTP have cells too.
EVERY_LAYER_ATTENDS = frozenset({"falcon-h1", "hy_v4", "minimax-m3"})
HYBRID = RECURRENT_WITHOUT_KV_HEADS | ATTENTION_INTERVAL.keys() | BESIDE_ATTENTION
# Their cells hold the compressed latent alone, where the file has key_length_mla.
LATENT = _names(
    """
    deepseek2 mistral4 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-linear kimi-k3 bailingmoe3
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """How an architecture's windows are read.

    default: the window where the key is missing; None: the key is needed, unless `if_given`. fixed: whatever the key says.
    period: every n-th layer is full (0: none is), unless sliding_window_pattern says otherwise; None: that key is needed.
    full_first: the first of each period is the full one, not the last. layers: only in models of so many.
    """

    kind: Literal["standard", "chunked"] = "standard"
    default: int | None = None
    fixed: int | None = None
    if_given: bool = False
    period: int | None = None
    full_first: bool = False
    layers: int | None = None


WINDOWS: Mapping[str, WindowRule] = {
    "afmoe": WindowRule(if_given=True, period=4),
    "cohere2": WindowRule(period=4),
    "cohere2moe": WindowRule(period=4, full_first=True),
    "deepseek4": WindowRule(period=0),
    "dflash": WindowRule(if_given=True),
    "dots3note": WindowRule(),
    "exaone-moe": WindowRule(period=4),
    "exaone4": WindowRule(default=4096, period=4, layers=64),
    "gemma-embedding": WindowRule(period=6),
    "gemma2": WindowRule(default=4096, period=2),
    "gemma3": WindowRule(if_given=True, period=6),
    "gemma3n": WindowRule(period=5),
    "gemma4": WindowRule(),
    "gemma4-assistant": WindowRule(),
    "gpt-oss": WindowRule(period=2),
    "granite_swa": WindowRule(),
    "laguna": WindowRule(if_given=True, period=4, full_first=True),
    "lfm2": WindowRule(if_given=True, period=0),
    # A missing key means a window, a zero none.
    "llama4": WindowRule(kind="chunked", default=8192, fixed=8192, if_given=True, period=4),
    "maple": WindowRule(),
    "mellum": WindowRule(if_given=True, period=4),
    "mimo2": WindowRule(),
    "modern-bert": WindowRule(if_given=True, period=3, full_first=True),
    "muse-glimmer": WindowRule(period=4),
    "olmo2": WindowRule(if_given=True, period=4),
    "plamo3": WindowRule(if_given=True, period=8),
    "smallthinker": WindowRule(fixed=4096, if_given=True, period=4, full_first=True),
    "spark2_5": WindowRule(),
    "step35": WindowRule(),
}
