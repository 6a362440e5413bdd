"""`config`: the class and its main sizes."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from ...units import count
from ..document.common import layer_runs
from . import within


def sentences(report: Report, say: Language) -> list[str]:
    name, keys = report.ref.id, len(report.written or {})
    if report.design is None:
        assert report.refusal is not None
        return [
            say("answer_config_keys", name=name, keys=keys),
            say("answer_not_known", reason=within(say(report.refusal.message))),
        ]
    spec = report.spec
    return [
        say(
            "answer_config",
            name=name,
            class_name=spec.class_name,
            layers=sum(run.repeats for run in layer_runs(report.tree)),
            hidden=count(spec.hidden_size),
            vocabulary=count(spec.vocab_size),
            context=count(spec.context_tokens),
            dtype=str(spec.dtype),
        )
    ]
