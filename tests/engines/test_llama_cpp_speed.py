"""How long a pasted command takes: processor time beside a Python that does nothing, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..support.gguf_files import QWEN3, write_model

RUNS = 4
FEW_TIMES = 10  # of bare Python, for a whole command
HEADER_TIMES = 7  # for its header alone; the fastest other reader takes 6.3 times as long as bare Python


def processor_seconds(arguments: Sequence[str]) -> float:
    """The least of some runs, after one that leaves the modules' bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    taken = []
    for _ in range(RUNS + 1):
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        taken.append(usage.ru_utime + usage.ru_stime)
    return min(taken[1:])


def test_a_command_takes_less_than_ten_times_bare_python(tmp_path: Path) -> None:
    """On a file with 36 layers and Qwen3's vocabulary (a header of 7 MB), with all buffers and how far the command could go."""
    path = write_model(tmp_path / "model.gguf", "qwen3", {**QWEN3, "num_hidden_layers": 36}, tokens=151_936)
    command = ("fit", "--memory", "24GiB", "--llama-cpp", f"llama-server -m {path} -ngl 99 -c 32768 -ctk q8_0")
    nothing = processor_seconds(["-c", "pass"])
    assert processor_seconds(["-m", "qwen_inspect", *command]) < FEW_TIMES * nothing
    assert processor_seconds(["-m", "qwen_inspect", "weights", str(path)]) < HEADER_TIMES * nothing
    names = "{'torch', 'transformers', 'accelerate', 'numpy', 'gguf'}"
    script = (
        f"import sys; from qwen_inspect.cli import main; main({command!r}); sys.exit(str({names} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "set()"
