"""The inference API of Hugging Face: POST /models/{model}."""
