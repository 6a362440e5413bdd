"""ModelScope, with the endpoint, token and cache rules of its light client, modelscope_hub.

The client cannot read a byte range, so this module sends requests as the client does: a session of `requests`, the token as
Bearer and as the cookie m_session_id, both for the endpoint's origin only.
Source: modelscope_hub 0.5.1, config.py (HubConfig), _legacy_api.py (URLs, headers, cookies), errors.py.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from http.cookiejar import DefaultCookiePolicy
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from ..errors import (
    AccessError,
    MalformedError,
    NetworkError,
    NotFoundError,
    QwenInspectError,
    UnavailableError,
    UsageError,
)
from ..language import Message
from .hub import ListedFile, Listing
from .transfer import (
    CONNECT_SECONDS,
    MOST_REQUESTS,
    Answer,
    Deadline,
    Unreachable,
    first_line,
    retry_after,
    safe_name,
    unreachable,
)

DIGEST = re.compile(r"[0-9a-f]{64}")
OFFICIAL = ("https://modelscope.cn", "https://www.modelscope.cn", "https://modelscope.ai", "https://www.modelscope.ai")
MOST_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024
DOWNLOADS = 4  # at once, as many as download_repo starts


class ModelScope:
    """An endpoint, from the client's environment variables."""

    source = "ms"
    default_revision = "master"

    def __init__(self) -> None:
        # The rules of HubConfig.__post_init__, without the client's import (0.2 s): a cached model needs no more.
        named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN", "")
        endpoint = named.strip() or OFFICIAL[0]
        self.endpoint = (endpoint if re.match("https?://", endpoint, re.IGNORECASE) else f"https://{endpoint}").rstrip(
            "/"
        )
        home = Path.home() / ".cache" / "modelscope"
        self._cache = Path(os.environ.get("MODELSCOPE_CACHE") or home).expanduser()
        self._session: Any = None

    @cached_property
    def _token(self) -> str | None:
        """By the client's rule: MODELSCOPE_API_TOKEN (empty: no token), else its stored login."""
        try:
            from modelscope_hub.config import HubConfig
        except ImportError:
            raise UnavailableError("package_missing", package="modelscope-hub") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MODELSCOPE_DOMAIN is deprecated but still read
            return HubConfig().token or None

    # --- asking

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer:
        """One GET. Follows redirects itself, so that the token is sent to the endpoint's origin only."""
        import requests
        import urllib3

        if self._session is None:
            _ = self._token  # read here, before the threads start
            session = requests.Session()
            session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=MOST_REQUESTS))
            session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=MOST_REQUESTS))
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # stores no cookie, sends none
            self._session = session
        try:
            for _ in range(MOST_REDIRECTS + 1):
                timeout = (min(CONNECT_SECONDS, deadline.remaining), deadline.remaining)
                sent = {"Accept-Encoding": "identity", **headers, **self._credentials(url)}
                with self._session.get(
                    url, headers=sent, stream=True, allow_redirects=False, timeout=timeout
                ) as response:
                    if response.is_redirect:
                        url = urljoin(url, response.headers["Location"])
                        continue
                    return Answer(
                        status=response.status_code,
                        headers={name.lower(): value for name, value in response.headers.items()},
                        body=_read(response, limit, deadline),
                    )
        except requests.exceptions.InvalidSchema as error:
            if "SOCKS" in str(error):
                raise UnavailableError("socks_missing") from None
            raise Unreachable(str(error).splitlines()[0][:200], final=True) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            cause = _cause(error)
            no_connection = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
            raise Unreachable(_short(cause), final=isinstance(cause, no_connection)) from None
        raise Unreachable("redirected without end", final=True)

    def _credentials(self, url: str) -> dict[str, str]:
        """The token, for the endpoint's own origin (scheme, host and port) and no other."""
        if not self._token or urlsplit(url)[:2] != urlsplit(self.endpoint)[:2]:
            return {}
        return {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}

    def notices(self) -> tuple[Message, ...]:
        return () if self.endpoint in OFFICIAL else (Message("mirror", endpoint=self.endpoint),)

    def listing_url(self, model: str, revision: str) -> str:
        return (
            f"{self.endpoint}/api/v1/models/{model}/repo/files?{urlencode({'Revision': revision, 'Recursive': 'True'})}"
        )

    def file_url(self, model: str, revision: str, name: str) -> str:
        return f"{self.endpoint}/models/{model}/resolve/{quote(revision, safe='')}/{quote(name)}"

    def read_listing(self, content: Any, model: str, revision: str) -> Listing:
        """`Data.Files` of /api/v1/models/{id}/repo/files: paths, sizes and SHA-256; at most 3,000 files, the rest unmentioned."""
        data = content.get("Data") if isinstance(content, dict) else None
        files = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(files, list):
            raise MalformedError("listing_malformed", endpoint=self.endpoint)
        listed = tuple(_listed(file) for file in files if isinstance(file, dict) and file.get("Type") != "tree")
        return Listing(revision=revision, files=listed)

    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError:
        """The error that an HTTP answer means. Source: modelscope_hub 0.5.1, errors.raise_for_status; the answers of live servers
        for gated and private repositories are not documented."""
        if answer.status == 401:
            return AccessError(
                "ms_bad_token" if self._token else "ms_unauthorised", model=model, token=self._token_name()
            )
        if answer.status == 403:
            return AccessError("hub_forbidden", model=model, endpoint=self.endpoint)
        if answer.status == 404 and file is not None:
            return NotFoundError("hub_no_file", model=model, file=file)
        if answer.status == 404 and revision != self.default_revision:
            return NotFoundError("hub_no_revision", model=model, revision=revision, default=self.default_revision)
        if answer.status == 404:
            return NotFoundError("ms_no_repo", model=model)
        if answer.status == 429:
            return NetworkError("hub_rate_limited", endpoint=self.endpoint, seconds=f"{retry_after(answer):g}")
        return NetworkError("hub_status", endpoint=self.endpoint, status=answer.status)

    def _token_name(self) -> str:
        return "MODELSCOPE_API_TOKEN" if os.environ.get("MODELSCOPE_API_TOKEN") else "the login of `modelscope login`"

    # --- the weights

    def download(self, model: str, revision: str, files: Sequence[ListedFile], come: Callable[[int], None]) -> Path:
        """Downloads the files into the client's cache, weights last, and returns the revision's folder.

        The client checks each file against its SHA-256 in the listing, and ends its threads when interrupted. Why weights come
        last: see `weights._needed`. come: called with the size of each chunk.
        Source: modelscope_hub 0.5.1, DownloadManager.download_repo.
        """
        try:
            from modelscope_hub import HubApi, ProgressCallback
        except ImportError:
            raise UnavailableError("package_missing", package="modelscope-hub") from None
        import requests

        class Come(ProgressCallback):  # type: ignore[misc]
            def update(self, size: int) -> None:
                come(size)

        folder = self._cache
        with _silent():
            client = HubApi()
            for weights in (False, True):
                part = [_entry(file) for file in files if file.name.endswith(".safetensors") is weights]
                try:
                    folder = client.download_repo(
                        model,
                        "model",
                        revision=revision,
                        file_list=part,
                        progress_callbacks=[Come],
                        max_workers=DOWNLOADS,
                    )
                except (OSError, requests.exceptions.RequestException, _hub_error()) as error:
                    raise self._download_refusal(error, model, revision, "–") from None
        return Path(folder)

    def _download_refusal(self, error: BaseException, model: str, revision: str, file: str) -> QwenInspectError:
        """Translates the client's exception into ours: HTTP status, damaged bytes, disk or connection."""
        if failed := getattr(error, "failed_files", None):
            file = min(failed)
            return self._download_refusal(failed[file], model, revision, file)
        if (status := getattr(error, "status_code", None)) is not None:
            return self.refusal(Answer(status=status, headers={}, body=b""), model=model, revision=revision, file=file)
        if type(error).__name__ in ("FileIntegrityError", "FileSizeMismatchError"):
            return NetworkError("download_damaged", file=file, reason=first_line(error))
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            return UsageError("download_unwritable", path=self._cache, reason=error.strerror)
        return unreachable(self.endpoint, first_line(error))

    # --- the client's cache

    def cached(self, model: str, revision: str) -> tuple[Path, str] | None:
        """The folder of a revision in the client's cache: today's layout, then the two older ones, which hold one revision each.

        Source: modelscope_hub 0.5.1, DownloadManager._repo_cache_dir_path and _find_legacy_repo_dir.
        """
        owner, _, name = model.partition("/")
        older = name.replace(".", "___")
        places = [self._cache / "models" / f"{owner}--{name}" / "snapshots" / revision]
        if revision == self.default_revision:
            places += [self._cache / "models" / owner / older, self._cache / "hub" / "models" / owner / older]
        folder = next((place for place in places if place.is_dir()), None) if ".." not in revision else None
        return None if folder is None else (folder, revision)


def _hub_error() -> type[Exception]:
    from modelscope_hub import HubError

    return HubError  # type: ignore[no-any-return]


def _entry(file: ListedFile) -> dict[str, Any]:
    """A file in the form of the client's listings."""
    return {"Path": file.name, "Size": file.size_bytes, "Sha256": file.sha256, "Type": "blob"}


@contextmanager
def _silent() -> Iterator[None]:
    """Silences the client on stderr, its progress bars too: we raise or show its messages ourselves."""
    logger = logging.getLogger("modelscope_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _listed(file: Mapping[str, Any]) -> ListedFile:
    name, size, digest = safe_name(file.get("Path")), file.get("Size"), file.get("Sha256")
    key = f"sha256-{digest}" if isinstance(digest, str) and DIGEST.fullmatch(digest) else None
    return ListedFile(name=name, size_bytes=size if type(size) is int and 0 <= size < 1 << 62 else None, key=key)


def _read(response: Any, limit: int, deadline: Deadline) -> bytes:
    """At most `limit` bytes of the raw body; the request ruled out compression."""
    body = bytearray()
    while len(body) < limit and (chunk := response.raw.read(min(CHUNK_BYTES, limit - len(body)))):
        body += chunk
        if deadline.passed:
            raise Unreachable("timed out")
    return bytes(body)


def _cause(error: BaseException) -> BaseException:
    """The innermost of the exceptions that `requests` and urllib3 nest."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _short(error: BaseException) -> str:
    """The message in a short line, without the URL and the object that urllib3 puts before it."""
    text = str(error).rpartition(": ")[2] or type(error).__name__
    return text.splitlines()[0][:200]
