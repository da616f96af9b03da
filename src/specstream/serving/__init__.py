"""OpenAI-compatible HTTP over continuous batching."""
