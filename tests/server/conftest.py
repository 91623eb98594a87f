"""Fixtures of the server tests: the fake model of the API tests."""

from tests.api.conftest import served

__all__ = ["served"]
