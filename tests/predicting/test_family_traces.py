"""Runs composed from a family's trace, against transformers' own, for configurations that the trace was not made from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from benchmarks.keep_traces import bases_of, first_layers, layers_needed, outline, report_of
from benchmarks.sampling import sampled, sampled_point
from benchmarks.structures import bases, small
from qwen_inspect.errors import QwenInspectError, UnsupportedError
from qwen_inspect.loaders import catalog
from qwen_inspect.predicting.allocation import turning
from qwen_inspect.predicting.allocation.allocator import DEFAULTS, UNLIMITED_BYTES, Allocator
from qwen_inspect.predicting.allocation.folded_replay import FoldedAllocator, folded_peak, folded_reserved
from qwen_inspect.predicting.allocation.quick_replay import Peak
from qwen_inspect.predicting.allocation.region_steps import Steps, Usage
from qwen_inspect.predicting.allocation.replay import replay, replay_folded
from qwen_inspect.predicting.allocation.turning import Turns
from qwen_inspect.predicting.families.family_file import SHIPPED, read
from qwen_inspect.predicting.families.family_trace import NotCovered, Variables
from qwen_inspect.predicting.sources import family_trace, sample_request
from qwen_inspect.predicting.traces.class_rules import decoder_of
from qwen_inspect.predicting.traces.half_softmax import COPYING, READING
from qwen_inspect.predicting.traces.kept_trace import Point
from qwen_inspect.predicting.traces.outline import options_of
from qwen_inspect.predicting.traces.segments import deepen, fixed
from qwen_inspect.predicting.traces.token_loops import REPEATED, folded, is_folded, unfolded
from qwen_inspect.results.memory import Mode, Run
from qwen_inspect.results.timeline import Allocate, Event, Free, Stage, Timeline
from qwen_inspect.tracing.trace import trace

from ..support.families import TINY_QWEN3_5_MOE, TINY_QWEN3_MOE, TINY_QWEN3_NEXT, TINY_SLIDING
from ..support.models import TINY_QWEN3

T = TypeVar("T")
FULL, SLIDING = "full_attention", "sliding_attention"
FILES = (path.name for path in Path(SHIPPED).glob("*.json.gz") if not path.name.endswith("-images.json.gz"))
NAMES = sorted(name.removesuffix(".json.gz") for name in FILES)
KEPT = [name for name in NAMES if not name.endswith(("-forward", "-training"))]
QUICK_FORWARD = ("bert", "gemma3_text", "qwen3")  # in every run; the others in `make exhaustive`
FORWARD = [
    pytest.param(family, marks=() if family in QUICK_FORWARD else pytest.mark.exhaustive)
    for family in (name.removesuffix("-forward") for name in NAMES if name.endswith("-forward"))
]
# Of each family one configuration in every run, as many as these in `make exhaustive`.
UNSEEN = 10


def without_order_of_frees(events: Sequence[Event]) -> list[Event]:
    """In one order where several storages are freed at once: Python's versions let go of a function's locals in others."""
    runs = [(frees, [*run]) for frees, run in groupby(events, lambda event: isinstance(event, Free))]
    return [event for frees, run in runs for event in (sorted(run) if frees else run)]


def known(value: T | None) -> T:
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({**TINY_QWEN3, "num_hidden_layers": 7}, 2),
        (
            {
                **TINY_SLIDING,
                "num_hidden_layers": 7,
                "layer_types": [FULL, SLIDING, SLIDING, FULL, FULL, SLIDING, FULL],
            },
            4,
        ),
        ({**TINY_QWEN3_MOE, "num_hidden_layers": 9, "mlp_only_layers": [1, 4, 8]}, 3),
        ({**TINY_QWEN3_NEXT, "num_hidden_layers": 9, "mlp_only_layers": [1, 5]}, 4),
        (TINY_QWEN3_5_MOE, 3),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, Mapping) else "",
)
def test_any_sequence_of_layers_is_composed_from_the_first_of_each_kind(config: Mapping[str, Any], layers: int) -> None:
    report, point = report_of(config), Point(2, 70, 110)
    kinds = [repr(layer) for layer in report.spec.layers]
    request = sample_request(point, "sdpa")
    whole = fixed(trace(report.spec, config, request))
    few = fixed(trace(report.spec, config, replace(request, layers=layers)))
    assert deepen(few, kinds[:layers], kinds) == whole
    assert deepen(few, kinds[:layers], kinds).kept == whole.kept


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, UNSEEN))]


@pytest.mark.parametrize("family", KEPT)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_unseen_configuration_has_the_run_that_transformers_makes(family: str, seed: int) -> None:
    """A release's own sizes (seed 0), or random ones, heads and lengths for a released structure (odd seeds) or any; the trace
    was learnt from other ones.
    """
    hold_an_unseen_run(family, "generate", seed)


@pytest.mark.parametrize("family", FORWARD)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_unseen_configuration_has_the_forward_pass_that_transformers_makes(family: str, seed: int) -> None:
    hold_an_unseen_run(family, "forward", seed)


def hold_an_unseen_run(family: str, mode: Mode, seed: int) -> None:
    random = Random(f"{family} unseen {seed}")
    some = bases(family, varied=False) if mode == "generate" and seed % 2 else bases_of(family, mode)
    base = random.choice([*some]) if seed else next(bases(family))
    try:
        whole = outline(report_of(base))
        layers = max(random.randint(4, 9 if seed else 4), layers_needed(whole) if whole else 0)
        config = first_layers(sampled(base, random) if seed % 4 else base, layers)
        report = report_of(config)
    except QwenInspectError:
        pytest.skip("no model is so")
    if (design := outline(report)) is None:
        pytest.skip("not covered with so many layers")
    point = sampled_point(design.thresholds, random)
    if mode == "forward":
        point = replace(point, total_tokens=point.prompt_tokens)
    new_tokens = point.total_tokens - point.prompt_tokens + 1
    run = Run(
        mode=mode,
        batch=point.batch,
        prompt_tokens=point.prompt_tokens,
        new_tokens=new_tokens,
        attention=report.spec.kernel,
    )
    if (found := family_trace(report, run)) is None:
        assert seed, "what releases have is covered"
        pytest.skip("not covered")
    request = sample_request(point, report.spec.kernel, mode)
    try:
        theirs = trace(report.spec, config, request)
    except UnsupportedError:
        return  # nor can transformers run it
    mine = unfolded(found.trace.at(point)) if is_folded(found.trace) else found.trace.at(point)
    assert mine.stages == theirs.stages
    assert without_order_of_frees(mine.events) == without_order_of_frees(theirs.events)
    assert mine.kept == tuple(sorted(theirs.kept))


HALVES = sorted(({*READING, *COPYING, "bloom", "gemma2", "llama", "qwen3"} & {*KEPT}) - {"qwen3_5_moe_text"})
QUICK_HALVES = ("gemma2", "mixtral", "qwen3_moe")  # in every run


def as_float16(config: dict[str, Any]) -> dict[str, Any]:
    halves = deepcopy(config)
    for part in (halves, decoder_of(halves)):
        part.update({key: "float16" for key in ("dtype", "torch_dtype") if key in part})  # type: ignore[attr-defined]
    return {"dtype": "float16", **halves}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK_HALVES else pytest.mark.exhaustive) for name in HALVES],
)
def test_a_softmax_in_float32_reads_float16_without_a_copy(family: str) -> None:
    """A run in float16 is composed from traces in bfloat16; transformers' own on CUDA, and on CPU, where there is a copy."""
    random, point = Random(f"{family} halves"), Point(2, 37, 49)
    run = Run(batch=2, prompt_tokens=37, new_tokens=13)
    for base in bases(family):
        whole = outline(report_of(base))
        config = as_float16(first_layers(sampled(base, random), max(4, layers_needed(whole) if whole else 0)))
        report = report_of(config)
        if family_trace(report, replace(run, attention=report.spec.kernel)) is not None:
            break
    covered = []
    for device, kernel in product(("cuda", "cpu"), {report.spec.kernel: None, "eager": None}):
        found = family_trace(report, replace(run, device=device, attention=kernel))
        if found is None:
            continue
        covered.append((device, kernel))
        theirs = trace(report.spec, config, replace(sample_request(point, kernel), device=device))
        mine = unfolded(found.trace.at(point)) if is_folded(found.trace) else found.trace.at(point)
        assert without_order_of_frees(mine.events) == without_order_of_frees(theirs.events)
        assert mine.kept == tuple(sorted(theirs.kept))
    assert ("cuda", report.spec.kernel) in covered


@pytest.mark.parametrize(
    "changes",
    [
        {"output_attentions": True},
        {"return_dict": False},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_a_configuration_that_may_take_another_path_is_not_covered(changes: Mapping[str, Any]) -> None:
    """Nor one whose class has another activation: no release of the family does."""
    run = Run(prompt_tokens=50, new_tokens=9, attention="sdpa")
    assert family_trace(report_of(TINY_QWEN3), run) is not None
    assert family_trace(report_of({**TINY_QWEN3, **changes}), run) is None


def test_gemma_3_with_fewer_words_than_its_image_token_is_not_covered() -> None:
    """Its class then replaces that token in each run. Source: transformers 5.23, modeling_gemma3.Gemma3Model.forward."""
    run = Run(prompt_tokens=50, new_tokens=9, attention="sdpa")
    config = dict(catalog.configuration("google/gemma-3-4b-it", catalog.entries()))
    assert family_trace(report_of(config), run) is not None
    assert (
        family_trace(report_of({**config, "text_config": {**config["text_config"], "vocab_size": 262_144}}), run)
        is None
    )


def test_a_window_that_masks_layers_of_full_attention_is_not_covered() -> None:
    """Mistral's class masks by the window whatever the types of its layers say; its cache follows the types.

    Source: transformers 5.23, modeling_mistral.MistralModel.forward.
    """
    run = Run(prompt_tokens=50, new_tokens=9, attention="sdpa")
    config = dict(catalog.configuration("mistralai/Mistral-7B-Instruct-v0.3", catalog.entries()))
    full = {**config, "layer_types": [FULL] * 32}
    assert family_trace(report_of(full), run) is not None
    assert family_trace(report_of({**full, "sliding_window": 20}), run) is None


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "known"), [(4097, 50, True), (4090, 8, False), (4090, 9, False), (4090, 7, True)]
)
def test_phi_3_computes_all_tokens_again_when_it_passes_its_original_length(
    prompt: int, new_tokens: int, known: bool
) -> None:
    """The token after 4,096 is computed with all before it, unless the prompt is longer.

    Source: transformers 5.23, Phi3ForCausalLM.prepare_inputs_for_generation and Phi3Config.
    """
    config = dict(catalog.configuration("microsoft/Phi-3-mini-4k-instruct", catalog.entries()))
    run = Run(prompt_tokens=prompt, new_tokens=new_tokens, attention="sdpa")
    assert (family_trace(report_of(config), run) is not None) == known


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "known"), [(32_700, 69, True), (32_700, 70, False), (32_769, 2, False)]
)
def test_frequencies_that_each_longer_run_makes_again_are_not_covered(
    prompt: int, new_tokens: int, known: bool
) -> None:
    """InternVL3's RoPE is dynamic: beyond 32,768 tokens. Source: transformers 5.23, modeling_rope_utils.dynamic_rope_update."""
    config = dict(catalog.configuration("OpenGVLab/InternVL3-1B-hf", catalog.entries()))
    run = Run(prompt_tokens=prompt, new_tokens=new_tokens, attention="sdpa")
    assert (family_trace(report_of(config), run) is not None) == known


def test_a_cache_that_phi_3_makes_itself_is_traced_and_a_step_that_is_not_is_refused() -> None:
    config = {**small("phi3", {}), "num_hidden_layers": 2, "original_max_position_embeddings": 30}
    spec = report_of(config).spec

    def run(prompt: int, total: int) -> Timeline:
        return trace(spec, config, sample_request(Point(1, prompt, total), "sdpa"))

    per_token = 2 * 2 * 2 * 16 * 2  # layers, K and V, heads of 16 channels in bfloat16
    assert _kept_bytes(run(40, 50)) == 50 * per_token
    plain = {**config, "original_max_position_embeddings": 4096}
    assert run(40, 50).events == trace(report_of(plain).spec, plain, sample_request(Point(1, 40, 50), "sdpa")).events
    again = run(20, 31)  # whose last step has the cache before and the one after
    assert _kept_bytes(again) == 31 * per_token
    with pytest.raises(UnsupportedError) as refused:
        run(20, 32)
    assert refused.value.message.key == "trace_recomputed"


def _kept_bytes(timeline: Timeline) -> int:
    sizes = {event.id: event.size_bytes for event in timeline.events if isinstance(event, Allocate)}
    freed = {event.id for event in timeline.events if isinstance(event, Free)}
    return sum(sizes[identity] for identity, _ in timeline.kept if identity not in freed)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        # Phi3Config.convert_rope_params_to_dict: both names are long RoPE, which each run computes anew.
        ({"model_type": "phi3", "rope_scaling": {"type": "su"}}, {"rope": ["longrope"]}),
        ({"model_type": "phi3", "rope_scaling": {"type": "yarn"}}, {"rope": ["longrope"]}),
        ({"model_type": "llama", "rope_scaling": {"type": "yarn"}}, {}),
        # Qwen3VLTextRotaryEmbedding.__init__: three sections by default
        ({"model_type": "qwen3_vl", "text_config": {"rope_theta": 5e6}}, {"rope": ["3 sections"]}),
        # modeling_bloom.build_alibi_tensor: a second range of slopes
        ({"model_type": "bloom", "n_head": 112}, {"alibi": "heads that are no power of two"}),
        ({"model_type": "bloom", "n_head": 32}, {}),
        ({"model_type": "falcon", "alibi": False, "num_attention_heads": 71}, {}),
    ],
    ids=str,
)
def test_what_of_a_configuration_decides_a_run(config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    assert options_of(config, {}) == options


def test_dropout_and_the_name_of_the_kernel_are_no_other_run() -> None:
    """Gemma-2's releases name theirs. A run without gradients drops nothing."""
    run = Run(prompt_tokens=50, new_tokens=9, attention="eager")
    config = dict(catalog.configuration("google/gemma-2-2b-it", catalog.entries()))
    named = {**config, "_attn_implementation": "eager", "attention_dropout": 0.1}
    assert known(family_trace(report_of(named), run)).trace == known(family_trace(report_of(config), run)).trace
    assert family_trace(report_of({**config, "_attn_implementation": "flash_attention_2"}), run) is None


def test_what_samples_could_not_tell_apart_is_not_covered() -> None:
    """Sizes of samples that turn all of a head may follow from either its width or that of the rotary table: half of it."""
    samples = [(heads * width, heads, width, width // 2) for heads, width in ((2, 8), (3, 24), (5, 16), (7, 40))]
    variables = Variables.of_samples(samples)
    assert variables.values((11 * 64, 11, 64, 32)) == (704, 11, 64, 32)
    for others in ((11 * 64, 11, 64, 24), (640, 11, 64, 32)):
        with pytest.raises(NotCovered):
            variables.values(others)


def a_scan(*, layers: int, tokens: int, state_bytes: int, output_bytes: int) -> Timeline:
    """Layers that do what transformers' mamba_selective_scan does: a state and an output for each token, then all stacked."""
    events: list[Event] = [Allocate(0, 3_000_000, "embed", "parameter")]

    def request(size_bytes: int, operator: str) -> int:
        events.append(Allocate(len(events), size_bytes, "mixer", operator))
        return len(events) - 1

    for _ in range(layers):
        whole, state = request(tokens * state_bytes, "exp"), request(state_bytes // 2, "zeros")
        outputs = []
        for _ in range(tokens):
            product = request(state_bytes, "mul")
            state, before = request(state_bytes, "add"), state
            events.extend([Free(product), Free(before)])
            outputs.append(request(output_bytes, "bmm"))
        stacked = request(tokens * output_bytes, "stack")
        events += map(Free, [*reversed(outputs), whole])
        request(state_bytes, "clone")
        events += map(Free, (stacked, state))
    numbers = {event.id: number for number, event in enumerate(e for e in events if isinstance(e, Allocate))}
    return Timeline(
        events=tuple(event._replace(id=numbers[event.id]) for event in events),
        stages=(Stage(name="load", first_event=0), Stage(name="prefill", first_event=1)),
    )


@pytest.mark.parametrize(
    ("tokens", "state_bytes", "output_bytes"),
    [
        (5, 6_144, 192),
        (300, 327_680, 20_480),
        (1500, 327_680, 20_480),
        (300, 2_293_760, 143_360),
        (500, 524_288, 16_384),
        (90, 2_293_760, 143_360),
        (60, 20_971_520, 1_310_720),
        (40, 2_844_864, 88_902),
        (40, 5_795_840, 181_120),
        (60, 7_115_488, 222_359),
    ],
)
def test_a_folded_loop_takes_what_all_its_turns_take(tokens: int, state_bytes: int, output_bytes: int) -> None:
    """One sequence of mamba-2.8b and of falcon-mamba-7b, several, and sizes in either pool of the allocator; the last three have
    their peak in a turn that gets a block larger than it asks for.

    On integers it is known that the peak lies in a turn, not where.
    """
    whole = a_scan(layers=3, tokens=tokens, state_bytes=state_bytes, output_bytes=output_bytes)
    short = folded(whole)
    assert len(short.events) < len(whole.events)
    assert unfolded(short) == whole
    (_, mine), theirs = replay_folded(short, Allocator), replay(whole, with_course=False)
    assert (mine.peak, mine.at_peak, mine.end) == (theirs.peak, theirs.at_peak, theirs.end)
    assert folded_reserved(short, DEFAULTS, UNLIMITED_BYTES, Steps()) == theirs.peak.reserved_bytes
    quick = FoldedAllocator(short, DEFAULTS, UNLIMITED_BYTES, Steps())
    assert quick.reserved_up_to_most() == theirs.peak.reserved_bytes
    assert quick.peak() == folded_peak(short, DEFAULTS) == peak_between_turns(short)
    assert quick.most_allocated_bytes == theirs.peak.allocated_bytes
    beside = with_larger_request(short)
    assert folded_peak(beside, DEFAULTS) == peak_between_turns(beside) is not None


@pytest.mark.parametrize(("state_bytes", "output_bytes"), [(327_680, 20_480), (2_293_760, 143_360), (700_000, 300_000)])
def test_outputs_are_freed_after_what_is_kept_and_freed_meanwhile(state_bytes: int, output_bytes: int) -> None:
    """Before the outputs of a loop are freed, requests are made that stay, in segments of their own too, and older ones are
    freed; in the last two layers another loop runs."""
    events: list[Event] = [Allocate(0, 3_000_000, "embed", "parameter")]

    def request(size_bytes: int, operator: str = "clone") -> int:
        events.append(Allocate(len(events), size_bytes, "mixer", operator))
        return len(events) - 1

    def loop() -> tuple[int, list[int]]:
        state, outputs = request(state_bytes // 2), []
        for _ in range(150):
            product = request(state_bytes, "mul")
            state, before = request(state_bytes, "add"), state
            events.extend([Free(product), Free(before)])
            outputs.append(request(output_bytes, "bmm"))
        return state, outputs

    for layer in range(5):
        older = [request(size_bytes) for size_bytes in (90_000, 700_000, 5_000_000)]
        state, outputs = loop()
        request(40_960)
        events += map(Free, older)
        several = [request(1_000_000) for _ in range(12)]
        events += map(Free, (state, *several[::2]))
        other_state, others = loop() if layer > 2 else (request(512), [])
        events += map(Free, [*reversed(outputs), *reversed(others), other_state])
    numbers = {event.id: number for number, event in enumerate(e for e in events if isinstance(e, Allocate))}
    whole = Timeline(
        events=tuple(event._replace(id=numbers[event.id]) for event in events),
        stages=(Stage(name="load", first_event=0), Stage(name="prefill", first_event=1)),
    )
    short = folded(whole)
    assert unfolded(short) == whole
    assert sum(event.operator.endswith(REPEATED) for event in short.events if isinstance(event, Allocate)) == 7
    reserved = replay(whole, with_course=False).peak.reserved_bytes
    assert folded_reserved(short, DEFAULTS, UNLIMITED_BYTES, Steps()) == reserved


def peak_between_turns(short: Timeline) -> Peak | None:
    """By the allocator; None for one in a turn."""
    replayed = replay(short, with_course=False)
    if replayed.peak.allocated_bytes != replayed.at_peak.allocated_bytes:
        return None
    assert replayed.peak_event is not None
    return Peak(
        event=replayed.peak_event,
        rounding_bytes=replayed.at_peak.rounding_bytes,
        end_rounding_bytes=replayed.end.rounding_bytes,
        reserved_bytes=replayed.peak.reserved_bytes,
    )


def with_larger_request(short: Timeline) -> Timeline:
    """The run with a request behind its last loop, while the outputs are there, that is larger than all others together."""
    last = max(index for index, event in enumerate(short.events) if len(event) > 1 and event[3].endswith(REPEATED))
    total_bytes = sum(event.size_bytes for event in short.events if isinstance(event, Allocate))
    whole = Allocate(1 << 40, total_bytes + 77, "", "logits")
    return replace(short, events=(*short.events[: last + 1], whole, Free(whole.id), *short.events[last + 1 :]))


def test_what_turns_did_in_one_run_they_do_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mamba-2.8b: runs of 2,100 and 2,150 tokens replay fewer turns each than one of 2,000, from which most are known."""
    runs = [
        folded(a_scan(layers=4, tokens=tokens, state_bytes=327_680, output_bytes=20_480))
        for tokens in (2000, 2100, 2150)
    ]
    expected = [replay_folded(run, Allocator)[1].peak.reserved_bytes for run in runs]
    steps, played, play = Steps(), [0], Turns._play

    def counted(turns: Turns, most: int) -> tuple[int, Usage]:
        count, usage = play(turns, most)
        played[-1] += count
        return count, usage

    monkeypatch.setattr(Turns, "_play", counted)
    for run, reserved in zip(runs, expected, strict=True):
        assert folded_reserved(run, DEFAULTS, UNLIMITED_BYTES, steps) == reserved
        played.append(0)
    assert 0 < max(played[1:]) < played[0]
    for run, reserved in zip(runs, expected, strict=True):
        least = folded_reserved(run, DEFAULTS, reserved // 2, steps)
        assert least is not None
        assert reserved // 2 < least <= reserved


def test_most_turns_of_a_folded_loop_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mamba-2.8b, whose later layers find free memory between the states that earlier ones keep. Each of a turn's 3 requests
    searches a list; of 2,000 turns of 8 layers fewer than a third are replayed."""
    searched = 0

    def bisected(blocks: list[int], block: int) -> int:
        nonlocal searched
        searched += 1
        return bisect_left(blocks, block)

    monkeypatch.setattr(turning, "bisect_left", bisected)
    whole = a_scan(layers=8, tokens=2000, state_bytes=327_680, output_bytes=20_480)
    (_, mine), theirs = replay_folded(folded(whole), Allocator), replay(whole, with_course=False)
    assert (mine.peak, mine.at_peak, mine.end) == (theirs.peak, theirs.at_peak, theirs.end)
    assert 0 < searched < 8 * 2000


def test_a_family_is_read_in_no_time_and_its_file_is_small() -> None:
    for name in NAMES:
        assert Path(SHIPPED, f"{name}.json.gz").stat().st_size < 60_000
        assert read(f"{name}.json.gz") is not None
