"""A design apart: its structure, which decides what a run does, and its dimensions, which decide how large its requests are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...checkpoint import DType
from ...digests import sha256_hex
from ...results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ...results.cache import CacheReport
from ...spec import ModelSpec, Module
from ...tracing import CHUNK_TURNS
from ...typed import Any, NamedTuple
from ...values import dataclass
from .class_rules import decoder_of, is_masked_by_window, read_attention, sparse_activations
from .kept_trace import CHUNK_TOKENS, Point
from .scans import FLASH_HEAD_DIM, Scan, chunk_tokens, scan_of

# Modules beside the decoder, which a prompt of text alone does not run.
_TOWERS = """
    visual vision_tower vision_model vision_encoder vision_embed_tokens multi_modal_projector image_newline patch_merger
    audio_tower embed_vision embed_audio mtp
"""
TOWERS = frozenset(_TOWERS.split())
WHOLE_CHUNKS = "whole chunks"  # a regime: nothing is padded
# Keys that change nothing that a run of text takes, besides what the design shows: names, tokens, initial values, constants to
# multiply by, and what says which layer is of which kind.
_UNRELATED = """
    _name_or_path _sliding_window_pattern activation activation_function architectures attention_dropout
    attention_in_multiplier attention_multiplier attention_out_multiplier attention_probs_dropout_prob attn_layer_indices
    attn_layer_offset attn_layer_period attn_pdrop audio_config audio_token_id auto_map bos_token_id classifier_dropout
    decoder_sparse_step dropout dtype emb_pdrop embd_pdrop embedding_dropout embedding_multiplier eos_token_id
    expert_layer_offset expert_layer_period ffn_hidden_size first_k_dense_replace full_attention_interval full_attn_idxs
    head_dim hidden_act hidden_activation hidden_dropout hidden_dropout_prob hybrid_override_pattern id2label image_token_id
    index_skip_topk_offset index_topk_freq index_topk_pattern indexer_types initializer_range intermediate_size key_multiplier
    label2id layer_norm_eps layer_norm_epsilon layer_types layerdrop layers_block_type lm_head_multiplier logits_scaling
    mamba_ssm_cache_dtype max_position_embeddings max_window_layers mlp_layer_types mlp_multipliers mlp_only_layers
    mm_tokens_per_image model_type moe_layer_freq moe_shared_expert_overlap mtp_hybrid_override_pattern mtp_layers_block_type
    n_inner n_positions n_shared_experts norm_eps num_dense_layers num_hidden_layers num_kv_heads num_kv_shared_layers
    num_labels num_nextn_predict_layers original_max_position_embeddings pad_token_id partial_rotary_factor per_layer_config
    position_embedding_type pretraining_tp problem_type qa_dropout qk_head_dim query_pre_attn_scalar rescale_prenorm_residual
    resid_pdrop residual_dropout residual_multiplier return_dict rms_norm_eps rope_local_base_freq rope_parameters
    rope_scaling rope_theta router_aux_loss_coef router_jitter_noise sep_token_id seq_classif_dropout sliding_window
    sliding_window_pattern ssm_in_multiplier ssm_multipliers ssm_out_multiplier text_config tie_word_embeddings
    time_step_floor time_step_init_scheme time_step_limit time_step_max time_step_min time_step_scale torch_dtype
    transformers_version use_cache use_mamba_kernels use_sliding_window video_token_id vision_config vision_end_token_id
    vision_start_token_id vision_token_id word_embed_proj_dim z_loss_coefficient
"""
UNRELATED = frozenset(_UNRELATED.split())
# Keys that only the tower's code reads, beside a decoder's whose releases set them too.
# Source: transformers 5.23, modeling_glm4v.Glm4vTextAttention (biases of queries, keys and values always),
# modeling_internvl.InternVLVisionAttention (whose decoder's biases the design shows)
UNREAD: Mapping[str, frozenset[str]] = dict.fromkeys(("glm4v", "internvl"), frozenset({"attention_bias"}))
# Kinds of RoPE whose frequencies are computed once. Source: transformers 5.23, modeling_rope_utils.dynamic_rope_update
FIXED_ROPE = frozenset({"default", "linear", "llama3", "mrope", "yarn"})
BEYOND = "beyond"  # of a run longer than those for which RoPE's frequencies were computed
# Heads of MLA, which no tensor shows by themselves.
LATENT = ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
# By kind of cache, the length beyond which such a layer does something else: the most tokens that an index chooses, a
# convolution's kernel, which prompts may be shorter than.
LENGTHS = {"indexed": "index_topk", "convolution": "conv_L_cache"}
GEMMA3_IMAGE_TOKEN, GEMMA3_VOCABULARY = 262_144, 262_208  # transformers 5.23, Gemma3Config and Gemma3TextConfig
# Tokens up to which Phi-3 keeps its first cache.
# Source: transformers 5.23, Phi3Config and Phi3ForCausalLM.prepare_inputs_for_generation
PHI3_ORIGINAL = 4096
# Names of its RoPE in releases. Source: the same, Phi3Config.convert_rope_params_to_dict
PHI3_ROPE: Mapping[str, str] = {"su": "longrope", "yarn": "longrope"}
# Classes that turn three sections of a head unless told others, of any sizes.
# Source: transformers 5.23, modeling_*.py of each, __init__ and recomposition of its rotary embedding
SECTIONED = frozenset({"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
LAYER_INPUTS = "per_layer_model_projection"  # of Gemma 3n and 4: makes inputs for all layers at once
LAYERS = frozenset({"layers", "h", "blocks", "layer"})
SCANNED = ("recurrent", "hybrid")  # kinds of caches that scans keep
MOST_SINGLES = 2


class Part(NamedTuple):
    """A layer, or all that is outside of the layers. structure: names, classes and what else is no size, as text."""

    structure: str
    dimensions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """outside: what is outside of the layers. layers: each one. thresholds: lengths of the prompt or of all tokens beyond which a
    run does something else, with what has them. chunk_tokens: of the chunks to which a prompt is padded, if it is.
    """

    outside: Part
    layers: tuple[Part, ...]
    thresholds: tuple[tuple[str, int], ...]
    chunk_tokens: int = CHUNK_TOKENS


def outline_of(
    spec: ModelSpec,
    tree: Module,
    attention: Sequence[AnyLayerAttention],
    cache: CacheReport,
    config: Mapping[str, Any],
) -> Outline | None:
    """None for a model whose layers are not a list with an attention and a cache for each, or whose class cannot run."""
    if decoder_of(config).get("return_dict") is False:  # its output has no name by which the model above reads it
        return None
    if len(attention) != len(cache.layers) or _has_odd_latents(decoder_of(config)):
        return None
    if is_masked_by_window(config) and not any(kind == "window" for kind, _ in _thresholds(attention)):
        return None
    containers = [module for module in _below(tree) if module.name in LAYERS and _length(module) == len(attention)]
    if len(containers) != 1:
        return None
    shapes = {name: tensor.shape for name, tensor in _tensors(tree)}
    structure, dimensions = _erased(tree, shapes, spec.dtype, without=containers[0])
    if any(module.name == LAYER_INPUTS for module in _below(tree)):
        dimensions = (*dimensions, len(attention))
    outside = Part(_digest((spec.class_name, spec.dtype.bits, structure)), dimensions)
    blocks = [child for child in containers[0].children for _ in range(child.repeats)]
    erased = {id(child): _erased(child, shapes, spec.dtype) for child in containers[0].children}
    by_layer = [
        (key, value)
        for key, value in sorted({**decoder_of(config), **sparse_activations(config, len(attention))}.items())
        if key not in UNRELATED and isinstance(value, list) and len(value) == len(attention)
    ]
    stated = {key: decoder_of(config).get(key) or 0 for key in (*LATENT, *LENGTHS.values())}
    if not all(type(value) is int for value in stated.values()):
        return None
    latent = tuple(stated[key] for key in LATENT)
    lengths = {kind: stated[key] for kind, key in LENGTHS.items()}
    if any(lengths.get(kept.kind) == 0 for kept in cache.layers):
        return None
    digests: dict[object, str] = {}
    layers = []
    scans: dict[int, Scan | None] = {}  # by block
    shared = 0  # layers since the last that has an index, whose choice they hold
    read = read_attention(attention, cache, decoder_of(config))
    if read is None:
        return None
    for block, reading, kept in zip(blocks, read, cache.layers, strict=True):
        (_, class_name, _, *inner), dimensions = erased[id(block)]  # without the layer's number and repeats
        how, heads = _attention(reading)
        if kept.kind in SCANNED:
            if id(block) not in scans:
                scans[id(block)] = scan_of(block, kept, decoder_of(config))
            if (scan := scans[id(block)]) is None:
                return None
            how, heads = (*how, *scan.path), (*heads, *scan.dimensions)
        elif isinstance(reading, OtherLayerAttention):
            heads += latent
        if kept.kind == "indexed":
            how, heads = (*how, shared), (*heads, lengths["indexed"])
            shared = 0 if any(module.name == "indexer" for module in _below(block)) else shared + 1
        options = tuple((key, repr(_class_of(values[kept.index], None))) for key, values in by_layer)
        identity = (id(block), kept.kind, how, options)
        if identity not in digests:
            digests[identity] = _digest((kept.kind, *how, options, class_name, *inner))
        layers.append(Part(digests[identity], heads + dimensions))
    own = {(str(kept.kind), lengths[kept.kind]) for kept in cache.layers if kept.kind in lengths}
    if config.get("model_type") == "phi3":
        own.add(("recomputed", _whole(config.get("original_max_position_embeddings", PHI3_ORIGINAL))))
    text = decoder_of(config)
    if "dynamic" in _ropes([text.get("rope_parameters"), text.get("rope_scaling")], {}):
        own.add(("dynamic", spec.context_tokens or 0))
    for scan in filter(None, scans.values()):
        own |= {*scan.thresholds}
    thresholds = {*_thresholds(attention), *own}
    chunk = chunk_tokens(decoder_of(config))
    return Outline(outside, tuple(layers), tuple(sorted(thresholds)), chunk or CHUNK_TOKENS)


def _has_odd_latents(text: Mapping[str, Any]) -> bool:
    """Whether MLA's heads are wider than kernels take, or their values wider than their keys."""
    sizes = [text.get(key) for key in LATENT[1:]]
    if "kv_lora_rank" not in text or not all(isinstance(size, int) for size in sizes):
        return False
    unrotated, rotated, values = map(int, sizes)  # type: ignore[arg-type]
    return not values <= unrotated + rotated <= FLASH_HEAD_DIM


def _digest(structure: object) -> str:
    return sha256_hex(repr(structure).encode())[:12]


def _thresholds(attention: Sequence[AnyLayerAttention]) -> Iterator[tuple[str, int]]:
    for layer in attention:
        if isinstance(layer, LinearLayerAttention):
            yield "chunks", layer.conv_kernel
        elif layer.window_tokens is not None:
            yield "window", layer.window_tokens


def regime_of(thresholds: Sequence[tuple[str, int]], point: Point, *, singles: int = MOST_SINGLES) -> str:
    """On which side of each threshold a workload is. singles: 1, and whether prompts have one token; 2, and whether it is one."""
    sides = [_side(kind, tokens, point) for kind, tokens in thresholds]
    single = [("one token", point.prompt_tokens == 1), ("one sequence", point.batch == 1)]
    return ", ".join(filter(None, [*sides, *(name for name, is_so in single[:singles] if is_so)]))


def _side(kind: str, tokens: int, point: Point) -> str:
    if kind == "recomputed":  # the token after so many is computed with all before it, unless the prompt is longer
        return "recomputed" if point.prompt_tokens <= tokens < point.total_tokens else ""
    if kind == "dynamic":  # each forward beyond so many makes RoPE's frequencies again
        return BEYOND if point.total_tokens > tokens else ""
    if kind == "mask":
        return "masked" if point.prompt_tokens >= tokens else ""
    if kind == "kernel":
        return "short" if point.prompt_tokens < tokens else ""
    if kind == "turns":
        return f"{point.prompt_tokens} turns" if point.prompt_tokens < tokens else ""
    if kind == "loop":  # over chunks, of fewer of which a run is another one
        chunks = -(-point.prompt_tokens // CHUNK_TOKENS)
        return f"{chunks} chunks" if chunks < tokens else ""
    if kind == "whole":
        return "" if point.prompt_tokens % tokens else WHOLE_CHUNKS
    if kind == "chunk":
        return "chunks" if point.prompt_tokens > tokens else ""
    if kind != "chunks":
        lengths = (point.prompt_tokens, point.total_tokens)[: 1 if kind == "convolution" else 2]
        return "".join("<=>"[(length >= tokens) + (length > tokens)] for length in lengths)
    if point.prompt_tokens < tokens:  # shorter than the convolution, which a single token does not pass
        return "short" if point.prompt_tokens > 1 else "one"
    return str(min(-(-point.prompt_tokens // CHUNK_TOKENS), CHUNK_TURNS))


def options_of(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration sets otherwise than its class, of the options `defaults`, which a design does not show. Of a fraction,
    which is multiplied by, only whether it is 0 or 1.
    """
    text = decoder_of(config)
    unrelated = UNRELATED | UNREAD.get(str(config.get("model_type")), frozenset())
    options = {
        key: _class_of(text[key], default)
        for key, default in defaults.items()
        if key in text
        and key not in unrelated
        and not (isinstance(text[key], list) and len(text[key]) == text.get("num_hidden_layers"))  # the layers' own
        and _class_of(text[key], default) != _class_of(default, default)
    }
    names = PHI3_ROPE if text.get("model_type") == "phi3" else {}
    ropes = _ropes([text.get("rope_parameters"), text.get("rope_scaling")], names)
    if str(config.get("model_type")).removesuffix("_text") in SECTIONED and not any(
        "sections" in rope for rope in ropes
    ):
        ropes.add("3 sections")
    if ropes:
        options["rope"] = sorted(ropes)
    vocabulary = _whole(text.get("vocab_size", GEMMA3_VOCABULARY))
    if config.get("model_type") == "gemma3" and _image_token(config) >= vocabulary:
        options["image_token"] = "beyond the vocabulary"
    if has_alibi(text) and (heads := _heads(text)) & (heads - 1):
        options["alibi"] = "heads that are no power of two"
    return options


def has_alibi(text: Mapping[str, Any]) -> bool:
    """Whether attention is biased by distance, with slopes that depend on whether the number of heads is a power of two.

    Source: transformers 5.23, models/{bloom,falcon,mpt}: build_alibi_tensor, build_mpt_alibi_tensor.
    """
    kind = text.get("model_type")
    return kind in ("bloom", "mpt") or (kind == "falcon" and bool(text.get("alibi")))


def _heads(text: Mapping[str, Any]) -> int:
    """0 if that is left to the class."""
    return next((_whole(text[key]) for key in ("num_attention_heads", "n_head", "n_heads") if key in text), 0)


def _image_token(config: Mapping[str, Any]) -> int:
    """Gemma 3 replaces images' tokens in each run if they are beyond the decoder's vocabulary.

    Source: transformers 5.23, modeling_gemma3.Gemma3Model.forward and Gemma3Config
    """
    return _whole(config.get("image_token_id", config.get("image_token_index", GEMMA3_IMAGE_TOKEN)))


def _whole(value: object) -> int:
    """An integer of a configuration; for anything else, which no class takes, one beyond every size, that no trace covers."""
    return value if type(value) is int else 1 << 62


def _class_of(value: Any, default: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return {key: part for key, part in value.items() if key in default.keys() - UNRELATED and part != default[key]}
    is_fraction = isinstance(value, float) or (isinstance(default, float) and isinstance(value, int))
    return "a fraction" if is_fraction and value not in (0, 1) else value


def _ropes(values: Sequence[Any], names: Mapping[str, str]) -> set[str]:
    """The kinds of RoPE that a run's length changes, and sections if there are several. names: kinds that are read as others."""
    ropes: set[str] = set()
    for value in values:
        if isinstance(value, Mapping):
            kind = str(value.get("rope_type", value.get("type", "default")))
            ropes |= {names.get(kind, kind)} - FIXED_ROPE
            ropes |= _ropes([*value.values()], names)
            if isinstance(sections := value.get("mrope_section"), list):
                ropes.add(f"{len(sections)} sections")
    return ropes


def _below(module: Module) -> Iterator[Module]:
    yield module
    for child in module.children:
        if child.name not in TOWERS:
            yield from _below(child)


def _length(module: Module) -> int:
    return sum(child.repeats for child in module.children)


def _tensors(module: Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for tensor in module.tensors:
        yield f"{prefix}{tensor.name}", tensor
    for child in module.children:
        if child.name not in LAYERS and child.name not in TOWERS:
            yield from _tensors(child, f"{prefix}{child.name}.")


def _erased(module: Module, shapes: Any, dtype: DType, without: Module | None = None) -> tuple[Any, tuple[int, ...]]:
    """The module's structure, and its dimensions in the same order; without `without` and towers."""
    dimensions: list[int] = [] if module.routed is None else [*module.routed]
    tensors = [(tensor.name, tensor.shape, getattr(tensor.dtype, "bits", None)) for tensor in module.tensors]
    if module.tied_to is not None and module.tied_to in shapes:
        tensors.append(("weight", shapes[module.tied_to], dtype.bits))  # as if it had its own
    told: list[tuple[str, int, object]] = []
    for name, shape, width in tensors:
        told.append((name, len(shape), width))
        dimensions += shape
    for buffer in module.buffers:
        like_all = buffer.dtype is dtype is DType.F16  # which does what bfloat16 does
        told.append((buffer.name, len(buffer.shape), str(DType.BF16 if like_all else buffer.dtype)))
        dimensions += buffer.shape
    children = []
    for child in module.children:
        if child is without or child.name in TOWERS:
            continue
        structure, inner = _erased(child, shapes, dtype, without)
        children.append(structure)
        dimensions += inner
    path: Any = module.routed is not None
    if path:  # grouped products ask for rows of whole 16 bytes
        path = (
            all(size * dtype.bits % 128 == 0 for tensor in module.tensors for size in tensor.shape[1:]) or "unaligned"
        )
    return (module.name, module.class_name, module.repeats, path, *told, *children), tuple(dimensions)


def structure_of(module: Module, dtype: DType, without: Module | None = None) -> Part:
    """Of a module on its own, whatever its name and how often it is there. without: a part that is left out."""
    (_, class_name, _, *inner), dimensions = _erased(module, {}, dtype, without)
    return Part(_digest((class_name, *inner)), dimensions)


def _attention(layer: AnyLayerAttention) -> tuple[tuple[object, ...], tuple[int, ...]]:
    """What of a layer's attention decides which path its code takes, and its figures."""
    path: tuple[bool, ...]
    match layer:
        case LayerAttention():
            padded = (layer.head_dim % 8 > 0, layer.head_dim > FLASH_HEAD_DIM)
            path = (layer.window_tokens is None, layer.gated, layer.kv_heads == layer.query_heads, *padded)
        case EncoderLayerAttention():
            padded = (layer.head_dim % 8 > 0, layer.head_dim > FLASH_HEAD_DIM)
            path = (layer.window_tokens is None, layer.kv_heads == layer.query_heads, *padded)
        case LinearLayerAttention():
            path = (layer.key_heads == layer.value_heads,)
        case _:
            path = (layer.window_tokens is None,)
    return (type(layer).__name__, *path), layer.heads
