"""What the Hugging Face Hub and ModelScope answer: repositories, and the shape of every reply that clients read.

Pure: a `Request` goes in, a `Reply` comes out, and no socket is opened; `hub_server` puts this on the wire. Shapes
follow the clients' source (huggingface_hub 2.4.0, modelscope_hub 0.5.1), named at each part, and public reports of
live answers; `[?]` marks what neither shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.cookies import SimpleCookie
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from .repos import Commit, HubFile, HubRepo, parsed_object

LISTING_ENTRIES_MAX = 3000  # ModelScope cuts without a word: modelscope_hub.constants.REPO_FILES_TRUNCATION_LIMIT
UPDATED_AT = 1_700_000_000  # every commit's time, in seconds
ID = r"([^/]+/[^/]+|[^/]+)"  # "org/name", or a bare legacy name such as "gpt2"


@dataclass
class Request:
    """One line of the log. Status and bytes are counted before they leave: a client that has them finds them here."""

    origin: Literal["main", "cdn"]
    method: str
    target: str  # as sent
    headers: dict[str, str]  # lower-case names
    connection: int  # requests with the same number shared a socket
    started: float  # time.monotonic()
    ended: float | None = None
    status: int | None = None  # None: no answer was sent
    bytes_sent: int = 0  # of the body; handed to the kernel, which buffers some that the client may never read

    @cached_property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def bearer(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    @property
    def cookies(self) -> dict[str, str]:
        return {name: morsel.value for name, morsel in SimpleCookie(self.headers.get("cookie", "")).items()}

    @property
    def token(self) -> str | None:
        """The credential, however it came: modelscope_hub sends both (_legacy_api._ensure_session_auth)."""
        return self.bearer or self.cookies.get("m_session_id")

    def first(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]


@dataclass(eq=False)
class Reply(Exception):
    """An answer; raised where it is a refusal."""

    status: int
    headers: dict[str, str]
    body: HubFile = field(default_factory=HubFile)
    partial_status: int | None = None  # the status of a range; None: this answer knows no ranges


@dataclass(eq=False, repr=False)
class Hub:
    """What both hubs hold, and how they behave."""

    repos: dict[str, HubRepo]
    tokens: set[str] = field(default_factory=set)  # valid, beyond the repositories' readers; any other is refused
    renamed: dict[str, str] = field(default_factory=dict)  # old id -> new id, answered with 307
    redirect_lfs: bool = True  # False: large files come from the endpoint itself
    redirect_small_files: bool = False  # 307 to a relative /api/resolve-cache/..., as huggingface.co does
    serve_safetensors_metadata: bool = False  # huggingface.co only, so off as on mirrors
    names_missing_repos: bool = True  # X-Error-Code on an anonymous 401, without which http clients see no name
    modelscope_partial_status: int = 200  # as live (modelscope_hub issue #50); RFC 9110 asks for 206
    objects: dict[str, HubFile] = field(default_factory=dict)  # what the CDN has
    endpoint: str = ""
    cdn_endpoint: str = ""

    def answer(self, request: Request) -> Reply:
        for old, new in self.renamed.items():
            if f"/{old}/" in f"{request.path}/":
                return Reply(307, {"Location": request.target.replace(old, new, 1)})
        try:
            return _cdn(self, request) if request.origin == "cdn" else _Api(self, request).reply()
        except Reply as refusal:
            return refusal

    def knows(self, token: str | None) -> bool:
        return token is None or token in self.tokens or any(token in repo.readers for repo in self.repos.values())

    def find(self, request: Request) -> list[HubRepo]:
        words = request.first("search").lower()
        return [repo for name, repo in self.repos.items() if words in name.lower() and not repo.private]

    def signed_url(self, hub: Literal["hf", "ms"], repo_id: str, name: str, file: HubFile) -> str:
        path = f"/{hub}/{repo_id}/{file.sha256}"
        self.objects[path] = file
        return f"{self.cdn_endpoint}{path}?{urlencode({'filename': name, 'Signature': 'loopback'})}"


@dataclass
class _Api:
    """One request to one hub; `ROUTES` maps the raw path to the method that answers, with decoded groups."""

    hub: Hub
    request: Request
    ROUTES: ClassVar[dict[str, str]] = {
        r"/openapi/v1/models": "ms_search",
        rf"/openapi/v1/models/{ID}": "ms_model",
        rf"/api/v1/models/{ID}/repo/files": "ms_files",
        rf"/api/v1/models/{ID}/revisions": "ms_revisions",
        rf"/api/v1/models/{ID}/repo": "ms_file",
        rf"/models/{ID}/resolve/([^/]+)/(.+)": "ms_resolve",
        r"/api/v1/repos/internalAccelerationInfo": "ms_acceleration",
        rf"/api/v1/models/{ID}": "ms_legacy_model",
        r"/api/agent-harnesses": "hf_agent_harnesses",
        r"/api/whoami-v2": "hf_whoami",
        r"/api/models": "hf_search",
        rf"/api/models/{ID}/safetensors-metadata/(.+)": "hf_safetensors_metadata",
        rf"/api/models/{ID}/tree/([^/]+)(?:/(.*))?": "hf_tree",
        rf"/api/models/{ID}/refs": "hf_refs",
        rf"/api/models/{ID}(?:/revision/([^/]+))?": "hf_model",
        rf"/api/resolve-cache/models/{ID}/([0-9a-f]{{40}})/(.+)": "hf_resolve",
        rf"/{ID}/resolve/([^/]+)/(.+)": "hf_resolve",
    }

    def reply(self) -> Reply:
        for pattern, method in self.ROUTES.items():
            if match := re.fullmatch(pattern, urlsplit(self.request.target).path):
                answer: Reply = getattr(self, method)(*(unquote(group or "") for group in match.groups()))
                return answer
        return self.hf_refusal(404, "Not found")

    # ModelScope: modelscope_hub 0.5.1, _legacy_api.py (/api/v1) and _openapi.py

    def ms_refusal(self, status: int, code: int, name: str, message: str) -> Reply:
        """errors.raise_for_status: the status picks the exception, and /openapi's string code refines it."""
        legacy = {"Code": code, "Message": message, "RequestId": "loopback", "Success": False}
        openapi = {"success": False, "code": name, "message": message, "request_id": "loopback"}
        return _json(openapi if self.request.path.startswith("/openapi/") else legacy, status)

    def ms_data(self, data: object) -> Reply:
        return _json({"Code": 200, "Data": data, "Message": "success", "RequestId": "loopback", "Success": True})

    def ms_repo(self, repo_id: str, *, content: bool = False) -> HubRepo:
        """The repository; refusals to bad tokens and at gates are [?], and private ones hide as missing (old SDK)."""
        repo, token = self.hub.repos.get(repo_id), self.request.token
        if not self.hub.knows(token):
            raise self.ms_refusal(401, 10010103009, "InvalidAuthentication", "user not logged in")
        if repo is None or (repo.private and token not in repo.readers):
            raise self.ms_refusal(404, 10010205001, "ResourceNotFound", "获取模型版本失败, 信息: record not found")
        if content and repo.gated and token not in repo.readers:
            raise self.ms_refusal(403, 10010206001, "OperationNotAllowed", "access denied")
        return repo

    def ms_commit(self, repo_id: str, revision: str) -> tuple[HubRepo, Commit]:
        repo = self.ms_repo(repo_id, content=True)
        if commit := repo.at(revision, branch="master"):
            return repo, commit
        raise self.ms_refusal(404, 10010205001, "ResourceNotFound", f"no revision {revision}")

    def ms_search(self) -> Reply:
        """OpenAPIClient.list_models, for HubApi.list_repos."""
        found = [{"id": repo.id, "private": False, "gated": bool(repo.gated)} for repo in self.hub.find(self.request)]
        data = {"models": found, "total_count": len(found), "page_number": 1, "page_size": 50}
        return _json({"success": True, "request_id": "loopback", "data": data})

    def ms_model(self, repo_id: str) -> Reply:
        """OpenAPIClient.get_model, for HubApi.get_repo -> RepoInfo. `file_size` is [?]."""
        repo = self.ms_repo(repo_id)
        data: dict[str, Any] = {
            "id": repo.id, "display_name": repo.id.rpartition("/")[2], "private": repo.private,
            "gated": bool(repo.gated), "downloads": 0, "likes": 0, "license": "apache-2.0", "tags": [],
            "params": (repo.head.safetensors or {}).get("total"), "created_at": UPDATED_AT,
            "last_modified": UPDATED_AT, "file_size": sum(file.listed for file in repo.head.files.values()),
        }  # fmt: skip
        return _json({"success": True, "request_id": "loopback", "data": data})

    def ms_legacy_model(self, repo_id: str) -> Reply:
        """LegacyClient.get_repo_info: what HubApi.get_repo asks after a 404 from /openapi."""
        owner, _, name = self.ms_repo(repo_id).id.partition("/")
        return self.ms_data({"Id": 1, "Path": owner, "Name": name, "Revision": "master", "CreatedAt": UPDATED_AT})

    def ms_files(self, repo_id: str) -> Reply:
        """LegacyClient._list_files_page: Revision, Recursive, Root; cut at 3000 entries."""
        repo, commit = self.ms_commit(repo_id, self.request.first("Revision", "master"))
        recursive = self.request.first("Recursive").lower() == "true"
        entries = [
            {
                "Name": name.rpartition("/")[2], "Path": name, "Type": "blob" if file else "tree",
                "Size": file.listed if file else 0, "Sha256": file.sha256 if file else "",
                "IsLFS": bool(file and file.is_lfs(name)), "Mode": "33188" if file else "16384", "InCheck": False,
                "Revision": commit.sha, "CommitMessage": "", "CommittedDate": UPDATED_AT, "CommitterName": "loopback",
            }
            for name, file in repo.listing(commit) if _within(self.request.first("Root"), name, recursive)
        ]  # fmt: skip
        return self.ms_data({"Files": entries[:LISTING_ENTRIES_MAX], "IsVisual": 0, "LatestCommitter": None})

    def ms_revisions(self, repo_id: str) -> Reply:
        """LegacyClient.list_revisions[_detail]; modelscope (not modelscope_hub) takes the newest tag."""
        tags = [{"Revision": tag, "CreatedAt": UPDATED_AT} for tag in self.ms_repo(repo_id).tagged]
        branches = [{"Revision": "master", "CreatedAt": UPDATED_AT}]
        return self.ms_data({"RevisionMap": {"Branches": branches, "Tags": tags}})

    def ms_file(self, repo_id: str) -> Reply:
        """LegacyClient.get_download_url."""
        return self.ms_resolve(repo_id, self.request.first("Revision", "master"), self.request.first("FilePath"))

    def ms_resolve(self, repo_id: str, revision: str, name: str) -> Reply:
        """The public URL. Large files come from the CDN; a range gets 200 + Content-Range (modelscope_hub #50)."""
        file = self.ms_commit(repo_id, revision)[1].files.get(name)
        if file is None:
            raise self.ms_refusal(404, 10010205001, "ResourceNotFound", f"no file {name}")
        if file.is_lfs(name) and self.hub.redirect_lfs:
            return Reply(302, {"Location": self.hub.signed_url("ms", repo_id, name, file)})
        headers = {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes"}
        return Reply(200, headers, file, self.hub.modelscope_partial_status)

    def ms_acceleration(self) -> Reply:
        """DownloadManager._detect_region: an empty address means "not inside the vendor's cloud"."""
        return self.ms_data({"InternalRegionQueryAddress": ""})

    # Hugging Face: huggingface_hub 2.4.0, hf_api.py, file_download.py and utils/_http.py

    def hf_refusal(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> Reply:
        """hf_raise_for_status reads X-Error-Code, then X-Error-Message; .no_exist caching needs X-Repo-Commit."""
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        return _json({"error": message}, status, {name: value for name, value in headers.items() if value})

    def hf_repo(self, repo_id: str, *, content: bool = False) -> HubRepo:
        """The repository. A gated one shows its listing to all, and its content to its readers."""
        repo, token = self.hub.repos.get(repo_id), self.request.token
        if repo and repo.gated and content and token not in repo.readers:
            restricted = f"Access to model {repo_id} is restricted"
            if token is None or not self.hub.knows(token):  # Live hubs answer a bad token here as they answer none.
                message = f"{restricted}. You must have access to it and be authenticated to access it. Please log in."
                raise self.hf_refusal(401, message, "GatedRepo")
            unlisted = f"{restricted} and you are not in the authorized list. Visit {self.hub.endpoint}/{repo_id}"
            raise self.hf_refusal(403, f"{unlisted} to ask for access.", "GatedRepo")
        if not self.hub.knows(token):  # even where the repository is public (hub PR #2847)
            raise self.hf_refusal(401, "Invalid credentials in Authorization header")
        if repo is None or (repo.private and token not in repo.readers):
            if token:
                raise self.hf_refusal(404, "Repository not found", "RepoNotFound")
            named = "RepoNotFound" if self.hub.names_missing_repos else None
            raise self.hf_refusal(401, "Invalid username or password.", named)
        return repo

    def hf_commit(self, repo_id: str, revision: str, *, content: bool = False) -> tuple[HubRepo, Commit]:
        repo = self.hf_repo(repo_id, content=content)
        if commit := repo.at(revision, branch="main"):
            return repo, commit
        raise self.hf_refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def hf_search(self) -> Reply:
        """HfApi.list_models."""
        return _json([{"_id": repo.sha, "id": repo.id, "modelId": repo.id} for repo in self.hub.find(self.request)])

    def hf_model(self, repo_id: str, revision: str) -> Reply:
        """HfApi.model_info -> ModelInfo: `blobs` adds the files' sizes and digests, `expand` narrows the keys."""
        repo, commit = self.hf_commit(repo_id, revision or "main")
        siblings: list[dict[str, Any]] = []
        for name, file in ((name, file) for name, file in repo.listing(commit) if file):
            blob: dict[str, Any] = {"blobId": file.git_oid, "size": file.listed}
            if file.is_lfs(name):
                blob["lfs"] = {"sha256": file.sha256, "size": file.listed, "pointerSize": 135}
            siblings.append({"rfilename": name, **(blob if "blobs" in self.request.query else {})})
        config_file = commit.files.get("config.json", HubFile())
        config = parsed_object(config_file.read(0, config_file.size))
        info = {
            "_id": commit.sha[:24], "id": repo.id, "modelId": repo.id, "author": repo.id.partition("/")[0],
            "sha": commit.sha, "lastModified": "2023-11-14T22:13:20.000Z", "createdAt": "2023-11-14T22:13:20.000Z",
            "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "library_name": "transformers", "safetensors": commit.safetensors, "siblings": siblings,
            "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        }  # fmt: skip
        info = {key: value for key, value in {**info, **repo.extra_info}.items() if value is not None}
        if wanted := self.request.query.get("expand"):
            info = {key: value for key, value in info.items() if key in ("_id", "id", "modelId", *wanted)}
        return _json(info)

    def hf_tree(self, repo_id: str, revision: str, root: str) -> Reply:
        """HfApi.list_repo_tree -> RepoFile, RepoFolder, in a single page."""
        repo, commit = self.hf_commit(repo_id, revision)
        recursive = self.request.first("recursive").lower() in ("true", "1")
        entries: list[dict[str, Any]] = []
        for name, file in repo.listing(commit):
            if file and _within(root, name, recursive):
                entries.append({"type": "file", "oid": file.git_oid, "size": file.listed, "path": name})
                if file.is_lfs(name):
                    entries[-1]["lfs"] = {"oid": file.sha256, "size": file.listed, "pointerSize": 135}
            elif _within(root, name, recursive):
                entries.append({"type": "directory", "oid": commit.sha, "size": 0, "path": name})
        return _json(entries)

    def hf_refs(self, repo_id: str) -> Reply:
        """HfApi.list_repo_refs -> GitRefs."""
        repo = self.hf_repo(repo_id)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}]
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c.sha} for t, c in repo.tagged.items()]
        return _json({"branches": branches, "converts": [], "tags": tags})

    def hf_safetensors_metadata(self, repo_id: str, index_name: str) -> Reply:
        """HfApi.get_sharded_safetensors_metadata: `main` only, sharded only; off by default, as on mirrors."""
        _, commit = self.hf_commit(repo_id, "main", content=True)
        index = commit.files.get(index_name)
        if not self.hub.serve_safetensors_metadata or index is None:
            raise self.hf_refusal(404, "Not found")
        files = {name: file for name, file in commit.files.items() if name.endswith(".safetensors")}
        shards = {name: file.safetensors_header() for name, file in files.items()}
        metadata = parsed_object(index.read(0, index.size)).get("metadata")
        return _json({"index": {"metadata": metadata}, "headers": shards})

    def hf_resolve(self, repo_id: str, revision: str, name: str) -> Reply:
        """file_download.get_hf_file_metadata (HEAD) and http_get. No X-Xet-* headers: those need a token route."""
        _, commit = self.hf_commit(repo_id, revision, content=True)
        file = commit.files.get(name)
        if file is None:
            raise self.hf_refusal(404, "Entry not found", "EntryNotFound", commit.sha)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "ETag": f'"{file.git_oid}"'}
        if file.is_lfs(name):
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
            if self.hub.redirect_lfs:
                return Reply(302, {**headers, "Location": self.hub.signed_url("hf", repo_id, name, file)})
        elif self.hub.redirect_small_files and not self.request.path.startswith("/api/"):
            asked = urlencode({self.request.path: "", "etag": headers["ETag"]})
            cached = f"/api/resolve-cache/models/{repo_id}/{commit.sha}/{quote(name)}?{asked}"
            return Reply(307, {**headers, "Location": cached})
        return Reply(200, headers, file, 206)

    def hf_agent_harnesses(self) -> Reply:
        """utils/_detect_agent._fetch_registry: once a day per HF_HOME, unless telemetry is off."""
        return _json({"standardEnvVars": [], "harnesses": {}})

    def hf_whoami(self) -> Reply:
        if self.request.token is None or not self.hub.knows(self.request.token):
            raise self.hf_refusal(401, "Invalid credentials in Authorization header")
        return _json({"type": "user", "name": "loopback", "auth": {"accessToken": {"role": "read"}}})


def _cdn(hub: Hub, request: Request) -> Reply:
    """Object storage: a signature opens it, and S3 refuses a second credential, so a leaked token shows at once."""
    file = hub.objects.get(request.path)
    if "authorization" in request.headers:
        return Reply(400, {}, HubFile(b"<Error><Code>InvalidArgument</Code></Error>"))
    if file is None or not request.first("Signature"):
        return Reply(403, {}, HubFile(b"<Error><Code>AccessDenied</Code></Error>"))
    headers = {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes"}
    if request.path.startswith("/ms/"):  # modelscope_hub checks the body against it: _download_with_resume
        return Reply(200, {**headers, "X-Linked-ETag": f'"{file.sha256}"'}, file, hub.modelscope_partial_status)
    return Reply(200, headers, file, 206)


def span(value: str, size: int) -> tuple[int, int] | None:
    """The half-open span that a `Range` asks for, or None where it is unsatisfiable. One range; else ValueError."""
    first, last = value.removeprefix("bytes=").split("-")
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop) if start < stop else None


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, HubFile(json.dumps(value).encode()))


def _within(root: str, name: str, recursive: bool) -> bool:
    prefix = root.strip("/") + "/" if root.strip("/") else ""
    return name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
