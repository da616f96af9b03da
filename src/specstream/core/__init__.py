"""The algorithm of speculative decoding: torch and the standard library only."""
