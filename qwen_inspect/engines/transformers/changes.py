"""Changes to a run that would need less of a card, the cheapest to the user first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ...architectures import architecture_of
from ...architectures.quantised import read_quantisation
from ...architectures.quantised_presets import preset
from ...checkpoint import DType
from ...errors import QwenInspectError
from ...language import Message
from ...loaders import gpus
from ...predicting.families.family_training import is_covered
from ...predicting.footprint import sizes_footprint
from ...results.fit import Change, Gpu, Requirement
from ...results.memory import Run
from ...results.model import Report
from ...results.ranks import Parallelism
from ...sharing.ranks import ranks_report
from ...spec import Module, each_tensor
from ...structure.inspect import in_scheme
from ...structure.kv_cache import cache_report, read_formats
from ...structure.packing import pack
from ...values import replace
from ..interface import RANKS, Alternative, Choice, card_message, schemes
from .demand import TransformersDemand

QLORA_BASE = "bnb-nf4-double"  # as in Dettmers et al. 2023, "QLoRA"
USUAL_RANK = 16  # as in the examples of PEFT's documentation


def changes(demand: TransformersDemand, report: Report, run: Run, gpu: Gpu) -> Iterator[Choice[Run]]:
    """Cache and weights in fewer bits, activation checkpointing and LoRA, several cards, a larger card.

    A model of an unknown architecture or with quantised weights gets only a larger card.
    """
    design = report.design
    if design is not None and design.unread is not None:
        return
    dense = design is not None and design.quantised is None
    if design is not None and dense and not design.spec.built:
        if run.mode == "generate" and run.cache_format == "auto" and run.cache == "dynamic":
            yield Choice("all", [_smaller_cache(report, run, gpu)])
        # Schemes are only suggested for 16-bit models: what they leave dense keeps its stored dtype.
        if design.spec.dtype in (DType.F32, DType.F64):
            yield Choice("all", [_half(report, run, gpu)])
        elif run.mode == "generate":
            yield Choice("all", _packed(demand, report, run, gpu))
    if run.mode == "train":
        yield Choice("all", _lighter_training(report, run, gpu))
    if dense and run.lora_rank is None:
        yield Choice("first", _several_cards(demand, report, run, gpu))
    yield Choice("first", _larger_cards(demand, report, run, gpu))


def _lighter_training(report: Report, run: Run, gpu: Gpu) -> Iterator[Alternative[Run]]:
    """Activation checkpointing, AdamW in 8 bits, LoRA in place of training all weights, and both on a base in 4 bits. Of AdamW in
    8 bits and of a base in 4 bits only what a family's trace covers.
    """
    checkpointed = replace(run, checkpointing=True)
    adapted = replace(run, lora_rank=USUAL_RANK)
    if not run.checkpointing:
        yield Alternative("checkpointing", Message("suggest_checkpointing"), report, checkpointed, gpu)
    if run.lora_rank is None and not (run.trained or run.frozen):
        yield Alternative("lora", Message("suggest_lora", rank=USUAL_RANK), report, adapted, gpu)
        if not run.checkpointing:
            both = replace(adapted, checkpointing=True)
            yield Alternative("lora", Message("suggest_lora_checkpointing", rank=USUAL_RANK), report, both, gpu)
        in_8_bits = replace(run, optimizer="adamw_8bit")
        if run.optimizer.startswith("adamw") and run != in_8_bits and is_covered(report, in_8_bits):
            yield Alternative("optimizer", Message("suggest_8bit_optimizer"), report, in_8_bits, gpu)
        if report.known.quantised is None and report.spec.dtype.bits == 16:
            in_4_bits = in_scheme(report, QLORA_BASE)
            if is_covered(in_4_bits, adapted):
                message = Message("suggest_qlora", rank=USUAL_RANK, dtype=QLORA_BASE)
                yield Alternative("lora", message, in_4_bits, adapted, gpu)


def _smaller_cache(report: Report, run: Run, gpu: Gpu) -> Alternative[Run]:
    """The cache in 8 bits, computed by formula."""
    form, dtype = "int8" if gpu.supports("fp8") is False else "fp8", report.spec.dtype
    cache = cache_report(report.attention.layers, *read_formats(form, dtype), dtype)
    in_8_bits = replace(report, design=replace(report.known, cache=cache))
    return Alternative("cache", Message("suggest_cache", format=form), in_8_bits, replace(run, cache_format=form), gpu)


def _half(report: Report, run: Run, gpu: Gpu) -> Alternative[Run]:
    """Weights in 16 bits."""
    dtype = "float16" if gpu.supports("bfloat16") is False else "bfloat16"
    return Alternative("weights", Message("suggest_weights", dtype=dtype), in_scheme(report, dtype), run, gpu)


def _packed(demand: TransformersDemand, report: Report, run: Run, gpu: Gpu) -> Iterator[Alternative[Run]]:
    """Weights in each scheme that the card supports; schemes that do not divide the model's matrices are skipped."""
    for scheme in schemes(gpu):
        try:
            footprint = sizes_footprint(_weights(report, scheme), report.tree, report.cache, run)
        except QwenInspectError:
            continue
        required = demand.requirement_of(footprint)
        if required.high_bytes <= gpu.room_bytes:  # only what the formula does not rule out
            with suppress(QwenInspectError):
                required = TransformersDemand(in_scheme(report, scheme), run, gpu).total_like(demand)
        yield Alternative("weights", Message("suggest_weights", dtype=scheme), None, run, gpu, required)


def _weights(report: Report, scheme: str) -> list[int]:
    """Bytes of each tensor of the model when loaded in that scheme.

    A preset treats all layers alike, so one of equal siblings is packed and repeated.
    """
    config = report.config or {}
    config = {**config, "quantization_config": preset(scheme, None, config)}
    quantisation = read_quantisation(config)
    assert quantisation is not None
    once = _once(report.tree)
    packing = pack(once, quantisation, architecture_of(config).stored_form, None)
    sizes = {tensor.name: packing.loaded_bytes(tensor) for tensor in each_tensor(once)}
    return _repeated(report.tree, "", sizes)


def _once(module: Module) -> Module:
    """The tree with `repeats` set to 1 everywhere."""
    return replace(module, repeats=1, children=tuple(map(_once, module.children)))


def _repeated(module: Module, prefix: str, sizes: Mapping[str, Sequence[int]]) -> list[int]:
    """Sizes in the order of `each_tensor`, from the sizes of the first of equal siblings."""
    repeated = [size for tensor in module.tensors for size in sizes[f"{prefix}{tensor.name}"]]
    for child in module.children:
        repeated += _repeated(child, f"{prefix}{child.name}.", sizes) * child.repeats
    return repeated


def _several_cards(demand: TransformersDemand, report: Report, run: Run, gpu: Gpu) -> Iterator[Alternative[Run]]:
    """Each number of cards with the largest rank's share, without activations: a lower bound."""
    low, high = demand.context_bytes
    kind: Change = "fsdp" if run.mode == "train" else "tensor_parallel"
    for ranks in RANKS:
        how = Parallelism(fsdp=ranks) if run.mode == "train" else Parallelism(tensor=ranks)
        try:
            shares = [rank.total for rank in ranks_report(report, run, how).ranks]
        except QwenInspectError:
            return
        largest = max((share for share in shares if share is not None), default=None)
        if largest is None:
            return
        terms = (("rank", largest),)
        required = Requirement(terms=terms, context_low_bytes=low, context_high_bytes=high, whole=False)
        yield Alternative(kind, Message(f"suggest_{kind}", ranks=ranks), None, run, gpu, required)


def _larger_cards(demand: TransformersDemand, report: Report, run: Run, gpu: Gpu) -> Iterator[Alternative[Run]]:
    """Each larger card, without those that cannot hold what every such run keeps, or this one has at once, but for the largest;
    predicted once for cards that a prediction does not tell apart."""
    requirements: dict[object, Requirement] = {}
    cards = gpus.larger(gpu)
    for card in [*(card for card in cards[:-1] if card.room_bytes >= demand.kept_bytes), *cards[-1:]]:
        on_card = TransformersDemand(report, run, card)
        if card.room_bytes < on_card.least_like(demand) and card is not cards[-1]:
            continue
        if on_card.card_facts not in requirements:
            try:
                requirements[on_card.card_facts] = on_card.total_like(demand)
            except QwenInspectError:
                return
        yield Alternative("gpu", card_message(card), None, run, card, requirements[on_card.card_facts])
