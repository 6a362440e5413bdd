"""What vLLM's profile run takes beyond the weights: `max_num_batched_tokens` tokens through the model, then its sampler.

Worked out from vLLM's own model code, layer by layer, as the tensors that are alive at the peak; nothing is fitted. Held against
published logs in reports/accuracy.md.
Source: vLLM 0.19.0, v1/worker/gpu_worker.py (determine_available_memory), gpu_model_runner.py (profile_run, _dummy_run,
_dummy_sampler_run), v1/sample, model_executor/layers; other versions where named.
"""

from __future__ import annotations

from ...units import MIB
from ...values import dataclass, replace
from .drafter import Drafter
from .encoder import Encoder
from .releases import Release, Sampler
from .widths import Widths

# cuBLAS's workspace, which the first product takes and keeps. Source: aten/src/ATen/cuda/CublasHandlePool.cpp, torch 2.10.
WORKSPACE_BYTES = 8_519_680
HOPPER_WORKSPACE_BYTES = 32 * MIB
# torch.compile times each kernel at its first launch, and clears the level 2 cache with a tensor of its size before.
# Source: torch/_inductor/runtime/benchmarking.py, torch 2.10; sizes: NVIDIA's white papers of each architecture.
LEVEL_2_MIB = {(8, 0): 40, (8, 6): 6, (8, 9): 96, (9, 0): 50, (10, 0): 126, (10, 3): 126, (12, 0): 128}
ENCODER_PERCENT = 15  # by which a log of Qwen3.8-27B on an L40S has less than an encoder is worked out to take
MULTIPROCESSORS = 132  # of a card whose number is not known: an H100's


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRun:
    """The run's sizes on one rank. tokens: of the step; sequences: sampled at once; context_tokens: of a sequence at most.

    first, last: whether this rank of the pipeline has the embedding, the output layer. experts_whole: whether a rank has whole
    experts (--enable-expert-parallel). compiled: torch.compile, off with --enforce-eager. index_bytes, index_logits_bytes: the
    workspace of sparse attention, which experts use too and which stays, and the index's scores. drafter: None without
    speculative decoding.
    """

    tokens: int
    sequences: int
    context_tokens: int
    element_bytes: int
    ranks: int = 1
    data_ranks: int = 1
    first: bool = True
    last: bool = True
    experts_whole: bool = False
    index_bytes: int = 0
    index_logits_bytes: int = 0
    compiled: bool = True
    sampler: Sampler = "triton"
    drafter: Drafter | None = None

    def hidden_bytes(self, widths: Widths, states: int) -> int:
        """Of `states` hidden states of every token."""
        return states * self.tokens * widths.hidden * self.element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What of a card matters to kernels' scratch. None: not known."""

    compute_capability: tuple[int, int] | None
    multiprocessors: int | None

    @property
    def workspace_bytes(self) -> int:
        hopper = self.compute_capability is None or self.compute_capability[0] == 9
        return HOPPER_WORKSPACE_BYTES if hopper else WORKSPACE_BYTES

    @property
    def level_2_bytes(self) -> int:
        return LEVEL_2_MIB.get(self.compute_capability or (9, 0), 50) * MIB


def peak_bytes(
    widths: Widths, run: ProfileRun, release: Release, card: Card, encoder: Encoder | None
) -> tuple[int, int]:
    """(least, most) bytes of the peak: the larger of the encoder's, the model's and the sampler's."""
    kept = card.workspace_bytes + (0 if encoder is None else encoder.kept_bytes)
    if not run.first:
        kept += run.hidden_bytes(widths, 2)  # hidden states and residual of the rank before
    experts, compiling = max(expert_bytes(widths, run), run.index_bytes), card.level_2_bytes if run.compiled else 0
    states = 0 if run.drafter is None else run.hidden_bytes(widths, run.drafter.states)
    ends = [
        kept + states + experts + layer_bytes(widths, run) + compiling,
        kept + states + run.index_bytes + attention_bytes(widths, run) + run.index_logits_bytes,
        kept + states + mamba_bytes(widths, run),
    ]
    unknown = 0
    if run.last:
        outputs = (run.tokens + 2 * run.sequences) * widths.hidden * run.element_bytes
        held = kept + (experts if release.keeps_experts else run.index_bytes) + outputs
        ends.append(held + sampler_bytes(widths.vocabulary, run, card))
        if run.drafter is not None:
            rejection, unknown = rejection_bytes(widths.vocabulary, run, card, release)
            ends.append(held + rejection)
    if run.drafter is not None and (drafted := run.drafter.widths) is not None:
        draft_run = replace(run, ranks=run.drafter.ranks)
        held = kept + states + run.hidden_bytes(widths, 1)
        ends.append(held + experts + compiling + layer_bytes(drafted, draft_run))
        ends.append(held + run.index_bytes + attention_bytes(drafted, draft_run) + run.index_logits_bytes)
        unknown += run.hidden_bytes(widths, 1)
    least = max(ends)
    if encoder is not None and (peak := card.workspace_bytes + encoder.peak_bytes) > least:
        unknown += peak - (least := max(least, peak - peak * ENCODER_PERCENT // 100))
    if (
        run.element_bytes == 4
    ):  # of the only log in float32 another activation is missing, for a reason that is not known
        unknown += run.tokens * widths.down // run.ranks * run.element_bytes
    return least, least + unknown


def layer_bytes(widths: Widths, run: ProfileRun) -> int:
    """The widest moment of a layer, its MLP: three tensors of the hidden size, the product and the activation.

    The three are the attention's output, which the caller holds, the residual, and the output of o_proj, which the next sum reads
    again: torch.compile computes the sum twice rather than to keep it. Source: model_executor/models/llama.py, LlamaDecoderLayer;
    layers/layernorm.py and activation.py with custom_ops "none"; compilation/backends.py, which splits at attention.
    """
    mlp = (widths.up + widths.down) // run.ranks
    return run.tokens * (3 * widths.hidden + mlp) * run.element_bytes


def attention_bytes(widths: Widths, run: ProfileRun) -> int:
    """Attention without its kernel, which the profile run skips: the residual, the product, rotated queries and keys, the output.

    MLA takes what unpacking a context's latents may need: 65,536 tokens at most. Source: layers/attention/mla_attention.py,
    determine_chunked_prefill_workspace_size and forward of MLACommonImpl without metadata.
    """
    columns = 2 * widths.hidden + 3 * widths.attention // run.ranks
    if run.index_bytes:  # latents are not unpacked
        return run.tokens * columns * run.element_bytes
    context = max(min(max(8 * run.context_tokens, 64 * run.sequences), 65_536), 16 * run.sequences)
    return (run.tokens * columns + context * widths.latent_values // run.ranks) * run.element_bytes


def mamba_bytes(widths: Widths, run: ProfileRun) -> int:
    """A Mamba mixer: its input, the residual, its output, and what it takes between. Source: layers/mamba/mamba_mixer2.py."""
    return run.tokens * (3 * widths.hidden + widths.mamba // run.ranks) * run.element_bytes


def expert_bytes(widths: Widths, run: ProfileRun) -> int:
    """The two workspaces of routed experts, which hold every token as often as it has experts, of all data-parallel ranks.

    Source: layers/fused_moe/fused_moe.py, TritonExperts.workspace_shapes; modular_kernel.py, _allocate_buffers.
    """
    if (experts := widths.experts) is None:
        return 0
    shares = 1 if run.experts_whole else run.ranks * run.data_ranks
    up, down = experts.up // shares, experts.down // shares
    inputs = experts.inputs or widths.hidden
    columns = max(down, inputs) + max(up, inputs)
    return run.data_ranks * run.tokens * experts.per_token * columns * run.element_bytes


def sampler_bytes(vocabulary: int, run: ProfileRun, card: Card) -> int:
    """Logits of every sequence, in float32 too, and what top-k and top-p of them take.

    triton: a row of the vocabulary for each of its programs, probabilities, and random numbers of the same shape. sort: sorted
    logits and their indices (12 bytes), indices by position (8), and the second buffers of CUB's segmented sort (12).
    flashinfer: masked logits and probabilities. gumbel: the largest of each 1,024 logits, and its index; greedy: of the logits
    themselves.
    Source: v1/sample/sampler.py, ops/topk_topp_sampler.py and topk_topp_triton.py; aten/src/ATen/native/cuda/SortStable.cu.
    """
    padded = -(-vocabulary // 64) * 64
    logits = run.sequences * padded * run.element_bytes
    wide = 0 if run.element_bytes == 4 else 4
    each = run.sequences * vocabulary
    if run.sampler in ("gumbel", "greedy"):
        return logits + (each * 4 if run.sampler == "gumbel" else 0) + run.sequences * -(-vocabulary // 1024) * 12
    if run.sampler == "sort":
        return logits + each * (wide + 32)
    if run.sampler == "flashinfer":
        return logits + each * (wide + 8)
    multiprocessors = card.multiprocessors or MULTIPROCESSORS
    programs = min(run.sequences, multiprocessors)
    rows = min(1 << (programs - 1).bit_length(), multiprocessors)
    return logits + each * (wide + 8) + rows * 4 * vocabulary


def rejection_bytes(vocabulary: int, run: ProfileRun, card: Card, release: Release) -> tuple[int, int]:
    """(bytes, bytes more at most) of the rejection sampler, which the profile run calls last, with a token proposed by each.

    Alive are the logits of both tokens and of the sampled token, and that one's in float32. Then the sampler runs; or the
    proposed tokens' logits are in float32 twice, and what sorts them, or probabilities and random numbers, come on top. The
    second model runner does not call it. Versions before 0.16 order it otherwise: a range.
    Source: v1/sample/rejection_sampler.py of 0.16 to 0.30 (forward, rejection_sample), v1/worker/gpu_model_runner.py.
    """
    if run.sampler in ("gumbel", "greedy"):
        return 0, 0
    each = run.sequences * vocabulary
    if not release.keeps_experts:
        return 0, each * (2 * run.element_bytes + 12)
    sampling = sampler_bytes(vocabulary, run, card) - run.sequences * -(-vocabulary // 64) * 64 * run.element_bytes
    sorting = each * 32 if run.sampler == "sort" else 0
    return each * (3 * run.element_bytes + 4) + max(sampling, each * 8 + max(sorting, each * 8)), 0
