"""A measurement as `memory --device … --format json` wrote it, for a report to show beside its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..errors import MalformedError, NotFoundError
from ..language import Message
from ..results.measurement import Difference, KeptMeasurement, MemoryCause
from ..results.memory import TERMS, Autocast, Loader, Mode, Run
from .strict_json import LONGEST_JSON_BYTES, parse_json

DIFFERENCES = (*TERMS, "steady_allocated", "peak_allocated", "peak_reserved", "context")
# Each cause of `measuring.differences` with the values of its sentence.
CAUSES: Mapping[str, tuple[str, ...]] = {
    "cause_step_counters": (),
    "cause_kept": ("operator", "storages"),
    "cause_scratch": ("operator", "storages"),
    "cause_workspace": (),
    "cause_rounding": (),
    "cause_other_moment": ("stage",),
}
LARGEST = 1 << 62
LONGEST_TEXT, MOST_VERSIONS, MOST_CAUSES = 500, 50, 1000
STAGES = tuple(
    f"measured_stage_{name}" for name in ("context", "load", "prefill", "decode", "forward", "backward", "optimizer")
)


def read_measurement(path: str) -> KeptMeasurement:
    """What was measured. NotFoundError where there is no such file, MalformedError where it holds anything else."""
    try:
        if Path(path).stat().st_size > LONGEST_JSON_BYTES:
            raise MalformedError("json_over_cap", file=path, cap=LONGEST_JSON_BYTES)
        content = Path(path).read_bytes()
    except OSError as error:
        raise NotFoundError("measured_unreadable", path=path, reason=error.strerror or "–") from None
    found = parse_json(content, file=path)
    if not isinstance(found, dict) or found.get("command") != "memory" or not isinstance(found.get("measured"), dict):
        raise MalformedError("measured_other", path=path)
    try:
        return _measurement(found, path)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError("measured_malformed", path=path, reason=str(error)[:LONGEST_TEXT]) from None


def _measurement(found: Mapping[str, Any], path: str) -> KeptMeasurement:
    """Raises KeyError, TypeError or ValueError, with what is wrong, for anything that the tool does not write."""
    model, asked, measured = found["model"], found["workload"], found["measured"]
    versions = {_text(name): _text(value) for name, value in measured["versions"].items()}
    differences = tuple(_difference(one) for one in found["differences"])
    terms = [difference.term for difference in differences]
    if len(versions) > MOST_VERSIONS or terms != [term for term in DIFFERENCES if term in terms]:
        raise ValueError(repr(terms)[:LONGEST_TEXT])
    mode, loader = asked["mode"], asked["load"]
    for value, known in ((mode, Mode), (loader, Loader)):
        if value not in get_args(known):
            raise ValueError(_text(value))
    autocast = asked.get("autocast")  # older files have none
    if autocast not in (None, *get_args(Autocast)):
        raise ValueError(_text(autocast))
    run = Run(
        mode=mode,
        batch=_count(asked["batch"]),
        prompt_tokens=_count(asked["prompt_tokens"]),
        new_tokens=_count(asked["new_tokens"]) if mode == "generate" else 1,
        attention=_text(asked["attention"]),
        cache="static" if asked.get("cache") == "static" else "dynamic",
        padded=asked.get("padded", False) is True,  # which the first versions did not write
        autocast=autocast,
        loader=loader,
        gpu=_text(asked["gpu"]),
    )
    return KeptMeasurement(
        path=path,
        class_name=_text(model["architecture"]),
        model_type=_text(model["model_type"]),
        dtype=_text(model["dtype"]),
        run=run,
        device=_text(measured["device"]),
        versions=tuple(versions.items()),
        differences=differences,
        is_partial=measured["partial"] is not None,
    )


def _difference(found: Mapping[str, Any]) -> Difference:
    causes = found["causes"]
    if found["term"] not in DIFFERENCES or len(causes) > MOST_CAUSES:
        raise ValueError(_text(found["term"]))
    return Difference(
        term=found["term"],
        predicted=_size(found["predicted"]),
        measured=_size(found["measured"]),
        causes=tuple(
            MemoryCause(message=_cause(cause["key"], cause["values"]), size_bytes=_signed(cause["bytes"]))
            for cause in causes
        ),
    )


def _cause(key: str, values: Mapping[str, Any]) -> Message:
    names = CAUSES[key]
    if set(values) != set(names):
        raise ValueError(key)
    told: dict[str, Any] = {}
    for name in names:
        match name:
            case "storages":
                told[name] = _count(values[name])
            case "stage":
                if values[name] not in STAGES:
                    raise ValueError(repr(values[name])[:LONGEST_TEXT])
                told[name] = Message(values[name])
            case _:
                told[name] = _text(values[name])
    return Message(key, **told)


def _text(found: object) -> str:
    if not isinstance(found, str) or len(found) > LONGEST_TEXT:
        raise ValueError(repr(found)[:LONGEST_TEXT])
    return found


def _count(found: object) -> int:
    value = _signed(found)
    if value <= 0:
        raise ValueError(str(value))
    return value


def _size(found: object) -> int | None:
    return None if found is None else _signed(found)


def _signed(found: object) -> int:
    if type(found) is not int or abs(found) > LARGEST:
        raise ValueError(repr(found)[:LONGEST_TEXT])
    return found
