"""Items are worked on by other processes, in order, a few at a time; a process that ends is an error."""

import operator
import os
from collections.abc import Iterator

import pytest

from training.corpora.parallel import parallel


def test_results_come_in_order_from_other_processes() -> None:
    assert list(parallel(operator.add, 10, range(50))) == list(range(10, 60))
    assert os.getpid() not in set(parallel(process, None, range(20)))


def test_a_few_items_are_worked_on_here() -> None:
    assert list(parallel(process, None, [1, 2])) == [os.getpid()] * 2
    assert list(parallel(process, None, [])) == []


def test_few_items_are_read_ahead() -> None:
    read = []

    def items() -> Iterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    results = parallel(operator.add, 0, items())
    assert next(results) == 0
    assert len(read) < 1000
    results.close()  # type: ignore[attr-defined]


def test_a_process_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with exit status 3"):
        list(parallel(end, None, range(20)))


def process(state: None, item: int) -> int:
    return os.getpid()


def end(state: None, item: int) -> None:
    os._exit(3)
