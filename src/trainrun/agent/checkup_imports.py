"""Import torch, and then one by one what the fork server imports, watching what each module leaves in the process.

Run by `trainrun.doctor` in a process of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainrun.doctor.finding import Context, Finding, Verdict, reason, skipped
from trainrun.doctor.packages import release
from trainrun.launch.preflight import count_gpus
from trainrun.plugin.targets import see_working_folder

# What `trainrun.agent.forked` has the fork server import, in the same order, and itself for what is missing here.
PRELOADED = (
    "torch._dynamo",
    "torch.distributed.elastic.multiprocessing",
    "trainrun.worker.main",
    "trainrun.agent.forked",
)
OLDEST_TORCH = (2, 10)

_SLOW = 20.0  # seconds
_OWN = 'set launch.start = "cold"'
_ASKED = "take it out of launch.preload, so that each worker imports it itself"
_SELF = Path("/proc/self")
_DRIVER = Path("/proc/driver/nvidia/version")


class Footprint(NamedTuple):
    """What a fork would take along or lose: threads by id, names of Python's own, listening sockets, CUDA."""

    threads: frozenset[int]
    names: Mapping[int, str]
    listening: frozenset[str]
    cuda: bool

    @classmethod
    def now(cls) -> Footprint:
        """Return the footprint of this process."""
        threads = frozenset(int(entry.name) for entry in (_SELF / "task").iterdir())
        names = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id is not None}
        return cls(threads, names, _own_sockets() & _all_listening(), _used_cuda())


def check(context: Context) -> Iterator[Finding]:
    """Check torch itself, what is preloaded, and only then the devices.

    To ask for the devices already touches CUDA.
    """
    context.doing("importing torch")
    before, begun = Footprint.now(), time.perf_counter()
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        yield from _no_torch(error)
        return
    yield torch_itself(torch, time.perf_counter() - begun)
    if context.settings.start == "cold":
        yield skipped("fork safety", 'not applicable: launch.start is "cold"')
    else:
        yield _fork_safety(context, before)
    yield devices(torch, context)


def _no_torch(error: Exception) -> Iterator[Finding]:
    verdict = Verdict("torch")
    verdict.fail(f"it cannot be imported: {reason(error)}", "install torch again: https://pytorch.org/get-started")
    yield verdict.finding()
    yield skipped("fork safety", "not examined, because torch failed")
    yield skipped("devices", "not examined, because torch failed")


def torch_itself(torch: Any, seconds: float) -> Finding:
    """Report version and build of torch.

    seconds: how long it took to import it.
    """
    verdict = Verdict("torch")
    version = str(torch.__version__)
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    verdict.say(f"{version}, {build} build, imported in {seconds:.1f} s")
    if release(version)[:2] < OLDEST_TORCH:
        verdict.fail("it is too old", f"pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'")
    if seconds > _SLOW:
        verdict.warn("that is slow", "install it on a local disk; network file systems are slow with many files")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        verdict.fail("it was built without gloo, which workers need to communicate", "install an official build")
    return verdict.finding(version=version, build=build, import_seconds=round(seconds, 3))


def _fork_safety(context: Context, before: Footprint) -> Finding:
    """Import what the fork server imports.

    before: what this process was like before it imported torch.
    """
    verdict = Verdict("fork safety")
    judge(verdict, "torch", before, Footprint.now(), _OWN)
    for name in PRELOADED:
        context.doing(f"importing {name}")
        _import(verdict, name, _OWN)
    sys.path[:0] = context.settings.preload_path  # as the fork server does it
    if context.settings.preload:
        see_working_folder()
    for name in context.settings.preload:
        context.doing(f"importing {name} of launch.preload")
        _import(verdict, name, _ASKED)
    modules = ["torch", *PRELOADED, *context.settings.preload]
    finding = verdict.finding(modules=modules)
    if finding.status != "ok":
        return finding
    return finding._replace(finding=f"{len(modules)} preloaded modules start no thread and touch no device")


def _import(verdict: Verdict, name: str, advice: str) -> None:
    before = Footprint.now()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        verdict.fail(f"{name} cannot be imported: {reason(error)}", f"repair it, or {advice}")
    judge(verdict, name, before, Footprint.now(), advice)


def judge(verdict: Verdict, name: str, before: Footprint, after: Footprint, out: str) -> None:
    """Report what the import of `name` did that forbids a fork.

    out: the way out.
    """
    new = after.threads - before.threads
    python = sorted(after.names[thread] for thread in new if thread in after.names)
    native = len(new) - len(python)
    if after.cuda and not before.cuda:
        verdict.fail(f"{name} uses CUDA when it is imported, and that cannot be forked", out)
    if python:
        verdict.fail(f"{name} starts a thread when it is imported ({', '.join(python)}), which workers would lack", out)
    if native > 0:
        verdict.fail(f"{name} starts {native} native threads when it is imported, which workers would lack", out)
    if after.listening - before.listening:
        verdict.fail(f"{name} opens a listening socket when it is imported, which all workers would share", out)


def devices(torch: Any, context: Context) -> Finding:
    """Ask torch for its GPUs, and compute something on each."""
    context.doing("asking for GPUs")
    verdict = Verdict("devices")
    present, shown = count_gpus(environment={}), os.environ.get("CUDA_VISIBLE_DEVICES")
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(usable)]
    verdict.say(
        f"{usable} GPUs: {', '.join(dict.fromkeys(names))}" if usable else "no GPU, so workers train on the CPU"
    )
    if driver := _driver():
        verdict.say(f"driver {driver}")
    if shown is not None:
        verdict.say(f"CUDA_VISIBLE_DEVICES={shown}")
    if present and not usable and (shown is None or count_gpus() > 0):
        _judge_unused(verdict, torch, present)
    for index in range(usable):
        context.doing(f"computing on GPU {index}")
        _try_device(verdict, torch, index)
    if context.settings.device == "cuda" and not usable:
        verdict.fail("the recipe asks for CUDA", 'set train.device = "auto" or "cpu"')
    return verdict.finding(gpus=names, driver=driver, visible=shown, settings={"gpus": usable})


def _judge_unused(verdict: Verdict, torch: Any, present: int) -> None:
    if torch.version.cuda is None:
        hint = "install a CUDA build of torch: https://pytorch.org/get-started"
        verdict.warn(f"{present} are there, which this build of torch cannot use", hint)
    else:
        hint = (
            f"compare with nvidia-smi; CUDA {torch.version.cuda} may need a newer driver, or the container its devices"
        )
        verdict.fail(f"{present} are there, and torch cannot use them", hint)


def _try_device(verdict: Verdict, torch: Any, index: int) -> None:
    try:
        total = torch.ones(1024, device=f"cuda:{index}").sum().item()
        free, all_of_it = torch.cuda.mem_get_info(index)
    except Exception as error:
        verdict.fail(f"GPU {index} does not compute: {reason(error)}", "check it with nvidia-smi and dmesg")
        return
    if total != 1024:
        verdict.fail(f"GPU {index} computes wrongly: 1024 ones are {total:g}", "have it replaced")
    if free < all_of_it / 2:
        verdict.warn(f"GPU {index} is more than half full", "stop the processes that use it; nvidia-smi lists them")


def _driver() -> str | None:
    try:
        first = _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)


def _own_sockets() -> frozenset[str]:
    found = set()
    for entry in (_SELF / "fd").iterdir():
        target = _link(entry)
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return frozenset(found)


def _all_listening() -> frozenset[str]:
    found = set()
    for table, column, state, inode in (("tcp", 3, "0A", 9), ("tcp6", 3, "0A", 9), ("unix", 3, "00010000", 6)):
        try:
            lines = (_SELF / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        rows = (line.split() for line in lines)
        found |= {row[inode] for row in rows if len(row) > inode and row[column] == state}
    return frozenset(found)


def _used_cuda() -> bool:
    """Return whether this process has used CUDA.

    It has if torch says so, or if the driver has opened the device that it opens for computing.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return True
    return any(_link(entry) == "/dev/nvidia-uvm" for entry in (_SELF / "fd").iterdir())


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""  # closed in the meantime
