"""Random damage to JSON values and to bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

# What JSON may hold and few readers expect.
ODD: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        16,
        64,
        128,
        10_001,
        65_536,
        2**31,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(10**30, 10**400, 0.5, 1.5, -0.5, -0.0, 1e-300, 1e300, 1e308),
    *(
        "",
        "0",
        "x",
        "auto",
        "bfloat16",
        "float8_e4m3fn",
        "torch.float32",
        "\ud800",
        "\0",
        "\x1b[31m",
        "<script>",
        "a|b`c",
    ),
    *("\u202e", "\u2028", "../../x", "/etc/passwd", "x" * 3_000, "{name}", "%s"),
    *([], [1], [None], ["x"], [[]], [0] * 3_000, {}, {"a": 1}, {"": None}, {"model_type": "qwen3"}),
)
# Pieces of text that a parser of JSON may stumble over.
TEXTS = (
    *(b"NaN", b"-Infinity", b"-0", b"1e999", b"1" * 5_000, b"01", b"+1", b"1.", b"//", b",", b"}", b"]", b'"', b"\\"),
    *(b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"\0", b" ", b"[" * 40, b'{"":' * 40, b'"a":1,"a":2,'),
)
DEEP = (b"[" * 100_000, b'{"":' * 20_000, b"[" * 500 + b"]" * 500)
SIZES = (0, 1, 31, 255, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(whole: Any, random: Random, *, odd: Sequence[Any] = ODD, keys: Sequence[str] = ()) -> None:
    """Changes an object in one place. `keys`: names that may be added to an object."""
    places = list(_places(whole))
    if not places or (keys and random.random() < 0.15):
        objects = [whole, *(value for _, _, value in places if isinstance(value, dict))]
        random.choice(objects)[random.choice(keys or ("x",))] = copy.deepcopy(random.choice(odd))
        return
    container, key, value = random.choice(places)
    chance = random.random()
    if chance < 0.12:
        del container[key]
    elif chance < 0.4 and type(value) is int:
        container[key] = random.choice(
            (value + 1, value - 1, value * 2, value // 2, -value, value << 70, str(value), [value])
        )
    elif chance < 0.45:
        container[key] = [value] * random.choice((1, 2, 4, 28))
    elif chance < 0.5 and isinstance(container, dict):
        container[f"{key}{random.choice(('', 's', '_'))}"] = container.pop(key)
    elif chance < 0.6:
        container[key] = copy.deepcopy(random.choice(places)[2])
    else:
        container[key] = copy.deepcopy(random.choice(odd))


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any, Any]]:
    """Each (container, key, value) below a value; of a long list its first entries."""
    if depth == 6:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key, inner
        yield from _places(inner, depth + 1)


def written(value: Any, random: Random) -> bytes:
    """JSON of a value, now and then with damage to its text."""
    escaped = random.random() < 0.5
    content = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    return damaged(content, random) if random.random() < 0.15 else content


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes with some flipped, put in, taken out, repeated or cut off."""
    at, chance = random.randrange(len(content) + 1), random.random()
    if chance < 0.3:
        flipped = bytearray(content or b"\0")
        for _ in range(random.randrange(1, 4)):
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        return bytes(flipped)
    if chance < 0.6:
        return content[:at] + random.choice(DEEP if random.random() < 0.005 else TEXTS) + content[at:]
    if chance < 0.7:
        return content[:at] + random.choice(SIZES).to_bytes(8, random.choice(("little", "big"))) + content[at + 8 :]
    if chance < 0.8:
        return content[:at] + content[at + random.randrange(1, 9) :]
    if chance < 0.9:
        return content[:at] + content[max(0, at - random.randrange(1, 200)) :]
    return content[:at]
