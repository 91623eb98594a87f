"""Corpus files: cache folder, checksums, reading."""
