"""The parts of HTTP that every dialect shares: bodies, authorization, rate limits, problem documents, logs."""
