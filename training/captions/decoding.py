"""Captions of a captioner: beam search and sampling, in batches."""

import math
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from app.models.captioner import Captioner
from app.text import Vocabulary
from training.captions.dataset import IGNORED


class Caption(NamedTuple):
    """A caption found by beam search."""

    tokens: list[int]  # without the end
    log_probability: float  # the end's included, if there is one


class Decoder(NamedTuple):
    """A captioner that has seen N photographs."""

    state: Tensor  # (N, S) before the first word
    step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """Word ids (B,), states (B, S), photographs (B,) -> log-probabilities (B, V) of the next word, states (B, S)."""


def seen(model: Captioner, features: Tensor) -> Decoder:
    """Return the decoder of photographs with features (N, F)."""
    return Decoder(model.begin(features), lambda tokens, state, photographs: model.step(tokens, state))


@torch.inference_mode()
def beam_search(
    decoder: Decoder, vocabulary: Vocabulary, width: int, length: int, *, length_penalty: float
) -> list[Caption]:
    """Return the best caption of each photograph, by a batched form of `app.runtime.beam_search`.

    The `width` best finished and unfinished captions are kept at each word, ranked by log-probability /
    n**length_penalty, where n counts the end; `<unk>` is never chosen, nor the end as the first word.
    """
    count = len(decoder.state)
    rows = torch.arange(count)[:, None]
    tokens = torch.full((count, 1, 1), vocabulary.end)  # (N, W, words so far), started by <eos>
    scores, ranks = torch.zeros(count, 1), torch.zeros(count, 1)
    ended = torch.zeros(count, 1, dtype=torch.bool)
    state = decoder.state[:, None]  # (N, W, S)
    for words_now in range(1, length + 1):
        owners = rows.expand(-1, tokens.shape[1]).flatten()
        log_probs, after = decoder.step(tokens[..., -1].flatten(), state.flatten(0, 1), owners)
        log_probs = _mask_forbidden(log_probs, vocabulary, first=words_now == 1).view(count, tokens.shape[1], -1)
        grown = scores[..., None] + log_probs.masked_fill(ended[..., None], -math.inf)  # (N, W, V)
        ranked = grown / words_now**length_penalty
        ranked[..., vocabulary.end] = torch.where(ended, ranks, ranked[..., vocabulary.end])
        grown[..., vocabulary.end] = torch.where(ended, scores, grown[..., vocabulary.end])
        ranks, chosen = ranked.flatten(1).topk(width)
        parents, words = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        scores = grown.flatten(1).gather(1, chosen)
        tokens = torch.cat([tokens[rows, parents], words[..., None]], -1)
        state = after.view(count, -1, after.shape[-1])[rows, parents]
        ended = words == vocabulary.end
        if ended.all():
            break
    return [
        Caption(list(takewhile(lambda token: token != vocabulary.end, row[0, 1:].tolist())), score)
        for row, score in zip(tokens, scores[:, 0].tolist(), strict=True)
    ]


def sample(decoder: Decoder, vocabulary: Vocabulary, length: int) -> tuple[Tensor, Tensor]:
    """Sample captions (B, length + 2), in the form of `TrainingSet`, one for each photograph.

    Also return their log-likelihoods (B,), with a gradient. `<unk>` is never drawn, nor the end as the first word.
    """
    count = len(decoder.state)
    captions = torch.full((count, length + 2), IGNORED)
    captions[:, 0] = vocabulary.end
    likelihoods = torch.zeros(count)
    growing, state = torch.arange(count), decoder.state
    for position in range(length):
        log_probs, state = decoder.step(captions[growing, position], state, growing)
        log_probs = _mask_forbidden(log_probs, vocabulary, first=position == 0).log_softmax(-1)
        drawn = (log_probs.detach() - torch.empty_like(log_probs).exponential_().log_()).argmax(-1)  # the Gumbel trick
        likelihoods = likelihoods.index_add(0, growing, log_probs.gather(1, drawn[:, None]).squeeze(1))
        captions[growing, position + 1] = drawn
        growing, state = growing[drawn != vocabulary.end], state[drawn != vocabulary.end]
        if not len(growing):
            break
    return captions, likelihoods


def _mask_forbidden(log_probabilities: Tensor, vocabulary: Vocabulary, *, first: bool) -> Tensor:
    """Log-probabilities (B, V) in float32, with forbidden tokens at -inf."""
    barred = torch.zeros(len(vocabulary))
    barred[vocabulary.unknown] = -math.inf
    if first:
        barred[vocabulary.end] = -math.inf
    return log_probabilities.float() + barred
