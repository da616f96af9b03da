"""The demo page: plain and speculative decoding side by side."""
