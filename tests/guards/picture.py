"""The order of hooks as the manual pictures it: read from its pseudocode and compared with recorded calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_BLOCK = re.compile(r"(?P<indent> *)(?P<head>.+):")
_OPTIONAL = ("if ", "unless ", "at ", "on ")
_REPEATED = ("for each ", "while ")


@dataclass(frozen=True)
class Block:
    """Lines of one depth, in order. head: what stands before the colon; items: hooks, names in <>, inner blocks."""

    head: str
    items: list[str | Block] = field(default_factory=list)

    @property
    def repeats(self) -> bool:
        return self.head.startswith(_REPEATED) or any(f", {word}" in self.head for word in (*_REPEATED, "one after"))

    @property
    def optional(self) -> bool:
        return self.repeats or self.head.startswith(_OPTIONAL)


def read(text: str) -> dict[str, Block]:
    """Read pseudocode: the parts by name. Raises ValueError for a line that is neither a condition nor hooks."""
    root = Block("")
    open_blocks = [(-1, root)]
    for line in filter(str.strip, text.splitlines()):
        depth = len(line) - len(line.lstrip())
        while depth <= open_blocks[-1][0]:
            open_blocks.pop()
        if head := _BLOCK.fullmatch(line):
            block = Block(head["head"])
            if len(open_blocks) > 1 and not block.optional:
                raise ValueError(f"{line.strip()!r}: begin with one of {(*_OPTIONAL, *_REPEATED)}")
            open_blocks[-1][1].items.append(block)
            open_blocks.append((depth, block))
        else:
            names = re.sub(r" \([^)]*\)$", "", line.strip()).split(" · ")
            if wrong := [name for name in names if not re.fullmatch(r"\w+|<[\w ]+>", name)]:
                raise ValueError(f"{line.strip()!r}: {wrong} are no hooks")
            open_blocks[-1][1].items.extend(names)
    return {part.head: part for part in root.items if isinstance(part, Block)}


def hooks(block: Block) -> Iterator[str]:
    """All names in a block, in the order of the text."""
    for item in block.items:
        yield from hooks(item) if isinstance(item, Block) else [item]


class Order:
    """The orders of calls that a picture allows. Every hook is implemented, unless it is in `absent`."""

    def __init__(self, parts: dict[str, Block], absent: Sequence[str] = ()) -> None:
        self._parts = parts
        self._absent = set(absent)

    def fault(self, part: str, calls: Sequence[str], *, broken_off: bool = False) -> str | None:
        """Return where `calls` leave the order of `part`, or None. broken_off: they may end before the part does."""
        self._calls, self._reached = calls, 0
        ends = self._block(self._parts[part], {0})
        if len(calls) in ends or (broken_off and self._reached == len(calls)):
            return None
        before = ", ".join(calls[max(0, self._reached - 5) : self._reached])
        return f"after {before}: {[*calls, 'the end'][self._reached]}"

    def _block(self, block: Block, begins: set[int]) -> set[int]:
        """Where the calls that a block allows can end, for each place where they can begin."""
        ends = self._once(block, begins)
        if block.repeats:
            new = ends - begins
            while new:
                new = self._once(block, new) - ends
                ends |= new
        return ends | begins if block.optional else ends

    def _once(self, block: Block, places: set[int]) -> set[int]:
        for item in block.items:
            if isinstance(item, Block):
                places = self._block(item, places)
            elif item.startswith("<"):
                places = self._block(self._parts[item[1:-1]], places)
            elif item not in self._absent:
                places = {place + 1 for place in places if self._calls[place : place + 1] == [item]}
            self._reached = max(self._reached, *places, 0)
        return places
