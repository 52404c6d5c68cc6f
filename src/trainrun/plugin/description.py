"""What is known of a plugin without importing it: the result of the describe process, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainrun.marker import Kind, Locus, Ranks
from trainrun.plugin.instance import Policy

METRIC = "x-metric"  # in the schema of an option that holds the name of a metric


class ImplInfo(NamedTuple):
    """One function that is marked with `hookimpl`. `function` is its attribute's name, `hook` the hook it implements.

    `returns` holds the keys that it returns, if all its returns are literal mappings; it is found out for
    `evaluation_step` alone, to check the names of metrics.
    """

    function: str
    hook: str
    ranks: Ranks | None = None
    background: bool = False
    mutates: bool = False
    tryfirst: bool = False
    trylast: bool = False
    wrapper: bool = False
    arguments: tuple[str, ...] = ()
    keyword_only: tuple[str, ...] = ()
    var_keyword: bool = False
    file: str = ""
    line: int = 0
    returns: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImplInfo:
        """Build the object from `_asdict`, after a trip through JSON."""
        return cls(**_tuples(data))


class SpecInfo(NamedTuple):
    """One hook: trainrun's own, or one that a plugin brings in its `hookspecs`."""

    hook: str
    locus: Locus
    kind: Kind
    ranks: Ranks | None
    host: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    doc: str = ""
    file: str = ""
    line: int = 0

    @property
    def summary(self) -> str:
        """Return the first sentence of the hook's manual."""
        return _sentence(self.doc)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpecInfo:
        """Build the object from `_asdict`, after a trip through JSON."""
        return cls(**_tuples(data))


class Description(NamedTuple):
    """What importing `target` showed. If `ok` is False, `error` says in one line why it cannot be used.

    `traceback` is given if the plugin's own code raised. `unmarked` names functions that are called like a hook but
    lack `@hookimpl`. `classes` names those classes of a module that have hookimpls. `files` are the sources that the
    description depends on.
    """

    target: str
    ok: bool = True
    error: str | None = None
    traceback: str | None = None
    doc: str = ""
    file: str = ""
    line: int = 0
    options_schema: dict[str, Any] | None = None
    has_validators: bool = False
    live: tuple[str, ...] = ()
    impls: tuple[ImplInfo, ...] = ()
    specs: tuple[SpecInfo, ...] = ()
    unmarked: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    on_error: Policy = "fail"
    poll_interval: float | None = None
    files: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return the first sentence of the plugin's docstring."""
        return _sentence(self.doc)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        plain = self._asdict()
        plain["impls"] = [impl._asdict() for impl in self.impls]
        plain["specs"] = [spec._asdict() for spec in self.specs]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """Build the description that `to_json` was called on."""
        known = _tuples(data)
        known["impls"] = tuple(ImplInfo.from_json(impl) for impl in data["impls"])
        known["specs"] = tuple(SpecInfo.from_json(spec) for spec in data["specs"])
        return cls(**known)


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _sentence(doc: str) -> str:
    """Return the text up to the first full stop.

    The first paragraph may run over several lines.
    """
    words = " ".join(doc.partition("\n\n")[0].split())
    sentence, stop, _ = words.partition(". ")
    return sentence + stop.strip()
