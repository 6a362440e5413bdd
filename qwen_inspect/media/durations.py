"""The length of an audio file, from its header.

Sources: WAV (RIFF, Microsoft Multimedia Programming Interface 1.0; RF64 and ds64, EBU Tech 3306), FLAC (RFC 9639, 8.2), ID3v2.4
(3.1), MP3 (ISO/IEC 11172-3, 2.4.1.3; 13818-3 for half the rates), Xing and Info tags with LAME's delay and padding (VbrTag.c).
"""

from __future__ import annotations

import os

from ..errors import MalformedError, NotFoundError
from ..loaders.regular import open_regular
from ..typed import BinaryIO

MOST_CHUNKS = 10_000  # before the samples
MOST_RATE = 1 << 20  # samples a second, which FLAC writes in 20 bits
MOST_CHANNELS = 256
PLAIN = (1, 3, 6, 7)  # PCM, floating-point numbers, A-law, mu-law: a sample of each channel has a fixed width
EXTENSIBLE = 0xFFFE
FRAME_RATES = (44_100, 48_000, 32_000)  # of MPEG-1; MPEG-2 has half of each, MPEG-2.5 a quarter


def audio_length(path: str) -> tuple[int, int]:
    """Samples of one channel, and samples a second; MalformedError if the header does not tell them."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            found = _length(stream, size)
    except OSError as error:
        raise NotFoundError("audio_absent", path=path, reason=error.strerror or str(error)) from None
    if found is None or found[0] < 1 or not 1 <= found[1] <= MOST_RATE:
        raise MalformedError("audio_unread", path=path)
    return found


def _length(stream: BinaryIO, size: int) -> tuple[int, int] | None:
    begin = stream.read(12)
    if begin[:4] in (b"RIFF", b"RF64") and begin[8:] == b"WAVE":
        return _wav(stream, size)
    start = 0
    if begin[:3] == b"ID3" and len(begin) >= 10:
        start = 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(begin[6:10])))
        start += 10 if begin[5] & 0x10 else 0  # a footer
    stream.seek(start)
    first = stream.read(200)
    return _flac(first) if first.startswith(b"fLaC") else _mp3(first)


def _little(content: bytes, begin: int, size: int) -> int:
    return int.from_bytes(content[begin : begin + size], "little")


def _wav(stream: BinaryIO, size: int) -> tuple[int, int] | None:
    """No more samples than the file has room for: a writer to a pipe leaves the largest number as their size."""
    form, long_size = b"", None
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        kind, length = head[:4], _little(head, 4, 4)
        if len(head) < 8:
            return None
        if kind == b"data":
            here = size - stream.tell()
            return _of_form(form, min(here, long_size if length == 0xFFFFFFFF and long_size is not None else length))
        content = stream.read(min(length, 64)) if kind in (b"fmt ", b"ds64") else b""
        if kind == b"fmt ":
            form = content
        elif kind == b"ds64":
            long_size = _little(content, 8, 8)
        stream.seek(length - len(content) + length % 2, os.SEEK_CUR)
    return None


def _of_form(form: bytes, sound_bytes: int) -> tuple[int, int] | None:
    tag, channels, rate = _little(form, 0, 2), _little(form, 2, 2), _little(form, 4, 4)
    width, bits = _little(form, 12, 2), _little(form, 14, 2)
    if tag == EXTENSIBLE:
        tag = _little(form, 24, 2)
    if tag not in PLAIN or not 1 <= channels <= MOST_CHANNELS or not bits or width != channels * -(-bits // 8):
        return None
    return sound_bytes // width, rate


def _flac(begin: bytes) -> tuple[int, int] | None:
    """Of STREAMINFO, which comes first; its samples are 0 where the writer did not know them."""
    if len(begin) < 42 or begin[4] & 0x7F != 0 or int.from_bytes(begin[5:8], "big") < 34:
        return None
    packed = int.from_bytes(begin[18:26], "big")  # 20 bits of the rate, 3 of channels, 5 of bits, 36 of samples
    return packed & (1 << 36) - 1, packed >> 44


def _mp3(begin: bytes) -> tuple[int, int] | None:
    """By the tag in the first frame, which counts the frames after it, without what the encoder added at both ends."""
    header = int.from_bytes(begin[:4], "big")
    version, layer, rate_index, mono = header >> 19 & 3, header >> 17 & 3, header >> 10 & 3, header >> 6 & 3 == 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate_index == 3:
        return None
    is_first = version == 3  # MPEG-1
    side = (17 if mono else 32) if is_first else (9 if mono else 17)
    tag = begin[4 + side :]
    flags = int.from_bytes(tag[4:8], "big")
    if tag[:4] not in (b"Xing", b"Info") or not flags & 1:
        return None
    rate = FRAME_RATES[rate_index] // (1 if is_first else 2 if version == 2 else 4)
    samples = int.from_bytes(tag[8:12], "big") * (1152 if is_first else 576)
    encoder = tag[8 + sum(length for bit, length in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) :]
    if len(encoder) >= 24 and encoder[:4] in (b"LAME", b"Lavc", b"Lavf"):
        added = int.from_bytes(encoder[21:24], "big")
        samples -= (added >> 12) + (added & 0xFFF)
    return samples, rate
