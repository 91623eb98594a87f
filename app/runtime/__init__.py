"""Answers without HTTP: engines, predictors, batching and the registry of served models."""
