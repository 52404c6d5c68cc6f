"""The workers of all nodes as one: those of this machine, and what the other nodes report of theirs."""

from __future__ import annotations

import time
from typing import Protocol

from trainrun.launch.ends import End, write_ends
from trainrun.launch.handle import Launch
from trainrun.launch.nodes.hub import Hub, Peer
from trainrun.launch.nodes.messages import Attempt, Kill, Nudge, Stop, fit

_EVIDENCE = 0.5  # seconds after a failure here for the loss of a node to be known, which may be what it came from
_LINGER = 30.0  # seconds between the ends of the first and the last node's workers, when all goes well
_KILLED = 25.0  # seconds for the other nodes to report that their workers are gone
_LOOK = 0.02


class OwnWorkers(Protocol):
    """The workers of this node."""

    @property
    def ends(self) -> dict[int, End]:
        """Return how those of them ended that ended without a request."""

    @property
    def port(self) -> int | None:
        """Return the port of this attempt's store; None until it listens."""

    def poll(self) -> int | None:
        """See `WorkersHandle.poll`."""

    def stop(self, reason: str) -> None:
        """See `WorkersHandle.stop`."""

    def nudge(self) -> None:
        """See `WorkersHandle.nudge`."""

    def kill(self) -> None:
        """See `WorkersHandle.kill`."""


class SpreadWorkers:
    """A `WorkersHandle` on node 0 for the workers of all nodes in one attempt.

    A failure on one node ends the attempt on all of them at once. `lost` says which node was lost, if one was. `clocks`
    is what to add to the monotonic times of each rank to compare them with those of node 0.
    """

    def __init__(self, own: OwnWorkers, hub: Hub, launch: Launch) -> None:
        self.lost: str | None = None
        self._own = own
        self._hub = hub
        self._launch = launch
        # A node that is lost and comes back has another connection: for this attempt it stays lost.
        self._peers = hub.peers
        self._begun = False
        self._killed = False
        self._code: int | None = None
        self._first_end: float | None = None

    @property
    def clocks(self) -> dict[int, int]:
        """Return nanoseconds by rank; ranks of node 0 need none."""
        workers = self._launch.workers
        return {
            rank: peer.channel.offset_ns
            for peer in self._peers
            for rank in range(peer.node * workers, (peer.node + 1) * workers)
        }

    def poll(self) -> int | None:
        """Return None while all is well.

        Otherwise ends all nodes' workers and returns the exit code.
        """
        self._begin()
        if self._code is None:
            self._code = self._own.poll()
        reports = self._hub.ended(self._launch.attempt)
        if self._code or any(reports.values()):
            self._await_loss()
        if self._note_loss() or self._code or any(reports.values()):
            self.kill()
            self._write_ends()
            return self._code or next((code for code in reports.values() if code), 1)
        if self._code is not None and not self._waited_for():
            self._write_ends()
            return 0
        return self._too_far_apart(bool(reports) or self._code is not None)

    def stop(self, reason: str) -> None:
        """Ask the workers of all nodes for an orderly end."""
        self._own.stop(reason)
        self._hub.tell(Stop(attempt=self._launch.attempt, reason=fit(reason)))

    def nudge(self) -> None:
        """Have the workers of all nodes look at the attempt's requests."""
        self._own.nudge()
        self._hub.tell(Nudge(attempt=self._launch.attempt))

    def kill(self) -> None:
        """End everything on all nodes that can be reached.

        The others do so by themselves when they notice.
        """
        if not self._killed:
            self._hub.tell(Kill(attempt=self._launch.attempt))
        self._own.kill()
        deadline = time.monotonic() + _KILLED
        while not self._killed and self._begun and self._waited_for() and time.monotonic() < deadline:
            time.sleep(_LOOK)
        self._killed = True

    def _begin(self) -> None:
        """Send the other nodes the address of the store.

        Does nothing before there is one.
        """
        if not self._begun and self._own.port is not None:
            store = self._hub.where._replace(port=self._own.port)
            self._hub.tell(Attempt(attempt=self._launch.attempt, host=store.host, port=store.port))
            self._begun = True

    def _waited_for(self) -> list[Peer]:
        """Return the connected nodes that have not reported their workers' end."""
        reports = self._hub.ended(self._launch.attempt)
        return [peer for peer in self._peers if peer.node not in reports and peer.channel.lost is None]

    def _note_loss(self) -> bool:
        reports = self._hub.ended(self._launch.attempt)
        for peer in self._peers:
            if self.lost is None and peer.node not in reports and peer.channel.lost is not None:
                self.lost = f"{peer} was lost: {peer.channel.lost}"
        return self.lost is not None

    def _await_loss(self) -> None:
        """Wait for the loss of a node.

        Workers fail when their peers vanish with a node, and may do so before the loss is noticed here.
        """
        deadline = time.monotonic() + _EVIDENCE
        while not self._note_loss() and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def _too_far_apart(self, some_ended: bool) -> int | None:
        """End what still runs although workers elsewhere have finished long ago.

        Returns None before that.
        """
        if not some_ended:
            return None
        self._first_end = self._first_end or time.monotonic()
        if time.monotonic() - self._first_end < _LINGER:
            return None
        self.kill()
        self._write_ends()
        return 0  # whether all have finished is in their records

    def _write_ends(self) -> None:
        ends = dict(self._own.ends)
        for peer in self._peers:
            own = range(peer.node * self._launch.workers, (peer.node + 1) * self._launch.workers)
            for end in self._hub.ends(self._launch.attempt, peer.node):
                if end.rank not in own:
                    continue
                seen = end.seen_ns + peer.channel.offset_ns if end.seen_ns else 0
                ends[end.rank] = End(end.rank, end.code, seen)
        write_ends(self._launch.paths, self._launch.attempt, ends)
