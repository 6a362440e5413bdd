"""Models -> a Comparison: two hubs' listings where those can prove the weights the same, else the models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..architectures import architecture_of
from ..checkpoint import Checkpoint, Origin, Tensor
from ..errors import QwenInspectError
from ..language import Message
from ..loaders.hub import ListedFile
from ..loaders.named import list_files
from ..loaders.resolve import Access, load, resolve
from ..predicting.predict import predict
from ..results.cache import Workload
from ..results.compare import Comparison, SideBySide, TensorChanges
from ..results.listing import FilePair, FilesComparison
from ..results.memory import MemoryReport, Run
from ..results.model import Report
from ..spec import each_tensor, tied_tensors
from ..structure.accounting import predicted_files
from ..structure.inspect import analyse, code_of
from ..structure.stored import in_dtype
from .contrast import config_rows, fact_rows, tensor_changes

if TYPE_CHECKING:
    from ..results.fit import CardReach, Gpu

HUBS = ("hf", "ms")
REACHED_CONTEXTS = (2048, 8192, 32_768, 131_072)


def compare(
    models: Sequence[str],
    run: Run,
    *,
    access: Access | None = None,
    dtype: str | None = None,
    group_size: int | None = None,
    cards: Sequence[Gpu] = (),
    trust_remote_code: bool = False,
) -> Comparison:
    """Two or more models, of any sources, for one run. cards: on which it is also asked what fits. trust_remote_code: as in
    `analyse`.

    Of two hub models, one of them pinned by `hf:` or `ms:`, the listings are asked first (one request each): where every file of
    weights is the same by SHA-256, that is the answer and no more is read. Otherwise what can be read of the models is
    held side by side; what is not known of one stays None. Raises what reading a model raises, unless listings have answered.
    """
    access = access or Access()

    def side_by_side() -> SideBySide:
        found = _side_by_side(models, run, access, dtype, group_size, trust_remote_code=trust_remote_code)
        return replace(found, reaches=_reaches(found.reports, run, cards)) if cards else found

    if not _two_of_hubs(models):
        return Comparison(files=None, models=side_by_side())
    files = compare_files(*models, access=access)
    if files.identical and not cards:
        return Comparison(files=files, models=None)
    try:
        return Comparison(files=files, models=side_by_side())
    except QwenInspectError as error:
        return Comparison(files=files, models=None, notices=(Message("compare_unread", reason=error.message),))


def _two_of_hubs(models: Sequence[str]) -> bool:
    if len(models) != 2:
        return False
    sources = {resolve(model).source for model in models}
    return sources <= {*HUBS, "auto"} and sources != {"auto"}


def _side_by_side(
    models: Sequence[str],
    run: Run,
    access: Access,
    dtype: str | None,
    group_size: int | None,
    *,
    trust_remote_code: bool,
) -> SideBySide:
    workload = Workload(batch=run.batch, context_tokens=run.prompt_tokens, cache_format=run.cache_format)
    checkpoints = [in_dtype(load(resolve(model), access), dtype, group_size) for model in models]
    reports = [
        analyse(checkpoint, require_design=False, workload=workload, trust_remote_code=trust_remote_code)
        for checkpoint in checkpoints
    ]
    tensors = [
        _tensors(checkpoint, report, trust_remote_code=trust_remote_code)
        for checkpoint, report in zip(checkpoints, reports, strict=True)
    ]
    predicted = [_memory(report, run) for report in reports]
    reports = [report for report, _ in predicted]
    memories = [memory for _, memory in predicted]
    others = zip(reports[1:], tensors[1:], strict=True)
    return SideBySide(
        reports=tuple(reports),
        memories=tuple(memories),
        run=replace(run, attention=_kernels(memories) or run.attention),
        config=config_rows([report.written for report in reports]),
        facts=fact_rows(reports, memories, tokens=run.prompt_tokens, batch=run.batch),
        tensors=tuple(_changes(reports[0], tensors[0], report, found) for report, found in others),
    )


def _kernels(memories: Sequence[MemoryReport | None]) -> str:
    """The kernels that the models are predicted with."""
    return ", ".join(dict.fromkeys(memory.run.attention for memory in memories if memory is not None))


def _reaches(reports: Sequence[Report], run: Run, cards: Sequence[Gpu]) -> tuple[tuple[CardReach, ...] | None, ...]:
    """Each model on each card, with usual contexts up to the longest limit and the one asked for."""
    from ..fitting.search import reach

    limits = [report.spec.context_tokens for report in reports if report.design is not None]
    most = max((limit for limit in limits if limit is not None), default=0)
    contexts = sorted({run.prompt_tokens, *(tokens for tokens in REACHED_CONTEXTS if tokens <= most)})

    def of(report: Report) -> tuple[CardReach, ...] | None:
        try:
            return tuple(reach(report, run, card, contexts) for card in cards)
        except QwenInspectError:
            return None

    return tuple(of(report) for report in reports)


def _memory(report: Report, run: Run) -> tuple[Report, MemoryReport | None]:
    """The prediction, and the report with what was noticed in making it; None where there is none."""
    try:
        memory = predict(report, run)
    except QwenInspectError as error:
        return replace(report, notices=(*report.notices, Message("compare_no_memory", reason=error.message))), None
    return memory.report, memory


Named = tuple[tuple[Tensor, ...], Origin]


def _tensors(checkpoint: Checkpoint, report: Report, *, trust_remote_code: bool) -> Named | None:
    """A model's tensors as stored, with an adapter's own; else as a release's files or, without any, the design has them."""
    if checkpoint.tensors is not None:
        own = () if checkpoint.adapter is None else checkpoint.adapter.tensors
        return (*checkpoint.tensors, *own), "stored"
    if report.design is None or report.design.quantised is not None or report.design.unread is not None:
        return None
    config = report.config or {}
    architecture = architecture_of(config, code=code_of(checkpoint, config) if trust_remote_code else None)
    form = architecture.stored_form
    files = predicted_files(report.tree, form, checkpoint.release, architecture.prediction_layers)
    return files or tuple(part for tensor in each_tensor(report.tree) for part in form(tensor)), "theory"


def _changes(base: Report, before: Named | None, other: Report, after: Named | None) -> TensorChanges | None:
    """Theory does not tell whether files hold a tied tensor twice, so that beside it such copies are left out of both."""
    if before is None or after is None:
        return None
    left, right = before[0], after[0]
    if "theory" in (before[1], after[1]):
        copies = {name for one in (base, other) if one.design is not None for name, _ in tied_tensors(one.tree)}
        owned = {tensor.name for one in (base, other) if one.design is not None for tensor in each_tensor(one.tree)}
        left, right = (tuple(one for one in side if one.name not in copies - owned) for side in (left, right))
    return tensor_changes(left, right, base_origin=before[1], origin=after[1])


def compare_files(left: str, right: str, *, access: Access | None = None) -> FilesComparison:
    """Whether two hubs hold the same files, by the SHA-256 of their listings: one request each."""
    refs = resolve(left), resolve(right)
    listings = [{file.name: file for file in list_files(ref, access or Access()).files} for ref in refs]
    return FilesComparison(
        left=refs[0],
        right=refs[1],
        pairs=tuple(
            _pair(name, *(listing.get(name) for listing in listings)) for name in sorted({*listings[0], *listings[1]})
        ),
    )


def _pair(name: str, left: ListedFile | None, right: ListedFile | None) -> FilePair:
    return FilePair(
        name=name,
        left_bytes=left.size_bytes if left else None,
        right_bytes=right.size_bytes if right else None,
        left_sha256=left.sha256 if left else None,
        right_sha256=right.sha256 if right else None,
        on_left=left is not None,
        on_right=right is not None,
    )
