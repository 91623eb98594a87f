"""Torch modules only: no I/O, no loss, no device choice."""
