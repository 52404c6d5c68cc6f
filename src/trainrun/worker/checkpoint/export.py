"""`python -m trainrun.worker.checkpoint.export CHECKPOINT OUT`: a checkpoint's weights as one file of safetensors.

A process of its own, because the command line does not import torch. It ends with trainrun's exit codes, and says on
stderr why.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainrun.checkpoint import read_manifest, sync
from trainrun.errors import BadCheckpoint, EnvironmentProblem, ExitCode, TrainrunError, UsageError
from trainrun.worker.checkpoint import safetensors
from trainrun.worker.checkpoint.examine import weights_of
from trainrun.worker.checkpoint.finite import describe
from trainrun.worker.checkpoint.reader import read_tensors

PREFIX = "model/"

_NO_LINKS = {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


def export(checkpoint: Path, out: Path, *, force: bool = False) -> int:
    """Write the model's tensors in `checkpoint` to `out`; return their number.

    The file appears whole or not at all.

    force: replace an existing file. Raises UsageError if there is one, BadCheckpoint if the weights cannot be read or
    are not finite, and EnvironmentProblem if the file cannot be written.
    """
    manifest = read_manifest(checkpoint)
    tensors = read_tensors(checkpoint, PREFIX)
    if not tensors:
        raise BadCheckpoint(f"{checkpoint}: it holds no weights of a model")
    if not manifest.finite and (found := weights_of(checkpoint, tensors)):
        raise BadCheckpoint(f"{checkpoint}: its weights are not finite: {describe(found)}; export an older step")
    notes = {"format": "pt", "run": manifest.run, "step": str(manifest.step)}
    scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with scratch.open("xb") as file:
            safetensors.write(file, tensors, notes)
            file.flush()
            os.fsync(file.fileno())
        _put(scratch, out, force=force)
    except OSError as error:
        raise EnvironmentProblem(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()
    return len(tensors)


def _put(scratch: Path, out: Path, *, force: bool) -> None:
    if force or not _linked(scratch, out):
        scratch.replace(out)
    sync(out.parent)


def _linked(scratch: Path, out: Path) -> bool:
    """Return whether the file got its name by a link.

    A link fails if the name is taken; not every file system has links.
    """
    try:
        os.link(scratch, out)
    except OSError as error:
        if os.path.lexists(out):
            raise UsageError(f"{out}: the file exists; --force overwrites it") from None
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Run the process; return its exit code."""
    checkpoint, out, *options = arguments
    try:
        export(Path(checkpoint), Path(out), force="--force" in options)
    except TrainrunError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
