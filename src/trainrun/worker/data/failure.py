"""What went wrong in a loader's process, as text that always reaches the training process.

torch sends the exception's class by pickle, and makes an exception of that class here. A class that cannot be pickled
then ends in silence, and the loader waits forever; a `StopIteration` ends the epoch. Text can always be sent.
"""

from __future__ import annotations

import traceback
from typing import Any, NoReturn

from torch._utils import ExceptionWrapper

from trainrun.errors import message_of

_CAUGHT = "Caught "  # what torch's own messages begin with


class LoadingError(RuntimeError):
    """An error in a loader's process. What is raised is of a subclass that has the name of the error's own class."""


class Failure(ExceptionWrapper):
    """The name and the text of an exception, and its traceback.

    torch raises it at the point at which it would return the batch.
    """

    def __init__(self, name: str, text: str, trace: str, where: str) -> None:
        self.name = name
        self.text = text
        self.trace = trace
        self.where = where

    @classmethod
    def of(cls, error: BaseException, where: str) -> Failure:
        """Describe an exception that was caught here."""
        trace = "".join(traceback.format_exception(error))
        return cls(type(error).__name__, message_of(error), trace, where)

    @classmethod
    def of_wrapper(cls, wrapper: ExceptionWrapper) -> Failure:
        """Describe an exception that torch has caught."""
        if isinstance(wrapper, cls):
            return wrapper
        kind, trace = wrapper.exc_type, wrapper.exc_msg
        return cls(kind.__name__, _last(kind, trace), trace, wrapper.where)

    def reraise(self) -> NoReturn:
        """Raise an exception with the name and text of the caught one."""
        kind = type(self.name, (LoadingError,), {})
        caught = f"{_CAUGHT}{self.name} {self.where}.\nOriginal {self.trace}".rstrip()
        raise kind(f"{self.text}\n{caught}" if self.text else caught)


def is_told(error: BaseException) -> bool:
    """Return whether an error was sent from a loader's process."""
    return isinstance(error, LoadingError) or message_of(error).startswith(_CAUGHT)


def _last(kind: Any, trace: str) -> str:
    """Return the exception's text, which is the end of its traceback.

    It is empty if the traceback has another form.
    """
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    head = f"{module}{kind.__qualname__}: "
    lines = trace.rstrip().split("\n")
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(head):
            return "\n".join(lines[number:]).removeprefix(head)
    return ""
