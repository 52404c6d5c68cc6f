"""Every file of a run as a property of one class, so that no other module spells a file name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of one run. Nothing is created or read by asking for a path."""

    root: Path

    @property
    def run_id(self) -> str:
        """Return the run's id: the name of its folder."""
        return self.root.name

    @property
    def recipe(self) -> Path:
        """Return the resolved recipe, secrets redacted. Writer: client, once."""
        return self.root / "recipe.toml"

    @property
    def manifest(self) -> Path:
        """Return the manifest: plugins, versions, git, arguments. Writer: client, once."""
        return self.root / "manifest.json"

    @property
    def status(self) -> Path:
        """Return the file with the state of the run. Writer: rank 0."""
        return self.root / "status.json"

    @property
    def outcome(self) -> Path:
        """Return the file with the outcome of the run. Writer: client, once, last."""
        return self.root / "outcome.json"

    @property
    def events(self) -> Path:
        """Return the file of decisions, attempts and errors.

        Writer: rank 0 while workers run, the client before and after.
        """
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """Return the file of metrics, with one record a log. Writer: rank 0."""
        return self.root / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """Return the folder of all logs."""
        return self.root / "logs"

    @property
    def client_log(self) -> Path:
        """Return the client's structured log."""
        return self.logs / "client.jsonl"

    @property
    def agent_log(self) -> Path:
        """Return the file of what the agent itself prints.

        The agent is torchrun, or the warm one.
        """
        return self.logs / "agent.out"

    @property
    def client_output(self) -> Path:
        """Return the file of what plugins and their children print.

        It has what they print in the client. Writer: client, of a command line.
        """
        return self.logs / "client.out"

    def node_log(self, node: int) -> Path:
        """Return the file of what the agent of one node prints.

        That of node 0 is `agent_log`.
        """
        return self.agent_log if node == 0 else self.logs / f"agent-{node}.out"

    def rank_log(self, rank: int) -> Path:
        """Return the structured log of one worker. Writer: that worker."""
        return self.logs / f"rank-{rank}.jsonl"

    def rank_output(self, rank: int) -> Path:
        """Return the file with the raw output of one worker.

        Writer: the process that reads its pipe, or that worker if there is no pipe.
        """
        return self.logs / f"rank-{rank}.out"

    def rank_output_old(self, rank: int) -> Path:
        """Return the older raw output of one worker.

        It is what came before `rank_output`, if there was too much for one file.
        """
        return rotated(self.rank_output(rank))

    def rank_log_old(self, rank: int) -> Path:
        """Return the older structured log of one worker.

        It is what came before `rank_log`, if there was too much for one file.
        """
        return rotated(self.rank_log(rank))

    @property
    def attempts(self) -> Path:
        """Return the folder of all attempts."""
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        """Return the folder of one attempt; attempts count from 1."""
        return self.attempts / str(number)

    def start(self, attempt: int) -> Path:
        """Return the file with the start of an attempt's workers.

        The start is a checkpoint, or step 0. Writer: client, before it starts them.
        """
        return self.attempt(attempt) / "start.json"

    def worker_record(self, attempt: int, rank: int) -> Path:
        """Return the `WorkerRecord` of one worker in one attempt. Writer: that worker."""
        return self.attempt(attempt) / f"rank-{rank}.json"

    def pulse(self, attempt: int, rank: int) -> Path:
        """Return the file with the current state of one worker, in shared memory.

        Writer: that worker.
        """
        return self.attempt(attempt) / f"pulse-{rank}"

    def stacks(self, attempt: int, rank: int) -> Path:
        """Return the stacks of all threads of one worker, written when it hangs. Writer: that worker."""
        return self.attempt(attempt) / f"stacks-{rank}.txt"

    def output_pipe(self, attempt: int, rank: int) -> Path:
        """Return the named pipe that one worker prints into."""
        return self.attempt(attempt) / f"rank-{rank}.pipe"

    def requests(self, attempt: int) -> Path:
        """Return the file with the requests to the workers of an attempt.

        It has one JSON line a request. Writer: client.
        """
        return self.attempt(attempt) / "requests.jsonl"

    def decisions(self, attempt: int, node: int) -> Path:
        """Return the folder in which the ranks of one node post decisions."""
        return self.attempt(attempt) / f"decisions-{node}"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of all checkpoints."""
        return self.root / "checkpoints"

    @property
    def control(self) -> Path:
        """Return the folder of live commands."""
        return self.root / "control"

    @property
    def stop_request(self) -> Path:
        """Return the file with the request of `trainrun stop` to the client.

        Writer: that command; the client removes it.
        """
        return self.control / "stop.json"

    @property
    def trackers(self) -> Path:
        """Return the folder of what experiment trackers have been sent."""
        return self.root / "trackers"

    def tracker(self, name: str) -> Path:
        """Return the file with the progress of the tracker of that name.

        Writer: its process.
        """
        return self.trackers / f"{name}.json"

    def tracker_lock(self, name: str) -> Path:
        """Return the lock file of the tracker of that name.

        The process that sends to the tracker locks it.
        """
        return self.trackers / f"{name}.lock"

    def tracker_extra(self, name: str) -> Path:
        """Return the file of the workers' values for one tracker only.

        They are by step. Writer: rank 0.
        """
        return self.trackers / f"{name}.jsonl"

    def tracker_log(self, name: str) -> Path:
        """Return the file of what one tracker and its package print.

        Writer: its process.
        """
        return self.logs / f"tracker-{name}.out"

    @property
    def nodes_key(self) -> Path:
        """Return the file with the key of the nodes.

        By it the nodes of an active run know each other. Writer: node 0's client.
        """
        return self.root / "nodes.key"

    @property
    def source(self) -> Path:
        """Return the snapshot of the task's code. Writer: client, once."""
        return self.root / "source"

    @property
    def lease(self) -> Path:
        """Return the folder that says who owns the run.

        Writer of each record: the client that it names.
        """
        return self.root / "lease"

    def trace(self, process: str) -> Path:
        """Return the file to which `launch --trace` writes the calls of a process.

        process: "client" or "rank-N".
        """
        return self.logs / f"trace-{process}.txt"

    @property
    def crash_log(self) -> Path:
        """Return the report of a bug in trainrun, if there was one. Writer: client."""
        return self.logs / "crash.txt"


def former(path: Path, attempt: int) -> Path:
    """Return the name under which a former file of a run is kept.

    A resumed run writes the file anew: `recipe-2.toml` is the former `recipe.toml`.

    attempt: the last one that `path` belongs to.
    """
    return path.with_name(f"{path.stem}-{attempt}{path.suffix}")


def rotated(path: Path) -> Path:
    """Return the name under which a full log is kept.

    `path` begins anew then. It is `rank-0.1.out` for `rank-0.out`.
    """
    return path.with_name(f"{path.stem}.1{path.suffix}")
