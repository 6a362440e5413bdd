r"""Parses regular expressions as Python's `re` does, less what cannot be matched in one pass over a name.

Read: characters, `.`, sets, \d \w \s and their opposites, groups, alternatives, repetition, ^ $ \A \Z \b, look-ahead,
look-behind.
Not read: back-references, flags, named, atomic and conditional groups, possessive repetition, other escapes.
Source: CPython 3.11, Lib/re/_parser.py.
"""

from __future__ import annotations

from ..standard import compiled
from ..typed import Literal, TypeAlias
from ..values import dataclass

DEEPEST_GROUPS = 50
CATEGORIES = {letter: compiled(rf"\{letter}") for letter in "dDwWsS"}
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
BRACES = compiled(r"\{(?:([0-9]*),([0-9]*)|([0-9]+))\}")
LOOKS = {"?=": (True, False), "?!": (True, True), "?<=": (False, False), "?<!": (False, True)}


class PatternMalformed(ValueError):
    """No regular expression."""


class PatternUnsupported(ValueError):
    """Something that `re` may read, and this module does not."""


@dataclass(frozen=True)
class Character:
    """One character in one of `ranges` or `categories`; with `negated`, in none."""

    ranges: tuple[tuple[str, str], ...] = ()
    categories: tuple[str, ...] = ()
    negated: bool = False

    def accepts(self, character: str) -> bool:
        inside = any(low <= character <= high for low, high in self.ranges) or any(
            CATEGORIES[letter].match(character) for letter in self.categories
        )
        return inside is not self.negated


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    alternatives: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`part` at least `least` times and at most `most`; None: any number of times."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Position:
    """A condition on a position by the characters beside it.

    line end: `$`, the end or before a line break there. module edge: beside a dot, or at the line end; no pattern writes it.
    """

    kind: Literal["start", "end", "line end", "word edge", "module edge"]


@dataclass(frozen=True)
class Look:
    """A condition on a position: `part` matches from there on (`ahead`) or up to there; with `negated`, it does not."""

    part: Node
    ahead: bool
    negated: bool


Node: TypeAlias = "Character | Sequence | Choice | Repeat | Position | Look"
Condition: TypeAlias = "Position | Look"

ANYTHING = Repeat(Character(negated=True), 0, None)
POSITIONS = {"A": Position("start"), "Z": Position("end"), "b": Position("word edge")}


def parse(text: str) -> Node:
    """The tree of a pattern; PatternMalformed or PatternUnsupported."""
    parser = _Parser(text)
    node = parser.choice(0)
    if parser.at < len(text):
        raise PatternMalformed(text)
    return node


def width(node: Node) -> int | None:
    """The number of characters of every match; None if it varies."""
    match node:
        case Character():
            return 1
        case Sequence(parts):
            widths = [width(part) for part in parts]
            return None if None in widths else sum(each or 0 for each in widths)
        case Choice(alternatives):
            different = {width(part) for part in alternatives}
            return different.pop() if len(different) == 1 else None
        case Repeat(part, least, most):
            each = 0 if most == 0 else width(part)
            return 0 if each == 0 else each * least if each is not None and least == most else None
        case _:
            return 0


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, expected: str) -> bool:
        """Whether `expected` comes next; if so, it is passed."""
        follows = self.text.startswith(expected, self.at)
        self.at += len(expected) * follows
        return follows

    def next(self) -> str:
        if self.at >= len(self.text):
            raise PatternMalformed(self.text)
        self.at += 1
        return self.text[self.at - 1]

    def choice(self, depth: int) -> Node:
        if depth > DEEPEST_GROUPS:
            raise PatternUnsupported(self.text)
        alternatives = [self.sequence(depth)]
        while self.take("|"):
            alternatives.append(self.sequence(depth))
        return Choice(tuple(alternatives))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self.bounds():
                raise PatternMalformed(self.text)  # nothing to repeat
            part = self.atom(depth)
            if bounds := self.bounds():
                if isinstance(part, Position):
                    raise PatternMalformed(self.text)
                part = Repeat(part, *bounds)
                self.take("?")  # lazy: it matters for the text of a match alone
                if self.take("+"):
                    raise PatternUnsupported(self.text)  # possessive
            parts.append(part)
        return Sequence(tuple(parts))

    def bounds(self) -> tuple[int, int | None] | None:
        """The bounds of the repetition that comes next; None if none does."""
        if self.take("*"):
            return 0, None
        if self.take("+"):
            return 1, None
        if self.take("?"):
            return 0, 1
        braces = BRACES.match(self.text, self.at) if self.text.startswith("{", self.at) else None
        if braces is None:
            return None
        self.at = braces.end()
        if braces[3]:
            return int(braces[3]), int(braces[3])
        least, most = int(braces[1] or 0), int(braces[2]) if braces[2] else None
        if most is not None and most < least:
            raise PatternMalformed(self.text)
        return least, most

    def atom(self, depth: int) -> Node:
        match self.next():
            case "(":
                return self.group(depth + 1)
            case "[":
                return self.set()
            case "\\" if self.text[self.at : self.at + 1] in POSITIONS:
                return POSITIONS[self.next()]
            case "\\":
                return self.escape()
            case ".":
                return Character((("\n", "\n"),), negated=True)
            case "^":
                return Position("start")
            case "$":
                return Position("line end")
            case character:
                return Character(((character, character),))

    def group(self, depth: int) -> Node:
        look = next((look for sign, look in LOOKS.items() if self.take(sign)), None)
        if look is None and not self.take("?:") and self.take("?"):
            raise PatternUnsupported(self.text)
        inner = self.choice(depth)
        if not self.take(")"):
            raise PatternMalformed(self.text)
        if look is None:
            return inner
        ahead, negated = look
        if not ahead and width(inner) is None:
            raise PatternMalformed(self.text)
        return Look(inner, ahead=ahead, negated=negated)

    def escape(self) -> Character:
        letter = self.next()
        if letter in CATEGORIES:
            return Character(categories=(letter,))
        if letter.isascii() and letter.isalnum() and letter not in CONTROLS:
            raise PatternUnsupported(self.text)
        character = CONTROLS.get(letter, letter)
        return Character(((character, character),))

    def set(self) -> Character:
        negated = self.take("^")
        members: list[Character] = []
        while not (members and self.take("]")):
            member = self.member()
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.next()
                member = self.range(member, self.member())
            members.append(member)
        return Character(
            tuple(each for member in members for each in member.ranges),
            tuple(letter for member in members for letter in member.categories),
            negated,
        )

    def member(self) -> Character:
        character = self.next()
        return self.escape() if character == "\\" else Character(((character, character),))

    def range(self, first: Character, last: Character) -> Character:
        if not first.ranges or not last.ranges or first.ranges[0] > last.ranges[0]:
            raise PatternMalformed(self.text)
        return Character(((first.ranges[0][0], last.ranges[0][1]),))
