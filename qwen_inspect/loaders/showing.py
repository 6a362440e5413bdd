"""What is shown of addresses and of other programs' messages: no token, no password, nothing behind a `?`.

Every URL and every text of a client's exception goes through here before it is part of a message.
"""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import quote, quote_plus, unquote

LONGEST_REASON = 200
SHORTEST_SECRET = 4  # a shorter one is part of ordinary words
HIDDEN = "…"
URL = re.compile(r"(?<![a-z0-9+.-])[a-z0-9+.-]+://[^\s\"'<>]+", re.IGNORECASE)
WORD = re.compile(r"[^\s\"']+")

_secrets: set[str] = set()


def keep_secret(value: str) -> None:
    """Has `reason` hide this value: as it is, in parts where it holds line breaks, and as libraries write it."""
    for part in {value, *value.split(), *value.splitlines()}:
        whole = part.encode(errors="surrogateescape")
        written = (
            part,
            repr(part)[1:-1],
            repr(whole)[2:-1],
            quote(whole),
            quote_plus(whole),
            b64encode(whole).decode(),
        )
        _secrets.update(text for text in written if len(part) >= SHORTEST_SECRET)


def keep_url_secret(url: str) -> None:
    """Has `reason` hide the name and the password in a URL."""
    credentials, separator, _ = url.partition("://")[2].rpartition("@")
    if separator:
        name, _, password = credentials.partition(":")
        for secret in (credentials, unquote(credentials), name, unquote(name), password, unquote(password)):
            keep_secret(secret)


def shown_url(url: str) -> str:
    """Scheme, host and path of a URL; its scheme alone if a password may have spilled into the path."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    tail = rest[len(host) :]
    if "@" in tail:
        return f"{scheme}{separator}{HIDDEN}"
    path = re.split(r"[?#]", tail, maxsplit=1)[0]
    return f"{scheme}{separator}{host.rpartition('@')[2]}{path}"


def _without_query(word: str) -> str:
    """A word without what follows `?` in a path: of a URL without its host, as urllib3 writes it."""
    path = word.find("/")
    query = word.find("?", path)
    return word if path < 0 or query < 0 else word[:query]


def reason(error: BaseException) -> str:
    """The first line of an exception's text without secrets, or its class name if it has no text."""
    text = str(error).strip()
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = URL.sub(lambda match: shown_url(match[0]), text)
    text = WORD.sub(lambda match: _without_query(match[0]), text)
    return (text or type(error).__name__).splitlines()[0][:LONGEST_REASON]
