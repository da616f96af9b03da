"""Hugging Face models: where named ones come from, and how one becomes a decoding target."""
