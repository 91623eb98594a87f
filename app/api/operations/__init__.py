"""Endpoints for operators: health, models, metrics and documentation."""
