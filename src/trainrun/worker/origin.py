"""Whether an exception comes from the code or from a machine that failed: only the latter may pass by itself."""

from __future__ import annotations

import re

import torch
from torch import distributed

from trainrun.rundir.records import ErrorOrigin
from trainrun.worker.data.failure import LoadingError

# torch raises these by class: no memory, a failed GPU, and the errors of NCCL, the store and the network.
_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, distributed.DistError)

# What a loader's process raised is an exception of a class made here, with the name of the one that it was there.
_IN_A_LOADER = frozenset({"MemoryError", "OutOfMemoryError"})

# And these as plain RuntimeErrors, which only their texts distinguish: gloo names its own source file, and so does
# NCCL; a loader process that was killed is named by DataLoader.
_TEXTS = re.compile(
    r"/gloo/|\bNCCL error\b|\bCUDA error: "
    r"|\bDataLoader worker \(pid\S* [^)]*\) (?:is killed by signal|exited unexpectedly)"
)


def origin(error: BaseException) -> ErrorOrigin:
    """Classify an error as one of the "machine" or of the "code".

    "machine" if `error`, or what it was raised from, is a failure of memory, GPU, network or another process. Every
    other exception of Python code is "code": a second attempt from the same checkpoint computes the same and raises it
    again.
    """
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, LoadingError) and type(found).__name__ in _IN_A_LOADER:
            return "machine"
        if isinstance(found, _MACHINE) or (isinstance(found, RuntimeError) and _TEXTS.search(str(found))):
            return "machine"
        found = found.__cause__
    return "code"
