"""Files that a user names, in an option, a variable or a folder: pipes are not waited for, devices not read to their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from qwen_inspect.errors import AccessError, MalformedError, NotFoundError
from qwen_inspect.loaders import calibration, local, transport
from qwen_inspect.loaders.huggingface import HuggingFace
from qwen_inspect.loaders.kept_measurement import read_measurement
from qwen_inspect.loaders.modelscope import ModelScope
from qwen_inspect.loaders.regular import read_regular
from qwen_inspect.loaders.resolve import Access, load, resolve
from qwen_inspect.loaders.strict_json import LONGEST_JSON_BYTES
from qwen_inspect.options.model import _model_here
from qwen_inspect.reporting.checks import _content

ODD = ("pipe", "/dev/zero", "folder")


def odd_file(kind: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(kind)
    return path


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in os.environ:
        if name.startswith(("HF_", "HUGGING", "MODELSCOPE_", "XDG_", "QWEN_", "SSL_", "REQUESTS_", "CURL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    transport._certificates.cache_clear()


def ends(asked: Callable[[], object]) -> object:
    """What is returned or raised within two seconds, without a thread that waits on."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(asked())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2)
    assert outcome, "still waiting"
    return outcome[0]


@pytest.mark.parametrize("kind", ODD)
def test_a_measurement_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    path = str(odd_file(kind, tmp_path / "odd"))
    error = ends(lambda: read_measurement(path))
    assert isinstance(error, NotFoundError)
    assert ("Is a directory" if kind == "folder" else "not a regular file") in str(error)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.gguf", "model.safetensors.index.json"])
def test_a_models_files_are_regular_files(tmp_path: Path, kind: str, name: str) -> None:
    odd_file(kind, tmp_path / "model" / name)
    for place in (tmp_path / "model", tmp_path / "model" / name):
        if name == "model.safetensors.index.json" and place.name == name:
            continue  # a JSON file that is named itself is read as a configuration
        model = resolve(str(place))
        assert isinstance(ends(partial(load, model, Access())), NotFoundError)


@pytest.mark.parametrize("kind", ODD)
def test_tokens_and_logins_are_regular_files(tmp_path: Path, kind: str) -> None:
    odd_file(kind, tmp_path / ".cache" / "huggingface" / "token")
    odd_file(kind, tmp_path / ".modelscope" / "credentials" / "cookies")
    assert isinstance(ends(lambda: HuggingFace()._credentials), AccessError)
    assert ends(lambda: ModelScope()._credentials) == {}


@pytest.mark.parametrize("kind", ODD)
def test_what_caches_hold_are_regular_files(tmp_path: Path, kind: str) -> None:
    odd_file(kind, tmp_path / ".cache" / "huggingface" / "hub" / "models--org--model" / "refs" / "main")
    odd_file(kind, tmp_path / ".cache" / "huggingface" / "stored_tokens")
    odd_file(kind, tmp_path / ".cache" / "qwen-inspect" / "calibration.json")
    assert ends(lambda: HuggingFace().cached("org/model", "main")) is None
    assert ends(lambda: HuggingFace()._ends_soon("hf_t")) is False
    assert ends(lambda: calibration.find("gpu", [])) is None


@pytest.mark.parametrize("kind", ODD)
def test_what_lies_in_the_working_folder_and_in_a_report_is_a_regular_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    path = odd_file(kind, tmp_path / "config.json")
    monkeypatch.chdir(tmp_path)
    assert ends(_model_here) is None
    assert ends(lambda: _content(path)) is None


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_are_a_regular_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, variable: str
) -> None:
    monkeypatch.setenv(variable, str(odd_file(kind, tmp_path / "odd")))
    assert "not a regular file" in str(ends(transport._certificates))


def test_a_file_is_read_to_its_cap_and_not_further(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    assert len(read_regular(path, cap=1000)) == 1001
    for reading in (lambda: read_measurement(str(path)), lambda: local.read_json(path)):
        with pytest.raises(MalformedError, match=f"larger than the {LONGEST_JSON_BYTES:,} bytes"):
            reading()
