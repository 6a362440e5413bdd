"""Hugging Face, through huggingface_hub's own session, endpoint, token and cache rules.

Source: huggingface_hub 2.4, utils/_http.py (session, errors), utils/_headers.py, file_download.py (URLs, cache layout).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    Answer,
    Deadline,
    Unreachable,
    first_line,
    in_parallel,
    retry_after,
    safe_name,
    unreachable,
)

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OFFICIAL = "https://huggingface.co"
DOWNLOADS = 8  # at once, as many as snapshot_download starts
LONGEST_DOWNLOAD_SECONDS = 30 * 24 * 3600.0


class HuggingFace:
    """An endpoint, from the library's environment variables, which it reads on import."""

    source = "hf"
    default_revision = "main"

    def __init__(self) -> None:
        # The library reads it on import; unset, its first call of a day sends one more request, for statistics.
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
            raise Unreachable(first_line(error), final=isinstance(error, self._no_connection)) from None

    @property
    def _no_connection(self) -> tuple[type[BaseException], ...]:
        _, library = self._session()
        return library.ConnectError, library.ConnectTimeout

    def _session(self) -> tuple[Any, Any]:
        """The library's client, and the HTTP library that it comes from: httpx2 since huggingface_hub 2, httpx before."""
        if self._client is None:
            from huggingface_hub.utils import get_session

            self._headers: Mapping[str, str] = _identity()
            if not all(value.isascii() and value.isprintable() for value in self._headers.values()):
                raise AccessError("hf_bad_token", token=self._token_name())  # no HTTP library sends such a header
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
        return Listing(
            revision=commit, files=tuple(_listed(sibling) for sibling in siblings if isinstance(sibling, dict))
        )

    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError:
        """The error that an HTTP answer means. Source: huggingface_hub 2.4, utils/_http.py, hf_raise_for_status."""
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
        """The origin of the token that is sent (never the token itself); None if none is sent."""
        if "authorization" not in getattr(self, "_headers", {}):
            return None
        named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
        return named or "the token file of `hf auth login`"

    # --- the weights

    def download(self, model: str, revision: str, files: Sequence[ListedFile], come: Callable[[int], None]) -> Path:
        """Downloads the files into the library's cache, `DOWNLOADS` at a time, weights last, and returns the snapshot folder.

        Uses `hf_hub_download`, which stores a file under its name only when complete; `snapshot_download`, once interrupted,
        waits for the files in progress. Why weights come last: see `weights._needed`. come: called with the size of each chunk.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import XetDownloadError

        _, library = self._session()
        failed = threading.Event()

        def job(file: ListedFile) -> Callable[[], None]:
            def fetch() -> None:
                if failed.is_set():
                    return
                try:
                    hf_hub_download(
                        model, file.name, revision=revision, library_name="qwen-inspect", tqdm_class=_bar(come)
                    )
                except (OSError, library.HTTPError, XetDownloadError) as error:
                    failed.set()
                    raise self._download_refusal(error, model, revision, file.name) from None

            return fetch

        with _silent():
            for weights in (False, True):
                part = [job(file) for file in files if file.name.endswith(".safetensors") is weights]
                outcomes = in_parallel(part, deadline=Deadline.after(LONGEST_DOWNLOAD_SECONDS), threads=DOWNLOADS)
                for error in outcomes.errors:
                    if error is not None:
                        raise error
        return self._cache / f"models--{model.replace('/', '--')}" / "snapshots" / revision

    def _download_refusal(self, error: BaseException, model: str, revision: str, file: str) -> QwenInspectError:
        """Translates the library's exception into ours: HTTP status, connection, disk or damaged bytes."""
        from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError

        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            return self._download_refusal(error.__cause__, model, revision, file)
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            answer = Answer(status=error.response.status_code, headers=headers, body=b"")
            return self.refusal(answer, model=model, revision=revision, file=file)
        if isinstance(error, ConnectionError):
            return unreachable(self.endpoint, first_line(error))
        if isinstance(error, OSError) and error.errno is not None:
            return UsageError("download_unwritable", path=self._cache, reason=error.strerror)
        if isinstance(error, OSError) and not isinstance(error, FileMetadataError | LocalEntryNotFoundError):
            return NetworkError("download_damaged", file=file, reason=first_line(error))  # wrong size
        return unreachable(self.endpoint, first_line(error))

    # --- the library's cache

    def cached(self, model: str, revision: str) -> tuple[Path, str] | None:
        """The snapshot folder of a revision in the library's cache, and its commit; None if not cached."""
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


def _identity() -> Mapping[str, str]:
    """The headers that the library sends, with the token. AccessError for a token that is set but cannot be read.

    Source: huggingface_hub 2.4, utils/_auth.py, _get_token_from_file and _get_token_from_oidc.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import build_hf_headers

    exchange_error: type[Exception] = getattr(errors, "OIDCError", OSError)  # from huggingface_hub 2 on
    try:
        headers: Mapping[str, str] = build_hf_headers(library_name="qwen-inspect")
    except OSError as error:
        raise AccessError("hf_token_unreadable", path=constants.HF_TOKEN_PATH, reason=error.strerror) from None
    except UnicodeDecodeError:
        raise AccessError("hf_bad_token", token=constants.HF_TOKEN_PATH) from None
    except exchange_error as error:
        raise AccessError("hf_token_exchange", reason=first_line(error)) from None
    return headers


def _bar(come: Callable[[int], None]) -> type:
    """A progress bar for the library: passes byte counts to `come`, shows nothing. Source: huggingface_hub 2.4, utils/tqdm.py."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            come(initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, size_bytes: int = 1) -> None:
            come(int(size_bytes))

        def close(self) -> None:
            pass

        def set_postfix_str(self, *_: object, **__: object) -> None:
            pass

    return Bar


@contextmanager
def _silent() -> Iterator[None]:
    """Silences the library on stderr: we raise or show its messages ourselves."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


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
