"""The service's own API: /next-word, /perplexity, /digits and /captions."""
