"""Compares models: first the file listings of two hubs, which may prove equal weights; else the models side by side."""

from __future__ import annotations

from collections.abc import Sequence

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
from ..structure.kept_design import known_architecture
from ..structure.stored import in_dtype
from ..typed import TYPE_CHECKING
from ..values import replace
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
    """Compares two or more models, from any sources, for one run.

    For two hub models, at least one pinned by `hf:` or `ms:`, the listings come first (one request each): if all weight files
    have equal SHA-256, nothing more is read. Otherwise the models are read and put side by side; unknown values are None.
    cards: where to find the largest context too. trust_remote_code: as in `analyse`. Raises what reading a model raises, except
    after the listings were compared: then the error becomes a notice.
    """
    access = replace(access or Access(), headers=True)  # tensors are compared

    def side_by_side() -> SideBySide:
        models_side_by_side = _side_by_side(models, run, access, dtype, group_size, trust_remote_code=trust_remote_code)
        if not cards:
            return models_side_by_side
        return replace(models_side_by_side, reaches=_reaches(models_side_by_side.reports, run, cards))

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
    compared = zip(reports[1:], tensors[1:], strict=True)
    return SideBySide(
        reports=tuple(reports),
        memories=tuple(memories),
        run=replace(run, attention=_kernels(memories) or run.attention),
        config=config_rows(
            [report.written for report in reports],
            [report.release.missing_keys if report.release else () for report in reports],
        ),
        facts=fact_rows(reports, memories, tokens=run.prompt_tokens, batch=run.batch),
        tensors=tuple(_changes(reports[0], tensors[0], report, named) for report, named in compared),
    )


def _kernels(memories: Sequence[MemoryReport | None]) -> str:
    """The kernels that the models are predicted with."""
    return ", ".join(dict.fromkeys(memory.run.attention for memory in memories if memory is not None))


def _reaches(reports: Sequence[Report], run: Run, cards: Sequence[Gpu]) -> tuple[tuple[CardReach, ...] | None, ...]:
    """Each model on each card: the requested context, and the usual ones up to the longest limit of any model."""
    from ..fitting.search import reach

    limits = [report.spec.context_tokens for report in reports if report.design is not None]
    longest = max((limit for limit in limits if limit is not None), default=0)
    contexts = sorted({run.prompt_tokens, *(tokens for tokens in REACHED_CONTEXTS if tokens <= longest)})

    def on_cards(report: Report) -> tuple[CardReach, ...] | None:
        try:
            return tuple(reach(report, run, card, contexts) for card in cards)
        except QwenInspectError:
            return None

    return tuple(on_cards(report) for report in reports)


def _memory(report: Report, run: Run) -> tuple[Report, MemoryReport | None]:
    """The report with the notices of its prediction, and the prediction; None if there is none."""
    try:
        memory = predict(report, run)
    except QwenInspectError as error:
        return replace(report, notices=(*report.notices, Message("compare_no_memory", reason=error.message))), None
    return memory.report, memory


Named = tuple[tuple[Tensor, ...], Origin]


def _tensors(checkpoint: Checkpoint, report: Report, *, trust_remote_code: bool) -> Named | None:
    """A model's tensors and their origin: as stored, with the adapter's; else of a release's files; else of the design."""
    if checkpoint.tensors is not None:
        own = () if checkpoint.adapter is None else checkpoint.adapter.tensors
        return (*checkpoint.tensors, *own), "stored"
    if report.design is None or report.design.quantised is not None or report.design.unread is not None:
        return None
    config = report.config or {}
    architecture = known_architecture(config, code=code_of(checkpoint, config) if trust_remote_code else None)
    form = architecture.stored_form
    files = predicted_files(report.tree, form, checkpoint.release, architecture.prediction_layers)
    return files or tuple(part for tensor in each_tensor(report.tree) for part in form(tensor)), "theory"


def _changes(base: Report, before: Named | None, other: Report, after: Named | None) -> TensorChanges | None:
    """What changed between two models. If either side is theory, which has no tied copies, both omit them."""
    if before is None or after is None:
        return None
    left, right = before[0], after[0]
    if "theory" in (before[1], after[1]):
        trees = [report.tree for report in (base, other) if report.design is not None]
        copies = {name for tree in trees for name, _ in tied_tensors(tree)}
        owned = {tensor.name for tree in trees for tensor in each_tensor(tree)}
        left, right = (tuple(tensor for tensor in side if tensor.name not in copies - owned) for side in (left, right))
    return tensor_changes(left, right, base_origin=before[1], origin=after[1])


def compare_files(left: str, right: str, *, access: Access | None = None) -> FilesComparison:
    """Whether two hubs hold the same files, by the SHA-256 of their listings: one request each."""
    refs = resolve(left), resolve(right)
    listings = [{file.name: file for file in listing.files} for listing in list_files(refs, access or Access())]
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
