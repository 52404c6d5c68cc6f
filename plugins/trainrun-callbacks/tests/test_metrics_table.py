from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.metrics_table import MetricsTable, MetricsTableOptions, Table

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, RunRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 4, batch_size = 16, log_every = 2 }
evaluate = { every = 4, batch_size = 180 }

[plugins.metrics-table]
metrics = ["train/loss", "eval/*"]
"""


def test_rank_0_writes_a_row_for_each_log_and_evaluation(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE)
    lines = (result.paths.root / "metrics.txt").read_text().splitlines()
    assert [line.split()[0] if line else "" for line in lines] == ["step", "2", "4", "", "step", "4"]
    assert lines[0].split() == ["step", "train/loss"]
    assert lines[1].split() == ["2", f"{result.series('train/loss')[2]:.4g}"]
    assert lines[4].split() == ["step", "train/loss", "eval/accuracy", "eval/loss"]
    assert lines[5].split()[1:] == [f"{result.series(name)[4]:.4g}" for name in ("eval/accuracy", "eval/loss")]


def test_one_row_an_epoch_has_the_newest_of_everything(fork_recipe: ForkRecipe) -> None:
    overrides = ["train.batch_size=720", "evaluate.every=2", 'plugins.metrics-table.at=["epoch"]']
    result = fork_recipe(RECIPE, overrides=overrides)
    lines = (result.paths.root / "metrics.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "2", "4"]
    assert lines[1].split()[1] == f"{result.series('train/loss')[2]:.4g}"
    assert all(len(line.split()) == 4 for line in lines)


class Talks:
    """Logs something at the end of each epoch, and what the table leaves out by default."""

    @hookimpl
    def on_epoch_end(self, run: Any) -> None:
        run.log("seconds/epoch", 1.0, reduce="max")

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        run.log("phase/step", 1.0)


def test_by_default_monitors_with_many_metrics_are_left_out_and_so_is_the_rest_at_the_end(
    run_recipe: RunRecipe,
) -> None:
    result = run_recipe(RECIPE.replace('metrics = ["train/loss", "eval/*"]', ""), Talks)
    assert list(result.series("seconds/epoch")) == [4]
    lines = (result.paths.root / "metrics.txt").read_text().splitlines()
    assert lines[-2].split() == ["step", "train/loss", "train/samples_per_second", "eval/accuracy", "eval/loss"]


def warnings(result: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in result.paths.rank_log(0).read_text().splitlines()]
    return [line for line in lines if line["event"].startswith("patterns of metrics-table")]


def test_patterns_that_show_nothing_are_named_at_the_end(run_recipe: RunRecipe) -> None:
    recipe = RECIPE.replace('"eval/*"]', '"eval/*", "eval/acuracy", "phase/*"]')
    (told,) = warnings(run_recipe(recipe, Talks))
    assert told["metrics"] == ["eval/acuracy", "phase/*"]  # a slip, and what is left out by default
    assert {"eval/accuracy", "phase/step"} <= set(told["there_are"])


def test_patterns_that_all_fit_are_not_worth_a_word(run_recipe: RunRecipe) -> None:
    assert warnings(run_recipe(RECIPE + "\n[plugins.heartbeat]\n")) == []


def test_columns_stay_and_new_ones_come_after_them() -> None:
    table = Table()
    assert list(table.add(1, {"b": 1.0})) == ["    step           b", "       1           1"]
    assert list(table.add(2, {"a_long_name": 0.5})) == [
        "",
        "    step           b  a_long_name",
        "       2                      0.5",
    ]
    assert list(table.add(3, {"b": float("nan")})) == ["       3         nan             "]


def client(folder: Path, *, quiet: bool = False, node: int = 0) -> Any:
    paths = SimpleNamespace(root=folder)
    return SimpleNamespace(paths=paths, quiet=quiet, seat=SimpleNamespace(node=node))


def test_each_row_is_shown_once_and_only_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, launch, plugin = tmp_path / "metrics.txt", client(tmp_path), MetricsTable(MetricsTableOptions())
    file.write_text("of an earlier launch\n")
    plugin.on_attempt_start(launch)
    for added, shown in [("one\ntw", "one\n"), ("o\n", "two\n"), ("", ""), ("three\nfour\n", "three\nfour\n")]:
        with file.open("a") as open_file:
            open_file.write(added)
        plugin.on_status(launch)
        assert capsys.readouterr().err == shown
    plugin.on_attempt_start(launch)
    plugin.on_launch_end(launch)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("silent", [{"quiet": True}, {"node": 1}])
def test_nothing_is_shown_where_nobody_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], silent: dict[str, Any]
) -> None:
    launch, plugin = client(tmp_path, **silent), MetricsTable(MetricsTableOptions())
    plugin.on_attempt_start(launch)
    (tmp_path / "metrics.txt").write_text("one\n")
    plugin.on_attempt_end(launch)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_headers_are_bold_and_lines_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    launch, plugin = client(tmp_path), MetricsTable(MetricsTableOptions())
    plugin.on_attempt_start(launch)
    (tmp_path / "metrics.txt").write_text(f"    step  {'x' * 40}\n       1  2\n")
    plugin.on_status(launch)
    header, row, _ = terminal.getvalue().split("\n")
    assert "\x1b[1m" in header
    assert "…" in header
    assert row == "       1  2"
