from __future__ import annotations

from typing import Any

import pytest

from trainrun.plugin.description import Description, ImplInfo, SpecInfo
from trainrun.plugin.hookcheck import check_hooks, check_specs, unmarked_notes
from trainrun.plugin.instance import Instance
from trainrun.plugin.specs import by_name, own_specs

SPECS = by_name(own_specs())
WATCHER = Instance("watcher", "plugin", "watch:W", "watcher", "watch-dist", "1.0")


def mistakes(hook: str, **options: Any) -> list[str]:
    description = Description("watch:W", impls=(ImplInfo(hook, hook, file="/x/watch.py", line=7, **options),))
    return [str(problem) for problem in check_hooks(WATCHER, description, SPECS)]


def test_a_subset_of_the_arguments_in_any_order_is_right() -> None:
    assert mistakes("on_step_end", arguments=("metrics", "run", "step")) == []
    assert mistakes("on_log", arguments=("metrics", "run"), background=True) == []


@pytest.mark.parametrize(
    ("hook", "options", "message"),
    [
        ("on_steps_end", {}, "there is no hook 'on_steps_end'; did you mean 'on_step_end'?"),
        ("on_dance", {}, "there is no hook 'on_dance'; trainrun hooks lists them all"),
        ("on_step_end", {"arguments": ("losss",)}, "has no argument 'losss'; did you mean 'loss'?"),
        ("on_train_start", {"arguments": ("banana",)}, "has no argument 'banana'; on_train_start offers run"),
        ("on_step_end", {"keyword_only": ("loss",)}, "'loss' is keyword-only"),
        ("on_step_end", {"var_keyword": True}, "it takes ** arguments"),
        ("should_stop", {"background": True}, "a vote cannot run in the background"),
        ("on_log", {"background": True, "wrapper": True}, "a wrapper cannot run in the background"),
        ("on_log", {"background": True, "mutates": True}, "what mutates cannot run in the background"),
        ("on_step_end", {"background": True, "arguments": ("loss",)}, "'loss' is not a host value"),
    ],
)
def test_one_message_says_what_who_and_what_to_do(hook: str, options: dict[str, Any], message: str) -> None:
    (text,) = mistakes(hook, **options)
    assert message in text
    assert text.startswith("plugin watcher (watch-dist 1.0, entry point watcher = watch:W): ")
    assert "(watch.py:7)" in text
    assert "-p no:watcher, or enabled = false in [plugins.watcher]" in text


def test_every_mistake_is_reported() -> None:
    assert len(mistakes("on_step_end", arguments=("losss", "stepp"), keyword_only=("x",), var_keyword=True)) == 4


def test_a_hook_that_is_taken_cannot_be_brought() -> None:
    own = SPECS["on_log"]
    brought = SpecInfo("on_counted", "worker", "event", "zero")
    other = Instance("other", "plugin", "other:O")
    twin = Instance("watcher-2", "plugin", "watch:W")
    members = [
        (WATCHER, Description("watch:W", specs=(brought,))),
        (twin, Description("watch:W", specs=(brought,))),
        (other, Description("other:O", specs=(brought, own))),
    ]
    texts = [str(problem) for problem in check_specs(members, SPECS)]
    assert len(texts) == 2
    assert "it brings the hook on_counted, which plugin watcher has already" in texts[0]
    assert "it brings the hook on_log, which trainrun has already" in texts[1]


def test_unmarked_functions_are_noted() -> None:
    (note,) = unmarked_notes(WATCHER, Description("watch:W", unmarked=("on_log",)))
    assert "on_log is not marked with @hookimpl" in note


def test_ranks_that_do_not_exist() -> None:
    (text,) = mistakes("on_step_end", ranks="one")
    assert "ranks='one' is no set of ranks, so it would never be called" in text
    assert "use ranks='all' or 'local_zero' or 'zero'" in text


def test_a_hook_of_the_client_in_the_task_is_an_error() -> None:
    task = Instance("task", "task", "tasks/t.py")
    description = Description("tasks/t.py", impls=(ImplInfo("check_recipe", "check_recipe", file="/x/t.py", line=7),))
    (problem,) = check_hooks(task, description, SPECS)
    assert str(problem) == (
        "task (tasks/t.py): check_recipe (t.py:7): check_recipe: the launching process calls it, which does not import"
        " the task, so it would never be called; put it into a plugin with a table [plugins.NAME]"
    )
    both = Description("tasks/t.py", impls=(ImplInfo("on_completed", "on_completed"),))
    assert check_hooks(task, both, SPECS) == []


def test_a_brought_hook_of_no_kind_is_an_error() -> None:
    spec: Any = SpecInfo("on_counted", "workers", "events", "one")  # type: ignore[arg-type]
    texts = [str(problem) for problem in check_specs([(WATCHER, Description("watch:W", specs=(spec,)))], SPECS)]
    assert [text.partition(" with ")[2].partition(";")[0] for text in texts] == [
        "locus='workers'", "kind='events'", "ranks='one'"
    ]  # fmt: skip
