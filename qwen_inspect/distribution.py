"""A model, a run, and how several devices share them -> what each device holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .analyzers.ranks import Sharded, rank_bytes
from .analyzers.training import check_training
from .architectures.generic import build_generic
from .architectures.plans import NOT_LOADED_BY_RANKS, built_plans, plans_of
from .errors import UnsupportedError, UsageError
from .language import Message
from .ranks import DeviceMapReport, Parallelism, RanksReport
from .report.memory import Run
from .report.model import Report


def ranks_report(report: Report, run: Run, how: Parallelism) -> RanksReport:
    """Each rank's bytes for `run`.

    UsageError for degrees that contradict each other or the run, UnsupportedError where transformers has no plan for the class,
    cannot cut it into so many parts, or its weights are quantised.
    """
    check_training(run)
    _check_dense(report)
    if how.expert > 1 and how.tensor == how.fsdp == 1:
        # The ranks of experts lie on others': those that share one batch are tensor-parallel ones.
        how = replace(how, tensor=how.expert)
    if how.tensor * how.expert > 1 and report.spec.family in NOT_LOADED_BY_RANKS:
        raise UnsupportedError("ranks_not_loaded", class_name=report.spec.class_name)
    ranks = rank_bytes(sharded(report), how, run)
    return RanksReport(parallelism=how, ranks=ranks, assumptions=tuple(_assumptions(how, run)))


def sharded(report: Report) -> Sharded:
    """The model of a report in the words of `rank_bytes`; its plans are transformers' own where no family here describes it."""
    spec, design = report.spec, report.known
    plans = built_plans(build_generic(report.config or {})) if spec.built else plans_of(spec, report.tree)
    settled = design.attention is not None and design.cache is not None
    return Sharded(
        tree=report.tree,
        plans=plans,
        tied=spec.tied_embeddings,
        attention=design.attention.layers if settled and design.attention is not None else None,
        cache=design.cache.layers if settled and design.cache is not None else None,
    )


def device_map_report(report: Report, run: Run, capacities: Mapping[str, int] | None) -> DeviceMapReport:
    """What accelerate puts on each device, of `capacities` bytes (None: this machine's).

    UsageError for a training, UnavailableError without accelerate, UnsupportedError where there is no place for the model, or its
    weights are quantised.
    """
    from .analyzers.device_map import placed
    from .analyzers.instantiate import build

    if run.mode == "train":
        raise UsageError("device_map_train")
    _check_dense(report)
    spec, config = report.spec, report.config or {}
    return placed(build_generic(config) if spec.built else build(spec, config, device="meta"), capacities)


def _check_dense(report: Report) -> None:
    if report.design is None:
        assert report.refusal is not None  # nothing else leaves a report without a design
        raise report.refusal
    if report.design.quantised is not None:
        raise UnsupportedError("ranks_quantised", method=report.design.quantised.method)


def _assumptions(how: Parallelism, run: Run) -> list[Message]:
    said = []
    if how.tensor > 1:
        said.append(Message("assume_ranks_tensor"))
    if how.expert > 1:
        said.append(Message("assume_ranks_expert", ranks=how.expert))
    if how.pipeline > 1:
        said.append(Message("assume_ranks_pipeline"))
    if how.fsdp > 1:
        said += [Message("assume_ranks_batch"), Message(f"assume_zero_{how.zero_stage}")]
        if how.zero_stage == 3 and how.ranks == how.fsdp and how.expert == 1:
            said.append(Message("assume_gathered_train" if run.mode == "train" else "assume_gathered"))
    return [*said, Message("assume_ranks_unknown")]
