"""Evaluation: is the output what is promised, and what does it cost."""
