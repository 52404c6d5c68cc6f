"""How the samples of a micro-batch become a batch in trainrun's own loaders."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

from torch.utils.data import Subset, default_collate

from trainrun.errors import TaskError, TrainingError, message_of
from trainrun.plugin.detached import Detached


class Collate:
    """Make batches of one split by the hook `collate`, the dataset's `collate_fn` or torch's `default_collate`.

    It is called in the process that loads the samples: one of the loader's processes if there are any.
    """

    def __init__(self, split: str, dataset: Any) -> None:
        self._split = split
        self._function = _function_of(dataset)
        self.hook: Detached | None = None

    def __call__(self, samples: list[Any]) -> Any:
        if self.hook is None:
            return self._by_default(samples)
        return self.hook(lambda: self._by_default(samples), samples=samples, split=self._split)

    def _by_default(self, samples: list[Any]) -> Any:
        if self._function is not None:
            return self._function(samples)
        try:
            return default_collate(samples)
        except Exception as error:
            raise TrainingError(
                f"these {len(samples)} samples do not make a batch: {error}; to pad, pack or list what differs between"
                " samples, implement the hook `collate`, or give the dataset a `collate_fn`"
            ) from error


def bind_collate(loader: Any, hook: Detached) -> bool:
    """Have a loader ask `hook` first for its batches.

    Returns False if the loader is not trainrun's own. Raises TrainingError if the hook cannot be sent to the loader's
    processes.
    """
    inner = getattr(loader, "loader", loader)
    places = (getattr(inner, "collate_fn", None), getattr(getattr(inner, "dataset", None), "collate", None))
    collate = next((one for one in places if isinstance(one, Collate)), None)
    if collate is None:
        return False
    collate.hook = hook
    context = inner.multiprocessing_context
    method = multiprocessing.get_start_method() if context is None else context.get_start_method()
    if inner.num_workers and method != "fork":
        _require_pickle(hook, method)
    return True


def _require_pickle(hook: Detached, method: str) -> None:
    try:
        pickle.dumps(hook)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TaskError(
            f"the hook `collate` cannot be sent to the loader's processes, which are started by {method!r}: {error};"
            " let its plugin be a module, or a class whose instances can be pickled, or set data.workers = 0"
        ) from error


def unequal(loader: Any, error: Exception) -> str:
    """Explain what to do about samples of different shapes.

    Returns an empty string if they did not make the custom loader fail.
    """
    if getattr(loader, "collate_fn", None) is not default_collate or "equal size" not in message_of(error):
        return ""
    return (
        "; give the DataLoader a collate_fn that pads or packs samples of different shapes, or let trainrun make the"
        " loader and implement the hook `collate`"
    )


def _function_of(dataset: Any) -> Callable[[list[Any]], Any] | None:
    function = getattr(dataset, "collate_fn", None)
    if function is None and isinstance(dataset, Subset):
        return _function_of(dataset.dataset)
    return function if callable(function) else None
