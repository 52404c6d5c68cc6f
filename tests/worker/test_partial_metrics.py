"""Metrics that only some ranks log are combined over those, and one warning names them and the ranks."""

from __future__ import annotations

from typing import Any

from trainrun import hookimpl
from trainrun.rundir.files import read_lines
from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 4, batch_size = 16, log_every = 1 }
evaluate = { every = 2 }
"""


class Partial:
    """Logs names on some ranks only: in training, in an evaluation, and in a way that is allowed."""

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        if run.world.rank == 1:
            run.log("train/odd", 3.0)
        if run.world.rank == 0:
            run.log("train/known", 1.0, reduce="zero")
        run.log("train/both", run.world.rank)

    @hookimpl
    def on_evaluation_end(self, run: Any) -> None:
        if run.world.rank == 0:
            run.log("eval/first", 2.0)


def test_one_warning_names_metric_and_ranks(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE, Partial)
    assert result.outcome.state == "finished"
    assert result.series("train/odd") == dict.fromkeys([2, 3, 4], 3.0)  # what a step's end logs is in the next log
    assert result.series("train/both") == dict.fromkeys([2, 3, 4], 0.5)
    events = read_lines(result.paths.events)[0]
    said = [event["reason"] for event in events if event["event"] == "warning"]
    odd = [text for text in said if "train/odd" in text]
    assert odd == [
        "the metric 'train/odd' came from rank 1 only, and the others are left out of the value; log the same names on"
        ' all ranks, or use reduce="zero" for what only rank 0 knows'
    ]
    assert len([text for text in said if "'eval/first' came from rank 0 only" in text]) == 1
    assert not [text for text in said if "train/known" in text or "train/both" in text]
