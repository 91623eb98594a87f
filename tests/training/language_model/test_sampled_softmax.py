"""The sampled softmax is the full one where all pieces are negatives, and has its optimum where some are."""

import pytest
import torch
from torch.nn import functional as F

from training.language_model.sampled_softmax import NegativeSampler, full_costs, sampled_costs

PIECES = 50


def test_with_all_negatives_it_is_the_full_softmax() -> None:
    torch.manual_seed(1)
    hidden, weight, bias = torch.randn(7, 5), torch.randn(PIECES, 5), torch.randn(PIECES)
    targets = torch.randint(PIECES, (7,))
    sampler = NegativeSampler(torch.arange(PIECES), PIECES)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    found = sampler.costs(hidden, targets, weight, bias, sampler.draw(), sampled_costs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(full_costs(hidden, targets, weight, bias), expected)


def test_pieces_are_drawn_as_often_as_the_correction_says() -> None:
    torch.manual_seed(1)
    sampler = NegativeSampler(torch.arange(PIECES) ** 3, 10)
    drawn = torch.zeros(PIECES)
    for _ in range(4000):
        ids = sampler.draw()
        assert len(set(ids.tolist())) == 10
        drawn[ids] += 1 / 4000
    assert (drawn - sampler.log_q.exp()).abs().max() < 0.03
    assert float(sampler.log_q.exp().sum()) == pytest.approx(10, rel=1e-4)


def test_the_optimum_is_that_of_the_full_softmax_thanks_to_the_correction() -> None:
    assert divergence(corrected=True) < 0.03
    assert divergence(corrected=False) > 0.1


def divergence(corrected: bool) -> float:
    """KL of a distribution from the one learned with few negatives, drawn unevenly."""
    torch.manual_seed(1)
    wanted = torch.randn(PIECES).softmax(0)
    sampler = NegativeSampler(torch.randint(1000, (PIECES,)), 12)
    if not corrected:
        sampler.log_q = torch.zeros(PIECES)
    hidden, weight, bias = torch.ones(256, 1), torch.zeros(PIECES, 1), torch.zeros(PIECES, requires_grad=True)
    optimiser = torch.optim.Adam([bias], 0.1)
    for step in range(700):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 700)
        targets = torch.multinomial(wanted, 256, replacement=True)
        costs = sampler.costs(hidden, targets, weight, bias, sampler.draw(), sampled_costs)
        (bias.grad,) = torch.autograd.grad(costs.mean(), bias)
        optimiser.step()
    return float((wanted * (wanted.log() - bias.detach().log_softmax(0))).sum())


@pytest.mark.parametrize("negatives", [0, PIECES + 1])
def test_a_number_of_negatives_that_can_not_be_drawn_is_rejected(negatives: int) -> None:
    with pytest.raises(ValueError, match="negatives: expected 1 to 50"):
        NegativeSampler(torch.ones(PIECES), negatives)
