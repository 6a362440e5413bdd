"""Changes of a run that would take less of a card, the cheapest to the user first, each predicted as the run itself is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..architectures import architecture_of
from ..architectures.quantised import preset, read_quantisation
from ..checkpoint import Checkpoint, DType
from ..errors import QwenInspectError
from ..language import Message
from ..loaders import gpus
from ..predicting.footprint import sizes_footprint, workspace_bytes
from ..progress import purpose
from ..results.fit import Gpu, Requirement, Suggestion
from ..results.memory import Run
from ..results.model import Report
from ..results.ranks import Parallelism
from ..sharing.ranks import ranks_report
from ..spec import Module, each_tensor
from ..structure.inspect import analyse
from ..structure.kv_cache import cache_report, read_formats
from ..structure.packing import pack
from ..structure.stored import in_dtype
from .transformers import TransformersDemand, calibration_of

SCHEMES = ("fp8", "awq-int4", "gptq-int4")
RANKS = (2, 4, 8)
USUAL_RANK = 16  # of examples in PEFT's documentation


def changes(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """The cache and the weights in fewer bits, less kept for the backward pass, several cards, a larger card.

    A model whose architecture is not described here, or whose weights are packed already, is offered a larger card alone.
    """
    design = report.design
    if design is not None and design.unread is not None:
        return
    if design is not None and design.quantised is None and not design.spec.built:
        if run.mode == "generate" and run.cache_format == "auto" and run.cache == "dynamic":
            yield from _smaller_cache(report, run, gpu)
        if design.spec.dtype in (
            DType.F32,
            DType.F64,
        ):  # what a scheme leaves dense is as stored, and that is not known then
            yield from _half(report, run, gpu)
        elif run.mode == "generate":
            yield from _packed(report, run, gpu)
    if run.mode == "train":
        yield from _lighter_training(report, run, gpu)
    if design is not None and design.quantised is None and run.lora_rank is None:
        yield from _several_cards(report, run, gpu)
    yield from _larger_card(report, run, gpu)


def _lighter_training(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """Activations worked out again in the backward pass; low-rank matrices trained in place of all weights; both."""
    checkpointed = replace(run, checkpointing=True)
    adapted = replace(run, lora_rank=USUAL_RANK)
    if not run.checkpointing:
        yield from _predicted("checkpointing", Message("suggest_checkpointing"), report, checkpointed, gpu)
    if run.lora_rank is None and not run.trained:
        yield from _predicted("lora", Message("suggest_lora", rank=USUAL_RANK), report, adapted, gpu)
        if not run.checkpointing:
            both = replace(adapted, checkpointing=True)
            yield from _predicted("lora", Message("suggest_lora_checkpointing", rank=USUAL_RANK), report, both, gpu)


def _smaller_cache(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """In 8 bits: an engine's, or transformers' own quantised cache, whose bytes are counted by formula."""
    form, dtype = "int8" if gpu.supports("fp8") is False else "fp8", report.spec.dtype
    cache = cache_report(report.attention.layers, *read_formats(form, dtype), dtype)
    other = replace(report, design=replace(report.known, cache=cache))
    yield from _predicted("cache", Message("suggest_cache", format=form), other, replace(run, cache_format=form), gpu)


def _half(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """Weights of 16 bits."""
    dtype = "float16" if gpu.supports("bfloat16") is False else "bfloat16"
    yield from _predicted("weights", Message("suggest_weights", dtype=dtype), in_scheme(report, dtype), run, gpu)


def in_scheme(report: Report, dtype: str) -> Report:
    """The same model with its weights in `dtype`, dense or by a scheme's name, as --dtype gives it."""
    stored = Checkpoint(ref=report.ref, config=report.config, tensors=report.tensors, release=report.release)
    return analyse(in_dtype(stored, dtype, None), workload=report.workload)


def _packed(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """Weights in each scheme that the card computes in; one that the model's matrices do not go into is left out."""
    for scheme in SCHEMES:
        if scheme == "fp8" and gpu.supports("fp8") is False:
            continue
        try:
            footprint = sizes_footprint(_weights(report, scheme), report.tree, report.cache, run)
        except QwenInspectError:
            continue
        required = TransformersDemand(report, run, gpu).requirement_of(footprint)
        change = Message("suggest_weights", dtype=scheme)
        found = _suggestion("weights", change, required, gpu)
        # Only what the formula does not rule out is worth a trace.
        traced = () if found.fits is False else _predicted("weights", change, in_scheme(report, scheme), run, gpu)
        yield next(iter(traced), found)


def _weights(report: Report, scheme: str) -> list[int]:
    """Bytes of each tensor that a model loaded in that scheme holds.

    A scheme by its name tells no layer from another, so that one of equal siblings stands for them all.
    """
    config = report.config or {}
    config = {**config, "quantization_config": preset(scheme, None, config)}
    quantisation = read_quantisation(config)
    assert quantisation is not None
    once = _once(report.tree)
    packing = pack(once, quantisation, architecture_of(config).stored_form, None)
    sizes = {tensor.name: [part.size_bytes for part in packing.loaded(tensor)] for tensor in each_tensor(once)}
    return _repeated(report.tree, "", sizes)


def _once(module: Module) -> Module:
    """The tree with one of each run of equal siblings."""
    return replace(module, repeats=1, children=tuple(map(_once, module.children)))


def _repeated(module: Module, prefix: str, sizes: Mapping[str, Sequence[int]]) -> list[int]:
    """Sizes of each tensor in the order of `each_tensor`, from those of the first of equal siblings."""
    made = [size for tensor in module.tensors for size in sizes[f"{prefix}{tensor.name}"]]
    for child in module.children:
        made += _repeated(child, f"{prefix}{child.name}.", sizes) * child.repeats
    return made


def _several_cards(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """The fewest cards that have room for the largest share, else the most that the model can be cut into; activations beside."""
    low, high = TransformersDemand(report, run, gpu).context_bytes
    kind, way = ("fsdp", "fsdp") if run.mode == "train" else ("tensor_parallel", "tensor")
    found = None
    for ranks in RANKS:
        try:
            shares = [one.total for one in ranks_report(report, run, Parallelism(**{way: ranks})).ranks]
        except QwenInspectError:
            break
        known = [share for share in shares if share is not None]
        if not known:
            break
        terms = (("rank", max(known)),)
        required = Requirement(terms=terms, context_low_bytes=low, context_high_bytes=high, whole=False)
        found = _suggestion(kind, Message(f"suggest_{kind}", ranks=ranks), required, gpu)
        if found.fits is not False:
            break
    if found is not None:
        yield found


def _larger_card(report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """The smallest card of the table that the run fits as it is; where there is none, the largest."""
    required: dict[object, Requirement] = {}
    found = None
    for one in larger_cards(gpu):
        key = workspace_bytes(one.name), calibration_of(one)  # all that a prediction knows of a card
        if key not in required:
            try:
                required[key] = TransformersDemand(report, run, one).requirement(run.batch, run.prompt_tokens)
            except QwenInspectError:
                return
        found = _suggestion("gpu", Message("suggest_gpu", name=one.name), required[key], one)
        if found.fits is not False:
            break
    if found is not None:
        yield found


def larger_cards(gpu: Gpu) -> Sequence[Gpu]:
    """Those of the table with more memory than a card, the smallest first."""
    larger = (one for one in gpus.table() if one.available_bytes > gpu.available_bytes)
    return sorted(larger, key=lambda one: one.available_bytes)


def _predicted(kind: str, change: Message, report: Report, run: Run, gpu: Gpu) -> Iterator[Suggestion]:
    """One change; nothing where what it needs is not known here."""
    try:
        with purpose(Message("purpose_suggestion", change=change)):
            required = TransformersDemand(report, run, gpu).requirement(run.batch, run.prompt_tokens)
    except QwenInspectError:
        return
    yield _suggestion(kind, change, required, gpu)


def _suggestion(kind: str, change: Message, required: Requirement, gpu: Gpu) -> Suggestion:
    enough = required.high_bytes <= gpu.room_bytes
    return Suggestion(
        kind=kind,
        change=change,
        required_bytes=required.high_bytes,
        fits=enough if required.whole or not enough else None,
        whole=required.whole,
        bounded=not required.whole and required.most_bytes is not None and required.most_bytes <= gpu.room_bytes,
    )
