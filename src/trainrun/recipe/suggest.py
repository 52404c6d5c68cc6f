"""Did you mean …? Near words only: a far suggestion sends people the wrong way."""

from __future__ import annotations

from collections.abc import Iterable


def suggest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the likeliest candidate for a misspelt word.

    Returns None if no candidate is near. Case and the choice between ``-`` and ``_`` never count. Otherwise up to a
    third of the letters may be wrong, swapped, missing or too many; words of three letters or fewer allow one.
    """
    wanted = _plain(word)
    best: tuple[int, str] | None = None
    for candidate in candidates:
        distance = _distance(wanted, _plain(candidate))
        allowed = max(1, min(len(wanted), len(candidate)) // 3)
        if distance <= allowed and min(len(wanted), len(candidate)) > 1 and (best is None or distance < best[0]):
            best = (distance, candidate)
    return best[1] if best else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """Return the suggestion as the hint of an error message."""
    near = suggest(word, candidates)
    return f"did you mean {near!r}?" if near else None


def _plain(word: str) -> str:
    return word[:64].lower().replace("_", "-")


def _distance(left: str, right: str) -> int:
    """Return the number of edits from one word to the other.

    Two neighbouring letters swapped are one edit.
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]
