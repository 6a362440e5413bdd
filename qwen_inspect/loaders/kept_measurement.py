"""Reads a measurement from the JSON of `memory --device … --format json`; a report shows it beside its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from ..errors import MalformedError, NotFoundError
from ..language import Message
from ..results.measurement import Difference, KeptMeasurement, MemoryCause
from ..results.memory import TERMS, Autocast, Loader, Mode, Run
from ..typed import Any
from .regular import read_regular
from .strict_json import LONGEST_JSON_BYTES, parse_json

DIFFERENCES = (*TERMS, "steady_allocated", "peak_allocated", "peak_reserved", "context")
# Each cause of `measuring.differences`, with the names of its message's values.
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
    """The measurement in the file `path`. NotFoundError if there is no such file, MalformedError for any other content."""
    try:
        content = read_regular(path, cap=LONGEST_JSON_BYTES)
    except OSError as error:
        raise NotFoundError("measured_unreadable", path=path, reason=error.strerror or "–") from None
    answer = parse_json(content, file=path)
    if (
        not isinstance(answer, dict)
        or answer.get("command") != "memory"
        or not isinstance(answer.get("measured"), dict)
    ):
        raise MalformedError("measured_other", path=path)
    try:
        return _measurement(answer, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MalformedError("measured_malformed", path=path, reason=str(error)[:LONGEST_TEXT]) from None


def _measurement(answer: Mapping[str, Any], path: str) -> KeptMeasurement:
    """Raises KeyError, TypeError or ValueError, which names the fault, for JSON that the tool does not write."""
    model, workload, measured = answer["model"], answer["workload"], answer["measured"]
    if not isinstance(measured["versions"], dict):
        raise ValueError(f"versions: {measured['versions']!r}"[:LONGEST_TEXT])
    versions = {_text(name): _text(value) for name, value in measured["versions"].items()}
    differences = tuple(_difference(difference) for difference in answer["differences"])
    terms = [difference.term for difference in differences]
    if len(versions) > MOST_VERSIONS or terms != [term for term in DIFFERENCES if term in terms]:
        raise ValueError(repr(terms)[:LONGEST_TEXT])
    mode, loader = workload["mode"], workload["load"]
    for value, choices in ((mode, Mode), (loader, Loader)):
        if value not in get_args(choices):
            raise ValueError(_text(value))
    autocast = workload.get("autocast")  # absent in older files
    if autocast not in (None, *get_args(Autocast)):
        raise ValueError(_text(autocast))
    run = Run(
        mode=mode,
        batch=_count(workload["batch"]),
        prompt_tokens=_count(workload["prompt_tokens"]),
        new_tokens=_count(workload["new_tokens"]) if mode == "generate" else 1,
        attention=_text(workload["attention"]),
        cache="static" if workload.get("cache") == "static" else "dynamic",
        padded=workload.get("padded", False) is True,  # absent in files of the first versions
        autocast=autocast,
        loader=loader,
        gpu=_text(workload["gpu"]),
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


def _difference(entry: Mapping[str, Any]) -> Difference:
    causes = entry["causes"]
    if entry["term"] not in DIFFERENCES or len(causes) > MOST_CAUSES:
        raise ValueError(_text(entry["term"]))
    return Difference(
        term=entry["term"],
        predicted=_size(entry["predicted"]),
        measured=_size(entry["measured"]),
        causes=tuple(
            MemoryCause(message=_cause(cause["key"], cause["values"]), size_bytes=_signed(cause["bytes"]))
            for cause in causes
        ),
    )


def _cause(key: str, values: Mapping[str, Any]) -> Message:
    names = CAUSES[key]
    if set(values) != set(names):
        raise ValueError(key)
    checked: dict[str, Any] = {}
    for name in names:
        match name:
            case "storages":
                checked[name] = _count(values[name])
            case "stage":
                if values[name] not in STAGES:
                    raise ValueError(repr(values[name])[:LONGEST_TEXT])
                checked[name] = Message(values[name])
            case _:
                checked[name] = _text(values[name])
    return Message(key, **checked)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError(repr(value)[:LONGEST_TEXT])
    return value


def _count(number: object) -> int:
    value = _signed(number)
    if value <= 0:
        raise ValueError(str(value))
    return value


def _size(value: object) -> int | None:
    return None if value is None else _signed(value)


def _signed(value: object) -> int:
    if type(value) is not int or abs(value) > LARGEST:
        raise ValueError(repr(value)[:LONGEST_TEXT])
    return value
