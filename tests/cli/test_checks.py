"""The checks of `trainrun smoke` on tasks that train wrong in one way each, and on tasks that train right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.checks import CHECKS, PAGE, Line, run_checks, sizes
from trainrun.cli.measuring import Subject
from trainrun.launch.agents import environment
from trainrun.plugin.resolve import resolve
from trainrun.testing.settings import one_thread
from trainrun.worker import forking
from trainrun.worker.parent import die_with_parent

ROOT = Path(__file__).resolve().parents[2]

# One module with an option for each way, because each new module is imported once to be described.
TASK = """
import time

import torch
from torch import nn
from torch.nn import functional as F
from trainrun import Field, PluginOptions, hookimpl


class Own(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


LAYERS = {
    "dropout": lambda: nn.Dropout(0.5),
    "norm": lambda: nn.BatchNorm1d(8),
    "bare norm": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "own dropout": Own,
}


class Task:
    class Options(PluginOptions):
        train: str = Field("mean", description="How the loss is made.")
        layer: str = Field("", description="A layer in the middle.")
        evaluate: str = Field("", description="What an evaluation changes.")
        loader: str = Field("", description="A loader of the task's own.")

    def __init__(self, options):
        self.options = options
        self.noise = torch.Generator().manual_seed(1)
        self.calls = 0

    @hookimpl
    def build_model(self):
        if "tokens" in self.options.train:
            return nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 10))
        made = LAYERS.get(self.options.layer, nn.Identity)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), made(), nn.Linear(8, 3))

    @hookimpl
    def build_dataset(self, split):
        if self.options.loader and split == "train":
            return None
        generator = torch.Generator().manual_seed(3)
        if "tokens" in self.options.train:
            return [tokens(index, generator) for index in range(48)]
        return [(torch.randn(4, generator=generator), index % 3) for index in range(48)]

    @hookimpl
    def build_dataloader(self, split, world):
        if self.options.loader and split == "train":
            return Stream(*((world.rank, world.size) if self.options.loader == "split" else (0, 1)))

    @hookimpl
    def training_step(self, model, batch):
        how = self.options.train
        scores = model(batch[0]).flatten(0, -2)
        loss = F.cross_entropy(scores, batch[1].flatten(), reduction="sum" if how == "sum" else "mean")
        if how == "weighted tokens":
            return {"loss": loss, "weight": (batch[1] != -100).sum()}
        if how == "eight" and len(batch[1]) < 8:
            raise ValueError("too few")
        if how == "hang":
            time.sleep(600)
        if how == "time":
            return loss * (1 + time.time_ns() % 1000)
        if how == "noise":
            return loss * (1 + torch.rand((), generator=self.noise))
        self.calls += 1
        return loss * self.calls if how == "count" else loss

    @hookimpl
    def evaluation_step(self, run, model, batch):
        self.calls += 1
        if self.options.evaluate == "noise":
            torch.rand((), generator=self.noise)
        if self.options.evaluate == "weight":
            run.module[0].weight.mul_(0.9)
        if self.options.evaluate == "train":
            model.train()
        return {"loss": F.cross_entropy(model(batch[0]), batch[1])}


def tokens(index, generator):
    x, y = torch.randint(10, (6,), generator=generator), torch.randint(10, (6,), generator=generator)
    y[1 if index % 8 < 4 else 6 :] = -100
    return x, y


class Stream:
    def __init__(self, start, step):
        self.start, self.step = start, step

    def __iter__(self):
        rows = torch.randn(48, 4, generator=torch.Generator().manual_seed(3))
        for index in range(self.start, 12, self.step):
            yield rows[4 * index : 4 * index + 4], torch.arange(4) % 3
"""

TOKENS = ("task.train='tokens'", "evaluate.splits=[]")


def fork(plan: Any, first: Any, output: Path) -> None:
    """Train by a plan in a process that is forked from this one, which has torch: `start_process` takes seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            os.environ.update(environment(first))
            forking.run(plan)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


class Checker:
    """Runs checks on the task."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self._recipe = recipe
        self._folder = folder

    def __call__(self, *checks: str, settings: tuple[str, ...] = ()) -> list[Line]:
        """Return the lines of `checks`. settings: as with `-o`."""
        data = resolve(self._recipe, settings, ()).data
        subject = Subject(str(self._recipe), settings, (), self._folder)
        lines = list(run_checks(subject, data, [check for check in CHECKS if check not in checks], fork))
        return [line for line in lines if line.check in checks]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "task.py").write_text(TASK)
    recipe = folder / "train.toml"
    recipe.write_text('task.use = "task.py:Task"\ntrain = { steps = 100, batch_size = 8 }\n')
    return recipe


@pytest.fixture
def check(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> Iterator[Checker]:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    with one_thread():
        yield Checker(recipe, tmp_path)


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.\d+", text)]


def test_a_right_task_passes(check: Checker) -> None:
    lines = check(*CHECKS, settings=("train.micro_batch_size=2",))
    assert [(line.status, line.check) for line in lines] == [("ok", name) for name in CHECKS]
    assert "are the same in micro-batches of 2 as whole (4), in 4 updates" in lines[0].text
    assert "are the same on 2 ranks with 2 each as on one" in lines[1].text
    assert "none on both" in lines[3].text


def test_a_mean_over_tokens_without_a_weight_fails(check: Checker) -> None:
    lines = check("micro-batches", "ranks", settings=TOKENS)
    assert [line.status for line in lines] == ["failed", "failed"]
    cut, whole = numbers(lines[0].text)
    assert f"train/loss {cut} in micro-batches of 4, {whole} whole (8)" in lines[0].text
    assert abs(cut - whole) > 1e-3
    assert str(lines[0]).endswith("; see docs/correctness.md#smoke-micro-batches")
    assert "on 2 ranks with 4 each" in lines[1].text


def test_a_mean_over_tokens_with_its_weight_passes(check: Checker) -> None:
    lines = check("micro-batches", "ranks", settings=("task.train='weighted tokens'", "evaluate.splits=[]"))
    assert [line.status for line in lines] == ["ok", "ok"]


def test_a_sum_in_place_of_a_mean_fails(check: Checker) -> None:
    (line,) = check("micro-batches", settings=("task.train='sum'",))
    cut, whole = numbers(line.text)
    assert line.status == "failed"
    assert whole == pytest.approx(2 * cut, rel=0.2)


@pytest.mark.parametrize(
    ("train", "evaluate", "said"),
    [
        ("noise", "noise", "a generator, a counter or a loader that evaluation and training share"),
        ("count", "", "a generator, a counter or a loader that evaluation and training share"),
        ("mean", "weight", "an evaluation changes 0.weight"),
    ],
)
def test_an_evaluation_that_moves_training_fails(check: Checker, train: str, evaluate: str, said: str) -> None:
    (line,) = check("evaluation", settings=(f"task.train={train!r}", f"task.evaluate={evaluate!r}"))
    assert line.status == "failed"
    assert "step 2: train/loss" in line.text
    assert "after one," in line.text
    assert said in line.text


def test_a_buffer_that_an_evaluation_changes_fails_though_no_loss_shows_it(check: Checker) -> None:
    (line,) = check("evaluation", settings=("task.layer='norm'", "task.evaluate='train'"))
    assert line.status == "failed"
    assert "an evaluation changes 2.running_mean, 2.running_var, 2.num_batches_tracked" in line.text
    assert "train/loss" not in line.text


def test_training_that_is_not_the_same_twice_says_nothing_of_evaluation(check: Checker) -> None:
    (line,) = check("evaluation", settings=("task.train='time'",))
    assert line.status == "not compared"
    assert "training is not the same twice" in line.text


def test_ranks_that_see_the_same_stream_fail(check: Checker) -> None:
    lines = check("ranks", "data", settings=("task.loader='whole'",))
    assert [line.status for line in lines] == ["not compared", "failed"]
    assert "the samples are not the same" in lines[0].text
    assert "rank 0 and rank 1 train on the same data: 16 of 16 different samples are on both ranks" in lines[1].text
    assert "run.world.rank of run.world.size" in lines[1].text


def test_a_stream_that_is_split_is_compared_as_far_as_the_samples_are_the_same(check: Checker) -> None:
    lines = check("micro-batches", "ranks", "data", settings=("task.loader='split'",))
    assert [line.status for line in lines] == ["not compared", "ok", "ok"]
    assert "gives other samples then: 4 whole (8), 8 in micro-batches of 4" in lines[0].text


@pytest.mark.parametrize(
    ("layer", "named"),
    [("dropout", "with dropout off (2 (Dropout))"), ("norm", "with batch norm off (2 (BatchNorm1d))")],
)
def test_dropout_and_batch_norm_are_off_and_named(check: Checker, layer: str, named: str) -> None:
    lines = check("micro-batches", "ranks", settings=(f"task.layer={layer!r}",))
    assert [line.status for line in lines] == ["ok", "ok"]
    assert all(named in line.text for line in lines)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ("own dropout", "because training draws random numbers that cannot be turned off, such as functional dropout"),
        ("bare norm", "because batch norm that keeps no statistics depends on how a batch is cut: 2 (BatchNorm1d)"),
    ],
)
def test_what_cannot_be_turned_off_is_the_reason(check: Checker, layer: str, named: str) -> None:
    (line,) = check("ranks", settings=(f"task.layer={layer!r}",))
    assert line.status == "not compared"
    assert line.text.startswith(named)


def test_one_sample_cannot_be_cut(check: Checker) -> None:
    lines = check("micro-batches", "ranks", "data", settings=("train.batch_size=1",))
    assert {line.status for line in lines} == {"not compared"}
    assert {line.text for line in lines} == {"because an update of 1 sample (train.batch_size) cannot be cut"}


def test_training_that_fails_in_one_way_is_not_compared(check: Checker) -> None:
    lines = check("micro-batches", "ranks", settings=("task.train='eight'",))
    assert [line.status for line in lines] == ["not compared", "not compared"]
    assert "because training in micro-batches of 4 did not work: ValueError" in lines[0].text
    assert "because training on 2 ranks with 4 each did not work: ValueError" in lines[1].text


def test_training_that_does_not_end_is_ended(check: Checker) -> None:
    (line,) = check("data", settings=("task.train='hang'", "launch.timeout=3"))
    assert line.status == "not compared"
    assert line.text == "because training on 2 ranks did not work: a worker died, or did not end in 3 s"


def test_without_splits_there_is_no_evaluation_to_compare(check: Checker) -> None:
    (line,) = check("evaluation", settings=("evaluate.splits=[]",))
    assert str(line) == "not compared: evaluation: because evaluate.splits is empty"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"batch_size": 8}, (8, 4)),
        ({"batch_size": 15}, (14, 7)),
        ({"batch_size": 512, "micro_batch_size": 8}, (16, 8)),
        ({"batch_size": 8, "micro_batch_size": 8}, (8, 4)),
        ({"batch_size": 4, "micro_batch_size": 1}, (2, 1)),
        ({"batch_size": 1}, None),
    ],
)
def test_an_update_is_cut_in_two(table: dict[str, int], expected: tuple[int, int] | None) -> None:
    assert sizes(table) == expected


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_has_a_section_on_each_check(name: str) -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert f"\n### smoke: {name}\n" in page  # its anchor is #smoke-NAME
