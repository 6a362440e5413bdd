"""`fit`: what fits a card, by transformers or by an engine that serves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arguments import ENGINE_OPTIONS
from ..console import EXIT_CHECK_FAILED, text_of, verdict, write
from ..language import Language
from .options import cards_of, check_options, inspected, run_of

if TYPE_CHECKING:
    from ..results.fit import Gpu
    from ..results.model import Report
    from ..results.serving import Serving


def run(options: argparse.Namespace, say: Language) -> int:
    check_options(options)
    serving, cards = _serving(options), cards_of(options)
    report = inspected(options)
    return _fit(report, cards, options, say) if serving is None else _serve(report, serving, cards, options, say)


def _fit(report: Report, cards: Sequence[Gpu], options: argparse.Namespace, say: Language) -> int:
    """1 where it does not fit one of the cards; what is refused is the exit code after all that could be told."""
    from ..fitting.search import fit
    from ..renderers.document import View

    found = fit(report, run_of(options), cards, beyond_limit=options.beyond_limit)
    write(text_of(options, found, say, View()), options, say)
    code = verdict(found.report, options, say)
    if found.fits is False:
        return EXIT_CHECK_FAILED
    if found.refusal is not None:
        raise found.refusal
    return code


def _serve(report: Report, serving: Serving, cards: Sequence[Gpu], options: argparse.Namespace, say: Language) -> int:
    """1 where it does not fit one of the cards."""
    from ..fitting.serving import serve
    from ..renderers.document import View

    found = serve(report, serving, cards, beyond_limit=options.beyond_limit)
    write(text_of(options, found, say, View()), options, say)
    code = verdict(found.report, options, say)
    return EXIT_CHECK_FAILED if found.fits is False else code


def _serving(options: argparse.Namespace) -> Serving | None:
    """What an engine is asked for, None for transformers. UsageError for options that are another engine's or contradict."""
    from ..errors import UsageError
    from ..results.serving import Serving

    for engine, names in ENGINE_OPTIONS.items():
        for name in names:
            if engine != options.engine and getattr(options, name) != options.not_given[name]:
                raise UsageError(
                    "engine_option", option=f"--{name.replace('_', '-')}", engine=engine, asked=options.engine
                )
    if options.engine == "transformers":
        return None
    if options.kv_budget is not None:
        for name in ("gpu", "memory", "utilization"):
            if getattr(options, name) is not None:
                raise UsageError("engine_budget_given", option=f"--{name}")
    if options.engine == "llama.cpp":
        if options.cache_dtype != "auto":
            raise UsageError("engine_cache_types")
        formats = options.cache_type_k, options.cache_type_v
        if pair := next((one for one in formats if "," in one), None):
            raise UsageError("engine_one_cache_type", found=pair)
    elif "," in options.cache_dtype:
        raise UsageError("engine_one_cache_dtype", found=options.cache_dtype)
    else:
        formats = options.cache_dtype, options.cache_dtype
    return Serving(
        engine=options.engine,
        batch=options.batch,
        context_tokens=options.context,
        cache_formats=formats,
        ranks=options.tp,
        utilization=options.utilization,
        kv_budget_bytes=None if options.kv_budget is None else options.kv_budget[1],
        step_tokens=options.max_num_batched_tokens,
        prefix_caching=options.enable_prefix_caching,
        offloaded=options.ngl,
    )
