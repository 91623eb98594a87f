"""Bits a byte of validation documents under a subword language model, by source."""

import heapq
import math
from typing import Any

import numpy as np
import torch

from app.models.gated_recurrence import GatedRecurrentLanguageModel
from training.corpora.documents import DocumentCorpus, Documents, PieceIds
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
    inputs, targets, owners = _lanes(texts, document, lanes, window)  # (T, lanes) each
    state = model.initial_state(inputs.shape[1])
    for start in range(0, len(inputs), window):
        before = torch.from_numpy(inputs[start : start + window])
        owner = owners[start : start + window].ravel()
        hidden, state = model(before, state, before == document)
        expected = torch.from_numpy(targets[start : start + window]).flatten()
        for part in range(0, len(expected), 1024):
            counted = np.flatnonzero(owner[part : part + 1024] >= 0)
            rows = hidden.flatten(0, 1)[part : part + 1024][counted]
            costs = full_costs(rows, expected[part : part + 1024][counted], model.embedding.weight, model.bias)
            np.add.at(bits, owner[part : part + 1024][counted], costs.double().numpy() / math.log(2))
    return dict(zip(names, (bits / sizes).tolist(), strict=True))


def _chosen(part: Documents, most: int | None) -> list[PieceIds]:
    """Return documents evenly spaced over the source until they have `most` pieces; all for None."""
    number = len(part.starts) - 1
    share = 1.0 if most is None else min(1.0, most / len(part.ids))
    chosen = np.unique((np.arange(max(1, round(number * share))) / share).astype(np.int64).clip(0, number - 1))
    return [np.asarray(part.ids[part.starts[k] : part.starts[k + 1]]) for k in chosen]


def _lanes(
    texts: list[tuple[int, PieceIds]], document: int, lanes: int, window: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Lay whole documents end to end in lanes of about equal length: inputs, targets and the source of each target.

    (T, lanes) each, T a multiple of `window`; the source is -1 where a lane is over.
    """
    heap = [(0, lane) for lane in range(lanes)]
    filled: list[list[tuple[int, PieceIds]]] = [[] for _ in range(lanes)]
    for owner, ids in sorted(texts, key=lambda text: -len(text[1])):
        length, lane = heap[0]
        filled[lane].append((owner, ids))
        heapq.heapreplace(heap, (length + len(ids), lane))
    steps = -(-max(length for length, _ in heap) // window) * window
    inputs = np.full((lanes, steps), document, np.int64)
    targets, owners = inputs.copy(), np.full((lanes, steps), -1, np.int64)
    for lane, parts in enumerate(filled):
        at = 0
        for owner, ids in parts:
            inputs[lane, at : at + len(ids)] = ids
            targets[lane, at : at + len(ids) - 1] = ids[1:]
            owners[lane, at : at + len(ids)] = owner
            at += len(ids)
    return inputs.T.copy(), targets.T.copy(), owners.T.copy()
