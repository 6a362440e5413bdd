"""`fit --llama-cpp`: whether the command fits its devices, and what its log shows otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...language import Language
from ...results.llama_cpp import DeviceTotal, LlamaCppReport
from ...units import count, size

SHORTENED = re.compile(r"( -ot '[^']*')+")  # patterns of many layers, which JSON has whole


def _devices(totals: Sequence[DeviceTotal], say: Language) -> str:
    return say("semicolon").join(
        say(
            "answer_llama_cpp_device",
            device=total.device,
            required=size(total.low_bytes),
            available=size(total.available_bytes),
        )
        if total.available_bytes is not None
        else say("answer_llama_cpp_host", required=size(total.low_bytes))
        for total in totals
    )


def sentences(report: LlamaCppReport, say: Language) -> list[str]:
    verdict = {True: "yes", False: "no", None: "unknown"}[report.fits]
    devices = _devices(report.devices, say)
    key = f"answer_llama_cpp_{verdict}" if any(total.gpu for total in report.devices) or verdict != "unknown" else None
    name = report.report.ref.id
    first = say(key or "answer_llama_cpp_needs", name=name, tokens=report.context_tokens, devices=devices)
    content = [first]
    if (fitted := report.fitted) is not None:
        options = SHORTENED.sub(" -ot …", fitted.options)
        content.append(say("answer_llama_cpp_fitted", options=options, devices=_devices(fitted.devices, say)))
    reach = report.reach
    if reach.context_tokens is not None:
        key = "answer_llama_cpp_reach" if reach.context_tokens else "answer_llama_cpp_no_context"
        content.append(say(key, context=reach.context_tokens, layers=reach.offloaded or 0, all=report.layers))
    if reach.host_experts is not None and report.fits is not True:
        content.append(say("answer_llama_cpp_moe", count=count(reach.host_experts)))
    if report.log is not None:
        same = sum(line.agrees is True for line in report.log)
        content.append(say("answer_llama_cpp_log", same=same, lines=len(report.log)))
    return content
