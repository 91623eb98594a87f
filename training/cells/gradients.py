"""Gradient norms against distance in time: the vanishing gradient (Hochreiter 1991; Bengio, Simard & Frasconi 1994)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from app.models.language_model import LanguageModel
from app.models.recurrent import Recurrent
from training.cells import adding
from training.cells.adding import TEST_SEED, Adder, AddingConfig, sequences
from training.language_model import recipe as language_model
from training.language_model.data import Ids
from training.language_model.recipe import LanguageModelConfig

SEQUENCES = 32  # examined
TOKENS = 100  # of a sequence of text


def gradient_norms(recurrent: Recurrent, inputs: Tensor, costs: Callable[[Tensor], Tensor]) -> list[float]:
    """|d cost of the last step / d h_{T-k}| for k = 0 .. T - 1, over all layers, the median over the batch.

    `inputs` (T, B, I) start from a state of zeros; `costs` maps the last output (B, H) to one cost a sequence (B,).

    h are the outputs of all layers, of one direction; what an h does to a later memory is part of its gradient.
    """
    state, visited = recurrent.initial_state(inputs.shape[1]), []
    for step in inputs:
        hidden = step
        for index, layer in enumerate(recurrent.layers):
            _, state[index] = layer(hidden.unsqueeze(0), state[index])
            hidden = state[index][0]
        visited.append([layer_state[0] for layer_state in state])
    gradients = torch.autograd.grad(costs(hidden).sum(), [h for step in visited for h in step], allow_unused=True)
    layers = len(recurrent.layers)
    steps = [gradients[start : start + layers] for start in range(0, len(gradients), layers)]
    # None: the cost does not depend on that layer's h
    rows = [torch.cat([gradient for gradient in step if gradient is not None], 1) for step in reversed(steps)]
    return [float(row.norm(dim=1).median()) for row in rows]


def adding_gradients(config: AddingConfig, weights: dict[str, Tensor]) -> dict[str, list[float]]:
    """Norms on the adding problem, of the module before training and with its trained `weights`."""
    inputs, sums = sequences(SEQUENCES, config.length, TEST_SEED)

    def norms(model: Adder) -> list[float]:
        return gradient_norms(model.recurrent, inputs, lambda h: (model.answer(h) - sums).square())

    model = adding.build(config)
    initial = norms(model)
    model.load_state_dict(weights)
    return {"initial": initial, "trained": norms(model)}


def language_model_gradients(config: LanguageModelConfig, trained: LanguageModel, ids: Ids) -> dict[str, list[float]]:
    """Norms on SEQUENCES stretches of at most TOKENS of `ids`, of the model before training and `trained`."""
    steps = min(TOKENS, len(ids) // SEQUENCES - 1)
    tokens = (
        torch.from_numpy(ids[: SEQUENCES * (steps + 1)].astype(np.int64)).view(SEQUENCES, steps + 1).T
    )  # (T + 1, B)

    def norms(model: LanguageModel) -> list[float]:
        model.eval()
        inputs = model.embedding(tokens[:-1]).detach()  # (T, B, E)
        return gradient_norms(
            model.recurrent, inputs, lambda h: F.cross_entropy(model.logits(h), tokens[-1], reduction="none")
        )

    torch.manual_seed(config.seed)
    return {"initial": norms(language_model.build(config)), "trained": norms(trained)}
