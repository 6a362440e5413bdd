"""Matches regular expressions of repositories and users, with work that grows with the name and the pattern alone.

`re` tries one way after the other, and their number can double with each character of the pattern. Here all ways are followed at
once, as sets of states of an automaton (Thompson, Regular Expression Search Algorithm, CACM 11, 1968); sets are kept, so that a
name seldom needs a new one. Look-ahead and look-behind are conditions on positions, worked out first, in a pass of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import repeat

from ..errors import MalformedError, UnsupportedError
from ..standard import compiled
from .pattern_syntax import (
    ANYTHING,
    Character,
    Choice,
    Condition,
    Look,
    Node,
    PatternMalformed,
    PatternUnsupported,
    Position,
    Repeat,
    Sequence,
    parse,
)
from .reading import shown

WORD = compiled(r"\w")

LONGEST_PATTERN = 2_000
MOST_STATES = 100_000  # of all patterns that are matched together
MOST_STEPS = 40_000_000  # over all names: some seconds
NEW_SET_STEPS = 4  # a state visited for a new set takes as long as this many characters whose sets are kept


def fullmatch(pattern: str) -> Callable[[str], bool]:
    """A test as `re.fullmatch(pattern, name)`."""
    first = first_match([pattern], after=Position("end"))
    return lambda name: first(name) is not None


@lru_cache(maxsize=16)
def search(pattern: str) -> Callable[[str], bool]:
    """A test as `re.search(pattern, name)`; it keeps its answers, for runs ask again and again for the same names."""
    first = first_match([pattern], before=ANYTHING)
    return lru_cache(maxsize=1 << 17)(lambda name: first(name) is not None)


def selects(wanted: str, unwanted: str) -> Callable[[str], bool]:
    """A test for names in which `wanted` is found and `unwanted`, if there is one, is not."""
    is_wanted = search(wanted)
    is_unwanted = search(unwanted) if unwanted else lambda _: False
    return lambda name: is_wanted(name) and not is_unwanted(name)


def first_match(
    patterns: Iterable[str], *, before: Node | None = None, after: Node | None = None
) -> Callable[[str], int | None]:
    """A function from a name to the index of the first pattern that matches from its start, as `re.match`; None if none does.

    before, after: what stands around each pattern. Raises for a pattern that cannot be matched here, and the function once
    names have taken MOST_STEPS.
    """
    sources = list(patterns)
    if not sources:
        return lambda name: None
    return _Matcher(sources, before, after).first


def _parsed(pattern: str) -> Node:
    if len(pattern) > LONGEST_PATTERN:
        raise UnsupportedError("pattern_slow", found=shown(pattern))
    try:
        return parse(pattern)
    except PatternMalformed:
        raise MalformedError("pattern_malformed", found=shown(pattern)) from None
    except PatternUnsupported:
        raise UnsupportedError("pattern_unsupported", found=shown(pattern)) from None


class _Matcher:
    """Patterns that are matched together, and the conditions on positions in them."""

    def __init__(self, patterns: list[str], before: Node | None, after: Node | None) -> None:
        self.pattern = patterns[0]
        self.states = self.steps = 0
        self.conditions: dict[Condition, _Automaton | None] = {}  # those within another before it
        self.automaton = _Automaton(self, backwards=False)
        start = self.automaton.new()
        if before is not None:
            start = self.automaton.add(before, start)
        for index, pattern in enumerate(patterns):
            self.pattern = pattern
            end = self.automaton.add(_parsed(pattern), start)
            self.automaton.finals[end if after is None else self.automaton.add(after, end)] = index

    def first(self, name: str) -> int | None:
        first = None
        for index in self.automaton.run(name, self.conditions_of(name)):
            if index is not None and (first is None or index < first):
                first = index
            if first == 0:
                break
        return first

    def conditions_of(self, text: str) -> Iterable[int]:
        """For each position which conditions hold there, a bit each."""
        if not self.conditions:
            return repeat(0)
        holding = [0] * (len(text) + 1)
        for bit, (condition, automaton) in enumerate(self.conditions.items()):
            for position in _positions(condition, automaton, text, holding):
                holding[position] |= 1 << bit
        return holding

    def number(self, condition: Condition) -> int:
        """The bit of a condition."""
        if condition not in self.conditions:
            automaton = None
            if isinstance(condition, Look):
                automaton = _Automaton(self, backwards=condition.ahead)
                end = automaton.add(condition.part, automaton.add(ANYTHING, automaton.new()))
                automaton.finals[end] = 0
            self.conditions[condition] = automaton
        return list(self.conditions).index(condition)

    def spend(self, *, states: int = 0, steps: int = 0) -> None:
        self.states += states
        self.steps += steps
        if self.states > MOST_STATES or self.steps > MOST_STEPS:
            raise UnsupportedError("pattern_slow", found=shown(self.pattern))


def _positions(condition: Condition, automaton: _Automaton | None, text: str, holding: list[int]) -> list[int]:
    """The positions in `text` where a condition holds."""
    size = len(text)
    line_end = [size, size - 1] if text.endswith("\n") else [size]
    if isinstance(condition, Look):
        assert automaton is not None
        backwards = condition.ahead
        run = automaton.run(text[::-1], holding[::-1]) if backwards else automaton.run(text, holding)
        matched = [index is not None for index in run]
        if backwards:
            matched.reverse()
        return [position for position, match in enumerate(matched) if match is not condition.negated]
    match condition.kind:
        case "start":
            return [0]
        case "end":
            return [size]
        case "line end":
            return line_end
        case "word edge":
            words = [False, *(WORD.match(character) is not None for character in text), False]
            return [position for position in range(size + 1) if words[position] is not words[position + 1]]
        case "module edge":
            dots = [position for position, character in enumerate(text) if character == "."]
            return [*dots, *(position + 1 for position in dots), *line_end]


class _Automaton:
    """States with edges, which take no character and may ask for a condition, and moves, which take one."""

    def __init__(self, matcher: _Matcher, *, backwards: bool) -> None:
        self.matcher = matcher
        self.backwards = backwards
        self.edges: list[list[tuple[int, int]]] = []  # (the bits of the conditions, the state that it leads to)
        self.moves: list[list[tuple[Character, int]]] = []
        self.finals: dict[int, int] = {}  # the index of a final state's pattern
        # Sets of states met so far, by number; the sets that follow, by character and conditions; their first pattern.
        self.numbers: dict[frozenset[int], int] = {}
        self.sets: list[frozenset[int]] = []
        self.following: list[dict[tuple[str, int], int]] = []
        self.first: list[int | None] = []

    def new(self) -> int:
        self.matcher.spend(states=1)
        self.edges.append([])
        self.moves.append([])
        return len(self.edges) - 1

    def join(self, state: int, target: int, conditions: int = 0) -> int:
        self.edges[state].append((conditions, target))
        return target

    def add(self, node: Node, state: int) -> int:
        """Adds what `node` matches from `state` on; the state after it. Nothing leads back to `state` itself."""
        match node:
            case Character():
                end = self.new()
                self.moves[state].append((node, end))
                return end
            case Sequence(parts):
                for part in reversed(parts) if self.backwards else parts:
                    state = self.add(part, state)
                return state
            case Choice(alternatives):
                end = self.new()
                for alternative in alternatives:
                    self.join(self.add(alternative, state), end)
                return end
            case Repeat(part, least, most):
                return self.add_repeat(part, least, most, state)
            case Position() | Look():
                return self.join(state, self.new(), 1 << self.matcher.number(node))

    def add_repeat(self, part: Node, least: int, most: int | None, state: int) -> int:
        for _ in range(least):
            state = self.join(self.add(part, state), self.new())
        end = self.new()
        if most is None:
            loop = self.join(state, self.new())
            self.join(self.add(part, loop), loop)
            return self.join(loop, end)
        self.join(state, end)
        for _ in range(most - least):
            state = self.join(self.add(part, state), self.new())
            self.join(state, end)
        return end

    def run(self, text: str, conditions: Iterable[int]) -> Iterator[int | None]:
        """At each position of `text` the first pattern that ends there; fewer positions if none can match any more."""
        self.matcher.spend(steps=len(text) + 1)
        holding = iter(conditions)
        number = self.numbered({0}, next(holding))
        yield self.first[number]
        for key in zip(text, holding, strict=False):
            following = self.following[number]
            if key not in following:
                character, conditions_here = key
                moved = {
                    target
                    for state in self.sets[number]
                    for move, target in self.moves[state]
                    if move.accepts(character)
                }
                following[key] = self.numbered(moved, conditions_here)
            number = following[key]
            if not self.sets[number]:
                return
            yield self.first[number]

    def numbered(self, states: set[int], conditions: int) -> int:
        """The number of the set of `states` and all that their edges lead to."""
        waiting, reached = list(states), set(states)
        while waiting:
            for asked, target in self.edges[waiting.pop()]:
                if target not in reached and conditions & asked == asked:
                    reached.add(target)
                    waiting.append(target)
        self.matcher.spend(steps=NEW_SET_STEPS * len(reached))
        whole = frozenset(reached)
        if whole not in self.numbers:
            self.numbers[whole] = len(self.sets)
            self.sets.append(whole)
            self.following.append({})
            self.first.append(min((self.finals[state] for state in whole if state in self.finals), default=None))
        return self.numbers[whole]
