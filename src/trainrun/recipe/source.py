"""One TOML text and the positions of its keys.

tomli reports no positions of keys, so they are found with tomli itself as the oracle. A key stands in the statement
whose line completes the shortest prefix of the text that holds it. Bisecting takes about ten parses a key, and only the
keys that are needed are looked up.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

import tomli

from trainrun.errors import Problem, RecipeError
from trainrun.recipe.plain import Key, lookup
from trainrun.recipe.secret import mask

# Statements start like this: a header alone on its line, or a key. So do some lines within multi-line
# values: the text before those does not parse.
_STATEMENT = re.compile(r"""\s*(\[[^\]]*\]\]?\s*(#.*)?\r?$|("[^"]*"|'[^']*'|[\w-]+)\s*[.=])""")
_PARSE_BUDGET = 3 << 20  # characters; a hostile file must not make error messages slow
_SHOWN = 100


class Location(NamedTuple):
    """A place in a file, a file, or an override such as ``-o #2``."""

    name: str
    line: int | None = None
    column: int | None = None
    text: str | None = None
    rank: int = 0

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}:{self.column}"

    @property
    def order(self) -> tuple[int, int, int]:
        """Return the key that sorts problems into the order of the files."""
        return self.rank, self.line or 0, self.column or 0

    def problem(self, what: str, hint: str | None = None) -> Problem:
        """Return a problem at this place.

        It shows the line with a caret if there is a line.
        """
        if self.text is None or self.column is None:
            return Problem(str(self), what, hint)
        start = max(0, self.column - _SHOWN + 20)
        shown = mask(self.text)[start : start + _SHOWN]
        clean = "".join(letter if letter.isprintable() else " " for letter in shown)
        return Problem(str(self), what, hint, clean.rstrip(), self.column - start)


class Source:
    """A parsed TOML text, by the name under which messages mention it."""

    def __init__(self, name: str, text: str, rank: int = 0) -> None:
        """Parse `text`; raises RecipeError. `rank` orders this source among those of one document."""
        self.name = name
        self.rank = rank
        self.lines = text.split("\n")
        self._text = text
        self._offsets = list(accumulate((len(line) + 1 for line in self.lines), initial=0))
        self.data = self._parse(text)
        self._starts = [number for number, line in enumerate(self.lines) if _STATEMENT.match(line)]
        self._prefixes: dict[int, dict[str, Any] | None] = {}
        self._budget = _PARSE_BUDGET

    def locate(self, key: Key) -> Location:
        """Return the place of `key`, or of the nearest table around it.

        The table is one that is written here.
        """
        while key and not lookup(self.data, key)[0]:
            key = key[:-1]
        found = self._statement(key) if key else None
        if found is None:
            return Location(self.name, rank=self.rank)
        return self._at(*self._within(key, *found))

    def _at(self, line: int, column: int) -> Location:
        return Location(self.name, line + 1, column + 1, self.lines[line].rstrip("\r"), self.rank)

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            return tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            place = self._at(min(error.lineno, len(self.lines)) - 1, error.colno - 1)
            raise RecipeError([place.problem(f"not valid TOML: {_lower(error.msg)}")]) from None
        except RecursionError:
            what, hint = "is nested too deeply", "no recipe needs more than a few levels"
        except ValueError:
            what, hint = "holds a number with thousands of digits", "integers have 64 bits"
        raise RecipeError([Problem(self.name, what, hint)])

    def _prefix(self, count: int) -> dict[str, Any] | None:
        """Return the first `count` lines parsed; None if they do not parse.

        None also if the limit of parses is reached.
        """
        if count not in self._prefixes and self._budget > 0:
            text = self._text[: self._offsets[count]]
            self._budget -= len(text)
            self._prefixes[count] = _try(text)
        return self._prefixes.get(count)

    def _statement(self, key: Key) -> tuple[int, int] | None:
        """Return the lines (first, end) of the statement that brings `key`.

        Returns None when it would take too long.
        """
        low, high = 0, len(self.lines)
        while (middle := self._between(low, high)) is not None:
            if lookup(self._prefix(middle), key)[0]:
                high = middle
            else:
                low = middle
        if self._budget <= 0:
            return None
        return self._starts[bisect_left(self._starts, low)], high

    def _between(self, low: int, high: int) -> int | None:
        """Return a statement's first line between two others.

        The nearer to the middle the better.
        """
        inner = self._starts[bisect_right(self._starts, low) : bisect_left(self._starts, high)]
        middle = (low + high) // 2
        inner.sort(key=lambda line: abs(line - middle))
        return next((line for line in inner if line and self._prefix(line) is not None), None)

    def _within(self, key: Key, first: int, end: int) -> tuple[int, int]:
        """Return line and column of the key's last name in its statement."""
        name = next(part for part in reversed(key) if isinstance(part, str))
        index = next((part for part in reversed(key) if isinstance(part, int)), 0)
        text = "\n".join(self.lines[first:end])
        word = re.escape(name)
        found = [match.start() for match in re.finditer(rf"""(?<![\w-])["']?{word}["']?(?=\s*[=.\]])""", text)]
        if not found:
            return first, len(text) - len(text.lstrip())
        start = found[min(index, len(found) - 1)]
        return first + text.count("\n", 0, start), start - (text.rfind("\n", 0, start) + 1)


def _try(text: str) -> dict[str, Any] | None:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError:
        return None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
