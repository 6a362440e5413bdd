"""Training runs of deep models from traces of their first few layers, event by event equal to traces of the whole models.

What was learnt of a model is kept in the user's cache, named by everything that the events depend on. Where the sizes of events
are polynomials in batch and tokens, they are fitted, so that one file serves every batch and length; else it serves one of each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

from ... import __version__
from ...digests import sha256_hex
from ...errors import UnsupportedError
from ...loaders import header_cache
from ...results.attention import LayerAttention
from ...results.memory import Run
from ...results.model import Report
from ...results.timeline import ADAPTER, Allocate, Stage, Timeline, living
from ...spec import Module
from ...standard import json, re
from ...tracing import CHUNK_TURNS
from ...tracing.adapting import adapters_of
from ...typed import Any
from ...values import dataclass, field, replace
from ..allocation.on_device import PARAMETER
from ..fused_loss import LossBuffer, chunks_alike, loss_buffer
from ..traces.kept_trace import ALIGNMENTS, CHUNK_TOKENS, ChunkedPoint, KeptTrace, Point, fit, unzipped, zipped
from ..traces.optimizer_steps import with_average
from ..traces.segments import fixed
from ..traces.training_turns import FEWEST_CHUNKS, is_chunked, turns_of, with_chunks
from ..training import trained_of
from ..training_plan import Plan
from .composition import compose, composed_of, shallow_layers, surroundings_of
from .stacks import fewest_layers, kinds_of_decoder, stack_of, tower_of

MOST_OF_ALL = 3, 4  # a shallow model of more of the layers spares too little
FEWEST_TOKENS = 8  # fewer rows take other kernels
# (batch, tokens) of different alignments, by which sums over rows are vectorised; the last one checks. A single sequence is
# spared copies that several need.
SINGLE = (1, 18), (1, 37), (1, 64), (1, 99)
SEVERAL = (2, 18), (3, 37), (5, 64), (4, 99)
TERMS_OF_SINGLE, TERMS_OF_SEVERAL = (0, 1, 2), (0, 1, 2, 4, 5, 6)  # a training run has no total length of its own
# The same of linear attention, which pads a prompt to chunks, and slices what it padded.
SINGLE_PADDED, SINGLE_WHOLE = ((1, 18), (1, 229), (1, 460), (1, 739)), ((1, 64), (1, 192), (1, 448), (1, 768))
SEVERAL_PADDED, SEVERAL_WHOLE = ((2, 18), (3, 229), (5, 460), (4, 739)), ((2, 64), (3, 192), (5, 448), (4, 768))
CHUNKED_TERMS_OF_SINGLE, CHUNKED_TERMS_OF_SEVERAL = (*TERMS_OF_SINGLE, 8), (*TERMS_OF_SEVERAL, 8, 9)
FEW_CHUNKS = (FEWEST_CHUNKS - 1) * CHUNK_TOKENS  # tokens of a prompt, of each number of chunks another run
ALL_TURNS_ABOVE = (CHUNK_TURNS - 1) * CHUNK_TOKENS  # longer prompts have all turns that a trace has


@dataclass(frozen=True, slots=True, kw_only=True)
class ShallowTrace:
    """The trace of a model's first `layers` layers, or all, and of which kinds they are. stack: the module that has them.

    only: the (batch, tokens) that it is of; None if its sizes are polynomials.
    """

    trace: KeptTrace
    kinds: tuple[int, ...]
    layers: int
    stack: str
    only: tuple[int, int] | None

    def deep(self) -> KeptTrace:
        """The trace of the whole model; UnsupportedError if it is less regular than this can tell."""
        if self.layers == len(self.kinds):
            return self.trace
        return compose(self.trace, self.kinds, self.layers, self.stack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A training run to compose. name: a hash of everything that its events depend on, but batch and tokens if those are regular.

    plan, request: without a moving average, which the composed trace gets. above: all runs of more tokens than this make the same
    events, up to the next window; None if that is not known. made_by: the libraries' versions.
    """

    name: str
    above: int | None
    made_by: str
    report: Report = field(compare=False)
    plan: Plan = field(compare=False)
    request: Any = field(compare=False)
    averaged: bool

    @property
    def asked(self) -> tuple[int, int]:
        return self.plan.run.batch, self.plan.run.prompt_tokens


def question_of(report: Report, plan: Plan, request: Any, made_by: str) -> Question:
    loop = replace(plan.run.loop, ema=False)
    if plan.run.prompt_tokens <= (loop.completion_tokens or 0):  # all tokens have labels then
        loop = replace(loop, completion_tokens=None)
    averaged = plan.run.loop.ema
    plan, request = replace(plan, run=replace(plan.run, loop=loop)), replace(request, loop=loop)
    base, above = plan.four_bits, same_events_above(report, plan.run)
    depends_on = {
        "config": report.config,
        "spec": repr(report.spec),
        "request": repr(replace(request, lora=None, **({} if above is None else {"batch": 1, "prompt_tokens": 1}))),
        "regime": [
            above,
            plan.run.batch > 1,
            *([plan.run.prompt_tokens % CHUNK_TOKENS > 0] if is_chunked(report) else []),
        ],
        "lora": repr(adapters_of(plan.run)),
        "base": base and [repr(base.scheme), base.dtype, sorted(base.modules)],
        "versions": [made_by, __version__],
    }
    text = json.dumps(depends_on, sort_keys=True, default=str)
    name = f"{report.spec.family}-{sha256_hex(text.encode())[:16]}.training.json.gz"
    return Question(
        name=name, above=above, made_by=made_by, report=report, plan=plan, request=request, averaged=averaged
    )


def same_events_above(report: Report, run: Run) -> int | None:
    """`Question.above`: None where attention is not softmax over all tokens or over a window, or linear with one or two
    chunks of them, for masks of padding, whose rows are padded, and for positions that are scaled by the length."""
    attention, config = report.known.attention, report.config or {}
    chunked = is_chunked(report)
    of_softmax = [layer for layer in attention.layers if isinstance(layer, LayerAttention)] if attention else []
    if attention is None or (len(of_softmax) < len(attention.layers) and not chunked):
        return None
    if chunked and run.prompt_tokens <= FEW_CHUNKS:
        return None
    if (
        run.padded
        or run.media is not None
        or run.packed
        or not chunks_alike(report, run)
        or run.prompt_tokens < FEWEST_TOKENS
        or re.search(r"\b(dynamic|longrope)\b", str(config))
    ):
        return None
    windows = {layer.window_tokens for layer in of_softmax if layer.window_tokens is not None}
    if report.spec.built and _lengths_in(config) - windows:
        return None
    labelled = run.loop.completion_tokens or 0
    labelled = max(labelled if run.prompt_tokens > labelled else 0, FEW_CHUNKS if chunked else 0)
    if not windows or run.prompt_tokens > max(windows):
        return max(labelled, max(windows, default=0))
    return labelled if run.prompt_tokens < min(windows) > labelled + SINGLE[-1][1] else None


def _lengths_in(config: Mapping[str, Any]) -> set[int]:
    """Lengths of windows, chunks and blocks that a configuration names."""
    lengths: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            lengths |= _lengths_in(value)
        elif type(value) is int and value > 0 and re.search(r"window(?!_layers|_pattern)|chunk|block|local_att", key):
            lengths.add(value)
    return lengths


def composed_trace(question: Question, *, of_any: bool = False) -> KeptTrace | None:
    """`_composed_trace`, with the moving average that is asked for, and linear attention's turns for all chunks of the prompt."""
    composed, turns = composed_with_turns(question, of_any=of_any)
    if composed is None or not is_chunked(question.report):
        return composed
    with suppress(UnsupportedError):
        return with_chunks(composed, question.asked[1], turns)
    return None


def composed_with_turns(question: Question, *, of_any: bool = False) -> tuple[KeptTrace | None, int]:
    """`_composed_trace`, with the moving average that is asked for."""
    composed, turns = _composed_trace(question, of_any=of_any)
    if composed is not None and question.averaged:
        composed = with_average(composed, question.report.tree)
    return composed, turns


def _composed_trace(question: Question, *, of_any: bool) -> tuple[KeptTrace | None, int]:
    """The trace of the whole model, kept or composed now, and how many chunks it has; None if its first layers do not stand for
    all.

    Of this run alone, if it is the first of its name; with polynomials for sizes if it is the second, or if `of_any`. Raises what
    a trace raises.
    """
    kept, of_this = _kept(question), turns_of(question.asked[1])
    if kept is not None and (kept.only is None or (kept.only == question.asked and not of_any)):
        return _deep(kept), CHUNK_TURNS if kept.only is None else of_this
    if question.above is not None and (kept is not None or of_any) and (composed := _of_any(question)) is not None:
        return composed, CHUNK_TURNS
    return (None if of_any else _composed(question, [question.asked])), of_this


def _kept(question: Question) -> ShallowTrace | None:
    content = header_cache.read_trace(question.name)
    return None if content is None else load(content, made_by=question.made_by)


@lru_cache(maxsize=4)
def _deep(shallow: ShallowTrace) -> KeptTrace:
    return shallow.deep()


@lru_cache(maxsize=4)
def _of_any(question: Question) -> KeptTrace | None:
    """The trace with polynomials for sizes, which the asked run checks if it has all turns of a trace; None if it has none."""
    assert question.above is not None
    single = question.asked[0] == 1
    sampled, least = SINGLE if single else SEVERAL, question.above
    if is_chunked(question.report):
        padded, whole = (SINGLE_PADDED, SINGLE_WHOLE) if single else (SEVERAL_PADDED, SEVERAL_WHOLE)
        sampled = padded if question.asked[1] % CHUNK_TOKENS else whole
        least = max(question.above, ALL_TURNS_ABOVE)
    samples = [(batch, least // 4 * 4 + tokens) for batch, tokens in sampled]
    checked = [] if question.asked in samples or question.asked[1] <= least else [question.asked]
    return _composed(question, [*samples[: len(samples) - len(checked)], *checked])


def _composed(question: Question, workloads: Sequence[tuple[int, int]]) -> KeptTrace | None:
    """The whole model's trace, from traces of its first layers with these (batch, tokens); kept if it has all of the model."""
    from ...architectures.generic import buildable
    from ...tracing.trace import settings_of_layers, trace

    report, plan = question.report, question.plan
    config = buildable(report.config or {}) if report.spec.built else report.config or {}
    listed = settings_of_layers(config)
    designed = report.spec.layers or listed
    stack = stack_of(report.tree, len(listed))
    if stack is None or len(designed) != len(listed):
        return None
    settings: list[Hashable] = list(zip(listed, designed, strict=True))
    if plan.run.media is not None:
        settings = kinds_of_decoder(settings, config)
    kinds = kinds_of(settings, stack, plan, report.tree)
    layers = shallow_layers(kinds)
    tower = None if plan.run.media is None else tower_in_part(report, config, plan)
    if layers is None or layers * MOST_OF_ALL[1] > len(kinds) * MOST_OF_ALL[0]:
        if tower is None:
            return None
        layers = len(kinds)
    try:
        kept_layers = None if tower is None else tower.kept
        traces: dict[Point, Timeline] = {
            ChunkedPoint(batch, tokens, tokens): trace(
                report.spec,
                config,
                replace(
                    question.request,
                    layers=layers,
                    tower_layers=kept_layers,
                    batch=batch,
                    prompt_tokens=tokens,
                    few_chunks=True,
                ),
            )
            for batch, tokens in workloads
        }
        if len(workloads) == 1:
            kept = replace(constant(*traces.values()), made_by=question.made_by)
            if tower is not None:
                kept = tower.whole(kept)
        else:
            terms = _terms(report, single=question.asked[0] == 1)
            kept = fit(traces, made_by=question.made_by, terms=terms, buffer=loss_buffer(report.spec, plan.run))
        only = question.asked if len(workloads) == 1 else None
        shallow = ShallowTrace(trace=kept, kinds=kinds, layers=layers, stack=stack, only=only)
        deep = shallow.deep()
    except UnsupportedError:
        return None
    if not has_all(deep.at(Point(*question.asked, question.asked[1])), plan):
        return None
    header_cache.write_trace(question.name, dump(shallow))
    return deep


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerInPart:
    """A tower with layers of these kinds, of which only some are traced. kept: their numbers."""

    stack: str
    kinds: tuple[Hashable, ...]
    kept: tuple[int, ...]

    def whole(self, trace: KeptTrace) -> KeptTrace:
        """The trace with all layers of the tower; UnsupportedError if it is less regular than this can tell."""
        few = surroundings_of([self.kinds[layer] for layer in self.kept])
        return composed_of(trace, few, surroundings_of(self.kinds), self.stack)


def tower_in_part(report: Report, config: Mapping[str, Any], plan: Plan) -> TowerInPart | None:
    """None if all layers of the tower must be traced, or if that is not clear."""
    from ...tracing.towers import kinds_of_tower

    seen = kinds_of_tower(config)
    stack = tower_of(report.tree, len(seen))
    # The layers that are traced get other numbers, and with other names other ones could train.
    if stack is None or len(set(kinds_of([None] * len(seen), stack, plan, report.tree))) > 1:
        return None
    kept = fewest_layers(seen, surroundings_of)
    return None if kept is None else TowerInPart(stack=stack, kinds=tuple(seen), kept=kept)


def _terms(report: Report, *, single: bool) -> Sequence[int]:
    if is_chunked(report):
        return CHUNKED_TERMS_OF_SINGLE if single else CHUNKED_TERMS_OF_SEVERAL
    return TERMS_OF_SINGLE if single else TERMS_OF_SEVERAL


def kinds_of(settings: Sequence[Hashable], stack: str, plan: Plan, tree: Module) -> tuple[int, ...]:
    """Equal numbers for layers of equal settings and tensors, trained or frozen."""
    trained = {tensor.name for tensor in trained_of(tree, plan.run, plan.matrices)}
    numbered = re.compile(rf"{re.escape(stack)}\.(\d+)\.(.+)")
    of_layer: dict[int, list[Hashable]] = defaultdict(list)
    for tensor in (*plan.weights, *(matrix.tensor for matrix in plan.matrices)):
        if match := numbered.fullmatch(tensor.name):
            of_layer[int(match[1])].append((match[2], tensor.shape, tensor.dtype, tensor.name in trained))
    numbers: dict[Hashable, int] = {}
    return tuple(
        numbers.setdefault((setting, *of_layer[layer]), len(numbers)) for layer, setting in enumerate(settings)
    )


def constant(timeline: Timeline) -> KeptTrace:
    """A trace of one workload with constant sizes."""
    numbers: dict[int, int] = {}
    for event in timeline.events:
        if isinstance(event, Allocate):
            numbers[event.id] = len(numbers)
    return replace(
        fixed(timeline),
        sums=tuple(
            (numbers[output], (summed.outputs,), (summed.inputs,), (summed.vector,) * len(ALIGNMENTS))
            for output, summed in timeline.sums
        ),
        cast=timeline.cast,
        owners=tuple((numbers[identity], module) for identity, module in timeline.owners),
    )


def has_all(timeline: Timeline, plan: Plan) -> bool:
    """Whether the run ends with the weights and the matrices of the plan."""
    loaded = {PARAMETER: Counter[int](), ADAPTER: Counter[int]()}
    for allocation in living(timeline.events):
        if allocation.operator in loaded:
            loaded[allocation.operator][allocation.size_bytes] += 1
    weights = Counter(tensor.size_bytes for tensor in plan.weights)
    matrices = Counter(matrix.tensor.size_bytes for matrix in plan.matrices)
    return loaded == {PARAMETER: weights, ADAPTER: matrices}


# --- as a file


def dump(shallow: ShallowTrace) -> bytes:
    """The trace as gzipped JSON, each distinct size, module and operator once."""
    kept = shallow.trace
    tables: tuple[dict[Any, int], ...] = ({}, {}, {})

    def number(table: int, value: Hashable) -> int:
        return tables[table].setdefault(value, len(tables[table]))

    content = {
        "kinds": shallow.kinds,
        "layers": shallow.layers,
        "stack": shallow.stack,
        "only": shallow.only,
        "cast": kept.cast,
        "stages": [[stage.name, stage.first_event] for stage in kept.stages],
        "allocations": [[number(0, size), number(1, module), number(2, operator)] for size, module, operator in kept.allocations],
        "sums": [[entry, *(number(0, numbers) for numbers in summed)] for entry, *summed in kept.sums],
        "owners": [[entry, number(1, module)] for entry, module in kept.owners],
        "buffers": [[entry, *_row(buffer)] for entry, buffer in kept.buffers],
        "order": kept.order,
        "tables": [list(table) for table in tables],
    }  # fmt: skip
    return zipped(content)


def _row(buffer: LossBuffer) -> tuple[str, int, int, int | None]:
    return buffer.loss, buffer.hidden_size, buffer.vocabulary, buffer.completion_tokens


def load(content: bytes, *, made_by: str) -> ShallowTrace | None:
    """Reads what `dump` wrote; None for anything else."""
    try:
        kept = unzipped(content)
        sizes, modules, operators = kept["tables"]
        polynomials = [tuple(map(int, size)) for size in sizes]
        trace = KeptTrace(
            stages=tuple(Stage(name=name, first_event=first) for name, first in kept["stages"]),
            allocations=tuple(
                (polynomials[size], modules[module], operators[operator]) for size, module, operator in kept["allocations"]
            ),
            order=tuple(map(int, kept["order"])),
            made_by=made_by,
            sums=tuple(
                (int(entry), polynomials[outputs], polynomials[inputs], polynomials[vectors])
                for entry, outputs, inputs, vectors in kept["sums"]
            ),
            cast=bool(kept["cast"]),
            owners=tuple((int(entry), modules[module]) for entry, module in kept["owners"]),
            buffers=tuple((int(entry), LossBuffer(*buffer)) for entry, *buffer in kept["buffers"]),
        )  # fmt: skip
        if not all(-len(trace.allocations) <= entry < len(trace.allocations) for entry in trace.order):
            return None
        only = kept["only"]
        return ShallowTrace(
            trace=trace,
            kinds=tuple(map(int, kept["kinds"])),
            layers=int(kept["layers"]),
            stack=str(kept["stack"]),
            only=None if only is None else (int(only[0]), int(only[1])),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return None
