"""The size of an image is read from its file's header, turned as EXIF says. Bytes are written here by the formats' documents."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qwen_inspect.errors import MalformedError, NotFoundError
from qwen_inspect.media.headers import image_size


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF block with one entry: 0x0112, Orientation, a SHORT."""
    begin = b"II" if order == "<" else b"MM"
    return begin + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", 640, 480, 8, 2, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + b"\0\0\0\0" for kind, content in parts
    )


def jpeg(*segments: tuple[int, bytes], frame: int = 0xC2) -> bytes:
    parts = (*segments, (frame, struct.pack(">BHHB", 8, 480, 640, 3) + b"\0" * 9))
    return b"\xff\xd8" + b"".join(
        b"\xff\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content for kind, content in parts
    )


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


EXTENDED = (b"VP8X", b"\0" * 4 + (639).to_bytes(3, "little") + (479).to_bytes(3, "little"))
FILES = {
    "png": (png(), (640, 480)),
    "turned.png": (png((b"eXIf", exif(6, ">"))), (480, 640)),
    "jpg": (jpeg((0xE0, b"JFIF\0" + b"\0" * 9)), (640, 480)),
    "arithmetic.jpg": (jpeg((0xC4, b"\0" * 4), frame=0xC9), (640, 480)),
    "turned.jpg": (jpeg((0xE1, b"Exif\0\0" + exif(8))), (480, 640)),
    "upside-down.jpg": (jpeg((0xE1, b"Exif\0\0" + exif(3))), (640, 480)),
    "gif": (b"GIF89a" + struct.pack("<HH", 640, 480) + b"\0" * 20, (640, 480)),
    "bmp": (b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, 640, -480) + b"\0" * 8, (640, 480)),
    "core.bmp": (b"BM" + b"\0" * 12 + struct.pack("<IHH", 12, 640, 480) + b"\0" * 8, (640, 480)),
    "lossy.webp": (webp((b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 640, 480))), (640, 480)),
    "lossless.webp": (webp((b"VP8L", b"\x2f" + struct.pack("<I", 639 | 479 << 14) + b"\0" * 9)), (640, 480)),
    "webp": (webp(EXTENDED), (640, 480)),
    "turned.webp": (webp(EXTENDED, (b"VP8 ", b"\0" * 7), (b"EXIF", exif(5))), (480, 640)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_read_from_the_header(name: str, tmp_path: Path) -> None:
    content, size = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert image_size(str(tmp_path / name)) == size


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_damaged_header_is_refused_or_read_never_worse(name: str, tmp_path: Path) -> None:
    content, _ = FILES[name]
    path = tmp_path / name
    for length in range(0, len(content), 3):
        for damaged in (content[:length], content[:length] + b"\xff" + content[length + 1 :]):
            path.write_bytes(damaged)
            try:
                assert min(image_size(str(path))) > 0
            except MalformedError:
                continue


def test_a_png_has_no_side_above_its_formats_limit(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    for width, taken in (((1 << 31) - 1, True), (1 << 31, False)):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, 8) + bytes(9))
        if taken:
            assert image_size(str(path)) == (width, 8)
        else:
            with pytest.raises(MalformedError):
                image_size(str(path))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("1024*768")
    with pytest.raises(MalformedError):
        image_size(str(tmp_path / "text"))
    for absent in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(NotFoundError):
            image_size(str(absent))
