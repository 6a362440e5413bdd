"""The built-in catalog: hyper-parameters of released models, so that the tool works with no network and no files.

Each entry holds a configuration (or the name of another entry and the differences from it), the published parameter counts, and
the source of each. An entry with `own` has every key of the released config.json; its own keys say nothing about entries like it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache, cached_property

from ..checkpoint import Checkpoint, ModelRef, Release
from ..errors import NotFoundError
from ..language import Message
from ..standard import json, loads, raw_decode
from ..typed import Any

# Keys that config.json of every release has, whether or not the catalog's copy does. No count or size depends on them.
# Source: transformers 4.51, PretrainedConfig.to_diff_dict, which writes all keys of a class's own; Qwen2Config to Qwen3MoeConfig.
USUAL_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "transformers_version",
    "use_cache",
)
USUAL_EXPERT_KEYS = ("output_router_logits", "router_aux_loss_coef")
MOST_NAMES = 5  # listed in a message
LONGEST_NAME = 200  # characters that are compared with known names
SHORTEST_BEGINNING = len("qwen/")
CATALOG = os.path.join(os.path.dirname(os.path.dirname(__file__)), "catalog", "models.json")


@cache
def entries() -> Mapping[str, Mapping[str, Any]]:
    """Every entry as written, by model id."""
    with open(CATALOG, encoding="utf-8") as file:
        return _Entries(file.read())


class _Entries(Mapping[str, Mapping[str, Any]]):
    """A JSON object of objects, each of which is read when it is asked for: most commands need one of two hundred.

    text: with each of its own keys, and no other, behind a line break and one space.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._read: dict[str, Mapping[str, Any]] = {}

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if name not in self._read:
            key = _written(name)
            begin = self._text.find(key)
            if begin < 0:
                raise KeyError(name)
            self._read[name] = raw_decode(self._text, begin + len(key))
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _written(name) in self._text

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    @cached_property
    def _whole(self) -> Mapping[str, Mapping[str, Any]]:
        self._read = loads(self._text)
        return self._read


def _written(name: str) -> str:
    is_plain = name.isprintable() and not {'"', "\\"}.intersection(name)
    return f'\n "{name}": ' if is_plain else f"\n {json.dumps(name, ensure_ascii=False)}: "


def load(ref: ModelRef) -> Checkpoint:
    """The catalog's entry for `ref.id`; NotFoundError lists the nearest names."""
    catalog = entries()
    if ref.id not in catalog:
        raise NotFoundError("not_in_catalog", id=ref.id, nearest=nearest(ref.id, catalog))
    return checkpoint(ref, catalog)


def checkpoint(ref: ModelRef, catalog: Mapping[str, Mapping[str, Any]]) -> Checkpoint:
    entry = catalog[ref.id]
    published = entry["published"]
    return Checkpoint(
        ref=ref,
        config=configuration(ref.id, catalog),
        tensors=None,
        release=Release(
            parameters=published["parameters"],
            stored=published["stored"],
            decoder_only=published.get("layout") == "decoder",
            experts_fused=published.get("layout") == "experts fused",
            float32=tuple(published.get("float32", ())),
            source=published["source"],
            config_source=entry["source"],
            kind=entry["kind"],
            missing_keys=() if "own" in entry else _missing_keys(configuration(ref.id, catalog)),
            confidence=entry["confidence"],
        ),
        notices=(_notice(ref.id, entry),),
    )


def _notice(model_id: str, entry: Mapping[str, Any]) -> Message:
    published = entry["published"]
    has_count = published["parameters"] is not None or published["stored"] is not None
    return Message(
        "from_catalog",
        id=model_id,
        kind=Message(f"catalog_kind_{entry['kind']}"),
        confidence=Message(f"confidence_{entry['confidence']}"),
        counts=Message("catalog_count" if has_count else "catalog_no_count"),
    )


def configuration(model_id: str, catalog: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry's configuration, sorted by key as transformers writes it; keys it lacks come from the entry named by `like`.

    A copy of its own for each caller, because `entries` is read once.
    """
    shared, own = _shared(model_id, catalog), catalog[model_id].get("own", {})
    parts = {
        key: dict(sorted({**shared[key], **value}.items())) for key, value in own.items() if isinstance(value, dict)
    }
    copied: dict[str, Any] = _copied(dict(sorted({**shared, **own, **parts}.items())))
    return copied


def _copied(value: Any) -> Any:
    """A JSON value with its own lists and objects."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _shared(model_id: str, catalog: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry's configuration without the keys that are no fact about entries like it."""
    entry = catalog[model_id]
    return {**(_shared(entry["like"], catalog) if "like" in entry else {}), **entry["config"]}


def _missing_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    decoder = {**config.get("text_config", {}), **config}
    has_experts = "num_experts" in decoder
    return tuple(key for key in (*USUAL_KEYS, *(USUAL_EXPERT_KEYS if has_experts else ())) if key not in decoder)


def meant(name: str) -> str | None:
    """The entry that `name` can only mean: it differs in case, dashes and spaces, or lacks ORG/. None if there is none."""
    if name in entries():
        return name
    wanted = _folded(name)
    candidates = [known for known in entries() if wanted in (_folded(known), _folded(known.partition("/")[2]))]
    return candidates[0] if len(candidates) == 1 else None


def nearest(model_id: str, catalog: Mapping[str, object]) -> str:
    """Some names that begin with or look like `model_id`, the likeliest first, or a dash."""
    by_name = {name.lower(): name for name in catalog}
    wanted = model_id[:LONGEST_NAME].lower()
    wanted = wanted if "/" in wanted else f"qwen/{wanted}"
    from difflib import get_close_matches

    beginning = [name for name in by_name if name.startswith(wanted)] if len(wanted) > SHORTEST_BEGINNING else []
    names = dict.fromkeys((*beginning, *get_close_matches(wanted, by_name, n=3, cutoff=0.6)))
    return ", ".join(by_name[name] for name in [*names][:MOST_NAMES]) or "–"


def _folded(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))
