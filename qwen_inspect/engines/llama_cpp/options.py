"""llama.cpp's options that decide what it allocates, and where it puts every tensor of a file.

Source: llama.cpp b11549 and 0c1e57098, src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp (create_tensor).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from ...errors import MalformedError, UnsupportedError, UsageError
from ...values import dataclass, replace
from .ggml.scheduler import HOST

# Cards as their backends name them. ROCm's is CUDA's code; others' buffers are taken to be CUDA's.
CARD_NAME = re.compile(r"(CUDA|ROCm|MUSA|Vulkan|SYCL)([0-9]{1,2}|_Host)")
IN_LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
# Tensors of the input layer, which is the host's, and of the first layer. Source: llama-arch.cpp, LLM_TENSOR_INFOS.
INPUT = ("token_embd.", "token_types.", "position_embd.", "per_layer_token_embd.", "masked_embd_")
IN_FIRST_LAYER = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.", "rope_freqs.", "rope_factors_")
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # LLM_FFN_EXPS_REGEX


# The most tokens that a kind of speculation drafts, where no option says so. Source: common.h, common_speculative_n_max.
NGRAM_TOKENS = {"ngram-simple": 48, "ngram-map-k": 48, "ngram-map-k4v": 48, "ngram-mod": 64, "ngram-cache": 8}
DRAFT_TYPES = ("draft-simple", "draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark")
# Architectures whose states can be taken back. Source: llama-arch.cpp, llm_arch_supports_rs_rollback.
TAKEN_BACK = frozenset(
    "kimi-k3 qwen35 qwen35moe qwen4exp deepseek4 glm5-next nemotron_h nemotron_h_moe lfm2 lfm2moe bailingmoe3".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """Speculative decoding. types: --spec-type. most_tokens: --spec-draft-n-max. The rest is of a draft model (-md).

    Source: llama.cpp 0c1e57098 and b11434, common/speculative.cpp (common_base_params_to_speculative), common/common.h.
    """

    types: tuple[str, ...] = ()
    most_tokens: int = 3
    offloaded: int | None = None
    key_type: str = "f16"
    value_type: str = "f16"
    overrides: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] | None = None

    @property
    def predicts(self) -> bool:
        return "draft-mtp" in self.types

    @property
    def tokens(self) -> int:
        """The most tokens of a draft."""
        return max((NGRAM_TOKENS.get(kind, self.most_tokens) for kind in self.types), default=0)

    def snapshots(self, architecture: str) -> int:
        """Further copies of recurrent states for each sequence. Source: need_n_rs_seq."""
        back = architecture in TAKEN_BACK and any(kind in DRAFT_TYPES[1:] for kind in self.types)
        return self.most_tokens if back else 0


NO_DRAFT = DraftOptions()
LIMITING = ("llama-server", "llama-cli")  # in builds that limit outputs; older ones' llama-cli is llama-completion


def as_cuda(device: str) -> str:
    """The name of a device as CUDA's backend has it."""
    match = CARD_NAME.fullmatch(device)
    return device if match is None else f"CUDA{match[2]}"


def first_layers(count: int, part: str) -> str:
    """A pattern for `part` of the first `count` layers."""
    return rf"blk\.({'|'.join(map(str, range(count)))}){part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppOptions:
    """A command of llama.cpp, by its own defaults. context_tokens: -c, None: the model's limit. offloaded: -ngl, None: all.

    sequences: -np; None: four that share the cache for llama-server, one for other programs. split: -ts, a share for each card.
    overrides: -ot, a pattern and a device each; the first that matches decides. outputs: the most rows of logits in a
    micro-batch, None: any. devices: -dev, the cards in order, () for none; None: all.
    host_buffers: not --no-host. fork: by its options, ik_llama.cpp's.
    latent: its -mla, how latent attention is cached: 0 as K and V of every head, 1 as the latent and, without flash attention,
    its transpose, 2 and 3 as the latent alone. embedding: --embedding, which gives states. pooling: --pooling, None: by the file.
    extra_buffers: not --no-repack. fits: not --fit off. fit_context: -fitc, the fewest tokens that --fit leaves of a context that
    is not given, for each stream. fit_targets: -fitt, MiB that stay free on each card, or on all of them.
    """

    program: str = "llama-server"
    context_tokens: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    offloaded: int | None = None
    key_type: str = "f16"
    value_type: str = "f16"
    flash_attention: bool = True
    sequences: int | None = None
    unified: bool = False
    full_window: bool = False
    cache_on_cards: bool = True
    split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_card: int = 0
    overrides: tuple[tuple[str, str], ...] = ()
    memory_mapped: bool = True
    host_buffers: bool = True
    operations_offloaded: bool = True
    draft: DraftOptions = NO_DRAFT
    fork: bool = False
    fused_experts: bool = False
    repacked: bool = False
    latent: int = 0
    devices: tuple[str, ...] | None = None
    embedding: bool = False
    pooling: str | None = None
    extra_buffers: bool = True
    fits: bool = True
    fit_context: int = 4096
    fit_targets: tuple[int, ...] = (1024,)

    @property
    def serves(self) -> bool:
        return self.program == "llama-server"

    @property
    def streams_asked(self) -> int:
        return self.sequences if self.sequences is not None else 4 if self.serves else 1

    @property
    def shares_cache(self) -> bool:
        return self.unified or (self.serves and self.sequences is None)

    @property
    def outputs(self) -> int | None:
        """llama-server, which llama-cli starts, has a row of logits for each sequence. Source: server_output_limits."""
        pools = self.embedding or self.pooling not in (None, "none")
        limited = self.program in LIMITING and not pools
        return min(self.batch, self.streams_asked * (1 + self.draft.tokens)) if limited else None


def of_embedding(options: LlamaCppOptions) -> LlamaCppOptions:
    """What llama-embedding makes of a command: a micro-batch of the whole context, and as many sequences as can be.

    Source: llama.cpp 0c1e57098, examples/embedding/embedding.cpp.
    """
    batch = max(options.batch, options.context_tokens or 0)
    options = replace(options, embedding=True, batch=batch, micro_batch=batch)
    alone = options.sequences in (None, 1)
    return replace(options, sequences=MOST_SEQUENCES, unified=True) if alone else options


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The device of each tensor by name, of each layer, and of the output layer. moved: the tensors that -ot placed."""

    tensors: Mapping[str, str]
    layers: tuple[str, ...]
    output: str
    full_offload: bool
    moved: frozenset[str]


def cards_used(options: LlamaCppOptions, count: int) -> Sequence[int]:
    """Indices of the cards of `count` that a command uses, in order. Source: llama.cpp, llama_model_load_from_file_impl."""
    cards = [f"CUDA{at}" for at in range(count)]
    for device in options.devices or ():
        if device not in cards:
            raise UsageError("llama_cpp_devices", found=device, known=", ".join(cards) or "–")
    listed = range(count) if options.devices is None else [cards.index(device) for device in options.devices]
    if options.split_mode != "none" or not listed:
        return listed
    if options.main_card >= len(listed):
        raise UsageError("llama_cpp_main_card", found=options.main_card, cards=len(listed))
    return (listed[options.main_card],)


def place(
    names: Sequence[str],
    layers: int,
    options: LlamaCppOptions,
    card_bytes: Mapping[str, int],
    *,
    output_first: bool = True,
    output_norm: str | None = "output_norm",
) -> Placement:
    """Where llama.cpp puts a file's tensors on cards with `card_bytes` free each. layers: those for MTP included.

    A tied output is the tensor "output.weight", a copy of the embedding. output_norm: its name; LFM2's is "token_embd_norm".
    """
    cards = list(card_bytes)
    offloaded = layers + 1 if options.offloaded is None else options.offloaded
    devices = _layer_devices(layers, offloaded, cards, options, [*card_bytes.values()], output_first)
    patterns = [(compiled(pattern), device) for pattern, device in options.overrides]
    for _, device in patterns:
        if device not in (HOST, *cards):
            raise UsageError("llama_cpp_device", found=device, known=", ".join((*cards, HOST)))
    tensors, moved = {}, set()
    listed = [*names, *(() if "output.weight" in names else ("output.weight",))]
    for name in listed:
        match = IN_LAYER.match(name)
        if match is not None:
            device = devices[min(int(match[1]), layers - 1)]
        elif name.startswith(IN_FIRST_LAYER) and not name.startswith(f"{output_norm}."):
            device = devices[0]
        else:
            device = HOST if name.startswith(INPUT) else devices[layers]
        given = _override(name if name in names else "token_embd.weight", patterns)
        if given is not None:
            device = given
            moved.add(name)
        tensors[name] = device
    return Placement(
        tensors=tensors,
        layers=tuple(devices[:layers]),
        output=devices[layers],
        full_offload=bool(cards) and offloaded > layers,
        moved=frozenset(moved),
    )


def _layer_devices(
    layers: int,
    offloaded: int,
    cards: Sequence[str],
    options: LlamaCppOptions,
    card_bytes: Sequence[int],
    output_first: bool,
) -> list[str]:
    """The device of each layer, the output layer last."""
    if not cards or not offloaded:
        return [HOST] * (layers + 1)
    shares = [*options.split, *[0.0] * len(cards)][: len(cards)]
    if not any(shares):
        shares = [float(size_bytes) for size_bytes in card_bytes]
    ends: list[float] = []
    for share in shares:
        ends.append((ends[-1] if ends else 0.0) + share)
    ends = [end / ends[-1] for end in ends]
    first, count = max(layers + output_first - offloaded, 0), min(offloaded, layers + 1)
    return [
        HOST
        if not 0 <= layer - first < count
        else cards[min(bisect_right(ends, (layer - first) / count), len(cards) - 1)]
        for layer in range(layers + 1)
    ]


def compiled(pattern: str) -> Callable[[str], bool]:
    """A test of a name by a pattern of -ot, anywhere in the name. UsageError for one that cannot be matched in bounded time."""
    from ...architectures.patterns import search  # takes a tenth of the imports, and few commands have -ot

    try:
        return search(pattern)
    except (MalformedError, UnsupportedError):
        raise UsageError("llama_cpp_pattern", found=pattern[:80]) from None


def _override(name: str, patterns: Sequence[tuple[Callable[[str], bool], str]]) -> str | None:
    return next((device for test, device in patterns if test(name)), None)
