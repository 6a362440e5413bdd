"""Fetches bytes from a server, with limits on time, size, parallel requests and retries.

Independent of hub and HTTP library: a `Get` does one exchange and returns at most the requested bytes.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import MalformedError, NetworkError, QwenInspectError
from ..typed import Generic, Protocol, TypeVar
from ..values import dataclass, field
from .showing import shown_url

# Measured over a loopback hub with 50 ms a request: 32 threads read 118 headers in 0.46 s, 64 in 0.43 s, 16 in 0.58 s.
# Below 32, so that a hub never counts more at once: the two requests of a redirect can overlap.
MOST_REQUESTS = 30
CONNECT_SECONDS = 3.0  # no connection by then: the next hub is tried
FIRST_PAUSE_SECONDS, TRIES = 0.25, 5
RETRIED = (408, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which everything ends."""

    ends: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0.1, so that it is always a valid timeout."""
        return max(self.ends - time.monotonic(), 0.1)

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer at the end of any redirects: status, headers (lower-case names), the first bytes of the body.

    commit: X-Repo-Commit of the first answer that has it; the content delivery network's answer lacks it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    commit: str | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Get(Protocol):
    """One GET, redirects followed, at most `limit` bytes of the body read; raises Unreachable if no answer comes."""

    def __call__(self, url: str, *, headers: Mapping[str, str], limit: int, deadline: Deadline) -> Answer: ...


class Unreachable(Exception):
    """No usable answer: refused, reset, timed out, endless redirects. `reason` is short; `final`: retrying is useless."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


def fetch(get: Get, url: str, *, limit: int, deadline: Deadline, headers: Mapping[str, str] | None = None) -> Answer:
    """Calls `get`, and retries with back-off after dropped connections and the statuses `RETRIED` until the deadline.

    Honours Retry-After, and gives up at once if it reaches past the deadline. Returns the last answer, whatever its status;
    raises NetworkError if the last try got none.
    """
    pause, last = FIRST_PAUSE_SECONDS, Unreachable("–")
    answer = None
    for attempt in range(TRIES):
        wait = pause * 2**attempt
        try:
            answer = get(url, headers=headers or {}, limit=limit, deadline=deadline)
        except Unreachable as error:
            last, answer = error, None
            if error.final:
                break
        else:
            if answer.ok and _is_web_page(answer):
                raise NetworkError("hub_web_page", url=_origin(url))
            if answer.status not in RETRIED:
                return answer
            wait = max(wait, retry_after(answer))
        if attempt == TRIES - 1 or time.monotonic() + wait >= deadline.ends:
            break
        time.sleep(wait)
    if answer is not None:
        return answer
    raise unreachable(url, last.reason)


def unreachable(url: str, reason: str) -> NetworkError:
    """The error for an unreachable hub: a certificate, a proxy, or just the reason."""
    from urllib.request import getproxies, proxy_bypass

    origin = _origin(url)
    host = origin.partition("://")[2].partition(":")[0]
    proxy = getproxies().get(url.partition("://")[0]) or getproxies().get("all")
    if "certificate" in reason.lower():
        return NetworkError("hub_certificate", url=origin, reason=reason)
    if proxy and not proxy_bypass(host):
        return NetworkError("hub_behind_proxy", url=origin, proxy=_origin(proxy), reason=reason)
    return NetworkError("hub_unreachable", url=origin, reason=reason)


def _origin(url: str) -> str:
    scheme, separator, rest = shown_url(url).partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}"


def _is_web_page(answer: Answer) -> bool:
    """Whether HTML came, which no hub sends for a listing or a file of a model: a login page of a network, say."""
    is_html = answer.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))
    return is_html and answer.body.lstrip()[:1] == b"<"


def rate_limited(answer: Answer, endpoint: str) -> NetworkError:
    """The error of a 429, with the seconds to wait if they are said."""
    if seconds := retry_after(answer):
        return NetworkError("hub_rate_limited", endpoint=endpoint, seconds=f"{seconds:g}")
    return NetworkError("hub_rate_limited_open", endpoint=endpoint)


def retry_after(answer: Answer) -> float:
    """Seconds in Retry-After; 0 if it is absent or no number."""
    value = answer.headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0


CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file from `start` on, and the size of the whole file if the server sent it."""

    start: int
    content: bytes
    file_bytes: int | None


def fetch_span(
    get: Get, url: str, start: int, stop: int, *, deadline: Deadline, file: str
) -> tuple[Answer, Span | None]:
    """Bytes [start, stop) of the file at `url`, and their answer; the span is None if the status is an error.

    Content-Range decides which bytes came, not the status: ModelScope sends ranges with 200. A server that ignores the range
    sends the file from its beginning; at most `stop` bytes of it are read.
    """
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    answer = fetch(get, url, limit=stop, deadline=deadline, headers=headers)
    if not answer.ok:
        return answer, None
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise NetworkError("hub_compressed", file=file)
    if match := CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "")):
        first, size = int(match[1]), None if match[3] == "*" else int(match[3])
        if first != start:
            raise NetworkError("hub_wrong_range", file=file, expected=start, found=first)
        return answer, Span(start, answer.body[: stop - start], size)
    length = answer.headers.get("content-length", "")
    size = int(length) if re.fullmatch(r"\d{1,19}", length) else None
    return answer, Span(start, answer.body[start:stop], size)


@dataclass
class Outcomes(Generic[Result]):
    """The outcome of each job, in order: its result, or the error that ended it; neither if time ran out."""

    results: list[Result | None]
    errors: list[BaseException | None]
    finished: list[bool] = field(default_factory=list)


def in_parallel(
    jobs: Sequence[Callable[[], Result]],
    *,
    deadline: Deadline,
    progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = MOST_REQUESTS,
) -> Outcomes[Result]:
    """Runs the jobs on at most `threads` threads, and returns when all have ended or the deadline has passed.

    The threads are daemons: a thread that hangs in the HTTP library blocks neither the caller nor the exit of the process.
    The first MalformedError, or error that is not ours, stops the remaining jobs.
    """
    outcomes: Outcomes[Result] = Outcomes([None] * len(jobs), [None] * len(jobs), [False] * len(jobs))
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = threading.Event()
    for index in range(len(jobs)):
        waiting.put(index)

    def work() -> None:
        while not stop.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes.results[index] = jobs[index]()
            except QwenInspectError as error:
                outcomes.errors[index] = error
            except BaseException as error:
                outcomes.errors[index] = error
                stop.set()
            outcomes.finished[index] = True
            ended.put(index)

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for done in range(1, len(jobs) + 1):
            index = ended.get(timeout=deadline.remaining)
            progress(done, len(jobs))
            error = outcomes.errors[index]
            if isinstance(error, MalformedError) or (error is not None and not isinstance(error, QwenInspectError)):
                break
    except queue.Empty:
        pass  # time is up: unfinished jobs have `finished` False
    finally:
        stop.set()
    for error in outcomes.errors:
        if error is not None and not isinstance(error, QwenInspectError):
            raise error
    return outcomes


def is_safe_name(name: object) -> bool:
    """Whether a listing's path of a file stays in its repository and is text that a URL can hold."""
    return (
        isinstance(name, str)
        and name != ""
        and not any(character in name for character in "\0\\")
        and not any("\ud800" <= character <= "\udfff" for character in name)
        and not name.startswith("/")
        and ".." not in name.split("/")
    )
