from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.runtime.recurrent_engine import Floats
from app.runtime.state_cache import Entry, StateCache

SIZE = 4
PREFIXES = st.lists(st.integers(0, 2), max_size=5)


def state(value: float) -> Floats:
    return np.full(SIZE, value, np.float32)


def cost(*prefixes: list[int]) -> int:
    """Bytes that entries for these prefixes take."""
    cache = StateCache(1 << 20)
    for prefix in prefixes:
        cache.put(prefix, Entry(state(0)))
    return cache.bytes


def known(cache: StateCache, tokens: list[int]) -> bool:
    """Return True if the cache has the state after exactly these tokens."""
    return cache.longest(tokens)[0] == len(tokens)


def test_an_empty_cache_knows_nothing() -> None:
    assert StateCache(1 << 20).longest([1, 2]) == (0, None)


def test_the_longest_known_prefix_is_found() -> None:
    cache = StateCache(1 << 20)
    for length in (1, 3, 5):
        cache.put([7, 8, 9, 10, 11][:length], Entry(state(length)))
    length, found = cache.longest([7, 8, 9, 10, 99])
    assert length == 3
    assert found is not None
    assert found.state.tolist() == state(3).tolist()


def test_only_a_prefix_counts() -> None:
    cache = StateCache(1 << 20)
    cache.put([1, 2], Entry(state(1)))
    for tokens in ([2, 1], [1], [0, 1, 2], [258], [1, 513]):
        assert cache.longest(tokens) == (0, None)


def test_tokens_beyond_a_byte_and_beyond_two_differ() -> None:
    cache = StateCache(1 << 20)
    cache.put([1, 70_000], Entry(state(1)))
    assert cache.longest([1, 70_000, 5])[0] == 2
    assert cache.longest([1, 70_000 - 65_536, 5])[0] == 0


def test_what_was_used_least_recently_goes_first() -> None:
    cache = StateCache(cost([1], [2]))
    cache.put([1], Entry(state(1)))
    cache.put([2], Entry(state(2)))
    assert known(cache, [1])  # used: [2] is now the older
    cache.put([3], Entry(state(3)))
    assert [known(cache, [token]) for token in (1, 2, 3)] == [True, False, True]


def test_a_state_larger_than_the_cache_displaces_nothing() -> None:
    cache = StateCache(cost([1]))
    cache.put([1], Entry(state(1)))
    cache.put([1, 2, 3], Entry(state(2)))
    assert len(cache) == 1
    assert known(cache, [1])


def test_without_capacity_nothing_is_kept() -> None:
    cache = StateCache(0)
    cache.put([1], Entry(state(1)))
    assert (len(cache), cache.bytes, cache.longest([1])) == (0, 0, (0, None))


def test_each_entry_counts_at_least_its_numbers_and_its_tokens() -> None:
    assert cost([1, 2, 3]) >= state(0).nbytes + 3 * 4
    assert cost([1], [2]) == 2 * cost([1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "longest"]), PREFIXES)), st.integers(0, 4))
def test_it_is_a_bounded_map_that_forgets_the_least_recently_used(
    operations: list[tuple[str, list[int]]], entries: int
) -> None:
    capacity = entries * cost([0, 0])
    cache, model = StateCache(capacity), OrderedDict[tuple[int, ...], Floats]()
    for number, (operation, tokens) in enumerate(operations):
        key = tuple(tokens)
        if operation == "longest":
            expected = max((prefix for prefix in model if prefix == key[: len(prefix)]), key=len, default=None)
            length, found = cache.longest(tokens)
            if expected is None:
                assert (length, found) == (0, None)
            else:
                model.move_to_end(expected)
                assert found is not None
                assert (length, found.state.tolist()) == (len(expected), model[expected].tolist())
        elif key not in model and cost(tokens) <= capacity:
            model[key] = state(number)
            while sum(cost(list(kept)) for kept in model) > capacity:
                model.popitem(last=False)
        if operation == "put":
            cache.put(tokens, Entry(state(number)))
        assert len(cache) == len(model)
        assert cache.bytes == sum(cost(list(kept)) for kept in model) <= capacity


def test_log_probabilities_are_those_of_the_ids_last_read() -> None:
    cache, starts, inner = StateCache(1 << 20), np.arange(3), np.arange(2)
    cache.put([1], Entry(state(1)))
    bare = cache.bytes
    cache.put([1], Entry(state(1), starts, np.array([-1.0, -2.0, -3.0], np.float32)))
    entry = cache.get([1])
    assert entry is not None
    assert cache.bytes == bare + 12
    assert entry.log_probabilities_of(inner) is None
    values = entry.log_probabilities_of(starts)
    assert values is not None
    assert values.tolist() == [-1, -2, -3]
    cache.put([1], Entry(state(1), inner, np.array([-4.0, -5.0], np.float32)))
    cache.put([1], Entry(state(1)))  # nothing new
    assert (cache.bytes, len(cache)) == (bare + 8, 1)
    assert cache.get([2]) is None
