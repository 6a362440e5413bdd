"""The flow, one screen: resolve -> load -> analyse -> Report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..architectures import FAMILIES, Architecture, architecture_of
from ..checkpoint import Checkpoint, ModelRef, Tensor
from ..declarations import KEY, settled
from ..errors import MalformedError, NotFoundError, QwenInspectError, UnavailableError, UnsupportedError
from ..language import Message
from ..loaders.resolve import DEFAULT_MODEL, Access, load, resolve
from ..results.attention import AttentionReport
from ..results.cache import CacheReport, Workload
from ..results.counts import Check, ParameterCounts
from ..results.model import Design, Report
from ..spec import ModelSpec, Module, each_tensor, tied_tensors
from .accounting import StoredForm, components, predicted_elements, predicted_files
from .attention import attention_report
from .engine_cache import checkpoint_format, engine_caches, state_dtypes
from .kv_cache import cache_report, read_formats
from .reconcile import against_files, against_instantiated, contradictions, copies

if TYPE_CHECKING:
    from ..architectures.generic import Generic
    from ..results.listing import CatalogEntry
    from .packing import Packing

DEFAULT_WORKLOAD = Workload()


def inspect(
    model: str = DEFAULT_MODEL,
    *,
    source: str = "auto",
    revision: str | None = None,
    file: str | None = None,
    access: Access | None = None,
    require_design: bool = True,
    predict_files: bool = False,
    instantiate: bool = False,
    expected_parameters: int | None = None,
    batch: int = 1,
    context: int | None = None,
    cache_format: str = "auto",
    ranks: int = 1,
    dtype: str | None = None,
    group_size: int | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Everything known about `model` without its weights.

    model: a directory, a file, or ORG/NAME on a hub or in the catalog. file: one of several GGUF files there.
    access: offline, partial, time limits, progress.
    require_design: refuse an architecture that is not known; otherwise report what is stored and say why there is no more.
    predict_files: where no file can be read, list the tensors that a release's files hold.
    instantiate: also build the model on the meta device (needs the torch extra). expected_parameters: a count from
    elsewhere to explain. dtype: parameters in another dtype than the configuration's, or quantised by a scheme of that name,
    of `group_size` numbers a group. batch, context, cache_format, ranks: as in `Workload`. trust_remote_code: run the code of a
    local directory whose class transformers has not.
    """
    checkpoint = load(resolve(model, source=source, revision=revision, file=file), access or Access())
    if dtype is not None or group_size is not None:
        from .stored import in_dtype

        checkpoint = in_dtype(checkpoint, dtype, group_size)
    return analyse(
        checkpoint,
        require_design=require_design,
        predict_files=predict_files,
        instantiate=instantiate,
        expected_parameters=expected_parameters,
        workload=Workload(batch=batch, context_tokens=context, cache_format=cache_format, ranks=ranks),
        trust_remote_code=trust_remote_code,
    )


def models() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog with what follows from its configuration."""
    from ..loaders import catalog
    from ..results.listing import CatalogEntry

    known = catalog.entries()
    found = {name: catalog.checkpoint(ModelRef(source="catalog", id=name), known) for name in known}
    return tuple(
        CatalogEntry(id=name, design=analyse(checkpoint).known, release=checkpoint.release)
        for name, checkpoint in found.items()
    )


def analyse(
    checkpoint: Checkpoint,
    *,
    require_design: bool = True,
    predict_files: bool = False,
    instantiate: bool = False,
    expected_parameters: int | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
    trust_remote_code: bool = False,
) -> Report:
    """A checkpoint -> Report."""
    written, checkpoint = checkpoint.config, settled(checkpoint)
    notices, tensors, origin = checkpoint.notices, checkpoint.tensors, "stored"
    design, refusal = None, None
    if checkpoint.adapter is not None and predict_files and not require_design:
        tensors = checkpoint.adapter.tensors  # what the repository itself stores
    try:
        config = _config(checkpoint)
        architecture = architecture_of(config, code=_code(checkpoint, config) if trust_remote_code else None)
        if (generic := _built(architecture)) is not None:
            notices += (generic.witness,)
            architecture = generic if tensors is None else generic.for_files(tensors)
        spec = architecture.read_spec(config)
        tree = architecture.module_tree(spec)
        form, packing = architecture.stored_form, None
        unread: QwenInspectError | None = None
        if checkpoint.gguf or KEY in config:
            from ..architectures.gguf import stored_form as gguf_form
            from .stored import packing_of

            form = gguf_form if checkpoint.gguf else form
            try:
                packing = packing_of(config, tree, form, tensors, in_blocks=checkpoint.gguf)
            except UnsupportedError as error:  # all that does not depend on it stands
                unread = error
            notices += _cache_notices(config, spec)
    except (UnsupportedError, NotFoundError, MalformedError, UnavailableError) as error:
        if require_design and tensors is not None:
            raise type(error)("refused_though_stored", reason=error.message) from None
        if require_design or (tensors is None and checkpoint.config is None):
            raise
        notices += (Message("no_design", reason=error.message),)
        refusal = error
    else:
        prediction = architecture.prediction_layers(spec)
        if tensors is None and predict_files and unread is None:
            origin = "theory"
            release = checkpoint.release
            if packing is not None and release is not None:
                # The dense files' own ways are not those of quantised ones.
                release = replace(release, experts_fused=False, float32=())
            tensors = predicted_files(tree, form if packing is None else packing.stored_form, release, prediction)
        checks = _checks(
            checkpoint,
            config,
            architecture,
            form,
            spec,
            tree,
            prediction,
            packing,
            None if unread else tensors,
            origin,
            instantiate,
            expected_parameters,
        )
        if checks and checkpoint.tensors is not None:
            unread = contradictions(checks[0]) or unread
            if unread is None and checks[0].unexplained:
                notices += (
                    Message("files_differ", count=len(checks[0].unexplained), name=checks[0].unexplained[0].name),
                )
        if unread is not None:
            notices += (Message("weights_unread", reason=unread.message),)
        named = checkpoint
        if checkpoint.gguf:
            from .stored import under_class_names

            named = under_class_names(checkpoint, tree)
        design = _design(named, architecture, spec, tree, prediction, checks, workload)
        if unread is not None:
            design = _without_bytes(design, unread)
        elif packing is not None:
            from .stored import quantised

            design = quantised(design, packing, config)
        if checkpoint.adapter is not None and unread is None:
            from .stored import with_adapter

            try:
                design = with_adapter(design, checkpoint.adapter, form, dense=packing is None)
            except (UnsupportedError, MalformedError) as error:
                if require_design and isinstance(error, MalformedError):
                    raise
                notices += (Message("adapter_not_predicted", reason=error.message),)
    return Report(
        ref=checkpoint.ref,
        config=checkpoint.config if design is None else config,
        written=written if design is None or not checkpoint.gguf else config,
        tensors=tensors,
        tensors_origin=origin if tensors is not None else None,
        files=checkpoint.files,
        release=checkpoint.release,
        workload=workload,
        notices=notices,
        design=design,
        refusal=refusal,
    )


def _cache_notices(config: Mapping[str, Any], spec: ModelSpec) -> tuple[Message, ...]:
    """That the checkpoint names a format for the KV cache, which vLLM takes and transformers does not read."""
    try:
        named = checkpoint_format(config, "auto")
    except UnsupportedError as error:
        return (error.message,)
    return () if named == "auto" else (Message("cache_declared", format=named, dtype=spec.dtype),)


def _without_bytes(design: Design, unread: QwenInspectError) -> Design:
    """The design of a model whose files hold its weights in a way that is not known: no bytes, and no count by the files."""
    return replace(
        design,
        unread=unread,
        parameters=replace(design.parameters, unique=None, stored_predicted=None),
        components=tuple(replace(part, size_bytes=None) for part in design.components),
    )


def _code(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Path | None:
    """The directory of a local model; UnsupportedError where code would have to come from elsewhere."""
    if checkpoint.ref.path is not None and checkpoint.ref.source == "local":
        path = checkpoint.ref.path
        return path if path.is_dir() else path.parent
    if isinstance(config.get("auto_map"), Mapping) and config.get("model_type") not in FAMILIES:
        raise UnsupportedError("generic_own_code_local", found=str(config.get("model_type")))
    return None


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.config is None and checkpoint.adapter is not None:
        raise NotFoundError("adapter_without_base", base=checkpoint.adapter.base or "–")
    if checkpoint.config is None:
        raise NotFoundError("no_config", path=checkpoint.ref.id)
    if checkpoint.gguf:
        from ..architectures import gguf

        return gguf.configuration(checkpoint.config, checkpoint.tensors or ())
    return checkpoint.config


def _built(architecture: Architecture) -> Generic | None:
    """What transformers built, where the architecture is not of a family that is described here."""
    if isinstance(architecture, ModuleType):
        return None
    from ..architectures.generic import Generic

    assert isinstance(architecture, Generic)
    return architecture


def _checks(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    architecture: Architecture,
    form: StoredForm,
    spec: ModelSpec,
    tree: Module,
    prediction: tuple[Tensor, ...],
    packing: Packing | None,
    files: Sequence[Tensor] | None,
    origin: str,
    instantiate: bool,
    expected_parameters: int | None,
) -> tuple[Check, ...]:
    """Every two witnesses that are there, held against each other: theory, transformers, the files, a claimed count."""
    theory, tied = tuple(each_tensor(tree)), dict(tied_tensors(tree))
    generic = _built(architecture)
    if generic is not None:
        tied = dict(generic.aliases)

    def against(built: Sequence[Tensor], witness: str) -> list[Check]:
        if files is None:
            return []
        return [
            against_files(
                built,
                files,
                witness=witness,
                files_witness="stored" if origin == "stored" else "release",
                tied=tied,
                stored_form=form,
                missing_files=checkpoint.missing_files,
                packing=packing,
                ignored=tuple({f"{tensor.name.partition('.')[0]}." for tensor in prediction}),
                buffers=generic.persistent if generic else (),
                unloaded=generic.unloaded if generic else (),
            )
        ]

    checks = against(theory, "theory")
    if instantiate and generic is None:  # whose theory is what transformers builds
        from ..tracing.instantiate import instantiate as build

        built = build(spec, config).tensors
        checks += [against_instantiated(theory, built), *against(built, "instantiated")]
    if expected_parameters is not None:
        from .miscounts import against_claim

        checks.append(against_claim(spec, tree, expected_parameters, prediction, packing))
    return tuple(checks)


def _design(
    checkpoint: Checkpoint,
    architecture: Architecture,
    spec: ModelSpec,
    tree: Module,
    prediction: tuple[Tensor, ...],
    checks: tuple[Check, ...],
    workload: Workload,
) -> Design:
    attention, cache, refusal = _attention(checkpoint, architecture, spec, workload)
    tokens = workload.context_tokens or spec.context_tokens
    parts = components(tree)
    stored = None if checks == () or checkpoint.tensors is None else checks[0].right_parameters
    return Design(
        spec=spec,
        tree=tree,
        parameters=ParameterCounts(
            theory=tree.parameters,
            instantiated=tree.parameters
            if spec.built
            else next((check.right_parameters for check in checks if check.right == "instantiated"), None),
            stored=stored,
            stored_predicted=predicted_elements(tree, checkpoint.release, prediction),
            unique=tree.parameters if stored is None else stored - copies(checks[0]),
            active=tree.active_parameters
            if (generic := _built(architecture)) is None or generic.active_is_known(tree)
            else None,
            embedding=sum(part.parameters for part in parts if part.name == "embedding"),
            head=sum(part.parameters for part in parts if part.name == "lm_head"),
            buffers=tree.buffer_elements,
        ),
        components=parts,
        checks=checks,
        attention=attention,
        cache=cache,
        cache_refusal=refusal,
        engines=()
        if tokens is None or attention is None or (spec.built and len(attention.softmax) < len(attention.layers))
        else engine_caches(
            attention.layers,
            spec.dtype,
            states=state_dtypes(checkpoint.config or {}, spec.dtype),
            tokens=tokens,
            batch=workload.batch,
            ranks=workload.ranks,
        ),
    )


def _attention(
    checkpoint: Checkpoint, architecture: Architecture, spec: ModelSpec, workload: Workload
) -> tuple[AttentionReport | None, CacheReport | None, UnsupportedError | None]:
    """Each layer's attention and cache: by the configuration and the files, or as transformers runs it; or why not."""
    formats = read_formats(workload.cache_format, spec.dtype)
    if (generic := _built(architecture)) is None:
        attention = attention_report(spec, checkpoint.tensors)
        return attention, cache_report(attention.layers, *formats, spec.dtype), None
    from ..tracing.cached import found_cache

    try:
        attention, cache = found_cache(generic.model, spec.dtype)
        if formats != read_formats("auto", spec.dtype):
            cache = cache_report(attention.layers, *formats, spec.dtype)
    except UnsupportedError as error:
        return None, None, error
    return attention, cache, None
