"""Aligned plain text, for answers that must be quick: rich takes longer to import than they take."""

from __future__ import annotations

from collections.abc import Sequence

from trainrun.printing import inline, shorten


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """The rows as lines, each column as wide as its longest cell; the last one is not padded.

    Cells are cut and escaped here, so that they are as wide as they look.
    """
    rows = [[inline(shorten(cell)) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
