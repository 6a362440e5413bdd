"""Chinese, as an engineer there would write it: one table, from a module for each subject."""

from __future__ import annotations

from qwen_inspect.language.zh import (
    answers,
    comparison,
    conclusions,
    counts,
    files,
    fit,
    hubs,
    media,
    memory,
    pictures,
    ranks,
    reports,
    running,
    structure,
    training,
    usage,
    words,
)

TEXT: dict[str, str] = {
    **words.TEXT,
    **usage.TEXT,
    **files.TEXT,
    **hubs.TEXT,
    **structure.TEXT,
    **counts.TEXT,
    **media.TEXT,
    **memory.TEXT,
    **running.TEXT,
    **ranks.TEXT,
    **training.TEXT,
    **fit.TEXT,
    **comparison.TEXT,
    **reports.TEXT,
    **conclusions.TEXT,
    **pictures.TEXT,
    **answers.TEXT,
}
