"""Memory that large bodies share."""

import pytest

from app.api.http.body_memory import MemoryBudget
from app.errors import Overloaded


def test_bodies_share_the_budget() -> None:
    budget = MemoryBudget(100)
    budget.reserve(60)
    budget.reserve(40)
    with pytest.raises(Overloaded, match="body: 100 bytes of large bodies are being worked on"):
        budget.reserve(1)
    budget.release(60)
    budget.reserve(50)


def test_a_body_larger_than_the_budget_is_alone_in_it() -> None:
    budget = MemoryBudget(100)
    budget.reserve(200)
    with pytest.raises(Overloaded):
        budget.reserve(1)
    budget.release(200)
    budget.reserve(1)
    with pytest.raises(Overloaded):
        budget.reserve(200)
