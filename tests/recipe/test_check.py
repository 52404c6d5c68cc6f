from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainrun.recipe import Document, check, planned

Problems = Callable[..., list[str]]

TASK = '[task]\nuse = "x"\n'


def test_a_minimal_recipe_is_right(problems: Problems) -> None:
    assert problems(TASK + "[train]\nsteps = 1\n") == []


def test_everything_is_reported_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = TASK + "[train]\nsteps = -3\ncolour = 1\n[optimizer]\nweight_dcay = 1\nlr = 'fast'\n"

    assert problems(text, "train.init_from=x.pt") == [
        "train.toml:4:1: train.steps: expected a positive integer, got -3",
        "train.toml:5:1: train.colour: unknown key",
        "train.toml:7:1: optimizer.weight_dcay: unknown key; did you mean 'weight_decay'?",
        'train.toml:8:1: optimizer.lr: expected a number of at least 0, got "fast"',
        '-o #1: train.init_from: "x.pt": this version cannot load weights',
    ]


def test_the_line_is_shown_with_a_caret(document: Callable[..., Document], schema: dict[str, Any]) -> None:
    (problem,) = check(document("task.use = 'x'\ntrain = { steps = 1, log_evry = 5 }\n"), schema)

    assert str(problem).splitlines() == [
        "train.toml:2:22: train.log_evry: unknown key; did you mean 'log_every'?",
        "    train = { steps = 1, log_evry = 5 }",
        "                         ^",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.steps = true", "train.steps: expected a positive integer, got true"),
        ("train.steps = 1e3", "train.steps: expected a positive integer, got 1000.0"),
        ('train.steps = "3"', 'train.steps: expected a positive integer, got "3"'),
        ("train.steps = 2026-01-01", 'train.steps: expected a positive integer, got "2026-01-01"'),
        ("train.steps = nan", "train.steps: expected a positive integer, got nan"),
        ("train.steps = []", "train.steps: expected a positive integer, got []"),
        ("train.steps = {}", "train.steps: expected a positive integer, got a table"),
        ("train = 3", "train: expected a table, got 3"),
        ("train.clip_grad_norm = inf", "train.clip_grad_norm: expected a positive number, got inf"),
        ("train.clip_grad_norm = 0", "train.clip_grad_norm: expected a positive number, got 0"),
        ("train.compile = 1", "train.compile: expected true or false, got 1"),
        ("train.precision = 'fp8'", "train.precision: expected 'fp32', 'bf16' or 'fp16', got \"fp8\""),
        ("launch.workers = 0", "launch.workers: expected a positive integer or 'auto', got 0"),
        ("launch.grace = '3 s'", 'launch.grace: expected a duration such as "30s" or "10m", got "3 s"'),
        ("launch.grace = -1", 'launch.grace: expected a duration such as "30s" or "10m", got -1'),
        ("evaluate.every = 'day'", "evaluate.every: expected a positive integer or 'epoch', got \"day\""),
        ("evaluate.splits = [1]", "evaluate.splits[0]: expected a string that is not empty, got 1"),
        ("data.workers = 5000", "data.workers: expected an integer of at least 0 and at most 1024, got 5000"),
        ("optimizer.betas = [0.9]", "optimizer.betas: expected a list of 2 numbers, got [0.9]"),
        (
            "optimizer.eps = nan",
            "optimizer.eps: expected true or false, an integer, a number, a string or a list of values",
        ),
        ("optimizer.groups = [{}]", "optimizer.groups[0].match: is missing; expected a list of at least 1 string"),
        ("scheduler.min_lr = -1", "scheduler.min_lr: expected a number of at least 0, got -1"),
        ("providers.build_model = 3", "providers.build_model: expected a string, got 3"),
        ("run.seed = -1", "run.seed: expected an integer of at least 0 and below 4294967296, got -1"),
        ("launch.start = 'hot'", "launch.start: expected 'warm' or 'cold', got \"hot\""),
        ("parallel.strategy = 'tp'", "parallel.strategy: expected 'none', 'ddp' or 'fsdp', got \"tp\""),
        ("parallel.wrap = ['Block']", "parallel.wrap: the strategy ddp has no wrap; it belongs to fsdp"),
        (
            "parallel.strategy = 'fsdp'\noptimizer.name = 'Rprop'",
            "parallel.strategy: torch's rprop cannot update shards; take ddp or another optimizer",
        ),
        ("train.init_from = 'x.pt'", 'train.init_from: "x.pt": this version cannot load weights'),
        ("plugins.a.on_error = 'ignore'", "plugins.a.on_error: expected 'fail', 'disable' or 'warn', got \"ignore\""),
        ("plugins.'a b'.x = 1", "plugins.a b: not a name for a plugin; use letters, digits, - and _"),
        ("plugins.a = 3", "plugins.a: expected a table, got 3"),
    ],
)
def test_wrong_values(problems: Problems, line: str, message: str) -> None:
    about_length = line.startswith(("train.steps", "train ="))
    found = problems(f"task.use = 'x'\n{line}\n", "run.seed=1" if about_length else "train.epochs=1")

    assert any(problem.startswith("train.toml:2:") and message in problem for problem in found), found


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "..", ".a", "a..b", "A", "a b", "a" * 65, "ä", "a\\n"])
def test_run_names_that_are_no_slugs(problems: Problems, name: str) -> None:
    (found,) = problems(f'run.name = "{name}"\ntask.use = "x"\ntrain.steps = 1\n')

    assert found.startswith("train.toml:1:5: run.name: expected lower-case letters, digits and . _ -")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[train]\nlr = 1", "it belongs to [optimizer]"),
        ("[data]\nbatch_size = 3", "it belongs to [train] or [evaluate]"),
        ("[trian]", "did you mean 'train'?"),
        ("steps = 3", "it belongs to [train]"),
        ("[launch]\nworker = 2", "did you mean 'workers'?"),
        ("[early]\nx = 1", "it belongs to [plugins.early]"),
        ("[plugins.early]\npatiense = 1", "did you mean 'patience'?"),
        ("[plugins.early]\nafterr = []", "did you mean 'after'?"),
    ],
)
def test_unknown_keys_say_where_they_belong(problems: Problems, text: str, hint: str) -> None:
    options = {"properties": {"patience": {"type": "integer"}}, "type": "object"}
    found = problems(text + "\n", "task.use=x", "train.epochs=1", early=options)

    assert [problem.partition("; ")[2] for problem in found] == [hint]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "task: is missing; expected a table"),
        ("[task]\n", "task.use: is missing; expected a string that is not empty"),
        ("[train]\n", "train: the length of training is not set; set train.steps or train.epochs"),
        (
            '[train]\nsteps = 1\n[evaluate]\nsplits = ["eval", "train"]\n',
            "evaluate.splits: 'train' names what is trained on",
        ),
        ("[train]\nsteps = 1\nepochs = 1\n", "train.epochs: steps and epochs are both set; keep one of the two"),
        (
            "[launch]\nworkers = 3\n[train]\nsteps = 1\nbatch_size = 64\n",
            "train.batch_size: 64 samples cannot be shared by 3 workers; take a multiple of 3, such as 63",
        ),
        (
            "[launch]\nworkers = 2\n[train]\nsteps = 1\nbatch_size = 64\nmicro_batch_size = 24\n",
            "train.micro_batch_size: each worker's 32 samples cannot be cut into micro-batches of 24",
        ),
        ("[optimizer]\nname = 'admaw'\n", "optimizer.name: unknown optimizer 'admaw'; did you mean 'adamw'?"),
        ("[optimizer]\nname = 'LBFGS'\n", "optimizer.name: lbfgs evaluates the loss several times an update"),
        ("[optimizer]\nname = 'sgd'\nbetas = [0.1, 0.2]\n", "optimizer.betas: sgd has no such setting"),
        (
            "[[optimizer.groups]]\nmatch = ['a']\nmomentum = 1\n",
            "optimizer.groups[0].momentum: adamw has no such setting",
        ),
        ("[scheduler]\nname = 'cosine'\ngamma = 0.5\n", "scheduler.gamma: the cosine scheduler has no gamma"),
        ("[scheduler]\nname = 'step'\n", "scheduler: the step scheduler needs step_size"),
        ("[scheduler]\nname = 'exponential'\n", "scheduler: the exponential scheduler needs gamma"),
    ],
)
def test_rules_across_keys(problems: Problems, text: str, message: str) -> None:
    found = problems(text)

    assert any(message in problem for problem in found), found


def test_an_unknown_optimizer_far_from_any_known_one_is_left_to_plugins(problems: Problems) -> None:
    assert problems(TASK + "[train]\nsteps = 1\n[optimizer]\nname = 'lion'\nbeta3 = 0.5\n") == []


def test_batches_are_not_divided_while_the_number_of_workers_is_unknown(problems: Problems) -> None:
    assert (
        problems(TASK + "[launch]\nworkers = 'auto'\n[train]\nsteps = 1\nbatch_size = 7\nmicro_batch_size = 2\n") == []
    )


def test_a_rule_is_silent_about_values_that_are_wrong_in_themselves(problems: Problems) -> None:
    found = problems(TASK + "[train]\nsteps = 'x'\nbatch_size = 'x'\n[optimizer]\nname = 3\n[launch]\nworkers = 2\n")

    assert [problem.split(": ")[1] for problem in found] == ["train.steps", "train.batch_size", "optimizer.name"]


def test_secrets_are_not_repeated(document: Callable[..., Document], schema: dict[str, Any]) -> None:
    found = check(document(TASK + "[train]\nsteps = 1\ntoken = 'hunter2'\n[plugins.a.secret]\nx = 1\n"), schema)

    assert len(found) == 1
    assert "hunter2" not in str(found[0])


def test_thousands_of_problems_are_cut(problems: Problems) -> None:
    found = problems(TASK + "[train]\nsteps = 1\n" + "".join(f"q{number} = 1\n" for number in range(2000)))

    assert len(found) == 51
    assert found[-1] == "train.toml: 1950 more problems"


def test_what_has_no_effect_yet_is_noted(document: Callable[..., Document], schema: dict[str, Any]) -> None:
    text = TASK + "[control]\nmode = 'frozen'\n"

    assert [str(note).partition("\n")[0] for note in planned(document(text), schema)] == [
        "train.toml:4:1: control.mode: has no effect: live control is not part of this version",
    ]
