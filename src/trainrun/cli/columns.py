"""Aligned plain text, for commands that must be quick: importing rich takes longer than they take."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from trainrun.printing import inline, shorten


def columns(rows: Sequence[Sequence[str]], indent: str = "", width: int | None = None) -> list[str]:
    """Return the rows as lines.

    Each column is as wide as its longest cell. The last column is not padded. Cells are cut and escaped here, so that
    they are as wide as they look.

    width: that of the terminal, to which lines are cut; None leaves them whole.
    """
    rows = [[inline(shorten(cell)) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        indent + "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return lines if width is None else [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is.

    None if it is no terminal: then lines may have any length.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
