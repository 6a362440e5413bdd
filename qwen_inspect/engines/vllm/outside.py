"""What vLLM finds taken of a card outside of PyTorch's allocator, as its logs print it; no source gives these by a formula.

Ranges of the printed figures, widened by half of the last digit. On other cards and unknown versions the ranges are wider.
"""

from __future__ import annotations

from ...results.serving import Asleep, Reserved
from ...units import GIB, MIB
from ...values import replace
from .collectives import EXCHANGED, HOPPER, LINKED_EXCHANGED, Ranks, linked, nccl_hundredths, workspace_bytes
from .releases import Release

SOURCES = (
    "https://github.com/llm-d-incubation/llm-d-planner/blob/56dc5b76ca535960998bdf9fd4a3077d98fdf60a"
    "/accuracy/results/v0.19.0/results_raw.csv",
    "https://github.com/llm-d-incubation/llm-d-planner/blob/e50305af90f0812e77e1827f3bc740fe75b76370"
    "/docs/empirical-vllm-memory-results.md",
)
CONTEXT_MIB = 400, 1024  # before vLLM's first look at the card: total less free memory in the logs, and more elsewhere
GRAPHS_HUNDREDTHS = 64, 182  # of a GiB, "Graph capturing finished ... took"
BUFFERS_MIB = 512  # inputs and states of a step, which no source adds up
MULTIPROCESSORS = 132  # of an H100 and an H200
ODD_VOCABULARY = (
    16  # two logs of vocabularies that it does not divide print 0.21 GiB more, for a reason that is not known
)


def non_torch(
    release: Release,
    *,
    capability: tuple[int, int] | None,
    multiprocessors: int | None,
    ranks: Ranks,
    vocabulary: int,
    second: bool = False,
    recurrent: bool = False,
) -> Reserved:
    """Modules and stacks of kernels, and what several tensor-parallel ranks need to sum ("non-torch forward increase").

    second: the second model runner, which has no kernel of top-k. recurrent: whether layers keep a state. Kernels' stacks grow
    with the multiprocessors of a card. Of pipelines the communicator is made before vLLM's first look at the card, and only the
    rest is counted.
    """
    known = release.known and capability in (HOPPER, None) and multiprocessors in (MULTIPROCESSORS, None)
    if ranks.count == 1 and ranks.pipeline_ranks > 1:
        least, most = (7, 8) if known else (2, 30)
    elif release.loads_sampler and not second:
        least, most = (24, 27) if known else _by_multiprocessors(multiprocessors)
        if recurrent:  # whose kernels are more: a log of Qwen3.5-9B on an L40S leaves 0.34
            least, most = (24, 40) if known else (10, 40)
    elif release.loads_sampler:
        least, most = 3, 40
    else:
        least, most = (13, 14) if known else (2, 20)
    workspace = 0, 0
    if ranks.count > 1 and linked(capability):
        least, most = nccl_hundredths(release, capability, ranks, (least, most), known=known)
        workspace = workspace_bytes(release, capability, ranks)
    elif ranks.count > 1:
        least, most = (20, 90) if release.loads_sampler else (2, 35)  # by logs of 2 and 4 ranks of an A100 (0.10)
    if ranks.exchanges:
        most += LINKED_EXCHANGED if linked(capability) else EXCHANGED
    if release.loads_sampler and vocabulary % ODD_VOCABULARY:
        most += 21 if known else 35
        least += 19 if known else 0
    reserved = _range("non_torch", 10 * least - 5, 10 * most + 5)
    return replace(
        reserved,
        least_bytes=reserved.least_bytes + workspace[0],
        most_bytes=(reserved.most_bytes or 0) + workspace[1],
    )


def _by_multiprocessors(count: int | None) -> tuple[int, int]:
    """In hundredths of a GiB, of kernels from 0.17 on: modules, and stacks for each multiprocessor.

    By an H100's logs: 0.13 before 0.17, 0.24 with the sampler's kernels, whose stacks 132 multiprocessors have. Modules alone
    were 0.02 on an RTX 4090 (0.10.2).
    """
    if count is None:
        return 10, 40
    return 2 + 7 * count // 100, 15 + count // 10


# vLLM's own estimates of CUDA graphs as its logs print them with all of FULL_GRAPHS captured: in thousandths of a GiB, (least,
# most) and for each layer; with several ranks of NVLink in hundredths. Where few graphs are, from nothing to FEW_MOST hundredths.
FULL_GRAPHS, FEW_MOST = 86, 45
LAYER_GRAPHS, FIRST_GRAPHS = 15.5, (-80, 460)
SECOND_LAYER_GRAPHS = 30, 47
RANKS_GRAPHS, HOPPER_RANKS_GRAPHS = (40, 190), (69, 182)
RANKS_MORE = 40  # without NVLink


def graphs(
    *,
    capability: tuple[int, int] | None,
    layers: int,
    ranks: int,
    sequences: int,
    second: bool,
    drafted: int | None = None,
) -> Reserved:
    """vLLM's own estimate of its CUDA graphs, which it takes off the budget: by the number of graphs and of layers, from logs.

    second: by the second model runner, which multiplies what the second-largest graph took. drafted: the layers of a drafter
    (None without), whose graphs are captured in the same passes, and which takes at most what a model of so many layers does: one
    log of Qwen3.8-27B prints 1.45 without its layer of prediction and 1.59 with it.
    Source: gpu_model_runner.py (_dummy_run) and gpu/cudagraph_utils.py, profile_cudagraph_memory.
    """
    ends: list[float] = [layers * each for each in SECOND_LAYER_GRAPHS]
    if not second:
        ends = [max(0, layers * LAYER_GRAPHS + each) for each in FIRST_GRAPHS]
    least, most = (end / 10 for end in ends)
    if ranks > 1 and not second and not linked(capability):
        most += RANKS_MORE
    elif ranks > 1 and not second:
        hopper = sequences >= 1024 and capability in (HOPPER, None)
        least, most = HOPPER_RANKS_GRAPHS if hopper else RANKS_GRAPHS
    share = min(1.0, captured_graphs(sequences) / FULL_GRAPHS)
    most = max(most, FEW_MOST) * share + FEW_MOST * (1 - share)
    if drafted is not None:
        most += (drafted * max(LAYER_GRAPHS, SECOND_LAYER_GRAPHS[1] if second else 0) + FIRST_GRAPHS[1]) / 10
    return _range("graphs", int(10 * least) - 5 if share == 1 else 0, int(10 * most) + 5)


def captured_graphs(sequences: int) -> int:
    """Graphs of prompts and answers together, and of answers alone. Source: config/vllm.py, _set_cudagraph_sizes."""
    most = min(2 * sequences, 512)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return len([size for size in sizes if size <= most]) + len([size for size in sizes if size <= sequences])


def asleep(non_torch: Reserved, weights_bytes: int, *, eager: bool) -> Asleep:
    """A rank in sleep mode: weights and cache are in a pool of their own, of which level 1 copies the weights to the host.

    What stays is CUDA's context, what lies outside of PyTorch, captured graphs (as the same logs print them), and input buffers.
    Source: v1/worker/gpu_worker.py (sleep), device_allocator/cumem.py.
    """
    least, most = CONTEXT_MIB[0] * MIB, (CONTEXT_MIB[1] + BUFFERS_MIB) * MIB
    if not eager:
        least, most = least + GRAPHS_HUNDREDTHS[0] * GIB // 100, most + GRAPHS_HUNDREDTHS[1] * GIB // 100
    return Asleep(
        least_bytes=least + non_torch.least_bytes,
        most_bytes=most + (non_torch.most_bytes or 0),
        host_bytes=weights_bytes,
    )


def _range(name: str, least: int, most: int) -> Reserved:
    """Of thousandths of a GiB."""
    return Reserved(name=name, least_bytes=max(0, least) * GIB // 1000, most_bytes=most * GIB // 1000, sources=SOURCES)
