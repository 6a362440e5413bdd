"""Hubs asked through the command: its tokens, answers and refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..hub.repos import HubFile
from ..hub.server import HubServer
from .prepared import Finished

SOURCES = ("hf", "ms")

TOKEN = "hf_secretsecretsecret"

Files = dict[str, HubFile | bytes | Path]


def variables(hub: HubServer, home: Path, **changes: str | None) -> dict[str, str]:
    """The environment of a person whose hubs are this server, whose home is empty, and who has set nothing else."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "MODELSCOPE_", "TRANSFORMERS_", "XDG_", "QWEN_")) and "proxy" not in name.lower()
    }
    wanted = {**inherited, **hub.environment(home), "LC_ALL": "C.UTF-8", "NO_COLOR": "1", **changes}
    return {name: value for name, value in wanted.items() if value is not None}


def ask(hub: HubServer, home: Path, *arguments: str, **changes: str | None) -> Finished:
    command = [sys.executable, "-m", "qwen_inspect", *arguments]
    done = subprocess.run(command, capture_output=True, env=variables(hub, home, **changes), timeout=90, check=False)
    shown = Finished(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in shown.err, shown.err
    assert not re.search("secretsecret|hf_reader", shown.out + shown.err)
    return shown


def ask_json(hub: HubServer, home: Path, *arguments: str, **changes: str | None) -> dict[str, Any]:
    shown = ask(hub, home, *arguments, "--format", "json", **changes)
    assert shown.code == 0, shown.err
    content: dict[str, Any] = json.loads(shown.out)
    return content


def refused(shown: Finished, code: int, *words: str) -> None:
    """One line on stderr that says these words, nothing on stdout, and the documented exit code."""
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert (shown.code, shown.out, len(errors)) == (code, "", 1), shown
    for word in words:
        assert word in errors[0]
