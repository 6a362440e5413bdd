"""The program of a pasted line and its words, whatever starts it: a shell, sudo, docker, or variables set before.

Source: llama.cpp 0c1e57098, app/llama.cpp, .devops/tools.sh and .devops/*.Dockerfile; common/arg.cpp (set_env).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from ....errors import UsageError
from ....values import dataclass

LONGEST_COMMAND = 20_000
LINE_END = re.compile(r"[\\^`][ \t\r]*(\n|\Z)")  # a line that goes on, in a Unix shell, cmd or PowerShell
VARIABLE = re.compile(r"(?:.*[=:])?(LLAMA_ARG_[A-Z0-9_]+)=(.*?);?", re.DOTALL)  # "-e NAME=value", "$env:NAME=value"
SET_BEFORE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
PROGRAM = re.compile(r"(?!.*\.gguf$)(llama(-[a-z0-9][a-z0-9.-]*)?|main|server)")
NAMES_FILE = ("-m", "--model", "-md", "--model-draft", "-a", "--alias", "-hf", "--hf-repo", "-mm", "--mmproj", "--name")
OLD_NAMES = {"main": "llama-cli", "server": "llama-server"}
SUBCOMMANDS = {"serve": "server", "client": "cli", "complete": "completion"}  # of `llama`
IMAGE = re.compile(r".*llama\.cpp[^:]*:(server|light|full)\b.*")  # of docker and podman
IN_IMAGE = {"server": "llama-server", "light": "llama-cli"}
IN_FULL_IMAGE = {
    **dict.fromkeys(("--server", "-s"), "llama-server"),
    **dict.fromkeys(("--run", "-r"), "llama-cli"),
    **dict.fromkeys(("--run-legacy", "-l"), "llama-completion"),
    **dict.fromkeys(("--bench", "-b"), "llama-bench"),
    **dict.fromkeys(("--perplexity", "-p"), "llama-perplexity"),
}
AFTER = re.compile(r"\||\|\||&|&&|;|[12&]?>.*|#.*")  # what ends a command
# What web pages make of spaces and quotation marks.
TYPESET = str.maketrans(
    {**dict.fromkeys("\u00a0\u2007\u202f\u200b\u3000\ufeff", " "), **dict.fromkeys("“”„", '"'), "‘": "'", "’": "'"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """program: by its present name. words: its options. variables: LLAMA_ARG_… and their values, which options override.

    known: whether the program is one of llama.cpp's.
    """

    program: str
    words: tuple[str, ...]
    variables: Mapping[str, str]
    known: bool = True


def read_line(text: str) -> Line:
    """Raises UsageError for a line that no shell reads."""
    if len(text) > LONGEST_COMMAND:
        raise UsageError("llama_cpp_command_long", most=LONGEST_COMMAND)
    try:
        words = shlex.split(LINE_END.sub(" ", text.translate(TYPESET)), comments=False)
    except ValueError:
        raise UsageError("llama_cpp_command_quotes") from None
    if not words:
        raise UsageError("llama_cpp_command_empty")
    at, program, used = next(_programs(words), (0, "", 0)) if not words[0].startswith("-") else (0, "llama-server", 0)
    variables = {match[1]: match[2] for word in words[:at] if (match := VARIABLE.fullmatch(word))}
    known = bool(program)
    if not known:
        at = next((at for at, word in enumerate(words) if not SET_BEFORE.fullmatch(word)), len(words))
        program, used, known = (words[at], 1, False) if at < len(words) else ("llama-server", 0, True)
    end = next((end for end in range(at + used, len(words)) if AFTER.fullmatch(words[end])), len(words))
    return Line(program=program, words=tuple(words[at + used : end]), variables=variables, known=known)


def _programs(words: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """Where a program stands, which it is, and how many words name it."""
    for at, word in enumerate(words):
        following = words[at + 1] if at + 1 < len(words) else ""
        if match := IMAGE.fullmatch(word):
            if match[1] != "full":
                yield at, IN_IMAGE[match[1]], 1
            elif following in IN_FULL_IMAGE:
                yield at, IN_FULL_IMAGE[following], 2
        elif (at and words[at - 1] in NAMES_FILE) or {"docker", "podman"} & {*words[:at]}:
            continue
        elif match := PROGRAM.fullmatch(re.split(r"[/\\]", word)[-1].removesuffix(".exe")):
            name = match[0]
            if name == "llama" and following and not following.startswith("-"):
                yield at, f"llama-{SUBCOMMANDS.get(following, following)}", 2
            yield at, OLD_NAMES.get(name, name), 1
