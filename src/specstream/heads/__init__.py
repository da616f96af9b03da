"""Heads: trainable modules attached to a frozen target. They do not know each other."""
