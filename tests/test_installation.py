"""What `pip install qwen-inspect` brings: few packages, little space, and all that reading from both hubs needs."""

from __future__ import annotations

import json
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .hub.server import HubRepo, HubServer, safetensors_file
from .support.asking import variables
from .support.models import TINY_QWEN3

PLAIN = """
import sys
from importlib.metadata import packages_distributions

class Refusing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and not set(owners.get(top, [])) <= installed:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

installed, owners = set(sys.argv.pop(1).split(",")), packages_distributions()
sys.meta_path.insert(0, Refusing())
"""
COMMAND = "from qwen_inspect.cli import script; script()"
DOWNLOAD = """
from qwen_inspect.errors import UnavailableError
from qwen_inspect.loaders.named import hub_of
try:
    hub_of(sys.argv[1]).download("org/model", "main", [], print)
except UnavailableError as error:
    sys.exit(str(error))
"""


ROOT = Path(__file__).parent.parent


def plain_install() -> dict[str, int]:
    """The distributions that setup.cfg's install_requires bring, by the metadata of those that are installed: their bytes."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    waiting = [Requirement(line) for line in settings["options"]["install_requires"].split("\n") if line]
    bytes_of = {"qwen-inspect": sum(file.stat().st_size for file in (ROOT / "qwen_inspect").rglob("*"))}
    while waiting:
        installed = distribution(waiting.pop().name)
        name = installed.metadata["Name"]
        if name not in bytes_of:
            files = [Path(str(file.locate())) for file in installed.files or ()]
            bytes_of[name] = sum(file.stat().st_size for file in files if file.is_file())
            required = [Requirement(text) for text in installed.requires or ()]
            waiting += [more for more in required if more.marker is None or more.marker.evaluate({"extra": ""})]
    return bytes_of


def test_a_plain_install_is_small() -> None:
    bytes_of = plain_install()
    assert sorted(bytes_of) == ["certifi", "qwen-inspect"]
    assert sum(bytes_of.values()) < 30_000_000, bytes_of


@pytest.mark.parametrize(("source", "client"), [("hf", "huggingface_hub"), ("ms", "modelscope_hub")])
def test_a_plain_install_reads_from_the_hubs_and_says_what_downloads_need(
    source: str, client: str, tmp_path: Path
) -> None:
    weights = safetensors_file({"w": ("F32", (2,))})
    model = HubRepo("org/model", {"config.json": json.dumps(dict(TINY_QWEN3)).encode(), "model.safetensors": weights})
    plain = ",".join(plain_install())
    with HubServer([model]) as hub:

        def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", PLAIN + script, plain, *arguments]
            return subprocess.run(command, capture_output=True, text=True, env=variables(hub, tmp_path), check=False)

        shown = run(COMMAND, "weights", f"{source}:org/model", "--format", "json")
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["totals"]["elements"] == 2
        expected = f'{client} is not installed; install it with: pip install "qwen-inspect[hub]"'
        assert run(DOWNLOAD, source).stderr.strip() == expected
