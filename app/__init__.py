"""Serving: text, images, bundles, runtime and the HTTP service."""
