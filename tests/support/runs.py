"""Runs to predict, and an environment without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen_inspect.results.memory import Run


def a_run(**changes: Any) -> Run:
    usual: dict[str, Any] = {
        "mode": "generate",
        "batch": 1,
        "prompt_tokens": 64,
        "new_tokens": 8,
        "attention": "sdpa",
        "loader": "warmup",
        "gpu": "sm_80",
    }
    return Run(**{**usual, **changes})


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'accelerate'):\n    sys.modules[name] = None\n"
        "from qwen_inspect.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
