"""What cannot train is found before anything is started, and the message says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.plugin.resolve import Resolved, resolve

HEAD = "from trainrun import Field, PluginOptions, hookimpl\n"
MODEL = "@hookimpl\ndef build_model():\n    return None\n"
DATA = "@hookimpl\ndef build_dataset(split):\n    return None\n"
STEP = "@hookimpl\ndef training_step(batch):\n    return None\n"
EVALUATION = '@hookimpl\ndef evaluation_step(batch):\n    return {"loss": 1.0, "accuracy": 0.5}\n'
OPTIMIZER = "@hookimpl\ndef build_optimizer(model):\n    return None\n"
WHOLE = HEAD + MODEL + DATA + STEP + EVALUATION

CLASS = HEAD + "class Task:\n    @hookimpl\n    def build_model(self):\n        return None\n"
WATCHER = """
class Watcher:
    class Options(PluginOptions):
        monitor: str = Field("eval/loss", metric=True, description="A metric.")

    def __init__(self, options): ...

    @hookimpl
    def on_evaluated(self): ...
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "train.toml").write_text('[task]\nuse = "mine.py"\n[train]\nsteps = 1\n')
    return tmp_path / "mine.py"


def of(task: Path, source: str, *overrides: str) -> Resolved:
    task.write_text(source)
    return resolve(task.with_name("train.toml"), overrides)


def problems(task: Path, source: str, *overrides: str) -> list[str]:
    return [f"{one.what}; {one.hint}" for one in of(task, source, *overrides).recipe_problems]


def test_whole_task(written: Path) -> None:
    assert problems(written, WHOLE) == []
    assert problems(written, HEAD + MODEL + STEP + EVALUATION + DATA.replace("dataset", "dataloader")) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "x = 1\n",
            "nothing in mine.py is marked with @hookimpl, so this file trains nothing; a task implements at least",
        ),
        ("def build_model(): ...\n", "nothing in mine.py is marked with @hookimpl; put it above build_model"),
        (CLASS, "mine.py has no hooks of its own; those of its class must be named; did you mean 'mine.py:Task'?"),
        (
            HEAD + MODEL,
            "mine.py has no training_step and no build_dataset, without which nothing can be trained; implement it",
        ),
        (HEAD + MODEL + DATA, "mine.py has no training_step, without which nothing can be trained"),
        (HEAD + STEP + DATA, "mine.py has no build_model, without which nothing can be trained"),
        (
            HEAD + MODEL + DATA + "def training_step(): ...\n",
            "mine.py has no training_step, without which nothing can be trained; implement it and mark it with "
            "@hookimpl; training_step is there without @hookimpl",
        ),
    ],
)
def test_what_is_missing(written: Path, source: str, problem: str) -> None:
    (found,) = problems(written, source)
    assert found.startswith(problem)


def test_splits_that_are_asked_for_need_an_evaluation_step(written: Path) -> None:
    (found,) = problems(written, HEAD + MODEL + DATA + STEP, 'evaluate.splits=["eval"]')
    assert found.startswith('mine.py has no evaluation_step, but evaluate.splits = ["eval"]; implement it, or set')


def test_without_evaluation_step_the_default_is_to_evaluate_nothing(written: Path) -> None:
    resolved = of(written, HEAD + MODEL + DATA + STEP)
    assert (resolved.recipe_problems, resolved.data["evaluate"]["splits"]) == ((), [])
    (note,) = resolved.notes
    assert note.startswith("mine.py has no evaluation_step, so nothing is evaluated; evaluate.splits = []")
    assert of(written, HEAD + MODEL + DATA + STEP, "evaluate.splits=[]").notes == ()
    assert of(written, WHOLE).data["evaluate"]["splits"] == ["eval"]


def test_a_wrapper_is_no_implementation(written: Path) -> None:
    wrapper = "@hookimpl(wrapper=True)\ndef training_step():\n    return (yield)\n"
    (found,) = problems(written, HEAD + MODEL + DATA + wrapper + EVALUATION)
    assert "no training_step" in found


def test_a_plugin_may_bring_what_the_task_lacks(written: Path) -> None:
    (written.parent / "more.py").write_text(HEAD + STEP + EVALUATION)
    assert problems(written, HEAD + MODEL + DATA, "plugins.more.use=more.py") == []


def test_nothing_is_said_of_a_task_that_cannot_be_imported(written: Path) -> None:
    resolved = of(written, "import no_such_module\n")
    assert resolved.recipe_problems == ()
    assert len(resolved.plugin_problems) == 1


# --- the names of metrics ---


@pytest.mark.parametrize(
    ("monitor", "hint"),
    [("eval/acuracy", "did you mean 'eval/accuracy'?"), ("eval/f1", "there is eval/accuracy, eval/loss")],
)
def test_a_metric_that_no_evaluation_gives(written: Path, monitor: str, hint: str) -> None:
    watched = ("plugins.watcher.use=mine.py:Watcher", f"plugins.watcher.monitor={monitor}")
    (found,) = problems(written, WHOLE + WATCHER, *watched)
    assert found == f"plugins.watcher.monitor = {monitor!r}: there is no such metric; {hint}"


@pytest.mark.parametrize("monitor", ["eval/loss", "eval/accuracy", "other/f1", "loss"])
def test_metrics_that_are_there_or_not_of_an_evaluation(written: Path, monitor: str) -> None:
    watched = ("plugins.watcher.use=mine.py:Watcher", f"plugins.watcher.monitor={monitor}")
    assert problems(written, WHOLE + WATCHER, *watched) == []


@pytest.mark.parametrize(
    "more",
    [
        "@hookimpl\ndef evaluation_metrics(split):\n    return {}\n",
        "@hookimpl\ndef on_evaluation_end(run):\n    run.log('eval/f1', 1.0)\n",
    ],
)
def test_names_that_others_may_add_are_not_judged(written: Path, more: str) -> None:
    watched = ("plugins.watcher.use=mine.py:Watcher", "plugins.watcher.monitor=eval/f1")
    assert problems(written, WHOLE + more + WATCHER, *watched) == []


@pytest.mark.parametrize(
    "body", ["return results", 'return {**results, "loss": 1.0}', 'return {"loss": 1} if results else results']
)
def test_names_that_cannot_be_read_are_not_judged(written: Path, body: str) -> None:
    watched = ("plugins.watcher.use=mine.py:Watcher", "plugins.watcher.monitor=eval/f1")
    evaluation = f"results = {{}}\n@hookimpl\ndef evaluation_step(batch):\n    {body}\n"
    assert problems(written, HEAD + MODEL + DATA + STEP + evaluation + WATCHER, *watched) == []


# --- an optimizer of the task's own ---


def test_an_optimizer_table_that_is_not_used_is_noted(written: Path) -> None:
    resolved = of(written, WHOLE + OPTIMIZER, "optimizer.nesterov=true", "optimizer.anything=1")
    assert resolved.recipe_problems == ()
    (note,) = resolved.notes
    assert "[optimizer] has no effect by itself, because task" in note
    assert resolved.data["optimizer"]["name"] == "built-by-task"


def test_the_default_is_not_named_where_the_task_builds_another(written: Path) -> None:
    resolved = of(written, WHOLE + OPTIMIZER)
    assert (resolved.notes, resolved.data["optimizer"]["name"]) == ((), "built-by-task")
    assert of(written, WHOLE).data["optimizer"]["name"] == "adamw"


def test_the_keys_of_a_named_optimizer_are_still_checked(written: Path) -> None:
    (found,) = problems(written, WHOLE + OPTIMIZER, "optimizer.name=adamw", "optimizer.nesterov=true")
    assert "adamw has no such setting" in found
