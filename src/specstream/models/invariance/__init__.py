"""Passes whose rows have the same bits at every width: the start-up self-test, and its cache on disk."""
