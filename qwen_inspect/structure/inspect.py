"""From a model's name to its Report: resolve, load, analyse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..architectures import FAMILIES, Architecture, StoredForm, architecture_of
from ..architectures.reading import is_described
from ..checkpoint import Checkpoint, DType, ModelRef, Origin, Tensor
from ..declarations import KEY, declares_quantisation, settled, undeclared
from ..errors import MalformedError, NotFoundError, QwenInspectError, UnavailableError, UnsupportedError, UsageError
from ..language import Message
from ..loaders.resolve import DEFAULT_MODEL, Access, load, resolve
from ..results.attention import AttentionReport
from ..results.cache import CacheLayer, CacheReport, Workload
from ..results.counts import Check, ParameterCounts
from ..results.model import Design, Report
from ..spec import ModelSpec, each_tensor
from ..typed import TYPE_CHECKING, Any, TypedDict
from ..values import dataclass, field, replace
from .accounting import components, predicted_elements, predicted_files
from .attention import attention_report
from .kv_cache import CacheFormat, cache_report, checkpoint_format, read_formats
from .reconcile import against_files, against_instantiated, contradictions, copies

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from ..results.listing import CatalogEntry
    from .packing import Packing

DEFAULT_WORKLOAD = Workload()


class Analysis(TypedDict, total=False):
    """Keyword arguments of `analyse`."""

    require_design: bool
    predict_files: bool
    count_files: bool
    instantiate: bool
    expected_parameters: int | None
    workload: Workload
    trust_remote_code: bool


def inspect(
    model: str = DEFAULT_MODEL,
    *,
    source: str = "auto",
    revision: str | None = None,
    file: str | None = None,
    dtype: str | None = None,
    dense_dtype: str | None = None,
    group_size: int | None = None,
    access: Access | None = None,
    **analysis: Unpack[Analysis],
) -> Report:
    """Everything that can be known about `model` without reading its weights.

    model: a directory, a file, or ORG/NAME on a hub or in the catalog. file: which GGUF file, if there are several. dtype: a
    dtype in place of the configuration's, or the name of a quantisation scheme with groups of `group_size` numbers. dense_dtype:
    used if `dtype` is None and the weights are not quantised. access: offline, partial, time limits, progress.
    analysis: see `analyse`.
    """
    ref, access = resolve(model, source=source, revision=revision, file=file), access or Access()
    checkpoint = load(ref, access)
    try:
        return _analysed(checkpoint, dtype, dense_dtype, group_size, **analysis)
    except _NotVouchedFor:
        checkpoint = load(ref, replace(access, headers=True, refresh=False))
        return _analysed(checkpoint, dtype, dense_dtype, group_size, **analysis)


class _NotVouchedFor(Exception):
    """What the hub counts is not what the configuration implies, so that the headers must be read."""


def _headers_unread(checkpoint: Checkpoint) -> bool:
    return checkpoint.tensors is None and checkpoint.hub_count is not None


def _analysed(
    checkpoint: Checkpoint,
    dtype: str | None,
    dense_dtype: str | None,
    group_size: int | None,
    **analysis: Unpack[Analysis],
) -> Report:
    if dtype is None and not checkpoint.gguf and KEY not in (settled(checkpoint).config or {}):
        dtype = dense_dtype
    if dtype is not None or group_size is not None:
        from .stored import in_dtype

        checkpoint = in_dtype(checkpoint, dtype, group_size)
    return analyse(checkpoint, **analysis)


def analyse(
    checkpoint: Checkpoint,
    *,
    require_design: bool = True,
    predict_files: bool = False,
    count_files: bool = False,
    instantiate: bool = False,
    expected_parameters: int | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
    trust_remote_code: bool = False,
) -> Report:
    """A checkpoint -> Report.

    require_design: refuse an unknown architecture; otherwise report what is stored and say why there is no design.
    predict_files: if no file can be read, list the tensors that a release's files hold; count_files: compare with them, without
    a list, for which one expert of each layer suffices. instantiate: also build the model on
    the meta device (needs the torch extra). expected_parameters: a published count to explain. workload: for the size of the
    cache. trust_remote_code: run the code in a local directory, for a class that transformers lacks.
    """
    written, checkpoint = checkpoint.config, settled(checkpoint)
    files = checkpoint.tensors
    if checkpoint.adapter is not None and predict_files and not require_design:
        files = checkpoint.adapter.tensors  # what the repository itself stores
    report = Report(
        ref=checkpoint.ref,
        config=checkpoint.config,
        written=written,
        tensors=files,
        tensors_origin=None if files is None else "stored",
        files=checkpoint.files,
        release=checkpoint.release,
        workload=workload,
        notices=checkpoint.notices,
        design=None,
        hub_count=checkpoint.hub_count,
        served=checkpoint.served,
    )
    try:
        subject = _subject(checkpoint, files, trust_remote_code=trust_remote_code)
    except (UnsupportedError, NotFoundError, MalformedError, UnavailableError) as error:
        if _headers_unread(checkpoint):
            raise _NotVouchedFor from None
        if require_design and files is not None:
            raise type(error)("refused_though_stored", reason=error.message) from None
        if require_design or (checkpoint.config is None and files is None):
            raise
        notices = (*report.notices, Message("no_design", reason=error.message))
        return replace(report, notices=notices, refusal=error)
    if _headers_unread(checkpoint):
        from .counted import vouched

        notice = None if subject.unread else vouched(checkpoint, subject.architecture, subject.packing)
        if notice is None:
            raise _NotVouchedFor
        subject = subject.noting(notice)
    elif files is None and (predict_files or count_files):
        subject = _as_released(subject if predict_files else _of_first_experts(subject))
    checks = _checks(subject, instantiate=instantiate, expected_parameters=expected_parameters)
    subject = _contradicted(subject, checks)
    design = _with_stored_bytes(_design(subject, checks, workload), subject)
    subject, design = _with_adapter(subject, design, required=require_design)
    return replace(
        report,
        config=subject.config,
        written=subject.config if checkpoint.gguf else written,
        tensors=None if subject.expert_counts else subject.files,
        tensors_origin=None if subject.files is None or subject.expert_counts else subject.origin,
        notices=(*report.notices, *subject.notices),
        design=design,
    )


def in_scheme(report: Report, dtype: str) -> Report:
    """The same model with its weights in `dtype`: a dtype or a scheme's name, as for --dtype."""
    from .stored import in_dtype

    stored = Checkpoint(ref=report.ref, config=report.config, tensors=report.tensors, release=report.release)
    return analyse(in_dtype(stored, dtype, None), workload=report.workload)


def models() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog with its design. How quantised files are stored takes seconds to work out, and is left open."""
    from ..loaders import catalog
    from ..results.listing import CatalogEntry

    entries = catalog.entries()
    checkpoints = {name: catalog.checkpoint(ModelRef(source="catalog", id=name), entries) for name in entries}
    listed = []
    for name, checkpoint in checkpoints.items():
        design = analyse(replace(checkpoint, config=undeclared(checkpoint.config or {}))).known
        if declares_quantisation(checkpoint.config):
            design = replace(design, parameters=replace(design.parameters, stored_predicted=None))
        listed.append(CatalogEntry(id=name, design=design, release=checkpoint.release))
    return tuple(listed)


# --- the steps of `analyse`


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A checkpoint of a known architecture, and what the steps so far know of its files.

    files: tensors as stored, or as a release's layout predicts them (origin "theory"). stored_form: the architecture's, or
    GGUF's. packing: how quantised weights are stored. unread: why the bytes of the weights are unknown. expert_counts: by the
    name of a matrix, how many experts it stands for; `files` and the stored forms then lack all experts but the first.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    architecture: Architecture
    files: tuple[Tensor, ...] | None
    origin: Origin = "stored"
    stored_form: StoredForm
    packing: Packing | None = None
    unread: QwenInspectError | None = None
    expert_counts: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[Message, ...] = ()

    def noting(self, message: Message) -> _Subject:
        return replace(self, notices=(*self.notices, message))


def _subject(checkpoint: Checkpoint, files: tuple[Tensor, ...] | None, *, trust_remote_code: bool) -> _Subject:
    """The checkpoint with its architecture and how its weights are stored."""
    config, architecture = _of_gguf(checkpoint) if checkpoint.gguf else _of_config(checkpoint, files, trust_remote_code)
    subject = _Subject(
        checkpoint=checkpoint,
        config=config,
        architecture=architecture,
        files=files,
        stored_form=architecture.stored_form,
        notices=architecture.notices,
    )
    if not checkpoint.gguf and KEY not in config:
        return subject
    from .experts import remembered
    from .stored import packing_of

    form = remembered(architecture.stored_form)
    packing, unread = None, None
    try:
        packing = packing_of(config, architecture.tree, form, files, in_blocks=checkpoint.gguf)
    except UnsupportedError as error:  # the rest of the design does not depend on it
        unread = error
    notices = (*architecture.notices, *_cache_notices(config, architecture.spec))
    return replace(subject, stored_form=form, packing=packing, unread=unread, notices=notices)


def _of_config(
    checkpoint: Checkpoint, files: tuple[Tensor, ...] | None, trust_remote_code: bool
) -> tuple[Mapping[str, Any], Architecture]:
    config = _config(checkpoint)
    code = code_of(checkpoint, config) if trust_remote_code else None
    return config, _architecture(config, files, code)


def _architecture(config: Mapping[str, Any], files: Sequence[Tensor] | None, code: Path | None = None) -> Architecture:
    """`known_architecture`, whose cache no class that is described here needs."""
    if isinstance(config.get("model_type"), str) and is_described(config):
        return architecture_of(config, stored=files)
    from .kept_design import known_architecture

    return known_architecture(config, stored=files, code=code)


def _of_gguf(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Architecture]:
    """The configuration and the design of a GGUF file: of its family if that is described here, else the file's own."""
    from ..architectures import gguf

    metadata, tensors = checkpoint.config or {}, checkpoint.tensors or ()
    gguf.check_model(metadata, tensors)
    try:
        config = gguf.configuration(metadata, tensors)
        return config, replace(_architecture(config, tensors), stored_form=gguf.stored_form)
    except UnsupportedError:
        from ..architectures.gguf_design import architecture as own_design
        from ..architectures.gguf_families import family_design

        if (family := family_design(metadata, tensors)) is not None:
            return family
        return gguf.own_configuration(metadata), own_design(metadata, tensors)


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.config is None and checkpoint.adapter is not None:
        raise NotFoundError("adapter_without_base", base=checkpoint.adapter.base or "–")
    if checkpoint.config is None:
        raise NotFoundError("no_config", path=checkpoint.ref.id)
    return checkpoint.config


def code_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Path | None:
    """The directory of a local model's code; UnsupportedError if the code would have to be downloaded."""
    if checkpoint.ref.path is not None and checkpoint.ref.source == "local":
        path = checkpoint.ref.path
        return path if path.is_dir() else path.parent
    if isinstance(config.get("auto_map"), Mapping) and config.get("model_type") not in FAMILIES:
        raise UnsupportedError("generic_own_code_local", found=str(config.get("model_type")))
    return None


def _cache_notices(config: Mapping[str, Any], spec: ModelSpec) -> tuple[Message, ...]:
    """A notice if the checkpoint names a KV-cache format, which vLLM uses and transformers ignores."""
    try:
        declared = checkpoint_format(config, "auto")
    except UnsupportedError as error:
        return (error.message,)
    return () if declared == "auto" else (Message("cache_declared", format=declared, dtype=spec.dtype),)


def _of_first_experts(subject: _Subject) -> _Subject:
    """The subject with the first expert in place of all; unchanged if its experts are not alike or not stored singly."""
    from .experts import expert_counts, of_first_experts, remembered

    packing, form, architecture = subject.packing, subject.stored_form, subject.architecture
    if packing is not None and not packing.experts:
        return subject
    tensors = [*each_tensor(architecture.tree), *architecture.prediction_layers]
    counts = expert_counts(tensors, form if packing is None else packing.stored_form)
    if packing is not None:
        packing = replace(packing, form=remembered(of_first_experts(packing.form)))
    return replace(subject, expert_counts=counts, stored_form=remembered(of_first_experts(form)), packing=packing)


def _as_released(subject: _Subject) -> _Subject:
    """The subject with the tensors that a release's files hold; unchanged if it is unknown how they are stored."""
    if subject.unread is not None:
        return subject
    release, form = subject.checkpoint.release, subject.stored_form
    if subject.packing is not None:
        form = subject.packing.stored_form
        if release is not None:  # these two describe dense files, not quantised ones
            release = replace(release, experts_fused=False, float32=())
    tree, ahead = subject.architecture.tree, subject.architecture.prediction_layers
    return replace(subject, files=predicted_files(tree, form, release, ahead), origin="theory")


def _checks(subject: _Subject, *, instantiate: bool, expected_parameters: int | None) -> tuple[Check, ...]:
    """Checks of each available pair: theory, transformers' instance, the files, a claimed count."""
    architecture, files = subject.architecture, subject.files
    theory = tuple(each_tensor(architecture.tree))

    def against(witness_tensors: Sequence[Tensor], witness: str) -> Iterator[Check]:
        if files is None or subject.unread is not None or architecture.spec.from_file:
            return
        yield against_files(
            witness_tensors,
            files,
            witness=witness,
            files_witness="stored" if subject.origin == "stored" else "release",
            tied=architecture.tied,
            stored_form=subject.stored_form,
            missing_files=subject.checkpoint.missing_files,
            packing=subject.packing,
            ignored=tuple({f"{tensor.name.partition('.')[0]}." for tensor in architecture.prediction_layers}),
            buffers=architecture.buffers,
            unloaded=architecture.unloaded,
            times=subject.expert_counts,
        )

    checks = [*against(theory, "theory")]
    if instantiate and architecture.spec.from_file:
        raise UnsupportedError("gguf_not_instantiated", found=architecture.spec.family)
    if instantiate and not architecture.spec.from_transformers:  # else theory is what transformers builds
        from ..tracing.instantiate import instantiate as build

        tensors = build(architecture.spec, subject.config).tensors
        checks += [against_instantiated(theory, tensors), *against(tensors, "instantiated")]
    if expected_parameters is not None:
        from .miscounts import against_claim

        spec, ahead = architecture.spec, architecture.prediction_layers
        checks.append(against_claim(spec, architecture.tree, expected_parameters, ahead, subject.packing))
    return tuple(checks)


def _contradicted(subject: _Subject, checks: Sequence[Check]) -> _Subject:
    """The subject marked `unread` if its files contradict the configuration; a notice if they merely differ."""
    unread = subject.unread
    if checks and subject.checkpoint.tensors is not None:
        unread = contradictions(checks[0]) or unread
        if unread is None and (unexplained := checks[0].unexplained):
            return subject.noting(Message("files_differ", count=len(unexplained), name=unexplained[0].name))
    if unread is None:
        return subject
    return replace(subject, unread=unread).noting(Message("weights_unread", reason=unread.message))


def _design(subject: _Subject, checks: tuple[Check, ...], workload: Workload) -> Design:
    architecture = subject.architecture
    spec, tree = architecture.spec, architecture.tree
    attention, cache, refusal = _attention(subject, workload)
    parts = components(tree)
    parameters = tree.parameters
    stored = None if checks == () or subject.checkpoint.tensors is None else checks[0].right_parameters
    if spec.from_file:
        stored = parameters
    instantiated = (check.right_parameters for check in checks if check.right == "instantiated")
    return Design(
        spec=spec,
        tree=tree,
        parameters=ParameterCounts(
            theory=parameters,
            instantiated=parameters if spec.from_transformers else next(instantiated, None),
            stored=stored,
            hub=None if subject.checkpoint.hub_count is None else subject.checkpoint.hub_count.total,
            stored_predicted=predicted_elements(tree, subject.checkpoint.release, architecture.prediction_layers),
            unique=parameters if not checks or stored is None else stored - copies(checks[0]),
            active=tree.active_parameters if architecture.active_is_known else None,
            embedding=sum(part.parameters for part in parts if part.name == "embedding"),
            head=sum(part.parameters for part in parts if part.name == "lm_head"),
            buffers=tree.buffer_elements,
        ),
        components=parts,
        checks=checks,
        attention=attention,
        cache=cache,
        cache_refusal=refusal,
    )


def _attention(
    subject: _Subject, workload: Workload
) -> tuple[AttentionReport | None, CacheReport | None, UnsupportedError | None]:
    """(attention, cache, refusal): from the configuration and the files, or as transformers runs the class."""
    architecture = subject.architecture
    spec, kept = architecture.spec, architecture.kept
    formats = read_formats(workload.cache_format, spec.dtype)
    if not spec.built:
        if workload.source_tokens is not None:
            raise UsageError("source_tokens_without_encoder")
        tensors = subject.checkpoint.tensors
        if subject.checkpoint.gguf and tensors is not None:
            from .stored import under_class_names

            tensors = under_class_names(tensors, architecture.tree)
        attention = attention_report(spec, tensors)
        return attention, cache_report(attention.layers, *formats, spec.dtype), None
    if kept is None:
        return None, None, architecture.cache_refusal
    attention = AttentionReport(by_config=tuple(layer for layer, _ in kept), by_shapes=None, findings=())
    layers = tuple(_with_source(layer, workload.source_tokens) for _, layer in kept)
    cache = CacheReport(dtype=str(spec.dtype), layers=layers)
    try:
        return attention, _in_formats(attention, cache, formats, spec.dtype), None
    except UnsupportedError as error:
        return None, None, error


def _with_source(layer: CacheLayer, source_tokens: int | None) -> CacheLayer:
    """The layer with the length of the source, unless the model fixes it; UsageError if it fixes another or reads none."""
    if source_tokens is None or layer.source_tokens == source_tokens:
        return layer
    if layer.source_tokens is not None:
        raise UsageError("source_tokens_fixed", tokens=layer.source_tokens)
    if not layer.source_bytes_per_token:
        raise UsageError("source_tokens_without_encoder")
    return replace(layer, source_tokens=source_tokens)


def _in_formats(
    attention: AttentionReport, cache: CacheReport, formats: tuple[CacheFormat, CacheFormat], dtype: DType
) -> CacheReport:
    """`cache`, which is in the model's dtype, with K and V in these formats."""
    if formats == read_formats("auto", dtype):
        return cache
    if cache.source_bytes_per_token:
        raise UnsupportedError("generic_cache_format", kind="cross-attention", format=formats[0].name)
    return cache_report(attention.layers, *formats, dtype)


def _with_stored_bytes(design: Design, subject: _Subject) -> Design:
    """The design with the bytes of its weights as stored; unknown, like the counts from the files, if they are unread."""
    if subject.unread is not None:
        return replace(
            design,
            unread=subject.unread,
            parameters=replace(design.parameters, unique=None, stored_predicted=None),
            components=tuple(replace(part, size_bytes=None) for part in design.components),
        )
    if subject.packing is None:
        return design
    from .stored import quantised

    return quantised(design, subject.packing, subject.config)


def _with_adapter(subject: _Subject, design: Design, *, required: bool) -> tuple[_Subject, Design]:
    """The design with what the checkpoint's adapter trains; a notice if that cannot be predicted for this base."""
    adapter = subject.checkpoint.adapter
    if adapter is None or subject.unread is not None:
        return subject, design
    from .stored import with_adapter

    try:
        return subject, with_adapter(design, adapter, subject.stored_form, dense=subject.packing is None)
    except (UnsupportedError, MalformedError) as error:
        if required and isinstance(error, MalformedError):
            raise
        return subject.noting(Message("adapter_not_predicted", reason=error.message)), design
