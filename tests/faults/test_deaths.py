"""Workers, agents and fork servers that die: each is noticed, named, and followed by another attempt."""

from __future__ import annotations

from typing import Any

import pytest

# In one run, each at a higher step than the one before, so that every attempt has made progress.
WARM = {
    "kill:rank1@2": "rank 1 was killed by SIGKILL at step 2 in on_step_start of plugin inject",
    "kill:rank0@3:forward": "rank 0 was killed by SIGKILL at step 3 in on_forward_end of plugin inject",
    "kill:all@4": "was killed by SIGKILL at step 4",
    "segv:rank1@5": "rank 1 was killed by SIGSEGV at step 5",
    "abort:rank0@6:backward": "rank 0 was killed by SIGABRT at step 6",
    "leave:rank1:0@7": "rank 1 left with exit code 0 before it had finished",
    "leave:rank1:3@8": "rank 1 left with exit code 3 and without an error record",
    "oom:rank0@9": "rank 0 failed at step 9: plugin 'inject' raised OutOfMemoryError in on_step_start",
    "kill:agent@10": "the workers' agent was killed by SIGKILL",
    "kill:server@11": "died with the fork server that it came from, which was killed",
}
COLD = {
    "kill:rank1@2": WARM["kill:rank1@2"],
    "segv:rank0@3": "rank 0 was killed by SIGSEGV at step 3",
    "kill:agent@4": WARM["kill:agent@10"],
}


@pytest.mark.parametrize(
    ("start", "chain"), [("warm", WARM), pytest.param("cold", COLD, marks=pytest.mark.long)], ids=["warm", "cold"]
)
def test_one_run_survives_them_all(project: Any, start: str, chain: dict[str, str]) -> None:
    ended = project.inject(
        *chain,
        plugins=["spawns"],
        launch__start=start,
        launch__max_restarts=len(chain),
        train__steps=len(chain) + 3,
        data__workers=1,
    )
    assert ended.code == 0, ended.stderr
    for fault, (reason, expected) in zip(chain, zip(ended.attempts, chain.values(), strict=False), strict=False):
        assert expected in reason, fault
    assert len(ended.attempts) == len(chain) + 1
    assert ended.outcome["attempt"] == len(chain) + 1
    assert [event["wait"] for event in ended.events if event["event"] == "restart"] == [0.0] * len(chain)
