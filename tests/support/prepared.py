"""Commands as processes of their own that need not import torch and transformers again, which takes most of a command's seconds.

A process that has imported both, and done nothing with them, forks for each command; it is what a shell's process is, but for
the imports that came before. A variable that Python or a library reads while it is imported rules it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LONGEST_SECONDS = 120
SHELL = {"LC_ALL": "C.UTF-8", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}  # in English, without colours
FREE = ("QWEN_INSPECT_CACHE", "PYTEST_CURRENT_TEST", "COLUMNS")  # read when they are needed, or by nobody
SERVER = """
import gc, json, os, signal, sys, traceback
import torch, transformers
import torch._dynamo, torch._subclasses.fake_tensor
import transformers.generation.utils, transformers.masking_utils, transformers.modeling_utils, transformers.quantizers.auto
from qwen_inspect.cli import script
gc.collect()
gc.freeze()  # a collection in a child would copy all of the parent's pages
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code = 1
    try:
        signal.alarm(asked["seconds"])
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            opened = os.open(path, os.O_RDWR)
            os.dup2(opened, number)
            os.close(opened)
        sys.argv = ["qwen_inspect", *asked["words"]]
        script()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
"""


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


class Prepared:
    """The process that forks, begun with the first command that it can run."""

    def __init__(self, **changes: str) -> None:
        """changes: variables of its commands' environments that a library reads while it is imported."""
        self._fixed = {**os.environ, **SHELL, **changes}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()  # which ends what it reads, and so the process

    def run(self, words: list[str], environment: Mapping[str, str], cwd: Path | None) -> Finished | None:
        """None where the command needs a process from the start."""
        if _read_early(environment) != _read_early(self._fixed):
            return None
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**self._fixed, "KINETO_LOG_LEVEL": "99"},  # as `memory --device` sets it before it imports torch
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            asked = {
                "words": words,
                "environment": dict(environment),
                "cwd": str(cwd or Path.cwd()),
                "out": out.name,
                "err": err.name,
                "seconds": LONGEST_SECONDS,
            }
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = self._process.stdout.readline()
            if not code:  # it could not be begun
                self._fixed = {}
                return None
            return Finished(int(code), out.read().decode(), err.read().decode())


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in FREE}


PREPARED = Prepared()
