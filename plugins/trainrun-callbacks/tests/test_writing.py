from __future__ import annotations

import threading
from functools import partial

import pytest
from trainrun_callbacks.writing import FileWriter


def test_what_is_left_is_done_before_it_is_closed() -> None:
    done: list[int] = []
    writer = FileWriter("files")
    for number in range(20):
        writer.put(partial(done.append, number))
    writer.close()
    assert done == list(range(20))


@pytest.mark.parametrize("waiting", [0, 16])
def test_a_disk_that_does_not_answer_does_not_hold_the_worker(waiting: int) -> None:
    begun, answer = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        answer.wait()

    writer = FileWriter("files")
    writer.put(stuck)
    assert begun.wait(10)
    for _ in range(waiting):  # the queue is full then
        writer.put(lambda: None)
    with pytest.raises(TimeoutError, match=r"files: not all is written 0.05 s after training; check the disk"):
        writer.close(0.05)
    answer.set()
