"""The architecture of a configuration; of a class that only transformers describes, from the user's cache after the first call.

Building such a class and running it on meta takes seconds, most of them imports. What is kept is named by a hash of all that it
depends on: the configuration, the tensors of the files, the versions of the libraries, and the code here that reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

from ..architectures import Architecture, FormsByName, architecture_of
from ..architectures.reading import is_described
from ..checkpoint import DType, Tensor
from ..digests import sha256_hex
from ..errors import UnsupportedError
from ..language import Message
from ..loaders import header_cache
from ..results.attention import EncoderLayerAttention, LayerAttention, LinearLayerAttention, OtherLayerAttention
from ..results.cache import CacheLayer
from ..spec import ModelSpec, Module
from ..tracing import installed
from ..typed import Any
from ..values import MISSING, dataclass, fields, is_dataclass, replace

PACKAGE = Path(__file__).parents[1]
# Whose code decides what is kept, and how.
READERS = (
    *("architectures/*.py", "architectures/generic/*.py", "tracing/cached.py"),
    *("structure/kept_design.py", "results/*.py", "checkpoint.py", "spec.py"),
)
TYPE = ""  # the key of an object's type in JSON
TYPES: Mapping[str, Callable[..., Any]] = {
    "Architecture": Architecture,
    "CacheLayer": CacheLayer,
    "EncoderLayerAttention": EncoderLayerAttention,
    "DType": lambda name: DType[name],
    "FormsByName": FormsByName,
    "LayerAttention": LayerAttention,
    "LinearLayerAttention": LinearLayerAttention,
    "Mapping": lambda **entries: entries,
    "Message": lambda key, values: Message(key, **values),
    "ModelSpec": ModelSpec,
    "Module": Module,
    "OtherLayerAttention": OtherLayerAttention,
    "Tensor": Tensor,
    "UnsupportedError": lambda key, values: UnsupportedError(key, **values),
}


def known_architecture(
    config: Mapping[str, Any], *, stored: Sequence[Tensor] | None = None, code: Path | None = None
) -> Architecture:
    """`architecture_of`, with what transformers caches for a class that it alone describes.

    Kept unless a repository's own `code` may run.
    """
    if not isinstance(config.get("model_type"), str) or is_described(config):
        return architecture_of(config, stored=stored)
    name = None if code is not None else _name(config, stored)
    content = None if name is None else header_cache.read_design(name)
    if name is not None and content is not None and (kept := _load(name, content)) is not None:
        return kept
    architecture = _with_cache(architecture_of(config, stored=stored, code=code))
    if name is not None and not _may_change(architecture.cache_refusal):
        header_cache.write_design(name, _dump(name, architecture))
    return architecture


def _with_cache(architecture: Architecture) -> Architecture:
    from ..tracing.cached import found_cache

    try:
        attention, cached = found_cache(architecture.built, architecture.spec.dtype)
    except UnsupportedError as error:
        return replace(architecture, cache_refusal=error)
    return replace(architecture, kept=tuple(zip(attention.layers, cached.layers, strict=True)))


def _may_change(refusal: UnsupportedError | None) -> bool:
    """Whether a refusal may have causes outside of the name: a run may have failed for a package that is installed later."""
    return refusal is not None and refusal.message.key == "generic_cache_no_forward"


def _name(config: Mapping[str, Any], stored: Sequence[Tensor] | None) -> str:
    tensors = None if stored is None else [(tensor.name, tensor.shape, str(tensor.dtype)) for tensor in stored]
    dependencies = [_code(), sorted(installed()), config, tensors]
    return sha256_hex(json.dumps(dependencies, sort_keys=True, default=str).encode())


@cache
def _code() -> str:
    paths = [path for pattern in READERS for path in sorted(PACKAGE.glob(pattern))]
    return sha256_hex(b"".join(path.read_bytes() for path in paths))


# --- as a file: a hash of the rest and its name, the architecture, and its stored forms, which few questions need


@dataclass(frozen=True)
class _KeptForms:
    """`Architecture.stored_form` from the text of a file, which is read when it is first asked for."""

    text: bytes

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[Tensor, ...]]:
        forms: Mapping[str, tuple[Tensor, ...]] = _decoded(self.text)
        return forms

    def __call__(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self._by_name.get(tensor.name, (tensor,))


def _dump(name: str, architecture: Architecture) -> bytes:
    assert isinstance(architecture.stored_form, FormsByName)
    parts = replace(architecture, built=None, stored_form=FormsByName({})), architecture.stored_form.by_name
    body = b"\n".join(json.dumps(_plain(part), separators=(",", ":")).encode() for part in parts)
    return b"\n".join((_digest(name, body), body))


def _load(name: str, content: bytes) -> Architecture | None:
    """What `_dump` wrote under `name`; None for anything else."""
    digest, _, body = content.partition(b"\n")
    if digest != _digest(name, body):
        return None
    architecture, _, forms = body.partition(b"\n")
    kept: Architecture = _decoded(architecture)
    return replace(kept, stored_form=_KeptForms(forms))


def _digest(name: str, body: bytes) -> bytes:
    return sha256_hex(name.encode() + body).encode()


def _plain(value: Any) -> Any:
    """`value` for JSON: an object with its type and those fields that differ from their defaults."""
    match value:
        case DType():
            return {TYPE: "DType", "name": value.name}
        case Message():
            return {TYPE: "Message", "key": value.key, "values": _plain(value.values)}
        case UnsupportedError(message=message):
            return {**_plain(message), TYPE: "UnsupportedError"}
        case Mapping():
            return {TYPE: "Mapping", **{key: _plain(entry) for key, entry in value.items()}}
        case tuple() | list():
            return [_plain(entry) for entry in value]
    if is_dataclass(value):
        changed = {
            entry.name: getattr(value, entry.name)
            for entry in fields(value)
            if entry.default is MISSING or getattr(value, entry.name) != entry.default
        }
        return {TYPE: type(value).__name__, **{key: _plain(entry) for key, entry in changed.items()}}
    return value


def _decoded(text: bytes) -> Any:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    def built(entries: dict[str, Any]) -> Any:
        return TYPES[entries.pop(TYPE)](**{key: tuples(value) for key, value in entries.items()})

    return json.loads(text, object_hook=built)
