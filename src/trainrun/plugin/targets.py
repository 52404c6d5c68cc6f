"""From a target, the text that says what to import, to the object.

A target is ``package.module``, ``package.module:Attribute``, ``/path/to/file.py`` or
``/path/to/file.py:Attribute``.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from trainrun.errors import UsageError, shown


def split(target: str) -> tuple[str, str]:
    """Return module or path, and the attribute within it.

    The attribute is empty when the module itself is meant.
    """
    module, _, attribute = target.partition(":")
    return module, attribute


def is_path(target: str) -> bool:
    """Return whether the target names a file rather than a module."""
    module, _ = split(target)
    return "/" in module or module.endswith(".py")


def absolute(target: str, folder: Path) -> str:
    """Return the target with a path made absolute.

    Relative paths start at `folder`, that of the recipe.
    """
    if not is_path(target):
        return target
    module, attribute = split(target)
    path = (folder / os.path.expanduser(module)).resolve()  # noqa: PTH111 - Path raises for a home that is not known
    return f"{path}:{attribute}" if attribute else str(path)


def target_of(task: object) -> str:
    """Return the target by which a worker imports a class or module.

    Raises UsageError if there is none.
    """
    if isinstance(task, ModuleType):
        file, attribute = getattr(task, "__file__", None), ""
    elif isinstance(task, type):
        file, attribute = getattr(sys.modules.get(task.__module__), "__file__", None), task.__qualname__
    else:
        raise UsageError(
            f"task: expected a class or a module, got {shown(task)}; its options belong in the recipe's [task]"
        )
    if file is None or not Path(file).is_file() or "<locals>" in attribute:
        name = attribute or getattr(task, "__name__", "")
        raise UsageError(
            f"task: {name} is in no file, and workers are processes of their own that must import it; write it into a"
            " file (in a notebook: %%writefile task.py) and import it from there"
        )
    return f"{Path(file).resolve()}:{attribute}" if attribute else str(Path(file).resolve())


def see_working_folder() -> None:
    """Let modules of the working folder be imported.

    A module of the same name in another folder comes first.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109 - as sys.path has it
    except FileNotFoundError:  # it was removed
        return
    if folder not in sys.path:
        sys.path.append(folder)


def load(target: str) -> object:
    """Import the target and return it.

    Raises ImportError if it is not of the expected kind, and every exception of the code itself.
    """
    module, attribute = split(target)
    loaded: object = _import_file(Path(module)) if is_path(target) else importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        try:
            loaded = getattr(loaded, part)
        except AttributeError:
            raise ImportError(f"{module} has no {attribute!r}") from None
    return loaded


def _import_file(path: Path) -> ModuleType:
    """Import by the file's stem with its folder on `sys.path`.

    Not under a name of our own: what the module defines could then not be unpickled in a data
    loader's process.
    """
    if not path.is_file():
        raise ImportError(f"there is no file {path}")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(path.stem)
    found = getattr(module, "__file__", None)
    if found is None or not path.samefile(found):
        raise ImportError(
            f"{path} cannot be imported: {path.stem!r} is already {found or 'built into Python'}; rename it"
        )
    return module


def guess_files(target: str) -> list[str]:
    """Return the sources that importing the target would start with.

    They are found without importing anything.
    """
    module, _ = split(target)
    if is_path(module):
        return [module]
    stem = Path(*module.split("."))
    candidates = [Path(folder) / name for folder in sys.path for name in (f"{stem}.py", stem / "__init__.py")]
    return [str(file) for file in candidates if file.is_file()][:1]
