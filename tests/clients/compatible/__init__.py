"""Tests with the real clients of other APIs."""
