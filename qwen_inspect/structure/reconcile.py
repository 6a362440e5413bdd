"""Compares two witnesses tensor by tensor: each difference has a named cause or is listed as unexplained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..architectures import StoredForm
from ..checkpoint import BlockFormat, DType, Tensor
from ..declarations import MODEL_DTYPES
from ..errors import UnsupportedError
from ..language import Message
from ..results.counts import Cause, Check, Unexplained
from ..standard import re
from ..typed import TYPE_CHECKING
from ..values import replace

if TYPE_CHECKING:
    from .packing import Packing

ROLES = ("packed", "scales", "zeros", "group_index", "tables", "notes")
# Causes whose elements are not additional parameters.
NO_PARAMETERS = (
    "tied_copy",
    "stored_buffers",
    "persistent_buffers",
    "unloaded",
    "quantised_biases",
    "cache_scales",
    "prediction_layer",
    *(f"quantised_{role}" for role in ROLES),
)
# Scales of a quantised KV cache. Source: compressed-tensors 0.20, kv_cache_scheme; vLLM 0.19, kv_cache.py.
CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".prob_scale")

NO_TIMES: Mapping[str, int] = {}


def against_files(
    built: Sequence[Tensor],
    stored: Sequence[Tensor],
    *,
    witness: str,
    files_witness: str,
    tied: Mapping[str, str],
    stored_form: StoredForm,
    missing_files: Mapping[str, tuple[str, ...]] | None = None,
    packing: Packing | None = None,
    ignored: tuple[str, ...] = (),
    buffers: Sequence[Tensor] = (),
    unloaded: tuple[str, ...] = (),
    times: Mapping[str, int] | None = None,
) -> Check:
    """Compares `built` (from theory or from transformers, as `witness` says) with the tensors in the files, read or predicted.

    tied: name of each tied tensor -> name of its owner. missing_files: missing shard -> names it should hold. packing: how
    quantised weights are stored. ignored: prefixes of names that transformers does not load. buffers: the persistent ones.
    unloaded: regular expressions of names that the class declares it does not load. times: how many tensors of a file one stands
    for, by its name, if not one.
    """
    times = times or {}
    causes: list[Cause] = [] if packing is None else list(_quantised(packing))
    unexplained: list[Unexplained] = []
    dense = {tensor.name: stored_form(tensor) for tensor in built}
    singles = {part.name for form in dense.values() for part in form}
    split = {name for name, form in dense.items() if any(".experts." in part.name for part in form)}
    forms = dense if packing is None else {tensor.name: packing.stored_form(tensor) for tensor in built}
    parts = {part.name: part for form in forms.values() for part in form}
    fused = {tensor.name: tensor for tensor in built if tensor.name not in singles and tensor.name not in parts}
    modules = () if packing is None else tuple(name.removesuffix("weight") for name in packing.parts)
    extra_biases = {f"{module}bias" for module in modules}
    class_named, renaming = without_renaming(stored, {*parts, *fused})
    causes += renaming

    matched: set[str] = set()
    persistent = {buffer.name: buffer.shape for buffer in buffers}
    tied_copies, tables, biases, cache_scales, predicted, stored_buffers, skipped = [], [], [], [], [], [], []
    retyped: Counter[tuple[DType | BlockFormat, DType | BlockFormat]] = Counter()
    shapes = {tensor.name: tensor.shape for tensor in built}
    for tensor in class_named:
        expected = parts.get(tensor.name) or fused.get(tensor.name)
        if expected is not None:
            matched.add(tensor.name)
            if _is_packed(tensor.dtype) and not _is_packed(expected.dtype):
                unexplained.append(_repacked(expected, tensor))
            elif tensor.dtype is not expected.dtype:
                retyped[expected.dtype, tensor.dtype] += times.get(tensor.name, 1)
            # A file may also store the class's own shape: an expert's matrices not transposed.
            if tensor.shape not in (expected.shape, shapes.get(tensor.name)):
                unexplained.append(_reshaped(expected, tensor))
        elif tensor.name in tied and tensor.shape == shapes[tied[tensor.name]]:
            tied_copies.append(tensor)
        # Written by transformers before 4.32, which kept it persistent; and by llama.cpp's converter for scaled frequencies.
        elif tensor.name.endswith(".rotary_emb.inv_freq") or tensor.name == "rope_freqs.weight":
            tables.append(tensor)
        elif persistent.get(tensor.name) == tensor.shape:
            stored_buffers.append(tensor)
        elif tensor.name in extra_biases:
            biases.append(tensor)
        elif packing is not None and tensor.name.endswith(CACHE_SCALES):
            cache_scales.append(tensor)
        elif tensor.name.startswith(ignored):
            predicted.append(tensor)
        elif any(re.search(pattern, tensor.name) for pattern in unloaded):
            skipped.append(tensor)
        else:
            unexplained.append(_unexpected(tensor))
    if tied_copies:
        first = tied_copies[0].name
        causes.append(_cause("tied_copy", tied_copies, +1, name=first, owner=tied[first]))
    for name, tensors in (("stored_buffers", tables), ("persistent_buffers", stored_buffers), ("unloaded", skipped)):
        if tensors:
            causes.append(_cause(name, tensors, +1))
    if biases:
        causes.append(_cause("quantised_biases", biases, +1))
    if cache_scales:
        causes.append(_cause("cache_scales", cache_scales, +1))
    if predicted:
        causes.append(_cause("prediction_layer", predicted, +1, times))

    filled = matched & set(fused)
    absent = [
        part for tensor in built if tensor.name not in filled for part in forms[tensor.name] if part.name not in matched
    ]
    absent = _explain_missing_files(absent, missing_files or {}, causes)
    heads = [tensor for tensor in absent if tensor.name == "lm_head.weight"]
    if heads:
        causes.append(_cause("headless", heads, -1))
    unexplained += [_missing(tensor) for tensor in absent if tensor.name != "lm_head.weight"]
    for name, singly in (("experts_singly", True), ("renamed", False)):
        unfilled = [forms[owner] for owner in fused if owner not in filled and (owner in split) is singly]
        causes += _in_other_form(name, unfilled, matched, times)
    causes += [_retyped(*dtypes, tensors=count) for dtypes, count in retyped.items()]
    return Check(
        left=witness,
        right=files_witness,
        left_parameters=_elements(built),
        right_parameters=_elements(stored, times),
        causes=tuple(causes),
        unexplained=tuple(unexplained),
    )


def contradictions(check: Check) -> UnsupportedError | None:
    """Why the files cannot hold the model that the configuration describes; None if they can.

    Contradictions: another shape; a packed number format; unexpected tensors that replace missing ones of the same module;
    unexpected packed tensors while others are missing. Tensors that are only missing or only added are no contradiction:
    transformers loads such files with a warning.
    """
    missing = [item for item in check.unexplained if item.kind == "missing"]
    lacking = {item.name.rpartition(".")[0] for item in missing}
    against: dict[str, Unexplained] = {}  # tensor name -> its first contradiction
    for item in check.unexplained:
        replaces = missing and (item.packed or item.name.rpartition(".")[0] in lacking)
        if item.kind in ("reshaped", "retyped") or (item.kind == "unexpected" and replaces):
            against.setdefault(item.name, item)
    if not against:
        return None
    first = next(iter(against.values()))
    return UnsupportedError(
        "files_contradict",
        count=len(against),
        name=first.name,
        expected=first.expected or Message("nothing"),
        found=first.found or "–",
    )


def _is_packed(dtype: DType | BlockFormat) -> bool:
    """Whether numbers of this format need scales to be weights: integers, and floats of 8 bits or less."""
    return dtype not in MODEL_DTYPES and not isinstance(dtype, BlockFormat)


def _in_other_form(
    name: str, forms: Sequence[tuple[Tensor, ...]], matched: set[str], times: Mapping[str, int]
) -> list[Cause]:
    """A cause for tensors stored in several parts or under another name; it changes no count."""
    stored = [form for form in forms if any(part.name in matched for part in form)]
    tensors = sum(times.get(part.name, 1) for form in stored for part in form if part.name in matched)
    if not tensors:
        return []
    message = Message(f"cause_{name}", tensors=tensors, fused=len(stored))
    return [Cause(name=name, message=message, parameters=0, tensors=tensors)]


def copies(check: Check) -> int:
    """Stored elements that are not additional parameters, from a check against the files."""
    return sum(cause.parameters for cause in check.causes if cause.name in NO_PARAMETERS)


def _quantised(packing: Packing) -> Iterator[Cause]:
    """What each role's tensors add to the count or subtract from it: a packed word holds several parameters."""
    tensors, elements = Counter[str](), Counter[str]()
    dtypes: dict[str, set[str]] = {role: set() for role in ROLES}
    parameters = 0
    for matrix, parts, times in packing.quantised():
        parameters += times * matrix.elements
        for part in parts:
            tensors[part.role] += times
            elements[part.role] += times * part.tensor.elements
            dtypes[part.role].add(str(part.tensor.dtype))
    for role in ROLES:
        if not tensors[role]:
            continue
        message = Message(
            f"cause_quantised_{role}",
            tensors=tensors[role],
            elements=elements[role],
            parameters=parameters,
            dtype=", ".join(sorted(dtypes[role])),
        )
        added = elements[role] - (parameters if role == "packed" else 0)
        yield Cause(name=f"quantised_{role}", message=message, parameters=added, tensors=tensors[role])


def against_instantiated(theory: Sequence[Tensor], instantiated: Sequence[Tensor]) -> Check:
    """Compares theory with transformers' instance: names, shapes and dtypes must be equal."""
    left = {tensor.name: tensor for tensor in theory}
    right = {tensor.name: tensor for tensor in instantiated}
    unexplained = [_missing(tensor) for name, tensor in left.items() if name not in right]
    for name, tensor in right.items():
        if name not in left:
            unexplained.append(_unexpected(tensor))
        elif tensor.shape != left[name].shape:
            unexplained.append(_reshaped(left[name], tensor))
        elif tensor.dtype != left[name].dtype:
            unexplained.append(_repacked(left[name], tensor))
    return Check(
        left="theory",
        right="instantiated",
        left_parameters=_elements(theory),
        right_parameters=_elements(instantiated),
        unexplained=tuple(unexplained),
    )


def without_renaming(stored: Sequence[Tensor], expected: set[str]) -> tuple[Sequence[Tensor], list[Cause]]:
    """The stored tensors under the class's names: adds or removes the decoder's prefix if the files omit or add it."""
    if any(tensor.name in expected for tensor in stored):
        return stored, []
    for kind, renamed in (
        ("prefix_left_out", [replace(tensor, name=f"model.{tensor.name}") for tensor in stored]),
        ("prefix_added", [replace(tensor, name=tensor.name.removeprefix("model.")) for tensor in stored]),
    ):
        if any(tensor.name in expected for tensor in renamed):
            message = Message(f"cause_{kind}", tensors=len(renamed))
            return renamed, [Cause(name=kind, message=message, parameters=0, tensors=len(renamed))]
    return stored, []


def _explain_missing_files(
    absent: list[Tensor], missing_files: Mapping[str, tuple[str, ...]], causes: list[Cause]
) -> list[Tensor]:
    """The tensors of `absent` that no missing shard accounts for; appends a cause for each such shard."""
    by_file = {file: set(names) for file, names in missing_files.items()}
    for file, names in by_file.items():
        if in_shard := [tensor for tensor in absent if tensor.name in names]:
            causes.append(_cause("missing_shard", in_shard, -1, file=file))
    return [tensor for tensor in absent if not any(tensor.name in names for names in by_file.values())]


def _retyped(expected: DType | BlockFormat, actual: DType | BlockFormat, *, tensors: int) -> Cause:
    """A cause that changes bytes but no count."""
    message = Message("cause_retyped", tensors=tensors, expected=str(expected), found=str(actual))
    return Cause(name="retyped", message=message, parameters=0, tensors=tensors)


def _cause(
    name: str, tensors: Sequence[Tensor], sign: int, times: Mapping[str, int] = NO_TIMES, /, **values: object
) -> Cause:
    parameters = sign * _elements(tensors, times)
    count = sum(times.get(tensor.name, 1) for tensor in tensors)
    message = Message(f"cause_{name}", tensors=count, parameters=abs(parameters), **values)
    return Cause(name=name, message=message, parameters=parameters, tensors=count)


def _missing(tensor: Tensor) -> Unexplained:
    shape = str(tensor.shape)
    return Unexplained(kind="missing", name=tensor.name, parameters=-tensor.elements, expected=shape)


def _unexpected(tensor: Tensor) -> Unexplained:
    return Unexplained(
        kind="unexpected",
        name=tensor.name,
        parameters=tensor.elements,
        found=str(tensor.shape),
        packed=_is_packed(tensor.dtype),
    )


def _repacked(expected: Tensor, actual: Tensor) -> Unexplained:
    return Unexplained(
        kind="retyped", name=actual.name, parameters=0, expected=str(expected.dtype), found=str(actual.dtype)
    )


def _reshaped(expected: Tensor, actual: Tensor) -> Unexplained:
    return Unexplained(
        kind="reshaped",
        name=actual.name,
        parameters=actual.elements - expected.elements,
        expected=str(expected.shape),
        found=str(actual.shape),
    )


def _elements(tensors: Iterable[Tensor], times: Mapping[str, int] = NO_TIMES) -> int:
    return sum(times.get(tensor.name, 1) * tensor.elements for tensor in tensors)
