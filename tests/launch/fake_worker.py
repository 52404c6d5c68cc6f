"""Stands in for torchrun and its workers, without torch: `fake_worker.py RUN_DIR ATTEMPT WORKERS`.

The environment variable FAKE maps a rank to what it does, as JSON; ranks that it leaves out finish. Like torchrun's
agent, this one gives the peers of a failed worker all the time in the world.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from trainrun.rundir import RunPaths, WorkerRecord
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.process import start_time
from trainrun.worker.parent import die_with_parent


def agent(run_dir: str, attempt: str, workers: str) -> int:
    die_with_parent()
    plan = json.loads(os.environ.get("FAKE", "{}"))
    if "agent" in plan:
        sys.stdout.write("the agent could not start anything\n")
        return int(plan["agent"])
    command = [sys.executable, __file__, run_dir, attempt, workers]
    children = [
        subprocess.Popen([*command, str(rank), plan.get(str(rank), "finish"), str(os.getpid())], start_new_session=True)
        for rank in range(int(workers))
    ]
    for rank, child in enumerate(children):
        code = child.wait()
        if code:
            sys.stdout.write(f"failed (exitcode: {code}) local_rank: {rank} (pid: {child.pid}) of binary: python\n")
            sys.stdout.flush()
    return int(any(child.returncode for child in children))


class Worker:
    def __init__(self, paths: RunPaths, attempt: int, rank: int) -> None:
        self.paths, self.attempt = paths, attempt
        pid = os.getpid()
        self.record = WorkerRecord(pid=pid, pgid=os.getpgid(0), start_time=start_time(pid) or 0, rank=rank, phase="")

    def write(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)
        write_json(self.paths.worker_record(self.attempt, self.record.rank), self.record.to_json())

    def fail(self, message: str) -> None:
        error = {
            "type": "ValueError",
            "message": message,
            "traceback": f"Traceback of rank {self.record.rank}\nValueError: {message}",
            "monotonic_ns": time.monotonic_ns(),
            "instance": None,
            "hook": None,
            "exit_code": 1,
            "origin": "machine",
        }
        self.write(phase="failed", error=error)

    def peer_phase(self, rank: int) -> str:
        try:
            return json.loads(self.paths.worker_record(self.attempt, rank).read_text())["phase"]
        except OSError:
            return ""


def work(run_dir: str, attempt: str, rank: str, deed: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    worker = Worker(RunPaths(Path(run_dir)), int(attempt), int(rank))
    if deed == "unrecorded":
        sys.exit(7)
    output = os.open(worker.paths.rank_output(int(rank)), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(output, f"\x1b[31mhello\x1b[0m from rank {rank}\n".encode())
    if rank == "0":
        status = {"state": "training", "step": 3, "steps": 10, "metrics": {"train/loss": 0.5}, "updated": time.time()}
        write_json(worker.paths.status, status)
        append_line(worker.paths.metrics, {"step": 3, "time": 0.0, "eval/accuracy": 0.9})
    worker.write(phase="training", step=3)
    verb, _, detail = deed.partition(":")
    DEEDS[verb](worker, detail, stopped)


def finish(worker: Worker, detail: str, stopped: list[int]) -> None:
    worker.write(phase="finished", step=10)


def vote(worker: Worker, detail: str, stopped: list[int]) -> None:
    worker.write(phase="finished", step=5, stop={"reason": "flat", "source": "early-stopping", "origin": "vote"})


def fail(worker: Worker, detail: str, stopped: list[int]) -> None:
    worker.fail(detail)
    os._exit(1)


def late(worker: Worker, detail: str, stopped: list[int]) -> None:
    """Fail because another rank has failed or died."""
    while worker.peer_phase(int(detail)) in {"", "training"} and not gone(worker, int(detail)):
        time.sleep(0.002)
    worker.fail("connection closed by peer")
    os._exit(1)


def leave(worker: Worker, detail: str, stopped: list[int]) -> None:
    os._exit(int(detail))


def kill(worker: Worker, detail: str, stopped: list[int]) -> None:
    os.kill(os.getpid(), int(detail))


def stray(worker: Worker, detail: str, stopped: list[int]) -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    worker.fail("left a stray behind")
    os._exit(1)


def hang(worker: Worker, detail: str, stopped: list[int]) -> None:
    while True:
        time.sleep(600)


def linger(worker: Worker, detail: str, stopped: list[int]) -> None:
    finish(worker, detail, stopped)
    hang(worker, detail, stopped)


def begun(worker: Worker, detail: str, stopped: list[int]) -> None:
    """Finish, having noted where the attempt was to start."""
    start = json.loads(worker.paths.start(worker.attempt).read_text())
    append_line(worker.paths.metrics, {"step": 0, "started from": start["checkpoint"]})
    finish(worker, detail, stopped)


def stop(worker: Worker, detail: str, stopped: list[int]) -> None:
    while not stopped:
        time.sleep(0.002)
    worker.write(phase="finished", step=4, stop={"reason": "SIGTERM received", "source": "SIGTERM", "origin": "signal"})


DEEDS = {
    "finish": finish,
    "begun": begun,
    "vote": vote,
    "raise": fail,
    "late": late,
    "exit": leave,
    "kill": kill,
    "stray": stray,
    "hang": hang,
    "linger": linger,
    "stop": stop,
}


def gone(worker: Worker, rank: int) -> bool:
    record = worker.paths.worker_record(worker.attempt, rank)
    if not record.exists():
        return False
    pid = json.loads(record.read_text())["pid"]
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or ") Z " in stat.read_text()


if __name__ == "__main__":
    run_dir, attempt, workers, *rest = sys.argv[1:]
    if rest:
        die_with_parent(int(rest[2]))
        work(run_dir, attempt, rest[0], rest[1])
    else:
        sys.exit(agent(run_dir, attempt, workers))
