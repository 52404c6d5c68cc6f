from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.errors import PluginProblem, RecipeError
from trainrun.plugin.resolve import Resolved, resolve
from trainrun.testing.distribution import DistributionInstaller

WATCHERS = """
    from trainrun import Field, PluginOptions, hookimpl

    class Watcher:
        after = "counter"
        on_error = "disable"

        class Options(PluginOptions):
            every: int = Field(10, ge=1)

        def __init__(self, options): ...

        @hookimpl
        def on_step_end(self, step): ...

    class Counter:
        @hookimpl
        def on_step_end(self, step): ...

    class Model:
        @hookimpl
        def build_model(self): ...
"""
ENTRIES = {
    "watcher": "watchers:Watcher",
    "counter": "watchers:Counter",
    "model": "watchers:Model",
}


@pytest.fixture(autouse=True)
def watchers(install: DistributionInstaller) -> Path:
    return install("watch-dist", {"watchers.py": WATCHERS}, ENTRIES)


def resolved(recipe: Path, more: str = "", *switches: str) -> Resolved:
    recipe.write_text(recipe.read_text() + more)
    return resolve(recipe, (), switches)


def plugins(found: Resolved) -> list[str]:
    return [one.name for one in found.instances if one.role == "plugin"]


def problem(found: Resolved) -> str:
    (text,) = map(str, found.problems)
    return text


def test_installed_alone_is_not_enabled(recipe: Path) -> None:
    found = resolved(recipe)
    found.require()
    assert plugins(found) == []
    assert set(ENTRIES) <= set(found.installed_not_enabled)


def test_tables_enable_and_class_order_bends_theirs(recipe: Path) -> None:
    found = resolved(recipe, "[plugins.watcher]\nevery = 3\n[plugins.counter]\n")
    found.require()
    assert plugins(found) == ["counter", "watcher"]
    watcher = found.instances[-1]
    assert (watcher.options, watcher.on_error, watcher.distribution) == ({"every": 3}, "disable", "watch-dist")
    assert [entry.instance.name for entry in found.plan["on_step_end"]] == ["watcher", "counter"]
    assert "after counter" in found.plan["on_step_end"][0].reason


def test_neighbours_that_a_class_names_and_nothing_has_are_noted(recipe: Path) -> None:
    (recipe.parent / "own.py").write_text(
        'class P:\n    before = ["nowhere"]\n    after = ("tusk", "watcher", "task", "metrics")\n'
    )
    found = resolved(recipe, '[plugins.x]\nuse = "own.py:P"\n')
    found.require()
    no = "no plugin is called"
    notes = [note.partition(": ")[2] for note in found.notes]
    assert notes == [
        f"before: {no} 'nowhere', so it has no effect",
        f"after: {no} 'tusk', so it has no effect; did you mean 'task'?",
    ]


def test_the_table_wins_over_the_class(recipe: Path) -> None:
    found = resolved(recipe, '[plugins.watcher]\nafter = []\non_error = "warn"\nqueue = 5\n[plugins.counter]\n')
    found.require()
    assert plugins(found) == ["watcher", "counter"]
    assert (found.instances[-2].on_error, found.instances[-2].queue) == ("warn", 5)


def test_defaults_of_options_are_filled_in(recipe: Path) -> None:
    found = resolved(recipe, "", "watcher")
    assert found.instances[-1].options == {"every": 10}


def test_several_instances_of_one_plugin(recipe: Path) -> None:
    found = resolved(recipe, '[plugins.fast]\nuse = "watcher"\nevery = 1\n[plugins.slow]\nuse = "watcher"\n')
    found.require()
    assert [(one.name, one.plugin, one.options["every"]) for one in found.instances[-2:]] == [
        ("fast", "watcher", 1),
        ("slow", "watcher", 10),
    ]


def test_switches_win_over_tables(recipe: Path) -> None:
    tables = "[plugins.watcher]\nenabled = false\n[plugins.counter]\n"
    assert plugins(resolved(recipe, tables)) == ["counter"]
    assert plugins(resolved(recipe, "", "watcher", "no:counter")) == ["watcher"]


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ('train.precision = "bf16"', "train.precision is 'fp32'"),
        ('train.precision = ["bf16", "fp16"]', "train.precision is 'fp32'"),
        ('train.precision = "fp32", launch.workers = [4, 8]', "launch.workers is 1"),
        ("train.clip_grad_norm = 1.0", "train.clip_grad_norm is not set"),
        ("task.hidden = 3", "task.hidden is not set"),
        ("launch.workers = true", "launch.workers is 1"),
    ],
)
def test_a_condition_that_does_not_hold_turns_a_plugin_off(recipe: Path, condition: str, why: str) -> None:
    found = resolved(recipe, f"[launch]\nworkers = 1\n[plugins.watcher]\nenabled = {{ {condition} }}\n")
    found.require()
    assert plugins(found) == []
    assert f"plugin watcher is off, because {why}" in found.notes


def test_a_condition_that_holds_turns_a_plugin_on(recipe: Path) -> None:
    condition = '{ train.precision = ["bf16", "fp32"], checkpoint.keep = 2, run.name = "conditional" }'
    found = resolved(recipe, f'[run]\nname = "conditional"\n[plugins.watcher]\nenabled = {condition}\n')
    found.require()
    assert plugins(found) == ["watcher"]


def test_a_condition_on_what_no_recipe_has_is_an_error(recipe: Path) -> None:
    text = problem(resolved(recipe, '[plugins.watcher]\nenabled = { train.precison = "bf16" }\n'))
    assert "plugins.watcher.enabled: no recipe has 'train.precison'" in text
    assert "did you mean 'train.precision'?" in text


def test_a_built_in_can_be_set_and_turned_off(recipe: Path) -> None:
    found = resolved(recipe, "[plugins.progress]\ninterval = 2.0\n", "no:metrics")
    found.require()
    builtins = {one.name: one.options for one in found.instances if one.role == "builtin"}
    assert "metrics" not in builtins
    assert builtins["progress"]["interval"] == 2.0


def test_autoload_enables_all_that_is_installed_but_not_the_examples(recipe: Path) -> None:
    found = resolved(recipe, "[run]\nautoload = true\n[plugins.model]\nenabled = false\n")
    found.require()
    assert [name for name in plugins(found) if name in ENTRIES] == ["counter", "watcher"]
    assert not {"digits", "chargpt"} & set(plugins(found))


def test_autoload_leaves_out_what_needs_options(recipe: Path, install: DistributionInstaller) -> None:
    source = """
        from trainrun import PluginOptions, hookimpl

        class Needy:
            class Options(PluginOptions):
                metric: str

            def __init__(self, options): ...

            @hookimpl
            def on_step_end(self, step): ...
    """
    install("needy-dist", {"needy.py": source}, {"needy": "needy:Needy"})
    tables = "[run]\nautoload = true\n[plugins.model]\nenabled = false\n"
    found = resolved(recipe, tables)
    found.require()
    assert "needy" not in plugins(found)
    (note,) = [one for one in found.notes if "leaves out needy" in one]
    assert note.endswith("because metric has no default; to enable it, set it in [plugins.needy]")
    with_table = resolved(recipe, '[plugins.needy]\nmetric = "eval/loss"\n')
    with_table.require()
    assert "needy" in plugins(with_table)


def test_a_file_beside_the_recipe_can_be_a_plugin(recipe: Path) -> None:
    found = resolved(recipe, '[plugins.mine]\nuse = "tasks/nothing.py"\n')
    assert found.instances[-1].target == str(recipe.parent / "tasks" / "nothing.py")


def test_two_providers_need_a_line(recipe: Path) -> None:
    tables = '[plugins.model]\n[plugins.second]\nuse = "model"\n'
    text = problem(resolved(recipe, tables))
    assert "model and second both implement build_model" in text
    assert 'build_model = "model" under [providers]' in text
    found = resolved(recipe, '[providers]\nbuild_model = "second"\n')
    found.require()
    assert [entry.instance.name for entry in found.plan["build_model"]] == ["second", "model", "task"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[providers]\nbuild_modell = "task"\n', "did you mean 'build_model'?"),
        ('[providers]\nbuild_model = "taks"\n', "did you mean 'task'?"),
        ("[plugins.watchr]\n", "plugin 'watchr' is not installed; did you mean 'watcher'?"),
        (
            "[plugins.unheard-of]\n",
            "plugin 'unheard-of' is not installed; pip install the package that provides it; trainrun plugins lists",
        ),
        ("[plugins.task]\n", "the name is taken by the recipe's task"),
        ("[plugins.watcher]\nevery = 0\n", "plugins.watcher.every: expected"),
        ("[plugins.watcher]\neverry = 1\n", "did you mean 'every'?"),
        ('[plugins.watcher]\nafter = ["couter"]\n', "did you mean 'counter'?"),
        ('[plugins.mine]\nuse = "tasks/missing.py"\n', "there is no file 'tasks/missing.py'"),
        ('[launch]\nbackend = "slrum"\n', "plugin 'slrum' is not installed"),
    ],
)
def test_what_is_wrong_in_the_recipe_is_shown_where_it_is(recipe: Path, tables: str, message: str) -> None:
    found = resolved(recipe, tables)
    text = problem(found)
    assert message in text
    assert text.startswith(f"{recipe}:")
    with pytest.raises(RecipeError):
        found.require()


@pytest.mark.parametrize(
    ("switch", "message"),
    [("watchr", "did you mean 'watcher'?"), ("no:watchr", "did you mean 'watcher'?"), ("zzzzz", "install the")],
)
def test_what_is_wrong_with_a_switch_names_the_switch(recipe: Path, switch: str, message: str) -> None:
    text = problem(resolved(recipe, "", switch))
    assert text.startswith("-p #1: ")
    assert message in text


def test_a_cycle_names_its_members(recipe: Path) -> None:
    text = problem(resolved(recipe, '[plugins.watcher]\n[plugins.counter]\nafter = ["watcher"]\n'))
    assert "plugin order has a cycle" in text
    assert "watcher" in text
    assert "counter" in text


def test_an_unknown_task_is_the_recipe_s_fault(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("tasks/nothing.py", "digts"))
    assert "task 'digts' is not installed; did you mean 'digits'?" in problem(resolved(recipe))


def test_a_broken_plugin_is_looked_at_again_each_time(recipe: Path, watchers: Path) -> None:
    (watchers / "watchers.py").write_text("import not_yet_there")
    found = resolved(recipe, "[plugins.counter]\n")
    with pytest.raises(PluginProblem, match="not_yet_there"):
        found.require()
    (watchers / "not_yet_there.py").write_text("")
    (watchers / "watchers.py").write_text("import not_yet_there\nclass Counter: ...\n")
    resolved(recipe).require()


def test_everything_wrong_is_reported_at_once(recipe: Path, watchers: Path) -> None:
    tables = "[plugins.watcher]\nevery = 0\n[plugins.nobody-has-it]\n[optimizer]\nlr = -1.0\n"
    assert len(resolved(recipe, tables, "zzzzz").problems) == 4


def test_a_switch_alone_leaves_required_options_out(recipe: Path, install: DistributionInstaller) -> None:
    source = """
        from trainrun import PluginOptions, hookimpl

        class Needs:
            class Options(PluginOptions):
                monitor: str

            def __init__(self, options): ...

            @hookimpl
            def on_step_end(self, step): ...
    """
    install("needs-dist", {"needs.py": source}, {"needs": "needs:Needs"})
    assert "plugins.needs.monitor: is missing; expected a string" in problem(resolved(recipe, "", "needs"))
    given = resolve(recipe, ['plugins.needs.monitor="eval/loss"'], ["needs"])
    given.require()
    assert plugins(given) == ["needs"]


def test_a_problem_of_a_plugin_hides_none_of_one_with_a_shorter_name(
    recipe: Path, install: DistributionInstaller
) -> None:
    source = """
        import pydantic
        from trainrun import PluginOptions, hookimpl

        class Even:
            class Options(PluginOptions):
                every: int = 2

                @pydantic.field_validator("every")
                @classmethod
                def even(cls, value):
                    if value % 2:
                        raise ValueError("not even")
                    return value

            def __init__(self, options): ...

            @hookimpl
            def on_step_end(self, step): ...
    """
    install("even-dist", {"evens.py": source}, {"even": "evens:Even"})
    found = resolved(recipe, '[plugins.even]\nevery = 3\n[plugins.even-2]\nuse = "even"\nevry = 4\n')
    told = sorted(str(one).partition(": ")[2].partition(":")[0] for one in found.problems)
    assert told == ["plugins.even-2.evry", "plugins.even.every"]
