"""What to say of an import that raised: one line with the place in the user's own code, and the traceback below it."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from trainrun.errors import described

_OURS = str(Path(__file__).parents[1]) + "/"
_PYTHON = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))
_INSTALLED = ("/site-packages/", "/dist-packages/")


def summary(error: BaseException, *, whole: bool = False) -> str:
    """Describe what was raised, and at which line of the user's code.

    whole: with all lines of its text.
    """
    if isinstance(error, SyntaxError):
        return f"SyntaxError in {error.filename}, line {error.lineno}: {error.msg}"
    text = described(error).strip()
    what = text if whole else text.partition("\n")[0]
    if isinstance(error, SystemExit):
        what = f"it called sys.exit({error.code!r})"
    place = place_of(error)
    return f"{what} ({place})" if place else what


def place_of(error: BaseException) -> str | None:
    """Return FILE:LINE of the deepest frame in the user's own code.

    None if that code has no part in the error. Own code is what lies in the folder, or package, of the first file
    outside of trainrun and Python. Deeper frames belong to other packages and were called from there.
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(from_the_user(error.__traceback__))]
    if not frames:
        return None
    own, shown_from = _own(Path(frames[0][0]))
    file, line = next(one for one in reversed(frames) if _is_below(one[0], own))
    return f"{Path(file).relative_to(shown_from)}:{line}"


def user_traceback(error: BaseException) -> str | None:
    """Return the traceback below trainrun's own frames and the import machinery.

    Returns None if nothing is below.
    """
    trace = from_the_user(error.__traceback__)
    if trace is None:
        return None
    return "".join(traceback.format_exception(type(error), error.with_traceback(trace), trace))


def from_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame on that is the user's."""
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def files_of(error: BaseException) -> Iterator[str]:
    """Yield the files outside of trainrun and Python that the error came through."""
    for frame in traceback.extract_tb(error.__traceback__):
        if not _is_machinery(frame.filename):
            yield frame.filename
    if isinstance(error, SyntaxError) and error.filename:
        yield error.filename


def _own(first: Path) -> tuple[Path, Path]:
    """Return the folder or file that is the user's own.

    The second value is the folder to which its files are shown relative.
    """
    folder = first.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    package = folder / first.relative_to(folder).parts[0]  # the file itself if it is in no package
    alone = package != first or folder.name in {"site-packages", "dist-packages"}
    return (package if alone else folder), folder


def _is_below(file: str, own: Path) -> bool:
    if _is_machinery(file) or not Path(file).is_relative_to(own):
        return False
    return not any(part in f"/{Path(file).relative_to(own)}" for part in _INSTALLED)


def _is_machinery(file: str) -> bool:
    if any(part in file for part in _INSTALLED) and not file.startswith(_OURS):
        return False  # it may lie in Python's own folder
    return file.startswith(("<frozen ", _OURS, *_PYTHON))
