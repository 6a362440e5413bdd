"""A model's whole report: what it is, the memory of its runs, and advice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ..checkpoint import Tensor
from ..errors import UnsupportedError, UsageError
from ..fitting.advice import limits, savings
from ..loaders import gpus
from ..loaders.kept_measurement import read_measurement
from ..loaders.resolve import Access
from ..media.stops import image_stops
from ..predicting.predict import predict
from ..results.cache import Workload
from ..results.fit import Gpu
from ..results.measurement import KeptMeasurement
from ..results.memory import Run
from ..results.model import Report
from ..results.whole import Advice, ReportRequest, WholeReport
from ..structure.inspect import inspect
from ..tracing import versions
from ..values import replace
from .documents import file_name, sha256_of

PROMPTS = (2048, 8192, 32_768)


def compiled(request: ReportRequest, access: Access, *, trust_remote_code: bool = False) -> WholeReport:
    """The whole report of the requested model. Raises what `inspect`, `predict` and `gpus.find` raise."""
    cards = tuple(gpus.find(name.strip()) for name in request.gpus.split(",")) if request.gpus else None
    whole = _with_images(predicted(request, access, trust_remote_code=trust_remote_code), access)
    return replace(whole, advice=_advice(whole, tuple(gpus.common()) if cards is None else cards))


def _with_images(whole: WholeReport, access: Access) -> WholeReport:
    """With the images that the sliders of an HTML page go through."""
    if whole.request.form != "html" or not whole.memory:
        return whole
    first, *others = whole.memory
    return replace(whole, memory=(replace(first, images=image_stops(whole.report, access)), *others))


def predicted(request: ReportRequest, access: Access, *, trust_remote_code: bool = False) -> WholeReport:
    """The report without advice."""
    # Refused before the model is read.
    measured = [read_measurement(_relative(path)) for path in request.measured]
    report = inspect(
        _relative(request.model),
        source=request.source,
        revision=request.revision,
        file=request.file,
        access=access,
        predict_files=True,
        instantiate=request.instantiate,
        workload=Workload(batch=request.batch, context_tokens=request.context_tokens),
        trust_remote_code=trust_remote_code,
    )
    if report.ref.source == "local" and os.path.isabs(report.ref.id):
        report = replace(report, ref=replace(report.ref, id=file_name(report.ref.id)))
    if report.settled and report.cache.source_bytes_per_token and report.cache.source_tokens is None:
        refusal = UnsupportedError("source_tokens_unknown")  # a report is of no source
        report = replace(report, design=replace(report.known, attention=None, cache=None, cache_refusal=refusal))
    unknown = report.known.unread is not None and report.tensors is None  # not even the weights' bytes are known
    return WholeReport(
        request=replace(
            request, model=_relative(request.model), measured=tuple(_relative(path) for path in request.measured)
        ),
        name=file_name(report.ref.id),
        report=report,
        memory=() if unknown else tuple(predict(report, _run(request, tokens)) for tokens in _prompts(report, request)),
        config_sha256=sha256_of(json.dumps(report.written, sort_keys=True, separators=(",", ":"))),
        tensors_sha256=_tensors_digest(report.tensors) if report.tensors_origin == "stored" else None,
        built_by=versions() if request.instantiate else None,
        measured=tuple(map(_of_model, measured, request.measured, [report] * len(measured))),
    )


def _advice(whole: WholeReport, cards: tuple[Gpu, ...]) -> Advice | None:
    """On the requested prompt, else the middle one: how far it goes on each card; on the longest: what changes save."""
    if not whole.memory:
        return None
    requested = [memory for memory in whole.memory if memory.run.prompt_tokens == whole.request.context_tokens]
    middle, longest = (requested or whole.memory)[len(requested or whole.memory) // 2], whole.memory[-1]
    return Advice(
        run=middle.run, limits=limits(whole.memory, middle.run, cards), saving_run=longest.run, savings=savings(longest)
    )


def _of_model(kept: KeptMeasurement, path: str, report: Report) -> KeptMeasurement:
    """The measurement read from `path`; UsageError if it is of a model with another class, dtype or weight bytes."""
    spec = report.spec
    weights = next((difference.predicted for difference in kept.differences if difference.term == "weights"), None)
    measured = {"class_name": kept.class_name, "dtype": kept.dtype, "bytes": weights}
    expected = {
        "class_name": spec.class_name,
        "dtype": str(spec.dtype),
        "bytes": sum(report.known.loaded_bytes),
    }
    if measured != expected:
        expected_values = {f"expected_{name}": value for name, value in expected.items()}
        raise UsageError("measured_of_another", path=path, **{**measured, "bytes": weights or 0}, **expected_values)
    return kept


def _relative(model: str) -> str:
    """An absolute path below the working directory made relative, so that a report is the same on every machine."""
    if not os.path.isabs(model):
        return model
    relative = os.path.relpath(model)
    return model if relative.startswith(os.pardir) else relative


def _prompts(report: Report, request: ReportRequest) -> list[int]:
    """The usual prompt lengths within the model's limit, and the requested one; half the limit if there is neither."""
    limit = report.spec.context_tokens
    usual = [tokens for tokens in PROMPTS if limit is None or tokens + request.new_tokens <= limit]
    requested = [] if request.context_tokens is None else [request.context_tokens]
    return sorted({*usual, *requested}) or [max(1, (limit or 2) // 2)]


def _run(request: ReportRequest, prompt_tokens: int) -> Run:
    return Run(
        mode="generate",
        batch=request.batch,
        prompt_tokens=prompt_tokens,
        new_tokens=request.new_tokens,
        loader="warmup",
        gpu="sm_80",
    )


def _tensors_digest(tensors: Sequence[Tensor] | None) -> str:
    rows = sorted((tensor.name, tensor.dtype.code, tensor.shape) for tensor in tensors or ())
    return sha256_of(json.dumps(rows))
