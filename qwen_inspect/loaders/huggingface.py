"""Hugging Face, by the endpoint, token and cache rules of its client, huggingface_hub, which is imported for downloads alone.

Source: huggingface_hub 2.4, constants.py (endpoint, folders), utils/_auth.py (token), utils/_headers.py, utils/_http.py (errors),
file_download.py (URLs, cache layout).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from os.path import expanduser, expandvars
from pathlib import Path
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
from ..typed import Any
from .hub import ListedFile, Listing, counted_elements
from .regular import read_regular
from .showing import keep_secret, keep_url_secret, reason, shown_url
from .transfer import Answer, Deadline, in_parallel, is_safe_name, rate_limited, unreachable
from .transport import USER_AGENT, Transport

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OFFICIAL = "https://huggingface.co"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
REFRESHED_BEFORE_SECONDS = 24 * 3600  # a token of the browser's login is exchanged in the last day of its time
LONGEST_TOKEN_BYTES = 1_000_000  # of the file of a token, and of all logins
DOWNLOADS = 8  # at once, as many as snapshot_download starts
LONGEST_DOWNLOAD_SECONDS = 30 * 24 * 3600.0


class HuggingFace:
    """An endpoint, by the environment variables of the client."""

    source = "hf"
    default_revision = "main"

    def __init__(self) -> None:
        # The client reads it on import; unset, its first call of a day sends one more request, for statistics.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        self.endpoint = (os.environ.get("HF_ENDPOINT") or OFFICIAL).rstrip("/")
        keep_url_secret(self.endpoint)
        self.shown_endpoint = shown_url(self.endpoint)
        self._home = _folder("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
        self._cache = _folder("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE") or self._home / "hub")
        self._token_file = _folder("HF_TOKEN_PATH", self._home / "token")

    # --- asking

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer:
        return self._transport.get(url, headers=headers, limit=limit, deadline=deadline)

    @cached_property
    def _transport(self) -> Transport:
        origin = os.environ.get("HF_HUB_USER_AGENT_ORIGIN")
        agent = USER_AGENT if origin is None else f"{USER_AGENT}; origin/{origin}"
        return Transport(self.endpoint, own=self._credentials, agent=agent)

    @cached_property
    def _credentials(self) -> Mapping[str, str]:
        """The token's header; empty without a token. AccessError for a token that is set but cannot be read or sent."""
        try:
            token = None if _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") else self._token()
        except OSError as error:
            raise AccessError("hf_token_unreadable", path=self._token_file, reason=error.strerror) from None
        except UnicodeDecodeError:
            raise AccessError("hf_bad_token", token=self._token_file) from None
        if not token:
            return {}
        keep_secret(token)
        if not (token.isascii() and token.isprintable()):
            raise AccessError("hf_bad_token", token=_token_name())  # no HTTP library sends such a header
        return {"Authorization": f"Bearer {token}"}

    def _token(self) -> str | None:
        """By the client's rule: an exchange for HF_OIDC_RESOURCE, the variables, the token file, the secrets of Google Colab.

        The client itself makes the exchanges, for which it must be installed, and asks Colab, where it always is.
        """
        if os.environ.get("HF_OIDC_RESOURCE"):
            return _token_of_client()
        if token := _cleaned(next(filter(None, map(os.environ.get, TOKEN_VARIABLES)), "")):
            return token
        try:
            token = _cleaned(read_regular(self._token_file, cap=LONGEST_TOKEN_BYTES).decode())
        except FileNotFoundError:
            token = ""
        ask_client = self._ends_soon(token) if token else "google.colab" in sys.modules
        if ask_client:
            with suppress(UnavailableError):  # a token that has ended is refused by the hub
                return _token_of_client()
        return token

    def _ends_soon(self, token: str) -> bool:
        """Whether the token is of the browser's login and in its last day."""
        stored = self._token_file.with_name("stored_tokens")
        from configparser import ConfigParser, Error

        logins = ConfigParser(interpolation=None)
        try:
            logins.read_string(read_regular(stored, cap=LONGEST_TOKEN_BYTES).decode())
        except (OSError, Error, UnicodeDecodeError):
            return False
        login = next((logins[name] for name in logins.sections() if logins[name].get("hf_token") == token), None)
        if login is None or "refresh_token" not in login:
            return False
        try:
            return int(login.get("expires_at", "")) - REFRESHED_BEFORE_SECONDS <= time.time()
        except ValueError:
            return False

    def notices(self) -> tuple[Message, ...]:
        return () if self.endpoint == OFFICIAL else (Message("mirror", endpoint=self.shown_endpoint),)

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
            raise MalformedError("listing_malformed", endpoint=self.shown_endpoint)
        counted = content.get("safetensors")
        named = [sibling for sibling in siblings if isinstance(sibling, dict)]
        safe = [sibling for sibling in named if is_safe_name(sibling.get("rfilename"))]
        return Listing(
            revision=commit,
            files=tuple(map(_listed, safe)),
            left_out=len(named) - len(safe),
            elements=counted_elements(counted.get("parameters")) if isinstance(counted, dict) else None,
        )

    def refusal(self, answer: Answer, *, model: str, revision: str, file: str | None) -> QwenInspectError:
        """The error that an HTTP answer means. Source: huggingface_hub 2.4, utils/_http.py, hf_raise_for_status."""
        code, message = answer.headers.get("x-error-code", ""), answer.headers.get("x-error-message", "")
        token = _token_name() if self._credentials else None
        if code == "GatedRepo":
            key = "hf_gated_refused" if answer.status == 403 else "hf_gated"
            return AccessError(key, model=model, endpoint=self.shown_endpoint)
        if code == "RevisionNotFound":
            return NotFoundError("hub_no_revision", model=model, revision=revision, default=self.default_revision)
        if code == "EntryNotFound" or (answer.status == 404 and not code and file is not None):
            return NotFoundError("hub_no_file", model=model, file=file or "–")
        if answer.status == 401 and token and ("Invalid credentials" in message or not code):
            return AccessError("hf_bad_token", token=token)
        if code == "RepoNotFound" or answer.status in (401, 404):
            return NotFoundError("hf_no_repo_token" if token else "hf_no_repo", model=model, token=token or "–")
        if answer.status == 403:
            return AccessError("hub_forbidden", model=model, endpoint=self.shown_endpoint)
        if answer.status == 429:
            return rate_limited(answer, self.shown_endpoint)
        return NetworkError("hub_status", endpoint=self.shown_endpoint, status=answer.status)

    # --- the weights

    def download(self, model: str, revision: str, files: Sequence[ListedFile], come: Callable[[int], None]) -> Path:
        """Downloads the files into the library's cache, `DOWNLOADS` at a time, weights last, and returns the snapshot folder.

        Uses `hf_hub_download`, which stores a file under its name only when complete; `snapshot_download`, once interrupted,
        waits for the files in progress. Why weights come last: see `weights._needed`. come: called with the size of each chunk.
        """
        try:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import XetDownloadError
            from huggingface_hub.utils import get_session
        except ImportError:
            raise UnavailableError("extra_missing", package="huggingface_hub", extra="hub") from None
        _ = self._credentials  # a token that cannot be sent is refused before the threads start
        try:
            session = get_session()
        except ImportError:
            raise UnavailableError("socks_missing") from None
        library = sys.modules[type(session).__module__.partition(".")[0]]  # httpx2, or httpx before release 2
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
            return unreachable(self.endpoint, reason(error))
        if isinstance(error, OSError) and error.errno is not None:
            return UsageError("download_unwritable", path=self._cache, reason=error.strerror)
        if isinstance(error, OSError) and not isinstance(error, FileMetadataError | LocalEntryNotFoundError):
            return NetworkError("download_damaged", file=file, reason=reason(error))  # wrong size
        return unreachable(self.endpoint, reason(error))

    # --- the library's cache

    def cached(self, model: str, revision: str) -> tuple[Path, str] | None:
        """The snapshot folder of a revision in the library's cache, and its commit; None if not cached."""
        repository = self._cache / f"models--{model.replace('/', '--')}"
        commit = revision
        if not COMMIT.fullmatch(revision):
            reference = (repository / "refs").joinpath(*revision.split("/"))
            try:
                commit = read_regular(reference, cap=1000).decode("ascii").strip() if ".." not in revision else ""
            except (OSError, UnicodeDecodeError):
                return None
        snapshot = repository / "snapshots" / commit
        return (snapshot, commit) if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _folder(variable: str, default: Path | str) -> Path:
    return Path(expandvars(expanduser(os.environ.get(variable) or default)))


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _cleaned(token: str) -> str:
    return token.replace("\r", "").replace("\n", "").strip()


def _token_name() -> str:
    """The origin of the token that is sent, never the token itself."""
    named = next((name for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    return named or "the token file of `hf auth login`"


def _token_of_client() -> str | None:
    """The token that huggingface_hub finds, which may ask the network for it."""
    try:
        from huggingface_hub import errors, get_token
    except ImportError:
        raise UnavailableError("extra_missing", package="huggingface_hub", extra="hub") from None
    exchange_error: type[Exception] = getattr(errors, "OIDCError", OSError)  # from huggingface_hub 2 on
    try:
        token: str | None = get_token()
    except exchange_error as error:
        raise AccessError("hf_token_exchange", reason=reason(error)) from None
    return token


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
    name, size, large = sibling["rfilename"], sibling.get("size"), sibling.get("lfs")
    digest = large.get("sha256") if isinstance(large, dict) else None
    blob = sibling.get("blobId")
    key = None
    if isinstance(digest, str) and DIGEST.fullmatch(digest):
        key = f"sha256-{digest}"
    elif isinstance(blob, str) and COMMIT.fullmatch(blob) and large is None:
        key = f"git-{blob}"
    return ListedFile(name=name, size_bytes=size if type(size) is int and 0 <= size < 1 << 62 else None, key=key)
