"""Bits a byte of validation documents under a subword language model, by source."""

import heapq
import math
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np
import torch

from app.models.gated_recurrence import GatedRecurrentLanguageModel
from training.corpora.documents import DocumentCorpus, Documents, PieceIds
from training.corpora.epochs import windows
from training.corpora.files import release
from training.language_model.sampled_softmax import full_costs


@torch.no_grad()
def bits_per_byte(
    model: GatedRecurrentLanguageModel, corpus: DocumentCorpus, most: int | None, lanes: int = 128, window: int = 70
) -> dict[str, float]:
    """Return -log2 p of each source's documents over their bytes of UTF-8, line ends and document ends included.

    Every document is read from a zero state, by the full softmax. `most`: pieces of each source, about, the same ones
    every time.
    """
    model.eval()
    document = corpus.tokenizer.document
    lengths = np.array([len(piece) for piece in corpus.tokenizer.pieces])
    lengths[[document, corpus.tokenizer.newline]] = 0  # a line's first space stands for its end
    names = sorted(name for name, part in corpus.valid.items() if len(part.ids))
    texts = [(at, ids) for at, name in enumerate(names) for ids in _chosen(corpus.valid[name], most)]
    sizes, bits = np.zeros(len(names)), np.zeros(len(names))
    for at, ids in texts:
        sizes[at] += lengths[ids].sum()
    filled = _lanes(texts, lanes)
    pieces = [_windows((ids for _, ids in lane), document, window) for lane in filled]
    owners = [_windows((np.full(len(ids), at, np.uint16) for at, ids in lane), len(names), window) for lane in filled]
    state = model.initial_state(lanes)
    for _ in range(0, max(sum(len(ids) for _, ids in lane) for lane in filled), window):
        stream = torch.from_numpy(np.stack([next(lane) for lane in pieces], 1).astype(np.int64))  # (window + 1, lanes)
        owner = np.stack([next(lane) for lane in owners], 1)[:-1].ravel()
        before, expected = stream[:-1], stream[1:].flatten()  # the next `<doc>` ends a document
        hidden, state = model(before, state, before == document)
        for part in range(0, len(expected), 1024):
            counted = np.flatnonzero(owner[part : part + 1024] < len(names))
            rows = hidden.flatten(0, 1)[part : part + 1024][counted]
            costs = full_costs(rows, expected[part : part + 1024][counted], model.embedding.weight, model.bias)
            np.add.at(bits, owner[part : part + 1024][counted], costs.double().numpy() / math.log(2))
        for name in names:
            release(corpus.valid[name].ids)
    return dict(zip(names, (bits / sizes).tolist(), strict=True))


def _chosen(part: Documents, most: int | None) -> list[PieceIds]:
    """Return documents evenly spaced over the source until they have `most` pieces; all for None."""
    number = len(part.starts) - 1
    share = 1.0 if most is None else min(1.0, most / len(part.ids))
    chosen = np.unique((np.arange(max(1, round(number * share))) / share).astype(np.int64).clip(0, number - 1))
    return [np.asarray(part.ids[part.starts[k] : part.starts[k + 1]]) for k in chosen]


def _lanes(texts: list[tuple[int, PieceIds]], lanes: int) -> list[list[tuple[int, PieceIds]]]:
    """Lay whole documents, with their sources, end to end in lanes of about equal length."""
    heap = [(0, lane) for lane in range(lanes)]
    filled: list[list[tuple[int, PieceIds]]] = [[] for _ in range(lanes)]
    for owner, ids in sorted(texts, key=lambda text: -len(text[1])):
        length, lane = heap[0]
        filled[lane].append((owner, ids))
        heapq.heapreplace(heap, (length + len(ids), lane))
    return filled


def _windows(lane: Iterable[PieceIds], padding: int, size: int) -> Iterator[PieceIds]:
    """Yield the windows of a lane, and of padding after it."""
    return windows(chain(lane, repeat(np.full(size, padding, np.uint16))), size)
