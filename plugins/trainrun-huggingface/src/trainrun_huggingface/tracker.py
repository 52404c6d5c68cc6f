"""A repository of the hub, which gets what a run has made at its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainrun import EnvironmentProblem
from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts
from trainrun_huggingface.card import card, message

if TYPE_CHECKING:
    from trainrun_huggingface.plugin import HuggingFaceOptions

_WEIGHTS = "model.safetensors"  # what libraries that load from the hub look for
_CARD = "README.md"


class HubTracker:
    """Sends nothing during a run. A commit leaves out what the hub has, so that a repetition does no harm."""

    whole_steps = False

    def __init__(self, options: HuggingFaceOptions, name: str) -> None:
        self._options = options
        self._scratch = f".{name}-"
        self._hub: Any = None
        self._repo = ""
        self._facts: RunFacts | None = None

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        """Log in and find the repository.

        A user who cannot upload learns of it when the run begins, not at its end.
        """
        del mark
        _settle()
        import huggingface_hub  # noqa: PLC0415 - only in the tracker's process, and only when it is used

        _limit(huggingface_hub, self._options.timeout)
        self._hub, self._facts = huggingface_hub.HfApi(library_name="trainrun"), facts
        owner = self._hub.whoami()["name"]
        repo = self._options.repo or facts.name
        self._repo = repo if "/" in repo else f"{owner}/{repo}"
        if self._options.create:
            self._hub.create_repo(self._repo, private=self._options.private, exist_ok=True)
        else:
            self._hub.model_info(self._repo)
        return Opened({"repo": self._repo})

    def send(self, records: Sequence[Record]) -> Mark:
        del records
        return {"repo": self._repo}

    def finish(self, ending: Ending) -> None:
        assert self._facts is not None
        if ending.exit_code != 0 and not self._options.unfinished:
            return
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415

        for left in self._facts.paths.trackers.glob(f"{self._scratch}*"):  # by one that was ended in the middle
            shutil.rmtree(left)
        with TemporaryDirectory(dir=self._facts.paths.trackers, prefix=self._scratch) as scratch:
            files = dict(self._files(self._facts, Path(scratch)))
            added = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            if _CARD not in files and not self._hub.file_exists(self._repo, _CARD):
                text = card(self._facts, _WEIGHTS if _WEIGHTS in files else None)
                added.append(CommitOperationAdd(_CARD, text.encode()))
            if added:
                title, text = message(self._facts, ending)
                self._hub.create_commit(self._repo, added, commit_message=title, commit_description=text)

    def close(self) -> None:
        self._hub = None

    # --- what is sent ---

    def _files(self, facts: RunFacts, scratch: Path) -> Iterator[tuple[str, Path]]:
        """Yield names in the repository, and the files that go there."""
        for path in facts.files(self._options.artifacts):
            yield path.relative_to(facts.paths.root).as_posix(), path
        if self._options.code:
            source = facts.paths.source
            yield from ((f"source/{one.relative_to(source).as_posix()}", one) for one in _plain(source))
        if self._options.weights != "none":
            yield _WEIGHTS, self._weights(facts, scratch)

    def _weights(self, facts: RunFacts, scratch: Path) -> Path:
        """Return the weights as one file.

        They are those that a link leads to, otherwise those of a checkpoint, exported into `scratch`.
        """
        wanted, step = self._options.weights, []
        if wanted != "newest":
            ready = facts.paths.root / "weights" / f"{wanted}.safetensors"
            if ready.exists():
                return ready.resolve()
            link = facts.paths.checkpoints / wanted
            if not link.exists():
                raise EnvironmentProblem(f"weights = {wanted!r}: there is neither {link} nor {ready}")
            step = ["--step", link.resolve().name.rpartition("-")[2]]
        out = scratch / _WEIGHTS
        command = [sys.executable, "-m", "trainrun", "checkpoints", str(facts.paths.root), "--export", str(out), *step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EnvironmentProblem(f"no weights to upload: {done.stderr.strip() or done.stdout.strip()}")
        return out


def _plain(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _settle() -> None:
    """Have its package write nothing outside the run directory.

    It also asks for nothing, and shows no bars in the log.
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # it would keep logs and a cache in the home folder
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")


def _limit(package: Any, timeout: float) -> None:
    """Give its requests a limit.

    Without one a server that takes a connection and is silent would be waited for.
    """
    session = package.get_session()
    hooks, client = session.event_hooks, type(session)
    package.set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=timeout))
