"""What can be typed: the commands, their options, and how values are read. Imports nothing heavy, for `--help` needs it all."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from . import __version__
from .language import LANGUAGES, Language

DEFAULT_PROMPT_TOKENS = 2048
DEFAULT_MODEL = "catalog:Qwen/Qwen3-0.6B"  # as loaders.resolve has it, which is not imported for --help
COMMANDS = (
    "structure",
    "config",
    "weights",
    "params",
    "attention",
    "memory",
    "fit",
    "diagram",
    "compare",
    "report",
    "models",
    "gpus",
)
FORMATS = ("table", "md", "html", "json")
REPORT_FORMATS = ("md", "html", "json", "github")
PLAIN_DTYPES = ("bfloat16", "float16", "float32", "float64")
# As architectures.quantised has them, which is not imported for --help.
SCHEMES = ("awq-int4", "gptq-int4", "gptq-int8", "fp8", "bnb-int8", "bnb-nf4", "bnb-fp4", "bnb-nf4-double", "nvfp4")
SHARED_BY = ("tp", "pp", "ep", "fsdp")
# Options of fit by the engine that they belong to; the others are of all.
ENGINE_OPTIONS: Mapping[str, Sequence[str]] = {
    "transformers": (
        *("mode", "new_tokens", "attention", "cache", "load", "padded"),
        *("optimizer", "checkpointing", "trained", "lora", "lora_targets", "accumulate", "autocast"),
    ),
    "vllm": ("utilization", "kv_budget", "tp", "max_num_batched_tokens", "enable_prefix_caching"),
    "llama.cpp": ("ngl", "cache_type_k", "cache_type_v"),
}


class WrongArgumentError(Exception):
    """What is wrong with the arguments, in a sentence."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a wrong argument instead of the usage."""

    def error(self, message: str) -> NoReturn:
        raise WrongArgumentError(message)


def language_choice(words: Sequence[str]) -> str:
    """What `--lang` says, before the arguments are parsed: their help is in that language too."""
    for index, word in enumerate(words):
        value = word.partition("=")[2] if word.startswith("--lang=") else words[index + 1 : index + 2]
        if word == "--lang" or word.startswith("--lang="):
            chosen = value if isinstance(value, str) else "".join(value)
            return chosen if chosen in LANGUAGES else "auto"
    return "auto"


def parser(say: Language, words: Sequence[str]) -> argparse.ArgumentParser:
    """With the options of the commands that are among `words`; those of all of them take longer than a short command."""

    shape = partial(argparse.HelpFormatter, width=_help_width(words))
    program = Parser(
        prog="qwen-inspect",
        description=say("help_program"),
        add_help=False,
        allow_abbrev=False,
        formatter_class=shape,
    )
    program.add_argument("-h", "--help", action="help", help=say("help_help"))
    program.add_argument("--version", action="version", version=f"qwen-inspect {__version__}", help=say("help_version"))
    program.add_argument("--lang", choices=("auto", *LANGUAGES), default="auto", help=say("help_lang"))
    commands = program.add_subparsers(
        dest="command", required=True, metavar=say("help_command"), parser_class=Parser, prog=program.prog
    )
    for name in COMMANDS:
        command = commands.add_parser(
            name,
            help=say(f"help_{name}"),
            description=say(f"help_{name}"),
            add_help=False,
            allow_abbrev=False,
            formatter_class=shape,
        )
        if name not in words:
            continue
        _OWN_OPTIONS[name](command, say)
        _common_options(command, say)
        if name not in ("diagram", "report"):
            command.add_argument("--format", choices=FORMATS, default="table", help=say("help_format"))
    return program


def _help_width(words: Sequence[str]) -> int:
    """argparse's own, which it would look up once for every option, whether help is asked for or not."""
    if not {"-h", "--help"} & set(words):
        return 80
    from shutil import get_terminal_size

    return get_terminal_size().columns - 2


def _common_options(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument("--lang", choices=("auto", *LANGUAGES), default="auto", help=say("help_lang"))
    is_report = command.prog.endswith(" report")
    where, what = ("DIR", say("help_report_output")) if is_report else ("FILE", say("help_output"))
    command.add_argument("-o", "--output", metavar=where, help=what)
    command.add_argument("--overwrite", action="store_true", help=say("help_overwrite"))
    command.add_argument("--no-color", action="store_true", help=say("help_no_color"))
    command.add_argument("-q", "--quiet", action="store_true", help=say("help_quiet"))
    command.add_argument("-v", "--verbose", action="store_true", help=say("help_verbose"))
    command.add_argument("-h", "--help", action="help", help=say("help_help"))


def _model_options(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=say("help_model", default=DEFAULT_MODEL)
    )
    command.add_argument(
        "--from", dest="source", choices=("auto", "hf", "ms", "local", "catalog"), default="auto", help=say("help_from")
    )
    command.add_argument("--revision", metavar="REV", help=say("help_revision"))
    command.add_argument("--file", metavar="NAME", help=say("help_file"))
    command.add_argument("--trust-remote-code", action="store_true", help=say("help_trust_remote_code"))
    _access_options(command, say)


def _access_options(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument("--timeout", type=_positive(say), default=10, metavar="SECONDS", help=say("help_timeout"))
    command.add_argument("--refresh", action="store_true", help=say("help_refresh"))
    command.add_argument("--offline", action="store_true", help=say("help_offline"))
    command.add_argument("--partial", action="store_true", help=say("help_partial"))


def _workload_options(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument("--batch", type=_positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument("--context", type=_tokens(say), metavar="TOKENS", help=say("help_context"))
    command.add_argument("--cache-dtype", default="auto", metavar="FORMAT", help=say("help_cache_dtype"))
    command.add_argument("--tp", type=_positive(say), default=1, metavar="N", help=say("help_tp"))


def _structure_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    command.add_argument("--depth", type=_positive(say), metavar="N", help=say("help_depth"))
    command.add_argument("--first-layer", action="store_true", help=say("help_first_layer"))
    _workload_options(command, say)
    command.add_argument("--prompt", metavar="TEXT", help=say("help_prompt_text"))
    command.add_argument("--max-new-tokens", type=_positive(say), metavar="N", help=say("help_max_new_tokens"))
    command.add_argument("--device", metavar="DEVICE", help=say("help_device"))
    command.add_argument("--dtype", choices=PLAIN_DTYPES, metavar="DTYPE", help=say("help_dtype"))


def _config_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.add_argument("--explain", action="store_true", help=say("help_explain"))


def _weights_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.add_argument("--sort", choices=("name", "size"), default="name", help=say("help_sort"))
    command.add_argument("--top", type=_positive(say), default=20, metavar="N", help=say("help_top"))


def _params_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.add_argument("--instantiate", action="store_true", help=say("help_instantiate"))
    command.add_argument("--expect-params", type=_positive(say), metavar="N", help=say("help_expect_params"))


def _attention_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand"))
    _workload_options(command, say)
    command.add_argument("--plot", metavar="FILE", help=say("help_cache_plot"))


def _run_options(command: argparse.ArgumentParser, say: Language) -> None:
    """What is predicted, of `memory` and of `compare`."""
    command.add_argument("--mode", choices=("generate", "forward", "train"), default="generate", help=say("help_mode"))
    command.add_argument("--batch", type=_positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument(
        "--context", type=_tokens(say), default=DEFAULT_PROMPT_TOKENS, metavar="TOKENS", help=say("help_prompt")
    )
    command.add_argument("--new-tokens", type=_positive(say), default=128, metavar="N", help=say("help_new_tokens"))
    command.add_argument("--dtype", choices=(*PLAIN_DTYPES, *SCHEMES), metavar="DTYPE", help=say("help_dtype"))
    command.add_argument("--group-size", type=_positive(say), metavar="N", help=say("help_group_size"))
    kernels = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_2_repeated")
    command.add_argument("--attention", choices=kernels, default="auto", help=say("help_attention_kernel"))
    optimizers = ("adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "sgd", "none")
    command.add_argument("--optimizer", choices=optimizers, default="adamw_foreach", help=say("help_optimizer"))
    command.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help=say("help_checkpointing"))
    command.add_argument("--trained", default="", metavar="REGEX", help=say("help_trained"))
    command.add_argument("--lora", type=_positive(say), metavar="RANK", help=say("help_lora"))
    command.add_argument("--lora-targets", metavar="NAMES", help=say("help_lora_targets"))
    command.add_argument("--accumulate", type=_positive(say), default=1, metavar="N", help=say("help_accumulate"))
    command.add_argument("--cache-dtype", default="auto", metavar="FORMAT", help=say("help_cache_dtype"))
    command.add_argument("--cache", choices=("dynamic", "static"), default="dynamic", help=say("help_cache"))
    command.add_argument("--load", choices=("warmup", "per-tensor"), default="warmup", help=say("help_load"))
    cards = not command.prog.endswith(" memory")
    what = say("help_cards" if cards else "help_gpu")
    command.add_argument("--gpu", default=None if cards else "sm_80", metavar="NAME", help=what)


def _autocast_option(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument("--autocast", choices=("bfloat16", "float16"), help=say("help_autocast"))


def _memory_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    _run_options(command, say)
    command.add_argument("--padded", action="store_true", help=say("help_padded"))
    _autocast_option(command, say)
    command.add_argument("--plot", metavar="FILE", help=say("help_plot"))
    command.add_argument("--device", metavar="DEVICE", help=say("help_measure"))
    command.add_argument("--random-weights", action="store_true", help=say("help_random_weights"))
    command.add_argument("--force", action="store_true", help=say("help_force"))
    command.add_argument("--snapshot", metavar="FILE", help=say("help_snapshot"))
    for name in SHARED_BY:
        command.add_argument(f"--{name}", type=_positive(say), metavar="N", help=say(f"help_ranks_{name}"))
    command.add_argument("--zero-stage", type=int, choices=(1, 2, 3), help=say("help_zero_stage"))
    command.add_argument("--device-map", choices=("auto",), help=say("help_device_map"))
    command.add_argument("--device-memory", type=_capacities(say), metavar="SIZES", help=say("help_device_memory"))


def _fit_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    _run_options(command, say)
    command.add_argument("--padded", action="store_true", help=say("help_padded"))
    _autocast_option(command, say)
    command.add_argument("--memory", type=_size(say), metavar="SIZE", help=say("help_card_memory"))
    command.add_argument("--beyond-limit", action="store_true", help=say("help_beyond_limit"))
    engines = ("transformers", "vllm", "llama.cpp")
    command.add_argument("--engine", choices=engines, default="transformers", help=say("help_engine"))
    command.add_argument(
        "--max-model-len", dest="context", type=_tokens(say), metavar="TOKENS", help=say("help_max_model_len")
    )
    command.set_defaults(context=None)  # an engine's is the model's limit
    command.add_argument("--utilization", type=_share(say), metavar="SHARE", help=say("help_utilization"))
    command.add_argument("--kv-budget", type=_size(say), metavar="SIZE", help=say("help_kv_budget"))
    command.add_argument("--tp", type=_positive(say), default=1, metavar="N", help=say("help_tp"))
    command.add_argument("--enable-prefix-caching", action="store_true", help=say("help_enable_prefix_caching"))
    step_help = say("help_max_num_batched_tokens")
    command.add_argument("--max-num-batched-tokens", type=_tokens(say), metavar="TOKENS", help=step_help)
    command.add_argument("--ngl", type=_layers(say), metavar="N", help=say("help_ngl"))
    command.add_argument("--cache-type-k", default="auto", metavar="FORMAT", help=say("help_cache_type_k"))
    command.add_argument("--cache-type-v", default="auto", metavar="FORMAT", help=say("help_cache_type_v"))
    own = [name for names in ENGINE_OPTIONS.values() for name in names]
    command.set_defaults(not_given={name: command.get_default(name) for name in own})


def _diagram_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.set_defaults(format="svg")


def _compare_options(command: argparse.ArgumentParser, say: Language) -> None:
    command.add_argument("models", nargs="+", metavar="MODEL", help=say("help_compared"))
    command.add_argument("--trust-remote-code", action="store_true", help=say("help_trust_remote_code"))
    _access_options(command, say)
    _run_options(command, say)
    command.add_argument("--expand", action="store_true", help=say("help_expand_equal"))


def _report_options(command: argparse.ArgumentParser, say: Language) -> None:
    _model_options(command, say)
    command.set_defaults(model=None)  # a check without a model is of every report there is
    command.add_argument("--format", choices=REPORT_FORMATS, default="md", help=say("help_report_format"))
    command.add_argument("--check", action="store_true", help=say("help_check"))
    command.add_argument("--update", action="store_true", help=say("help_update"))
    command.add_argument("--instantiate", action="store_true", help=say("help_instantiate"))
    command.add_argument("--batch", type=_positive(say), default=1, metavar="N", help=say("help_batch"))
    command.add_argument("--context", type=_tokens(say), metavar="TOKENS", help=say("help_report_context"))
    command.add_argument("--new-tokens", type=_positive(say), default=128, metavar="N", help=say("help_new_tokens"))
    command.add_argument("--measured", action="append", default=[], metavar="FILE", help=say("help_measured_file"))
    command.add_argument("--max-vram", type=_size(say), metavar="SIZE", help=say("help_max_vram"))
    command.add_argument("--expect-params", type=_positive(say), metavar="N", help=say("help_expect_count"))
    kinds = ("mha", "gqa", "mqa", "mixed")
    command.add_argument("--expect-attention", choices=kinds, help=say("help_expect_attention"))


def _table_options(command: argparse.ArgumentParser, say: Language) -> None:
    """`models` and `gpus` take no model."""


_OWN_OPTIONS = {
    "structure": _structure_options,
    "config": _config_options,
    "weights": _weights_options,
    "params": _params_options,
    "attention": _attention_options,
    "memory": _memory_options,
    "fit": _fit_options,
    "diagram": _diagram_options,
    "compare": _compare_options,
    "report": _report_options,
    "models": _table_options,
    "gpus": _table_options,
}


class _positive:
    """Reads a whole number above 0, with or without thousands separators."""

    def __init__(self, say: Language) -> None:
        self._say = say

    def __call__(self, text: str) -> int:
        digits = text.replace(",", "").replace("_", "")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18 or int(digits) == 0:
            raise argparse.ArgumentTypeError(self._say("usage_positive", text=text))
        return int(digits)


class _layers(_positive):
    """Reads a whole number, 0 among them."""

    def __call__(self, text: str) -> int:
        return 0 if text == "0" else super().__call__(text)


class _share:
    """Reads a share of a whole: above 0, 1 at most."""

    def __init__(self, say: Language) -> None:
        self._say = say

    def __call__(self, text: str) -> float:
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise argparse.ArgumentTypeError(self._say("usage_share", text=text))
        return share


class _tokens:
    """Reads a number of tokens, such as 32768 or 32k."""

    def __init__(self, say: Language) -> None:
        self._say = say

    def __call__(self, text: str) -> int:
        from .units import parse_tokens

        try:
            return parse_tokens(text)
        except ValueError:
            raise argparse.ArgumentTypeError(self._say("usage_tokens", text=text)) from None


class _size:
    """Reads a size such as 16GiB, as typed and in bytes."""

    def __init__(self, say: Language) -> None:
        self._say = say

    def __call__(self, text: str) -> tuple[str, int]:
        from .units import parse_size

        try:
            return text, parse_size(text)
        except ValueError:
            raise argparse.ArgumentTypeError(self._say("usage_size", text=text)) from None


class _capacities:
    """Reads sizes of devices such as 24GiB,24GiB,cpu=64GiB, in bytes: GPUs by their order, then others by name."""

    def __init__(self, say: Language) -> None:
        self._say = say

    def __call__(self, text: str) -> dict[str, int]:
        from .units import parse_size

        found: dict[str, int] = {}
        for item in text.split(","):
            name, _, size = item.rpartition("=")
            device = name.strip() or str(sum(map(str.isdigit, found)))
            try:
                size_bytes = parse_size(size.strip())
            except ValueError:
                size_bytes = 0
            if not size_bytes or device in found or (device != "cpu" and not device.isdigit()) or len(device) > 4:
                raise argparse.ArgumentTypeError(self._say("usage_capacities", text=text))
            found[device] = size_bytes
        return found
