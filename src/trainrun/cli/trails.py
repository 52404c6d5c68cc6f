"""What two trainings logged, step by step, compared: batches, random numbers, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainrun.rundir.files import read_json, read_lines
from trainrun.rundir.paths import RunPaths

FOLDER = "trail"

_ABSENT = "not there"
_TIMES = ("seconds", "per_second")  # in the names of metrics that are never the same twice

Record = Mapping[str, Any]
Steps = Mapping[int, Record]  # the record of each step


class First(NamedTuple):
    """The first difference of two trainings.

    step and rank are None if it is not of one step or one rank.
    """

    name: str
    values: tuple[str, str]
    rank: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        where = [
            f"step {self.step}" if self.step is not None else "",
            f"rank {self.rank}" if self.rank is not None else "",
        ]
        place = ", ".join(filter(None, [self.name, *where]))
        return f"{place}: {self.values[0]} straight, {self.values[1]} resumed"


class Verdict(NamedTuple):
    """A component, and how it differs first; None if it is equal."""

    name: str
    first: First | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "equal": self.first is None, "first": self.first and self.first._asdict()}


def trail(run: Path) -> list[Steps]:
    """Return the records of the steps of each rank.

    Of a step that was made twice, the record is that of the later attempt.
    """
    files = sorted((run / FOLDER).glob("rank-*.jsonl"), key=lambda file: int(file.stem.removeprefix("rank-")))
    return [{int(record["step"]): record for record in read_lines(file)[0]} for file in files]


def compare(a: Path, b: Path) -> list[Verdict]:
    """Compare what two runs logged.

    The results are in the order in which one leads to another within a step.
    """
    ones, twos = trail(a), trail(b)
    found = [Verdict("batches", _first(ones, twos, _batches)), Verdict("rng", _first(ones, twos, _rng))]
    losses = _first(ones, twos, _losses) or _logged(a, b)
    return [*found, Verdict("losses", losses)]


def optimizers(a: Path, b: Path) -> list[Verdict]:
    """Compare the optimizers that are not the runs' own.

    Each result has the name of the object that holds the optimizer.
    """
    ones, twos = _held(a), _held(b)
    found: dict[str, First | None] = {}
    for rank, name in dict.fromkeys([*ones, *twos]):
        one, two = (_contents(side.get((rank, name))) for side in (ones, twos))
        found[name] = found.get(name) or (None if one == two else First("state", (one, two), rank))
    return [Verdict(f"optimizer of {name}", first) for name, first in found.items()]


def not_compared(*runs: Path) -> list[str]:
    """Return what these optimizers hold that has no contents to compare."""
    every = [(name, place) for run in runs for (_, name), one in _held(run).items() for place in one["opaque"]]
    return [f"{name}: {place}" for name, place in dict.fromkeys(every)]


def _held(run: Path) -> dict[tuple[int, str], Record]:
    files = {int(path.stem.removeprefix("optimizers-")): path for path in (run / FOLDER).glob("optimizers-*.json")}
    return {(rank, name): one for rank, path in sorted(files.items()) for name, one in (read_json(path) or {}).items()}


def _contents(held: Record | None) -> str:
    return _ABSENT if held is None else f"{held['kind']} {held['digest']}"


def joined(logged: Sequence[Verdict], saved: Sequence[Verdict]) -> list[Verdict]:
    """Return one result for each component.

    Of two, the difference that was logged is kept.
    """
    known = {verdict.name: verdict for verdict in logged}
    both = {one.name: Verdict(one.name, known[one.name].first or one.first) for one in saved if one.name in known}
    return [both.get(one.name, one) for one in logged] + [one for one in saved if one.name not in known]


def unlike(a: Path, b: Path) -> list[str]:
    """Return the names of logged metrics that differ outside of the result.

    They are no part of it: plugins may log what they like.
    """
    ones, twos = (_metrics(run, counted=False) for run in (a, b))
    return sorted({name for step in ones.keys() & twos.keys() for name, _, _ in _pairs(ones[step], twos[step])})


def blame(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the result that explains most: that of the earliest step.

    If none is of a step, return the first that is not equal.
    """
    wrong = [verdict for verdict in verdicts if verdict.first is not None]
    stepped = [verdict for verdict in wrong if verdict.first is not None and verdict.first.step is not None]
    return min(stepped, key=_step) if stepped else next(iter(wrong), None)


def _step(verdict: Verdict) -> int:
    return verdict.first.step if verdict.first is not None and verdict.first.step is not None else 0


def _first(
    ones: Sequence[Steps], twos: Sequence[Steps], pairs: Callable[[Record, Record], Iterator[tuple[str, str, str]]]
) -> First | None:
    if len(ones) != len(twos):
        return First("ranks", (str(len(ones)), str(len(twos))))
    for step in sorted({step for rank in (*ones, *twos) for step in rank}):
        for rank, (one, two) in enumerate(zip(ones, twos, strict=True)):
            if step not in one or step not in two:
                return First("step", (_there(step in one), _there(step in two)), rank, step)
            for name, a, b in pairs(one[step], two[step]):
                return First(name, (a, b), rank, step)
    return None


def _there(found: bool) -> str:
    return "made" if found else "not made"


def _batches(one: Record, two: Record) -> Iterator[tuple[str, str, str]]:
    return _listed("micro-batch", one["batches"], two["batches"])


def _losses(one: Record, two: Record) -> Iterator[tuple[str, str, str]]:
    return _listed("loss of micro-batch", one["losses"], two["losses"])


def _rng(one: Record, two: Record) -> Iterator[tuple[str, str, str]]:
    return _pairs(one["rng"], two["rng"], "generator of ")


def _listed(what: str, one: Sequence[Any], two: Sequence[Any]) -> Iterator[tuple[str, str, str]]:
    return _pairs(dict(enumerate(one)), dict(enumerate(two)), f"{what} ")


def _pairs(one: Mapping[Any, Any], two: Mapping[Any, Any], what: str = "") -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*one, *two]):
        a, b = one.get(name, _ABSENT), two.get(name, _ABSENT)
        if a != b:
            yield f"{what}{name}", str(a), str(b)


def _logged(a: Path, b: Path) -> First | None:
    """Return the first of the logged losses that differs.

    Those of evaluations are among them.
    """
    ones, twos = (_metrics(run, counted=True) for run in (a, b))
    for step in sorted({*ones, *twos}):
        for name, one, two in _pairs(ones.get(step, {}), twos.get(step, {})):
            return First(name, (one, two), step=step)
    return None


def _metrics(run: Path, *, counted: bool) -> dict[int, dict[str, Any]]:
    """Return by step the logged losses and norms of gradients.

    counted: if False, all others that are no times.
    """
    found: dict[int, dict[str, Any]] = {}
    for record in read_lines(RunPaths(run).metrics)[0]:
        values = {name: value for name, value in record.items() if name not in {"step", "time"}}
        chosen = {name: value for name, value in values.items() if _is_loss(name) == counted and not _is_time(name)}
        found.setdefault(int(record["step"]), {}).update(chosen)
    return found


def _is_loss(name: str) -> bool:
    return name.endswith("loss") or name == "train/grad_norm"


def _is_time(name: str) -> bool:
    return any(word in name for word in _TIMES)
