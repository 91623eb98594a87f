"""Fixtures of the server's tests: the fake model of the API's tests."""

from tests.api.conftest import environment, served

__all__ = ["environment", "served"]
