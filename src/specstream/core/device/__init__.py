"""Drafts and verdicts that stay on the device."""
