"""Commands that ask about a design read no header where the hub's own counts vouch for the configuration, and all where not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType

from ..hub.repos import HubFile
from ..hub.server import HubRepo, HubServer
from ..support.asking import ask_json
from ..support.models import TINY_QWEN3, header_of
from .test_hubs import SHARD_NAMES, tensors_of, weights

TENSORS = tensors_of(TINY_QWEN3)
PARAMETERS = (
    78_208  # transformers 5.23: sum(p.numel() for p in Qwen3ForCausalLM(Qwen3Config(**TINY_QWEN3)).parameters())
)
INDEX = "model.safetensors.index.json"


def repo(name: str, config: Mapping[str, Any], *, tied_copy: bool = False, **more: Any) -> HubRepo:
    """Two shards, with an index as transformers writes it."""
    halves = [TENSORS[:9], TENSORS[9:]]
    if tied_copy:
        (embedding,) = [tensor for tensor in TENSORS if tensor.name == "model.embed_tokens.weight"]
        halves[1] = [*halves[1], type(embedding)("lm_head.weight", embedding.shape, embedding.dtype)]
    total = sum(tensor.size_bytes for half in halves for tensor in half)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": {}}, indent=2, sort_keys=True).encode()
    shards = {shard: weights(half) for shard, half in zip(SHARD_NAMES, halves, strict=True)}
    return HubRepo(name, {"config.json": json.dumps(dict(config)).encode(), INDEX: index, **shards}, **more)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    no_dtype = {key: value for key, value in TINY_QWEN3.items() if key not in ("dtype", "torch_dtype")}
    wrong = {"safetensors": {"parameters": {"BF16": PARAMETERS + 64}, "total": PARAMETERS + 64}}
    packed = {"safetensors": {"parameters": {"I32": PARAMETERS}, "total": PARAMETERS}}
    repos = [
        repo("org/plain", TINY_QWEN3),
        repo("org/copied", TINY_QWEN3, tied_copy=True),
        repo("org/no-dtype", no_dtype),
        repo("org/wrong", TINY_QWEN3, extra_info=wrong),
        repo("org/packed", TINY_QWEN3, extra_info=packed),
        repo("org/uncounted", TINY_QWEN3, extra_info={"safetensors": None}),
    ]
    with HubServer(repos) as server:
        server.redirect_lfs = False
        yield server


def names(hub: HubServer) -> list[str]:
    """What was read since the last call: files by name, anything else as `listing`."""
    read = sorted(
        request.path.rpartition("/")[2] if "/resolve/" in request.path else "listing" for request in hub.requests
    )
    hub.forget()
    return read


def test_tensors_are_read_where_they_are_the_question_or_asked_for(hub: HubServer, tmp_path: Path) -> None:
    read = ["config.json", "listing", *SHARD_NAMES]
    for number, words in enumerate((["params"], ["weights"], ["structure", "--headers"])):
        found = ask_json(hub, tmp_path / str(number), *words, "hf:org/plain")
        assert names(hub) == read
    assert (found["parameters"]["stored"], found["parameters"]["hub"]) == (PARAMETERS, PARAMETERS)


def test_a_copy_that_is_stored_beside_the_model_is_counted_and_said(hub: HubServer, tmp_path: Path) -> None:
    for source, elements in (("hf", "number"), ("ms", "bytes")):
        found = ask_json(hub, tmp_path / source, "structure", f"{source}:org/copied")
        assert not set(SHARD_NAMES) & set(names(hub))
        (notice,) = [notice for notice in found["model"]["notices"] if "were not read" in notice]
        assert elements in notice
        assert f"with {TINY_QWEN3['vocab_size'] * TINY_QWEN3['hidden_size']:,} numbers stored beside it" in notice


def test_a_dtype_that_only_the_files_tell_is_read_from_the_first_alone(hub: HubServer, tmp_path: Path) -> None:
    found = ask_json(hub, tmp_path, "structure", "hf:org/no-dtype")
    assert names(hub) == ["config.json", "listing", SHARD_NAMES[0]]
    assert found["model"]["dtype"] == str(DType.BF16)


@pytest.mark.parametrize("model", ["org/wrong", "org/packed"])
def test_a_count_that_the_configuration_does_not_imply_has_every_header_read(
    hub: HubServer, tmp_path: Path, model: str
) -> None:
    found = ask_json(hub, tmp_path, "structure", f"hf:{model}")
    assert set(SHARD_NAMES) <= set(names(hub))
    assert found["parameters"]["stored"] == PARAMETERS
    differs = [notice for notice in found["model"]["notices"] if "the headers are used" in notice]
    assert len(differs) == (model == "org/wrong")


def test_a_hub_that_counts_nothing_is_asked_for_the_index(hub: HubServer, tmp_path: Path) -> None:
    ask_json(hub, tmp_path, "structure", "hf:org/uncounted")
    assert names(hub) == ["config.json", "listing", INDEX]
    hub.repos["org/bare"] = HubRepo(
        "org/bare", {name: file for name, file in hub.repos["org/plain"].files.items() if name != INDEX}
    )
    ask_json(hub, tmp_path, "structure", "ms:org/bare")
    assert names(hub) == ["config.json", "listing", *SHARD_NAMES]


def test_files_of_another_model_are_not_hidden_by_a_configuration(hub: HubServer, tmp_path: Path) -> None:
    head = header_of(TENSORS[:9])
    other = HubFile(head, total_bytes=len(head) + sum(tensor.size_bytes for tensor in TENSORS[:9]))
    files = {**hub.repos["org/plain"].files, SHARD_NAMES[0]: other, SHARD_NAMES[1]: weights(TENSORS[9:-1])}
    hub.repos["org/lacking"] = HubRepo("org/lacking", files)
    found = ask_json(hub, tmp_path, "structure", "hf:org/lacking")
    assert set(SHARD_NAMES) <= set(names(hub))
    assert any("differ" in notice for notice in found["model"]["notices"])
