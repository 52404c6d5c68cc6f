from __future__ import annotations

from trainrun.plugin.cost import Cost, Figures, Meter, Row


def test_a_meter_counts_adds_and_keeps_the_longest() -> None:
    meter = Meter()
    for seconds in (0.5, 2.0, 1.0):
        meter.add(seconds)
    assert meter.read() == (Figures(3, 3.5, 2.0),)


def test_rows_are_summed_by_instance_and_hook_the_most_expensive_first() -> None:
    cost = Cost()
    cost.watch("on_log", ["a", "b"], lambda: [Figures(2, 1.0, 0.7), Figures(2, 3.0, 2.0)])
    cost.watch("on_log", ["a"], lambda: [Figures(1, 0.5, 0.9)])
    cost.watch("on_step_end", ["a"], lambda: [Figures(1, 9.0, 9.0)])
    cost.watch("on_step_end", ["never-called"], lambda: [Figures(0, 0.0, 0.0)])
    assert cost.table() == [
        Row("a", "on_step_end", 1, 9.0, 9.0),
        Row("b", "on_log", 2, 3.0, 2.0),
        Row("a", "on_log", 3, 1.5, 0.9),
    ]


def test_figures_are_read_when_the_table_is_made() -> None:
    cost, meter = Cost(), Meter()
    cost.watch("on_log", ["a"], meter.read)
    assert cost.table() == []
    meter.add(1.0)
    assert cost.table() == [Row("a", "on_log", 1, 1.0, 1.0)]
