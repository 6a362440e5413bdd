"""The length of audio is read from its file's header. Bytes are written here by the formats' documents, and WAV by Python too."""

from __future__ import annotations

import random
import struct
import wave
from pathlib import Path

import pytest

from qwen_inspect.errors import MalformedError, NotFoundError
from qwen_inspect.media.durations import audio_length


def form(tag: int = 1, *, channels: int = 2, rate: int = 16_000, bits: int = 24, width: int | None = None) -> bytes:
    width = channels * bits // 8 if width is None else width
    return struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)


def wav(content: bytes, data: bytes, *, size: int | None = None, first: bytes = b"", kind: bytes = b"RIFF") -> bytes:
    """A list between form and samples, which has an odd length and so a byte more."""
    parts = first + b"fmt " + struct.pack("<I", len(content)) + content + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body = b"WAVE" + parts + b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return kind + struct.pack("<I", len(body)) + body


def flac(samples: int, rate: int = 44_100) -> bytes:
    packed = rate << 44 | 1 << 41 | 15 << 36 | samples  # two channels of 16 bits
    return b"fLaC" + bytes([0x80]) + (34).to_bytes(3, "big") + b"\0" * 10 + packed.to_bytes(8, "big") + b"\0" * 16


def mp3(header: int, side: int, frames: int, *, tag: bytes = b"Info", encoder: bytes = b"") -> bytes:
    flags = 0b1111  # frames, bytes, table of contents, quality
    found = tag + struct.pack(">III", flags, frames, 1) + b"\0" * 100 + struct.pack(">I", 50) + encoder
    return header.to_bytes(4, "big") + b"\0" * side + found


LAME = b"LAME3.100" + b"\0" * 12 + (576 << 12 | 1000).to_bytes(3, "big") + b"\0" * 12
ID3 = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + b"\0" * 130  # 7 bits a byte: 1 * 128 + 2
EXTENSIBLE = form(0xFFFE) + struct.pack("<HHI", 22, 24, 3) + struct.pack("<H", 1) + b"\0" * 14
FILES = {
    "pcm.wav": (wav(form(), b"\0" * 606), (101, 16_000)),
    "floats.wav": (wav(form(3, bits=32), b"\0" * 800), (100, 16_000)),
    "mu-law.wav": (wav(form(7, channels=1, bits=8), b"\0" * 99), (99, 16_000)),
    "extensible.wav": (wav(EXTENSIBLE, b"\0" * 606), (101, 16_000)),
    "from-a-pipe.wav": (wav(form(), b"\0" * 606, size=0xFFFFFFFF), (101, 16_000)),
    "cut-off.wav": (wav(form(), b"\0" * 300, size=606), (50, 16_000)),
    "long.wav": (
        wav(
            form(), b"\0" * 606, size=0xFFFFFFFF, kind=b"RF64", first=b"ds64" + struct.pack("<IQQQI", 28, 0, 600, 0, 0)
        ),
        (100, 16_000),
    ),
    "flac": (flac(60_123_456_789), (60_123_456_789, 44_100)),
    "named.flac": (ID3 + flac(5), (5, 44_100)),
    # 1,152 samples a frame of MPEG-1, 576 of MPEG-2; LAME's 576 before and 1,000 after are not of the audio.
    "stereo.mp3": (mp3(0xFFFB9000, 32, 100), (115_200, 44_100)),
    "lame.mp3": (ID3 + mp3(0xFFFB9000, 32, 100, encoder=LAME), (113_624, 44_100)),
    "mono.mp3": (mp3(0xFFF390C0, 9, 100, tag=b"Xing"), (57_600, 22_050)),
    "slow.mp3": (mp3(0xFFE398C0, 9, 100), (57_600, 8_000)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_length_is_that_of_the_header(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert audio_length(str(tmp_path / name)) == expected


def test_wav_is_read_as_python_writes_it(tmp_path: Path) -> None:
    chance, path = random.Random(3), tmp_path / "a.wav"
    for _ in range(30):
        channels, width, rate, samples = (chance.randint(1, most) for most in (8, 4, 192_000, 5000))
        with wave.open(str(path), "wb") as writing:
            writing.setnchannels(channels)
            writing.setsampwidth(width)
            writing.setframerate(rate)
            writing.writeframes(bytes(channels * width * samples))
        assert audio_length(str(path)) == (samples, rate)


UNREAD = {
    "nothing": b"",
    "text": b"RIFF is not audio",
    "compressed.wav": wav(form(2, bits=4, width=256), b"\0" * 512),
    "uneven.wav": wav(form(width=5), b"\0" * 60),
    "no-rate.wav": wav(form(rate=0), b"\0" * 60),
    "no-form.wav": b"RIFF\0\0\0\0WAVEdata" + struct.pack("<I", 8) + b"\0" * 8,
    "no-samples.wav": wav(form(), b""),
    "endless.wav": b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 20_000,
    "unknown.flac": flac(0),
    "short.flac": flac(5)[:30],
    "untagged.mp3": mp3(0xFFFB9000, 32, 100, tag=b"\0\0\0\0"),
    "layer-2.mp3": mp3(0xFFFD9000, 32, 100),
    "less-than-nothing.mp3": mp3(0xFFFB9000, 32, 1, encoder=LAME),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_does_not_tell_its_length_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(UNREAD[name])
    with pytest.raises(MalformedError, match="write its seconds"):
        audio_length(str(tmp_path / name))


def test_damaged_headers_end_in_a_refusal(tmp_path: Path) -> None:
    chance, path = random.Random(4), tmp_path / "audio"
    for content, _ in FILES.values():
        for _ in range(40):
            damaged = bytearray(content[: chance.randrange(len(content))])
            for _ in range(min(4, len(damaged))):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            path.write_bytes(damaged)
            try:
                samples, rate = audio_length(str(path))
            except MalformedError:
                continue
            assert samples > 0 < rate


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(NotFoundError, match="neither a number of seconds"):
            audio_length(str(path))
