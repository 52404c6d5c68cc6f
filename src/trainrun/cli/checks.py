"""What `trainrun smoke` proves of a recipe: the same update however it is cut, evaluation that changes nothing, ranks
with samples of their own. Each check ends in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from trainrun.cli import comparing
from trainrun.cli.measuring import Measured, Start, Subject, Way, measure, start_process
from trainrun.cli.twice import seen_twice
from trainrun.errors import TrainrunError

PAGE = "docs/correctness.md"
CHECKS = ("micro-batches", "ranks", "evaluation", "data")

_WHOLE, _CUT, _RANKS, _PLAIN, _EVALUATED = "whole", "micro-batches", "ranks", "plain", "evaluated"
_AGAIN, _PLAIN_AGAIN = "again", "plain-again"
_UPDATES = 3  # that are compared at least; two more follow until the ranks stop
_SLACK = 3  # steps beyond the vote to stop
_HIDDEN = (
    "weights, modes and generators that trainrun knows are as they were, so that it is something of the task's own:"
    " a generator, a counter or a loader that evaluation and training share"
)


class Line(NamedTuple):
    """How a check ended: what `trainrun smoke` prints of it."""

    status: Literal["ok", "failed", "not compared"]
    check: str
    text: str

    def __str__(self) -> str:
        where = f"; see {PAGE}#smoke-{self.check}" if self.status == "failed" else ""
        return f"{self.status}: {self.check}: {self.text}{where}"


class Sizes(NamedTuple):
    """How an update is cut. whole: samples of an update; half: of each of its two micro-batches."""

    whole: int
    half: int


def run_checks(
    subject: Subject, recipe: Mapping[str, Any], skipped: Sequence[str] = (), start: Start = start_process
) -> Iterator[Line]:
    """Train the recipe in all ways that the checks compare.

    Yields a line for each check, in their order.

    start: as in `measure`.
    """
    trial = Trial(subject, recipe, skipped, start)
    for check, made in zip(CHECKS, (trial.micro_batches, trial.ranks, trial.evaluation, trial.data), strict=True):
        if check in skipped:
            yield Line("not compared", check, "because it is left out by --skip")
        else:
            yield made()


def sizes(train: Mapping[str, Any]) -> Sizes | None:
    """Return how to cut an update; None for 1 sample.

    A worker then holds no more than in `trainrun smoke` itself. An update of the recipe is taken whole, or two of its
    micro-batches if it has some.
    """
    batch, micro = train["batch_size"], train.get("micro_batch_size")
    half = (batch if micro is None else min(batch, 2 * micro)) // 2
    return Sizes(2 * half, half) if half else None


class Trial:
    """The trainings of one recipe, made once, and what follows from them. A difference may ask for further ones."""

    def __init__(self, subject: Subject, recipe: Mapping[str, Any], skipped: Sequence[str], start: Start) -> None:
        self._subject = subject
        self._start = start
        self._recipe = recipe
        self._sizes = sizes(recipe["train"])
        self._tolerance = comparing.TOLERANCES[recipe["train"]["precision"]]
        self._splits = recipe["evaluate"]["splits"]
        self._found: dict[str, Measured] = self._measure(list(self._waves(skipped)))

    # --- the trainings ---

    def _waves(self, skipped: Sequence[str]) -> Iterator[list[Way]]:
        """Yield the trainings of one worker two at a time.

        So no more workers run than in `trainrun smoke` itself.
        """
        if self._sizes is not None and not {"micro-batches", "ranks"} <= {*skipped}:
            yield [self._still(_WHOLE, 1, self._sizes.whole), self._still(_CUT, 1, self._sizes.half)]
        if self._sizes is not None and not {"ranks", "data"} <= {*skipped}:
            yield [self._still(_RANKS, 2, self._sizes.half)]
        if self._splits and "evaluation" not in skipped:
            yield [self._moving(_PLAIN), self._moving(_EVALUATED, "evaluate.every=1")]

    def _still(self, name: str, ranks: int, micro_batch: int, *more: str) -> Way:
        assert self._sizes is not None
        batch = f"train.batch_size={self._sizes.whole}", f"train.micro_batch_size={micro_batch}"
        return Way(name, ranks, (*batch, *self._ends(_UPDATES), "plugins.smoke-measure.still=true", *more))

    def _moving(self, name: str, *more: str) -> Way:
        """Return a training as the recipe has it.

        Its updates have the same size as those of the others if it can be cut.
        """
        batch = () if self._sizes is None else (f"train.batch_size={self._sizes.whole}",)
        micro = () if self._sizes is None else (f"train.micro_batch_size={self._sizes.whole}",)
        return Way(name, 1, (*batch, *micro, *self._ends(2), "plugins.smoke-measure.watch=true", *more))

    def _ends(self, steps: int) -> tuple[str, ...]:
        """Return the overrides that end a training after these steps.

        All ranks then agree to stop, which they do two steps later, without another evaluation.
        """
        vote = f"plugins.smoke-check.steps={steps}"
        by_epochs = self._recipe["train"].get("epochs") is not None
        return (vote,) if by_epochs else (vote, f"train.steps={steps + _SLACK}")

    def _measure(self, waves: Sequence[Sequence[Way]]) -> dict[str, Measured]:
        try:
            return measure(self._subject, waves, self._start) if waves else {}
        except TrainrunError as error:
            return {way.name: Measured(problem=str(error).partition("\n")[0]) for wave in waves for way in wave}

    # --- the checks ---

    def micro_batches(self) -> Line:
        """Compare updates made whole with the same in micro-batches."""
        if self._sizes is None:
            return _single("micro-batches")
        whole, half = self._sizes
        return self._same("micro-batches", (_WHOLE, f"whole ({whole})"), (_CUT, f"in micro-batches of {half}"))

    def ranks(self) -> Line:
        """Compare updates made by one rank with the same made by two."""
        if self._sizes is None:
            return _single("ranks")
        on_two = _RANKS, f"on 2 ranks with {self._sizes.half} each"
        if problem := comparing.problems({on_two[1]: self._found[_RANKS]}):
            return Line("not compared", "ranks", problem)
        # A custom loader gives the same samples to two ranks as in two micro-batches to one, if at all.
        one = _CUT if not comparing.alike(self._found[_WHOLE], self._found[_RANKS]) else _WHOLE
        return self._same("ranks", (one, "on one"), on_two)

    def evaluation(self) -> Line:
        """Compare the step after an evaluation with the same step without one.

        They are compared bit for bit.
        """
        if not self._splits:
            return Line("not compared", "evaluation", "because evaluate.splits is empty")
        plain, evaluated = self._found[_PLAIN], self._found[_EVALUATED]
        if problem := comparing.problems({"without evaluation": plain, "with evaluation": evaluated}):
            return Line("not compared", "evaluation", problem)
        changes = dict(comparing.changes(plain, evaluated))
        unlike = next(
            (pair for pair in zip(plain.updates, evaluated.updates, strict=False) if not comparing.equal(pair)), None
        )
        if unlike is not None:
            if why := self._unrepeatable(plain):
                return Line("not compared", "evaluation", why)
            shown = comparing.shown(unlike, "without an evaluation before it", "after one")
            hint = f"an evaluation {' and '.join(changes.values())}" if changes else _HIDDEN
            return Line("failed", "evaluation", f"step {unlike[0].step}: {shown}; {hint}")
        return self._unmoved(changes, min(len(plain.updates), len(evaluated.updates)))

    @staticmethod
    def _unmoved(changes: Mapping[str, str], steps: int) -> Line:
        if kept := [words for kind, words in changes.items() if kind != "generators"]:  # which training does not use
            return Line("failed", "evaluation", f"an evaluation {' and '.join(kept)}")
        if steps < 2:
            return Line("not compared", "evaluation", "because training ends after one step")
        same = "the step after an evaluation has the same train/loss and gradient norm as without it"
        return Line("ok", "evaluation", f"{same}, and weights and modes stay")

    def data(self) -> Line:
        """Compare the samples of two ranks."""
        if self._sizes is None:
            return _single("data")
        found = self._found[_RANKS]
        if problem := comparing.problems({"on 2 ranks": found}):
            return Line("not compared", "data", problem)
        first = [update for update in found.updates if update.epoch == found.updates[0].epoch]
        samples = [update.samples for update in first if update.samples is not None]
        if len(samples) < len(first):
            return Line("not compared", "data", comparing.UNTOLD)
        status, text = seen_twice(*([name for one in samples for name in one[rank]] for rank in range(2)))
        return Line(status, "data", text)

    # --- how they compare ---

    def _same(self, check: str, one: tuple[str, str], other: tuple[str, str]) -> Line:
        first, second = self._found[one[0]], self._found[other[0]]
        if problem := comparing.problems({one[1]: first, other[1]: second}):
            return Line("not compared", check, problem)
        pairs = comparing.alike(first, second)
        if not pairs:
            return Line("not compared", check, comparing.unlike_data(first, second, (one[1], other[1])))
        off = comparing.without(second)
        for pair in pairs:
            if not comparing.close(pair, self._tolerance):
                text = comparing.shown(pair, one[1], other[1])
                why = self._chance(first, second)
                return Line("not compared", check, why) if why else Line("failed", check, text + off)
        loss, norm = pairs[0][1].loss, pairs[0][1].norm
        values = f"train/loss {comparing.figure(loss)} and gradient norm {comparing.figure(norm)}"
        count = f", in {len(pairs)} updates" if len(pairs) > 1 else ""
        return Line("ok", check, f"{values} are the same {other[1]} as {one[1]}{count}{off}")

    def _chance(self, first: Measured, second: Measured) -> str | None:
        """Return why the two need not be equal, if that is known."""
        if bound := [*first.bound, *second.bound]:
            return (
                f"because batch norm that keeps no statistics depends on how a batch is cut: {comparing.listed(bound)}"
            )
        again = self._again()
        if again.problem is not None:
            return None
        base = self._found[_WHOLE]
        for pair in zip(base.updates, again.updates, strict=False):
            if not comparing.close(pair, self._tolerance):
                shown = comparing.shown(pair, "at first", "with other random numbers")
                drawn = "random numbers that cannot be turned off, such as functional dropout or noise"
                return f"because training draws {drawn}: {shown}"
        return None

    def _again(self) -> Measured:
        if _AGAIN not in self._found and self._sizes is not None:
            seed = "plugins.smoke-measure.other_seed=true"
            self._found |= self._measure([[self._still(_AGAIN, 1, self._sizes.whole, seed)]])
        return self._found[_AGAIN]

    def _unrepeatable(self, plain: Measured) -> str | None:
        """Return why two trainings without an evaluation are not the same either.

        Returns None if they are.
        """
        again = self._measure([[self._moving(_PLAIN_AGAIN)]])[_PLAIN_AGAIN]
        for pair in zip(plain.updates, again.updates, strict=False):
            if not comparing.equal(pair):
                shown = comparing.shown(pair, "at first", "in a second training")
                return f"because training is not the same twice without it: step {pair[0].step}: {shown}"
        return None


def _single(check: str) -> Line:
    return Line("not compared", check, "because an update of 1 sample (train.batch_size) cannot be cut")
