"""When hooks are called: the order of the manual, decisions on all ranks at one step, and error policies."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any, ClassVar

import pytest
import torch

from trainrun.errors import HookFailed, TrainingError
from trainrun.marker import hookimpl, hookspec
from trainrun.rundir import Stop
from trainrun.testing.calls import read_calls
from trainrun.testing.recorder import HookRecorder

SETTING_UP = [
    "on_worker_start",
    "build_model",
    "parallelize_model",
    "build_dataset train",
    "build_dataloader train",
    "build_optimizer",
    "build_scheduler",
    "build_dataset eval",
    "build_dataloader eval",
    "on_train_start",
]
MICRO_BATCH = [
    "collate train",
    "on_batch_fetched",
    "move_batch train",
    "on_microbatch_start",
    "training_step",
    "on_forward_end",
    "backward",
    "on_backward_end",
]
STEP_BEGINS = ["on_step_start", *MICRO_BATCH, *MICRO_BATCH, "on_gradients_ready", "should_skip_update"]
STEP_ENDS = ["clip_gradients", "on_gradients_clipped", "optimizer_step", "on_update_end"]
EVALUATION = [
    "on_evaluation_start eval",
    *(
        [
            "collate eval",
            "move_batch eval",
            "on_evaluation_batch_start",
            "evaluation_step eval",
            "on_evaluation_batch_end",
        ]
        * 2
    ),
    "evaluation_metrics",
    "on_evaluation_end eval",
    "on_evaluated",
    "on_log",
]
VOTES = ["should_evaluate", "should_checkpoint", "should_stop"]


def shown(calls: Any) -> list[str]:
    """Hook names, with the split where one is being built, moved or evaluated."""
    splits = ("build_data", "collate", "move_batch", "evaluation_step", "on_evaluation_start", "on_evaluation_end")
    return [f"{call.hook} {call.arguments['split']}" if call.hook.startswith(splits) else call.hook for call in calls]


def test_hooks_are_called_in_the_order_of_the_manual(training: Any, regression: Any) -> None:
    # An epoch has two updates of two micro-batches; both are logged, and the second is evaluated.
    regression = type("Task", (regression,), {"samples": 8})
    run = training(
        regression,
        HookRecorder,
        train={"steps": 3, "batch_size": 4, "micro_batch_size": 2, "clip_grad_norm": 1.0},
        evaluate={"every": 2, "batch_size": 4},
        scheduler={"name": "linear"},
        checkpoint={"at_end": True},
    )
    found = shown(read_calls(run.paths))
    step = [*STEP_BEGINS, *STEP_ENDS, "on_log", "on_step_end"]
    start = [
        *SETTING_UP,
        *["on_epoch_start", *step, *VOTES, *step, *EVALUATION, *VOTES, "on_epoch_end"],
        *["on_epoch_start", *step, *VOTES, "on_epoch_end"],
        *EVALUATION,
        *["on_checkpoint_start", "on_checkpoint_saved", "on_train_end"],
    ]
    assert found[: len(start)] == start
    assert [hook for hook in found[len(start) :] if hook != "on_log"] == ["on_completed", "on_worker_end"]


def test_two_ranks_make_the_same_calls(training: Any, regression: Any) -> None:
    run = training(regression, HookRecorder, ranks=2, train={"steps": 4}, evaluate={"every": 2})
    assert run.outcome.state == "finished"
    calls = read_calls(run.paths)
    by_rank = [shown(call for call in calls if call.rank == rank) for rank in range(2)]
    assert by_rank[0] == by_rank[1]
    assert by_rank[0].count("on_step_end") == 4


def test_only_what_was_asked_for_is_called(training: Any, regression: Any) -> None:
    run = training(regression, HookRecorder, train={"steps": 2, "log_every": 50}, evaluate={"splits": []})
    found = {call.hook for call in read_calls(run.paths)}
    assert not found & {"clip_gradients", "on_evaluation_start", "on_exception", "on_stop_requested", "on_resume"}


# --- gradient norms ---


def counting_norms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    computed: list[int] = []
    original = torch.nn.utils.get_total_norm

    def counted(*arguments: Any, **options: Any) -> Any:
        computed.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted)
    return computed


class Norms:
    seen: ClassVar[list[Any]] = []

    @hookimpl
    def on_gradients_ready(self, grad_norm: Any) -> None:
        self.seen.append(("ready", grad_norm.item()))

    @hookimpl
    def should_skip_update(self, grad_norm: Any) -> None:
        self.seen.append(("vote", grad_norm.item()))

    @hookimpl
    def on_gradients_clipped(self, run: Any, grad_norm: Any) -> None:
        left = torch.nn.utils.clip_grad_norm_(run.model.parameters(), float("inf"))
        self.seen.append(("clipped", grad_norm.item(), round(left.item(), 5)))


def test_the_norm_is_computed_once_when_asked_for(
    training: Any, regression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = counting_norms(monkeypatch)
    training(regression, Norms, train={"steps": 1, "clip_grad_norm": 0.01})
    (_, ready), (_, vote), (_, clipped, left) = Norms.seen
    assert ready == vote == clipped > 0.01
    assert left == 0.01
    assert len(computed) == 1


def test_the_norm_is_not_computed_unless_asked_for(
    training: Any, regression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = counting_norms(monkeypatch)

    class Indifferent:
        @hookimpl
        def on_gradients_ready(self, model: Any) -> None: ...

    training(regression, Indifferent, train={"steps": 2})
    assert computed == []


def test_a_norm_that_one_rank_asks_for_is_the_same_on_all(training: Any, regression: Any) -> None:
    class OnOne:
        seen: ClassVar[list[float]] = []

        @hookimpl(ranks="zero")
        def on_gradients_ready(self, grad_norm: Any) -> None:
            self.seen.append(grad_norm.item())

        @hookimpl
        def on_update_end(self, run: Any) -> None:
            gradients = [parameter.grad for parameter in run.model.parameters()]
            self.seen.append(torch.nn.utils.get_total_norm(gradients).item())

    run = training(regression, OnOne, ranks=2, train={"steps": 1}, report=lambda: OnOne.seen)
    (asked, again), (other,) = run.reports
    assert asked == again == other


# --- skipping an update ---


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_skipped_update_leaves_all_as_it_was(training: Any, regression: Any, ranks: int) -> None:
    class Skipper:
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def should_skip_update(self, run: Any) -> str | None:
            return "odd" if run.step == 2 else None

        @hookimpl
        def on_update_end(self, run: Any, skipped: Any) -> None:
            state = run.optimizer.state_dict()["state"]
            moments = [value["exp_avg"].tolist() for value in state.values()]
            weights = [parameter.tolist() for parameter in run.model.parameters()]
            self.seen.append((skipped, (weights, moments, run.scheduler.last_epoch)))

    run = training(
        regression,
        Skipper,
        ranks=ranks,
        report=lambda: Skipper.seen,
        train={"steps": 3},
        optimizer={"name": "adam", "lr": 0.1},
        scheduler={"name": "linear"},
    )
    (first, before), (second, skipped), (third, after) = run.reports[0]
    assert (first, second, third) == (None, "skipper: odd", None)
    assert skipped == before
    assert after != before
    (event,) = run.decisions
    assert (event["decision"], event["step"], event["plugin"], event["reason"]) == ("skip", 2, "skipper", "odd")


# --- stopping, evaluating: two steps later, everywhere ---


class Asks:
    """Asks for something on one rank, at step 3."""

    seen: ClassVar[list[Any]] = []

    @hookimpl
    def on_step_end(self, run: Any, step: int) -> None:
        if step == 3 and run.world.rank == run.world.size - 1:
            self.ask(run)

    def ask(self, run: Any) -> None:
        thread = threading.Thread(target=run.request_stop, args=("from a thread",))
        thread.start()
        thread.join()

    @hookimpl
    def on_stop_requested(self, run: Any, reason: str, source: str) -> None:
        self.seen.append((run.step, reason, source))

    @hookimpl
    def on_evaluation_start(self, run: Any) -> None:
        self.seen.append((run.step, "evaluation"))


class Votes(Asks):
    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "voted" if run.step == 3 and run.world.rank == run.world.size - 1 else None

    def ask(self, run: Any) -> None: ...


class Evaluates(Asks):
    def ask(self, run: Any) -> None:
        run.request_evaluation("a look")


class Checkpoints(Asks):
    def ask(self, run: Any) -> None:
        run.request_checkpoint("save")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("plugin", "seen", "end"),
    [
        (Votes, [(4, "voted", "votes")], 4),
        (Asks, [(5, "from a thread", "asks")], 5),  # queued until this thread begins the next step
        (Evaluates, [(4, "evaluation"), (8, "evaluation")], 8),
        (Checkpoints, [(8, "evaluation")], 8),
    ],
)
def test_requests_take_effect_on_all_ranks_at_one_step(
    training: Any, regression: Any, ranks: int, plugin: Any, seen: Any, end: int
) -> None:
    plugin.seen.clear()
    run = training(regression, plugin, ranks=ranks, report=lambda: plugin.seen, train={"steps": 8})
    assert run.reports == [seen] * ranks
    assert run.outcome.step == end
    (event,) = run.decisions
    assert (event["rank"], event["ranks"]) == (ranks - 1, [ranks - 1])


def test_a_vote_at_an_evaluation_takes_effect_at_once(training: Any, regression: Any) -> None:
    run = training(regression, Votes, ranks=2, train={"steps": 8}, evaluate={"every": 3})
    assert run.outcome.step == 3
    assert (run.outcome.state, run.outcome.exit_code) == ("stopped", 0)
    assert run.outcome.reason == "stopped at step 3: plugin votes voted to stop (voted)"
    assert run.outcome.stop == Stop("voted", "votes", "vote")


def test_an_evaluation_asked_for_where_one_is_due_is_made_once(training: Any, regression: Any) -> None:
    class Eager:
        made: ClassVar[list[int]] = []

        @hookimpl
        def should_evaluate(self, run: Any) -> str | None:
            return "last" if run.step == 4 else None

        @hookimpl
        def on_evaluation_start(self, run: Any) -> None:
            self.made.append(run.step)

    training(regression, Eager, train={"steps": 4})
    assert Eager.made == [4]


# --- error policies ---


@pytest.mark.parametrize("ranks", [1, 2])
def test_disabling_takes_effect_at_one_step_on_all_ranks(training: Any, regression: Any, ranks: int) -> None:
    class Fragile:
        on_error = "disable"
        calls: ClassVar[list[int]] = []

        @hookimpl
        def on_step_start(self, run: Any, step: int) -> None:
            self.calls.append(step)
            if step == 2 and run.world.rank == run.world.size - 1:
                raise ValueError("broken")

    run = training(regression, Fragile, ranks=ranks, report=lambda: Fragile.calls, train={"steps": 6})
    assert run.reports == [[1, 2, 3]] * ranks
    (event,) = run.decisions
    assert (event["decision"], event["plugin"], event["hook"]) == ("disable", "fragile", "on_step_start")
    assert (event["step"], event["rank"], event["reason"]) == (3, ranks - 1, "ValueError: broken")


def test_warning_goes_on_and_says_so_once(training: Any, regression: Any) -> None:
    class Noisy:
        on_error = "warn"
        calls: ClassVar[list[int]] = []

        @hookimpl
        def on_step_start(self, step: int) -> None:
            self.calls.append(step)
            raise ValueError("again")

    run = training(regression, Noisy, train={"steps": 5})
    assert Noisy.calls == [1, 2, 3, 4, 5]
    assert [event["decision"] for event in run.decisions] == ["warn"]
    assert run.paths.rank_log(0).read_text().count('"hook failed"') == 5


@pytest.mark.parametrize("hook", ["on_train_end", "on_completed", "on_worker_end"])
def test_a_fault_after_the_last_step_is_an_event_too(training: Any, regression: Any, hook: str) -> None:
    def broken(self: Any) -> None:
        raise ValueError("late")

    broken.__name__ = hook
    late = type("Late", (), {"on_error": "warn", hook: hookimpl(broken)})
    run = training(regression, late, train={"steps": 2})
    assert [(event["decision"], event["hook"]) for event in run.decisions] == [("warn", hook)]


class Fails:
    @hookimpl
    def on_step_start(self, run: Any, step: int) -> None:
        if step == 2 and run.world.rank == run.world.size - 1:
            raise ValueError("broken")


class Mutates:
    on_error = "disable"

    @hookimpl(mutates=True)
    def on_gradients_ready(self, run: Any) -> None:
        raise ValueError("half done")


class VotesBadly:
    on_error = "disable"

    @hookimpl
    def should_stop(self) -> str | None:
        raise ValueError("no vote")


class WrapsBadly:
    on_error = "disable"

    @hookimpl(wrapper=True)
    def on_step_start(self) -> Generator[None, Any, None]:
        yield
        raise ValueError("after")


class InBackground:
    @hookimpl(background=True)
    def on_step_start(self, step: int) -> None:
        raise ValueError("behind")


@pytest.mark.parametrize("plugin", [Fails, Mutates, VotesBadly, WrapsBadly, InBackground])
def test_other_errors_fail_the_run_and_are_told_to_all(training: Any, regression: Any, plugin: Any) -> None:
    class Told:
        heard: ClassVar[list[Any]] = []

        @hookimpl
        def on_exception(self, error: BaseException) -> None:
            self.heard.append(error)

        @hookimpl
        def on_worker_end(self, outcome: Any) -> None:
            self.heard.append(outcome.state)

    with pytest.raises(HookFailed) as caught:
        training(regression, plugin, Told, train={"steps": 50})
    assert isinstance(caught.value.__cause__, ValueError)
    assert "-p no:" in str(caught.value)
    assert Told.heard == [caught.value, "failed"]


def test_a_failure_on_one_rank_ends_the_others(training: Any, regression: Any) -> None:
    run = training(regression, Fails, ranks=2, train={"steps": 5})
    assert run.ranks[1].kind == "HookFailed"
    assert isinstance(run.ranks[0], Exception), "its peer is gone"


@pytest.mark.parametrize("hook", ["on_exception", "on_worker_end"])
def test_what_raises_after_the_failure_does_not_hide_it(training: Any, regression: Any, hook: str) -> None:
    def broken(self: Any) -> None:
        raise KeyError("second")

    broken.__name__ = hook
    clumsy = type("Clumsy", (), {hook: hookimpl(broken)})
    with pytest.raises(HookFailed, match="broken") as caught:
        training(regression, Fails, clumsy, train={"steps": 3})
    assert any(hook in note for note in caught.value.__notes__)


def test_the_end_still_comes_for_a_plugin_whose_start_failed(training: Any, regression: Any) -> None:
    class Half:
        calls: ClassVar[list[str]] = []
        on_error = "warn"

        @hookimpl
        def on_train_start(self) -> None:
            raise ValueError("no")

        @hookimpl
        def on_train_end(self) -> None:
            self.calls.append("end")

    training(regression, Half, train={"steps": 1})
    assert Half.calls == ["end"]


# --- providers and wrappers ---


def test_none_passes_the_question_on_and_wrappers_transform(training: Any, regression: Any, keeper: Any) -> None:
    class Passes:
        asked: ClassVar[set[str]] = set()

        @hookimpl
        def build_optimizer(self) -> None:
            self.asked.add("build_optimizer")

        @hookimpl
        def move_batch(self) -> None:
            self.asked.add("move_batch")

        @hookimpl
        def training_step(self) -> None:
            self.asked.add("training_step")

    class Doubles:
        @hookimpl(wrapper=True)
        def move_batch(self, split: str) -> Generator[None, Any, Any]:
            inputs, targets = yield
            return inputs * 2, targets

        @hookimpl(wrapper=True)
        def training_step(self) -> Generator[None, Any, Any]:
            loss = yield
            return {"loss": loss * 0.5, "original": loss}

    plain = training(regression, keeper, report=keeper.report, train={"steps": 3})
    passed = training(regression, keeper, Passes, report=keeper.report, train={"steps": 3})
    assert passed.reports == plain.reports
    assert Passes.asked == {"build_optimizer", "move_batch", "training_step"}

    doubled = training(regression, Doubles, train={"steps": 1})
    losses = doubled.series("train/loss"), doubled.series("train/original")
    assert losses[0][1] == pytest.approx(losses[1][1] / 2)
    assert losses[1][1] != plain.series("train/loss")[1], "the inputs were doubled"


def test_a_plugin_calls_hooks_of_its_own(training: Any, regression: Any) -> None:
    class Specs:
        @staticmethod
        @hookspec(locus="worker", kind="provider", ranks="all")
        def pick_colour(run: Any, total: int, error: str) -> str | None:
            """Pick a colour."""

        @staticmethod
        @hookspec(locus="worker", kind="vote", ranks="all")
        def should_paint(run: Any, calls: int) -> str | None:
            """Whether to paint."""

        @staticmethod
        @hookspec(locus="worker", kind="event", ranks="all")
        def on_nothing(run: Any) -> None:
            """Nobody listens."""

    class Painter:
        hookspecs = Specs
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def on_train_start(self, run: Any) -> None:
            assert run.hooks.on_nothing is None
            self.seen.append((run.hooks.pick_colour(3, "none"), run.hooks.should_paint(7)))

    class Listener:
        @hookimpl
        def pick_colour(self, run: Any, total: int) -> str:
            return f"{run.name} {total}"

        @hookimpl
        def should_paint(self, calls: int) -> str:
            return f"yes {calls}"

    training(regression, Painter, Listener, train={"steps": 1})
    assert Painter.seen == [("listener 3", [("listener", "yes 7")])]


# --- what a task may get wrong ---


@pytest.mark.parametrize(("method", "answer", "message"), [
    ("training_step", None, "training_step returned None; return a scalar loss, .*; training_step is that of task "),
    ("training_step", {"lost": torch.zeros(())}, r"training_step returned a mapping with \['lost'\]"),
    ("training_step", torch.zeros(2), r"returned a tensor of shape \(2,\)"),
    ("build_model", None, "build_model returned None"),
    ("build_model", "model", "build_model returned str; return a torch.nn.Module; build_model is that of task "),
    ("parallelize_model", 3, "parallelize_model returned int; return a torch.nn.Module; .* is that of task "),
    ("build_dataset", 3, "build_dataset returned a int for split 'train'.*; build_dataset is that of task "),
    ("build_dataloader", 3, "build_dataloader returned int for split 'train'; return an iterable .* is that of task "),
    ("clip_gradients", "no", "clip_gradients returned str; return the norm before clipping; .* is that of task "),
    ("clip_gradients", torch.zeros(2), r"clip_gradients returned a tensor of shape \(2,\)"),
    ("build_dataset", None, "no build_dataset or build_dataloader returned data"),
    ("build_dataloader", [], "gave no batch in a whole epoch"),
])  # fmt: skip
def test_wrong_answers_of_a_task_are_named(
    training: Any, regression: Any, method: str, answer: Any, message: str
) -> None:
    def wrong(self: Any) -> Any:
        return answer

    wrong.__name__ = method
    task = type("Task", (regression,), {method: hookimpl(wrong)})
    with pytest.raises(TrainingError, match=message):
        training(task, train={"steps": 1, "clip_grad_norm": 1.0}, evaluate={"splits": []})


def test_a_loss_that_is_not_finite(training: Any, regression: Any) -> None:
    class Nan(regression):  # type: ignore[misc]
        @hookimpl
        def training_step(self, run: Any, model: Any, batch: Any) -> Any:
            return model(batch[0]).mean() * (float("nan") if run.step == 2 else 1.0)

    with pytest.raises(TrainingError, match="train/loss is nan at step 2"):
        training(Nan, train={"steps": 4})
    assert training(Nan, train={"steps": 4, "nonfinite": "warn"}).outcome.ok


def test_two_ranks_with_loaders_of_unequal_length(training: Any, regression: Any) -> None:
    class Task(regression):  # type: ignore[misc]
        @hookimpl
        def build_dataloader(self, split: str, world: Any) -> Any:
            points = self.points(20)
            rows = [points[place : place + 4] for place in range(0, 20, 4)]
            batches = [[torch.stack(column) for column in zip(*row, strict=True)] for row in rows]
            return batches[: 2 + 2 * world.rank] if split == "train" else (iter(batches[:1]) if world.rank else [])

    run = training(Task, ranks=2, train={"epochs": 2, "batch_size": 8}, evaluate={"splits": []})
    assert [rank[0].step for rank in run.ranks] == [8, 8]
