"""SHA-256 of names and contents."""

from __future__ import annotations

import sys


def sha256_hex(content: bytes) -> str:
    """The digest in hexadecimal digits, by CPython's own module: `hashlib` loads OpenSSL, which takes a fifth of Python's start.

    Source: CPython, Lib/random.py, which imports SHA-512 in the same way
    """
    try:
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256
    digest: str = sha256(content).hexdigest()
    return digest
