"""The help of a command: how it is called, its options in groups, examples. `--help` has what most people need, `--help-all` all.

Chinese characters count as two columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..language import Language
from ..renderers.characters import width
from ..renderers.wrapping import wrapped
from .parser import PROGRAM, Action, Parser

WIDEST = 100  # columns of a page; longer lines are hard to read
INDENT = 2
BESIDE = 25  # the column in which descriptions begin
# Every option by its longest name, and every positional argument, in the order of the page.
GROUPS: Mapping[str, Sequence[str]] = {
    "options_model": ("model", "models", "--from", "--revision", "--file", "--trust-remote-code"),
    "options_arguments": ("filter", "of", "shell"),
    "options_run": (
        *(
            "--mode",
            "--batch",
            "--context",
            "--source-tokens",
            "--max-model-len",
            "--new-tokens",
            "--dtype",
            "--group-size",
            "--attention",
        ),
        *("--cache-dtype", "--cache", "--load", "--padded", "--autocast", "--transformers"),
    ),
    "options_media": ("--image", "--video", "--audio", "--min-pixels", "--max-pixels", "--total-pixels", "--fps"),
    "options_card": ("--gpu", "--memory", "--beyond-limit"),
    "options_training": (
        *("--lora", "--lora-targets", "--lora-parameters", "--modules-to-save"),
        *("--lora-alpha", "--lora-dropout", "--dora", "--rslora"),
        *("--trained", "--freeze", "--optimizer", "--accumulate", "--no-checkpointing"),
        *("--loop", "--loss", "--completion-only", "--padding-free", "--packing", "--ema"),
        *("--no-keep-gradients", "--no-keep-logits", "--no-clip"),
    ),
    "options_engine": (
        *("--engine", "--utilization", "--kv-budget", "--max-num-batched-tokens", "--max-num-seqs"),
        *(
            "--enable-prefix-caching",
            "--no-enable-prefix-caching",
            "--enable-sleep-mode",
            "--engine-version",
            "--speculative-config",
            "--vllm",
            "--mem-fraction-static",
            "--cache-max-entry-count",
            "--free-gpu-memory-fraction",
            "--sglang",
        ),
        *(
            "--ngl",
            "--cache-type-k",
            "--cache-type-v",
            "--quant",
            "--llama-cpp",
            "--log",
            "--calibration",
            "--host-memory",
        ),
    ),
    "options_device": ("--device", "--random-weights", "--force", "--snapshot", "--prompt", "--max-new-tokens"),
    "options_grpo": ("--rollout", "--rollouts", "--sleep", "--reference", "--reward"),
    "options_devices": (
        *("--tp", "--pp", "--ep", "--fsdp", "--zero-stage", "--deepspeed"),
        *("--offload", "--offload-optimizer", "--offload-params", "--device-map", "--device-memory"),
    ),
    "options_shown": (
        *(
            "--expand",
            "--depth",
            "--first-layer",
            "--explain",
            "--sort",
            "--top",
            "--plot",
            "--speed",
            "--instantiate",
            "--measured",
        ),
    ),
    "options_check": (*("--check", "--update", "--expect-params", "--expect-attention", "--max-vram"),),
    "options_access": ("--headers", "--timeout", "--refresh", "--offline", "--partial"),
    "options_output": (
        *("--format", "--output", "--overwrite", "--lang", "--no-color", "--quiet", "--verbose"),
        *("--help", "--help-all", "--version"),
    ),
}
# What `--help` shows of every command, and of each.
ALWAYS = ("model", "models", "--format", "--output", "--lang")
OFTEN: Mapping[str, Sequence[str]] = {
    "": ("--quiet", "--version"),
    "structure": ("--expand", "--depth", "--first-layer", "--context", "--dtype", "--prompt"),
    "config": ("--explain",),
    "weights": ("--sort", "--top", "--offline"),
    "params": ("--instantiate", "--expect-params"),
    "attention": ("--batch", "--context", "--image", "--video", "--cache-dtype", "--expand", "--plot"),
    "memory": ("--gpu", "--batch", "--context", "--new-tokens", "--dtype", "--mode", "--lora", "--device", "--plot"),
    "fit": ("--gpu", "--memory", "--batch", "--context", "--dtype", "--engine", "--mode"),
    "diagram": ("--overwrite",),
    "compare": ("--gpu", "--batch", "--context", "--dtype", "--expand"),
    "report": ("--context", "--instantiate", "--measured", "--check", "--update", "--max-vram"),
    "models": ("filter",),
    "schema": ("of",),
    "completion": ("shell",),
}
EXAMPLES: Mapping[str, Sequence[str]] = {
    "": (
        "memory Qwen/Qwen3-8B --gpu 4090",
        "structure Qwen/Qwen3-8B",
        "fit Qwen/Qwen3-32B --gpu 4090,H100 --dtype int4",
    ),
    "structure": ("structure Qwen/Qwen3-8B", "structure . --expand", "structure catalog:Qwen/Qwen3-0.6B --first-layer"),
    "config": ("config Qwen/Qwen3-8B --explain", "config ./config.json --format json"),
    "weights": ("weights Qwen/Qwen3-8B --sort size --top 10", "weights model.safetensors --format csv -o tensors.csv"),
    "params": ("params Qwen/Qwen3-8B", "params Qwen/Qwen3-0.6B --expect-params 596,049,920", "params . --instantiate"),
    "attention": (
        "attention Qwen/Qwen3-8B --context 32k",
        "attention Qwen/Qwen3-8B --batch 8 --cache-dtype fp8",
        "attention Qwen/Qwen3-VL-8B-Instruct --image 1024x768",
    ),
    "memory": (
        "memory Qwen/Qwen3-8B --gpu 4090 --context 32k",
        "memory Qwen/Qwen3-8B --mode train --lora 16 --dtype int4",
        "memory Qwen/Qwen3-0.6B --device cuda",
    ),
    "fit": (
        "fit Qwen/Qwen3-8B --gpu 4090",
        "fit Qwen/Qwen3-32B --gpu 4090,A100-80G --dtype int4 --context 16k",
        "fit Qwen/Qwen3-8B --engine vllm --gpu H100 --context 32k",
    ),
    "diagram": ("diagram Qwen/Qwen3-8B -o qwen3-8b.svg", "diagram . -o model.png --lang zh"),
    "compare": ("compare Qwen/Qwen3-8B Qwen/Qwen2.5-7B", "compare hf:Qwen/Qwen3-8B ms:Qwen/Qwen3-8B"),
    "report": ("report Qwen/Qwen3-8B -o reports", "report --check -o reports", "report . --format html -o reports"),
    "models": ("models", "models 30b", "models vl moe --format csv"),
    "gpus": ("gpus", "gpus --format csv"),
    "schema": ("schema memory", "schema -o qwen-inspect.schema.json"),
    "completion": (
        'eval "$(qwen-inspect completion bash)"',
        "completion zsh -o ~/.zfunc/_qwen-inspect",
        "completion fish -o ~/.config/fish/completions/qwen-inspect.fish",
    ),
}


def page(parser: Parser, commands: Sequence[str], say: Language, *, whole: bool) -> str:
    """The help of the parser's command; of the program, with its commands, where there is none. whole: every option."""
    return "\n\n".join("\n".join(block) for block in _blocks(parser, commands, say, _columns(), whole=whole)) + "\n"


def _blocks(
    parser: Parser, commands: Sequence[str], say: Language, columns: int, *, whole: bool
) -> Iterator[Sequence[str]]:
    command = parser.command
    arguments = [_written(action) for action in parser.actions if not action.option_strings]
    what = [*arguments, say("usage_options")] if command else [say("help_command"), say("usage_options")]
    yield [say("usage_line", call=" ".join([parser.prog, *what]))]
    about = f"about_{command}"
    yield wrapped(say(about if about in say else f"help_{command or 'program'}"), columns)
    if not command:
        yield [
            say("options_commands"),
            *(line for name in commands for line in _row(name, say(f"help_{name}"), columns)),
        ]
    ordered = {
        name: action for names in GROUPS.values() for name in names for action in parser.actions if name == key(action)
    }
    shown = {"options_usual": (*ALWAYS, *OFTEN.get(command, ()))}
    for group, names in (GROUPS if whole else shown).items():
        rows = [
            line
            for name, action in ordered.items()
            if name in names
            for line in _row(_written(action), action.help or "", columns)
        ]
        if rows:
            yield [say(group), *rows]
    yield [say("options_examples"), *(f"  {line}" for line in examples(command))]
    if not whole:
        yield [say("usage_more" if command else "usage_more_commands", program=parser.prog)]


def examples(command: str) -> Sequence[str]:
    """Lines to type, for `command` or for the program."""
    lines = EXAMPLES[command]
    return [line if line.startswith("eval") else f"{PROGRAM} {line}" for line in lines]


def key(action: Action) -> str:
    """The name under which GROUPS has the option."""
    return action.option_strings[-1] if action.option_strings else action.dest


def _written(action: Action) -> str:
    """How an option or argument is typed: "-o, --output FILE"."""
    value = action.metavar or "|".join(map(str, action.choices or ()))
    if not action.option_strings:
        return f"[{value}]" if action.nargs == "?" else f"[{value} ...]" if action.nargs == "*" else str(value)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def _row(name: str, text: str, columns: int) -> list[str]:
    """A name, and its description beside it, or below a long name."""
    lines = wrapped(text, columns - BESIDE)
    begin = " " * INDENT + name
    if width(begin) + 2 > BESIDE:
        return [begin, *(" " * BESIDE + line for line in lines)]
    first, *others = lines
    return [(begin + " " * (BESIDE - width(begin)) + first).rstrip(), *(" " * BESIDE + line for line in others)]


def _columns() -> int:
    from shutil import get_terminal_size

    return max(50, min(WIDEST, get_terminal_size().columns))
