"""The command line: arguments in, exit code out.

Everything else is imported when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence

from .commands import language_choice, parsed
from .console import EXIT_MALFORMED, EXIT_USAGE, complain, one_line, silence_stdout, work_shown
from .interrupts import EXIT_INTERRUPTED, leave, on_interrupt
from .language import Language, language_of
from .options.parser import Namespace, WrongArgumentError
from .standard import signal
from .typed import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .errors import QwenInspectError

NO_MODEL = frozenset({"hf_no_repo", "hf_no_repo_token", "ms_no_repo", "offline_missing"})
WAITING = frozenset({"torch", "huggingface_hub", "modelscope_hub"})  # packages with threads, files and caches to close


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    say = Language(language_of(language_choice(words), os.environ))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by the caller
            # Characters outside the terminal's encoding are escaped.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    collecting = gc.isenabled()
    gc.disable()  # a short command without reference cycles: with 36,945 tensors the collector would take a quarter of the time
    try:
        return _run(parsed(words, say), say)
    except WrongArgumentError as error:
        complain(say("error", message=one_line(str(error))))
        return EXIT_USAGE
    except KeyboardInterrupt:
        complain(say("interrupted"))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence_stdout()  # the reader, such as `head`, has closed the pipe
        return 0
    except MemoryError:
        complain(say("error", message=say("out_of_memory")))
        return EXIT_MALFORMED
    finally:
        if collecting:
            gc.enable()


def script() -> NoReturn:
    """`main` for a shell; Ctrl-C after its end is quiet. Skips the interpreter's shutdown unless a package of `WAITING` needs it:
    freeing tens of thousands of objects would take a tenth of a short command's time."""
    try:
        on_interrupt(signal.default_int_handler)
        code = main()
        on_interrupt(leave)
    except KeyboardInterrupt:
        leave()
    if WAITING.isdisjoint(sys.modules):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(options: Namespace, say: Language) -> int:
    from .errors import QwenInspectError

    try:
        with work_shown(say, quiet=options.quiet):
            code: int = options.run(options, say)
            return code
    except QwenInspectError as error:
        complain(say("error", message=one_line(_with_hint(error, say))))
        return error.exit_code


def _with_hint(error: QwenInspectError, say: Language) -> str:
    """The error; of a model that is nowhere, with models of the catalog that have nearly its name."""
    sentence = say(error.message)
    missing = str(error.message.values.get("model", error.message.values.get("id", "")))
    if error.message.key not in NO_MODEL:
        return sentence
    from .loaders import catalog
    from .options.parser import did_you_mean

    hint = did_you_mean(missing, [name for name in catalog.entries() if name != missing], say)
    return say("usage_with_hint", sentence=sentence, hint=hint) if hint else sentence
