"""The two decorators: `hookspec` declares a hook, `hookimpl` marks a function that implements one.

Both are pluggy's markers with options of trainrun. A leaf: it imports only pluggy.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeVar, overload

import pluggy

PROJECT = "trainrun"

Locus = Literal["client", "worker", "both"]
Kind = Literal["event", "provider", "vote", "collection"]
GATHERED = ("vote", "collection")  # kinds of hooks of which every result is kept, with the instance it is from
Ranks = Literal["all", "local_zero", "zero"]

F = TypeVar("F", bound=Callable[..., Any])

_pluggy_spec = pluggy.HookspecMarker(PROJECT)
_pluggy_impl = pluggy.HookimplMarker(PROJECT)
_SPEC = "trainrun_hook"
_IMPL = "trainrun_hookimpl"


class SpecOptions(NamedTuple):
    """What a hookspec declares besides its signature.

    `host` names the arguments that are plain host values (numbers, strings, mappings of them):
    the only ones that a background hookimpl may take. `copied` names the mappings that each hookimpl gets a copy of,
    so that no plugin changes them for another.
    """

    locus: Locus
    kind: Kind
    ranks: Ranks | None
    host: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()


class ImplOptions(NamedTuple):
    """What a hookimpl declares besides pluggy's own options."""

    ranks: Ranks | None = None
    background: bool = False
    mutates: bool = False


def hookspec(
    *,
    locus: Locus,
    kind: Kind,
    ranks: Ranks | None = None,
    host: tuple[str, ...] = (),
    copied: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Declare a hook; a plugin may bring its own hooks in its `hookspecs` attribute (a module or class)."""

    def decorate(function: F) -> F:
        setattr(function, _SPEC, SpecOptions(locus, kind, ranks, host, copied))
        return _pluggy_spec(function, firstresult=kind == "provider")

    return decorate


@overload
def hookimpl(function: F) -> F: ...
@overload
def hookimpl(
    *,
    ranks: Ranks | None = ...,
    background: bool = ...,
    mutates: bool = ...,
    tryfirst: bool = ...,
    trylast: bool = ...,
    wrapper: bool = ...,
    specname: str | None = ...,
) -> Callable[[F], F]: ...
def hookimpl(
    function: F | None = None,
    *,
    ranks: Ranks | None = None,
    background: bool = False,
    mutates: bool = False,
    tryfirst: bool = False,
    trylast: bool = False,
    wrapper: bool = False,
    specname: str | None = None,
    **unknown: object,
) -> Any:
    """Mark a method or function as the implementation of the hook of the same name.

    It goes above or below `@staticmethod` and `@classmethod`. Raises TypeError for what is no function: a
    `functools.partial` or another callable object would never be called.

    ranks: on which workers it runs; left out, the hook's own default. `"zero"` is the first
        worker of the run, `"local_zero"` the first of each node.
    background: run it on the plugin's own thread, so that it never delays training. Events only,
        and only with arguments that are host values.
    mutates: it changes model, gradients, optimizer or data, or calls a collective. An error in it
        always fails the run, because half a change on one rank cannot be repaired.
    tryfirst, trylast, wrapper, specname: as in pluggy.
    """
    if unknown:
        raise TypeError(_no_option(next(iter(unknown))))

    def decorate(function: F) -> F:
        marked = function.__func__ if isinstance(function, staticmethod | classmethod) else function
        if not isinstance(marked, FunctionType):
            name = type(marked).__qualname__
            raise TypeError(f"hookimpl marks functions, and this is a {name} object; write a function that calls it")
        setattr(marked, _IMPL, ImplOptions(ranks, background, mutates))
        _pluggy_impl(marked, tryfirst=tryfirst, trylast=trylast, wrapper=wrapper, specname=specname)
        return function

    return decorate if function is None else decorate(function)


def _no_option(name: str) -> str:
    if name == "hookwrapper":
        return "hookimpl() takes no 'hookwrapper', which is pluggy's old style; use wrapper=True"
    options = ", ".join((*ImplOptions._fields, "tryfirst", "trylast", "wrapper", "specname"))
    return f"hookimpl() takes no {name!r}; its options are {options}"


def spec_options(function: object) -> SpecOptions | None:
    """Return the options of a function marked with `hookspec`, or None."""
    options = getattr(function, _SPEC, None)
    return options if isinstance(options, SpecOptions) else None


def impl_options(function: object) -> ImplOptions | None:
    """Return the options of a function marked with `hookimpl`, or None."""
    options = getattr(function, _IMPL, None)
    return options if isinstance(options, ImplOptions) else None
