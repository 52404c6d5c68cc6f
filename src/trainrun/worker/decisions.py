"""Decisions that any rank may take and all ranks apply at the same step, without a collective of their own.

Each rank has an append-only log in memory shared by the workers of a node. A decision posted at step k is in the log
before its rank enters the gradient reduction of step k+1, and no rank leaves that reduction before all have entered it.
So at the start of step k+2 every rank sees it, and all apply it there. On CUDA the host runs ahead of the device: it
waits for the reduction of the step before last, and the lag is two steps, not one.
Between nodes there is a second hop. At the start of step k+2 the leader of another node fetches the decision, before it
enters the reduction of that step. Its node's ranks see it at the start of step k+3. So with a lag of L the delay is L+1
steps on one node and 2L+1 with several.
At the end of an evaluation and of the run a barrier settles everything posted so far at once.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainrun.rundir import Origin
from trainrun.rundir.secrets import scrub
from trainrun.worker import relay as between_nodes
from trainrun.worker.parallel import Collectives
from trainrun.worker.relay import Relay
from trainrun.worker.shared_log import SharedLog

DecisionKind = Literal["stop", "evaluate", "checkpoint", "disable", "warn", "lost", "skip", "saved", "unsaved"]

_LAG = 1  # steps until every rank has left the reduction that a rank entered after posting
_CUDA_LAG = 2


@dataclass(frozen=True)
class Decision:
    """A decision of a plugin, a signal or trainrun itself on one rank at `step`, and why.

    `origin` says what asked for it: `plugin` alone does not, because a plugin may be called like a signal. `data` holds
    the other values that all ranks must know; `reason` is for people, and is never read back.
    """

    kind: DecisionKind
    plugin: str
    hook: str
    reason: str
    rank: int = 0
    step: int = 0
    origin: Origin = "vote"
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for the same decision taken on several ranks."""
        return (self.kind, self.plugin, self.hook)


class Decisions:
    """Posting decisions from this rank, and learning which ones are due.

    log: None for a single worker. delay: after how many steps a posted decision is applied.
    barrier: waits for all ranks, on the host. relay: to and from other nodes, None if there are none.

    If `more` is false and `written` equals `read`, nothing is due: it is enough to set `step`. The loop looks itself,
    because in a training all that this touches is out of the processor's caches, and a call costs a microsecond.
    """

    def __init__(
        self,
        rank: int,
        log: SharedLog | None,
        *,
        delay: int,
        barrier: Callable[[], None],
        relay: Relay | None = None,
    ) -> None:
        self.step = 0
        self._rank = rank
        self._log = log
        self.more = relay is not None
        nowhere = memoryview(b"")
        self.written, self.read = log.counters if log else (nowhere, nowhere)
        self._delay = delay
        self._barrier = barrier
        self._relay = relay
        self._thread = threading.get_ident()
        self._elsewhere: deque[Decision] = deque()  # posted by other threads, not in the log yet
        self._pending: list[Decision] = []
        self._posted: set[tuple[str, str, str]] = set()

    def post(
        self,
        kind: DecisionKind,
        plugin: str,
        hook: str,
        reason: str,
        *,
        origin: Origin = "vote",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Post a decision from any thread.

        One that is posted already and not yet applied is not posted twice.
        """
        decision = Decision(kind, plugin, hook, scrub(reason)[:2000], self._rank, origin=origin, data=data or {})
        if threading.get_ident() == self._thread:
            self._write(decision)
        else:
            self._elsewhere.append(decision)
            self.more = True

    def due(self, step: int) -> list[Decision]:
        """Begin `step`; return the decisions to apply now.

        They are the same on all ranks and in the same order.
        """
        self.step = step
        self.more = self._relay is not None  # first: another thread may post from here on, and sets it again
        self._flush()
        if self._relay is not None:
            self._relay.fetch()
        self._absorb()
        due = self._take(step - self._delay)
        if self._pending:
            self.more = True
        return due

    def settle(self) -> list[Decision]:
        """Wait for all ranks; return everything posted so far, due or not.

        Call it on all ranks alike.
        """
        self._flush()
        self._barrier()
        if self._relay is not None:
            self._relay.fetch()
            self._barrier()  # no rank reads before the leaders have fetched
        self._absorb()
        settled = self._take(self.step)
        self._barrier()  # no rank posts anew before all have read
        return settled

    def _take(self, last: int) -> list[Decision]:
        taken = [decision for decision in self._pending if decision.step <= last]
        self._pending = [decision for decision in self._pending if decision.step > last]
        self._posted -= {decision.key for decision in taken if decision.rank == self._rank}
        return sorted(taken, key=lambda decision: (decision.step, decision.rank))

    def _flush(self) -> None:
        while self._elsewhere:
            self._write(self._elsewhere.popleft())

    def _write(self, decision: Decision) -> None:
        if decision.key in self._posted:
            return
        self._posted.add(decision.key)
        stamped = replace(decision, step=self.step)
        if self._log is None:
            self._pending.append(stamped)
            self.more = True
            return
        entry = json.dumps(asdict(stamped), ensure_ascii=False).encode(errors="replace")
        self._log.append(entry)
        if self._relay is not None:
            self._relay.send(entry, self.step)

    def _absorb(self) -> None:
        if self._log is not None and self.written != self.read:
            self._pending += [Decision(**json.loads(entry)) for entry in self._log.news()]


def open_decisions(path: Path, name: str, collectives: Collectives, *, cuda: bool) -> Decisions:
    """Return the decisions of one rank, tied to those of all others.

    Call it on all ranks alike. path: of the node's shared log, while it is being opened. name: of this attempt in the
    job's store.
    """
    world, lag = collectives.world, _CUDA_LAG if cuda else _LAG
    delay = lag + 1 if world.nodes == 1 else 2 * lag + 1
    if world.size == 1:
        return Decisions(world.rank, None, delay=delay, barrier=collectives.barrier)
    relayed = between_nodes.room(world)
    if world.local_rank == 0:
        SharedLog.create(path, world.local_size, relayed)
    collectives.barrier()
    log = SharedLog(path, world.local_rank, world.local_size, relayed)
    collectives.barrier()
    if world.local_rank == 0:
        path.unlink()  # all have it mapped; nothing is left behind, however the workers end
    relay = None
    if world.nodes > 1 and collectives.gather_objects is not None:
        # Rank 0's name: nodes whose run directories are called differently must still meet.
        store = between_nodes.connect(str(collectives.gather_objects(name)[0]))
        relay = Relay(store, log, world, delay)
    return Decisions(world.rank, log, delay=delay, barrier=collectives.barrier, relay=relay)
