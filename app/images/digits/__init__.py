"""Framing of handwritten digits: from a decoded image to MNIST's 28x28 form."""
