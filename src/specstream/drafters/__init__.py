"""Drafters: where proposed tokens come from. They do not know each other."""
