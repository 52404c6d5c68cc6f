"""Reading a pickle as plain data: what it names is noted, and never imported, called or changed.

Python's own unpickler in Python. The one in C makes room for any sizes that a pickle states, before it looks how long
the file is.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from trainrun.errors import TrainrunError

_PLAIN_KEYS = (str, int, float, bytes, type(None))


class Name(NamedTuple):
    """A class, function or other thing that a pickle names."""

    module: str
    name: str

    def __call__(self, *arguments: Any) -> Made:
        """Stand in for the call of what is named."""
        return Made(self, arguments)


class Made:
    """Stands for the object that calling `maker` with `arguments` would make; `state` is what it would be given."""

    __slots__ = ("arguments", "maker", "state")

    def __init__(self, maker: Name, arguments: tuple[Any, ...]) -> None:
        self.maker = maker
        self.arguments = arguments
        self.state: Any = None


Persistent = Callable[[Any], Any]


def load(data: bytes, allowed: Callable[[Name], bool], persistent: Persistent | None = None) -> Any:
    """Return the value in a pickle.

    A `Name` or a `Made` stands for all that is not plain.

    allowed: whether the pickle may name that. persistent: returns what stands for a persistent id; without it there may
    be none. Any error in the pickle is raised as it comes: callers must catch `Exception`.
    """
    return _Unpickler(data, allowed, persistent).load()


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {**pickle._Unpickler.dispatch}
    memo: dict[int, Any]
    stack: list[Any]

    def __init__(self, data: bytes, allowed: Callable[[Name], bool], persistent: Persistent | None) -> None:
        super().__init__(io.BytesIO(data))
        self._length = len(data)
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        found = Name(module, name)
        if not self._allowed(found):
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'!r:.80}, which no checkpoint needs")
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            self.refuse()
            return None
        return self._persistent(pid)

    def load_frame(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        if size > self._length:
            raise pickle.UnpicklingError("it ends within a frame")
        self._unframer.load_frame(size)  # type: ignore[attr-defined]

    def load_long_binput(self) -> None:
        (place,) = struct.unpack("<I", self.read(4))  # type: ignore[attr-defined]
        if place > self._length:
            raise pickle.UnpicklingError("it remembers more values than it has")
        self.memo[place] = self.stack[-1]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _named(self.stack[-1])(*arguments)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Made) or made.state is not None:
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}, which no checkpoint needs")
        made.state = state

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(self.stack[-1], key, value)

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.stack.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(self.stack[-1], key, value)

    def _put(self, table: Any, key: Any, value: Any) -> None:
        """Set `table[key]` for a plain key.

        Hashing a tuple of tuples of shared tuples would take forever, and of two equal keys one would be lost.
        """
        if type(table) is not dict:
            raise pickle.UnpicklingError(f"it fills a {type(table).__name__}, which no checkpoint needs")
        if not _is_flat(key):
            raise pickle.UnpicklingError(f"it has a key that is a {type(key).__name__}, which no checkpoint needs")
        if key in table:
            raise pickle.UnpicklingError(f"it has the key {key!r:.80} twice")
        table[key] = value

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it uses an operation that no checkpoint needs")

    dispatch |= {
        pickle.FRAME[0]: load_frame,
        pickle.LONG_BINPUT[0]: load_long_binput,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }
    for _operation in (
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX),
        *(pickle.FROZENSET, pickle.ADDITEMS, pickle.EMPTY_SET),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_operation[0]] = refuse


def _is_flat(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(isinstance(part, _PLAIN_KEYS) for part in key)
    return isinstance(key, (*_PLAIN_KEYS, Made))


def _named(value: Any) -> Name:
    if not isinstance(value, Name):
        raise pickle.UnpicklingError(f"it calls a {type(value).__name__}, which no checkpoint needs")
    return value


def reason(error: Exception) -> str:
    """Explain why reading failed.

    A file that was tampered with can raise anything at all.
    """
    told = isinstance(error, TrainrunError | pickle.UnpicklingError | TypeError | zipfile.BadZipFile | OSError)
    return str(error) if told and str(error) else f"{type(error).__name__}: {error}"


def fields(value: Any, kind: Name) -> Mapping[str, Any]:
    """Return the attributes of an object of that class.

    Raises TypeError for all other values.
    """
    if not isinstance(value, Made) or value.maker != kind or not isinstance(value.state, dict):
        raise TypeError(f"expected a {kind.name}, got {described(value)}")
    return value.state


def described(value: Any) -> str:
    """Describe a value."""
    if isinstance(value, Made):
        return f"a {value.maker.name}"
    return f"{value.module}.{value.name}" if isinstance(value, Name) else f"a {type(value).__name__}"
