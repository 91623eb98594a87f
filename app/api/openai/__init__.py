"""The APIs of OpenAI: completions by language models, chat completions that caption images, and tokenization."""
