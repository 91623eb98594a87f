"""Model families: a predictor each for language models, digit readers and captioners."""
