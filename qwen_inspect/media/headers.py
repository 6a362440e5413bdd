"""The size of an image, from the first bytes of its file. As transformers loads it: turned by its EXIF orientation.

Sources: PNG (ISO/IEC 15948, IHDR and eXIf), JPEG (ITU-T T.81, B.2.2), EXIF 2.32 (4.6.4, Orientation), GIF89a (17 and 18), WebP
(RFC 9649, 2.5 to 2.7), BMP (BITMAPCOREHEADER, BITMAPINFOHEADER); transformers 5.23, image_utils.load_image (exif_transpose).
"""

from __future__ import annotations

from ..errors import MalformedError, NotFoundError
from ..loaders.regular import open_regular
from ..typed import BinaryIO

LONGEST_SEGMENT = 1 << 16  # of JPEG; more than an EXIF block of any format needs
MOST_PARTS = 10_000  # segments or chunks before the size or the pixels
LONGEST_SIDE = (1 << 31) - 1  # of PNG (7.1, four-byte unsigned integers); the other formats have less
ORIENTATION = 0x0112
TURNED = range(5, 9)  # rows and columns exchanged


def image_size(path: str) -> tuple[int, int]:
    """Width and height of the image at `path`; MalformedError if it is none, or not of a known format."""
    try:
        with open_regular(path) as stream:
            found = _size(stream)
    except OSError as error:
        raise NotFoundError("image_absent", path=path, reason=error.strerror or str(error)) from None
    if found is None or min(found) < 1 or max(found) > LONGEST_SIDE:
        raise MalformedError("image_unread", path=path)
    return found


def _size(stream: BinaryIO) -> tuple[int, int] | None:
    begin = stream.read(32)
    if begin.startswith(b"\x89PNG\r\n\x1a\n") and begin[12:16] == b"IHDR":
        return _turned(int.from_bytes(begin[16:20], "big"), int.from_bytes(begin[20:24], "big"), _of_png(stream))
    if begin[:2] == b"\xff\xd8":
        return _jpeg(stream)
    if begin[:6] in (b"GIF87a", b"GIF89a"):
        return _little(begin, 6, 2), _little(begin, 8, 2)
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return _webp(stream, begin)
    if begin[:2] == b"BM":
        core = _little(begin, 14, 4) == 12
        width, height = ((18, 2), (20, 2)) if core else ((18, 4), (22, 4))
        rows = int.from_bytes(begin[height[0] : sum(height)], "little", signed=not core)
        return _little(begin, *width), abs(rows)  # negative: from the top
    return None


def _little(content: bytes, begin: int, size: int) -> int:
    return int.from_bytes(content[begin : begin + size], "little")


def _turned(width: int, height: int, exif: bytes | None) -> tuple[int, int]:
    return (height, width) if exif is not None and _orientation(exif) in TURNED else (width, height)


def _orientation(exif: bytes) -> int:
    """The orientation of a TIFF block's first directory; 1 if it has none."""
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def at(begin: int, size: int) -> int:
        return int.from_bytes(exif[begin : begin + size], "little" if order == "little" else "big")

    first = at(4, 4)
    entries = (first + 2 + 12 * index for index in range(at(first, 2)))
    return next((at(entry + 8, 2) for entry in entries if at(entry, 2) == ORIENTATION), 1)


def _of_png(stream: BinaryIO) -> bytes | None:
    """The EXIF block, if it is before the pixels."""
    stream.seek(8)
    for _ in range(MOST_PARTS):
        head = stream.read(8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf" and size <= LONGEST_SEGMENT:
            return stream.read(size)
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            break
        stream.seek(size + 4, 1)
    return None


def _jpeg(stream: BinaryIO) -> tuple[int, int] | None:
    exif = None
    stream.seek(2)
    for _ in range(MOST_PARTS):
        marker = stream.read(2)
        while marker[1:] == b"\xff":  # fill bytes
            marker = marker[1:] + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        kind, size = marker[1], int.from_bytes(stream.read(2), "big")
        if size < 2:
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = stream.read(5)
            return _turned(int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"), exif)
        content = stream.read(size - 2)
        if kind == 0xE1 and content.startswith(b"Exif\0\0") and exif is None:
            exif = content[6:]
    return None


def _webp(stream: BinaryIO, begin: bytes) -> tuple[int, int] | None:
    kind = begin[12:16]
    if kind == b"VP8 ":
        return _little(begin, 26, 2) & 0x3FFF, _little(begin, 28, 2) & 0x3FFF
    if kind == b"VP8L":
        bits = _little(begin, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind != b"VP8X":
        return None
    return _turned(_little(begin, 24, 3) + 1, _little(begin, 27, 3) + 1, _of_webp(stream))


def _of_webp(stream: BinaryIO) -> bytes | None:
    """The EXIF block, which is after the pixels."""
    stream.seek(12)
    for _ in range(MOST_PARTS):
        head = stream.read(8)
        size = _little(head, 4, 4)
        if head[:4] == b"EXIF" and size <= LONGEST_SEGMENT:
            return stream.read(size).removeprefix(b"Exif\0\0")
        if len(head) < 8:
            break
        stream.seek(size + size % 2, 1)
    return None
