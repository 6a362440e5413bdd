"""Every sentence the tool says, in English and Chinese: `en` and `zh` hold the same subjects with the same keys.

Messages are born anywhere (a loader's notice, an analyzer's finding, an error) as a key with values, and become text only
where they are shown. Imports nothing, so that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..standard import import_module

LANGUAGES = ("en", "zh")
# Modules of a language, those first that most commands speak: the others are imported when a key is in none before them.
SUBJECTS = (
    "usage", "words", "files", "answers", "memory", "media", "comparison", "counts", "structure", "fit", "running", "training",
    "conclusions", "hubs", "ranks", "pictures", "reports",
)  # fmt: skip


class Message:
    """A sentence to be said later: its key in the language tables and the values it needs."""

    __slots__ = ("key", "values")

    def __init__(self, key: str, /, **values: object) -> None:
        self.key = key
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and (self.key, self.values) == (other.key, other.values)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Message({self.key!r}, {self.values!r})"


class _Table:
    """Texts by key."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._texts: dict[str, str] = {}
        self._subjects = iter(SUBJECTS)

    def __getitem__(self, key: str) -> str:
        while (text := self._texts.get(key)) is None:
            subject = next(self._subjects, None)
            if subject is None:
                raise KeyError(key)
            self._texts |= texts_of(self._code, subject)
        return text

    def __contains__(self, key: str) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True


def texts_of(code: str, subject: str) -> Mapping[str, str]:
    """A subject's texts by key, in one language."""
    texts: Mapping[str, str] = import_module(f"{__name__}.{code}.{subject}").TEXT
    return texts


def all_texts(code: str) -> dict[str, str]:
    """Every subject's."""
    return {key: text for subject in SUBJECTS for key, text in texts_of(code, subject).items()}


class Language:
    """One language's table. Call it with a key and values, or with a `Message`, to get the text."""

    def __init__(self, code: str) -> None:
        if code not in LANGUAGES:
            raise ValueError(f"language {code!r}: expected one of {', '.join(LANGUAGES)}")
        self.code = code
        self._table = _Table(code)

    def __call__(self, message: str | Message, /, **values: object) -> str:
        if isinstance(message, Message):
            return self(message.key, **message.values)
        spoken = {name: self(value) if isinstance(value, Message) else value for name, value in values.items()}
        return self._table[message].format_map(spoken)

    def __contains__(self, key: str) -> bool:
        return key in self._table


def language_of(choice: str, environment: Mapping[str, str]) -> str:
    """`choice` itself, or for "auto" the locale's language: Chinese where the locale says so, else English."""
    if choice != "auto":
        return choice
    # POSIX order of precedence (The Open Group Base Specifications, 8.2).
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"
