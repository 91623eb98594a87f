"""Corpora: where they come from, checksums, what a recipe reads; one module a kind of data."""
