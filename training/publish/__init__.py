"""From a finished run to a bundle in the store: what every family does, and one module a family."""
