"""`fit`: what fits a card, with transformers or a serving engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from ..console import EXIT_CHECK_FAILED
from ..engines import ENGINES
from ..errors import UsageError
from ..language import Language, Message
from ..options import flag, given, media, model, output, prediction, values
from ..options.engines import ENGINE_OPTIONS, IN_LLAMA_CPP_COMMAND, IN_SGLANG_COMMAND, IN_VLLM_COMMAND, SHARES
from ..options.parser import Namespace, Parser
from ..standard import re
from ..typed import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..engines.llama_cpp.commands.logs import Log
    from ..engines.vllm.log import Log as ServedLog
    from ..results.fit import Gpu
    from ..results.llama_cpp import LlamaCppReport
    from ..results.model import Report
    from ..results.serving import Serving, ServingReport

    Answer = TypeVar("Answer", bound=LlamaCppReport | ServingReport)

FLOATS = ("float32", "bfloat16", "float16")  # of --dtype, which a draft model is loaded in too
LARGEST_LOG_BYTES = 64 << 20
LARGEST = "largest"  # of --quant


def declare(command: Parser, say: Language) -> None:
    model.declare(command, say)
    model.declare_headers(command, say)
    prediction.declare(command, say)
    prediction.declare_batch(command, say)
    prediction.declare_cards(command, say)
    media.declare(command, say)
    add = command.add_argument
    add("--memory", type=values.size(say), metavar="SIZE", help=say("help_card_memory"))
    add("--beyond-limit", action="store_true", help=say("help_beyond_limit"))
    add("--engine", choices=tuple(ENGINES), help=say("help_engine"))
    add("--max-model-len", dest="context", type=values.tokens(say), metavar="TOKENS", help=say("help_max_model_len"))
    command.set_defaults(context=None)  # for a serving engine: the model's limit
    share = values.reader(values.parse_share, "usage_share", say)
    add("--utilization", type=share, metavar="SHARE", help=say("help_utilization"))
    add("--kv-budget", type=values.size(say), metavar="SIZE", help=say("help_kv_budget"))
    add("--tp", type=values.positive(say), default=1, metavar="N", help=say("help_tp"))
    add("--enable-prefix-caching", action="store_true", default=None, help=say("help_enable_prefix_caching"))
    add(
        "--no-enable-prefix-caching",
        action="store_false",
        dest="enable_prefix_caching",
        default=None,
        help=say("help_no_enable_prefix_caching"),
    )
    add("--enable-sleep-mode", action="store_true", help=say("help_enable_sleep_mode"))
    add("--max-num-batched-tokens", type=values.tokens(say), metavar="TOKENS", help=say("help_max_num_batched_tokens"))
    add("--max-num-seqs", type=values.positive(say), metavar="N", help=say("help_max_num_seqs"))
    for name in SHARES.values():
        add(flag(name), type=share, metavar="SHARE", help=say(f"help_{name}"))
    add("--engine-version", metavar="VERSION", help=say("help_engine_version"))
    add("--speculative-config", metavar="JSON", help=say("help_speculative_config"))
    add("--vllm", metavar="COMMAND", help=say("help_vllm"))
    add("--sglang", metavar="COMMAND", help=say("help_sglang"))
    add("--ngl", type=values.reader(_layers, "usage_positive", say), metavar="N", help=say("help_ngl"))
    add("--cache-type-k", type=values.number_format, default="auto", metavar="FORMAT", help=say("help_cache_type_k"))
    add("--cache-type-v", type=values.number_format, default="auto", metavar="FORMAT", help=say("help_cache_type_v"))
    add("--quant", metavar="NAME", help=say("help_quant"))
    add("--llama-cpp", metavar="COMMAND", help=say("help_llama_cpp"))
    add("--log", metavar="FILE", help=say("help_log"))
    add("--calibration", choices=("use", "ignore", "forget"), default="use", help=say("help_calibration"))
    add("--host-memory", type=values.size(say), metavar="SIZE", help=say("help_host_memory"))
    engine_options = [name for names in ENGINE_OPTIONS.values() for name in names]
    command.set_defaults(defaults={name: command.get_default(name) for name in engine_options})
    output.declare_document(command, say)


def run(options: Namespace, say: Language) -> int:
    output.check(options)
    if options.llama_cpp is not None:
        return _run_llama_cpp(options, say)
    if options.vllm is not None:
        return _run_vllm(options, say)
    if options.sglang is not None:
        return _run_sglang(options, say)
    engine = _engine(options)
    if alone := given(options, *(() if engine == "vllm" else ("log",)), "host_memory"):
        raise UsageError("llama_cpp_needs_command", option=alone[0])
    _check_engine(options, engine)
    prediction.say_dtype(options, say)
    return _fit(options, say) if engine == "transformers" else _serve(options, say, engine)


def _engine(options: Namespace) -> str:
    """As typed; else llama.cpp for a model of Ollama's store, which is what serves it."""
    typed: str | None = options.engine
    return typed or ("llama.cpp" if (options.model or "").startswith("ollama:") else "transformers")


def _fit(options: Namespace, say: Language) -> int:
    """Returns 1 if the run does not fit one of the cards. Raises a refusal after showing what is known."""
    from ..fitting.search import fit

    cards, run = _cards(options), prediction.run_of(options, gpu=options.gpu)
    request = media.request_of(options)
    prediction.check_media(request, run)
    report = media.with_media(prediction.inspected(options, tokens=None), request, options)
    text = prediction.as_the_model_runs(run, report, options)
    run = prediction.with_media(text, report, options)
    seen = None
    if request is not None:
        from ..fitting.media import Seen

        counted = media.counter_of(report, options)
        seen = Seen(request=request, counted=counted, prompt_tokens=options.context, text_tokens=text.prompt_tokens)
    answer = fit(report, run, cards, beyond_limit=options.beyond_limit, seen=seen)
    output.show(answer, options, say)
    output.say_notices(answer.report, options, say)
    if answer.fits is False:
        return EXIT_CHECK_FAILED
    if answer.refusal is not None:
        raise answer.refusal
    return 0


def _serve(options: Namespace, say: Language, engine: str) -> int:
    """Returns 1 if the request does not fit one of the cards."""
    from ..fitting.served_logs import calibrated
    from ..fitting.serving import serve_logged

    serving, cards = _serving(options, engine), _cards(options)
    if options.speculative_config is not None:
        from ..engines.vllm.speculative_config import parse_speculation, proposal
        from ..values import replace

        proposed = proposal(parse_speculation(options.speculative_config), options.model)
        serving = _with_draft(replace(serving, speculation=proposed.speculation), proposed.model, options)
    log = None if options.log is None else _served_log(options.log, engine)

    def served(report: Report) -> ServingReport:
        if engine in LOGGED:
            return calibrated(
                lambda asked: serve_logged(report, asked, cards, beyond_limit=options.beyond_limit, log=log),
                serving,
                options.calibration,
                log=None if options.gpu is None else log,
            )
        if report.ref.source != "ollama" or engine != "llama.cpp":
            return serve_logged(report, serving, cards, beyond_limit=options.beyond_limit, log=log)
        from ..engines.llama_cpp.commands.ollama import as_served
        from ..values import replace

        asked, notices = as_served(serving, report, cards[0], os.environ)
        report = replace(report, notices=(*report.notices, *notices))
        return serve_logged(report, asked, cards, beyond_limit=options.beyond_limit, log=log)

    return _shown(_answered(options, served), options, say)


def _shown(answer: ServingReport, options: Namespace, say: Language) -> int:
    output.show(answer, options, say)
    output.say_notices(answer.report, options, say)
    return EXIT_CHECK_FAILED if answer.fits is False or answer.differs else 0


def _run_vllm(options: Namespace, say: Language) -> int:
    """Returns 1 if the command does not fit, or its log differs from the prediction."""
    from ..engines.vllm.command import parse_command
    from ..fitting.served_logs import calibrated
    from ..fitting.serving import budget_card, serve_command
    from ..values import replace

    _check_in_command(options, IN_VLLM_COMMAND, "--vllm", "vllm")
    command = parse_command(options.vllm, version=options.engine_version)
    command = replace(command, serving=_with_draft(command.serving, command.draft, options))
    log = None if options.log is None else _served_log(options.log, "vllm")
    report = prediction.inspected(options, options.model or command.model, dtype=command.dtype, tokens=None)
    command = command.for_model(report.config or {}, report.spec.context_tokens)
    budget = command.serving.kv_budget_bytes
    cards = _cards(options) if budget is None else (budget_card(budget),)

    def served(serving: Serving) -> ServingReport:
        asked = replace(command, serving=serving)
        return serve_command(report, asked, cards, beyond_limit=options.beyond_limit, log=log)

    kept = None if options.gpu is None else log
    return _shown(calibrated(served, command.serving, options.calibration, log=kept), options, say)


def _run_sglang(options: Namespace, say: Language) -> int:
    """Returns 1 if the command does not fit, or its log differs from the prediction."""
    from ..engines.sglang.command import parse_command
    from ..fitting.served_logs import calibrated
    from ..fitting.serving import serve_command
    from ..values import replace

    _check_in_command(options, IN_SGLANG_COMMAND, "--sglang", "sglang")
    command = parse_command(options.sglang)
    report = prediction.inspected(options, options.model or command.model, dtype=command.dtype, tokens=None)
    log, cards = None if options.log is None else _served_log(options.log, "sglang"), _cards(options)

    def served(serving: Serving) -> ServingReport:
        asked = replace(command, serving=serving)
        return serve_command(report, asked, cards, beyond_limit=options.beyond_limit, log=log)

    kept = None if options.gpu is None else log
    return _shown(calibrated(served, command.serving, options.calibration, log=kept), options, say)


def _with_draft(serving: Serving, name: str | None, options: Namespace) -> Serving:
    """With the draft model or EAGLE head of that name read."""
    if name is None or (speculation := serving.speculation) is None:
        return serving
    from ..loaders.resolve import load, resolve
    from ..structure.inspect import inspect
    from ..values import replace

    access = model.access_of(options)
    if speculation.method == "draft_model":
        dtype = prediction.dtype_of(options)
        draft = inspect(name, source=options.source, access=access, dtype=dtype if dtype in FLOATS else None)
        speculation = replace(speculation, drafter=draft)
    else:
        head = load(resolve(name, source=options.source, revision=None), replace(access, headers=True))
        speculation = replace(speculation, head=head)
    return replace(serving, speculation=speculation)


def _check_in_command(options: Namespace, names: Mapping[str, object], option: str, engine: str) -> None:
    """Raises UsageError for options that belong into the pasted command."""
    for name, default in names.items():
        if getattr(options, name) != options.defaults.get(name, default):
            raise UsageError("option_in_command", option=flag(name), command=option)
    if options.engine not in (None, "transformers", engine):
        raise UsageError("engine_option", option=option, engine=engine, asked=options.engine)
    _check_engine(options, engine)


def _run_llama_cpp(options: Namespace, say: Language) -> int:
    """Returns 1 if the command does not fit, or its log differs from the prediction."""
    from ..engines.llama_cpp.commands.command import parse_command
    from ..fitting.llama_cpp import run_command
    from ..fitting.llama_cpp_files import with_hub_files

    _check_in_command(options, IN_LLAMA_CPP_COMMAND, "--llama-cpp", "llama.cpp")
    access = model.access_of(options)
    command = parse_command(options.llama_cpp)
    if options.model is None:
        command = with_hub_files(command, access)
    cards = _cards_together(options)
    log = None if options.log is None else _log(options.log)
    host_bytes = None if options.host_memory is None else options.host_memory[1]

    from ..values import replace

    named = command.model
    tries_fit = options.quant != LARGEST  # --fit lets any quantisation start

    def ran(report: Report) -> LlamaCppReport:
        if options.model is None and named is None:
            report = replace(report, notices=(*report.notices, Message("llama_cpp_no_model", name=report.ref.id)))
        return run_command(report, command, cards, host_bytes=host_bytes, log=log, access=access, tries_fit=tries_fit)

    if options.quant == LARGEST:
        if not cards:
            raise UsageError("quant_needs_card")
        named = named and re.sub(r"^(hf:[^:]*):.*", r"\1", named)  # -hf's own quantisation
        command = replace(command, model=None)
    answer = _answered(options, ran, options.model or named)
    output.show(answer, options, say)
    output.say_notices(answer.report, options, say)
    return EXIT_CHECK_FAILED if answer.fits is False or answer.differs else 0


def _answered(options: Namespace, answer: Callable[[Report], Answer], typed: str | None = None) -> Answer:
    """Of the model, or `typed`, in the types that llama-quantize gives it with --quant; "largest": that fit."""
    if options.quant is None:
        return answer(prediction.inspected(options, typed, tokens=None, cache_format="auto"))  # the engine has its own
    from ..fitting.quantisations import largest_scheme, largest_stored, stored_quantisations
    from ..loaders.resolve import resolve
    from ..structure.gguf_conversion import as_gguf

    try:
        report = prediction.inspected(options, typed, tokens=None)
    except UsageError as error:
        if options.quant != LARGEST or error.message.key != "gguf_several":
            raise
        ref = resolve(typed or options.model, source=options.source, revision=options.revision)
        sizes = stored_quantisations(ref, model.access_of(options))
        return largest_stored(sizes, lambda name: prediction.inspected(options, name, tokens=None), answer)
    return largest_scheme(report, answer) if options.quant == LARGEST else answer(as_gguf(report, options.quant))


def _cards_together(options: Namespace) -> Sequence[Gpu]:
    """The cards of --gpu, each as often as it is named; none without --gpu and --memory."""
    from ..fitting.cards import cards

    if options.gpu is None and options.memory is None:
        return ()
    names = [None] if options.gpu is None else options.gpu.split(",")
    return tuple(card for name in names for card in cards(name, options.memory))


def _log(path: str) -> Log:
    """Raises UsageError for a file that cannot be read or has no buffers."""
    from ..engines.llama_cpp.commands.logs import read_log

    log = read_log(_text(path))
    if not log.printed():
        raise UsageError("llama_cpp_log_empty", path=path)
    return log


LOGGED = ("vllm", "sglang")


def _served_log(path: str, engine: str) -> ServedLog:
    """Raises UsageError for a file that cannot be read or prints none of the engine's figures, and for other engines."""
    if engine not in LOGGED:
        raise UsageError("engine_option", option="--log", engine="|".join(LOGGED), asked=engine)
    if engine == "vllm":
        from ..engines.vllm.log import read_log
    else:
        from ..engines.sglang.log import read_log
    log = read_log(_text(path), name=os.path.basename(path))
    if not log.printed:
        raise UsageError("vllm_log_empty", path=path)
    return log


def _text(path: str) -> str:
    from ..loaders.regular import read_regular

    try:
        return read_regular(path, cap=LARGEST_LOG_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise UsageError("llama_cpp_log", path=path, reason=error.strerror or str(error)) from None


def _cards(options: Namespace) -> Sequence[Gpu]:
    """The cards of --gpu or --memory; a stand-in for --kv-budget."""
    if options.kv_budget is not None:
        from ..fitting.serving import budget_card

        return (budget_card(options.kv_budget[1]),)
    from ..fitting.cards import cards

    return cards(options.gpu, options.memory)


def _check_engine(options: Namespace, asked: str) -> None:
    """Raises UsageError for options of another engine and for options that contradict each other."""
    for engine, names in ENGINE_OPTIONS.items():
        for name in names:
            if name not in ENGINE_OPTIONS.get(asked, ()) and getattr(options, name) != options.defaults[name]:
                raise UsageError("engine_option", option=flag(name), engine=engine, asked=asked)
    if options.kv_budget is not None and (typed := given(options, "gpu", "memory", "utilization")):
        raise UsageError("engine_budget_given", option=typed[0])
    if asked == "llama.cpp":
        if options.cache_dtype != "auto":
            raise UsageError("engine_cache_types")
        for cache_format in (options.cache_type_k, options.cache_type_v):
            if "," in cache_format:
                raise UsageError("engine_one_cache_type", found=cache_format)
    if asked not in ("transformers", "llama.cpp") and "," in options.cache_dtype:
        raise UsageError("engine_one_cache_dtype", found=options.cache_dtype)


def _serving(options: Namespace, engine: str) -> Serving:
    """The request to the engine."""
    from ..results.serving import Serving

    formats = options.cache_type_k, options.cache_type_v
    return Serving(
        engine=engine,
        batch=options.batch,
        context_tokens=options.context,
        cache_format=",".join(formats) if engine == "llama.cpp" else options.cache_dtype,
        ranks=options.tp,
        utilization=getattr(options, SHARES.get(engine, "utilization")),
        kv_budget_bytes=None if options.kv_budget is None else options.kv_budget[1],
        version=options.engine_version,
        step_tokens=options.max_num_batched_tokens,
        sequences=options.max_num_seqs,
        prefix_caching=options.enable_prefix_caching,
        sleeps=options.enable_sleep_mode,
        offloaded=options.ngl,
    )


def _layers(text: str) -> int:
    """A whole number, 0 included."""
    return 0 if text == "0" else values.parse_positive(text)
