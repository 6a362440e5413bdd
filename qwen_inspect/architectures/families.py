"""Which module of this package describes a model_type, and which of its classes; the default class comes first."""

from __future__ import annotations

from collections.abc import Mapping

_TYPES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "qwen2": {"qwen2": ("Qwen2ForCausalLM", "Qwen2Model")},
    "qwen2_moe": {"qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeModel")},
    "qwen3": {"qwen3": ("Qwen3ForCausalLM", "Qwen3Model")},
    "qwen3_moe": {"qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeModel")},
    "qwen2_vl": {"qwen2_vl": ("Qwen2VLForConditionalGeneration",)},
    "qwen2_5_vl": {"qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration",)},
    "qwen3_vl": {"qwen3_vl": ("Qwen3VLForConditionalGeneration",)},
    "qwen3_vl_moe": {"qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration",)},
    "qwen3_next": {"qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextModel")},
    "qwen3_5": {
        "qwen3_5": ("Qwen3_5ForConditionalGeneration",),
        "qwen3_5_text": ("Qwen3_5ForCausalLM", "Qwen3_5TextModel"),
    },
    "qwen3_5_moe": {
        "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration",),
        "qwen3_5_moe_text": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextModel"),
    },
    "gemma": {
        "gemma": ("GemmaForCausalLM", "GemmaModel"),
        "gemma2": ("Gemma2ForCausalLM", "Gemma2Model"),
        "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextModel"),
    },
    "gemma3": {"gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Model")},
    "gemma3n": {"gemma3n_text": ("Gemma3nForCausalLM", "Gemma3nTextModel")},
    "gemma4": {
        "gemma4": ("Gemma4ForConditionalGeneration", "Gemma4Model"),
        "gemma4_text": ("Gemma4ForCausalLM", "Gemma4TextModel"),
    },
    "gpt_oss": {"gpt_oss": ("GptOssForCausalLM", "GptOssModel")},
    "deepseek": {
        "deepseek_v2": ("DeepseekV2ForCausalLM", "DeepseekV2Model"),
        "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Model"),
        "deepseek_v32": ("DeepseekV32ForCausalLM", "DeepseekV32Model"),
        "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", "Glm4MoeLiteModel"),
        "glm_moe_dsa": ("GlmMoeDsaForCausalLM", "GlmMoeDsaModel"),
        "mistral4": ("Mistral4ForCausalLM", "Mistral4Model"),
    },
    "qwen_audio": {
        "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "Qwen2AudioModel"),
        "qwen3_asr": ("Qwen3ASRForConditionalGeneration", "Qwen3ASRModel"),
    },
    "qwen_omni": {
        "qwen2_5_omni_thinker": ("Qwen2_5OmniThinkerForConditionalGeneration",),
        "qwen3_omni_moe_thinker": ("Qwen3OmniMoeThinkerForConditionalGeneration",),
    },
    "glm": {
        "glm": ("GlmForCausalLM", "GlmModel"),
        "glm4": ("Glm4ForCausalLM", "Glm4Model"),
        "glm4_moe": ("Glm4MoeForCausalLM", "Glm4MoeModel"),
    },
    "glm4v": {
        "glm4v": ("Glm4vForConditionalGeneration", "Glm4vModel"),
        "glm4v_moe": ("Glm4vMoeForConditionalGeneration", "Glm4vMoeModel"),
    },
    "glm5_next": {"glm5_next": ("Glm5NextForConditionalGeneration", "Glm5NextModel")},
    "kimi_k25": {
        "kimi_k25": ("Kimi_K25ForConditionalGeneration", "KimiK25ForConditionalGeneration"),
    },
    "kimi_linear": {
        "kimi_linear": ("KimiLinearForCausalLM", "KimiLinearModel"),
        "bailing_hybrid": ("BailingHybridForCausalLM", "BailingHybridModel"),
    },
    "minimax_m2": {"minimax_m2": ("MiniMaxM2ForCausalLM", "MiniMaxM2Model")},
    "ernie4_5": {
        "ernie4_5": ("Ernie4_5ForCausalLM", "Ernie4_5Model"),
        "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeModel"),
    },
    "hunyuan": {
        "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Model"),
        "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Model"),
    },
    "qwen4_exp": {
        "qwen4_exp": ("Qwen4ExpForConditionalGeneration",),
        "qwen4_exp_text": ("Qwen4ExpForCausalLM",),
    },
    "llama4": {
        "llama4": ("Llama4ForConditionalGeneration",),
        "llama4_text": ("Llama4ForCausalLM", "Llama4TextModel"),
    },
    "llama": {"llama": ("LlamaForCausalLM", "LlamaModel")},
    "mistral": {
        "mistral": ("MistralForCausalLM", "MistralModel"),
        "ministral": ("MinistralForCausalLM", "MinistralModel"),
        "ministral3": ("Ministral3ForCausalLM", "Ministral3Model"),
        "mixtral": ("MixtralForCausalLM", "MixtralModel"),
    },
    "mistral3": {"mistral3": ("Mistral3ForConditionalGeneration", "Mistral3Model")},
    "internvl": {"internvl": ("InternVLForConditionalGeneration", "InternVLModel")},
    "cohere": {
        "cohere": ("CohereForCausalLM", "CohereModel"),
        "cohere2": ("Cohere2ForCausalLM", "Cohere2Model"),
    },
    "exaone4": {"exaone4": ("Exaone4ForCausalLM", "Exaone4Model")},
    "granite": {
        "granite": ("GraniteForCausalLM", "GraniteModel"),
        "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeModel"),
        "granitemoehybrid": ("GraniteMoeHybridForCausalLM", "GraniteMoeHybridModel"),
        "granitemoeshared": ("GraniteMoeSharedForCausalLM", "GraniteMoeSharedModel"),
    },
    "olmo": {
        "olmo2": ("Olmo2ForCausalLM", "Olmo2Model"),
        "olmo3": ("Olmo3ForCausalLM", "Olmo3Model"),
        "olmoe": ("OlmoeForCausalLM", "OlmoeModel"),
    },
    "phi": {
        "phi": ("PhiForCausalLM", "PhiModel"),
        "phi3": ("Phi3ForCausalLM", "Phi3Model"),
    },
    "seed_oss": {"seed_oss": ("SeedOssForCausalLM", "SeedOssModel")},
    "smollm3": {"smollm3": ("SmolLM3ForCausalLM", "SmolLM3Model")},
    "starcoder2": {"starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Model")},
    "arcee": {
        "apertus": ("ApertusForCausalLM", "ApertusModel"),
        "arcee": ("ArceeForCausalLM", "ArceeModel"),
        "nemotron": ("NemotronForCausalLM", "NemotronModel"),
    },
    "bloom": {"bloom": ("BloomForCausalLM", "BloomModel")},
    "falcon": {"falcon": ("FalconForCausalLM", "FalconModel")},
    "gpt2": {"gpt2": ("GPT2LMHeadModel", "GPT2Model")},
    "gpt_neox": {"gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXModel")},
    "mpt": {"mpt": ("MptForCausalLM", "MptModel")},
    "opt": {"opt": ("OPTForCausalLM", "OPTModel")},
    "bamba": {
        "bamba": ("BambaForCausalLM", "BambaModel"),
        "jamba": ("JambaForCausalLM", "JambaModel"),
    },
    "falcon_h1": {"falcon_h1": ("FalconH1ForCausalLM", "FalconH1Model")},
    "lfm2": {
        "lfm2": ("Lfm2ForCausalLM", "Lfm2Model"),
        "lfm2_moe": ("Lfm2MoeForCausalLM", "Lfm2MoeModel"),
    },
    "mamba": {
        "mamba": ("MambaForCausalLM", "MambaModel"),
        "falcon_mamba": ("FalconMambaForCausalLM", "FalconMambaModel"),
        "mamba2": ("Mamba2ForCausalLM", "Mamba2Model"),
    },
    "bert": {
        "bert": ("BertForMaskedLM", "BertModel", "BertForSequenceClassification"),
        "roberta": ("RobertaForMaskedLM", "RobertaModel", "RobertaForSequenceClassification"),
        "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    },
    "distilbert": {
        "distilbert": ("DistilBertForMaskedLM", "DistilBertModel", "DistilBertForSequenceClassification"),
    },
    "nemotron_h": {"nemotron_h": ("NemotronHForCausalLM", "NemotronHModel")},
}
CLASSES: Mapping[str, tuple[str, ...]] = {
    model_type: classes for types in _TYPES.values() for model_type, classes in types.items()
}
FAMILIES: Mapping[str, str] = {
    model_type: module for module, types in _TYPES.items() for model_type in types
}  # model_type -> module
# model_type -> the decoders within it that are known, where transformers takes any; the others are left to it.
TEXTS: Mapping[str, tuple[str, ...]] = {"internvl": ("qwen2", "qwen3", "qwen3_moe", "llama", "gpt_oss")}
