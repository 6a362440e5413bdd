"""ModelScope, by the endpoint, token and cache rules of its light client, modelscope_hub, which is imported for downloads alone.

Requests are those of the client: the token as Bearer and as the cookie m_session_id, both for the endpoint's origin only.
Source: modelscope_hub 0.5.1, config.py (HubConfig), _legacy_api.py (URLs, headers, cookies), errors.py.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from urllib.parse import quote, urlencode

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
from ..typed import Any
from .hub import ListedFile, Listing
from .regular import below_home, read_regular
from .showing import keep_secret, keep_url_secret, reason, shown_url
from .transfer import Answer, Deadline, is_safe_name, rate_limited, unreachable
from .transport import Transport

DIGEST = re.compile(r"[0-9a-f]{64}")
OFFICIAL = ("https://modelscope.cn", "https://www.modelscope.cn", "https://modelscope.ai", "https://www.modelscope.ai")
SESSION_COOKIE = "m_session_id"
PICKLED = (
    ("requests.cookies", "RequestsCookieJar"),
    ("http.cookiejar", "Cookie"),
    ("http.cookiejar", "DefaultCookiePolicy"),
)
LONGEST_COOKIES_BYTES = 1_000_000
DOWNLOADS = 4  # at once, as many as download_repo starts


class ModelScope:
    """An endpoint, from the client's environment variables."""

    source = "ms"
    default_revision = "master"

    def __init__(self) -> None:
        named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN", "")
        endpoint = named.strip() or OFFICIAL[0]
        self.endpoint = (endpoint if re.match("https?://", endpoint, re.IGNORECASE) else f"https://{endpoint}").rstrip(
            "/"
        )
        keep_url_secret(self.endpoint)
        self.shown_endpoint = shown_url(self.endpoint)
        self._cache = _folder("MODELSCOPE_CACHE", ".cache/modelscope")

    # --- asking

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer:
        return self._transport.get(url, headers=headers, limit=limit, deadline=deadline)

    @cached_property
    def _transport(self) -> Transport:
        return Transport(self.endpoint, own=self._credentials)

    @cached_property
    def _credentials(self) -> Mapping[str, str]:
        """The token's headers; empty without a token. AccessError for a token that cannot be sent."""
        token = self._token
        if not token:
            return {}
        keep_secret(token)
        if not (token.isascii() and token.isprintable()):
            raise AccessError("hf_bad_token", token=_token_name())  # no HTTP library sends such a header
        return {"Authorization": f"Bearer {token}", "Cookie": f"{SESSION_COOKIE}={token}"}

    @cached_property
    def _token(self) -> str | None:
        """By the client's rule: MODELSCOPE_API_TOKEN (empty: no token), else its stored login."""
        if (named := os.environ.get("MODELSCOPE_API_TOKEN")) is not None:
            return named or None
        return _stored_token(_folder("MODELSCOPE_HOME", ".modelscope") / "credentials" / "cookies")

    def notices(self) -> tuple[Message, ...]:
        return () if self.endpoint in OFFICIAL else (Message("mirror", endpoint=self.shown_endpoint),)

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
            raise MalformedError("listing_malformed", endpoint=self.shown_endpoint)
        named = [file for file in files if isinstance(file, dict) and file.get("Type") != "tree"]
        safe = [file for file in named if is_safe_name(file.get("Path"))]
        return Listing(revision=revision, files=tuple(map(_listed, safe)), left_out=len(named) - len(safe))

    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError:
        """The error that an HTTP answer means. Source: modelscope_hub 0.5.1, errors.raise_for_status; the answers of live servers
        for gated and private repositories are not documented."""
        if answer.status == 401:
            return AccessError("ms_bad_token" if self._token else "ms_unauthorised", model=model, token=_token_name())
        if answer.status == 403:
            return AccessError("hub_forbidden", model=model, endpoint=self.shown_endpoint)
        if answer.status == 404 and file is not None:
            return NotFoundError("hub_no_file", model=model, file=file)
        if answer.status == 404 and revision != self.default_revision:
            return NotFoundError("hub_no_revision", model=model, revision=revision, default=self.default_revision)
        if answer.status == 404:
            return NotFoundError("ms_no_repo", model=model)
        if answer.status == 429:
            return rate_limited(answer, self.shown_endpoint)
        return NetworkError("hub_status", endpoint=self.shown_endpoint, status=answer.status)

    # --- the weights

    def download(self, model: str, revision: str, files: Sequence[ListedFile], come: Callable[[int], None]) -> Path:
        """Downloads the files into the client's cache, weights last, and returns the revision's folder.

        The client checks each file against its SHA-256 in the listing, and ends its threads when interrupted. Why weights come
        last: see `weights._needed`. come: called with the size of each chunk.
        Source: modelscope_hub 0.5.1, DownloadManager.download_repo.
        """
        try:
            import requests
            from modelscope_hub import HubApi, HubError, ProgressCallback
        except ImportError:
            raise UnavailableError("extra_missing", package="modelscope_hub", extra="hub") from None

        class Come(ProgressCallback):  # type: ignore[misc]
            def update(self, size: int) -> None:
                come(size)

        _ = self._credentials  # a token that cannot be sent is refused before the client shows it
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
                except (OSError, requests.exceptions.RequestException, HubError) as error:
                    raise self._download_refusal(error, model, revision, "–") from None
        return Path(folder)

    def _download_refusal(self, error: BaseException, model: str, revision: str, file: str) -> QwenInspectError:
        """Translates the client's exception into ours: HTTP status, damaged bytes, disk or connection."""
        if failed := getattr(error, "failed_files", None):
            file = min(failed)
            return self._download_refusal(failed[file], model, revision, file)
        if "SOCKS" in str(error):
            return UnavailableError("socks_missing")
        if (status := getattr(error, "status_code", None)) is not None:
            return self.refusal(Answer(status=status, headers={}, body=b""), model=model, revision=revision, file=file)
        if type(error).__name__ in ("FileIntegrityError", "FileSizeMismatchError"):
            return NetworkError("download_damaged", file=file, reason=reason(error))
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            return UsageError("download_unwritable", path=self._cache, reason=error.strerror)
        return unreachable(self.endpoint, reason(error))

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


def _folder(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable)
    return (Path(os.path.expanduser(chosen)) if chosen else Path(below_home(default))).resolve()


def _token_name() -> str:
    return "MODELSCOPE_API_TOKEN" if os.environ.get("MODELSCOPE_API_TOKEN") else "the login of `modelscope login`"


def _stored_token(file: Path) -> str | None:
    """The token of the client's stored login, a pickled cookie jar; None if there is none, or its time is over.

    A pickle can name any function to be called: here it can name the jar's three classes, in whose place stands an empty class.
    Source: modelscope_hub 0.5.1, HubConfig.load_cookies and load_token; pickle's documentation, "Restricting Globals".
    """
    try:
        content = read_regular(file, cap=LONGEST_COOKIES_BYTES)
    except OSError:
        return None
    import pickle

    class Fields:
        """Takes the attributes of whatever was pickled."""

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in PICKLED:
                return Fields
            raise pickle.UnpicklingError(f"{module}.{name}")

    try:
        jar = vars(Reader(BytesIO(content)).load())["_cookies"]
        cookies = [vars(cookie) for paths in jar.values() for names in paths.values() for cookie in names.values()]
        sessions = [cookie for cookie in cookies if cookie["name"] == SESSION_COOKIE]
        if any(cookie["expires"] is not None and cookie["expires"] <= time.time() for cookie in sessions):
            return None
        return str(sessions[0]["value"]) if sessions else None
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _entry(file: ListedFile) -> dict[str, Any]:
    """A file in the form of the client's listings."""
    return {"Path": file.name, "Size": file.size_bytes, "Sha256": file.sha256, "Type": "blob"}


@contextmanager
def _silent() -> Iterator[None]:
    """Silences the client on stderr, its progress bars too: we raise or show its messages ourselves."""
    import logging

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
    name, size, digest = file["Path"], file.get("Size"), file.get("Sha256")
    key = f"sha256-{digest}" if isinstance(digest, str) and DIGEST.fullmatch(digest) else None
    return ListedFile(name=name, size_bytes=size if type(size) is int and 0 <= size < 1 << 62 else None, key=key)
