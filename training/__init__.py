"""Offline training: recipes, export and evaluation."""
