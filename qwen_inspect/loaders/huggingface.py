"""Hugging Face, through huggingface_hub's own session, endpoint, token and cache rules.

Source: huggingface_hub 2.4, utils/_http.py (session, errors), utils/_headers.py, file_download.py (URLs, cache layout).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import AccessError, MalformedError, NetworkError, NotFoundError, QwenInspectError, UnavailableError
from ..language import Message
from .hub import ListedFile, Listing
from .transfer import CONNECT_SECONDS, Answer, Deadline, Unreachable, retry_after, safe_name

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OFFICIAL = "https://huggingface.co"


class HuggingFace:
    """One endpoint, by the library's environment variables (read when it is imported)."""

    source = "hf"
    default_revision = "main"

    def __init__(self) -> None:
        # Read when the library is imported: else its first call of a day asks one thing more, for statistics.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import constants

        self.endpoint: str = constants.ENDPOINT
        self._cache = Path(constants.HF_HUB_CACHE)
        self._client: Any = None

    # --- asking

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer:
        """One GET on the library's session. It drops the token when a redirect leaves the endpoint's origin."""
        session, library = self._session()
        sent = {**self._headers, **headers}
        timeout = library.Timeout(deadline.remaining, connect=min(CONNECT_SECONDS, deadline.remaining))
        try:
            with session.stream("GET", url, headers=sent, timeout=timeout, follow_redirects=True) as response:
                body = bytearray()
                for chunk in response.iter_raw() if "Range" in headers else response.iter_bytes():
                    body += chunk
                    if len(body) >= limit:
                        break
                    if deadline.passed:
                        raise Unreachable("timed out")
                hops = [*response.history, response]
                commits = [hop.headers["x-repo-commit"] for hop in hops if "x-repo-commit" in hop.headers]
                return Answer(
                    status=response.status_code,
                    headers={name.lower(): value for name, value in response.headers.items()},
                    body=bytes(body[:limit]),
                    commit=commits[0] if commits else None,
                )
        except library.TooManyRedirects:
            raise Unreachable("redirected without end", final=True) from None
        except (library.InvalidURL, library.UnsupportedProtocol) as error:
            raise Unreachable(str(error), final=True) from None
        except library.RequestError as error:
            raise Unreachable(_reason(error), final=isinstance(error, self._no_connection)) from None

    @property
    def _no_connection(self) -> tuple[type[BaseException], ...]:
        _, library = self._session()
        return library.ConnectError, library.ConnectTimeout

    def _session(self) -> tuple[Any, Any]:
        """The library's client, and the HTTP library it is of: httpx2 from huggingface_hub 2 on, httpx before."""
        if self._client is None:
            from huggingface_hub.utils import build_hf_headers, get_session

            self._headers: Mapping[str, str] = build_hf_headers(library_name="qwen-inspect")
            try:
                self._client = get_session()
            except ImportError:
                raise UnavailableError("socks_missing") from None
        return self._client, sys.modules[type(self._client).__module__.partition(".")[0]]

    def notices(self) -> tuple[Message, ...]:
        return () if self.endpoint == OFFICIAL else (Message("mirror", endpoint=self.endpoint),)

    def listing_url(self, model: str, revision: str) -> str:
        at = "" if revision == self.default_revision else f"/revision/{quote(revision, safe='')}"
        return f"{self.endpoint}/api/models/{model}{at}?blobs=true"

    def file_url(self, model: str, revision: str, name: str) -> str:
        return f"{self.endpoint}/{model}/resolve/{quote(revision, safe='')}/{quote(name)}"

    def read_listing(self, content: Any, model: str, revision: str) -> Listing:
        """`siblings` of /api/models/{id}?blobs=true: names, sizes, and SHA-256 of large files, git's hash of small ones."""
        siblings = content.get("siblings") if isinstance(content, dict) else None
        commit = content.get("sha") if isinstance(content, dict) else None
        if not isinstance(siblings, list) or not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise MalformedError("listing_malformed", endpoint=self.endpoint)
        return Listing(revision=commit, files=tuple(_listed(one) for one in siblings if isinstance(one, dict)))

    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError:
        """What an error means. Source: huggingface_hub 2.4, utils/_http.py, hf_raise_for_status."""
        code, message = answer.headers.get("x-error-code", ""), answer.headers.get("x-error-message", "")
        token = self._token_name()
        if code == "GatedRepo":
            key = "hf_gated_refused" if answer.status == 403 else "hf_gated"
            return AccessError(key, model=model, endpoint=self.endpoint)
        if code == "RevisionNotFound":
            return NotFoundError("hub_no_revision", model=model, revision=revision, default=self.default_revision)
        if code == "EntryNotFound":
            return NotFoundError("hub_no_file", model=model, file=file or "–")
        if answer.status == 401 and token and ("Invalid credentials" in message or not code):
            return AccessError("hf_bad_token", token=token)
        if code == "RepoNotFound" or answer.status in (401, 404):
            return NotFoundError("hf_no_repo_token" if token else "hf_no_repo", model=model, token=token or "–")
        if answer.status == 403:
            return AccessError("hub_forbidden", model=model, endpoint=self.endpoint)
        if answer.status == 429:
            return NetworkError("hub_rate_limited", endpoint=self.endpoint, seconds=f"{retry_after(answer):g}")
        return NetworkError("hub_status", endpoint=self.endpoint, status=answer.status)

    def _token_name(self) -> str | None:
        """Where the token that is sent comes from, never the token; None where none is sent."""
        if "authorization" not in getattr(self, "_headers", {}):
            return None
        named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
        return named or "the token file of `hf auth login`"

    # --- the library's cache

    def cached(self, model: str, revision: str) -> tuple[Path, str] | None:
        """The snapshot of a revision in the library's cache, and its commit; None where there is none."""
        repository = self._cache / f"models--{model.replace('/', '--')}"
        commit = revision
        if not COMMIT.fullmatch(revision):
            reference = (repository / "refs").joinpath(*revision.split("/"))
            try:
                commit = reference.read_text(encoding="ascii").strip() if ".." not in revision else ""
            except (OSError, UnicodeDecodeError):
                return None
        snapshot = repository / "snapshots" / commit
        return (snapshot, commit) if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _listed(sibling: Mapping[str, Any]) -> ListedFile:
    name, size, large = safe_name(sibling.get("rfilename")), sibling.get("size"), sibling.get("lfs")
    digest = large.get("sha256") if isinstance(large, dict) else None
    blob = sibling.get("blobId")
    key = None
    if isinstance(digest, str) and DIGEST.fullmatch(digest):
        key = f"sha256-{digest}"
    elif isinstance(blob, str) and COMMIT.fullmatch(blob) and large is None:
        key = f"git-{blob}"
    return ListedFile(name=name, size_bytes=size if type(size) is int and 0 <= size < 1 << 62 else None, key=key)


def _reason(error: BaseException) -> str:
    """The library's words for what happened, in one short line."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
