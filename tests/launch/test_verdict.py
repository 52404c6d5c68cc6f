from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.launch.ends import End, write_ends
from trainrun.launch.handle import Launch
from trainrun.launch.verdict import Ending, judge, stopped_between
from trainrun.launch.watchdog import Hang, Where
from trainrun.rundir import Outcome, RunPaths, Stop, WorkerRecord
from trainrun.rundir.files import write_json
from trainrun.rundir.pulse import CRUMB, Pulse, read_pulse


@pytest.fixture
def launch(paths: RunPaths, make: Callable[..., Launch]) -> Launch:
    paths.attempt(1).mkdir()
    return make(paths)


def put(launch: Launch, rank: int, phase: str = "finished", **changes: object) -> None:
    record = WorkerRecord(pid=1, pgid=1, start_time=1, rank=rank, phase=phase, **{"step": 10, **changes})
    write_json(launch.paths.worker_record(1, rank), record.to_json())


def error(at: int, message: str = "bad", **changes: object) -> dict[str, object]:
    base = {"type": "ValueError", "message": message, "traceback": "Traceback", "monotonic_ns": at}
    return {**base, "instance": None, "hook": None, "exit_code": 1, **changes}


def pulse(launch: Launch, rank: int, step: int, hook: str | None = None) -> None:
    """What the worker showed last."""
    made = Pulse.create(launch.paths.pulse(1, rank))
    made.enter("training")
    made.begin_step(step)
    made.slots[CRUMB] = made.crumb("slow", hook) if hook else 0


def verdict(launch: Launch, code: int | None = 0, **changes: object) -> Outcome:
    return judge(launch, Ending(code, **changes), started=1.0)


def test_finished(launch: Launch) -> None:
    put(launch, 0)
    put(launch, 1)
    outcome = verdict(launch)
    assert (outcome.state, outcome.exit_code, outcome.step) == ("finished", 0, 10)
    assert outcome.reason == "10/10 steps"


def test_records_count_and_not_the_agents_exit_code(launch: Launch) -> None:
    put(launch, 0)
    put(launch, 1)
    assert verdict(launch, 1).state == "finished"


def test_stopped_by_a_vote(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("flat for 5", "early-stopping", "vote"), step=7)
    outcome = verdict(launch)
    assert (outcome.state, outcome.exit_code) == ("stopped", 0)
    assert outcome.reason == "stopped at step 7: plugin early-stopping voted to stop (flat for 5)"


@pytest.mark.parametrize(
    ("number", "state", "code"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143), (signal.SIGHUP, "terminated", 143)],
)
def test_stopped_by_a_signal(launch: Launch, number: signal.Signals, state: str, code: int) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("SIGTERM received", "SIGTERM", "signal"))
    outcome = verdict(launch, signal=number)
    assert (outcome.state, outcome.exit_code) == (state, code)


def test_signal_that_only_the_workers_got(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("SIGTERM received", "SIGTERM", "signal"))
    assert verdict(launch).exit_code == 143


def test_run_that_ended_by_itself_in_spite_of_a_signal(launch: Launch) -> None:
    put(launch, 0)
    put(launch, 1)
    assert verdict(launch, signal=signal.SIGINT).state == "finished"


def test_forced_ends(launch: Launch) -> None:
    put(launch, 0, "training")
    twice = verdict(launch, None, signal=signal.SIGINT, forced="now")
    assert (twice.state, twice.exit_code) == ("interrupted", 130)
    late = verdict(launch, None, signal=signal.SIGTERM, forced="grace")
    assert (late.state, late.exit_code) == ("terminated", 143)
    assert "launch.grace (30 s)" in late.reason


def test_first_error_counts_and_peers_are_consequences(launch: Launch) -> None:
    put(launch, 0, "failed", error=error(200, "connection closed"))
    put(launch, 1, "failed", error=error(100, "the cause"), step=4)
    outcome = verdict(launch, 1)
    assert outcome.reason == "rank 1 raised ValueError at step 4: the cause"
    assert outcome.first_failure is not None
    assert outcome.first_failure.traceback == "Traceback"
    assert outcome.first_failure.log == str(launch.paths.rank_output(1))


@pytest.mark.parametrize("message", ["x" * 5_000_000, "line\n" * 1_000_000], ids=["one line", "many lines"])
def test_an_endless_message_is_cut_and_the_record_that_has_it_all_is_named(launch: Launch, message: str) -> None:
    trace = f"Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: {message}"
    put(launch, 0, "failed", error={**error(1, message), "traceback": trace})
    outcome = verdict(launch, 1)
    assert outcome.first_failure is not None
    whole = f"… all of it: {launch.paths.worker_record(1, 0)}"
    for text in (outcome.reason, outcome.first_failure.message, outcome.first_failure.traceback or ""):
        assert len(text) < 5000
        assert whole in text
    assert "File 'a.py', line 1" in (outcome.first_failure.traceback or "")


def test_error_names_plugin_and_hook_and_keeps_its_exit_code(launch: Launch) -> None:
    put(launch, 0, "failed", error=error(1, "no", instance="es", hook="on_log", exit_code=4))
    outcome = verdict(launch, 1)
    assert outcome.exit_code == 4
    assert "in on_log of plugin es" in outcome.reason


def test_death_by_a_signal_comes_before_the_errors_it_causes(launch: Launch) -> None:
    put(launch, 0, "failed", error=error(200, "connection closed"))
    put(launch, 1, "training", step=37, instance="slow", hook="on_step_end")
    write_ends(launch.paths, 1, {1: End(1, -9, seen_ns=150)})
    outcome = verdict(launch, 1)
    assert outcome.reason == "rank 1 was killed by SIGKILL at step 37 in on_step_end of plugin slow"
    assert outcome.first_failure is not None
    assert outcome.first_failure.signal == "SIGKILL"


def test_step_is_told_by_the_status_where_the_record_has_none(launch: Launch) -> None:
    put(launch, 1, "training", step=0)
    write_json(launch.paths.status, {"step": 35})
    write_ends(launch.paths, 1, {1: End(1, -9, seen_ns=150)})
    outcome = verdict(launch, 1)
    assert outcome.reason == "rank 1 was killed by SIGKILL after step 35"
    assert outcome.step == 35


def test_death_after_an_error_is_its_consequence(launch: Launch) -> None:
    put(launch, 0, "failed", error=error(100, "the cause"))
    put(launch, 1, "training")
    write_ends(launch.paths, 1, {1: End(1, -6, seen_ns=150)})
    assert "the cause" in verdict(launch, 1).reason


@pytest.mark.parametrize(
    ("code", "agent", "words"),
    [
        (0, 0, "exit code 0 before it had finished (did something call os._exit()?)"),
        (None, 0, "exit code 0 before it had finished (did something call os._exit()?)"),  # a zombie no one saw
        (3, 1, "exit code 3 and without an error record"),
        (None, 1, "without a completion record"),
    ],
)
def test_exits_without_a_word(launch: Launch, code: int | None, agent: int, words: str) -> None:
    put(launch, 0)
    put(launch, 1, "training", step=5)
    write_ends(launch.paths, 1, {1: End(1, code, 1)})
    outcome = verdict(launch, agent)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert words in outcome.reason
    assert "rank 1" in outcome.reason
    assert "step 5" in outcome.reason


def test_out_of_memory_is_named(launch: Launch) -> None:
    put(launch, 1, "training")
    write_ends(launch.paths, 1, {1: End(1, -9, 1)})
    assert (
        "because the machine ran out of memory" in verdict(launch, 1, shortage="the machine ran out of memory").reason
    )


def test_success_without_records_is_a_failure(launch: Launch) -> None:
    put(launch, 0)
    outcome = verdict(launch, 0)
    assert outcome.state == "failed"
    assert outcome.reason == "the workers ended, and there is no completion record of rank 1"


def test_agents_failure_shows_its_log(launch: Launch) -> None:
    launch.paths.agent_log.write_text("no port\n")
    outcome = verdict(launch, 1)
    assert "exit code 1" in outcome.reason
    assert outcome.first_failure is not None
    assert outcome.first_failure.traceback == "no port"
    assert "SIGKILL" in verdict(launch, -9).reason


def test_worker_that_was_told_to_stop_before_it_could_listen(launch: Launch) -> None:
    put(launch, 0, "starting", step=0)
    put(launch, 1, "starting", step=0)
    write_ends(launch.paths, 1, {1: End(1, -15, 1)})
    outcome = verdict(launch, 1, signal=signal.SIGINT)
    assert (outcome.state, outcome.exit_code, outcome.first_failure) == ("interrupted", 130, None)


def test_last_metrics_are_kept(launch: Launch) -> None:
    put(launch, 0)
    put(launch, 1)
    write_json(launch.paths.status, {"metrics": {"eval/loss": 0.25}})
    assert verdict(launch).metrics == {"eval/loss": 0.25}


# --- what pulses tell ---


def test_a_pulse_tells_where_a_killed_worker_was(launch: Launch) -> None:
    put(launch, 0, "training", step=0)
    put(launch, 1, "training", step=0)
    write_json(launch.paths.status, {"step": 30})
    pulse(launch, 1, 37, "on_step_end")
    write_ends(launch.paths, 1, {1: End(1, -9, 50)})
    outcome = verdict(launch, 1)
    assert outcome.reason == "rank 1 was killed by SIGKILL at step 37 in on_step_end of plugin slow"
    failure = outcome.first_failure
    assert failure is not None
    assert (failure.step, failure.phase, failure.instance, failure.hook) == (37, "training", "slow", "on_step_end")
    assert outcome.step == 37


def test_the_record_of_a_worker_that_has_ended_counts_more(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank)
        pulse(launch, rank, 11, "on_step_end")
    assert verdict(launch).step == 10


def test_a_hang(launch: Launch) -> None:
    put(launch, 0, "training")
    put(launch, 1, "training")
    pulse(launch, 1, 7, "on_log")
    stacks = launch.paths.stacks(1, 1)
    where = Where(1, read_pulse(launch.paths.pulse(1, 1)), stacks=stacks)
    outcome = verdict(launch, None, hang=Hang(10.0, (Where(0, None), where)))
    assert (outcome.state, outcome.exit_code, outcome.cause) == ("failed", 1, "crash")
    failure = outcome.first_failure
    assert failure is not None
    assert failure.kind == "hang"
    assert outcome.reason.startswith("no rank advanced for 10 s: rank 0 has not begun; rank 1 sits in on_log of plugin")


def test_where_all_were_when_they_did_not_stop_in_time(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, "training")
        pulse(launch, rank, 7, "on_log")
    outcome = verdict(launch, None, signal=signal.SIGTERM, forced="grace")
    assert outcome.reason.endswith("(30 s): ranks 0 and 1 sit in on_log of plugin slow at step 7")


@pytest.mark.parametrize(
    ("number", "state", "code", "cause"),
    [(None, "terminated", 143, "preemption"), (signal.SIGINT, "interrupted", 130, None)],
)
def test_a_worker_that_ended_itself_because_it_was_told_to(
    launch: Launch, number: signal.Signals | None, state: str, code: int, cause: str | None
) -> None:
    put(launch, 0, "training")
    told = error(
        100, "it did not stop in time, and was still in setup", type="Terminated", kind="told_to_stop", exit_code=143
    )
    put(launch, 1, "failed", error=told, step=4)
    outcome = verdict(launch, 1, signal=number)
    assert (outcome.state, outcome.exit_code, outcome.cause) == (state, code, cause)
    assert outcome.reason == "rank 1 failed at step 4: it did not stop in time, and was still in setup"


# --- what was saved ---


Save = Callable[[int], Path]


@pytest.fixture
def save(launch: Launch, write_checkpoint: Callable[..., Path]) -> Save:
    return lambda step: write_checkpoint(launch.paths.checkpoints, step)


def stopped_at(launch: Launch, step: int, number: signal.Signals = signal.SIGTERM) -> Outcome:
    for rank in (0, 1):
        put(launch, rank, stop=Stop(f"{number.name} received", number.name, "signal"), step=step)
    return verdict(launch, signal=number)


def test_stop_whose_step_is_saved_can_be_gone_on_from(launch: Launch, save: Save) -> None:
    save(7)
    outcome = stopped_at(launch, 7)
    assert (outcome.state, outcome.exit_code) == ("terminated", 75)


def test_stop_whose_step_is_not_saved(launch: Launch, save: Save) -> None:
    save(6)
    assert stopped_at(launch, 7).exit_code == 143


def test_ctrl_c_is_130_whether_its_step_is_saved_or_not(launch: Launch, save: Save) -> None:
    assert stopped_at(launch, 7, signal.SIGINT).exit_code == 130
    save(7)
    assert stopped_at(launch, 7, signal.SIGINT).exit_code == 130


def test_checkpoint_that_lacks_a_file_saves_nothing(launch: Launch, save: Save) -> None:
    (save(7) / "training.pt").unlink()
    assert stopped_at(launch, 7).exit_code == 143


def test_stop_before_training_began_loses_nothing_of_a_run_that_went_on(launch: Launch, save: Save) -> None:
    put(launch, 0, "setup", step=0)
    put(launch, 1, "setup", step=0)
    write_ends(launch.paths, 1, {1: End(1, -signal.SIGTERM, seen_ns=1)})
    assert verdict(launch, 1, signal=signal.SIGTERM).exit_code == 143
    save(7)
    outcome = verdict(launch, 1, signal=signal.SIGTERM)
    assert (outcome.exit_code, outcome.reason) == (75, "stopped before training began")


def test_stop_at_the_step_of_another_runs_checkpoint_that_it_started_from(
    launch: Launch, write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    start = write_checkpoint(tmp_path / "other" / "checkpoints", 7)
    write_json(launch.paths.start(1), {"checkpoint": str(start)})
    assert stopped_at(launch, 7).exit_code == 75
    assert stopped_at(launch, 8).exit_code == 143


def test_end_of_the_grace_with_and_without_the_stop_step_saved(launch: Launch, save: Save) -> None:
    put(launch, 0, "training", step=7)
    save(6)
    assert verdict(launch, None, signal=signal.SIGTERM, forced="grace").exit_code == 143
    save(7)
    assert verdict(launch, None, signal=signal.SIGTERM, forced="grace").exit_code == 75


def test_preemption_that_was_saved_is_still_one(launch: Launch, save: Save) -> None:
    save(10)
    for rank in (0, 1):
        put(launch, rank, stop=Stop("SIGTERM received", "SIGTERM", "signal"))
    outcome = verdict(launch)
    assert (outcome.exit_code, outcome.cause) == (75, "preemption")


@pytest.mark.parametrize(
    ("number", "saved", "state", "code"),
    [
        (signal.SIGINT, True, "interrupted", 130),
        (signal.SIGTERM, True, "terminated", 75),
        (signal.SIGTERM, False, "terminated", 143),
        (None, False, "stopped", 0),
    ],
)
def test_stop_between_two_attempts(
    launch: Launch, save: Save, number: signal.Signals | None, saved: bool, state: str, code: int
) -> None:
    if saved:
        save(2)
    before = Outcome("failed", 1, "rank 0 raised ValueError at step 3: no", step=3, attempt=2, cause="crash")
    outcome = stopped_between(launch, before, number)
    assert (outcome.state, outcome.exit_code, outcome.cause, outcome.step) == (state, code, None, 3)
    assert outcome.reason.endswith("attempt 3 began; attempt 2 had failed: rank 0 raised ValueError at step 3: no")


def test_stop_after_failed_saves_can_be_gone_on_from_and_is_not_restarted(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("3 saves in a row failed", "checkpoint", "saves"), step=7)
    outcome = verdict(launch)
    assert (outcome.state, outcome.exit_code, outcome.cause) == ("stopped", 75, None)


# --- names decide nothing ---


@pytest.mark.parametrize("name", ["checkpoint", "SIGNAL", "SIGTERM", "trainrun stop"])
@pytest.mark.parametrize("origin", ["vote", "request"])
def test_a_plugin_may_have_any_name(launch: Launch, name: str, origin: Any) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("enough", name, origin), step=7)
    outcome = verdict(launch)
    assert (outcome.state, outcome.exit_code, outcome.cause) == ("stopped", 0, None)
    assert outcome.reason.startswith(f"stopped at step 7: plugin {name} ")
    assert outcome.stop == Stop("enough", name, origin)


def test_a_stop_without_a_reason_is_one(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("", "p", "vote"), step=2)
    assert verdict(launch).state == "stopped"


@pytest.mark.parametrize("name", ["Terminated", "HookFailed", "TrainingError"])
def test_an_exception_may_have_any_name(launch: Launch, name: str) -> None:
    put(launch, 0, "training")
    put(launch, 1, "failed", error=error(100, "mine", type=name, raised=name, kind="raised"), step=4)
    outcome = verdict(launch, 1)
    assert (outcome.state, outcome.exit_code, outcome.cause) == ("failed", 1, "crash")
    assert outcome.reason == f"rank 1 raised {name} at step 4: mine"


def test_a_stop_by_a_command_names_it(launch: Launch) -> None:
    for rank in (0, 1):
        put(launch, rank, stop=Stop("asked for (me@here)", "trainrun stop", "command"), step=7)
    assert verdict(launch).reason == "stopped at step 7 by trainrun stop: asked for (me@here)"
