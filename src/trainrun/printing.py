"""Text that is not trainrun's own, on its way to a terminal: names, metrics, messages, logs, a run directory.

A terminal obeys control characters: they set its title, hide text, or type for its user. All that a command, the
live line or the summary shows goes through `escape`, and what is shown in one line through `inline`.
"""

from __future__ import annotations

import re
from pathlib import Path

# C0 and C1 but newline and tab, DEL; the signs that reverse the direction of writing; other ends of lines; and half
# surrogate pairs, which cannot be written at all.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TRACE = 90  # lines of a traceback that are shown

_LINE = 2000  # characters of a line that are shown
_ROOM = 50  # characters for saying how many more there are: what was cut once is not cut again
_SHORT = 30  # lines of a long text that are shown


def escape(text: object) -> str:
    r"""Return the text with `\u001b` for each control character; newlines and tabs stay.

    That is also how JSON and TOML write them, so that a document stays one.
    """
    return _UNSAFE.sub(_escaped, str(text).replace("\r\n", "\n"))


def inline(text: object) -> str:
    """Escape a text that must not begin a new line or column, such as a name: newlines and tabs too."""
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def clean(line: str) -> str:
    """Return a line of a worker's output: without escape sequences and control characters, and not endless.

    Of a progress bar that rewrites its line, the last state is kept.
    """
    last = next((part for part in reversed(line.split("\r")) if part), "")
    return _cut(escape(_CONTROLS.sub("", _SEQUENCES.sub("", last.replace("\t", "    ")))))


def shorten(text: str, whole: Path | str | None = None, *, lines: int = _SHORT) -> str:
    """Cut a text to its first and last lines, and long ones of those. whole: the file that has all of it."""
    found = text.split("\n")
    shown = [_cut(line) for line in found]
    if len(found) > lines + 2:
        last = lines // 3
        shown = [*shown[: lines - last], f"… {len(found) - lines} more lines", *shown[-last:]]
    if shown != found and whole is not None:
        shown.append(f"… all of it: {whole}")
    return "\n".join(shown)


def _cut(line: str) -> str:
    if len(line) <= _LINE + _ROOM:
        return line
    return f"{line[:_LINE]}… ({len(line) - _LINE} more characters)"


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
