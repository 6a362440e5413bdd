"""What speculative decoding adds to vLLM: the drafter's weights, its layers in the KV cache, and its part in the profile run.

Source: vLLM 0.19.0, config/speculative.py, v1/spec_decode/eagle.py (load_model, dummy_run) and draft_model.py,
model_executor/models: qwen3_next_mtp.py, qwen3_5_mtp.py, deepseek_mtp.py, glm4_moe_mtp.py.
"""

from __future__ import annotations

from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.model import Report
from ...results.serving import Speculation
from ...spec import each_module
from ...units import MIB
from ...values import dataclass, replace
from .blocks import INDEXED_TYPES, text_part
from .rotary import scaling
from .weights import decoder_layer, rank_weights
from .widths import Widths, decoder_widths

# model_types whose releases have layers for multi-token prediction, and the key with their number (1 without it).
# Source: SpeculativeConfig.hf_config_override and each class's __init__.
PREDICTION_KEYS = {
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "qwen4_exp_text"),
        "mtp_num_hidden_layers",
    ),
    **dict.fromkeys(
        ("qwen3_next", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe"),
        "num_nextn_predict_layers",
    ),
}
SUFFIX_TOKENS = 24  # suffix_decoding_max_tree_depth
WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
WITHOUT_DRAFT_MODELS, LAST_WITHOUT_IMAGES = ((0, 10), (0, 15)), (0, 20)  # versions that refuse them
ROUNDING_BYTES = 16 * MIB  # of the allocator, which loses at most 1 MiB a parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafter:
    """A drafter on one of `ranks` ranks. layers: those that keep keys and values; latents: those that keep a latent (MLA).

    widths: None for a drafter without a model. states: hidden states of the model that it reads beside the last.
    """

    ranks: int
    least_bytes: int = 0
    most_bytes: int = 0
    layers: tuple[LayerAttention, ...] = ()
    latents: int = 0
    widths: Widths | None = None
    states: int = 0


def drafter_of(
    report: Report,
    speculation: Speculation,
    *,
    ranks: int,
    step_tokens: int,
    version: tuple[int, int],
    sees: bool = False,
) -> Drafter:
    """The drafter of a request for `report`. sees: whether the run takes images.

    Raises UnsupportedError for drafters that are not modelled, and for those that this version of vLLM refuses.
    """
    if speculation.method in WITHOUT_MODEL:
        return Drafter(ranks=ranks)
    if speculation.method == "mtp":
        return _prediction_layers(report, ranks, step_tokens)
    draft_ranks = speculation.ranks or ranks
    if speculation.drafter is not None:
        _check_draft_model(speculation.drafter, version, sees)
        return _draft_model(report, speculation.drafter, draft_ranks, version)
    if speculation.head is None:
        raise UnsupportedError("vllm_speculation", method=speculation.method)
    from .eagle import eagle_head

    return eagle_head(report, speculation.head, draft_ranks, third=speculation.method == "eagle3")


def proposed_tokens(report: Report, speculation: Speculation) -> int:
    """num_speculative_tokens, or the default: all of the layers for prediction, or the depth of suffix decoding's tree."""
    if speculation.tokens is not None:
        return speculation.tokens
    return prediction_count(report) if speculation.method == "mtp" else SUFFIX_TOKENS


def prediction_count(report: Report) -> int:
    """Layers for multi-token prediction. Raises UnsupportedError for classes whose layers are not modelled."""
    config = report.config or {}
    text = text_part(config)
    key = PREDICTION_KEYS.get(str(text.get("model_type", config.get("model_type"))))
    count = 0 if key is None else text.get(key, 1)
    if type(count) is not int or not 0 < count <= 64:
        raise UnsupportedError("vllm_no_prediction", class_name=report.spec.class_name)
    return count


def _prediction_layers(report: Report, ranks: int, step_tokens: int) -> Drafter:
    """Each a decoder layer with full attention, like the model's last, behind a projection of an embedding and a hidden state.

    Embedding and output layer are the model's. A packed release may have these layers packed or not: the ends of the range.
    """
    count, spec, text = prediction_count(report), report.spec, text_part(report.config or {})
    heads = [layer for layer in report.attention.layers if isinstance(layer, LayerAttention)]
    index = heads[-1].index if heads else len(report.attention.layers) - 1
    with_layer, without = (rank_weights(report, ranks, stage=stage) for stage in (range(index, index + 1), range(0)))
    packed = count * (with_layer.total_bytes - without.total_bytes)
    dense = max(packed, count * _dense_bytes(report, index) // ranks) if report.known.quantised is not None else packed
    # Qwen shares projection and norms between its layers, the projection over the ranks; in the others each layer has its own.
    in_qwen = spec.hidden_size * (3 + 2 * spec.hidden_size // ranks)
    projections = (
        in_qwen if "qwen" in str(text["model_type"]) else count * spec.hidden_size * (3 + 2 * spec.hidden_size)
    )
    beside = projections * spec.dtype.bits // 8
    if text["model_type"] in INDEXED_TYPES and type(chosen := text.get("index_topk")) is int:
        beside += 4 * step_tokens * chosen * count  # topk_indices_buffer of each layer
    layer = heads[-1:]
    return Drafter(
        ranks=ranks,
        least_bytes=packed + beside,
        most_bytes=dense + beside + ROUNDING_BYTES * count,
        layers=tuple(replace(layer[0], index=len(report.attention.layers) + at) for at in range(count))
        if layer
        else (),
        latents=0 if layer else count,
        widths=decoder_widths(report),
    )


def _dense_bytes(report: Report, index: int) -> int:
    """Bytes of a decoder layer over all ranks, as if it were not packed."""
    return sum(
        tensor.elements * report.spec.dtype.bits // 8
        for path, module in each_module(report.tree)
        if decoder_layer(path) == index
        for tensor in module.tensors
    )


def _check_draft_model(draft: Report, version: tuple[int, int], sees: bool) -> None:
    """Source: config/speculative.py of 0.10 to 0.14; v1/spec_decode of 0.16 to 0.33, _raise_if_mrope, _raise_if_multimodal."""
    if WITHOUT_DRAFT_MODELS[0] <= version <= WITHOUT_DRAFT_MODELS[1]:
        raise UnsupportedError("vllm_draft_version", since="0.16")
    if "mrope_section" in scaling(text_part(draft.config or {})):
        raise UnsupportedError("vllm_draft_mrope", class_name=draft.spec.class_name)
    if sees and version <= LAST_WITHOUT_IMAGES:
        raise UnsupportedError("vllm_draft_images", since="0.21")


def _draft_model(report: Report, draft: Report, ranks: int, version: tuple[int, int]) -> Drafter:
    """A whole model, whose vocabulary is the model's. Source: SpeculativeConfig.verify_equal_vocab_size_if_draft_model."""
    if draft.known.unread is not None:
        raise draft.known.unread
    if draft.spec.vocab_size != report.spec.vocab_size:
        raise UnsupportedError("vllm_draft_vocabulary", model=report.spec.vocab_size, draft=draft.spec.vocab_size)
    layers = [layer for layer in draft.attention.layers if isinstance(layer, LayerAttention)]
    # vLLM takes the layers for multi-token prediction of a release that has them, whatever the method.
    if text_part(draft.config or {}).get("model_type") in PREDICTION_KEYS or len(layers) < len(draft.attention.layers):
        raise UnsupportedError("vllm_draft_kind", class_name=draft.spec.class_name)
    weights = rank_weights(draft, ranks, version=version)
    packed = MIB * sum(size_bytes > MIB for size_bytes in weights.packed)
    return Drafter(
        ranks=ranks,
        least_bytes=weights.total_bytes,
        most_bytes=weights.total_bytes + packed + ROUNDING_BYTES,
        layers=tuple(layers),
        widths=decoder_widths(draft),
    )
