"""Report -> JSON: the keys that scripts rely on. Counts and bytes are integers; unknown is null."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..checkpoint import ModelRef, Tensor
from ..comparison import KINDS, Comparison, SideBySide, TensorChanges
from ..errors import NotFoundError
from ..language import Language, Message
from ..report.generation import Generation
from ..report.listing import CatalogEntry
from ..report.measurement import Difference, KeptMeasurement, Measurement, MemoryCause
from ..report.memory import Alive, Footprint, MemoryReport, Moment, Run
from ..report.model import Report
from ..report.whole import WholeReport
from ..spec import Module
from ..training import Training
from .dtypes import by_dtype

if TYPE_CHECKING:
    from ..ranks import DeviceMapReport, RankBytes, RanksReport

SCHEMA_VERSION = 1


def render(command: str, subject: Any, say: Language) -> str:
    """One object for the command; `subject` is a Report, or for `models` the catalog's entries."""
    head: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "tool_version": __version__, "command": command}
    if command == "models":
        content: dict[str, Any] = {"model": None, "models": [_entry(entry) for entry in subject]}
    elif command == "memory":
        content = {"model": _model(subject.report, say), **_memory(subject, say)}
    elif command == "compare":
        content = {"model": None, **_compare(subject, say)}
    elif command == "fit":
        from ..engines import ServingReport
        from .fitted import fit_content
        from .served import serving_content

        told = serving_content(subject, say) if isinstance(subject, ServingReport) else fit_content(subject, say)
        content = {"model": _model(subject.report, say), **told}
    elif command == "gpus":
        from .fitted import gpu_content

        content = {"model": None, "gpus": [gpu_content(gpu) for gpu in subject]}
    elif command == "report":
        content = {"model": _model(subject.report, say), **_whole(subject, say)}
    else:
        content = {"model": _model(subject, say), **_CONTENTS[command](subject, say)}
    # Escaped, so that it is JSON in any encoding, and harmless on a terminal.
    return json.dumps({**head, **content}, indent=2).replace("\x7f", "\\u007f") + "\n"


def _model(report: Report, say: Language) -> dict[str, Any]:
    findings = report.attention.findings if report.design and report.design.attention else ()
    config = report.config or {}
    model_type = config.get("model_type")
    return {
        "id": report.ref.id,
        "source": report.ref.source,
        "revision": report.ref.revision,
        "architecture": report.spec.class_name if report.design else None,
        "model_type": model_type if isinstance(model_type, str) else None,
        "dtype": str(report.spec.dtype) if report.design else None,
        "notices": [say(message) for message in (*report.notices, *findings)],
    }


def _params(report: Report, say: Language) -> dict[str, Any]:
    counts = report.parameters
    return {
        "parameters": {
            "theory": counts.theory,
            "instantiated": counts.instantiated,
            "stored": counts.stored,
            "stored_predicted": counts.stored_predicted,
            "unique": counts.unique,
            "active": counts.active,
            "embedding": counts.embedding,
            "non_embedding": counts.non_embedding,
            "buffers": counts.buffers,
        },
        "quantisation": _quantisation(report, say),
        "adapter": _adapter(report),
        "components": [
            {
                "name": part.name,
                "parameters": part.parameters,
                "bytes": part.size_bytes,
                "share": part.share_basis_points / 10_000,
                "tied_to": part.tied_to,
            }
            for part in report.components
        ],
        "checks": [
            {
                "name": f"{check.left}/{check.right}",
                "left": check.left_parameters,
                "right": check.right_parameters,
                "difference": check.difference,
                "causes": [
                    {
                        "name": cause.name,
                        "parameters": cause.parameters,
                        "tensors": cause.tensors,
                        "text": say(cause.message),
                    }
                    for cause in check.causes
                ],
                "residual": check.residual,
                "agrees": check.agrees,
                "unexplained": [
                    {
                        "kind": item.kind,
                        "name": item.name,
                        "parameters": item.parameters,
                        "expected": item.expected,
                        "found": item.found,
                    }
                    for item in check.unexplained
                ],
            }
            for check in report.checks
        ],
    }


def _quantisation(report: Report, say: Language) -> dict[str, Any] | None:
    found = report.known.quantised
    if found is None:
        return None
    return {
        "method": found.method,
        "schemes": [say(scheme) for scheme in found.schemes],
        "matrices": found.matrices,
        "parameters": found.parameters,
        "bytes": found.size_bytes,
        "bits_per_weight": found.bits_per_weight,
        "other_parameters": found.other_parameters,
        "other_bytes": found.other_bytes,
        "total_bytes": found.total_bytes,
        "kept": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.kept],
    }


def _adapter(report: Report) -> dict[str, Any] | None:
    found = report.known.adapter
    if found is None:
        return None
    return {
        "kind": found.kind,
        "base": found.base,
        "ranks": list(found.ranks),
        "scales": list(found.scales),
        "modules": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.modules],
        "trainable_parameters": found.trainable,
        "base_parameters": found.base_parameters,
        "share": found.share,
        "stored_bytes": found.stored_bytes,
        "unmerged_bytes": found.unmerged_bytes,
        "merged_bytes": found.merged_bytes,
    }


def _weights(report: Report, say: Language) -> dict[str, Any]:
    if report.tensors is None:
        raise NotFoundError("no_tensors", id=report.ref.id)
    tensors = report.tensors
    return {
        "origin": report.tensors_origin,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "elements": tensor.elements,
                "bytes": tensor.size_bytes,
                "file": tensor.file,
            }
            for tensor in tensors
        ],
        "dtypes": [
            {"dtype": dtype, "tensors": found, "elements": elements, "bytes": size_bytes}
            for dtype, found, elements, size_bytes in by_dtype(tensors)
        ],
        "totals": {
            "tensors": len(tensors),
            "elements": sum(tensor.elements for tensor in tensors),
            "bytes": sum(tensor.size_bytes for tensor in tensors),
            "unique_parameters": report.parameters.unique if report.design else None,
        },
    }


def _attention(report: Report, say: Language) -> dict[str, Any]:
    layers, linear = report.attention.softmax, report.attention.linear

    def same(values: Sequence[int]) -> int | None:
        return values[0] if len(set(values)) == 1 else None

    return {
        "kind": report.attention.kind,
        "query_heads": same([layer.query_heads for layer in layers]),
        "kv_heads": same([layer.kv_heads for layer in layers]),
        "head_dim": same([layer.head_dim for layer in layers]),
        "pattern": None
        if report.attention.pattern is None
        else [{"kind": kind, "layers": several} for kind, several in report.attention.pattern],
        "linear": {
            "layers": len(linear),
            "key_heads": same([layer.key_heads for layer in linear]),
            "value_heads": same([layer.value_heads for layer in linear]),
            "key_head_dim": same([layer.key_head_dim for layer in linear]),
            "value_head_dim": same([layer.value_head_dim for layer in linear]),
            "conv_kernel": same([layer.conv_kernel for layer in linear]),
        }
        if linear
        else None,
        "tied_embeddings": report.spec.tied_embeddings,
        "cache": {
            "dtype": report.cache.dtype,
            "bytes_per_token": report.cache.bytes_per_token,
            "fixed_bytes": report.cache.fixed_bytes,
            "batch": report.workload.batch,
            "context_tokens": report.context_tokens,
            "bytes": None
            if report.context_tokens is None
            else report.cache.size_bytes(tokens=report.context_tokens, batch=report.workload.batch),
            "layers": [
                {
                    "index": layer.index,
                    "kind": layer.kind,
                    "bytes_per_token": layer.bytes_per_token,
                    "fixed_bytes": layer.fixed_bytes,
                    "window_tokens": layer.window_tokens,
                }
                for layer in report.cache.layers
            ],
            "engines": [
                {"engine": row.engine, "format": row.format, "ranks": report.workload.ranks, "bytes": row.size_bytes}
                for row in report.engines
            ],
        },
    }


def _config(report: Report, say: Language) -> dict[str, Any]:
    return {"config": dict(report.config or {})}


# What `attention` would say, where the cache is not settled.
UNSETTLED = ("kind", "query_heads", "kv_heads", "head_dim", "pattern", "linear", "cache")


def _structure(report: Report, say: Language) -> dict[str, Any]:
    unsettled = {**dict.fromkeys(UNSETTLED), "tied_embeddings": report.spec.tied_embeddings}
    return {
        **_params(report, say),
        **(_attention(report, say) if report.settled else unsettled),
        **_config(report, say),
        "tree": _tree(report.tree, active_known=report.parameters.active is not None),
        "generation": None if report.generation is None else _generation(report.generation),
    }


def _generation(found: Generation) -> dict[str, Any]:
    return {
        "prompt": found.prompt,
        "chat_template": found.chat_template,
        "text": found.text,
        "prompt_tokens": found.prompt_tokens,
        "new_tokens": found.new_tokens,
        "ended_by": found.ended_by,
        "device": found.device,
        "dtype": found.dtype,
        "prefill_seconds": found.prefill_seconds,
        "prefill_tokens_per_second": found.prefill_tokens_per_second,
        "decode_seconds": found.decode_seconds,
        "decode_tokens_per_second": found.decode_tokens_per_second,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "peak_resident_bytes": found.peak_resident_bytes,
        "provenance": found.versions,
    }


def _tree(module: Module, *, active_known: bool) -> dict[str, Any]:
    return {
        "name": module.label,
        "class": module.class_name,
        "parameters": module.parameters,
        "active_parameters": module.active_parameters if active_known else None,
        "bytes": module.size_bytes,
        "repeats": module.repeats,
        "tied_to": module.tied_to,
        "children": [_tree(child, active_known=active_known) for child in module.children],
    }


def _memory(memory: MemoryReport, say: Language) -> dict[str, Any]:
    run = memory.run
    return {
        "workload": {
            **_workload(run),
            "dtype": str(memory.report.spec.dtype) if memory.report.design else None,
            "cache_dtype": memory.report.cache.dtype if memory.report.settled else None,
            **_degrees(memory.ranks),
        },
        "training": None if memory.training is None else _training(memory.training, run),
        "predicted": _footprint(memory.predicted, run, say),
        "measured": None if memory.measured is None else _measured(memory.measured, run, say),
        "ranks": None if memory.ranks is None else [_rank(one) for one in memory.ranks.ranks],
        "rank_assumptions": [] if memory.ranks is None else [say(message) for message in memory.ranks.assumptions],
        "device_map": None if memory.device_map is None else _device_map(memory.device_map, say),
        "calibration": None if run.calibration is None else asdict(run.calibration),
        "differences": [_memory_difference(one, say) for one in memory.differences],
    }


def _memory_difference(one: Difference, say: Language) -> dict[str, Any]:
    return {
        "term": one.term,
        "predicted": one.predicted,
        "measured": one.measured,
        "difference": one.difference,
        "cause": say("comma").join(say(cause.message) for cause in one.causes) or None,
        "causes": [_memory_cause(cause, say) for cause in one.causes],
        "residual": one.residual,
    }


def _memory_cause(cause: MemoryCause, say: Language) -> dict[str, Any]:
    """In a sentence, and by key and values, from which it can be told in the other language."""
    values = {name: value.key if isinstance(value, Message) else value for name, value in cause.message.values.items()}
    return {
        "cause": say(cause.message),
        "key": cause.message.key,
        "values": values,
        "bytes": cause.size_bytes,
    }


def _training(found: Training, run: Run) -> dict[str, Any]:
    return {
        "lora_rank": run.lora_rank,
        "lora_targets": None if run.lora_rank is None else list(run.lora_targets),
        "optimizer": run.optimizer,
        "checkpointing": bool(run.checkpointing),
        "accumulate": run.accumulate,
        "trainable_parameters": found.trainable,
        "base_parameters": found.base_parameters,
        "all_parameters": found.all_parameters,
        "share": found.share,
        "trained_bytes": found.trained_bytes,
        "frozen_bytes": found.frozen_bytes,
        "modules": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.modules],
    }


def _workload(run: Run) -> dict[str, Any]:
    return {
        "mode": run.mode,
        "batch": run.batch,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": run.new_tokens if run.mode == "generate" else None,
        "attention": run.attention,
        "tp": 1,
        "gpu": run.gpu,
        "load": run.loader,
    }


def _degrees(ranks: RanksReport | None) -> dict[str, Any]:
    how = None if ranks is None else ranks.parallelism
    return {
        "tp": how.tensor if how else 1,
        "pp": how.pipeline if how else 1,
        "ep": how.expert if how else 1,
        "fsdp": how.fsdp if how else 1,
        "zero_stage": how.zero_stage if how and how.fsdp > 1 else None,
    }


def _rank(one: RankBytes) -> dict[str, Any]:
    terms = ("weights", "replicated", "padding", "buffers", "cache", "state", "gradients", "optimizer", "gathered")
    return {
        "ranks": list(one.ranks),
        "layers": None if one.layers is None else list(one.layers),
        "experts": one.experts,
        **{f"{term}_bytes": getattr(one, term) for term in terms},
        "activation_bytes": None,
        "communication_bytes": None,
        "total_bytes": one.total,
    }


def _device_map(found: DeviceMapReport, say: Language) -> dict[str, Any]:
    return {
        "devices": [
            {
                "device": one.device,
                "capacity_bytes": one.capacity_bytes,
                "modules": list(one.modules),
                "weights_bytes": one.weights,
                "buffers_bytes": one.buffers,
            }
            for one in found.devices
        ],
        "provenance": found.made_by,
        "assumptions": [say(message) for message in found.assumptions],
    }


def _whole(whole: WholeReport, say: Language) -> dict[str, Any]:
    report = whole.report
    return {
        "provenance": {
            "config_sha256": whole.config_sha256,
            "tensors_sha256": whole.tensors_sha256,
            "built_by": whole.built_by,
            "files": [{"name": file.name, "bytes": file.size_bytes, "sha256": file.sha256} for file in report.files],
        },
        **_structure(report, say),
        "cache_by_context": [
            {
                "context_tokens": tokens,
                "batch": batch,
                "bytes": report.cache.size_bytes(tokens=tokens, batch=batch),
            }
            for tokens, batch in (whole.cache_points if report.settled else ())
        ],
        "memory": [
            {key: value for key, value in _memory(memory, say).items() if key in ("workload", "predicted")}
            for memory in whole.memory
        ],
        "measured": [_kept_measurement(kept, say) for kept in whole.measured],
    }


def _kept_measurement(kept: KeptMeasurement, say: Language) -> dict[str, Any]:
    return {
        "file": kept.path,
        "device": kept.device,
        "versions": dict(kept.versions),
        "partial": kept.is_partial,
        "workload": {**_workload(kept.run), **_degrees(None), "dtype": kept.dtype, "cache_dtype": None},
        "differences": [_memory_difference(one, say) for one in kept.differences],
    }


def _footprint(footprint: Footprint, run: Run, say: Language) -> dict[str, Any]:
    shown = footprint.peak or footprint.steady
    reserved = footprint.peak_reserved
    return {
        "method": footprint.method,
        "weights_bytes": shown.weights,
        "buffers_bytes": shown.buffers,
        "cache_bytes": footprint.steady.cache if run.mode == "generate" else shown.cache,
        "state_bytes": shown.state,
        "activation_bytes": None if footprint.peak is None else footprint.peak.activations,
        "workspace_bytes": shown.workspace,
        "steady_allocated_bytes": footprint.steady.allocated,
        "peak_allocated_bytes": None if footprint.peak is None else footprint.peak.allocated,
        "peak_reserved_bytes": reserved,
        "context_bytes": footprint.context_bytes,
        "total_bytes": None
        if reserved is None or footprint.context_bytes is None
        else reserved + footprint.context_bytes,
        "provenance": footprint.provenance,
        "moments": {
            name: None if moment is None else _moment(moment)
            for name, moment in (("steady", footprint.steady), ("peak", footprint.peak))
        },
        "alive_at_peak": [_alive(one) for one in footprint.alive],
        "assumptions": [say(message) for message in footprint.assumptions],
    }


def _measured(measured: Measurement, run: Run, say: Language) -> dict[str, Any]:
    """What a device told: the keys of a prediction, and what only a device has."""
    figures = (
        "allocated", "peak_allocated", "requested", "peak_requested", "reserved", "peak_reserved",
        "device_used", "device_total", "process_used", "others_used", "host_peak",
    )  # fmt: skip
    return {
        **_footprint(measured.footprint, run, say),
        "device": measured.device,
        "versions": dict(measured.versions),
        "stages": [
            {
                "stage": reading.stage,
                "seconds": reading.seconds,
                **{f"{name}_bytes": getattr(reading, name) for name in figures},
            }
            for reading in measured.readings
        ],
        "scratch_at_peak": [_alive(one) for one in measured.scratch],
        "parted": None if measured.parted is None else say(measured.parted),
        "partial": None if measured.partial is None else say(measured.partial),
    }


def _alive(one: Alive) -> dict[str, Any]:
    return {
        "component": one.component,
        "operator": one.operator,
        "storages": one.storages,
        "bytes": one.size_bytes,
    }


def _moment(moment: Moment) -> dict[str, Any]:
    kept = ("weights", "buffers", "cache", "state", "gradients", "optimizer")
    terms = (*kept, "activations", "workspace", "rounding", "allocated")
    adapters = {"adapters_bytes": moment.adapters} if moment.adapters else {}
    return {"stage": moment.stage, **{f"{term}_bytes": getattr(moment, term) for term in terms}, **adapters}


def _compare(comparison: Comparison, say: Language) -> dict[str, Any]:
    files, sides = comparison.files, comparison.models
    return {
        "left": None if files is None else _ref(files.left),
        "right": None if files is None else _ref(files.right),
        "identical": None if files is None else files.identical,
        "files": None
        if files is None
        else [
            {
                "name": pair.name,
                "left_bytes": pair.left_bytes,
                "right_bytes": pair.right_bytes,
                "left_sha256": pair.left_sha256,
                "right_sha256": pair.right_sha256,
                "same": pair.same,
            }
            for pair in files.pairs
        ],
        "notices": [say(message) for message in comparison.notices],
        "side_by_side": None if sides is None else _side_by_side(sides, say),
    }


def _ref(ref: ModelRef) -> dict[str, Any]:
    return {"id": ref.id, "source": ref.source, "revision": ref.revision}


def _side_by_side(sides: SideBySide, say: Language) -> dict[str, Any]:
    """Every `values` has one entry for each of `models`, in their order; `tensors` one for each after the first."""
    return {
        "models": [_model(report, say) for report in sides.reports],
        "workload": _workload(sides.run),
        "config": [
            {"key": row.key, "values": list(row.values), "present": list(row.present), "same": row.same}
            for row in sides.config
        ],
        "facts": [
            {
                "section": row.section,
                "layer_kind": row.layer_kind,
                "name": row.name,
                "unit": row.unit or None,
                "values": list(row.values),
                "same": row.same,
            }
            for row in sides.facts
        ],
        "tensors": [None if changes is None else _changes(changes, say) for changes in sides.tensors],
        "fits": _fits(sides),
    }


def _fits(sides: SideBySide) -> list[list[dict[str, Any]] | None]:
    if not sides.reaches:
        return []
    from .fitted import reach_content

    return [None if cards is None else [reach_content(card) for card in cards] for cards in sides.reaches]


def _changes(changes: TensorChanges, say: Language) -> dict[str, Any]:
    return {
        "base_origin": changes.base_origin,
        "origin": changes.origin,
        "equal": changes.equal,
        "counts": {kind: changes.count(kind) for kind in KINDS},
        "changes": [
            {"kind": one.kind, "name": one.name, "before": _form(one.before), "after": _form(one.after)}
            for one in changes.changes
        ],
        "notes": [say(note) for note in changes.notes],
    }


def _form(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}


def _entry(entry: CatalogEntry) -> dict[str, Any]:
    design, release = entry.design, entry.release
    layer = entry.attention.softmax[0]
    return {
        "id": entry.id,
        "model_type": design.spec.family,
        "parameters": design.parameters.theory,
        "stored": design.parameters.stored_predicted,
        "active": design.parameters.active,
        "layers": len(design.spec.layers),
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "kind": entry.attention.kind,
        "context_tokens": design.spec.context_tokens,
        "published_parameters": release.parameters if release else None,
        "published_stored": release.stored if release else None,
        "source": release.config_source if release else None,
        "confidence": release.confidence if release else None,
    }


_CONTENTS = {
    "structure": _structure,
    "config": _config,
    "weights": _weights,
    "params": _params,
    "attention": _attention,
}
