"""Keep what a failing rank still has: its weights, its optimizer, and an honest account of them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainrun import Duration, Field, PluginOptions, hookimpl

if TYPE_CHECKING:
    from trainrun import Run

FOLDER = "failures"


class ExceptionCheckpointOptions(PluginOptions):
    """What is written, for how long, and how much of it is kept."""

    optimizer: bool = Field(True, description="Also write the optimizer state.")
    keep: int = Field(
        2,
        ge=1,
        description="Number of attempts whose folders to keep; the newest one with finite weights is always kept.",
    )
    patience: Duration = Field(60.0, description="Time limit for writing; after it the process exits.")


class ExceptionCheckpoint:
    """When a rank fails, write its state to `failures/attempt-N-rank-R` in the run directory.

    It does not communicate with other ranks, which may be gone. The result is not a checkpoint: `report.json` gives the
    step, whether the update may be incomplete, and what is missing. A folder is complete or does not exist. An error
    of this plugin does not hide why training failed.
    """

    Options = ExceptionCheckpointOptions
    on_error = "warn"

    def __init__(self, options: ExceptionCheckpointOptions) -> None:
        self._options = options
        self._updating = False  # the optimizer was called, and has not returned
        self._updated = 0  # the last step whose update is complete

    @hookimpl
    def on_resume(self, run: Run) -> None:
        self._updated = run.step

    @hookimpl(ranks="zero")
    def on_train_start(self, run: Run) -> None:
        """Remove what ranks of earlier attempts were writing when they were killed."""
        for path in (run.paths.root / FOLDER).glob(".attempt-*.tmp"):
            # Another rank may have failed already in this attempt, and be writing.
            if _attempt(path) < run.attempt:
                shutil.rmtree(path, ignore_errors=True)

    @hookimpl(trylast=True)
    def on_gradients_clipped(self) -> None:
        self._updating = True

    @hookimpl(tryfirst=True)
    def on_update_end(self, run: Run) -> None:
        self._updating, self._updated = False, run.step

    @hookimpl
    def on_exception(self, run: Run, error: BaseException) -> None:
        if run.model is None or run.phase == "setup":
            return  # the weights are those that training would begin with again
        writing = _Writing(run, self._options, self._report(run, error))
        # On a thread, because a disk or a device that does not respond must not keep the process from ending.
        thread = threading.Thread(target=writing.run_all, name="exception-checkpoint", daemon=True)
        thread.start()
        thread.join(self._options.patience)
        if thread.is_alive():
            writing.given_up.set()
            writing.problem = f"it took longer than {self._options.patience:g} s"
        if writing.problem is not None:
            run.logger.warning("the state of the failing rank was not saved", reason=writing.problem)
        else:
            run.logger.info("saved the state of the failing rank", folder=str(writing.folder))

    def _report(self, run: Run, error: BaseException) -> dict[str, Any]:
        complete = self._updated == run.step
        state = "complete" if complete else "may be incomplete" if self._updating else "not begun"
        strategy = run.recipe.parallel.strategy if run.world.size > 1 else "none"
        return {
            "what": "the state of one rank when it failed; not a checkpoint: `trainrun resume` does not use it",
            "run": run.paths.run_id,
            "attempt": run.attempt,
            "rank": run.world.rank,
            "ranks": run.world.size,
            "time": time.time(),
            "step": run.step,
            "epoch": run.epoch,
            "samples_seen": run.samples_seen,
            "phase": run.phase,
            "update_of_this_step": state,
            "weights_of_step": run.step if complete else None if self._updating else run.step - 1,
            "strategy": strategy,
            "weights": "this rank's parts only" if strategy == "fsdp" else "the whole model, as this rank has it",
            "missing": [
                "the state of the other plugins",
                "the scheduler, the gradient scaler and the random generators",
                "the place in the training data",
                *(["the parts of the other ranks"] if strategy == "fsdp" else []),
                *([] if self._options.optimizer else ["the state of the optimizer"]),
            ],
            "error": "".join(traceback.format_exception_only(error)).strip(),
            "traceback": "".join(traceback.format_exception(error)),
        }


@dataclass
class _Writing:
    """One folder being written, on a thread of its own. `problem` says why there is none."""

    run: Run
    options: ExceptionCheckpointOptions
    report: dict[str, Any]
    given_up: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None

    @property
    def folder(self) -> Path:
        """The path of the complete checkpoint."""
        return self.run.paths.root / FOLDER / f"attempt-{self.run.attempt}-rank-{self.run.world.rank}"

    def run_all(self) -> None:
        """Write everything, give it its name, and remove what is too old."""
        scratch = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}.tmp")
        try:
            scratch.mkdir(mode=0o700, parents=True)
            self._fill(scratch)
            if not self.given_up.is_set():
                scratch.rename(self.folder)
                _prune(self.folder.parent, self.options.keep)
        except Exception as problem:  # for any exception here, training failed for another reason
            self.problem = f"{type(problem).__name__}: {problem}"
        finally:
            with suppress(OSError):
                shutil.rmtree(scratch)

    def _fill(self, folder: Path) -> None:
        self.run.save_weights(folder / "weights.safetensors", local=True)
        self.report["not_finite"] = _not_finite(self.run)
        if self.options.optimizer and self.run.optimizer is not None:
            _write(folder / "optimizer.pt", _plain(self.run.optimizer.state_dict()))
        text = json.dumps(self.report, indent=2) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8")


def _not_finite(run: Run) -> list[str]:
    """Return the weights and buffers that hold a NaN or an infinity.

    Only what is on this rank is searched.
    """
    assert run.module is not None
    tensors = {name: one for name, one in _plain(run.module.state_dict()).items() if isinstance(one, torch.Tensor)}
    return [name for name, one in tensors.items() if not one.isfinite().all()]


def _plain(value: Any) -> Any:
    """Return values and tensors on the host.

    Of what is spread over ranks, this rank's part is returned.
    """
    if isinstance(value, torch.Tensor):
        local = value.to_local() if hasattr(value, "to_local") else value
        return local.detach().cpu()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _write(path: Path, value: Any) -> None:
    with path.open("xb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _is_finite(folder: Path) -> bool:
    """Return whether all weights in a rank's folder are finite.

    It is read from the folder's report, as far as possible.
    """
    try:
        return not json.loads((folder / "report.json").read_text(encoding="utf-8"))["not_finite"]
    except (OSError, ValueError, KeyError):
        return False


def _attempt(folder: Path) -> int:
    """Return the attempt that a rank's folder names.

    The folder may still be being written.
    """
    return int(folder.name.split("-")[1])


def _prune(folder: Path, keep: int) -> None:
    attempts = {path: _attempt(path) for path in folder.glob("attempt-*-rank-*")}
    newest = sorted(set(attempts.values()))[-keep:]
    finite = max((attempt for path, attempt in attempts.items() if _is_finite(path)), default=None)
    for path, attempt in attempts.items():
        if attempt not in newest and attempt != finite:
            shutil.rmtree(path, ignore_errors=True)  # other ranks may remove it as well
