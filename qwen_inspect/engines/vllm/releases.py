"""Where vLLM's versions differ in what they reserve. A version outside of these is answered as the nearest, with wider ranges."""

from __future__ import annotations

from ...errors import UsageError
from ...results.attention import WITH_STATES
from ...spec import each_module
from ...typed import TYPE_CHECKING, Literal
from ...units import GIB
from ...values import dataclass
from .connectors import keeps_groups

if TYPE_CHECKING:
    from ...results.model import Report
    from ...results.serving import SpeculativeMethod, VllmEnvironment

Sampler = Literal["sort", "triton", "flashinfer", "gumbel", "greedy"]
OLDEST_FLASHINFER = (7, 5)  # FlashInferBackend.supports_compute_capability
# Of versions that take FlashInfer where it is installed, those whose published logs had it: that of 0.10.1's image.
WITH_FLASHINFER = ("0.10.0", "0.10.1")
DEFAULT = "0.19.0"
FIRST, LAST = (0, 9), (0, 33)  # whose sources were read: 0.9 to 0.12, 0.14, 0.16, 0.17, 0.19 to 0.33
# Classes that run in the second model runner: dense ones in 0.23, all of them in 0.24, mixtures among them from 0.25 on.
SECOND_RUNNER = (
    "DeepseekV2ForCausalLM",
    "GraniteMoeForCausalLM",
    "LongcatFlashNgramForCausalLM",
    "Qwen2MoeForCausalLM",
)
SECOND_RUNNER_METHODS = (None, "mtp", "eagle", "eagle3")  # _get_v2_model_runner_unsupported_features
SECOND_RUNNER_023 = ("Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")  # not packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version and its rules. utilization: the default share of a card. reserves_graphs: whether its estimate of CUDA graphs is
    taken off the budget. prints_concurrency: whether the tokens that it prints are the concurrency times the longest sequence.
    known: whether versions around it were read.

    Source: config/cache.py, envs.py (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS), v1/core/kv_cache_utils.py
    (_report_kv_cache_config) of these versions.
    """

    name: str
    version: tuple[int, int]

    @property
    def known(self) -> bool:
        return FIRST <= self.version <= LAST

    @property
    def utilization(self) -> float:
        return 0.92 if self.version >= (0, 20) else 0.9

    @property
    def reserves_graphs(self) -> bool:
        return self.version >= (0, 20)

    def graphs_measured(self, report: Report, method: SpeculativeMethod | None, environment: VllmEnvironment) -> bool:
        """Whether an estimate of CUDA graphs is taken off: by the second model runner from 0.29 on; before, it returns 0.

        Source: v1/worker/gpu/model_runner.py, profile_cudagraph_memory.
        """
        asked = environment.graphs
        if not (self.reserves_graphs if asked is None else asked):
            return False
        return self.version >= (0, 29) or not self.runs_second(report, method, environment)

    @property
    def may_have_flashinfer(self) -> bool:
        """Whether FlashInfer samples wherever it is installed. Source: v1/sample/ops/topk_topp_sampler.py, to 0.11."""
        return self.version < (0, 12)

    @property
    def expands_images(self) -> bool:
        """Whether the profile run keeps each image's output at the size of the encoder's budget, the last one's own beside them.

        Source: v1/worker/gpu_model_runner.py, profile_run, of 0.11 and 0.12.
        """
        return (0, 11) <= self.version <= (0, 12)

    def step_defaults(self, memory_bytes: int, card: str) -> tuple[int, int]:
        """The server's defaults for the most tokens and sequences of one step. Source: engine/arg_utils.get_batch_defaults."""
        card = card.casefold()
        if self.version >= (0, 28) and memory_bytes >= 160 * GIB:
            return 16_384, 1024
        small = "a100" in card or (self.version >= (0, 33) and "spark" in card)
        return (8192, 1024) if memory_bytes >= 70 * GIB and not small else (2048, 256)

    def batches_in_flight(self, second: bool, pipeline_ranks: int, asynchronous: bool) -> int:
        """Steps whose tokens a window keeps beside it. Source: config/vllm.py, max_concurrent_batches, from 0.26 on."""
        if self.version < (0, 26):
            return 1
        ahead = asynchronous and (second or pipeline_ranks == 1)
        return pipeline_ranks + ahead

    @property
    def spread(self) -> tuple[int, int]:
        """Up to how many times the rarest kind's layers the commonest's are a group. Source: v1/core/kv_cache_utils.py."""
        return (3, 2) if self.version >= (0, 18) else (5, 4) if self.version >= (0, 12) else (1, 1)

    def keeps_windows(self, *, chunked: bool, drafts: bool, environment: VllmEnvironment) -> bool:
        """Whether layers with a window beside others without hold the window alone: not in 0.9.0, nor without groups.

        chunked: attention in chunks, held whole in 0.9, from 0.10.1 to 0.13, and beside a drafter.
        Source: config/vllm.py (disable_hybrid_kv_cache_manager), envs.py (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE),
        v1/core/kv_cache_utils.py (unify_hybrid_kv_cache_specs).
        """
        if keeps_groups(self.version, environment) is False or self.name.startswith("0.9.0"):
            return False
        if not chunked:
            return True
        allowed = self.version >= (0, 14) or self.name == "0.10.0"
        if environment.chunks is not None and self.version >= (0, 10):
            allowed = environment.chunks
        return allowed and not drafts

    @property
    def prints_concurrency(self) -> bool:
        return self.version >= (0, 21)

    @property
    def keeps_experts(self) -> bool:
        """Whether workspaces of experts stay after a layer. Source: v1/worker/workspace.py, which 0.11 does not have."""
        return self.version >= (0, 16)

    @property
    def caches_prefixes(self) -> bool:
        """Whether prefixes of hybrid models are cached by default, then in "align" mode with Mamba too.

        Source: engine/arg_utils.py and MambaModelConfig: not yet in 0.27.0, but in 0.28.0.
        """
        return self.version >= (0, 28)

    @property
    def loads_sampler(self) -> bool:
        """Whether the profile run launches the first sampler's Triton kernels, whose stacks count outside of PyTorch."""
        return self.version >= (0, 17)

    def float_routers(self, report: Report, capability: tuple[int, int] | None) -> bool:
        """Whether the routers of a class stay in float32: Nemotron's where the card has no kernel for 16 bits, from 0.17 on.

        Source: models/glm4_moe.py, models/nemotron_h.py, layers/fused_moe/router/gate_linear.py.
        """
        if report.spec.class_name == "Glm4MoeForCausalLM":
            return True
        with_kernel = self.version >= (0, 17) and (capability is None or capability[0] in (9, 10))
        return report.spec.class_name == "NemotronHForCausalLM" and not with_kernel

    def sampler(
        self,
        report: Report,
        method: SpeculativeMethod | None,
        environment: VllmEnvironment,
        capability: tuple[int, int] | None = None,
    ) -> Sampler:
        """How the profile run samples. method: of speculative decoding.

        FlashInfer is taken up to 0.11 where it is installed, then only if the environment asks for it, and by default from 0.21
        on. The second model runner draws by Gumbel's trick, from 0.26 on without a copy in float32.
        Source: v1/sample/ops/topk_topp_sampler.py, v1/worker/gpu/sample/sampler.py, config/vllm.py, envs.py.
        """
        asked = environment.flashinfer
        if self.version < (0, 17):
            by_default = self.name.startswith(WITH_FLASHINFER) or self.name == "0.10"
            return "flashinfer" if (by_default if asked is None else asked) else "sort"
        if self.runs_second(report, method, environment):
            return "gumbel" if self.version < (0, 26) else "greedy"
        runs = capability is None or capability >= OLDEST_FLASHINFER
        by_default = self.version >= (0, 21) and runs
        return "flashinfer" if (by_default if asked is None else asked) else "triton"

    def runs_second(self, report: Report, method: SpeculativeMethod | None, environment: VllmEnvironment) -> bool:
        """Whether the second model runner runs it. Source: config/vllm.py, use_v2_model_runner."""
        if environment.second_runner is not None:
            return environment.second_runner and self.version >= (0, 22)
        return self._second_runner(report) and method in SECOND_RUNNER_METHODS

    def _second_runner(self, report: Report) -> bool:
        if self.version < (0, 22):
            return False
        name = report.spec.class_name
        mixture = any(module.routed is not None for _, module in each_module(report.tree))
        hybrid = any(layer.span in WITH_STATES for layer in report.attention.layers)
        if self.version >= (0, 29):
            return True
        if self.version >= (0, 25):
            return name in SECOND_RUNNER or not (mixture or hybrid)
        if self.version == (0, 24):
            return name in (*SECOND_RUNNER, *SECOND_RUNNER_023)
        classes = {(0, 22): SECOND_RUNNER_023[:1], (0, 23): SECOND_RUNNER_023}.get(self.version, ())
        return name in classes and report.known.quantised is None


def release(name: str | None) -> Release:
    """The rules of a version such as "0.19.0" or "v0.11"; raises UsageError for what is no version."""
    name = (name or DEFAULT).removeprefix("v")
    parts = name.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()) or len(name) > 60:
        raise UsageError("vllm_version", found=name[:60])
    return Release(name=name, version=(int(parts[0]), int(parts[1])))
