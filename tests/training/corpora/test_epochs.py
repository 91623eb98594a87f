"""Sources are weighted; an epoch's documents are shuffled by seed and epoch, and read in windows from any place on."""

from collections.abc import Mapping

import numpy as np
import pytest

from training.corpora.documents import Documents, PieceIds
from training.corpora.epochs import Epoch, repeats


def source(documents: int, length: int = 3, first: int = 0) -> Documents:
    """Documents whose ids count up, so that an id is its index."""
    ids = np.arange(first, first + documents * length, dtype=np.uint16)
    return Documents(ids, np.arange(0, documents * length + 1, length, dtype=np.int64), 0, documents)


def test_sources_repeat_in_proportion_but_bounded() -> None:
    sources = {"large": source(4000), "small": source(400), "tiny": source(4), "sgd": source(40)}
    counts = repeats(sources, 0.7, 2.0)
    assert counts["small"] / counts["large"] == pytest.approx(10**0.3)
    assert counts["tiny"] == 2.0
    assert counts["sgd"] == 1.0
    total = sum(len(part.ids) for part in sources.values())
    assert sum(len(part.ids) * counts[name] for name, part in sources.items()) == pytest.approx(total)
    assert repeats(sources, 1.0, 2.0) == pytest.approx(dict.fromkeys(sources, 1.0))


def in_memory(sources: Mapping[str, Documents], counts: Mapping[str, float], seed: int, epoch: int) -> PieceIds:
    """An epoch as one array, drawn as all published runs were."""
    names = sorted(sources)
    chosen = []
    for at, name in enumerate(names):
        number = len(sources[name].starts) - 1
        whole, rest = divmod(counts[name], 1.0)
        part = np.random.default_rng([seed, epoch, at]).permutation(number)[: round(rest * number)]
        drawn = np.concatenate([np.tile(np.arange(number), int(whole)), part])
        chosen.append(np.stack([np.full(len(drawn), at), drawn], 1))  # (documents, 2): source, document
    order = np.concatenate(chosen)
    np.random.default_rng([seed, epoch]).shuffle(order)
    parts = [sources[name] for name in names]
    return np.concatenate([parts[s].ids[parts[s].starts[d] : parts[s].starts[d + 1]] for s, d in order.tolist()])


def uneven(documents: int, seed: int) -> Documents:
    """Documents of 1 to 40 random ids."""
    draw = np.random.default_rng(seed)
    starts = np.cumsum([0, *draw.integers(1, 41, documents)])
    return Documents(draw.integers(0, 65_536, starts[-1]).astype(np.uint16), starts, 0, documents)


@pytest.mark.parametrize("size", [30, 3_000, 70_000])
def test_the_windows_of_an_epoch_are_those_of_the_stream_in_memory(size: int) -> None:
    sources = {name: uneven(size // share, share) for share, name in enumerate("cab", 1)} | {"empty": uneven(0, 0)}
    counts = {"a": 2.0, "b": 0.37, "c": 1.6, "empty": 1.5}
    for number in (0, 3):
        expected = in_memory(sources, counts, 7, number)
        epoch = Epoch(sources, counts, 7, number)
        assert len(epoch) == len(expected)
        length = len(expected) // 3 - 1
        positions = [0, length, 2 * length + 5]
        found = np.concatenate([pieces[:, :-1] for pieces in epoch.windows(positions, 11)], 1)
        assert len(found.T) in range(length - 16, length + 1)
        for position, row in zip(positions, found, strict=True):
            assert np.array_equal(row, expected[position : position + len(row)])


def test_a_window_begins_with_the_last_piece_of_the_one_before() -> None:
    windows = [pieces.tolist() for pieces in Epoch({"a": source(1, 10)}, {"a": 1.0}, 1, 0).windows([0, 2], 3)]
    assert windows == [[[0, 1, 2, 3], [2, 3, 4, 5]], [[3, 4, 5, 6], [5, 6, 7, 8]]]


def test_an_epoch_reads_each_document_as_often_as_its_source_asks() -> None:
    sources, counts = {"a": source(10), "b": source(10, first=1000)}, {"a": 2.0, "b": 0.5}

    def stream(number: int) -> PieceIds:
        epoch = Epoch(sources, counts, 1, number)
        return np.concatenate([pieces[0, :-1] for pieces in epoch.windows([0], 1)])

    found = np.append(stream(0), 0)[:75].reshape(-1, 3)
    assert sorted(found[found[:, 0] < 1000][:, 0].tolist()) == sorted([3 * k for k in range(10)] * 2)
    assert len(set(found[found[:, 0] >= 1000][:, 0].tolist())) == len(found) - 20 == 5
    assert stream(0).tolist() == stream(0).tolist()
    assert stream(0).tolist() != stream(1).tolist()
