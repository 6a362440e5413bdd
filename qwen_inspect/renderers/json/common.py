"""The keys that start every command's JSON."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from ...typed import Annotated, Literal
from .values import Keywords, TypedDict


class HeadJSON(TypedDict):
    """The keys that start every answer."""

    schema_version: Literal[1]
    tool_version: str
    command: str
    answer: str
    """The answer in one to three sentences, in the chosen language."""


class ModelJSON(TypedDict):
    """The model that the command answers for."""

    id: str
    source: Annotated[str, Keywords(enum=["local", "catalog", "ollama", "hf", "ms"])]
    revision: str | None
    """The commit that was read, for a model on a hub."""
    architecture: str | None
    """transformers' class; null if this program does not know it."""
    model_type: str | None
    dtype: str | None
    notices: list[str]
    """Remarks on how the model was read, in the language of the answer."""


class OfModelJSON(TypedDict):
    model: ModelJSON


def model_content(report: Report, say: Language) -> ModelJSON:
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
