"""Model families: one predictor each for language models, digit readers and captioners."""
