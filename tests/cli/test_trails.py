"""The comparison of what two trainings logged, on made-up folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.trails import First, Verdict, blame, compare, joined, trail, unlike
from trainrun.worker.checkpoint import trail as written

Edit = tuple[int, int, str, Any]  # rank, step, key, value


def run(path: Path, *edits: Edit, ranks: int = 2, metrics: Sequence[dict[str, Any]] = ()) -> Path:
    """A run of 4 steps with 2 micro-batches each."""
    for rank in range(ranks):
        file = written.file(path, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        records = [
            {
                "attempt": 1,
                "step": step,
                "batches": [f"a{step}", f"b{step}"],
                "rng": {"torch": "t"},
                "losses": [0.5, 0.25],
            }
            for step in range(1, 5)
        ]
        for _, step, key, value in (edit for edit in edits if edit[0] == rank):
            records[step - 1][key] = value
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    return path


def firsts(a: Path, b: Path) -> dict[str, First | None]:
    return {verdict.name: verdict.first for verdict in compare(a, b)}


def test_same_logs_are_equal(tmp_path: Path) -> None:
    verdicts = compare(run(tmp_path / "a"), run(tmp_path / "b"))
    assert verdicts == [Verdict("batches", None), Verdict("rng", None), Verdict("losses", None)]
    assert blame(verdicts) is None


@pytest.mark.parametrize(
    ("edit", "name", "first"),
    [
        ((1, 3, "batches", ["a3", "x"]), "batches", First("micro-batch 1", ("b3", "x"), 1, 3)),
        ((0, 4, "batches", ["a4"]), "batches", First("micro-batch 1", ("b4", "not there"), 0, 4)),
        ((1, 2, "rng", {"torch": "u"}), "rng", First("generator of torch", ("t", "u"), 1, 2)),
        ((0, 3, "losses", [0.5, 0.375]), "losses", First("loss of micro-batch 1", ("0.25", "0.375"), 0, 3)),
    ],
)
def test_first_difference_is_named(tmp_path: Path, edit: Edit, name: str, first: First) -> None:
    verdicts = compare(run(tmp_path / "a"), run(tmp_path / "b", edit))
    assert [verdict for verdict in verdicts if verdict.first] == [Verdict(name, first)]
    assert blame(verdicts) == Verdict(name, first)


def test_earliest_step_is_to_blame_and_within_it_the_cause(tmp_path: Path) -> None:
    wrong_loss, wrong_batch = (0, 2, "losses", [0.0, 0.25]), (0, 3, "batches", ["x", "b3"])
    one = run(tmp_path / "one")
    assert blame(compare(one, run(tmp_path / "b", wrong_batch, wrong_loss))) == Verdict(
        "losses", First("loss of micro-batch 0", ("0.5", "0.0"), 0, 2)
    )
    both = compare(one, run(tmp_path / "c", wrong_loss, (1, 2, "rng", {"torch": "u"})))
    assert (blame(both) or both[0]).name == "rng"


def test_steps_and_ranks_that_are_missing(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b", ranks=1)
    assert firsts(one, two)["batches"] == First("ranks", ("2", "1"))
    lines = written.file(two, 0).read_text().splitlines(keepends=True)
    written.file(two, 0).write_text("".join(lines[:3]))
    assert firsts(run(tmp_path / "c", ranks=1), two)["losses"] == First("step", ("made", "not made"), 0, 4)


def test_step_that_was_made_twice_counts_as_it_was_made_last(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b", (0, 3, "batches", ["x", "y"]))
    again = {"attempt": 2, "step": 3, "batches": ["a3", "b3"], "rng": {"torch": "t"}, "losses": [0.5, 0.25]}
    with written.file(two, 0).open("a") as file:
        file.write(json.dumps(again) + '\n{"attempt": 2, "st')
    assert trail(two)[0][3]["attempt"] == 2
    assert firsts(one, two)["batches"] is None


def test_logged_losses_count_and_other_metrics_are_told(tmp_path: Path) -> None:
    old = {"step": 2, "time": 1.0, "eval/loss": 0.5, "eval/accuracy": 0.75, "lr/0": 0.1, "train/samples_per_second": 5}
    one = run(tmp_path / "a", metrics=[old])
    assert firsts(one, run(tmp_path / "b", metrics=[{**old, "eval/loss": 0.25}]))["losses"] == First(
        "eval/loss", ("0.5", "0.25"), step=2
    )
    other = run(tmp_path / "c", metrics=[{**old, "time": 2.0, "train/samples_per_second": 6, "lr/0": 0.2}])
    assert (firsts(one, other)["losses"], unlike(one, other)) == (None, ["lr/0"])


def test_what_was_logged_is_more_telling_than_what_was_saved() -> None:
    early, late = First("generator of torch", ("t", "u"), 0, 5), First("torch[3]", ("1", "2"), 0)
    logged = [Verdict("batches", None), Verdict("rng", early)]
    saved = [Verdict("rng", late), Verdict("parameters", late)]
    assert joined(logged, saved) == [Verdict("batches", None), Verdict("rng", early), Verdict("parameters", late)]
    assert joined([Verdict("rng", None)], saved) == saved
    assert blame(saved) == saved[0]


def test_difference_in_words() -> None:
    assert str(First("generator of torch", ("t", "u"), 1, 5)) == (
        "generator of torch, step 5, rank 1: t straight, u resumed"
    )
    assert str(First("weight[3]", ("1.0", "2.0"))) == "weight[3]: 1.0 straight, 2.0 resumed"
