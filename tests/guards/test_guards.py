"""Each guard fails when what it guards is broken: in a copy of the tree in which everything is broken at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest


class Break(NamedTuple):
    """A guard, and an edit that it must not let pass. old: is replaced by `new`; without it `new` is appended."""

    guard: str
    path: str
    old: str
    new: str


SPECS = "src/trainrun/hookspecs.py"
NORMS = "plugins/trainrun-callbacks/src/trainrun_callbacks/norms.py"
STYLE = "test_style.py::"
BROKEN = [
    Break(
        "test_client_imports.py::test_reading_commands_are_light[ps]", "src/trainrun/cli/ps.py", "", "import asyncio"
    ),
    Break(
        "test_client_imports.py::test_launching_side_does_not_import_torch",
        "src/trainrun/launch/budget.py",
        "",
        "import torch",
    ),
    Break("test_client_imports.py::test_package_itself_is_lazy", "src/trainrun/__init__.py", "", "import click"),
    Break(
        "test_client_imports.py::test_own_plugins_with_hooks_of_the_client_do_not_import_torch",
        "plugins/trainrun-callbacks/src/trainrun_callbacks/git_info.py",
        "",
        "import torch",
    ),
    Break(
        "test_correctness.py::test_every_guarantee_names_tests_that_exist",
        "docs/correctness.md",
        "::test_",
        "::test_absent_",
    ),
    Break(
        "test_hooks.py::test_docstring_says_when_it_is_called[on_epoch_end]",
        SPECS,
        '"""Called when an epoch ends',
        '"""Fires as an epoch ends',
    ),
    Break(
        "test_hooks.py::test_docstring_mentions_every_argument[on_batch_fetched]",
        SPECS,
        "`seconds` is how long",
        "That is how long",
    ),
    Break("test_hooks.py::test_shared_arguments_exist", "docs/generate.py", '    "launch": "', '    "lunch": "'),
    Break("test_hooks.py::test_page_has_a_section[on_log]", "docs/hooks.md", "\n### on_log\n", "\n### on_logs\n"),
    Break(
        "test_hooks.py::test_it_is_called_and_tested_and_used[on_backward_end]",
        "src/trainrun/worker/loop.py",
        "on_backward_end",
        "on_backwards_end",
    ),
    Break(
        "test_hooks.py::test_it_is_called_and_tested_and_used[should_evaluate]",
        "plugins/trainrun-callbacks/src/trainrun_callbacks/evaluation_timer.py",
        "should_evaluate",
        "should_validate",
    ),
    Break(
        "test_hooks.py::test_it_is_called_and_tested_and_used[on_control]",
        "src/trainrun/worker/applying.py",
        "",
        "def control(hooks):\n    hooks.on_control({})",
    ),
    Break(
        "test_hooks.py::test_table_of_exceptions_names_hooks",
        "tests/guards/test_hooks.py",
        '    "on_sweep_end": ',
        '    "on_sweep_over": ',
    ),
    Break(
        "test_hooks.py::test_host_arguments_are_arguments[on_epoch_start]",
        SPECS,
        'host=("epoch", "resumed")',
        'host=("epoch", "entered")',
    ),
    Break(
        "test_hooks.py::test_worker_hooks_offer_run[on_train_end]",
        SPECS,
        "def on_train_end(run: Run)",
        "def on_train_end()",
    ),
    Break(
        "test_hooks.py::test_pages_are_made_from_the_hooks",
        SPECS,
        "# --- in the client ---",
        "# in the client ---",
    ),
    Break(
        "test_picture.py::test_every_hook_is_in_the_picture",
        SPECS,
        "        on_package_start · on_package_end\n",
        "        on_package_start\n",
    ),
    Break(
        "test_pages.py::test_page_is_what_the_generator_makes[recipe.md]",
        "docs/recipe.md",
        "",
        "Written by hand.",
    ),
    Break(
        "test_pages.py::test_command_and_its_options_are_documented[trainrun ps]",
        "docs/commands.md",
        "\n## trainrun ps\n",
        "\n## trainrun px\n",
    ),
    Break("test_pages.py::test_every_recipe_key_is_documented", "docs/recipe.md", "| `seed` |", "| seed |"),
    Break(
        "test_pages.py::test_every_recipe_key_has_a_description",
        "src/trainrun/recipe/model.py",
        'description="',
        'title="',
    ),
    Break(
        "test_pages.py::test_every_option_of_our_plugins_has_a_description",
        "plugins/trainrun-callbacks/src/trainrun_callbacks/evaluation_timer.py",
        "description=",
        "title=",
    ),
    Break(
        "test_pages.py::test_every_plugin_has_a_page_of_its_own",
        "docs/callbacks/monitoring.md",
        "\n## heartbeat\n",
        "\n## Heartbeats\n",
    ),
    Break("test_printing.py::test_only_a_few_places_write", "src/trainrun/cli/stop.py", "", "print()"),
    Break(
        "test_printing.py::test_those_that_write_escape[src/trainrun/launch/busy.py]",
        "src/trainrun/launch/busy.py",
        "from trainrun.printing import ",
        "from trainrun.printing import \\\n    ",
    ),
    Break(
        "test_printing.py::test_the_list_holds_nothing_that_does_not_write",
        "tests/guards/test_printing.py",
        '    "src/trainrun/examples/chargpt.py",\n',
        '    "src/trainrun/examples/digits.py",\n    "src/trainrun/examples/chargpt.py",\n',
    ),
    Break(
        "test_public_names.py::test_public_names_are_these", "src/trainrun/__init__.py", '    "runs",\n', '    "run",\n'
    ),
    Break(
        "test_language.py::test_there_are_no_more_of_these_words[pages]",
        "README.md",
        "",
        "It goes on where nobody looks.",
    ),
    Break(f"{STYLE}test_modules_are_short", "src/trainrun/cli/why.py", "", "# long\n" * 400),
    Break(
        f"{STYLE}test_functions_are_short",
        "src/trainrun/cli/logs.py",
        "",
        "def long() -> None:\n" + "    long()\n" * 51,
    ),
    Break(
        f"{STYLE}test_no_bare_except",
        NORMS,
        "",
        "try:\n    pass\nexcept:  # noqa: E722\n    pass",
    ),
    Break(f"{STYLE}test_module_names_say_something", "src/trainrun/cli/utils.py", "", ""),
    Break(f"{STYLE}test_public_classes_have_docstrings", NORMS, "", "class Bare:\n    pass"),
    Break(f"{STYLE}test_nothing_is_left_to_do", "README.md", "", "TO" + "DO: all"),
    Break(f"{STYLE}test_no_paths_of_a_machine", "README.md", "", "/ho" + "me/somebody/runs"),
]


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, pages and guards as git has them, with every edit made."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    copy = tmp_path_factory.mktemp("copy")
    for name in listed:
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, copy / name)
    subprocess.run(["git", "init", "-q", str(copy)], check=True)
    for _, path, old, new in BROKEN:
        text = (copy / path).read_text(encoding="utf-8") if (copy / path).exists() else ""
        assert old in text, f"{path} has no {old!r}"
        (copy / path).write_text(text.replace(old, new) if old else f"{text}\n{new}\n", encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def failures(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What the guards of the copy say, by test."""
    sources = [copy / "src", *sorted(copy.glob("plugins/*/src"))]
    report = tmp_path_factory.mktemp("report") / "junit.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}"),
            *(f"tests/guards/{guard}" for guard, *_ in BROKEN),
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "TRAINRUN_CACHE_DIR": str(copy / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = (case.get("classname") or "").rpartition(".")[2]
        failed = case.find("failure")
        found[f"{module}.py::{case.get('name')}"] = "" if failed is None else failed.get("message") or "failed"
    return found


@pytest.mark.parametrize("guard", [broken.guard for broken in BROKEN], ids=str)
def test_a_broken_tree_is_noticed(guard: str, failures: Mapping[str, str]) -> None:
    assert failures[guard], "it passes although what it guards is broken"


def test_every_guard_is_shown_to_fail(root: Path) -> None:
    """But those that show it themselves, and those of the guards' own code."""
    shown = {guard.partition("[")[0] for guard, *_ in BROKEN}
    itself = {
        "test_picture.py::test_real_runs_call_the_hooks_in_the_order_of_the_picture",
        "test_picture.py::test_what_the_runs_are_about_is_in_them",
        "test_picture.py::test_a_hook_that_is_left_out_of_the_picture_is_noticed",
        "test_picture.py::test_two_hooks_that_are_exchanged_are_noticed",
        "test_picture.py::test_order",
        "test_picture.py::test_lines_that_say_nothing_are_refused",
        "test_correctness.py::test_the_guard_finds_rows_without_a_test",
        # These call what they are about, as tests of behaviour do.
        "test_public_names.py::test_each_name_is_there_and_documented",
        "test_public_names.py::test_an_unknown_name_is_an_attribute_error",
        "test_public_names.py::test_launch_stays_a_function_when_its_subpackage_is_imported",
        "test_public_names.py::test_the_package_is_typed",
    }
    there = {
        f"{path.name}::{name}"
        for path in (root / "tests" / "guards").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path != Path(__file__)
    }
    assert there == shown | itself
