"""Fixtures of the server tests: the fake model of the API tests."""

from tests.api.conftest import environment, served

__all__ = ["environment", "served"]
