"""Choosing edits under a budget."""
