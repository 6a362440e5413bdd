"""The headers of a repository's weight files: from the cache, else by ranged requests, without the data behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..checkpoint import Tensor
from ..errors import MalformedError, NetworkError
from ..typed import TYPE_CHECKING
from . import gguf_header, header_cache
from .safetensors_header import LENGTH_BYTES, header_length, parse_header
from .transfer import Deadline, fetch_span, in_parallel

if TYPE_CHECKING:
    from .hub import Hub, ListedFile, Listing, Progress

WINDOW_BYTES = 64 * 1024
Header = tuple[int, tuple[Tensor, ...]]  # the file's size and what its header lists


def read_kept(hub: Hub, model: str, file: ListedFile) -> bytes | None:
    """What an earlier run kept of a listed file: a small one whole, a weight file's header. None if nothing intact is."""
    return header_cache.read(hub.source, hub.endpoint, model, file.name, key=file.key) if file.key else None


def is_kept(hub: Hub, model: str, file: ListedFile) -> bool:
    """Whether something is kept of a listed file, intact or not."""
    return file.key is not None and header_cache.holds(hub.source, hub.endpoint, model, file.name, key=file.key)


def keep(hub: Hub, model: str, file: ListedFile, content: bytes) -> None:
    """Keeps what came of a listed file; a file without a hash is fetched each time."""
    if file.key:
        header_cache.write(hub.source, hub.endpoint, model, file.name, key=file.key, content=content)


def read_gguf(
    hub: Hub, model: str, revision: str, file: ListedFile, deadline: Deadline
) -> tuple[int, gguf_header.GgufHeader]:
    """A file's size and header: from the cache, else by ranged requests until the header ends."""
    kept = read_kept(hub, model, file)
    if kept is not None and file.size_bytes is not None:
        content = kept
        header = gguf_header.read_header(
            lambda start, stop: content[start:stop], file=file.name, file_bytes=file.size_bytes
        )
        return file.size_bytes, header
    url = hub.file_url(model, revision, file.name)
    sizes: list[int] = []

    def more(start: int, stop: int) -> bytes:
        answer, span = fetch_span(hub.get, url, start, stop, deadline=deadline, file=file.name)
        if span is None:
            raise hub.refusal(answer, model=model, revision=revision, file=file.name)
        if span.file_bytes is not None:
            sizes.append(span.file_bytes)
        return span.content

    first = more(0, gguf_header.FIRST_BYTES) if file.size_bytes is None else b""
    size = file.size_bytes if file.size_bytes is not None else sizes[0] if sizes else None
    if size is None:
        raise NetworkError("hub_no_size", file=file.name)
    header = gguf_header.read_header(
        lambda start, stop: first[start:stop] if stop <= len(first) else more(start, stop),
        file=file.name,
        file_bytes=size,
    )
    if sizes and sizes[-1] != size:
        raise MalformedError("listing_size_differs", file=file.name, expected=size, found=sizes[-1])
    keep(hub, model, file, bytes(header.content))
    return size, header


def read_all(
    hub: Hub, model: str, listing: Listing, files: Sequence[ListedFile], deadline: Deadline, progress: Progress
) -> list[Header]:
    """Each file's size and tensors; NetworkError names the files that did not arrive in time."""
    headers = {file.name: header for file in files if (header := _kept_header(hub, model, file)) is not None}
    uncached = [file for file in files if file.name not in headers]

    def job(file: ListedFile) -> Callable[[], Header]:
        return lambda: _header_from_hub(hub, model, listing.revision, file, deadline)

    outcomes = in_parallel([job(file) for file in uncached], deadline=deadline, progress=progress)
    failed = [error for error in outcomes.errors if error is not None]
    if serious := [error for error in failed if not isinstance(error, NetworkError)]:
        raise serious[0]
    headers |= {
        file.name: header for file, header in zip(uncached, outcomes.results, strict=True) if header is not None
    }
    if missing := [file.name for file in uncached if file.name not in headers]:
        if failed and len(files) == 1:
            raise failed[0]
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        counts = {"missing": len(missing), "files": len(files), "names": names}
        reasons = [error.message for error in failed if isinstance(error, NetworkError)]
        if reasons and not deadline.passed:
            raise NetworkError("hub_headers_failed", **counts, reason=reasons[0])
        raise NetworkError("hub_headers_missing", **counts)
    return [headers[file.name] for file in files]


def _kept_header(hub: Hub, model: str, file: ListedFile) -> Header | None:
    """The header that this repository's server sent earlier, checked as if it came now."""
    content = read_kept(hub, model, file)
    return (
        None
        if content is None or file.size_bytes is None
        else (file.size_bytes, _tensors(content, file.name, file.size_bytes))
    )


def _header_from_hub(hub: Hub, model: str, revision: str, file: ListedFile, deadline: Deadline) -> Header:
    """The size of a file and the tensors of its header, fetched from the hub and cached."""
    content, stated = _fetch_header(hub, model, revision, file, deadline)
    if file.size_bytes is not None and stated is not None and stated != file.size_bytes:
        raise MalformedError("listing_size_differs", file=file.name, expected=file.size_bytes, found=stated)
    size = stated if file.size_bytes is None else file.size_bytes
    if size is None:
        raise NetworkError("hub_no_size", file=file.name)
    tensors = _tensors(content, file.name, size)
    length = header_length(content, file=file.name, file_bytes=size)
    keep(hub, model, file, content[: LENGTH_BYTES + length])
    return size, tensors


def _tensors(content: bytes, file: str, size: int) -> tuple[Tensor, ...]:
    length = header_length(content[:LENGTH_BYTES], file=file, file_bytes=size)
    header = content[LENGTH_BYTES : LENGTH_BYTES + length]
    return parse_header(header, file=file, data_bytes=size - LENGTH_BYTES - length)


def _fetch_header(
    hub: Hub, model: str, revision: str, file: ListedFile, deadline: Deadline
) -> tuple[bytes, int | None]:
    """The header (with its 8-byte length prefix) and the file size, if the server sent one."""
    url = hub.file_url(model, revision, file.name)
    window = WINDOW_BYTES if file.size_bytes is None else min(WINDOW_BYTES, max(file.size_bytes, 1))

    def span(start: int, stop: int) -> tuple[bytes, int | None]:
        answer, body = fetch_span(hub.get, url, start, stop, deadline=deadline, file=file.name)
        if body is None:
            raise hub.refusal(answer, model=model, revision=revision, file=file.name)
        return body.content, body.file_bytes

    content, size = span(0, window)
    length = header_length(content[:LENGTH_BYTES], file=file.name, file_bytes=file.size_bytes or size or 1 << 62)
    end = LENGTH_BYTES + length
    if len(content) < end:
        if len(content) < window:
            raise MalformedError("safetensors_header_truncated", file=file.name, expected=length, found=len(content))
        tail, _ = span(len(content), end)
        content += tail
    if len(content) < end:
        raise NetworkError("hub_truncated", file=file.name, expected=end, found=len(content))
    return content, size
