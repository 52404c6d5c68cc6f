"""A recipe as a plain document: files merged along `extends`, overrides on top, and the origin of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainrun.errors import Problem, RecipeError
from trainrun.recipe.freeze import toml_text
from trainrun.recipe.overrides import Override, parse_overrides
from trainrun.recipe.plain import Key, dotted, lookup
from trainrun.recipe.source import Location, Source
from trainrun.recipe.suggest import did_you_mean
from trainrun.recipe.text import read_text

MADE = "recipe"  # the name of one that was made in Python

_INT64 = 1 << 63
# Only one of the two may be set. An override of one takes the place of the other, if only the recipe sets that.
_RIVALS: tuple[tuple[Key, Key], ...] = ((("train", "steps"), ("train", "epochs")),)


class Origin(NamedTuple):
    """The place at which a value was set, and what it overrode there (nearest first)."""

    location: Location
    value: Any
    overrode: tuple[Origin, ...] = ()


class Document(NamedTuple):
    """The merged, unchecked recipe. `layers` holds what it was made of, the weakest first."""

    path: Path
    data: dict[str, Any]
    layers: tuple[Source | Override, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return the files, the weakest first."""
        return tuple(layer for layer in self.layers if isinstance(layer, Source))

    def locate(self, key: Key) -> Location:
        """Return the place at which `key` was set last.

        For a key that was never set, that is the place of its table.
        """
        while key:
            for layer in self.layers[::-1]:
                if lookup(layer.data, key)[0]:
                    return layer.locate(key)
            key = key[:-1]
        return self.sources[-1].locate(())

    def origin(self, key: Key) -> Origin | None:
        """Return the origin of the value of `key`.

        Returns None if nothing sets it.

        A value is set by a file or an override.
        """
        found: tuple[Origin, ...] = ()
        for layer in self.layers:
            present, value = lookup(layer.data, key)
            if present:
                found = (Origin(layer.locate(key), value, found), *found)
        return found[0] if found else None


def read(path: Path | str, overrides: Sequence[str] = ()) -> Document:
    """Read the recipe at `path`, what it extends, and the overrides. Raises RecipeError.

    Finds everything that is wrong below the level of recipes: files that cannot be read, TOML that
    does not parse, numbers that do not fit, overrides that are none. What keys mean is `check`'s.
    """
    path = Path(path)
    return _layered(path, tuple(reversed(_chain(path))), overrides)


def made(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Document:
    """Return the document of a recipe that was made in Python.

    Its paths start at the working folder. Raises RecipeError.
    """
    try:
        source = Source(MADE, toml_text(data))
    except TypeError as error:
        raise RecipeError([Problem(MADE, str(error), "use texts, numbers, booleans, lists and mappings")]) from None
    if "extends" in source.data:
        raise RecipeError([Problem(MADE, "extends: only a file can extend another", "merge the mappings")])
    return _layered(Path.cwd() / MADE, (source,), overrides)


def _layered(path: Path, sources: tuple[Source, ...], overrides: Sequence[str]) -> Document:
    layers: tuple[Source | Override, ...] = (*sources, *parse_overrides(overrides, rank=len(sources)))
    data: dict[str, Any] = {}
    for layer in layers:
        data = _merged(data, layer.data)
        if isinstance(layer, Override) and layer.removes:
            _remove(data, layer)
    _settle_rivals(data, [layer for layer in layers if isinstance(layer, Override)])
    data.pop("extends", None)
    document = Document(path, data, layers)
    _require_plain(document)
    return document


def _chain(path: Path) -> list[Source]:
    """Return the recipe, what it extends, what that extends, and so on."""
    sources: list[Source] = []
    seen: list[Path] = []
    base: Path | None = path
    while base is not None:
        sources.append(Source(str(base), read_text(base), rank=len(sources)))
        seen.append(base.resolve())
        base = _base(base, sources[-1], seen)
    return sources


def _base(path: Path, source: Source, seen: list[Path]) -> Path | None:
    if "extends" not in source.data:
        return None
    place, value = source.locate(("extends",)), source.data["extends"]
    if not isinstance(value, str) or not value or "\0" in value:
        raise RecipeError([place.problem("extends: expected the path of a recipe", "relative to this file")])
    base = path.parent / value
    if base.resolve() in seen:
        cycle = " → ".join(step.name for step in [*seen, base])
        raise RecipeError([place.problem(f"extends: the recipes extend each other in a cycle: {cycle}")])
    if not base.exists():
        raise RecipeError([place.problem(f"extends: no such file: {base}", "the path is relative to this file")])
    return base


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; replace all other values, lists included."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict):
            merged[key] = _merged(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _remove(data: dict[str, Any], override: Override) -> None:
    """Take the key of a `~KEY` out of `data`. Raises RecipeError if it is not there."""
    *tables, last = override.removes
    found, table = lookup(data, tuple(tables))
    if not found or not isinstance(table, dict) or last not in table:
        what = f"{dotted(override.removes)}: the recipe does not set this key, so it cannot be removed"
        raise RecipeError(
            [Problem(override.name, what, did_you_mean(last, sorted(table)) if isinstance(table, dict) else None)]
        )
    del table[last]


def _settle_rivals(data: dict[str, Any], overrides: Sequence[Override]) -> None:
    for pair in _RIVALS:
        given = [key for key in pair if any(lookup(override.data, key)[0] for override in overrides)]
        for key in pair if len(given) == 1 else ():
            table = lookup(data, key[:-1])[1]
            if key not in given and isinstance(table, dict):
                table.pop(key[-1], None)


def _require_plain(document: Document) -> None:
    found = [(document.locate(key), key, what, hint) for key, what, hint in _not_plain(document.data)]
    if found:
        raise RecipeError([_problem(*entry) for entry in sorted(found, key=lambda entry: entry[0].order)])


def _problem(place: Location, key: Key, what: str, hint: str) -> Problem:
    return place.problem(f"{dotted(key)}: {what}", hint)


def _not_plain(value: Any, key: Key = ()) -> Iterator[tuple[Key, str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_plain(inner, (*key, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_plain(inner, (*key, index))
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        yield key, "the number does not fit into 64 bits", "write a smaller one, or a float such as 1e20"
