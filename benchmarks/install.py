"""What a plain install takes: the wheel, a new virtual environment with it alone, and the commands that need no install.

Builds the wheel, installs it with pip, and prints every distribution with its megabytes, as files and with compiled bytecode.
`uvx` and `pipx run` are tried where uv and pipx are installed. Asks the package index; judges nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
LISTED = """
import json
from importlib.metadata import distributions
of = lambda one: [str(file.locate()) for file in one.files or ()]
print(json.dumps({f"{one.metadata['Name']} {one.version}": of(one) for one in distributions()}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "made")
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "recorded"))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", made, source], check=True)
        (wheel,) = made.glob("*.whl")
        with ZipFile(wheel) as packed:
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {len(packed.namelist())} files\n")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{folder}/plain"], check=True)
        python = f"{folder}/plain/bin/python"
        subprocess.run([*pip, "--python", python, "install", "--quiet", wheel], check=True)
        seconds = time.perf_counter() - began
        listed = json.loads(subprocess.run([python, "-c", LISTED], check=True, capture_output=True, text=True).stdout)
        total = bare = 0.0
        for name, files in sorted(listed.items()):
            sizes = {file: Path(file).stat().st_size / 1e6 for file in files if Path(file).is_file()}
            without = sum(size for file, size in sizes.items() if not file.endswith(".pyc"))
            total, bare = total + sum(sizes.values()), bare + without
            print(f"{name:<44}{without:>8.2f}{sum(sizes.values()):>8.2f} MB")
        print(f"{len(listed)} distributions{'':<29}{bare:>8.2f}{total:>8.2f} MB, {seconds:.1f} s\n")
        home = {**os.environ, "HOME": folder, "UV_CACHE_DIR": f"{folder}/uv", "PIPX_HOME": f"{folder}/pipx"}
        for name, command in (
            ("uvx", ["uvx", "--from", str(wheel), "qwen-inspect", "structure"]),
            ("pipx run", ["pipx", "run", "--spec", str(wheel), "qwen-inspect", "structure"]),
        ):
            if shutil.which(command[0]) is None:
                print(f"{name}: {command[0]} is not installed")
                continue
            for label in ("first", "again"):
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=home)
                print(f"{name + ', ' + label:<44}{time.perf_counter() - began:>8.2f} s")


if __name__ == "__main__":
    main()
