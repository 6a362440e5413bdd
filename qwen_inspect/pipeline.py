"""The flow, one screen: resolve -> load -> analyse -> Report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .analyzers.accounting import StoredForm, components, predicted_elements, predicted_files
from .analyzers.attention import attention_report
from .analyzers.kv_cache import cache_report, engine_caches, read_formats
from .analyzers.lora import adapter_weights, against_adapter, trained_tensors
from .analyzers.packing import Packing, as_stored, pack, packed_tree, weights_as_stored, weights_of
from .analyzers.reconcile import against_files, against_instantiated, copies
from .architectures import FAMILIES, Architecture, architecture_of, gguf
from .architectures.generic import Generic, active_is_known
from .architectures.lora import read_lora
from .architectures.quantised import PRESETS, preset, read_quantisation
from .checkpoint import Adapter, Checkpoint, ModelRef, Tensor
from .errors import MalformedError, NotFoundError, UnavailableError, UnsupportedError, UsageError
from .language import Message
from .loaders import catalog
from .loaders.hub import ListedFile
from .loaders.resolve import DEFAULT_MODEL, Access, list_files, load, resolve
from .quantisation import Quantisation
from .report import (
    AttentionReport,
    CacheReport,
    CatalogEntry,
    Check,
    Design,
    FilePair,
    FilesComparison,
    ParameterCounts,
    Report,
    Workload,
)
from .spec import ModelSpec, Module, each_tensor, tied_tensors

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
    checkpoint = in_dtype(
        load(resolve(model, source=source, revision=revision, file=file), access or Access()), dtype, group_size
    )
    return analyse(
        checkpoint,
        require_design=require_design,
        predict_files=predict_files,
        instantiate=instantiate,
        expected_parameters=expected_parameters,
        workload=Workload(batch=batch, context_tokens=context, cache_format=cache_format, ranks=ranks),
        trust_remote_code=trust_remote_code,
    )


def in_dtype(checkpoint: Checkpoint, dtype: str | None, group_size: int | None) -> Checkpoint:
    """The model with its parameters in `dtype`, dense or by a scheme's name: what is stored says nothing of that model."""
    if group_size is not None and dtype not in PRESETS:
        raise UsageError("group_size_without_scheme", known=", ".join(PRESETS))
    if dtype is None or checkpoint.config is None:
        return checkpoint
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    if dtype in PRESETS:
        config["quantization_config"] = preset(dtype, group_size)
    else:
        config = {**{key: value for key, value in config.items() if key != "dtype"}, "torch_dtype": dtype}
    requantised = config.get("quantization_config") != checkpoint.config.get("quantization_config")
    return replace(checkpoint, config=config, tensors=None if requantised else checkpoint.tensors)


def generate(
    report: Report,
    prompt: str,
    *,
    max_new_tokens: int = 32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    access: Access | None = None,
    show: Callable[[str], None] | None = None,
) -> Report:
    """`report` with the model's own answer to `prompt`: its weights are loaded, and fetched first where they must be.

    In the dtype that the report is for. show: told each piece of text as soon as it is there. Needs the torch extra.
    """
    from .analyzers.generation import check_prompt
    from .analyzers.generation import generate as run
    from .analyzers.loading import check_device
    from .loaders.weights import weights_directory

    check_prompt(prompt)
    check_device(device)
    directory = weights_directory(report.ref, access or Access(), with_code=trust_remote_code)
    generation = run(
        directory,
        report.spec,
        prompt,
        max_new_tokens=max_new_tokens,
        device=device,
        trust_remote_code=trust_remote_code,
        show=show,
    )
    return replace(report, generation=generation, notices=(*report.notices, *generation.notices))


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


def models() -> tuple[CatalogEntry, ...]:
    """Every model of the catalog with what follows from its configuration."""
    known = catalog.entries()
    return tuple(_catalog_entry(name, catalog.checkpoint(ModelRef(source="catalog", id=name), known)) for name in known)


def _catalog_entry(name: str, checkpoint: Checkpoint) -> CatalogEntry:
    design = analyse(checkpoint).known
    return CatalogEntry(id=name, design=design, release=checkpoint.release)


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
    notices, tensors, origin = checkpoint.notices, checkpoint.tensors, "stored"
    design, refusal = None, None
    if checkpoint.adapter is not None and predict_files and not require_design:
        tensors = checkpoint.adapter.tensors  # what the repository itself stores
    try:
        config = _config(checkpoint)
        architecture = architecture_of(config, code=_code(checkpoint, config) if trust_remote_code else None)
        if isinstance(architecture, Generic):
            notices += (architecture.witness,)
            architecture = architecture if tensors is None else architecture.for_files(tensors)
        spec = architecture.read_spec(config)
        tree = architecture.module_tree(spec)
        form = gguf.stored_form if checkpoint.gguf else architecture.stored_form
        quantisation = read_quantisation(config)
        packing = _packing(tree, form, quantisation, tensors, stored_in_blocks=checkpoint.gguf)
    except (UnsupportedError, NotFoundError, MalformedError, UnavailableError) as error:
        if require_design and tensors is not None:
            raise type(error)("refused_though_stored", reason=error.message) from None
        if require_design or (tensors is None and checkpoint.config is None):
            raise
        notices += (Message("no_design", reason=error.message),)
        refusal = error
    else:
        prediction = architecture.prediction_layers(spec)
        if tensors is None and predict_files:
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
            tensors,
            origin,
            instantiate,
            expected_parameters,
        )
        design = _design(_under_class_names(checkpoint, tree), architecture, spec, tree, prediction, checks, workload)
        if packing is not None:
            design = _quantised(design, quantisation, packing)
        if checkpoint.adapter is not None:
            try:
                design = _with_adapter(design, checkpoint.adapter, form, dense=packing is None)
            except (UnsupportedError, MalformedError) as error:
                if require_design and isinstance(error, MalformedError):
                    raise
                notices += (Message("adapter_not_predicted", reason=error.message),)
    return Report(
        ref=checkpoint.ref,
        config=checkpoint.config if design is None else config,
        tensors=tensors,
        tensors_origin=origin if tensors is not None else None,
        files=checkpoint.files,
        release=checkpoint.release,
        workload=workload,
        notices=notices,
        design=design,
        refusal=refusal,
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
        return gguf.configuration(checkpoint.config, checkpoint.tensors or ())
    return checkpoint.config


def _packing(
    tree: Module,
    form: StoredForm,
    quantisation: Quantisation | None,
    stored: Sequence[Tensor] | None,
    *,
    stored_in_blocks: bool,
) -> Packing | None:
    """How the weights are stored where that is not as they are built."""
    if stored_in_blocks:
        return as_stored(tree, form, stored or ())
    return None if quantisation is None else pack(tree, quantisation, form, stored)


def _under_class_names(checkpoint: Checkpoint, tree: Module) -> Checkpoint:
    """The checkpoint with the tensors of a GGUF file under the names that the modules have."""
    if not checkpoint.gguf or checkpoint.tensors is None:
        return checkpoint
    found = {tensor.name: tensor for tensor in checkpoint.tensors}
    names = [(tensor.name, gguf.stored_form(tensor)) for tensor in each_tensor(tree)]
    renamed = [replace(found[parts[0].name], name=name) for name, parts in names if parts[0].name in found]
    return replace(checkpoint, tensors=tuple(renamed))


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
    generic = architecture if isinstance(architecture, Generic) else None
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
        from .analyzers.instantiate import instantiate as build

        built = build(spec, config).tensors
        checks += [against_instantiated(theory, built), *against(built, "instantiated")]
    if expected_parameters is not None:
        from .analyzers.miscounts import against_claim

        checks.append(against_claim(spec, tree, expected_parameters, prediction))
    return tuple(checks)


def _quantised(design: Design, quantisation: Quantisation | None, packing: Packing) -> Design:
    """The design with the bytes of what is stored; its counts stay those of the parameters."""
    tree = packed_tree(design.tree, packing)
    return replace(
        design,
        tree=tree,
        # A release's layout is known of dense ones alone.
        parameters=replace(design.parameters, stored_predicted=None),
        components=components(tree),
        quantised=weights_as_stored(design.tree, tree, packing)
        if quantisation is None
        else weights_of(design.tree, tree, quantisation, packing),
        weights=tuple(part for tensor in each_tensor(design.tree) for part in packing.loaded(tensor)),
    )


def _with_adapter(design: Design, adapter: Adapter, form: StoredForm, *, dense: bool) -> Design:
    """The design of the base with what the adapter trains, and the check of that against what is stored."""
    lora = read_lora(adapter.config)
    trained = trained_tensors(design.tree, lora, form, adapter.tensors)
    return replace(
        design,
        checks=(*design.checks, against_adapter(trained, adapter.tensors)),
        adapter=adapter_weights(adapter, design.tree, trained, lora, mergeable=dense),
    )


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
            if not isinstance(architecture, Generic) or active_is_known(tree, architecture.model)
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
        else engine_caches(attention.layers, spec.dtype, tokens=tokens, batch=workload.batch, ranks=workload.ranks),
    )


def _attention(
    checkpoint: Checkpoint, architecture: Architecture, spec: ModelSpec, workload: Workload
) -> tuple[AttentionReport | None, CacheReport | None, UnsupportedError | None]:
    """Each layer's attention and cache: by the configuration and the files, or as transformers runs it; or why not."""
    formats = read_formats(workload.cache_format, spec.dtype)
    if not isinstance(architecture, Generic):
        attention = attention_report(spec, checkpoint.tensors)
        return attention, cache_report(attention.layers, *formats, spec.dtype), None
    from .analyzers.cached import found_cache

    try:
        attention, cache = found_cache(architecture.model, spec.dtype)
        if formats != read_formats("auto", spec.dtype):
            cache = cache_report(attention.layers, *formats, spec.dtype)
    except UnsupportedError as error:
        return None, None, error
    return attention, cache, None
