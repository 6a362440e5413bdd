"""Proof that the fixture speaks both protocols: the real clients, in subprocesses, and every fault, by http.client."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from ..hub.repos import FileLike
from ..hub.server import MIRROR_DROPS, HubFile, HubRepo, HubServer, safetensors_file

GIB = 1024**3
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
CONFIG_BYTES = json.dumps(CONFIG).encode()
SINGLE = safetensors_file({"embed": ("BF16", (151936, 1024)), "head": ("BF16", (151936, 1024))}, {"format": "pt"})
SHARDS = {f"model-0000{n}-of-00003.safetensors": safetensors_file({f"w{n}": ("BF16", (2**31 - n,))}) for n in (1, 2, 3)}
INDEX = {
    "metadata": {"total_size": 12884901876},
    "weight_map": {f"w{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)},
}
INDEX_NAME = "model.safetensors.index.json"
SMALL_WEIGHTS = safetensors_file({"w": ("F32", (1000,))})


def repositories() -> list[HubRepo]:
    small: dict[str, FileLike] = {
        "config.json": CONFIG_BYTES,
        "model.safetensors": SMALL_WEIGHTS,
        "nested/deep/notes.txt": b"notes",
    }
    return [
        HubRepo("org/single", {"config.json": CONFIG_BYTES, "model.safetensors": SINGLE}),
        HubRepo("org/sharded", {"config.json": CONFIG_BYTES, INDEX_NAME: json.dumps(INDEX).encode(), **SHARDS}),
        HubRepo("org/small", small, tags={"v1": {"config.json": b'{"model_type": "qwen2"}'}}),
        HubRepo("org/gated", small, gated="manual", readers=frozenset({"hf_reader"})),
        HubRepo("org/private", small, private=True, readers=frozenset({"hf_reader"})),
        HubRepo("org/traversal", small, extra_listing=("../../outside.json",)),
        HubRepo("gpt2", small),
    ]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(repositories()) as server:
        server.tokens.add("hf_other")
        yield server


def run(hub: HubServer, home: Path, script: str, **environment: str | None) -> dict[str, Any]:
    """What `script` leaves in `out`, run by a fresh interpreter that reads the hub's environment at import."""
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE_"))}
    variables = {k: v for k, v in inherited.items() if k.lower() not in proxies}
    wanted = {**variables, **hub.environment(home), **environment}
    prelude = """if True:
    import json
    out = {}
    def caught(name, function, *args, **kwargs):
        try:
            out[name] = repr(function(*args, **kwargs))
        except Exception as error:
            out[name] = type(error).__name__
            out[name + " message"] = str(error)
            out[name + " cause"] = type(error.__cause__).__name__
"""
    program = f"{prelude}\n{script}\nprint(json.dumps(out))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={name: value for name, value in wanted.items() if value is not None},
        cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Answer:
    """One exchange by http.client, which follows and retries nothing; `error` is what broke it off."""

    def __init__(self, url: str, method: str = "GET", *, limit: int | None = None, **headers: str) -> None:
        parts = urlsplit(url)
        self.body, self.error = b"", ""
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
        try:
            target = quote(parts.path, safe="/%") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            self.status, self.headers = response.status, response.headers
            self.body = response.read(limit)
        except http.client.IncompleteRead as error:
            self.body, self.error = error.partial, "IncompleteRead"
        except (OSError, http.client.HTTPException) as error:
            self.error = type(error).__name__
        finally:
            connection.close()

    def json(self) -> Any:
        return json.loads(self.body)


# ---- Hugging Face's clients


def test_hf_reads_the_header_of_a_single_file_whose_data_is_a_hole(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from huggingface_hub import get_safetensors_metadata\n"
        "meta = get_safetensors_metadata('org/single')\n"
        "out['counts'] = meta.parameter_count\n"
        "out['metadata'] = meta.files_metadata['model.safetensors'].metadata",
    )  # fmt: skip
    assert found == {"counts": {"BF16": 311_164_928}, "metadata": {"format": "pt"}}  # 2 x 151,936 x 1,024
    asked = [(r.origin, r.method, r.status, r.range) for r in hub.requests]
    assert asked == [
        ("main", "HEAD", 302, None),
        ("main", "GET", 302, "bytes=0-100000"),
        ("cdn", "GET", 206, "bytes=0-100000"),
    ]
    assert hub.requests[-1].bytes_sent == 100_001


def test_hf_reads_the_headers_of_4_gb_shards(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from huggingface_hub import get_safetensors_metadata\n"
        "meta = get_safetensors_metadata('org/sharded')\n"
        "out.update(counts=meta.parameter_count, files=sorted(meta.files_metadata), metadata=meta.metadata)",
    )  # fmt: skip
    assert found["counts"] == {"BF16": 6_442_450_938}  # 3 x 2^31 - 6
    assert found["files"] == sorted(SHARDS)
    assert found["metadata"] == {"total_size": 12_884_901_876}
    assert len([r for r in hub.requests if r.origin == "cdn"]) == 3


def test_hf_downloads_a_file_that_the_safetensors_library_wrote(hub: HubServer, tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    path = tmp_path / "written.safetensors"
    save_file({"w": numpy.arange(6, dtype=numpy.float32).reshape(2, 3)}, path)
    hub.repos["org/written"] = HubRepo("org/written", {"model.safetensors": path})
    found = run(
        hub, tmp_path,
        "from huggingface_hub import hf_hub_download\n"
        "from safetensors.numpy import load_file\n"
        "import os\n"
        "local = hf_hub_download('org/written', 'model.safetensors')\n"
        "out.update(w=load_file(local)['w'].tolist(), blob=os.path.basename(os.path.realpath(local)))",
    )  # fmt: skip
    assert found == {"w": [[0, 1, 2], [3, 4, 5]], "blob": HubFile(path=path).sha256}


def test_hf_reads_a_sparse_file_on_disk(hub: HubServer, tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(SINGLE.content)
    os.truncate(path, SINGLE.size)
    assert path.stat().st_blocks * 512 < 1_000_000 < SINGLE.size
    hub.repos["org/sparse"] = HubRepo("org/sparse", {"model.safetensors": path})
    found = run(
        hub, tmp_path,
        "from huggingface_hub import get_safetensors_metadata, HfApi\n"
        "out['counts'] = get_safetensors_metadata('org/sparse').parameter_count\n"
        "out['size'] = HfApi().model_info('org/sparse', files_metadata=True).siblings[0].lfs.size",
    )  # fmt: skip
    assert found == {"counts": {"BF16": 311_164_928}, "size": SINGLE.size}


def test_hf_api_lists_and_describes(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from huggingface_hub import HfApi\n"
        "api = HfApi()\n"
        "info = api.model_info('org/small', files_metadata=True)\n"
        "out.update(sha=info.sha, total=info.safetensors.total, config=info.config, gated=info.gated)\n"
        "out['sizes'] = {s.rfilename: [s.size, s.lfs and s.lfs.sha256] for s in info.siblings}\n"
        "few = api.model_info('org/gated', expand=['safetensors', 'sha', 'config', 'gated'])\n"
        "out['few'] = [few.safetensors.total, few.config['model_type'], few.gated, few.siblings]\n"
        "out['plain'] = api.model_info('gpt2', revision='main').siblings[0].size\n"
        "out['tree'] = sorted(e.path for e in api.list_repo_tree('org/small', recursive=True))\n"
        "out['top'] = sorted(e.path for e in api.list_repo_tree('org/small'))\n"
        "refs = api.list_repo_refs('org/small')\n"
        "out['refs'] = [refs.branches[0].name, refs.tags[0].name]\n"
        "out['tagged'] = api.model_info('org/small', revision='v1').config\n"
        "out['search'] = [m.id for m in api.list_models(search='SHARD')]\n"
        "out['me'] = api.whoami(token='hf_reader')['name']",
    )  # fmt: skip
    weights = SMALL_WEIGHTS
    assert found["sha"] == hub.repos["org/small"].sha
    assert found["total"] == 1000
    assert found["config"] == {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert found["sizes"] == {
        "config.json": [len(CONFIG_BYTES), None],
        "model.safetensors": [weights.size, weights.sha256],
        "nested/deep/notes.txt": [5, None],
    }
    assert found["few"] == [1000, "qwen3", "manual", None]
    assert found["plain"] is None
    files = ["config.json", "model.safetensors", "nested", "nested/deep", "nested/deep/notes.txt"]
    assert (found["tree"], found["top"]) == (files, ["config.json", "model.safetensors", "nested"])
    assert found["refs"] == ["main", "v1"]
    assert found["tagged"] == {"model_type": "qwen2"}
    assert found["search"] == ["org/sharded"]
    assert found["me"] == "loopback"


def test_hf_one_request_api_is_off_as_on_mirrors_until_it_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    script = (
        "from huggingface_hub import HfApi\n"
        "caught('shards', lambda: len(HfApi().get_sharded_safetensors_metadata('org/sharded').files_metadata))"
    )
    assert run(hub, tmp_path, script)["shards"] == "HfHubHTTPError"
    hub.serve_safetensors_metadata = True
    assert run(hub, tmp_path, script)["shards"] == "3"


def test_hf_error_classes(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from huggingface_hub import HfApi, hf_hub_download, get_safetensors_metadata\n"
        "api = HfApi()\n"
        "caught('gated', hf_hub_download, 'org/gated', 'config.json')\n"
        "caught('refused', hf_hub_download, 'org/gated', 'config.json', token='hf_other')\n"
        "caught('admitted', hf_hub_download, 'org/gated', 'config.json', token='hf_reader')\n"
        "caught('gated header', get_safetensors_metadata, 'org/gated')\n"
        "caught('missing', api.model_info, 'org/none')\n"
        "caught('missing for known', api.model_info, 'org/none', token='hf_other')\n"
        "caught('private', hf_hub_download, 'org/private', 'config.json')\n"
        "caught('own', hf_hub_download, 'org/private', 'config.json', token='hf_reader')\n"
        "caught('revision', api.model_info, 'org/small', revision='nope')\n"
        "caught('revision file', hf_hub_download, 'org/small', 'config.json', revision='nope')\n"
        "caught('entry', hf_hub_download, 'org/small', 'nope.json')\n"
        "caught('bad token', api.model_info, 'org/small', token='hf_expired')\n"
        "caught('not safetensors', get_safetensors_metadata, 'org/none')",
    )  # fmt: skip
    assert (found["gated"], found["refused"], found["gated header"]) == ("GatedRepoError",) * 3
    assert "authorized list" in found["refused message"]
    assert "snapshots" in found["admitted"]
    assert (found["missing"], found["missing for known"], found["private"]) == ("RepositoryNotFoundError",) * 3
    assert "snapshots" in found["own"]
    assert (found["revision"], found["revision file"]) == ("RevisionNotFoundError",) * 2
    assert found["entry"] == "RemoteEntryNotFoundError"
    assert (tmp_path / f"hf/hub/models--org--small/.no_exist/{hub.repos['org/small'].sha}/nope.json").exists()
    assert found["bad token"] == "HfHubHTTPError"
    assert "Invalid credentials in Authorization header" in found["bad token message"]
    assert found["not safetensors"] == "NotASafetensorsRepoError"
    assert [r.status for r in hub.requests[:2]] == [401, 403]


def test_hf_token_reaches_the_hub_and_not_the_cdn(hub: HubServer, tmp_path: Path) -> None:
    run(
        hub, tmp_path,
        "from huggingface_hub import hf_hub_download, get_safetensors_metadata\n"
        "hf_hub_download('org/gated', 'model.safetensors')\n"
        "get_safetensors_metadata('org/gated')",
        HF_TOKEN="hf_reader",
    )  # fmt: skip
    assert {r.bearer for r in hub.requests if r.origin == "main"} == {"hf_reader"}
    assert {r.token for r in hub.requests if r.origin == "cdn"} == {None}
    assert {r.status for r in hub.requests if r.origin == "cdn"} == {200, 206}


def test_hf_asks_for_agent_harnesses_unless_telemetry_is_off(hub: HubServer, tmp_path: Path) -> None:
    script = "from huggingface_hub import HfApi; HfApi().model_info('gpt2')"
    run(hub, tmp_path, script)
    run(hub, tmp_path, script, HF_HUB_DISABLE_TELEMETRY=None)
    assert [r.path for r in hub.requests] == ["/api/models/gpt2", "/api/agent-harnesses", "/api/models/gpt2"]


def test_hf_follows_renames_and_the_small_file_redirect(hub: HubServer, tmp_path: Path) -> None:
    hub.renamed["old/name"] = "org/small"
    hub.redirect_small_files = True
    found = run(
        hub, tmp_path,
        "from huggingface_hub import HfApi, hf_hub_download\n"
        "out['id'] = HfApi().model_info('old/name').id\n"
        "out['text'] = open(hf_hub_download('old/name', 'nested/deep/notes.txt')).read()",
    )  # fmt: skip
    assert found == {"id": "org/small", "text": "notes"}
    assert any(r.path.startswith("/api/resolve-cache/") for r in hub.requests)


def test_hf_backoff_outlasts_503_but_a_429_on_a_shard_fails_the_library(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("/api/models/org/small", status=503, retry_after="0", times=1)
    hub.fail("*model-00002-*", status=429, retry_after="0", times=1)
    found = run(
        hub, tmp_path,
        "from huggingface_hub import get_safetensors_metadata, constants\n"
        "from huggingface_hub.utils import http_backoff\n"
        "out['status'] = http_backoff('GET', constants.ENDPOINT + '/api/models/org/small').status_code\n"
        "caught('shards', get_safetensors_metadata, 'org/sharded')",
    )  # fmt: skip
    assert found["status"] == 200
    assert found["shards"] == "HfHubHTTPError"
    assert "429 Too Many Requests" in found["shards message"]


def test_hf_client_calls_a_mirror_without_headers_no_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("*", drop_headers=MIRROR_DROPS)
    found = run(
        hub, tmp_path,
        "from huggingface_hub import HfApi, hf_hub_download\n"
        "caught('file', hf_hub_download, 'org/small', 'config.json')\n"
        "out['sha'] = HfApi().model_info('org/small').sha",
    )  # fmt: skip
    assert (found["file"], found["file cause"]) == ("LocalEntryNotFoundError", "FileMetadataError")
    assert found["sha"] == hub.repos["org/small"].sha


def test_transformers_auto_config(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from transformers import AutoConfig\n"
        "config = AutoConfig.from_pretrained('org/single')\n"
        "out.update(kind=config.model_type, layers=config.num_hidden_layers)\n"
        "caught('gated', AutoConfig.from_pretrained, 'org/gated')",
    )  # fmt: skip
    assert (found["kind"], found["layers"]) == ("qwen3", 28)
    assert (found["gated"], found["gated cause"]) == ("OSError", "GatedRepoError")
    sha = hub.repos["org/single"].sha
    asked = [(r.method, r.path, r.status) for r in hub.requests if "single" in r.path]
    assert asked == [
        ("GET", "/api/models/org/single", 200),
        ("HEAD", f"/org/single/resolve/{sha}/config.json", 200),
        ("GET", f"/org/single/resolve/{sha}/config.json", 200),
    ]


# ---- ModelScope's clients


def test_modelscope_hub_lists_describes_and_downloads(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from modelscope_hub import HubApi\n"
        "api = HubApi()\n"
        "repo = api.get_repo('org/small', 'model')\n"
        "out['repo'] = [repo.repo_id, str(repo.visibility)]\n"
        "out['files'] = {f.path: [f.type, f.size, f.sha256] for f in api.list_repo_files('org/small', 'model')}\n"
        "out['top'] = [f.path for f in api.list_repo_files('org/small', 'model', recursive=False)]\n"
        "out['revisions'] = [r['Revision'] for r in api.list_repo_revisions('org/small', 'model')]\n"
        "config = api.download_file('org/small', 'model', 'config.json')\n"
        "out['config'] = [str(config), json.loads(config.read_text())['model_type']]\n"
        "out['tagged'] = json.loads(api.download_file('org/small', 'model', 'config.json', revision='v1').read_text())\n"
        "out['weights'] = api.download_file('org/small', 'model', 'model.safetensors').stat().st_size\n"
        "out['found'] = [r.repo_id for r in api.list_repos('model', search='shard').items]",
    )  # fmt: skip
    assert found["repo"] in (["org/small", "5"], ["org/small", "Visibility.PUBLIC"])  # Visibility.PUBLIC
    assert found["files"]["model.safetensors"] == ["blob", SMALL_WEIGHTS.size, SMALL_WEIGHTS.sha256]
    assert found["files"]["nested/deep"][0] == "tree"
    assert found["top"] == ["config.json", "model.safetensors", "nested"]
    assert found["revisions"] == ["v1", "master"]
    assert found["config"] == [str(tmp_path / "ms/models/org--small/snapshots/master/config.json"), "qwen3"]
    assert found["tagged"] == {"model_type": "qwen2"}
    assert found["weights"] == SMALL_WEIGHTS.size
    assert found["found"] == ["org/sharded"]
    assert [r.path for r in hub.requests if r.origin == "cdn"] == [f"/ms/org/small/{SMALL_WEIGHTS.sha256}"]
    assert "/api/v1/repos/internalAccelerationInfo" in [r.path for r in hub.requests]


def test_modelscope_hub_error_classes(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from modelscope_hub import HubApi\n"
        "api = HubApi()\n"
        "caught('main', api.list_repo_files, 'org/small', 'model', revision='main')\n"
        "caught('main file', api.download_file, 'org/small', 'model', 'config.json', revision='main')\n"
        "caught('missing', api.get_repo, 'org/none', 'model')\n"
        "caught('missing list', api.list_repo_files, 'org/none', 'model')\n"
        "caught('private', api.get_repo, 'org/private', 'model')\n"
        "caught('own', HubApi(token='hf_reader').list_repo_files, 'org/private', 'model')\n"
        "caught('entry', api.download_file, 'org/small', 'model', 'nope.json')\n"
        "caught('gated', api.list_repo_files, 'org/gated', 'model')\n"
        "caught('gated file', HubApi(token='hf_other').download_file, 'org/gated', 'model', 'config.json')\n"
        "caught('bad token', HubApi(token='ms_expired').get_repo, 'org/small', 'model')",
    )  # fmt: skip
    for case in ("main", "main file", "missing", "missing list", "private", "entry"):
        assert found[case] == "NotExistError", case
    assert "FileInfo" in found["own"]
    assert (found["gated"], found["gated file"]) == ("PermissionDeniedError",) * 2
    assert found["bad token"] == "AuthenticationError"


def test_modelscope_token_goes_out_as_bearer_and_cookie_and_not_to_the_cdn(hub: HubServer, tmp_path: Path) -> None:
    run(
        hub, tmp_path,
        "from modelscope_hub import HubApi\n"
        "api = HubApi()\n"
        "api.get_repo('org/private', 'model')\n"
        "api.download_file('org/private', 'model', 'model.safetensors')",
        MODELSCOPE_API_TOKEN="hf_reader", MODELSCOPE_DOWNLOAD_INTRA_CLOUD="false",
    )  # fmt: skip
    described, redirected, stored = hub.requests
    assert described.bearer == "hf_reader"
    assert described.cookies == {"m_session_id": "hf_reader", "modelscope_session": "hf_reader"}
    assert (redirected.bearer, redirected.cookies) == ("hf_reader", {"m_session_id": "hf_reader"})
    assert (stored.origin, stored.bearer, stored.cookies) == ("cdn", None, {})


def test_modelscope_ranges_get_200_with_content_range(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from modelscope_hub import HubApi\n"
        "for name in ('config.json', 'model.safetensors'):\n"
        "    r = HubApi().legacy.download_stream('org/single', 'model', name, headers={'Range': 'bytes=0-7'})\n"
        "    out[name] = [r.status_code, r.headers['Content-Range'], len(r.content)]",
    )  # fmt: skip
    assert found["config.json"] == [200, f"bytes 0-7/{len(CONFIG_BYTES)}", 8]
    assert found["model.safetensors"] == [200, f"bytes 0-7/{SINGLE.size}", 8]


def test_modelscope_auto_config_and_snapshot(hub: HubServer, tmp_path: Path) -> None:
    found = run(
        hub, tmp_path,
        "from modelscope import AutoConfig, model_file_download, snapshot_download\n"
        "import os\n"
        "config = AutoConfig.from_pretrained('org/single', revision='main')\n"
        "out.update(kind=config.model_type, heads=config.num_attention_heads)\n"
        "out['snapshot'] = sorted(os.listdir(snapshot_download('org/small', allow_patterns=['*.json'])))\n"
        "out['file'] = json.load(open(model_file_download('org/small', 'config.json')))['model_type']\n"
        "caught('missing', snapshot_download, 'org/none')",
        MODELSCOPE_ENDPOINT=None, MODELSCOPE_DOMAIN=hub.endpoint,
    )  # fmt: skip
    assert (found["kind"], found["heads"]) == ("qwen3", 16)
    assert found["snapshot"] == ["config.json"]
    assert found["file"] == "qwen2"  # the newest tag, not master: modelscope.hub.file_download
    assert found["missing"] == "HTTPError"
    assert not [r for r in hub.requests if r.path.endswith("model.safetensors")]


# ---- The protocols, byte by byte


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=8-", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, b""),
        ("bytes=0-0", 206, b"0"),
    ],
)
def test_ranges(hub: HubServer, asked: str, status: int, expected: bytes) -> None:
    hub.repos["r/r"] = HubRepo("r/r", {"digits": b"0123456789"})
    answer = Answer(f"{hub.endpoint}/r/r/resolve/main/digits", Range=asked)
    assert (answer.status, answer.body) == (status, expected)
    assert answer.headers["Content-Range"].endswith("/10")


def test_resolve_headers_name_commit_size_and_digest(hub: HubServer) -> None:
    head = Answer(f"{hub.endpoint}/org/single/resolve/main/model.safetensors", "HEAD")
    assert (head.status, head.headers["X-Repo-Commit"]) == (302, hub.repos["org/single"].sha)
    assert head.headers["X-Linked-Size"] == str(SINGLE.size)
    assert head.headers["X-Linked-ETag"] == f'"{SINGLE.sha256}"'
    hub.redirect_lfs = False
    direct = Answer(f"{hub.endpoint}/org/single/resolve/main/model.safetensors", Range="bytes=0-7")
    assert (direct.status, direct.body) == (206, SINGLE.content[:8])
    public = Answer(f"{hub.endpoint}/models/org/single/resolve/master/config.json")
    assert (public.status, public.body) == (200, CONFIG_BYTES)


def test_cdn_refuses_a_second_credential_and_a_missing_signature(hub: HubServer) -> None:
    url = Answer(f"{hub.endpoint}/org/small/resolve/main/model.safetensors").headers["Location"]
    assert Answer(url).status == 200
    assert Answer(url, Authorization="Bearer hf_reader").status == 400
    assert Answer(url.replace("Signature", "x")).status == 403


def test_listings_can_leave_the_repository_and_lie_about_sizes(hub: HubServer) -> None:
    listed = Answer(f"{hub.endpoint}/api/models/org/traversal?blobs=true").json()["siblings"]
    assert "../../outside.json" in [sibling["rfilename"] for sibling in listed]
    files = Answer(f"{hub.endpoint}/api/v1/models/org/traversal/repo/files?Revision=master&Recursive=True").json()
    assert "../../outside.json" in [entry["Path"] for entry in files["Data"]["Files"]]
    hub.repos["r/r"] = HubRepo("r/r", {"short.gguf": HubFile(b"GGUF", listed_bytes=GIB)})
    assert Answer(f"{hub.endpoint}/api/models/r/r?blobs=true").json()["siblings"][0]["lfs"]["size"] == GIB


def test_modelscope_listing_is_cut_at_3000_entries(hub: HubServer) -> None:
    hub.repos["r/r"] = HubRepo("r/r", {f"{n:04}.txt": b"" for n in range(3001)})
    listing = Answer(f"{hub.endpoint}/api/v1/models/r/r/repo/files?Revision=master&Recursive=True").json()
    assert len(listing["Data"]["Files"]) == 3000


def test_hostile_headers_are_served_as_they_are(hub: HubServer) -> None:
    huge, bad = (2**63).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"
    hub.repos["r/r"] = HubRepo("r/r", {"a.safetensors": huge, "b.safetensors": bad, "c.safetensors": b""})
    url = f"{hub.endpoint}/api/v1/models/r/r/repo?Revision=master&FilePath=a.safetensors"
    assert Answer(Answer(url).headers["Location"], Range="bytes=0-7").body == huge[:8]
    info = Answer(f"{hub.endpoint}/api/models/r/r").json()
    assert "safetensors" not in info


def test_bare_401_comes_without_a_code_where_asked(hub: HubServer) -> None:
    hub.names_missing_repos = False
    assert "X-Error-Code" not in Answer(f"{hub.endpoint}/api/models/org/none").headers


# ---- Faults


URL = "/org/small/resolve/main/config.json"


@pytest.mark.parametrize("status", [429, 503])
def test_fault_retry_after_n_times_then_well(hub: HubServer, status: int) -> None:
    hub.fail("*config.json", status=status, retry_after="7", times=2)
    answers = [Answer(hub.endpoint + URL) for _ in range(3)]
    assert [a.status for a in answers] == [status, status, 200]
    assert [a.headers["Retry-After"] for a in answers] == ["7", "7", None]
    assert [r.status for r in hub.requests] == [status, status, 200]


def test_fault_stall_never_answers_and_does_not_hold_up_the_end(hub: HubServer) -> None:
    hub.fail("*", stall=True)
    assert Answer(hub.endpoint + URL).error == "TimeoutError"
    assert hub.requests[0].status is None


def test_fault_close_without_an_answer(hub: HubServer) -> None:
    hub.fail("*", close=True, times=1)
    assert Answer(hub.endpoint + URL).error == "RemoteDisconnected"
    assert Answer(hub.endpoint + URL).status == 200


def test_fault_truncated_body(hub: HubServer) -> None:
    hub.fail("*", truncate_after=10)
    answer = Answer(hub.endpoint + URL)
    assert (answer.status, answer.body, answer.error) == (200, CONFIG_BYTES[:10], "IncompleteRead")


def test_fault_body_that_hangs_midway(hub: HubServer) -> None:
    hub.fail("*", stall_after=10)
    answer = Answer(hub.endpoint + URL)
    assert (answer.status, answer.error) == (200, "TimeoutError")
    assert hub.requests[0].bytes_sent == 10


def test_fault_ignored_range_streams_ten_gigabytes_only_as_far_as_they_are_read(hub: HubServer) -> None:
    hub.repos["r/r"] = HubRepo("r/r", {"big.safetensors": HubFile(SINGLE.content, total_bytes=10 * GIB)})
    hub.fail("*", ignore_range=True)
    url = Answer(f"{hub.endpoint}/r/r/resolve/main/big.safetensors").headers["Location"]
    answer = Answer(url, limit=1_000_000, Range="bytes=0-99")
    assert (answer.status, len(answer.body), answer.headers["Content-Length"]) == (200, 1_000_000, str(10 * GIB))
    assert answer.body.startswith(SINGLE.content)
    while hub.requests[-1].ended is None:
        time.sleep(0.01)
    assert 1_000_000 <= hub.requests[-1].bytes_sent < 100_000_000  # what loopback's buffers took


def test_fault_200_with_content_range(hub: HubServer) -> None:
    hub.fail("*", partial_status=200)
    answer = Answer(hub.endpoint + URL, Range="bytes=0-3")
    assert (answer.status, answer.body) == (200, CONFIG_BYTES[:4])
    assert answer.headers["Content-Range"] == f"bytes 0-3/{len(CONFIG_BYTES)}"


def test_fault_endless_redirect(hub: HubServer) -> None:
    hub.fail("*", location="self")
    answer = Answer(hub.endpoint + URL)
    assert (answer.status, answer.headers["Location"]) == (302, URL)


def test_fault_redirect_elsewhere(hub: HubServer) -> None:
    hub.fail("*", location="file:///etc/passwd")
    assert Answer(hub.endpoint + URL).headers["Location"] == "file:///etc/passwd"


def test_fault_missing_headers_end_the_body_by_closing(hub: HubServer) -> None:
    hub.fail("*", drop_headers=MIRROR_DROPS)
    answer = Answer(hub.endpoint + URL)
    assert (answer.status, answer.body) == (200, CONFIG_BYTES)
    assert not {"content-length", "x-repo-commit"} & {name.lower() for name in answer.headers}


def test_fault_false_headers_and_error_bodies(hub: HubServer) -> None:
    hub.fail("*config*", headers={"Content-Range": "bytes 5-9/3"}, times=1)
    hub.fail("*", status=500, body=HubFile(b"<html>", total_bytes=10 * GIB), headers={"Content-Type": "text/html"})
    assert Answer(hub.endpoint + URL, Range="bytes=0-3").headers["Content-Range"] == "bytes 5-9/3"
    broken = Answer(hub.endpoint + URL, limit=100)
    assert (broken.status, broken.body[:6], broken.headers["Content-Type"]) == (500, b"<html>", "text/html")


def test_fault_compression_drops_the_range_for_those_who_accept_it(hub: HubServer) -> None:
    hub.fail("*", compress=True)
    packed = Answer(hub.endpoint + URL, Range="bytes=0-3", Accept_Encoding="gzip")
    assert (packed.status, packed.body[:2], packed.headers["Content-Encoding"]) == (200, b"\x1f\x8b", "gzip")
    assert Answer(hub.endpoint + URL, Range="bytes=0-3", Accept_Encoding="identity").status == 206


def test_fault_slow_body(hub: HubServer) -> None:
    hub.fail("*", bytes_per_second=len(CONFIG_BYTES) * 2)
    started = time.monotonic()
    assert Answer(hub.endpoint + URL).body == CONFIG_BYTES
    assert 0.4 < time.monotonic() - started < 2


def test_faults_pick_origin_method_and_order(hub: HubServer) -> None:
    hub.fail("*", method="HEAD", status=500)
    hub.fail("*", origin="cdn", status=403, times=1)  # an expired signature
    weights = f"{hub.endpoint}/org/small/resolve/main/model.safetensors"
    assert (Answer(weights, "HEAD").status, Answer(weights).status) == (500, 302)
    signed = Answer(weights).headers["Location"]
    assert [Answer(signed).status, Answer(signed).status] == [403, 200]
    hub.heal()
    assert Answer(weights, "HEAD").status == 302


# ---- The log, latency and concurrency


def test_log_holds_what_was_asked(hub: HubServer) -> None:
    Answer(f"{hub.endpoint}/org/small/resolve/main/nested%2Fdeep/notes.txt?a=1&a=2", Range="bytes=1-2", Cookie="m=x")
    (request,) = hub.requests
    assert (request.method, request.path, request.status) == (
        "GET",
        "/org/small/resolve/main/nested/deep/notes.txt",
        206,
    )
    assert (request.query, request.range, request.cookies) == ({"a": ["1", "2"]}, "bytes=1-2", {"m": "x"})
    assert (request.bytes_sent, hub.bytes_sent) == (2, 2)
    hub.forget()
    assert hub.requests == []


def test_latency_and_in_flight(hub: HubServer) -> None:
    hub.latency = 0.2
    started = time.monotonic()
    threads = [threading.Thread(target=Answer, args=(hub.endpoint + URL,)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.max_in_flight > 16
    assert 0.2 < time.monotonic() - started < 1.5  # 6.4 s one after another


def test_latency_per_connection_is_paid_once(hub: HubServer) -> None:
    hub.connection_latency = 0.3
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(hub.endpoint).port)
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        connection.request("GET", URL)
        connection.getresponse().read()
        seconds.append(time.monotonic() - started)
    connection.close()
    assert seconds[0] > 0.3
    assert seconds[1] < 0.1
    assert [r.connection for r in hub.requests] == [1, 1]


def test_a_bug_in_the_fixture_is_no_network_error() -> None:
    with pytest.raises(RuntimeError, match="the fixture itself failed"), HubServer() as broken:
        broken.repos["r/r"] = None  # type: ignore[assignment]
        broken.renamed = None  # type: ignore[assignment]
        assert Answer(f"{broken.endpoint}/r/r/resolve/main/x").error == "RemoteDisconnected"
