"""The hookspecs: trainrun's own, and reading those that a plugin brings in its `hookspecs` attribute."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType

from trainrun import hookspecs
from trainrun.marker import spec_options
from trainrun.plugin.description import SpecInfo


def specs_in(namespace: object) -> tuple[SpecInfo, ...]:
    """Return the hooks that a module or class declares with `hookspec`.

    They are in the order in which they are written.
    """
    functions = (_function(namespace, name) for name in dir(namespace))
    found = [spec for function in functions if function is not None and (spec := _spec(function)) is not None]
    return tuple(sorted(found, key=lambda spec: spec.line))


def own_specs() -> tuple[SpecInfo, ...]:
    """Return the hooks of `trainrun.hookspecs`."""
    return specs_in(hookspecs)


def by_name(*groups: Iterable[SpecInfo]) -> dict[str, SpecInfo]:
    """Map hook names to specs. If two specs have one name, the first counts."""
    table: dict[str, SpecInfo] = {}
    for spec in (spec for group in groups for spec in group):
        table.setdefault(spec.hook, spec)
    return table


def _function(namespace: object, name: str) -> FunctionType | None:
    found = inspect.getattr_static(namespace, name)
    if isinstance(found, staticmethod):
        found = found.__func__
    return found if isinstance(found, FunctionType) else None


def _spec(function: FunctionType) -> SpecInfo | None:
    options = spec_options(function)
    if options is None:
        return None
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    return SpecInfo(
        hook=function.__name__,
        locus=options.locus,
        kind=options.kind,
        ranks=options.ranks,
        host=options.host,
        copied=options.copied,
        arguments=tuple(name for name in arguments if name != "self"),
        doc=inspect.cleandoc(function.__doc__ or ""),
        file=code.co_filename,
        line=code.co_firstlineno,
    )
