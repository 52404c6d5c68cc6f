"""What people read in a repository of the hub: the model card that it opens with, and how a run has ended."""

from __future__ import annotations

from collections.abc import Iterator

from trainrun import __version__
from trainrun.tracking import Ending, RunFacts


def card(facts: RunFacts, weights: str | None) -> str:
    """Return the text of `README.md`, for a repository that has none.

    It says nothing that the next run would make untrue. weights: the name of their file, if there is one.
    """
    return "\n".join(_lines(facts, weights)) + "\n"


def message(facts: RunFacts, ending: Ending) -> tuple[str, str]:
    """Return title and text of the commit.

    They give the run, how it ended, and the last value of each metric.
    """
    values = [f"{name}: {value:.6g}" for name, value in sorted(ending.metrics.items())]
    return f"{facts.id}: {ending.state} at step {ending.step}", "\n".join([ending.reason, "", *values])


def _lines(facts: RunFacts, weights: str | None) -> Iterator[str]:
    yield from ("---", "library_name: trainrun", "tags:", "- trainrun", "---", "", f"# {facts.name}", "")
    yield f"Trained with trainrun {__version__}. Each commit names its run, with the last values of its metrics."
    if weights is not None:
        yield from ("", "```python", "from safetensors.torch import load_file", "")
        yield from (f'weights = load_file("{weights}")', "```")
